//! How often what has happened: counters of the process, added to in handlers.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::error::SignalOutcome;

/// Counters of one process; from [`stats`]. Each begins anew when it is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "metrics")]
pub struct Stats {
    /// Signals that were sent to interrupt threads.
    pub sent: usize,
    /// Signals that the handler has had on registered threads: ours, and those of others.
    pub handled: usize,
    /// Hooks that have begun.
    pub hooks: usize,
    /// How often a task has stopped for a suspension at an instruction or a poll.
    pub parked: usize,
    outcomes: [usize; OUTCOMES],
}

impl Stats {
    /// How many signals have found a request, and had this outcome.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn outcome(&self, outcome: SignalOutcome) -> usize {
        self.outcomes[outcome as usize]
    }

    /// What was added since `earlier`, which was taken before.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let of = |from: fn(&Self) -> usize| from(self).wrapping_sub(from(earlier));
        Self {
            sent: of(|stats| stats.sent),
            handled: of(|stats| stats.handled),
            hooks: of(|stats| stats.hooks),
            parked: of(|stats| stats.parked),
            outcomes: core::array::from_fn(|at| {
                self.outcomes[at].wrapping_sub(earlier.outcomes[at])
            }),
        }
    }
}

/// What this process has counted, and the parent up to a fork. Not a moment's state: other threads go on while it is
/// read.
///
/// A program whose signals mostly have an outcome other than `Interrupted` asks threads that it cannot interrupt:
/// `OutsideCode` says that little of what runs is registered, `Disabled` that guards are held for long.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let before = preempt::stats();
/// let task = preempt::Task::with_hook(|_| ());
/// let _me = threadreg::attach()?;
/// task.enter(|| {
///     task.request().expect("it runs");
///     preempt::poll();
/// })?;
/// assert_eq!(preempt::stats().since(&before).hooks, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn stats() -> Stats {
    Stats {
        sent: SENT.get(),
        handled: HANDLED.get(),
        hooks: HOOKS.get(),
        parked: PARKED.get(),
        outcomes: core::array::from_fn(|at| OF_OUTCOMES[at].get()),
    }
}

/// One more than the last of `SignalOutcome`.
const OUTCOMES: usize = SignalOutcome::Other as usize + 1;

pub(crate) static SENT: Counter = Counter::new();
pub(crate) static HANDLED: Counter = Counter::new();
pub(crate) static HOOKS: Counter = Counter::new();
pub(crate) static PARKED: Counter = Counter::new();
static OF_OUTCOMES: [Counter; OUTCOMES] = [const { Counter::new() }; OUTCOMES];

/// Async-signal-safe.
pub(crate) fn count(outcome: SignalOutcome) {
    OF_OUTCOMES[outcome as usize].count();
}

/// Relaxed throughout: nothing depends on it.
#[derive(Debug)]
pub(crate) struct Counter(AtomicUsize);

impl Counter {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// One more. Async-signal-safe.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
