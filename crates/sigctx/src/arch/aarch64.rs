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
//! This file is long because an architecture is one file.
//!
//! References: the kernel's `arch/arm64/kernel/signal.c`,
//! `arch/arm64/include/uapi/asm/sigcontext.h`, `Documentation/arch/arm64/{sve,sme,gcs}.rst`;
//! Procedure Call Standard for the Arm 64-bit Architecture (AAPCS64), 6.1 (registers), 6.2 (stack);
//! DWARF for the Arm 64-bit Architecture.

use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_long, c_void};
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::{Structure, layout};
use super::registers::registers;
use crate::inject::{BadFrame, Call, MoveError};
use crate::sys::{self, KernelAction, SaFlags, SigSet};

pub(crate) use probe::*;

// ---- constants ---------------------------------------------------------------------------------

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "aarch64";
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// The ABI has no red zone: below the stack pointer is nobody's.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// More than any frame of this architecture: with vectors of 256 bytes SVE needs 9 KiB and ZA 64.
pub(crate) const MAX_FRAME: usize = 128 * 1024;

/// `PR_SME_GET_VL`.
const SME_LENGTH: usize = 64;

/// Bytes of a signal frame that `AT_MINSIGSTKSZ`, which says `told`, leaves out: the matrix ZA, a
/// square of streaming vectors. At most one frame of a stack has it, for a handler begins without.
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

/// `si_code` of a timer's signal.
pub(crate) const SI_TIMER: c_int = -2;
/// `si_code` of completed asynchronous input or output.
pub(crate) const SI_ASYNCIO: c_int = -4;
/// The call that gives a user id of 32 bits.
pub(crate) const SYS_GETRESGID: c_long = libc::SYS_getresgid;
pub(crate) const SYS_GETRESUID: c_long = libc::SYS_getresuid;
pub(crate) const SYS_GETUID: c_long = libc::SYS_getuid;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETGROUPS: c_long = libc::SYS_setgroups;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETRESGID: c_long = libc::SYS_setresgid;
/// The call that takes user ids of 32 bits.
pub(crate) const SYS_SETRESUID: c_long = libc::SYS_setresuid;

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

layout! {
    /// The start of `siginfo`, whose order is not the same everywhere.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) errno: c_int = "si_errno",
        pub(crate) code: c_int = "si_code",
    }
}

layout! {
    /// `struct sigaction` of the kernel.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "sa_handler",
        flags: usize = "sa_flags",
        restorer: usize = "sa_restorer",
        mask: SigSet = "sa_mask",
    }
}

/// `SA_RESTORER`: `restorer` is valid. Without it handlers return to the vDSO's sigreturn code,
/// which debuggers and unwinders know; so an action that had one of its own needs it no more.
const RESTORER: u32 = 0x0400_0000;

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        Self {
            handler: action.handler,
            flags: action.flags.bits() as usize,
            restorer: 0,
            mask: action.mask,
        }
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags as u32 & !RESTORER);
        KernelAction { handler: self.handler, flags, mask: self.mask }
    }
}

layout! {
    /// `stack_t`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) flags: c_int = "ss_flags",
        pub(crate) size: usize = "ss_size",
    }
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

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    RecordHead::LAYOUT,
    FpsimdRecord::LAYOUT,
    EsrRecord::LAYOUT,
    ExtraRecord::LAYOUT,
    SveRecord::LAYOUT,
    ZaRecord::LAYOUT,
];
/// What a C program includes to have the types that [`LAYOUTS`] names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// Layouts against libc's, field by field.
const _: () = {
    assert!(size_of::<Ucontext>() == 4560);
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(size_of::<SigContext>() == size_of::<libc::mcontext_t>());
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, fault_address) == offset_of!(libc::mcontext_t, fault_address));
    assert!(offset_of!(SigContext, x0) == greg(0));
    assert!(offset_of!(SigContext, x1) == greg(1));
    assert!(offset_of!(SigContext, x2) == greg(2));
    assert!(offset_of!(SigContext, x3) == greg(3));
    assert!(offset_of!(SigContext, x4) == greg(4));
    assert!(offset_of!(SigContext, x5) == greg(5));
    assert!(offset_of!(SigContext, x6) == greg(6));
    assert!(offset_of!(SigContext, x7) == greg(7));
    assert!(offset_of!(SigContext, x8) == greg(8));
    assert!(offset_of!(SigContext, x9) == greg(9));
    assert!(offset_of!(SigContext, x10) == greg(10));
    assert!(offset_of!(SigContext, x11) == greg(11));
    assert!(offset_of!(SigContext, x12) == greg(12));
    assert!(offset_of!(SigContext, x13) == greg(13));
    assert!(offset_of!(SigContext, x14) == greg(14));
    assert!(offset_of!(SigContext, x15) == greg(15));
    assert!(offset_of!(SigContext, x16) == greg(16));
    assert!(offset_of!(SigContext, x17) == greg(17));
    assert!(offset_of!(SigContext, x18) == greg(18));
    assert!(offset_of!(SigContext, x19) == greg(19));
    assert!(offset_of!(SigContext, x20) == greg(20));
    assert!(offset_of!(SigContext, x21) == greg(21));
    assert!(offset_of!(SigContext, x22) == greg(22));
    assert!(offset_of!(SigContext, x23) == greg(23));
    assert!(offset_of!(SigContext, x24) == greg(24));
    assert!(offset_of!(SigContext, x25) == greg(25));
    assert!(offset_of!(SigContext, x26) == greg(26));
    assert!(offset_of!(SigContext, x27) == greg(27));
    assert!(offset_of!(SigContext, x28) == greg(28));
    assert!(offset_of!(SigContext, x29) == greg(29));
    assert!(offset_of!(SigContext, x30) == greg(30));
    assert!(offset_of!(SigContext, sp) == offset_of!(libc::mcontext_t, sp));
    assert!(offset_of!(SigContext, pc) == offset_of!(libc::mcontext_t, pc));
    assert!(offset_of!(SigContext, pstate) == offset_of!(libc::mcontext_t, pstate));
};

/// The offset of libc's general register `index` in its `mcontext_t`.
const fn greg(index: usize) -> usize {
    offset_of!(libc::mcontext_t, regs) + 8 * index
}

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
    /// It is a frame of the kernel's, or a copy of one with its pointer set right.
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

    /// No indirect branch leads to a program counter that is set: with one on record the target
    /// would have to be a landing pad, in code that has branch target identification.
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

    /// Makes it look as if the interrupted function had called `target` and would come back at
    /// `resume`: Go's `pushCall`. 16 bytes of stack, the link register at their start; the frame
    /// pointer in the word below, which makes both a frame record.
    ///
    /// A target can return only by a jump through a register, which it destroys: x27 in Go.
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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn access_fault_address(&self) -> u64 {
        self.ucontext().mcontext.fault_address
    }

    /// The exception that led to the signal (`ESR_EL1`), for a fault that the kernel tells it of.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn exception_syndrome(&self) -> Option<u64> {
        self.ucontext().record(ESR).map(|record| record.u64(offset_of!(EsrRecord, esr)))
    }

    /// Floating-point control, `fpcr`.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn fp_control(&self) -> Option<u32> {
        self.ucontext().record(FPSIMD).map(|record| record.u32(offset_of!(FpsimdRecord, fpcr)))
    }

    /// Floating-point status, `fpsr`.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn fp_status(&self) -> Option<u32> {
        self.ucontext().record(FPSIMD).map(|record| record.u32(offset_of!(FpsimdRecord, fpsr)))
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// What a function that keeps frame pointers leaves below its caller's frame: here on behalf of
/// the interrupted function, which called nobody.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FrameRecord {
    fp: usize,
    pc: usize,
}

impl FrameRecord {
    #[inline(always)]
    pub(crate) fn of(uc: &Ucontext) -> Self {
        Self { fp: uc.fp(), pc: uc.pc() }
    }
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
    // Always there: the record was found.
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
/// With a guarded control stack it cannot: the token for the frame is on the first thread's. And
/// the kernel refuses vectors of another length than the thread has, live or not.
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
    // SAFETY: a copy that `relocate` has set right.
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

/// One of them, for tests.
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

// ---- entry, pivot, resume ----------------------------------------------------------------------

/// The pivot reads the copied frame's address from the start of the record.
const _: () = assert!(offset_of!(Call, frame) == 0);
/// The registers lie one after another, and the CFI below counts from the first.
const _: () = {
    assert!(offset_of!(SigContext, x30) == offset_of!(SigContext, x0) + 8 * 30);
    assert!(offset_of!(SigContext, sp) == offset_of!(SigContext, x0) + 8 * 31);
    assert!(offset_of!(SigContext, pc) == offset_of!(SigContext, x0) + 8 * 32);
};

// `hint #34` is `bti c`, which the kernel's and other indirect calls may land on; older assemblers
// and CPUs take it for a no-op. Every `ret` here is one that the kernel's own entry or `bl` has put
// an address on a guarded control stack for: that of the sigreturn code is still on top of it after
// the pivot.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. x0 = signal, x1 = siginfo, x2 = ucontext, x30 = the sigreturn
    // code, sp = the frame, 16-aligned.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "hint #34",
    "mov x3, sp",               // fourth argument: where the frame begins
    "stp x29, x30, [sp, #-16]!", // `return_address` looks here
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "mov x29, sp",
    "bl {dispatch}",
    "cbnz x0, 2f",
    "ldp x29, x30, [sp], #16",
    ".cfi_def_cfa_offset 0",
    ".cfi_restore x29",
    ".cfi_restore x30",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "ldr x19, [x0]",            // the copied frame; callee-saved, so it outlives the call
    "ldr x20, [x0, #{back}]",   // as is the way back
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. x0 = the record of the call (16-aligned, just below the copied
    // frame), x19 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context.
    //
    // The return address needs a column of its own, for x30 is an interrupted register like any
    // other. The ABI's is 32 (pc); but libgcc, which knows the size of no such column, aborts, and
    // LLVM's unwinder does not know libgcc's (96). x17 does for all of them: no frame is unwound by
    // what is in a linker's scratch register. Debuggers go by the rule for 32.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 17",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg19 offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x83, (({slots} + 248) & 0x7f) | 0x80, ({slots} + 248) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg19 offset: is saved there.
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32",
    ".cfi_escape 0x10, \\n, 3, 0x83, (({slots} + 8*\\n) & 0x7f) | 0x80, ({slots} + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 17, 3, 0x83, (({slots} + 256) & 0x7f) | 0x80, ({slots} + 256) >> 7",
    // A name for debuggers and backtraces.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "mov sp, x0",               // leaves the alternate stack for good
    "add x29, x0, #{record}",   // what frame-pointer walkers go on with
    "msr fpcr, xzr",            // the default, which Rust code counts on; the kernel left it alone
    "bl {run}",                 // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "str wzr, [x0]",            // the stack may be injected again, but not from in here
    "mov sp, x19",
    "mov x30, x20",
    "ret",                      // to the sigreturn code, with sp at the copied frame
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. x0 = the copied frame, x1 = where the handler
    // returns to, x2 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "hint #34",
    "mov x19, x0",
    "mov x20, x1",
    "mov x0, x2",
    "b 3b",
    ".cfi_endproc",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    record = const offset_of!(Call, record),
    slots = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.x0),
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

/// The address of the handler that the kernel is given.
#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry stored it in the word below.
    unsafe { (entry_sp as *const usize).sub(1).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to:
/// `mov x8, #139; svc #0`.
pub(crate) const SIGRETURN_LEN: usize = 8;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering};
    use core::time::Duration;
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::altstack::AltStack;
    use crate::handler::{self, Delivery, Flow, Options};

    /// `AT_MINSIGSTKSZ` of Linux 7.2.12, and what it is without the vectors.
    #[test]
    fn the_longest_vector_is_one_that_the_kernel_has_counted() {
        assert_eq!(longest_vector(10016), 256);
        let without = 10016 - 34 * 256;
        assert_eq!(longest_vector(without + 34 * 128), 128);
        assert_eq!(longest_vector(4720), 64);
        assert_eq!(longest_vector(0), 256);
    }

    #[test]
    fn a_frame_with_the_largest_matrix_fits_on_an_alternate_stack() {
        /// `PR_SME_SET_VL`.
        const SET_LENGTH: usize = 63;
        static HANDLED: AtomicUsize = AtomicUsize::new(0);

        fn handler(_: &mut Delivery<'_>) -> Flow {
            HANDLED.fetch_add(1, Ordering::Relaxed);
            Flow::Resume
        }
        let name =
            "arch::aarch64::tests::a_frame_with_the_largest_matrix_fits_on_an_alternate_stack";
        testkit::in_child(name, Duration::from_secs(30), || {
            // SAFETY: the handler counts.
            let installed = unsafe { handler::install(libc::SIGUSR1, handler, Options::new()) };
            let _installed = installed.expect("install");
            // Before the thread has long vectors.
            let _alt = AltStack::install().expect("alternate stack");
            // SAFETY: takes no pointers; no code here has streaming vectors.
            if unsafe { sys::syscall(libc::SYS_prctl, [SET_LENGTH, 256, 0, 0, 0, 0]) }.is_err() {
                testkit::skip("the CPU has no streaming vectors");
                return;
            }
            // SAFETY: `smstart za`: the matrix has zeroes, and no code here uses it.
            unsafe { asm!(".inst 0xd503457f") };
            let sent = sys::tgkill(sys::getpid(), sys::gettid(), libc::SIGUSR1);
            // SAFETY: `smstop za`.
            unsafe { asm!(".inst 0xd503447f") };
            sent.expect("own thread");
            assert_eq!(HANDLED.load(Ordering::Relaxed), 1);
        });
    }

    /// 0x60001000 is what most code is interrupted with.
    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        let status = Status::from_bits_retain(0x6000_1000);
        assert_eq!(status, Status::Z | Status::C | Status::SSBS);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        // 5, 14 to 19, 26, 27, 32 and 33 have no meaning for user code or none at all.
        assert_eq!(bits, 0x4_f3f0_3fdf);
    }

    #[test]
    fn system_call_instructions_are_known() {
        for code in [0xd400_0001_u32, 0xd400_0021, 0xd41f_ffe1] {
            let code = code.to_le_bytes();
            assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
        }
        // hvc #0, smc #0, brk #0, udf #0, nop, ret
        for code in [0xd400_0002_u32, 0xd400_0003, 0xd420_0000, 0, 0xd503_201f, 0xd65f_03c0] {
            assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
        }
    }

    /// A context of zeroes with `records` in it, each with its size and the words after its head.
    fn context(records: &[(u32, u32, &[u64])]) -> Box<Ucontext> {
        // SAFETY: integers, for which zeroes are values.
        let mut uc: Box<Ucontext> = unsafe { Box::new_zeroed().assume_init() };
        let mut at = 0;
        for &(magic, size, words) in records {
            let mut bytes: Vec<u8> = [magic.to_ne_bytes(), size.to_ne_bytes()].concat();
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            uc.mcontext.records[at..at + bytes.len()].copy_from_slice(&bytes);
            at += size as usize;
        }
        uc
    }

    #[test]
    fn words_of_records_are_found_behind_other_records() {
        let fpsimd = (FPSIMD, 528, &[0x0240_0000_0000_0010][..]);
        let unknown = (0x1234_5678, 32, &[1, 2, 3][..]);
        let mut uc = context(&[fpsimd, unknown, (ESR, 16, &[0x9200_004f])]);
        // SAFETY: integers, for which zeroes are values.
        let mut info: sys::SigInfo = unsafe { core::mem::zeroed() };
        // SAFETY: both live as long as the context, and nobody else uses them.
        let ctx = unsafe { crate::SigCtx::from_raw((&raw mut info).cast(), (&raw mut *uc).cast()) };
        assert_eq!(ctx.fp_control(), Some(0x0240_0000));
        assert_eq!(ctx.fp_status(), Some(0x10));
        assert_eq!(ctx.exception_syndrome(), Some(0x9200_004f));
        let none = context(&[]);
        assert!(none.record(ESR).is_none() && none.records().at_end());
    }

    #[test]
    fn a_frame_is_checked_to_its_last_record() {
        let good = context(&[(FPSIMD, 528, &[]), (SVE, 16, &[64])]);
        assert_eq!(check_frame(&good, 0, usize::MAX), Ok(()));
        // No size of a record; no room for the end of the list; no room for the record.
        for size in [4, 8, 24, 4096, 4112, 0xffff_fff0] {
            let bad = context(&[(FPSIMD, size, &[])]);
            let at = &raw const bad.mcontext.records as usize;
            let found = check_frame(&bad, 0, usize::MAX);
            assert_eq!(found, Err(BadFrame::ExtendedState { at }), "{size}");
        }
    }

    /// A context and what does not fit into it: one record of SVE without registers, and the end.
    #[repr(C, align(16))]
    struct Extended {
        uc: Ucontext,
        extra: [u64; 4],
    }

    impl Extended {
        fn new(vector_length: u16) -> Box<Self> {
            // SAFETY: integers, for which zeroes are values.
            let mut frame: Box<Self> = unsafe { Box::new_zeroed().assume_init() };
            frame.extra[0] = u64::from(SVE) | 16 << 32;
            frame.extra[1] = vector_length.into();
            let at = &raw const frame.extra as u64;
            let size = size_of_val(&frame.extra) as u64;
            frame.uc = *context(&[(FPSIMD, 528, &[]), (EXTRA, 32, &[at, size])]);
            frame
        }

        fn check(&self) -> Result<(), BadFrame> {
            let lo = &raw const *self as usize;
            check_frame(&self.uc, lo, lo + size_of::<Self>())
        }
    }

    #[test]
    fn extra_space_moves_with_its_frame() {
        let frame = Extended::new(64);
        assert_eq!(frame.check(), Ok(()));
        let mut copy = Extended::new(64);
        // SAFETY: plain integers; the two do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(&raw const *frame, &raw mut *copy, 1) };
        let at = &raw const frame.extra as usize;
        assert_eq!(copy.check(), Err(BadFrame::ExtendedState { at }), "it is the first frame's");
        let delta = (&raw const *copy as usize).wrapping_sub(&raw const *frame as usize);
        relocate(&mut copy.uc, delta);
        assert_eq!(copy.check(), Ok(()));
        copy.extra[1] = 17;
        // SAFETY: the extra space is the copy's own now.
        let record = unsafe { copy.uc.extra_records() }.next().expect("one record");
        assert_eq!((record.magic, record.u16(offset_of!(SveRecord, vl))), (SVE, 17));
    }

    #[test]
    fn a_broken_list_in_the_extra_space_is_seen() {
        let mut frame = Extended::new(64);
        frame.extra[2] = u64::from(ZA) | 32 << 32;
        let at = &raw const frame.extra as usize;
        assert_eq!(frame.check(), Err(BadFrame::ExtendedState { at }));
    }

    #[test]
    fn a_frame_with_vectors_of_another_length_does_not_move() {
        // No vector is 17 bytes long.
        for uc in [Extended::new(17).uc, *context(&[(ZA, 16, &[17])])] {
            let moved = check_move(&uc, 0);
            assert!(matches!(moved, Err(MoveError::VectorLength { frame: 17, .. })), "{moved:?}");
        }
        assert_eq!(check_move(&context(&[(FPSIMD, 528, &[])]), 0), Ok(()));
    }

    #[test]
    fn a_frame_with_a_guarded_control_stack_does_not_move() {
        assert_eq!(check_move(&context(&[(GCS, 32, &[0, 1])]), 0), Err(MoveError::ShadowStack));
        assert_eq!(check_move(&context(&[(GCS, 32, &[0, 0])]), 0), Ok(()));
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! Which vectors there are is looked up at run time: v0-31, or SVE's z0-31, p0-15 and ffr.
    //!
    //! One register has no pattern, x17: no instruction jumps to an address that is not in a
    //! register, so the loop needs one to go round, and a trampoline of `push_call`'s destroys one.

    use core::arch::global_asm;
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;
    use crate::sys;

    /// The register that the loop and the trampoline jump through.
    const JUMP: usize = 17;

    /// Every register that code can hold a value in, once.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        /// x0 to x30; the slot of x17 is not used.
        general: [u64; 31],
        nzcv: u64,
        fpcr: u64,
        fpsr: u64,
        /// One vector after another, as long as they are.
        vectors: [u64; 32 * MAX_LENGTH / 8],
        /// p0 to p15 and ffr, a bit for each byte of a vector.
        predicates: [u8; 17 * MAX_LENGTH / 8],
    }

    /// The longest vectors of SVE, in bytes.
    const MAX_LENGTH: usize = 256;

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
    /// is what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop's last instruction jumps to.
        next: AtomicUsize,
        host_sp: u64,
        level: u64,
        /// Length of a vector in bytes.
        length: u64,
    }

    const FLAGS: u64 = Status::N.union(Status::Z).union(Status::C).union(Status::V).bits();
    /// AHP, DN, FZ and the rounding mode. The bits that would make operations trap are left alone.
    const FPCR: u64 = 0x07c0_0000;
    /// QC, IDC, IXC, UFC, OFC, DZC, IOC.
    const FPSR: u64 = 0x0800_009f;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let level = level();
            let length = vector_length();
            let given = &mut self.given;
            for value in given.general.iter_mut().chain(&mut given.vectors) {
                *value = next();
            }
            given.nzcv = next() & FLAGS;
            given.fpcr = next() & FPCR;
            given.fpsr = next() & FPSR;
            given.predicates.fill_with(|| next() as u8);
            // In ffr ones come before zeroes, as loads leave it; anything else is unpredictable.
            let ones = (next() % (length as u64 + 1)) as usize;
            for (i, byte) in
                given.predicates[16 * length / 8..][..length / 8].iter_mut().enumerate()
            {
                *byte = ((1u32 << ones.saturating_sub(8 * i).min(8)) - 1) as u8;
            }
            self.level = level as u64;
            self.length = length as u64;
        }

        /// Calls `report` for every word that differs: register, part, what was given and found.
        pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
            let (given, found) = (&self.given, &self.found);
            let mut check = |name, part, given: u64, found: u64| {
                if given != found {
                    report(name, part, given, found);
                }
            };
            for (i, reg) in Reg::ALL[..31].iter().enumerate().filter(|&(i, _)| i != JUMP) {
                check(reg.name(), 0, given.general[i], found.general[i]);
            }
            check("nzcv", 0, given.nzcv, found.nzcv);
            check("fpcr", 0, given.fpcr, found.fpcr);
            check("fpsr", 0, given.fpsr, found.fpsr);
            let length = self.length as usize;
            let vector = if self.level == Level::Sve as u64 { "z" } else { "v" };
            for i in 0..32 * length / 8 {
                check(vector, i, given.vectors[i], found.vectors[i]);
            }
            if self.level == Level::Sve as u64 {
                for i in 0..17 * length / 8 {
                    let name = if i < 16 * length / 8 { "p" } else { "ffr" };
                    check(name, i, given.predicates[i].into(), found.predicates[i].into());
                }
            }
        }

        /// The word that the loop jumps through.
        pub(crate) fn next(&self) -> &AtomicUsize {
            &self.next
        }
    }

    /// The vectors that the CPU and the kernel have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    enum Level {
        Neon = 1,
        Sve = 2,
    }

    /// A [`Level`], or 0 before anybody has looked. The trampoline reads it, too.
    static LEVEL: AtomicU32 = AtomicU32::new(0);

    fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            1 => Level::Neon,
            2 => Level::Sve,
            _ => {
                // SAFETY: reads the auxiliary vector.
                let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
                let sve = capabilities & libc::HWCAP_SVE != 0;
                let level = if sve { Level::Sve } else { Level::Neon };
                LEVEL.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    /// Of the calling thread, in bytes.
    fn vector_length() -> usize {
        /// `PR_SVE_GET_VL`.
        const SVE_LENGTH: usize = 51;

        match level() {
            Level::Neon => 16,
            Level::Sve => {
                // SAFETY: takes no pointers.
                let answer = unsafe { sys::syscall(libc::SYS_prctl, [SVE_LENGTH, 0, 0, 0, 0, 0]) };
                // Where there is SVE it cannot fail.
                answer.expect("PR_SVE_GET_VL") & 0xffff
            }
        }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        let relocations = ["R_AARCH64_CALL26", "R_AARCH64_JUMP26", "_GOT", "R_AARCH64_TLS"];
        Instruction {
            system_call: line.contains("\tsvc\t"),
            outside: line.contains("\tbl\t") || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("tpidr_el0") || line.contains("R_AARCH64_TLS"),
            stack: stack(line).unwrap_or_default(),
        }
    }

    /// What is taken by `sub sp, sp, #0x1, lsl #12` or `stp x29, x30, [sp, #-96]!`.
    fn stack(line: &str) -> Option<usize> {
        let (number, shift) = match line.split_once("\tsub\tsp, sp, #") {
            Some((_, operand)) => operand.split_once(", lsl #").unwrap_or((operand, "0")),
            None => (line.split_once("[sp, #-")?.1.split_once("]!")?.0, "0"),
        };
        // Comments may follow.
        let number = number.split_ascii_whitespace().next()?;
        let number = match number.strip_prefix("0x") {
            Some(hexadecimal) => usize::from_str_radix(hexadecimal, 16).ok()?,
            None => number.parse().ok()?,
        };
        number.checked_shl(shift.split_ascii_whitespace().next()?.parse().ok()?)
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Neon => "general registers but x17, nzcv, fpcr, fpsr, v0-31",
            Level::Sve => "general registers but x17, nzcv, fpcr, fpsr, z0-31, p0-15, ffr",
        }
    }

    // Between `loop` and `exit` every register but x17 holds its pattern, and sp points at the
    // table. `hint #36` is `bti j`, where indirect jumps may land.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".arch_extension sve",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        "sigctx_probe_spin_0_1:",   // x0 = table
        "hint #34",
        "stp x29, x30, [sp, #-176]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mrs x1, fpcr",
        "stp x1, x18, [sp, #160]",
        "mov x1, sp",
        "str x1, [x0, #{host_sp}]",
        "mov x1, #{given_vectors}",
        "add x1, x0, x1",
        "mov x2, #{given_predicates}",
        "add x2, x0, x2",
        "ldr x3, [x0, #{level}]",
        "cmp w3, #{sve}",
        "b.eq 21f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr q\\n, [x1, #16*\\n]",
        ".endr",
        "b 22f",
        "21:",
        "ldr p0, [x2, #16, mul vl]",
        "wrffr p0.b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ldr p\\n, [x2, #\\n, mul vl]",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr z\\n, [x1, #\\n, mul vl]",
        ".endr",
        "22:",
        "ldr x1, [x0, #{given_fpcr}]",
        "msr fpcr, x1",
        "ldr x1, [x0, #{given_fpsr}]",
        "msr fpsr, x1",
        "ldr x1, [x0, #{given_nzcv}]",
        "msr nzcv, x1",
        "mov sp, x0",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "ldr x\\n, [sp, #8*\\n]",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        "hint #36",
        ".rept 64",
        "nop",
        "add x0, x0, #1",
        "sub x0, x0, #1",
        "ror x12, x12, #13",
        "ror x12, x12, #51",
        ".endr",
        "ldr x17, [sp, #{next}]",
        "br x17",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "hint #36",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "str x\\n, [sp, #{found} + 8*\\n]",
        ".endr",
        "mov x0, sp",
        "ldr x1, [x0, #{host_sp}]",
        "mov sp, x1",
        "mrs x1, nzcv",
        "str x1, [x0, #{found_nzcv}]",
        "mrs x1, fpcr",
        "str x1, [x0, #{found_fpcr}]",
        "mrs x1, fpsr",
        "str x1, [x0, #{found_fpsr}]",
        "mov x1, #{found_vectors}",
        "add x1, x0, x1",
        "mov x2, #{found_predicates}",
        "add x2, x0, x2",
        "ldr x3, [x0, #{level}]",
        "cmp w3, #{sve}",
        "b.eq 23f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str q\\n, [x1, #16*\\n]",
        ".endr",
        "b 24f",
        "23:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "str p\\n, [x2, #\\n, mul vl]",
        ".endr",
        "rdffr p0.b",
        "str p0, [x2, #16, mul vl]",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str z\\n, [x1, #\\n, mul vl]",
        ".endr",
        "24:",
        "ldp x1, x18, [sp, #160]",
        "msr fpcr, x1",
        "ldp d14, d15, [sp, #144]",
        "ldp d12, d13, [sp, #128]",
        "ldp d10, d11, [sp, #112]",
        "ldp d8, d9, [sp, #96]",
        "ldp x27, x28, [sp, #80]",
        "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #176",
        "ret",
        // Writes something else into everything. w0 = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        "sigctx_probe_clobber_0_1:",
        "hint #34",
        "stp x29, x30, [sp, #-176]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mrs x1, fpcr",
        "stp x1, x18, [sp, #160]",
        "mov x2, #{fpcr}",
        "eor x1, x1, x2",
        "msr fpcr, x1",
        "cmp w0, #{sve}",
        "b.eq 31f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "movi v\\n\\().16b, #0x5a",
        ".endr",
        "b 32f",
        "31:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "mov z\\n\\().b, #0x5a",
        ".endr",
        "ptrue p0.h, vl3",          // three of ffr's elements
        "wrffr p0.b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ptrue p\\n\\().d",
        ".endr",
        "32:",
        "mov x0, #0x5555555555555555",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "mov x\\n, x0",
        ".endr",
        "mov x1, #{flags}",
        "msr nzcv, x1",
        // Sticky flags are nobody's: they stay.
        "mov x1, #{fpsr_high}",
        "mov x2, #{fpsr_low}",
        "orr x1, x1, x2",
        "msr fpsr, x1",
        // Back to what the ABI promises the caller.
        "ldp x1, x18, [sp, #160]",
        "msr fpcr, x1",
        "ldp d14, d15, [sp, #144]",
        "ldp d12, d13, [sp, #128]",
        "ldp d10, d11, [sp, #112]",
        "ldp d8, d9, [sp, #96]",
        "ldp x27, x28, [sp, #80]",
        "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #176",
        "ret",
        ".arch_extension nosve",
        ".popsection",
        given_nzcv = const offset_of!(Table, given.nzcv),
        given_fpcr = const offset_of!(Table, given.fpcr),
        given_fpsr = const offset_of!(Table, given.fpsr),
        given_vectors = const offset_of!(Table, given.vectors),
        given_predicates = const offset_of!(Table, given.predicates),
        found = const offset_of!(Table, found.general),
        found_nzcv = const offset_of!(Table, found.nzcv),
        found_fpcr = const offset_of!(Table, found.fpcr),
        found_fpsr = const offset_of!(Table, found.fpsr),
        found_vectors = const offset_of!(Table, found.vectors),
        found_predicates = const offset_of!(Table, found.predicates),
        next = const offset_of!(Table, next),
        host_sp = const offset_of!(Table, host_sp),
        level = const offset_of!(Table, level),
        sve = const Level::Sve as u32,
        flags = const FLAGS,
        fpcr = const FPCR,
        fpsr_high = const FPSR & !0xffff,
        fpsr_low = const FPSR & 0xffff,
    );

    const _: () = {
        // The loop reads the general registers from the table's start.
        assert!(offset_of!(Table, given.general) == 0);
        // What one `mov` can hold.
        assert!(size_of::<Table>() < 1 << 16);
    };

    // Values that name their registers; then an undefined instruction, whose handler steps over it.
    // Not one register is left to find the way back with, the stack pointer included: it is in a
    // static.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 8",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".arch_extension sve",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        "sigctx_probe_known_0_1:",  // w0 = whether there is SSBS
        "hint #34",
        "stp x29, x30, [sp, #-112]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "cbz w0, 51f",
        "mrs x1, S3_3_C4_C2_6",     // ssbs: the environment's, so 0 here, which is always safe
        "msr S3_3_C4_C2_6, xzr",
        "51:",
        "stp x0, x1, [sp, #96]",
        "mov x1, sp",
        "adrp x2, sigctx_probe_saved_0_1",
        "str x1, [x2, :lo12:sigctx_probe_saved_0_1]",
        "mov x0, #{flags}",
        "msr nzcv, x0",
        "mov x0, #0x5b50",          // in the half of the addresses that is the user's, and aligned
        "movk x0, #0x5b5b, lsl #16",
        "movk x0, #0x5b5b, lsl #32",
        "mov sp, x0",
        "mov x1, #0x0101010101010101",
        ".irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "mov x\\n, #0x\\n",
        "mul x\\n, x\\n, x1",
        ".endr",
        "mov x0, #0xf0f0f0f0f0f0f0f0",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        "udf #0",
        "adrp x2, sigctx_probe_saved_0_1",
        "ldr x1, [x2, :lo12:sigctx_probe_saved_0_1]",
        "mov sp, x1",
        "ldp x0, x1, [sp, #96]",
        "cbz w0, 52f",
        "msr S3_3_C4_C2_6, x1",
        "52:",
        "ldp x27, x28, [sp, #80]",
        "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #112",
        "ret",
        // What `push_call` is meant for: a trampoline that keeps everything itself, x17 excepted.
        // x30 = where to go on, [sp] = what x30 was; 16 bytes of stack are to be given back.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        "sigctx_probe_trampoline_0_1:",
        "hint #34",
        "sub sp, sp, #272",
        "stp x0, x1, [sp]",
        "stp x2, x3, [sp, #16]",
        "stp x4, x5, [sp, #32]",
        "stp x6, x7, [sp, #48]",
        "stp x8, x9, [sp, #64]",
        "stp x10, x11, [sp, #80]",
        "stp x12, x13, [sp, #96]",
        "stp x14, x15, [sp, #112]",
        "stp x16, x18, [sp, #128]",
        "stp x19, x20, [sp, #144]",
        "stp x21, x22, [sp, #160]",
        "stp x23, x24, [sp, #176]",
        "stp x25, x26, [sp, #192]",
        "stp x27, x28, [sp, #208]",
        "stp x29, x30, [sp, #224]",
        "mrs x0, nzcv",
        "mrs x1, fpcr",
        "stp x0, x1, [sp, #240]",
        "mrs x0, fpsr",
        "str x0, [sp, #256]",
        "add x29, sp, #224",        // a frame record, and callee-saved, so it outlives the call
        "adrp x0, {level}",
        "ldr w19, [x0, :lo12:{level}]",
        "cmp w19, #{sve}",
        "b.eq 41f",
        "sub sp, sp, #512",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str q\\n, [sp, #16*\\n]",
        ".endr",
        "b 42f",
        "41:",
        // 32 vectors, and 17 predicates of an eighth each: room for three vectors keeps sp aligned.
        "addvl sp, sp, #-32",
        "addvl sp, sp, #-3",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str z\\n, [sp, #\\n, mul vl]",
        ".endr",
        "addvl x0, sp, #31",
        "addvl x0, x0, #1",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "str p\\n, [x0, #\\n, mul vl]",
        ".endr",
        "rdffr p0.b",
        "str p0, [x0, #16, mul vl]",
        "42:",
        "msr fpcr, xzr",
        "bl {hook}",
        "cmp w19, #{sve}",
        "b.eq 43f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr q\\n, [sp, #16*\\n]",
        ".endr",
        "b 44f",
        "43:",
        "addvl x0, sp, #31",
        "addvl x0, x0, #1",
        "ldr p0, [x0, #16, mul vl]",
        "wrffr p0.b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ldr p\\n, [x0, #\\n, mul vl]",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr z\\n, [sp, #\\n, mul vl]",
        ".endr",
        "44:",
        "sub sp, x29, #224",
        "ldr x0, [sp, #256]",
        "msr fpsr, x0",
        "ldp x0, x1, [sp, #240]",
        "msr fpcr, x1",
        "msr nzcv, x0",
        "ldp x0, x1, [sp]",
        "ldp x2, x3, [sp, #16]",
        "ldp x4, x5, [sp, #32]",
        "ldp x6, x7, [sp, #48]",
        "ldp x8, x9, [sp, #64]",
        "ldp x10, x11, [sp, #80]",
        "ldp x12, x13, [sp, #96]",
        "ldp x14, x15, [sp, #112]",
        "ldp x16, x18, [sp, #128]",
        "ldp x19, x20, [sp, #144]",
        "ldp x21, x22, [sp, #160]",
        "ldp x23, x24, [sp, #176]",
        "ldp x25, x26, [sp, #192]",
        "ldp x27, x28, [sp, #208]",
        "ldp x29, x17, [sp, #224]",
        "ldr x30, [sp, #272]",
        "add sp, sp, #288",
        "ret x17",                  // not `br`: the interrupted instruction is no landing pad
        ".arch_extension nosve",
        ".popsection",
        flags = const Status::N.union(Status::C).bits(),
        sve = const Level::Sve as u32,
        level = sym LEVEL,
        hook = sym crate::probe::pushed,
    );

    unsafe extern "C" {
        #[link_name = "sigctx_probe_spin_0_1"]
        fn spin_code(table: *mut Table);
        #[link_name = "sigctx_probe_loop_0_1"]
        static LOOP: u8;
        #[link_name = "sigctx_probe_exit_0_1"]
        static EXIT: u8;
        #[link_name = "sigctx_probe_clobber_0_1"]
        fn clobber_code(level: u32) -> c_int;
        #[link_name = "sigctx_probe_known_0_1"]
        fn known_code(ssbs: u32);
        #[link_name = "sigctx_probe_trampoline_0_1"]
        fn trampoline_code();
    }

    /// Runs the loop.
    ///
    /// # Safety
    ///
    /// The table is filled, below it there is room for signal frames, and its `next` leads to
    /// `exit` in the end.
    pub(crate) unsafe fn spin(table: *mut Table) {
        // SAFETY: the caller's obligations; all callee-saved state is kept.
        unsafe { spin_code(table) }
    }

    /// The addresses at which every register holds its pattern.
    pub(crate) fn window() -> core::ops::Range<usize> {
        &raw const LOOP as usize..&raw const EXIT as usize
    }

    /// Writes something else into every register, vector, predicate, flag and control word.
    #[inline]
    pub(crate) fn clobber() {
        // SAFETY: keeps what the ABI says a function keeps.
        unsafe { clobber_code(level() as u32) };
    }

    /// Loads every register with a value that names it and runs into an undefined instruction.
    ///
    /// # Safety
    ///
    /// A handler for `SIGILL` on an alternate stack adds [`KNOWN_STEP`] to the program counter; one
    /// thread at a time.
    pub(crate) unsafe fn known() {
        // SAFETY: reads the auxiliary vector.
        let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
        let ssbs = capabilities & libc::HWCAP_SSBS != 0;
        // SAFETY: the caller's obligation; all callee-saved state is kept.
        unsafe { known_code(ssbs.into()) }
    }

    /// Runs into an undefined instruction, with nothing special in any register.
    ///
    /// # Safety
    ///
    /// A handler for `SIGILL` adds [`KNOWN_STEP`] to the program counter.
    #[inline(always)]
    pub(crate) unsafe fn undefined() {
        // SAFETY: the caller's obligation.
        unsafe { core::arch::asm!("udf #0") };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[];

    /// DWARF's numbers of registers (AADWARF64): the first, and those from it on. Number 17 is the
    /// column of the program counter in our rules: x17 is not among them.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[
        (
            0,
            &[
                Reg::X0,
                Reg::X1,
                Reg::X2,
                Reg::X3,
                Reg::X4,
                Reg::X5,
                Reg::X6,
                Reg::X7,
                Reg::X8,
                Reg::X9,
                Reg::X10,
                Reg::X11,
                Reg::X12,
                Reg::X13,
                Reg::X14,
                Reg::X15,
                Reg::X16,
            ],
        ),
        (
            18,
            &[
                Reg::X18,
                Reg::X19,
                Reg::X20,
                Reg::X21,
                Reg::X22,
                Reg::X23,
                Reg::X24,
                Reg::X25,
                Reg::X26,
                Reg::X27,
                Reg::X28,
                Reg::X29,
                Reg::X30,
                Reg::Sp,
            ],
        ),
    ];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 8]);

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`.
    pub(crate) fn pushed_trampoline() -> usize {
        // It looks at what this finds out.
        level();
        trampoline_code as *const () as usize
    }

    /// The frame pointer, as the function that this is inlined into has it.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let fp: usize;
        // SAFETY: reads a register.
        unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
        fp
    }

    /// Says whether a program can make itself raise `SIGTRAP` after every instruction: not here,
    /// the kernel clears `pstate`'s bit for it.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lines_of_objdump_are_read() {
            let none = Instruction::default();
            for (line, expected) in [
                ("  4:\tf9400000 \tldr\tx0, [x0]", none),
                ("  4:\td4000001 \tsvc\t#0x0", Instruction { system_call: true, ..none }),
                ("  4:\t94000000 \tbl\t4 <f>", Instruction { outside: true, ..none }),
                ("  4:\td63f0100 \tblr\tx8", none),
                ("\t\t\t4: R_AARCH64_CALL26\tf", Instruction { outside: true, ..none }),
                ("\t\t\t4: R_AARCH64_ADR_GOT_PAGE\tf", Instruction { outside: true, ..none }),
                ("  4:\td53bd040 \tmrs\tx0, tpidr_el0", Instruction { thread_local: true, ..none }),
                ("  4:\td10143ff \tsub\tsp, sp, #0x50", Instruction { stack: 0x50, ..none }),
                (
                    "  4:\td14007ff \tsub\tsp, sp, #0x1, lsl #12",
                    Instruction { stack: 4096, ..none },
                ),
                ("  4:\ta9ba7bfd \tstp\tx29, x30, [sp, #-96]!", Instruction { stack: 96, ..none }),
                ("  4:\ta9017bfd \tstp\tx29, x30, [sp, #16]", none),
            ] {
                assert_eq!(instruction(line), expected, "{line}");
            }
        }
    }
}
