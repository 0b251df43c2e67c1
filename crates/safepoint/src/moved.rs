//! A mutator that goes from one thread to another.
//!
//! Its slot stays as it is: in a safe region, where requesters find it, and serve it. What changes is who the slot's
//! thread is. The thread that gives it up takes it off its own list and from its handlers, and writes that no thread has
//! it; the one that gets it does the reverse, and leaves the region. In between a nudge or a recall finds no thread.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;
use core::time::Duration;
use std::sync::Arc;

use crate::abort::abort_with;
use crate::bound::Bound;
use crate::error::AttachError;
use crate::mutator::Mutator;
use crate::protocol::{MutatorSlot, MutatorState, Protocol, Stance};
use crate::region;
use crate::system::{self, Identity, Linux};
use crate::world::{Shared, World};

impl Mutator {
    /// Takes the mutator off its thread, in a safe region. [`SafeMutator::attach`] makes it another thread's: what a
    /// runtime does whose threads take over what others have begun, such as green threads or isolates.
    ///
    /// It keeps its [`index`](Mutator::index) and its [`data`](Mutator::set_data), and has no roots on the stack: it is
    /// [`Place::Outside`](crate::Place::Outside) in between. Stops do not wait for it, and find it
    /// among the stopped mutators with the thread that it had. If a stop of it was leaked, the world stays stopped, and
    /// it is one of those who wait for the end.
    ///
    /// # Blocking
    ///
    /// As where [`Mutator::blocking`] begins. While the thread's task is suspended.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// let mutator = world.attach()?;
    /// let index = mutator.index();
    /// let safe = mutator.detach_from_thread();
    /// std::thread::spawn(move || {
    ///     let mut mutator = safe.attach().expect("a thread of its own");
    ///     assert_eq!(mutator.index(), index);
    ///     mutator.poll();
    /// })
    /// .join()
    /// .unwrap();
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    #[doc(alias = "v8::Unlocker")]
    #[must_use = "a mutator that is dropped is detached"]
    pub fn detach_from_thread(self) -> SafeMutator {
        let slot = self.slot;
        // Its thread is done with the code that it was in, also if what says so was leaked.
        slot.status.identity.forbidden.clear();
        if slot.state() == MutatorState::Running {
            // It is done with its stack.
            slot.status.stands.set(ptr::null_mut());
            // Not `Away`: a handler must not take the task for one that is at rest from here on.
            self.shared.protocol.enter(slot, Stance::Works);
        } else {
            // A leaked stop has left it in its region. It is one of that stop's mutators from here on, like all others:
            // whoever leaves the region waits for the end.
            Protocol::<Linux>::stop_too(slot);
        }
        SafeMutator { slot, shared: self.give_up_thread() }
    }
}

/// A mutator in its safe region that is no thread's; from [`Mutator::detach_from_thread`]. Dropping it detaches it.
///
/// In the child of a fork it is there, too, whichever thread had it.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock heap).
#[must_use = "a mutator that is dropped is detached"]
pub struct SafeMutator {
    slot: &'static MutatorSlot<Identity>,
    shared: Arc<Shared>,
}

impl fmt::Debug for SafeMutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafeMutator").field("index", &self.slot.index()).finish_non_exhaustive()
    }
}

impl SafeMutator {
    /// Makes the calling thread the mutator's, and leaves the safe region.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, or a closure runs for this mutator, without a limit. See
    /// [`SafeMutator::attach_within`].
    ///
    /// # Errors
    ///
    /// As [`World::attach`], and [`AttachError::InCallback`] inside a for-each closure, which could be this mutator's.
    /// [`AttachError::HoldsFreeze`] whether it would have to wait or not. The mutator comes back with the error.
    pub fn attach(self) -> Result<Mutator, (Self, AttachError)> {
        self.attach_by(Bound::begin(None))
    }

    /// Makes the calling thread the mutator's as [`SafeMutator::attach`] does, if the world runs before `timeout` is over.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, for at most `timeout`. Then, as [`Mutator::blocking`] does, for as long as the
    /// thread's task is suspended, or a closure runs for this mutator.
    ///
    /// # Errors
    ///
    /// As [`SafeMutator::attach`], and [`AttachError::Stopped`] when the timeout is over. The mutator comes back, in its
    /// region and no thread's, with the error.
    pub fn attach_within(self, timeout: Duration) -> Result<Mutator, (Self, AttachError)> {
        self.attach_by(Bound::begin(Some(timeout)))
    }

    pub(crate) fn attach_by(self, bound: Bound) -> Result<Mutator, (Self, AttachError)> {
        let tid = system::tid();
        if system::in_closure() {
            return Err((self, AttachError::InCallback { tid }));
        }
        if threadreg::holds_freeze() {
            return Err((self, AttachError::HoldsFreeze { tid }));
        }
        match Mutator::registered(&self.shared, tid) {
            Ok(registration) => {
                let this = ManuallyDrop::new(self);
                let slot = this.slot;
                // SAFETY: read once, and not dropped.
                let shared = unsafe { ptr::read(&raw const this.shared) };
                Mutator::take_over(slot, shared, tid, registration, bound).map_err(|shared| {
                    let holder = shared.protocol.stop_turn.holder();
                    let error = AttachError::Stopped { tid, holder, waited: bound.elapsed() };
                    (Self { slot, shared }, error)
                })
            }
            Err(error) => Err((self, error)),
        }
    }

    /// As [`Mutator::index`].
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// What [`Mutator::set_data`] has set.
    #[must_use]
    pub fn data(&self) -> *mut () {
        self.slot.status.identity.data()
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> World {
        World { shared: self.shared.clone() }
    }
}

impl Drop for SafeMutator {
    /// # Blocking
    ///
    /// For operations that another thread runs for the mutator, or its for-each closure there, if that has begun.
    /// Operations that are queued are dropped on this thread, in a running world: while another has the world stopped
    /// it waits for that, without a limit. One that has the world stopped itself does not; a
    /// [handle](crate::StopHandle) is no thread's, and the one that has it waits for itself.
    ///
    /// # Aborts
    ///
    /// Inside a for-each closure, which could be this mutator's: it would wait for itself.
    fn drop(&mut self) {
        if system::in_closure() {
            abort_with(format_args!(
                "thread {} drops a mutator of no thread, or the last handle of its processors, in a callback of a \
                 for-each, a handshake or a stop",
                system::tid()
            ));
        }
        region::detach(&self.shared.protocol, self.slot, || self.slot.status.identity.clear());
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use testkit::{in_child, until};

    use super::*;
    use crate::processors::Processors;

    const SOON: Duration = Duration::from_secs(20);

    /// Calls it when it is dropped.
    struct Drops<F: FnMut()>(F);

    impl<F: FnMut()> Drop for Drops<F> {
        fn drop(&mut self) {
            self.0();
        }
    }

    /// Queues an operation for the mutator, which calls `dropped` if it is dropped.
    fn queue(world: &World, slot: &MutatorSlot<Identity>, dropped: impl FnMut() + Send + 'static) {
        let drops = Drops(dropped);
        let id = crate::MutatorId(slot.current_use());
        world.handshake_async(id, move |_| drop(drops)).expect("it is there");
    }

    /// Mutators of no thread, in the first places of the world.
    fn idle<const N: usize>(world: &World) -> [SafeMutator; N] {
        [(); N].map(|()| world.attach().expect("one after the other").detach_from_thread())
    }

    fn own_is_asked(world: &World) -> bool {
        system::own_slot(&world.shared.protocol).expect("a mutator").is_asked()
    }

    /// It would wait for itself if the mutator had to run for that.
    #[test]
    fn the_holder_of_a_stop_drops_mutators_with_operations() {
        let name = "moved::tests::the_holder_of_a_stop_drops_mutators_with_operations";
        in_child(name, SOON, || {
            static DROPPED: AtomicU32 = AtomicU32::new(0);
            let count = |world: &World| {
                let me = thread::current().id();
                for slot in world.shared.protocol.live() {
                    queue(world, slot, move || {
                        assert_eq!(thread::current().id(), me, "on the thread that drops it");
                        DROPPED.fetch_add(1, Ordering::Relaxed);
                    });
                }
            };
            let world = World::new();
            let safe = idle::<2>(&world);
            count(&world);
            let stopped = world.stop_from_outside("test").expect("no deadline");
            drop(safe);
            assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 2);
            assert_eq!(stopped.mutators().count(), 0);
            stopped.resume();

            let three = NonZeroUsize::new(3).expect("not 0");
            let processors = Processors::new(&world, three, |_| ()).expect("no mutator");
            count(&world);
            let stopped = world.stop_from_outside("test").expect("no deadline");
            drop(processors);
            assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 3);
            stopped.resume();

            // A mutator of the thread's own, in the region that the stop leaves it in.
            let mut own = world.attach().expect("no mutator");
            let _leaked = ManuallyDrop::new(own.stop_the_world("leaked").expect("no deadline"));
            count(&world);
            drop(own);
            assert_eq!(DROPPED.swap(0, Ordering::Relaxed), 1);
            assert_eq!(world.number_of_mutators(), 0);
        });
    }

    /// The requester is stopped before it comes to the others.
    #[test]
    fn the_holder_of_a_stop_drops_mutators_that_a_for_each_has_claimed() {
        let name = "moved::tests::the_holder_of_a_stop_drops_mutators_that_a_for_each_has_claimed";
        in_child(name, SOON, || {
            let world = &World::new();
            let safe = idle::<3>(world);
            let inside = &Barrier::new(2);
            thread::scope(|scope| {
                let requester = scope.spawn(move || {
                    let mut own = world.attach().expect("room");
                    own.for_each_processor(|processor| match processor.index() {
                        0 => {
                            inside.wait();
                            until("a stop is asked for", || own_is_asked(world));
                        }
                        3 => {}
                        other => panic!("visited {other}"),
                    })
                });
                inside.wait();
                let stopped = world.stop_from_outside("test").expect("no deadline");
                drop(safe);
                stopped.resume();
                let visited = requester.join().expect("no other visited");
                assert_eq!(visited.expect("no deadline"), 2, "the first, and its own");
            });
        });
    }

    /// Else the stop would wait for a thread that waits for the end of the stop.
    #[test]
    fn a_stop_does_not_wait_for_a_mutator_that_drops_another() {
        let name = "moved::tests::a_stop_does_not_wait_for_a_mutator_that_drops_another";
        in_child(name, SOON, || {
            static DROPPED: AtomicU32 = AtomicU32::new(0);
            let world = &World::new();
            let [safe] = idle(world);
            let mut own = world.attach().expect("room");
            let (own_slot, slot) = (own.slot, safe.slot);
            queue(world, slot, move || {
                assert_eq!(own_slot.state(), MutatorState::Running, "in a running world");
                assert_eq!(slot.state(), MutatorState::Dead, "it is none of the stop's");
                DROPPED.fetch_add(1, Ordering::Relaxed);
            });
            thread::scope(|scope| {
                let stops =
                    scope.spawn(|| world.stop_from_outside("test").expect("no deadline").resume());
                until("the stop is asked for", || own_slot.is_asked());
                drop(safe);
                assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
                own.poll();
                own.blocking(|| stops.join().expect("no panic"));
            });
        });
    }

    /// As above. The requester of the for-each is stopped, and the mutator waits for its claim.
    #[test]
    fn a_stop_does_not_wait_for_a_mutator_that_drops_one_that_is_claimed() {
        let name =
            "moved::tests::a_stop_does_not_wait_for_a_mutator_that_drops_one_that_is_claimed";
        in_child(name, SOON, || {
            let world = &World::new();
            let [first, second] = idle(world);
            let mut own = world.attach().expect("room");
            let inside = &Barrier::new(3);
            let waits = || first.slot.status.awaits.load(sigctx::sync::Ordering::Relaxed) != 0;
            let of_second = second.slot;
            let second_waits =
                move || of_second.status.awaits.load(sigctx::sync::Ordering::Relaxed) != 0;
            thread::scope(|scope| {
                let requester = scope.spawn(move || {
                    let mut own = world.attach().expect("room");
                    own.for_each_processor(|processor| {
                        if processor.index() == 0 {
                            inside.wait();
                            let both = || own_is_asked(world) && second_waits();
                            until("a stop is asked for", both);
                        }
                    })
                });
                let stops = scope.spawn(|| {
                    inside.wait();
                    world.stop_from_outside("test").expect("no deadline").resume();
                });
                inside.wait();
                drop(second);
                assert!(!waits());
                own.poll();
                own.blocking(|| {
                    stops.join().expect("no panic");
                    let visited = requester.join().expect("no panic").expect("no deadline");
                    assert_eq!(visited, 3, "all but the one that is gone");
                });
            });
        });
    }
}
