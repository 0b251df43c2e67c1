//! What every architecture has in the same words.

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;

use super::{Reg, SigInfoHead, SignalStack, Ucontext};
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

/// The address of the code of [`resume`].
#[cfg(test)]
#[cfg_attr(
    not(any(target_arch = "riscv64", target_arch = "s390x", target_arch = "loongarch64")),
    expect(dead_code, reason = "for tests where the entry sets the frame or the registers right")
)]
pub(crate) fn resume_address() -> usize {
    resume_code as *const () as usize
}

/// Where the probes' undefined instruction is.
pub(crate) fn known_pc() -> usize {
    &raw const KNOWN_PC as usize
}

// The unwinder's. The functions that call them are inlined, so that who does not call those does not
// need one.
#[cfg(not(target_arch = "arm"))]
unsafe extern "C" {
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
    fn _Unwind_GetGR(context: *mut c_void, number: c_int) -> usize;
}

#[cfg(target_arch = "arm")]
unsafe extern "C" {
    fn _Unwind_VRS_Get(
        context: *mut c_void,
        class: c_int,
        number: u32,
        representation: c_int,
        value: *mut c_void,
    ) -> c_int;
}

/// A register by its DWARF number, in the frame that an unwinder is at.
///
/// # Safety
///
/// `context` is what the unwinder gave to its function, and the register has a rule.
#[inline(always)]
pub(crate) unsafe fn unwound(context: *mut c_void, number: u16) -> usize {
    cfg_select! {
        target_arch = "arm" => {
            let mut value = 0usize;
            let at = (&raw mut value).cast();
            // Class and representation 0: a core register, as a word.
            // SAFETY: the caller's obligation; one word is written.
            unsafe { _Unwind_VRS_Get(context, 0, number.into(), 0, at) };
            value
        }
        _ => {
            // SAFETY: the caller's obligation.
            unsafe { _Unwind_GetGR(context, number.into()) }
        }
    }
}

/// The program counter and, where frames have an address, the stack pointer of that frame.
///
/// # Safety
///
/// `context` is what the unwinder gave to its function.
#[inline(always)]
pub(crate) unsafe fn unwound_place(context: *mut c_void) -> (usize, Option<usize>) {
    cfg_select! {
        target_arch = "arm" => {
            // SAFETY: the caller's obligation; every frame has a program counter. Its lowest bit
            // says that it is Thumb code.
            (unsafe { unwound(context, 15) } & !1, None)
        }
        _ => {
            // SAFETY: the caller's obligation.
            let pc = unsafe { _Unwind_GetIP(context) };
            // SAFETY: the same.
            let cfa = unsafe { _Unwind_GetCFA(context) };
            (pc, Some(cfa - super::CFA_ABOVE_SP))
        }
    }
}
