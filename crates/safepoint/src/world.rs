//! A world: the mutators that a stop stops.

use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use sigctx::sys;
use threadreg::Nudge;

use crate::callback;
use crate::edge::{Fences, Identity, Linux};
use crate::error::{AttachError, StopError};
use crate::forks;
use crate::mutator::Mutator;
use crate::options::{Reason, StopOptions};
use crate::protocol::{MutatorState, Protocol, Slot};
use crate::stopped::Stopped;

/// What all handles of a world share.
pub(crate) struct Shared {
    pub(crate) protocol: Protocol<Linux>,
    /// Where a child of a fork finds the world.
    node: Option<&'static forks::Node>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Before anything is taken apart.
        if let Some(node) = self.node {
            node.give_back();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("holder", &self.protocol.stop_turn.holder())
            .field("live", &self.protocol.live().count())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Whether the calling thread has the world stopped.
    pub(crate) fn is_held_by(&self, tid: i32) -> bool {
        self.protocol.stop_turn.holder() == Some(tid)
    }

    /// The calling thread's slot.
    pub(crate) fn slot_of(&self, tid: i32) -> Option<&'static Slot<Identity>> {
        let is_owner = |s: &&Slot<Identity>| s.told.identity.tid.load(Ordering::Relaxed) == tid;
        self.protocol.live().find(is_owner)
    }
}

/// A set of threads that are stopped together.
///
/// Clones are handles of the same world. Worlds know nothing of each other.
///
/// # Examples
///
/// ```
/// use safepoint::World;
///
/// let world = World::new();
/// let mut mutator = world.attach()?;
/// mutator.poll();
/// # Ok::<(), safepoint::AttachError>(())
/// ```
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) shared: Arc<Shared>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty, running world with the best fences that the system has.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Fences::probe())
    }

    /// A world that does without `membarrier(2)`, for a program that is going to forbid itself that
    /// call. Safe regions cost a fence at each end.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    #[must_use]
    pub fn fully_fenced() -> Self {
        Self::with(Fences::Full)
    }

    fn with(fences: Fences) -> Self {
        let protocol = Protocol::new(Linux::new(fences));
        let mut shared = Arc::new(Shared { protocol, node: None });
        let node = forks::enlist(Arc::as_ptr(&shared));
        Arc::get_mut(&mut shared).expect("shown to nobody yet").node = Some(node);
        Self { shared }
    }

    /// Which fences the world uses.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn fences(&self) -> Fences {
        self.shared.protocol.edge.fences
    }

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
        Mutator::attach(self, None)
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
        Mutator::attach(self, Some(limit))
    }

    /// Sets how late mutators are brought to a safe point; replaces what was set before.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    ///
    /// # Safety
    ///
    /// With it, a thread that is a mutator of this world comes to a safe point of the world also where
    /// it does not say so to its [`Mutator`]: it is stopped, or runs for-each closures,
    ///
    /// - at each instruction that the nudge may interrupt: for `preempt::Nudger`, of registered code;
    /// - in each call into the nudge's crate that polls or waits: for `preempt`, `poll`, the drop of
    ///   the last `Disabled`, `Task::enter`, `Task::blocking`, `suspend`, and what is done with a
    ///   `Suspended`.
    ///
    /// A borrow of the mutator does not keep these away. The caller promises that at none of them
    /// code on a mutator's thread relies on not being stopped: that it keeps no reference there to
    /// what a stop, or a for-each closure, may move or change, whatever the reference borrows from.
    ///
    /// # Examples
    ///
    /// ```compile_fail,E0133
    /// # struct Nobody;
    /// # impl threadreg::Nudge for Nobody {
    /// #     fn nudge(
    /// #         &self,
    /// #         _: threadreg::ThreadRef,
    /// #         _: threadreg::NudgeCall,
    /// #         _: &dyn Fn() -> bool,
    /// #     ) -> Result<(), threadreg::NudgeError> {
    /// #         Ok(())
    /// #     }
    /// #     fn settle(&self, _: std::time::Duration) -> bool {
    /// #         true
    /// #     }
    /// # }
    /// let world = safepoint::World::new();
    /// world.set_nudge(std::sync::Arc::new(Nobody));
    /// ```
    pub unsafe fn set_nudge(&self, nudge: Arc<dyn Nudge>) {
        self.shared.protocol.edge.nudge.store(Some(Arc::new(nudge)));
    }

    /// Stops the world from a thread that is not one of its mutators, or is in a safe region.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: takes turns with other threads.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every mutator has polled or entered a safe region.
    ///
    /// # Errors
    ///
    /// As for [`World::stop_from_outside_with`], without the deadline.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::World;
    ///
    /// let world = World::new();
    /// let stopped = world.stop_from_outside("dump")?;
    /// assert_eq!(stopped.mutators().count(), 0);
    /// stopped.resume();
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[doc(alias = "stopTheWorld")]
    pub fn stop_from_outside(&self, reason: impl Into<Reason>) -> Result<Stopped<'_>, StopError> {
        self.stop_from_outside_with(StopOptions::new(reason))
    }

    /// Stops the world as [`World::stop_from_outside`] does, with options.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: takes turns with other threads.
    ///
    /// # Blocking
    ///
    /// As [`World::stop_from_outside`], bounded by the deadline where there is one.
    ///
    /// # Errors
    ///
    /// When the thread has the world stopped already, runs a for-each closure, holds
    /// `threadreg::freeze_creation`'s guard, is a running mutator of the world, or holds the task of
    /// one that cannot be nudged; when the deadline passes. The world runs then.
    pub fn stop_from_outside_with(&self, options: StopOptions) -> Result<Stopped<'_>, StopError> {
        if callback::is_running() {
            return Err(StopError::InCallback);
        }
        let tid = sys::gettid();
        let own = self.shared.slot_of(tid);
        // A stopper is safe itself: that it holds the stop is the better thing to say.
        if !self.shared.is_held_by(tid)
            && own.is_some_and(|slot| slot.state() != MutatorState::Safe)
        {
            return Err(StopError::OwnMutatorRuns { tid });
        }
        Stopped::stop(&self.shared, None, tid, options)
    }
}
