//! Whether a thread that waits for another one spins for a moment before it sleeps.
//!
//! A sleep and its wake take 15 to 25 µs; what is waited for has often come by then. But a thread that spins
//! takes a processor, perhaps from the very thread that it waits for. So those that are known to need one are
//! counted, and no thread spins when there are more of them than processors:
//!
//! | word | counts | writers |
//! |---|---|---|
//! | `asking` | threads that spin in [`for_running`], and those that they wait for | these, before and after |
//! | `resting` | threads that spin in [`at_rest`] | these, before and after |
//!
//! A thread at rest comes second: as soon as `asking` grows beyond what is left it sleeps, for its processor
//! may be the one that a thread is to be stopped on. The words are hints, all accesses relaxed: a thread that
//! sees an old value spins, or sleeps, a moment too long.
//!
//! Other threads, and other processes, are not counted. Where they need the processors, what is waited for does
//! not come while a thread spins. So after a spin in vain the next ones are left out: one, three, seven, then
//! fifteen, until one was of use again (`Luck`). **Exit**: a thread
//! that ends in a handler while it spins is counted for good, and others sleep where they could spin.
//! **fork**: nothing spins in the child yet.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::thread;
use std::time::Instant;

/// Looks between two looks at the clock.
const LOOKS: u32 = 32;

struct Spinners {
    asking: AtomicU32,
    resting: AtomicU32,
    asked: Luck,
    rested: Luck,
}

/// Whether spinning has been of use lately. All accesses relaxed: threads that race leave out one spin more or
/// less.
struct Luck {
    /// Spins in vain in a row, at most [`MOST_VAIN`].
    vain: AtomicU32,
    /// Spins still to be left out.
    left_out: AtomicU32,
}

/// Bounds how many spins are left out, at 2⁴ − 1.
const MOST_VAIN: u32 = 4;

impl Luck {
    const fn new() -> Self {
        Self { vain: AtomicU32::new(0), left_out: AtomicU32::new(0) }
    }

    /// Calls `spin`, unless it is to be left out: then false.
    fn try_spin(&self, spin: impl FnOnce() -> bool) -> bool {
        let left_out = self.left_out.load(Ordering::Relaxed);
        if left_out != 0 {
            self.left_out.store(left_out - 1, Ordering::Relaxed);
            return false;
        }
        let was_of_use = spin();
        let before = self.vain.load(Ordering::Relaxed);
        let vain = if was_of_use { 0 } else { MOST_VAIN.min(before + 1) };
        // Most spins are of use, and leave the words in every processor's cache.
        if vain != before || vain != 0 {
            self.vain.store(vain, Ordering::Relaxed);
            self.left_out.store((1 << vain) - 1, Ordering::Relaxed);
        }
        was_of_use
    }
}

static SPINNERS: Spinners = Spinners::new();

/// Spins until `done`, at most for `limit`, unless there is no processor to spin on: the calling thread
/// waits for `running` other threads, which run. Returns whether it is done. Asks `done` at least once.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): the first call asks for the number of processors.
pub fn for_running(running: u32, limit: Duration, done: impl Fn() -> bool) -> bool {
    done() || SPINNERS.for_running(processors(), running, limit, done)
}

/// Spins until `done`, at most for `limit`, as long as no other thread is known to need the processor: the
/// calling thread stands still until another one lets it go. Returns whether it is done. Asks `done` at least
/// once.
///
/// Sleeps only, until some thread has called [`for_running`].
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), but in a handler it waits.
pub fn at_rest(limit: Duration, done: impl Fn() -> bool) -> bool {
    // Relaxed: see `processors`.
    done() || SPINNERS.at_rest(PROCESSORS.load(Ordering::Relaxed), limit, done)
}

/// 0 until it is known.
static PROCESSORS: AtomicU32 = AtomicU32::new(0);

/// Processors that the process could use at the first call, by affinity and cgroup quota.
fn processors() -> u32 {
    // Not a `OnceLock`: a fork could copy it while a thread asks. Relaxed: only the number is handed over.
    let known = PROCESSORS.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let found = thread::available_parallelism().map_or(1, |n| n.get() as u32);
    PROCESSORS.store(found, Ordering::Relaxed);
    found
}

/// In the child of a fork.
pub(crate) fn after_fork() {
    SPINNERS.asking.store(0, Ordering::Relaxed);
    SPINNERS.resting.store(0, Ordering::Relaxed);
}

/// Counts on one word until it is dropped, also when `done` panics.
struct Counted<'a> {
    word: &'a AtomicU32,
    threads: u32,
}

impl<'a> Counted<'a> {
    /// Returns what was counted before, too.
    fn new(word: &'a AtomicU32, threads: u32) -> (Self, u32) {
        let before = word.fetch_add(threads, Ordering::Relaxed);
        (Self { word, threads }, before)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // Not below zero: a handler that interrupted this thread may have come back in the child of a fork.
        let less = |counted: u32| Some(counted.saturating_sub(self.threads));
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Spinners {
    const fn new() -> Self {
        let (asked, rested) = (Luck::new(), Luck::new());
        Self { asking: AtomicU32::new(0), resting: AtomicU32::new(0), asked, rested }
    }

    fn for_running(
        &self,
        processors: u32,
        running: u32,
        limit: Duration,
        done: impl Fn() -> bool,
    ) -> bool {
        // Before it is counted: no thread at rest gives way to one that does not spin.
        if running >= processors {
            return false;
        }
        let (_counted, before) = Counted::new(&self.asking, running + 1);
        // Asked once: who comes later does not spin, and those that spin go on.
        before.saturating_add(running) < processors
            && self.asked.try_spin(|| spin(limit, done, || true))
    }

    fn at_rest(&self, processors: u32, limit: Duration, done: impl Fn() -> bool) -> bool {
        let (_counted, _) = Counted::new(&self.resting, 1);
        let has_room = || {
            // The thread that is to let this one go may be one of those that ask.
            let others = self.asking.load(Ordering::Relaxed).max(1);
            self.resting.load(Ordering::Relaxed).saturating_add(others) <= processors
        };
        has_room() && self.rested.try_spin(|| spin(limit, done, has_room))
    }
}

/// Spins while there is room.
fn spin(limit: Duration, done: impl Fn() -> bool, has_room: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while has_room() {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            core::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            break;
        }
    }
    done()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicBool;

    use testkit::in_child;

    use super::*;

    /// Far longer than the watchdog waits.
    const LONG: Duration = Duration::from_hours(1);

    /// Whether a wait spins: `done` is true at its hundredth look.
    fn spins(wait: impl FnOnce(&dyn Fn() -> bool) -> bool) -> bool {
        let looks = Cell::new(0);
        wait(&|| {
            looks.set(looks.get() + 1);
            looks.get() == 100
        })
    }

    #[test]
    fn a_thread_spins_only_where_there_is_a_processor_for_it() {
        let none = Spinners::new();
        for (processors, running, expected) in
            [(1, 0, true), (1, 1, false), (2, 1, true), (2, 2, false)]
        {
            let asks = spins(|done| none.for_running(processors, running, LONG, done));
            assert_eq!(asks, expected, "{running} on {processors}");
        }
        for (processors, expected) in [(0, false), (1, false), (2, true)] {
            let rests = spins(|done| none.at_rest(processors, LONG, done));
            assert_eq!(rests, expected, "at rest, {processors}");
        }
    }

    #[test]
    fn those_that_spin_already_count() {
        let others = Spinners::new();
        let one_more = |processors| {
            (
                spins(|done| others.for_running(processors, 1, LONG, done)),
                spins(|done| others.at_rest(processors, LONG, done)),
            )
        };
        let (resting, _) = Counted::new(&others.resting, 1);
        assert_eq!(one_more(2), (true, false), "beside one at rest");
        drop(resting);
        let (asking, _) = Counted::new(&others.asking, 2);
        assert_eq!(one_more(2), (false, false), "beside one that asks");
        assert_eq!(one_more(3), (false, true), "beside one that asks, on three");
        assert_eq!(one_more(4), (true, true), "beside one that asks, on four");
        drop(asking);
        let panics = || others.at_rest(2, LONG, || panic!("on purpose"));
        catch_unwind(AssertUnwindSafe(panics)).expect_err("a panic");
        assert_eq!(one_more(2), (true, true), "beside none");
    }

    /// Else a thread that was parked would keep its processor from the next one that is to be stopped.
    #[test]
    fn a_thread_at_rest_gives_way_to_one_that_asks() {
        let name = "spin::tests::a_thread_at_rest_gives_way_to_one_that_asks";
        in_child(name, Duration::from_secs(20), || {
            let spinners = Spinners::new();
            let (rests, rested) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    let let_go = spinners.at_rest(2, LONG, || {
                        rests.store(true, Ordering::Relaxed);
                        false
                    });
                    assert!(!let_go);
                    rested.store(true, Ordering::Relaxed);
                });
                testkit::until("one is at rest", || rests.load(Ordering::Relaxed));
                assert!(spinners.for_running(2, 1, LONG, || rested.load(Ordering::Relaxed)));
            });
        });
    }

    /// Where other processes need the processors, spinning would make each wait longer.
    #[test]
    fn after_spins_in_vain_most_are_left_out() {
        let luck = Luck::new();
        let mut made = Vec::new();
        for wait in 0..60 {
            luck.try_spin(|| {
                made.push(wait);
                false
            });
        }
        assert_eq!(made, [0, 2, 6, 14, 30, 46], "one, three, seven, fifteen are left out");
        for _ in 0..2 {
            luck.try_spin(|| false);
        }
        assert!(luck.try_spin(|| true), "the next is due");
        assert!(luck.try_spin(|| true), "one was of use, so none is left out");
    }

    #[test]
    fn no_time_is_no_spin() {
        let looks = Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            false
        };
        assert!(!for_running(0, Duration::ZERO, look));
        assert!((1..=LOOKS + 2).contains(&looks.get()));
    }

    /// The threads that spin are not copied.
    #[test]
    fn none_spins_in_the_child_of_a_fork() {
        let name = "spin::tests::none_spins_in_the_child_of_a_fork";
        in_child(name, Duration::from_secs(20), || {
            let _me = crate::attach().expect("not attached yet");
            let (_counted, _) = Counted::new(&SPINNERS.asking, u32::MAX / 2);
            let status = testkit::forked(|| {
                assert_eq!(SPINNERS.asking.load(Ordering::Relaxed), 0);
                assert!(spins(|done| for_running(0, LONG, done)));
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
