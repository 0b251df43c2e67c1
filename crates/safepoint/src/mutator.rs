//! A thread's part in a world.

use core::any::Any;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use sigctx::sys;
use threadreg::rest::{self, Place, Registered, Rest};
use threadreg::{Attached, ThreadRef};

use crate::callback;
use crate::die::die;
use crate::edge::{Identity, Owner};
use crate::error::{AttachError, EachError, StopError};
use crate::options::{EachOptions, Reason, StopOptions};
use crate::pace::Clock;
use crate::processor::Processor;
use crate::protocol::{MutatorState, NoSlot, NotVisited, Slot, Stance};
use crate::stopped::Stopped;
use crate::world::{Shared, World};

/// The calling thread as a mutator of a [`World`], from [`World::attach`].
///
/// While it is not in a safe region the thread may touch what a stop protects, and has to
/// [`poll`](Mutator::poll) now and then. Dropping it detaches. A mutator that is leaked outside a
/// safe region keeps every later stop waiting.
///
/// What takes `&mut Mutator` may stop the thread, and nothing else does in a world without a nudge. In
/// one that was given a nudge ([`World::set_nudge`], which is unsafe for this) a stop may also come
/// while the mutator is only borrowed.
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
    /// Known to handlers on this thread while the slot is its own.
    place: Option<Registered>,
    /// Dropped last: requesters name the thread while it has a slot.
    registration: Option<Attached>,
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("tid", &self.tid())
            .field("index", &self.slot.index())
            .field("state", &self.slot.state())
            .field("registered_here", &self.registration.is_some())
            .finish_non_exhaustive()
    }
}

impl Mutator {
    pub(crate) fn attach(world: &World, limit: Option<Duration>) -> Result<Self, AttachError> {
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
        // Waiting for the end of a stop, it would hold up those who make threads and are to stop.
        let frozen = threadreg::holds_freeze();
        let limit = if frozen { Some(Duration::ZERO) } else { limit };
        let clock = Clock::start(&shared, tid, limit, Duration::ZERO);
        let place = Cell::new(None);
        let identify = |slot: &'static Slot<Identity>| {
            let identity = &slot.told.identity;
            identity.world.store(Arc::as_ptr(&shared).cast_mut(), Ordering::Relaxed);
            identity.tid.store(tid, Ordering::Relaxed);
            identity.set_owner(Some(Owner { thread, tid, name: thread.name() }));
            place.set(rest::register(place_of(slot)));
        };
        let forget = |slot: &'static Slot<Identity>| {
            place.take();
            forget(slot);
        };
        let slot = shared.protocol.attach(identify, forget, &clock).map_err(|error| match error {
            NoSlot::Full => AttachError::Full { tid },
            NoSlot::Stopped if frozen => AttachError::HoldsFreeze { tid },
            NoSlot::Stopped => {
                let holder = shared.protocol.stop_turn.holder();
                AttachError::Stopped { tid, holder, waited: clock.elapsed() }
            }
        });
        let (slot, place) = (slot?, place.take());
        Ok(Self { slot, shared, thread, place, registration, not_send: PhantomData })
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
    /// Waits while the world is stopped, for as long as it is, and runs the closure of a for-each.
    /// What bounds the wait is the stop's own work; whoever stops can bound what it waits for
    /// ([`StopOptions::timeout`]).
    ///
    /// # Panics
    ///
    /// When something is asked, and with debug assertions always, while the thread holds
    /// `threadreg::freeze_creation`'s guard: a mutator that waits for the guard to make a thread would
    /// not come to the stop.
    #[inline]
    #[doc(alias = "safepoint poll")]
    pub fn poll(&mut self) {
        if cfg!(debug_assertions) || self.slot.is_asked() {
            self.poll_asked();
        }
    }

    #[cold]
    #[inline(never)]
    fn poll_asked(&mut self) {
        assert!(
            !threadreg::holds_freeze(),
            "a safepoint under the guard of freeze_creation: poll first, freeze second"
        );
        if self.slot.is_asked() {
            self.shared.protocol.settle(self.slot);
        }
    }

    /// Runs `work` in a safe region: a stop goes on without this thread, and does not interrupt
    /// it. Inside, the thread must not touch what a stop protects.
    ///
    /// In a world with a nudge a signal that was sent before is waited for first, so that no system
    /// call in `work` comes back with `EINTR` because of a stop. That wait ends after 100 ms.
    ///
    /// To whoever suspends the thread's task (by `preempt::Task::suspend`) the region is one in which the
    /// task blocks, as inside `Task::blocking`; to find that out, the thread is interrupted once.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// After `work`, waits while the world is stopped, or a for-each closure runs on this
    /// mutator's behalf, or the thread's task is suspended: for as long as those last, since the
    /// thread may not run before.
    ///
    /// # Panics
    ///
    /// When `work` does, after leaving the safe region. When `work` stopped the world and returns
    /// the [`Stopped`]: this thread would wait for itself.
    ///
    /// # Aborts
    ///
    /// When `work` stopped the world and put the [`Stopped`] somewhere else, so that not even a
    /// panic could end the stop before the region. With debug assertions, when the region ends in a
    /// stopped world while the thread holds `threadreg::freeze_creation`'s guard.
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
        let stops = self.slot.is_asked() && self.shared.is_held_by(self.tid());
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
    /// [`Stopped`] that was leaked. [`StopError::HoldsFreeze`] when the thread holds
    /// `threadreg::freeze_creation`'s guard. [`StopError::HoldsMutators`] when it holds the task of a
    /// mutator that cannot be nudged. The world runs then.
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
    #[doc(alias = "stopTheWorld")]
    #[doc(alias = "safepoint operation")]
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
    /// As [`Mutator::stop_the_world`], bounded by the deadline where there is one. The deadline bounds
    /// the waits for the turn and for the others. Past it the mutator goes on, which it can when no
    /// other has the world stopped, and its task is not suspended: what others do to this thread
    /// meanwhile no deadline of its own can end. [`World::stop_from_outside_with`] in a safe region
    /// returns at its deadline.
    ///
    /// # Errors
    ///
    /// [`StopError::TimedOut`] and [`StopError::Busy`] when the deadline passes: everybody runs
    /// again. The others as for [`Mutator::stop_the_world`].
    pub fn stop_with(&mut self, options: StopOptions) -> Result<Stopped<'_>, StopError> {
        if callback::is_running() {
            return Err(StopError::InCallback);
        }
        Stopped::stop(&self.shared, Some(self.slot), self.tid(), options)
    }

    /// Runs `visit` once for every mutator of the world, this one included, without stopping them
    /// all at a time. Returns for how many.
    ///
    /// A mutator that runs is visited on its own thread, at its poll; one in a safe region on this
    /// thread, and it does not leave the region meanwhile. One that was nudged is visited between two
    /// instructions of its code, with the room of an injected call for the closure, and what is left
    /// of the stack beyond ([`CALLBACK_ROOM`](sigctx::inject::CALLBACK_ROOM)). Mutators that attach
    /// during the call may or may not be visited; those that detach are visited before or not at all.
    /// No closure runs while the world is stopped, so a slow one delays stops.
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
    /// # Errors
    ///
    /// As for [`Mutator::for_each_processor_with`], without the deadline.
    ///
    /// # Panics
    ///
    /// With the payload of the first closure that panicked, on whichever thread, after all have
    /// run.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let visited = mutator.for_each_processor(|p| println!("{}", p.index()))?;
    /// assert_eq!(visited, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "forEachP")]
    #[doc(alias = "handshake")]
    pub fn for_each_processor(
        &mut self,
        visit: impl Fn(&Processor<'_>) + Sync,
    ) -> Result<usize, EachError> {
        self.for_each_processor_with(EachOptions::new(), visit)
    }

    /// Runs `visit` for every mutator as [`Mutator::for_each_processor`] does, with options.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: a handler is not at a safe point.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::for_each_processor`]. The deadline, where there is one, bounds the waits for the
    /// turn and for those that have not come to their closure. Closures that have begun are waited
    /// for, since they borrow from here; and so is the end of a stop by another thread.
    ///
    /// # Errors
    ///
    /// [`EachError::InCallback`] inside a for-each closure, [`EachError::HoldsFreeze`] when the thread
    /// holds `threadreg::freeze_creation`'s guard, [`EachError::Busy`] when the deadline passed before
    /// it was this one's turn: no closure ran. [`EachError::TimedOut`] when it passed later,
    /// [`EachError::HoldsMutators`] when the thread holds the task of a mutator that cannot be nudged:
    /// the closure ran for some, and will not run for the others.
    ///
    /// # Panics
    ///
    /// As [`Mutator::for_each_processor`]; a panic goes before an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::EachOptions;
    /// use std::time::Duration;
    ///
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let options = EachOptions::new().timeout(Duration::from_millis(100));
    /// assert_eq!(mutator.for_each_processor_with(options, |_| ())?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn for_each_processor_with(
        &mut self,
        options: EachOptions,
        visit: impl Fn(&Processor<'_>) + Sync,
    ) -> Result<usize, EachError> {
        if callback::is_running() {
            return Err(EachError::InCallback);
        }
        let tid = self.tid();
        if threadreg::holds_freeze() {
            return Err(EachError::HoldsFreeze { tid });
        }
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
        let mut clock = Clock::start(&self.shared, tid, options.timeout, options.nudge_after);
        let protocol = &self.shared.protocol;
        let result = protocol.for_each(self.slot, tid, &visit, &mut clock);
        let panics = panics.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = panics.into_iter().next() {
            panic::resume_unwind(first);
        }
        let visited = visited.into_inner();
        match result {
            Ok(()) => Ok(visited),
            Err(NotVisited::NoTurn) => {
                let holder = protocol.each_turn.holder();
                Err(EachError::Busy { holder, waited: clock.elapsed() })
            }
            Err(NotVisited::TooLate(stragglers)) if clock.is_own_fault() => {
                Err(EachError::HoldsMutators { visited, stragglers })
            }
            Err(NotVisited::TooLate(stragglers)) => {
                Err(EachError::TimedOut { visited, stragglers })
            }
        }
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

impl Mutator {
    /// The thread's id. Not kept here: it changes in the child of a fork.
    fn tid(&self) -> i32 {
        self.slot.told.identity.tid.load(Ordering::Relaxed)
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        // In a safe region, too: a leaked stop leaves the mutator there, and so does an exit inside of
        // one, for a mutator in a thread-local. It owes no closure of its own then.
        let identity = &self.slot.told.identity;
        // The closure was called by this slot's poll, which goes on with the slot and the world when
        // it returns. A poll that a nudge makes borrows nothing, so the compiler does not see to this.
        if identity.visited.load(Ordering::Relaxed) && self.slot.state() == MutatorState::Running {
            die(format_args!("thread {} detaches in a closure that runs for it", self.tid()));
        }
        let place = &mut self.place;
        self.shared.protocol.detach(self.slot, || {
            // Before the slot can be another's.
            place.take();
            forget(self.slot);
        });
    }
}

/// Forgets the owner of a slot, which owes nothing.
fn forget(slot: &'static Slot<Identity>) {
    slot.told.identity.tid.store(0, Ordering::Relaxed);
    slot.told.identity.set_owner(None);
}

/// Where the owner of the slot stands still.
fn place_of(slot: &'static Slot<Identity>) -> Place {
    // SAFETY: both ask for the exposed address of a slot that is the thread's, which it is from the
    // moment that this is registered until `forget`. They are a few loads and atomic stores. In the
    // protocol's waits the thread runs nothing else, in a region the closure that was given for it;
    // REST is looked at whenever `Running` was stored (I8).
    unsafe { Place::new(how_it_stands, recall, ptr::from_ref(slot).expose_provenance()) }
}

/// # Safety
///
/// `data` is the exposed address of a [`Slot`] of the calling thread's.
unsafe fn how_it_stands(data: usize) -> Rest {
    let slot = ptr::with_exposed_provenance::<Slot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    match unsafe { &*slot }.stance() {
        Some(Stance::Waits) => Rest::Waiting,
        Some(Stance::Away) => Rest::Away,
        Some(Stance::Works) | None => Rest::Running,
    }
}

/// # Safety
///
/// As [`how_it_stands`].
unsafe fn recall(data: usize) {
    let slot = ptr::with_exposed_provenance::<Slot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    let slot = unsafe { &*slot };
    let world = slot.told.identity.world.load(Ordering::Relaxed);
    // SAFETY: written by this thread at attach, which holds the world for as long as it has the slot.
    unsafe { &*world }.protocol.recall(slot);
}

/// In a safe region from `enter` to drop, unwinding or not.
struct SafeRegion<'a> {
    slot: &'static Slot<Identity>,
    shared: &'a Shared,
}

impl<'a> SafeRegion<'a> {
    #[inline]
    fn enter(mutator: &'a Mutator) -> Self {
        mutator.shared.protocol.enter(mutator.slot, Stance::Away);
        Self { slot: mutator.slot, shared: &mutator.shared }
    }

    /// Something is asked of the slot. If the thread itself does, leaving would wait forever; under
    /// the guard of `freeze_creation` it may.
    #[cold]
    fn refuse_to_wait(&self) {
        let tid = self.slot.told.identity.tid.load(Ordering::Relaxed);
        if self.shared.is_held_by(tid) {
            die(format_args!("thread {tid} leaves its safe region and has the world stopped"));
        }
        if cfg!(debug_assertions) && threadreg::holds_freeze() {
            die(format_args!("thread {tid} waits for a stop under the guard of freeze_creation"));
        }
    }
}

impl Drop for SafeRegion<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_asked() {
            self.refuse_to_wait();
        }
        self.shared.protocol.leave(self.slot);
    }
}
