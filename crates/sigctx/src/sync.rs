//! Words, sleeping on them, and a mutex: the hardware's and the kernel's, or loom's under `cfg(loom)`.
//!
//! A protocol that is written with these is checked by loom as it stands. Code that handlers run, or
//! that a fork may copy half done, cannot use std's locks: a handler must not wait for what it
//! interrupted, and a child of fork would wait for a thread that it does not have.

use core::time::Duration;

pub use words::{AtomicPtr, AtomicU32, Ordering, fence};

#[cfg(not(loom))]
use core::sync::atomic as words;
#[cfg(loom)]
use loom::sync::atomic as words;

#[cfg(loom)]
pub use model::interrupt;

/// Makes `new` a `const fn`, but under loom, whose atomics know the model that they are made in.
#[doc(hidden)]
#[macro_export]
macro_rules! const_unless_loom {
    ($(#[$doc:meta])* $visibility:vis fn $($rest:tt)*) => {
        $(#[$doc])*
        #[cfg(not(loom))]
        $visibility const fn $($rest)*

        $(#[$doc])*
        #[cfg(loom)]
        $visibility fn $($rest)*
    };
}

/// Sleeps while `word` holds `expected`, at most for `timeout`; `None`: forever.
///
/// Returns early as it likes (a signal, a wake that was meant for another): callers look again.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), but in a handler it waits.
///
/// # References
///
/// `futex(2)`, `FUTEX_WAIT_PRIVATE`
#[inline]
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    #[cfg(not(loom))]
    {
        // Woken, changed already, interrupted, timed out: in each case the caller looks again.
        let _ = crate::sys::futex_wait(word, expected, timeout);
    }
    #[cfg(loom)]
    {
        let _ = timeout;
        model::wait(word, expected);
    }
}

/// Wakes all threads that sleep on `word`.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[inline]
pub fn wake_all(word: &AtomicU32) {
    #[cfg(not(loom))]
    crate::sys::futex_wake(word, i32::MAX as u32);
    #[cfg(loom)]
    model::wake(word, usize::MAX);
}

/// Wakes one of the threads that sleep on `word`.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[inline]
pub fn wake_one(word: &AtomicU32) {
    #[cfg(not(loom))]
    crate::sys::futex_wake(word, 1);
    #[cfg(loom)]
    model::wake(word, 1);
}

/// A mutex of three states that a fork does not leave locked.
///
/// A fork copies what other threads hold, and the child does not have them. So the word says which
/// process locked it, and the mutex is free for every other.
///
/// ```text
///  word = FREE, or | process, 30 bits | AWAITED | LOCKED |
///
///               lock: FREE or another process's ──▶ LOCKED
///    lock, contended: LOCKED ──▶ AWAITED ──sleep──▶ looks again
///             unlock: LOCKED ──▶ FREE;  AWAITED ──▶ FREE, wakes one
/// ```
///
/// | word | writers | readers | ordering | invariant |
/// |---|---|---|---|---|
/// | `word` | the thread that locks it, those that wait, the thread that unlocks it | the same | locked acquire, unlocked release | M1, M2 |
///
/// - **M1** One thread of a process has the mutex: FREE, or the word of another process, is exchanged
///   for one's own in one step.
/// - **M2** A thread sleeps only while the word says AWAITED, and what unlocks such a word wakes one
///   sleeper. A thread that has slept locks the mutex as AWAITED: others may sleep still. One wake
///   too many costs less than one too few.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe) except [`lock`](Self::lock) and [`guard`](Self::guard): a
/// handler must not wait in them, since it may have interrupted the holder.
///
/// # References
///
/// U. Drepper, "Futexes Are Tricky", mutex 2
#[derive(Debug)]
pub struct Mutex {
    word: AtomicU32,
}

const FREE: u32 = 0;
const LOCKED: u32 = 1;
const AWAITED: u32 = 2;

/// What a thread that locked a [`Mutex`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No thread had it.
    Free,
    /// A fork copied it locked: what it protects may be half written. Its holder is not in this process.
    Copied,
}

/// The time ran out before a [`Mutex`] was free. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl Mutex {
    const_unless_loom! {
        /// Makes a mutex that no thread has.
        ///
        /// # Signal safety
        ///
        /// Async-signal-safe (AS-Safe).
        #[must_use]
        pub fn new() -> Self {
            Self { word: AtomicU32::new(FREE) }
        }
    }

    /// Locks the mutex for a thread of `process`, see [`fork::process`](crate::fork::process).
    ///
    /// # Blocking
    ///
    /// Until the holder unlocks it, or until no time is `left`: asked before each sleep, which it
    /// bounds; `None`: forever.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] when no time is left.
    pub fn lock(
        &self,
        process: u32,
        mut left: impl FnMut() -> Option<Duration>,
    ) -> Result<Found, TimedOut> {
        let locked = process << 2 | LOCKED;
        let mut mine = locked;
        loop {
            // Relaxed: a hint; the exchanges decide.
            let seen = self.word.load(Ordering::Relaxed);
            if seen | AWAITED != locked | AWAITED {
                if let Some(found) = self.take(seen, mine) {
                    return Ok(found);
                }
            } else if seen & AWAITED != 0 || self.mark_awaited(seen) {
                let left = left();
                if left.is_some_and(|left| left.is_zero()) {
                    return Err(TimedOut);
                }
                wait(&self.word, locked | AWAITED, left);
                // M2.
                mine = locked | AWAITED;
            }
        }
    }

    /// Locks the mutex if no thread of `process` has it.
    #[must_use]
    pub fn try_lock(&self, process: u32) -> Option<Found> {
        let locked = process << 2 | LOCKED;
        // Relaxed: a hint; the exchange decides.
        let seen = self.word.load(Ordering::Relaxed);
        if seen | AWAITED == locked | AWAITED { None } else { self.take(seen, locked) }
    }

    /// Locks the mutex as [`lock`](Self::lock) does, without a timeout, until the result is dropped.
    ///
    /// # Blocking
    ///
    /// Until the holder unlocks it. For holders that wait for nothing.
    pub fn guard(&self, process: u32) -> Guard<'_> {
        // Without a timeout it does not run out.
        let found = loop {
            if let Ok(found) = self.lock(process, || None) {
                break found;
            }
        };
        Guard { mutex: self, found }
    }

    /// Locks the mutex if no thread of `process` has it, until the result is dropped.
    #[must_use]
    pub fn try_guard(&self, process: u32) -> Option<Guard<'_>> {
        Some(Guard { found: self.try_lock(process)?, mutex: self })
    }

    /// Unlocks the mutex. Only for the thread that has it, or that stands in for its holder.
    pub fn unlock(&self) {
        // Release: pairs with the acquire in `take`. M2.
        if self.word.swap(FREE, Ordering::Release) & AWAITED != 0 {
            wake_one(&self.word);
        }
    }

    /// Unlocks the mutex in the child of a fork, where what it protects is known to be whole.
    pub fn reset(&self) {
        // Relaxed: there is no other thread.
        self.word.store(FREE, Ordering::Relaxed);
    }

    /// Tells whether a thread may be waiting. For tests, and for people to read.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.word.load(Ordering::Relaxed) & AWAITED != 0
    }

    /// M1.
    fn take(&self, seen: u32, mine: u32) -> Option<Found> {
        // Acquire: pairs with the release in `unlock`; what the last holder wrote is seen.
        let took = self.word.compare_exchange(seen, mine, Ordering::Acquire, Ordering::Relaxed);
        took.is_ok().then_some(if seen == FREE { Found::Free } else { Found::Copied })
    }

    /// Relaxed: takes nothing.
    fn mark_awaited(&self, seen: u32) -> bool {
        let awaited = seen | AWAITED;
        self.word.compare_exchange(seen, awaited, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A [`Mutex`] is locked until this is dropped.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), and so is the drop.
#[derive(Debug)]
#[must_use = "dropping it unlocks the mutex"]
pub struct Guard<'a> {
    mutex: &'a Mutex,
    found: Found,
}

impl Guard<'_> {
    /// What the thread found: whether what the mutex protects may be half written.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.mutex.unlock();
    }
}

impl Default for Mutex {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(loom)]
mod model {
    use std::vec::Vec;

    use loom::sync::{Arc, Condvar, Mutex};

    use super::{AtomicU32, Ordering};

    /// A thread that sleeps, by the address of its word; in the list until it is woken.
    type Sleeper = (usize, Arc<Condvar>);

    // No sleep ends without a wake: where one is missing a sleeper is left behind, and loom reports the
    // deadlock. No timeouts: a protocol has to get there without.
    loom::lazy_static! {
        static ref SLEEPERS: Mutex<Vec<Sleeper>> = Mutex::new(Vec::new());
    }

    /// Compares under the lock, as the kernel does.
    pub(super) fn wait(word: &AtomicU32, expected: u32) {
        let mut sleepers = SLEEPERS.lock().expect("no model panics with it held");
        if word.load(Ordering::SeqCst) != expected {
            return;
        }
        let woken = Arc::new(Condvar::new());
        sleepers.push((address(word), woken.clone()));
        while sleepers.iter().any(|(_, sleeper)| Arc::ptr_eq(sleeper, &woken)) {
            sleepers = woken.wait(sleepers).expect("no model panics with it held");
        }
    }

    /// Wakes those that have slept longest, as the kernel does.
    pub(super) fn wake(word: &AtomicU32, count: usize) {
        wake_those(count, |&(at, _)| at == address(word));
    }

    /// Does what a signal does to the sleep of its own thread: the thread looks at the word again. So does
    /// every other, which is allowed.
    ///
    /// # Signal safety
    ///
    /// For models alone, which have no handlers.
    pub fn interrupt() {
        wake_those(usize::MAX, |_| true);
    }

    fn wake_those(count: usize, which: impl Fn(&Sleeper) -> bool) {
        let mut sleepers = SLEEPERS.lock().expect("no model panics with it held");
        for _ in 0..count {
            let Some(first) = sleepers.iter().position(&which) else { return };
            let (_, woken) = sleepers.remove(first);
            woken.notify_one();
        }
    }

    fn address(word: &AtomicU32) -> usize {
        core::ptr::from_ref(word).addr()
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::{AWAITED, Found, LOCKED, Mutex, Ordering};

    /// What the mutex protects: loom reports a race where the mutex does not order two accesses.
    struct Shared {
        mutex: Mutex,
        count: UnsafeCell<u32>,
    }

    // SAFETY: `count` is touched by the thread that has the mutex: that is what the models prove.
    unsafe impl Sync for Shared {}

    fn count(shared: &Shared, process: u32) -> Found {
        let found = shared.mutex.lock(process, || None).expect("no deadline");
        shared.count.with_mut(|count| {
            // SAFETY: as for `Sync`.
            unsafe { *count += 1 };
        });
        shared.mutex.unlock();
        found
    }

    /// M1 and M2: each of three threads gets the mutex, one at a time, and none is left asleep.
    #[test]
    fn each_thread_that_waits_gets_the_mutex() {
        let mut explorer = loom::model::Builder::new();
        explorer.preemption_bound = Some(2);
        explorer.check(|| {
            let shared = Arc::new(Shared { mutex: Mutex::new(), count: UnsafeCell::new(0) });
            let others = [(); 2].map(|()| {
                let shared = shared.clone();
                thread::spawn(move || count(&shared, 1))
            });
            assert_eq!(count(&shared, 1), Found::Free);
            for other in others {
                assert_eq!(other.join().expect("no panic"), Found::Free);
            }
            shared.count.with(|count| {
                // SAFETY: the other threads have ended.
                assert_eq!(unsafe { *count }, 3);
            });
        });
    }

    /// A handler tries while another thread works.
    #[test]
    fn a_try_has_it_alone_or_not_at_all() {
        loom::model(|| {
            let shared = Arc::new(Shared { mutex: Mutex::new(), count: UnsafeCell::new(0) });
            let other = {
                let shared = shared.clone();
                thread::spawn(move || count(&shared, 1))
            };
            if shared.mutex.try_lock(1).is_some() {
                shared.count.with_mut(|count| {
                    // SAFETY: as for `Sync`.
                    unsafe { *count += 1 };
                });
                shared.mutex.unlock();
            }
            other.join().expect("no panic");
        });
    }

    /// The word of another process is no holder of this one's: two threads of the child meet it.
    #[test]
    fn a_child_finds_a_copied_mutex_once() {
        for copied in [1 << 2 | LOCKED, 1 << 2 | LOCKED | AWAITED] {
            loom::model(move || {
                let shared = Arc::new(Shared { mutex: Mutex::new(), count: UnsafeCell::new(0) });
                shared.mutex.word.store(copied, Ordering::Relaxed);
                let other = {
                    let shared = shared.clone();
                    thread::spawn(move || count(&shared, 2))
                };
                let found = [count(&shared, 2), other.join().expect("no panic")];
                assert!(
                    found.contains(&Found::Copied) && found.contains(&Found::Free),
                    "{found:?}"
                );
            });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_guard_has_the_mutex_until_it_is_dropped() {
        let mutex = Mutex::new();
        let guard = mutex.guard(1);
        assert_eq!(guard.found(), Found::Free);
        assert!(mutex.try_guard(1).is_none());
        // In the child of a fork, which has no such guard.
        assert_eq!(mutex.try_guard(2).map(|guard| guard.found()), Some(Found::Copied));
        drop(guard);
        assert_eq!(mutex.try_guard(1).map(|guard| guard.found()), Some(Found::Free));
    }

    #[test]
    fn a_mutex_that_is_locked_is_waited_for_until_no_time_is_left() {
        let mutex = Mutex::new();
        assert_eq!(mutex.lock(1, || None), Ok(Found::Free));
        assert_eq!(mutex.try_lock(1), None);
        let mut asked = 0;
        let left = || {
            asked += 1;
            Some(Duration::from_millis(u64::from(asked < 3)))
        };
        assert_eq!(mutex.lock(1, left), Err(TimedOut));
        assert_eq!(asked, 3);
        mutex.unlock();
        assert_eq!(mutex.try_lock(1), Some(Found::Free));
    }

    #[test]
    fn another_process_finds_it_copied() {
        let mutex = Mutex::new();
        mutex.lock(1, || None).unwrap();
        assert_eq!(mutex.try_lock(2), Some(Found::Copied));
        assert_eq!(mutex.try_lock(2), None);
        mutex.reset();
        assert_eq!(mutex.try_lock(2), Some(Found::Free));
    }

    #[test]
    fn a_sleeper_is_woken() {
        static MUTEX: Mutex = Mutex::new();
        MUTEX.lock(1, || None).unwrap();
        let (tell, told) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let found = MUTEX.lock(1, || None);
            tell.send(()).unwrap();
            MUTEX.unlock();
            found
        });
        while !MUTEX.is_awaited() {
            thread::yield_now();
        }
        assert!(told.try_recv().is_err());
        MUTEX.unlock();
        assert_eq!(waiter.join().unwrap(), Ok(Found::Free));
    }
}
