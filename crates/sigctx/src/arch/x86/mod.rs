//! 32-bit x86: i386 and its successors, also under a 64-bit kernel. What is explained in
//! `x86_64` is not explained here.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | XSAVE image (64-aligned)     |
//!        | FSAVE image    112 bytes     |<- uc_mcontext.fpstate, the one pointer that is read
//!        | retcode          8 bytes     |   for handlers without a restorer
//!        | ucontext       116 bytes     |<- ecx
//!        | siginfo        128 bytes     |<- edx
//!        | the handler's three arguments|   on the stack as of any C function
//!  low   | return address: the restorer |<- esp (12 modulo 16)
//! ```
//!
//! The thread pointer is the base of a segment that every thread has under the same selector (gs):
//! it is in no frame. Shadow stacks are for 64-bit code alone.
//!
//! References: the kernel's `arch/x86/kernel/signal_32.c`,
//! `arch/x86/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; System V ABI Intel386 supplement,
//! 2.2 (stack alignment), 2.4 (DWARF registers).

use core::arch::asm;
use core::ffi::c_long;
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
use super::restorer;
use crate::inject::{BadFrame, MoveError};
use crate::sys::{SaFlags, SigSet};
use crate::vdso;

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
/// The return address, the three arguments, and the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 144;
pub(crate) const MAX_FRAME: usize = 64 * 1024;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction that every kernel has. It destroys nothing but eax, the result.
///
/// # Safety
///
/// As for [`sys::syscall_raw`](crate::sys::syscall_raw).
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    cfg_select! {
        // All seven registers are taken, and the compiler does not give two of them. On the stack
        // they would be where no unwinder expects them, while the thread waits in here.
        target_feature = "sse2" => {
            // SAFETY: the obligations are the caller's; memory is not said to be preserved.
            unsafe {
                asm!(
                    "movd {esi}, esi",
                    "movd {ebp}, ebp",
                    "mov esi, [edi + 12]",
                    "mov ebp, [edi + 20]",
                    "mov edi, [edi + 16]",
                    "int 0x80",
                    "movd esi, {esi}",
                    "movd ebp, {ebp}",
                    esi = out(xmm_reg) _,
                    ebp = out(xmm_reg) _,
                    inlateout("eax") nr => result,
                    in("ebx") args[0],
                    in("ecx") args[1],
                    in("edx") args[2],
                    inout("edi") args.as_ptr() => _,
                    options(nostack, preserves_flags),
                );
            }
        }
        _ => {
            // SAFETY: as above.
            unsafe {
                asm!(
                    "push esi",
                    "push ebp",
                    "mov esi, [edi + 12]",
                    "mov ebp, [edi + 20]",
                    "mov edi, [edi + 16]",
                    "int 0x80",
                    "pop ebp",
                    "pop esi",
                    inlateout("eax") nr => result,
                    in("ebx") args[0],
                    in("ecx") args[1],
                    in("edx") args[2],
                    inout("edi") args.as_ptr() => _,
                    options(preserves_flags),
                );
            }
        }
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

/// Where a handler returns to. The kernel has return code of its own, in a vDSO that may be switched off.
///
/// Where there is a vDSO no action has a restorer, as none of glibc's has: a program that reads an action
/// with glibc's `sigaction` and sets it again keeps the flag and loses the address, so that the handler
/// would return to address 0 (glibc 2.41, `sysdeps/unix/sysv/linux/i386/libc_sigaction.c`).
///
/// Without `SA_SIGINFO` there is another frame, which another system call returns from: the kernel has the
/// code for that.
#[inline(always)]
pub(crate) fn restorer_of(flags: SaFlags) -> Option<usize> {
    if vdso::range().is_empty() {
        vdso::find();
    }
    (flags.contains(SaFlags::SIGINFO) && vdso::range().is_empty()).then(restorer)
}

layout! {
    /// `struct sigcontext_32`. A selector has 16 bits and 16 bits of nothing.
    #[derive(Debug)]
    pub(crate) struct SigContext = "struct sigcontext" {
        gs: u16 = "gs",
        gs_high: u16 = "__gsh",
        fs: u16 = "fs",
        fs_high: u16 = "__fsh",
        es: u16 = "es",
        es_high: u16 = "__esh",
        ds: u16 = "ds",
        ds_high: u16 = "__dsh",
        di: u32 = "edi",
        si: u32 = "esi",
        bp: u32 = "ebp",
        sp: u32 = "esp",
        bx: u32 = "ebx",
        dx: u32 = "edx",
        cx: u32 = "ecx",
        ax: u32 = "eax",
        trapno: u32 = "trapno",
        err: u32 = "err",
        ip: u32 = "eip",
        cs: u16 = "cs",
        cs_high: u16 = "__csh",
        flags: u32 = "eflags",
        /// A copy of `sp` that no code reads.
        sp_at_signal: u32 = "esp_at_signal",
        ss: u16 = "ss",
        ss_high: u16 = "__ssh",
        /// Where the FSAVE image is, in the same frame, with the XSAVE image behind it; 0 when
        /// there is none.
        fpstate: usize = "fpstate",
        oldmask: u32 = "oldmask",
        cr2: u32 = "cr2",
    }
}

layout! {
    /// `struct ucontext`. The mask that C programs are given is the older one, of 32 signals.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u32 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "@uc_sigmask",
    }
}

const _: () = assert!(size_of::<Ucontext>() == 116);

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// Accumulator, result.
    Eax = ax, "eax";
    /// Base, callee-saved.
    Ebx = bx, "ebx";
    /// Scratch.
    Ecx = cx, "ecx";
    /// Scratch, upper half of a result.
    Edx = dx, "edx";
    /// Callee-saved.
    Esi = si, "esi";
    /// Callee-saved.
    Edi = di, "edi";
    /// Frame pointer, where there is one; callee-saved.
    Ebp = bp, "ebp";
    /// Stack pointer.
    Esp = sp, "esp";
    /// Program counter.
    Eip = ip, "eip";
    /// Flags, see [`Status`].
    Eflags = flags, "eflags";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Eip;
    /// The stack pointer.
    pub const SP: Self = Self::Esp;
}

pub(crate) const STATUS: Reg = Reg::Eflags;

bitflags! {
    /// The flags of `eflags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap: single step.
        const TF = 1 << 8;
        /// Interrupts enabled.
        const IF = 1 << 9;
        /// Direction of string instructions.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, two bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: the kernel's mark on a fault.
        const RF = 1 << 16;
        /// Virtual 8086 mode.
        const VM = 1 << 17;
        /// Alignment check.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID exists.
        const ID = 1 << 21;
        /// Bits that have no name are kept as they are.
        const _ = !0;
    }
}

// ---- the context -------------------------------------------------------------------------------

impl Ucontext {
    #[inline(always)]
    pub(crate) fn pc(&self) -> usize {
        self.mcontext.ip as usize
    }

    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.mcontext.ip = pc as u32;
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.sp as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.mcontext.sp = sp as u32;
    }

    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.mcontext.bp as usize
    }

    #[inline(always)]
    #[expect(clippy::unused_self, reason = "other architectures look into the context")]
    pub(crate) fn lr(&self) -> Option<usize> {
        None
    }

    /// Go's `pushCall`, word for word.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<usize>());
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut usize).write_volatile(resume) };
        self.set_sp(sp);
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The number of the exception that led to the signal (`trapno`).
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trapno.into()
    }

    /// The exception's error code (`err`).
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.ucontext().mcontext.err.into()
    }

    /// The last page fault's address (`cr2`).
    #[must_use]
    pub fn page_fault_address(&self) -> u64 {
        self.ucontext().mcontext.cr2.into()
    }

    /// The first word of the blocked signals, where the oldest handlers look for it (`oldmask`).
    #[must_use]
    pub fn old_mask(&self) -> u64 {
        self.ucontext().mcontext.oldmask.into()
    }

    /// The selectors cs, ss, ds, es, fs and gs. They are no [`Reg`]: their values are the kernel's,
    /// and others under a 64-bit kernel than under a 32-bit one.
    #[must_use]
    pub fn selectors(&self) -> [u16; 6] {
        let c = &self.ucontext().mcontext;
        [c.cs, c.ss, c.ds, c.es, c.fs, c.gs]
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

frame_record! {
    /// What the frame pointer points at.
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

/// Looks whether the frame in `[lo, hi)` is one that can be copied.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    let fp = uc.mcontext.fpstate;
    // The part that every CPU has is 112 bytes.
    if fp != 0 && (fp < lo || fp > hi.saturating_sub(112)) {
        return Err(BadFrame::ExtendedState { at: fp });
    }
    Ok(())
}

/// The handler's arguments point into the frame, too, but the sigreturn does not read them.
#[inline(always)]
pub(crate) fn relocate(copy: &mut Ucontext, delta: usize) {
    if copy.mcontext.fpstate != 0 {
        copy.mcontext.fpstate = copy.mcontext.fpstate.wrapping_add(delta);
    }
}

/// The thread pointer is in no frame.
#[inline(always)]
pub(crate) fn patch_thread(_copy: &mut Ucontext, _end: usize) {}

/// All threads are alike.
#[expect(clippy::unnecessary_wraps, reason = "other architectures refuse")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    Ok(())
}

pub(crate) const SYSCALL_LEN: usize = 2;

#[inline(always)]
pub(crate) fn syscall_len(_uc: &Ucontext) -> usize {
    SYSCALL_LEN
}

#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0xcd, 0x80];

/// Whether two bytes are `int 0x80`, `sysenter` or `syscall`.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    matches!(code, [0x0f, 0x05 | 0x34] | [0xcd, 0x80])
}

#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    matches!(byte, 0x0f | 0xcd)
}
