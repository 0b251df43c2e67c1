//! What the fibers do.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::fiber::Sleeper;

/// Set when the fibers are to end.
pub(crate) static OVER: AtomicBool = AtomicBool::new(false);

/// Counts until all is over, without a call. Every instruction is a safe point.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
pub(crate) fn count_without_end(rounds: &AtomicU64) {
    while !OVER.load(Relaxed) {
        rounds.store(rounds.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// Does a little and sleeps, again and again, for the first time after `first`.
pub(crate) fn be_light(sleeper: &Sleeper<'_>, first: Duration, sleep: Duration, runs: &AtomicU64) {
    let mut due = Instant::now() + first;
    sleeper.sleep(due);
    while !OVER.load(Relaxed) {
        black_box((0..black_box(5_000_u64)).map(|i| i ^ (i >> 3)).sum::<u64>());
        runs.store(runs.load(Relaxed) + 1, Relaxed);
        due = (due + sleep).max(Instant::now());
        sleeper.sleep(due);
    }
}
