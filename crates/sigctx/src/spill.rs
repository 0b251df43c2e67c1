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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch;

    /// A mark for each register, which is nowhere else.
    fn marks() -> [usize; arch::SPILLED] {
        core::array::from_fn(|n| usize::from_ne_bytes([0xa5; _]) ^ (n + 1) << 8 ^ n)
    }

    #[test]
    fn a_mark_in_each_register_is_written() {
        let (marks, mut into) = (marks(), CalleeSaved::new());
        let here = core::hint::black_box(0_u8);
        let sp = arch::spill_marked(&marks, &mut into);
        for (n, (found, mark)) in into.words().iter().zip(marks).enumerate() {
            assert_eq!(*found, mark, "{n}");
        }
        let above = (&raw const here as usize).wrapping_sub(sp);
        assert!(above < 1 << 16, "the stack pointer is {sp:#x}");
    }
}
