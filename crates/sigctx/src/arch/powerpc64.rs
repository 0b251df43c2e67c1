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
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/powerpc/kernel/signal_64.c`, `kernel/vdso/sigtramp64.S`,
//! `include/uapi/asm/sigcontext.h`, `asm/ptrace.h`, `Documentation/arch/powerpc/syscall64-abi.rst`;
//! 64-Bit ELF V2 ABI Specification, 2.2.1 (registers), 2.2.3 (stack frames), 2.3.2 (function
//! entries); 64-bit PowerPC ELF Application Binary Interface Supplement 1.9, 3.2 (ELF V1).

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
pub(crate) const NAME: &str =
    if cfg!(target_endian = "little") { "powerpc64le" } else { "powerpc64" };
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function: what the kernel leaves
/// alone. The ABIs say 288.
pub(crate) const RED_ZONE: usize = 512;
/// From the stack pointer at the handler's entry to the `ucontext`: no constant here.
pub(crate) const UCONTEXT_OFFSET: UcontextOffset = UcontextOffset;
/// More than any frame of this architecture (about 4300 bytes): a longer one is not the kernel's.
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
    /// `struct sigaction`. The kernel does not look at `restorer`.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "sa_handler",
        flags: usize = "sa_flags",
        restorer: usize = "sa_restorer",
        mask: SigSet = "sa_mask",
    }
}

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        let flags = action.flags.bits() as usize;
        Self { handler: action.handler, flags, restorer: 0, mask: action.mask }
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

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
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
    assert!(size_of::<Ucontext>() == 1696);
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, signal) == offset_of!(libc::mcontext_t, signal));
    assert!(offset_of!(SigContext, handler) == offset_of!(libc::mcontext_t, handler));
    assert!(offset_of!(SigContext, oldmask) == offset_of!(libc::mcontext_t, oldmask));
    assert!(offset_of!(SigContext, regs) == offset_of!(libc::mcontext_t, regs));
    assert!(offset_of!(SigContext, fp_regs) == offset_of!(libc::mcontext_t, fp_regs));
    assert!(offset_of!(SigContext, v_regs) == offset_of!(libc::mcontext_t, v_regs));
    assert!(offset_of!(SigContext, vmx_reserve) == offset_of!(libc::mcontext_t, vmx_reserve));
    assert!(offset_of!(SigContext, r0) == greg(0));
    assert!(offset_of!(SigContext, r31) == greg(31));
    assert!(offset_of!(SigContext, nip) == greg(32));
    assert!(offset_of!(SigContext, msr) == greg(33));
    assert!(offset_of!(SigContext, ctr) == greg(35));
    assert!(offset_of!(SigContext, lr) == greg(36));
    assert!(offset_of!(SigContext, xer) == greg(37));
    assert!(offset_of!(SigContext, cr) == greg(38));
    assert!(offset_of!(SigContext, result) == greg(43));
};

/// The offset of libc's general register `index` in its `mcontext_t`.
const fn greg(index: usize) -> usize {
    offset_of!(libc::mcontext_t, gp_regs) + 8 * index
}

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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trap
    }

    /// The last data access exception's address (`dar`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn data_address(&self) -> u64 {
        self.ucontext().mcontext.dar
    }

    /// What the last data access exception was about (`dsisr`): bit 25 tells a store from a load.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn data_status(&self) -> u64 {
        self.ucontext().mcontext.dsisr
    }

    /// The first argument of the system call that was interrupted (`orig_gpr3`); its result has
    /// taken its place in r3.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn original_r3(&self) -> u64 {
        self.ucontext().mcontext.orig_r3
    }

    /// The machine state (`msr`). Of it a return takes the byte order alone.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn machine_state(&self) -> u64 {
        self.ucontext().mcontext.msr
    }

    /// Status and control of floating point (`fpscr`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn floating_point_status(&self) -> u64 {
        self.ucontext().mcontext.fpscr
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// The start of a stack frame, to which the callback's back chain leads: here on behalf of the
/// interrupted function, which called nobody. `pc` is where the function that it calls would save
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

// ---- entry, pivot ------------------------------------------------------------------------------

/// Begins a function that is called by its address: here the symbol is the code.
#[cfg(target_abi = "elfv2")]
macro_rules! function {
    ($name:literal) => {
        concat!(
            ".globl ",
            $name,
            "\n.hidden ",
            $name,
            "\n.type ",
            $name,
            ", @function\n",
            $name,
            ":\n.L.",
            $name,
            ":\n",
        )
    };
}

/// Begins a function that is called by its address: here the symbol is the descriptor, in a section
/// of its own.
#[cfg(not(target_abi = "elfv2"))]
macro_rules! function {
    ($name:literal) => {
        concat!(
            ".pushsection .opd, \"aw\", @progbits\n.balign 8\n",
            ".globl ",
            $name,
            "\n.hidden ",
            $name,
            "\n.type ",
            $name,
            ", @function\n",
            $name,
            ":\n.quad .L.",
            $name,
            ", .TOC.@tocbase, 0\n",
            ".popsection\n.L.",
            $name,
            ":\n",
        )
    };
}

/// The first instructions of a function that needs r2: its distance from the function's address in
/// r12 is known.
#[cfg(target_abi = "elfv2")]
macro_rules! table_of_contents {
    ($name:literal) => {
        concat!(
            "addis %r2, %r12, .TOC. - .L.",
            $name,
            "@ha\n",
            "addi %r2, %r2, .TOC. - .L.",
            $name,
            "@l\n",
            ".localentry ",
            $name,
            ", . - ",
            $name,
            "\n",
        )
    };
}

/// A function that needs r2 finds it set, from its descriptor.
#[cfg(not(target_abi = "elfv2"))]
macro_rules! table_of_contents {
    ($name:literal) => {
        ""
    };
}

/// Ends a function.
macro_rules! end {
    ($name:literal) => {
        concat!(".size ", $name, ", . - .L.", $name, "\n")
    };
}

/// One rule "register `$reg` (DWARF number) is saved at the word `$word` of the registers in the
/// ucontext that r29 points to": `DW_CFA_expression, reg, length 3, DW_OP_breg29, SLEB128 offset in
/// two bytes`.
macro_rules! saved_at {
    ($word:expr, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x8d, ((232 + 8*",
            $word,
            ") & 0x7f) | 0x80, (232 + 8*",
            $word,
            ") >> 7\n"
        )
    };
}

/// Where the condition register is in its word.
#[cfg(target_endian = "little")]
macro_rules! condition {
    () => {
        "38"
    };
}
/// Where the condition register is in its word.
#[cfg(target_endian = "big")]
macro_rules! condition {
    () => {
        "38 + 4"
    };
}

/// Where a `ucontext` at r29 has every register of the interrupted code. The caller's stack pointer
/// (CFA) is the value in the slot of r1: `DW_CFA_def_cfa_expression, length 4, DW_OP_breg29 offset,
/// DW_OP_deref`. The program counter has the number 67, as in the kernel's own rules: 65, lr, has a
/// value that is alive.
macro_rules! interrupted_registers {
    () => {
        concat!(
            ".cfi_return_column 67\n",
            ".cfi_escape 0x0f, 4, 0x8d, (240 & 0x7f) | 0x80, 240 >> 7, 0x06\n",
            saved_at!("0", "0"),
            saved_at!("2", "2"),
            saved_at!("3", "3"),
            saved_at!("4", "4"),
            saved_at!("5", "5"),
            saved_at!("6", "6"),
            saved_at!("7", "7"),
            saved_at!("8", "8"),
            saved_at!("9", "9"),
            saved_at!("10", "10"),
            saved_at!("11", "11"),
            saved_at!("12", "12"),
            saved_at!("13", "13"),
            saved_at!("14", "14"),
            saved_at!("15", "15"),
            saved_at!("16", "16"),
            saved_at!("17", "17"),
            saved_at!("18", "18"),
            saved_at!("19", "19"),
            saved_at!("20", "20"),
            saved_at!("21", "21"),
            saved_at!("22", "22"),
            saved_at!("23", "23"),
            saved_at!("24", "24"),
            saved_at!("25", "25"),
            saved_at!("26", "26"),
            saved_at!("27", "27"),
            saved_at!("28", "28"),
            saved_at!("29", "29"),
            saved_at!("30", "30"),
            saved_at!("31", "31"),
            saved_at!("36", "65"), // lr
            saved_at!("35", "66"), // ctr
            saved_at!("32", "67"), // nip
            // Every field of the condition register has a number; the register is saved as one.
            saved_at!(condition!(), "68"),
            saved_at!(condition!(), "69"),
            saved_at!(condition!(), "70"),
            saved_at!(condition!(), "71"),
            saved_at!(condition!(), "72"),
            saved_at!(condition!(), "73"),
            saved_at!(condition!(), "74"),
            saved_at!(condition!(), "75"),
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(offset_of!(Ucontext, mcontext.r0) == 232);
    assert!(offset_of!(Ucontext, mcontext.r1) == 240);
    assert!(offset_of!(Ucontext, mcontext.r31) == 232 + 8 * 31);
    assert!(offset_of!(Ucontext, mcontext.nip) == 232 + 8 * 32);
    assert!(offset_of!(Ucontext, mcontext.ctr) == 232 + 8 * 35);
    assert!(offset_of!(Ucontext, mcontext.lr) == 232 + 8 * 36);
    assert!(offset_of!(Ucontext, mcontext.cr) == 232 + 8 * 38);
    // The pivot reads the copied frame's address from the start of the record.
    assert!(offset_of!(Call, frame) == 0);
    // A back chain's words: the frame above, the condition register, the return address.
    assert!(offset_of!(FrameRecord, chain) == 0);
    assert!(offset_of!(FrameRecord, pc) == 16);
};

// A frame for a callee has 112 bytes: a header of 48 and the home of eight arguments. ELF V2 would
// be content with less.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    ".globl sigctx_begin_0_1",
    ".hidden sigctx_begin_0_1",
    "sigctx_begin_0_1:",
    // The handler of every signal. r3 = signal, r4 = siginfo, r5 = ucontext, lr = sigreturn code,
    // r1 = the caller's frame that the kernel made up.
    function!("sigctx_entry_0_1"),
    ".cfi_startproc",
    table_of_contents!("sigctx_entry_0_1"),
    "mflr %r0",
    "std %r0, 16(%r1)",           // in the caller's frame, where everybody puts it
    ".cfi_offset 65, 16",
    "mr %r6, %r1",                // fourth argument: where the frame begins
    "stdu %r1, -112(%r1)",
    ".cfi_def_cfa_offset 112",
    "bl {dispatch}",
    "nop",                      // where a linker that goes through a stub restores r2
    "cmpdi %r3, 0",
    "bne 2f",
    "addi %r1, %r1, 112",
    ".cfi_def_cfa_offset 0",
    "ld %r0, 16(%r1)",
    "mtlr %r0",
    ".cfi_restore 65",
    "blr",                      // a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 112",
    ".cfi_offset 65, 16",
    "ld %r31, 0(%r3)",            // the copied frame; these three outlive the call
    "ld %r30, {back}(%r3)",       // the sigreturn code
    "ld %r29, {context}(%r3)",    // the copied context
    ".cfi_endproc",
    end!("sigctx_entry_0_1"),
    // Runs on into the pivot. r3 = the record of the call (16-aligned, just below the copied
    // frame). From here on unwinders see the interrupted function as the caller: all its registers
    // are in the copied ucontext at r29.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!(),
    // A name for debuggers and backtraces: of the code, in both ABIs.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    ".L.sigctx_injected_call_0_1:",
    "addi %r4, %r3, {record}",
    "std %r4, -112(%r3)",         // the back chain, first: it must lead on at every instruction
    "addi %r1, %r3, -112",        // leaves the alternate stack for good
    // The default floating-point modes, which Rust code counts on. The kernel has set them, an
    // emulator may not have.
    "li %r0, 0",
    "std %r0, 48(%r1)",           // the callee's home for a parameter: free so far
    "lfd %f0, 48(%r1)",
    "mtfsf 255, %f0",
    "bl {run}",                 // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "nop",
    "li %r0, 0",
    "stw %r0, 0(%r3)",            // the stack may be injected again, but not from in here
    "mr %r1, %r31",
    "mtlr %r30",
    "blr",                      // the return that belongs to the kernel's call of the handler
    ".cfi_endproc",
    end!("sigctx_injected_call_0_1"),
    // Resumes a frame whose callback never returned. r3 = the copied frame, r4 = the sigreturn
    // code, r5 = `active`. Nobody called it: unwinders stop here.
    function!("sigctx_resume_0_1"),
    ".cfi_startproc",
    ".cfi_undefined 65",
    "li %r0, 0",
    "stw %r0, 0(%r5)",
    "mr %r1, %r3",
    "mtlr %r4",
    "blr",
    ".cfi_endproc",
    end!("sigctx_resume_0_1"),
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    context = const offset_of!(Call, context),
    record = const offset_of!(Call, record),
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_begin_0_1"]
    static BEGIN: u8;
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

/// The address of the handler that the kernel is given: in ELF V1 of its descriptor.
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
    // SAFETY: the entry saved it there.
    unsafe { ((entry_sp + 16) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to: an
/// addition to r1, a number for r0, `sc`. An emulator's has no addition.
pub(crate) const SIGRETURN_LEN: usize = 12;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    &raw const BEGIN as usize..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a comparison of 1 with 2, of 2 with 1, and an equal one leave.
    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        let status: u64;
        // SAFETY: compares registers with each other.
        unsafe {
            asm!(
                "cmpd %cr0, {one}, {two}",
                "cmpd %cr5, {two}, {one}",
                "cmpd %cr7, {one}, {one}",
                "mfcr {status}",
                one = in(reg) 1_u64,
                two = in(reg) 2_u64,
                status = out(reg) status,
                out("cr0") _,
                out("cr5") _,
                out("cr7") _,
                options(nomem, nostack),
            );
        }
        let fields = Status::from_bits_retain(status & 0xf000_0f0f) - OVERFLOW;
        assert_eq!(fields, Status::CR0_LT | Status::CR5_GT | Status::CR7_EQ);
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        assert_eq!(bits, 0xffff_ffff);
    }

    /// Copies of the summary overflow that happens to be set.
    const OVERFLOW: Status = Status::CR0_SO.union(Status::CR5_SO).union(Status::CR7_SO);

    #[test]
    fn system_call_instructions_are_known() {
        // sc, sc 1 (a hypervisor's), scv 0, scv 127
        for code in [0x4400_0002_u32, 0x4400_0022, 0x4400_0001, 0x4400_0fe1] {
            let code = code.to_ne_bytes();
            assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
        }
        // nop, an undefined instruction, b with absolute address and link, blr, bctrl
        for code in [0x6000_0000_u32, 0, 0x4800_0003, 0x4e80_0020, 0x4e80_0421] {
            assert!(!is_syscall(code.to_ne_bytes()), "{code:#x}");
        }
    }

    /// In ELF V1 no function's address is in this range: the addresses are descriptors'.
    #[test]
    fn the_trampoline_is_code() {
        let entry = entry();
        let code = if cfg!(target_abi = "elfv1") {
            // SAFETY: a function's descriptor begins with the address of its code.
            unsafe { (entry as *const usize).read() }
        } else {
            entry
        };
        assert_eq!(code, trampoline().start);
        assert!(trampoline().len() < 256, "{}", trampoline().len());
    }

    #[test]
    fn a_transaction_and_vectors_elsewhere_are_refused() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        let (lo, hi) = (0x10000, 0x11000);
        assert_eq!(check_frame(&uc, lo, hi), Ok(()));
        for (at, fits) in [(lo, true), (hi - VECTOR_BYTES, true), (hi - 544, false), (16, false)] {
            uc.mcontext.v_regs = at;
            assert_eq!(check_frame(&uc, lo, hi).is_ok(), fits, "{at:#x}");
        }
        uc.mcontext.v_regs = 0;
        uc.link = lo + 16;
        for state in [1_u64 << 33, 1 << 34] {
            uc.mcontext.msr = state;
            let refused = Err(BadFrame::ExtendedState { at: lo + 16 });
            assert_eq!(check_frame(&uc, lo, hi), refused);
        }
    }

    #[test]
    fn the_condition_register_takes_the_low_half() {
        // SAFETY: as above.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        uc.set(Reg::Cr, 0x1234_5678_9abc_def0);
        assert_eq!(uc.get(Reg::Cr), 0x9abc_def0);
        uc.set(Reg::Ctr, 0x1234_5678_9abc_def0);
        assert_eq!(uc.get(Reg::Ctr), 0x1234_5678_9abc_def0);
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! All but r1, which points at the table, and r13: handlers need the thread pointer. Which
    //! vectors there are is looked up at run time: none (f0-31), VMX (v0-31, vscr, vrsave) or VSX
    //! (vs0-63, whose first half has f0-31 and whose second half is v0-31).

    use core::arch::global_asm;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::Reg;
    use crate::probe::Instruction;

    /// The general registers, in the order of the table.
    const GENERAL: [Reg; 30] = [
        Reg::R0,
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
        Reg::R14,
        Reg::R15,
        Reg::R16,
        Reg::R17,
        Reg::R18,
        Reg::R19,
        Reg::R20,
        Reg::R21,
        Reg::R22,
        Reg::R23,
        Reg::R24,
        Reg::R25,
        Reg::R26,
        Reg::R27,
        Reg::R28,
        Reg::R29,
        Reg::R30,
        Reg::R31,
    ];

    /// Every register that code can hold a value in, once.
    #[derive(Clone, Debug)]
    #[repr(C, align(16))]
    struct State {
        /// vs0-63; a floating-point register is the first word of one of the first half.
        vectors: [[u64; 2]; 64],
        /// The register is the last word of the quadword.
        vscr: [u32; 4],
        general: [u64; 30],
        ctr: u64,
        lr: u64,
        xer: u64,
        cr: u64,
        fpscr: u64,
        vrsave: u64,
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
    /// is what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        host_vectors: [[u64; 2]; 12],
        host_vscr: [u32; 4],
        host_floats: [u64; 18],
        host_general: [u64; 18],
        host_sp: u64,
        host_r2: u64,
        host_lr: u64,
        host_cr: u64,
        host_fpscr: u64,
        host_vrsave: u64,
        /// Where the loop goes at its end: to its start, or out.
        next: AtomicUsize,
        /// Where the loop starts.
        first: usize,
        /// Registers of the loop, while it looks where to go.
        aside: [u64; 3],
        level: u32,
    }

    /// Floating-point status: the flags of exceptions that have occurred, but for the two that sum
    /// others up; result flags; rounding. No exception is enabled.
    const FPSCR: u64 = 0x9fff_f703;
    /// The flags of invalid operations, which bit 29 sums up.
    const FPSCR_INVALID: u64 = 0x01f8_0700;
    const FPSCR_INVALID_SUM: u64 = 1 << 29;
    /// Decimal rounding, on CPUs that have it.
    const FPSCR_DECIMAL: u64 = 7 << 32;
    /// Overflows and carry, and the length of strings.
    const XER: u64 = 0xe000_007f;
    /// Overflow and carry of 32-bit results, since ISA 3.0.
    const XER_32: u64 = 0x000c_0000;
    /// Non-Java mode and saturation.
    const VSCR: u32 = 0x0001_0001;
    /// Which word of a quadword in memory is the last of the register.
    const LAST: usize = if cfg!(target_endian = "little") { 0 } else { 3 };

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let features = features();
            let given = &mut self.given;
            let vectors = given.vectors.iter_mut().flatten();
            for value in given.general.iter_mut().chain(vectors) {
                *value = next();
            }
            given.ctr = next();
            given.lr = next();
            given.xer = next() & if features.isa_3_0 { XER | XER_32 } else { XER };
            given.cr = next() & 0xffff_ffff;
            given.fpscr = next() & if features.decimal { FPSCR | FPSCR_DECIMAL } else { FPSCR };
            if given.fpscr & FPSCR_INVALID != 0 {
                given.fpscr |= FPSCR_INVALID_SUM;
            }
            given.vrsave = next() & 0xffff_ffff;
            given.vscr = [0; 4];
            given.vscr[LAST] = next() as u32 & VSCR;
            self.first = super::probe::window().start;
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
                check(reg.name(), 0, given.general[i], found.general[i]);
            }
            check("ctr", 0, given.ctr, found.ctr);
            check("lr", 0, given.lr, found.lr);
            check("xer", 0, given.xer, found.xer);
            check("cr", 0, given.cr, found.cr);
            check("fpscr", 0, given.fpscr & 0xffff_ffff, found.fpscr & 0xffff_ffff);
            check("fpscr, decimal rounding", 0, given.fpscr >> 32, found.fpscr >> 32);
            let (vectors, words) = match level() {
                Level::Float => (32, 1),
                Level::Vmx => (64, 1),
                Level::Vsx => (64, 2),
            };
            for i in 0..vectors {
                // Without VSX, too, the second half are full vectors.
                for word in 0..if i < 32 { words } else { 2 } {
                    check("vs", 2 * i + word, given.vectors[i][word], found.vectors[i][word]);
                }
            }
            if level() != Level::Float {
                check("vrsave", 0, given.vrsave, found.vrsave);
                check("vscr", 0, given.vscr[LAST].into(), found.vscr[LAST].into());
            }
        }

        /// The word that says where the loop goes.
        pub(crate) fn next(&self) -> &AtomicUsize {
            &self.next
        }
    }

    /// The vectors that the CPU and the kernel have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u32)]
    enum Level {
        Float = 0,
        Vmx = 1,
        Vsx = 2,
    }

    /// The level, once it is known. The trampoline reads it, too.
    static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

    fn level() -> Level {
        match LEVEL.load(Ordering::Relaxed) {
            0 => Level::Float,
            1 => Level::Vmx,
            2 => Level::Vsx,
            _ => {
                let level = features().level;
                LEVEL.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    /// What the kernel says of the CPU.
    struct Features {
        level: Level,
        decimal: bool,
        isa_3_0: bool,
        /// The register `tar`, a target of jumps that no compiler uses.
        target_address: bool,
    }

    /// `PPC_FEATURE_…` and `PPC_FEATURE2_…` of `asm/cputable.h`.
    fn features() -> Features {
        const ALTIVEC: u64 = 0x1000_0000;
        const DECIMAL: u64 = 0x0000_0400;
        const VSX: u64 = 0x0000_0080;
        const ISA_3_0: u64 = 0x0080_0000;
        const TAR: u64 = 0x0400_0000;

        // SAFETY: reads the auxiliary vector.
        let first = unsafe { libc::getauxval(libc::AT_HWCAP) };
        // SAFETY: as above.
        let second = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        let level = match (first & ALTIVEC != 0, first & VSX != 0) {
            (_, true) => Level::Vsx,
            (true, false) => Level::Vmx,
            (false, false) => Level::Float,
        };
        Features {
            level,
            decimal: first & DECIMAL != 0,
            isa_3_0: second & ISA_3_0 != 0,
            target_address: second & TAR != 0,
        }
    }

    /// Reads a line of objdump's.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `stdu    r1,-112(r1)`.
        let reserved = line.split_once("stdu").and_then(|(_, operands)| {
            let (number, _) = operands.trim_start().strip_prefix("r1,-")?.split_once("(r1)")?;
            number.parse().ok()
        });
        // A word, not part of a name or a number.
        let names = |register| {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words.any(|word| word == register)
        };
        let relocations = ["R_PPC64_REL24", "R_PPC64_PLT", "R_PPC64_GOT", "TPREL", "DTPMOD"];
        Instruction {
            system_call: line.contains("\tsc") && (names("sc") || names("scv")),
            outside: relocations.iter().any(|kind| line.contains(kind)),
            thread_local: names("r13"),
            stack: reserved.unwrap_or_default(),
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Float => "general registers, cr, lr, ctr, xer, fpscr, f0-31",
            Level::Vmx => "general registers, cr, lr, ctr, xer, fpscr, f0-31, v0-31, vscr, vrsave",
            Level::Vsx => "general registers, cr, lr, ctr, xer, fpscr, vs0-63, vscr, vrsave",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and r1 points at the table, below
    // which lies a patterned red zone. {given…} and {found…} are offsets of the two states.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".balign 64",
        function!("sigctx_probe_spin_0_1"), // r3 = table
        "std %r1, {host_sp}(%r3)",
        "std %r2, {host_r2}(%r3)",
        "mflr %r0",
        "std %r0, {host_lr}(%r3)",
        "mfcr %r0",
        "std %r0, {host_cr}(%r3)",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "std \\n, {host_general} + 8*(\\n - 14)(%r3)",
        "stfd \\n, {host_floats} + 8*(\\n - 14)(%r3)",
        ".endr",
        "mffs %f0",
        "stfd %f0, {host_fpscr}(%r3)",
        "lwz %r4, {level}(%r3)",
        "cmpwi %r4, 1",
        "blt 21f",
        ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {host_vectors} + 16*(\\n - 20)",
        "stvx \\n, %r3, %r5",
        ".endr",
        "mfvscr %v0",
        "li %r5, {host_vscr}",
        "stvx %v0, %r3, %r5",
        "mfspr %r5, 256",            // vrsave
        "std %r5, {host_vrsave}(%r3)",
        "li %r5, {given_vscr}",
        "lvx %v0, %r3, %r5",
        "mtvscr %v0",
        "ld %r5, {given_vrsave}(%r3)",
        "mtspr 256, %r5",
        "21:",
        "lfd %f0, {given_fpscr}(%r3)",
        "mtfsf 255, %f0, 1, 0",      // all 64 bits
        "cmpwi %r4, 1",
        "bgt 22f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "lfd \\n, {given_vectors} + 16*\\n(%r3)",
        ".endr",
        "blt 23f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {given_vectors} + 512 + 16*\\n",
        "lvx \\n, %r3, %r5",
        ".endr",
        "b 23f",
        "22:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {given_vectors} + 16*\\n",
        "lxvd2x \\n, %r3, %r5",
        "li %r5, {given_vectors} + 512 + 16*\\n",
        "lxvd2x \\n + 32, %r3, %r5",
        ".endr",
        "23:",
        "ld %r4, {given_ctr}(%r3)",
        "mtctr %r4",
        "ld %r4, {given_lr}(%r3)",
        "mtlr %r4",
        "ld %r4, {given_xer}(%r3)",
        "mtxer %r4",
        "ld %r4, {given_cr}(%r3)",
        "mtcrf 255, %r4",
        "mr %r1, %r3",
        "ld %r0, {given}(%r1)",
        ".irp n,2,3,4,5,6,7,8,9,10,11,12",
        "ld \\n, {given} + 8*(\\n - 1)(%r1)",
        ".endr",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld \\n, {given} + 8*(\\n - 2)(%r1)",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 64",
        "nop",
        "addi %r3, %r3, 1",
        "addi %r3, %r3, -1",
        ".rept 2",                  // exchanges two registers, twice
        "xor %r14, %r14, %r15",
        "xor %r15, %r14, %r15",
        "xor %r14, %r14, %r15",
        ".endr",
        "b . + 4",                  // emulators interrupt at jumps
        ".endr",
        "b 24f",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "std %r0, {found}(%r1)",
        ".irp n,2,3,4,5,6,7,8,9,10,11,12",
        "std \\n, {found} + 8*(\\n - 1)(%r1)",
        ".endr",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "std \\n, {found} + 8*(\\n - 2)(%r1)",
        ".endr",
        "mr %r3, %r1",
        "ld %r1, {host_sp}(%r3)",
        "mfcr %r4",
        "std %r4, {found_cr}(%r3)",
        "mfctr %r4",
        "std %r4, {found_ctr}(%r3)",
        "mflr %r4",
        "std %r4, {found_lr}(%r3)",
        "mfxer %r4",
        "std %r4, {found_xer}(%r3)",
        "lwz %r4, {level}(%r3)",
        "cmpwi %r4, 1",
        "bgt 25f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "stfd \\n, {found_vectors} + 16*\\n(%r3)",
        ".endr",
        "blt 26f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {found_vectors} + 512 + 16*\\n",
        "stvx \\n, %r3, %r5",
        ".endr",
        "b 26f",
        "25:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {found_vectors} + 16*\\n",
        "stxvd2x \\n, %r3, %r5",
        "li %r5, {found_vectors} + 512 + 16*\\n",
        "stxvd2x \\n + 32, %r3, %r5",
        ".endr",
        "26:",
        "mffs %f0",
        "stfd %f0, {found_fpscr}(%r3)",
        "lfd %f0, {host_fpscr}(%r3)",
        "mtfsf 255, %f0, 1, 0",
        "cmpwi %r4, 1",
        "blt 27f",
        "mfvscr %v0",
        "li %r5, {found_vscr}",
        "stvx %v0, %r3, %r5",
        "mfspr %r5, 256",
        "std %r5, {found_vrsave}(%r3)",
        "li %r5, {host_vscr}",
        "lvx %v0, %r3, %r5",
        "mtvscr %v0",
        "ld %r5, {host_vrsave}(%r3)",
        "mtspr 256, %r5",
        ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, {host_vectors} + 16*(\\n - 20)",
        "lvx \\n, %r3, %r5",
        ".endr",
        "27:",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "lfd \\n, {host_floats} + 8*(\\n - 14)(%r3)",
        "ld \\n, {host_general} + 8*(\\n - 14)(%r3)",
        ".endr",
        "ld %r0, {host_cr}(%r3)",
        "mtcrf 255, %r0",
        "ld %r0, {host_lr}(%r3)",
        "mtlr %r0",
        "ld %r2, {host_r2}(%r3)",
        "blr",
        // From the loop's end to its start, or out. There is no jump through memory, so the
        // registers that a comparison takes are put aside as they are; calls are not injected here.
        "24:",
        "std %r10, {aside}(%r1)",
        "std %r11, {aside} + 8(%r1)",
        "std %r12, {aside} + 16(%r1)",
        "mfcr %r10",
        "ld %r11, {next}(%r1)",
        "ld %r12, {first}(%r1)",
        "cmpd %r11, %r12",
        "bne 28f",
        "mtcrf 255, %r10",
        "ld %r10, {aside}(%r1)",
        "ld %r11, {aside} + 8(%r1)",
        "ld %r12, {aside} + 16(%r1)",
        "b sigctx_probe_loop_0_1",
        "28:",
        "mtcrf 255, %r10",
        "ld %r10, {aside}(%r1)",
        "ld %r11, {aside} + 8(%r1)",
        "ld %r12, {aside} + 16(%r1)",
        "b sigctx_probe_exit_0_1",
        end!("sigctx_probe_spin_0_1"),
        // Writes something else into everything. r3 = level. The frame: 112 r14-31, 256 f14-31,
        // 400 v20-31, 592 vscr, 608 scratch, 624 fpscr, 632 vrsave, 640 r2, 648 level.
        function!("sigctx_probe_clobber_0_1"),
        "mflr %r0",
        "std %r0, 16(%r1)",
        "mfcr %r0",
        "stw %r0, 8(%r1)",
        "stdu %r1, -656(%r1)",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "std \\n, 112 + 8*(\\n - 14)(%r1)",
        "stfd \\n, 256 + 8*(\\n - 14)(%r1)",
        ".endr",
        "std %r2, 640(%r1)",
        "std %r3, 648(%r1)",
        "mffs %f0",
        "stfd %f0, 624(%r1)",
        "li %r4, 7",                 // all flags, rounding the other way, no exception enabled
        "sldi %r4, %r4, 32",
        "oris %r4, %r4, 0x9fff",
        "ori %r4, %r4, 0xf703",
        "std %r4, 608(%r1)",
        "lfd %f0, 608(%r1)",
        "mtfsf 255, %f0, 1, 0",
        "li %r4, -1",
        "std %r4, 608(%r1)",
        "cmpwi %r3, 1",
        "blt 31f",
        ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, 400 + 16*(\\n - 20)",
        "stvx \\n, %r1, %r5",
        ".endr",
        "mfvscr %v0",
        "li %r5, 592",
        "stvx %v0, %r1, %r5",
        "mfspr %r5, 256",
        "std %r5, 632(%r1)",
        "not %r5, %r5",
        "mtspr 256, %r5",
        "vspltisw %v0, -1",
        "mtvscr %v0",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vspltisw \\n, -1",
        ".endr",
        "bgt 32f",
        "31:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "lfd \\n, 608(%r1)",
        ".endr",
        "b 33f",
        "32:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "xxlor \\n, 63, 63",
        ".endr",
        "33:",
        "mtctr %r4",
        "mtlr %r4",
        "mtcrf 255, %r4",
        "lis %r5, 0xe000 - 0x10000",
        "ori %r5, %r5, 0x7f",
        "mtxer %r5",
        ".irp n,0,2,3,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li \\n, 0x5555",
        ".endr",
        // Back to what the ABI promises the caller: of the two status registers what controls.
        "mffs %f0",
        "stfd %f0, 608(%r1)",
        "ld %r4, 608(%r1)",
        "ld %r5, 624(%r1)",
        "li %r6, 7",                 // decimal rounding
        "sldi %r6, %r6, 32",
        "ori %r6, %r6, 0xff",        // enabled exceptions, rounding
        "andc %r4, %r4, %r6",
        "and %r5, %r5, %r6",
        "or %r4, %r4, %r5",
        "std %r4, 608(%r1)",
        "lfd %f0, 608(%r1)",
        "mtfsf 255, %f0, 1, 0",
        "ld %r4, 648(%r1)",
        "cmpwi %r4, 1",
        "blt 34f",
        "li %r5, 592",
        "lvx %v0, %r1, %r5",
        "vspltisw %v1, 1",           // saturation stays
        "vor %v0, %v0, %v1",
        "mtvscr %v0",
        "ld %r5, 632(%r1)",
        "mtspr 256, %r5",
        ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r5, 400 + 16*(\\n - 20)",
        "lvx \\n, %r1, %r5",
        ".endr",
        "34:",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld \\n, 112 + 8*(\\n - 14)(%r1)",
        "lfd \\n, 256 + 8*(\\n - 14)(%r1)",
        ".endr",
        "ld %r2, 640(%r1)",
        "addi %r1, %r1, 656",
        "lwz %r0, 8(%r1)",
        "mtcrf 0x38, %r0",           // fields 2 to 4
        "ld %r0, 16(%r1)",
        "mtlr %r0",
        "li %r0, 0x5555",
        "blr",
        end!("sigctx_probe_clobber_0_1"),
        ".popsection",
        given = const offset_of!(Table, given.general),
        given_ctr = const offset_of!(Table, given.ctr),
        given_lr = const offset_of!(Table, given.lr),
        given_xer = const offset_of!(Table, given.xer),
        given_cr = const offset_of!(Table, given.cr),
        given_fpscr = const offset_of!(Table, given.fpscr),
        given_vrsave = const offset_of!(Table, given.vrsave),
        given_vscr = const offset_of!(Table, given.vscr),
        given_vectors = const offset_of!(Table, given.vectors),
        found = const offset_of!(Table, found.general),
        found_ctr = const offset_of!(Table, found.ctr),
        found_lr = const offset_of!(Table, found.lr),
        found_xer = const offset_of!(Table, found.xer),
        found_cr = const offset_of!(Table, found.cr),
        found_fpscr = const offset_of!(Table, found.fpscr),
        found_vrsave = const offset_of!(Table, found.vrsave),
        found_vscr = const offset_of!(Table, found.vscr),
        found_vectors = const offset_of!(Table, found.vectors),
        host_sp = const offset_of!(Table, host_sp),
        host_r2 = const offset_of!(Table, host_r2),
        host_lr = const offset_of!(Table, host_lr),
        host_cr = const offset_of!(Table, host_cr),
        host_fpscr = const offset_of!(Table, host_fpscr),
        host_vrsave = const offset_of!(Table, host_vrsave),
        host_vscr = const offset_of!(Table, host_vscr),
        host_general = const offset_of!(Table, host_general),
        host_floats = const offset_of!(Table, host_floats),
        host_vectors = const offset_of!(Table, host_vectors),
        next = const offset_of!(Table, next),
        first = const offset_of!(Table, first),
        aside = const offset_of!(Table, aside),
        level = const offset_of!(Table, level),
    );

    /// `lvx` and `stvx` ignore the last four bits of an address.
    const _: () = {
        assert!(offset_of!(Table, given.vectors).is_multiple_of(16));
        assert!(offset_of!(Table, given.vscr).is_multiple_of(16));
        assert!(offset_of!(Table, found.vectors).is_multiple_of(16));
        assert!(offset_of!(Table, found.vscr).is_multiple_of(16));
        assert!(offset_of!(Table, host_vectors).is_multiple_of(16));
        assert!(offset_of!(Table, host_vscr).is_multiple_of(16));
    };

    // Values that name their registers; then an undefined instruction, whose handler steps over it.
    // r13 stays the thread pointer. Not one register is left to find the way back with, the stack
    // pointer included: it is in a static, found by its distance from the code.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 8",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".balign 8",
        "35:",
        ".irp n,a0,01,02,03,04,05,06,07,08,09,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        ".quad 0x\\n\\n\\n\\n\\n\\n\\n\\n",
        ".endr",
        ".quad 0xc7c7c7c7c7c7c7c7", // ctr
        ".quad 0x1a1a1a1a1a1a1a1a", // lr
        ".quad 0xe0000055",         // xer
        ".quad 0x12345678",         // cr
        function!("sigctx_probe_known_0_1"),
        "mflr %r0",
        "std %r0, 16(%r1)",
        "mfcr %r0",
        "stw %r0, 8(%r1)",
        "stdu %r1, -272(%r1)",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "std \\n, 112 + 8*(\\n - 14)(%r1)",
        ".endr",
        "std %r2, 256(%r1)",
        "bcl 20, 31, 36f",          // the form that does not disturb the prediction of returns
        "36: mflr %r3",
        "addis %r4, %r3, sigctx_probe_saved_0_1 - 36b@ha",
        "addi %r4, %r4, sigctx_probe_saved_0_1 - 36b@l",
        "std %r1, 0(%r4)",
        "addi %r1, %r3, 35b - 36b",
        "ld %r3, 8*32(%r1)",
        "mtctr %r3",
        "ld %r3, 8*33(%r1)",
        "mtlr %r3",
        "ld %r3, 8*34(%r1)",
        "mtxer %r3",
        "ld %r3, 8*35(%r1)",
        "mtcrf 255, %r3",
        ".irp n,0,2,3,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld \\n, 8*\\n(%r1)",
        ".endr",
        "ld %r1, 8*1(%r1)",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        ".long 0",
        "bcl 20, 31, 37f",
        "37: mflr %r3",
        "addis %r4, %r3, sigctx_probe_saved_0_1 - 37b@ha",
        "addi %r4, %r4, sigctx_probe_saved_0_1 - 37b@l",
        "ld %r1, 0(%r4)",
        ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ld \\n, 112 + 8*(\\n - 14)(%r1)",
        ".endr",
        "ld %r2, 256(%r1)",
        "addi %r1, %r1, 272",
        "lwz %r0, 8(%r1)",
        "mtcrf 255, %r0",
        "ld %r0, 16(%r1)",
        "mtlr %r0",
        "blr",
        end!("sigctx_probe_known_0_1"),
        // What `push_call` is meant for: a trampoline that keeps everything itself. The handler has
        // lowered the stack pointer by the red zone and by the slot; the last addition gives both
        // back. Go's goes back through ctr, which its compiler does not expect to be kept; this one
        // goes through tar, which no compiler uses. The frame: 112 r0, r3-11, 192 cr, 200 ctr,
        // 208 xer, 216 fpscr, 224 where to go on, 240 vscr, 256 vectors; 1280 the slot. All vectors
        // are kept, because loading a part of one may clear the rest.
        function!("sigctx_probe_trampoline_0_1"),
        table_of_contents!("sigctx_probe_trampoline_0_1"),
        "stdu %r1, -1280(%r1)",
        "std %r0, 112(%r1)",
        ".irp n,3,4,5,6,7,8,9,10,11",
        "std \\n, 120 + 8*(\\n - 3)(%r1)",
        ".endr",
        "mfcr %r0",
        "std %r0, 192(%r1)",
        "mfctr %r0",
        "std %r0, 200(%r1)",
        "mfxer %r0",
        "std %r0, 208(%r1)",
        "mflr %r0",
        "std %r0, 224(%r1)",
        "addis %r4, %r2, {level}@toc@ha",
        "lwz %r4, {level}@toc@l(%r4)",
        "cmpwi %r4, 1",
        "bgt 41f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "stfd \\n, 256 + 16*\\n(%r1)",
        ".endr",
        "blt 43f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r4, 768 + 16*\\n",
        "stvx \\n, %r1, %r4",
        ".endr",
        "b 42f",
        "41:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r4, 256 + 16*\\n",
        "stxvd2x \\n, %r1, %r4",
        "li %r4, 768 + 16*\\n",
        "stxvd2x \\n + 32, %r1, %r4",
        ".endr",
        "42:",
        "mfvscr %v0",
        "li %r4, 240",
        "stvx %v0, %r1, %r4",
        "43:",
        "mffs %f0",
        "stfd %f0, 216(%r1)",
        "bl {hook}",
        "nop",
        "lfd %f0, 216(%r1)",
        "mtfsf 255, %f0, 1, 0",
        "addis %r4, %r2, {level}@toc@ha",
        "lwz %r4, {level}@toc@l(%r4)",
        "cmpwi %r4, 1",
        "blt 44f",
        "li %r4, 240",
        "lvx %v0, %r1, %r4",
        "mtvscr %v0",
        "bgt 45f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r4, 768 + 16*\\n",
        "lvx \\n, %r1, %r4",
        ".endr",
        "44:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "lfd \\n, 256 + 16*\\n(%r1)",
        ".endr",
        "b 46f",
        "45:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "li %r4, 256 + 16*\\n",
        "lxvd2x \\n, %r1, %r4",
        "li %r4, 768 + 16*\\n",
        "lxvd2x \\n + 32, %r1, %r4",
        ".endr",
        "46:",
        "ld %r0, 224(%r1)",
        "mtspr 815, %r0",            // tar
        "ld %r0, 208(%r1)",
        "mtxer %r0",
        "ld %r0, 200(%r1)",
        "mtctr %r0",
        "ld %r0, 192(%r1)",
        "mtcrf 255, %r0",
        "ld %r0, 1280(%r1)",
        "mtlr %r0",
        "ld %r2, 1288(%r1)",
        "ld %r12, 1296(%r1)",
        ".irp n,3,4,5,6,7,8,9,10,11",
        "ld \\n, 120 + 8*(\\n - 3)(%r1)",
        ".endr",
        "ld %r0, 112(%r1)",
        "addi %r1, %r1, 1280 + 32 + {red_zone}",
        ".long 0x4e800460",         // bctar
        end!("sigctx_probe_trampoline_0_1"),
        ".popsection",
        level = sym LEVEL,
        red_zone = const super::RED_ZONE,
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
        fn clobber_code(level: u32);
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
        // SAFETY: the caller's obligation. Zeroes are an instruction that never will be defined.
        unsafe { core::arch::asm!(".long 0") };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 4;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::R13, "the thread's")];

    /// DWARF's numbers of registers (the OpenPOWER ABI): the first, and those from it on. The stack
    /// pointer, r1, is told by the frame's address alone; the condition register has eight numbers.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[
        (0, &[Reg::R0]),
        (
            2,
            &[
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
                Reg::R16,
                Reg::R17,
                Reg::R18,
                Reg::R19,
                Reg::R20,
                Reg::R21,
                Reg::R22,
                Reg::R23,
                Reg::R24,
                Reg::R25,
                Reg::R26,
                Reg::R27,
                Reg::R28,
                Reg::R29,
                Reg::R30,
                Reg::R31,
            ],
        ),
        (65, &[Reg::Lr, Reg::Ctr]),
    ];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 16]);

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    /// The trampoline for `push_call`.
    ///
    /// # Panics
    ///
    /// Before POWER8 there is no register to jump through that the loop does not use.
    pub(crate) fn pushed_trampoline() -> usize {
        assert!(features().target_address, "this CPU has no tar");
        // For the trampoline.
        level();
        trampoline_code as *const () as usize
    }

    /// The stack pointer, as the function that this is inlined into has it: the back chain begins
    /// there.
    #[inline(always)]
    pub(crate) fn frame_pointer() -> usize {
        let sp: usize;
        // SAFETY: reads a register.
        unsafe { core::arch::asm!("mr {}, %r1", out(reg) sp, options(nomem, nostack)) };
        sp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction. Says whether it can: not
    /// here, the bits for it are the kernel's.
    pub(crate) fn single_step(_ctx: &mut crate::SigCtx<'_>) -> bool {
        false
    }
}
