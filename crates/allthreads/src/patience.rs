//! How long an operation may wait, in time that the requester could use.
//!
//! A process may be frozen, and a requester may wait for a processor, for longer than any deadline. That
//! time says nothing about the threads that did not come: they could not run either, or had no signal yet.
//! So a sleep that took much longer than planned counts as planned, and a deadline that passed in such a
//! sleep is followed by [`GRACE`].

use core::time::Duration;
use std::time::Instant;

/// How much longer than planned a sleep may take and still count in full.
const LAG: Duration = Duration::from_millis(5);
/// How much of the requester's own time there is after a deadline that passed while it could not run.
const GRACE: Duration = Duration::from_millis(40);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The deadline; `None` for no end.
    until: Option<Instant>,
    /// The last look at the clock.
    last: Instant,
    /// What is left after the deadline.
    grace: Duration,
}

impl Patience {
    pub(crate) fn new(until: Option<Instant>) -> Self {
        Self { until, last: Instant::now(), grace: Duration::ZERO }
    }

    /// What is left, as of the last look at the clock; `None` when nothing is.
    pub(crate) fn left(&self) -> Option<Duration> {
        let Some(until) = self.until else { return Some(Duration::MAX) };
        let left = until.saturating_duration_since(self.last).max(self.grace);
        (!left.is_zero()).then_some(left)
    }

    /// Looks at the clock after a sleep that was to take `planned`. Returns how much of the time since
    /// the last look the requester could use.
    pub(crate) fn tick(&mut self, planned: Duration) -> Duration {
        self.tick_at(Instant::now(), planned)
    }

    fn tick_at(&mut self, now: Instant, planned: Duration) -> Duration {
        let (before, elapsed) = (self.last, now.saturating_duration_since(self.last));
        let usable = elapsed.min(planned.saturating_add(LAG));
        self.last = now;
        if let Some(until) = self.until
            && now >= until
        {
            let passed_unseen = before < until && elapsed > usable;
            self.grace = if passed_unseen { GRACE } else { self.grace.saturating_sub(usable) };
        }
        usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_deadline_that_passes_while_the_requester_cannot_run_is_followed_by_a_grace() {
        let start = Instant::now();
        let mut patience = Patience { last: start, ..Patience::new(Some(start + 100 * MS)) };
        // In its own time a deadline is a deadline.
        let mut punctual = patience;
        assert_eq!(punctual.tick_at(start + 99 * MS, 99 * MS), 99 * MS);
        assert_eq!(punctual.left(), Some(MS));
        assert_eq!(punctual.tick_at(start + 101 * MS, MS), 2 * MS);
        assert_eq!(punctual.left(), None);
        // Frozen.
        assert_eq!(patience.tick_at(start + 2600 * MS, 4 * MS), 4 * MS + LAG);
        assert_eq!(patience.left(), Some(GRACE));
        // And that ends, however little of the processor the requester gets.
        let mut now = start + 2600 * MS;
        let mut ticks = 0;
        while patience.left().is_some() {
            now += 500 * MS;
            patience.tick_at(now, 4 * MS);
            ticks += 1;
        }
        assert!(ticks <= 5, "{ticks}");
        assert_eq!(Patience::new(None).left(), Some(Duration::MAX));
    }
}
