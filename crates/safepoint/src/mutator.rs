//! A thread's part in a world: attaching, polls, safe regions, detaching.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use sigctx::spill::callee_saved;
use threadreg::rest::{self, Place, Registered, Rest};
use threadreg::{Attached, ThreadRef};

use crate::abort::abort_with;
use crate::bound::Bound;
use crate::error::AttachError;
use crate::id::MutatorId;
use crate::pace::Clock;
use crate::protocol::{MutatorSlot, MutatorState, NoSlot, Protocol, Stance};
use crate::raw::RawMutator;
use crate::region::{OwnStop, detach, leave_armed, poll_armed};
use crate::roots::{self, Stand};
use crate::system::{self, Identity, NO_THREAD, NO_WATERMARK, Target};
use crate::world::{Shared, World};

impl World {
    /// Makes the calling thread a mutator of this world.
    ///
    /// The thread is registered with `threadreg` for as long as it has a mutator, of whichever world.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, without a limit. See [`World::attach_within`].
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

    /// Makes the calling thread a mutator of this world as [`World::attach`] does, if the world runs before
    /// `timeout` is over.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, for at most `timeout`. Then, as [`Mutator::blocking`] does, for as
    /// long as the thread's task is suspended.
    ///
    /// # Errors
    ///
    /// As [`World::attach`], and [`AttachError::Stopped`] when the timeout is over. The thread is as it was
    /// before.
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
    pub fn attach_within(&self, timeout: Duration) -> Result<Mutator, AttachError> {
        Mutator::attach(self.shared.clone(), Some(timeout))
    }
}

/// The calling thread as a mutator of a [`World`], from [`World::attach`].
///
/// Outside of safe regions the thread may touch what a stop protects, and has to [`poll`](Mutator::poll) now
/// and then. Dropping the mutator detaches it. A mutator that is leaked outside of a safe region keeps every
/// later stop waiting.
///
/// In a world without a nudge only a method that takes `&mut Mutator` stops the thread. In a world with one
/// ([`World::set_nudge`], which is unsafe for this reason) a stop may also come while the mutator is borrowed.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock heap), since a signal handler is not at a safe point, except
/// [`Mutator::thread`] and [`Mutator::world`].
///
/// # Examples
///
/// A mutator stays on its thread:
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
#[doc(alias = "mutator thread")]
#[must_use = "a mutator that is dropped is detached"]
pub struct Mutator {
    pub(crate) slot: &'static MutatorSlot<Identity>,
    pub(crate) shared: Arc<Shared>,
    thread: ThreadRef,
    /// Where it stands in [`Mutator::blocking`], if its world wants to know. There is one such region at a time.
    stand: Stand,
    /// Tells handlers on this thread where it stands, while it has the slot.
    place: Option<Registered>,
    /// Dropped last: requesters name the thread while it has a slot.
    registration: Attached,
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutator")
            .field("tid", &self.tid())
            .field("index", &self.slot.index())
            .field("state", &self.slot.state())
            .finish_non_exhaustive()
    }
}

impl Mutator {
    fn attach(shared: Arc<Shared>, timeout: Option<Duration>) -> Result<Self, AttachError> {
        let tid = system::tid();
        let registration = Self::registered(&shared, tid)?;
        let thread = registration.thread();
        // If it waited for the end of a stop it would hold up mutators that have to stop and wait for the
        // guard to make a thread.
        let frozen = threadreg::holds_freeze();
        let timeout = if frozen { Some(Duration::ZERO) } else { timeout };
        let clock = Clock::start(&shared.protocol, tid, timeout, None);
        let place = Cell::new(None);
        let identify = |slot: &'static MutatorSlot<Identity>| {
            let identity = &slot.status.identity;
            identity.world.store((&raw const shared.protocol).cast_mut(), Ordering::Relaxed);
            place.set(become_target(slot, thread, tid));
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
        slot.status.identity.set_attached(true);
        let stand = Stand::new(roots::Place::Region);
        Ok(Self { slot, shared, thread, stand, place, registration, not_send: PhantomData })
    }

    /// The calling thread, `tid`, as the registry has it for as long as the result lives, if it can become a mutator of
    /// the world.
    pub(crate) fn registered(shared: &Shared, tid: i32) -> Result<Attached, AttachError> {
        if shared.protocol.stop_turn.is_held_by(tid) {
            return Err(AttachError::HoldsStop { tid });
        }
        if system::own_slot(&shared.protocol).is_some() {
            return Err(AttachError::AlreadyAttached { tid });
        }
        threadreg::ensure_attached().map_err(|error| AttachError::Unregistered { tid, error })
    }

    /// The calling thread, `tid`, gets a slot that is safe and no thread's, and leaves its region. Past the bound it gives
    /// the slot up again.
    pub(crate) fn take_over(
        slot: &'static MutatorSlot<Identity>,
        shared: Arc<Shared>,
        tid: i32,
        registration: Attached,
        bound: Bound,
    ) -> Result<Self, Arc<Shared>> {
        let thread = registration.thread();
        let place = become_target(slot, thread, tid);
        let in_time = shared.protocol.leave_until(slot, &bound);
        let stand = Stand::new(roots::Place::Region);
        let this = Self { slot, shared, thread, stand, place, registration, not_send: PhantomData };
        if in_time { Ok(this) } else { Err(this.give_up_thread()) }
    }

    /// The slot, which is safe, is no thread's from here on, and knows its last thread by name alone.
    pub(crate) fn give_up_thread(self) -> Arc<Shared> {
        let mut this = ManuallyDrop::new(self);
        system::remove_own(this.slot);
        this.place.take();
        // A recall that came before that.
        this.shared.protocol.stay_while_held(this.slot);
        this.slot.status.identity.tid.store(NO_THREAD, Ordering::Relaxed);
        this.slot.set_safe(Stance::Away);
        // SAFETY: read once, and not dropped.
        drop(unsafe { ptr::read(&raw const this.registration) });
        // SAFETY: read once, and not dropped.
        unsafe { ptr::read(&raw const this.shared) }
    }

    /// Says that the thread is at a safe point. If a stop or a for-each is pending, does its part now.
    ///
    /// One load and one branch if nothing is pending.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, and runs the closure of a for-each. The wait lasts as long as the
    /// stop. The requester can bound how long it waits for mutators
    /// ([`StopOptions::timeout`](crate::StopOptions::timeout)), not this thread.
    ///
    /// # Panics
    ///
    /// If the thread holds `threadreg::freeze_creation`'s guard and something is pending, or a nudge has brought
    /// it to its last safe point; with debug assertions always if it holds the guard. A mutator that waits for the
    /// guard to make a thread would not come to the stop.
    #[inline]
    #[doc(alias = "safepoint poll")]
    pub fn poll(&mut self) {
        if cfg!(debug_assertions) || self.slot.is_armed() {
            poll_armed(&self.shared, self.slot);
        }
    }

    /// Runs `work` in a safe region: a stop neither waits for this thread nor interrupts it. Inside, the
    /// thread must not touch what a stop protects.
    ///
    /// In a world with a nudge, first waits for a signal that is on its way, so that no system call in `work`
    /// fails with `EINTR` because of a stop. That wait ends after 100 ms.
    ///
    /// To a thread that suspends this thread's task (by `preempt::Task::suspend`) the region is one in which
    /// the task blocks, as inside `Task::blocking`. To find that out, it interrupts this thread once.
    ///
    /// # Blocking
    ///
    /// After `work`, waits while the world is stopped, a for-each closure runs for this mutator on another
    /// thread, or the thread's task is suspended. Without a limit: the thread may not run before.
    ///
    /// # Panics
    ///
    /// If `work` does, after leaving the safe region. If `work` stopped the world and returns the
    /// [`Stopped`](crate::Stopped): this thread would wait for itself.
    ///
    /// # Aborts
    ///
    /// If `work` stopped the world and put the [`Stopped`](crate::Stopped) somewhere else, so that not even a
    /// panic could end the stop before the region. With debug assertions, if the region ends in a stopped
    /// world while the thread holds `threadreg::freeze_creation`'s guard.
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
    #[doc(alias = "safe region")]
    #[doc(alias = "entersyscall")]
    #[doc(alias = "exitsyscall")]
    #[inline]
    pub fn blocking<R>(&mut self, work: impl FnOnce() -> R) -> R {
        // Read once: it stays in a register while `work` runs.
        let slot = self.slot;
        if !Protocol::try_enter_of(|| &self.shared.protocol, slot, Stance::Away, false) {
            // In this frame, which is there for as long as the region.
            let sp = callee_saved(self.stand.room());
            enter_region(self, sp);
        }
        let region = SafeRegion { mutator: self };
        let result = work();
        if !Protocol::try_leave_of(|| &self.shared.protocol, slot) {
            // Where this panics, unwinding drops the result before the region, and with it the stop if it is in
            // there.
            leave_region(region.mutator, OwnStop::Panic);
        }
        let _left = ManuallyDrop::new(region);
        result
    }

    /// The mutator as a word that can be copied, for code that cannot have a reference to it. See [`RawMutator`].
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn as_raw(&self) -> RawMutator {
        RawMutator::new(self.slot, &self.shared)
    }

    /// Ends the thread's part in the world, as dropping the mutator does.
    ///
    /// # Blocking
    ///
    /// Does not wait for the end of a stop, unless this mutator's closure of a for-each is pending: that runs
    /// first, in a running world.
    ///
    /// # Aborts
    ///
    /// If a for-each closure that runs for this mutator does it. Only the closure of a nudged mutator can reach
    /// the mutator, in a thread-local.
    pub fn detach(self) {
        drop(self);
    }

    /// Keeps an address for the runtime: that of what it has for this thread. It is found in a stop
    /// ([`StoppedMutator::data`](crate::StoppedMutator::data)), in a for-each
    /// ([`Processor::data`](crate::Processor::data)), and on the thread itself where only the world is known, in a
    /// handler too ([`RawMutator::data`]). Null until it is set, and from when the mutator is detached.
    ///
    /// It has to be set before the thread touches what a stop protects, and a thread that has attached may be stopped
    /// before it is set: those that walk the stopped mutators skip the ones with null.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    ///
    /// # Examples
    ///
    /// ```
    /// struct PerThread {
    ///     allocated: usize,
    /// }
    ///
    /// let world = safepoint::World::new();
    /// let mutator = world.attach()?;
    /// let mut mine = PerThread { allocated: 7 };
    /// mutator.set_data((&raw mut mine).cast());
    /// // Deep inside an allocator:
    /// let mine = world.current().unwrap().data().cast::<PerThread>();
    /// // SAFETY: set above, and used by this thread alone while it runs.
    /// unsafe { (*mine).allocated += 1 };
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    pub fn set_data(&self, data: *mut ()) {
        self.slot.status.identity.data.store(data, Ordering::Release);
    }

    /// Says which stack the thread is on, for [`Parked::stack`](crate::Parked::stack): for runtimes that switch
    /// stacks. At first it is the thread's own. To be called while the mutator runs, where it switches; what it
    /// leaves on another stack the runtime scans itself.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    pub fn set_stack(&self, stack: Range<usize>) {
        self.slot.status.identity.set_stack(stack);
    }

    /// The mutator's place in the world: a small number, distinct among the mutators of a moment, and used again
    /// later.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had this place, this one included. No other mutator of the world has the same
    /// index and generation.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }

    /// Which mutator this is, for handshakes.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn id(&self) -> MutatorId {
        MutatorId(self.slot.current_use())
    }

    /// The thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// The world.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn world(&self) -> World {
        World { shared: self.shared.clone() }
    }
}

impl Mutator {
    /// The thread's id. Not kept in the mutator: it changes in the child of a fork.
    pub(crate) fn tid(&self) -> i32 {
        self.slot.status.identity.tid.load(Ordering::Relaxed)
    }
}

impl Drop for Mutator {
    fn drop(&mut self) {
        // In a safe region, too: a leaked stop leaves the mutator there. So does an exit inside of one, for
        // a mutator in a thread-local. No closure runs on its own thread then.
        let identity = &self.slot.status.identity;
        // This slot's poll called the closure, and goes on with the slot and the world when it returns. A
        // poll that a nudge makes borrows nothing, so the compiler does not prevent this.
        if identity.visited.load(Ordering::Relaxed) && self.slot.state() == MutatorState::Running {
            abort_with(format_args!(
                "thread {} detaches in a closure that runs for it",
                self.tid()
            ));
        }
        // While it runs, so that no stop has it and loses it; in a region it is lost.
        identity.set_attached(false);
        // Its closure may be pending, and a stop come before that has run. In a region it has a stand.
        let mut stand = None;
        if self.slot.status.stands.are_said() && self.slot.state() == MutatorState::Running {
            let stand = stand.insert(Stand::new(roots::Place::Request));
            let sp = callee_saved(stand.room());
            self.slot.status.stands.set(stand.at(self.slot, sp).address());
        }
        let (slot, protocol, place) = (self.slot, &self.shared.protocol, &mut self.place);
        let forget = || {
            // Before the slot can be another thread's.
            place.take();
            forget(slot);
        };
        detach(protocol, slot, forget);
    }
}

/// The calling thread, `tid`, is the slot's target from here on.
fn become_target(
    slot: &'static MutatorSlot<Identity>,
    thread: ThreadRef,
    tid: i32,
) -> Option<Registered> {
    let identity = &slot.status.identity;
    identity.tid.store(tid, Ordering::Relaxed);
    identity.watermark.store(NO_WATERMARK, Ordering::Relaxed);
    let (low, high) = thread.call_stack().bounds();
    identity.set_stack(low..high);
    identity.set_target(Some(Target { thread, tid, name: thread.name() }));
    system::add_own(slot);
    rest::register(place_of(slot))
}

/// Clears the identity of the calling thread's slot, which has nothing pending.
fn forget(slot: &'static MutatorSlot<Identity>) {
    system::remove_own(slot);
    slot.status.identity.clear();
}

/// Where a slot's thread tells its handlers that it stands still.
fn place_of(slot: &'static MutatorSlot<Identity>) -> Place {
    // SAFETY: both functions require the exposed address of a slot of this thread, which it is from the
    // registration of this place until `forget`. They are a few loads and atomic stores. In the protocol's
    // waits the thread runs nothing else; in a region it runs the closure that was given for it. REST is
    // looked at whenever `Running` was stored (I8).
    unsafe { Place::new(how_it_stands, recall, ptr::from_ref(slot).expose_provenance()) }
}

/// # Safety
///
/// `data` is the exposed address of a [`MutatorSlot`] of the calling thread.
unsafe fn how_it_stands(data: usize) -> Rest {
    let slot = ptr::with_exposed_provenance::<MutatorSlot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    match unsafe { &*slot }.stance() {
        Some(Stance::Waits) => Rest::Waiting,
        Some(Stance::Away) => Rest::Away,
        Some(Stance::Works | Stance::Helps) | None => Rest::Running,
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

/// In a safe region until it is dropped, in unwinding, or forgotten by a thread that has left the region.
///
/// One word that no function gets the address of, so that it stays in a register: what is moved through the
/// stack is read back before it is written.
struct SafeRegion<'a> {
    mutator: &'a Mutator,
}

impl Drop for SafeRegion<'_> {
    /// In unwinding alone. In line, so that nothing has the address of the region.
    #[inline(always)]
    fn drop(&mut self) {
        unwind(self.mutator);
    }
}

/// A panic leaves the region.
#[cold]
#[inline(never)]
fn unwind(mutator: &Mutator) {
    if !mutator.shared.protocol.try_leave(mutator.slot) {
        leave_region(mutator, OwnStop::Abort);
    }
}

/// The slow path of a region's entry. `sp` came with the registers that are in the mutator's stand.
#[cold]
#[inline(never)]
fn enter_region(mutator: &mut Mutator, sp: usize) {
    let Mutator { slot, shared, stand, .. } = mutator;
    if slot.status.stands.are_said() {
        stand.at(slot, sp).enter(&shared.protocol, slot);
    } else {
        shared.protocol.enter_armed(slot, Stance::Away);
    }
}

/// The slow path of a region's end.
#[cold]
#[inline(never)]
fn leave_region(mutator: &Mutator, own_stop: OwnStop) {
    let Mutator { slot, shared, stand, .. } = mutator;
    leave_armed(shared, slot, own_stop);
    if slot.status.stands.are_said() {
        stand.left(&shared.protocol, slot);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{self, AssertUnwindSafe};

    use super::*;

    /// Notes the state in which it is dropped.
    struct Looks<'a>(&'static MutatorSlot<Identity>, &'a Cell<Option<MutatorState>>);

    impl Drop for Looks<'_> {
        fn drop(&mut self) {
            self.1.set(Some(self.0.state()));
        }
    }

    /// What the region returns is dropped in the stopped world, and is code of the user's.
    #[test]
    fn a_region_that_ends_in_its_own_stop_is_safe_until_the_stop_ends() {
        let world = World::new();
        let mut mutator = world.attach().expect("a world of its own");
        let (slot, seen) = (mutator.slot, Cell::new(None));
        let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
            let region = || (Looks(slot, &seen), world.stop_from_outside("own").expect("safe"));
            drop(mutator.blocking(region));
        }));
        assert!(unwound.is_err(), "it left with the world stopped");
        assert_eq!(seen.get(), Some(MutatorState::Safe));
        assert_eq!(slot.state(), MutatorState::Running);
        mutator.poll();
    }
}
