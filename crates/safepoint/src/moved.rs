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
        self.shared.protocol.detach(self.slot, || self.slot.status.identity.clear());
    }
}
