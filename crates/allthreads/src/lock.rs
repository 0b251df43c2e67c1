//! The lock that makes one thread at a time the owner.
//!
//! The word is `waiters (1) | generation (9) | the owner's thread id (22)`. A thread that asks for a lock
//! which it has itself gets an answer instead of waiting forever. The generation counts what those that
//! wait must look at again (a new signal, see `signals`): a change of it ends their sleep, and nobody
//! falls asleep on an old one.
//!
//! An owner can end while it has the lock: a seccomp filter of its own may kill it for a system call.
//! So nobody sleeps for long without a look at the owner. Who finds it dead inherits the lock, and what
//! the dead one left undone (`Hold::recover`).
//!
//! Where processors are scarce, an owner that comes back at once would have the lock again and again before
//! one that waits has had a processor. So who had it last leaves it to a thread that waits, for a while.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use sigctx::sys::{self, Tid, futex_wait};

use crate::life;
use crate::patience::Patience;
use crate::system::{Futex, Kernel};

const WAITERS: u32 = 1 << 31;
const GENERATION: u32 = WAITERS - NEXT;
const NEXT: u32 = 1 << 22;
const OWNER: u32 = NEXT - 1;

/// The longest sleep without a look at the owner.
const LOOK: Duration = Duration::from_millis(100);

/// The longest that a free lock is left to a thread that waits for it. The unit tests ask who is first,
/// however long that takes.
const COURTESY: Duration = if cfg!(test) { Duration::from_mins(10) } else { LOOK };

/// See the module.
pub(crate) struct Lock {
    word: AtomicU32,
    /// Who had the lock last. It and `wanted` only make the turns fair: all accesses are relaxed.
    last: AtomicU32,
    /// A thread that waits. Each says so before each sleep, and operations end all sleeps.
    wanted: AtomicU32,
}

/// The lock is held until this is dropped.
pub(crate) struct Locked<'a> {
    lock: &'a Lock,
    /// The owner before died with it.
    pub(crate) inherited: bool,
}

/// Why somebody did not get the lock.
pub(crate) enum Refused {
    /// The caller, or the operation that the caller is a part of, has it.
    Nested,
    /// Others had it until too late; the last of them that was seen.
    TimedOut { holder: Tid },
}

impl Lock {
    pub(crate) const fn new() -> Self {
        Self { word: AtomicU32::new(0), last: AtomicU32::new(0), wanted: AtomicU32::new(0) }
    }

    /// Takes the lock, as long as there is `patience`. `hopeless` says that the owner cannot let go of it
    /// before the caller goes on; `ready` makes the caller ready to be held, each time before it sleeps.
    pub(crate) fn acquire(
        &self,
        me: Tid,
        patience: &mut Patience,
        hopeless: impl FnOnce() -> bool,
        ready: impl Fn(),
    ) -> Result<Locked<'_>, Refused> {
        let me = me as u32;
        // Acquire, here and below: who sees a generation sees what it announces.
        let mut seen = self.word.load(Ordering::Acquire);
        let mut holder = seen & OWNER;
        if holder == me || holder != 0 && hopeless() {
            return Err(Refused::Nested);
        }
        let late = |holder| Refused::TimedOut { holder: holder as Tid };
        let mut waiters = 0;
        let mut slept = false;
        let mut courtesy = COURTESY;
        loop {
            let owner = seen & OWNER;
            let inherited = slept && owner != 0 && life::has_ended(sys::getpid(), owner as Tid);
            let nap = if owner != 0 {
                LOOK
            } else if self.is_anothers_turn(me) {
                // Most of the patience is left for the operation.
                courtesy.min(patience.left().unwrap_or_default() / 4)
            } else {
                Duration::ZERO
            };
            if inherited || nap.is_zero() {
                // Others may wait still: keep the bit, at worst for one wake too many.
                let taken = seen & (GENERATION | WAITERS) | waiters | me;
                // Acquire: what the last owner wrote is seen.
                let swap =
                    self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Acquire);
                match swap {
                    Ok(_) => {
                        // Dropped again when late: that wakes the next one.
                        let locked = Locked { lock: self, inherited };
                        self.forget(me);
                        let in_time = holder == 0 || inherited || patience.left().is_some();
                        return if in_time { Ok(locked) } else { Err(late(holder)) };
                    }
                    Err(now) => seen = now,
                }
                continue;
            }
            if owner != 0 {
                holder = owner;
                // Not who leaves a free lock to others: two such would wait for each other.
                self.wanted.store(me, Ordering::Relaxed);
            }
            // Also who gives up leaves the bit: it may have had the wake that was meant for all.
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
                return Err(late(holder));
            };
            ready();
            let nap = left.min(nap);
            // Early returns (a signal, a change of the word) only go round again.
            let _ = futex_wait(&self.word, seen | WAITERS, Some(nap));
            let own = patience.tick(nap);
            slept = own >= nap;
            if owner == 0 {
                courtesy = courtesy.saturating_sub(own);
                if slept {
                    // Who wanted it is dead, or stopped: once is enough.
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

    /// The owner's id; 0: nobody has the lock.
    #[inline(always)]
    pub(crate) fn owner(&self) -> Tid {
        (self.word.load(Ordering::Relaxed) & OWNER) as Tid
    }

    /// Takes the lock of an owner that has ended, for a thread that this one held. False: another one did.
    #[inline(always)]
    pub(crate) fn inherit(&self, from: Tid, me: Tid) -> bool {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen & OWNER == from as u32 {
            let taken = seen & !OWNER | me as u32;
            match self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Lets the lock go. Only by its owner.
    #[inline(always)]
    pub(crate) fn release(&self) {
        self.last.store(self.word.load(Ordering::Relaxed) & OWNER, Ordering::Relaxed);
        // Release: pairs with the next owner's acquire.
        if self.word.fetch_and(GENERATION, Ordering::Release) & WAITERS != 0 {
            Kernel.wake_one(&self.word);
        }
    }

    /// Has everybody who waits make itself ready once more. Only by the owner.
    pub(crate) fn announce(&self) {
        let next = |word: u32| Some(word & !GENERATION | word.wrapping_add(NEXT) & GENERATION);
        // Release: pairs with the acquire in `acquire`. It always succeeds.
        let _ = self.word.fetch_update(Ordering::Release, Ordering::Relaxed, next);
        Kernel.wake_all(&self.word);
    }

    /// Forgets an owner that does not exist in this process. Only while a forked child takes its
    /// block over, before anybody waits.
    pub(crate) fn reset(&self) {
        for word in [&self.word, &self.last, &self.wanted] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl<'a> Locked<'a> {
    /// Leaves the lock taken; [`Locked::kept`] is to give it back.
    pub(crate) fn keep(self) {
        let _ = ManuallyDrop::new(self);
    }

    /// The lock that the calling thread took and kept.
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

    /// What those that wait must know changes while they sleep, or just before they do.
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
            // More than there are generations.
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

    /// Who waits has no processor until the owner has let go and asked again.
    #[test]
    fn who_had_the_lock_leaves_it_to_one_that_waits() {
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
        let first = acquire("owner", &|| ());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let no_processor = || {
                    let asked_again = || ASKED_AGAIN.load(Ordering::Relaxed) == 1;
                    testkit::until("the owner asks again", asked_again);
                };
                drop(acquire("waiter", &no_processor));
            });
            testkit::until("one waits", || LOCK.wanted.load(Ordering::Relaxed) != 0);
            drop(first);
            drop(acquire("owner", &asked_again));
            asked_again();
        });
        assert_eq!(*ORDER.lock().unwrap(), ["owner", "waiter", "owner"]);
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
        // One that waited, and was ended by a filter of its own.
        lock.wanted.store(1, Ordering::Relaxed);
        drop(acquire().expect("some of the patience is left"));
        assert_eq!(lock.wanted.load(Ordering::Relaxed), 0, "it would be waited for again");
    }

    #[test]
    fn the_lock_of_a_dead_owner_is_inherited() {
        let lock = Lock::new();
        // No thread of this process has the id.
        let dead = lock.acquire(1, &mut Patience::new(None), || false, || ()).ok().unwrap();
        // Never dropped, as by a thread that is gone.
        let _dead = core::mem::ManuallyDrop::new(dead);
        let me = sys::gettid();
        let until = Some(Instant::now() + Duration::from_secs(20));
        let locked = lock.acquire(me, &mut Patience::new(until), || false, || ()).ok().unwrap();
        assert!(locked.inherited);
        assert_eq!(lock.owner(), me);
        drop(locked);
        assert_eq!(lock.owner(), 0);
        assert!(!lock.inherit(1, me));
    }
}
