//! x86-64. The file that the other architectures' files are written after: same items, same
//! order; what is explained here is not explained there.
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
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/x86/kernel/signal_64.c`,
//! `arch/x86/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; System V ABI AMD64 supplement, 3.2.2
//! (red zone), 3.4 (stack alignment).

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
pub(crate) const NAME: &str = "x86_64";
/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: usize = 128;
/// From the stack pointer at the handler's entry to the `ucontext`: the return address.
pub(crate) const UCONTEXT_OFFSET: usize = 8;
/// More than any frame of this architecture (with AMX tiles about 11 KiB): a longer one is not
/// the kernel's.
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

/// The system call instruction. The kernel destroys rcx and r11, and nothing else.
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
    /// `struct kernel_sigaction`.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "sa_handler",
        flags: usize = "sa_flags",
        restorer: usize = "sa_restorer",
        mask: SigSet = "sa_mask",
    }
}

/// `SA_RESTORER`: `restorer` is valid. The kernel demands it here.
const RESTORER: u32 = 0x0400_0000;

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        Self {
            handler: action.handler,
            flags: (action.flags.bits() | RESTORER) as usize,
            restorer: restorer(),
            mask: action.mask,
        }
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags as u32 & !RESTORER);
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

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];
/// What a C program includes to have the types that [`LAYOUTS`] names. Without libc's headers: they
/// have types of the same names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// Layouts against libc's, field by field.
const _: () = {
    assert!(size_of::<Ucontext>() == 304);
    assert!(offset_of!(Ucontext, flags) == offset_of!(libc::ucontext_t, uc_flags));
    assert!(offset_of!(Ucontext, link) == offset_of!(libc::ucontext_t, uc_link));
    assert!(offset_of!(Ucontext, stack) == offset_of!(libc::ucontext_t, uc_stack));
    assert!(offset_of!(Ucontext, mcontext) == offset_of!(libc::ucontext_t, uc_mcontext));
    assert!(offset_of!(Ucontext, sigmask) == offset_of!(libc::ucontext_t, uc_sigmask));
    assert!(size_of::<SigContext>() == size_of::<libc::mcontext_t>());
    assert!(size_of::<SignalStack>() == size_of::<libc::stack_t>());
    assert!(offset_of!(SignalStack, sp) == offset_of!(libc::stack_t, ss_sp));
    assert!(offset_of!(SignalStack, flags) == offset_of!(libc::stack_t, ss_flags));
    assert!(offset_of!(SignalStack, size) == offset_of!(libc::stack_t, ss_size));
    assert!(offset_of!(SigContext, r8) == greg(libc::REG_R8));
    assert!(offset_of!(SigContext, r9) == greg(libc::REG_R9));
    assert!(offset_of!(SigContext, r10) == greg(libc::REG_R10));
    assert!(offset_of!(SigContext, r11) == greg(libc::REG_R11));
    assert!(offset_of!(SigContext, r12) == greg(libc::REG_R12));
    assert!(offset_of!(SigContext, r13) == greg(libc::REG_R13));
    assert!(offset_of!(SigContext, r14) == greg(libc::REG_R14));
    assert!(offset_of!(SigContext, r15) == greg(libc::REG_R15));
    assert!(offset_of!(SigContext, di) == greg(libc::REG_RDI));
    assert!(offset_of!(SigContext, si) == greg(libc::REG_RSI));
    assert!(offset_of!(SigContext, bp) == greg(libc::REG_RBP));
    assert!(offset_of!(SigContext, bx) == greg(libc::REG_RBX));
    assert!(offset_of!(SigContext, dx) == greg(libc::REG_RDX));
    assert!(offset_of!(SigContext, ax) == greg(libc::REG_RAX));
    assert!(offset_of!(SigContext, cx) == greg(libc::REG_RCX));
    assert!(offset_of!(SigContext, sp) == greg(libc::REG_RSP));
    assert!(offset_of!(SigContext, ip) == greg(libc::REG_RIP));
    assert!(offset_of!(SigContext, flags) == greg(libc::REG_EFL));
    assert!(offset_of!(SigContext, cs) == greg(libc::REG_CSGSFS));
    assert!(offset_of!(SigContext, err) == greg(libc::REG_ERR));
    assert!(offset_of!(SigContext, trapno) == greg(libc::REG_TRAPNO));
    assert!(offset_of!(SigContext, oldmask) == greg(libc::REG_OLDMASK));
    assert!(offset_of!(SigContext, cr2) == greg(libc::REG_CR2));
    assert!(offset_of!(SigContext, fpstate) == greg(libc::REG_CR2) + 8);
};

/// The offset of libc's general register `index` in its `mcontext_t`.
const fn greg(index: c_int) -> usize {
    offset_of!(libc::mcontext_t, gregs) + 8 * index as usize
}

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

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// The number of the exception that led to the signal (`trapno`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trapno
    }

    /// The exception's error code (`err`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.ucontext().mcontext.err
    }

    /// The last page fault's address (`cr2`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn page_fault_address(&self) -> u64 {
        self.ucontext().mcontext.cr2
    }

    /// The first word of the blocked signals, where the oldest handlers look for it (`oldmask`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn old_mask(&self) -> u64 {
        self.ucontext().mcontext.oldmask
    }

    /// The selectors cs, gs, fs and ss as libc packs them in `REG_CSGSFS`.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn selectors(&self) -> u64 {
        let c = &self.ucontext().mcontext;
        [c.ss, c.fs, c.gs, c.cs].into_iter().fold(0, |word, part| word << 16 | u64::from(part))
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// What a function that keeps frame pointers leaves below its caller's frame: here on behalf of
/// the interrupted function, which called nobody.
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
/// The XSAVE image itself is copied with its header and both magic words as they are: if one of
/// them were lost, the kernel would restore the legacy part alone and say nothing.
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
/// With a shadow stack it cannot: the token for the frame is on the first thread's. Nor in a process
/// that has asked for AMX: the state of a thread that has used it is longer, and of a frame of
/// another length the kernel restores the legacy part alone and says nothing
/// (`arch/x86/kernel/fpu/signal.c`: `check_xstate_in_sigframe`).
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

/// One of them, for tests.
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

// ---- entry, pivot, restorer --------------------------------------------------------------------

/// One rule "register `$reg` (DWARF number) is saved at register `$base` + `$offset`":
/// `DW_CFA_expression, reg, length 3, DW_OP_breg<base>, SLEB128 offset in two bytes`.
macro_rules! saved_at {
    ($base:literal, $offset:literal, $extra:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", ((",
            $offset,
            " + ",
            $extra,
            ") & 0x7f) | 0x80, (",
            $offset,
            " + ",
            $extra,
            ") >> 7\n"
        )
    };
}

/// Where a `ucontext` at register `$base` + `$extra` has every register of the interrupted code:
/// the caller's stack pointer (CFA) is the value in the slot of rsp,
/// `DW_CFA_def_cfa_expression, length 4, DW_OP_breg<base> offset, DW_OP_deref`.
macro_rules! interrupted_registers {
    ($base:literal, $extra:literal) => {
        concat!(
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((160 + ",
            $extra,
            ") & 0x7f) | 0x80, (160 + ",
            $extra,
            ") >> 7, 0x06\n",
            saved_at!($base, "144", $extra, "0"),  // rax
            saved_at!($base, "136", $extra, "1"),  // rdx
            saved_at!($base, "152", $extra, "2"),  // rcx
            saved_at!($base, "128", $extra, "3"),  // rbx
            saved_at!($base, "112", $extra, "4"),  // rsi
            saved_at!($base, "104", $extra, "5"),  // rdi
            saved_at!($base, "120", $extra, "6"),  // rbp
            saved_at!($base, "160", $extra, "7"),  // rsp
            saved_at!($base, "40", $extra, "8"),   // r8
            saved_at!($base, "48", $extra, "9"),   // r9
            saved_at!($base, "56", $extra, "10"),  // r10
            saved_at!($base, "64", $extra, "11"),  // r11
            saved_at!($base, "72", $extra, "12"),  // r12
            saved_at!($base, "80", $extra, "13"),  // r13
            saved_at!($base, "88", $extra, "14"),  // r14
            saved_at!($base, "96", $extra, "15"),  // r15
            saved_at!($base, "168", $extra, "16"), // rip
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(offset_of!(Ucontext, mcontext.r8) == 40);
    assert!(offset_of!(Ucontext, mcontext.r15) == 96);
    assert!(offset_of!(Ucontext, mcontext.di) == 104);
    assert!(offset_of!(Ucontext, mcontext.si) == 112);
    assert!(offset_of!(Ucontext, mcontext.bp) == 120);
    assert!(offset_of!(Ucontext, mcontext.bx) == 128);
    assert!(offset_of!(Ucontext, mcontext.dx) == 136);
    assert!(offset_of!(Ucontext, mcontext.ax) == 144);
    assert!(offset_of!(Ucontext, mcontext.cx) == 152);
    assert!(offset_of!(Ucontext, mcontext.sp) == 160);
    assert!(offset_of!(Ucontext, mcontext.ip) == 168);
    // The pivot reads the copied frame's address from the start of the record. Where the handler
    // returns to it has from the frame itself.
    assert!(offset_of!(Call, frame) == 0);
};

// The three pieces lie together, so that one range of addresses tells whether an interrupted
// thread is on its way between a frame and the code that it belongs to.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. rdi = signal, rsi = siginfo, rdx = ucontext,
    // [rsp] = the restorer's address, rsp = 8 modulo 16.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "mov rcx, rsp",             // fourth argument: where the frame begins
    "sub rsp, 8",               // a call wants rsp = 0 modulo 16 before it
    ".cfi_adjust_cfa_offset 8",
    "call {dispatch}",
    "test rax, rax",
    "jnz 2f",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "ret",                      // to the restorer: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 8",
    "mov rbx, [rax]",           // the copied frame; callee-saved, so it outlives the call
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. rax = the record of the call (16-aligned, just below the copied
    // frame), rbx = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied ucontext at rbx + 8.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("3", "8"),
    // A name for debuggers and backtraces.
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "mov rsp, rax",             // leaves the alternate stack for good
    "mov rdi, rax",
    "lea rbp, [rax + {record}]", // what frame-pointer walkers go on with
    "call {run}",               // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "mov dword ptr [rax], 0",   // the stack may be injected again, but not from in here
    "mov rsp, rbx",
    "ret",                      // to the restorer, with rsp at the copied ucontext
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. rdi = the copied frame, rsi = where the
    // handler returns to, which is in the frame as well, rdx = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "mov rbx, rdi",
    "mov rax, rdx",
    "jmp 3b",
    ".cfi_endproc",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    // rt_sigreturn, byte for byte as in glibc (`mov rax, 15; syscall`): gdb and libgcc know a
    // signal frame by these nine bytes. The no-op is for unwinders, which look up the byte
    // before a return address.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("7", "0"),
    "nop",
    ".globl sigctx_restorer_0_1",
    ".hidden sigctx_restorer_0_1",
    ".type sigctx_restorer_0_1, @function",
    "sigctx_restorer_0_1:",
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    "ud2",
    ".cfi_endproc",
    ".size sigctx_restorer_0_1, . - sigctx_restorer_0_1",
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    record = const offset_of!(Call, record),
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_restorer_0_1"]
    fn restorer_code();
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

/// The address of the handler that the kernel is given.
#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

/// The address that the kernel is given for a handler to return to.
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
    // SAFETY: the kernel pushed it.
    unsafe { (entry_sp as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to.
pub(crate) const SIGRETURN_LEN: usize = 9;

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// gdb: `amd64_linux_sigtramp_start`; libgcc: `x86_64_fallback_frame_state`.
    #[test]
    fn the_restorer_is_the_one_that_debuggers_know() {
        let code = restorer() as *const [u8; 9];
        // SAFETY: code can be read.
        let code = unsafe { code.read() };
        assert_eq!(code, [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]);
        assert!(trampoline().contains(&restorer()));
    }

    /// 0x246 is what most code is interrupted with.
    #[test]
    fn status_flags_are_where_the_manual_has_them() {
        let status = Status::from_bits_retain(0x246);
        assert_eq!(status, Status::PF | Status::ZF | Status::IF | Status::from_bits_retain(2));
        let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
        // 1, 3, 5 and 15 are reserved; 13 is the upper half of IOPL.
        assert_eq!(bits, 0x3f_7fd5);
    }

    #[test]
    fn system_call_instructions_are_known() {
        for code in [[0x0f, 0x05], [0x0f, 0x34], [0xcd, 0x80]] {
            assert!(is_syscall(code) && begins_syscall(code[0]));
        }
        // ud2, int3 int3, a two-byte no-op
        for code in [[0x0f, 0x0b], [0xcc, 0xcc], [0x66, 0x90], [0xcd, 0x03]] {
            assert!(!is_syscall(code), "{code:02x?}");
        }
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! Which vectors there are is looked up at run time: SSE (xmm0-15), AVX (ymm0-15) or AVX-512
    //! (zmm0-31, k0-7).

    use core::arch::global_asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;

    /// The general registers, in the order of the table: all but the stack pointer, which points at
    /// the table.
    const GENERAL: [Reg; 15] = [
        Reg::Rax,
        Reg::Rbx,
        Reg::Rcx,
        Reg::Rdx,
        Reg::Rsi,
        Reg::Rdi,
        Reg::Rbp,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
    ];

    /// Every register that code can hold a value in, once.
    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        general: [u64; 15],
        flags: u64,
        mxcsr: u32,
        x87_control: u16,
        x87_status: u16,
        masks: [u64; 8],
        /// Ten bytes are used of sixteen.
        x87: [[u64; 2]; 8],
        vectors: [[u64; 8]; 32],
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
    /// what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop's last instruction jumps to: a jump through memory needs no register and
        /// changes no flag.
        next: AtomicUsize,
        host_sp: u64,
        host_saved: [u64; 6],
        host_mxcsr: u32,
        host_x87_control: u32,
        level: u32,
    }

    /// Arithmetic flags and direction: what a sigreturn restores (`FIX_EFLAGS` in the kernel) and is
    /// not harmful. The CPUID bit is not among them: an ordinary handler loses it, too. The alignment
    /// check flag would make unaligned accesses fault.
    const FLAGS: Status = Status::CF
        .union(Status::PF)
        .union(Status::AF)
        .union(Status::ZF)
        .union(Status::SF)
        .union(Status::DF)
        .union(Status::OF);
    /// Always set: the reserved bit 1 and interrupts.
    const FLAGS_SET: u64 = 2 | Status::IF.bits();

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in given.general.iter_mut().chain(&mut given.masks) {
                *value = next();
            }
            for value in given.vectors.iter_mut().flatten() {
                *value = next();
            }
            given.flags = next() & FLAGS.bits() | FLAGS_SET;
            // All exceptions masked (bits 7-12); sticky flags, rounding, flush to zero at random.
            given.mxcsr = next() as u32 & 0xffff | 0x1f80;
            // All exceptions masked (bits 0-5), bit 6 is always set; precision and rounding at random.
            given.x87_control = next() as u16 & 0x0f00 | 0x7f;
            for value in &mut given.x87 {
                // A normal number: loading one leaves it as it is.
                *value = [next() | 1 << 63, next() & 0x7fff | 1];
                value[1] = (value[1] & 0x3fff) + 0x1000;
            }
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
            check("rflags", 0, given.flags, found.flags);
            check("mxcsr", 0, given.mxcsr.into(), found.mxcsr.into());
            check("x87 control", 0, given.x87_control.into(), found.x87_control.into());
            // Eight values loaded, nothing else happened: the top is 0 again and no flag is set.
            check("x87 status", 0, 0, found.x87_status.into());
            for i in 0..8 {
                check("x87", 2 * i, given.x87[i][0], found.x87[i][0]);
                check("x87", 2 * i + 1, given.x87[i][1] & 0xffff, found.x87[i][1] & 0xffff);
            }
            let (vectors, words) = match level() {
                Level::Sse => (16, 2),
                Level::Avx => (16, 4),
                Level::Avx512 => (32, 8),
            };
            for i in 0..vectors {
                for word in 0..words {
                    check("vector", 8 * i + word, given.vectors[i][word], found.vectors[i][word]);
                }
            }
            if level() == Level::Avx512 {
                for i in 0..8 {
                    check("mask", i, given.masks[i], found.masks[i]);
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
        Sse = 0,
        Avx = 1,
        Avx512 = 2,
    }

    fn level() -> Level {
        static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
        match KNOWN.load(Ordering::Relaxed) {
            0 => Level::Sse,
            1 => Level::Avx,
            2 => Level::Avx512,
            _ => {
                let level = detect();
                KNOWN.store(level as u32, Ordering::Relaxed);
                level
            }
        }
    }

    fn detect() -> Level {
        const OSXSAVE: u32 = 1 << 27;
        const AVX: u32 = 1 << 28;
        const AVX512F: u32 = 1 << 16;
        /// 64-bit mask registers.
        const AVX512BW: u32 = 1 << 30;

        let features = __cpuid(1).ecx;
        if features & (OSXSAVE | AVX) != OSXSAVE | AVX {
            return Level::Sse;
        }
        let enabled: u32;
        // SAFETY: the CPU has xgetbv (OSXSAVE); it reads register 0, which says what the kernel saves.
        unsafe {
            core::arch::asm!("xgetbv", in("ecx") 0, lateout("eax") enabled, lateout("edx") _,
            options(nomem, nostack, preserves_flags));
        }
        let more = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
        if enabled & 0xe6 == 0xe6 && more & (AVX512F | AVX512BW) == AVX512F | AVX512BW {
            Level::Avx512
        } else if enabled & 0x6 == 0x6 {
            Level::Avx
        } else {
            Level::Sse
        }
    }

    /// Reads a line of objdump's, in AT&T syntax.
    pub(crate) fn instruction(line: &str) -> Instruction {
        // In `sub $0x58,%rsp`.
        let reserved = line.split_once("sub ").and_then(|(_, operands)| {
            let (number, _) = operands.trim_start().strip_prefix("$0x")?.split_once(",%rsp")?;
            usize::from_str_radix(number, 16).ok()
        });
        let relocations = ["R_X86_64_PLT", "R_X86_64_GOT", "R_X86_64_TLS", "TPOFF"];
        Instruction {
            system_call: line.contains("\tsyscall"),
            outside: line.contains("\tcall") && !line.contains("call   *%r")
                || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("%fs:") || line.contains("%gs:"),
            stack: reserved.unwrap_or_default() + if line.contains("\tpush ") { 8 } else { 0 },
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Sse => "general registers, flags, x87, xmm0-15",
            Level::Avx => "general registers, flags, x87, ymm0-15",
            Level::Avx512 => "general registers, flags, x87, zmm0-31, k0-7",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and rsp points at the table, below
    // which lies a patterned red zone. {given} and {found} are offsets of the two states.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        "sigctx_probe_spin_0_1:",   // rdi = table
        "mov [rdi + {saved}], rbx",
        "mov [rdi + {saved} + 8], rbp",
        "mov [rdi + {saved} + 16], r12",
        "mov [rdi + {saved} + 24], r13",
        "mov [rdi + {saved} + 32], r14",
        "mov [rdi + {saved} + 40], r15",
        "stmxcsr [rdi + {host_mxcsr}]",
        "fnstcw [rdi + {host_x87}]",
        "cmp dword ptr [rdi + {level}], 1",
        "je 21f",
        "ja 22f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movups xmm\\n, [rdi + {given_vectors} + 64*\\n]",
        ".endr",
        "jmp 23f",
        "21:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu ymm\\n, [rdi + {given_vectors} + 64*\\n]",
        ".endr",
        "jmp 23f",
        "22:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 zmm\\n, [rdi + {given_vectors} + 64*\\n]",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "kmovq k\\n, [rdi + {given_masks} + 8*\\n]",
        ".endr",
        "23:",
        "fninit",
        ".irp n,7,6,5,4,3,2,1,0",
        "fld tbyte ptr [rdi + {given_x87} + 16*\\n]",
        ".endr",
        "fldcw [rdi + {given_x87_control}]",
        "ldmxcsr [rdi + {given_mxcsr}]",
        "mov [rdi + {host_sp}], rsp",
        "push qword ptr [rdi + {given_flags}]",
        "popfq",
        "mov rsp, rdi",             // mov leaves the flags alone, here and at the end
        "mov rax, [rsp]",
        "mov rbx, [rsp + 8]",
        "mov rcx, [rsp + 16]",
        "mov rdx, [rsp + 24]",
        "mov rsi, [rsp + 32]",
        "mov rdi, [rsp + 40]",
        "mov rbp, [rsp + 48]",
        ".irp n,8,9,10,11,12,13,14,15",
        "mov r\\n, [rsp + 8*\\n - 8]",
        ".endr",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 64",
        "nop",
        "lea rax, [rax + 1]",
        "lea rax, [rax - 1]",
        "xchg r12, r13",
        "xchg r13, r12",
        ".endr",
        "jmp qword ptr [rsp + {next}]",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "mov [rsp + {found}], rax",
        "mov [rsp + {found} + 8], rbx",
        "mov [rsp + {found} + 16], rcx",
        "mov [rsp + {found} + 24], rdx",
        "mov [rsp + {found} + 32], rsi",
        "mov [rsp + {found} + 40], rdi",
        "mov [rsp + {found} + 48], rbp",
        ".irp n,8,9,10,11,12,13,14,15",
        "mov [rsp + {found} + 8*\\n - 8], r\\n",
        ".endr",
        "mov rdi, rsp",
        "mov rsp, [rdi + {host_sp}]",
        "pushfq",
        "pop qword ptr [rdi + {found_flags}]",
        "cld",
        "stmxcsr [rdi + {found_mxcsr}]",
        "fnstcw [rdi + {found_x87_control}]",
        "fnstsw [rdi + {found_x87_status}]",
        ".irp n,0,1,2,3,4,5,6,7",
        "fstp tbyte ptr [rdi + {found_x87} + 16*\\n]",
        ".endr",
        "cmp dword ptr [rdi + {level}], 1",
        "je 24f",
        "ja 25f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movups [rdi + {found_vectors} + 64*\\n], xmm\\n",
        ".endr",
        "jmp 26f",
        "24:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu [rdi + {found_vectors} + 64*\\n], ymm\\n",
        ".endr",
        "vzeroupper",
        "jmp 26f",
        "25:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 [rdi + {found_vectors} + 64*\\n], zmm\\n",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "kmovq [rdi + {found_masks} + 8*\\n], k\\n",
        ".endr",
        "vzeroupper",
        "26:",
        "fninit",
        "fldcw [rdi + {host_x87}]",
        "ldmxcsr [rdi + {host_mxcsr}]",
        "mov rbx, [rdi + {saved}]",
        "mov rbp, [rdi + {saved} + 8]",
        "mov r12, [rdi + {saved} + 16]",
        "mov r13, [rdi + {saved} + 24]",
        "mov r14, [rdi + {saved} + 32]",
        "mov r15, [rdi + {saved} + 40]",
        "ret",
        // Writes something else into everything. edi = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        "sigctx_probe_clobber_0_1:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 24",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rsp + 8], edi",
        "mov dword ptr [rsp + 12], 0xffbf", // all sticky flags, rounding and flushing the other way
        "ldmxcsr [rsp + 12]",
        "fninit",
        ".rept 7",
        "fldl2e",
        ".endr",
        "mov word ptr [rsp + 16], 0x0c7f",
        "fldcw [rsp + 16]",
        "cmp edi, 1",
        "je 31f",
        "ja 32f",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "pcmpeqd xmm\\n, xmm\\n",
        ".endr",
        "jmp 33f",
        "31:",
        "vpcmpeqd xmm0, xmm0, xmm0",
        "vinsertf128 ymm0, ymm0, xmm0, 1",
        ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovaps ymm\\n, ymm0",
        ".endr",
        "jmp 33f",
        "32:",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "kxnorq k\\n, k\\n, k\\n",
        ".endr",
        "33:",
        "mov rax, -0x5555555555555556",
        ".irp r,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
        "mov \\r, rax",
        ".endr",
        "push 0xad7",               // every arithmetic flag, and direction in a moment
        "popfq",
        "std",
        // Back to what the ABI promises the caller.
        "cld",
        "cmp dword ptr [rsp + 8], 0",
        "je 34f",
        "vzeroupper",
        "34:",
        "fninit",
        "fldcw [rsp + 4]",
        "ldmxcsr [rsp]",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        ".popsection",
        given_flags = const offset_of!(Table, given.flags),
        given_mxcsr = const offset_of!(Table, given.mxcsr),
        given_x87_control = const offset_of!(Table, given.x87_control),
        given_masks = const offset_of!(Table, given.masks),
        given_x87 = const offset_of!(Table, given.x87),
        given_vectors = const offset_of!(Table, given.vectors),
        found = const offset_of!(Table, found.general),
        found_flags = const offset_of!(Table, found.flags),
        found_mxcsr = const offset_of!(Table, found.mxcsr),
        found_x87_control = const offset_of!(Table, found.x87_control),
        found_x87_status = const offset_of!(Table, found.x87_status),
        found_masks = const offset_of!(Table, found.masks),
        found_x87 = const offset_of!(Table, found.x87),
        found_vectors = const offset_of!(Table, found.vectors),
        next = const offset_of!(Table, next),
        host_sp = const offset_of!(Table, host_sp),
        saved = const offset_of!(Table, host_saved),
        host_mxcsr = const offset_of!(Table, host_mxcsr),
        host_x87 = const offset_of!(Table, host_x87_control),
        level = const offset_of!(Table, level),
    );

    /// The loop reads the general registers from the table's start.
    const _: () = assert!(offset_of!(Table, given.general) == 0);

    // Values that name their registers; then an undefined instruction, whose handler steps over it.
    // Not one register is left to find the way back with, the stack pointer included: it is in a
    // static.
    global_asm!(
        ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
        ".balign 8",
        "sigctx_probe_saved_0_1: .skip 8",
        ".popsection",
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        "sigctx_probe_known_0_1:",
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + sigctx_probe_saved_0_1], rsp",
        "push {flags}",
        "popfq",
        "movabs rsp, 0x00005b5b5b5b5b5b",   // in the half of the addresses that is the user's
        "movabs rax, 0xa0a0a0a0a0a0a0a0",
        "movabs rbx, 0xb0b0b0b0b0b0b0b0",
        "movabs rcx, 0xc0c0c0c0c0c0c0c0",
        "movabs rdx, 0xd0d0d0d0d0d0d0d0",
        "movabs rsi, 0x5151515151515151",
        "movabs rdi, 0xd1d1d1d1d1d1d1d1",
        "movabs rbp, 0xbbbbbbbbbbbbbbbb",
        "movabs r8,  0x0808080808080808",
        "movabs r9,  0x0909090909090909",
        "movabs r10, 0x1010101010101010",
        "movabs r11, 0x1111111111111111",
        "movabs r12, 0x1212121212121212",
        "movabs r13, 0x1313131313131313",
        "movabs r14, 0x1414141414141414",
        "movabs r15, 0x1515151515151515",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        "ud2",
        "cld",
        "mov rsp, [rip + sigctx_probe_saved_0_1]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        // What `push_call` is meant for: a trampoline that keeps everything itself. The handler has
        // lowered the stack pointer by the red zone; the last instruction gives it back.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        "sigctx_probe_trampoline_0_1:",
        "pushfq",
        ".irp r,rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
        "push \\r",
        ".endr",
        "cld",
        "mov rbp, rsp",
        "sub rsp, 512",
        "and rsp, -64",
        "fxsave64 [rsp]",           // the callee is compiled for SSE, which leaves the rest alone
        "mov qword ptr [rsp - 8], 0x1f80",
        "ldmxcsr [rsp - 8]",
        "fninit",
        "call {hook}",
        "fxrstor64 [rsp]",
        "mov rsp, rbp",
        ".irp r,r15,r14,r13,r12,r11,r10,r9,r8,rbp,rdi,rsi,rdx,rcx,rbx,rax",
        "pop \\r",
        ".endr",
        "popfq",
        "ret 128",
        ".popsection",
        flags = const (FLAGS.bits() | FLAGS_SET) as i32,
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

    /// Writes something else into every register, vector, mask, flag and control word.
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
        unsafe { core::arch::asm!("ud2") };
    }

    /// How long the undefined instruction is.
    pub(crate) const KNOWN_STEP: usize = 2;

    /// Whether the kernel says where an undefined instruction is, when it raises the signal.
    pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

    /// Registers that are the thread's or the program's own: no code changes them, and their values
    /// are different in every run.
    pub(crate) const OWN: &[(Reg, &str)] = &[];

    /// DWARF's numbers of registers (the System V psABI): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
        0,
        &[
            Reg::Rax,
            Reg::Rdx,
            Reg::Rcx,
            Reg::Rbx,
            Reg::Rsi,
            Reg::Rdi,
            Reg::Rbp,
            Reg::Rsp,
            Reg::R8,
            Reg::R9,
            Reg::R10,
            Reg::R11,
            Reg::R12,
            Reg::R13,
            Reg::R14,
            Reg::R15,
        ],
    )];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
    /// where code keeps no frame pointers.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 8]);

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
        unsafe { core::arch::asm!("mov {}, rbp", out(reg) fp, options(nomem, nostack)) };
        fp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction, until its flags are
    /// restored from elsewhere.
    /// Says whether it can.
    pub(crate) fn single_step(ctx: &mut crate::SigCtx<'_>) -> bool {
        ctx.set_status(ctx.status() | Status::TF);
        true
    }
}
