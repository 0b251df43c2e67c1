//! The write side of the creation lock, as a guard.

use core::fmt;
use std::time::{Duration, Instant};

use crate::registry::{self, ARENA, CREATION};
use crate::thread_ref::ThreadRef;

/// Stops this crate from making threads until the guard is dropped.
///
/// When it returns, every spawned thread that is listed exists (its `clone` has returned) or has
/// left, and none can come. Threads may leave at any time, and threads that nobody registered are
/// not affected.
///
/// *Lock order:* nothing that a creator may hold while it spawns is to be awaited under the guard.
/// So stop a world first and freeze second, never the other way round: a creator that waits for the
/// guard is in the middle of running code, and can only be stopped because it waits with its
/// signals open. A thread must not spawn while it holds the guard itself, or freeze again: it would
/// wait for itself.
///
/// # Signal safety
///
/// Not async-signal-safe: waits. [`try_freeze_creation`] is.
///
/// # Blocking
///
/// For other holders of the guard, without bound, and for the creations under way. New creators
/// queue behind this call, so it is not overtaken for ever.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let frozen = threadreg::freeze_creation();
/// frozen.wait_all_started(Duration::from_secs(1))?;
/// assert!(threadreg::threads().all(|thread| thread.tid().is_some() || !thread.is_alive()));
/// # Ok::<(), threadreg::NotStarted>(())
/// ```
///
/// # References
///
/// Go's `allocmLock` and `execLock`, `runtime/proc.go`.
pub fn freeze_creation() -> CreationFrozen {
    CREATION.write();
    CreationFrozen { forks: registry::forks() }
}

/// Like [`freeze_creation`], or `None` when a thread is being made or another holds the guard.
///
/// # Signal safety
///
/// Async-signal-safe, and so is dropping the guard: no waiting, no allocation.
#[must_use]
pub fn try_freeze_creation() -> Option<CreationFrozen> {
    CREATION.try_write().then(|| CreationFrozen { forks: registry::forks() })
}

/// No thread is made through this crate while this lives; from [`freeze_creation`].
///
/// In the child of a `fork` it holds nothing any more.
#[must_use = "creation is frozen only while this lives"]
#[derive(Debug)]
pub struct CreationFrozen {
    forks: u32,
}

impl CreationFrozen {
    /// Waits until every listed thread has stored its id: it can be signalled, or has left.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe while no thread fails to start; the clock is read through the vDSO.
    ///
    /// # Blocking
    ///
    /// At most for `limit`.
    ///
    /// # Errors
    ///
    /// The first thread found that had not started when the time was over.
    pub fn wait_all_started(&self, limit: Duration) -> Result<(), NotStarted> {
        let begin = Instant::now();
        for (record, generation) in ARENA.listed() {
            let left = || Some(limit.saturating_sub(begin.elapsed()));
            if !record.wait_started(generation, left) {
                return Err(NotStarted { thread: ThreadRef { record, generation }, limit });
            }
        }
        Ok(())
    }

    /// Lets threads be made again; the same as dropping the guard.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for CreationFrozen {
    fn drop(&mut self) {
        if self.forks == registry::forks() {
            CREATION.release_write();
        }
    }
}

/// A listed thread did not run in time; from [`CreationFrozen::wait_all_started`].
#[derive(Clone, Copy, Debug)]
pub struct NotStarted {
    /// The thread.
    pub thread: ThreadRef,
    /// How long it was waited for.
    pub limit: Duration,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} was made but has not run for {:?}", self.thread.name(), self.limit)
    }
}

impl core::error::Error for NotStarted {}
