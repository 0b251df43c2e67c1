//! The lock that makes one thread at a time the owner.
//!
//! The word is the owner's thread id and a bit that says that somebody waits: a thread that asks
//! for a lock which it has itself gets an answer instead of waiting for ever.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use sigctx::sys::{Tid, futex_wait, futex_wake};

const FREE: u32 = 0;
const WAITERS: u32 = 1 << 31;

/// See the module.
pub(crate) struct Lock(AtomicU32);

/// The lock is held until this is dropped.
pub(crate) struct Locked<'a>(&'a Lock);

/// Why somebody did not get the lock.
pub(crate) enum Refused {
    /// The caller, or the operation that the caller is a part of, has it.
    Nested,
    /// Others had it until too late; the last of them that was seen.
    Late { holder: Tid },
}

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the lock, by `until` if there is such a moment. `hopeless` says that the owner cannot let
    /// go of it before the caller goes on.
    pub(crate) fn acquire(
        &self,
        me: Tid,
        until: Option<Instant>,
        hopeless: impl FnOnce() -> bool,
    ) -> Result<Locked<'_>, Refused> {
        let me = me as u32;
        // Acquire: what the last owner wrote is seen.
        let take = |word| self.0.compare_exchange(FREE, word, Ordering::Acquire, Ordering::Relaxed);
        let Err(mut seen) = take(me) else { return Ok(Locked(self)) };
        let mut holder = seen & !WAITERS;
        if holder == me || hopeless() {
            return Err(Refused::Nested);
        }
        let late = |holder| Refused::Late { holder: holder as Tid };
        loop {
            let now = Instant::now();
            if seen == FREE {
                // Others may wait still: keep the bit, at worst for one wake too many.
                match take(me | WAITERS) {
                    // Dropped again when late: that wakes the next one.
                    Ok(_) => {
                        let locked = Locked(self);
                        let in_time = until.is_none_or(|until| now < until);
                        return if in_time { Ok(locked) } else { Err(late(holder)) };
                    }
                    Err(now) => seen = now,
                }
                continue;
            }
            holder = seen & !WAITERS;
            // Also who gives up leaves the bit: it may have had the wake that was meant for all.
            if seen & WAITERS == 0
                && self
                    .0
                    .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                seen = self.0.load(Ordering::Relaxed);
                continue;
            }
            let left = until.map(|until| until.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(late(holder));
            }
            // Early returns (a signal, a change of the word) only go round again.
            let _ = futex_wait(&self.0, seen | WAITERS, left);
            seen = self.0.load(Ordering::Relaxed);
        }
    }

    /// Forgets an owner that does not exist in this process. Only while a forked child takes its
    /// block over, before anybody waits.
    pub(crate) fn reset(&self) {
        self.0.store(FREE, Ordering::Relaxed);
    }
}

impl<'a> Locked<'a> {
    /// Leaves the lock taken; [`Locked::kept`] is to give it back.
    pub(crate) fn keep(self) {
        let _ = ManuallyDrop::new(self);
    }

    /// The lock that the calling thread took and kept.
    pub(crate) fn kept(lock: &'a Lock) -> Self {
        Self(lock)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Release: pairs with the next owner's acquire.
        if self.0.0.swap(FREE, Ordering::Release) & WAITERS != 0 {
            futex_wake(&self.0.0, 1);
        }
    }
}
