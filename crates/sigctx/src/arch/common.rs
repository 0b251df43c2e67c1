//! What every architecture has in the same words.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;

use super::{Reg, SigInfoHead, SignalStack, Ucontext};
use crate::sys::SigSet;

/// Number of registers of [`Reg::ALL`].
pub(crate) const REGISTERS: usize = Reg::ALL.len();

/// A frame's copy has the original's address modulo this: the largest alignment in any frame, that of
/// x86's XSAVE image.
pub(crate) const FRAME_ALIGN: usize = 64;

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

// In the architecture's assembly.
unsafe extern "C" {
    #[link_name = "sigctx_resume_0_1"]
    fn resume_code(frame: usize, back: usize, active: *const AtomicU32) -> !;
    #[link_name = "sigctx_probe_known_pc_0_1"]
    static KNOWN_PC: u8;
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

/// Where the probes' undefined instruction is.
pub(crate) fn known_pc() -> usize {
    &raw const KNOWN_PC as usize
}
