//! The registers that a function keeps for its caller, written to memory.
//!
//! Who looks for references on another thread's stack has to read those that are in no memory yet: what a
//! function's callers have in callee-saved registers. The function writes them to memory before it waits. What it
//! was called with in the other registers is its callers' no more, or is on the stack.
//!
//! # Examples
//!
//! ```
//! use sigctx::spill::{CalleeSaved, callee_saved};
//!
//! fn wait(until: impl Fn()) {
//!     let mut saved = CalleeSaved::new();
//!     let sp = callee_saved(&mut saved);
//!     // Everything that the callers need later is in `saved`, or on the stack at `sp` and above, for as long as
//!     // this function has not returned.
//!     println!("{:x?}, and from {sp:#x} on", saved.words());
//!     until();
//! }
//! wait(|| ());
//! ```
//!
//! # References
//!
//! The ABI of each architecture. Boehm's `GC_with_callee_saves_pushed`, V8's `PushAllRegistersAndIterateStack`.

pub use crate::arch::{CalleeSaved, callee_saved};

/// Marks for tests, one a register, which are nowhere else in memory that a thread has on its stack.
#[cfg(any(test, feature = "probe"))]
static MARKS: [usize; crate::arch::SPILLED] = {
    let mut marks = [0; _];
    let mut n = 0;
    while n < crate::arch::SPILLED {
        marks[n] = usize::from_ne_bytes([0xa5; _]) ^ (n + 1) << 8 ^ n;
        n += 1;
    }
    marks
};

/// For tests: runs `work` with a mark in each callee-saved register, and nowhere on the stack. Returns the marks.
///
/// A panic in `work` aborts the process.
#[cfg(any(test, feature = "probe"))]
#[doc(hidden)]
pub fn with_marks(mut work: impl FnMut()) -> &'static [usize] {
    extern "C" fn run<F: FnMut()>(data: usize) -> usize {
        // SAFETY: the closure that is borrowed below.
        let work = unsafe { &mut *core::ptr::with_exposed_provenance_mut::<F>(data) };
        work();
        0
    }
    fn address_of<F: FnMut()>(_: &F) -> usize {
        run::<F> as *const () as usize
    }
    let (function, written) = (address_of(&work), crate::arch::spilled());
    let data = (&raw mut work).expose_provenance();
    // SAFETY: the address of a function that takes such a word, and does not unwind.
    unsafe { crate::arch::call_marked(&MARKS, written, function, data) };
    MARKS.get(..written).unwrap_or(&MARKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;

    #[test]
    fn a_mark_in_each_register_is_written() {
        let mut into = CalleeSaved::new();
        let here = core::hint::black_box(0_u8);
        let (function, data) = (callee_saved as *const () as usize, &raw mut into as usize);
        // SAFETY: the address of a function that takes such an address.
        let sp = unsafe { arch::call_marked(&MARKS, into.written, function, data) };
        assert_eq!(into.words(), &MARKS[..into.written]);
        let above = (&raw const here as usize).wrapping_sub(sp);
        assert!(above < 1 << 16, "the stack pointer is {sp:#x}");
    }
}
