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
//! References: the kernel's `arch/arm/kernel/signal.c`, `arch/arm/include/asm/ucontext.h`,
//! `arch/arm/include/uapi/asm/sigcontext.h`; Arm ARM (DDI 0406), B1.3.3 (program status
//! registers); AAPCS32 (IHI 0042); EHABI32 (IHI 0038).

use core::arch::asm;
use core::ffi::c_long;
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
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

/// None: the ABI lets no function keep data below the stack pointer.
pub(crate) const RED_ZONE: usize = 0;
/// The siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// The kernel's has 888 bytes, and at most the alignment more.
pub(crate) const MAX_FRAME: usize = 16 * 1024;

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

/// Where a handler returns to. The kernel has return code of its own, but no unwind tables for it.
///
/// Without `SA_SIGINFO` there is another frame, which another system call returns from: the kernel has the
/// code for that.
#[inline(always)]
pub(crate) fn restorer_of(flags: SaFlags) -> Option<usize> {
    flags.contains(SaFlags::SIGINFO).then(restorer)
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

const _: () = assert!(size_of::<Ucontext>() == 744);

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
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trap_no.into()
    }

    /// The exception's error code (`error_code`): for a memory fault its fault status register.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.ucontext().mcontext.error_code.into()
    }

    /// The last memory fault's address (`fault_address`); 0 where an emulator does not give it.
    #[must_use]
    pub fn page_fault_address(&self) -> u64 {
        self.ucontext().mcontext.fault_address.into()
    }

    /// The first word of the blocked signals, where the oldest handlers look for it (`oldmask`).
    #[must_use]
    pub fn old_mask(&self) -> u64 {
        self.ucontext().mcontext.oldmask.into()
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

frame_record! {
    /// What the frame pointer points at: in ARM code r11, in Thumb code r7.
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
