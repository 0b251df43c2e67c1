//! A value that one thread leaves and another takes: one that a fork does not leave locked.
//!
//! The lock is held while the value is moved, and no longer. In the child of a fork a thread that moved it then is not
//! there: what it has left half moved is leaked, and counts as not there.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr;

use sigctx::fork::process;
use sigctx::sync::{Found, Mutex};

pub(crate) struct Handed<T> {
    mutex: Mutex,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `value` is touched in `with` alone, by the thread that has the mutex, and moved from thread to thread.
unsafe impl<T: Send> Sync for Handed<T> {}

impl<T> fmt::Debug for Handed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").finish_non_exhaustive()
    }
}

impl<T> Handed<T> {
    pub(crate) fn new(value: Option<T>) -> Self {
        Self { mutex: Mutex::new(), value: UnsafeCell::new(value) }
    }

    /// Leaves the value, if there is none. Else it comes back.
    pub(crate) fn leave(&self, value: T) -> Option<T> {
        self.with(|left| if left.is_some() { Some(value) } else { left.replace(value) })
    }

    /// Takes the value, if one was left.
    pub(crate) fn take(&self) -> Option<T> {
        self.with(Option::take)
    }

    fn with<R>(&self, work: impl FnOnce(&mut Option<T>) -> R) -> R {
        let locked = self.mutex.guard(process());
        if locked.found() == Found::Copied {
            // SAFETY: this thread has the mutex. What is there is not dropped: it may be half written.
            unsafe { ptr::write(self.value.get(), None) };
        }
        // SAFETY: this thread has the mutex.
        work(unsafe { &mut *self.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    use testkit::{forked, in_child};

    use super::*;

    #[test]
    fn the_first_value_stays_until_it_is_taken() {
        let handed = Handed::new(None);
        assert_eq!(handed.take(), None);
        assert_eq!(handed.leave(1), None);
        assert_eq!(handed.leave(2), Some(2));
        assert_eq!(handed.take(), Some(1));
        assert_eq!(handed.leave(3), None);
    }

    /// As if the fork had come while another thread had the lock.
    #[test]
    fn what_a_fork_copies_half_moved_is_leaked() {
        in_child("handed::tests::what_a_fork_copies_half_moved_is_leaked", SOON, || {
            static DROPPED: AtomicBool = AtomicBool::new(false);
            struct Tells;
            impl Drop for Tells {
                fn drop(&mut self) {
                    DROPPED.store(true, Relaxed);
                }
            }
            // A world has forks counted.
            let (_world, handed) = (crate::World::new(), &Handed::new(Some(Tells)));
            thread::scope(|scope| {
                let locked = scope.spawn(|| handed.mutex.lock(process(), || None).is_ok());
                assert!(locked.join().expect("no panic"), "it was free");
                let status = forked(|| {
                    assert!(handed.take().is_none(), "half of it");
                    assert!(!DROPPED.load(Relaxed));
                    assert!(handed.leave(Tells).is_none());
                    assert!(handed.take().is_some());
                });
                assert_eq!(status, 0, "the child panicked");
                handed.mutex.unlock();
            });
            assert!(handed.take().is_some(), "the parent's is whole");
        });
    }

    const SOON: Duration = Duration::from_secs(20);
}
