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
//! References: the kernel's `arch/x86/kernel/signal_64.c`, `arch/x86/include/uapi/asm/sigcontext.h`,
//! `asm/ucontext.h`; System V ABI AMD64 supplement, 3.2.2 (red zone), 3.4 (stack alignment).

mod probe;

use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_long, c_void};
use core::mem::{offset_of, size_of};
use core::sync::atomic::AtomicU32;

use bitflags::bitflags;

use crate::inject::{BadFrame, Call};
use crate::sys::{self, KernelAction, SaFlags, SigSet};

pub(crate) use probe::*;

// ---- constants ---------------------------------------------------------------------------------

/// Number of signals.
pub(crate) const NSIG: usize = 64;
/// Bytes below the stack pointer that belong to the interrupted function.
pub(crate) const RED_ZONE: usize = 128;
/// From the stack pointer at the handler's entry to the `ucontext`: the return address.
pub(crate) const UCONTEXT_OFFSET: usize = 8;
/// A frame's copy has the original's address modulo this: the XSAVE image must stay 64-aligned.
pub(crate) const FRAME_ALIGN: usize = 64;
/// More than any frame of this architecture (with AMX tiles about 11 KiB): a longer one is not
/// the kernel's.
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

/// The start of `siginfo`, whose order is not the same everywhere.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SigInfoHead {
    pub(crate) signo: c_int,
    pub(crate) errno: c_int,
    pub(crate) code: c_int,
}

impl SigInfoHead {
    #[inline(always)]
    pub(crate) fn new(signo: c_int, code: c_int) -> Self {
        Self { signo, errno: 0, code }
    }
}

/// `struct kernel_sigaction`.
#[repr(C)]
pub(crate) struct RawAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: SigSet,
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

/// `stack_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct SignalStack {
    pub(crate) sp: usize,
    pub(crate) flags: c_int,
    pub(crate) size: usize,
}

/// `struct sigcontext_64`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    di: u64,
    si: u64,
    bp: u64,
    bx: u64,
    dx: u64,
    ax: u64,
    cx: u64,
    sp: u64,
    ip: u64,
    flags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    /// Where the XSAVE image is, in the same frame; 0 when there is none.
    fpstate: usize,
    reserved1: [u64; 8],
}

/// `struct ucontext`: 304 bytes, where libc's type has 968.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Ucontext {
    flags: u64,
    link: usize,
    stack: SignalStack,
    mcontext: SigContext,
    sigmask: SigSet,
}

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

macro_rules! registers {
    ($($(#[$doc:meta])* $reg:ident = $field:ident, $name:literal;)*) => {
        /// A register of the interrupted context.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reg {
            $($(#[$doc])* $reg,)*
        }

        impl Reg {
            /// Every register, in the order in which it is printed.
            pub const ALL: &[Self] = &[$(Self::$reg),*];

            /// The name in the manual, in lower case.
            ///
            /// # Signal safety
            ///
            /// Async-signal-safe.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reg => $name,)*
                }
            }
        }

        impl Ucontext {
            #[inline(always)]
            pub(crate) fn get(&self, reg: Reg) -> u64 {
                match reg {
                    $(Reg::$reg => self.mcontext.$field.into(),)*
                }
            }

            #[inline(always)]
            pub(crate) fn set(&mut self, reg: Reg, value: u64) {
                match reg {
                    // Segment selectors are 16 bits of the word that is given.
                    $(Reg::$reg => self.mcontext.$field = value as _,)*
                }
            }
        }
    };
}

registers! {
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

/// Number of registers of [`Reg::ALL`].
pub(crate) const REGISTERS: usize = Reg::ALL.len();
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

    #[inline(always)]
    pub(crate) fn mask(&self) -> SigSet {
        self.sigmask
    }

    #[inline(always)]
    pub(crate) fn set_mask(&mut self, mask: SigSet) {
        self.sigmask = mask;
    }

    /// The alternate stack as it was at the interruption; installed again by the return.
    #[inline(always)]
    pub(crate) fn alt_stack(&self) -> SignalStack {
        self.stack
    }

    #[inline(always)]
    pub(crate) fn set_alt_stack(&mut self, stack: SignalStack) {
        self.stack = stack;
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
pub(crate) fn patch_thread(_copy: &mut Ucontext) {}

/// Whether this thread has a shadow stack, whose token for the frame only its own thread has.
pub(crate) fn has_shadow_stack() -> bool {
    /// `ARCH_SHSTK_STATUS` of `asm/prctl.h`.
    const STATUS: usize = 0x5005;
    let mut features = 0u64;
    let args = [STATUS, &raw mut features as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes one word there, or refuses where it has no shadow stacks.
    let asked = unsafe { sys::syscall(libc::SYS_arch_prctl, args) };
    asked.is_ok() && features & 1 != 0
}

/// Length of every system call instruction here.
pub(crate) const SYSCALL_LEN: usize = 2;

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
            ".cfi_escape 0x10, ", $reg, ", 3, 0x70 + ", $base,
            ", ((", $offset, " + ", $extra, ") & 0x7f) | 0x80, (", $offset, " + ", $extra, ") >> 7\n"
        )
    };
}

/// Where a `ucontext` at register `$base` + `$extra` has every register of the interrupted code:
/// the caller's stack pointer (CFA) is the value in the slot of rsp,
/// `DW_CFA_def_cfa_expression, length 4, DW_OP_breg<base> offset, DW_OP_deref`.
macro_rules! interrupted_registers {
    ($base:literal, $extra:literal) => {
        concat!(
            ".cfi_escape 0x0f, 4, 0x70 + ", $base,
            ", ((160 + ", $extra, ") & 0x7f) | 0x80, (160 + ", $extra, ") >> 7, 0x06\n",
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
    // The pivot reads the copied frame's address from the start of the record.
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
    // Runs on into the pivot. rax = the record of the call (16-aligned, just below the copied
    // frame), rbx = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied ucontext at rbx + 8.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("3", "8"),
    "mov rsp, rax",             // leaves the alternate stack for good
    "mov rdi, rax",
    "call {run}",               // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "mov dword ptr [rax], 0",   // the stack may be injected again, but not from in here
    "mov rsp, rbx",
    "ret",                      // to the restorer, with rsp at the copied ucontext
    // Resumes a frame whose callback never returned. rdi = the copied frame, rsi = `active`.
    ".globl sigctx_resume_0_1",
    ".hidden sigctx_resume_0_1",
    ".type sigctx_resume_0_1, @function",
    "sigctx_resume_0_1:",
    "mov rbx, rdi",
    "mov rax, rsi",
    "jmp 3b",
    ".cfi_endproc",
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
    ".globl sigctx_end_0_1",
    ".hidden sigctx_end_0_1",
    "sigctx_end_0_1:",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = "sigctx_entry_0_1"]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = "sigctx_resume_0_1"]
    fn resume_code(frame: usize, active: *const AtomicU32) -> !;
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

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}

/// Resumes what a copied frame interrupted, on the calling thread.
///
/// # Safety
///
/// `frame` is a copy made by [`crate::inject`], owned by the caller and made ready for this
/// thread; `active` is its stack's word, alive until the frame is left.
pub(crate) unsafe fn resume(frame: usize, active: *const AtomicU32) -> ! {
    // SAFETY: the caller's obligation.
    unsafe { resume_code(frame, active) }
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
