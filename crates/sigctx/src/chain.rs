//! One signal's way through several handlers, kept where all of them find it, so that it never goes
//! round in a circle.
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
//! The kernel writes 0 to `uc_link` for every signal, and does not read it on return.
//!
//! Each copy knows which actions it has found in force and replaced (its *finds*), and when. The signal
//! goes to the latest find of all copies that have been reached, then to the next, until one is the end
//! of the chain. That is the order in which the handlers were installed, last one first. The first copy
//! directs this. It calls another copy once, which offers the signal to its own handlers and says how
//! late its latest find is; and once more for each find that is to be handed on to. So the stack has two
//! copies at most, however many there are.
//!
//! - **I1** A handler's address is in the passage before the handler is called, and stays there: no
//!   handler has the signal twice.
//! - **I2** `ended` is set by the copy that hands the signal on, and cleared by a copy that gets it:
//!   when a call comes back and `ended` is clear, the next is tried.
//! - **I3** `uc_link` has its old value again before the passage's stack frame ends. A handler that
//!   jumps out takes the kernel's frame with it.
//! - **I4** A passage is read by copies of other versions: its layout and that of
//!   [`Call`](crate::inject) are what [`MAGIC`] stands for.
//!
//! **Exit**, **fork**, **masked signal**: it lives on one thread's stack, during one call. **Nesting**:
//! each frame has its own.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use crate::arch::Ucontext;

/// Tells a passage, and its layout, from anything else that is put in `uc_link`.
const MAGIC: usize = 0x7369_6763_7478_0001u64 as usize;

/// Handlers that one signal is given to at most, all copies together. Those beyond it are not called: a
/// signal that goes round forever would be worse.
const PLACES: usize = 10;

/// Handlers that have had the signal.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Seen {
    ended: usize,
    length: usize,
    /// A bit for each place: it is a copy of this crate, which has been entered.
    entered: usize,
    handlers: [usize; PLACES],
    /// When the copy in that place made the latest of the finds that are left to it; 0 for none.
    due: [u64; PLACES],
}

impl Seen {
    #[inline(always)]
    const fn new() -> Self {
        Self { ended: 0, length: 0, entered: 0, handlers: [0; PLACES], due: [0; PLACES] }
    }

    // Plain loops here and below: what runs on an alternate stack of 8 KiB must be small without
    // optimisation, too.

    #[inline(always)]
    fn place(&self, handler: usize) -> Option<usize> {
        let mut place = 0;
        while place < self.length {
            if self.handlers[place] == handler {
                return Some(place);
            }
            place += 1;
        }
        None
    }

    /// Whether a handler has had the signal.
    #[inline(always)]
    pub(crate) fn has(&self, handler: usize) -> bool {
        self.place(handler).is_some()
    }

    /// Adds a handler, if there is room.
    #[inline(always)]
    fn add(&mut self, handler: usize) -> Option<usize> {
        let place = self.length;
        *self.handlers.get_mut(place)? = handler;
        self.length += 1;
        Some(place)
    }

    /// The copy `me` has got the signal. Returns its place, and whether it has it for the first time;
    /// `None` when there is no room.
    #[inline(always)]
    pub(crate) fn enter(&mut self, me: usize) -> Option<(usize, bool)> {
        let Some(place) = self.place(me).or_else(|| self.add(me)) else {
            self.ended = 1;
            return None;
        };
        self.ended = 0; // I2
        let first = self.entered & 1 << place == 0;
        self.entered |= 1 << place;
        Some((place, first))
    }

    /// The signal is to be handed to a handler that has not had it. False when there is no room.
    #[inline(always)]
    fn hand_to(&mut self, handler: usize) -> bool {
        self.ended = 1; // I2; also when there is no room
        self.add(handler).is_some() // I1
    }

    /// The address of the copy other than `me` with the latest find that is left, if that was made later
    /// than `than`.
    #[inline(always)]
    fn latest(&self, me: usize, than: u64) -> Option<usize> {
        let (mut latest, mut copy, mut place) = (than, None, 0);
        while place < self.length {
            if place != me && self.due[place] > latest {
                latest = self.due[place];
                copy = Some(self.handlers[place]);
            }
            place += 1;
        }
        copy
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

/// All actions that a copy has found in force and replaced.
pub(crate) trait Finds {
    /// One of these.
    type Find: Copy;

    /// The latest find whose handler has not had the signal, if there is one: when it was made, by a
    /// clock that all copies have, never 0; and the address of the handler, `None` for what ends the way
    /// whichever copy comes to it.
    fn latest(&self, seen: &Seen) -> Option<(Self::Find, u64, Option<usize>)>;

    /// Hands the signal to one of these.
    fn call(&mut self, find: Self::Find);

    /// Hands the signal once more to another copy, which has had it.
    fn call_again(&mut self, copy: usize);
}

/// What a copy does with the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It is the first, and directs the others.
    First,
    /// Another one has called it for the first time.
    Reached,
    /// Another one has called it again.
    Again,
}

/// Does the part of a copy, which is in the place `me`, in handing a signal on.
///
/// # Safety
///
/// `passage` is alive, and the caller keeps no reference to it.
pub(crate) unsafe fn hand_on<F: Finds>(
    passage: *mut Passage,
    (me, part): (usize, Part),
    finds: &mut F,
) {
    loop {
        // SAFETY: the caller's obligation; no reference lives while a handler runs. Here and below.
        let seen = unsafe { &mut (*passage).seen };
        let own = finds.latest(seen);
        let due = if let Some((_, due, _)) = own { due } else { 0 };
        if part != Part::First {
            seen.due[me] = due;
        }
        if part == Part::Reached {
            return;
        }
        let other = if part == Part::First { seen.latest(me, due) } else { None };
        if let Some(copy) = other {
            seen.end(); // I2
            finds.call_again(copy);
        } else if let Some((find, _, handler)) = own {
            match handler {
                Some(handler) if !seen.hand_to(handler) => return,
                Some(_) => {}
                None => seen.end(),
            }
            finds.call(find);
        } else {
            return;
        }
        // SAFETY: see above.
        let seen = unsafe { &mut (*passage).seen };
        if part == Part::Again {
            seen.due[me] = if let Some((_, due, _)) = finds.latest(seen) { due } else { 0 };
            return;
        }
        if seen.has_ended() {
            return;
        }
    }
}

/// A previous action that is carried out when all handlers have returned.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Deferred {
    /// Carries it out, in the copy that deferred it; `None`: nothing is deferred.
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

/// What the copies know of one signal's way: see the module.
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
    pub(crate) const fn new() -> Self {
        let (deferred, seen) = (Deferred::NONE, Seen::new());
        Self { magic: MAGIC, entry_sp: 0, call: 0, deferred, seen }
    }

    /// Writes an empty one in place: by value it would be on a small stack three times where code is not
    /// optimised.
    #[inline(always)]
    pub(crate) fn init(at: &mut MaybeUninit<Self>) -> &mut Self {
        // SAFETY: one of these, in place.
        unsafe { at.as_mut_ptr().write_bytes(0, 1) };
        // SAFETY: integers, pointers and a function that may be missing: zeroes are values of all.
        let passage = unsafe { at.assume_init_mut() };
        passage.magic = MAGIC;
        passage
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// When a find was made, and which handler it is.
    type Made = (u64, usize);

    /// One copy's finds, while it has the signal.
    struct Copy<'p> {
        finds: Vec<Made>,
        program: &'p mut Program,
        uc: *mut Ucontext,
    }

    impl Finds for Copy<'_> {
        type Find = usize;

        fn latest(&self, seen: &Seen) -> Option<(usize, u64, Option<usize>)> {
            let left = self.finds.iter().filter(|(_, handler)| !seen.has(*handler));
            left.max().map(|&(time, handler)| (handler, time, Some(handler)))
        }

        fn call(&mut self, handler: usize) {
            self.program.call(handler, self.uc);
        }

        fn call_again(&mut self, copy: usize) {
            self.program.call(copy, self.uc);
        }
    }

    /// Copies of this crate, each with the finds that it made; whatever else there is are handlers that
    /// chain to `next`, if they have one.
    struct Program {
        copies: Vec<(usize, Vec<Made>)>,
        next: Vec<(usize, usize)>,
        way: Vec<usize>,
        depth: usize,
    }

    impl Program {
        fn new(copies: &[(usize, &[Made])]) -> Self {
            let copies = copies.iter().map(|(at, finds)| (*at, finds.to_vec())).collect();
            Self { copies, next: Vec::new(), way: Vec::new(), depth: 0 }
        }

        /// Does what a copy's `dispatch` does, or another handler.
        fn call(&mut self, at: usize, uc: *mut Ucontext) {
            self.depth += 1;
            assert!(self.depth < 8, "calls pile up: {:x?}", self.way);
            let copy = self.copies.iter().find(|(copy, _)| *copy == at).cloned();
            let Some((_, finds)) = copy else {
                self.way.push(at);
                if let Some(&(_, next)) = self.next.iter().find(|(other, _)| *other == at) {
                    self.call(next, uc);
                }
                self.depth -= 1;
                return;
            };
            let mut own = Passage::new();
            // SAFETY: the test's own.
            let found = unsafe { Passage::find(uc) };
            let passage = if found.is_null() { &raw mut own } else { found };
            // SAFETY: alive, and not borrowed elsewhere.
            let entered = unsafe { (*passage).seen.enter(at) };
            if let Some((place, first)) = entered {
                if first {
                    self.way.push(at);
                }
                // SAFETY: the test's own; put back below.
                let before = unsafe { Passage::leave(uc, passage as usize) };
                let part = match (found.is_null(), first) {
                    (true, _) => Part::First,
                    (_, true) => Part::Reached,
                    _ => Part::Again,
                };
                let mut finds = Copy { finds, program: self, uc };
                // SAFETY: alive, and not borrowed elsewhere.
                unsafe { hand_on(passage, (place, part), &mut finds) };
                // SAFETY: the test's own.
                unsafe { Passage::leave(uc, before) };
            }
            self.depth -= 1;
        }

        fn way(mut self, from: usize) -> Vec<usize> {
            // SAFETY: all integers.
            let mut uc: Ucontext = unsafe { core::mem::zeroed() };
            self.call(from, &raw mut uc);
            assert_eq!(uc.link, 0, "the frame is as it was");
            self.way
        }
    }

    const X: usize = 0x1000;
    const Y: usize = 0x2000;
    const Z: usize = 0x3000;
    const FIRST: usize = 0x9000;
    const OTHER: usize = 0x8000;

    /// Copies that are installed, and put on top again, in every order of so many steps.
    #[test]
    fn in_any_order_each_copy_has_the_signal_once_the_latest_first_and_the_first_handler_last() {
        const COPIES: usize = 4;
        const STEPS: u32 = 6;

        for order in 0..COPIES.pow(STEPS) {
            let mut copies: Vec<(usize, Vec<Made>)> = Vec::new();
            let mut stack = std::vec![FIRST];
            for step in 0..STEPS {
                let copy = (order / COPIES.pow(step) % COPIES + 1) * 0x1000;
                let top = stack[0];
                if copy == top {
                    continue;
                }
                // As `handler::install` keeps what it finds: a handler once, with the last time.
                let find = (u64::from(step) + 1, top);
                match copies.iter_mut().find(|(at, _)| *at == copy) {
                    Some((_, finds)) => {
                        finds.retain(|(_, known)| *known != top);
                        finds.push(find);
                    }
                    None => copies.push((copy, std::vec![find])),
                }
                stack.retain(|&at| at != copy);
                stack.insert(0, copy);
                let (next, way, depth) = (Vec::new(), Vec::new(), 0);
                let program = Program { copies: copies.clone(), next, way, depth };
                assert_eq!(program.way(copy), stack, "{copies:x?}");
            }
        }
    }

    #[test]
    fn a_handler_that_does_not_chain_is_the_end() {
        assert_eq!(Program::new(&[(X, &[(2, OTHER), (1, FIRST)])]).way(X), [X, OTHER]);
    }

    #[test]
    fn a_handler_that_chains_back_is_no_end() {
        let mut program = Program::new(&[(X, &[(3, OTHER), (1, FIRST)]), (Y, &[(2, X)])]);
        program.next.push((OTHER, Y));
        assert_eq!(program.way(X), [X, OTHER, Y, FIRST]);
    }

    #[test]
    fn where_there_is_no_end_no_handler_has_the_signal_twice() {
        assert_eq!(Program::new(&[(X, &[(2, Y)]), (Y, &[(1, X)])]).way(X), [X, Y]);
    }

    #[test]
    fn more_handlers_than_there_are_places_make_no_loop() {
        let all: Vec<Made> = (1..=2 * PLACES).map(|n| (n as u64, n * 0x100)).collect();
        let copies: Vec<(usize, &[Made])> = all.iter().map(|&(_, at)| (at, &all[..])).collect();
        let way = Program::new(&copies).way(Z / 0x30);
        assert!(way.len() <= PLACES, "{way:x?}");
    }

    #[test]
    fn a_foreign_link_in_the_frame_is_no_passage() {
        let other = [1usize; 64];
        // SAFETY: all integers.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        uc.link = other.as_ptr() as usize;
        // SAFETY: the test's own.
        assert!(unsafe { Passage::find(&raw const uc) }.is_null());
    }
}
