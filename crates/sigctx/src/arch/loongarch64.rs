//! `LoongArch`, 64 bits. What is explained in `x86_64.rs` is not explained here.
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
//! has used them. Whoever leaves a frame here has set [`Status::USED_FP`] in it
//! ([`floats_are_used`]): then the kernel goes on to save what there is. The interrupted code has no
//! floating-point registers to lose, and gets the default modes.
//!
//! There is no instruction that jumps without a register. Exact resume does not need one, but a
//! trampoline for `push_call` does: s7 is the one that it may destroy, as in Go.
//!
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/loongarch/kernel/signal.c`,
//! `arch/loongarch/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; the `LoongArch` ELF psABI.

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
pub(crate) const NAME: &str = "loongarch64";
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function: the ABI gives none.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// More than any frame of this architecture (with LASX and LBT less than 2 KiB).
pub(crate) const MAX_FRAME: usize = 64 * 1024;
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
    /// The start of `siginfo`, whose order is not the same everywhere.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) errno: c_int = "si_errno",
        pub(crate) code: c_int = "si_code",
    }
}

layout! {
    /// `struct sigaction` of the kernel, which knows no restorer here.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "sa_handler",
        flags: usize = "sa_flags",
        mask: SigSet = "sa_mask",
    }
}

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        Self { handler: action.handler, flags: action.flags.bits() as usize, mask: action.mask }
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags as u32);
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

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    RecordHeader::LAYOUT,
    FpuContext::LAYOUT,
    LsxContext::LAYOUT,
    LasxContext::LAYOUT,
    LbtContext::LAYOUT,
    Ucontext::LAYOUT,
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
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(size_of::<Ucontext>() == size_of::<libc::ucontext_t>());
    assert!(size_of::<SigContext>() == size_of::<libc::mcontext_t>());
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, pc) == offset_of!(libc::mcontext_t, __pc));
    assert!(offset_of!(SigContext, zero) == offset_of!(libc::mcontext_t, __gregs));
    assert!(offset_of!(SigContext, flags) == offset_of!(libc::mcontext_t, __flags));
};

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

/// What a function that keeps frame pointers leaves just *below* the address in its frame pointer:
/// here on behalf of the interrupted function, which called nobody.
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

/// `FPU_CTX_MAGIC`.
const FPU_MAGIC: u32 = 0x4650_5501;
/// `LSX_CTX_MAGIC`.
const LSX_MAGIC: u32 = 0x5358_0001;
/// `LASX_CTX_MAGIC`.
const LASX_MAGIC: u32 = 0x4153_5801;
/// `LBT_CTX_MAGIC`.
const LBT_MAGIC: u32 = 0x4254_0001;

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

// ---- entry, pivot, resume ----------------------------------------------------------------------

/// The pivot reads the copied frame's address from the start of the record. The unwind rules count
/// the registers from the program counter.
const _: () = {
    assert!(offset_of!(Call, frame) == 0);
    assert!(offset_of!(SigContext, zero) == offset_of!(SigContext, pc) + 8);
    assert!(offset_of!(SigContext, sp) == offset_of!(SigContext, zero) + 3 * 8);
    assert!(offset_of!(SigContext, s8) == offset_of!(SigContext, zero) + 31 * 8);
};

/// Says in the frame that the thread has floating-point registers, see the head of this file. sp = the
/// frame; costs t0 and t1. What the frame has no record of gets the default modes.
macro_rules! floats_are_used {
    () => {
        concat!(
            "ld.w $t0, $sp, {flags}\n",
            "andi $t1, $t0, {used}\n",
            "bnez $t1, 4f\n",
            "ori $t0, $t0, {used}\n",
            "st.w $t0, $sp, {flags}\n",
            "movgr2fcsr $fcsr0, $zero\n",
            "4:\n",
        )
    };
}

global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. a0 = signal, a1 = siginfo, a2 = ucontext, ra = the sigreturn
    // code, sp = the frame, 16-aligned.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "move $a3, $sp",            // fourth argument: where the frame begins
    "addi.d $sp, $sp, -16",
    ".cfi_adjust_cfa_offset 16",
    "st.d $ra, $sp, 8",         // `return_address` looks here
    ".cfi_offset 1, -8",
    "st.d $a2, $sp, 0",
    "pcaddu18i $ra, %call36({dispatch})",
    "jirl $ra, $ra, 0",
    "bnez $a0, 2f",
    "ld.d $a2, $sp, 0",
    "ld.d $ra, $sp, 8",
    "addi.d $sp, $sp, 16",
    ".cfi_adjust_cfa_offset -16",
    ".cfi_restore 1",
    "addi.d $t0, $sp, {ucontext}",
    "bne $a2, $t0, 1f",         // called by a handler that was put over this one: no frame here
    floats_are_used!(),
    "1:",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 16",
    ".cfi_offset 1, -8",
    "ld.d $s0, $a0, 0",         // the copied frame; callee-saved, so it outlives the call
    "ld.d $s1, $a0, {back}",    // as is the way back
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. a0 = the record of the call (16-aligned, just below the copied
    // frame), s0 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context, the program counter before register 0.
    // The return address has a column of its own (64, the one after the registers), because ra is
    // an interrupted register like any other.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 64",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg23 (s0) offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x87, (({pc} + 32) & 0x7f) | 0x80, ({pc} + 32) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg23 (s0) offset: is saved there.
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".cfi_escape 0x10, \\n, 3, 0x87, (({pc} + 8 + 8*\\n) & 0x7f) | 0x80, ({pc} + 8 + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 64, 3, 0x87, ({pc} & 0x7f) | 0x80, {pc} >> 7",
    // A name for debuggers and backtraces.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "move $sp, $a0",            // leaves the alternate stack for good
    "addi.d $fp, $a0, {record} + 16", // what frame-pointer walkers go on with: the record is below
    "movgr2fcsr $fcsr0, $zero", // the default, which Rust code counts on; the kernel left it alone
    "pcaddu18i $ra, %call36({run})",
    "jirl $ra, $ra, 0",         // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "st.w $zero, $a0, 0",       // the stack may be injected again, but not from in here
    "move $sp, $s0",
    "move $ra, $s1",
    floats_are_used!(),
    "ret",                      // to the sigreturn code, with sp at the copied frame
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. a0 = the copied frame, a1 = where the handler
    // returns to, a2 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "move $s0, $a0",
    "move $s1, $a1",
    "move $a0, $a2",
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
    pc = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc),
    ucontext = const UCONTEXT_OFFSET,
    flags = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.flags),
    used = const Status::USED_FP.bits(),
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
    // SAFETY: the entry has put it there.
    unsafe { ((entry_sp - size_of::<usize>()) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to:
/// `li.w a7, 139; syscall 0`.
pub(crate) const SIGRETURN_LEN: usize = 8;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering};
    use std::boxed::Box;

    use super::super::resume_address;
    use super::*;

    /// A stack with a frame at its top that has no record.
    #[repr(C, align(16))]
    struct FakeStack {
        below: [u8; 64 * 1024],
        info: [u8; UCONTEXT_OFFSET],
        uc: Ucontext,
        end: RecordHeader,
    }

    /// Jumps to `code` on the stack `sp`, with a place to return to in a1 and ra.
    ///
    /// # Safety
    ///
    /// `code` can run so, and keeps s2 to s8.
    unsafe fn jump(code: usize, sp: usize, a0: usize, a2: usize) {
        // SAFETY: the caller's obligation. The stack pointer comes back at the end.
        unsafe {
            asm!(
                "move $s2, $sp",
                "move $sp, $s3",
                "la.local $ra, 2f",
                "move $a1, $ra",
                "jr $s4",
                "2:",
                "move $sp, $s2",
                in("$a0") a0,
                in("$a2") a2,
                in("$s3") sp,
                in("$s4") code,
                out("$s0") _,
                out("$s1") _,
                out("$s2") _,
                clobber_abi("C"),
            );
        }
    }

    /// 0 is no signal: nothing is called.
    const NO_SIGNAL: usize = 0;

    #[test]
    fn a_frame_without_floats_says_that_the_thread_has_some() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
        let (frame, uc) = (&raw mut stack.info as usize, &raw mut stack.uc as usize);
        let flags = (&raw const stack.uc.mcontext.flags).cast::<u32>();
        // SAFETY: both are within the frame. Volatile: the code below writes there.
        let (get, set) = (
            || unsafe { flags.read_volatile() },
            |to| unsafe {
                flags.cast_mut().write_volatile(to);
            },
        );
        let (used, other) = (Status::USED_FP.bits() as u32, Status::ADDRERR_WR.bits() as u32);

        set(other);
        // SAFETY: as a function calls it, with room on the stack.
        unsafe { jump(entry(), frame - 4096, NO_SIGNAL, uc) };
        assert_eq!(get(), other, "called by another handler");
        // SAFETY: as the kernel calls it, with room on the stack.
        unsafe { jump(entry(), frame, NO_SIGNAL, uc) };
        assert_eq!(get(), other | used, "after a handler");

        set(other);
        let active = AtomicU32::new(1);
        // SAFETY: as for a call that never returned, with room on the stack.
        unsafe { jump(resume_address(), frame - 4096, frame, &raw const active as usize) };
        assert_eq!(get(), other | used, "after an injected call");
        assert_eq!(active.load(Ordering::Relaxed), 0);
    }

    /// As the kernel writes it for a thread that uses LSX.
    #[repr(C)]
    struct Frame {
        uc: Ucontext,
        header: RecordHeader,
        content: LsxContext,
        end: RecordHeader,
    }

    fn frame() -> Frame {
        // SAFETY: all are integers, for which zeroes are values.
        let mut frame: Frame = unsafe { core::mem::zeroed() };
        let size = offset_of!(Frame, end) - offset_of!(Frame, header);
        frame.header = RecordHeader { magic: LSX_MAGIC, size: size as u32, padding: 0 };
        frame
    }

    fn bounds(frame: &Frame) -> (usize, usize) {
        let at = &raw const *frame as usize;
        (at, at + size_of::<Frame>())
    }

    #[test]
    fn records_that_end_within_the_frame_are_taken() {
        let mut frame = frame();
        let (lo, hi) = bounds(&frame);
        assert_eq!(frame.header.size, 544);
        assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
        assert!(has_record(&frame.uc, LSX_MAGIC) && !has_record(&frame.uc, LASX_MAGIC));
        // No floating point; and a record that is not known.
        frame.header.magic = 0x1234_5678;
        assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
        assert!(!has_record(&frame.uc, LSX_MAGIC));
        frame.header = RecordHeader { magic: 0, size: 0, padding: 0 };
        assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
    }

    #[test]
    fn records_outside_of_the_frame_are_refused() {
        let mut frame = frame();
        let (lo, hi) = bounds(&frame);
        let refused = Err(BadFrame::ExtendedState { at: lo + size_of::<Ucontext>() });
        for size in [0, 8, 16, 528, 552, 576] {
            frame.header.size = size;
            assert_eq!(check_frame(&frame.uc, lo, hi), refused, "{size} bytes");
        }
        // As long as it may be, and no end after it.
        frame.header.size = 560;
        assert_eq!(check_frame(&frame.uc, lo, hi), Err(BadFrame::ExtendedState { at: hi }));
        assert_eq!(check_frame(&frame.uc, lo, lo + size_of::<Ucontext>()), refused);
    }

    #[test]
    fn flags_are_where_the_header_has_them() {
        let status = Status::from_bits_retain(0x8000_0001);
        assert_eq!(status, Status::USED_FP | Status::ADDRERR_WR);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        assert_eq!(bits, 0xc000_0001);
    }

    #[test]
    fn system_call_instructions_are_known() {
        for code in [0x002b_0000u32, 0x002b_0001, 0x002b_7fff] {
            let code = code.to_le_bytes();
            assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
        }
        // break 0, dbcl 0, nop
        for code in [0x002a_0000u32, 0x002a_8000, 0x0340_0000] {
            assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
        }
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! tp is the thread's: handlers count on it, and it may change with the thread. Which vectors
    //! there are is looked up at run time. The registers of the binary translation (LBT) are not
    //! patterned.

    use core::arch::{asm, global_asm};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::Reg;
    use crate::probe::Instruction;

    /// The general registers with their numbers: all but the stack pointer, which points at the
    /// table, and the thread pointer.
    const GENERAL: [(Reg, usize); 29] = [
        (Reg::Ra, 1),
        (Reg::A0, 4),
        (Reg::A1, 5),
        (Reg::A2, 6),
        (Reg::A3, 7),
        (Reg::A4, 8),
        (Reg::A5, 9),
        (Reg::A6, 10),
        (Reg::A7, 11),
        (Reg::T0, 12),
        (Reg::T1, 13),
        (Reg::T2, 14),
        (Reg::T3, 15),
        (Reg::T4, 16),
        (Reg::T5, 17),
        (Reg::T6, 18),
        (Reg::T7, 19),
        (Reg::T8, 20),
        (Reg::R21, 21),
        (Reg::Fp, 22),
        (Reg::S0, 23),
        (Reg::S1, 24),
        (Reg::S2, 25),
        (Reg::S3, 26),
        (Reg::S4, 27),
        (Reg::S5, 28),
        (Reg::S6, 29),
        (Reg::S7, 30),
        (Reg::S8, 31),
    ];
    /// The numbers of s8 and s7, which have the same value: see the loop.
    const TWINS: (usize, usize) = (31, 30);

    /// Every register that code can hold a value in, once.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        /// By number.
        general: [u64; 32],
        /// Bit n is fcc`n`.
        fcc: u64,
        fcsr: u64,
    }

    /// The low 64 bits are the floating-point register. 32-aligned for LASX.
    type Vectors = [[u64; 4]; 32];

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
    /// what the stack pointer points at while the loop runs. What the assembly finds by an offset
    /// comes first: offsets have 12 bits.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop goes when it comes to its end.
        next: AtomicUsize,
        host_sp: u64,
        host_ra: u64,
        /// r21, fp, s0 to s8.
        host_saved: [u64; 11],
        /// fs0 to fs7.
        host_floats: [u64; 8],
        host_fcsr: u64,
        level: u64,
        given_vectors: Vectors,
        found_vectors: Vectors,
    }

    /// The fields of fcsr that can be set without a trap: rounding mode, sticky flags, causes.
    const FCSR: u64 = 0x1f1f_0300;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in given.general.iter_mut().chain(self.given_vectors.as_flattened_mut()) {
                *value = next();
            }
            given.general[TWINS.1] = given.general[TWINS.0];
            given.fcc = next() & 0xff;
            given.fcsr = next() & FCSR;
            self.level = level() as u64;
        }

        /// Calls `report` for every word that differs: register, part, what was given and found.
        pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
            let (given, found) = (&self.given, &self.found);
            let mut check = |name, part, given: u64, found: u64| {
                if given != found {
                    report(name, part, given, found);
                }
            };
            for (reg, i) in GENERAL {
                // After a call by `push_call` it may have the address where that resumed.
                let resumed = reg == Reg::S7
                    && crate::probe::pushed_calls() > 0
                    && window().contains(&(found.general[i] as usize));
                if !resumed {
                    check(reg.name(), 0, given.general[i], found.general[i]);
                }
            }
            check("fcc", 0, given.fcc, found.fcc);
            check("fcsr", 0, given.fcsr, found.fcsr);
            let words = match level() {
                Level::Float => 1,
                Level::Lsx => 2,
                Level::Lasx => 4,
            };
            for i in 0..32 {
                check("f", i, self.given_vectors[i][0], self.found_vectors[i][0]);
                for word in 1..words {
                    let (given, found) = (self.given_vectors[i][word], self.found_vectors[i][word]);
                    check("vector", 4 * i + word, given, found);
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
        Float = 0,
        Lsx = 1,
        Lasx = 2,
    }

    fn level() -> Level {
        static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
        match KNOWN.load(Ordering::Relaxed) {
            0 => Level::Float,
            1 => Level::Lsx,
            2 => Level::Lasx,
            _ => {
                let level = detect();
                KNOWN.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    fn detect() -> Level {
        /// `HWCAP_LOONGARCH_LSX`.
        const LSX: u64 = 1 << 4;
        /// `HWCAP_LOONGARCH_LASX`.
        const LASX: u64 = 1 << 5;
        // SAFETY: reads the auxiliary vector.
        let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
        if capabilities & LASX != 0 {
            Level::Lasx
        } else if capabilities & LSX != 0 {
            Level::Lsx
        } else {
            Level::Float
        }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `addi.d $sp, $sp, -32`, decimal or, from GNU's, followed by the hexadecimal number.
        let reserved = line.split_once("$sp, $sp, -").and_then(|(_, number)| {
            let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            number[..end].parse().ok()
        });
        let relocations = ["R_LARCH_CALL36", "R_LARCH_B26", "R_LARCH_GOT", "R_LARCH_TLS"];
        Instruction {
            system_call: line.contains("\tsyscall"),
            outside: line.contains("\tbl ")
                || line.contains("\tbl\t")
                || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("$tp"),
            stack: reserved.unwrap_or_default(),
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Float => "general registers, fcc0-7, fcsr, f0-31",
            Level::Lsx => "general registers, fcc0-7, fcsr, vr0-31",
            Level::Lasx => "general registers, fcc0-7, fcsr, xr0-31",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and sp points at the table.
    //
    // A jump through memory needs a register. It is s7, which has the same value as s8: the loop
    // ends with a comparison of the two, and leaves if they differ. Then s7 is free for the jump,
    // outside of the window, and the first instruction of the loop (or of the exit) sets it again.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        "sigctx_probe_spin_0_1:",   // a0 = table
        "st.d $ra, $a0, {host_ra}",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "st.d $r\\n, $a0, {saved} + 8*(\\n - 21)",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "fst.d $fs\\n, $a0, {host_floats} + 8*\\n",
        ".endr",
        "movfcsr2gr $t0, $fcsr0",
        "st.d $t0, $a0, {host_fcsr}",
        "addi.d $t1, $a0, {given_vectors}",
        "ld.d $t0, $a0, {level}",
        "ori $t2, $zero, 1",
        "beq $t0, $t2, 21f",
        "bltu $t2, $t0, 22f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fld.d $f\\n, $t1, 32*\\n",
        ".endr",
        "b 23f",
        "21:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vld $vr\\n, $t1, 32*\\n",
        ".endr",
        "b 23f",
        "22:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xvld $xr\\n, $t1, 32*\\n",
        ".endr",
        "23:",
        "ld.d $t0, $a0, {given_fcc}",
        ".irp n,0,1,2,3,4,5,6,7",
        "bstrpick.d $t1, $t0, \\n, \\n",
        "movgr2cf $fcc\\n, $t1",
        ".endr",
        "ld.d $t0, $a0, {given_fcsr}",
        "movgr2fcsr $fcsr0, $t0",
        "st.d $sp, $a0, {host_sp}",
        "move $sp, $a0",
        ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld.d $r\\n, $sp, {given} + 8*\\n",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        "move $s7, $s8",
        ".rept 64",
        "nop",
        "addi.d $a0, $a0, 1",
        "addi.d $a0, $a0, -1",
        "xor $s2, $s2, $s3",
        "xor $s2, $s2, $s3",
        "fmov.d $fa0, $fa0",
        "b 25f",                    // an emulator delivers signals after jumps alone
        "25:",
        ".endr",
        "bne $s7, $s8, 24f",
        "b 26f",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "move $s7, $s8",
        "24:",
        ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "st.d $r\\n, $sp, {found} + 8*\\n",
        ".endr",
        "move $a0, $sp",
        "ld.d $sp, $a0, {host_sp}",
        "movfcsr2gr $t0, $fcsr0",
        "st.d $t0, $a0, {found_fcsr}",
        "move $t0, $zero",
        ".irp n,0,1,2,3,4,5,6,7",
        "movcf2gr $t1, $fcc\\n",
        "slli.d $t1, $t1, \\n",
        "or $t0, $t0, $t1",
        ".endr",
        "st.d $t0, $a0, {found_fcc}",
        "addi.d $t1, $a0, {found_vectors}",
        "ld.d $t0, $a0, {level}",
        "ori $t2, $zero, 1",
        "beq $t0, $t2, 27f",
        "bltu $t2, $t0, 28f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fst.d $f\\n, $t1, 32*\\n",
        ".endr",
        "b 29f",
        "27:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vst $vr\\n, $t1, 32*\\n",
        ".endr",
        "b 29f",
        "28:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xvst $xr\\n, $t1, 32*\\n",
        ".endr",
        "29:",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "ld.d $r\\n, $a0, {saved} + 8*(\\n - 21)",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "fld.d $fs\\n, $a0, {host_floats} + 8*\\n",
        ".endr",
        "ld.d $t0, $a0, {host_fcsr}",
        "movgr2fcsr $fcsr0, $t0",
        "ld.d $ra, $a0, {host_ra}",
        "ret",
        "26:",
        "ld.d $s7, $sp, {next}",
        "jr $s7",
        // Writes something else into everything. a0 = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        "sigctx_probe_clobber_0_1:",
        "addi.d $sp, $sp, -176",
        "st.d $ra, $sp, 0",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "st.d $r\\n, $sp, 8 + 8*(\\n - 21)",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "fst.d $fs\\n, $sp, 96 + 8*\\n",
        ".endr",
        "movfcsr2gr $t0, $fcsr0",
        "st.d $t0, $sp, 160",
        "lu12i.w $t0, 0x1f1f0",     // all flags and causes, rounding down
        "ori $t0, $t0, 0x300",
        "movgr2fcsr $fcsr0, $t0",
        "addi.w $t0, $zero, -86",   // in every byte the same, but for the sign
        "ori $t1, $zero, 1",
        "beq $a0, $t1, 31f",
        "bltu $t1, $a0, 32f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "movgr2fr.d $f\\n, $t0",
        ".endr",
        "b 33f",
        "31:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vreplgr2vr.d $vr\\n, $t0",
        ".endr",
        "b 33f",
        "32:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xvreplgr2vr.d $xr\\n, $t0",
        ".endr",
        "33:",
        // What was set is not any more, and the other way round.
        ".irp n,0,1,2,3,4,5,6,7",
        "movcf2gr $t1, $fcc\\n",
        "xori $t1, $t1, 1",
        "movgr2cf $fcc\\n, $t1",
        ".endr",
        ".irp n,1,4,5,6,7,8,9,10,11,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "move $r\\n, $t0",
        ".endr",
        // Back to what the ABI promises the caller: of fcsr all but flags and causes.
        "ld.d $t0, $sp, 160",
        "lu12i.w $t1, 0x1f1f0",
        "or $t0, $t0, $t1",
        "movgr2fcsr $fcsr0, $t0",
        "ld.d $ra, $sp, 0",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "ld.d $r\\n, $sp, 8 + 8*(\\n - 21)",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "fld.d $fs\\n, $sp, 96 + 8*\\n",
        ".endr",
        "addi.d $sp, $sp, 176",
        "ret",
        ".popsection",
        given = const offset_of!(Table, given.general),
        given_fcc = const offset_of!(Table, given.fcc),
        given_fcsr = const offset_of!(Table, given.fcsr),
        given_vectors = const offset_of!(Table, given_vectors),
        found = const offset_of!(Table, found.general),
        found_fcc = const offset_of!(Table, found.fcc),
        found_fcsr = const offset_of!(Table, found.fcsr),
        found_vectors = const offset_of!(Table, found_vectors),
        next = const offset_of!(Table, next),
        host_sp = const offset_of!(Table, host_sp),
        host_ra = const offset_of!(Table, host_ra),
        saved = const offset_of!(Table, host_saved),
        host_floats = const offset_of!(Table, host_floats),
        host_fcsr = const offset_of!(Table, host_fcsr),
        level = const offset_of!(Table, level),
    );

    /// What has a 12-bit offset is within 2 KiB.
    const _: () = assert!(offset_of!(Table, found_vectors) < 2048);

    // Values that name their registers by number, in decimal digits; then an undefined instruction,
    // whose handler steps over it. Not one register is left to find the way back with, the stack
    // pointer included: it is in a static. tp is as it is.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 8",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        "sigctx_probe_known_0_1:",
        "addi.d $sp, $sp, -96",
        "st.d $ra, $sp, 0",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "st.d $r\\n, $sp, 8 + 8*(\\n - 21)",
        ".endr",
        "la.pcrel $t0, sigctx_probe_saved_0_1",
        "st.d $sp, $t0, 0",
        ".irp n,1,3,4,5,6,7,8,9",
        "li.d $r\\n, 0x0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n",
        ".endr",
        ".irp n,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li.d $r\\n, 0x\\n\\n\\n\\n\\n\\n\\n\\n",
        ".endr",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        ".word {undefined}",
        "la.pcrel $t0, sigctx_probe_saved_0_1",
        "ld.d $sp, $t0, 0",
        "ld.d $ra, $sp, 0",
        ".irp n,21,22,23,24,25,26,27,28,29,30,31",
        "ld.d $r\\n, $sp, 8 + 8*(\\n - 21)",
        ".endr",
        "addi.d $sp, $sp, 96",
        "ret",
        // What `push_call` is meant for: a trampoline that keeps everything itself, s7 excepted.
        // ra is where to resume, its own value is in the slot. The vectors are saved whole, because
        // a write of a register's lower part leaves the rest undefined.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        "sigctx_probe_trampoline_0_1:",
        "addi.d $sp, $sp, -1304",   // 16-aligned with the slot
        ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,31",
        "st.d $r\\n, $sp, 8*\\n",
        ".endr",
        "movfcsr2gr $t0, $fcsr0",
        "st.d $t0, $sp, 256",
        "move $t0, $zero",
        ".irp n,0,1,2,3,4,5,6,7",
        "movcf2gr $t1, $fcc\\n",
        "slli.d $t1, $t1, \\n",
        "or $t0, $t0, $t1",
        ".endr",
        "st.d $t0, $sp, 264",
        "move $fp, $sp",
        "bstrins.d $sp, $zero, 3, 0", // if the interrupted code was just about to align it
        "la.pcrel $t0, {level}",
        "ld.wu $s0, $t0, 0",
        "addi.d $s1, $fp, 272",
        "ori $s2, $zero, 1",
        "beq $s0, $s2, 41f",
        "bltu $s2, $s0, 42f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fst.d $f\\n, $s1, 32*\\n",
        ".endr",
        "b 43f",
        "41:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vst $vr\\n, $s1, 32*\\n",
        ".endr",
        "b 43f",
        "42:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xvst $xr\\n, $s1, 32*\\n",
        ".endr",
        "43:",
        "movgr2fcsr $fcsr0, $zero",
        "pcaddu18i $ra, %call36({hook})",
        "jirl $ra, $ra, 0",
        "beq $s0, $s2, 44f",
        "bltu $s2, $s0, 45f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fld.d $f\\n, $s1, 32*\\n",
        ".endr",
        "b 46f",
        "44:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vld $vr\\n, $s1, 32*\\n",
        ".endr",
        "b 46f",
        "45:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xvld $xr\\n, $s1, 32*\\n",
        ".endr",
        "46:",
        "move $sp, $fp",
        "ld.d $t0, $sp, 264",
        ".irp n,0,1,2,3,4,5,6,7",
        "bstrpick.d $t1, $t0, \\n, \\n",
        "movgr2cf $fcc\\n, $t1",
        ".endr",
        "ld.d $t0, $sp, 256",
        "movgr2fcsr $fcsr0, $t0",
        "ld.d $s7, $sp, 8",         // where to resume
        ".irp n,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,31",
        "ld.d $r\\n, $sp, 8*\\n",
        ".endr",
        "ld.d $ra, $sp, 1304",      // the slot
        "addi.d $sp, $sp, 1312",
        "jr $s7",
        ".popsection",
        undefined = const UNDEFINED,
        level = sym TRAMPOLINE_LEVEL,
        hook = sym crate::probe::pushed,
    );

    /// An instruction that no version of the architecture has.
    const UNDEFINED: u32 = 0xffff_ffff;

    /// The vectors that the trampoline saves.
    static TRAMPOLINE_LEVEL: AtomicU32 = AtomicU32::new(0);

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
        fn known_code();
        #[link_name = "sigctx_probe_trampoline_0_1"]
        fn trampoline_code();
    }

    /// Runs the loop.
    ///
    /// # Safety
    ///
    /// The table is filled, below it there is room for signal frames, and its `next` leads to `exit`
    /// in the end.
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
        unsafe { asm!(".word {}", const UNDEFINED) };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = false;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::Tp, "the thread's")];

    /// DWARF's numbers of registers (the LoongArch psABI): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
        1,
        &[
            Reg::Ra,
            Reg::Tp,
            Reg::Sp,
            Reg::A0,
            Reg::A1,
            Reg::A2,
            Reg::A3,
            Reg::A4,
            Reg::A5,
            Reg::A6,
            Reg::A7,
            Reg::T0,
            Reg::T1,
            Reg::T2,
            Reg::T3,
            Reg::T4,
            Reg::T5,
            Reg::T6,
            Reg::T7,
            Reg::T8,
            Reg::R21,
            Reg::Fp,
            Reg::S0,
            Reg::S1,
            Reg::S2,
            Reg::S3,
            Reg::S4,
            Reg::S5,
            Reg::S6,
            Reg::S7,
            Reg::S8,
        ],
    )];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([-16, -8]);

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`.
    pub(crate) fn pushed_trampoline() -> usize {
        TRAMPOLINE_LEVEL.store(level() as u32, Ordering::Relaxed);
        trampoline_code as *const () as usize
    }

    /// The frame pointer, as the function that this is inlined into has it.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let fp: usize;
        // SAFETY: reads a register.
        unsafe { asm!("move {}, $fp", out(reg) fp, options(nomem, nostack)) };
        fp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction.
    /// Says whether it can: only a debugger can do that here.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
