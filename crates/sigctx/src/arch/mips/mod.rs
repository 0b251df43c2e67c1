//! MIPS with the o32 and the n64 ABI, both byte orders: the Rust architectures `mips` and `mips64`.
//!
//! `o32` and `n64` have what the two differ in: the kernel's layouts, the names of eight registers,
//! instructions for words, and the entry's first half. The pictures of the stack are there.
//!
//! The unstable feature `asm_experimental_arch` is needed, and the compiler does not yet know that
//! assembly can change hi, lo and $1: assembly here leaves the three as they were.
//!
//! References: the kernel's `arch/mips/kernel/signal.c`, `arch/mips/include/uapi/asm/sigcontext.h`,
//! `asm/ucontext.h`; MIPS32 and MIPS64 Architecture For Programmers, volumes I-A (FCSR) and IV-j (MSA).

use core::arch::asm;
use core::ffi::c_long;
use core::mem::size_of;

use bitflags::bitflags;

use super::layout::layout;
use crate::inject::{BadFrame, MoveError};

/// Lines of assembly as one string.
macro_rules! lines {
    ($($line:expr),+ $(,)?) => { concat!($($line, "\n"),+) };
}

/// Declares `struct sigcontext`: the fields before the registers, those of the registers 8 to 15, and what
/// follows the registers.
macro_rules! sig_context {
    ({ $($before:tt)* } 8 to 15 { $($eight:tt)* } { $($after:tt)* }) => {
        layout! {
            /// `struct sigcontext`.
            #[derive(Debug)]
            pub(crate) struct SigContext = "struct sigcontext" {
                $($before)*
                pub(super) zero: u64 = "sc_regs[0]",
                at: u64 = "sc_regs[1]",
                v0: u64 = "sc_regs[2]",
                v1: u64 = "sc_regs[3]",
                a0: u64 = "sc_regs[4]",
                a1: u64 = "sc_regs[5]",
                a2: u64 = "sc_regs[6]",
                a3: u64 = "sc_regs[7]",
                $($eight)*
                s0: u64 = "sc_regs[16]",
                s1: u64 = "sc_regs[17]",
                s2: u64 = "sc_regs[18]",
                s3: u64 = "sc_regs[19]",
                s4: u64 = "sc_regs[20]",
                s5: u64 = "sc_regs[21]",
                s6: u64 = "sc_regs[22]",
                s7: u64 = "sc_regs[23]",
                t8: u64 = "sc_regs[24]",
                t9: u64 = "sc_regs[25]",
                /// The kernel's: no program can keep a value there.
                k0: u64 = "sc_regs[26]",
                k1: u64 = "sc_regs[27]",
                gp: u64 = "sc_regs[28]",
                pub(super) sp: u64 = "sc_regs[29]",
                pub(super) fp: u64 = "sc_regs[30]",
                pub(super) ra: u64 = "sc_regs[31]",
                fpregs: [u64; 32] = "sc_fpregs",
                $($after)*
            }
        }
    };
}

/// Declares [`Reg`] with the lines of the registers 8 to 15.
macro_rules! mips_registers {
    ($($eight:tt)*) => {
        registers! {
            /// A register of the interrupted context.
            ///
            /// `zero`, `k0` and `k1` are not among them: the first is 0, and the other two belong to the
            /// kernel, which keeps them for no program.
            pub enum Reg, read by from_slot, written by to_slot;

            /// The assembler's scratch.
            At = at, "at";
            /// Result, and number of a system call.
            V0 = v0, "v0";
            /// Second word of a result.
            V1 = v1, "v1";
            /// First argument.
            A0 = a0, "a0";
            /// Second argument.
            A1 = a1, "a1";
            /// Third argument.
            A2 = a2, "a2";
            /// Fourth argument; whether a system call failed.
            A3 = a3, "a3";
            $($eight)*
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
            /// Callee-saved.
            S7 = s7, "s7";
            /// Scratch.
            T8 = t8, "t8";
            /// Address of the function that is called.
            T9 = t9, "t9";
            /// Global pointer; callee-saved in n64.
            Gp = gp, "gp";
            /// Stack pointer.
            Sp = sp, "sp";
            /// Frame pointer, where there is one; callee-saved.
            Fp = fp, "fp";
            /// Return address.
            Ra = ra, "ra";
            /// Upper half of a product, remainder.
            Hi = hi, "hi";
            /// Lower half of a product, quotient.
            Lo = lo, "lo";
            /// Program counter; the lowest bit tells the compressed instruction sets.
            Pc = pc, "pc";
            /// Floating point control and status, see [`Status`](crate::Status). The kernel writes it for
            /// a thread that has used floating point; for another the word is what was on the stack.
            Fcsr = fpc_csr, "fcsr";
        }
    };
}

mod entry;
#[cfg(target_arch = "mips64")]
mod n64;
#[cfg(target_arch = "mips")]
mod o32;
#[cfg(feature = "probe")]
mod probe;
mod spill;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "mips64")]
use n64 as abi;
#[cfg(target_arch = "mips")]
use o32 as abi;

use abi::{arguments_off_the_stack, arguments_to_the_stack};

pub(crate) use super::generic::*;
pub use abi::Reg;
#[cfg(feature = "probe")]
pub(crate) use abi::SigContext;
pub(crate) use abi::Ucontext;
pub(crate) use entry::*;
#[cfg(feature = "probe")]
pub(crate) use probe::*;
pub(crate) use spill::*;

// ---- constants ---------------------------------------------------------------------------------

/// The ABI has none. But kernels before 4.8 have their FPU emulator put an instruction there, and
/// leave out these bytes themselves when they push a frame.
pub(crate) const RED_ZONE: usize = 32;
/// The home of four arguments, or what was it in n64, two words, the siginfo.
pub(crate) const UCONTEXT_OFFSET: usize = 152;
/// With the records of MSA about 1.1 KiB.
pub(crate) const MAX_FRAME: usize = 16 * 1024;

// ---- system calls ------------------------------------------------------------------------------

/// The system call instruction. The kernel destroys $1, $3, $8 to $15, $24, $25, hi and lo; whether
/// $2 is an error is in $7.
///
/// # Safety
///
/// As for [`crate::sys::syscall_raw`].
#[inline(always)]
pub(crate) unsafe fn syscall(nr: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    let failed: usize;
    // SAFETY: the obligations are the caller's; memory is not said to be preserved, and the stack
    // pointer comes back.
    unsafe {
        asm!(
            ".set push",
            ".set noat",
            "move $16, $1",
            "mfhi $17",
            "mflo $18",
            arguments_to_the_stack!(),
            "syscall",
            arguments_off_the_stack!(),
            "mtlo $18",
            "mthi $17",
            "move $1, $16",
            ".set pop",
            inlateout("$2") nr => result,
            in("$4") args[0],
            in("$5") args[1],
            in("$6") args[2],
            inlateout("$7") args[3] => failed,
            inlateout("$8") args[4] => _,
            inlateout("$9") args[5] => _,
            out("$16") _,
            out("$17") _,
            out("$18") _,
            lateout("$3") _,
            lateout("$10") _,
            lateout("$11") _,
            lateout("$12") _,
            lateout("$13") _,
            lateout("$14") _,
            lateout("$15") _,
            lateout("$24") _,
            lateout("$25") _,
        );
    }
    if failed == 0 { result } else { result.wrapping_neg() }
}

// ---- kernel layouts ----------------------------------------------------------------------------

layout! {
    /// `struct extcontext`: the head of a record.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct ExtContext = "struct extcontext" {
        magic: u32 = "magic",
        size: u32 = "size",
    }
}

/// `USED_EXTCONTEXT` in `used_math`: records follow.
const RECORDS: u32 = 1 << 3;
/// `MSA_EXTCONTEXT_MAGIC`.
const MSA_RECORD: u32 = 0x784d_5341;
/// `END_EXTCONTEXT_MAGIC`, the last of them, which is this word alone.
const END_OF_RECORDS: u32 = 0x7845_4e44;

// ---- registers ---------------------------------------------------------------------------------

impl Reg {
    /// The program counter.
    pub const PC: Self = Self::Pc;
    /// The stack pointer.
    pub const SP: Self = Self::Sp;
}

/// The register that [`Status`] describes. Integer instructions have no flags on this architecture.
pub(crate) const STATUS: Reg = Reg::Fcsr;

bitflags! {
    /// The fields of `fcsr`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Status: u64 {
        /// Rounding mode, two bits.
        const RM = 3;
        /// Flag: inexact.
        const FLAG_I = 1 << 2;
        /// Flag: underflow.
        const FLAG_U = 1 << 3;
        /// Flag: overflow.
        const FLAG_O = 1 << 4;
        /// Flag: division by zero.
        const FLAG_Z = 1 << 5;
        /// Flag: invalid operation.
        const FLAG_V = 1 << 6;
        /// Enable: inexact traps.
        const ENABLE_I = 1 << 7;
        /// Enable: underflow traps.
        const ENABLE_U = 1 << 8;
        /// Enable: overflow traps.
        const ENABLE_O = 1 << 9;
        /// Enable: division by zero traps.
        const ENABLE_Z = 1 << 10;
        /// Enable: an invalid operation traps.
        const ENABLE_V = 1 << 11;
        /// Cause: inexact, in the last instruction.
        const CAUSE_I = 1 << 12;
        /// Cause: underflow.
        const CAUSE_U = 1 << 13;
        /// Cause: overflow.
        const CAUSE_O = 1 << 14;
        /// Cause: division by zero.
        const CAUSE_Z = 1 << 15;
        /// Cause: invalid operation.
        const CAUSE_V = 1 << 16;
        /// Cause: an operation that the hardware does not have.
        const CAUSE_E = 1 << 17;
        /// Quiet NaNs are those of IEEE 754-2008.
        const NAN2008 = 1 << 18;
        /// ABS and NEG are those of IEEE 754-2008.
        const ABS2008 = 1 << 19;
        /// Condition code 0.
        const FCC0 = 1 << 23;
        /// Denormal results are flushed to zero.
        const FS = 1 << 24;
        /// Condition code 1.
        const FCC1 = 1 << 25;
        /// Condition code 2.
        const FCC2 = 1 << 26;
        /// Condition code 3.
        const FCC3 = 1 << 27;
        /// Condition code 4.
        const FCC4 = 1 << 28;
        /// Condition code 5.
        const FCC5 = 1 << 29;
        /// Condition code 6.
        const FCC6 = 1 << 30;
        /// Condition code 7.
        const FCC7 = 1 << 31;
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

    /// As with a function's address, the lowest bit chooses the instruction set.
    #[inline(always)]
    pub(crate) fn set_pc(&mut self, pc: usize) {
        self.set(Reg::Pc, pc as u64);
    }

    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.mcontext.sp as usize
    }

    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: usize) {
        self.set(Reg::Sp, sp as u64);
    }

    #[inline(always)]
    pub(crate) fn fp(&self) -> usize {
        self.mcontext.fp as usize
    }

    #[inline(always)]
    #[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
    pub(crate) fn lr(&self) -> Option<usize> {
        Some(self.mcontext.ra as usize)
    }

    /// Go's `pushCall`, word for word: the return address goes to the stack and `resume` takes its
    /// place. t9 keeps the interrupted value: `target` finds its own address by a relative call.
    ///
    /// # Safety
    ///
    /// The word below the stack pointer may be overwritten, and `target` preserves everything.
    #[inline(always)]
    pub(crate) unsafe fn push_call(&mut self, target: usize, resume: usize) {
        let sp = self.sp().wrapping_sub(size_of::<usize>());
        let ra = self.mcontext.ra as usize;
        // SAFETY: the caller says that this word of the stack is free. Volatile, because the
        // reader is the machine after the handler's return.
        unsafe { (sp as *mut usize).write_volatile(ra) };
        self.set_sp(sp);
        self.set(Reg::Ra, resume as u64);
        self.set_pc(target);
    }
}

/// Words that only this architecture's context has.
impl crate::SigCtx<'_> {
    /// What the kernel did about floating point (`sc_used_math`): bit 0, there are values; bit 1,
    /// with 32 registers of 64 bits; bit 2, with odd singles in the upper halves; bit 3, records of
    /// more state follow the context.
    #[must_use]
    pub fn used_math(&self) -> u32 {
        self.ucontext().mcontext.used_math
    }

    /// The control word of the DSP extension (`sc_dsp`). On a machine without it the word is what
    /// was on the stack.
    #[must_use]
    pub fn dsp_control(&self) -> u32 {
        self.ucontext().mcontext.dsp
    }

    /// The accumulators 1 to 3 of the DSP extension, hi and lo of each. On a machine without it the
    /// words are what was on the stack.
    #[must_use]
    pub fn dsp_accumulators(&self) -> [(u64, u64); 3] {
        self.ucontext().mcontext.accumulators()
    }
}

// ---- what the copy of a frame needs ------------------------------------------------------------

/// Nothing: functions leave no records here, and unwinders go by tables.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct FrameRecord {}

impl FrameRecord {
    #[inline(always)]
    pub(crate) fn of(_uc: &Ucontext) -> Self {
        Self {}
    }
}

/// Whether a function that keeps a frame pointer keeps its return address beside it.
pub(crate) const FRAME_POINTERS: bool = false;

/// No frame pointer leads to a caller here: no convention says where a frame keeps it.
#[inline(always)]
pub(crate) fn caller_of(
    _fp: usize,
    _read: impl Fn(usize) -> Option<usize>,
) -> Option<(usize, usize)> {
    None
}

/// Looks whether the frame up to `hi` is one that can be copied: its records must end within it.
///
/// Not when code of a compressed instruction set was interrupted: where it makes system calls is
/// not looked for (see [`syscall_len`]).
#[inline(always)]
pub(crate) fn check_frame(uc: &Ucontext, _lo: usize, hi: usize) -> Result<(), BadFrame> {
    if is_compressed(uc) {
        return Err(BadFrame::InstructionSet { pc: uc.pc() });
    }
    if uc.mcontext.used_math & RECORDS == 0 {
        return Ok(());
    }
    let mut at = &raw const *uc as usize + size_of::<Ucontext>();
    loop {
        let room = hi.saturating_sub(at);
        let bad = Err(BadFrame::ExtendedState { at });
        if room < size_of::<u32>() {
            return bad;
        }
        // SAFETY: within the frame, which begins before the context and ends at `hi`.
        let magic = unsafe { (at as *const u32).read() };
        if magic == END_OF_RECORDS {
            return Ok(());
        }
        if room < size_of::<ExtContext>() {
            return bad;
        }
        // SAFETY: as before.
        let record = unsafe { (at as *const ExtContext).read() };
        let size = record.size as usize;
        if size < size_of::<ExtContext>() || !size.is_multiple_of(8) || size > room {
            return bad;
        }
        at += size;
    }
}

/// No pointer of a frame leads into it: records are found by their order.
#[inline(always)]
pub(crate) fn relocate(_copy: &mut Ucontext, _delta: usize) {}

/// Makes a frame resume on the calling thread.
///
/// The thread pointer is in no frame here: code asks the kernel's register for it (`rdhwr`). But a
/// thread that has never used the MSA vectors gets new ones at its first use, in the place of what
/// the sigreturn restored (`arch/mips/kernel/traps.c`: `enable_restore_fp_context`): so that first
/// use is made here.
#[inline(always)]
pub(crate) fn patch_thread(copy: &mut Ucontext, _end: usize) {
    if has_vectors(copy) {
        // `move.v $w0, $w0`, for assemblers that are not told of MSA.
        // SAFETY: the CPU has MSA, since there is a record of its vectors; changes none.
        unsafe { asm!(".word 0x78be0019", options(nomem, nostack)) };
    }
}

/// Whether a copied frame has the record of the MSA vectors.
fn has_vectors(copy: &Ucontext) -> bool {
    if copy.mcontext.used_math & RECORDS == 0 {
        return false;
    }
    let mut at = &raw const *copy as usize + size_of::<Ucontext>();
    loop {
        // SAFETY: `check_frame` has seen that the records lead from one to the next up to the last.
        let magic = unsafe { (at as *const u32).read() };
        if magic == END_OF_RECORDS || magic == MSA_RECORD {
            return magic == MSA_RECORD;
        }
        // SAFETY: as above; all but the last are at least this long.
        at += unsafe { (at as *const ExtContext).read() }.size as usize;
    }
}

/// Looks whether a frame can resume on the calling thread: always, every thread may use all there
/// is.
#[expect(clippy::unnecessary_wraps, reason = "other architectures refuse")]
pub(crate) fn check_move(_frame: &Ucontext, _end: usize) -> Result<(), MoveError> {
    Ok(())
}

/// Whether the interrupted code has instructions of 16 bits: the lowest bit of its address is set.
#[inline(always)]
fn is_compressed(uc: &Ucontext) -> bool {
    uc.pc() & 1 != 0
}

pub(crate) const SYSCALL_LEN: usize = 4;

/// 0 for compressed code, in which [`check_frame`] refuses every call: its instructions do not
/// begin at the address that it has, and may be too short for what is read here.
#[inline(always)]
pub(crate) fn syscall_len(uc: &Ucontext) -> usize {
    if is_compressed(uc) { 0 } else { SYSCALL_LEN }
}

#[cfg(test)]
pub(crate) const SYSCALL_CODE: [u8; SYSCALL_LEN] = 0x0000_000c_u32.to_ne_bytes();

/// Whether four bytes are `syscall`, with any number in the middle.
#[inline(always)]
pub(crate) fn is_syscall(code: [u8; SYSCALL_LEN]) -> bool {
    u32::from_ne_bytes(code) & 0xfc00_003f == 0x0000_000c
}

/// Whether the byte can begin a system call instruction; every instruction has four.
#[inline(always)]
pub(crate) fn begins_syscall(byte: u8) -> bool {
    if cfg!(target_endian = "big") { byte & 0xfc == 0 } else { byte & 0x3f == 0x0c }
}
