//! RISC-V, 64 bits. What is explained in `x86_64` is not explained here.
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
//! gets the handler's. The code that leaves a frame here has loaded them from it before
//! ([`float_registers_of_the_frame`]): then both are the same. The vectors are not concerned: the
//! kernel marks them as saved before it copies.
//!
//! There is no instruction that jumps without a register. Exact resume does not need one, but a
//! trampoline for `push_call` does: t6 is the one that it may destroy, as in Go.
//!
//! This file is long because the layouts of a kernel's frame and what reads them go together.
//!
//! References: the kernel's `arch/riscv/kernel/signal.c`, `arch/riscv/include/uapi/asm/ptrace.h`,
//! `asm/sigcontext.h`, `asm/ucontext.h`; the RISC-V psABI: calling convention, DWARF registers.

use core::arch::asm;
use core::ffi::c_long;
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::layout;
use super::registers::{frame_record, registers};
use crate::inject::{BadFrame, MoveError};
use crate::sys::{self, SigSet};

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
/// More than any frame of this architecture: 32 vectors of 8 KiB, the most that the kernel takes,
/// and the rest.
pub(crate) const MAX_FRAME: usize = 320 * 1024;

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

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = {
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
    #[must_use]
    pub fn float_registers(&self) -> [u64; 32] {
        self.ucontext().mcontext.f
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

frame_record! {
    /// What a function that keeps frame pointers leaves just *below* the address in its frame pointer:
    /// here on behalf of the interrupted function, which made no call.
    pub(crate) struct FrameRecord
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
