//! Handshakes as users have them: an operation for one mutator, and who waits for it.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::error::HandshakeError;
use crate::for_each::Processor;
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::options::HandshakeOptions;
use crate::pace::Clock;
use crate::protocol::{Answer as Answered, Ask, MutatorSlot, MutatorState};
use crate::straggler::{Straggler, StragglerCause};
use crate::system::{self, Identity};
use crate::world::{Shared, World};

impl Mutator {
    /// Runs `operation` once for the mutator `target`, and returns its result. No other mutator is asked for
    /// anything.
    ///
    /// - A mutator that runs does so on its own thread, at its poll or where it enters or leaves a safe region.
    /// - For one in a safe region this thread does, and the mutator does not leave the region meanwhile. With
    ///   [`HandshakeOptions::self_only`] it waits until the mutator does.
    /// - This thread does what others ask of it while it waits, so mutators may ask each other. A mutator may ask
    ///   itself.
    /// - No two operations run for a mutator at the same time, nor one beside a for-each's closure.
    ///   Those of a mutator run in the order in which they were asked for, but that one that others may run can
    ///   overtake one that the mutator alone may.
    ///
    /// No operation runs while the world is stopped, so a slow one delays stops. One that waits for its own mutator
    /// to do something waits forever.
    ///
    /// # Blocking
    ///
    /// Waits until `target` has polled, entered or left a safe region, or is in one. The timeout bounds that. It does
    /// not bound an operation that has begun, since it borrows from the caller, nor stops by other threads.
    ///
    /// # Errors
    ///
    /// The operation has not run, and will not: [`HandshakeError::InCallback`] inside an operation or a for-each's
    /// closure, [`HandshakeError::HoldsFreeze`] if the thread holds `threadreg::freeze_creation`'s guard,
    /// [`HandshakeError::HoldsStop`] if it has the world stopped, [`HandshakeError::Gone`] if the mutator is
    /// detached, or detaches first, [`HandshakeError::TimedOut`] if the timeout is over,
    /// [`HandshakeError::HoldsMutators`] if the thread holds the mutator's task and no nudge can reach it.
    ///
    /// # Panics
    ///
    /// If the operation does, with its payload.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{HandshakeOptions, World};
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// let target = mutator.id();
    /// let name = mutator.handshake(target, HandshakeOptions::new(), |p| p.thread().name())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # References
    ///
    /// HotSpot `Handshake::execute` (`handshake.cpp`), JEP 312
    pub fn handshake<R: Send>(
        &mut self,
        target: MutatorId,
        options: HandshakeOptions,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        Requester::running(self)?.one(target, options, operation)
    }
}

impl World {
    /// Runs `operation` once for the mutator `target`, as [`Mutator::handshake`] does, from a thread that is not a
    /// mutator of this world, or is in a safe region.
    ///
    /// For a mutator in a safe region it takes the turn to stop the world while the operation runs.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::handshake`]; and while another thread has the world stopped, which the timeout bounds.
    ///
    /// # Errors
    ///
    /// As [`Mutator::handshake`]. [`HandshakeError::OwnMutatorRuns`] if the thread is a running mutator of this
    /// world; [`HandshakeError::OwnRegion`] if it asks its own mutator for what that alone may run.
    ///
    /// # Panics
    ///
    /// If the operation does, with its payload.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{HandshakeOptions, World};
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// let world = World::new();
    /// let (send, receive) = std::sync::mpsc::channel();
    /// thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         let mut mutator = world.attach().unwrap();
    ///         send.send(mutator.id()).unwrap();
    ///         // Blocked, and served all the same.
    ///         mutator.blocking(|| thread::sleep(Duration::from_millis(10)));
    ///     });
    ///     let target = receive.recv().unwrap();
    ///     match world.handshake(target, HandshakeOptions::new(), |p| p.is_current()) {
    ///         Ok(on_its_thread) => println!("served; on its own thread: {on_its_thread}"),
    ///         Err(error) => println!("{error}"),
    ///     }
    /// });
    /// ```
    pub fn handshake<R: Send>(
        &self,
        target: MutatorId,
        options: HandshakeOptions,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        Requester::outside(self)?.one(target, options, operation)
    }
}

/// A thread that may ask and wait.
struct Requester<'a> {
    shared: &'a Shared,
    /// Its slot, if it is a mutator that runs.
    own: Option<&'static MutatorSlot<Identity>>,
    tid: i32,
}

impl<'a> Requester<'a> {
    fn running(mutator: &'a Mutator) -> Result<Self, HandshakeError> {
        let tid = mutator.tid();
        Self { shared: &mutator.shared, own: Some(mutator.slot), tid }.may_ask()
    }

    fn outside(world: &'a World) -> Result<Self, HandshakeError> {
        let tid = system::tid();
        let this = Self { shared: &world.shared, own: None, tid }.may_ask()?;
        let runs = |slot: &MutatorSlot<Identity>| slot.state() != MutatorState::Safe;
        if system::own_slot(&this.shared.protocol).is_some_and(runs) {
            return Err(HandshakeError::OwnMutatorRuns { tid });
        }
        Ok(this)
    }

    fn may_ask(self) -> Result<Self, HandshakeError> {
        let tid = self.tid;
        if system::in_closure() {
            Err(HandshakeError::InCallback)
        } else if self.shared.protocol.stop_turn.is_held_by(tid) {
            Err(HandshakeError::HoldsStop { tid })
        } else if threadreg::holds_freeze() {
            // A thread that waits for the guard to make a thread may be a mutator, and would not answer.
            Err(HandshakeError::HoldsFreeze { tid })
        } else {
            Ok(self)
        }
    }

    fn one<R: Send>(
        self,
        target: MutatorId,
        options: HandshakeOptions,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        let Some(slot) = self.shared.protocol.slot(target.0.index) else {
            return Err(HandshakeError::Gone { id: target });
        };
        let (operation, outcome) = (Mutex::new(Some(operation)), Outcome::new());
        let work = || {
            let operation = take(&operation).expect("an operation runs once");
            outcome.of(|| operation(&Processor::new(slot)), slot);
        };
        let ask = Ask { slot, generation: target.0.generation, work: Box::new(work) };
        let answers = self.ask(vec![ask], options)?;
        match answers.into_iter().next() {
            Some(Answered::Done) => Ok(outcome.get()),
            _ => Err(HandshakeError::Gone { id: target }),
        }
    }

    /// Asks, and waits. After `Ok` no answer is late.
    fn ask(
        &self,
        asks: Vec<Ask<'_, Identity>>,
        options: HandshakeOptions,
    ) -> Result<Vec<Answered<Option<Straggler>>>, HandshakeError> {
        let Self { shared, own, tid } = *self;
        let HandshakeOptions { timeout, nudge_after, self_only } = options;
        let is_own = |ask: &Ask<'_, Identity>| {
            ask.slot.status.identity.tid.load(core::sync::atomic::Ordering::Relaxed) == tid
        };
        if self_only && own.is_none() && asks.iter().any(is_own) {
            return Err(HandshakeError::OwnRegion { tid });
        }
        let mut clock = Clock::start(&shared.protocol, tid, timeout, nudge_after);
        let mut answers = shared.protocol.handshake(own, tid, self_only, asks, &mut clock);
        let mut stragglers = Vec::new();
        for answer in &mut answers {
            if let Answered::Late(seen) = answer
                && let Some(mut straggler) = seen.take()
            {
                // Others may not run it there, and what the thread does is not to blame.
                if self_only && straggler.state == MutatorState::Safe {
                    straggler.cause = StragglerCause::InSafeRegion;
                }
                stragglers.push(straggler);
            }
        }
        if stragglers.is_empty() {
            return Ok(answers);
        }
        let answered = answers.iter().filter(|answer| matches!(answer, Answered::Done)).count();
        Err(if clock.is_own_fault() {
            HandshakeError::HoldsMutators { answered, stragglers }
        } else {
            HandshakeError::TimedOut { answered, stragglers }
        })
    }
}

/// What an operation returned, or panicked with, on whichever thread.
struct Outcome<R>(Mutex<Option<Result<R, Box<dyn Any + Send>>>>);

impl<R> Outcome<R> {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Does not unwind: the thread is not the one that asked.
    fn of(&self, operation: impl FnOnce() -> R, slot: &MutatorSlot<Identity>) {
        let _inside = system::Visit::new(slot);
        let outcome = panic::catch_unwind(AssertUnwindSafe(operation));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// When the operation has run.
    fn get(self) -> R {
        match take(&self.0).expect("the operation has run") {
            Ok(result) => result,
            Err(payload) => panic::resume_unwind(payload),
        }
    }
}

fn take<T>(cell: &Mutex<Option<T>>) -> Option<T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner).take()
}
