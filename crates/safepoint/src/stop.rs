//! Stop-the-world as users have it: the requests for it, and the stopped world.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::time::Duration;
use std::sync::Arc;

use crate::asking::{Asking, Patience};
use crate::error::StopError;
use crate::handle::{Held, LastToStop, StopHandle, StopStats, StoppedMutator, stopped_mutators};
use crate::mutator::Mutator;
use crate::options::{Reason, StopOptions};
use crate::pace::Clock;
use crate::protocol::{Counted, Limit, MutatorSlot, MutatorState, Protocol, Stance, TimedOut};
use crate::roots::{Place, Stand, stand_here};
use crate::straggler::Straggler;
use crate::system::{self, Identity, Linux};
use crate::trace::Trace;
use crate::world::{Shared, World};

impl Mutator {
    /// Stops every other mutator of the world, until the result is dropped.
    ///
    /// While the thread waits it is in a safe region: other threads may stop it first.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every other mutator has polled or entered a safe region.
    ///
    /// # Errors
    ///
    /// [`StopError::InCallback`] inside a for-each closure of another world.
    /// [`StopError::Nested`] if the thread has this world stopped already, by a [`Stopped`] that was leaked.
    /// [`StopError::HoldsFreeze`] if the thread holds `threadreg::freeze_creation`'s guard.
    /// [`StopError::HoldsMutators`] if it holds the task of a mutator that cannot be nudged. After an error
    /// the world runs, unless this or another thread has it stopped.
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
    #[doc(alias = "VM_Operation")]
    #[doc(alias = "safepoint operation")]
    pub fn stop_the_world(&mut self, reason: impl Into<Reason>) -> Result<Stopped<'_>, StopError> {
        self.stop_with(StopOptions::new(reason))
    }

    /// Stops the world as [`Mutator::stop_the_world`] does, with options.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::stop_the_world`]. The timeout bounds the waits for the turn and for the other mutators.
    /// It does not bound how long other threads have the world stopped or this thread's task suspended: the
    /// mutator can go on only when neither is so. [`World::stop_from_outside_with`] in a safe region returns
    /// when its timeout is over.
    ///
    /// # Errors
    ///
    /// As for [`Mutator::stop_the_world`]. Also [`StopError::Busy`] if the timeout is over before it is this
    /// thread's turn, and [`StopError::TimedOut`] if it is over before all mutators have stopped.
    pub fn stop_with(&mut self, options: StopOptions<'_>) -> Result<Stopped<'_>, StopError> {
        stand_here!(Some(self.slot), Stand::new(Place::Request));
        Request::of(self, options)?.stop_in_turn()
    }
}

impl World {
    /// Stops the world from a thread that is not one of its mutators, or is in a safe region.
    ///
    /// # Blocking
    ///
    /// Waits for its turn, and until every mutator has polled or entered a safe region.
    ///
    /// # Errors
    ///
    /// As for [`World::stop_from_outside_with`], but for the timeout.
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
    #[doc(alias = "VM_Operation")]
    pub fn stop_from_outside(&self, reason: impl Into<Reason>) -> Result<Stopped<'_>, StopError> {
        self.stop_from_outside_with(StopOptions::new(reason))
    }

    /// Stops the world as [`World::stop_from_outside`] does, with options.
    ///
    /// # Blocking
    ///
    /// As [`World::stop_from_outside`], for at most the timeout.
    ///
    /// # Errors
    ///
    /// [`StopError::Nested`] if the thread has the world stopped already. [`StopError::InCallback`] inside a
    /// for-each closure. [`StopError::HoldsFreeze`] if the thread holds `threadreg::freeze_creation`'s guard.
    /// [`StopError::OwnMutatorRuns`] if it is a running mutator of the world.
    /// [`StopError::HoldsMutators`] if it holds the task of a mutator that cannot be nudged.
    /// [`StopError::Busy`] and [`StopError::TimedOut`] if the timeout is over. After an error the world runs,
    /// unless this or another thread has it stopped.
    pub fn stop_from_outside_with(
        &self,
        options: StopOptions<'_>,
    ) -> Result<Stopped<'_>, StopError> {
        Request::from_outside(self, options)?.stop_in_turn()
    }
}

/// Proof that the world is stopped, until it is dropped.
///
/// No mutator runs user code, and none starts to. The proof cannot be sent to another thread.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`Stopped::mutators`], [`Stopped::last_to_stop`] and
/// [`Stopped::resume`] (AS-Unsafe lock). The same holds for dropping it.
#[must_use = "the world is resumed when this is dropped"]
pub struct Stopped<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) own: Option<&'static MutatorSlot<Identity>>,
    pub(crate) held: Held,
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopped").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Stopped<'_> {
    pub(crate) fn shared(&self) -> &Shared {
        self.shared
    }

    /// What the stop took.
    #[must_use]
    pub fn stats(&self) -> &StopStats {
        &self.held.stats
    }

    /// The mutator that acknowledged last. `None` if the stop had to wait for none: all had acknowledged, or
    /// were safe, when the last one had been asked. Also `None` if that mutator has detached since.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    #[must_use]
    pub fn last_to_stop(&self) -> Option<LastToStop> {
        self.held.last_to_stop(self.shared)
    }

    /// Which stop of the world it is, as [`World::current_stop`] tells it.
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

    /// The stopped mutators, without the one that stopped them.
    ///
    /// They stay the same for as long as the stop lasts, except that a mutator is gone that is dropped in its safe region,
    /// such as a [`SafeMutator`](crate::SafeMutator). A thread that attaches and waits for the end of the stop is none of
    /// them; [`World::mutators`] lists it.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    pub fn mutators(&self) -> impl Iterator<Item = StoppedMutator<'_>> {
        stopped_mutators(self.shared, self.own)
    }

    /// Hands the stop over: `to` gets it as a handle, which any thread may keep and end, such as a collector's.
    ///
    /// # Blocking
    ///
    /// If a mutator stopped the world: waits, safe, until the stop is over, after `to` has returned. It is one of
    /// the stopped mutators of the handle. A thread that is not a running mutator of the world returns at once.
    ///
    /// # Panics
    ///
    /// If `to` does. The world stays stopped for as long as the handle lives: this thread waits for that first.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, World};
    ///
    /// let mut mutator = World::new().attach()?;
    /// let (send, receive) = std::sync::mpsc::channel::<safepoint::StopHandle>();
    /// let collector = std::thread::spawn(move || {
    ///     let stopped = receive.recv().unwrap();
    ///     assert_eq!(stopped.mutators().count(), 1);
    ///     stopped.resume();
    /// });
    /// mutator.stop_the_world(Reason::GC)?.hand_over(|stopped| send.send(stopped).unwrap());
    /// collector.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hand_over(self, to: impl FnOnce(StopHandle)) {
        let mut this = ManuallyDrop::new(self);
        let trace = mem::take(&mut this.held.trace);
        let Self { shared, own, ref held, .. } = *this;
        let protocol = &shared.protocol;
        // While no other thread looks.
        stand_here!(own, Stand::new(Place::Request));
        // Also where `to` panics.
        let _waits = own.map(|own| Waits { shared, own });
        if let Some(own) = own {
            Protocol::<Linux>::stop_too(own);
        }
        protocol.stop_turn.hand_over();
        to(StopHandle::new(shared.clone(), Held { trace, ..*held }));
    }

    /// Lets the world run, as dropping this does.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock).
    ///
    /// # Blocking
    ///
    /// Does not wait for the mutators to run. But if a mutator stopped the world and another thread stops it
    /// next, the mutator waits for the end of that stop.
    #[doc(alias = "startTheWorld")]
    pub fn resume(self) {
        drop(self);
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // While no other thread looks: the next stop may find this one before it has left its region.
        stand_here!(self.own, Stand::new(Place::Request));
        self.held.end(self.shared);
        if let Some(own) = self.own {
            self.shared.protocol.leave(own);
        }
    }
}

/// A mutator that handed over the stop in which it is. It leaves its safe region when that is over.
struct Waits<'a> {
    shared: &'a Shared,
    own: &'static MutatorSlot<Identity>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.shared.protocol.leave(self.own);
    }
}

/// A stop that is asked for. The thread is in a safe region, which dropping this leaves. What the options borrow, `'o`,
/// the stop does not.
pub(crate) struct Request<'a, 'o> {
    pub(crate) shared: &'a Arc<Shared>,
    tid: i32,
    options: StopOptions<'o>,
    clock: Clock<'o>,
    /// The turn was free: the clock need not be looked at again.
    at_once: bool,
    safe: Requester<'a>,
    trace: Trace,
}

impl<'a: 'o, 'o> Request<'a, 'o> {
    pub(crate) fn of(
        mutator: &'a mut Mutator,
        options: StopOptions<'o>,
    ) -> Result<Self, StopError> {
        let tid = mutator.tid();
        refusal(&mutator.shared.protocol, tid)?;
        Ok(Self::new(&mutator.shared, Some(mutator.slot), tid, options))
    }

    pub(crate) fn from_outside(
        world: &'a World,
        options: StopOptions<'o>,
    ) -> Result<Self, StopError> {
        let (protocol, tid) = (&world.shared.protocol, system::tid());
        refusal(protocol, tid)?;
        if system::own_slot(protocol).is_some_and(|slot| slot.state() != MutatorState::Safe) {
            return Err(StopError::OwnMutatorRuns { tid });
        }
        Ok(Self::new(&world.shared, None, tid, options))
    }

    /// For the thread `tid`. `own` is its slot if it is a mutator that runs.
    fn new(
        shared: &'a Arc<Shared>,
        own: Option<&'static MutatorSlot<Identity>>,
        tid: i32,
        options: StopOptions<'o>,
    ) -> Self {
        let protocol = &shared.protocol;
        let clock = Clock::start(protocol, tid, options.timeout, options.nudge_after);
        let clock = clock.warning(options.on_late);
        // Safe from here on: the holder of the turn may stop this thread, which waits for it.
        let safe = Requester::enter(protocol, own);
        let trace = Trace::stop(options.reason);
        Self { shared, tid, options, clock, at_once: true, safe, trace }
    }

    /// Waits for the turn, and stops the world.
    fn stop_in_turn(mut self) -> Result<Stopped<'a>, StopError> {
        if self.acquire(|| false) { self.stop() } else { Err(self.busy()) }
    }

    /// Stops the world if the turn is free.
    pub(crate) fn stop_at_once(mut self) -> Result<Stopped<'a>, StopError> {
        if self.acquire(|| true) { self.stop() } else { Err(self.busy()) }
    }

    /// Acquires the turn. False if others have it at the deadline, or when `gives_up` holds before a wait.
    pub(crate) fn acquire(&mut self, gives_up: impl Fn() -> bool) -> bool {
        let (protocol, own) = (&self.shared.protocol, self.safe.own);
        let turn = &protocol.stop_turn;
        loop {
            if !turn.try_acquire(self.tid) {
                self.at_once = false;
                let limit = Queue { clock: &self.clock, gives_up: &gives_up };
                if !turn.acquire(&protocol.system, own, self.tid, &limit) {
                    return false;
                }
            }
            if protocol.give_way(own, || Patience::of(&self.clock)) {
                self.at_once = false;
            }
            let Some(own) = own.filter(|own| !protocol.begin_work(own)) else { return true };
            // The thread's task is held. The thread that holds it may be a mutator that has to stop.
            turn.release(&protocol.system);
            protocol.stay_while_held(own);
            self.at_once = false;
        }
    }

    /// Gives the turn up, with no stop made.
    pub(crate) fn release(&self) {
        let protocol = &self.shared.protocol;
        protocol.stop_turn.release(&protocol.system);
    }

    /// Leaves the safe region, with no stop made and without the turn: waits while another thread has the world
    /// stopped. Returns how long all has taken.
    pub(crate) fn leave(self) -> Duration {
        drop(self.safe);
        self.clock.elapsed()
    }

    /// Others have the turn.
    pub(crate) fn busy(mut self) -> StopError {
        let (reason, trace) = (self.options.reason, mem::take(&mut self.trace));
        let holder = self.shared.protocol.stop_turn.holder();
        let waited = self.leave();
        trace.given_up(&[]);
        StopError::Busy { reason, holder, waited }
    }

    /// Stops the world, for the thread that has the turn.
    pub(crate) fn stop(self) -> Result<Stopped<'a>, StopError> {
        self.stop_by(Protocol::stop)
    }

    /// As [`Request::stop`]: `stop` has the protocol do it.
    pub(crate) fn stop_by(
        mut self,
        stop: impl FnOnce(
            &Protocol<Linux>,
            Option<&'static MutatorSlot<Identity>>,
            &mut Clock<'o>,
        ) -> Result<Counted, TimedOut<Option<Straggler>>>,
    ) -> Result<Stopped<'a>, StopError> {
        let (shared, own, reason) = (self.shared, self.safe.own, self.options.reason);
        let (protocol, clock) = (&shared.protocol, &mut self.clock);
        if !self.at_once {
            clock.restart();
        }
        let asking = Asking::begin(shared, reason);
        match stop(protocol, own, clock) {
            Ok(counted) => {
                let mut held = asking.stopped(counted, clock);
                self.safe.stay();
                held.trace = self.trace;
                held.trace.keep(|| clock.take_lates());
                Ok(Stopped { shared, own, held, not_send: PhantomData })
            }
            Err(TimedOut(seen)) => {
                let stragglers: Vec<Straggler> = seen.into_iter().flatten().collect();
                asking.given_up(clock);
                self.trace.given_up(&stragglers);
                Err(if clock.is_own_fault() {
                    StopError::HoldsMutators { reason, stragglers }
                } else {
                    let culprit = Straggler::culprit(&stragglers);
                    let error = StopError::TimedOut { reason, stragglers };
                    self.options.at_deadline.or_abort(culprit, error)
                })
            }
        }
    }
}

/// What could never end, or would hold up others that could.
pub(crate) fn refusal(protocol: &Protocol<Linux>, tid: i32) -> Result<(), StopError> {
    if system::in_closure() {
        return Err(StopError::InCallback);
    }
    if protocol.stop_turn.is_held_by(tid) {
        return Err(StopError::Nested { tid });
    }
    // A thread that waits for the guard to make a thread may be a mutator, and would not stop.
    if threadreg::holds_freeze() {
        return Err(StopError::HoldsFreeze { tid });
    }
    Ok(())
}

/// The wait for the turn.
struct Queue<'a, F> {
    clock: &'a Clock<'a>,
    gives_up: &'a F,
}

impl<F: Fn() -> bool> Limit for Queue<'_, F> {
    fn left(&self) -> Option<Duration> {
        if (self.gives_up)() { Some(Duration::ZERO) } else { self.clock.left() }
    }
}

/// A mutator that requests a stop, in its safe region. Dropping it, when the stop fails, leaves the region.
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

    /// Stays in the safe region: dropping [`Stopped`] leaves it.
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
