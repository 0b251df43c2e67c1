//! 32-bit Arm, little-endian, EABI: ARM and Thumb code.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | retcode         16 bytes     |   for handlers without a restorer
//!        | ucontext       744 bytes     |<- r2; VFP registers in uc_regspace
//!  low   | siginfo        128 bytes     |<- r1, sp (8-aligned); lr = the restorer's address
//! ```
//!
//! No pointer leads into the frame, and the thread pointer (TPIDRURO) is not in it.
//!
//! An instruction's address does not tell whether it is ARM or Thumb code: bit 5 (T) of cpsr does.
//! In an address to go to, bit 0 says it, as with `bx`. All assembly here is ARM code, whatever
//! Rust code is compiled to.
//!
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/arm/kernel/signal.c`, `arch/arm/include/asm/ucontext.h`,
//! `arch/arm/include/uapi/asm/sigcontext.h`; Arm ARM (DDI 0406), B1.3.3 (program status
//! registers); AAPCS32 (IHI 0042); EHABI32 (IHI 0038).

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

pub(crate) const NAME: &str = "arm";
pub(crate) const NSIG: usize = 64;
/// None: what is below the stack pointer is anybody's.
pub(crate) const RED_ZONE: usize = 0;
/// The siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// The kernel's has 888 bytes, and at most the alignment more.
pub(crate) const MAX_FRAME: usize = 16 * 1024;
pub(crate) const SI_TIMER: c_int = -2;
pub(crate) const SI_ASYNCIO: c_int = -4;
/// The call that gives a user id of 32 bits.
pub(crate) const SYS_GETRESGID: c_long = libc::SYS_getresgid32;
pub(crate) const SYS_GETRESUID: c_long = libc::SYS_getresuid32;
pub(crate) const SYS_GETUID: c_long = libc::SYS_getuid32;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETGROUPS: c_long = libc::SYS_setgroups32;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETRESGID: c_long = libc::SYS_setresgid32;
/// The call that takes user ids of 32 bits.
pub(crate) const SYS_SETRESUID: c_long = libc::SYS_setresuid32;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys nothing but r0, the result.
///
/// # Safety
///
/// As for [`sys::syscall_raw`](crate::sys::syscall_raw).
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the obligations are the caller's; memory is not said to be preserved.
    unsafe {
        asm!(
            // r7 is the frame pointer of Thumb code, which cannot be named as an operand.
            "mov {kept}, r7",
            "mov r7, {nr}",
            "svc #0",
            "mov r7, {kept}",
            nr = in(reg) nr,
            kept = out(reg) _,
            inlateout("r0") args[0] as isize => result,
            in("r1") args[1],
            in("r2") args[2],
            in("r3") args[3],
            in("r4") args[4],
            in("r5") args[5],
            options(nostack, preserves_flags),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

layout! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) errno: c_int = "si_errno",
        pub(crate) code: c_int = "si_code",
    }
}

layout! {
    /// `struct sigaction` of the kernel's own headers. The one that it gives to C programs is that
    /// of the older system call, so nothing here can be compared with it.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "",
        flags: usize = "",
        restorer: usize = "",
        mask: SigSet = "",
    }
}

/// `SA_RESTORER`. The kernel has return code of its own, but no unwind tables for it.
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
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) flags: c_int = "ss_flags",
        pub(crate) size: usize = "ss_size",
    }
}

layout! {
    #[derive(Debug)]
    pub(crate) struct SigContext = "struct sigcontext" {
        trap_no: u32 = "trap_no",
        error_code: u32 = "error_code",
        oldmask: u32 = "oldmask",
        r0: u32 = "arm_r0",
        r1: u32 = "arm_r1",
        r2: u32 = "arm_r2",
        r3: u32 = "arm_r3",
        r4: u32 = "arm_r4",
        r5: u32 = "arm_r5",
        r6: u32 = "arm_r6",
        r7: u32 = "arm_r7",
        r8: u32 = "arm_r8",
        r9: u32 = "arm_r9",
        r10: u32 = "arm_r10",
        r11: u32 = "arm_fp",
        r12: u32 = "arm_ip",
        sp: u32 = "arm_sp",
        lr: u32 = "arm_lr",
        pc: u32 = "arm_pc",
        cpsr: u32 = "arm_cpsr",
        fault_address: u32 = "fault_address",
    }
}

layout! {
    /// `struct ucontext`, which C programs know by libc's name alone. libc's mask is longer and
    /// takes the unused words, too.
    #[derive(Debug)]
    #[repr(align(8))]
    pub(crate) struct Ucontext = "ucontext_t" {
        flags: u32 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "@uc_sigmask",
        unused: [u32; 30] = "",
        /// Records of what coprocessors hold; that of the VFP has d0-31 and fpscr.
        regspace: [u32; 128] = "uc_regspace",
    }
}

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];
/// libc's, which include `asm/sigcontext.h`: the kernel gives away no `asm/ucontext.h`.
pub(crate) const LAYOUT_HEADERS: &str = "\
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>
#include <asm/sigcontext.h>
";

const _: () = {
    assert!(size_of::<Ucontext>() == 744);
    assert!(size_of::<Ucontext>() == size_of::<libc::ucontext_t>());
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(offset_of!(Ucontext, regspace) == offset_of!(libc::ucontext_t, uc_regspace));
    assert!(size_of::<SigContext>() == size_of::<libc::mcontext_t>());
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, trap_no) == offset_of!(libc::mcontext_t, trap_no));
    assert!(offset_of!(SigContext, error_code) == offset_of!(libc::mcontext_t, error_code));
    assert!(offset_of!(SigContext, oldmask) == offset_of!(libc::mcontext_t, oldmask));
    assert!(offset_of!(SigContext, r0) == offset_of!(libc::mcontext_t, arm_r0));
    assert!(offset_of!(SigContext, r10) == offset_of!(libc::mcontext_t, arm_r10));
    assert!(offset_of!(SigContext, r11) == offset_of!(libc::mcontext_t, arm_fp));
    assert!(offset_of!(SigContext, r12) == offset_of!(libc::mcontext_t, arm_ip));
    assert!(offset_of!(SigContext, sp) == offset_of!(libc::mcontext_t, arm_sp));
    assert!(offset_of!(SigContext, lr) == offset_of!(libc::mcontext_t, arm_lr));
    assert!(offset_of!(SigContext, pc) == offset_of!(libc::mcontext_t, arm_pc));
    assert!(offset_of!(SigContext, cpsr) == offset_of!(libc::mcontext_t, arm_cpsr));
    assert!(offset_of!(SigContext, fault_address) == offset_of!(libc::mcontext_t, fault_address));
};

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// First argument, result.
    R0 = r0, "r0";
    /// Second argument.
    R1 = r1, "r1";
    /// Third argument.
    R2 = r2, "r2";
    /// Fourth argument.
    R3 = r3, "r3";
    /// Callee-saved.
    R4 = r4, "r4";
    /// Callee-saved.
    R5 = r5, "r5";
    /// Callee-saved.
    R6 = r6, "r6";
    /// Callee-saved; frame pointer of Thumb code, where there is one; number of a system call.
    R7 = r7, "r7";
    /// Callee-saved.
    R8 = r8, "r8";
    /// Callee-saved, or what the platform wants.
    R9 = r9, "r9";
    /// Callee-saved.
    R10 = r10, "r10";
    /// Callee-saved; frame pointer of ARM code, where there is one (fp).
    R11 = r11, "r11";
    /// Scratch between calls (ip).
    R12 = r12, "r12";
    /// Stack pointer.
    Sp = sp, "sp";
    /// Link register: return address.
    Lr = lr, "lr";
    /// Program counter: the instruction's address, bit 0 clear in Thumb code, too.
    Pc = pc, "pc";
    /// Flags and instruction set, see [`Status`].
    Cpsr = cpsr, "cpsr";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

pub(crate) const STATUS: Reg = Reg::Cpsr;

bitflags! {
    /// The flags of `cpsr`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Mode, five bits; 0x10 is user mode.
        const M = 0x1f;
        /// Thumb code.
        const T = 1 << 5;
        /// Fast interrupts masked.
        const F = 1 << 6;
        /// Interrupts masked.
        const I = 1 << 7;
        /// Asynchronous aborts masked.
        const A = 1 << 8;
        /// Data are big-endian.
        const E = 1 << 9;
        /// If-then state, eight bits in two places: not 0 within an IT block.
        const IT = 0x0600_fc00;
        /// Greater than or equal, one bit for each byte of a parallel operation.
        const GE = 0xf << 16;
        /// Data-independent timing.
        const DIT = 1 << 21;
        /// Privileged access never.
        const PAN = 1 << 22;
        /// Speculative store bypass is safe.
        const SSBS = 1 << 23;
        /// Jazelle; with T, `ThumbEE`.
        const J = 1 << 24;
        /// Saturation, sticky.
        const Q = 1 << 27;
        /// Overflow.
        const V = 1 << 28;
        /// Carry.
        const C = 1 << 29;
        /// Zero.
        const Z = 1 << 30;
        /// Negative.
        const N = 1 << 31;
        /// Bits that have no name are kept as they are.
        const _ = !0;
    }
}

// ---- the context -------------------------------------------------------------------------------

/// T of [`Status`], as the context has it.
const THUMB: u32 = Status::T.bits() as u32;
/// IT of [`Status`], as the context has it.
const IT: u32 = Status::IT.bits() as u32;

impl Ucontext {
    #[inline(always)]
    pub(crate) fn pc(&self) -> usize {
        self.mcontext.pc as usize
    }

    /// As `bx` does it: bit 0 says whether there is Thumb code, and is no part of the address. An
    /// If-then state belongs to the place that is left.
    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        let thumb = if pc & 1 == 0 { 0 } else { THUMB };
        self.mcontext.pc = pc as u32 & !1;
        self.mcontext.cpsr = self.mcontext.cpsr & !(THUMB | IT) | thumb;
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.sp as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.mcontext.sp = sp as u32;
    }

    /// Thumb code has its frame pointer in another register, one that its instructions reach.
    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        let c = &self.mcontext;
        if c.cpsr & THUMB == 0 { c.r11 as usize } else { c.r7 as usize }
    }

    #[inline(always)]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.lr as usize)
    }

    /// Go's `pushCall`: the link register goes to the slot, and is where `target` comes back to.
    /// That is within the interrupted function, so that it is in the same instruction set.
    ///
    /// An If-then state is lost: only a sigreturn could give it back.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything. The
    /// interrupted code is not within an IT block.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<u32>());
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut u32).write_volatile(self.mcontext.lr) };
        self.set_sp(sp);
        let thumb = self.mcontext.cpsr & THUMB != 0;
        self.mcontext.lr = resume as u32 | u32::from(thumb);
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The number of the exception that led to the signal (`trap_no`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trap_no.into()
    }

    /// The exception's error code (`error_code`): for a memory fault its fault status register.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.ucontext().mcontext.error_code.into()
    }

    /// The last memory fault's address (`fault_address`); 0 where an emulator does not give it.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn page_fault_address(&self) -> u64 {
        self.ucontext().mcontext.fault_address.into()
    }

    /// The first word of the blocked signals, where the oldest handlers look for it (`oldmask`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn old_mask(&self) -> u64 {
        self.ucontext().mcontext.oldmask.into()
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// What the frame pointer points at: in ARM code r11, in Thumb code r7.
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

/// All records have their places within the context. They are not looked at: kernels leave a gap
/// unwritten where a record of another coprocessor could be.
#[inline(always)]
pub(crate) fn check_frame(_uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    let length = hi.saturating_sub(lo);
    if length < UCONTEXT_OFFSET + size_of::<Ucontext>() {
        return Err(BadFrame::Length { length });
    }
    Ok(())
}

/// No pointer leads into the frame.
#[inline(always)]
pub(crate) fn relocate(_copy: &mut Ucontext, _delta: usize) {}

/// The thread pointer is in no frame.
#[inline(always)]
pub(crate) fn patch_thread(_copy: &mut Ucontext, _end: usize) {}

/// All threads are alike.
#[expect(clippy::unnecessary_wraps, reason = "other architectures refuse")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    Ok(())
}

pub(crate) const SYSCALL_LEN: usize = 4;

#[inline(always)]
pub(crate) fn syscall_len(uc: &Ucontext) -> usize {
    if uc.mcontext.cpsr & THUMB == 0 { 4 } else { 2 }
}

#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0, 0, 0, 0xef];

/// Whether it is `svc`: in ARM code with any condition, in Thumb code followed by zeroes.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    match code {
        // In ARM code an `and` on condition with the program counter as its operand.
        [_, 0xdf, 0, 0] => true,
        // The condition 0xf makes another instruction of it.
        [.., last] => last & 0x0f == 0x0f && last != 0xff,
    }
}

/// Any byte: the first is a part of the number that the kernel ignores. No instruction is shorter
/// than what is read, in ARM or in Thumb code.
#[inline(always)]
pub(crate) fn begins_syscall(_byte: u8) -> bool {
    true
}

// ---- entry, pivot, restorer --------------------------------------------------------------------

/// One rule "register `$reg` (DWARF number) is saved in the frame that register `$base` points at".
macro_rules! saved_at {
    ($base:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", ((160 + 4 * ",
            $reg,
            ") & 0x7f) | 0x80, (160 + 4 * ",
            $reg,
            ") >> 7\n"
        )
    };
}

/// Where the frame that register `$base` points at has every register of the interrupted code. The
/// return address is in the place of pc (15), not of lr.
macro_rules! interrupted_registers {
    ($base:literal) => {
        concat!(
            ".cfi_return_column 15\n",
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((160 + 4 * 13) & 0x7f) | 0x80, (160 + 4 * 13) >> 7, 0x06\n",
            saved_at!($base, "0"),
            saved_at!($base, "1"),
            saved_at!($base, "2"),
            saved_at!($base, "3"),
            saved_at!($base, "4"),
            saved_at!($base, "5"),
            saved_at!($base, "6"),
            saved_at!($base, "7"),
            saved_at!($base, "8"),
            saved_at!($base, "9"),
            saved_at!($base, "10"),
            saved_at!($base, "11"),
            saved_at!($base, "12"),
            saved_at!($base, "13"),
            saved_at!($base, "14"),
            saved_at!($base, "15"),
        )
    };
}

/// The offsets that the CFI above and the unwind tables below are written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r0) == 160);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r12) == 160 + 4 * 12);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 160 + 4 * 13);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.lr) == 160 + 4 * 14);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc) == 160 + 4 * 15);
    // The entry loads both at once.
    assert!(offset_of!(Call, frame) == 0);
    assert!(offset_of!(Call, back) == 4);
};

// Everything is written down twice: in the tables of the EHABI, by which programs unwind, and as
// CFI for debuggers.
global_asm!(
    ".arm",                     // whatever Rust is compiled to; its functions say it themselves
    ".cfi_sections .debug_frame",
    ".pushsection .text.sigctx_entry, \"ax\", %progbits",
    ".balign 4",
    // The handler of every signal. r0 = signal, r1 = siginfo, r2 = ucontext, lr = the restorer's
    // address, sp = where the frame begins (8-aligned).
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, %function",
    "sigctx_entry_0_1:",
    ".fnstart",
    ".cfi_startproc",
    "push {{r4, lr}}",          // `return_address` reads lr there; r4 keeps sp 8-aligned
    ".save {{r4, lr}}",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset r4, -8",
    ".cfi_offset lr, -4",
    "add r3, sp, #8",           // fourth argument: where the frame begins
    "bl {dispatch}",
    "cmp r0, #0",
    "popeq {{r4, pc}}",         // to the restorer: a plain return from the handler
    "ldm r0, {{r4, r5}}",       // the copied frame, the restorer; callee-saved, so they outlive the call
    ".cfi_endproc",
    ".fnend",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. r0 = the record of the call, r4 = the copied frame, r5 = the restorer.
    ".fnstart",
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("4"),
    // The same for the EHABI: sp = r4; sp += 160; pop r0-r3; pop r4-r15, which sets sp and pc.
    ".unwind_raw 0, 0x94, 0x27, 0xb1, 0x0f, 0x8f, 0xff",
    ".type sigctx_injected_call_0_1, %function",
    "sigctx_injected_call_0_1:",
    "mov sp, r0",               // leaves the alternate stack for good; r0 is the argument
    "add r11, r0, #{record}",   // what frame-pointer walkers go on with, in ARM code
    "mov r7, r11",              // and in Thumb code
    // Rounding and the rest by default, which Rust code counts on: the kernel left them alone. Without
    // floating point in the ABI there may be no such register.
    #[cfg(target_abi = "eabihf")]
    "mov r1, #0",
    #[cfg(target_abi = "eabihf")]
    "vmsr fpscr, r1",
    "bl {run}",                 // returns the address of the stack's `active` word
    "3:",
    "mov r1, #0",
    "str r1, [r0]",             // the stack may be injected again, but not from in here
    "mov sp, r4",
    "bx r5",                    // to the restorer, with sp at the copied frame
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. r0 = the copied frame, r1 = the restorer,
    // r2 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, %function",
    "sigctx_resume_0_1:",
    "mov r4, r0",
    "mov r5, r1",
    "mov r0, r2",
    "b 3b",
    ".cfi_endproc",
    ".fnend",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    // rt_sigreturn, word for word as in glibc: gdb knows a signal frame by these two instructions.
    // The no-op is for unwinders, which look up the instruction before a return address.
    ".fnstart",
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("13"),
    ".save {{r0-r15}}",
    ".pad #160",
    "nop",
    ".globl sigctx_restorer_0_1",
    ".hidden sigctx_restorer_0_1",
    ".type sigctx_restorer_0_1, %function",
    "sigctx_restorer_0_1:",
    "mov r7, #173",
    "svc #0",
    "udf #0",
    ".cfi_endproc",
    ".fnend",
    ".size sigctx_restorer_0_1, . - sigctx_restorer_0_1",
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    record = const offset_of!(Call, record),
);

unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_restorer_0_1"]
    fn restorer_code();
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

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
    let slot = entry_sp.wrapping_sub(size_of::<usize>());
    // SAFETY: the entry pushed it.
    unsafe { (slot as *const usize).read() }
}

pub(crate) const SIGRETURN_LEN: usize = 8;

#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::altstack::AltStack;
    use crate::handler::{self, Delivery, Flow, Options};
    use crate::inject::{CallStack, Frame};
    use crate::probe::{Patterned, Spin, with_blank_context};
    use crate::sys;
    use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering::SeqCst};
    use std::thread;
    use std::time::{Duration, Instant};

    /// gdb: `arm_linux_rt_sigreturn_tramp_frame`.
    #[test]
    fn the_restorer_is_the_one_that_debuggers_know() {
        let code = restorer() as *const [u32; 2];
        // SAFETY: code can be read.
        assert_eq!(unsafe { code.read() }, [0xe3a0_70ad, 0xef00_0000]);
        assert!(trampoline().contains(&restorer()));
    }

    /// Within an IT block, with all flags set.
    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        let status = Status::from_bits_retain(0xfe0f_fc30);
        let user = Status::from_bits_retain(0x10);
        let nzcv = Status::N | Status::Z | Status::C | Status::V;
        assert_eq!(status, nzcv | Status::Q | Status::GE | Status::IT | Status::T | user);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        // 20 is another exception's business.
        assert_eq!(bits, 0xffef_ffff);
    }

    #[test]
    fn system_call_instructions_are_known() {
        // svc #0, svcne #0x123456; in Thumb code svc #0, svc #0xff
        for code in [[0, 0, 0, 0xef], [0x56, 0x34, 0x12, 0x1f], [0, 0xdf, 0, 0], [0xff, 0xdf, 0, 0]]
        {
            assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
        }
        // udf, bl, mrc2, ldm; in Thumb code udf, b, b to the next but one
        for code in [
            [0xf0, 0x00, 0xf0, 0xe7],
            [0x00, 0x00, 0x00, 0xeb],
            [0x10, 0x0f, 0x11, 0xff],
            [0x00, 0xdf, 0x9d, 0xe8],
            [0x00, 0xde, 0, 0],
            [0xfe, 0xe7, 0, 0],
            [0x00, 0xd0, 0, 0],
        ] {
            assert!(!is_syscall(code), "{code:02x?}");
        }
    }

    #[test]
    fn bit_zero_of_an_address_chooses_the_instruction_set() {
        let thumb_in_it = Status::T | Status::IT;
        with_blank_context(|ctx| {
            for (to, pc, status) in [(0x1003, 0x1002, Status::T), (0x2000, 0x2000, Status::empty())]
            {
                for before in [Status::empty(), Status::T, thumb_in_it] {
                    ctx.set_status(before | Status::Q);
                    ctx.set_pc(to);
                    assert_eq!((ctx.pc(), ctx.status()), (pc, status | Status::Q));
                }
            }
        });
    }

    #[test]
    fn a_pushed_call_comes_back_in_the_instruction_set_that_was_interrupted() {
        let mut stack = [0x5555_5555_u32; 2];
        let top = &raw mut stack[1] as usize;
        with_blank_context(|ctx| {
            for (status, lr) in [(Status::empty(), 0x3332), (Status::T, 0x3333)] {
                ctx.set_status(status | Status::GE);
                ctx.set_sp(top);
                ctx.set(Reg::Lr, 0x1234);
                // SAFETY: the slot is the array's; nothing is resumed.
                unsafe { ctx.push_call(0x2221, 0x3332) };
                assert_eq!((ctx.pc(), ctx.sp(), ctx.lr()), (0x2220, top - 4, Some(lr)));
                assert_eq!(ctx.status(), Status::T | Status::GE);
            }
        });
        assert_eq!(stack, [0x1234, 0x5555_5555]);
    }

    #[test]
    fn the_frame_pointer_is_that_of_the_instruction_set() {
        with_blank_context(|ctx| {
            ctx.set(Reg::R7, 7);
            ctx.set(Reg::R11, 11);
            assert_eq!(ctx.fp(), 11);
            ctx.set_status(Status::T);
            assert_eq!(ctx.fp(), 7);
        });
    }

    static STACK: AtomicPtr<CallStack> = AtomicPtr::new(core::ptr::null_mut());
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    /// Calls injected in ARM code, in Thumb code, and within an IT block.
    static INJECTED: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

    /// Rounding, flushing to zero and the like; the loop has something else there.
    #[cfg(target_abi = "eabihf")]
    fn fp_modes() -> u32 {
        let fpscr: u32;
        // SAFETY: reads a register.
        unsafe { asm!("vmrs {}, fpscr", out(reg) fpscr, options(nomem, nostack)) };
        fpscr & 0x07c0_0000
    }

    fn count(frame: &mut Frame<'_>, _: usize) {
        #[cfg(target_abi = "eabihf")]
        assert_eq!(fp_modes(), 0, "the interrupted code's rounding mode");
        let status = frame.context().status();
        let kind: usize =
            if status.intersects(Status::IT) { 2 } else { status.contains(Status::T).into() };
        crate::probe::clobber_all();
        INJECTED[kind].fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
    }

    fn inject(delivery: &mut Delivery<'_>) -> Flow {
        if Patterned::code().contains(&delivery.pc()) {
            // SAFETY: the loop's owner waits for the last signal.
            let stack = unsafe { &*STACK.load(SeqCst) };
            // SAFETY: the loop may be interrupted anywhere.
            if let Ok(injection) = unsafe { delivery.inject(stack, count, 0) } {
                return Flow::Inject(injection);
            }
        }
        HANDLED.fetch_add(1, SeqCst);
        Flow::Resume
    }

    /// An IT block that loses its state goes on with instructions that are not to be executed.
    #[test]
    fn calls_are_injected_in_arm_code_in_thumb_code_and_within_it_blocks() {
        const ENOUGH: usize = 100;
        let enough = || INJECTED.iter().all(|count| count.load(SeqCst) >= ENOUGH);
        // SAFETY: the handler counts and injects.
        let installed = unsafe { handler::install(libc::SIGURG, inject, Options::new()) };
        let installed = installed.expect("install");
        let tid = AtomicI32::new(0);
        let mut patterned = Patterned::new();
        let stack = patterned.shared_call_stack();
        STACK.store((&raw const *stack).cast_mut(), SeqCst);
        // SAFETY: the loop's memory outlives the thread below.
        let stop = unsafe { patterned.stopper() };
        thread::scope(|s| {
            s.spawn(|| {
                let start = Instant::now();
                let in_time = || start.elapsed() < Duration::from_secs(60);
                while tid.load(SeqCst) == 0 {
                    thread::yield_now();
                }
                while !enough() && in_time() {
                    let handled = HANDLED.load(SeqCst);
                    sys::tgkill(sys::getpid(), tid.load(SeqCst), libc::SIGURG).expect("alive");
                    while HANDLED.load(SeqCst) == handled && in_time() {
                        thread::yield_now();
                    }
                }
                stop.stop();
            });
            let _alt = AltStack::install().expect("alternate stack");
            let mut pattern = 0x9e37_79b9_7f4a_7c15_u64;
            let random = || {
                pattern = pattern.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) | 1;
                pattern
            };
            let ready = || tid.store(sys::gettid(), SeqCst);
            let different = patterned.run(random, Spin::UntilStopped, ready);
            assert!(different.is_empty(), "{different:x?}");
        });
        installed.uninstall().expect("uninstall");
        assert!(enough(), "only {INJECTED:?}");
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! Which vectors there are is looked up at run time: none, d0-15 (VFP) or d0-31 (NEON). The
    //! loop has a part in ARM code and one in Thumb code, most of which is in IT blocks.

    use core::arch::{asm, global_asm};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;

    /// All but sp, which points at the table, and pc.
    const GENERAL: [Reg; 14] = [
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
        Reg::Lr,
    ];

    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        general: [u32; 14],
        flags: u32,
        fpscr: u32,
        vectors: [u64; 32],
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
    /// is what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop's last instruction jumps to.
        next: AtomicUsize,
        /// Where the loop's Thumb part begins, with bit 0 set: a jump through memory needs no
        /// register to change the instruction set.
        thumb: usize,
        host_sp: u32,
        host_fpscr: u32,
        level: u32,
    }

    /// What a program can set in cpsr.
    const FLAGS: Status = Status::N
        .union(Status::Z)
        .union(Status::C)
        .union(Status::V)
        .union(Status::Q)
        .union(Status::GE);

    /// Rounding, flushing to zero, default NaN.
    const FPSCR_MODES: u32 = 0x03c0_0000;
    /// Flags, and sticky exceptions.
    const FPSCR_FLAGS: u32 = 0xf000_009f;
    /// Alternative half precision (`VFPv4`).
    const FPSCR_AHP: u32 = 1 << 26;
    /// Saturation, sticky (NEON).
    const FPSCR_QC: u32 = 1 << 27;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in &mut given.general {
                *value = next() as u32;
            }
            for value in &mut given.vectors {
                *value = next();
            }
            given.flags = next() as u32 & FLAGS.bits() as u32;
            given.fpscr = next() as u32 & fpscr_bits();
            self.thumb = &raw const THUMB as usize | 1;
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
                check(reg.name(), 0, given.general[i].into(), found.general[i].into());
            }
            check("cpsr", 0, given.flags.into(), u64::from(found.flags) & FLAGS.bits());
            let vectors = match level() {
                Level::None => return,
                Level::D16 => 16,
                Level::D32 => 32,
            };
            check("fpscr", 0, given.fpscr.into(), found.fpscr.into());
            for i in 0..vectors {
                check("d", i, given.vectors[i], found.vectors[i]);
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
        None = 0,
        D16 = 1,
        D32 = 2,
    }

    const VFP: u32 = 1 << 6;
    const NEON: u32 = 1 << 12;
    const VFPV4: u32 = 1 << 16;
    const VFP_D32: u32 = 1 << 19;

    fn capabilities() -> u32 {
        // SAFETY: reads the auxiliary vector.
        unsafe { libc::getauxval(libc::AT_HWCAP) as u32 }
    }

    /// As the assembly reads it, too; `u32::MAX` until somebody has asked.
    static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

    fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            0 => Level::None,
            1 => Level::D16,
            2 => Level::D32,
            _ => {
                let has = capabilities();
                let level = if has & (VFP_D32 | NEON) != 0 {
                    Level::D32
                } else if has & VFP != 0 {
                    Level::D16
                } else {
                    Level::None
                };
                LEVEL.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    /// The bits of fpscr that can be set here, without those for vectors of the old kind.
    fn fpscr_bits() -> u32 {
        let has = capabilities();
        let ahp = if has & VFPV4 != 0 { FPSCR_AHP } else { 0 };
        let qc = if has & NEON != 0 { FPSCR_QC } else { 0 };
        FPSCR_MODES | FPSCR_FLAGS | ahp | qc
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        let mut words = line.split('\t').skip(1);
        let (name, operands) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let immediate = |prefix: &str| {
            let number = operands.strip_prefix(prefix)?;
            let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            number[..end].parse().ok()
        };
        // In `{r4, r5, lr}`, or `{d8-d11}`.
        let listed = || -> usize {
            let (_, list) = operands.split_once('{').unwrap_or_default();
            let (list, _) = list.split_once('}').unwrap_or_default();
            let size = if list.starts_with('d') { 8 } else { 4 };
            let number = |register: &str| register[1..].parse::<usize>().ok();
            let count = |item: &str| match item.split_once('-') {
                Some((first, last)) => {
                    number(last).zip(number(first)).map_or(1, |(last, first)| last - first + 1)
                }
                None => 1,
            };
            size * list.split(", ").map(count).sum::<usize>()
        };
        let stack = match name.trim_end_matches(".w") {
            "push" | "vpush" => listed(),
            "stmdb" | "stmfd" if operands.starts_with("sp!") => listed(),
            "sub" | "subw" => immediate("sp, sp, #").or_else(|| immediate("sp, #")).unwrap_or(0),
            "str" => {
                let offset =
                    operands.split_once(", [sp, #-").and_then(|(_, n)| n.strip_suffix("]!"));
                offset.and_then(|n| n.parse().ok()).unwrap_or(0)
            }
            _ => 0,
        };
        let relocations = [
            "R_ARM_CALL",
            "R_ARM_JUMP24",
            "R_ARM_PLT",
            "R_ARM_THM_CALL",
            "R_ARM_THM_JUMP24",
            "R_ARM_GOT",
            "R_ARM_TLS",
        ];
        let direct = operands.starts_with(|c: char| c.is_ascii_digit());
        Instruction {
            system_call: name == "svc",
            outside: matches!(name, "bl" | "blx") && direct
                || relocations.iter().any(|kind| line.contains(kind)),
            // The thread pointer is read from a coprocessor.
            thread_local: name == "mrc" && operands.contains("cr13") || line.contains("R_ARM_TLS"),
            stack,
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::None => "general registers, flags",
            Level::D16 => "general registers, flags, fpscr, d0-15",
            Level::D32 => "general registers, flags, fpscr, d0-31",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and sp points at the table.
    // {given} and {found} are offsets of the two states.
    global_asm!(
        ".arm",
        ".arch armv7-a",            // IT blocks and flags that older compilation targets lack
        ".fpu neon",
        ".pushsection .text.sigctx_probe, \"ax\", %progbits",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        ".type sigctx_probe_spin_0_1, %function",
        "sigctx_probe_spin_0_1:",   // r0 = table
        "push {{r3-r11, lr}}",
        "ldr r1, [r0, #{level}]",
        "cmp r1, #1",
        "blo 21f",
        "vpush {{d8-d15}}",
        "vmrs r2, fpscr",
        "str r2, [r0, #{host_fpscr}]",
        "add r2, r0, #{given_vectors}",
        "vldm r2!, {{d0-d15}}",
        "vldmhi r2, {{d16-d31}}",
        "ldr r2, [r0, #{given_fpscr}]",
        "vmsr fpscr, r2",
        "21:",
        "str sp, [r0, #{host_sp}]",
        "ldr r1, [r0, #{given_flags}]",
        "msr APSR_nzcvqg, r1",
        "mov sp, r0",               // loads leave the flags alone, here and at the end
        "ldm sp, {{r0-r12, lr}}",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 96",
        "nop",
        "add r0, r0, #1",
        "sub r0, r0, #1",
        "addeq r1, r1, #3",
        "addne r1, r1, #3",
        "sub r1, r1, #3",
        ".rept 2",                  // exchanges r2 and r3, twice
        "eor r2, r2, r3",
        "eor r3, r2, r3",
        "eor r2, r2, r3",
        ".endr",
        ".endr",
        "ldr pc, [sp, #{thumb}]",
        ".thumb",
        ".globl sigctx_probe_thumb_0_1",
        ".hidden sigctx_probe_thumb_0_1",
        "sigctx_probe_thumb_0_1:",
        // An instruction whose condition gets lost is executed, and the sum is another.
        ".rept 200",
        "itete eq",
        "addeq r0, r0, #1",
        "addne r0, r0, #1",
        "addeq r1, r1, #1",
        "addne r1, r1, #1",
        "sub.w r0, r0, #1",
        "sub.w r1, r1, #1",
        "ite cs",
        "addcs.w r8, r8, #5",
        "addcc.w r8, r8, #3",
        "nop",
        "ite cs",
        "subcs.w r8, r8, #5",
        "subcc.w r8, r8, #3",
        ".endr",
        "ldr.w pc, [sp, #{next}]",
        ".balign 4",
        ".arm",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12",
        "str r\\n, [sp, #({found} + 4*\\n)]",
        ".endr",
        "str lr, [sp, #({found} + 52)]",
        "mov r0, sp",
        "ldr sp, [r0, #{host_sp}]",
        "mrs r1, APSR",
        "str r1, [r0, #{found_flags}]",
        "ldr r1, [r0, #{level}]",
        "cmp r1, #1",
        "blo 22f",
        "vmrs r2, fpscr",
        "str r2, [r0, #{found_fpscr}]",
        "add r2, r0, #{found_vectors}",
        "vstm r2!, {{d0-d15}}",
        "vstmhi r2, {{d16-d31}}",
        "ldr r2, [r0, #{host_fpscr}]",
        "vmsr fpscr, r2",
        "vpop {{d8-d15}}",
        "22:",
        "pop {{r3-r11, pc}}",
        // Writes something else into everything. r0 = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        ".type sigctx_probe_clobber_0_1, %function",
        "sigctx_probe_clobber_0_1:",
        "push {{r3-r11, lr}}",
        "ldr r1, 39f",              // values for the vectors
        "mvn r2, r1",
        "cmp r0, #1",
        "blo 32f",
        "vpush {{d8-d15}}",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmov d\\n, r1, r2",
        ".endr",
        "bls 31f",
        ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmov d\\n, r1, r2",
        ".endr",
        "31:",
        "vmrs r3, fpscr",
        "ldr r4, 39f + 4",
        "eor r4, r3, r4",           // everything the other way
        "vmsr fpscr, r4",
        "ldr r4, 39f + 8",
        "eor r4, r3, r4",           // modes as a function must leave them, flags the other way
        "vmsr fpscr, r4",
        "vpop {{d8-d15}}",
        "32:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12",
        "mov r\\n, #0xaa000000",
        ".endr",
        "mov lr, #0xaa000000",
        "mvn r0, #0",
        "msr APSR_nzcvqg, r0",
        "pop {{r3-r11, pc}}",
        "39: .word 0x5a5a5a5a, {fpscr_all}, {fpscr_flags}",
        ".popsection",
        given_flags = const offset_of!(Table, given.flags),
        given_fpscr = const offset_of!(Table, given.fpscr),
        given_vectors = const offset_of!(Table, given.vectors),
        found = const offset_of!(Table, found.general),
        found_flags = const offset_of!(Table, found.flags),
        found_fpscr = const offset_of!(Table, found.fpscr),
        found_vectors = const offset_of!(Table, found.vectors),
        next = const offset_of!(Table, next),
        thumb = const offset_of!(Table, thumb),
        host_sp = const offset_of!(Table, host_sp),
        host_fpscr = const offset_of!(Table, host_fpscr),
        level = const offset_of!(Table, level),
        fpscr_all = const FPSCR_MODES | FPSCR_FLAGS | FPSCR_AHP | FPSCR_QC,
        fpscr_flags = const FPSCR_FLAGS | FPSCR_QC,
    );

    /// The loop reads the general registers from the table's start.
    const _: () = assert!(offset_of!(Table, given.general) == 0);

    // Values that name their registers; then an undefined instruction, whose handler steps over it.
    // Not one register is left to find the way back with, the stack pointer included: it is in a
    // static.
    global_asm!(
        ".arm",
        ".arch armv7-a",
        ".fpu neon",
        ".pushsection .bss.sigctx_probe_saved, \"aw\", %nobits",
        ".balign 4",
        "sigctx_probe_saved_0_1: .skip 4",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", %progbits",
        ".balign 4",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        ".type sigctx_probe_known_0_1, %function",
        "sigctx_probe_known_0_1:",
        "push {{r3-r11, lr}}",
        "ldr r0, 48f",
        "41: str sp, [pc, r0]",     // pc is two instructions further on
        "ldr r0, 48f + 8",
        "msr APSR_nzcvqg, r0",
        "adr lr, 49f",
        "ldm lr, {{r0-r12}}",
        "ldr sp, [lr, #52]",
        "ldr lr, [lr, #56]",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        "udf #0",
        "ldr r0, 48f + 4",
        "42: ldr sp, [pc, r0]",
        "pop {{r3-r11, pc}}",
        "48:",
        ".word sigctx_probe_saved_0_1 - (41b + 8)",
        ".word sigctx_probe_saved_0_1 - (42b + 8)",
        ".word {flags}",
        "49:",
        ".word 0xf0f0f0f0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606",
        ".word 0x07070707, 0x08080808, 0x09090909, 0x10101010, 0x11111111, 0x12121212, 0x13131310",
        ".word 0x14141414",
        // Nothing special in any register. In a function of its own, since KNOWN_STEP is that of
        // ARM code.
        ".globl sigctx_probe_undefined_0_1",
        ".hidden sigctx_probe_undefined_0_1",
        ".type sigctx_probe_undefined_0_1, %function",
        "sigctx_probe_undefined_0_1:",
        "udf #0",
        "bx lr",
        // What `push_call` is meant for: a trampoline that keeps everything itself. lr = where to
        // go on, [sp] = the interrupted lr.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        ".type sigctx_probe_trampoline_0_1, %function",
        "sigctx_probe_trampoline_0_1:",
        "push {{r0-r12, lr}}",
        "mrs r4, APSR",
        "mov r5, sp",
        "bic sp, sp, #7",
        "ldr r6, 59f",
        "51: ldr r6, [pc, r6]",     // the level
        "cmp r6, #1",
        "blo 52f",
        "vmrs r7, fpscr",
        "vpush {{d0-d7}}",          // d8-d15 are callee-saved
        "vpushhi {{d16-d31}}",
        "mov r0, #0",
        "vmsr fpscr, r0",
        "52:",
        "bl {hook}",
        "cmp r6, #1",
        "blo 53f",
        "vpophi {{d16-d31}}",
        "vpop {{d0-d7}}",
        "vmsr fpscr, r7",
        "53:",
        "mov sp, r5",
        "msr APSR_nzcvqg, r4",
        "ldr lr, [sp, #56]",
        "pop {{r0-r12}}",
        "ldr pc, [sp], #8",         // goes on, and takes the slot away: no register is needed
        "59: .word {known_level} - (51b + 8)",
        ".popsection",
        flags = const FLAGS.bits() as u32,
        hook = sym crate::probe::pushed,
        known_level = sym LEVEL,
    );

    unsafe extern "C" {
        #[link_name = "sigctx_probe_spin_0_1"]
        fn spin_code(table: *mut Table);
        #[link_name = "sigctx_probe_loop_0_1"]
        static LOOP: u8;
        #[link_name = "sigctx_probe_thumb_0_1"]
        static THUMB: u8;
        #[link_name = "sigctx_probe_exit_0_1"]
        static EXIT: u8;
        #[link_name = "sigctx_probe_clobber_0_1"]
        fn clobber_code(level: u32) -> c_int;
        #[link_name = "sigctx_probe_known_0_1"]
        fn known_code();
        #[link_name = "sigctx_probe_undefined_0_1"]
        fn undefined_code();
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
        unsafe { undefined_code() };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[];

    /// DWARF's numbers of registers (AADWARF32): the first, and those from it on.
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
            Reg::Sp,
            Reg::Lr,
        ],
    )];

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 4]);

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`, which reads the level.
    pub(crate) fn pushed_trampoline() -> usize {
        level();
        trampoline_code as *const () as usize
    }

    /// The frame pointer, as the function that this is inlined into has it: all of Rust's code is
    /// in the same instruction set, which a function's address tells.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let fp: usize;
        let thumb = crate::probe::pushed as *const () as usize & 1 != 0;
        if thumb {
            // SAFETY: reads a register.
            unsafe { asm!("mov {}, r7", out(reg) fp, options(nomem, nostack, preserves_flags)) };
        } else {
            // SAFETY: reads a register.
            unsafe { asm!("mov {}, r11", out(reg) fp, options(nomem, nostack, preserves_flags)) };
        }
        fp
    }

    /// No program can do that to itself: there is no such flag.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
