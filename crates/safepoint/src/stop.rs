//! Stop-the-world as users have it: the requests for it, and the stopped world.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::time::Duration;

use sigctx::sys;
use threadreg::{Name, ThreadRef};

use crate::error::StopError;
use crate::mutator::Mutator;
use crate::options::{Reason, StopOptions};
use crate::pace::Clock;
use crate::protocol::{Counted, MutatorSlot, MutatorState, Protocol, Stance, TimedOut};
use crate::system::{self, Identity, Linux};
use crate::world::World;

impl Mutator {
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
        if system::in_closure() {
            return Err(StopError::InCallback);
        }
        Stopped::stop(&self.shared.protocol, Some(self.slot), self.tid(), options)
    }
}

impl World {
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
        if system::in_closure() {
            return Err(StopError::InCallback);
        }
        let tid = sys::gettid();
        let own = self.shared.slot_of(tid);
        // A stopper is safe itself: that it holds the stop is the better thing to say.
        if !self.shared.protocol.stop_turn.is_held_by(tid)
            && own.is_some_and(|slot| slot.state() != MutatorState::Safe)
        {
            return Err(StopError::OwnMutatorRuns { tid });
        }
        Stopped::stop(&self.shared.protocol, None, tid, options)
    }
}

/// Proof that the world is stopped, until it is dropped.
///
/// No mutator runs user code, and none starts to. It cannot be sent to another thread.
#[must_use = "the world is resumed when this is dropped"]
pub struct Stopped<'a> {
    protocol: &'a Protocol<Linux>,
    own: Option<&'static MutatorSlot<Identity>>,
    reason: Reason,
    stats: StopStats,
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopped")
            .field("reason", &self.reason)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// The mutator that kept a stop waiting longest.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LastToStop {
    /// Its thread.
    pub thread: ThreadRef,
    /// The thread's name at that time.
    pub name: Name,
}

/// What a stop took.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopStats {
    /// From the request, made when it was this stop's turn, until all had stopped.
    pub time_to_stop: Duration,
    /// Mutators that were stopped; whoever stopped them is not counted.
    pub mutators: usize,
    /// Those among them that were running when they were asked, and had to answer.
    pub running: usize,
    /// Who was waited for last. `None` if nobody was: all had answered, or were found safe, by the
    /// time the last one had been asked. Also if that one has detached since.
    pub last: Option<LastToStop>,
}

impl<'a> Stopped<'a> {
    /// The caller is `tid`; `own` is its slot if it is to be stopped too, and running then.
    pub(crate) fn stop(
        protocol: &'a Protocol<Linux>,
        own: Option<&'static MutatorSlot<Identity>>,
        tid: i32,
        options: StopOptions,
    ) -> Result<Self, StopError> {
        if protocol.stop_turn.is_held_by(tid) {
            return Err(StopError::Nested { tid });
        }
        // A creator that waits for the guard may be a mutator, and would not come.
        if threadreg::holds_freeze() {
            return Err(StopError::HoldsFreeze { tid });
        }
        let reason = options.reason;
        let mut clock = Clock::start(protocol, tid, options.timeout, options.nudge_after);
        // Safe from here on: whoever has the turn may stop this thread, which waits for it.
        let safe = Requester::enter(protocol, own);
        loop {
            if !protocol.stop_turn.acquire(&protocol.system, own, tid, &mut clock) {
                let holder = protocol.stop_turn.holder();
                // Waits while others have the world stopped.
                drop(safe);
                return Err(StopError::Busy { reason, holder, waited: clock.elapsed() });
            }
            let Some(own) = own.filter(|own| !protocol.begin_work(own)) else { break };
            // The thread's task is held: its holder may be a mutator that is to be stopped.
            protocol.stop_turn.release(&protocol.system);
            protocol.stay_while_held(own);
        }
        clock.restart();
        match protocol.stop(own, &mut clock) {
            Ok(counted) => {
                let stats = StopStats::new(protocol, counted, clock.elapsed());
                safe.stay();
                Ok(Self { protocol, own, reason, stats, not_send: PhantomData })
            }
            Err(TimedOut(stragglers)) => {
                protocol.stop_turn.release(&protocol.system);
                Err(if clock.is_own_fault() {
                    StopError::HoldsMutators { reason, stragglers }
                } else {
                    StopError::TimedOut { reason, stragglers }
                })
            }
        }
    }

    /// What the stop took.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn stats(&self) -> &StopStats {
        &self.stats
    }

    /// What the stop is for.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The stopped mutators; the one that stopped them is not among them.
    ///
    /// Threads that attach during the stop, and wait for its end, may be.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: takes locks.
    pub fn mutators(&self) -> impl Iterator<Item = StoppedMutator<'_>> {
        let own = self.own;
        self.protocol
            .live()
            .filter(move |slot| own.is_none_or(|own| !ptr::eq(own, *slot)))
            .filter_map(|slot| {
                let thread = slot.status.identity.thread()?;
                Some(StoppedMutator { slot, thread, of_the_stop: PhantomData })
            })
    }

    /// Lets the world run; the same as dropping this.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// Waits for nobody to run; but when a mutator stopped the world and somebody else stops it
    /// next, that one's end is waited for.
    pub fn resume(self) {
        drop(self);
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let protocol = self.protocol;
        protocol.resume();
        protocol.stop_turn.release(&protocol.system);
        if let Some(own) = self.own {
            protocol.leave(own);
        }
    }
}

impl StopStats {
    fn new(protocol: &Protocol<Linux>, counted: Counted, time_to_stop: Duration) -> Self {
        let last = counted.last.and_then(|by| {
            let slot = protocol.slot(by.index)?;
            // Between two looks at the owner's number: the slot may have changed hands since.
            let target = slot.status.identity.target()?;
            (slot.current_use() == by)
                .then_some(LastToStop { thread: target.thread, name: target.name })
        });
        let (mutators, running) = (counted.mutators as usize, counted.running as usize);
        Self { time_to_stop, mutators, running, last }
    }
}

/// A mutator that wants to stop the world, in its safe region; leaves it when the stop fails.
struct Requester<'a> {
    protocol: &'a Protocol<Linux>,
    own: Option<&'static MutatorSlot<Identity>>,
}

impl<'a> Requester<'a> {
    fn enter(protocol: &'a Protocol<Linux>, own: Option<&'static MutatorSlot<Identity>>) -> Self {
        if let Some(own) = own {
            protocol.enter(own, Stance::Waits);
        }
        Self { protocol, own }
    }

    /// Stays in the safe region: the stop's guard leaves it.
    fn stay(mut self) {
        self.own = None;
    }
}

impl Drop for Requester<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.own {
            self.protocol.leave(own);
        }
    }
}

/// A mutator in a stopped world.
#[derive(Debug)]
pub struct StoppedMutator<'a> {
    slot: &'static MutatorSlot<Identity>,
    thread: ThreadRef,
    of_the_stop: PhantomData<&'a ()>,
}

impl StoppedMutator<'_> {
    /// Its thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Its place in the world: small, distinct among the mutators of a moment, used again later.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had this place, this one included.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }
}
