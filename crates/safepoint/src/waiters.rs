//! Threads that wait for what others give back, in order: what is given back goes to the one that has waited longest.
//!
//! ```text
//!  a waiter's word:  WAITS ── giver: give, under the lock ──▶ what was given + 1
//!
//!  waiter:  lock: nothing rests ──▶ queued ──▶ unlock ──▶ sleeps on its word ──▶ has it
//!                                                   └── past its deadline: lock: given, or out of the queue
//! ```
//!
//! - **W1** Nothing rests while a thread is queued: a giver finds the queue empty under the lock before it lets
//!   something rest, and a thread is queued under the lock that has found nothing that rests.
//! - **W2** What is given is had by the waiter that it is given to. One that gives up looks at its word under the lock.
//!
//! A fork copies the queue, and the child does not have its threads: it passes over them. If the lock was taken the queue
//! may be half written: the child makes a new one.

use core::cell::UnsafeCell;
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use sigctx::sync::{self, AtomicU32, Found, Guard, Mutex, Ordering};

const WAITS: u32 = 0;

#[derive(Debug)]
struct Waiter {
    word: AtomicU32,
    process: u32,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Waiters {
    lock: Mutex,
    queue: UnsafeCell<VecDeque<Arc<Waiter>>>,
}

// SAFETY: the queue is touched by the thread that has the lock (`Locked`).
unsafe impl Sync for Waiters {}

/// The queue, for the thread that has the lock.
struct Locked<'a> {
    queue: &'a mut VecDeque<Arc<Waiter>>,
    _lock: Guard<'a>,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self { lock: Mutex::new(), queue: UnsafeCell::new(VecDeque::new()) }
    }

    fn lock(&self, process: u32) -> Locked<'_> {
        let lock = self.lock.guard(process);
        let queue = self.queue.get();
        if lock.found() == Found::Copied {
            // SAFETY: this thread has the lock. What was there is not dropped: it may be half written.
            unsafe { queue.write(VecDeque::new()) };
        }
        // SAFETY: this thread has the lock for as long as the reference lives.
        Locked { queue: unsafe { &mut *queue }, _lock: lock }
    }

    /// Takes what rests, with `take`, or waits until something is given. `None` when no time is `left`; of that `None`
    /// is no limit.
    pub(crate) fn acquire(
        &self,
        process: u32,
        take: impl FnOnce() -> Option<u32>,
        mut left: impl FnMut() -> Option<Duration>,
    ) -> Option<u32> {
        let locked = self.lock(process);
        // W1: where threads are queued nothing rests, so nobody is overtaken.
        if let Some(taken) = take() {
            return Some(taken);
        }
        let waiter = Arc::new(Waiter { word: AtomicU32::new(WAITS), process });
        locked.queue.push_back(waiter.clone());
        drop(locked);
        loop {
            // Acquire, with `give`.
            let word = waiter.word.load(Ordering::Acquire);
            if word != WAITS {
                return Some(word - 1);
            }
            let left = left();
            if left.is_some_and(|left| left.is_zero()) {
                return self.give_up(&waiter);
            }
            sync::wait(&waiter.word, WAITS, left);
        }
    }

    /// W2.
    fn give_up(&self, waiter: &Arc<Waiter>) -> Option<u32> {
        let locked = self.lock(waiter.process);
        // Acquire, with `give`.
        let word = waiter.word.load(Ordering::Acquire);
        if word != WAITS {
            return Some(word - 1);
        }
        locked.queue.retain(|queued| !Arc::ptr_eq(queued, waiter));
        None
    }

    /// Gives `what` to the thread that has waited longest; if none waits it is to `rest`.
    pub(crate) fn give(&self, process: u32, what: u32, rest: impl FnOnce()) {
        let locked = self.lock(process);
        while let Some(waiter) = locked.queue.pop_front() {
            if waiter.process == process {
                // Release: what the giver did comes before what the waiter does.
                waiter.word.store(what + 1, Ordering::Release);
                drop(locked);
                return sync::wake_one(&waiter.word);
            }
        }
        rest();
    }

    /// How many threads wait.
    #[cfg(not(loom))]
    pub(crate) fn count(&self, process: u32) -> usize {
        self.lock(process).queue.iter().filter(|waiter| waiter.process == process).count()
    }
}

#[cfg(all(test, loom))]
mod models {
    use core::time::Duration;

    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::Waiters;
    use crate::retake::Possession;

    /// One that several threads want.
    struct Wanted {
        waiters: Waiters,
        possession: Possession,
        heap: UnsafeCell<u32>,
    }

    // SAFETY: that one thread at a time touches `heap` is what the models prove.
    unsafe impl Sync for Wanted {}

    impl Wanted {
        fn held() -> Arc<Self> {
            let (waiters, possession) = (Waiters::new(), Possession::new());
            Arc::new(Self { waiters, possession, heap: UnsafeCell::new(0) })
        }

        fn acquire(&self, left: Option<Duration>) -> bool {
            let take = || self.possession.take().then_some(0);
            let acquired = self.waiters.acquire(1, take, || left).is_some();
            if acquired {
                self.heap.with_mut(|heap| {
                    // SAFETY: as for `Sync`.
                    unsafe { *heap += 1 };
                });
            }
            acquired
        }

        fn give(&self) {
            self.waiters.give(1, 0, || self.possession.rest());
        }
    }

    /// W1: each of two threads gets it from the one before.
    #[test]
    fn what_is_given_back_reaches_each_that_waits() {
        loom::model(|| {
            let wanted = Wanted::held();
            let other = {
                let wanted = wanted.clone();
                thread::spawn(move || {
                    assert!(wanted.acquire(None));
                    wanted.give();
                })
            };
            wanted.give();
            assert!(wanted.acquire(None));
            wanted.give();
            other.join().unwrap();
        });
    }

    /// W2: it is had by the thread that gave up, or rests.
    #[test]
    fn what_is_given_to_a_thread_that_gives_up_is_not_lost() {
        loom::model(|| {
            let wanted = Wanted::held();
            let other = {
                let wanted = wanted.clone();
                thread::spawn(move || {
                    if wanted.acquire(Some(Duration::ZERO)) {
                        wanted.give();
                    }
                })
            };
            wanted.give();
            other.join().unwrap();
            assert!(wanted.possession.take(), "given to nobody");
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::mem::ManuallyDrop;
    use std::time::Instant;

    use super::*;

    /// As in the child of a fork: the threads that wait are not there, and the lock may be taken.
    #[test]
    fn a_child_passes_over_the_threads_of_its_parent() {
        for is_locked in [false, true] {
            let waiters = Waiters::new();
            let waiter = Arc::new(Waiter { word: AtomicU32::new(WAITS), process: 1 });
            waiters.lock(1).queue.push_back(waiter.clone());
            if is_locked {
                let _taken = ManuallyDrop::new(waiters.lock(1));
            }
            let mut rests = false;
            waiters.give(2, 7, || rests = true);
            assert!(rests, "given to a thread that is not there");
            assert_eq!(waiter.word.load(Ordering::Relaxed), WAITS);
            let begun = Instant::now();
            let left = || Some(Duration::from_millis(2).saturating_sub(begun.elapsed()));
            assert_eq!(waiters.acquire(2, || None, left), None);
            assert_eq!((waiters.count(2), waiters.acquire(2, || Some(7), || None)), (0, Some(7)));
        }
    }
}
