//! x86-64: the model for the other architectures' folders, which have the same items in the same order.
//! What is explained here is not explained there.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | XSAVE image (64-aligned)     |<- uc_mcontext.fpstate, the one pointer into the frame
//!        | siginfo        128 bytes     |<- rsi
//!        | ucontext       304 bytes     |<- rdx (16-aligned)
//!  low   | return address: the restorer |<- rsp
//! ```
//!
//! References: the kernel's `arch/x86/kernel/signal_64.c`,
//! `arch/x86/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; System V ABI AMD64 supplement, 3.2.2
//! (red zone), 3.4 (stack alignment).

use core::arch::asm;
use core::ffi::c_long;
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
use super::restorer;
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

/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: usize = 128;
/// From the stack pointer at the handler's entry to the `ucontext`: the return address.
pub(crate) const UCONTEXT_OFFSET: usize = 8;
/// More than any frame of this architecture has (with AMX tiles about 11 KiB): a longer one was not
/// written by the kernel.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys rcx and r11, and nothing else.
///
/// # Safety
///
/// As for [`sys::syscall_raw`].
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the obligations are the caller's; without `nomem` the compiler takes all memory as changed.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

/// Where a handler returns to: the kernel demands a restorer here.
#[inline(always)]
#[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
pub(crate) fn restorer_of(_flags: SaFlags) -> Option<usize> {
    Some(restorer())
}

layout! {
    /// `struct sigcontext_64`.
    #[derive(Debug)]
    pub(crate) struct SigContext = "struct sigcontext" {
        r8: u64 = "r8",
        r9: u64 = "r9",
        r10: u64 = "r10",
        r11: u64 = "r11",
        r12: u64 = "r12",
        r13: u64 = "r13",
        r14: u64 = "r14",
        r15: u64 = "r15",
        di: u64 = "rdi",
        si: u64 = "rsi",
        bp: u64 = "rbp",
        bx: u64 = "rbx",
        dx: u64 = "rdx",
        ax: u64 = "rax",
        cx: u64 = "rcx",
        sp: u64 = "rsp",
        ip: u64 = "rip",
        flags: u64 = "eflags",
        cs: u16 = "cs",
        gs: u16 = "gs",
        fs: u16 = "fs",
        ss: u16 = "ss",
        err: u64 = "err",
        trapno: u64 = "trapno",
        oldmask: u64 = "oldmask",
        cr2: u64 = "cr2",
        /// Where the XSAVE image is, in the same frame; 0 when there is none.
        fpstate: usize = "fpstate",
        reserved1: [u64; 8] = "reserved1",
    }
}

layout! {
    /// `struct ucontext`: 304 bytes, where libc's type has 968.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u64 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "uc_sigmask",
    }
}

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = assert!(size_of::<Ucontext>() == 304);

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// Accumulator.
    Rax = ax, "rax";
    /// Base, callee-saved.
    Rbx = bx, "rbx";
    /// Fourth argument.
    Rcx = cx, "rcx";
    /// Third argument.
    Rdx = dx, "rdx";
    /// Second argument.
    Rsi = si, "rsi";
    /// First argument.
    Rdi = di, "rdi";
    /// Frame pointer, where there is one; callee-saved.
    Rbp = bp, "rbp";
    /// Stack pointer.
    Rsp = sp, "rsp";
    /// Fifth argument.
    R8 = r8, "r8";
    /// Sixth argument.
    R9 = r9, "r9";
    /// Static chain.
    R10 = r10, "r10";
    /// Scratch.
    R11 = r11, "r11";
    /// Callee-saved.
    R12 = r12, "r12";
    /// Callee-saved.
    R13 = r13, "r13";
    /// Callee-saved.
    R14 = r14, "r14";
    /// Callee-saved.
    R15 = r15, "r15";
    /// Program counter.
    Rip = ip, "rip";
    /// Flags, see [`Status`].
    Rflags = flags, "rflags";
    /// Code segment selector.
    Cs = cs, "cs";
    /// Selector that the kernel writes as 0 and ignores on return.
    Fs = fs, "fs";
    /// Selector that the kernel writes as 0 and ignores on return.
    Gs = gs, "gs";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Rip;
    /// The stack pointer.
    pub const SP: Self = Self::Rsp;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Rflags;

bitflags! {
    /// The flags of `rflags`.
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
        self.mcontext.ip = pc as u64;
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
        self.mcontext.bp as usize
    }

    /// The link register, on machines that have one.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "other architectures look into the context")]
    pub(crate) fn lr(&self) -> Option<usize> {
        None
    }

    /// Makes it look as if the interrupted function had called `target` and would come back at
    /// `resume`: Go's `pushCall`, word for word.
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

/// Looks whether the frame in `[lo, hi)` is one that can be copied.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    let fp = uc.mcontext.fpstate;
    // The legacy part of the image is 512 bytes.
    if fp != 0 && (fp < lo || fp > hi.saturating_sub(512)) {
        return Err(BadFrame::ExtendedState { at: fp });
    }
    Ok(())
}

/// Makes the pointers into the frame point into its copy, `delta` bytes away.
///
/// The XSAVE image is copied as it is, with its header and both magic words: if one of them were lost,
/// the kernel would restore the legacy part alone, without an error.
#[inline(always)]
pub(crate) fn relocate(copy: &mut Ucontext, delta: usize) {
    if copy.mcontext.fpstate != 0 {
        copy.mcontext.fpstate = copy.mcontext.fpstate.wrapping_add(delta);
    }
}

/// Makes a frame resume on the calling thread. The thread pointer (fs base) is in no frame here.
#[inline(always)]
pub(crate) fn patch_thread(_copy: &mut Ucontext, _end: usize) {}

/// Looks whether a frame can resume on the calling thread, which may not be its own.
///
/// With a shadow stack it cannot: the frame's token is on the first thread's. Nor can it in a process
/// that has asked for AMX: a thread that has used AMX has longer state, and from a frame of another
/// length the kernel restores the legacy part alone, without an error (`arch/x86/kernel/fpu/signal.c`:
/// `check_xstate_in_sigframe`).
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    /// `ARCH_SHSTK_STATUS` of `asm/prctl.h`.
    const SHADOW_STACK: usize = 0x5005;
    /// `ARCH_GET_XCOMP_PERM`.
    const PERMITTED: usize = 0x1022;
    /// `XFEATURE_XTILE_DATA`, the one component that threads get when they first use it.
    const TILES: u64 = 1 << 18;

    let ask = |question| {
        let mut features = 0u64;
        let args = [question, &raw mut features as usize, 0, 0, 0, 0];
        // SAFETY: the kernel writes one word there, or refuses a question that it does not know.
        unsafe { sys::syscall(libc::SYS_arch_prctl, args) }.map_or(0, |_| features)
    };
    if ask(SHADOW_STACK) & 1 != 0 {
        return Err(MoveError::ShadowStack);
    }
    if ask(PERMITTED) & TILES != 0 {
        return Err(MoveError::VectorState);
    }
    Ok(())
}

/// Length of the longest system call instruction.
pub(crate) const SYSCALL_LEN: usize = 2;

/// Length of the system call instructions in the mode that the code was interrupted in.
#[inline(always)]
pub(crate) fn syscall_len(_uc: &Ucontext) -> usize {
    SYSCALL_LEN
}

/// A system call instruction, for tests.
#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0x0f, 0x05];

/// Whether two bytes are `syscall`, `sysenter` or `int 0x80`.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    matches!(code, [0x0f, 0x05 | 0x34] | [0xcd, 0x80])
}

/// Whether the byte can begin a system call instruction; such an instruction goes on after it.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    matches!(byte, 0x0f | 0xcd)
}
