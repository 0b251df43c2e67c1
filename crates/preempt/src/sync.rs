//! Atomics and waiting for the two protocol cores, [`word`](crate::word) and
//! [`pending`](crate::pending): the processor's and a futex in a build, loom's in a model.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use futex::{wait, wake_all};
#[cfg(all(loom, test))]
pub(crate) use model::interrupt;
#[cfg(loom)]
pub(crate) use model::{wait, wake_all};

#[cfg(not(loom))]
mod futex {
    use core::sync::atomic::AtomicU32;
    use core::time::Duration;

    /// Waits while `word` is `seen`, at most `timeout`. May return early; the caller looks again.
    pub(crate) fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
        // Changed already, woken, interrupted, timed out: in each case the caller looks again.
        let _ = sigctx::sys::futex_wait(word, seen, timeout);
    }

    /// Wakes all who wait on `word`. Async-signal-safe.
    pub(crate) fn wake_all(word: &AtomicU32) {
        sigctx::sys::futex_wake(word, u32::MAX >> 1);
    }
}

#[cfg(loom)]
mod model {
    use core::time::Duration;

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};

    // One queue for all words: a wake wakes everybody, which is allowed, since sleepers look again. A
    // wake that is missing leaves a sleeper behind, and loom reports the deadlock. No timeouts: the
    // protocol has to get there without looking again.
    loom::lazy_static! {
        static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    /// Compares under the lock, as the kernel does.
    pub(crate) fn wait(word: &AtomicU32, seen: u32, _timeout: Option<Duration>) {
        let held = QUEUE.0.lock().expect("no model panics with it held");
        if word.load(Ordering::SeqCst) == seen {
            drop(QUEUE.1.wait(held).expect("no model panics with it held"));
        }
    }

    pub(crate) fn wake_all(_word: &AtomicU32) {
        let _held = QUEUE.0.lock().expect("no model panics with it held");
        QUEUE.1.notify_all();
    }

    /// What a signal does to the wait of its own thread: the kernel looks at the word again.
    pub(crate) fn interrupt() {
        let _held = QUEUE.0.lock().expect("no model panics with it held");
        QUEUE.1.notify_all();
    }
}
