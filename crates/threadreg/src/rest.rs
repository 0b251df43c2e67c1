//! Where a thread stands still for one crate, and what another may do with it meanwhile.
//!
//! A thread that is stopped with a world, or blocks in a safe region, runs none of the code that
//! whoever suspends its task wants to keep from running. It need not come to a safe point for that:
//! it is at one. So the crate that has it stand still says where that is (a [`Place`]), and the crate
//! that suspends asks ([`resting`]) on the thread itself, in its signal handler. Neither knows the
//! other.
//!
//! ```text
//!   the thread                                 its handler, for a suspender
//!   rest: Waiting or Away                      resting() -> Waiting, Away: notes that the task is held
//!   ...                                        recall():    sets a flag of the place's own
//!   Waiting: serve() when recalled             (errands of the suspender run here)
//!   flag set: leave(), waits while held
//!   rest: Running, then look at the flag again
//! ```
//!
//! The flag is cleared before [`leave`] and looked at again after the state is Running. The handler
//! runs on the thread itself, between two of its instructions, so it either finds the state before, and
//! its flag is seen, or finds Running.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | a record's `places` | its thread | its thread, in handlers too | relaxed, with compiler fences | null, or linked [`Registered`] places, newest first |
//! | `RESIDENT` | the suspending crate, once | all | release / acquire | null, or a `&'static Resident` |

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

use crate::thread_ref::{self, ThreadRef};

/// What a thread does, as far as a [`Place`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It runs code that a suspender has to stop.
    Running,
    /// It waits inside the place's own code, which calls [`serve`] whenever it is recalled, and
    /// [`leave`] before it goes on.
    Waiting,
    /// It runs a closure of the user's that touches nothing protected, and calls [`leave`] after it.
    Away,
}

/// A place where the calling thread may stand still.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    state: unsafe fn(usize) -> Rest,
    recall: unsafe fn(usize),
    data: usize,
}

impl Place {
    /// The place of which `state(data)` says how the thread stands, and which takes notice by
    /// `recall(data)` that the thread's task was held meanwhile.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Safety
    ///
    /// 1. Both functions are sound with `data` in a signal handler on the thread that registers the
    ///    place, for as long as it is registered there, and in the child of a `fork` that thread makes.
    /// 2. They are async-signal-safe and do not unwind.
    /// 3. The thread runs none of its own code that a suspender could have to stop while `state` is
    ///    [`Rest::Waiting`]; the code that it runs in [`Rest::Away`] is a closure that was given for
    ///    that.
    /// 4. When `recall` was called in either state, the thread calls [`leave`] before the state is
    ///    [`Rest::Running`] for good.
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

/// A [`Place`] of the calling thread, from [`register`]; no more when this is dropped.
#[derive(Debug)]
#[must_use = "the place is known only while this lives"]
pub struct Registered {
    node: *mut Node,
    thread: ThreadRef,
    not_send: PhantomData<*mut ()>,
}

/// Makes a place of the calling thread known to its handlers. `None` when the thread is not
/// registered.
///
/// A thread that leaves the registry and comes back has no places any more.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates.
#[must_use = "the place is known only while the guard lives"]
pub fn register(place: Place) -> Option<Registered> {
    let thread = thread_ref::current()?;
    let places = &thread.record.places;
    // Relaxed throughout: this thread's own; its handlers run between two of its instructions.
    let next = AtomicPtr::new(places.load(Ordering::Relaxed).cast());
    let node = Box::into_raw(Box::new(Node { place, next }));
    // A handler that finds the node finds it filled in.
    compiler_fence(Ordering::SeqCst);
    places.store(node.cast(), Ordering::Relaxed);
    Some(Registered { node, thread, not_send: PhantomData })
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Else the list went with the registration.
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
        // SAFETY: this guard keeps it until it is dropped.
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

/// How the calling thread stands: Waiting if it waits in any of its places; Away if it has places and
/// is away from all of them; else Running.
///
/// # Signal safety
///
/// Async-signal-safe. Meant for handlers: outside of one the answer is about the caller itself.
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

/// Has the calling thread take notice, in each place where it stands still, that its task was held
/// there: it calls [`leave`] before it runs, and, where it waits, [`serve`].
///
/// # Signal safety
///
/// Async-signal-safe; meant for handlers, right after [`resting`].
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

/// What a crate that suspends tasks does on a thread that stands still.
#[derive(Debug)]
pub struct Resident {
    /// Runs what the holder of the calling thread's task has it run; does not wait.
    pub serve: fn(),
    /// Returns when the calling thread's task may run again: waits while it is held.
    pub leave: fn(),
}

static RESIDENT: AtomicPtr<Resident> = AtomicPtr::new(ptr::null_mut());

/// Says what [`serve`] and [`leave`] do; for a crate that suspends tasks, before its first signal. The
/// first one stays.
///
/// # Signal safety
///
/// Async-signal-safe.
pub fn set_resident(resident: &'static Resident) {
    let new = ptr::from_ref(resident).cast_mut();
    let old = ptr::null_mut();
    // Release: with `resident`'s acquire. It fails when there is one.
    let _ = RESIDENT.compare_exchange(old, new, Ordering::Release, Ordering::Relaxed);
}

fn resident() -> Option<&'static Resident> {
    // SAFETY: null, or from a `&'static`.
    unsafe { RESIDENT.load(Ordering::Acquire).as_ref() }
}

/// For a [`Place`] that was recalled and waits: runs what the holder of the thread's task asks of it.
///
/// # Signal safety
///
/// Not async-signal-safe.
pub fn serve() {
    if let Some(resident) = resident() {
        (resident.serve)();
    }
}

/// For a [`Place`] that was recalled, before the thread runs again: waits while its task is held.
///
/// # Signal safety
///
/// Not async-signal-safe.
///
/// # Blocking
///
/// Until nobody holds the thread's task.
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
    fn who_suspends_a_thread_is_told_until_it_is_gone() {
        let name = "rest::tests::who_suspends_a_thread_is_told_until_it_is_gone";
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
