//! A thread's part in a world: attaching, polls, safe regions, detaching.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use sigctx::sys;
use threadreg::rest::{self, Place, Registered, Rest};
use threadreg::{Attached, ThreadRef};

use crate::error::{AttachError, abort_with};
use crate::pace::Clock;
use crate::protocol::{MutatorSlot, MutatorState, NoSlot, Protocol, Stance};
use crate::system::{Identity, Linux, Target};
use crate::world::{Shared, World};

impl World {
    /// Makes the calling thread a mutator of this world.
    ///
    /// The thread is registered with `threadreg` for as long as the mutator lives, unless it is
    /// registered already.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, however long; see [`World::attach_within`].
    ///
    /// # Errors
    ///
    /// [`AttachError::AlreadyAttached`] when the thread is a mutator of this world,
    /// [`AttachError::HoldsStop`] when it has the world stopped, [`AttachError::HoldsFreeze`] when it
    /// holds `threadreg::freeze_creation`'s guard and would have to wait, [`AttachError::Full`] when
    /// the world has as many mutators as it can count, [`AttachError::Unregistered`] when the thread
    /// cannot be registered.
    pub fn attach(&self) -> Result<Mutator, AttachError> {
        Mutator::attach(self.shared.clone(), None)
    }

    /// Makes the calling thread a mutator of this world as [`World::attach`] does, if the world runs,
    /// or goes on, before `limit` is over.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, for at most `limit`; then, as [`Mutator::blocking`] does, for
    /// as long as the thread's task is suspended.
    ///
    /// # Errors
    ///
    /// As [`World::attach`], and [`AttachError::Stopped`] when the time is over. The thread is as it
    /// was before.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{AttachError, World};
    /// use std::time::Duration;
    ///
    /// let world = World::new();
    /// let stopped = world.stop_from_outside("dump")?;
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| world.attach_within(Duration::from_millis(1)).map(drop));
    ///     let refused = other.join().unwrap();
    ///     assert!(matches!(refused, Err(AttachError::Stopped { .. })));
    /// });
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    pub fn attach_within(&self, limit: Duration) -> Result<Mutator, AttachError> {
        Mutator::attach(self.shared.clone(), Some(limit))
    }
}

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
    pub(crate) slot: &'static MutatorSlot<Identity>,
    pub(crate) shared: Arc<Shared>,
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
    fn attach(shared: Arc<Shared>, limit: Option<Duration>) -> Result<Self, AttachError> {
        let tid = sys::gettid();
        if shared.protocol.stop_turn.is_held_by(tid) {
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
        let clock = Clock::start(&shared.protocol, tid, limit, Duration::ZERO);
        let place = Cell::new(None);
        let identify = |slot: &'static MutatorSlot<Identity>| {
            let identity = &slot.status.identity;
            identity.world.store((&raw const shared.protocol).cast_mut(), Ordering::Relaxed);
            identity.tid.store(tid, Ordering::Relaxed);
            identity.set_target(Some(Target { thread, tid, name: thread.name() }));
            place.set(rest::register(place_of(slot)));
        };
        let forget = |slot: &'static MutatorSlot<Identity>| {
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
    /// ([`StopOptions::timeout`](crate::StopOptions::timeout)).
    ///
    /// # Panics
    ///
    /// When something is asked, and with debug assertions always, while the thread holds
    /// `threadreg::freeze_creation`'s guard: a mutator that waits for the guard to make a thread would
    /// not come to the stop.
    #[inline]
    #[doc(alias = "safepoint poll")]
    pub fn poll(&mut self) {
        if cfg!(debug_assertions) || self.slot.is_armed() {
            self.poll_armed();
        }
    }

    #[cold]
    #[inline(never)]
    fn poll_armed(&mut self) {
        assert!(
            !threadreg::holds_freeze(),
            "a safepoint under the guard of freeze_creation: poll first, freeze second"
        );
        if self.slot.is_armed() {
            self.shared.protocol.process(self.slot);
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
    /// the [`Stopped`](crate::Stopped): this thread would wait for itself.
    ///
    /// # Aborts
    ///
    /// When `work` stopped the world and put the [`Stopped`](crate::Stopped) somewhere else, so that not even a
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
        let stops = self.slot.is_armed() && self.shared.protocol.stop_turn.is_held_by(self.tid());
        // Unwinding drops the result, and the stop if it is there, before the region is left.
        assert!(!stops, "a safe region ended while its own thread has the world stopped");
        drop(region);
        result
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
    pub(crate) fn tid(&self) -> i32 {
        self.slot.status.identity.tid.load(Ordering::Relaxed)
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        // In a safe region, too: a leaked stop leaves the mutator there, and so does an exit inside of
        // one, for a mutator in a thread-local. It owes no closure of its own then.
        let identity = &self.slot.status.identity;
        // The closure was called by this slot's poll, which goes on with the slot and the world when
        // it returns. A poll that a nudge makes borrows nothing, so the compiler does not see to this.
        if identity.visited.load(Ordering::Relaxed) && self.slot.state() == MutatorState::Running {
            abort_with(format_args!(
                "thread {} detaches in a closure that runs for it",
                self.tid()
            ));
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
fn forget(slot: &'static MutatorSlot<Identity>) {
    slot.status.identity.tid.store(0, Ordering::Relaxed);
    slot.status.identity.set_target(None);
}

/// Where the owner of the slot stands still.
fn place_of(slot: &'static MutatorSlot<Identity>) -> Place {
    // SAFETY: both ask for the exposed address of a slot that is the thread's, which it is from the
    // moment that this is registered until `forget`. They are a few loads and atomic stores. In the
    // protocol's waits the thread runs nothing else, in a region the closure that was given for it;
    // REST is looked at whenever `Running` was stored (I8).
    unsafe { Place::new(how_it_stands, recall, ptr::from_ref(slot).expose_provenance()) }
}

/// # Safety
///
/// `data` is the exposed address of a [`MutatorSlot`] of the calling thread's.
unsafe fn how_it_stands(data: usize) -> Rest {
    let slot = ptr::with_exposed_provenance::<MutatorSlot<Identity>>(data);
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
    let slot = ptr::with_exposed_provenance::<MutatorSlot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    let slot = unsafe { &*slot };
    let world = slot.status.identity.world.load(Ordering::Relaxed);
    // SAFETY: written by this thread at attach, which holds the world for as long as it has the slot.
    unsafe { &*world }.recall(slot);
}

/// In a safe region from `enter` to drop, unwinding or not.
struct SafeRegion<'a> {
    slot: &'static MutatorSlot<Identity>,
    protocol: &'a Protocol<Linux>,
}

impl<'a> SafeRegion<'a> {
    #[inline]
    fn enter(mutator: &'a Mutator) -> Self {
        mutator.shared.protocol.enter(mutator.slot, Stance::Away);
        Self { slot: mutator.slot, protocol: &mutator.shared.protocol }
    }

    /// Something is asked of the slot. If the thread itself does, leaving would wait forever; under
    /// the guard of `freeze_creation` it may.
    #[cold]
    fn refuse_to_wait(&self) {
        let tid = self.slot.status.identity.tid.load(Ordering::Relaxed);
        if self.protocol.stop_turn.is_held_by(tid) {
            abort_with(format_args!(
                "thread {tid} leaves its safe region and has the world stopped"
            ));
        }
        if cfg!(debug_assertions) && threadreg::holds_freeze() {
            abort_with(format_args!(
                "thread {tid} waits for a stop under the guard of freeze_creation"
            ));
        }
    }
}

impl Drop for SafeRegion<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_armed() {
            self.refuse_to_wait();
        }
        self.protocol.leave(self.slot);
    }
}
