//! `LoongArch`, 64 bits. What is explained in `x86_64` is not explained here.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack
//!        | end of the records: 0, 0     |
//!        | record of the floating-point |   FPU, LSX or LASX: the widest that the thread uses
//!        | or vector registers, LBT     |   (16-aligned; the registers of LASX 32-aligned)
//!        | ucontext       448 bytes     |<- a2 (16-aligned); nothing points into the frame
//!  low   | siginfo        128 bytes     |<- a1 = sp; ra = the sigreturn code, in the vDSO
//! ```
//!
//! **A frame without a record of the floating-point registers makes the kernel lose vectors** (Linux
//! 7.2.12, `restore_sigcontext` in `arch/loongarch/kernel/signal.c`): it takes the thread for one that
//! has never used these registers, but not for one without live vectors. After that no frame of the
//! thread has a record, and each sigreturn puts back vectors of long ago. It happens when handler or
//! callback are the first to use vectors on the thread, and when the frame resumes on a thread that
//! has used them. The code that leaves a frame here has set [`Status::USED_FP`] in it
//! ([`floats_are_used`]): then the kernel goes on to save what there is. The interrupted code has no
//! floating-point registers to lose, and gets the default modes.
//!
//! There is no instruction that jumps without a register. Exact resume does not need one, but a
//! trampoline for `push_call` does: s7 is the one that it may destroy, as in Go.
//!
//! References: the kernel's `arch/loongarch/kernel/signal.c`,
//! `arch/loongarch/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; the `LoongArch` ELF psABI.

use core::arch::asm;
use core::ffi::c_long;
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
use crate::inject::{BadFrame, MoveError};
use crate::sys::SigSet;

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

/// Bytes below the stack pointer that belong to the interrupted function: the ABI gives none.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// More than any frame of this architecture (with LASX and LBT less than 2 KiB).
pub(crate) const MAX_FRAME: usize = 64 * 1024;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys t0 to t8, and nothing else.
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
            "syscall 0",
            in("$a7") nr,
            inlateout("$a0") args[0] => result,
            in("$a1") args[1],
            in("$a2") args[2],
            in("$a3") args[3],
            in("$a4") args[4],
            in("$a5") args[5],
            lateout("$t0") _,
            lateout("$t1") _,
            lateout("$t2") _,
            lateout("$t3") _,
            lateout("$t4") _,
            lateout("$t5") _,
            lateout("$t6") _,
            lateout("$t7") _,
            lateout("$t8") _,
            options(nostack, preserves_flags),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

layout! {
    /// `struct sigcontext`, which ends where the records begin.
    #[derive(Debug)]
    #[repr(align(16))]
    pub(crate) struct SigContext = "struct sigcontext" {
        pc: u64 = "sc_pc",
        zero: u64 = "sc_regs[0]",
        ra: u64 = "sc_regs[1]",
        tp: u64 = "sc_regs[2]",
        sp: u64 = "sc_regs[3]",
        a0: u64 = "sc_regs[4]",
        a1: u64 = "sc_regs[5]",
        a2: u64 = "sc_regs[6]",
        a3: u64 = "sc_regs[7]",
        a4: u64 = "sc_regs[8]",
        a5: u64 = "sc_regs[9]",
        a6: u64 = "sc_regs[10]",
        a7: u64 = "sc_regs[11]",
        t0: u64 = "sc_regs[12]",
        t1: u64 = "sc_regs[13]",
        t2: u64 = "sc_regs[14]",
        t3: u64 = "sc_regs[15]",
        t4: u64 = "sc_regs[16]",
        t5: u64 = "sc_regs[17]",
        t6: u64 = "sc_regs[18]",
        t7: u64 = "sc_regs[19]",
        t8: u64 = "sc_regs[20]",
        r21: u64 = "sc_regs[21]",
        fp: u64 = "sc_regs[22]",
        s0: u64 = "sc_regs[23]",
        s1: u64 = "sc_regs[24]",
        s2: u64 = "sc_regs[25]",
        s3: u64 = "sc_regs[26]",
        s4: u64 = "sc_regs[27]",
        s5: u64 = "sc_regs[28]",
        s6: u64 = "sc_regs[29]",
        s7: u64 = "sc_regs[30]",
        s8: u64 = "sc_regs[31]",
        flags: u32 = "sc_flags",
    }
}

layout! {
    /// `struct sctx_info`, the header of a record. The size includes it; the last has zeroes.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct RecordHeader = "struct sctx_info" {
        magic: u32 = "magic",
        size: u32 = "size",
        padding: u64 = "padding",
    }
}

layout! {
    /// `struct fpu_context`: what the record of the floating-point registers has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct FpuContext = "struct fpu_context" {
        regs: [u64; 32] = "regs",
        fcc: u64 = "fcc",
        fcsr: u32 = "fcsr",
    }
}

layout! {
    /// `struct lsx_context`: what the record of the 128-bit vectors has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LsxContext = "struct lsx_context" {
        regs: [u64; 64] = "regs",
        fcc: u64 = "fcc",
        fcsr: u32 = "fcsr",
    }
}

layout! {
    /// `struct lasx_context`: what the record of the 256-bit vectors has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LasxContext = "struct lasx_context" {
        regs: [u64; 128] = "regs",
        fcc: u64 = "fcc",
        fcsr: u32 = "fcsr",
    }
}

layout! {
    /// `struct lbt_context`: what the record of the binary translation's registers has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LbtContext = "struct lbt_context" {
        regs: [u64; 4] = "regs",
        eflags: u32 = "eflags",
        ftop: u32 = "ftop",
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
        unused: [u8; 120] = "__unused",
        padding: u64 = "",
        mcontext: SigContext = "uc_mcontext",
    }
}

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// Return address, the link register.
    Ra = ra, "ra";
    /// Thread pointer.
    Tp = tp, "tp";
    /// Stack pointer.
    Sp = sp, "sp";
    /// First argument and result.
    A0 = a0, "a0";
    /// Second argument and result.
    A1 = a1, "a1";
    /// Third argument.
    A2 = a2, "a2";
    /// Fourth argument.
    A3 = a3, "a3";
    /// Fifth argument.
    A4 = a4, "a4";
    /// Sixth argument.
    A5 = a5, "a5";
    /// Seventh argument.
    A6 = a6, "a6";
    /// Eighth argument; the number of a system call.
    A7 = a7, "a7";
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
    /// Scratch.
    T8 = t8, "t8";
    /// Reserved by the ABI.
    R21 = r21, "r21";
    /// Frame pointer, where there is one; callee-saved.
    Fp = fp, "fp";
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
    /// Callee-saved; what a trampoline of [`push_call`](crate::SigCtx::push_call) may destroy.
    S7 = s7, "s7";
    /// Callee-saved.
    S8 = s8, "s8";
    /// Program counter.
    Pc = pc, "pc";
    /// What the kernel says of the context, see [`Status`].
    Flags = flags, "flags";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Flags;

bitflags! {
    /// `sc_flags`, the word of the context that says what is in it.
    ///
    /// `LoongArch` has no status flags for integers, and the floating-point ones (`fcsr`, `fcc`)
    /// are in a record that not every frame has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// The thread has floating-point or vector registers, and the frame a record of them.
        const USED_FP = 1 << 0;
        /// The access that failed was a load.
        const ADDRERR_RD = 1 << 30;
        /// The access that failed was a store.
        const ADDRERR_WR = 1 << 31;
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

    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.mcontext.pc = pc as u64;
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
        self.mcontext.fp as usize
    }

    /// The link register, on machines that have one.
    #[inline(always)]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.ra as usize)
    }

    /// Makes it look as if the interrupted function had called `target` and would come back at
    /// `resume`: Go's `pushCall`. The slot gets the link register, which `target` must restore.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything, s7
    /// excepted, without which it cannot jump to `resume`.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<usize>());
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut u64).write_volatile(self.mcontext.ra) };
        self.set_sp(sp);
        self.mcontext.ra = resume as u64;
        self.set_pc(target);
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

frame_record! {
    /// What a function that keeps frame pointers leaves just *below* the address in its frame pointer:
    /// here on behalf of the interrupted function, which made no call.
    pub(crate) struct FrameRecord
}

/// `FPU_CTX_MAGIC`.
const FPU_MAGIC: u32 = 0x4650_5501;
/// `LSX_CTX_MAGIC`.
const LSX_MAGIC: u32 = 0x5358_0001;
/// `LASX_CTX_MAGIC`.
const LASX_MAGIC: u32 = 0x4153_5801;
/// `LBT_CTX_MAGIC`.
const LBT_MAGIC: u32 = 0x4254_0001;

/// Whether a function that keeps a frame pointer keeps its return address beside it.
pub(crate) const FRAME_POINTERS: bool = true;

/// The frame pointer, and the return address, that a function with the frame pointer `fp` keeps for its caller. `read`
/// reads a word of the stack. They are below the frame pointer.
#[inline(always)]
pub(crate) fn caller_of(
    fp: usize,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    let record = fp.wrapping_sub(size_of::<FrameRecord>());
    Some((read(record)?, read(record.wrapping_add(size_of::<usize>()))?))
}

/// Looks whether the frame in `[lo, hi)` is one that can be copied: whether its records, which
/// follow the context, end within it.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, _lo: usize, hi: usize) -> Result<(), BadFrame> {
    let mut at = &raw const *uc as usize + size_of::<Ucontext>();
    loop {
        let room = hi.saturating_sub(at);
        if room < size_of::<RecordHeader>() {
            return Err(BadFrame::ExtendedState { at });
        }
        // SAFETY: within the frame, where there is a header; the size of every record is a multiple
        // of 16, see below.
        let header = unsafe { (at as *const RecordHeader).read() };
        let content = match header.magic {
            0 => return Ok(()),
            FPU_MAGIC => size_of::<FpuContext>(),
            LSX_MAGIC => size_of::<LsxContext>(),
            LASX_MAGIC => size_of::<LasxContext>(),
            LBT_MAGIC => size_of::<LbtContext>(),
            _ => 0,
        };
        let size = header.size as usize;
        // The kernel keeps the contents 16-aligned, and C does not count the padding at the end.
        let least = (size_of::<RecordHeader>() + content).next_multiple_of(16);
        if size < least || size > room || !size.is_multiple_of(16) {
            return Err(BadFrame::ExtendedState { at });
        }
        at += size;
    }
}

/// Makes the pointers into the frame point into its copy: there are none.
#[inline(always)]
pub(crate) fn relocate(_copy: &mut Ucontext, _delta: usize) {}

/// Makes a frame resume on the calling thread.
///
/// The thread pointer is an ordinary register. And a thread that has never used the vectors gets new
/// ones at its first use, in the place of what the sigreturn restored (`arch/loongarch/kernel/traps.c`:
/// `init_restore_lsx`, `init_restore_lasx`): so that first use is made here.
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, _end: usize) {
    let tp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("move {}, $tp", out(reg) tp, options(nomem, nostack, preserves_flags)) };
    copy.mcontext.tp = tp;
    if has_record(copy, LASX_MAGIC) {
        // SAFETY: the CPU has these vectors, since there is a record of them; changes none.
        unsafe { asm!("xvor.v $xr0, $xr0, $xr0", options(nomem, nostack)) };
    } else if has_record(copy, LSX_MAGIC) {
        // SAFETY: as above.
        unsafe { asm!("vor.v $vr0, $vr0, $vr0", options(nomem, nostack)) };
    }
}

/// Whether a copied frame has this record.
fn has_record(copy: &Ucontext, magic: u32) -> bool {
    let mut at = &raw const *copy as usize + size_of::<Ucontext>();
    loop {
        // SAFETY: `check_frame` has seen that the records lead from one to the next up to the last.
        let header = unsafe { (at as *const RecordHeader).read() };
        if header.magic == 0 || header.magic == magic {
            return header.magic == magic;
        }
        at += header.size as usize;
    }
}

/// Looks whether a frame can resume on the calling thread, which may not be its own. Here every
/// frame can: there are no shadow stacks, vectors have one length, and every thread may use them.
#[expect(clippy::unnecessary_wraps, reason = "other architectures refuse")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
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
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = 0x002b_0000u32.to_le_bytes();

/// Whether four bytes are `syscall` with whatever code: the kernel does not look at that.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    u32::from_le_bytes(code) >> 15 == 0x002b_0000 >> 15
}

/// Whether the byte can begin a system call instruction: every byte can, and every instruction is
/// four bytes long.
#[inline(always)]
pub(crate) fn begins_syscall(_byte: u8) -> bool {
    true
}
