//! Where a task runs, and for how long it has: a thread and two times, behind a mutex that a fork does not leave locked.
//!
//! The target writes them and others copy them, a few words each time.

use core::cell::UnsafeCell;
use core::time::Duration;

use sigctx::fork::process;
use sigctx::sync::{Found, Mutex};
use threadreg::ThreadRef;

#[derive(Debug)]
pub(crate) struct Place {
    mutex: Mutex,
    run: UnsafeCell<Run>,
}

/// Times are in nanoseconds.
#[derive(Debug)]
struct Run {
    thread: Option<ThreadRef>,
    /// Since when its time counts, if it does.
    since: Option<u64>,
    /// Until then.
    counted: u64,
}

impl Run {
    const NOWHERE: Self = Self { thread: None, since: None, counted: 0 };

    fn count(&mut self, now: u64) {
        if let Some(since) = self.since.take() {
            self.counted += now.saturating_sub(since);
        }
    }
}

// SAFETY: `run` is touched in `with` alone, by the thread that has the mutex.
unsafe impl Sync for Place {}

impl Place {
    pub(crate) const fn nowhere() -> Self {
        Self { mutex: Mutex::new(), run: UnsafeCell::new(Run::NOWHERE) }
    }

    pub(crate) fn thread(&self) -> Option<ThreadRef> {
        self.with(|run| run.thread)
    }

    pub(crate) fn set(&self, thread: Option<ThreadRef>) {
        self.with(|run| run.thread = thread);
    }

    /// The target: its time counts from now on.
    pub(crate) fn count_from(&self, now: u64) {
        self.with(|run| run.since = Some(now));
    }

    /// The target: its time, if it has counted, does not from now on.
    pub(crate) fn count_until(&self, now: u64) {
        self.with(|run| run.count(now));
    }

    /// The time that has counted.
    pub(crate) fn run_time(&self, now: u64) -> Duration {
        let nanos =
            self.with(|run| run.counted + run.since.map_or(0, |since| now.saturating_sub(since)));
        Duration::from_nanos(nanos)
    }

    /// In the child of a fork, on the thread that runs the task. That wrote nothing meanwhile, so a
    /// thread that had the mutex only read.
    pub(crate) fn after_fork(&self) {
        self.mutex.reset();
    }

    fn with<R>(&self, work: impl FnOnce(&mut Run) -> R) -> R {
        let locked = self.mutex.guard(process());
        if locked.found() == Found::Copied {
            // Half written, perhaps. The task that ran there does not run here: `after_fork` has reset
            // the place of the one that does.
            // SAFETY: this thread has the mutex, and the thread that had it is not in this process.
            unsafe { *self.run.get() = Run::NOWHERE };
        }
        // SAFETY: this thread has the mutex.
        work(unsafe { &mut *self.run.get() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use testkit::{forked, in_child};

    use crate::Task;

    /// F3.
    #[test]
    fn a_place_that_a_fork_copies_locked_is_free_in_the_child() {
        let name = "place::tests::a_place_that_a_fork_copies_locked_is_free_in_the_child";
        in_child(name, Duration::from_secs(20), || {
            let me = threadreg::attach().expect("not attached yet");
            let here = Some(me.thread());
            let (mine, other) = (Task::new(), Task::new());
            let status = mine.enter(|| {
                let (locked, is_locked) = mpsc::channel();
                let (unlock, to_unlock) = mpsc::channel::<()>();
                let holder = {
                    let (mine, other) = (mine.clone(), other.clone());
                    thread::spawn(move || {
                        mine.0.place.with(|_| {
                            other.0.place.with(|_| {
                                locked.send(()).expect("the test waits");
                                to_unlock.recv().expect("the test tells");
                            });
                        });
                    })
                };
                is_locked.recv().expect("the holder tells");
                let status = forked(|| {
                    assert_eq!(mine.0.place.thread(), here, "the task runs here");
                    mine.0.place.set(None);
                    other.enter(|| ()).expect_err("inside another task");
                    other.0.place.set(here);
                    assert_eq!(other.0.place.thread(), here);
                });
                unlock.send(()).expect("the holder waits");
                holder.join().expect("no panic");
                status
            });
            assert_eq!(status, Ok(0), "in the child of fork");
            assert_eq!(mine.0.place.thread(), None);
        });
    }

    #[test]
    fn a_thread_that_waits_for_a_place_is_woken() {
        let name = "place::tests::a_thread_that_waits_for_a_place_is_woken";
        in_child(name, Duration::from_secs(20), || {
            let place = super::Place::nowhere();
            thread::scope(|scope| {
                place.with(|_| {
                    for _ in 0..2 {
                        scope.spawn(|| place.with(|_| ()));
                    }
                    testkit::until("one waits", || place.mutex.is_awaited());
                });
            });
        });
    }

    #[test]
    fn stress_a_place_is_one_threads_at_a_time() {
        let name = "place::tests::stress_a_place_is_one_threads_at_a_time";
        in_child(name, Duration::from_mins(1), || {
            let place = super::Place::nowhere();
            let inside = AtomicU32::new(0);
            let enter = || {
                for _ in 0..testkit::budget(10_000) {
                    place.with(|_| {
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two");
                        inside.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            };
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(enter);
                }
            });
        });
    }
}
