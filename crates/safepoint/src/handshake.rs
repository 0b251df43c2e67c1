//! Handshakes as users have them: an operation for one mutator, and who waits for it.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use crate::error::HandshakeError;
use crate::for_each::Processor;
use crate::handed::Handed;
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::options::HandshakeOptions;
use crate::pace::Clock;
use crate::protocol::{Answer as Answered, Ask, MutatorSlot, MutatorState, SlotUse};
use crate::roots::{Place, Stand, stand_here};
use crate::straggler::{Straggler, StragglerCause};
use crate::system::{self, Identity};
use crate::tape::{Event, HandshakeEvent};
use crate::trace::Trace;
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
        options: HandshakeOptions<'_>,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        Requester::running(self)?.one(target, options, operation)
    }

    /// Runs `operation` once for every mutator of the world, this one included, each as [`Mutator::handshake`] does.
    /// Returns what became of each.
    ///
    /// Unlike [`Mutator::for_each_processor`] it waits for no turn, and has an answer from each. It costs an
    /// allocation and a lock for each mutator. One that attaches during the call is not asked.
    ///
    /// # Blocking
    ///
    /// # Errors
    ///
    /// # Panics
    ///
    /// As [`Mutator::handshake`]. After [`HandshakeError::TimedOut`] and [`HandshakeError::HoldsMutators`] some
    /// operations have run. A panic comes after all have run, and has precedence over an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Answer, HandshakeOptions, World};
    ///
    /// let mut mutator = World::new().attach()?;
    /// let answers = mutator.handshake_all(HandshakeOptions::new(), |p| p.index())?;
    /// assert_eq!(answers, [(mutator.id(), Answer::Done(0))]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handshake_all<R: Send>(
        &mut self,
        options: HandshakeOptions<'_>,
        operation: impl Fn(&Processor<'_>) -> R + Sync,
    ) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
        Requester::running(self)?.all(options, &operation)
    }
}

/// What a mutator answered to [`Mutator::handshake_all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<R> {
    /// The operation has run, with this result.
    Done(R),
    /// The mutator detached before it ran the operation.
    Gone,
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
        options: HandshakeOptions<'_>,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        Requester::outside(self)?.one(target, options, operation)
    }

    /// Runs `operation` once for every mutator of the world, as [`Mutator::handshake_all`] does, from a thread as in
    /// [`World::handshake`].
    ///
    /// # Blocking
    ///
    /// # Errors
    ///
    /// # Panics
    ///
    /// As [`Mutator::handshake_all`] and [`World::handshake`].
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{HandshakeOptions, World};
    ///
    /// let world = World::new();
    /// assert!(world.handshake_all(HandshakeOptions::new(), |p| p.index())?.is_empty());
    /// # Ok::<(), safepoint::HandshakeError>(())
    /// ```
    pub fn handshake_all<R: Send>(
        &self,
        options: HandshakeOptions<'_>,
        operation: impl Fn(&Processor<'_>) -> R + Sync,
    ) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
        Requester::outside(self)?.all(options, &operation)
    }

    /// Has the mutator `target` run `operation` once, and does not wait for that. May be called anywhere, also in an
    /// operation and in a stop.
    ///
    /// The mutator alone runs it: at its next poll, or where it next enters or leaves a safe region, but not in a
    /// stopped world. It is not nudged for that. Asked for in a stop, it runs before the mutator goes on with code of
    /// its own. Operations of this kind run in the order in which they were asked for. When the mutator detaches
    /// before, the operation is dropped on its thread, or on the one that drops a mutator that is no thread's. A panic in
    /// it, or in its drop, is caught when the panic hook has reported it.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Gone`] if the mutator is detached. The operation is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// let mut mutator = world.attach()?;
    /// let (send, receive) = std::sync::mpsc::channel();
    /// world.handshake_async(mutator.id(), move |p| send.send(p.index()).unwrap())?;
    /// assert!(receive.try_recv().is_err(), "not before it polls");
    /// mutator.poll();
    /// assert_eq!(receive.try_recv(), Ok(0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # References
    ///
    /// HotSpot `Handshake::enqueue` (`handshake.cpp`)
    pub fn handshake_async(
        &self,
        target: MutatorId,
        operation: impl FnOnce(&Processor<'_>) + Send + 'static,
    ) -> Result<(), HandshakeError> {
        let gone = || HandshakeError::Gone { id: target };
        let protocol = &self.shared.protocol;
        let slot = protocol.slot(target.0.index).ok_or_else(gone)?;
        let operation = Detached(Some(operation));
        let work = Box::new(move || {
            let _inside = system::Visit::new(slot);
            operation.run(|operation| operation(&Processor::new(slot)));
        });
        let asked = protocol.handshake_async(slot, target.0.generation, work);
        asked.then_some(()).ok_or_else(gone)
    }

    /// Calls `callback` once, when every mutator that runs now has polled, entered or left a safe region, or detached.
    /// Does not wait for that. What was made unreachable before is then in use by none of them: this is how to free
    /// what they read without a lock. May be called anywhere, also in an operation and in a stop.
    ///
    /// The thread that is last calls it: a mutator, at its poll or the edge of a region or as it detaches, or this
    /// thread, before this returns, if no mutator runs. Mutators are not nudged for it. It must not wait for a
    /// mutator. A panic in it is caught when the panic hook has reported it. It does not run in a stopped world, unless
    /// this is called in one, or a thread is last that gives up attaching, or that has the world stopped and drops a
    /// mutator. In the child of a fork it is not called, but where the parent called this.
    ///
    /// In a fully fenced world a mutator that enters a region at the moment of this call may count as having done so
    /// when it leaves the region.
    ///
    /// # Examples
    ///
    /// ```
    /// let world = safepoint::World::new();
    /// let mut mutator = world.attach()?;
    /// let (send, receive) = std::sync::mpsc::channel();
    /// let old_table = vec![1, 2, 3];
    /// // ... readers find the new table from here on ...
    /// world.when_all_have_polled(move || send.send(old_table.len()).unwrap());
    /// assert!(receive.try_recv().is_err(), "this mutator may still read the old one");
    /// mutator.poll();
    /// assert_eq!(receive.try_recv(), Ok(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "call_rcu")]
    #[doc(alias = "epoch")]
    pub fn when_all_have_polled(&self, callback: impl FnOnce() + Send + 'static) {
        // Dropped by each that has polled.
        let last = Arc::new(Last(Handed::new(Some(callback))));
        self.shared.protocol.when_all_have_polled(|slot| {
            let last = last.clone();
            Box::new(move || {
                let _inside = system::Visit::new(slot);
                drop(last);
            })
        });
    }
}

/// An operation that nobody waits for.
struct Detached<F>(Option<F>);

impl<F> Detached<F> {
    fn run(mut self, run: impl FnOnce(F)) {
        let operation = self.0.take().expect("it runs once");
        swallow(|| run(operation));
    }
}

impl<F> Drop for Detached<F> {
    fn drop(&mut self) {
        swallow(|| drop(self.0.take()));
    }
}

/// Calls what it has when it is dropped.
struct Last<F: FnOnce()>(Handed<F>);

impl<F: FnOnce()> Drop for Last<F> {
    fn drop(&mut self) {
        let _inside = system::Visit::of_others();
        if let Some(callback) = self.0.take() {
            swallow(callback);
        }
    }
}

/// Code of others, on a thread that has nothing to do with it. The hook has reported the panic. The payload is
/// leaked, since its destructor might panic, too.
fn swallow(work: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(work)) {
        Box::leak(payload);
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
        options: HandshakeOptions<'_>,
        operation: impl FnOnce(&Processor<'_>) -> R + Send,
    ) -> Result<R, HandshakeError> {
        let Some(slot) = self.shared.protocol.slot(target.0.index) else {
            return Err(HandshakeError::Gone { id: target });
        };
        let (operation, outcome) = (Handed::new(Some(operation)), Outcome::new());
        let work = || {
            let operation = operation.take().expect("an operation runs once");
            outcome.of(|| operation(&Processor::new(slot)), slot);
        };
        let ask = Ask { slot, generation: target.0.generation, work: Box::new(work) };
        let answers = self.ask(vec![ask], options)?;
        match answers.into_iter().next() {
            Some(Answered::Done) => Ok(outcome.get().expect("it has run")),
            _ => Err(HandshakeError::Gone { id: target }),
        }
    }

    fn all<R: Send>(
        self,
        options: HandshakeOptions<'_>,
        operation: &(impl Fn(&Processor<'_>) -> R + Sync),
    ) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
        let slots = self.shared.protocol.live();
        let targets: Vec<_> =
            slots.map(|slot| (slot, slot.current_use(), Outcome::new())).collect();
        let mut asks = Vec::with_capacity(targets.len());
        for (slot, SlotUse { generation, .. }, outcome) in &targets {
            let work = || outcome.of(|| operation(&Processor::new(slot)), slot);
            asks.push(Ask { slot, generation: *generation, work: Box::new(work) });
        }
        let result = self.ask(asks, options);
        let answer = |outcome: Outcome<R>| outcome.get().map_or(Answer::Gone, Answer::Done);
        // Also for an error: one of them may panic.
        let answers = targets.into_iter().map(|(_, id, outcome)| (MutatorId(id), answer(outcome)));
        let answers = answers.collect();
        result.map(|_| answers)
    }

    /// Asks, and waits. After `Ok` no answer is late.
    fn ask(
        &self,
        asks: Vec<Ask<'_, Identity>>,
        options: HandshakeOptions<'_>,
    ) -> Result<Vec<Answered<Option<Straggler>>>, HandshakeError> {
        let Self { shared, own, tid } = *self;
        let HandshakeOptions { timeout, nudge_after, on_late, at_deadline, self_only } = options;
        let is_own = |ask: &Ask<'_, Identity>| {
            ask.slot.status.identity.tid.load(core::sync::atomic::Ordering::Relaxed) == tid
        };
        if self_only && own.is_none() && asks.iter().any(is_own) {
            return Err(HandshakeError::OwnRegion { tid });
        }
        let asked = asks.len();
        let target = asks.first().filter(|_| asked == 1);
        let target =
            target.map(|ask| SlotUse { index: ask.slot.index(), generation: ask.generation });
        let mut trace = Trace::handshake(asked);
        let mut clock = Clock::start(&shared.protocol, tid, timeout, nudge_after).warning(on_late);
        stand_here!(own, Stand::new(Place::Request));
        let mut answers = shared.protocol.handshake(own, tid, self_only, asks, &mut clock);
        let lasted = clock.elapsed();
        let mut stragglers = Vec::new();
        for answer in &mut answers {
            if let Answered::Late(seen) = answer
                && let Some(mut straggler) = seen.take()
            {
                // Others may not run it there, and what the thread does is not to blame.
                let in_region = straggler.state == MutatorState::Safe;
                if self_only && in_region && straggler.cause != StragglerCause::NoThread {
                    straggler.cause = StragglerCause::InSafeRegion;
                }
                stragglers.push(straggler);
            }
        }
        let answered = answers.iter().filter(|answer| matches!(answer, Answered::Done)).count();
        let given_up = !stragglers.is_empty();
        shared.protocol.system.tape.note(|| {
            let (requested, ended) = (clock.requested(), Instant::now());
            Event::Handshake(HandshakeEvent { requested, ended, asked, answered, target, given_up })
        });
        trace.keep(|| clock.take_lates());
        if !given_up {
            trace.handshake_is_over(answered, lasted);
            return Ok(answers);
        }
        trace.given_up(&stragglers);
        if clock.is_own_fault() {
            return Err(HandshakeError::HoldsMutators { answered, stragglers });
        }
        let culprit = Straggler::culprit(&stragglers);
        let error = HandshakeError::TimedOut { answered, stragglers };
        Err(at_deadline.or_abort(culprit, error))
    }
}

/// What an operation returned, or panicked with, on whichever thread.
pub(crate) struct Outcome<R>(Handed<Result<R, Box<dyn Any + Send>>>);

impl<R> Outcome<R> {
    pub(crate) fn new() -> Self {
        Self(Handed::new(None))
    }

    /// Does not unwind: the thread is not the one that asked.
    pub(crate) fn of(&self, operation: impl FnOnce() -> R, slot: &MutatorSlot<Identity>) {
        let _inside = system::Visit::new(slot);
        let outcome = panic::catch_unwind(AssertUnwindSafe(operation));
        let another = self.0.leave(outcome);
        debug_assert!(another.is_none(), "it runs once");
    }

    /// What it returned, if it has run. Panics as it did.
    pub(crate) fn get(self) -> Option<R> {
        match self.0.take()? {
            Ok(result) => Some(result),
            Err(payload) => panic::resume_unwind(payload),
        }
    }
}
