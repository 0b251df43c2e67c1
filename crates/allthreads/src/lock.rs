//! The lock that makes one thread at a time the requester.
//!
//! The word is `waiters (1) | epoch (9) | the holder's thread id (22)`. A thread that asks for a lock that
//! it has itself is told so, and does not wait forever. The epoch counts the changes that waiting threads
//! must look at (a new signal, see `signals`): a change ends their sleep, and none falls asleep on an old
//! epoch.
//!
//! A holder can end while it has the lock: a seccomp filter of its own may kill it for a system call. So no
//! thread sleeps for long without a look at the holder. The thread that finds it dead inherits the lock, and
//! ends the operation that the holder left behind (`Hold::recover`).
//!
//! Where processors are scarce, a holder that asks again at once would have the lock again and again before
//! a waiting thread has had a processor. So the last holder leaves the lock to a waiting thread, for a while.
//!
//! This is not the mutex that other crates use: it can be inherited, has an id to name in an error, and is
//! waited for until a deadline with a changing mask.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use sigctx::sys::{self, Tid, futex_wait};

use crate::life;
use crate::patience::Patience;
use crate::system::{Kernel, System};

const WAITERS: u32 = 1 << 31;
const EPOCH: u32 = WAITERS - NEXT;
const NEXT: u32 = 1 << 22;
const HOLDER: u32 = NEXT - 1;

/// The longest sleep without a look at the holder.
const LOOK: Duration = Duration::from_millis(100);

/// The longest that a free lock is left to a waiting thread. The unit tests look at the order of turns,
/// however long they take.
const COURTESY: Duration = if cfg!(test) { Duration::from_mins(10) } else { LOOK };

/// See the module.
pub(crate) struct Lock {
    word: AtomicU32,
    /// The last holder. This and `wanted` only make the turns fair: all accesses are relaxed.
    last: AtomicU32,
    /// A waiting thread. Each writes its id before each sleep, and operations end all sleeps.
    wanted: AtomicU32,
}

/// The lock is held until this is dropped.
pub(crate) struct Locked<'a> {
    lock: &'a Lock,
    /// The holder before died while it had the lock.
    pub(crate) inherited: bool,
}

/// Why a thread did not get the lock.
pub(crate) enum Refused {
    /// The thread itself, or the operation that it is inside, has it.
    Nested,
    /// Others had it until the deadline; the last of them that was seen.
    TimedOut { holder: Option<Tid> },
}

impl Lock {
    pub(crate) const fn new() -> Self {
        Self { word: AtomicU32::new(0), last: AtomicU32::new(0), wanted: AtomicU32::new(0) }
    }

    /// Takes the lock, as long as there is `patience`. `hopeless` says that the holder cannot release it
    /// before the calling thread goes on. `ready` is called before each sleep, and makes the thread ready to
    /// be held.
    pub(crate) fn acquire(
        &self,
        me: Tid,
        patience: &mut Patience,
        hopeless: impl FnOnce() -> bool,
        ready: impl Fn(),
    ) -> Result<Locked<'_>, Refused> {
        let me = me as u32;
        // Acquire, here and below: a thread that sees an epoch sees what it announces.
        let mut seen = self.word.load(Ordering::Acquire);
        // The last thread that was seen to have the lock.
        let mut met = seen & HOLDER;
        if met == me || met != 0 && hopeless() {
            return Err(Refused::Nested);
        }
        let late = |met: u32| Refused::TimedOut { holder: tid_of(met) };
        let mut waiters = 0;
        let mut slept = false;
        let mut courtesy = COURTESY;
        loop {
            let holder = seen & HOLDER;
            let inherited = slept && holder != 0 && life::has_ended(sys::getpid(), holder as Tid);
            let nap = if holder != 0 {
                LOOK
            } else if self.is_anothers_turn(me) {
                // Most of the patience is left for the operation.
                courtesy.min(patience.left().unwrap_or_default() / 4)
            } else {
                Duration::ZERO
            };
            if inherited || nap.is_zero() {
                // Others may wait still: keep the bit, at worst for one wake too many.
                let taken = seen & (EPOCH | WAITERS) | waiters | me;
                // Acquire: what the last holder wrote is seen.
                let swap =
                    self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Acquire);
                match swap {
                    Ok(_) => {
                        // If late it is dropped again, which wakes the next one.
                        let locked = Locked { lock: self, inherited };
                        self.forget(me);
                        let in_time = met == 0 || inherited || patience.left().is_some();
                        return if in_time { Ok(locked) } else { Err(late(met)) };
                    }
                    Err(now) => seen = now,
                }
                continue;
            }
            if holder != 0 {
                met = holder;
                // Only while another thread has it: two that leave a free lock to each other would wait
                // for each other.
                self.wanted.store(me, Ordering::Relaxed);
            }
            // A thread that gives up leaves the bit, too: it may have had the wake that was meant for all.
            waiters = WAITERS;
            if seen & WAITERS == 0
                && self
                    .word
                    .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                seen = self.word.load(Ordering::Acquire);
                continue;
            }
            let Some(left) = patience.left() else {
                self.forget(me);
                return Err(late(met));
            };
            ready();
            let nap = left.min(nap);
            // Early returns (a signal, a change of the word) only go round the loop.
            let _ = futex_wait(&self.word, seen | WAITERS, Some(nap));
            let own = patience.tick(nap);
            slept = own >= nap;
            if holder == 0 {
                courtesy = courtesy.saturating_sub(own);
                if slept {
                    // The thread that wanted it is dead or stopped: it is waited for once.
                    self.wanted.store(0, Ordering::Relaxed);
                }
            }
            seen = self.word.load(Ordering::Acquire);
        }
    }

    /// Whether another thread waits, and this one had the lock last.
    fn is_anothers_turn(&self, me: u32) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        wanted != 0 && wanted != me && self.last.load(Ordering::Relaxed) == me
    }

    /// The thread does not wait any more.
    fn forget(&self, me: u32) {
        let _ = self.wanted.compare_exchange(me, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The thread that has the lock.
    #[inline(always)]
    pub(crate) fn holder(&self) -> Option<Tid> {
        tid_of(self.word.load(Ordering::Relaxed) & HOLDER)
    }

    /// Takes the lock of a holder that has ended, for a thread that this one held. False when another thread
    /// did so first.
    #[inline(always)]
    pub(crate) fn inherit(&self, from: Tid, me: Tid) -> bool {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen & HOLDER == from as u32 {
            let taken = seen & !HOLDER | me as u32;
            match self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Releases the lock. Only the holder calls this.
    #[inline(always)]
    pub(crate) fn release(&self) {
        self.last.store(self.word.load(Ordering::Relaxed) & HOLDER, Ordering::Relaxed);
        // Release: pairs with the next holder's acquire.
        if self.word.fetch_and(EPOCH, Ordering::Release) & WAITERS != 0 {
            Kernel.wake_one(&self.word);
        }
    }

    /// Has all waiting threads make themselves ready once more. Only the holder calls this.
    pub(crate) fn announce(&self) {
        let next = |word: u32| Some(word & !EPOCH | word.wrapping_add(NEXT) & EPOCH);
        // Release: pairs with the acquire in `acquire`. It always succeeds.
        let _ = self.word.fetch_update(Ordering::Release, Ordering::Relaxed, next);
        Kernel.wake_all(&self.word);
    }

    /// Forgets a holder that does not exist in this process. Only while a forked child takes its block over,
    /// before any thread waits.
    pub(crate) fn reset(&self) {
        for word in [&self.word, &self.last, &self.wanted] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The thread of an id in the word, where 0 is none.
#[inline(always)]
fn tid_of(holder: u32) -> Option<Tid> {
    if holder == 0 { None } else { Some(holder as Tid) }
}

impl<'a> Locked<'a> {
    /// Leaves the lock taken; [`Locked::kept`] is to give it back.
    pub(crate) fn keep(self) {
        let _ = ManuallyDrop::new(self);
    }

    /// The lock that the calling thread has taken and kept.
    pub(crate) fn kept(lock: &'a Lock) -> Self {
        Self { lock, inherited: false }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.lock.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Instant;

    /// What waiting threads must know changes while they sleep, or just before they do.
    #[test]
    fn an_announcement_reaches_those_that_wait() {
        static LOCK: Lock = Lock::new();
        static NEWS: AtomicU32 = AtomicU32::new(0);
        static HEARD: AtomicU32 = AtomicU32::new(0);
        let acquire = |ready: &dyn Fn()| {
            let locked = LOCK.acquire(sys::gettid(), &mut Patience::new(None), || false, ready);
            locked.ok().unwrap()
        };
        let locked = acquire(&|| ());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let hear = || HEARD.store(NEWS.load(Ordering::Relaxed), Ordering::Relaxed);
                drop(acquire(&hear));
            });
            // More than there are epochs.
            for news in 1..=600 {
                NEWS.store(news, Ordering::Relaxed);
                LOCK.announce();
                testkit::until("it has heard", || {
                    let waits = LOCK.word.load(Ordering::Relaxed) & WAITERS != 0;
                    waits && HEARD.load(Ordering::Relaxed) == news
                });
            }
            drop(locked);
        });
    }

    /// The waiting thread has no processor until the holder has released the lock and asked again.
    #[test]
    fn the_last_holder_leaves_the_lock_to_one_that_waits() {
        static LOCK: Lock = Lock::new();
        static ASKED_AGAIN: AtomicU32 = AtomicU32::new(0);
        static ORDER: Mutex<Vec<&str>> = Mutex::new(Vec::new());
        let acquire = |name, ready: &dyn Fn()| {
            let locked = LOCK.acquire(sys::gettid(), &mut Patience::new(None), || false, ready);
            let locked = locked.ok().unwrap();
            ORDER.lock().unwrap().push(name);
            locked
        };
        let asked_again = || ASKED_AGAIN.store(1, Ordering::Relaxed);
        let first = acquire("holder", &|| ());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let no_processor = || {
                    let asked_again = || ASKED_AGAIN.load(Ordering::Relaxed) == 1;
                    testkit::until("the holder asks again", asked_again);
                };
                drop(acquire("waiter", &no_processor));
            });
            testkit::until("one waits", || LOCK.wanted.load(Ordering::Relaxed) != 0);
            drop(first);
            drop(acquire("holder", &asked_again));
            asked_again();
        });
        assert_eq!(*ORDER.lock().unwrap(), ["holder", "waiter", "holder"]);
        assert_eq!(LOCK.wanted.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_free_lock_is_not_left_to_the_dead_for_long() {
        let lock = Lock::new();
        let me = sys::gettid();
        let acquire = || {
            let until = Some(Instant::now() + Duration::from_millis(200));
            lock.acquire(me, &mut Patience::new(until), || false, || ()).ok()
        };
        drop(acquire().unwrap());
        // A thread that waited, and that a filter of its own has killed.
        lock.wanted.store(1, Ordering::Relaxed);
        drop(acquire().expect("some of the patience is left"));
        assert_eq!(lock.wanted.load(Ordering::Relaxed), 0, "it would be waited for again");
    }

    #[test]
    fn the_lock_of_a_dead_holder_is_inherited() {
        let lock = Lock::new();
        // No thread of this process has the id.
        let dead = lock.acquire(1, &mut Patience::new(None), || false, || ()).ok().unwrap();
        // Never dropped, as by a thread that is gone.
        let _dead = core::mem::ManuallyDrop::new(dead);
        let me = sys::gettid();
        let until = Some(Instant::now() + Duration::from_secs(20));
        let locked = lock.acquire(me, &mut Patience::new(until), || false, || ()).ok().unwrap();
        assert!(locked.inherited);
        assert_eq!(lock.holder(), Some(me));
        drop(locked);
        assert_eq!(lock.holder(), None);
        assert!(!lock.inherit(1, me));
    }
}
