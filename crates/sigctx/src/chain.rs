//! What one signal's way through several handlers has in common, so that it never goes round in a
//! circle.
//!
//! Each handler that chains knows only the ones before it. Two that were each installed over the
//! other, as two copies of this crate in one process are, would call each other without end, or
//! stop short of the handler that was first. So the first of them leaves a [`Passage`] on its stack
//! and its address in the frame, where the others find it:
//!
//! ```text
//!   the kernel's frame           the first copy's stack
//!   +-------------------+        +---------------------------------------------+
//!   | uc_link ----------|------->| Passage: which handlers the signal has been |
//!   +-------------------+        | given to; what is to be done in the end     |
//!                                +---------------------------------------------+
//! ```
//!
//! The kernel writes 0 to `uc_link` for every signal, and does not read it on return. The way is a
//! depth-first search: each copy hands the signal to the most recent handler it knows that has not
//! had it, until one is the end of the chain.
//!
//! - **I1** A handler's address is in the passage before the handler is called, and stays there: no
//!   handler is called twice.
//! - **I2** `ended` is set by the copy that hands the signal on, and cleared by a copy that gets it,
//!   which then answers for the rest: when a call comes back and `ended` is clear, the way was a dead
//!   end, and the next handler is tried.
//! - **I3** `uc_link` has its old value again before the passage's stack frame ends. A handler that
//!   jumps out takes the kernel's frame with it.
//! - **I4** A passage is read by copies of other versions: its layout and that of
//!   [`Call`](crate::inject) are what [`MAGIC`] stands for.
//!
//! **Exit**, **fork**, **masked signal**: it lives on one thread's stack, during one call. **Nesting**:
//! each frame has its own.

use core::ffi::c_void;
use core::ptr;

use crate::arch::Ucontext;

/// Tells a passage, and its layout, from whatever else somebody may put in `uc_link`.
const MAGIC: usize = 0x7369_6763_7478_0001u64 as usize;

/// Handlers that one signal is given to at most, all copies together. What comes after them is not
/// called: a loop would be worse.
const PLACES: usize = 14;

/// Handlers that have had the signal.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Seen {
    ended: usize,
    length: usize,
    /// A bit for each place: it is a copy of this crate, which has been entered.
    entered: usize,
    handlers: [usize; PLACES],
}

impl Seen {
    #[inline(always)]
    const fn new() -> Self {
        Self { ended: 0, length: 0, entered: 0, handlers: [0; PLACES] }
    }

    #[inline(always)]
    fn place(&self, handler: usize) -> Option<usize> {
        self.handlers.iter().take(self.length).position(|&seen| seen == handler)
    }

    /// Adds a handler, if there is room.
    #[inline(always)]
    fn add(&mut self, handler: usize) -> Option<usize> {
        let place = self.length;
        *self.handlers.get_mut(place)? = handler;
        self.length += 1;
        Some(place)
    }

    /// A copy, `me`, has got the signal and answers for the rest of the way. False when it has had it
    /// before.
    #[inline(always)]
    pub(crate) fn enter(&mut self, me: usize) -> bool {
        let Some(place) = self.place(me).or_else(|| self.add(me)) else {
            self.ended = 1;
            return false;
        };
        self.ended = 0; // I2
        let first = self.entered & (1 << place) == 0;
        self.entered |= 1 << place;
        first
    }

    /// Whether the signal is to be handed to `handler`: it has not had it, and there is room.
    #[inline(always)]
    pub(crate) fn hand_to(&mut self, handler: usize) -> bool {
        if self.place(handler).is_some() {
            return false;
        }
        self.ended = 1; // I2; also when there is no room
        self.add(handler).is_some() // I1
    }

    /// The signal has come to its end.
    #[inline(always)]
    pub(crate) fn end(&mut self) {
        self.ended = 1;
    }

    #[inline(always)]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended != 0
    }
}

/// An action from before that is carried out when all handlers have returned.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Deferred {
    /// Carries it out, in the copy that deferred it; without one there is none.
    pub(crate) function: Option<CarryOut>,
    /// For `function`.
    pub(crate) previous: *const c_void,
    /// For `function`.
    pub(crate) action: *const c_void,
}

/// Gets the two words of [`Deferred`], and passage, information and context of the frame or its copy.
pub(crate) type CarryOut =
    unsafe extern "C" fn(*const c_void, *const c_void, *mut Passage, *mut c_void, *mut Ucontext);

impl Deferred {
    const NONE: Self = Self { function: None, previous: ptr::null(), action: ptr::null() };
}

/// See the module.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Passage {
    magic: usize,
    /// The stack pointer with which the first copy was entered, if the kernel called it; else 0.
    pub(crate) entry_sp: usize,
    /// The record of a call that a copy has prepared, for the first one to make; 1 while one is being
    /// prepared; or 0.
    pub(crate) call: usize,
    pub(crate) deferred: Deferred,
    pub(crate) seen: Seen,
}

impl Passage {
    #[inline(always)]
    pub(crate) const fn new(entry_sp: usize) -> Self {
        let (deferred, seen) = (Deferred::NONE, Seen::new());
        Self { magic: MAGIC, entry_sp, call: 0, deferred, seen }
    }

    /// The passage that an earlier copy left for the others.
    ///
    /// # Safety
    ///
    /// `uc` is the frame's.
    #[inline(always)]
    pub(crate) unsafe fn find(uc: *const Ucontext) -> *mut Self {
        // SAFETY: the caller's obligation.
        let link = unsafe { &raw const (*uc).link };
        // SAFETY: a word of the frame.
        let at = unsafe { link.read() } as *mut Self;
        if at.is_null() || !at.is_aligned() {
            return ptr::null_mut();
        }
        // SAFETY: the kernel writes 0 there, or, to a frame within a transaction of ppc64, the
        // address of another context; else only copies of this crate write there.
        let magic = unsafe { (*at).magic };
        if magic == MAGIC { at } else { ptr::null_mut() }
    }

    /// Leaves the passage in the frame for other copies; returns what was there.
    ///
    /// # Safety
    ///
    /// `uc` is the frame's, and is given its old value again before `at` ends (I3).
    #[inline(always)]
    pub(crate) unsafe fn leave(uc: *mut Ucontext, at: usize) -> usize {
        // SAFETY: the caller's obligation.
        let link = unsafe { &raw mut (*uc).link };
        // SAFETY: a word of the frame; volatile, because its readers are called through pointers.
        let before = unsafe { link.read_volatile() };
        // SAFETY: as above.
        unsafe { link.write_volatile(at) };
        before
    }
}

/// Hands a signal to the handlers that were there before, for a handler that was installed without
/// [`handler::install`](crate::handler::install), by [`rt_sigaction`](crate::sys::rt_sigaction).
///
/// `me` is the handler's own address; `previous` gives the handlers that it has found at its
/// installs, most recent first, as often as it likes; and `call` calls one. Handlers that had this
/// signal already are passed over, whatever copy of these crates gave it to them, until one has it
/// that is the end of the chain. So a handler may be installed over others, and they over it, any
/// number of times.
///
/// One that covers this handler, calls it, and is of no copy of these crates, may be among `previous`
/// and get the signal a second time; it does not go round again.
///
/// Returns whether the signal came to an end: false when every handler has had it.
///
/// # Signal safety
///
/// Handler only. No thread-local storage, and nothing but `call` is called.
///
/// # Safety
///
/// 1. `context` is the third argument of the handler, as it got it.
/// 2. `me` is the address that the kernel has, or another copy would call, for this handler.
#[inline(always)]
pub unsafe fn hand_on(
    me: usize,
    context: *mut c_void,
    previous: impl Iterator<Item = usize>,
    mut call: impl FnMut(usize),
) -> bool {
    let uc = context.cast::<Ucontext>();
    let mut own = Passage::new(0);
    // SAFETY: obligation 1.
    let found = unsafe { Passage::find(uc) };
    let passage = if found.is_null() { &raw mut own } else { found };
    // SAFETY: obligation 1; put back below.
    let before = unsafe { Passage::leave(uc, passage as usize) };
    // SAFETY: it is this function's own, or on the stack of a caller; here and below no reference
    // lives while `call` runs.
    let seen = || unsafe { &mut (*passage).seen };
    seen().enter(me);
    for handler in previous {
        if seen().hand_to(handler) {
            call(handler);
        }
        if seen().has_ended() {
            break;
        }
    }
    let ended = seen().has_ended();
    // SAFETY: obligation 1.
    unsafe { Passage::leave(uc, before) };
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A program's handlers: each has those that it found, most recent first. Those without any are
    /// not copies of this crate, and call nobody.
    fn way(graph: &[(usize, &[usize])], from: usize) -> Vec<usize> {
        fn go(graph: &[(usize, &[usize])], at: usize, uc: *mut c_void, way: &mut Vec<usize>) {
            way.push(at);
            let Some((_, previous)) = graph.iter().find(|(handler, _)| *handler == at) else {
                return;
            };
            let previous = previous.iter().copied();
            // SAFETY: the context is the test's own.
            unsafe { hand_on(at, uc, previous, |next| go(graph, next, uc, way)) };
        }
        // SAFETY: all integers.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        let mut way = Vec::new();
        go(graph, from, (&raw mut uc).cast(), &mut way);
        assert_eq!(uc.link, 0, "the frame is as it was");
        way
    }

    const X: usize = 0x1000;
    const Y: usize = 0x2000;
    const Z: usize = 0x3000;
    const FIRST: usize = 0x9000;

    #[test]
    fn any_order_of_copies_reaches_the_first_handler_once() {
        // What each has found, by the order in which they were installed; the last is on top.
        let graphs: [&[(usize, &[usize])]; 6] = [
            &[(X, &[FIRST])],
            &[(X, &[FIRST]), (Y, &[X])],
            &[(X, &[Y, FIRST]), (Y, &[X])],
            &[(X, &[Y, FIRST]), (Y, &[X]), (Z, &[X])],
            &[(X, &[Z, Y, FIRST]), (Y, &[Z, X]), (Z, &[X, Y])],
            &[(X, &[Y]), (Y, &[FIRST, X]), (Z, &[Y, X])],
        ];
        for graph in graphs {
            for (top, _) in graph {
                let way = way(graph, *top);
                let firsts = way.iter().filter(|&&at| at == FIRST).count();
                assert_eq!(
                    (firsts, way.last()),
                    (1, Some(&FIRST)),
                    "{graph:x?} from {top:x}: {way:x?}"
                );
            }
        }
    }

    #[test]
    fn a_handler_that_does_not_chain_is_the_end() {
        const OTHER: usize = 0x8000;
        assert_eq!(way(&[(X, &[OTHER, FIRST])], X), [X, OTHER]);
    }

    #[test]
    fn a_dead_end_is_gone_back_from() {
        // Y knows X alone, which has had it.
        assert_eq!(way(&[(X, &[Y, FIRST]), (Y, &[X])], X), [X, Y, FIRST]);
        // Nobody knows any other: the signal comes to no end, and nobody has it twice.
        assert_eq!(way(&[(X, &[Y]), (Y, &[X])], X), [X, Y]);
    }

    #[test]
    fn more_handlers_than_there_are_places_make_no_loop() {
        let all: Vec<usize> = (1..=2 * PLACES).map(|n| n * 0x100).collect();
        let graph: Vec<(usize, &[usize])> = all.iter().map(|&at| (at, &all[..])).collect();
        let way = way(&graph, all[0]);
        assert!(way.len() <= PLACES + 1, "{way:x?}");
    }

    #[test]
    fn what_somebody_else_has_in_the_frame_stays() {
        let other = [1usize; 64];
        // SAFETY: all integers.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        uc.link = other.as_ptr() as usize;
        let mut called = 0;
        let at = (&raw mut uc).cast();
        // SAFETY: the context is the test's own.
        let ended = unsafe { hand_on(X, at, [FIRST].into_iter(), |_| called += 1) };
        assert!(ended && called == 1);
        assert_eq!(uc.link, other.as_ptr() as usize);
    }
}
