//! s390x. What is explained in `x86_64.rs` is not explained here.
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
//! stack pointer nothing belongs to anybody. The return address is in r14. No part of the frame
//! points into the frame.
//!
//! **The sigreturn loses access registers** (Linux 7.2.12, `restore_sigregs` and `load_sigregs` in
//! `arch/s390/kernel/signal.c`): the kernel copies them from the frame into the thread's saved
//! state, and loads them from there. Preempted in between, it saves the registers as they are over
//! the state, so that the interrupted code gets the handler's. Whoever leaves a frame here has
//! loaded them from it before ([`access_registers_of_the_frame`]): then both are the same. The
//! floating-point and vector registers are not concerned: the kernel marks them as saved before it
//! copies.
//!
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/s390/kernel/signal.c`, `arch/s390/include/uapi/asm/sigcontext.h`,
//! `asm/ucontext.h`, `asm/ptrace.h`; "z/Architecture Principles of Operation", chapter 4 (PSW); "ELF
//! Application Binary Interface s390x Supplement", 1.2 (registers, stack frame, back chain).

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

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "s390x";
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the register save area, a
/// system call instruction with its padding, the `siginfo`.
pub(crate) const UCONTEXT_OFFSET: usize = 160 + 8 + 128;
/// More than any frame of this architecture (with vectors 1320 bytes, to grow at its end).
pub(crate) const MAX_FRAME: usize = 16 * 1024;
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
    /// `struct kernel_sigaction`.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "sa_handler",
        flags: usize = "sa_flags",
        restorer: usize = "sa_restorer",
        mask: SigSet = "sa_mask",
    }
}

/// `SA_RESTORER`: `restorer` is valid. Without it, kernels before 5.14 put the sigreturn's
/// instruction into the frame on the alternate stack, which an injected call leaves to the next
/// signal, and another thread may not have.
const RESTORER: u32 = 0x0400_0000;

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        // Without SA_SIGINFO there is another frame, which another system call returns from: the
        // kernel has the code for that.
        let (flag, restorer) =
            if action.flags.contains(SaFlags::SIGINFO) { (RESTORER, restorer()) } else { (0, 0) };
        let flags = (action.flags.bits() | flag) as usize;
        Self { handler: action.handler, flags, restorer, mask: action.mask }
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

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    SigContextExt::LAYOUT,
    UcontextExt::LAYOUT,
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
    assert!(size_of::<Ucontext>() == 512);
    assert!(size_of::<UcontextExt>() == 1024);
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
    assert!(offset_of!(SigContext, psw_mask) == offset_of!(libc::mcontext_t, psw.mask));
    assert!(offset_of!(SigContext, psw_addr) == offset_of!(libc::mcontext_t, psw.addr));
    assert!(offset_of!(SigContext, r0) == greg(0));
    assert!(offset_of!(SigContext, r1) == greg(1));
    assert!(offset_of!(SigContext, r2) == greg(2));
    assert!(offset_of!(SigContext, r3) == greg(3));
    assert!(offset_of!(SigContext, r4) == greg(4));
    assert!(offset_of!(SigContext, r5) == greg(5));
    assert!(offset_of!(SigContext, r6) == greg(6));
    assert!(offset_of!(SigContext, r7) == greg(7));
    assert!(offset_of!(SigContext, r8) == greg(8));
    assert!(offset_of!(SigContext, r9) == greg(9));
    assert!(offset_of!(SigContext, r10) == greg(10));
    assert!(offset_of!(SigContext, r11) == greg(11));
    assert!(offset_of!(SigContext, r12) == greg(12));
    assert!(offset_of!(SigContext, r13) == greg(13));
    assert!(offset_of!(SigContext, r14) == greg(14));
    assert!(offset_of!(SigContext, r15) == greg(15));
    assert!(offset_of!(SigContext, a0) == areg(0));
    assert!(offset_of!(SigContext, a1) == areg(1));
    assert!(offset_of!(SigContext, a2) == areg(2));
    assert!(offset_of!(SigContext, a3) == areg(3));
    assert!(offset_of!(SigContext, a4) == areg(4));
    assert!(offset_of!(SigContext, a5) == areg(5));
    assert!(offset_of!(SigContext, a6) == areg(6));
    assert!(offset_of!(SigContext, a7) == areg(7));
    assert!(offset_of!(SigContext, a8) == areg(8));
    assert!(offset_of!(SigContext, a9) == areg(9));
    assert!(offset_of!(SigContext, a10) == areg(10));
    assert!(offset_of!(SigContext, a11) == areg(11));
    assert!(offset_of!(SigContext, a12) == areg(12));
    assert!(offset_of!(SigContext, a13) == areg(13));
    assert!(offset_of!(SigContext, a14) == areg(14));
    assert!(offset_of!(SigContext, a15) == areg(15));
    assert!(offset_of!(SigContext, fpc) == offset_of!(libc::mcontext_t, fpregs.fpc));
    assert!(offset_of!(SigContext, fprs) == offset_of!(libc::mcontext_t, fpregs.fprs));
};

/// The offset of libc's general register `index` in its `mcontext_t`.
const fn greg(index: usize) -> usize {
    offset_of!(libc::mcontext_t, gregs) + 8 * index
}

/// The offset of libc's access register `index` in its `mcontext_t`.
const fn areg(index: usize) -> usize {
    offset_of!(libc::mcontext_t, aregs) + 4 * index
}

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
    /// Async-signal-safe.
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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
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

// ---- entry, pivot, restorer --------------------------------------------------------------------

/// One rule "register `$reg` (DWARF number) is saved at register `$base` + `$offset`":
/// `DW_CFA_expression, reg, length 3, DW_OP_breg<base>, SLEB128 offset in two bytes`.
macro_rules! saved_at {
    ($base:literal, $offset:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", (",
            $offset,
            " & 0x7f) | 0x80, ",
            $offset,
            " >> 7\n"
        )
    };
}

/// Where a frame at register `$base` has every register of the interrupted code. The CFA is 160
/// above the caller's stack pointer, the value in the slot of r15: `DW_CFA_def_cfa_expression,
/// length 7, DW_OP_breg<base> offset, DW_OP_deref, DW_OP_plus_uconst 160`.
///
/// The program counter gets a column of its own, for r14 has its own value. It is the one that
/// libgcc uses for the kernel's frames: 32, a control register's.
macro_rules! interrupted_registers {
    ($base:literal) => {
        concat!(
            ".cfi_return_column 32\n",
            ".cfi_escape 0x0f, 7, 0x70 + ",
            $base,
            ", (472 & 0x7f) | 0x80, 472 >> 7, 0x06, 0x23, 0xa0, 0x01\n",
            saved_at!($base, "352", "0"),
            saved_at!($base, "360", "1"),
            saved_at!($base, "368", "2"),
            saved_at!($base, "376", "3"),
            saved_at!($base, "384", "4"),
            saved_at!($base, "392", "5"),
            saved_at!($base, "400", "6"),
            saved_at!($base, "408", "7"),
            saved_at!($base, "416", "8"),
            saved_at!($base, "424", "9"),
            saved_at!($base, "432", "10"),
            saved_at!($base, "440", "11"),
            saved_at!($base, "448", "12"),
            saved_at!($base, "456", "13"),
            saved_at!($base, "464", "14"),
            saved_at!($base, "472", "15"),
            saved_at!($base, "344", "32"),
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.psw_addr) == 344);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r0) == 352);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r15) == 472);
    // The pivot loads both at once from the start of the record.
    assert!(offset_of!(Call, frame) == 0 && offset_of!(Call, back) == 8);
};

/// Where in its caller's frame a function saves r14, and r15 after it.
const SAVED_LINK: usize = 112;
/// Where in its caller's frame a function may save r4.
const SAVED_CONTEXT: usize = 32;

/// Loads what the sigreturn may lose, see the head of this file. r15 = the frame. The thread
/// pointer, in a0 and a1, is among it: the frame's is what the interrupted code goes on with. What
/// runs after this, to the sigreturn, must leave these registers alone, and use no thread-local
/// storage.
macro_rules! access_registers_of_the_frame {
    () => {
        "lam %a0, %a15, {access}(%r15)"
    };
}

// The three pieces lie together, so that one range of addresses tells whether an interrupted
// thread is on its way between a frame and the code that it belongs to.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. r2 = signal, r3 = siginfo, r4 = ucontext, r14 = the restorer's
    // address, r15 = the frame, which begins with a save area.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "stmg %r14, %r15, {link}(%r15)", // where `return_address` finds it
    ".cfi_offset %r14, {link} - 160",
    ".cfi_offset %r15, {link} - 152",
    "stg %r4, {context}(%r15)",
    // The kernel leaves the interrupted code's program mask in force. Compiled code relies on
    // overflows that do not trap.
    "lghi %r0, 0",
    "spm %r0",
    "lgr %r5, %r15",            // fourth argument: where the frame begins
    "aghi %r15, -160",          // the callee's save area
    ".cfi_adjust_cfa_offset 160",
    "stg %r5, 0(%r15)",         // back chain
    "brasl %r14, {dispatch}",
    "ltgr %r2, %r2",
    "jne 2f",
    "lmg %r14, %r15, 160 + {link}(%r15)",
    ".cfi_restore %r14",
    ".cfi_restore %r15",
    ".cfi_def_cfa_offset 160",
    "la %r1, {ucontext}(%r15)",
    "cg %r1, {context}(%r15)",
    "jne 1f",                   // called by a handler that was put over this one: no frame here
    access_registers_of_the_frame!(),
    "1:",
    "br %r14",                  // to the restorer: a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 320",
    ".cfi_offset %r14, {link} - 160",
    ".cfi_offset %r15, {link} - 152",
    "lmg %r6, %r7, 0(%r2)",     // the copied frame, and where to return to; callee-saved
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. r2 = the record of the call (16-aligned, just below the copied
    // frame), r6 = the copied frame, r7 = the restorer's address. From here on unwinders see the
    // interrupted function as the caller: all its registers are in the copied frame.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("6"),
    // A name for debuggers and backtraces.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "lay %r15, -160(%r2)",      // leaves the alternate stack for good
    "la %r1, {record}(%r2)",
    "stg %r1, 0(%r15)",         // back chain: what walkers go on with
    "lghi %r0, 0",
    "sfpc %r0",                 // the default, which Rust code counts on; the kernel left it alone
    "brasl %r14, {run}",        // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "mvhi 0(%r2), 0",           // the stack may be injected again, but not from in here
    "lgr %r15, %r6",
    access_registers_of_the_frame!(),
    "br %r7",                   // to the restorer, with r15 at the copied frame
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. r2 = the copied frame, r3 = where the handler
    // returns to, r4 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "lgr %r6, %r2",
    "lgr %r7, %r3",
    "lgr %r2, %r4",
    "j 3b",
    ".cfi_endproc",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    // rt_sigreturn, as the kernel itself writes it: gdb and libgcc know a signal frame by these two
    // bytes. The no-op is for unwinders, which look up the byte before a return address.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("15"),
    "nopr %r7",
    ".globl sigctx_restorer_0_1",
    ".hidden sigctx_restorer_0_1",
    ".type sigctx_restorer_0_1, @function",
    "sigctx_restorer_0_1:",
    "svc 173",
    ".short 0",                 // undefined: nothing comes back here
    ".cfi_endproc",
    ".size sigctx_restorer_0_1, . - sigctx_restorer_0_1",
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    record = const offset_of!(Call, record),
    link = const SAVED_LINK,
    context = const SAVED_CONTEXT,
    ucontext = const UCONTEXT_OFFSET,
    access = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.a0),
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_restorer_0_1"]
    fn restorer_code();
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

/// The address of the handler that the kernel is given.
#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

/// The address that the kernel is given for a handler to return to.
#[inline(always)]
pub(crate) fn restorer() -> usize {
    restorer_code as *const () as usize
}

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry saved it.
    unsafe { ((entry_sp + SAVED_LINK) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to.
pub(crate) const SIGRETURN_LEN: usize = 2;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use core::sync::atomic::{AtomicU32, Ordering};

    use super::super::resume_address;
    use super::*;

    /// gdb: `s390_sigtramp_frame_sniffer`; libgcc: `s390_fallback_frame_state`.
    #[test]
    fn the_restorer_is_the_one_that_debuggers_know() {
        let code = restorer() as *const [u8; 2];
        // SAFETY: code can be read.
        let code = unsafe { code.read() };
        assert_eq!(code, [0x0a, libc::SYS_rt_sigreturn as u8]);
        assert!(trampoline().contains(&restorer()));
    }

    /// This is what most code is interrupted with, and a condition code of 2.
    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        let status = Status::from_bits_retain(0x0705_2001_8000_0000);
        let system = Status::DAT | Status::IO | Status::EXT | Status::MCHECK | Status::PSTATE;
        assert_eq!(status, system | Status::CC_HIGH | Status::EA | Status::BA);
        assert_eq!(status.condition_code(), 2);
        assert_eq!(Status::CC_LOW.condition_code(), 1);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        // Bit 12 (8 << 48) is always 0 in 64-bit PSWs; 0, 2 to 4 and 25 to 30 are reserved.
        assert_eq!(bits, 0x47f7_ff81_8000_0000);
    }

    /// A stack with a frame at its top.
    #[repr(C, align(8))]
    struct FakeStack {
        below: [u8; 64 * 1024],
        save_area_and_info: [u8; UCONTEXT_OFFSET],
        uc: Ucontext,
    }

    /// a0 to a15.
    type Access = [u32; 16];

    /// A value for each but the thread pointer.
    fn access(tag: u32) -> Access {
        let (high, low): (u32, u32);
        // SAFETY: reads two registers.
        unsafe { asm!("ear {}, %a0", "ear {}, %a1", out(reg) high, out(reg) low) };
        core::array::from_fn(|n| match n {
            0 => high,
            1 => low,
            n => tag << 16 | n as u32,
        })
    }

    fn frame_with(access: &Access) -> Box<FakeStack> {
        // SAFETY: plain integers, for which zeroes are values.
        let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
        let at = (&raw mut stack.uc.mcontext.a0).cast::<Access>();
        // SAFETY: the registers follow one another.
        unsafe { at.write(*access) };
        stack
    }

    /// Loads the access registers from `before`, jumps to `code` on the stack `sp`, with a place to
    /// return to in r3 and r14, and says what they are there.
    ///
    /// # Safety
    ///
    /// `code` can run so, and keeps r8 to r13.
    unsafe fn access_after(
        code: usize,
        sp: usize,
        r2: usize,
        r4: usize,
        before: &Access,
    ) -> Access {
        let mut after = Access::default();
        // SAFETY: the caller's obligation. The stack pointer comes back at the end, and the thread
        // pointer is the same throughout.
        unsafe {
            asm!(
                "lam %a0, %a15, 0(%r1)",
                "lgr %r9, %r15",
                "lgr %r15, %r10",
                "larl %r14, 2f",
                "lgr %r3, %r14",
                "br %r12",
                "2:",
                "stam %a0, %a15, 0(%r8)",
                "lgr %r15, %r9",
                in("r1") before,
                in("r2") r2,
                in("r4") r4,
                in("r8") &raw mut after,
                in("r10") sp,
                in("r12") code,
                out("r6") _,
                out("r7") _,
                out("r9") _,
                out("a2") _, out("a3") _, out("a4") _, out("a5") _, out("a6") _, out("a7") _,
                out("a8") _, out("a9") _, out("a10") _, out("a11") _, out("a12") _, out("a13") _,
                out("a14") _, out("a15") _,
                clobber_abi("C"),
            );
        }
        after
    }

    /// 0 is no signal: nothing is called.
    const NO_SIGNAL: usize = 0;

    #[test]
    fn a_handler_returns_with_the_access_registers_of_its_frame() {
        let (before, given) = (access(0x25), access(0x43));
        let stack = frame_with(&given);
        let sp = &raw const stack.save_area_and_info as usize;
        let uc = &raw const stack.uc as usize;
        // SAFETY: as the kernel calls it, with room on the stack.
        let after = unsafe { access_after(entry(), sp, NO_SIGNAL, uc, &before) };
        assert_eq!(after, given);
    }

    #[test]
    fn an_entry_that_another_handler_calls_leaves_the_access_registers_alone() {
        let (before, given) = (access(0x25), access(0x43));
        let stack = frame_with(&given);
        let sp = &raw const stack.save_area_and_info as usize - 4096;
        let uc = &raw const stack.uc as usize;
        // SAFETY: as a function calls it, with room on the stack.
        let after = unsafe { access_after(entry(), sp, NO_SIGNAL, uc, &before) };
        assert_eq!(after, before);
    }

    #[test]
    fn an_injected_call_resumes_with_the_access_registers_of_its_frame() {
        let (before, given) = (access(0x25), access(0x43));
        let stack = frame_with(&given);
        let frame = &raw const stack.save_area_and_info as usize;
        let active = AtomicU32::new(1);
        let (sp, active_at) = (frame - 4096, &raw const active as usize);
        // SAFETY: as for a call that never returned, with room on the stack.
        let after = unsafe { access_after(resume_address(), sp, frame, active_at, &before) };
        assert_eq!(after, given);
        assert_eq!(active.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn system_call_instructions_are_known() {
        for code in [[0x0a, 0x00], [0x0a, 0xad], [0x0a, 0xff]] {
            assert!(is_syscall(code) && begins_syscall(code[0]));
        }
        // undefined, breakpoint, a two-byte no-op, br %r10
        for code in [[0x00, 0x00], [0x00, 0x01], [0x07, 0x07], [0x07, 0xfa]] {
            assert!(!is_syscall(code), "{code:02x?}");
        }
    }

    #[test]
    fn lines_of_a_disassembly_are_understood() {
        assert!(instruction("   1a:\tsvc\t0").system_call);
        assert!(instruction("   1c:\tbrasl\t%r14,1c <f+0x1c>").outside);
        assert!(instruction("\t\t\t1e: R_390_PLT32DBL\tmemcpy+0x2").outside);
        assert!(!instruction("   22:\tbasr\t%r14,%r1").outside);
        assert!(instruction("   24:\tear\t%r1,%a0").thread_local);
        assert_eq!(instruction("   28:\taghi\t%r15,-168").stack, 168);
        assert_eq!(instruction("   2c:\tlay\t%r15,-4256(%r15)").stack, 4256);
        assert_eq!(instruction("   32:\taghi\t%r15,168").stack, 0);
        assert_eq!(instruction("   36:\tstmg\t%r6,%r15,48(%r15)"), Default::default());
    }

    #[test]
    fn a_frame_without_room_for_its_vectors_is_no_frame() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        let lo = 0x1000;
        let (short, long) = (lo + 296 + 512, lo + 296 + 1024);
        assert_eq!(check_frame(&uc, lo, short), Ok(()));
        assert_eq!(check_frame(&uc, lo, short - 8), Err(BadFrame::Length { length: 800 }));
        uc.flags = UC_VXRS;
        assert_eq!(check_frame(&uc, lo, long), Ok(()));
        let at = short;
        assert_eq!(check_frame(&uc, lo, long - 8), Err(BadFrame::ExtendedState { at }));
    }

    #[test]
    fn a_moved_frame_has_the_thread_pointer_of_this_thread() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        uc.mcontext.psw_mask = !0;
        patch_thread(&mut uc, 0);
        let thread = u64::from(uc.mcontext.a0) << 32 | u64::from(uc.mcontext.a1);
        // SAFETY: asks libc, which has the thread's descriptor there.
        assert_eq!(thread, unsafe { libc::pthread_self() } as u64);
        assert_eq!(uc.mcontext.psw_mask, !(1 << 39));
    }

    /// What [`known`] is interrupted with has traps enabled in its program mask.
    #[test]
    fn a_handler_runs_without_the_interrupted_codes_traps() {
        use crate::handler::{self, Delivery, Flow, Options};

        static SEEN: AtomicU32 = AtomicU32::new(u32::MAX);

        fn look(delivery: &mut Delivery<'_>) -> Flow {
            let mask: u32;
            // SAFETY: reads a register.
            unsafe { asm!("ipm {}", out(reg) mask, options(nomem, nostack, preserves_flags)) };
            if delivery.status().contains(Status::FIXED_OVERFLOW) {
                SEEN.store(mask >> 24 & 0xf, Ordering::Relaxed);
            }
            crate::probe::step_over_known(delivery);
            Flow::Resume
        }
        let _alt = crate::altstack::AltStack::install().expect("alternate stack");
        // SAFETY: looks, and steps over the instruction.
        let installed = unsafe { handler::install(libc::SIGILL, look, Options::new()) };
        // SAFETY: the handler steps over the instruction; no other test here does the same.
        unsafe { known() };
        installed.expect("SIGILL").uninstall().expect("nobody else's is over it");
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! Which vectors there are is looked up at run time: none (f0-15), or v0-31 since z13. Since z14
    //! there is a jump through memory; before it the loop's needs a register, and so does the
    //! trampoline's. It is r1, which holds no pattern there.

    use core::arch::{asm, global_asm};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;

    /// The general registers, in the order of the table: all but the stack pointer, which points at
    /// the table.
    const GENERAL: [Reg; 15] = [
        Reg::R0,
        Reg::R1,
        Reg::R2,
        Reg::R3,
        Reg::R4,
        Reg::R5,
        Reg::R6,
        Reg::R7,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
    ];

    /// The access registers but the two that are the thread pointer.
    const ACCESS: [Reg; 14] = [
        Reg::A2,
        Reg::A3,
        Reg::A4,
        Reg::A5,
        Reg::A6,
        Reg::A7,
        Reg::A8,
        Reg::A9,
        Reg::A10,
        Reg::A11,
        Reg::A12,
        Reg::A13,
        Reg::A14,
        Reg::A15,
    ];

    /// Every register that code can hold a value in, once.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        general: [u64; 15],
        /// Condition code and program mask, where `ipm` puts them.
        flags: u64,
        /// The left halves of the first sixteen are f0 to f15.
        vectors: [[u64; 2]; 32],
        fpc: u32,
        access: [u32; 14],
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
    /// what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop's last instruction jumps to.
        next: AtomicUsize,
        host_sp: u64,
        host_floats: [u64; 8],
        host_fpc: u32,
        host_flags: u32,
        level: u32,
    }

    /// Condition code and program mask: what a program can set, and a sigreturn restores.
    const FLAGS: u64 = 0x3f00_0000;
    /// Of the floating-point control: flags, exception code, decimal rounding, and binary rounding
    /// but for the modes that only later machines have. Not the masks: a set one makes exceptions
    /// trap.
    const FPC: u32 = 0x00f8_ff73;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in given.general.iter_mut().chain(given.vectors.as_flattened_mut()) {
                *value = next();
            }
            for value in &mut given.access {
                *value = next() as u32;
            }
            given.flags = next() & FLAGS;
            given.fpc = next() as u32 & FPC;
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
            for (i, reg) in GENERAL.iter().enumerate() {
                if *reg != Reg::R1 || level() == Level::Indirect {
                    check(reg.name(), 0, given.general[i], found.general[i]);
                }
            }
            check(Reg::Pswm.name(), 0, given.flags, found.flags);
            check(Reg::Fpc.name(), 0, given.fpc.into(), found.fpc.into());
            for (i, reg) in ACCESS.iter().enumerate() {
                check(reg.name(), 0, given.access[i].into(), found.access[i].into());
            }
            let (vectors, words) = if level() == Level::Float { (16, 1) } else { (32, 2) };
            for i in 0..vectors {
                for word in 0..words {
                    check("vector", 2 * i + word, given.vectors[i][word], found.vectors[i][word]);
                }
            }
        }

        /// The word that the loop jumps through.
        pub(crate) fn next(&self) -> &AtomicUsize {
            &self.next
        }
    }

    /// What the CPU and the kernel have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    enum Level {
        /// f0 to f15.
        Float = 0,
        /// v0 to v31.
        Vector = 1,
        /// The same, and a jump through memory.
        Indirect = 2,
    }

    /// The [`Level`], once it is known. The trampoline reads it.
    static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

    fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            0 => Level::Float,
            1 => Level::Vector,
            2 => Level::Indirect,
            _ => {
                let level = detect();
                LEVEL.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    fn detect() -> Level {
        /// `HWCAP_S390_VXRS`: CPU and kernel have vectors.
        const VXRS: u64 = 1 << 11;
        /// Facility 58, miscellaneous-instruction-extensions 2. Facilities are counted from the left.
        const INDIRECT: u64 = 1 << (63 - 58);

        // SAFETY: reads the auxiliary vector.
        if unsafe { libc::getauxval(libc::AT_HWCAP) } & VXRS == 0 {
            return Level::Float;
        }
        let mut facilities = 0u64;
        // SAFETY: stores one double word, as many as r0 says beyond the first.
        unsafe {
            asm!(
                "stfle 0({})",
                in(reg_addr) &raw mut facilities,
                inlateout("r0") 0u64 => _,
                options(nostack),
            );
        }
        if facilities & INDIRECT == 0 { Level::Vector } else { Level::Indirect }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `aghi %r15,-168` and `lay %r15,-168(%r15)`.
        let reserved = line.split_once("\t%r15,-").and_then(|(before, number)| {
            let subtracts = ["aghi", "agfi", "lay"].iter().any(|name| before.ends_with(name));
            let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok().filter(|_| subtracts)
        });
        let relocations = ["R_390_PLT", "R_390_GOT", "R_390_TLS"];
        Instruction {
            system_call: line.contains("\tsvc\t"),
            outside: line.contains("\tbrasl\t")
                || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains(",%a0") || line.contains(",%a1"),
            stack: reserved.unwrap_or_default(),
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Float => "r0, r2-14, condition code, program mask, fpc, f0-15, a2-15",
            Level::Vector => "r0, r2-14, condition code, program mask, fpc, v0-31, a2-15",
            Level::Indirect => "r0-14, condition code, program mask, fpc, v0-31, a2-15",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and r15 points at the table. There
    // are two loops: one that jumps through memory, and one that goes out of the window to jump. What
    // is assembled for later machines is run on those alone.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".machine z14",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        "sigctx_probe_spin_0_1:",   // r2 = table
        "stmg %r6, %r15, 48(%r15)",
        "stg %r15, {host_sp}(%r2)",
        ".irp n,8,9,10,11,12,13,14,15",
        "std %f\\n, {host_floats}+8*\\n-64(%r2)",
        ".endr",
        "stfpc {host_fpc}(%r2)",
        "ipm %r0",
        "st %r0, {host_flags}(%r2)",
        "l %r1, {level}(%r2)",
        "cije %r1, 0, 21f",
        "vlm %v0, %v15, {given_vectors}(%r2)",
        "vlm %v16, %v31, {given_vectors}+256(%r2)",
        "j 22f",
        "21:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ld %f\\n, {given_vectors}+16*\\n(%r2)",
        ".endr",
        "22:",
        "lfpc {given_fpc}(%r2)",
        "lam %a2, %a15, {given_access}(%r2)",
        "lgr %r15, %r2",
        "lg %r0, {given_flags}(%r2)",
        "spm %r0",                  // nothing from here to the end changes the condition code
        "cijne %r1, 2, 23f",
        "lmg %r0, %r14, 0(%r15)",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 64",
        "nopr %r7",
        "la %r1, 1(%r1)",
        "lay %r1, -1(%r1)",
        "la %r13, 1(%r13)",
        "lay %r13, -1(%r13)",
        ".endr",
        "bi {next}(%r15)",
        "23:",
        "lmg %r0, %r14, 0(%r15)",
        ".globl sigctx_probe_direct_loop_0_1",
        ".hidden sigctx_probe_direct_loop_0_1",
        "sigctx_probe_direct_loop_0_1:",
        ".rept 64",
        "nopr %r7",
        "la %r12, 1(%r12)",
        "lay %r12, -1(%r12)",
        "la %r13, 1(%r13)",
        "lay %r13, -1(%r13)",
        ".endr",
        "j 27f",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "stmg %r0, %r14, {found}(%r15)",
        "lgr %r2, %r15",
        "lghi %r0, 0",
        "ipm %r0",
        "stg %r0, {found_flags}(%r2)",
        "l %r0, {host_flags}(%r2)",
        "spm %r0",
        "stfpc {found_fpc}(%r2)",
        "stam %a2, %a15, {found_access}(%r2)",
        "l %r1, {level}(%r2)",
        "cije %r1, 0, 24f",
        "vstm %v0, %v15, {found_vectors}(%r2)",
        "vstm %v16, %v31, {found_vectors}+256(%r2)",
        "j 25f",
        "24:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "std %f\\n, {found_vectors}+16*\\n(%r2)",
        ".endr",
        "25:",
        "lfpc {host_fpc}(%r2)",
        ".irp n,8,9,10,11,12,13,14,15",
        "ld %f\\n, {host_floats}+8*\\n-64(%r2)",
        ".endr",
        "lg %r15, {host_sp}(%r2)",
        "lmg %r6, %r15, 48(%r15)",
        "br %r14",
        // Out of the window: from its first instruction on r1 is needed.
        "27:",
        "lg %r1, {next}(%r15)",
        "br %r1",
        // Writes something else into everything. r2 = level. The frame: 160 a save area, 160 f8-15,
        // 224 fpc, 228 program mask, 232 a word.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        "sigctx_probe_clobber_0_1:",
        "stmg %r6, %r15, 48(%r15)",
        "aghi %r15, -240",
        ".irp n,8,9,10,11,12,13,14,15",
        "std %f\\n, 160+8*\\n-64(%r15)",
        ".endr",
        "stfpc 224(%r15)",
        "ipm %r0",
        "st %r0, 228(%r15)",
        "cije %r2, 0, 31f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vone %v\\n",
        ".endr",
        "j 32f",
        "31:",
        "lghi %r1, -1",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ldgr %f\\n, %r1",
        ".endr",
        "32:",
        "llihf %r1, 0xaaaaaaaa",
        "oilf %r1, 0xaaaaaaaa",
        ".irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "sar %a\\n, %r1",
        ".endr",
        "llilf %r0, 0x00f8ff73",    // every flag, rounding the other way
        "st %r0, 232(%r15)",
        "lfpc 232(%r15)",
        ".irp n,0,2,3,4,5,6,7,8,9,10,11,12,13,14",
        "lgr %r\\n, %r1",
        ".endr",
        "llilf %r0, 0x3f000000",    // the condition code 3, and every trap
        "spm %r0",
        // Back to what the ABI promises the caller: program mask, and of the floating-point control
        // the masks and the rounding. Its flags and the exception code stay as they are now.
        "l %r0, 228(%r15)",
        "oilf %r0, 0x30000000",     // but the condition code
        "spm %r0",
        "l %r0, 224(%r15)",
        "nilf %r0, 0xff000077",
        "oilf %r0, 0x00f8ff00",
        "st %r0, 232(%r15)",
        "lfpc 232(%r15)",
        ".irp n,8,9,10,11,12,13,14,15",
        "ld %f\\n, 160+8*\\n-64(%r15)",
        ".endr",
        "lmg %r6, %r15, 240+48(%r15)",
        "br %r14",
        ".popsection",
        given_flags = const offset_of!(Table, given.flags),
        given_fpc = const offset_of!(Table, given.fpc),
        given_access = const offset_of!(Table, given.access),
        given_vectors = const offset_of!(Table, given.vectors),
        found = const offset_of!(Table, found.general),
        found_flags = const offset_of!(Table, found.flags),
        found_fpc = const offset_of!(Table, found.fpc),
        found_access = const offset_of!(Table, found.access),
        found_vectors = const offset_of!(Table, found.vectors),
        next = const offset_of!(Table, next),
        host_sp = const offset_of!(Table, host_sp),
        host_floats = const offset_of!(Table, host_floats),
        host_fpc = const offset_of!(Table, host_fpc),
        host_flags = const offset_of!(Table, host_flags),
        level = const offset_of!(Table, level),
    );

    /// The loop reads the general registers from the table's start.
    const _: () = assert!(offset_of!(Table, given.general) == 0);

    // Values that name their registers; then an undefined instruction, after which the program
    // counter stands. Not one register is left to find the way back with, the stack pointer included:
    // it is in a static.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 16", // stack pointer, flags, fpc
        ".popsection",
        ".pushsection .rodata.sigctx_probe_values, \"a\", @progbits",
        ".balign 8",
        "sigctx_probe_values_0_1:",
        ".quad 0xf0f0f0f0f0f0f0f0", // r0
        ".quad 0x0101010101010101",
        ".quad 0x0202020202020202",
        ".quad 0x0303030303030303",
        ".quad 0x0404040404040404",
        ".quad 0x0505050505050505",
        ".quad 0x0606060606060606",
        ".quad 0x0707070707070707",
        ".quad 0x0808080808080808",
        ".quad 0x0909090909090909",
        ".quad 0x1010101010101010", // r10
        ".quad 0x1111111111111111",
        ".quad 0x1212121212121212",
        ".quad 0x1313131313131313",
        ".quad 0x1414141414141414",
        ".quad 0x1515151515151510", // a multiple of 8, as stack pointers are
        ".long 0xa2a2a2a2",         // a2
        ".long 0xa3a3a3a3",
        ".long 0xa4a4a4a4",
        ".long 0xa5a5a5a5",
        ".long 0xa6a6a6a6",
        ".long 0xa7a7a7a7",
        ".long 0xa8a8a8a8",
        ".long 0xa9a9a9a9",
        ".long 0xb0b0b0b0",         // a10
        ".long 0xb1b1b1b1",
        ".long 0xb2b2b2b2",
        ".long 0xb3b3b3b3",
        ".long 0xb4b4b4b4",
        ".long 0xb5b5b5b5",
        ".long 0x00501011",         // fpc: two flags, an exception code, rounding
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".machine z14",
        ".balign 2",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        "sigctx_probe_known_0_1:",
        "stmg %r6, %r15, 48(%r15)",
        "larl %r1, sigctx_probe_saved_0_1",
        "stg %r15, 0(%r1)",
        "ipm %r0",
        "st %r0, 8(%r1)",
        "stfpc 12(%r1)",
        "llilf %r0, {flags}",
        "larl %r1, sigctx_probe_values_0_1",
        "lam %a2, %a15, 128(%r1)",
        "lfpc 184(%r1)",
        "spm %r0",
        "lmg %r0, %r15, 0(%r1)",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        ".short 0",
        "larl %r1, sigctx_probe_saved_0_1",
        "l %r0, 8(%r1)",
        "spm %r0",
        "lfpc 12(%r1)",
        "lg %r15, 0(%r1)",
        "lmg %r6, %r15, 48(%r15)",
        "br %r14",
        // What `push_call` is meant for: a trampoline that keeps everything itself. r14 = where to go
        // on, the stack pointer's word = r14 as it was. The frame: 160 a save area, 160 r0-14,
        // 280 flags, 284 fpc, 288 vectors, 800 the end.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        "sigctx_probe_trampoline_0_1:",
        "lay %r15, -800(%r15)",
        "stmg %r0, %r14, 160(%r15)",
        "ipm %r0",
        "st %r0, 280(%r15)",
        "stfpc 284(%r15)",
        "larl %r12, {level}",
        "l %r12, 0(%r12)",          // callee-saved: outlives the call
        "cije %r12, 0, 41f",
        "vstm %v0, %v15, 288(%r15)",
        "vstm %v16, %v31, 544(%r15)",
        "j 42f",
        "41:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "std %f\\n, 288+8*\\n(%r15)",
        ".endr",
        "42:",
        "lghi %r0, 0",
        "spm %r0",                  // as the ABI wants it: nothing traps
        "brasl %r14, {hook}",
        "cije %r12, 0, 43f",
        "vlm %v0, %v15, 288(%r15)",
        "vlm %v16, %v31, 544(%r15)",
        "j 44f",
        "43:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "ld %f\\n, 288+8*\\n(%r15)",
        ".endr",
        "44:",
        "lfpc 284(%r15)",
        "l %r0, 280(%r15)",
        "spm %r0",
        "cijne %r12, 2, 45f",
        "lmg %r0, %r13, 160(%r15)",
        "lg %r14, 800(%r15)",
        "lay %r15, 808(%r15)",
        // Below the stack pointer, where nobody writes: handlers run on the alternate stack.
        "bi 272-808(%r15)",
        "45:",
        "lmg %r0, %r13, 160(%r15)",
        "lg %r1, 272(%r15)",        // the register that a jump costs
        "lg %r14, 800(%r15)",
        "lay %r15, 808(%r15)",
        "br %r1",
        ".popsection",
        flags = const (KNOWN_FLAGS.bits() >> 16) as u32,
        level = sym LEVEL,
        hook = sym crate::probe::pushed,
    );

    /// A condition code and a program mask; `ipm` has them 16 bits further right.
    const KNOWN_FLAGS: Status = Status::CC_HIGH
        .union(Status::FIXED_OVERFLOW)
        .union(Status::HFP_UNDERFLOW)
        .union(Status::HFP_SIGNIFICANCE);

    unsafe extern "C" {
        #[link_name = "sigctx_probe_spin_0_1"]
        fn spin_code(table: *mut Table);
        #[link_name = "sigctx_probe_loop_0_1"]
        static LOOP: u8;
        #[link_name = "sigctx_probe_direct_loop_0_1"]
        static DIRECT_LOOP: u8;
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
        let start =
            if level() == Level::Indirect { &raw const LOOP } else { &raw const DIRECT_LOOP };
        start as usize..&raw const EXIT as usize
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
        unsafe { asm!(".short 0") };
    }

    /// What is to be added to the program counter to step over the undefined instruction: the CPU has
    /// gone past it already.
    pub(crate) const KNOWN_STEP: usize = 0;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[];

    /// DWARF's numbers of registers (the s390x supplement): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
        0,
        &[
            Reg::R0,
            Reg::R1,
            Reg::R2,
            Reg::R3,
            Reg::R4,
            Reg::R5,
            Reg::R6,
            Reg::R7,
            Reg::R8,
            Reg::R9,
            Reg::R10,
            Reg::R11,
            Reg::R12,
            Reg::R13,
            Reg::R14,
            Reg::R15,
        ],
    )];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 160;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 4096;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`. Before z14 it costs r1.
    pub(crate) fn pushed_trampoline() -> usize {
        trampoline_code as *const () as usize
    }

    /// What walkers of back chains begin with: the stack pointer, in the function that this is inlined
    /// into.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let fp: usize;
        // SAFETY: reads a register.
        unsafe { asm!("lgr {}, %r15", out(reg) fp, options(nomem, nostack, preserves_flags)) };
        fp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction, until its flags are
    /// restored from elsewhere.
    /// Says whether it can: here the kernel keeps the bit that does it.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
