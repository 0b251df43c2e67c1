//! RISC-V, 64 bits. What is explained in `x86_64.rs` is not explained here.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack
//!        | end of the records: 0, 0     |
//!        | vector registers             |<- `datap` of the record, the one pointer into the frame
//!        | record of the vectors        |   only where the thread has live vectors
//!        | ucontext       960 bytes     |<- a2 (16-aligned); ends with the header of the records
//!  low   | siginfo        128 bytes     |<- a1 = sp; ra = the sigreturn code, in the vDSO
//! ```
//!
//! qemu's frame (10.0) ends with `fcsr`, so [`Ucontext`] does, too: what follows is looked at only
//! where the frame is long enough. It does not carry vectors at all: there any handler that uses
//! them, an ordinary one included, destroys the interrupted code's.
//!
//! **The sigreturn loses floating-point registers** (Linux 7.2.12, `restore_fp_state` in
//! `arch/riscv/kernel/signal.c`): the kernel copies f0 to f31 and `fcsr` from the frame into the
//! thread's saved state, and loads them from there. Preempted in between, or where the copy waits
//! for a page, it saves the registers as they are over the state, so that the interrupted code
//! gets the handler's. Whoever leaves a frame here has loaded them from it before
//! ([`float_registers_of_the_frame`]): then both are the same. The vectors are not concerned: the
//! kernel marks them as saved before it copies.
//!
//! There is no instruction that jumps without a register. Exact resume does not need one, but a
//! trampoline for `push_call` does: t6 is the one that it may destroy, as in Go.
//!
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/riscv/kernel/signal.c`, `arch/riscv/include/uapi/asm/ptrace.h`,
//! `asm/sigcontext.h`, `asm/ucontext.h`; the RISC-V psABI: calling convention, DWARF registers.

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
pub(crate) const NAME: &str = "riscv64";
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function: the ABI gives none.
pub(crate) const RED_ZONE: usize = 0;
/// From the stack pointer at the handler's entry to the `ucontext`: the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 128;
/// More than any frame of this architecture: 32 vectors of 8 KiB, the most that the kernel takes,
/// and the rest.
pub(crate) const MAX_FRAME: usize = 320 * 1024;
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

/// The system call instruction. The kernel keeps all registers but the vectors.
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
            "ecall",
            in("a7") nr,
            inlateout("a0") args[0] => result,
            in("a1") args[1],
            in("a2") args[2],
            in("a3") args[3],
            in("a4") args[4],
            in("a5") args[5],
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _,
            out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _,
            out("v28") _, out("v29") _, out("v30") _, out("v31") _,
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
    /// `struct sigcontext`, as far as every frame has it.
    #[derive(Debug)]
    #[repr(align(16))]
    pub(crate) struct SigContext = "struct sigcontext" {
        pc: u64 = "sc_regs.pc",
        ra: u64 = "sc_regs.ra",
        sp: u64 = "sc_regs.sp",
        gp: u64 = "sc_regs.gp",
        tp: u64 = "sc_regs.tp",
        t0: u64 = "sc_regs.t0",
        t1: u64 = "sc_regs.t1",
        t2: u64 = "sc_regs.t2",
        s0: u64 = "sc_regs.s0",
        s1: u64 = "sc_regs.s1",
        a0: u64 = "sc_regs.a0",
        a1: u64 = "sc_regs.a1",
        a2: u64 = "sc_regs.a2",
        a3: u64 = "sc_regs.a3",
        a4: u64 = "sc_regs.a4",
        a5: u64 = "sc_regs.a5",
        a6: u64 = "sc_regs.a6",
        a7: u64 = "sc_regs.a7",
        s2: u64 = "sc_regs.s2",
        s3: u64 = "sc_regs.s3",
        s4: u64 = "sc_regs.s4",
        s5: u64 = "sc_regs.s5",
        s6: u64 = "sc_regs.s6",
        s7: u64 = "sc_regs.s7",
        s8: u64 = "sc_regs.s8",
        s9: u64 = "sc_regs.s9",
        s10: u64 = "sc_regs.s10",
        s11: u64 = "sc_regs.s11",
        t3: u64 = "sc_regs.t3",
        t4: u64 = "sc_regs.t4",
        t5: u64 = "sc_regs.t5",
        t6: u64 = "sc_regs.t6",
        f: [u64; 32] = "sc_fpregs.d.f",
        fcsr: u32 = "sc_fpregs.d.fcsr",
    }
}

layout! {
    /// `struct sigcontext` to its end, where the kernel's frame has the header of the first record:
    /// `struct __riscv_extra_ext_header`, which in headers before Linux 6.5 is reserved.
    #[derive(Clone, Copy, Debug)]
    #[repr(align(16))]
    pub(crate) struct LongSigContext = "struct sigcontext" {
        registers: [u8; 516] = "",
        wide_floats: [u8; 256] = "",
        reserved: u32 = "sc_fpregs.q.reserved[0]",
        magic: u32 = "sc_fpregs.q.reserved[1]",
        size: u32 = "sc_fpregs.q.reserved[2]",
    }
}

layout! {
    /// `struct __riscv_ctx_hdr`: of a record. The size includes the header; the last has zeroes.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct RecordHeader = "struct __riscv_ctx_hdr" {
        magic: u32 = "",
        size: u32 = "",
    }
}

layout! {
    /// `struct __riscv_v_ext_state`: what the record of the vectors has.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct VectorState = "struct __riscv_v_ext_state" {
        vstart: u64 = "",
        vl: u64 = "",
        vtype: u64 = "",
        vcsr: u64 = "",
        /// Bytes of one register.
        vlenb: u64 = "",
        /// Where the 32 registers are, in the same frame.
        datap: usize = "",
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
        mcontext: SigContext = "@uc_mcontext",
    }
}

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    LongSigContext::LAYOUT,
    RecordHeader::LAYOUT,
    VectorState::LAYOUT,
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
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, __uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(size_of::<Ucontext>() <= size_of::<libc::ucontext_t>());
    assert!(size_of::<LongSigContext>() == size_of::<libc::mcontext_t>());
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, pc) == offset_of!(libc::mcontext_t, __gregs));
    assert!(offset_of!(SigContext, f) == offset_of!(libc::mcontext_t, __fpregs));
    // Number n is the n-th word, the program counter in the place of the zero register. The unwind
    // rules below say so, too.
    assert!(offset_of!(SigContext, ra) == 8);
    assert!(offset_of!(SigContext, sp) == 2 * 8);
    assert!(offset_of!(SigContext, tp) == 4 * 8);
    assert!(offset_of!(SigContext, t0) == 5 * 8);
    assert!(offset_of!(SigContext, s0) == 8 * 8);
    assert!(offset_of!(SigContext, a0) == 10 * 8);
    assert!(offset_of!(SigContext, s2) == 18 * 8);
    assert!(offset_of!(SigContext, t3) == 28 * 8);
    assert!(offset_of!(SigContext, t6) == 31 * 8);
};

// ---- registers ---------------------------------------------------------------------------------

registers! {
    /// A register of the interrupted context.
    pub enum Reg;

    /// Return address, the link register.
    Ra = ra, "ra";
    /// Stack pointer.
    Sp = sp, "sp";
    /// Global pointer, the program's: no function changes it.
    Gp = gp, "gp";
    /// Thread pointer.
    Tp = tp, "tp";
    /// Scratch, alternate link register.
    T0 = t0, "t0";
    /// Scratch.
    T1 = t1, "t1";
    /// Scratch.
    T2 = t2, "t2";
    /// Frame pointer, where there is one; callee-saved.
    S0 = s0, "s0";
    /// Callee-saved.
    S1 = s1, "s1";
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
    /// Callee-saved.
    S8 = s8, "s8";
    /// Callee-saved.
    S9 = s9, "s9";
    /// Callee-saved.
    S10 = s10, "s10";
    /// Callee-saved.
    S11 = s11, "s11";
    /// Scratch.
    T3 = t3, "t3";
    /// Scratch.
    T4 = t4, "t4";
    /// Scratch.
    T5 = t5, "t5";
    /// Scratch; what a trampoline of [`push_call`](crate::SigCtx::push_call) may destroy.
    T6 = t6, "t6";
    /// Program counter.
    Pc = pc, "pc";
    /// Floating-point control and status, see [`Status`].
    Fcsr = fcsr, "fcsr";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Fcsr;

bitflags! {
    /// The fields of `fcsr`. RISC-V has no status flags for integers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Inexact.
        const NX = 1 << 0;
        /// Underflow.
        const UF = 1 << 1;
        /// Overflow.
        const OF = 1 << 2;
        /// Division by zero.
        const DZ = 1 << 3;
        /// Invalid operation.
        const NV = 1 << 4;
        /// Rounding mode, three bits; all are clear in the mode to nearest with ties to even.
        const FRM = 7 << 5;
        /// The rounding mode is up: of the names below one is printed, the first that fits.
        const RUP = 3 << 5;
        /// The rounding mode is towards zero.
        const RTZ = 1 << 5;
        /// The rounding mode is down.
        const RDN = 2 << 5;
        /// The rounding mode is to nearest with ties away from zero.
        const RMM = 4 << 5;
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
        self.mcontext.s0 as usize
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
    /// The word below the stack pointer may be overwritten, and `target` preserves everything, t6
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

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The floating-point registers f0 to f31, as they are in the register file: a shorter value
    /// has ones in the upper bits.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn float_registers(&self) -> [u64; 32] {
        self.ucontext().mcontext.f
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

/// `RISCV_V_MAGIC`: the record of the vectors.
const VECTOR_MAGIC: u32 = 0x5346_5457;
/// From the `ucontext` to the first record's header.
const RECORDS: usize = offset_of!(Ucontext, mcontext) + offset_of!(LongSigContext, magic);

/// Finds the word that points to the vector registers of the frame that ends at `hi`.
#[inline(always)]
fn vector_pointer(uc: &Ucontext, hi: usize) -> Result<Option<*mut usize>, BadFrame> {
    let context = &raw const *uc as usize;
    let mut at = context + RECORDS;
    // The kernel's `ucontext` goes on to here; an emulator's may be shorter.
    if hi < at + size_of::<RecordHeader>() {
        return Ok(None);
    }
    loop {
        let room = hi.wrapping_sub(at);
        if hi < at || room < size_of::<RecordHeader>() {
            return Err(BadFrame::ExtendedState { at });
        }
        // SAFETY: within the frame, where there is a header; the size of every record is a multiple
        // of 8, see below.
        let header = unsafe { (at as *const RecordHeader).read() };
        let size = header.size as usize;
        if header.magic == 0 {
            return Ok(None);
        }
        if size < size_of::<RecordHeader>() || size > room || !size.is_multiple_of(8) {
            return Err(BadFrame::ExtendedState { at });
        }
        if header.magic == VECTOR_MAGIC {
            if size < size_of::<RecordHeader>() + size_of::<VectorState>() {
                return Err(BadFrame::ExtendedState { at });
            }
            let pointer = at + size_of::<RecordHeader>() + offset_of!(VectorState, datap);
            return Ok(Some(pointer as *mut usize));
        }
        at += size;
    }
}

/// Looks whether the frame in `[lo, hi)` is one that can be copied.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    if let Some(pointer) = vector_pointer(uc, hi)? {
        // SAFETY: a word of the frame.
        let at = unsafe { pointer.read() };
        if at < lo || at >= hi {
            return Err(BadFrame::ExtendedState { at });
        }
    }
    Ok(())
}

/// Makes the pointers into the frame point into its copy, `delta` bytes away.
#[inline(always)]
pub(crate) fn relocate(copy: &mut Ucontext, delta: usize) {
    // The frame ended where the alternate stack does, and `check_frame` has seen its records.
    let hi = (copy.stack.sp + copy.stack.size).wrapping_add(delta);
    if let Ok(Some(pointer)) = vector_pointer(copy, hi) {
        // SAFETY: a word of the copy.
        let at = unsafe { pointer.read() };
        // SAFETY: as above; the copy is the caller's alone.
        unsafe { pointer.write(at.wrapping_add(delta)) };
    }
}

/// Whether a copied frame, which ends at `end`, has a record of the vectors.
#[inline(always)]
fn has_vectors(copy: &Ucontext, end: usize) -> bool {
    vector_pointer(copy, end).is_ok_and(|pointer| pointer.is_some())
}

/// Makes a frame resume on the calling thread.
///
/// The thread pointer is an ordinary register. And the kernel takes no vectors for a thread that has
/// never used any (`arch/riscv/kernel/signal.c`: `restore_sigcontext`).
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, end: usize) {
    let tp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mv {}, tp", out(reg) tp, options(nomem, nostack, preserves_flags)) };
    copy.mcontext.tp = tp;
    if has_vectors(copy, end) {
        vector_length();
    }
}

/// The length of a vector register in bytes, where there are vectors. To ask is to use them.
fn vector_length() -> usize {
    let length: usize;
    // SAFETY: reads vlenb, which exists with vectors.
    unsafe { asm!("csrr {}, 0xc22", out(reg) length, options(nomem, nostack)) };
    length
}

/// Looks whether a frame can resume on the calling thread, which may not be its own.
///
/// With a shadow stack (Zicfiss) it cannot: the token for the frame is on the first thread's.
/// Vectors have one length on all harts, or the kernel does not use them; but a thread can be one
/// that may not use them.
pub(crate) fn check_move(frame: &Ucontext, end: usize) -> Result<(), MoveError> {
    /// `PR_GET_SHADOW_STACK_STATUS` of `linux/prctl.h`.
    const STATUS: usize = 74;
    /// `PR_SHADOW_STACK_ENABLE`.
    const ENABLED: u64 = 1;
    /// `PR_RISCV_V_GET_CONTROL`.
    const VECTORS: usize = 70;
    /// `PR_RISCV_V_VSTATE_CTRL_CUR_MASK`.
    const NOW: usize = 3;
    /// `PR_RISCV_V_VSTATE_CTRL_OFF`.
    const OFF: usize = 1;

    let mut status = 0u64;
    let args = [STATUS, &raw mut status as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes one word there, or refuses where it has no shadow stacks.
    let asked = unsafe { sys::syscall(libc::SYS_prctl, args) };
    if asked.is_ok() && status & ENABLED != 0 {
        return Err(MoveError::ShadowStack);
    }
    if has_vectors(frame, end) {
        // SAFETY: touches no memory.
        let control = unsafe { sys::syscall(libc::SYS_prctl, [VECTORS, 0, 0, 0, 0, 0]) };
        if control.is_ok_and(|control| control & NOW == OFF) {
            return Err(MoveError::VectorState);
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
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = [0x73, 0, 0, 0];

/// Whether four bytes are `ecall`.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    u32::from_le_bytes(code) == 0x73
}

/// Whether the byte can begin a system call instruction; such an instruction goes on after it: the
/// two low bits say that it is four bytes long.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    byte == 0x73
}

// ---- entry, pivot, resume ----------------------------------------------------------------------

/// The pivot reads the copied frame's address from the start of the record.
const _: () = assert!(offset_of!(Call, frame) == 0);

/// The entry and the pivot use them without a question.
const _: () = assert!(cfg!(target_feature = "d"), "sigctx needs the D extension of RISC-V");

/// Loads what the sigreturn may lose, see the head of this file. sp = the frame; costs t0. What runs
/// after it, to the sigreturn, must leave these registers alone.
macro_rules! float_registers_of_the_frame {
    () => {
        concat!(
            ".option push\n",
            ".option arch, +d\n",
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            "fld f\\n, {floats} + 8*\\n(sp)\n",
            ".endr\n",
            "lw t0, {fcsr}(sp)\n",
            "csrw fcsr, t0\n",
            ".option pop\n",
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
    "mv a3, sp",                // fourth argument: where the frame begins
    "addi sp, sp, -16",
    ".cfi_adjust_cfa_offset 16",
    "sd ra, 8(sp)",             // `return_address` looks here
    ".cfi_offset ra, -8",
    "sd a2, 0(sp)",
    "call {dispatch}",
    "bnez a0, 2f",
    "ld a2, 0(sp)",
    "ld ra, 8(sp)",
    "addi sp, sp, 16",
    ".cfi_adjust_cfa_offset -16",
    ".cfi_restore ra",
    "addi t0, sp, {ucontext}",
    "bne a2, t0, 1f",           // called by a handler that was put over this one: no frame here
    float_registers_of_the_frame!(),
    "1:",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 16",
    ".cfi_offset ra, -8",
    "ld s1, 0(a0)",             // the copied frame; callee-saved, so it outlives the call
    "ld s2, {back}(a0)",        // as is the way back
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. a0 = the record of the call (16-aligned, just below the copied
    // frame), s1 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context, the program counter in the place of
    // register 0. The return address has a column of its own (64, the psABI's for signal frames),
    // because ra is an interrupted register like any other.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 64",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg9 (s1) offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x79, (({slots} + 16) & 0x7f) | 0x80, ({slots} + 16) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg9 (s1) offset: is saved there.
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".cfi_escape 0x10, \\n, 3, 0x79, (({slots} + 8*\\n) & 0x7f) | 0x80, ({slots} + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 64, 3, 0x79, ({slots} & 0x7f) | 0x80, {slots} >> 7",
    // A name for debuggers and backtraces.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "mv sp, a0",                // leaves the alternate stack for good
    "addi s0, a0, {record} + 16", // what frame-pointer walkers go on with: the record is below it
    "csrw fcsr, zero",          // the default, which Rust code counts on; the kernel left it alone
    "call {run}",               // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "sw zero, 0(a0)",           // the stack may be injected again, but not from in here
    "mv sp, s1",
    "mv ra, s2",
    float_registers_of_the_frame!(),
    "ret",                      // to the sigreturn code, with sp at the copied frame
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. a0 = the copied frame, a1 = where the handler
    // returns to, a2 = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "mv s1, a0",
    "mv s2, a1",
    "mv a0, a2",
    "j 3b",
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
    slots = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc),
    ucontext = const UCONTEXT_OFFSET,
    floats = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.f),
    fcsr = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.fcsr),
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
/// `li a7, 139; ecall`.
pub(crate) const SIGRETURN_LEN: usize = 8;

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

    /// As the kernel writes it for a thread with live vectors of 128 bits.
    #[repr(C)]
    struct Frame {
        uc: Ucontext,
        rest_of_the_context: [u8; 244],
        reserved: u32,
        header: RecordHeader,
        state: VectorState,
        vectors: [u64; 64],
        end: RecordHeader,
    }

    fn frame() -> Frame {
        // SAFETY: all are integers, for which zeroes are values.
        let mut frame: Frame = unsafe { core::mem::zeroed() };
        let size = offset_of!(Frame, end) - offset_of!(Frame, header);
        frame.header = RecordHeader { magic: VECTOR_MAGIC, size: size as u32 };
        frame.state.vlenb = 16;
        frame
    }

    fn bounds(frame: &Frame) -> (usize, usize) {
        let at = &raw const *frame as usize;
        (at, at + offset_of!(Frame, end) + size_of::<RecordHeader>())
    }

    #[test]
    fn the_vector_record_is_where_the_kernel_puts_it() {
        assert_eq!(offset_of!(Frame, header), RECORDS);
        assert_eq!(RECORDS, 176 + 776);
        // The kernel has the state 16-aligned, and the registers just behind it.
        assert_eq!(offset_of!(Frame, state) % 16, 0);
        assert_eq!(offset_of!(Frame, vectors), offset_of!(Frame, state) + 48);
    }

    #[test]
    fn the_pointer_to_the_vectors_moves_with_the_frame() {
        let mut frame = frame();
        let (lo, hi) = bounds(&frame);
        frame.state.datap = &raw const frame.vectors as usize;
        assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
        // As if it had been copied from 4096 bytes below.
        let delta = 4096;
        frame.uc.stack = SignalStack { sp: lo - delta, flags: 0, size: hi - lo };
        frame.state.datap -= delta;
        relocate(&mut frame.uc, delta);
        assert_eq!(frame.state.datap, &raw const frame.vectors as usize);
        assert!(has_vectors(&frame.uc, hi));
        // An emulator's frame, which is shorter; and one without vectors.
        assert!(!has_vectors(&frame.uc, lo + RECORDS));
        frame.header.magic = 0;
        assert!(!has_vectors(&frame.uc, hi));
    }

    #[test]
    fn records_outside_of_the_frame_are_refused() {
        let mut frame = frame();
        let (lo, hi) = bounds(&frame);
        frame.state.datap = hi;
        assert_eq!(check_frame(&frame.uc, lo, hi), Err(BadFrame::ExtendedState { at: hi }));
        frame.state.datap = &raw const frame.vectors as usize;
        for size in [0, 4, 12, 8, frame.header.size + 16] {
            let header = RecordHeader { magic: VECTOR_MAGIC, size };
            let whole = core::mem::replace(&mut frame.header, header);
            let refused = Err(BadFrame::ExtendedState { at: lo + RECORDS });
            assert_eq!(check_frame(&frame.uc, lo, hi), refused, "{header:?}");
            frame.header = whole;
        }
        // No vectors; and a frame that ends before there could be any.
        frame.header = RecordHeader { magic: 0, size: 0 };
        frame.state.datap = 0;
        assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
        frame.header = RecordHeader { magic: VECTOR_MAGIC, size: 8 };
        assert_eq!(check_frame(&frame.uc, lo, lo + size_of::<Ucontext>()), Ok(()));
    }

    /// A stack with a frame at its top.
    #[repr(C, align(16))]
    struct FakeStack {
        below: [u8; 64 * 1024],
        info: [u8; UCONTEXT_OFFSET],
        uc: Ucontext,
    }

    /// f0 to f31 and `fcsr`.
    type Floats = [u64; 33];

    fn floats(tag: u64) -> Floats {
        core::array::from_fn(|n| if n == 32 { tag } else { tag << 32 | n as u64 })
    }

    fn frame_with(floats: &Floats) -> Box<FakeStack> {
        // SAFETY: plain integers, for which zeroes are values.
        let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
        stack.uc.mcontext.f.copy_from_slice(&floats[..32]);
        stack.uc.mcontext.fcsr = floats[32] as u32;
        stack
    }

    /// Loads the float registers from `before`, jumps to `code` on the stack `sp`, with a place to
    /// return to in a1 and ra, and says what they are there.
    ///
    /// # Safety
    ///
    /// `code` can run so, and keeps s4 to s11.
    unsafe fn floats_after(
        code: usize,
        sp: usize,
        a0: usize,
        a2: usize,
        before: &Floats,
    ) -> Floats {
        let mut after: Floats = [0; 33];
        // SAFETY: the caller's obligation. The stack pointer, s1, which the compiler keeps for
        // itself, and the default modes come back at the end.
        unsafe {
            asm!(
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "fld f\\n, 8*\\n(s6)",
                ".endr",
                "ld t0, 256(s6)",
                "csrw fcsr, t0",
                "mv s5, sp",
                "mv s7, s1",
                "mv sp, s8",
                "lla ra, 2f",
                "mv a1, ra",
                "jr s9",
                "2:",
                ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "fsd f\\n, 8*\\n(s4)",
                ".endr",
                "csrr t0, fcsr",
                "sd t0, 256(s4)",
                "csrw fcsr, zero",
                "mv s1, s7",
                "mv sp, s5",
                in("a0") a0,
                in("a2") a2,
                in("s4") &raw mut after,
                in("s6") before,
                in("s8") sp,
                in("s9") code,
                out("s2") _,
                out("s5") _,
                out("s7") _,
                out("fs0") _, out("fs1") _, out("fs2") _, out("fs3") _,
                out("fs4") _, out("fs5") _, out("fs6") _, out("fs7") _,
                out("fs8") _, out("fs9") _, out("fs10") _, out("fs11") _,
                clobber_abi("C"),
            );
        }
        after
    }

    /// 0 is no signal: nothing is called.
    const NO_SIGNAL: usize = 0;

    #[test]
    fn a_handler_returns_with_the_float_registers_of_its_frame() {
        let (before, given) = (floats(0x25), floats(0x43));
        let stack = frame_with(&given);
        let (sp, uc) = (&raw const stack.info as usize, &raw const stack.uc as usize);
        // SAFETY: as the kernel calls it, with room on the stack.
        let after = unsafe { floats_after(entry(), sp, NO_SIGNAL, uc, &before) };
        assert_eq!(after, given);
    }

    #[test]
    fn an_entry_that_another_handler_calls_keeps_what_a_function_keeps() {
        let (before, given) = (floats(0x25), floats(0x43));
        let stack = frame_with(&given);
        let (sp, uc) = (&raw const stack.info as usize, &raw const stack.uc as usize);
        // SAFETY: as a function calls it, with room on the stack.
        let after = unsafe { floats_after(entry(), sp - 16, NO_SIGNAL, uc, &before) };
        for n in [8, 9, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 32] {
            assert_eq!(after[n], before[n], "f{n}");
        }
    }

    #[test]
    fn an_injected_call_resumes_with_the_float_registers_of_its_frame() {
        let (before, given) = (floats(0x25), floats(0x43));
        let stack = frame_with(&given);
        let (frame, active) = (&raw const stack.info as usize, AtomicU32::new(1));
        let (sp, active_at) = (frame - 4096, &raw const active as usize);
        // SAFETY: as for a call that never returned, with room on the stack.
        let after = unsafe { floats_after(resume_address(), sp, frame, active_at, &before) };
        assert_eq!(after, given);
        assert_eq!(active.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn status_fields_are_where_the_manual_has_them() {
        let status = Status::from_bits_retain(0x35);
        assert_eq!(status, Status::NX | Status::OF | Status::NV | Status::RTZ);
        for (mode, name) in [(1, "RTZ"), (2, "RDN"), (3, "RUP"), (4, "RMM"), (7, "FRM")] {
            let status = Status::from_bits_retain(mode << 5);
            assert!(status.iter_names().map(|(name, _)| name).eq([name]), "{status:?}");
        }
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        assert_eq!(bits, 0xff);
    }

    #[test]
    fn system_call_instructions_are_known() {
        assert!(is_syscall(SYSCALL_CODE) && begins_syscall(SYSCALL_CODE[0]));
        // ebreak, csrrw zero cycle zero, two compressed no-ops
        for code in [0x0010_0073u32, 0xc000_1073, 0x0001_0001] {
            assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
        }
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! gp and tp are the program's and the thread's: handlers count on them, so gp is only watched,
    //! and tp may change with the thread. Vectors are looked up at run time.

    use core::arch::{asm, global_asm};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, vector_length};
    use crate::probe::Instruction;

    /// The general registers with their numbers: all but the stack pointer, which points at the
    /// table, and the thread pointer.
    const GENERAL: [(Reg, usize); 29] = [
        (Reg::Ra, 1),
        (Reg::Gp, 3),
        (Reg::T0, 5),
        (Reg::T1, 6),
        (Reg::T2, 7),
        (Reg::S0, 8),
        (Reg::S1, 9),
        (Reg::A0, 10),
        (Reg::A1, 11),
        (Reg::A2, 12),
        (Reg::A3, 13),
        (Reg::A4, 14),
        (Reg::A5, 15),
        (Reg::A6, 16),
        (Reg::A7, 17),
        (Reg::S2, 18),
        (Reg::S3, 19),
        (Reg::S4, 20),
        (Reg::S5, 21),
        (Reg::S6, 22),
        (Reg::S7, 23),
        (Reg::S8, 24),
        (Reg::S9, 25),
        (Reg::S10, 26),
        (Reg::S11, 27),
        (Reg::T3, 28),
        (Reg::T4, 29),
        (Reg::T5, 30),
        (Reg::T6, 31),
    ];
    /// The numbers of t5 and t6, which have the same value: see the loop.
    const TWINS: (usize, usize) = (30, 31);

    /// Width of the elements, registers in a group (logarithms both), policies: every bit of vtype
    /// is in some set and in some clear. Few, because qemu translates all code anew for each.
    const VTYPES: [(u64, u64, u64); 4] = [(0, 0, 0), (1, 2, 1), (2, 1, 2), (3, 3, 3)];

    /// The longest vectors that the table has room for, in bytes.
    const MAX_VECTOR: usize = 128;

    /// Every register that code can hold a value in, once; vectors are behind the table.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        /// By number.
        general: [u64; 32],
        floats: [u64; 32],
        fcsr: u64,
        vstart: u64,
        vl: u64,
        vtype: u64,
        vcsr: u64,
    }

    /// As many words as the vectors have, one register after the other.
    type Vectors = [u64; 32 * MAX_VECTOR / 8];

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
        host_saved: [u64; 12],
        host_floats: [u64; 12],
        host_fcsr: u64,
        level: u64,
        given_vectors: Vectors,
        found_vectors: Vectors,
    }

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in given.general.iter_mut().chain(&mut given.floats) {
                *value = next();
            }
            given.general[TWINS.1] = given.general[TWINS.0];
            // Any flags; five rounding modes.
            given.fcsr = next() & 0x1f | (next() % 5) << 5;
            self.level = level() as u64;
            if level() == Level::Vector {
                let length = vector_length();
                for value in self.given_vectors.iter_mut().take(32 * length / 8) {
                    *value = next();
                }
                let given = &mut self.given;
                let (width, group, policies) = VTYPES[next() as usize % VTYPES.len()];
                given.vtype = group | width << 3 | policies << 6;
                // At least two elements, of which the first has been done.
                let most = (length as u64 >> width) << group;
                given.vl = next() % most;
                given.vstart = 1 + next() % (most - 1);
                given.vcsr = next() & 7;
            }
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
                let resumed = reg == Reg::T6
                    && crate::probe::pushed_calls() > 0
                    && window().contains(&(found.general[i] as usize));
                if !resumed {
                    check(reg.name(), 0, given.general[i], found.general[i]);
                }
            }
            check("fcsr", 0, given.fcsr, found.fcsr);
            for i in 0..32 {
                check("f", i, given.floats[i], found.floats[i]);
            }
            if level() == Level::Vector {
                check("vstart", 0, given.vstart, found.vstart);
                check("vl", 0, given.vl, found.vl);
                check("vtype", 0, given.vtype, found.vtype);
                check("vcsr", 0, given.vcsr, found.vcsr);
                for i in 0..32 * vector_length() / 8 {
                    check("v", i, self.given_vectors[i], self.found_vectors[i]);
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
        Vector = 1,
        /// Vectors longer than the table has room for.
        LongVector = 2,
    }

    fn level() -> Level {
        static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
        match KNOWN.load(Ordering::Relaxed) {
            0 => Level::Float,
            1 => Level::Vector,
            2 => Level::LongVector,
            _ => {
                let level = detect();
                KNOWN.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    fn detect() -> Level {
        /// A letter of the ISA's name each: `COMPAT_HWCAP_ISA_V`.
        const V: u64 = 1 << (b'V' - b'A');
        // SAFETY: reads the auxiliary vector.
        let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
        if capabilities & V == 0 {
            Level::Float
        } else if vector_length() <= MAX_VECTOR {
            Level::Vector
        } else {
            Level::LongVector
        }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `addi sp,sp,-32`; larger frames are in a register.
        let reserved = line.split_once("\tsp,sp,-").and_then(|(_, number)| {
            let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            number[..end].parse().ok()
        });
        let relocations =
            ["R_RISCV_CALL", "R_RISCV_JAL", "R_RISCV_GOT", "R_RISCV_TLS", "R_RISCV_TPREL"];
        let calls = ["\tjal\t", "\tcall\t", "\ttail\t"];
        Instruction {
            system_call: line.contains("\tecall"),
            outside: calls.iter().any(|call| line.contains(call))
                || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("(tp)") || line.contains(",tp"),
            stack: reserved.unwrap_or_default(),
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Float => "general registers, fcsr, f0-31",
            Level::Vector => "general registers, fcsr, f0-31, v0-31, vstart, vl, vtype, vcsr",
            Level::LongVector => "general registers, fcsr, f0-31, but no vectors of this length",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and sp points at the table.
    //
    // A jump through memory needs a register. It is t6, which has the same value as t5: the loop
    // ends with a comparison of the two, and leaves if they differ. Then t6 is free for the jump,
    // outside of the window, and the first instruction of the loop (or of the exit) sets it again.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".option push",
        ".option arch, +d, +v",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        "sigctx_probe_spin_0_1:",   // a0 = table
        "sd ra, {host_ra}(a0)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "sd s\\n, {saved} + 8*\\n(a0)",
        "fsd fs\\n, {host_floats} + 8*\\n(a0)",
        ".endr",
        "frcsr t0",
        "sd t0, {host_fcsr}(a0)",
        "sd gp, {given} + 8*3(a0)",
        "ld t0, {level}(a0)",
        "li t1, 1",
        "bne t0, t1, 21f",
        "li t1, {given_vectors}",
        "add t1, t1, a0",
        "csrr t2, vlenb",
        "slli t2, t2, 3",           // eight registers
        ".irp n,0,8,16,24",
        "vl8re8.v v\\n, (t1)",
        "add t1, t1, t2",
        ".endr",
        "ld t0, {given_vl}(a0)",
        "ld t1, {given_vtype}(a0)",
        "vsetvl zero, t0, t1",
        "ld t0, {given_vcsr}(a0)",
        "csrw vcsr, t0",
        "ld t0, {given_vstart}(a0)",
        "csrw vstart, t0",          // last: every vector instruction clears it
        "21:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fld f\\n, {given_floats} + 8*\\n(a0)",
        ".endr",
        "ld t0, {given_fcsr}(a0)",
        "fscsr t0",
        "sd sp, {host_sp}(a0)",
        "mv sp, a0",
        ".irp n,1,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld x\\n, {given} + 8*\\n(sp)",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        "mv t6, t5",
        ".rept 256",                // long: in qemu much of the time goes into the jump back
        "nop",
        "addi a0, a0, 1",
        "addi a0, a0, -1",
        "xor s2, s2, s3",
        "xor s2, s2, s3",
        "fsgnj.d fa0, fa0, fa0",    // a copy: no flag, no rounding
        "j 25f",                    // an emulator delivers signals after jumps alone
        "25:",
        ".endr",
        "bne t5, t6, 22f",
        "j 23f",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "mv t6, t5",
        "22:",
        ".irp n,1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "sd x\\n, {found} + 8*\\n(sp)",
        ".endr",
        "mv a0, sp",
        "ld sp, {host_sp}(a0)",
        "frcsr t0",
        "sd t0, {found_fcsr}(a0)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fsd f\\n, {found_floats} + 8*\\n(a0)",
        ".endr",
        "ld t0, {level}(a0)",
        "li t1, 1",
        "bne t0, t1, 24f",
        "csrr t0, vstart",
        "sd t0, {found_vstart}(a0)",
        "csrr t0, vl",
        "sd t0, {found_vl}(a0)",
        "csrr t0, vtype",
        "sd t0, {found_vtype}(a0)",
        "csrr t0, vcsr",
        "sd t0, {found_vcsr}(a0)",
        "csrw vstart, zero",
        "csrw vcsr, zero",
        "li t1, {found_vectors}",
        "add t1, t1, a0",
        "csrr t2, vlenb",
        "slli t2, t2, 3",
        ".irp n,0,8,16,24",
        "vs8r.v v\\n, (t1)",
        "add t1, t1, t2",
        ".endr",
        "24:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "ld s\\n, {saved} + 8*\\n(a0)",
        "fld fs\\n, {host_floats} + 8*\\n(a0)",
        ".endr",
        "ld t0, {host_fcsr}(a0)",
        "fscsr t0",
        "ld ra, {host_ra}(a0)",
        "ret",
        "23:",
        "ld t6, {next}(sp)",
        "jr t6",
        // Writes something else into everything. a0 = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        "sigctx_probe_clobber_0_1:",
        "addi sp, sp, -208",
        "sd ra, 0(sp)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "sd s\\n, 8 + 8*\\n(sp)",
        "fsd fs\\n, 104 + 8*\\n(sp)",
        ".endr",
        "frcsr t0",
        "sd t0, 200(sp)",
        "li t0, 0x9f",              // all flags, and a rounding mode that nobody uses
        "fscsr t0",
        "li t1, 1",
        "bne a0, t1, 31f",
        "vsetvli t0, zero, e8, m8, ta, ma",
        "vmv.v.i v0, -1",
        "vmv.v.i v8, -2",
        "vmv.v.i v16, -3",
        "vmv.v.i v24, -4",
        "csrwi vcsr, 7",
        "31:",
        "li t0, -0x5555555555555556",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fmv.d.x f\\n, t0",
        ".endr",
        ".irp n,1,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "mv x\\n, t0",
        ".endr",
        // Back to what the ABI promises the caller.
        "ld t0, 200(sp)",
        "andi t0, t0, 0xe0",        // the flags need not be kept
        "ori t0, t0, 0x1f",
        "fscsr t0",
        "ld ra, 0(sp)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "ld s\\n, 8 + 8*\\n(sp)",
        "fld fs\\n, 104 + 8*\\n(sp)",
        ".endr",
        "addi sp, sp, 208",
        "ret",
        ".option pop",
        ".popsection",
        given = const offset_of!(Table, given.general),
        given_floats = const offset_of!(Table, given.floats),
        given_fcsr = const offset_of!(Table, given.fcsr),
        given_vstart = const offset_of!(Table, given.vstart),
        given_vl = const offset_of!(Table, given.vl),
        given_vtype = const offset_of!(Table, given.vtype),
        given_vcsr = const offset_of!(Table, given.vcsr),
        given_vectors = const offset_of!(Table, given_vectors),
        found = const offset_of!(Table, found.general),
        found_floats = const offset_of!(Table, found.floats),
        found_fcsr = const offset_of!(Table, found.fcsr),
        found_vstart = const offset_of!(Table, found.vstart),
        found_vl = const offset_of!(Table, found.vl),
        found_vtype = const offset_of!(Table, found.vtype),
        found_vcsr = const offset_of!(Table, found.vcsr),
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
    const _: () = assert!(offset_of!(Table, level) < 2048);

    /// `fcsr` in the code below: towards zero, all flags.
    const KNOWN_FCSR: u32 = 0x3f;

    // Values that name their registers by number, in decimal digits; then an undefined instruction,
    // whose handler steps over it. Not one register is left to find the way back with, the stack
    // pointer included: it is in a static. gp and tp are as they are.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 8",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".option push",
        ".option arch, +d",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        "sigctx_probe_known_0_1:",
        "addi sp, sp, -112",
        "sd ra, 0(sp)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "sd s\\n, 8 + 8*\\n(sp)",
        ".endr",
        "frcsr t0",
        "sd t0, 104(sp)",
        "lla t0, sigctx_probe_saved_0_1",
        "sd sp, 0(t0)",
        "li t0, {fcsr}",
        "fscsr t0",
        ".irp n,1,2,5,6,7,8,9",
        "li x\\n, 0x0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n",
        ".endr",
        ".irp n,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li x\\n, 0x\\n\\n\\n\\n\\n\\n\\n\\n",
        ".endr",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        ".option push",
        ".option norvc",
        "unimp",
        ".option pop",
        "lla t0, sigctx_probe_saved_0_1",
        "ld sp, 0(t0)",
        "ld t0, 104(sp)",
        "fscsr t0",
        "ld ra, 0(sp)",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
        "ld s\\n, 8 + 8*\\n(sp)",
        ".endr",
        "addi sp, sp, 112",
        "ret",
        // What `push_call` is meant for: a trampoline that keeps everything itself, t6 excepted.
        // ra is where to resume, its own value is in the slot. The hook is compiled without
        // vectors, and leaves them alone.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        "sigctx_probe_trampoline_0_1:",
        "addi sp, sp, -520",        // 16-aligned with the slot
        ".irp n,1,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "sd x\\n, 8*\\n(sp)",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fsd f\\n, 256 + 8*\\n(sp)",
        ".endr",
        "frcsr t0",
        "sd t0, 512(sp)",
        "mv s0, sp",
        "andi sp, sp, -16",         // if the interrupted code was just about to align it
        "fscsr zero",
        "call {hook}",
        "mv sp, s0",
        "ld t0, 512(sp)",
        "fscsr t0",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "fld f\\n, 256 + 8*\\n(sp)",
        ".endr",
        ".irp n,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "ld x\\n, 8*\\n(sp)",
        ".endr",
        "ld t6, 8(sp)",             // where to resume
        "ld ra, 520(sp)",           // the slot
        "addi sp, sp, 528",
        "jr t6",
        ".option pop",
        ".popsection",
        fcsr = const KNOWN_FCSR,
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
        unsafe { asm!(".option push", ".option norvc", "unimp", ".option pop") };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::Gp, "the program's"), (Reg::Tp, "the thread's")];

    /// DWARF's numbers of registers (the RISC-V psABI): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
        1,
        &[
            Reg::Ra,
            Reg::Sp,
            Reg::Gp,
            Reg::Tp,
            Reg::T0,
            Reg::T1,
            Reg::T2,
            Reg::S0,
            Reg::S1,
            Reg::A0,
            Reg::A1,
            Reg::A2,
            Reg::A3,
            Reg::A4,
            Reg::A5,
            Reg::A6,
            Reg::A7,
            Reg::S2,
            Reg::S3,
            Reg::S4,
            Reg::S5,
            Reg::S6,
            Reg::S7,
            Reg::S8,
            Reg::S9,
            Reg::S10,
            Reg::S11,
            Reg::T3,
            Reg::T4,
            Reg::T5,
            Reg::T6,
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
        trampoline_code as *const () as usize
    }

    /// The frame pointer, as the function that this is inlined into has it.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let fp: usize;
        // SAFETY: reads a register.
        unsafe { asm!("mv {}, s0", out(reg) fp, options(nomem, nostack)) };
        fp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction.
    /// Says whether it can: only a debugger can do that here.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
