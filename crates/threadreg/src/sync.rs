//! The atomics and the waiting of the protocol cores: the real ones, or loom's under `cfg(loom)`.

#[cfg(not(loom))]
mod real {
    pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

    use std::time::Duration;

    use sigctx::sys;

    /// Sleeps while `word` holds `expected`. It may return early, so callers look again in a loop.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        // Whatever ended the sleep (a wake, another value, a signal, the timeout), the caller looks at the
        // word again and, where it has one, at its deadline.
        let _ = sys::futex_wait(word, expected, timeout);
    }

    /// Wakes all threads that sleep on `word`.
    pub(crate) fn wake_all(word: &AtomicU32) {
        sys::futex_wake(word, i32::MAX as u32);
    }

    /// Wakes one of the threads that sleep on `word`.
    pub(crate) fn wake_one(word: &AtomicU32) {
        sys::futex_wake(word, 1);
    }
}

#[cfg(not(loom))]
pub(crate) use real::*;

#[cfg(loom)]
mod modelled {
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};

    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    // One queue for all words. A wake wakes every sleeper, which is allowed, since sleepers look again. A
    // missing wake leaves a sleeper behind, and loom reports the deadlock.
    loom::lazy_static! {
        static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(crate) fn wait(word: &AtomicU32, expected: u32, _timeout: Option<Duration>) {
        let held = QUEUE.0.lock().expect("no model panics with it held");
        if word.load(Ordering::SeqCst) == expected {
            drop(QUEUE.1.wait(held).expect("no model panics with it held"));
        }
    }

    pub(crate) fn wake_all(_word: &AtomicU32) {
        let _held = QUEUE.0.lock().expect("no model panics with it held");
        QUEUE.1.notify_all();
    }

    pub(crate) fn wake_one(word: &AtomicU32) {
        wake_all(word);
    }
}

#[cfg(loom)]
pub(crate) use modelled::*;
