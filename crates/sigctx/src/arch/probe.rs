//! What the probes of all architectures share.

use core::ffi::{c_int, c_void};

// In the architecture's assembly.
unsafe extern "C" {
    #[link_name = symbol!("probe_known_pc")]
    static KNOWN_PC: u8;
}

/// Where the probes' undefined instruction is.
pub(crate) fn known_pc() -> usize {
    &raw const KNOWN_PC as usize
}

// The unwinder's. The functions that call them are inlined, so that a program that calls none of those
// needs no unwinder.
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
