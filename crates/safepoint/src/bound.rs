//! How long a thread waits to become a mutator.

use core::time::Duration;
use std::time::Instant;

use crate::protocol::Limit;

/// How long a thread waits, from when it began to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    begun: Instant,
    deadline: Option<Instant>,
}

impl Bound {
    /// A timeout that is too long for the clock is none.
    pub(crate) fn begin(timeout: Option<Duration>) -> Self {
        let begun = Instant::now();
        Self { begun, deadline: timeout.and_then(|timeout| begun.checked_add(timeout)) }
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.begun.elapsed()
    }
}

impl Limit for Bound {
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
