//! A world: the mutators that are stopped together. Its requests are in `stop` and `mutator`.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use threadreg::Nudge;

use crate::chaos::{Chaos, Disturbance};
use crate::current::Found;
use crate::forks;
use crate::id::MutatorId;
use crate::metrics::{Metrics, Pause, Recorder};
use crate::options::Reason;
use crate::protocol::Protocol;
use crate::roots::{Hooks, Parked};
use crate::stops::{CurrentStop, StopEpoch, Stops};
use crate::system::{Fences, Linux, Moment, Tell};

/// What the handles of a world share.
pub(crate) struct Shared {
    pub(crate) protocol: Protocol<Linux>,
    pub(crate) recorder: Recorder,
    pub(crate) stops: Stops,
    /// Where a child of a fork finds the world.
    node: Option<&'static forks::Node>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Before any field is dropped.
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

/// What a world is to be like. The default is [`World::new`]'s.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
///
/// # Examples
///
/// ```
/// use safepoint::{World, WorldOptions};
///
/// let world = World::with_options(WorldOptions::new().roots());
/// let mutator = world.attach()?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let mut other = world.attach().unwrap();
///         other.blocking(|| {
///             let stopped = world.stop_from_outside("collection").unwrap();
///             for mutator in stopped.mutators() {
///                 let parked = mutator.parked().unwrap();
///                 for range in parked.roots() {
///                     println!("{:?} {:x?}", range.kind(), range.addresses());
///                 }
///             }
///         });
///     });
///     let mut mutator = mutator;
///     mutator.poll();
/// # drop(mutator);
/// });
/// # Ok::<(), safepoint::AttachError>(())
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct WorldOptions {
    fully_fenced: bool,
    roots: bool,
    hooks: Option<Arc<dyn Hooks>>,
    chaos: Option<Chaos>,
}

impl fmt::Debug for WorldOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorldOptions")
            .field("fully_fenced", &self.fully_fenced)
            .field("roots", &self.roots)
            .field("hooks", &self.hooks.is_some())
            .field("chaos", &self.chaos)
            .finish()
    }
}

impl WorldOptions {
    /// The best fences that the system has, and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`World::fully_fenced`].
    pub fn fully_fenced(self) -> Self {
        Self { fully_fenced: true, ..self }
    }

    /// Mutators say where their roots are before they count as safe, so that a conservative scanner finds all of
    /// them: [`StoppedMutator::parked`](crate::StoppedMutator::parked),
    /// [`Processor::parked`](crate::Processor::parked).
    ///
    /// A poll costs the same. Each safe region is entered and left by the slow path, which costs some twenty
    /// nanoseconds. [`RawMutator::enter`](crate::RawMutator::enter), which returns before the region ends, cannot
    /// say that in such a world, and aborts: use [`RawMutator::blocking`](crate::RawMutator::blocking).
    pub fn roots(self) -> Self {
        Self { roots: true, ..self }
    }

    /// Has mutators call the hooks when they are about to stand still and when they go on, with what
    /// [`WorldOptions::roots`] does, which this includes.
    pub fn hooks(self, hooks: Arc<dyn Hooks>) -> Self {
        Self { roots: true, hooks: Some(hooks), ..self }
    }

    /// For tests: what is rare is common.
    pub fn chaos(self, chaos: Chaos) -> Self {
        Self { chaos: Some(chaos), ..self }
    }
}

/// A set of threads that are stopped together.
///
/// Clones are handles of the same world. Worlds know nothing of each other.
///
/// # Signal safety
///
/// No method is async-signal-safe except [`World::fences`]: they allocate, or wait (AS-Unsafe lock heap).
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
    #[must_use]
    pub fn new() -> Self {
        Self::with_options(WorldOptions::new())
    }

    /// An empty, running world as the options want it.
    #[must_use]
    pub fn with_options(options: WorldOptions) -> Self {
        let WorldOptions { fully_fenced, roots, hooks, chaos } = options;
        let fences = if fully_fenced { Fences::Full } else { Fences::probe() };
        let mut system = Linux::new(fences);
        system.stands = roots;
        system.chaos = chaos.map(|modes| Arc::new(Disturbance::new(modes)));
        system.tells = hooks.map(|hooks| -> Box<Tell> {
            Box::new(move |slot, moment| {
                // SAFETY: called on the mutator's own thread.
                let Ok(at) = (unsafe { Parked::of(slot) }) else { return };
                match moment {
                    Moment::Parking => hooks.parking(&at),
                    Moment::Running => hooks.running(&at),
                }
            })
        });
        Self::of(system)
    }

    fn of(system: Linux) -> Self {
        let protocol = Protocol::new(system);
        let recorder = Recorder::new();
        let mut shared = Arc::new(Shared { protocol, recorder, stops: Stops::new(), node: None });
        let node = forks::enlist(&raw const shared.protocol);
        Arc::get_mut(&mut shared).expect("no other handle yet").node = Some(node);
        Self { shared }
    }

    /// An empty, running world that does without `membarrier(2)`, for a program that is going to forbid itself
    /// that call. Leaving a safe region costs a fence and, in a world with a nudge, entering it another.
    #[must_use]
    pub fn fully_fenced() -> Self {
        Self::with_options(WorldOptions::new().fully_fenced())
    }

    /// The fences that the world uses.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn fences(&self) -> Fences {
        self.shared.protocol.system.fences
    }

    /// How many mutators the world has, those among them that wait for the end of a stop to attach. It may change before
    /// it is looked at.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn number_of_mutators(&self) -> usize {
        self.shared.protocol.live().count()
    }

    /// The mutators of this moment, those among them that wait for the end of a stop to attach, or are about to detach.
    /// Some may be gone, and others have come, before it is looked at. In a stop [`Stopped::mutators`](crate::Stopped::mutators)
    /// stay the same.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// let mutator = world.attach()?;
    /// assert_eq!(world.mutators(), [mutator.id()]);
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    #[must_use]
    pub fn mutators(&self) -> Vec<MutatorId> {
        self.shared.protocol.live().map(|slot| MutatorId(slot.current_use())).collect()
    }

    /// The stop that is asked for, or under way, if there is one: what a mutator looks at that finds itself asked to stop,
    /// or [hooks](crate::Hooks) when it parks. Before the result is looked at it may be over, and another one have begun,
    /// but not for a mutator that is stopped by it, nor for who has it.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, World};
    ///
    /// let world = World::new();
    /// assert!(world.current_stop().is_none());
    /// let stopped = world.stop_from_outside(Reason::GC)?;
    /// let current = world.current_stop().expect("it is stopped");
    /// assert_eq!((current.number, current.reason), (stopped.number(), Reason::GC));
    /// assert!(current.stopped);
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    pub fn current_stop(&self) -> Option<CurrentStop> {
        let Found { number, reason, stopped } = self.shared.protocol.system.current.find()?;
        Some(CurrentStop { number, reason: Reason::new(reason), stopped })
    }

    /// How many stops of the world are over, for [`World::wait_for_stop`].
    ///
    /// A mutator that runs is in no stop: one that ends after it has asked was begun, or waited for, after that.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn stops(&self) -> StopEpoch {
        StopEpoch { reason: None, over: self.shared.stops.over() }
    }

    /// How many stops for this reason are over, for [`World::wait_for_stop`]: stops for others do not end that wait.
    ///
    /// A stop that ends by a panic is not counted. Of a world that has stopped for more than 15 reasons those beyond are
    /// not told apart: all stops count for them.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, World};
    /// use std::time::Duration;
    ///
    /// let world = World::new();
    /// let before = world.stops_for(Reason::GC);
    /// world.stop_from_outside(Reason::DUMP)?.resume();
    /// assert!(!world.wait_for_stop(before, Some(Duration::ZERO)));
    /// world.stop_from_outside(Reason::GC)?.resume();
    /// assert!(world.wait_for_stop(before, Some(Duration::ZERO)));
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    pub fn stops_for(&self, reason: impl Into<Reason>) -> StopEpoch {
        let reason = reason.into();
        let Shared { recorder, stops, .. } = &*self.shared;
        let over = recorder.served_or(reason, || stops.over());
        StopEpoch { reason: Some(reason), over }
    }

    /// Waits until a stop is over that was not when [`World::stops`], or [`World::stops_for`], was `after`: what a
    /// thread does that wants a collection, and lets another stop the world for it. False if none is at the end of
    /// `timeout`; `None` is no limit.
    ///
    /// A mutator calls this in [`Mutator::blocking`](crate::Mutator::blocking): the stop has to come about.
    ///
    /// # Blocking
    ///
    /// Until the end of a stop, or for `timeout`. The world may still be stopped for a moment when this returns, and
    /// by the next stop: the end of the safe region waits for that.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::World;
    /// use std::thread;
    ///
    /// let world = World::new();
    /// thread::scope(|scope| {
    ///     let mut mutator = world.attach().unwrap();
    ///     let before = world.stops();
    ///     scope.spawn(|| world.stop_from_outside("collection").unwrap().resume());
    ///     assert!(mutator.blocking(|| world.wait_for_stop(before, None)));
    /// });
    /// ```
    #[doc(alias = "block_for_gc")]
    #[must_use]
    pub fn wait_for_stop(&self, after: StopEpoch, timeout: Option<Duration>) -> bool {
        let now = || after.reason.map_or_else(|| self.stops(), |reason| self.stops_for(reason));
        self.shared.stops.wait(timeout, || now() != after)
    }

    /// What the stops of the world have cost so far.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// world.stop_from_outside("dump")?.resume();
    /// let metrics = world.metrics();
    /// let dumps = &metrics.stops[0];
    /// assert_eq!((dumps.reason.as_str(), dumps.time_to_stop.count()), ("dump", 1));
    /// println!("p99 {:?}", dumps.time_to_stop.quantile(0.99));
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.shared.recorder.read(&self.shared.protocol.system.counters)
    }

    /// Each stop from here on, when it is over. At most `capacity` wait to be read; one that finds the channel full
    /// is dropped and counted, since no stop waits for a listener. Replaces the listener before. The child of a fork
    /// has none.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// let pauses = world.pauses(16);
    /// world.stop_from_outside("dump")?.resume();
    /// assert_eq!(pauses.try_recv().map(|pause| pause.reason.as_str()), Ok("dump"));
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    pub fn pauses(&self, capacity: usize) -> Receiver<Pause> {
        self.shared.recorder.subscribe(capacity)
    }

    /// Sets how late mutators are brought to a safe point. Replaces what was set before.
    ///
    /// A thread that enters a safe region at the moment of this call may be interrupted there. One that enters
    /// it later is not.
    ///
    /// # Safety
    ///
    /// With a nudge, a mutator's thread comes to a safe point also where it does not use its
    /// [`Mutator`](crate::Mutator). It is stopped, or runs for-each closures,
    ///
    /// - at each instruction that the nudge may interrupt: for `preempt::Nudger`, those of registered code;
    /// - in each call into the nudge's crate that polls or waits: for `preempt`, `poll`, the drop of
    ///   the last `Disabled`, the methods of `Task` and of `Suspended`.
    ///
    /// A borrow of the mutator does not prevent this. The caller promises that at none of these points code
    /// on a mutator's thread keeps a reference to what a stop, or a for-each closure, may move or change,
    /// whatever the reference borrows from.
    ///
    /// # Examples
    ///
    /// ```compile_fail,E0133
    /// # struct Idle;
    /// # impl threadreg::Nudge for Idle {
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
    /// world.set_nudge(std::sync::Arc::new(Idle));
    /// ```
    pub unsafe fn set_nudge(&self, nudge: Arc<dyn Nudge>) {
        self.shared.protocol.system.set_nudge(nudge);
    }
}
