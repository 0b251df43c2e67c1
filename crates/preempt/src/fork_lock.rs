//! A lock that a fork does not leave locked.
//!
//! A fork copies what other threads hold, and the child does not have them. So the lock says which
//! process took it, and is free for every other.
//!
//! ```text
//!  word = 0 free, or | process, 30 bits | WAITED | LOCKED |
//! ```
//!
//! What the lock protects may have been copied half written: who takes it is told.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::fork::process;
use crate::sync::{wait, wake_all};

const FREE: u32 = 0;
const LOCKED: u32 = 1;
const WAITED: u32 = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct ForkLock(AtomicU32);

/// The lock is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    lock: &'a ForkLock,
    /// A fork copied it taken, by a thread that this process does not have.
    pub(crate) was_copied: bool,
}

impl ForkLock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Waits until no thread of this process has the lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let locked = process() << 2 | LOCKED;
        let mut mine = locked;
        loop {
            let seen = self.0.load(Ordering::Relaxed);
            let is_taken = seen | WAITED == locked | WAITED;
            if !is_taken {
                // Acquire, with the release of the drop.
                let took =
                    self.0.compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed);
                if took.is_ok() {
                    return Locked { lock: self, was_copied: seen != FREE };
                }
            } else if seen & WAITED != 0 || self.mark_waited(seen) {
                wait(&self.0, locked | WAITED, None);
                // Others may wait still.
                mine = locked | WAITED;
            }
        }
    }

    /// Relaxed: takes nothing.
    fn mark_waited(&self, seen: u32) -> bool {
        let waited = seen | WAITED;
        self.0.compare_exchange(seen, waited, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// In the child of a fork, where nobody had it who wrote anything.
    pub(crate) fn after_fork(&self) {
        self.0.store(FREE, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn is_waited_for(&self) -> bool {
        self.0.load(Ordering::Relaxed) & WAITED != 0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.lock.0.swap(FREE, Ordering::Release) & WAITED != 0 {
            wake_all(&self.lock.0);
        }
    }
}
