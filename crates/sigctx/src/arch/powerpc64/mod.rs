//! PowerPC, 64 bits: little-endian with the ELF V2 ABI, big-endian with ELF V1 or ELF V2.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack
//!        | gap           512 bytes      |
//!        | siginfo       128 bytes      |<- r4
//!        | (second ucontext: TM)        |<- uc_link, when a transaction was interrupted
//!        | ucontext     1696 bytes      |<- r5 (16-aligned); regs and v_regs point into it
//!        | a caller's frame, 128 bytes  |   +0 back chain: the interrupted r1
//!        |  (qemu up to 10: 144 bytes)  |   +16 where a handler saves its lr
//!  low   |                              |<- r1
//! ```
//!
//! The handler is entered with lr at the kernel's (the vDSO's, the emulator's) sigreturn code,
//! which adds the caller's frame's size to r1 again, or does not: its author knows how far the
//! context is from r1. So the way back is that code with r1 at the copy of the *whole* frame, and
//! no code of this crate depends on the distance.
//!
//! **Function descriptors** (ELF V1): the address of a function is that of three words, its code,
//! its table of contents (for r2) and an environment. The kernel takes a descriptor for a handler.
//! Program counters are always addresses of code.
//!
//! **Transactions** (POWER8, POWER9): a frame that interrupted one has two contexts, and only the
//! second says where a suspended transaction is. Such frames are refused.
//!
//! This file is long because the layouts of a kernel's frame and what reads them go together.
//!
//! References: the kernel's `arch/powerpc/kernel/signal_64.c`, `kernel/vdso/sigtramp64.S`,
//! `include/uapi/asm/sigcontext.h`, `asm/ptrace.h`, `Documentation/arch/powerpc/syscall64-abi.rst`;
//! 64-Bit ELF V2 ABI Specification, 2.2.1 (registers), 2.2.3 (stack frames), 2.3.2 (function
//! entries); 64-bit PowerPC ELF Application Binary Interface Supplement 1.9, 3.2 (ELF V1).

use core::arch::asm;
use core::ffi::{c_int, c_long};
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use super::registers::registers;
use crate::inject::{BadFrame, MoveError};
use crate::sys::{SaFlags, SigSet};

#[macro_use]
mod elf;
mod entry;
#[cfg(feature = "probe")]
mod known;
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

/// Bytes below the stack pointer that belong to the interrupted function: what the kernel leaves
/// alone. The ABIs say 288.
pub(crate) const RED_ZONE: usize = 512;
/// From the stack pointer at the handler's entry to the `ucontext`: no constant here.
pub(crate) const UCONTEXT_OFFSET: UcontextOffset = UcontextOffset;
/// More than any frame of this architecture (about 4300 bytes): a longer one is not the kernel's.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

/// Compares equal to the distances that there are: the kernel's, and that of qemu up to 10.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UcontextOffset;

impl PartialEq<UcontextOffset> for usize {
    #[inline(always)]
    fn eq(&self, _: &UcontextOffset) -> bool {
        matches!(self, 128 | 144)
    }
}

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys what a function call may, but not lr.
///
/// An error is told by the summary overflow bit of cr0, with its number in r3: made negative here.
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
            "sc",
            "bns 2f",
            "neg %r3, %r3",
            "2:",
            inlateout("r0") nr => _,
            inlateout("r3") args[0] => result,
            inlateout("r4") args[1] => _,
            inlateout("r5") args[2] => _,
            inlateout("r6") args[3] => _,
            inlateout("r7") args[4] => _,
            inlateout("r8") args[5] => _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
            lateout("r12") _,
            lateout("cr0") _,
            lateout("cr1") _,
            lateout("cr5") _,
            lateout("cr6") _,
            lateout("cr7") _,
            lateout("ctr") _,
            lateout("xer") _,
            options(nostack),
        );
    }
    result
}

// ---- kernel layouts ----------------------------------------------------------------------------

/// No restorer: the kernel does not look at it.
#[inline(always)]
pub(crate) fn restorer_of(_flags: SaFlags) -> Option<usize> {
    None
}

layout! {
    /// `struct sigcontext`.
    #[derive(Debug)]
    pub(crate) struct SigContext = "struct sigcontext" {
        unused: [u64; 4] = "_unused",
        signal: c_int = "signal",
        pad0: c_int = "_pad0",
        handler: u64 = "handler",
        oldmask: u64 = "oldmask",
        /// Points to the general registers below.
        regs: usize = "regs",
        r0: u64 = "gp_regs[0]",
        r1: u64 = "gp_regs[1]",
        r2: u64 = "gp_regs[2]",
        r3: u64 = "gp_regs[3]",
        r4: u64 = "gp_regs[4]",
        r5: u64 = "gp_regs[5]",
        r6: u64 = "gp_regs[6]",
        r7: u64 = "gp_regs[7]",
        r8: u64 = "gp_regs[8]",
        r9: u64 = "gp_regs[9]",
        r10: u64 = "gp_regs[10]",
        r11: u64 = "gp_regs[11]",
        r12: u64 = "gp_regs[12]",
        r13: u64 = "gp_regs[13]",
        r14: u64 = "gp_regs[14]",
        r15: u64 = "gp_regs[15]",
        r16: u64 = "gp_regs[16]",
        r17: u64 = "gp_regs[17]",
        r18: u64 = "gp_regs[18]",
        r19: u64 = "gp_regs[19]",
        r20: u64 = "gp_regs[20]",
        r21: u64 = "gp_regs[21]",
        r22: u64 = "gp_regs[22]",
        r23: u64 = "gp_regs[23]",
        r24: u64 = "gp_regs[24]",
        r25: u64 = "gp_regs[25]",
        r26: u64 = "gp_regs[26]",
        r27: u64 = "gp_regs[27]",
        r28: u64 = "gp_regs[28]",
        r29: u64 = "gp_regs[29]",
        r30: u64 = "gp_regs[30]",
        r31: u64 = "gp_regs[31]",
        nip: u64 = "gp_regs[PT_NIP]",
        msr: u64 = "gp_regs[PT_MSR]",
        orig_r3: u64 = "gp_regs[PT_ORIG_R3]",
        ctr: u64 = "gp_regs[PT_CTR]",
        lr: u64 = "gp_regs[PT_LNK]",
        xer: u64 = "gp_regs[PT_XER]",
        cr: u64 = "gp_regs[PT_CCR]",
        softe: u64 = "gp_regs[PT_SOFTE]",
        trap: u64 = "gp_regs[PT_TRAP]",
        dar: u64 = "gp_regs[PT_DAR]",
        dsisr: u64 = "gp_regs[PT_DSISR]",
        result: u64 = "gp_regs[PT_RESULT]",
        reserved: [u64; 4] = "@gp_regs[44]",
        fp_regs: [u64; 32] = "@fp_regs",
        fpscr: u64 = "fp_regs[32]",
        /// Points into `vmx_reserve`, to its first 16-aligned word: 32 registers of 16 bytes, 16
        /// with vscr, 16 with vrsave, and the 32 second halves of vs0-31. 0 without VMX.
        v_regs: usize = "v_regs",
        vmx_reserve: [u64; 101] = "vmx_reserve",
    }
}

layout! {
    /// `struct ucontext`: 1696 bytes, where libc's type has 1440.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u64 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        pub(crate) sigmask: SigSet = "uc_sigmask",
        unused: [SigSet; 15] = "__unused",
        mcontext: SigContext = "uc_mcontext",
    }
}

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = assert!(size_of::<Ucontext>() == 1696);

// ---- registers ---------------------------------------------------------------------------------

/// The condition register has 32 bits.
#[inline(always)]
fn in_its_width(reg: Reg, value: u64) -> u64 {
    if reg == Reg::Cr { value & 0xffff_ffff } else { value }
}

registers! {
    /// A register of the interrupted context.
    pub enum Reg, read by core::convert::identity, written by in_its_width;

    /// Scratch, and often in prologues.
    R0 = r0, "r0";
    /// Stack pointer.
    R1 = r1, "r1";
    /// Table of contents: the base for addresses of data.
    R2 = r2, "r2";
    /// First argument, first result.
    R3 = r3, "r3";
    /// Second argument.
    R4 = r4, "r4";
    /// Third argument.
    R5 = r5, "r5";
    /// Fourth argument.
    R6 = r6, "r6";
    /// Fifth argument.
    R7 = r7, "r7";
    /// Sixth argument.
    R8 = r8, "r8";
    /// Seventh argument.
    R9 = r9, "r9";
    /// Eighth argument.
    R10 = r10, "r10";
    /// Environment, scratch.
    R11 = r11, "r11";
    /// A called function's own address (ELF V2), scratch.
    R12 = r12, "r12";
    /// Thread pointer.
    R13 = r13, "r13";
    /// Callee-saved.
    R14 = r14, "r14";
    /// Callee-saved.
    R15 = r15, "r15";
    /// Callee-saved.
    R16 = r16, "r16";
    /// Callee-saved.
    R17 = r17, "r17";
    /// Callee-saved.
    R18 = r18, "r18";
    /// Callee-saved.
    R19 = r19, "r19";
    /// Callee-saved.
    R20 = r20, "r20";
    /// Callee-saved.
    R21 = r21, "r21";
    /// Callee-saved.
    R22 = r22, "r22";
    /// Callee-saved.
    R23 = r23, "r23";
    /// Callee-saved.
    R24 = r24, "r24";
    /// Callee-saved.
    R25 = r25, "r25";
    /// Callee-saved.
    R26 = r26, "r26";
    /// Callee-saved.
    R27 = r27, "r27";
    /// Callee-saved.
    R28 = r28, "r28";
    /// Callee-saved.
    R29 = r29, "r29";
    /// Callee-saved.
    R30 = r30, "r30";
    /// Callee-saved.
    R31 = r31, "r31";
    /// Next instruction: the program counter.
    Nip = nip, "nip";
    /// Count: loops and indirect jumps.
    Ctr = ctr, "ctr";
    /// Link register: the return address.
    Lr = lr, "lr";
    /// Fixed-point exceptions: carry, overflow.
    Xer = xer, "xer";
    /// Condition register, see [`Status`].
    Cr = cr, "cr";
}

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Nip;
    /// The stack pointer.
    pub const SP: Self = Self::R1;
}

/// The register that [`Status`] describes.
pub(crate) const STATUS: Reg = Reg::Cr;

bitflags! {
    /// The flags of the condition register: eight fields of four bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Field 0: less than, negative.
        const CR0_LT = 8 << 28;
        /// Field 0: greater than, positive.
        const CR0_GT = 4 << 28;
        /// Field 0: equal, zero.
        const CR0_EQ = 2 << 28;
        /// Field 0: summary overflow; after a system call: an error.
        const CR0_SO = 1 << 28;
        /// Field 1: less than; floating-point exception.
        const CR1_LT = 8 << 24;
        /// Field 1: greater than; enabled floating-point exception.
        const CR1_GT = 4 << 24;
        /// Field 1: equal; invalid floating-point operation.
        const CR1_EQ = 2 << 24;
        /// Field 1: unordered; floating-point overflow.
        const CR1_SO = 1 << 24;
        /// Field 2 (callee-saved): less than.
        const CR2_LT = 8 << 20;
        /// Field 2: greater than.
        const CR2_GT = 4 << 20;
        /// Field 2: equal.
        const CR2_EQ = 2 << 20;
        /// Field 2: summary overflow, unordered.
        const CR2_SO = 1 << 20;
        /// Field 3 (callee-saved): less than.
        const CR3_LT = 8 << 16;
        /// Field 3: greater than.
        const CR3_GT = 4 << 16;
        /// Field 3: equal.
        const CR3_EQ = 2 << 16;
        /// Field 3: summary overflow, unordered.
        const CR3_SO = 1 << 16;
        /// Field 4 (callee-saved): less than.
        const CR4_LT = 8 << 12;
        /// Field 4: greater than.
        const CR4_GT = 4 << 12;
        /// Field 4: equal.
        const CR4_EQ = 2 << 12;
        /// Field 4: summary overflow, unordered.
        const CR4_SO = 1 << 12;
        /// Field 5: less than.
        const CR5_LT = 8 << 8;
        /// Field 5: greater than.
        const CR5_GT = 4 << 8;
        /// Field 5: equal.
        const CR5_EQ = 2 << 8;
        /// Field 5: summary overflow, unordered.
        const CR5_SO = 1 << 8;
        /// Field 6: less than; true for all elements of vectors.
        const CR6_LT = 8 << 4;
        /// Field 6: greater than.
        const CR6_GT = 4 << 4;
        /// Field 6: equal; true for no element of vectors.
        const CR6_EQ = 2 << 4;
        /// Field 6: summary overflow, unordered.
        const CR6_SO = 1 << 4;
        /// Field 7: less than.
        const CR7_LT = 8;
        /// Field 7: greater than.
        const CR7_GT = 4;
        /// Field 7: equal.
        const CR7_EQ = 2;
        /// Field 7: summary overflow, unordered.
        const CR7_SO = 1;
        /// Bits that have no name are kept as they are.
        const _ = !0;
    }
}

// ---- the context -------------------------------------------------------------------------------

impl Ucontext {
    #[inline(always)]
    pub(crate) fn pc(&self) -> usize {
        self.mcontext.nip as usize
    }

    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.mcontext.nip = pc as u64;
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.r1 as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.mcontext.r1 = sp as u64;
    }

    /// There is no frame pointer: the back chain that walkers follow begins at the stack pointer.
    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.sp()
    }

    /// The link register, on machines that have one.
    #[inline(always)]
    #[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.lr as usize)
    }

    /// Makes it look as if the interrupted function had called `target` and would come back at
    /// `resume`: Go's `pushCall`.
    ///
    /// The slot has 32 bytes: lr, r2 and r12 as they were, and 8 that are not written. r12 becomes
    /// the address of the code. In ELF V1 `target` is a function descriptor, from which r2 is set,
    /// too; its environment is left out: neither Rust's functions nor C's have one.
    ///
    /// # Safety
    ///
    /// The four words below the stack pointer may be overwritten, and `target`, a function,
    /// preserves everything: it gives the slot back and restores the three registers from it.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let registers = &mut self.mcontext;
        let sp = (registers.r1 as usize).wrapping_sub(32);
        let saved = [registers.lr, registers.r2, registers.r12];
        // SAFETY: the caller says that these words of the stack are free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut [u64; 3]).write_volatile(saved) };
        let code = if cfg!(target_abi = "elfv1") {
            // SAFETY: in this ABI every function's address is that of such words.
            let [code, toc] = unsafe { (target as *const [u64; 2]).read() };
            registers.r2 = toc;
            code
        } else {
            target as u64
        };
        registers.lr = resume as u64;
        registers.r12 = code;
        registers.r1 = sp as u64;
        registers.nip = code;
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The vector of the exception that led to the signal (`trap`): 0x300 for a data access, 0x700
    /// for an undefined instruction.
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trap
    }

    /// The last data access exception's address (`dar`).
    #[must_use]
    pub fn data_address(&self) -> u64 {
        self.ucontext().mcontext.dar
    }

    /// What the last data access exception was about (`dsisr`): bit 25 tells a store from a load.
    #[must_use]
    pub fn data_status(&self) -> u64 {
        self.ucontext().mcontext.dsisr
    }

    /// The first argument of the system call that was interrupted (`orig_gpr3`); its result has
    /// taken its place in r3.
    #[must_use]
    pub fn original_r3(&self) -> u64 {
        self.ucontext().mcontext.orig_r3
    }

    /// The machine state (`msr`). Of it a return takes the byte order alone.
    #[must_use]
    pub fn machine_state(&self) -> u64 {
        self.ucontext().mcontext.msr
    }

    /// Status and control of floating point (`fpscr`).
    #[must_use]
    pub fn floating_point_status(&self) -> u64 {
        self.ucontext().mcontext.fpscr
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// The start of a stack frame, to which the callback's back chain leads: here on behalf of the
/// interrupted function, which made no call. `pc` is where the function that it calls would save
/// lr.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct FrameRecord {
    chain: usize,
    cr: usize,
    pc: usize,
}

impl FrameRecord {
    #[inline(always)]
    pub(crate) fn of(uc: &Ucontext) -> Self {
        Self { chain: uc.sp(), cr: 0, pc: uc.pc() }
    }
}

/// Bits of `msr` that say whether a transaction runs or is suspended.
const MSR_TRANSACTION: u64 = 3 << 33;
/// What `v_regs` points to: 34 quadwords, and the second halves of 32 vectors.
const VECTOR_BYTES: usize = 34 * 16 + 32 * 8;

/// The save area of `lr` in a frame, in both ABIs.
const LR_SAVE: usize = 16;

/// Whether a function that keeps a frame pointer keeps its return address beside it.
pub(crate) const FRAME_POINTERS: bool = false;

/// The frame pointer, and the return address, that a function with the frame pointer `fp` keeps for its caller. `read`
/// reads a word of the stack. The caller's frame has the return address.
#[inline(always)]
pub(crate) fn caller_of(
    fp: usize,
    read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    let above = read(fp)?;
    Some((above, read(above.wrapping_add(LR_SAVE))?))
}

/// Looks whether the frame in `[lo, hi)` is one that can be copied.
///
/// With a transaction its second context is what counts, and is taken for extended state here.
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, lo: usize, hi: usize) -> Result<(), BadFrame> {
    if uc.mcontext.msr & MSR_TRANSACTION != 0 {
        return Err(BadFrame::ExtendedState { at: uc.link });
    }
    let vectors = uc.mcontext.v_regs;
    if vectors != 0 && (vectors < lo || vectors > hi.saturating_sub(VECTOR_BYTES)) {
        return Err(BadFrame::ExtendedState { at: vectors });
    }
    Ok(())
}

/// Makes the pointers into the frame point into its copy, `delta` bytes away. The kernel reads
/// `v_regs`, unwinders read `regs`.
#[inline(always)]
pub(crate) fn relocate(copy: &mut Ucontext, delta: usize) {
    if copy.mcontext.regs != 0 {
        copy.mcontext.regs = copy.mcontext.regs.wrapping_add(delta);
    }
    if copy.mcontext.v_regs != 0 {
        copy.mcontext.v_regs = copy.mcontext.v_regs.wrapping_add(delta);
    }
}

/// Makes a frame resume on the calling thread: r13 is the thread pointer.
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, _end: usize) {
    let thread: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mr {}, %r13", out(reg) thread, options(nomem, nostack, preserves_flags)) };
    copy.mcontext.r13 = thread;
}

/// Looks whether a frame can resume on the calling thread: always. There are no shadow stacks, and
/// vectors have one length.
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
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = 0x4400_0002_u32.to_ne_bytes();

/// Whether four bytes are `sc` or `scv`: opcode 17, of which the last two bits tell one from the
/// other. What is called is in the bits between.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    matches!(u32::from_ne_bytes(code) & 0xfc00_0003, 0x4400_0001 | 0x4400_0002)
}

/// Whether the byte can begin a system call instruction: all instructions are four bytes long, or
/// eight.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    if cfg!(target_endian = "little") { matches!(byte & 3, 1 | 2) } else { byte & 0xfc == 0x44 }
}
