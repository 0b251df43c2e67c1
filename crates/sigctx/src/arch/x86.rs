//! 32-bit x86: i386 and its successors, also under a 64-bit kernel. What is explained in
//! `x86_64.rs` is not explained here.
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
//! This file is long because an architecture is one file: to port is to write its counterpart.
//!
//! References: the kernel's `arch/x86/kernel/signal_32.c`,
//! `arch/x86/include/uapi/asm/sigcontext.h`, `asm/ucontext.h`; System V ABI Intel386 supplement,
//! 2.2 (stack alignment), 2.4 (DWARF registers).

use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_long, c_void};
use core::mem::{offset_of, size_of};

use bitflags::bitflags;

use super::layout::{Structure, layout};
use super::registers::registers;
use crate::inject::{BadFrame, Call, MoveError};
use crate::sys::{KernelAction, SaFlags, SigSet};
use crate::vdso;

pub(crate) use probe::*;

// ---- constants ---------------------------------------------------------------------------------

pub(crate) const NAME: &str = "x86";
pub(crate) const NSIG: usize = 64;
/// None: what is below the stack pointer is anybody's.
pub(crate) const RED_ZONE: usize = 0;
/// The return address, the three arguments, and the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 144;
pub(crate) const MAX_FRAME: usize = 64 * 1024;
pub(crate) const SI_TIMER: c_int = -2;
pub(crate) const SI_ASYNCIO: c_int = -4;
/// The call that gives a user id of 32 bits.
pub(crate) const SYS_GETRESGID: c_long = libc::SYS_getresgid32;
pub(crate) const SYS_GETRESUID: c_long = libc::SYS_getresuid32;
pub(crate) const SYS_GETUID: c_long = libc::SYS_getuid32;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETGROUPS: c_long = libc::SYS_setgroups32;
/// The call that takes group ids of 32 bits.
pub(crate) const SYS_SETRESGID: c_long = libc::SYS_setresgid32;
/// The call that takes user ids of 32 bits.
pub(crate) const SYS_SETRESUID: c_long = libc::SYS_setresuid32;

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

layout! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) errno: c_int = "si_errno",
        pub(crate) code: c_int = "si_code",
    }
}

layout! {
    /// `struct sigaction` of the kernel's own headers. The one that it gives to C programs is that
    /// of the older system call, so nothing here can be compared with it.
    pub(crate) struct RawAction = "struct sigaction" {
        handler: usize = "",
        flags: usize = "",
        restorer: usize = "",
        mask: SigSet = "",
    }
}

/// `SA_RESTORER`. The kernel has return code of its own, in a vDSO that may be switched off.
///
/// Where there is a vDSO no action says it, as none of glibc's does: a program that reads an action with
/// glibc's `sigaction` and sets it again keeps the flag and loses the address, so that the handler would
/// return to address 0 (glibc 2.36, `sysdeps/unix/sysv/linux/i386/libc_sigaction.c`).
const RESTORER: u32 = 0x0400_0000;

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        if vdso::range().is_empty() {
            vdso::find();
        }
        // Without SA_SIGINFO there is another frame, which another system call returns from: the
        // kernel has the code for that.
        let needed = action.flags.contains(SaFlags::SIGINFO) && vdso::range().is_empty();
        let (flag, restorer) = if needed { (RESTORER, restorer()) } else { (0, 0) };
        let flags = (action.flags.bits() | flag) as usize;
        Self { handler: action.handler, flags, restorer, mask: action.mask }
    }

    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags as u32 & !RESTORER);
        KernelAction { handler: self.handler, flags, mask: self.mask }
    }
}

layout! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) flags: c_int = "ss_flags",
        pub(crate) size: usize = "ss_size",
    }
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
        /// A copy of `sp` that nobody reads.
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

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

const _: () = {
    assert!(size_of::<Ucontext>() == 116);
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
};

/// The registers against libc's. With musl the type has no fields.
#[cfg(target_env = "gnu")]
const _: () = {
    assert!(offset_of!(SigContext, gs) == greg(libc::REG_GS));
    assert!(offset_of!(SigContext, fs) == greg(libc::REG_FS));
    assert!(offset_of!(SigContext, es) == greg(libc::REG_ES));
    assert!(offset_of!(SigContext, ds) == greg(libc::REG_DS));
    assert!(offset_of!(SigContext, di) == greg(libc::REG_EDI));
    assert!(offset_of!(SigContext, si) == greg(libc::REG_ESI));
    assert!(offset_of!(SigContext, bp) == greg(libc::REG_EBP));
    assert!(offset_of!(SigContext, sp) == greg(libc::REG_ESP));
    assert!(offset_of!(SigContext, bx) == greg(libc::REG_EBX));
    assert!(offset_of!(SigContext, dx) == greg(libc::REG_EDX));
    assert!(offset_of!(SigContext, cx) == greg(libc::REG_ECX));
    assert!(offset_of!(SigContext, ax) == greg(libc::REG_EAX));
    assert!(offset_of!(SigContext, trapno) == greg(libc::REG_TRAPNO));
    assert!(offset_of!(SigContext, err) == greg(libc::REG_ERR));
    assert!(offset_of!(SigContext, ip) == greg(libc::REG_EIP));
    assert!(offset_of!(SigContext, cs) == greg(libc::REG_CS));
    assert!(offset_of!(SigContext, flags) == greg(libc::REG_EFL));
    assert!(offset_of!(SigContext, sp_at_signal) == greg(libc::REG_UESP));
    assert!(offset_of!(SigContext, ss) == greg(libc::REG_SS));
    assert!(offset_of!(SigContext, fpstate) == offset_of!(libc::mcontext_t, fpregs));
    assert!(offset_of!(SigContext, oldmask) == offset_of!(libc::mcontext_t, oldmask));
    assert!(offset_of!(SigContext, cr2) == offset_of!(libc::mcontext_t, cr2));
};

/// The offset of libc's general register `index` in its `mcontext_t`.
#[cfg(target_env = "gnu")]
const fn greg(index: c_int) -> usize {
    offset_of!(libc::mcontext_t, gregs) + 4 * index as usize
}

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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn trap_number(&self) -> u64 {
        self.ucontext().mcontext.trapno.into()
    }

    /// The exception's error code (`err`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn error_code(&self) -> u64 {
        self.ucontext().mcontext.err.into()
    }

    /// The last page fault's address (`cr2`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn page_fault_address(&self) -> u64 {
        self.ucontext().mcontext.cr2.into()
    }

    /// The first word of the blocked signals, where the oldest handlers look for it (`oldmask`).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn old_mask(&self) -> u64 {
        self.ucontext().mcontext.oldmask.into()
    }

    /// The selectors cs, ss, ds, es, fs and gs. They are no [`Reg`]: their values are the kernel's,
    /// and others under a 64-bit kernel than under a 32-bit one.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn selectors(&self) -> [u16; 6] {
        let c = &self.ucontext().mcontext;
        [c.cs, c.ss, c.ds, c.es, c.fs, c.gs]
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// What the frame pointer points at.
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
/// the caller's stack pointer (CFA) is the value in the slot of esp,
/// `DW_CFA_def_cfa_expression, length 4, DW_OP_breg<base> offset, DW_OP_deref`.
macro_rules! interrupted_registers {
    ($base:literal, $extra:literal) => {
        concat!(
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((48 + ",
            $extra,
            ") & 0x7f) | 0x80, (48 + ",
            $extra,
            ") >> 7, 0x06\n",
            saved_at!($base, "64", $extra, "0"), // eax
            saved_at!($base, "60", $extra, "1"), // ecx
            saved_at!($base, "56", $extra, "2"), // edx
            saved_at!($base, "52", $extra, "3"), // ebx
            saved_at!($base, "48", $extra, "4"), // esp
            saved_at!($base, "44", $extra, "5"), // ebp
            saved_at!($base, "40", $extra, "6"), // esi
            saved_at!($base, "36", $extra, "7"), // edi
            saved_at!($base, "76", $extra, "8"), // eip
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET == 144);
    assert!(offset_of!(Ucontext, mcontext.di) == 36);
    assert!(offset_of!(Ucontext, mcontext.si) == 40);
    assert!(offset_of!(Ucontext, mcontext.bp) == 44);
    assert!(offset_of!(Ucontext, mcontext.sp) == 48);
    assert!(offset_of!(Ucontext, mcontext.bx) == 52);
    assert!(offset_of!(Ucontext, mcontext.dx) == 56);
    assert!(offset_of!(Ucontext, mcontext.cx) == 60);
    assert!(offset_of!(Ucontext, mcontext.ax) == 64);
    assert!(offset_of!(Ucontext, mcontext.ip) == 76);
    assert!(offset_of!(Call, frame) == 0);
};

global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. [esp] = the restorer's address, [esp + 4] = signal,
    // [esp + 8] = siginfo, [esp + 12] = ucontext, esp = 12 modulo 16.
    ".globl sigctx_entry_0_1",
    ".hidden sigctx_entry_0_1",
    ".type sigctx_entry_0_1, @function",
    "sigctx_entry_0_1:",
    ".cfi_startproc",
    "cld",                      // as the ABI wants it; the kernel has done it, QEMU (10.0) has not
    "mov eax, esp",             // fourth argument: where the frame begins
    "sub esp, 28",              // a call wants esp = 0 modulo 16 before it
    ".cfi_adjust_cfa_offset 28",
    "mov [esp + 12], eax",
    "mov ecx, [eax + 12]",
    "mov [esp + 8], ecx",
    "mov ecx, [eax + 8]",
    "mov [esp + 4], ecx",
    "mov ecx, [eax + 4]",
    "mov [esp], ecx",
    "call {dispatch}",
    "test eax, eax",
    "jnz 2f",
    "add esp, 28",
    ".cfi_adjust_cfa_offset -28",
    "ret",                      // to the restorer: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 28",
    "mov ebx, [eax]",           // the copied frame; callee-saved, so it outlives the call
    ".cfi_endproc",
    ".size sigctx_entry_0_1, . - sigctx_entry_0_1",
    // Runs on into the pivot. eax = the record of the call (16-aligned, just below the copied
    // frame), ebx = the copied frame, with the ucontext at 144.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("3", "144"),
    ".type sigctx_injected_call_0_1, @function",
    "sigctx_injected_call_0_1:",
    "mov esp, eax",             // leaves the alternate stack for good
    "lea ebp, [eax + {record}]", // what frame-pointer walkers go on with
    "sub esp, 12",
    "push eax",                 // the argument
    "call {run}",               // returns the address of the stack's `active` word
    "3:",
    "mov dword ptr [eax], 0",   // the stack may be injected again, but not from in here
    "mov esp, ebx",
    "ret",                      // to the restorer, with esp behind the return address in the copy
    ".size sigctx_injected_call_0_1, . - sigctx_injected_call_0_1",
    // Resumes a frame whose callback never returned. [esp + 4] = the copied frame, [esp + 8] = where
    // the handler returns to, which is in the frame as well, [esp + 12] = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "mov ebx, [esp + 4]",
    "mov eax, [esp + 12]",
    "jmp 3b",
    ".cfi_endproc",
    ".size sigctx_resume_0_1, . - sigctx_resume_0_1",
    // rt_sigreturn, byte for byte as in glibc (`mov eax, 173; int 0x80`). The return address is off
    // the stack: the ucontext is at esp + 140.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("4", "140"),
    "nop",
    ".globl sigctx_restorer_0_1",
    ".hidden sigctx_restorer_0_1",
    ".type sigctx_restorer_0_1, @function",
    "sigctx_restorer_0_1:",
    ".byte 0xb8, 0xad, 0x00, 0x00, 0x00, 0xcd, 0x80",
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

unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_restorer_0_1"]
    fn restorer_code();
    #[link_name = "sigctx_end_0_1"]
    static END: u8;
}

#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

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

pub(crate) const SIGRETURN_LEN: usize = 7;

#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    /// gdb: `i386_linux_rt_sigtramp_start`; libgcc: `x86_fallback_frame_state`.
    #[test]
    fn the_restorer_is_the_one_that_debuggers_know() {
        let code = restorer() as *const [u8; 7];
        // SAFETY: code can be read.
        assert_eq!(unsafe { code.read() }, [0xb8, 0xad, 0x00, 0x00, 0x00, 0xcd, 0x80]);
        assert!(trampoline().contains(&restorer()));
    }

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

    /// With six, two more registers are needed than the compiler gives.
    #[test]
    fn a_system_call_takes_six_arguments() {
        const PAGE: usize = 4096;
        const SECOND_PAGE: usize = 1;

        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"sigctx".as_ptr(), 0) };
        assert!(file >= 0);
        for (at, byte) in [(0, b'a'), (PAGE, b'b')] {
            // SAFETY: writes from a live byte.
            let written = unsafe { libc::pwrite(file, (&raw const byte).cast(), 1, at as _) };
            assert_eq!(written, 1);
        }
        let (protection, flags) = (libc::PROT_READ as usize, libc::MAP_PRIVATE as usize);
        let args = [0, PAGE, protection, flags, file as usize, SECOND_PAGE];
        // SAFETY: a new mapping, wherever the kernel likes.
        let page = unsafe { sys::syscall(libc::SYS_mmap2, args) }.expect("mmap2");
        // SAFETY: the first byte of the mapping.
        assert_eq!(unsafe { (page as *const u8).read() }, b'b');
    }
}

// ---- probes -------------------------------------------------------------------------------------

mod probe {
    //! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
    //!
    //! Which vectors there are is looked up at run time: SSE (xmm0-7), AVX (ymm0-7) or AVX-512
    //! (zmm0-7, k0-7). A CPU without SSE has no probes.

    use core::arch::global_asm;
    use core::arch::x86::{__cpuid, __cpuid_count};
    use core::ffi::c_int;
    use core::mem::offset_of;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use super::{Reg, Status};
    use crate::probe::Instruction;

    /// In the order of the table: all but the stack pointer, which points at the table.
    const GENERAL: [Reg; 7] =
        [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx, Reg::Esi, Reg::Edi, Reg::Ebp];

    #[derive(Clone, Debug)]
    #[repr(C)]
    struct State {
        general: [u32; 7],
        flags: u32,
        mxcsr: u32,
        x87_control: u16,
        x87_status: u16,
        masks: [u64; 8],
        /// Ten bytes are used of sixteen.
        x87: [[u64; 2]; 8],
        vectors: [[u64; 8]; 8],
    }

    /// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
    /// is what the stack pointer points at while the loop runs.
    #[derive(Debug)]
    #[repr(C, align(64))]
    pub(crate) struct Table {
        given: State,
        found: State,
        /// Where the loop's last instruction jumps to.
        next: AtomicUsize,
        host_sp: u32,
        host_saved: [u32; 4],
        host_mxcsr: u32,
        host_x87_control: u32,
        level: u32,
    }

    /// Arithmetic flags and direction: what a sigreturn restores and is not harmful.
    const FLAGS: Status = Status::CF
        .union(Status::PF)
        .union(Status::AF)
        .union(Status::ZF)
        .union(Status::SF)
        .union(Status::DF)
        .union(Status::OF);
    /// Always set: the reserved bit 1 and interrupts.
    const FLAGS_SET: u32 = 2 | Status::IF.bits() as u32;

    impl Table {
        /// Fills all registers from `next`, and what has rules of its own within its rules.
        pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
            let given = &mut self.given;
            for value in &mut given.general {
                *value = next() as u32;
            }
            for value in given.masks.iter_mut().chain(given.vectors.iter_mut().flatten()) {
                *value = next();
            }
            given.flags = next() as u32 & FLAGS.bits() as u32 | FLAGS_SET;
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
                check(reg.name(), 0, given.general[i].into(), found.general[i].into());
            }
            check("eflags", 0, given.flags.into(), found.flags.into());
            check("mxcsr", 0, given.mxcsr.into(), found.mxcsr.into());
            check("x87 control", 0, given.x87_control.into(), found.x87_control.into());
            // Eight values loaded, nothing else happened: the top is 0 again and no flag is set.
            check("x87 status", 0, 0, found.x87_status.into());
            for i in 0..8 {
                check("x87", 2 * i, given.x87[i][0], found.x87[i][0]);
                check("x87", 2 * i + 1, given.x87[i][1] & 0xffff, found.x87[i][1] & 0xffff);
            }
            let words = match level() {
                Level::Sse => 2,
                Level::Avx => 4,
                Level::Avx512 => 8,
            };
            for i in 0..8 {
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
        // In `sub $0x58,%esp`.
        let reserved = line.split_once("sub ").and_then(|(_, operands)| {
            let (number, _) = operands.trim_start().strip_prefix("$0x")?.split_once(",%esp")?;
            usize::from_str_radix(number, 16).ok()
        });
        // A call of the next instruction, `call 1d <handler+0xd>`, is how code finds out where it is.
        let call = line.contains("\tcall") && !line.contains("call   *%") && !line.contains("+0x");
        let relocations = ["R_386_PLT", "R_386_PC", "R_386_GOT32", "R_386_TLS"];
        Instruction {
            system_call: line.contains("\tint    $0x80"),
            outside: call || relocations.iter().any(|kind| line.contains(kind)),
            thread_local: line.contains("%fs:") || line.contains("%gs:"),
            stack: reserved.unwrap_or_default() + if line.contains("\tpush ") { 4 } else { 0 },
        }
    }

    /// What the loop patterns, in words.
    pub(crate) fn level_name() -> &'static str {
        match level() {
            Level::Sse => "general registers, flags, x87, xmm0-7",
            Level::Avx => "general registers, flags, x87, ymm0-7",
            Level::Avx512 => "general registers, flags, x87, zmm0-7, k0-7",
        }
    }

    // Between `loop` and `exit` every register holds its pattern, and esp points at the table.
    // {given} and {found} are offsets of the two states.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".balign 64",
        ".globl sigctx_probe_spin_0_1",
        ".hidden sigctx_probe_spin_0_1",
        ".type sigctx_probe_spin_0_1, @function",
        "sigctx_probe_spin_0_1:",   // [esp + 4] = table
        "mov eax, [esp + 4]",
        "mov [eax + {saved}], ebx",
        "mov [eax + {saved} + 4], ebp",
        "mov [eax + {saved} + 8], esi",
        "mov [eax + {saved} + 12], edi",
        "stmxcsr [eax + {host_mxcsr}]",
        "fnstcw [eax + {host_x87}]",
        "cmp dword ptr [eax + {level}], 1",
        "je 21f",
        "ja 22f",
        ".irp n,0,1,2,3,4,5,6,7",
        "movups xmm\\n, [eax + {given_vectors} + 64*\\n]",
        ".endr",
        "jmp 23f",
        "21:",
        ".irp n,0,1,2,3,4,5,6,7",
        "vmovdqu ymm\\n, [eax + {given_vectors} + 64*\\n]",
        ".endr",
        "jmp 23f",
        "22:",
        ".irp n,0,1,2,3,4,5,6,7",
        "vmovdqu64 zmm\\n, [eax + {given_vectors} + 64*\\n]",
        "kmovq k\\n, [eax + {given_masks} + 8*\\n]",
        ".endr",
        "23:",
        "fninit",
        ".irp n,7,6,5,4,3,2,1,0",
        "fld tbyte ptr [eax + {given_x87} + 16*\\n]",
        ".endr",
        "fldcw [eax + {given_x87_control}]",
        "ldmxcsr [eax + {given_mxcsr}]",
        "mov [eax + {host_sp}], esp",
        "push dword ptr [eax + {given_flags}]",
        "popfd",
        "mov esp, eax",             // mov leaves the flags alone, here and at the end
        "mov eax, [esp]",
        "mov ebx, [esp + 4]",
        "mov ecx, [esp + 8]",
        "mov edx, [esp + 12]",
        "mov esi, [esp + 16]",
        "mov edi, [esp + 20]",
        "mov ebp, [esp + 24]",
        ".globl sigctx_probe_loop_0_1",
        ".hidden sigctx_probe_loop_0_1",
        "sigctx_probe_loop_0_1:",
        ".rept 256",
        "nop",
        "lea eax, [eax + 1]",
        "lea eax, [eax - 1]",
        "xchg esi, edi",
        "xchg edi, esi",
        ".endr",
        "jmp dword ptr [esp + {next}]",
        ".globl sigctx_probe_exit_0_1",
        ".hidden sigctx_probe_exit_0_1",
        "sigctx_probe_exit_0_1:",
        "mov [esp + {found}], eax",
        "mov [esp + {found} + 4], ebx",
        "mov [esp + {found} + 8], ecx",
        "mov [esp + {found} + 12], edx",
        "mov [esp + {found} + 16], esi",
        "mov [esp + {found} + 20], edi",
        "mov [esp + {found} + 24], ebp",
        "mov eax, esp",
        "mov esp, [eax + {host_sp}]",
        "pushfd",
        "pop dword ptr [eax + {found_flags}]",
        "cld",
        "stmxcsr [eax + {found_mxcsr}]",
        "fnstcw [eax + {found_x87_control}]",
        "fnstsw [eax + {found_x87_status}]",
        ".irp n,0,1,2,3,4,5,6,7",
        "fstp tbyte ptr [eax + {found_x87} + 16*\\n]",
        ".endr",
        "cmp dword ptr [eax + {level}], 1",
        "je 24f",
        "ja 25f",
        ".irp n,0,1,2,3,4,5,6,7",
        "movups [eax + {found_vectors} + 64*\\n], xmm\\n",
        ".endr",
        "jmp 26f",
        "24:",
        ".irp n,0,1,2,3,4,5,6,7",
        "vmovdqu [eax + {found_vectors} + 64*\\n], ymm\\n",
        ".endr",
        "vzeroupper",
        "jmp 26f",
        "25:",
        ".irp n,0,1,2,3,4,5,6,7",
        "vmovdqu64 [eax + {found_vectors} + 64*\\n], zmm\\n",
        "kmovq [eax + {found_masks} + 8*\\n], k\\n",
        ".endr",
        "vzeroupper",
        "26:",
        "fninit",
        "fldcw [eax + {host_x87}]",
        "ldmxcsr [eax + {host_mxcsr}]",
        "mov ebx, [eax + {saved}]",
        "mov ebp, [eax + {saved} + 4]",
        "mov esi, [eax + {saved} + 8]",
        "mov edi, [eax + {saved} + 12]",
        "ret",
        // Writes something else into everything. [esp + 4] = level.
        ".globl sigctx_probe_clobber_0_1",
        ".hidden sigctx_probe_clobber_0_1",
        ".type sigctx_probe_clobber_0_1, @function",
        "sigctx_probe_clobber_0_1:",
        "push ebx",
        "push ebp",
        "push esi",
        "push edi",
        "sub esp, 24",
        "stmxcsr [esp]",
        "fnstcw [esp + 4]",
        "mov dword ptr [esp + 12], 0xffbf", // all sticky flags, rounding and flushing the other way
        "ldmxcsr [esp + 12]",
        "fninit",
        ".rept 7",
        "fldl2e",
        ".endr",
        "mov word ptr [esp + 16], 0x0c7f",
        "fldcw [esp + 16]",
        "mov eax, [esp + 44]",
        "mov [esp + 8], eax",
        "cmp eax, 1",
        "je 31f",
        "ja 32f",
        ".irp n,0,1,2,3,4,5,6,7",
        "pcmpeqd xmm\\n, xmm\\n",
        ".endr",
        "jmp 33f",
        "31:",
        "vpcmpeqd xmm0, xmm0, xmm0",
        "vinsertf128 ymm0, ymm0, xmm0, 1",
        ".irp n,1,2,3,4,5,6,7",
        "vmovaps ymm\\n, ymm0",
        ".endr",
        "jmp 33f",
        "32:",
        ".irp n,0,1,2,3,4,5,6,7",
        "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
        "kxnorq k\\n, k\\n, k\\n",
        ".endr",
        "33:",
        ".irp r,eax,ebx,ecx,edx,esi,edi,ebp",
        "mov \\r, 0xaaaaaaaa",
        ".endr",
        "push 0xad7",               // every arithmetic flag, and direction in a moment
        "popfd",
        "std",
        // Back to what the ABI promises the caller.
        "cld",
        "cmp dword ptr [esp + 8], 0",
        "je 34f",
        "vzeroupper",
        "34:",
        "fninit",
        "fldcw [esp + 4]",
        "ldmxcsr [esp]",
        "add esp, 24",
        "pop edi",
        "pop esi",
        "pop ebp",
        "pop ebx",
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
    // Without a stack code cannot find out where it is, nor a static, so the stack pointer is in a
    // vector register.
    global_asm!(
        ".pushsection .text.sigctx_probe, \"ax\", @progbits",
        ".globl sigctx_probe_known_0_1",
        ".hidden sigctx_probe_known_0_1",
        ".type sigctx_probe_known_0_1, @function",
        "sigctx_probe_known_0_1:",
        "push ebx",
        "push ebp",
        "push esi",
        "push edi",
        "movd xmm7, esp",
        "push {flags}",
        "popfd",
        "mov esp, 0x5b5b5b5b",
        "mov eax, 0xa0a0a0a0",
        "mov ebx, 0xb0b0b0b0",
        "mov ecx, 0xc0c0c0c0",
        "mov edx, 0xd0d0d0d0",
        "mov esi, 0x51515151",
        "mov edi, 0xd1d1d1d1",
        "mov ebp, 0xbbbbbbbb",
        ".globl sigctx_probe_known_pc_0_1",
        ".hidden sigctx_probe_known_pc_0_1",
        "sigctx_probe_known_pc_0_1:",
        "ud2",
        "cld",
        "movd esp, xmm7",
        "pop edi",
        "pop esi",
        "pop ebp",
        "pop ebx",
        "ret",
        // What `push_call` is meant for: a trampoline that keeps everything itself. [esp] = where to
        // go on.
        ".globl sigctx_probe_trampoline_0_1",
        ".hidden sigctx_probe_trampoline_0_1",
        ".type sigctx_probe_trampoline_0_1, @function",
        "sigctx_probe_trampoline_0_1:",
        "pushfd",
        ".irp r,eax,ebx,ecx,edx,esi,edi,ebp",
        "push \\r",
        ".endr",
        "cld",
        "mov ebp, esp",
        "sub esp, 576",
        "and esp, -64",
        "fxsave [esp + 64]",        // the callee is compiled for SSE, which leaves the rest alone
        "mov dword ptr [esp], 0x1f80",
        "ldmxcsr [esp]",
        "fninit",
        "call {hook}",
        "fxrstor [esp + 64]",
        "mov esp, ebp",
        ".irp r,ebp,edi,esi,edx,ecx,ebx,eax",
        "pop \\r",
        ".endr",
        "popfd",
        "ret",
        ".popsection",
        flags = const (FLAGS.bits() as u32 | FLAGS_SET) as i32,
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
    /// The table is filled, below it there is room for signal frames, and its `next` leads to
    /// `exit` in the end.
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

    /// DWARF's numbers of registers (the i386 psABI): the first, and those from it on.
    pub(crate) const DWARF: &[(u16, &[Reg])] =
        &[(0, &[Reg::Eax, Reg::Ecx, Reg::Edx, Reg::Ebx, Reg::Esp, Reg::Ebp, Reg::Esi, Reg::Edi])];

    /// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
    pub(crate) const CFA_ABOVE_SP: usize = 0;

    /// From a frame pointer to the frame pointer before it, and to the return address, in bytes.
    /// `None`: code that is not told to keep frame pointers (then it is 0 and 4) has no register to
    /// spare for one.
    pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

    /// Addresses of faults are multiples of this.
    pub(crate) const FAULT_GRANULE: usize = 1;

    /// What `CLONE_SETTLS` takes for a thread without thread-local storage: a descriptor that has the
    /// segment in use begin at address 0.
    pub(crate) fn no_storage() -> *mut core::ffi::c_void {
        let selector: u32;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mov {0:e}, gs", out(reg) selector, options(nomem, nostack));
        }
        // `struct user_desc`: entry, base, limit; a segment of 32 bits, counted in pages, usable.
        let descriptor = [selector >> 3, 0, 0xf_ffff, 1 | 1 << 4 | 1 << 6];
        core::ptr::from_mut(alloc::boxed::Box::leak(alloc::boxed::Box::new(descriptor))).cast()
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
        unsafe { core::arch::asm!("mov {}, ebp", out(reg) fp, options(nomem, nostack)) };
        fp
    }

    /// Makes the interrupted code raise `SIGTRAP` after every instruction, until its flags are
    /// restored from elsewhere. Says whether it can.
    pub(crate) fn single_step(ctx: &mut crate::SigCtx<'_>) -> bool {
        ctx.set_status(ctx.status() | Status::TF);
        true
    }
}
