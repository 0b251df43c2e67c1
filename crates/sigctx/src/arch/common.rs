//! What all architectures share that is no part of the kernel's interface.

use core::ffi::{c_int, c_void};
use core::ops::Range;
use core::sync::atomic::AtomicU32;

use super::{Reg, SPILLED, SigInfoHead, SignalStack, Ucontext};
use crate::sys::SigSet;

/// Number of registers of [`Reg::ALL`].
pub(crate) const REGISTERS: usize = Reg::ALL.len();

/// A frame's copy has the original's address modulo this: the largest alignment in any frame, that of
/// x86's XSAVE image.
pub(crate) const FRAME_ALIGN: usize = 64;

/// Bytes of a signal frame that `AT_MINSIGSTKSZ`, which says `told`, leaves out: none here.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn left_out(_told: usize) -> usize {
    0
}

/// How many of the registers that [`CalleeSaved`] has room for this CPU has: all of them.
#[cfg(not(any(target_arch = "arm", target_arch = "powerpc64")))]
pub(crate) fn spilled() -> usize {
    SPILLED
}

impl SigInfoHead {
    #[inline(always)]
    pub(crate) fn new(signo: c_int, code: c_int) -> Self {
        Self { signo, errno: 0, code }
    }
}

impl Ucontext {
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
}

/// Room for the registers, for [`callee_saved`](crate::spill::callee_saved).
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
#[repr(C, align(16))]
pub struct CalleeSaved {
    pub(crate) words: [usize; SPILLED],
    /// How many of them the CPU has registers for. The assembly reads it.
    pub(crate) written: usize,
}

impl CalleeSaved {
    /// Zeroes.
    #[must_use]
    pub fn new() -> Self {
        Self { words: [0; SPILLED], written: super::spilled() }
    }

    /// What was in the registers: the general ones, those of floating point that the ABI has among them, and on
    /// powerpc64 the vectors.
    #[must_use]
    pub fn words(&self) -> &[usize] {
        self.words.get(..self.written).unwrap_or(&self.words)
    }
}

impl Default for CalleeSaved {
    fn default() -> Self {
        Self::new()
    }
}

// In the architecture's assembly.
unsafe extern "C" {
    #[link_name = symbol!("entry")]
    fn entry_code(signal: c_int, info: *mut c_void, uc: *mut c_void);
    #[cfg(target_arch = "powerpc64")]
    #[link_name = symbol!("begin")]
    static BEGIN: u8;
    #[link_name = symbol!("end")]
    static END: u8;
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "arm",
        target_arch = "s390x"
    ))]
    #[link_name = symbol!("restorer")]
    fn restorer_code();
    #[link_name = symbol!("resume")]
    fn resume_code(frame: usize, back: usize, active: *const AtomicU32) -> !;
    /// Writes the callee-saved registers to `into`, and returns the stack pointer.
    ///
    /// From here until the calling function returns, all that its callers go on with is in `into`, or on the stack
    /// at the returned stack pointer and above. It has to be the function that waits, or calls what waits, which calls
    /// this: when a function between them has returned, what that had put on the stack is lost.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[link_name = symbol!("spill")]
    pub safe fn callee_saved(into: &mut CalleeSaved) -> usize;
    /// Calls the function at an address, with a word as its argument, and `marks` in the callee-saved registers:
    /// `written` of them. Nothing may unwind through this.
    #[cfg(any(test, feature = "probe"))]
    #[link_name = symbol!("call_marked")]
    pub(crate) fn call_marked(
        marks: &[usize; SPILLED],
        written: usize,
        function: usize,
        data: usize,
    ) -> usize;
}

/// The address of the handler that the kernel is given; in ELF V1 of powerpc64 that of its descriptor.
#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> Range<usize> {
    let start = cfg_select! {
        target_arch = "powerpc64" => { &raw const BEGIN as usize }
        _ => { entry() }
    };
    start..&raw const END as usize
}

/// The address that the kernel is given for a handler to return to.
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "arm",
    target_arch = "s390x"
))]
#[inline(always)]
pub(crate) fn restorer() -> usize {
    restorer_code as *const () as usize
}

/// Resumes what a copied frame interrupted, on the calling thread.
///
/// # Safety
///
/// `frame` is a copy made by [`crate::inject`], owned by the caller and made ready for this
/// thread, and `back` is where its handler was to return to; `active` is its stack's word, alive
/// until the frame is left.
pub(crate) unsafe fn resume(frame: usize, back: usize, active: *const AtomicU32) -> ! {
    // SAFETY: the caller's obligation.
    unsafe { resume_code(frame, back, active) }
}

/// The address of the code of [`resume`].
#[cfg(test)]
#[cfg_attr(
    not(any(target_arch = "riscv64", target_arch = "s390x", target_arch = "loongarch64")),
    expect(dead_code, reason = "for tests where the entry sets the frame or the registers right")
)]
pub(crate) fn resume_address() -> usize {
    resume_code as *const () as usize
}
