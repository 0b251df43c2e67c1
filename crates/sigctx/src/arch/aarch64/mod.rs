//! AArch64, little-endian, 64-bit pointers.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | frame record: fp, lr         |<- x29
//!        | extra space: records that do |<- EXTRA's datap, the one pointer into the frame
//!        |   not fit below (SVE, ZA, …) |
//!        | ucontext      4560 bytes     |<- x2 (16-aligned); ends with 4096 bytes of records
//!  low   | siginfo        128 bytes     |<- x1, sp; x30 = the sigreturn code
//! ```
//!
//! A record is a magic number, its size in bytes, and its content; an empty one ends the list.
//!
//! This file is long because the layouts of a kernel's frame and what reads them go together.
//!
//! References: the kernel's `arch/arm64/kernel/signal.c`,
//! `arch/arm64/include/uapi/asm/sigcontext.h`, `Documentation/arch/arm64/{sve,sme,gcs}.rst`;
//! Procedure Call Standard for the Arm 64-bit Architecture (AAPCS64), 6.1 (registers), 6.2 (stack);
//! DWARF for the Arm 64-bit Architecture.

use core::arch::asm;
use core::ffi::c_long;
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
use crate::inject::{BadFrame, MoveError};
use crate::sys::{self, SaFlags, SigSet};

mod entry;
#[cfg(feature = "probe")]
mod probe;
mod spill;
#[cfg(test)]
mod tests;

pub(crate) use super::generic::*;
pub(crate) use entry::*;
#[cfg(feature = "probe")]
pub(crate) use probe::*;
pub(crate) use spill::*;

// ---- constants ---------------------------------------------------------------------------------

/// None: the ABI lets no function keep data below the stack pointer.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// More than any frame of this architecture: with vectors of 256 bytes SVE needs 9 KiB and ZA 64.
pub(crate) const MAX_FRAME: usize = 128 * 1024;

/// `PR_SME_GET_VL`.
const SME_LENGTH: usize = 64;

/// Bytes of a signal frame that `AT_MINSIGSTKSZ`, which says `told`, leaves out: the matrix ZA, a
/// square of streaming vectors. At most one frame of a stack has it: a handler begins without it.
///
/// The kernel counts the records of all state there is, but of ZA the head alone, since the thread
/// that it counts for has none (`minsigstksz_setup` in `arch/arm64/kernel/signal.c`; Linux 7.2.12).
/// With vectors of 256 bytes it says 10016 bytes, where a frame with ZA has 66784.
pub(crate) fn left_out(told: usize) -> usize {
    // SAFETY: takes no pointers.
    let streaming = unsafe { sys::syscall(libc::SYS_prctl, [SME_LENGTH, 0, 0, 0, 0, 0]) };
    if streaming.is_err() {
        return 0;
    }
    let length = longest_vector(told);
    // Beside the matrix, what leads to records that do not fit into the context.
    length * length + 64
}

/// The longest vector for whose 32 registers, 16 predicates and FFR there is room in `told` bytes, at
/// least: a thread may change to it at any time. The lengths of streaming vectors are powers of two.
fn longest_vector(told: usize) -> usize {
    /// The longest one of the architecture.
    const LONGEST: usize = 256;

    if told == 0 {
        return LONGEST;
    }
    // Records begin in the context, and go on after it if there are more.
    let records = told.saturating_sub(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.records));
    let length = [128, LONGEST].into_iter().rev().find(|length| 34 * length <= records);
    // What is shorter fits into the context, as what is not there does.
    length.unwrap_or(64)
}

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys no register, and with SVE the upper parts of
/// the vectors, the predicates and ffr, which no Rust code keeps around assembly.
///
/// # Safety
///
/// As for [`sys::syscall_raw`].
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the obligations are the caller's; memory is not said to be preserved.
    unsafe {
        asm!(
            "svc #0",
            in("x8") nr,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack, preserves_flags),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

/// No restorer: without one handlers return to the vDSO's sigreturn code, which debuggers and unwinders
/// know. An action that had one of its own does not need it any more.
#[inline(always)]
pub(crate) fn restorer_of(_flags: SaFlags) -> Option<usize> {
    None
}

layout! {
    /// `struct sigcontext`.
    #[derive(Debug)]
    #[repr(align(16))]
    pub(crate) struct SigContext = "struct sigcontext" {
        fault_address: u64 = "fault_address",
        x0: u64 = "regs[0]",
        x1: u64 = "regs[1]",
        x2: u64 = "regs[2]",
        x3: u64 = "regs[3]",
        x4: u64 = "regs[4]",
        x5: u64 = "regs[5]",
        x6: u64 = "regs[6]",
        x7: u64 = "regs[7]",
        x8: u64 = "regs[8]",
        x9: u64 = "regs[9]",
        x10: u64 = "regs[10]",
        x11: u64 = "regs[11]",
        x12: u64 = "regs[12]",
        x13: u64 = "regs[13]",
        x14: u64 = "regs[14]",
        x15: u64 = "regs[15]",
        x16: u64 = "regs[16]",
        x17: u64 = "regs[17]",
        x18: u64 = "regs[18]",
        x19: u64 = "regs[19]",
        x20: u64 = "regs[20]",
        x21: u64 = "regs[21]",
        x22: u64 = "regs[22]",
        x23: u64 = "regs[23]",
        x24: u64 = "regs[24]",
        x25: u64 = "regs[25]",
        x26: u64 = "regs[26]",
        x27: u64 = "regs[27]",
        x28: u64 = "regs[28]",
        x29: u64 = "regs[29]",
        x30: u64 = "regs[30]",
        sp: u64 = "sp",
        pc: u64 = "pc",
        pstate: u64 = "pstate",
        pad: u64 = "",
        records: [u8; 4096] = "__reserved",
    }
}

layout! {
    /// `struct ucontext`.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u64 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        pub(crate) sigmask: SigSet = "uc_sigmask",
        /// For a mask that grows.
        unused: [u8; 120] = "__unused",
        pad: u64 = "",
        mcontext: SigContext = "uc_mcontext",
    }
}

layout! {
    /// What every record begins with.
    pub(crate) struct RecordHead = "struct _aarch64_ctx" {
        magic: u32 = "magic",
        size: u32 = "size",
    }
}

layout! {
    /// Vectors without SVE, and floating-point status and control.
    pub(crate) struct FpsimdRecord = "struct fpsimd_context" {
        head: RecordHead = "head",
        fpsr: u32 = "fpsr",
        fpcr: u32 = "fpcr",
        vregs: [u128; 32] = "vregs",
    }
}

layout! {
    /// The exception that led to the signal.
    pub(crate) struct EsrRecord = "struct esr_context" {
        head: RecordHead = "head",
        esr: u64 = "esr",
    }
}

layout! {
    /// Where the records are that do not fit into the context.
    pub(crate) struct ExtraRecord = "struct extra_context" {
        head: RecordHead = "head",
        datap: u64 = "datap",
        size: u32 = "size",
        reserved: [u32; 3] = "__reserved",
    }
}

layout! {
    /// SVE's registers, or those of streaming mode, follow.
    pub(crate) struct SveRecord = "struct sve_context" {
        head: RecordHead = "head",
        vl: u16 = "vl",
        flags: u16 = "flags",
        reserved: [u16; 2] = "__reserved",
    }
}

layout! {
    /// SME's array follows.
    pub(crate) struct ZaRecord = "struct za_context" {
        head: RecordHead = "head",
        vl: u16 = "vl",
        reserved: [u16; 3] = "__reserved",
    }
}

/// `FPSIMD_MAGIC`.
const FPSIMD: u32 = 0x4650_8001;
/// `ESR_MAGIC`.
const ESR: u32 = 0x4553_5201;
/// `EXTRA_MAGIC`.
const EXTRA: u32 = 0x4558_5401;
/// `SVE_MAGIC`.
const SVE: u32 = 0x5356_4501;
/// `ZA_MAGIC`.
const ZA: u32 = 0x5436_6345;
/// `GCS_MAGIC`; after the head the stack's pointer, then the features in use, 64 bits each.
const GCS: u32 = 0x4743_5300;
/// Of the flags of an [`SveRecord`]: it is of streaming mode.
const SVE_STREAMING: u16 = 1;

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = assert!(size_of::<Ucontext>() == 4560);

// ---- records -----------------------------------------------------------------------------------

/// A record in a frame.
#[derive(Clone, Copy, Debug)]
struct Record<'c> {
    magic: u32,
    /// The head included.
    bytes: &'c [u8],
}

impl Record<'_> {
    /// The `N` bytes at `offset`; zeroes when the record is shorter.
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(offset))
    }

    #[inline(always)]
    fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(offset))
    }

    #[inline(always)]
    fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(offset))
    }
}

/// The records of a list, up to its end or to the first that cannot be one.
#[derive(Clone, Debug)]
struct Records<'c> {
    rest: &'c [u8],
}

impl Records<'_> {
    /// Whether an empty record is next: what a list must end with.
    #[inline(always)]
    fn at_end(&self) -> bool {
        self.rest.starts_with(&[0; size_of::<RecordHead>()])
    }
}

impl<'c> Iterator for Records<'c> {
    type Item = Record<'c>;

    #[inline(always)]
    fn next(&mut self) -> Option<Record<'c>> {
        let head = Record { magic: 0, bytes: self.rest };
        let magic = head.u32(offset_of!(RecordHead, magic));
        let size = head.u32(offset_of!(RecordHead, size)) as usize;
        // The kernel wants multiples of 16.
        if size == 0 || !size.is_multiple_of(16) {
            return None;
        }
        let (bytes, rest) = self.rest.split_at_checked(size)?;
        self.rest = rest;
        Some(Record { magic, bytes })
    }
}

impl Ucontext {
    /// The records in the context itself.
    #[inline(always)]
    fn records(&self) -> Records<'_> {
        Records { rest: &self.mcontext.records }
    }

    #[inline(always)]
    fn record(&self, magic: u32) -> Option<Record<'_>> {
        self.records().find(|record| record.magic == magic)
    }

    /// The records that do not fit into the context.
    ///
    /// # Safety
    ///
    /// It is a frame that the kernel wrote, or a copy of one after [`relocate`].
    #[inline(always)]
    unsafe fn extra_records(&self) -> Records<'_> {
        let Some(extra) = self.record(EXTRA) else { return Records { rest: &[] } };
        let at = extra.u64(offset_of!(ExtraRecord, datap)) as *const u8;
        let size = extra.u32(offset_of!(ExtraRecord, size)) as usize;
        // SAFETY: the caller's obligation: as many bytes are there, in the same frame.
        Records { rest: unsafe { core::slice::from_raw_parts(at, size) } }
    }
}

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// First argument, and the result.
    X0 = x0, "x0";
    /// Second argument.
    X1 = x1, "x1";
    /// Third argument.
    X2 = x2, "x2";
    /// Fourth argument.
    X3 = x3, "x3";
    /// Fifth argument.
    X4 = x4, "x4";
    /// Sixth argument.
    X5 = x5, "x5";
    /// Seventh argument.
    X6 = x6, "x6";
    /// Eighth argument.
    X7 = x7, "x7";
    /// Where a result in memory goes; the number of a system call.
    X8 = x8, "x8";
    /// Scratch.
    X9 = x9, "x9";
    /// Scratch.
    X10 = x10, "x10";
    /// Scratch.
    X11 = x11, "x11";
    /// Scratch.
    X12 = x12, "x12";
    /// Scratch.
    X13 = x13, "x13";
    /// Scratch.
    X14 = x14, "x14";
    /// Scratch.
    X15 = x15, "x15";
    /// Scratch of linkers' veneers.
    X16 = x16, "x16";
    /// Scratch of linkers' veneers.
    X17 = x17, "x17";
    /// Platform register, on Linux a scratch register.
    X18 = x18, "x18";
    /// Callee-saved.
    X19 = x19, "x19";
    /// Callee-saved.
    X20 = x20, "x20";
    /// Callee-saved.
    X21 = x21, "x21";
    /// Callee-saved.
    X22 = x22, "x22";
    /// Callee-saved.
    X23 = x23, "x23";
    /// Callee-saved.
    X24 = x24, "x24";
    /// Callee-saved.
    X25 = x25, "x25";
    /// Callee-saved.
    X26 = x26, "x26";
    /// Callee-saved.
    X27 = x27, "x27";
    /// Callee-saved.
    X28 = x28, "x28";
    /// Frame pointer.
    X29 = x29, "x29";
    /// Link register.
    X30 = x30, "x30";
    /// Stack pointer.
    Sp = sp, "sp";
    /// Program counter.
    Pc = pc, "pc";
    /// Flags and state, see [`Status`].
    Pstate = pstate, "pstate";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Pstate;

bitflags! {
    /// The flags of `pstate`, in the places that `SPSR_EL1` has them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Exception level and stack pointer, four bits: 0 in user code.
        const MODE = 0xf;
        /// AArch32 state.
        const M32 = 1 << 4;
        /// FIQ masked.
        const F = 1 << 6;
        /// IRQ masked.
        const I = 1 << 7;
        /// System error masked.
        const A = 1 << 8;
        /// Debug exceptions masked.
        const D = 1 << 9;
        /// Which kind of indirect branch led here, two bits: what branch target identification
        /// compares the instruction with.
        const BTYPE = 3 << 10;
        /// Speculative store bypass is safe.
        const SSBS = 1 << 12;
        /// All interrupts masked.
        const ALLINT = 1 << 13;
        /// Illegal execution state.
        const IL = 1 << 20;
        /// Software step.
        const SS = 1 << 21;
        /// Privileged access never.
        const PAN = 1 << 22;
        /// User access override.
        const UAO = 1 << 23;
        /// Data-independent timing.
        const DIT = 1 << 24;
        /// Tag check override.
        const TCO = 1 << 25;
        /// Overflow.
        const V = 1 << 28;
        /// Carry.
        const C = 1 << 29;
        /// Zero.
        const Z = 1 << 30;
        /// Negative.
        const N = 1 << 31;
        /// Exception return is locked, with guarded control stacks.
        const EXLOCK = 1 << 34;
        /// Bits that have no name are kept as they are.
        const _ = !0;
    }
}

// ---- the context -------------------------------------------------------------------------------

impl Ucontext {
    #[inline(always)]
    pub(crate) fn pc(&self) -> usize {
        self.mcontext.pc as usize
    }

    /// Clears the kind of the last indirect branch, which the new program counter was not reached by: in
    /// code that has branch target identification the target would have to be a landing pad.
    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.mcontext.pc = pc as u64;
        self.mcontext.pstate &= !Status::BTYPE.bits();
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.sp as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.mcontext.sp = sp as u64;
    }

    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.mcontext.x29 as usize
    }

    /// The link register.
    #[inline(always)]
    #[expect(clippy::unnecessary_wraps, reason = "other architectures have no link register")]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.x30 as usize)
    }

    /// Makes it look as if the interrupted function had called `target` and would come back at `resume`:
    /// Go's `pushCall`. It takes 16 bytes of stack, with the link register at their start. The frame
    /// pointer goes to the word below; the two are a frame record.
    ///
    /// The target can return only by a jump through a register, which it destroys: x27 in Go.
    ///
    /// # Safety
    ///
    /// The three words below the stack pointer may be overwritten, and `target` preserves
    /// everything else.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(16);
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut u64).write_volatile(self.mcontext.x30) };
        // SAFETY: as above.
        unsafe { (sp.wrapping_sub(8) as *mut u64).write_volatile(self.mcontext.x29) };
        self.set_sp(sp);
        self.mcontext.x30 = resume as u64;
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The address of the thread's last failed memory access (`fault_address`): this signal's own
    /// only when it is one for such an access.
    #[must_use]
    pub fn access_fault_address(&self) -> u64 {
        self.ucontext().mcontext.fault_address
    }

    /// The exception that led to the signal (`ESR_EL1`), for faults with which the kernel writes it.
    #[must_use]
    pub fn exception_syndrome(&self) -> Option<u64> {
        self.ucontext().record(ESR).map(|record| record.u64(offset_of!(EsrRecord, esr)))
    }

    /// Floating-point control, `fpcr`.
    #[must_use]
    pub fn fp_control(&self) -> Option<u32> {
        self.ucontext().record(FPSIMD).map(|record| record.u32(offset_of!(FpsimdRecord, fpcr)))
    }

    /// Floating-point status, `fpsr`.
    #[must_use]
    pub fn fp_status(&self) -> Option<u32> {
        self.ucontext().record(FPSIMD).map(|record| record.u32(offset_of!(FpsimdRecord, fpsr)))
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

frame_record! {
    /// What a function that keeps frame pointers leaves below its caller's frame: here on behalf of
    /// the interrupted function, which made no call.
    pub(crate) struct FrameRecord
}

/// Whether a function that keeps a frame pointer keeps its return address beside it.
pub(crate) const FRAME_POINTERS: bool = true;

/// The frame pointer, and the return address, that a function with the frame pointer `fp` keeps for its caller. `read`
/// reads a word of the stack.
#[inline(always)]
pub(crate) fn caller_of(
    fp: usize,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    Some((read(fp)?, read(fp.wrapping_add(size_of::<usize>()))?))
}

/// Looks whether the frame in `[lo, hi)` is one that can be copied: two proper lists of records,
/// the second inside the frame, too. It begins at a multiple of 16, in QEMU of 8.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    let at = &raw const uc.mcontext.records as usize;
    let mut records = uc.records();
    let mut extra = None;
    for record in &mut records {
        if record.magic == EXTRA {
            extra = Some(record);
        }
    }
    if !records.at_end() {
        return Err(BadFrame::ExtendedState { at });
    }
    let Some(extra) = extra else { return Ok(()) };
    let at = extra.u64(offset_of!(ExtraRecord, datap)) as usize;
    let size = extra.u32(offset_of!(ExtraRecord, size)) as usize;
    if at < lo || at > hi || size > hi - at {
        return Err(BadFrame::ExtendedState { at });
    }
    // SAFETY: the extra space is in the frame.
    let mut records = unsafe { uc.extra_records() };
    records.by_ref().for_each(drop);
    if records.at_end() { Ok(()) } else { Err(BadFrame::ExtendedState { at }) }
}

/// Makes the pointers into the frame point into its copy, `delta` bytes away. The kernel finds the
/// extra space only where it lay, relative to the context.
#[inline(always)]
pub(crate) fn relocate(copy: &mut Ucontext, delta: usize) {
    let Some(extra) = copy.record(EXTRA) else { return };
    let moved = extra.u64(offset_of!(ExtraRecord, datap)).wrapping_add(delta as u64);
    let at = extra.bytes.as_ptr() as usize - copy.mcontext.records.as_ptr() as usize;
    let at = at + offset_of!(ExtraRecord, datap);
    // It is always there: the record was found.
    if let Some(word) = copy.mcontext.records.get_mut(at..at + size_of::<u64>()) {
        word.copy_from_slice(&moved.to_ne_bytes());
    }
}

/// Makes a frame resume on the calling thread. The thread pointer (`tpidr_el0`) is in no frame
/// here. SME's `tpidr2_el0` is, and moves along: it points to the interrupted code's own stack.
#[inline(always)]
pub(crate) fn patch_thread(_copy: &mut Ucontext, _end: usize) {}

/// Looks whether a frame can resume on the calling thread, which may not be its own.
///
/// With a guarded control stack it cannot: the frame's token is on the first thread's. And the kernel
/// refuses vectors of another length than the thread has, live or not.
pub(crate) fn check_move(frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    /// `PR_GET_SHADOW_STACK_STATUS`.
    const STATUS: usize = 74;
    /// `PR_SVE_GET_VL`.
    const SVE_LENGTH: usize = 51;
    /// `PR_SHADOW_STACK_ENABLE`.
    const ENABLED: u64 = 1;

    let mut features = 0u64;
    let args = [STATUS, &raw mut features as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes one word there, or refuses where it has no shadow stacks.
    let asked = unsafe { sys::syscall(libc::SYS_prctl, args) };
    if asked.is_ok() && features & ENABLED != 0 {
        return Err(MoveError::ShadowStack);
    }
    // SAFETY: a copy, after `relocate`.
    for record in frame.records().chain(unsafe { frame.extra_records() }) {
        let (frame, question) = match record.magic {
            GCS if record.u64(size_of::<RecordHead>() + 8) & ENABLED != 0 => {
                return Err(MoveError::ShadowStack);
            }
            SVE if record.u16(offset_of!(SveRecord, flags)) & SVE_STREAMING == 0 => {
                (record.u16(offset_of!(SveRecord, vl)), SVE_LENGTH)
            }
            SVE => (record.u16(offset_of!(SveRecord, vl)), SME_LENGTH),
            ZA => (record.u16(offset_of!(ZaRecord, vl)), SME_LENGTH),
            _ => continue,
        };
        // SAFETY: takes no pointers.
        let answer = unsafe { sys::syscall(libc::SYS_prctl, [question, 0, 0, 0, 0, 0]) };
        // The length is the low half of the answer; a thread without such vectors gets an error.
        let (frame, thread) = (frame.into(), answer.unwrap_or(0) & 0xffff);
        if frame != thread {
            return Err(MoveError::VectorLength { frame, thread });
        }
    }
    Ok(())
}

/// Length of the longest system call instruction.
pub(crate) const SYSCALL_LEN: usize = 4;

/// Length of the system call instructions in the mode that the code was interrupted in.
#[inline(always)]
pub(crate) fn syscall_len(_uc: &Ucontext) -> usize {
    SYSCALL_LEN
}

/// A system call instruction, for tests.
#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0x01, 0x00, 0x00, 0xd4];

/// Whether four bytes are `svc`, with any number in it: the kernel does not look at it.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    u32::from_le_bytes(code) & 0xffe0_001f == 0xd400_0001
}

/// Whether the byte can begin a system call instruction; all instructions are equally long.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    byte & 0x1f == 0x01
}
