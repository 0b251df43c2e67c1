//! How many stops of a world are over, and waiting for the next to be.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `over` | holder of the stop turn +1 | any | sequentially consistent | changed before a stop's mutators run |
//! | `joiners` | threads that may join a stop, +1 and -1 | holder of the stop turn | relaxed | one that is not counted yet is woken by the thread that was |
//! | `waiting` | threads that wait, +1 and -1 | holder of the stop turn | sequentially consistent | a thread that is not counted yet finds the new `over` |

use core::time::Duration;
use std::time::Instant;

use sigctx::sync::{self, AtomicU32, Ordering};

use crate::options::Reason;

/// How many stops of a world are over: of a moment, from [`World::stops`](crate::World::stops), or from
/// [`World::stops_for`](crate::World::stops_for) of those for one reason. Two of a kind differ if such a stop has ended
/// in between; the number begins anew after 2³².
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StopEpoch {
    pub(crate) reason: Option<Reason>,
    pub(crate) over: u32,
}

/// A stop that is asked for, or under way; from [`World::current_stop`](crate::World::current_stop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CurrentStop {
    /// Which request for a stop of the world it is, those counted that were given up. Begins anew after 2³⁰.
    pub number: u32,
    /// What it was asked for; a stop that has it may [go on for another](crate::Stopped::continue_as).
    pub reason: Reason,
    /// Whether all mutators have stopped. If not, the requester waits for some.
    pub stopped: bool,
}

#[derive(Debug)]
pub(crate) struct Stops {
    over: AtomicU32,
    waiting: AtomicU32,
    joiners: AtomicU32,
}

impl Stops {
    pub(crate) fn new() -> Self {
        let [over, waiting, joiners] = core::array::from_fn(|_| AtomicU32::new(0));
        Self { over, waiting, joiners }
    }

    pub(crate) fn over(&self) -> u32 {
        self.over.load(Ordering::SeqCst)
    }

    /// The thread waits for the turn, or for a stop that it can join, until the result is dropped.
    pub(crate) fn join(&self) -> Joiner<'_> {
        self.joiners.fetch_add(1, Ordering::Relaxed);
        Joiner(self)
    }

    pub(crate) fn has_joiners(&self) -> bool {
        self.joiners.load(Ordering::Relaxed) != 0
    }

    /// A stop is over, and its mutators do not run yet.
    pub(crate) fn count(&self) {
        self.over.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            sync::wake_all(&self.over);
        }
    }

    /// Waits for ends of stops until `is_over`, which one of them makes true before it is counted. False after the
    /// timeout.
    pub(crate) fn wait(&self, timeout: Option<Duration>, is_over: impl Fn() -> bool) -> bool {
        if is_over() {
            return true;
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let is_over = loop {
            // Before the look: the end that makes it true changes this later.
            let over = self.over();
            if is_over() {
                break true;
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break false;
            }
            sync::wait(&self.over, over, left);
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        is_over
    }
}

/// From [`Stops::join`].
#[derive(Debug)]
pub(crate) struct Joiner<'a>(&'a Stops);

impl Drop for Joiner<'_> {
    fn drop(&mut self) {
        self.0.joiners.fetch_sub(1, Ordering::Relaxed);
    }
}
