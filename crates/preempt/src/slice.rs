//! How long a thread has run its task without making way: the thread says since when, and the slicer that it
//! has had its slice.
//!
//! ```text
//!   the thread                                  the slicer
//!   slicer, begun = now                         run = n?  begun + slice <= now?
//!   run = n        (n + 1 at the next)          over = n, asked, signal
//!   safe point: over == run? makes way
//!   run = 0
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `run` | the thread, its handler | slicer | acquire / release | 0, or the number of the run that `begun` and `slicer` are of |
//! | `begun`, `slicer` | the thread, its handler | slicer | relaxed, between `run`'s | written while `run` is 0, or by the thread that takes `over` |
//! | `over` | slicer | the thread, its handler → 0 | relaxed: `asked`, or the signal, brings it | S1 |
//! | `told` | slicer | slicer | relaxed: its own | when it set `over` last |
//!
//! - S1: the slice of one run never ends another. The slicer says which run it means, and the thread compares.
//!
//! References: `retake` and `sysmontick.schedtick` of Go's `runtime/proc.go`, which compares the number of the run as
//! well, and preempts whatever the processor runs when the signal comes.

use sigctx::sync::Ordering::{Acquire, Relaxed, Release};
use sigctx::sync::{AtomicU32, fence};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Slice {
    run: AtomicU32,
    begun: AtomicU32,
    slicer: AtomicU32,
    over: AtomicU32,
    told: AtomicU32,
    /// The number of the last run. The thread's.
    last: AtomicU32,
}

/// A run, as a slicer has found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    number: u32,
    /// How long it has lasted, in microseconds.
    pub(crate) age: u32,
    /// How long ago the slicer said that it was over, if it did.
    pub(crate) told: Option<u32>,
}

impl Slice {
    pub(crate) fn new() -> Self {
        let [run, begun, slicer, over, told, last] = core::array::from_fn(|_| AtomicU32::new(0));
        Self { run, begun, slicer, over, told, last }
    }

    /// The thread: a run begins whose slices `slicer` ends. `now` in microseconds.
    pub(crate) fn begin(&self, slicer: u32, now: u32) {
        // Partner: the acquire fence in `look`. What is written from here on is seen with the 0 of `end`, or later.
        fence(Release);
        self.slicer.store(slicer, Relaxed);
        self.begun.store(now, Relaxed);
        let number = self.last.load(Relaxed).wrapping_add(1).max(1);
        self.last.store(number, Relaxed);
        // Release: `slicer` and `begun`. Partner: the acquire in `look`.
        self.run.store(number, Release);
    }

    /// The thread: whether a run has begun, and is not over.
    pub(crate) fn is_running(&self) -> bool {
        self.run.load(Relaxed) != 0
    }

    /// The thread: the run is over.
    pub(crate) fn end(&self) {
        self.run.store(0, Relaxed);
    }

    /// The thread, in handlers too: whether its run has had its slice. Then the next begins.
    pub(crate) fn take_over(&self, now: impl FnOnce() -> u32) -> bool {
        if !self.is_over() {
            return false;
        }
        self.begun.store(now(), Relaxed);
        // A slicer that has looked before may say it once more. Then the run makes way once more.
        self.over.store(0, Relaxed);
        true
    }

    /// Whether the thread's run has had its slice, and goes on. Async-signal-safe.
    pub(crate) fn is_over(&self) -> bool {
        let over = self.over.load(Relaxed);
        // S1.
        over != 0 && over == self.run.load(Relaxed)
    }

    /// Slicer: the run that is `slicer`'s, if there is one.
    pub(crate) fn look(&self, slicer: u32, now: u32) -> Option<Run> {
        // Acquire: partner of the release in `begin`.
        let number = self.run.load(Acquire);
        let (of, begun) = (self.slicer.load(Relaxed), self.begun.load(Relaxed));
        // Partner: the release fence in `begin`. Of a later run's words, none is read with this run's number.
        fence(Acquire);
        if number == 0 || of != slicer || self.run.load(Relaxed) != number {
            return None;
        }
        let is_told = self.over.load(Relaxed) == number;
        let told = is_told.then(|| now.wrapping_sub(self.told.load(Relaxed)));
        // The thread may have begun its next slice since `now`.
        let age = now.wrapping_sub(begun);
        let age = if age > u32::MAX / 2 { 0 } else { age };
        Some(Run { number, age, told })
    }

    /// Slicer: the run has had its slice.
    pub(crate) fn tell(&self, run: Run, now: u32) {
        self.told.store(now, Relaxed);
        self.over.store(run.number, Relaxed);
    }

    /// Slicer: what it has said is not to be, if it has said anything.
    pub(crate) fn take_back(&self, slicer: u32) {
        if self.slicer.load(Relaxed) == slicer {
            self.over.store(0, Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Slice;

    /// S1.
    #[test]
    fn the_slice_of_one_run_does_not_end_the_next() {
        let slice = Slice::new();
        slice.begin(7, 100);
        let run = slice.look(7, 150).expect("it runs");
        assert_eq!((run.age, run.told), (50, None));
        assert_eq!(slice.look(8, 150), None, "another slicer's");
        slice.end();
        assert_eq!(slice.look(7, 150), None);
        slice.begin(7, 200);
        slice.tell(run, 210);
        assert!(!slice.is_over(), "the first run is, and that has ended");
        assert!(!slice.take_over(|| 220));
        let run = slice.look(7, 230).expect("it runs");
        slice.tell(run, 230);
        assert_eq!(slice.look(7, 240).and_then(|run| run.told), Some(10));
        assert!(slice.take_over(|| 250));
        assert!(!slice.is_over(), "once");
        assert_eq!(slice.look(7, 260).map(|run| run.age), Some(10), "the next slice has begun");
    }

    #[test]
    fn a_slice_that_begins_after_the_look_has_lasted_for_no_time() {
        let slice = Slice::new();
        slice.begin(1, 5);
        assert_eq!(slice.look(1, 3).map(|run| run.age), Some(0));
        slice.begin(1, u32::MAX - 1);
        assert_eq!(slice.look(1, 3).map(|run| run.age), Some(5), "the clock begins anew");
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::Slice;

    /// Runs of two slicers, one after the other, beside one of these: it takes none of the other's for its own, nor
    /// the age of one for that of another.
    #[test]
    fn a_slicer_finds_its_own_runs_with_their_own_ages() {
        loom::model(|| {
            let slice = Arc::new(Slice::new());
            let thread = {
                let slice = slice.clone();
                thread::spawn(move || {
                    slice.begin(1, 10);
                    slice.end();
                    slice.begin(2, 1000);
                })
            };
            for _ in 0..2 {
                if let Some(run) = slice.look(2, 1010) {
                    assert_eq!(run.age, 10);
                }
            }
            thread.join().unwrap();
            let run = slice.look(2, 1010).expect("it runs");
            slice.tell(run, 1010);
            assert!(slice.take_over(|| 1010));
        });
    }
}
