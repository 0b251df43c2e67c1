//! A mutator without a borrow, for C and for code deep inside a runtime.

use core::fmt;
use core::sync::atomic::AtomicU32;

use crate::abort::abort_with;
use crate::protocol::{MutatorSlot, MutatorState, POLL_MASK, Stance};
use crate::region::{OwnStop, leave_armed, poll_armed};
use crate::roots::{self, Place, Stand, stand_in_region};
use crate::system::{self, Identity, Moment};
use crate::world::{Shared, World};

/// A mutator of the calling thread as two words, which can be copied and cannot be sent.
///
/// For what has no `&mut Mutator` at hand: an allocator's slow path, a face in C, code that a JIT emits. Methods that
/// change where the thread stands return where it stood before, so that they nest in any order:
///
/// ```text
///   running ── enter ──> safe ── leave ──> running ── restore(Safe) ──> safe ── restore(Running) ──> running
/// ```
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock), except [`RawMutator::state`], [`RawMutator::data`] and
/// [`RawMutator::poll_word`].
///
/// # Examples
///
/// ```
/// use safepoint::{MutatorState, World};
///
/// let world = World::new();
/// let _mutator = world.attach()?;
/// // Deep inside, where only the world is known:
/// let raw = world.current().expect("attached");
/// // SAFETY: the mutator lives, and nothing here keeps a reference that a stop could break.
/// let before = unsafe { raw.enter() };
/// assert_eq!((before, raw.state()), (MutatorState::Running, MutatorState::Safe));
/// // SAFETY: as above.
/// unsafe { raw.restore(before) };
/// # Ok::<(), safepoint::AttachError>(())
/// ```
#[derive(Clone, Copy)]
pub struct RawMutator {
    pub(crate) slot: &'static MutatorSlot<Identity>,
    shared: *const Shared,
}

impl fmt::Debug for RawMutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMutator")
            .field("index", &self.slot.index())
            .field("state", &self.slot.state())
            .finish_non_exhaustive()
    }
}

impl World {
    /// The calling thread as a mutator of this world, if it is one.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn current(&self) -> Option<RawMutator> {
        let slot = system::own_slot(&self.shared.protocol)?;
        Some(RawMutator::new(slot, &self.shared))
    }
}

impl RawMutator {
    /// The bits of the [poll word](RawMutator::poll_word) that ask for something.
    pub const POLL_MASK: u32 = POLL_MASK;

    pub(crate) fn new(slot: &'static MutatorSlot<Identity>, shared: &Shared) -> Self {
        Self { slot, shared }
    }

    pub(crate) fn slot(self) -> &'static MutatorSlot<Identity> {
        self.slot
    }

    /// # Safety
    ///
    /// The mutator lives: it keeps its world.
    unsafe fn shared(&self) -> &Shared {
        // SAFETY: the caller's obligation.
        unsafe { &*self.shared }
    }

    /// Whether the thread runs or is in a safe region.
    #[must_use]
    pub fn state(self) -> MutatorState {
        self.slot.state()
    }

    /// What [`Mutator::set_data`](crate::Mutator::set_data) has set; null before. Null too, or another mutator's, when
    /// this one is detached.
    #[must_use]
    pub fn data(self) -> *mut () {
        self.slot.status.identity.data()
    }

    /// The word that a poll looks at, for code that is emitted at run time. While the mutator runs, and a bit of
    /// [`RawMutator::POLL_MASK`] is set in it, [`RawMutator::poll`] has something to do. Aligned to four bytes, and
    /// at one address for as long as the mutator lives. A relaxed load is enough. It is not to be written.
    #[must_use]
    pub fn poll_word(self) -> *const AtomicU32 {
        &raw const self.slot.requests.poll
    }

    /// As [`Mutator::poll`](crate::Mutator::poll). Does nothing in a safe region.
    ///
    /// # Safety
    ///
    /// 1. The [`Mutator`](crate::Mutator) lives: it is neither detached nor dropped.
    /// 2. No code on this thread relies on that the world is not stopped here, and no for-each closure runs: not even
    ///    code that has borrowed the mutator.
    ///
    /// # Panics
    ///
    /// As [`Mutator::poll`](crate::Mutator::poll), and in [code without safe points](RawMutator::no_safepoint).
    pub unsafe fn poll(self) {
        if !(cfg!(debug_assertions) || self.slot.is_armed())
            || self.slot.state() != MutatorState::Running
        {
            return;
        }
        // SAFETY: the caller's first obligation.
        poll_armed(unsafe { self.shared() }, self.slot);
    }

    /// Runs `work` in a safe region, if the thread is in none; as [`Mutator::blocking`](crate::Mutator::blocking), but
    /// without a borrow.
    ///
    /// # Safety
    ///
    /// As [`RawMutator::poll`]. `work` touches nothing that a stop protects, and does not use the
    /// [`Mutator`](crate::Mutator).
    ///
    /// # Blocking
    ///
    /// # Aborts
    ///
    /// As [`RawMutator::leave`], when `work` has ended.
    pub unsafe fn blocking<R>(self, work: impl FnOnce() -> R) -> R {
        if self.slot.state() != MutatorState::Running {
            return work();
        }
        // SAFETY: the caller's first obligation.
        let shared = unsafe { self.shared() };
        let mut stand = None;
        // In this frame, which is there for as long as the region.
        let stand = stand_in_region!(self.slot, stand);
        roots::enter(&shared.protocol, self.slot, stand);
        let _region = Left { raw: self, shared, stand };
        work()
    }

    /// Leaves the safe region, if the thread is in one, runs `work`, and enters the region again: a callback from
    /// foreign code. As [`Region::reenter`](crate::Region::reenter), but without a borrow.
    ///
    /// # Safety
    ///
    /// As [`RawMutator::poll`].
    ///
    /// # Blocking
    ///
    /// # Aborts
    ///
    /// As [`RawMutator::leave`], before `work`.
    pub unsafe fn reenter<R>(self, work: impl FnOnce() -> R) -> R {
        if self.slot.state() != MutatorState::Safe {
            return work();
        }
        // SAFETY: the caller's first obligation.
        let shared = unsafe { self.shared() };
        self.leave_region(shared);
        shared.protocol.system.tell(self.slot, Moment::Running);
        let _again = Entered { raw: self, shared };
        work()
    }

    /// Leaves the region, of which there may be no frames to unwind.
    fn leave_region(self, shared: &Shared) {
        // The slot of a mutator that has stopped the world is not armed.
        let is_own = shared.protocol.stop_turn.is_held_by(system::tid());
        if is_own || !shared.protocol.try_leave(self.slot) {
            leave_armed(shared, self.slot, OwnStop::Abort);
        }
    }

    /// In a world that knows roots the function that enters the region has to be there until it ends.
    fn must_not_stand(self) {
        if self.slot.status.stands.are_said() {
            abort_with(format_args!(
                "RawMutator::enter, leave and restore are of no use in a world with roots: use blocking and reenter"
            ));
        }
    }

    /// Enters a safe region, if the thread is in none. Returns where it was.
    ///
    /// # Safety
    ///
    /// As [`RawMutator::poll`]. Until it leaves the region the thread touches nothing that a stop protects, and what
    /// has the [`Mutator`](crate::Mutator) does not use it.
    ///
    /// # Panics
    ///
    /// With debug assertions in [code without safe points](RawMutator::no_safepoint).
    ///
    /// # Aborts
    ///
    /// In a world with [`WorldOptions::roots`](crate::WorldOptions::roots): this returns before the region ends, so
    /// it cannot say which registers are to be read. [`RawMutator::blocking`] can.
    #[must_use = "it is what restores the state"]
    pub unsafe fn enter(self) -> MutatorState {
        self.must_not_stand();
        let before = self.slot.state();
        if before == MutatorState::Running {
            if cfg!(debug_assertions) {
                self.slot.status.identity.forbidden.refuse("a safe region");
            }
            // SAFETY: the caller's first obligation.
            unsafe { self.shared() }.protocol.enter(self.slot, Stance::Away);
        }
        before
    }

    /// Leaves the safe region, if the thread is in one: a callback from foreign code into the runtime. Returns where
    /// it was, for [`RawMutator::restore`].
    ///
    /// # Safety
    ///
    /// As [`RawMutator::poll`]. Before code goes on that was given to `Mutator::blocking`, or that entered the region
    /// otherwise, the state is restored.
    ///
    /// # Blocking
    ///
    /// Waits while the world is stopped, a closure runs for this mutator, or its task is suspended.
    ///
    /// # Aborts
    ///
    /// If the thread has the world stopped: it would wait for itself. There may be no frames to unwind. In a world with
    /// [`WorldOptions::roots`](crate::WorldOptions::roots), as [`RawMutator::enter`]: use [`RawMutator::reenter`].
    #[must_use = "it is what restores the state"]
    pub unsafe fn leave(self) -> MutatorState {
        self.must_not_stand();
        let before = self.slot.state();
        if before == MutatorState::Safe {
            // SAFETY: the caller's first obligation.
            self.leave_region(unsafe { self.shared() });
        }
        before
    }

    /// Makes the state what an earlier [`enter`](RawMutator::enter) or [`leave`](RawMutator::leave) returned.
    ///
    /// # Safety
    ///
    /// As the one of these two that it undoes.
    ///
    /// # Blocking
    ///
    /// As [`RawMutator::leave`], if it leaves a region.
    ///
    /// # Aborts
    ///
    /// If the state is none that these two return. As [`RawMutator::leave`].
    pub unsafe fn restore(self, before: MutatorState) {
        match before {
            MutatorState::Running => {
                // SAFETY: the caller's obligation.
                let _left = unsafe { self.leave() };
            }
            MutatorState::Safe => {
                // SAFETY: the caller's obligation.
                let _entered = unsafe { self.enter() };
            }
            other => abort_with(format_args!("a mutator's state is set to {other}")),
        }
    }
}

/// In a region until it is dropped.
struct Left<'a> {
    raw: RawMutator,
    shared: &'a Shared,
    stand: Option<&'a Stand>,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let Self { raw, shared, stand } = *self;
        raw.leave_region(shared);
        if let Some(stand) = stand {
            stand.left(&shared.protocol, raw.slot);
        }
    }
}

/// Out of a region until it is dropped.
struct Entered<'a> {
    raw: RawMutator,
    shared: &'a Shared,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let Self { raw, shared } = *self;
        let (protocol, slot) = (&shared.protocol, raw.slot);
        if slot.status.stands.are_said() {
            // What ran meanwhile has put back where the region stands.
            let parking = || protocol.system.tell(slot, Moment::Parking);
            protocol.enter_standing(slot, Stance::Away, slot.status.stands.at(), parking);
        } else {
            protocol.enter(slot, Stance::Away);
        }
    }
}
