//! Stopped threads help: a function that runs for every mutator of a stopped world, on the mutator's own thread.

use core::sync::atomic::Ordering;

use crate::error::HandshakeError;
use crate::handle::{StopHandle, StoppedMutator, stopped_mutators};
use crate::handshake::{Answer, Outcome};
use crate::id::MutatorId;
use crate::options::RunOptions;
use crate::pace::Clock;
use crate::protocol::{Job, MutatorSlot};
use crate::stop::Stopped;
use crate::straggler::Straggler;
use crate::system::{self, Identity};
use crate::world::Shared;

impl Stopped<'_> {
    /// Runs `work` once for every stopped mutator, on its own thread if that waits for the end of the stop, all at the
    /// same time: the threads that a collection has stopped help with it. Returns what it returned for each.
    ///
    /// A mutator in a safe region cannot come. The calling thread runs `work` in its place, unless
    /// [`RunOptions::self_only`] says not to; so it does for one that waits for something else than the end of the stop,
    /// such as its turn to stop the world, and for one whose task is suspended.
    /// [`StoppedMutator::is_current`] tells the two apart. A mutator that comes back from its region in the stop waits
    /// for the end of that, and can come from then on. The mutator that made the stop is not among them. One that
    /// detaches meanwhile is [`Answer::Gone`].
    ///
    /// The world stays stopped: `work` must touch no [`Mutator`](crate::Mutator), make no request, and wait for
    /// no mutator, nor for another's `work`, which may run on the same thread after it. On a mutator that a nudge has
    /// interrupted it runs between two instructions of its code, as the closure of a for-each does.
    ///
    /// # Blocking
    ///
    /// Waits until `work` has run for each. The timeout bounds the wait for it to begin.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::TimedOut`] if it had not begun for all in time: with the mutators for which it did not run.
    /// [`HandshakeError::InCallback`] inside an operation, or a `work`.
    ///
    /// # Panics
    ///
    /// If `work` does, with its payload, when it has run for all.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Answer, Reason, RunOptions, World};
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// let (world, done) = (World::new(), &AtomicBool::new(false));
    /// let mut mutator = world.attach()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         let mut other = world.attach().unwrap();
    ///         while !done.load(Ordering::Relaxed) {
    ///             other.poll();
    ///         }
    ///     });
    ///     let mut stopped = mutator.stop_the_world(Reason::GC).unwrap();
    ///     let sweeps = |mutator: &safepoint::StoppedMutator<'_>| mutator.is_current();
    ///     let answers = stopped.run_on_all(RunOptions::new(), sweeps).unwrap();
    ///     assert!(answers.iter().all(|(_, answer)| *answer == Answer::Done(true)));
    ///     done.store(true, Ordering::Relaxed);
    ///     stopped.resume();
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # References
    ///
    /// OCaml 5 `caml_try_run_on_all_domains` (`runtime/domain.c`)
    #[doc(alias = "parallel stop the world")]
    pub fn run_on_all<R: Send>(
        &mut self,
        options: RunOptions,
        work: impl Fn(&StoppedMutator<'_>) -> R + Sync,
    ) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
        let mutators = stopped_mutators(self.shared, self.own).map(|mutator| mutator.slot());
        run(self.shared, mutators, options, &work)
    }
}

impl StopHandle {
    /// As [`Stopped::run_on_all`]; the mutator that made the stop and handed it over is one of those that help. In the
    /// child of a fork there are none.
    ///
    /// # Blocking
    ///
    /// # Errors
    ///
    /// # Panics
    ///
    /// As [`Stopped::run_on_all`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap).
    pub fn run_on_all<R: Send>(
        &mut self,
        options: RunOptions,
        work: impl Fn(&StoppedMutator<'_>) -> R + Sync,
    ) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
        let mutators: Vec<_> = self.mutators().map(|mutator| mutator.slot()).collect();
        run(&self.shared, mutators.into_iter(), options, &work)
    }
}

/// For the thread that has the stop to itself.
fn run<R: Send>(
    shared: &Shared,
    mutators: impl Iterator<Item = &'static MutatorSlot<Identity>>,
    RunOptions { timeout, self_only }: RunOptions,
    work: &(impl Fn(&StoppedMutator<'_>) -> R + Sync),
) -> Result<Vec<(MutatorId, Answer<R>)>, HandshakeError> {
    if system::in_closure() {
        return Err(HandshakeError::InCallback);
    }
    let (protocol, tid) = (&shared.protocol, system::tid());
    let mut targets: Vec<_> =
        mutators.map(|slot| (slot, MutatorId(slot.current_use()), Outcome::new())).collect();
    targets.sort_by_key(|(slot, ..)| slot.index());
    let slots: Vec<_> = targets.iter().map(|(slot, ..)| *slot).collect();
    let run_for = |slot: &'static MutatorSlot<Identity>| {
        let place = targets.binary_search_by_key(&slot.index(), |(slot, ..)| slot.index());
        let (_, id, outcome) = &targets[place.expect("it was asked")];
        // The next thread in the slot was not asked.
        if let Some(mutator) = StoppedMutator::of(slot).filter(|mutator| mutator.id() == *id) {
            outcome.of(|| work(&mutator), slot);
        }
    };
    let is_own = |slot: &'static MutatorSlot<Identity>| {
        slot.status.identity.tid.load(Ordering::Relaxed) == tid
    };
    let mut clock = Clock::start(protocol, tid, timeout, None);
    let job = Job { run: &run_for, is_own: &is_own, self_only };
    let late = protocol.have_help(&slots, &job, &mut clock);
    // Also for an error: one of them may panic.
    let answers = targets
        .into_iter()
        .map(|(_, id, outcome)| (id, outcome.get().map_or(Answer::Gone, Answer::Done)));
    let answers: Vec<_> = answers.collect();
    let stragglers: Vec<Straggler> = late
        .into_iter()
        .filter_map(|(seen, waits)| {
            seen.map(|of| Straggler { cause: of.cause.of_stopped(waits), ..of })
        })
        .collect();
    if stragglers.is_empty() {
        return Ok(answers);
    }
    let answered = answers.iter().filter(|(_, answer)| matches!(answer, Answer::Done(_))).count();
    Err(HandshakeError::TimedOut { answered, stragglers })
}
