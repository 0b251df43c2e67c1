//! Where a thread rests for one crate, and what another crate may do with its task meanwhile.
//!
//! A thread that is stopped with a world, or blocks in a safe region, runs no code that the requester
//! of a suspension wants to keep from running. It need not be brought to a safe point for that: it is
//! at one. So the crate for which the thread rests registers where that is (a [`Place`]), and the crate
//! that suspends tasks asks ([`resting`]) in a signal handler on the thread itself. Neither crate knows
//! the other.
//!
//! ```text
//!   target                                     its handler, for a requester
//!   ──────                                     ────────────────────────────
//!   rest: Waiting or Away                      resting() -> Waiting, Away: notes that the task is held
//!   ...                                        recall():    sets a flag of the place's own
//!   Waiting: serve() when recalled             (calls of the requester run here)
//!   flag set: leave(), waits while held
//!   rest: Running, then look at the flag again
//! ```
//!
//! The flag is cleared before [`leave`], and looked at again after the state is Running. The handler
//! runs on the thread itself, between two of its instructions. So it finds the state before, and the
//! thread sees the flag; or it finds Running.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | a record's `places` | its thread | its thread, in handlers too | relaxed, with compiler fences | null, or linked [`Registered`] places, newest first |
//! | `RESIDENT` | the crate that suspends tasks, once | all | release / acquire | null, or a `&'static Resident` |

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

use crate::thread_ref::{self, ThreadRef};

/// The state of a thread, as far as a [`Place`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It runs code that a suspension has to stop.
    Running,
    /// It waits inside the place's own code, which calls [`serve`] whenever it is recalled, and
    /// [`leave`] before it goes on.
    Waiting,
    /// It runs a closure of the user's that touches nothing protected, and the place's code calls
    /// [`leave`] after that.
    Away,
}

/// A place where the calling thread may rest.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug)]
pub struct Place {
    state: unsafe fn(usize) -> Rest,
    recall: unsafe fn(usize),
    data: usize,
}

impl Place {
    /// Makes a place. `state(data)` returns the thread's state, and `recall(data)` notes that the
    /// thread's task was held meanwhile.
    ///
    /// # Safety
    ///
    /// 1. Both functions are sound with `data` in a signal handler on the thread that registers the
    ///    place, for as long as it is registered there, and in the child of a `fork` that thread makes.
    /// 2. They are async-signal-safe and do not unwind.
    /// 3. While `state` is [`Rest::Waiting`] the thread runs none of its own code that a suspension has
    ///    to stop. The code that it runs in [`Rest::Away`] is a closure that was given for that.
    /// 4. When `recall` was called in either state, the thread calls [`leave`] before the state is
    ///    [`Rest::Running`] and stays so.
    #[must_use]
    pub const unsafe fn new(
        state: unsafe fn(usize) -> Rest,
        recall: unsafe fn(usize),
        data: usize,
    ) -> Self {
        Self { state, recall, data }
    }
}

/// A link of a record's list.
#[derive(Debug)]
struct Node {
    place: Place,
    next: AtomicPtr<Node>,
}

/// A registered [`Place`] of the calling thread; from [`register`]. Its drop takes the place off again.
#[derive(Debug)]
#[must_use = "the place is known only while this lives"]
pub struct Registered {
    node: *mut Node,
    thread: ThreadRef,
    not_send: PhantomData<*mut ()>,
}

/// Makes a place of the calling thread known to its handlers. Returns `None` when the thread is not
/// registered.
///
/// A thread that leaves the registry and comes back has no places any more.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates.
#[must_use = "the place is known only while the guard lives"]
pub fn register(place: Place) -> Option<Registered> {
    let thread = thread_ref::current()?;
    let places = &thread.record.places;
    // Relaxed throughout: the list is this thread's own, and its handlers run between two of its
    // instructions.
    let next = AtomicPtr::new(places.load(Ordering::Relaxed).cast());
    let node = Box::into_raw(Box::new(Node { place, next }));
    // A handler that finds the node must find it filled in.
    compiler_fence(Ordering::SeqCst);
    places.store(node.cast(), Ordering::Relaxed);
    Some(Registered { node, thread, not_send: PhantomData })
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Otherwise the list went with the registration.
        if thread_ref::current() == Some(self.thread) {
            self.unlink();
        }
        compiler_fence(Ordering::SeqCst);
        // SAFETY: from `Box::into_raw`, and no longer in a list that a handler could find.
        drop(unsafe { Box::from_raw(self.node) });
    }
}

impl Registered {
    fn unlink(&self) {
        // SAFETY: this guard keeps the node until it is dropped.
        let after = unsafe { &*self.node }.next.load(Ordering::Relaxed);
        let first = &self.thread.record.places;
        if first.load(Ordering::Relaxed).cast() == self.node {
            first.store(after.cast(), Ordering::Relaxed);
        } else if let Some(before) =
            nodes(self.thread).find(|node| node.next.load(Ordering::Relaxed) == self.node)
        {
            before.next.store(after, Ordering::Relaxed);
        }
    }
}

/// The places of `thread`, which is the calling one.
fn nodes<'a>(thread: ThreadRef) -> impl Iterator<Item = &'a Node> {
    let mut next: *mut Node = thread.record.places.load(Ordering::Relaxed).cast();
    core::iter::from_fn(move || {
        // SAFETY: null, or a node whose guard lives: guards unlink theirs on this same thread. The
        // lifetime ends with the walk, in which no guard is dropped.
        let node = unsafe { next.as_ref() }?;
        next = node.next.load(Ordering::Relaxed);
        Some(node)
    })
}

/// The calling thread's state over all its places.
///
/// Waiting if it waits in any of them; Away if it has places and is away from all of them; otherwise
/// Running.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe). Meant for handlers: outside of one the answer is about the caller
/// itself.
#[must_use]
pub fn resting() -> Rest {
    let mut rest = Rest::Running;
    let Some(thread) = thread_ref::current() else { return rest };
    let mut runs = false;
    for node in nodes(thread) {
        // SAFETY: the place is registered and this is its thread.
        match unsafe { (node.place.state)(node.place.data) } {
            Rest::Waiting => return Rest::Waiting,
            Rest::Away => rest = Rest::Away,
            Rest::Running => runs = true,
        }
    }
    if runs { Rest::Running } else { rest }
}

/// Notes, in each place where the calling thread rests, that its task was held there. The thread then
/// calls [`leave`] before it runs and, where it waits, [`serve`].
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe). Meant for handlers, right after [`resting`].
pub fn recall() {
    let Some(thread) = thread_ref::current() else { return };
    for node in nodes(thread) {
        // SAFETY: the place is registered and this is its thread.
        if unsafe { (node.place.state)(node.place.data) } != Rest::Running {
            // SAFETY: as above.
            unsafe { (node.place.recall)(node.place.data) };
        }
    }
}

/// The functions of a crate that suspends tasks, for threads that rest.
#[derive(Debug)]
pub struct Resident {
    /// Runs what the requester that holds the calling thread's task wants run there; does not wait.
    pub serve: fn(),
    /// Waits while the calling thread's task is held.
    pub leave: fn(),
}

static RESIDENT: AtomicPtr<Resident> = AtomicPtr::new(ptr::null_mut());

/// Sets the functions that [`serve`] and [`leave`] call. A crate that suspends tasks calls this before
/// its first signal; once set they stay.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
pub fn set_resident(resident: &'static Resident) {
    let new = ptr::from_ref(resident).cast_mut();
    let old = ptr::null_mut();
    // Release: pairs with the acquire in `resident`. It fails when there is one.
    let _ = RESIDENT.compare_exchange(old, new, Ordering::Release, Ordering::Relaxed);
}

fn resident() -> Option<&'static Resident> {
    // SAFETY: null, or from a `&'static`.
    unsafe { RESIDENT.load(Ordering::Acquire).as_ref() }
}

/// Runs what the requester that holds the calling thread's task wants run there. For a [`Place`] that
/// was recalled and waits.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock).
pub fn serve() {
    if let Some(resident) = resident() {
        (resident.serve)();
    }
}

/// Waits while the calling thread's task is held. For a [`Place`] that was recalled, before the thread
/// runs again.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock).
///
/// # Blocking
///
/// Until no requester holds the thread's task.
pub fn leave() {
    if let Some(resident) = resident() {
        (resident.leave)();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use testkit::in_child;

    use super::*;

    const RUNNING: u32 = 0;
    const WAITING: u32 = 1;
    const AWAY: u32 = 2;
    const RECALLED: u32 = 4;

    unsafe fn state(data: usize) -> Rest {
        let word = ptr::with_exposed_provenance::<AtomicU32>(data);
        // SAFETY: `place` made it from a static.
        match unsafe { &*word }.load(Ordering::Relaxed) & 3 {
            RUNNING => Rest::Running,
            WAITING => Rest::Waiting,
            _ => Rest::Away,
        }
    }

    unsafe fn note(data: usize) {
        let word = ptr::with_exposed_provenance::<AtomicU32>(data);
        // SAFETY: as above.
        unsafe { &*word }.fetch_or(RECALLED, Ordering::Relaxed);
    }

    fn place(word: &'static AtomicU32) -> Place {
        // SAFETY: two loads and a store on a static, anywhere.
        unsafe { Place::new(state, note, ptr::from_ref(word).expose_provenance()) }
    }

    #[test]
    fn a_thread_rests_where_it_waits_or_is_away_from_all_its_places() {
        static WORDS: [AtomicU32; 3] = [const { AtomicU32::new(RUNNING) }; 3];
        let name = "rest::tests::a_thread_rests_where_it_waits_or_is_away_from_all_its_places";
        in_child(name, Duration::from_secs(20), || {
            assert!(register(place(&WORDS[0])).is_none(), "not registered yet");
            assert_eq!(resting(), Rest::Running);
            let me = crate::attach().expect("not attached yet");
            let [first, second, third] =
                [0, 1, 2].map(|n| register(place(&WORDS[n])).expect("registered"));
            let set = |states: [u32; 3]| {
                for (word, state) in WORDS.iter().zip(states) {
                    word.store(state, Ordering::Relaxed);
                }
            };
            for (states, expected) in [
                ([RUNNING, RUNNING, RUNNING], Rest::Running),
                ([AWAY, RUNNING, AWAY], Rest::Running),
                ([AWAY, AWAY, AWAY], Rest::Away),
                ([RUNNING, WAITING, RUNNING], Rest::Waiting),
                ([WAITING, AWAY, RUNNING], Rest::Waiting),
            ] {
                set(states);
                assert_eq!(resting(), expected, "{states:?}");
            }
            recall();
            let recalled = || WORDS.each_ref().map(|word| word.load(Ordering::Relaxed) & RECALLED);
            assert_eq!(recalled(), [RECALLED, RECALLED, 0], "those that do not run");
            // Out of the middle, and in another order than they came.
            drop(second);
            set([AWAY, RUNNING, AWAY]);
            assert_eq!(resting(), Rest::Away);
            drop(third);
            assert_eq!(resting(), Rest::Away);
            // The list goes with the registration, and the guard does no harm afterwards.
            drop(me);
            assert_eq!(resting(), Rest::Running);
            let _again = crate::attach().expect("not attached");
            assert_eq!(resting(), Rest::Running, "places of the thread's last registration");
            drop(first);
            assert_eq!(resting(), Rest::Running);
        });
    }

    #[test]
    fn the_requester_of_a_suspension_is_named_until_the_thread_is_gone() {
        let name = "rest::tests::the_requester_of_a_suspension_is_named_until_the_thread_is_gone";
        in_child(name, Duration::from_secs(20), || {
            let me = crate::attach().expect("not attached yet");
            let thread = me.thread();
            assert_eq!(thread.suspended_by(), None);
            thread.set_suspended_by(Some(42));
            assert_eq!(thread.suspended_by(), Some(42));
            assert_eq!(testkit::forked(|| assert_eq!(thread.suspended_by(), None)), 0);
            drop(me);
            assert_eq!(thread.suspended_by(), None);
            let next = crate::attach().expect("not attached");
            assert_eq!(next.thread().suspended_by(), None, "of the record's last thread");
        });
    }
}
