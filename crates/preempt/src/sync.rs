//! Atomics and waiting for the two protocol cores, [`word`](crate::word) and
//! [`pending`](crate::pending): the processor's and a futex in a build, loom's in a model.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

use core::time::Duration;

/// Waits while `word` is `seen`, at most `timeout`. May return early; the caller looks again.
#[cfg(not(loom))]
pub(crate) fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    // Changed already, woken, interrupted, timed out: in each case the caller looks again.
    let _ = sigctx::sys::futex_wait(word, seen, timeout);
}

/// Wakes all who wait on `word`.
#[cfg(not(loom))]
pub(crate) fn wake_all(word: &AtomicU32) {
    sigctx::sys::futex_wake(word, u32::MAX >> 1);
}

#[cfg(loom)]
pub(crate) fn wait(word: &AtomicU32, seen: u32, _timeout: Option<Duration>) {
    if word.load(Ordering::SeqCst) == seen {
        loom::thread::yield_now();
    }
}

#[cfg(loom)]
pub(crate) fn wake_all(_word: &AtomicU32) {}
