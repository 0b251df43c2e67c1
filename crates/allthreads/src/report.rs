//! What an operation did.

use core::fmt;
use core::time::Duration;
use std::time::Instant;

use crate::calls::{Call, CallName, MAX_CALLS, Rehearsal};
use crate::error::Error;

/// What an operation did: every call had the result given here on every thread, or with
/// [`Results::Succeed`](crate::Results::Succeed) on the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    values: [isize; MAX_CALLS],
    calls: usize,
    /// The threads that ran the calls, the calling thread included.
    pub threads: usize,
    /// How often all threads were let go again because one did not come.
    pub retries: u32,
    /// Threads that ended while they were held: a seccomp filter of their own killed them for a call.
    pub died: usize,
    /// Threads of the kernel in this process, which have no user code and keep what they were made
    /// with: for example those of an `io_uring`.
    pub kernel_workers: usize,
    /// Threads that keep what they had because the caller, or
    /// [`exclude_always`](crate::exclude_always), vouches for them.
    pub excluded: usize,
    /// How long the operation took, retries included.
    pub elapsed: Duration,
}

impl Outcome {
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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn values(&self) -> &[isize] {
        self.values.get(..self.calls).unwrap_or_default()
    }

    /// The result of the last call; 0 when there was none.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn value(&self) -> isize {
        self.values().last().copied().unwrap_or_default()
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
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
