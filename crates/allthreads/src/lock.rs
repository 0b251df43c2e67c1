//! The lock that makes one thread at a time the owner.
//!
//! The word is the owner's thread id and a bit that says that somebody waits: a thread that asks
//! for a lock which it has itself gets an answer instead of waiting for ever.

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::{Tid, futex_wait, futex_wake};

const FREE: u32 = 0;
const WAITERS: u32 = 1 << 31;

/// See the module.
pub(crate) struct Lock(AtomicU32);

/// The lock is held until this is dropped.
pub(crate) struct Locked<'a>(&'a Lock);

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the lock; `None` when the caller has it already, or when `hopeless` says that its
    /// owner cannot let go of it before the caller goes on.
    pub(crate) fn acquire(&self, me: Tid, hopeless: impl FnOnce() -> bool) -> Option<Locked<'_>> {
        let me = me as u32;
        // Acquire: what the last owner wrote is seen.
        let take = |word| self.0.compare_exchange(FREE, word, Ordering::Acquire, Ordering::Relaxed);
        let Err(mut seen) = take(me) else { return Some(Locked(self)) };
        if seen & !WAITERS == me || hopeless() {
            return None;
        }
        loop {
            if seen == FREE {
                // Others may wait still: keep the bit, at worst for one wake too many.
                match take(me | WAITERS) {
                    Ok(_) => return Some(Locked(self)),
                    Err(now) => seen = now,
                }
            } else if seen & WAITERS == 0
                && self
                    .0
                    .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                seen = self.0.load(Ordering::Relaxed);
            } else {
                // Early returns (a signal, a change of the word) only go round again.
                let _ = futex_wait(&self.0, seen | WAITERS, None);
                seen = self.0.load(Ordering::Relaxed);
            }
        }
    }

    /// Forgets an owner that does not exist in this process. Only while a forked child takes its
    /// block over, before anybody waits.
    pub(crate) fn reset(&self) {
        self.0.store(FREE, Ordering::Relaxed);
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
