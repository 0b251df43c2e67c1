//! A thread's part in a world.

use core::any::Any;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use sigctx::sys;
use threadreg::{Attached, ThreadRef};

use crate::callback;
use crate::die::die;
use crate::edge::Identity;
use crate::error::{AttachError, StopError};
use crate::options::{Reason, StopOptions};
use crate::pace::Clock;
use crate::processor::Processor;
use crate::protocol::{MutatorState, Slot};
use crate::stopped::Stopped;
use crate::world::{Shared, World};

/// The calling thread as a mutator of a [`World`], from [`World::attach`].
///
/// While it is not in a safe region the thread may touch what a stop protects, and has to
/// [`poll`](Mutator::poll) now and then. Dropping it detaches. A mutator that is leaked outside a
/// safe region keeps every later stop waiting.
///
/// It stays on its thread:
///
/// ```compile_fail,E0277
/// let mutator = safepoint::World::new().attach().unwrap();
/// std::thread::spawn(move || drop(mutator));
/// ```
///
/// and cannot be polled after it is detached:
///
/// ```compile_fail,E0382
/// let mut mutator = safepoint::World::new().attach().unwrap();
/// mutator.detach();
/// mutator.poll();
/// ```
///
/// or polled inside a safe region:
///
/// ```compile_fail,E0499
/// let mut mutator = safepoint::World::new().attach().unwrap();
/// mutator.blocking(|| mutator.poll());
/// ```
#[must_use = "a mutator that is dropped is detached"]
pub struct Mutator {
    slot: &'static Slot<Identity>,
    shared: Arc<Shared>,
    thread: ThreadRef,
    tid: i32,
    /// Dropped last: requesters name the thread while it has a slot.
    registration: Option<Attached>,
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("tid", &self.tid)
            .field("index", &self.slot.index())
            .field("state", &self.slot.state())
            .field("registered_here", &self.registration.is_some())
            .finish_non_exhaustive()
    }
}

impl Mutator {
    pub(crate) fn attach(world: &World) -> Result<Self, AttachError> {
        let shared = world.shared.clone();
        let tid = sys::gettid();
        if shared.is_held_by(tid) {
            return Err(AttachError::HoldsStop { tid });
        }
        if shared.slot_of(tid).is_some() {
            return Err(AttachError::AlreadyAttached { tid });
        }
        let (thread, registration) = if let Some(thread) = threadreg::current() {
            (thread, None)
        } else {
            let registration =
                threadreg::attach().map_err(|error| AttachError::Unregistered { tid, error })?;
            (registration.thread(), Some(registration))
        };
        let identify = |slot: &'static Slot<Identity>| {
            let identity = &slot.told.identity;
            identity.world.store(Arc::as_ptr(&shared).cast_mut(), Ordering::Relaxed);
            identity.tid.store(tid, Ordering::Relaxed);
            identity.set_thread(Some(thread));
        };
        let slot = shared.protocol.attach(identify).ok_or(AttachError::Full { tid })?;
        Ok(Self { slot, shared, thread, tid, registration, not_send: PhantomData })
    }

    /// Says that the thread is at a safe point: if something is asked of it, it is served now.
    ///
    /// One load and one branch when nothing is.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: a handler is not at a safe point.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, and runs the closure of a for-each.
    #[inline]
    pub fn poll(&mut self) {
        if self.slot.is_asked() {
            self.shared.protocol.settle(self.slot);
        }
    }

    /// Runs `work` in a safe region: a stop goes on without this thread, and does not interrupt
    /// it. Inside, the thread must not touch what a stop protects.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// After `work`, waits while the world is stopped, or a for-each closure runs on this
    /// mutator's behalf.
    ///
    /// # Panics
    ///
    /// When `work` does, after leaving the safe region. When `work` stopped the world and returns
    /// the [`Stopped`]: this thread would wait for itself.
    ///
    /// # Aborts
    ///
    /// When `work` stopped the world and put the [`Stopped`] somewhere else, so that not even a
    /// panic could end the stop before the region.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::Read;
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let mut text = String::new();
    /// mutator.blocking(|| std::io::empty().read_to_string(&mut text))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn blocking<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let region = SafeRegion::enter(self);
        let result = work();
        // The cheap look first: whoever has the world stopped from here has asked this slot too.
        let stops = self.slot.is_asked() && self.shared.is_held_by(self.tid);
        // Unwinding drops the result, and the stop if it is there, before the region is left.
        assert!(!stops, "a safe region ended while its own thread has the world stopped");
        drop(region);
        result
    }

    /// Stops every other mutator of the world; they are stopped until the result is dropped.
    ///
    /// While it waits the thread is in a safe region: others may stop it first.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: a handler is not at a safe point.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every other mutator has polled or entered a safe region.
    ///
    /// # Errors
    ///
    /// [`StopError::InCallback`] inside a for-each closure of another world.
    /// [`StopError::Nested`] when the thread has this world stopped already, which takes a
    /// [`Stopped`] that was leaked.
    ///
    /// # Panics
    ///
    /// With debug assertions, when the thread holds `threadreg::freeze_creation`'s guard: stop first,
    /// freeze second.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, World};
    ///
    /// let mut mutator = World::new().attach()?;
    /// let stopped = mutator.stop_the_world(Reason::GC)?;
    /// println!("stopped {} in {:?}", stopped.stats().mutators, stopped.stats().time_to_stop);
    /// stopped.resume();
    /// mutator.poll();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop_the_world(&mut self, reason: impl Into<Reason>) -> Result<Stopped<'_>, StopError> {
        self.stop_with(StopOptions::new(reason))
    }

    /// Stops the world as [`Mutator::stop_the_world`] does, with options.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: a handler is not at a safe point.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::stop_the_world`], bounded by the deadline where there is one.
    ///
    /// # Errors
    ///
    /// [`StopError::Deadline`] and [`StopError::Busy`] when the deadline passes: everybody runs
    /// again. [`StopError::InCallback`] and [`StopError::Nested`] as for
    /// [`Mutator::stop_the_world`].
    ///
    /// # Panics
    ///
    /// With debug assertions, when the thread holds `threadreg::freeze_creation`'s guard: stop first,
    /// freeze second.
    pub fn stop_with(&mut self, options: StopOptions) -> Result<Stopped<'_>, StopError> {
        if callback::is_running() {
            return Err(StopError::InCallback);
        }
        Stopped::stop(&self.shared, Some(self.slot), self.tid, options)
    }

    /// Runs `visit` once for every mutator of the world, this one included, without stopping them
    /// all at a time. Returns for how many.
    ///
    /// A mutator that runs is visited on its own thread, at its poll; one in a safe region on this
    /// thread, and it does not leave the region meanwhile. Mutators that attach during the call may
    /// or may not be visited; those that detach are visited before or not at all. No closure runs
    /// while the world is stopped, so a slow one delays stops.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: a handler is not at a safe point.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every mutator has polled or entered a safe region. Others may
    /// stop this thread meanwhile.
    ///
    /// # Panics
    ///
    /// With the payload of the first closure that panicked, on whichever thread, after all have
    /// run. When called inside a for-each closure of another world.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let visited = mutator.for_each_processor(|p| println!("{}", p.index()));
    /// assert_eq!(visited, 1);
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    pub fn for_each_processor(&mut self, visit: impl Fn(&Processor<'_>) + Sync) -> usize {
        assert!(!callback::is_running(), "for_each_processor inside a for-each closure");
        let visited = core::sync::atomic::AtomicUsize::new(0);
        let panics: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());
        let visit = |slot: &'static Slot<Identity>| {
            let inside = callback::Running::new(&slot.told.identity);
            let result = panic::catch_unwind(AssertUnwindSafe(|| visit(&Processor::new(slot))));
            drop(inside);
            // Relaxed: the round's count orders it before the requester's look.
            visited.fetch_add(1, Ordering::Relaxed);
            if let Err(payload) = result {
                panics.lock().unwrap_or_else(PoisonError::into_inner).push(payload);
            }
        };
        let mut pace = Clock::start(&self.shared, &StopOptions::new("for-each"));
        self.shared.protocol.for_each(self.slot, &visit, &mut pace);
        let panics = panics.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = panics.into_iter().next() {
            panic::resume_unwind(first);
        }
        visited.into_inner()
    }

    /// Ends the thread's part in the world; the same as dropping the mutator.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// Does not wait for the end of a stop, unless a for-each waits for this mutator's closure:
    /// that is run first.
    ///
    /// # Aborts
    ///
    /// When a for-each closure that runs for this mutator does it. Only a nudged mutator can be
    /// within reach of its own closure, in a thread-local.
    pub fn detach(self) {
        drop(self);
    }

    /// The thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// The world.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn world(&self) -> World {
        World { shared: self.shared.clone() }
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        debug_assert_eq!(self.slot.state(), MutatorState::Running, "a safe region borrows this");
        let identity = &self.slot.told.identity;
        // The closure was called by this slot's poll, which goes on with the slot and the world when
        // it returns. A poll that a nudge makes borrows nothing, so the compiler does not see to this.
        if identity.visited.load(Ordering::Relaxed) {
            die(format_args!("thread {} detaches in a closure that runs for it", self.tid));
        }
        self.shared.protocol.detach(self.slot, || {
            identity.tid.store(0, Ordering::Relaxed);
            identity.set_thread(None);
        });
    }
}

/// In a safe region from `enter` to drop, unwinding or not.
struct SafeRegion<'a> {
    slot: &'static Slot<Identity>,
    shared: &'a Shared,
    tid: i32,
}

impl<'a> SafeRegion<'a> {
    #[inline]
    fn enter(mutator: &'a Mutator) -> Self {
        mutator.shared.protocol.enter(mutator.slot);
        Self { slot: mutator.slot, shared: &mutator.shared, tid: mutator.tid }
    }

    /// Something is asked of the slot. If the thread itself does, leaving would wait for ever.
    #[cold]
    fn refuse_own_stop(&self) {
        if self.shared.is_held_by(self.tid) {
            let tid = self.tid;
            die(format_args!("thread {tid} leaves its safe region and has the world stopped"));
        }
    }
}

impl Drop for SafeRegion<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_asked() {
            self.refuse_own_stop();
        }
        self.shared.protocol.leave(self.slot);
    }
}
