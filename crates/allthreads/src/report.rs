//! What an operation applied.

use core::fmt;
use core::time::Duration;
use std::time::Instant;

use crate::calls::{Call, CallName, MAX_CALLS, Rehearsal};
use crate::error::Error;

/// What an operation applied, and on how many threads. Every call had the result given here on every
/// thread; with [`Results::Succeed`](crate::Results::Succeed), on the requester.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    values: [isize; MAX_CALLS],
    calls: usize,
    /// The threads that made the calls, the requester included.
    pub threads: usize,
    /// How often all threads were let go again because one did not come.
    pub retries: u32,
    /// Threads that ended while they were held: a seccomp filter of their own killed them for a call.
    pub died: usize,
    /// Threads of the kernel in this process, for example those of an `io_uring`. They run no user code and
    /// keep what they were made with.
    pub kernel_workers: usize,
    /// Threads that keep what they had because [`AllThreads::exclude`](crate::AllThreads::exclude) or
    /// [`exclude_always`](crate::exclude_always) names them.
    pub excluded: usize,
    /// How long the operation took, retries included.
    pub elapsed: Duration,
}

impl Report {
    pub(crate) fn new(
        rehearsal: &Rehearsal,
        calls: &[Call],
        start: Instant,
    ) -> Result<Self, Error> {
        if let Some(errno) = rehearsal.refused {
            let call = rehearsal.applied;
            return Err(Error::Refused { call, name: CallName::of(calls, call), errno });
        }
        Ok(Self {
            values: rehearsal.values,
            calls: calls.len(),
            threads: 1,
            retries: 0,
            died: 0,
            kernel_workers: 0,
            excluded: 0,
            elapsed: start.elapsed(),
        })
    }

    /// The results of the calls, in order.
    #[must_use]
    pub fn values(&self) -> &[isize] {
        self.values.get(..self.calls).unwrap_or_default()
    }

    /// The result of the last call; 0 when there was none.
    #[must_use]
    pub fn value(&self) -> isize {
        self.values().last().copied().unwrap_or_default()
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("values", &self.values())
            .field("threads", &self.threads)
            .field("retries", &self.retries)
            .field("died", &self.died)
            .field("kernel_workers", &self.kernel_workers)
            .field("excluded", &self.excluded)
            .field("elapsed", &self.elapsed)
            .finish_non_exhaustive()
    }
}
