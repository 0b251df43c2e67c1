//! What the probes of all architectures share.

use core::ffi::{c_int, c_void};

use super::Table;

// In the architecture's assembly.
unsafe extern "C" {
    #[link_name = symbol!("probe_spin")]
    fn spin_code(table: *mut Table);
    #[cfg(not(target_arch = "s390x"))]
    #[link_name = symbol!("probe_loop")]
    static LOOP: u8;
    #[cfg(not(target_arch = "s390x"))]
    #[link_name = symbol!("probe_exit")]
    static EXIT: u8;
    #[cfg(not(target_arch = "aarch64"))]
    #[link_name = symbol!("probe_known")]
    fn known_code();
    #[link_name = symbol!("probe_known_pc")]
    static KNOWN_PC: u8;
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
// s390x has two loops.
#[cfg(not(target_arch = "s390x"))]
pub(crate) fn window() -> core::ops::Range<usize> {
    &raw const LOOP as usize..&raw const EXIT as usize
}

/// Loads every register with a value that names it and runs into an undefined instruction.
///
/// # Safety
///
/// A handler for `SIGILL` on an alternate stack adds [`KNOWN_STEP`](super::KNOWN_STEP) to the program
/// counter; one thread at a time.
// aarch64's must be told of a feature.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) unsafe fn known() {
    // SAFETY: the caller's obligation; all callee-saved state is kept.
    unsafe { known_code() }
}

/// What `CLONE_SETTLS` takes for a thread without thread-local storage.
// x86's wants a descriptor.
#[cfg(not(target_arch = "x86"))]
pub(crate) fn no_storage() -> *mut c_void {
    core::ptr::null_mut()
}

/// Not on these architectures: only another process can step through a program.
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
pub(crate) fn single_step(_ctx: &mut super::SigCtx<'_>) -> bool {
    false
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
