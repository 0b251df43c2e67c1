//! MIPS with 32-bit registers, the o32 ABI, both byte orders.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | records of the MSA vectors    |   where they were used; found by their order
//!        | ucontext       632 bytes      |<- $6
//!        | siginfo        128 bytes      |<- $5
//!        | two words of nothing          |
//!  low   | home of four arguments        |<- $29 (a multiple of 8)
//! ```
//!
//! Registers have 64-bit slots. A kernel for 64-bit machines has the values sign-extended there and
//! wants them back so; one for 32-bit machines has zeroes above them and does not look at what it
//! gets.
//!
//! The unstable feature `asm_experimental_arch` is needed, and the compiler does not yet know that
//! assembly can change hi, lo and $1: assembly here leaves the three as they were.
//!
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/mips/kernel/signal.c`, `arch/mips/include/uapi/asm/sigcontext.h`,
//! `asm/ucontext.h`; System V ABI MIPS supplement, chapter 3; MIPS32 Architecture For Programmers,
//! volumes I-A (FCSR) and IV-j (MSA).

use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_long, c_void};
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::{Structure, layout};
use super::registers::registers;
use crate::inject::{BadFrame, Call, MoveError};
use crate::sys::{KernelAction, SaFlags, SigSet};

pub(crate) use probe::*;

// ---- constants ---------------------------------------------------------------------------------

pub(crate) const NAME: &str = if cfg!(target_endian = "big") { "mips" } else { "mipsel" };
pub(crate) const NSIG: usize = 128;
/// The ABI has none. But kernels before 4.8 have their FPU emulator put an instruction there, and
/// leave out these bytes themselves when they push a frame.
pub(crate) const RED_ZONE: usize = 32;
/// The home of four arguments, two words, the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 152;
/// With the records of MSA about 1.1 KiB.
pub(crate) const MAX_FRAME: usize = 16 * 1024;
pub(crate) const SI_TIMER: c_int = -3;
pub(crate) const SI_ASYNCIO: c_int = -2;
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

/// The system call instruction. The kernel destroys $1, $3, $8 to $15, $24, $25, hi and lo; whether
/// $2 is an error is in $7. The fifth and the sixth argument are on the stack, above the home of
/// the first four.
///
/// # Safety
///
/// As for [`crate::sys::syscall_raw`].
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    let failed: usize;
    // SAFETY: the obligations are the caller's; memory is not said to be preserved, and the stack
    // pointer comes back.
    unsafe {
        asm!(
            ".set push",
            ".set noat",
            "move $16, $1",
            "mfhi $17",
            "mflo $18",
            "addiu $29, $29, -32",
            "sw $8, 16($29)",
            "sw $9, 20($29)",
            "syscall",
            "addiu $29, $29, 32",
            "mtlo $18",
            "mthi $17",
            "move $1, $16",
            ".set pop",
            inlateout("$2") nr => result,
            in("$4") args[0],
            in("$5") args[1],
            in("$6") args[2],
            inlateout("$7") args[3] => failed,
            inlateout("$8") args[4] => _,
            inlateout("$9") args[5] => _,
            out("$16") _,
            out("$17") _,
            out("$18") _,
            lateout("$3") _,
            lateout("$10") _,
            lateout("$11") _,
            lateout("$12") _,
            lateout("$13") _,
            lateout("$14") _,
            lateout("$15") _,
            lateout("$24") _,
            lateout("$25") _,
        );
    }
    if failed == 0 { result } else { result.wrapping_neg() }
}

// ---- kernel layouts ----------------------------------------------------------------------------

layout! {
    /// The start of `siginfo`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) code: c_int = "si_code",
        pub(crate) errno: c_int = "si_errno",
    }
}

layout! {
    /// `struct sigaction`.
    pub(crate) struct RawAction = "struct sigaction" {
        flags: u32 = "sa_flags",
        handler: usize = "sa_handler",
        mask: SigSet = "sa_mask",
        /// The kernel's ends before it; emulators write a restorer here, as kernels once did.
        unused: usize = "",
    }
}

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        Self { flags: action.flags.bits(), handler: action.handler, mask: action.mask, unused: 0 }
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags);
        KernelAction { handler: self.handler, flags, mask: self.mask }
    }
}

layout! {
    /// `stack_t`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) size: usize = "ss_size",
        pub(crate) flags: c_int = "ss_flags",
    }
}

layout! {
    /// `struct sigcontext`.
    #[derive(Debug)]
    pub(crate) struct SigContext = "struct sigcontext" {
        regmask: u32 = "sc_regmask",
        status: u32 = "sc_status",
        pc: u64 = "sc_pc",
        zero: u64 = "sc_regs[0]",
        at: u64 = "sc_regs[1]",
        v0: u64 = "sc_regs[2]",
        v1: u64 = "sc_regs[3]",
        a0: u64 = "sc_regs[4]",
        a1: u64 = "sc_regs[5]",
        a2: u64 = "sc_regs[6]",
        a3: u64 = "sc_regs[7]",
        t0: u64 = "sc_regs[8]",
        t1: u64 = "sc_regs[9]",
        t2: u64 = "sc_regs[10]",
        t3: u64 = "sc_regs[11]",
        t4: u64 = "sc_regs[12]",
        t5: u64 = "sc_regs[13]",
        t6: u64 = "sc_regs[14]",
        t7: u64 = "sc_regs[15]",
        s0: u64 = "sc_regs[16]",
        s1: u64 = "sc_regs[17]",
        s2: u64 = "sc_regs[18]",
        s3: u64 = "sc_regs[19]",
        s4: u64 = "sc_regs[20]",
        s5: u64 = "sc_regs[21]",
        s6: u64 = "sc_regs[22]",
        s7: u64 = "sc_regs[23]",
        t8: u64 = "sc_regs[24]",
        t9: u64 = "sc_regs[25]",
        /// The kernel's: nobody else can keep a value there.
        k0: u64 = "sc_regs[26]",
        k1: u64 = "sc_regs[27]",
        gp: u64 = "sc_regs[28]",
        sp: u64 = "sc_regs[29]",
        fp: u64 = "sc_regs[30]",
        ra: u64 = "sc_regs[31]",
        fpregs: [u64; 32] = "sc_fpregs",
        acx: u32 = "sc_acx",
        fpc_csr: u32 = "sc_fpc_csr",
        fpc_eir: u32 = "sc_fpc_eir",
        used_math: u32 = "sc_used_math",
        dsp: u32 = "sc_dsp",
        pad: u32 = "",
        hi: u64 = "sc_mdhi",
        lo: u64 = "sc_mdlo",
        hi1: u32 = "sc_hi1",
        lo1: u32 = "sc_lo1",
        hi2: u32 = "sc_hi2",
        lo2: u32 = "sc_lo2",
        hi3: u32 = "sc_hi3",
        lo3: u32 = "sc_lo3",
    }
}

layout! {
    /// `struct ucontext`, whose records of extended state follow it.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u32 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        pad: u32 = "",
        mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "uc_sigmask",
    }
}

layout! {
    /// `struct extcontext`: the head of a record.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct ExtContext = "struct extcontext" {
        magic: u32 = "magic",
        size: u32 = "size",
    }
}

/// `USED_EXTCONTEXT` in `used_math`: records follow.
const RECORDS: u32 = 1 << 3;
/// `MSA_EXTCONTEXT_MAGIC`.
const MSA_RECORD: u32 = 0x784d_5341;
/// `END_EXTCONTEXT_MAGIC`, the last of them, which is this word alone.
const END_OF_RECORDS: u32 = 0x7845_4e44;

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    ExtContext::LAYOUT,
];
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// Layouts against libc's, as far as it has them.
const _: () = {
    assert!(size_of::<Ucontext>() == 632);
    assert!(size_of::<SigContext>() == 592);
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
};

// ---- registers ---------------------------------------------------------------------------------

/// The kernel of a 64-bit machine has a double word for each.
#[inline(always)]
fn low_half(word: u64) -> u64 {
    word & u64::from(u32::MAX)
}

/// As the kernel of a 64-bit machine wants it.
#[inline(always)]
fn sign_extended(_: Reg, value: u64) -> u64 {
    value as i32 as u64
}

registers! {
    /// A register of the interrupted context.
    ///
    /// `zero`, `k0` and `k1` are not among them: the first is 0, and the other two belong to the
    /// kernel, which does not keep them for anybody.
    pub enum Reg, read by low_half, written by sign_extended;

    /// The assembler's scratch.
    At = at, "at";
    /// Result, and number of a system call.
    V0 = v0, "v0";
    /// Second word of a result.
    V1 = v1, "v1";
    /// First argument.
    A0 = a0, "a0";
    /// Second argument.
    A1 = a1, "a1";
    /// Third argument.
    A2 = a2, "a2";
    /// Fourth argument; whether a system call failed.
    A3 = a3, "a3";
    /// Scratch.
    T0 = t0, "t0";
    /// Scratch.
    T1 = t1, "t1";
    /// Scratch.
    T2 = t2, "t2";
    /// Scratch.
    T3 = t3, "t3";
    /// Scratch.
    T4 = t4, "t4";
    /// Scratch.
    T5 = t5, "t5";
    /// Scratch.
    T6 = t6, "t6";
    /// Scratch.
    T7 = t7, "t7";
    /// Callee-saved.
    S0 = s0, "s0";
    /// Callee-saved.
    S1 = s1, "s1";
    /// Callee-saved.
    S2 = s2, "s2";
    /// Callee-saved.
    S3 = s3, "s3";
    /// Callee-saved.
    S4 = s4, "s4";
    /// Callee-saved.
    S5 = s5, "s5";
    /// Callee-saved.
    S6 = s6, "s6";
    /// Callee-saved.
    S7 = s7, "s7";
    /// Scratch.
    T8 = t8, "t8";
    /// Address of the function that is called.
    T9 = t9, "t9";
    /// Global pointer.
    Gp = gp, "gp";
    /// Stack pointer.
    Sp = sp, "sp";
    /// Frame pointer, where there is one; callee-saved.
    Fp = fp, "fp";
    /// Return address.
    Ra = ra, "ra";
    /// Upper half of a product, remainder.
    Hi = hi, "hi";
    /// Lower half of a product, quotient.
    Lo = lo, "lo";
    /// Program counter; the lowest bit tells the compressed instruction sets.
    Pc = pc, "pc";
    /// Floating point control and status, see [`Status`]. The kernel writes it for a thread that
    /// has used floating point; for another the word is what was on the stack.
    Fcsr = fpc_csr, "fcsr";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

/// The register that [`Status`] describes. Integer instructions have no flags on this architecture.
pub(crate) const STATUS: Reg = Reg::Fcsr;

bitflags! {
    /// The fields of `fcsr`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Rounding mode, two bits.
        const RM = 3;
        /// Flag: inexact.
        const FLAG_I = 1 << 2;
        /// Flag: underflow.
        const FLAG_U = 1 << 3;
        /// Flag: overflow.
        const FLAG_O = 1 << 4;
        /// Flag: division by zero.
        const FLAG_Z = 1 << 5;
        /// Flag: invalid operation.
        const FLAG_V = 1 << 6;
        /// Enable: inexact traps.
        const ENABLE_I = 1 << 7;
        /// Enable: underflow traps.
        const ENABLE_U = 1 << 8;
        /// Enable: overflow traps.
        const ENABLE_O = 1 << 9;
        /// Enable: division by zero traps.
        const ENABLE_Z = 1 << 10;
        /// Enable: an invalid operation traps.
        const ENABLE_V = 1 << 11;
        /// Cause: inexact, in the last instruction.
        const CAUSE_I = 1 << 12;
        /// Cause: underflow.
        const CAUSE_U = 1 << 13;
        /// Cause: overflow.
        const CAUSE_O = 1 << 14;
        /// Cause: division by zero.
        const CAUSE_Z = 1 << 15;
        /// Cause: invalid operation.
        const CAUSE_V = 1 << 16;
        /// Cause: an operation that the hardware does not have.
        const CAUSE_E = 1 << 17;
        /// Quiet NaNs are those of IEEE 754-2008.
        const NAN2008 = 1 << 18;
        /// ABS and NEG are those of IEEE 754-2008.
        const ABS2008 = 1 << 19;
        /// Condition code 0.
        const FCC0 = 1 << 23;
        /// Denormal results are flushed to zero.
        const FS = 1 << 24;
        /// Condition code 1.
        const FCC1 = 1 << 25;
        /// Condition code 2.
        const FCC2 = 1 << 26;
        /// Condition code 3.
        const FCC3 = 1 << 27;
        /// Condition code 4.
        const FCC4 = 1 << 28;
        /// Condition code 5.
        const FCC5 = 1 << 29;
        /// Condition code 6.
        const FCC6 = 1 << 30;
        /// Condition code 7.
        const FCC7 = 1 << 31;
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

    /// As with a function's address, the lowest bit chooses the instruction set.
    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.set(Reg::Pc, pc as u64);
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.sp as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.set(Reg::Sp, sp as u64);
    }

    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.mcontext.fp as usize
    }

    #[inline(always)]
    #[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.ra as usize)
    }

    /// Go's `pushCall`, word for word: the return address goes to the stack and `resume` takes its
    /// place. t9 keeps the interrupted value: `target` finds its own address by a relative call.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<usize>());
        let ra = self.mcontext.ra as usize;
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut usize).write_volatile(ra) };
        self.set_sp(sp);
        self.set(Reg::Ra, resume as u64);
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// What the kernel did about floating point (`sc_used_math`): bit 0, there are values; bit 1,
    /// with 32 registers of 64 bits; bit 2, with odd singles in the upper halves; bit 3, records of
    /// more state follow the context.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn used_math(&self) -> u32 {
        self.ucontext().mcontext.used_math
    }

    /// The control word of the DSP extension (`sc_dsp`). On a machine without it the word is what
    /// was on the stack.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn dsp_control(&self) -> u32 {
        self.ucontext().mcontext.dsp
    }

    /// The accumulators 1 to 3 of the DSP extension, hi and lo of each. On a machine without it the
    /// words are what was on the stack.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn dsp_accumulators(&self) -> [(u64, u64); 3] {
        let c = &self.ucontext().mcontext;
        [(c.hi1, c.lo1), (c.hi2, c.lo2), (c.hi3, c.lo3)].map(|(hi, lo)| (hi.into(), lo.into()))
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// Nothing: functions leave no records here, and unwinders go by tables.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FrameRecord {}

impl FrameRecord {
    #[inline(always)]
    pub(crate) fn of(_uc: &Ucontext) -> Self {
        Self {}
    }
}

/// Looks whether the frame up to `hi` is one that can be copied: its records must end within it.
///
/// Not when code of a compressed instruction set was interrupted: where it makes system calls is
/// not looked for (see [`syscall_len`]).
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, _lo: usize, hi: usize) -> Result<(), BadFrame> {
    if is_compressed(uc) {
        return Err(BadFrame::InstructionSet { pc: uc.pc() });
    }
    if uc.mcontext.used_math & RECORDS == 0 {
        return Ok(());
    }
    let mut at = &raw const *uc as usize + size_of::<Ucontext>();
    loop {
        let room = hi.saturating_sub(at);
        let bad = Err(BadFrame::ExtendedState { at });
        if room < size_of::<u32>() {
            return bad;
        }
        // SAFETY: within the frame, which begins before the context and ends at `hi`.
        let magic = unsafe { (at as *const u32).read() };
        if magic == END_OF_RECORDS {
            return Ok(());
        }
        if room < size_of::<ExtContext>() {
            return bad;
        }
        // SAFETY: as before.
        let record = unsafe { (at as *const ExtContext).read() };
        let size = record.size as usize;
        if size < size_of::<ExtContext>() || !size.is_multiple_of(8) || size > room {
            return bad;
        }
        at += size;
    }
}

/// No pointer of a frame leads into it: records are found by their order.
#[inline(always)]
pub(crate) fn relocate(_copy: &mut Ucontext, _delta: usize) {}

/// Makes a frame resume on the calling thread.
///
/// The thread pointer is in no frame here: code asks the kernel's register for it (`rdhwr`). But a
/// thread that has never used the MSA vectors gets new ones at its first use, in the place of what
/// the sigreturn restored (`arch/mips/kernel/traps.c`: `enable_restore_fp_context`): so that first
/// use is made here.
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, _end: usize) {
    if has_vectors(copy) {
        // `move.v $w0, $w0`, for assemblers that are not told of MSA.
        // SAFETY: the CPU has MSA, since there is a record of its vectors; changes none.
        unsafe { asm!(".word 0x78be0019", options(nomem, nostack)) };
    }
}

/// Whether a copied frame has the record of the MSA vectors.
fn has_vectors(copy: &Ucontext) -> bool {
    if copy.mcontext.used_math & RECORDS == 0 {
        return false;
    }
    let mut at = &raw const *copy as usize + size_of::<Ucontext>();
    loop {
        // SAFETY: `check_frame` has seen that the records lead from one to the next up to the last.
        let magic = unsafe { (at as *const u32).read() };
        if magic == END_OF_RECORDS || magic == MSA_RECORD {
            return magic == MSA_RECORD;
        }
        // SAFETY: as above; all but the last are at least this long.
        at += unsafe { (at as *const ExtContext).read() }.size as usize;
    }
}

/// Looks whether a frame can resume on the calling thread: always, every thread may use all there
/// is.
#[expect(clippy::unnecessary_wraps, reason = "other architectures refuse")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    Ok(())
}

/// Whether the interrupted code has instructions of 16 bits: the lowest bit of its address is set.
#[inline(always)]
fn is_compressed(uc: &Ucontext) -> bool {
    uc.pc() & 1 != 0
}

pub(crate) const SYSCALL_LEN: usize = 4;

/// 0 for compressed code, in which [`check_frame`] refuses every call: its instructions do not
/// begin at the address that it has, and may be too short for what is read here.
#[inline(always)]
pub(crate) fn syscall_len(uc: &Ucontext) -> usize {
    if is_compressed(uc) { 0 } else { SYSCALL_LEN }
}

#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = 0x0000_000c_u32.to_ne_bytes();

/// Whether four bytes are `syscall`, with any number in the middle.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    u32::from_ne_bytes(code) & 0xfc00_003f == 0x0000_000c
}

/// Whether the byte can begin a system call instruction; every instruction has four.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    if cfg!(target_endian = "big") { byte & 0xfc == 0 } else { byte & 0x3f == 0x0c }
}

// ---- entry, pivot ------------------------------------------------------------------------------

// Where a frame at $16 has every register of the interrupted code (DWARF numbers: 0 to 31 the
// general registers, 64 and 65 hi and lo). {low} is the part of a 64-bit slot that counts.
// The return address is none of the general registers: the interrupted function's own $31 is one of
// the values that unwinders need. Column 66 stands for it, as in libgcc's unwinder.
macro_rules! interrupted_registers {
    () => {
        "
        .cfi_return_column 66
        .cfi_escape 0x0f, 4, 0x80, ((424 + {low}) & 0x7f) | 0x80, (424 + {low}) >> 7, 0x06
        .irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,29,30,31
        .cfi_escape 0x10, \\n, 3, 0x80, ((192 + 8*\\n + {low}) & 0x7f) | 0x80, (192 + 8*\\n + {low}) >> 7
        .endr
        .cfi_escape 0x10, 64, 3, 0x80, ((728 + {low}) & 0x7f) | 0x80, (728 + {low}) >> 7
        .cfi_escape 0x10, 65, 3, 0x80, ((736 + {low}) & 0x7f) | 0x80, (736 + {low}) >> 7
        .cfi_escape 0x10, 66, 3, 0x80, ((184 + {low}) & 0x7f) | 0x80, (184 + {low}) >> 7
        "
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc) == 184);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.zero) == 192);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 192 + 8 * 29);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 424);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.ra) == 192 + 8 * 31);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.hi) == 728);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.lo) == 736);
    assert!(offset_of!(Call, frame) == 0);
    // Nothing is left for frame-pointer walkers.
    assert!(offset_of!(Call, record) < size_of::<Call>() && size_of::<FrameRecord>() == 0);
};

// The functions' addresses are in a table: how the address of a function is found depends on
// whether its symbol is a global one, which is the compiler's choice; the table's is not.
global_asm!(
    ".pushsection .data.rel.ro.sigctx_entry, \"aw\", @progbits",
    ".balign 4",
    "sigctx_calls_0_1:",
    ".word {dispatch}",
    ".word {run}",
    ".popsection",
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".set push",
    ".set noreorder",           // the instruction after a jump is executed before it
    ".set mips32r2",            // the assembler is not always told what the target has
    ".set noat",
    ".set nomacro",
    ".balign 16",
    // The handler of every signal. $4 = signal, $5 = siginfo, $6 = ucontext, $25 = this address,
    // $31 = the kernel's code that makes the sigreturn, $29 a multiple of 8.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "lui $28, %hi(_gp_disp)",   // the global pointer, from which the table is found
    "addiu $28, $28, %lo(_gp_disp)",
    "addu $28, $28, $25",
    "move $7, $29",             // fourth argument: where the frame begins
    "addiu $29, $29, -32",      // 0: home of four arguments, 16: $28, 28: $31
    ".cfi_def_cfa_offset 32",
    "sw $31, 28($29)",
    ".cfi_offset 31, -4",
    "sw $28, 16($29)",
    "lw $8, %got(sigctx_calls_0_1)($28)",
    "lw $25, %lo(sigctx_calls_0_1)($8)",
    "jalr $25",                 // dispatch
    "nop",
    "bnez $2, 2f",
    "lw $28, 16($29)",          // a call destroys it
    "lw $31, 28($29)",
    "jr $31",                   // a plain return from the handler
    "addiu $29, $29, 32",
    "2:",
    "lw $8, %got(sigctx_calls_0_1)($28)",
    "lw $25, %lo(sigctx_calls_0_1 + 4)($8)", // run
    "lw $17, {back}($2)",       // callee-saved, as $16: they outlive the call
    "lw $16, 0($2)",            // the copied frame
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. $2 = the record of the call (16-aligned, below the copied frame),
    // $16 = the copied frame, $17 = the sigreturn's code, $25 = run.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!(),
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "addiu $29, $2, -16",       // leaves the alternate stack for good; home of four arguments
    // The default, which Rust code counts on; the kernel left it alone. What NaNs look like (NAN2008,
    // ABS2008) stays.
    "cfc1 $8, $31",
    "lui $9, 0xc",
    "and $8, $8, $9",
    "ctc1 $8, $31",
    "jalr $25",                 // returns the address of the stack's `active` word
    "move $4, $2",
    "3:",
    "sw $0, 0($2)",             // the stack may be injected again, but not from in here
    "move $31, $17",
    "jr $31",                   // to the sigreturn, with $29 at the copied frame
    "move $29, $16",
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. $4 = the copied frame, $5 = the sigreturn's
    // code, $6 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "move $16, $4",
    "move $17, $5",
    "b 3b",
    "move $2, $6",
    ".cfi_endproc",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".set pop",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    low = const if cfg!(target_endian = "big") { 4 } else { 0 },
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
    let stored = (entry_sp - size_of::<usize>()) as *const usize;
    // SAFETY: the entry stored it there.
    unsafe { stored.read() }
}

/// `li $2, number; syscall`.
pub(crate) const SIGRETURN_LEN: usize = 8;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        // A comparison that was true, after an inexact operation that rounded down.
        let status = Status::from_bits_retain(0x0080_1007);
        assert_eq!(status, Status::FCC0 | Status::CAUSE_I | Status::FLAG_I | Status::RM);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        // 20 to 22 are reserved.
        assert_eq!(bits, 0xff8f_ffff);
    }

    #[test]
    fn system_call_instructions_are_known() {
        for code in [0x0000_000c, 0x0003_ffcc, 0x03ff_ffcc_u32] {
            let code = code.to_ne_bytes();
            assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
        }
        // nop, break, jr ra, a load
        for code in [0, 0x0000_000d, 0x03e0_0008, 0x8c00_000c_u32] {
            assert!(!is_syscall(code.to_ne_bytes()), "{code:08x}");
        }
    }

    #[test]
    fn register_values_have_no_sign() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        for (reg, value) in [(Reg::A0, 0x8000_0001), (Reg::Fcsr, 0x8080_0000), (Reg::Hi, 5)] {
            uc.set(reg, value);
            assert_eq!(uc.get(reg), value);
        }
        assert_eq!(uc.mcontext.a0, 0xffff_ffff_8000_0001);
        // What a kernel for 32-bit machines writes.
        uc.mcontext.a0 = 0x8000_0001;
        assert_eq!(uc.get(Reg::A0), 0x8000_0001);
    }

    #[test]
    fn compressed_code_is_refused() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        uc.set_pc(0x1000);
        assert_eq!((check_frame(&uc, 0, 0), syscall_len(&uc)), (Ok(()), SYSCALL_LEN));
        uc.set_pc(0x1001);
        let refused = Err(BadFrame::InstructionSet { pc: 0x1001 });
        assert_eq!((check_frame(&uc, 0, 0), syscall_len(&uc)), (refused, 0));
    }

    #[test]
    fn records_must_end_within_the_frame() {
        #[repr(C)]
        struct Memory {
            uc: Ucontext,
            records: [u32; 8],
        }
        // SAFETY: plain integers, for which zeroes are values.
        let mut memory: Memory = unsafe { core::mem::zeroed() };
        let check = |memory: &Memory, words: usize| {
            check_frame(&memory.uc, 0, (&raw const memory.records as usize) + 4 * words)
        };
        assert_eq!(check(&memory, 0), Ok(()));
        memory.uc.mcontext.used_math = RECORDS;
        let first = &raw const memory.records as usize;
        let bad = |at| Err(BadFrame::ExtendedState { at });
        assert_eq!(check(&memory, 8), bad(first), "no size");
        memory.records = [MSA_RECORD, 16, 0, 0, END_OF_RECORDS, 0, 0, 0];
        assert_eq!(check(&memory, 5), Ok(()));
        assert!(has_vectors(&memory.uc));
        memory.records[0] = 0x1234_5678;
        assert!(!has_vectors(&memory.uc), "a record that is not known");
        memory.records[0] = MSA_RECORD;
        assert_eq!(check(&memory, 4), bad(first + 16), "no end");
        assert_eq!(check(&memory, 3), bad(first), "cut off");
        assert_eq!(check(&memory, 0), bad(first), "nothing there");
        memory.records[1] = 12;
        assert_eq!(check(&memory, 8), bad(first), "not aligned");
        memory.records[1] = u32::MAX - 7;
        assert_eq!(check(&memory, 8), bad(first), "too long");
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register.
    //!
    //! Which vectors there are is looked up at run time: 16 doubles (FR=0), 32 doubles (FR=1) or 32
    //! MSA vectors, whose lower halves the doubles are.
    //!
    //! No jump on this architecture finds its target in memory: the loop's needs a register, and so
    //! does a trampoline that `push_call` enters, when it goes back. Both use s7, as Go does in its
    //! `asyncPreempt`, and no pattern is held there; nor in k0 and k1, which are the kernel's. The
    //! accumulators of the DSP extension are not patterned either: emulators do not say whether
    //! they have it.

    use core::arch::{asm, global_asm};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;
    use crate::sys;

    /// The general registers that hold a pattern, with their numbers. The stack pointer points at
    /// the table.
    const GENERAL: [(usize, Reg); 27] = [
        (1, Reg::At),
        (2, Reg::V0),
        (3, Reg::V1),
        (4, Reg::A0),
        (5, Reg::A1),
        (6, Reg::A2),
        (7, Reg::A3),
        (8, Reg::T0),
        (9, Reg::T1),
        (10, Reg::T2),
        (11, Reg::T3),
        (12, Reg::T4),
        (13, Reg::T5),
        (14, Reg::T6),
        (15, Reg::T7),
        (16, Reg::S0),
        (17, Reg::S1),
        (18, Reg::S2),
        (19, Reg::S3),
        (20, Reg::S4),
        (21, Reg::S5),
        (22, Reg::S6),
        (24, Reg::T8),
        (25, Reg::T9),
        (28, Reg::Gp),
        (30, Reg::Fp),
        (31, Reg::Ra),
    ];

    /// Every register that code can hold a value in.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        /// By number.
        general: [u32; 32],
        hi: u32,
        lo: u32,
        fcsr: u32,
        msacsr: u32,
        /// By number; the lower half is the double.
        vectors: [[u64; 2]; 32],
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
    /// is what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        next: AtomicUsize,
        level: u32,
        host_fcsr: u32,
        host_msacsr: u32,
        host_general: [u32; 32],
        host_doubles: [u64; 32],
    }

    /// What code can write at will: condition codes, flush to zero, flags and rounding. With a
    /// cause and its enable bit it would trap.
    const FCSR: Status = Status::RM
        .union(Status::FLAG_I)
        .union(Status::FLAG_U)
        .union(Status::FLAG_O)
        .union(Status::FLAG_Z)
        .union(Status::FLAG_V)
        .union(Status::FS)
        .union(Status::FCC0)
        .union(Status::FCC1)
        .union(Status::FCC2)
        .union(Status::FCC3)
        .union(Status::FCC4)
        .union(Status::FCC5)
        .union(Status::FCC6)
        .union(Status::FCC7);
    /// The same of the vectors' control register: flush to zero, flags and rounding.
    const MSACSR: u32 = 0x0100_007f;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in given.general.iter_mut().chain([&mut given.hi, &mut given.lo]) {
                *value = next() as u32;
            }
            for value in given.vectors.iter_mut().flatten() {
                *value = next();
            }
            given.fcsr = (next() & FCSR.bits()) as u32;
            given.msacsr = next() as u32 & MSACSR;
            self.level = level() as u32;
        }

        /// Calls `report` for every word that differs: register, part, what was given and found.
        pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
            let (given, found) = (&self.given, &self.found);
            let mut check = |name, part, given: u64, found: u64| {
                if given != found {
                    report(name, part, given, found);
                }
            };
            for (number, reg) in GENERAL {
                check(reg.name(), 0, given.general[number].into(), found.general[number].into());
            }
            check("hi", 0, given.hi.into(), found.hi.into());
            check("lo", 0, given.lo.into(), found.lo.into());
            check("fcsr", 0, given.fcsr.into(), found.fcsr.into());
            let step = if level() == Level::Even { 2 } else { 1 };
            for i in (0..32).step_by(step) {
                check("fpr", i, given.vectors[i][0], found.vectors[i][0]);
            }
            if level() == Level::Msa {
                check("msacsr", 0, given.msacsr.into(), found.msacsr.into());
                for i in 0..32 {
                    check("msa", i, given.vectors[i][1], found.vectors[i][1]);
                }
            }
        }

        /// The word that the loop jumps to.
        pub(crate) fn next(&self) -> &AtomicUsize {
            &self.next
        }
    }

    /// The floating point registers that the CPU, the kernel and the mode of this process give.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    enum Level {
        Even = 1,
        All = 2,
        Msa = 3,
    }

    fn level() -> Level {
        // SAFETY: a word of its own.
        match unsafe { LEVEL.load(Ordering::Relaxed) } {
            1 => Level::Even,
            2 => Level::All,
            3 => Level::Msa,
            _ => {
                let level = detect();
                // SAFETY: as before.
                unsafe { LEVEL.store(level as u32, Ordering::Relaxed) };
                level
            }
        }
    }

    fn detect() -> Level {
        /// `HWCAP_MIPS_MSA` of `asm/hwcap.h`.
        const MSA: core::ffi::c_ulong = 1 << 1;
        /// `PR_GET_FP_MODE` and `PR_FP_MODE_FR` of `linux/prctl.h`.
        const GET_FP_MODE: usize = 46;
        const FR: usize = 1;

        // SAFETY: only asks. A kernel that does not know the question knows no other mode.
        let mode = unsafe { sys::syscall(libc::SYS_prctl, [GET_FP_MODE, 0, 0, 0, 0, 0]) };
        if mode.unwrap_or(0) & FR == 0 {
            return Level::Even;
        }
        // SAFETY: reads the auxiliary vector.
        let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
        if capabilities & MSA == 0 { Level::All } else { Level::Msa }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `addiu sp,sp,-88`.
        let reserved = line.split_once("addiu\tsp,sp,-").map(|(_, number)| number);
        let relocations = ["R_MIPS_CALL", "R_MIPS_JALR", "R_MIPS_26", "R_MIPS_TLS"];
        Instruction {
            system_call: line.contains("\tsyscall"),
            // Every call is through t9; what calls a certain function says so to the linker.
            // Entries of the global offset table that are not for calls are filled when a file is
            // loaded.
            outside: line.contains("\tbal\t") || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("rdhwr") || line.contains("R_MIPS_TLS"),
            stack: reserved.and_then(|number| number.trim().parse().ok()).unwrap_or_default(),
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Even => "general registers but s7, hi, lo, fcsr, f0-30 even",
            Level::All => "general registers but s7, hi, lo, fcsr, f0-31",
            Level::Msa => "general registers but s7, hi, lo, fcsr, msacsr, w0-31",
        }
    }

    /// Loads or stores all floating point registers, by the level in register `$level`: `$double`
    /// or `$msa` with each register and `$at`, in which `\n` is its number. Uses $3.
    macro_rules! each_vector {
        ($level:literal, $double:literal, $msa:literal, $at:literal) => {
            concat!(
                "addiu $3, ",
                $level,
                ", -2\nbeqz $3, 21f\nnop\nbgtz $3, 22f\nnop\n",
                ".irp n,0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30\n",
                $double,
                " $f\\n, ",
                $at,
                "\n.endr\nb 23f\nnop\n21:\n.set push\n.set fp=64\n",
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,",
                "16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
                $double,
                " $f\\n, ",
                $at,
                "\n.endr\nb 23f\nnop\n22:\n.set msa\n",
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,",
                "16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
                $msa,
                " $w\\n, ",
                $at,
                "\n.endr\n.set pop\n23:\n"
            )
        };
    }

    // Between `loop` and `exit` every register holds its pattern, and $29 points at the table,
    // below which lies a patterned red zone.
    global_asm!(
        ".pushsection .bss.sigctx_probe, \"aw\", @nobits",
        ".balign 4",
        ".globl sigctx_probe_level_0_1",
        ".hidden sigctx_probe_level_0_1",
        "sigctx_probe_level_0_1: .skip 4",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".set push",
        ".set mips32r2",
        ".set noreorder",
        ".set noat",
        ".set nomacro",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        ".type sigctx_probe_spin_0_1, @function",
        "sigctx_probe_spin_0_1:",   // $4 = table
        ".irp n,16,17,18,19,20,21,22,23,29,30,31",
        "sw $\\n, {host} + 4*\\n($4)",
        ".endr",
        ".irp n,20,22,24,26,28,30",
        "sdc1 $f\\n, {host_doubles} + 8*\\n($4)",
        ".endr",
        "cfc1 $2, $31",
        "sw $2, {host_fcsr}($4)",
        "lw $2, {level}($4)",
        each_vector!("$2", "ldc1", "ld.d", "{given_vectors} + 16*\\n($4)"),
        "blez $3, 24f",             // not MSA
        "nop",
        ".set push",
        ".set msa",
        "cfcmsa $2, $1",
        "sw $2, {host_msacsr}($4)",
        "lw $2, {given_msacsr}($4)",
        "ctcmsa $1, $2",
        ".set pop",
        "24:",
        "lw $2, {given_hi}($4)",
        "mthi $2",
        "lw $2, {given_lo}($4)",
        "mtlo $2",
        "lw $2, {given_fcsr}($4)",
        "ctc1 $2, $31",
        "move $29, $4",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
        "lw $\\n, {given} + 4*\\n($29)",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 64",
        "nop",
        "addiu $2, $2, 1",
        "addiu $2, $2, -1",
        "b 1f",                     // may be interrupted between a jump and what goes with it
        "xori $1, $1, 0x55",
        "1:",
        "bne $29, $0, 2f",
        "xori $1, $1, 0x55",
        "2:",
        "xor $16, $16, $17",
        "xor $16, $16, $17",
        ".endr",
        "lw $23, {next}($29)",
        "jr $23",
        "nop",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
        "sw $\\n, {found} + 4*\\n($29)",
        ".endr",
        "move $4, $29",
        "mfhi $2",
        "sw $2, {found_hi}($4)",
        "mflo $2",
        "sw $2, {found_lo}($4)",
        "cfc1 $2, $31",
        "sw $2, {found_fcsr}($4)",
        "lw $2, {level}($4)",
        each_vector!("$2", "sdc1", "st.d", "{found_vectors} + 16*\\n($4)"),
        "blez $3, 25f",
        "nop",
        ".set push",
        ".set msa",
        "cfcmsa $2, $1",
        "sw $2, {found_msacsr}($4)",
        "lw $2, {host_msacsr}($4)",
        "ctcmsa $1, $2",
        ".set pop",
        "25:",
        "lw $2, {host_fcsr}($4)",
        "ctc1 $2, $31",
        ".irp n,20,22,24,26,28,30",
        "ldc1 $f\\n, {host_doubles} + 8*\\n($4)",
        ".endr",
        ".irp n,16,17,18,19,20,21,22,23,29,30,31",
        "lw $\\n, {host} + 4*\\n($4)",
        ".endr",
        "jr $31",
        "nop",
        // Writes something else into everything. $4 = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        ".type sigctx_probe_clobber_0_1, @function",
        "sigctx_probe_clobber_0_1:",
        "addiu $29, $29, -128",
        ".irp n,16,17,18,19,20,21,22,23",
        "sw $\\n, 4*(\\n - 16)($29)",
        ".endr",
        "sw $30, 32($29)",
        "sw $31, 36($29)",
        "cfc1 $2, $31",
        "sw $2, 40($29)",
        "sw $4, 44($29)",
        ".irp n,20,22,24,26,28,30",
        "sdc1 $f\\n, 48 + 4*(\\n - 20)($29)",
        ".endr",
        "lui $2, 0xaaaa",
        ".irp n,0,1,2,3",
        "sw $2, 112 + 4*\\n($29)",
        ".endr",
        each_vector!("$4", "ldc1", "ld.d", "112($29)"),
        "blez $3, 31f",
        "nop",
        ".set push",
        ".set msa",
        "cfcmsa $5, $1",
        "addiu $2, $0, 0x7e",       // other flags, other rounding
        "ctcmsa $1, $2",
        "xori $5, $5, 0x7c",        // flags are nobody's, as those of the other control word
        "ctcmsa $1, $5",
        ".set pop",
        "31:",
        "lui $2, 0xff80",           // every condition code, flush to zero, flags, rounding
        "ori $2, $2, 0x007e",
        "ctc1 $2, $31",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,30,31",
        "lui $\\n, 0xa500 + \\n",
        ".endr",
        "mthi $2",
        "mtlo $3",
        // Back to what the ABI promises the caller: not the condition codes, nor the flags.
        "lw $2, 40($29)",
        "lui $3, 0xfe80",
        "ori $3, $3, 0x007c",
        "xor $2, $2, $3",
        "ctc1 $2, $31",
        ".irp n,20,22,24,26,28,30",
        "ldc1 $f\\n, 48 + 4*(\\n - 20)($29)",
        ".endr",
        ".irp n,16,17,18,19,20,21,22,23",
        "lw $\\n, 4*(\\n - 16)($29)",
        ".endr",
        "lw $30, 32($29)",
        "lw $31, 36($29)",
        "jr $31",
        "addiu $29, $29, 128",
        ".set pop",
        ".popsection",
        level = const offset_of!(Table, level),
        next = const offset_of!(Table, next),
        given = const offset_of!(Table, given.general),
        given_hi = const offset_of!(Table, given.hi),
        given_lo = const offset_of!(Table, given.lo),
        given_fcsr = const offset_of!(Table, given.fcsr),
        given_msacsr = const offset_of!(Table, given.msacsr),
        given_vectors = const offset_of!(Table, given.vectors),
        found = const offset_of!(Table, found.general),
        found_hi = const offset_of!(Table, found.hi),
        found_lo = const offset_of!(Table, found.lo),
        found_fcsr = const offset_of!(Table, found.fcsr),
        found_msacsr = const offset_of!(Table, found.msacsr),
        found_vectors = const offset_of!(Table, found.vectors),
        host = const offset_of!(Table, host_general),
        host_doubles = const offset_of!(Table, host_doubles),
        host_fcsr = const offset_of!(Table, host_fcsr),
        host_msacsr = const offset_of!(Table, host_msacsr),
    );

    /// Offsets of vectors are ten bits, of eight bytes each.
    const _: () = assert!(offset_of!(Table, found.vectors) + 31 * 16 < 512 * 8);

    // Values that name their registers: those of the general ones by number in decimal, 0x81 and
    // 0x80 for hi and lo. fcsr is 0, which is also what a stack that nobody has used yet has in its
    // place: an emulator may leave the word out.
    global_asm!(
        ".pushsection .bss.sigctx_probe, \"aw\", @nobits",
        ".balign 4",
        "sigctx_probe_saved_0_1: .skip 4",
        ".popsection",
        ".pushsection .data.rel.ro.sigctx_probe, \"aw\", @progbits",
        ".balign 4",
        "sigctx_probe_hook_0_1: .word {hook}",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".set push",
        ".set mips32r2",
        ".set noreorder",
        ".set noat",
        ".set nomacro",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        ".type sigctx_probe_known_0_1, @function",
        "sigctx_probe_known_0_1:",
        "lui $28, %hi(_gp_disp)",
        "addiu $28, $28, %lo(_gp_disp)",
        "addu $28, $28, $25",
        "addiu $29, $29, -48",
        ".irp n,16,17,18,19,20,21,22,23",
        "sw $\\n, 4*(\\n - 16)($29)",
        ".endr",
        "sw $30, 32($29)",
        "sw $31, 36($29)",
        "cfc1 $2, $31",
        "sw $2, 40($29)",
        "ctc1 $0, $31",
        "lw $2, %got(sigctx_probe_saved_0_1)($28)",
        "sw $29, %lo(sigctx_probe_saved_0_1)($2)",
        "lui $2, 0x8181",
        "ori $2, $2, 0x8181",
        "mthi $2",
        "lui $2, 0x8080",
        "ori $2, $2, 0x8080",
        "mtlo $2",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,29,30,31",
        "lui $\\n, (\\n / 10 * 16 + \\n % 10) * 0x101",
        "ori $\\n, $\\n, (\\n / 10 * 16 + \\n % 10) * 0x101",
        ".endr",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        ".word 0x04170000",         // reserved for this
        "bal 1f",
        "nop",
        "1:",
        "lui $28, %hi(_gp_disp)",   // $31 = this address
        "addiu $28, $28, %lo(_gp_disp)",
        "addu $28, $28, $31",
        "lw $2, %got(sigctx_probe_saved_0_1)($28)",
        "lw $29, %lo(sigctx_probe_saved_0_1)($2)",
        "lw $2, 40($29)",
        "ctc1 $2, $31",
        ".irp n,16,17,18,19,20,21,22,23",
        "lw $\\n, 4*(\\n - 16)($29)",
        ".endr",
        "lw $30, 32($29)",
        "lw $31, 36($29)",
        "jr $31",
        "addiu $29, $29, 48",
        // What `push_call` is meant for: a trampoline that keeps everything itself, but for s7. At
        // the stack pointer there is the interrupted code's $31, in $31 where that code goes on.
        // The handler has lowered the stack pointer by the red zone before; the last instruction
        // gives it back.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        ".type sigctx_probe_trampoline_0_1, @function",
        "sigctx_probe_trampoline_0_1:",
        "addiu $29, $29, -128",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
        "sw $\\n, 4*\\n($29)",
        ".endr",
        "mfhi $2",
        "sw $2, 0($29)",
        "mflo $2",
        "sw $2, 4*26($29)",
        "cfc1 $17, $31",
        "ctc1 $0, $31",
        "bal 4f",
        "move $16, $29",            // the callee keeps it
        "4:",
        "lui $28, %hi(_gp_disp)",   // $31 = this address
        "addiu $28, $28, %lo(_gp_disp)",
        "addu $28, $28, $31",
        "lw $2, %got(sigctx_probe_level_0_1)($28)",
        "lw $18, 0($2)",
        "addiu $29, $29, -16 - 512",
        "ins $29, $0, 0, 4",        // 16-aligned
        each_vector!("$18", "sdc1", "st.d", "16 + 16*\\n($29)"),
        "lw $2, %got(sigctx_probe_hook_0_1)($28)",
        "lw $25, %lo(sigctx_probe_hook_0_1)($2)",
        "jalr $25",
        "nop",
        each_vector!("$18", "ldc1", "ld.d", "16 + 16*\\n($29)"),
        "ctc1 $17, $31",
        "move $29, $16",
        "lw $2, 0($29)",
        "mthi $2",
        "lw $2, 4*26($29)",
        "mtlo $2",
        "lw $23, 4*31($29)",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30",
        "lw $\\n, 4*\\n($29)",
        ".endr",
        "lw $31, 128($29)",
        "jr $23",
        "addiu $29, $29, 128 + 4 + {red_zone}",
        ".set pop",
        ".popsection",
        hook = sym crate::probe::pushed,
        red_zone = const super::RED_ZONE,
    );

    unsafe extern "C" {
        #[link_name = "sigctx_probe_level_0_1"]
        static LEVEL: AtomicU32;
        #[link_name = "sigctx_probe_spin_0_1"]
        fn spin_code(table: *mut Table);
        #[link_name = "sigctx_probe_loop_0_1"]
        static LOOP: u8;
        #[link_name = "sigctx_probe_exit_0_1"]
        static EXIT: u8;
        #[link_name = "sigctx_probe_clobber_0_1"]
        fn clobber_code(level: u32) -> c_int;
        #[link_name = "sigctx_probe_known_0_1"]
        fn known_code();
        #[link_name = "sigctx_probe_trampoline_0_1"]
        fn trampoline_code();
    }

    /// Runs the loop.
    ///
    /// # Safety
    ///
    /// The table is filled, below it there is room for a red zone and for signal frames, and its
    /// `next` leads to `exit` in the end.
    pub(crate) unsafe fn spin(table: *mut Table) {
        // SAFETY: the caller's obligations; all callee-saved state is kept.
        unsafe { spin_code(table) }
    }

    /// The addresses at which every register holds its pattern.
    pub(crate) fn window() -> core::ops::Range<usize> {
        &raw const LOOP as usize..&raw const EXIT as usize
    }

    /// Writes something else into every register, vector, flag and control word.
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
        // SAFETY: the caller's obligation; all callee-saved state is kept.
        unsafe { known_code() }
    }

    /// Runs into an undefined instruction, with nothing special in any register.
    ///
    /// # Safety
    ///
    /// A handler for `SIGILL` adds [`KNOWN_STEP`] to the program counter.
    #[inline(always)]
    pub(crate) unsafe fn undefined() {
        // SAFETY: the caller's obligation.
        unsafe { asm!(".word 0x04170000") };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = false;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[];

    /// DWARF's numbers of registers (gcc): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[
        (
            1,
            &[
                Reg::At,
                Reg::V0,
                Reg::V1,
                Reg::A0,
                Reg::A1,
                Reg::A2,
                Reg::A3,
                Reg::T0,
                Reg::T1,
                Reg::T2,
                Reg::T3,
                Reg::T4,
                Reg::T5,
                Reg::T6,
                Reg::T7,
                Reg::S0,
                Reg::S1,
                Reg::S2,
                Reg::S3,
                Reg::S4,
                Reg::S5,
                Reg::S6,
                Reg::S7,
                Reg::T8,
                Reg::T9,
            ],
        ),
        (28, &[Reg::Gp, Reg::Sp, Reg::Fp, Reg::Ra]),
        (64, &[Reg::Hi, Reg::Lo]),
    ];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`.
    pub(crate) fn pushed_trampoline() -> usize {
        trampoline_code as *const () as usize
    }

    /// 0: functions leave no records here that a frame pointer would lead to.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        0
    }

    /// Not on this architecture: only another process can step through a program.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
