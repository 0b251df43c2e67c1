//! s390x. What is explained in `x86_64` is not explained here.
//!
//! What the kernel leaves on the alternate stack:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | vectors        512 bytes     |   (with UC_VXRS alone)
//!        | ucontext       512 bytes     |<- r4
//!        | siginfo        128 bytes     |<- r3
//!        | padding          8 bytes     |   (`svc`, before Linux 5.14 and without a restorer)
//!  low   | register save area 160 bytes |<- r15: the handler's, the back chain is its first word
//! ```
//!
//! A caller leaves its callee 160 bytes above the stack pointer to save registers in; below the
//! stack pointer nothing belongs to a function. The return address is in r14. No part of the frame
//! points into the frame.
//!
//! **The sigreturn loses access registers** (Linux 7.2.12, `restore_sigregs` and `load_sigregs` in
//! `arch/s390/kernel/signal.c`): the kernel copies them from the frame into the thread's saved
//! state, and loads them from there. Preempted in between, it saves the registers as they are over
//! the state, so that the interrupted code gets the handler's. The code that leaves a frame here has
//! loaded them from it before ([`access_registers_of_the_frame`]): then both are the same. The
//! floating-point and vector registers are not concerned: the kernel marks them as saved before it
//! copies.
//!
//! References: the kernel's `arch/s390/kernel/signal.c`, `arch/s390/include/uapi/asm/sigcontext.h`,
//! `asm/ucontext.h`, `asm/ptrace.h`; "z/Architecture Principles of Operation", chapter 4 (PSW); "ELF
//! Application Binary Interface s390x Supplement", 1.2 (registers, stack frame, back chain).

use core::arch::asm;
use core::ffi::c_long;
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::layout;
use super::registers::registers;
use super::restorer;
use crate::inject::{BadFrame, MoveError};
use crate::sys::{SaFlags, SigSet};

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

/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the register save area, a
/// system call instruction with its padding, the `siginfo`.
pub(crate) const UCONTEXT_OFFSET: usize = 160 + 8 + 128;
/// More than any frame of this architecture (with vectors 1320 bytes, to grow at its end).
pub(crate) const MAX_FRAME: usize = 16 * 1024;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. With 0 for a number in the instruction the kernel takes it from r1.
/// It changes r2, and nothing else.
///
/// # Safety
///
/// As for [`crate::sys::syscall_raw`].
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the obligations are the caller's; memory is not said to be preserved.
    unsafe {
        asm!(
            "svc 0",
            in("r1") nr,
            inlateout("r2") args[0] => result,
            in("r3") args[1],
            in("r4") args[2],
            in("r5") args[3],
            in("r6") args[4],
            in("r7") args[5],
            options(nostack),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

/// Where a handler returns to. Without a restorer, kernels before 5.14 put the sigreturn's instruction
/// into the frame on the alternate stack, which an injected call leaves to the next signal, and another
/// thread may not have.
///
/// Without `SA_SIGINFO` there is another frame, which another system call returns from: the kernel has the
/// code for that.
#[inline(always)]
pub(crate) fn restorer_of(flags: SaFlags) -> Option<usize> {
    flags.contains(SaFlags::SIGINFO).then(restorer)
}

layout! {
    /// `_sigregs`.
    #[derive(Debug)]
    pub(crate) struct SigContext = "_sigregs" {
        psw_mask: u64 = "regs.psw.mask",
        psw_addr: u64 = "regs.psw.addr",
        r0: u64 = "regs.gprs[0]",
        r1: u64 = "regs.gprs[1]",
        r2: u64 = "regs.gprs[2]",
        r3: u64 = "regs.gprs[3]",
        r4: u64 = "regs.gprs[4]",
        r5: u64 = "regs.gprs[5]",
        r6: u64 = "regs.gprs[6]",
        r7: u64 = "regs.gprs[7]",
        r8: u64 = "regs.gprs[8]",
        r9: u64 = "regs.gprs[9]",
        r10: u64 = "regs.gprs[10]",
        r11: u64 = "regs.gprs[11]",
        r12: u64 = "regs.gprs[12]",
        r13: u64 = "regs.gprs[13]",
        r14: u64 = "regs.gprs[14]",
        r15: u64 = "regs.gprs[15]",
        /// The upper half of the thread pointer.
        a0: u32 = "regs.acrs[0]",
        /// The lower half.
        a1: u32 = "regs.acrs[1]",
        a2: u32 = "regs.acrs[2]",
        a3: u32 = "regs.acrs[3]",
        a4: u32 = "regs.acrs[4]",
        a5: u32 = "regs.acrs[5]",
        a6: u32 = "regs.acrs[6]",
        a7: u32 = "regs.acrs[7]",
        a8: u32 = "regs.acrs[8]",
        a9: u32 = "regs.acrs[9]",
        a10: u32 = "regs.acrs[10]",
        a11: u32 = "regs.acrs[11]",
        a12: u32 = "regs.acrs[12]",
        a13: u32 = "regs.acrs[13]",
        a14: u32 = "regs.acrs[14]",
        a15: u32 = "regs.acrs[15]",
        fpc: u32 = "fpregs.fpc",
        pad: u32 = "fpregs.pad",
        fprs: [u64; 16] = "fpregs.fprs",
    }
}

layout! {
    /// `struct ucontext`.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u64 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "uc_sigmask",
        /// For a mask that grows.
        unused: [u8; 120] = "__unused",
    }
}

layout! {
    /// `_sigregs_ext`: what follows a [`Ucontext`] with [`UC_VXRS`].
    pub(crate) struct SigContextExt = "_sigregs_ext" {
        /// The right halves of v0 to v15, whose left halves are `fprs`.
        vxrs_low: [u64; 16] = "vxrs_low",
        vxrs_high: [[u64; 2]; 16] = "vxrs_high",
        reserved: [u8; 128] = "__reserved",
    }
}

layout! {
    /// `struct ucontext_extended`.
    pub(crate) struct UcontextExt = "struct ucontext_extended" {
        uc: Ucontext = "@uc_flags",
        ext: SigContextExt = "uc_mcontext_ext",
    }
}

/// The flag of a context that a [`SigContextExt`] follows.
const UC_VXRS: u64 = 2;

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = {
    assert!(size_of::<Ucontext>() == 512);
    assert!(size_of::<UcontextExt>() == 1024);
};

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    ///
    /// The access registers 0 and 1 are not among them: they are the thread pointer.
    pub enum Reg;

    /// The program status word's first half, see [`Status`].
    Pswm = psw_mask, "pswm";
    /// The program status word's second half: the program counter.
    Pswa = psw_addr, "pswa";
    /// Scratch.
    R0 = r0, "r0";
    /// Scratch.
    R1 = r1, "r1";
    /// First argument.
    R2 = r2, "r2";
    /// Second argument.
    R3 = r3, "r3";
    /// Third argument.
    R4 = r4, "r4";
    /// Fourth argument.
    R5 = r5, "r5";
    /// Fifth argument, callee-saved.
    R6 = r6, "r6";
    /// Callee-saved.
    R7 = r7, "r7";
    /// Callee-saved.
    R8 = r8, "r8";
    /// Callee-saved.
    R9 = r9, "r9";
    /// Callee-saved.
    R10 = r10, "r10";
    /// Frame pointer, where there is one; callee-saved.
    R11 = r11, "r11";
    /// Callee-saved.
    R12 = r12, "r12";
    /// Callee-saved.
    R13 = r13, "r13";
    /// Return address.
    R14 = r14, "r14";
    /// Stack pointer.
    R15 = r15, "r15";
    /// Floating-point control: masks, flags, exception code, rounding modes.
    Fpc = fpc, "fpc";
    /// Access register.
    A2 = a2, "a2";
    /// Access register.
    A3 = a3, "a3";
    /// Access register.
    A4 = a4, "a4";
    /// Access register.
    A5 = a5, "a5";
    /// Access register.
    A6 = a6, "a6";
    /// Access register.
    A7 = a7, "a7";
    /// Access register.
    A8 = a8, "a8";
    /// Access register.
    A9 = a9, "a9";
    /// Access register.
    A10 = a10, "a10";
    /// Access register.
    A11 = a11, "a11";
    /// Access register.
    A12 = a12, "a12";
    /// Access register.
    A13 = a13, "a13";
    /// Access register.
    A14 = a14, "a14";
    /// Access register.
    A15 = a15, "a15";
}

impl Reg {
    /// The program counter.
    ///
    /// After an undefined instruction, an arithmetic fault or a breakpoint it is that of the *next*
    /// instruction; the fault address is that of the one that raised the signal.
    pub const PC: Self = Self::Pswa;
    /// The stack pointer.
    pub const SP: Self = Self::R15;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Pswm;

bitflags! {
    /// The flags of the program status word's first half.
    ///
    /// What user code may change is the condition code, the program mask, the address space and the
    /// addressing mode; the kernel keeps the rest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Program event recording.
        const PER = 1 << 62;
        /// Dynamic address translation.
        const DAT = 1 << 58;
        /// Input and output interruptions.
        const IO = 1 << 57;
        /// External interruptions.
        const EXT = 1 << 56;
        /// Storage key, four bits.
        const KEY = 0xf << 52;
        /// Machine checks.
        const MCHECK = 1 << 50;
        /// The CPU waits.
        const WAIT = 1 << 49;
        /// Problem state: user code.
        const PSTATE = 1 << 48;
        /// Address space control, two bits: 0 is the primary space, which user code runs in.
        const ASC = 3 << 46;
        /// Condition code, its upper bit.
        const CC_HIGH = 1 << 45;
        /// Condition code, its lower bit.
        const CC_LOW = 1 << 44;
        /// Program mask: a fixed-point overflow traps.
        const FIXED_OVERFLOW = 1 << 43;
        /// Program mask: a decimal overflow traps.
        const DECIMAL_OVERFLOW = 1 << 42;
        /// Program mask: a hexadecimal floating-point exponent underflow traps.
        const HFP_UNDERFLOW = 1 << 41;
        /// Program mask: a hexadecimal floating-point loss of significance traps.
        const HFP_SIGNIFICANCE = 1 << 40;
        /// Runtime instrumentation.
        const RI = 1 << 39;
        /// Extended addressing: 64 bits.
        const EA = 1 << 32;
        /// Basic addressing: 31 bits, or 64 with `EA`.
        const BA = 1 << 31;
        /// Bits that have no name are kept as they are.
        const _ = !0;
    }
}

impl Status {
    /// The condition code, 0 to 3.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub const fn condition_code(self) -> u8 {
        (self.bits() >> 44 & 3) as u8
    }
}

// ---- the context -------------------------------------------------------------------------------

impl Ucontext {
    #[inline(always)]
    pub(crate) fn pc(&self) -> usize {
        self.mcontext.psw_addr as usize
    }

    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.mcontext.psw_addr = pc as u64;
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.r15 as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.mcontext.r15 = sp as u64;
    }

    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.mcontext.r11 as usize
    }

    /// The link register, on machines that have one.
    #[inline(always)]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.r14 as usize)
    }

    /// Makes it look as if the interrupted function had called `target` and would come back at
    /// `resume`: Go's `pushCall`, word for word. The slot gets the link register.
    ///
    /// `target` cannot come back with every register as it was: before z14 a jump needs one to hold
    /// its address. Go gives up r10.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<usize>());
        let link = self.mcontext.r14;
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut u64).write_volatile(link) };
        self.set_sp(sp);
        self.mcontext.r14 = resume as u64;
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The thread pointer: the access registers 0, for its upper half, and 1.
    #[must_use]
    pub fn thread_pointer(&self) -> usize {
        let c = &self.ucontext().mcontext;
        (c.a0 as usize) << 32 | c.a1 as usize
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// What a function that keeps back chains leaves above its own frame, in its caller's: here on
/// behalf of one that the interrupted function did not call. A walker goes from stack pointer to
/// stack pointer by the first word of each, and takes the saved r14 beside it for the address in
/// the function that the stack pointer belongs to.
///
/// The chain leads on to the interrupted stack pointer, as from the kernel's own frame. What is
/// saved there is what the interrupted function or its last callee saved.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FrameRecord {
    back_chain: usize,
    reserved: [u64; 5],
    /// r6 to r15, with the program counter in the place of r14.
    saved: [u64; 10],
}

impl FrameRecord {
    #[inline(always)]
    pub(crate) fn of(uc: &Ucontext) -> Self {
        let c = &uc.mcontext;
        let saved = [c.r6, c.r7, c.r8, c.r9, c.r10, c.r11, c.r12, c.r13, c.psw_addr, c.r15];
        Self { back_chain: uc.sp(), reserved: [0; 5], saved }
    }
}

/// Whether a function that keeps a frame pointer keeps its return address beside it.
pub(crate) const FRAME_POINTERS: bool = false;

/// No frame pointer leads to a caller here: compilers keep no back chain.
#[inline(always)]
pub(crate) fn caller_of(
    _fp: usize,
    _read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    None
}

/// Looks whether the frame in `[lo, hi)` is one that can be copied.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    let length = hi.saturating_sub(lo);
    if length < UCONTEXT_OFFSET + size_of::<Ucontext>() {
        return Err(BadFrame::Length { length });
    }
    let vectors = lo + UCONTEXT_OFFSET + offset_of!(UcontextExt, ext);
    if uc.flags & UC_VXRS != 0 && length < UCONTEXT_OFFSET + size_of::<UcontextExt>() {
        return Err(BadFrame::ExtendedState { at: vectors });
    }
    Ok(())
}

/// Makes the pointers into the frame point into its copy: there are none.
#[inline(always)]
pub(crate) fn relocate(_copy: &mut Ucontext, _delta: usize) {}

/// Makes a frame resume on the calling thread.
///
/// The thread pointer is in the access registers. Runtime instrumentation belongs to the thread
/// that began it: the kernel kills another one that comes with its bit.
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, _end: usize) {
    let (high, low): (u32, u32);
    // SAFETY: reads two registers.
    unsafe {
        asm!(
            "ear {}, %a0",
            "ear {}, %a1",
            out(reg) high,
            out(reg) low,
            options(nomem, nostack, preserves_flags),
        );
    }
    copy.mcontext.a0 = high;
    copy.mcontext.a1 = low;
    copy.mcontext.psw_mask &= !Status::RI.bits();
}

/// Looks whether a frame can resume on the calling thread, which may not be its own: it always can.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it cannot always")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    Ok(())
}

/// Length of the longest system call instruction.
pub(crate) const SYSCALL_LEN: usize = 2;

/// Length of the system call instructions in the mode that the code was interrupted in.
#[inline(always)]
pub(crate) fn syscall_len(_uc: &Ucontext) -> usize {
    SYSCALL_LEN
}

/// One of them, for tests.
#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0x0a, 0x00];

/// Whether two bytes are `svc`, with whichever number.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    begins_syscall(code[0])
}

/// Whether the byte can begin a system call instruction; such an instruction goes on after it.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    byte == 0x0a
}
