//! A stop that succeeded: what it took, who is stopped by it, and the handle by which any thread has it.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use sigctx::{fork, sys};
use threadreg::{Name, ThreadRef};

use crate::id::MutatorId;
use crate::metrics::{Pause, Place};
use crate::options::Reason;
use crate::pace::Clock;
use crate::protocol::{Counted, MutatorSlot, Protocol, SlotUse};
use crate::roots::{Parked, RootsError};
use crate::system::Identity;
use crate::tape::{Event, StopEvent};
use crate::trace::Trace;
use crate::world::Shared;

/// A stop that succeeded, whoever has it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) number: u32,
    /// What the world was stopped for: the pause counts for that.
    pub(crate) asked_for: Reason,
    pub(crate) place: Place,
    /// What it is stopped for now, and where that is counted.
    pub(crate) reason: Reason,
    pub(crate) serves: Place,
    pub(crate) stats: StopStats,
    pub(crate) last: Option<SlotUse>,
    pub(crate) requested: Instant,
    /// When all mutators had stopped.
    pub(crate) since: Instant,
    pub(crate) trace: Trace,
}

impl Held {
    pub(crate) fn last_to_stop(&self, shared: &Shared) -> Option<LastToStop> {
        let last = self.last?;
        let slot = shared.protocol.slot(last.index)?;
        // Read before the look at the generation: the slot may be another thread's by now.
        let target = slot.status.identity.target()?;
        (slot.current_use() == last)
            .then_some(LastToStop { thread: target.thread, name: target.name })
    }

    /// From here on the stop is for `reason`; what it was for is done.
    pub(crate) fn continue_as(&mut self, shared: &Shared, reason: Reason) {
        shared.recorder.serve(self.serves);
        let place = shared.recorder.place(reason);
        shared.recorder.nested(place);
        (self.reason, self.serves) = (reason, place);
    }

    /// Lets the world run. By the thread that has the turn, or the handle that stands for it.
    pub(crate) fn end(&self, shared: &Shared) {
        let resumed = Instant::now();
        // Before mutators run: one that has seen its stop end finds the count. What ends by a panic may not be done.
        if !thread::panicking() {
            shared.recorder.serve(self.serves);
        }
        shared.stops.count();
        shared.protocol.system.current.over();
        shared.protocol.resume();
        let StopStats { queued, time_to_stop, mutators, .. } = self.stats;
        let pause = Pause {
            number: self.number,
            reason: self.asked_for,
            requested: self.requested,
            queued,
            time_to_stop,
            stopped: resumed - self.since,
            resume: resumed.elapsed(),
            mutators,
        };
        shared.recorder.record(self.place, pause);
        let Protocol { stop_turn, system, .. } = &shared.protocol;
        system.tape.note(|| {
            let Self { asked_for: reason, requested, last, .. } = *self;
            let (started, stopped) = (requested + queued, Some(self.since));
            let ended = resumed;
            Event::Stop(StopEvent { reason, requested, started, stopped, ended, mutators, last })
        });
        if shared.stops.has_joiners() {
            stop_turn.release_to_all(system);
        } else {
            stop_turn.release(system);
        }
        self.trace.stop_is_over(&pause);
    }
}

/// The slots of the stopped world's mutators. Those that attach, and those that detach, are no part of it, so that all
/// looks in a stop find the same.
pub(crate) fn stopped_slots(
    shared: &Shared,
) -> impl Iterator<Item = &'static MutatorSlot<Identity>> {
    shared.protocol.live().filter(|slot| slot.status.identity.is_attached())
}

/// The mutators of the stopped world but `own`.
pub(crate) fn stopped_mutators<'s>(
    shared: &'s Shared,
    own: Option<&'static MutatorSlot<Identity>>,
) -> impl Iterator<Item = StoppedMutator<'s>> {
    stopped_slots(shared)
        .filter(move |slot| own.is_none_or(|own| !ptr::eq(own, *slot)))
        .filter_map(StoppedMutator::of)
}

/// A stopped world, until it is dropped, on whichever thread. From [`Stopped::hand_over`](crate::Stopped::hand_over).
///
/// No thread in particular has the stop: one that has the handle and wants to stop the world again, or to attach to
/// it, waits for itself until its timeout. In the child of a fork the world runs, and the handle is of no use there.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`StopHandle::mutators`],
/// [`StopHandle::last_to_stop`] and [`StopHandle::resume`] (AS-Unsafe lock). The same holds for dropping it.
#[must_use = "the world is resumed when this is dropped"]
pub struct StopHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) held: Held,
    /// The process that stopped the world. The child of a fork has put its own copy in order.
    pub(crate) process: u32,
}

impl fmt::Debug for StopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopHandle").field("held", &self.held).finish_non_exhaustive()
    }
}

impl StopHandle {
    pub(crate) fn new(shared: Arc<Shared>, held: Held) -> Self {
        Self { shared, held, process: fork::process() }
    }

    /// Of the world that is stopped; none in the child of a fork.
    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.is_stopped().then_some(&self.shared)
    }

    /// What the stop took.
    #[must_use]
    pub fn stats(&self) -> &StopStats {
        &self.held.stats
    }

    /// As [`Stopped::last_to_stop`](crate::Stopped::last_to_stop).
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    #[must_use]
    pub fn last_to_stop(&self) -> Option<LastToStop> {
        self.held.last_to_stop(&self.shared)
    }

    /// As [`Stopped::number`](crate::Stopped::number).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.held.number
    }

    /// What the stop is for.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.held.reason
    }

    /// How long the world has been stopped.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.held.since.elapsed()
    }

    /// The stopped mutators, with the one that stopped them and handed this over.
    ///
    /// They stay the same in the stop, as [`Stopped::mutators`](crate::Stopped::mutators) says. In the child of a fork
    /// there are none.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    pub fn mutators(&self) -> impl Iterator<Item = StoppedMutator<'_>> {
        let is_stopped = self.is_stopped();
        stopped_mutators(&self.shared, None).filter(move |_| is_stopped)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.process == fork::process()
    }

    /// Lets the world run, as dropping this does.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    ///
    /// # Blocking
    ///
    /// Does not wait for the mutators to run.
    pub fn resume(self) {
        drop(self);
    }
}

impl Drop for StopHandle {
    fn drop(&mut self) {
        if self.is_stopped() {
            self.held.end(&self.shared);
        }
    }
}

/// The mutator that stopped last.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LastToStop {
    /// Its thread.
    pub thread: ThreadRef,
    /// The thread's name at that time.
    pub name: Name,
}

/// What a stop took: its time and its mutators.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopStats {
    /// How long the request waited for its turn, and gave way to mutators that stops before it had passed over.
    pub queued: Duration,
    /// From then until all had stopped.
    pub time_to_stop: Duration,
    /// How many mutators were stopped. The one that stopped them is not counted. One that was about to attach, or to
    /// detach, is, and is none of the [stopped mutators](crate::Stopped::mutators).
    pub mutators: usize,
    /// How many of them were running when they were asked.
    pub running: usize,
}

impl StopStats {
    pub(crate) fn new(counted: Counted, clock: &Clock<'_>, stopped: Instant) -> Self {
        let (mutators, running) = (counted.mutators as usize, counted.running as usize);
        let (queued, time_to_stop) =
            (clock.started() - clock.requested(), stopped - clock.started());
        Self { queued, time_to_stop, mutators, running }
    }
}

/// A mutator in a stopped world.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
pub struct StoppedMutator<'a> {
    slot: &'static MutatorSlot<Identity>,
    thread: ThreadRef,
    of_the_stop: PhantomData<&'a ()>,
}

impl StoppedMutator<'_> {
    /// `None` if no thread has the slot. The caller keeps the world stopped for as long as the result lives.
    pub(crate) fn of(slot: &'static MutatorSlot<Identity>) -> Option<Self> {
        let thread = slot.status.identity.thread()?;
        Some(Self { slot, thread, of_the_stop: PhantomData })
    }

    pub(crate) fn slot(&self) -> &'static MutatorSlot<Identity> {
        self.slot
    }

    /// Its thread.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Which mutator this is.
    #[must_use]
    pub fn id(&self) -> MutatorId {
        MutatorId(self.slot.current_use())
    }

    /// What [`Mutator::set_data`](crate::Mutator::set_data) has set. Null before: for a thread that was
    /// stopped straight after it had attached. In the stop it changes for a mutator that is dropped in its safe region,
    /// alone, and is null then: what it pointed to has to be there until the stop is over.
    #[must_use]
    pub fn data(&self) -> *mut () {
        self.slot.status.identity.data()
    }

    /// Its place in the world: a small number, distinct among the mutators of a moment, and used again later.
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had this place, this one included.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }

    /// Whether the calling thread is its thread: see [`Stopped::run_on_all`](crate::Stopped::run_on_all).
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.slot.status.identity.tid.load(Ordering::Relaxed) == sys::gettid()
    }

    /// Where it stands, and where its roots are: for conservative scanners.
    ///
    /// # Errors
    ///
    /// [`RootsError::NotAsked`] in a world that was not made with
    /// [`WorldOptions::roots`](crate::WorldOptions::roots). [`RootsError::OffStack`] if the mutator is on another
    /// stack than the one that is known.
    pub fn parked(&self) -> Result<Parked<'_>, RootsError> {
        // SAFETY: it does not go on before the stop is over.
        unsafe { Parked::of_another(self.slot) }
    }
}
