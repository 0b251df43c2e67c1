//! Who called interrupted code, by frame pointers: what a handler can find out without tables of unwinding.
//!
//! A handler may not allocate, lock, or load anything, so it cannot unwind by tables. A chain of frame pointers is words
//! on the stack. Code that keeps no frame pointers has no chain, and may have anything in the register: what is read
//! lies on the thread's own stack in any case, and what is found may be wrong or missing. It is for messages.
//!
//! | architecture | where a caller is found | who keeps it |
//! |---|---|---|
//! | amd64, 386, arm64 | at the frame pointer: the caller's, then the return address | code with frame pointers; on arm64 most |
//! | arm | the same, as LLVM has it; `r11` in ARM code, `r7` in Thumb code | code with frame pointers |
//! | riscv64, loong64 | in the two words below the frame pointer, in the same order | code with frame pointers |
//! | ppc64, ppc64le | by the back chain at the stack pointer; the return address is in the caller's frame | all code that has a frame |
//! | s390x | nowhere: compilers keep no back chain unless they are told | — |
//! | mips, mipsle, mips64, mips64le | nowhere: no convention says where a frame has its return address | — |
//!
//! Rust code has frame pointers with `-C force-frame-pointers=yes`; the standard library is built with them on arm64 and
//! some others. A function that has not set up its frame yet, or keeps none, hides its caller: the first address that
//! is found is then that one's caller.

use core::fmt;
use core::mem::size_of;
use core::ops::Range;

use crate::arch::{self, SigCtx};

/// How many callers a [`Sighting`] has at most.
pub const CALLERS: usize = 16;

/// Whether a function that keeps a frame pointer leads to its caller: see the table.
pub const FRAME_POINTERS: bool = arch::FRAME_POINTERS;

const WORD: usize = size_of::<usize>();

/// Where a thread was when a handler interrupted it.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sighting {
    /// The program counter.
    pub pc: usize,
    /// The stack pointer.
    pub sp: usize,
    /// The register that ABIs use as frame pointer.
    pub fp: usize,
    /// The program counter, and the callers.
    addresses: [usize; CALLERS + 1],
    known: usize,
}

impl Sighting {
    /// A sighting of its parts; of `callers` the first [`CALLERS`].
    #[must_use]
    pub fn new(pc: usize, sp: usize, fp: usize, callers: &[usize]) -> Self {
        let callers = &callers[..callers.len().min(CALLERS)];
        let mut addresses = [0; CALLERS + 1];
        addresses[0] = pc;
        addresses[1..=callers.len()].copy_from_slice(callers);
        Self { pc, sp, fp, addresses, known: callers.len() }
    }

    /// Where the context was interrupted, and its callers as far as frame pointers lead through `stack`. There are none
    /// if the stack pointer is not in there.
    ///
    /// # Safety
    ///
    /// 1. From the context's stack pointer to its end `stack` is mapped, if the stack pointer is in there.
    /// 2. The calling thread is the interrupted one: no other writes there.
    #[must_use]
    pub unsafe fn of(context: &SigCtx<'_>, stack: Range<usize>) -> Self {
        let (pc, sp, fp) = (context.pc(), context.sp(), context.fp());
        let mut callers = [0; CALLERS];
        // SAFETY: `walk` asks for aligned words of the stack alone, from the stack pointer up.
        let load = |at: usize| unsafe { (at as *const usize).read_volatile() };
        let known = walk(fp, sp, &stack, load, &mut callers);
        Self::new(pc, sp, fp, &callers[..known])
    }

    /// The return addresses of the callers, the innermost first. Empty where frame pointers lead nowhere.
    #[must_use]
    pub fn callers(&self) -> &[usize] {
        &self.addresses[1..=self.known]
    }

    /// The program counter, and the callers.
    #[must_use]
    pub fn backtrace(&self) -> &[usize] {
        &self.addresses[..=self.known]
    }
}

impl fmt::Debug for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |value: usize| fmt::from_fn(move |f| write!(f, "{value:#x}"));
        f.debug_struct("Sighting")
            .field("pc", &hex(self.pc))
            .field("sp", &hex(self.sp))
            .field("fp", &hex(self.fp))
            .field("callers", &format_args!("{:#x?}", self.callers()))
            .finish_non_exhaustive()
    }
}

/// Writes the return addresses that the chain from `fp` has, and returns how many. `load` is called for aligned words
/// between the stack pointer and the stack's end alone.
fn walk(
    mut fp: usize,
    sp: usize,
    stack: &Range<usize>,
    load: impl Fn(usize) -> usize,
    callers: &mut [usize],
) -> usize {
    if !stack.contains(&sp) {
        return 0;
    }
    let read = |at: usize| {
        let is_word = at.is_multiple_of(WORD) && at >= sp && at <= stack.end.saturating_sub(WORD);
        is_word.then(|| load(at))
    };
    for (known, caller) in callers.iter_mut().enumerate() {
        let Some((next, pc)) = arch::caller_of(fp, read).filter(|&(_, pc)| pc != 0) else {
            return known;
        };
        *caller = pc;
        // A caller's frame lies above. A chain that does not lead there may go in a circle.
        if next <= fp {
            return known + 1;
        }
        fp = next;
    }
    callers.len()
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    const STACK: Range<usize> = 0x1000..0x1400;
    const SP: usize = 0x1100;

    /// Whether the architecture has a chain.
    fn has_chain() -> bool {
        arch::caller_of(SP, |_| Some(SP)).is_some()
    }

    /// A chain on a stack whose words are `forged`. Reads outside of it fail. Returns how many callers there are, and how
    /// many words were read.
    fn forged(fp: usize, sp: usize, forged: impl Fn(usize) -> usize) -> (usize, usize) {
        let read = Cell::new(0);
        let load = |at: usize| {
            assert!(at.is_multiple_of(WORD), "{at:#x} is not aligned");
            assert!(at >= sp && at + WORD <= STACK.end, "{at:#x} is outside of the stack");
            read.set(read.get() + 1);
            forged(at)
        };
        let known = walk(fp, sp, &STACK, load, &mut [0; CALLERS]);
        (known, read.get())
    }

    #[test]
    fn a_forged_chain_does_not_lead_off_the_stack() {
        for fp in [0, 1, SP - WORD, SP, SP + 1, STACK.end - WORD, STACK.end, usize::MAX, !7] {
            for next in [0, SP - WORD, STACK.end - WORD, STACK.end, STACK.end + WORD, usize::MAX] {
                forged(fp, SP, |_| next);
            }
            // Frames of any length, up to the stack's end and beyond.
            for frame in [WORD, 2 * WORD, 4 * WORD, 0x100, 0x2ff, 0x300, 0x400] {
                forged(fp, SP, |at| at + frame);
            }
        }
        assert_eq!(forged(SP, STACK.end, |at| at), (0, 0), "the code is on another stack");
        assert_eq!(forged(SP, STACK.start - WORD, |at| at), (0, 0), "the code is on another stack");
    }

    #[test]
    fn a_chain_ends_and_does_not_go_in_circles() {
        let fp = SP + 4 * WORD;
        let (known, _) = forged(fp, SP, |at| at + 4 * WORD);
        assert_eq!(known == CALLERS, has_chain(), "as many as there is room for");
        for back in [fp, fp - WORD, SP, 8] {
            assert!(forged(fp, SP, |_| back).0 <= 1, "{back:#x}");
        }
        assert_eq!(forged(fp, SP, |_| 0).0, 0, "no return address is 0");
    }

    #[test]
    fn a_sighting_keeps_as_many_callers_as_it_has_room_for() {
        let many = [7; CALLERS + 1];
        let sighting = Sighting::new(1, 2, 3, &many);
        assert_eq!(sighting.callers(), &many[1..]);
        assert_eq!((sighting.backtrace().len(), sighting.backtrace()[0]), (CALLERS + 1, 1));
        let few = Sighting::new(1, 2, 3, &many[..2]);
        assert_eq!((few.pc, few.sp, few.fp, few.callers()), (1, 2, 3, &many[..2]));
    }
}
