//! A stopped world.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::time::Duration;

use threadreg::{Name, ThreadRef};

use crate::edge::Identity;
use crate::error::StopError;
use crate::options::{Reason, StopOptions};
use crate::pace::Clock;
use crate::protocol::{Counted, Slot, Stance, TooLate};
use crate::world::Shared;

/// Proof that the world is stopped, until it is dropped.
///
/// No mutator runs user code, and none starts to. It cannot be sent to another thread.
#[must_use = "the world is resumed when this is dropped"]
pub struct Stopped<'a> {
    shared: &'a Shared,
    own: Option<&'static Slot<Identity>>,
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
pub struct Last {
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
    pub last: Option<Last>,
}

impl<'a> Stopped<'a> {
    /// The caller is `tid`; `own` is its slot if it is to be stopped too, and running then.
    pub(crate) fn stop(
        shared: &'a Shared,
        own: Option<&'static Slot<Identity>>,
        tid: i32,
        options: StopOptions,
    ) -> Result<Self, StopError> {
        if shared.is_held_by(tid) {
            return Err(StopError::Nested { tid });
        }
        // A creator that waits for the guard may be a mutator, and would not come.
        if threadreg::holds_freeze() {
            return Err(StopError::HoldsFreeze { tid });
        }
        let reason = options.reason;
        let mut clock = Clock::start(shared, tid, options.timeout, options.nudge_after);
        let protocol = &shared.protocol;
        // Safe from here on: whoever has the turn may stop this thread, which waits for it.
        let safe = Requester::enter(shared, own);
        loop {
            if !protocol.stop_turn.take(&protocol.edge, own, tid, &mut clock) {
                let holder = protocol.stop_turn.holder();
                // Waits while others have the world stopped.
                drop(safe);
                return Err(StopError::Busy { reason, holder, waited: clock.elapsed() });
            }
            let Some(own) = own.filter(|own| !protocol.go_to_work(own)) else { break };
            // The thread's task is held: its holder may be a mutator that is to be stopped.
            protocol.stop_turn.pass(&protocol.edge);
            protocol.stay_while_held(own);
        }
        clock.restart();
        match protocol.stop(own, &mut clock) {
            Ok(counted) => {
                let stats = StopStats::new(shared, counted, clock.elapsed());
                safe.stay();
                Ok(Self { shared, own, reason, stats, not_send: PhantomData })
            }
            Err(TooLate(stragglers)) => {
                protocol.stop_turn.pass(&protocol.edge);
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
        self.shared
            .protocol
            .live()
            .filter(move |slot| own.is_none_or(|own| !ptr::eq(own, *slot)))
            .filter_map(|slot| {
                let thread = slot.told.identity.thread()?;
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
        let protocol = &self.shared.protocol;
        protocol.resume();
        protocol.stop_turn.pass(&protocol.edge);
        if let Some(own) = self.own {
            protocol.leave(own);
        }
    }
}

impl StopStats {
    fn new(shared: &Shared, counted: Counted, time_to_stop: Duration) -> Self {
        let last = counted.last.and_then(|by| {
            let slot = shared.protocol.slot(by.index)?;
            // Between two looks at the owner's number: the slot may have changed hands since.
            let owner = slot.told.identity.owner()?;
            (slot.by() == by).then_some(Last { thread: owner.thread, name: owner.name })
        });
        let (mutators, running) = (counted.mutators as usize, counted.running as usize);
        Self { time_to_stop, mutators, running, last }
    }
}

/// A mutator that wants to stop the world, in its safe region; leaves it when the stop fails.
struct Requester<'a> {
    shared: &'a Shared,
    own: Option<&'static Slot<Identity>>,
}

impl<'a> Requester<'a> {
    fn enter(shared: &'a Shared, own: Option<&'static Slot<Identity>>) -> Self {
        if let Some(own) = own {
            shared.protocol.enter(own, Stance::Waits);
        }
        Self { shared, own }
    }

    /// Stays in the safe region: the stop's guard leaves it.
    fn stay(mut self) {
        self.own = None;
    }
}

impl Drop for Requester<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.own {
            self.shared.protocol.leave(own);
        }
    }
}

/// A mutator in a stopped world.
#[derive(Debug)]
pub struct StoppedMutator<'a> {
    slot: &'static Slot<Identity>,
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
