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

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use sigctx::sys::{self, Tid, futex_wait};

use crate::hold::Futex;
use crate::life;
use crate::patience::Patience;
use crate::signal::Kernel;

const WAITERS: u32 = 1 << 31;
const GENERATION: u32 = WAITERS - NEXT;
const NEXT: u32 = 1 << 22;
const OWNER: u32 = NEXT - 1;

/// The longest sleep without a look at the owner.
const LOOK: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Lock(AtomicU32);

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
    Late { holder: Tid },
}

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
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
        let mut seen = self.0.load(Ordering::Acquire);
        let mut holder = seen & OWNER;
        if holder == me || holder != 0 && hopeless() {
            return Err(Refused::Nested);
        }
        let late = |holder| Refused::Late { holder: holder as Tid };
        let mut waiters = 0;
        let mut slept = false;
        loop {
            let owner = seen & OWNER;
            let inherited = slept && owner != 0 && life::has_ended(sys::getpid(), owner as Tid);
            if owner == 0 || inherited {
                // Others may wait still: keep the bit, at worst for one wake too many.
                let taken = seen & (GENERATION | WAITERS) | waiters | me;
                // Acquire: what the last owner wrote is seen.
                let swap =
                    self.0.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Acquire);
                match swap {
                    Ok(_) => {
                        // Dropped again when late: that wakes the next one.
                        let locked = Locked { lock: self, inherited };
                        let in_time = waiters == 0 || inherited || patience.left().is_some();
                        return if in_time { Ok(locked) } else { Err(late(holder)) };
                    }
                    Err(now) => seen = now,
                }
                continue;
            }
            holder = owner;
            // Also who gives up leaves the bit: it may have had the wake that was meant for all.
            waiters = WAITERS;
            if seen & WAITERS == 0
                && self
                    .0
                    .compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                seen = self.0.load(Ordering::Acquire);
                continue;
            }
            let Some(left) = patience.left() else { return Err(late(holder)) };
            ready();
            let nap = left.min(LOOK);
            // Early returns (a signal, a change of the word) only go round again.
            let _ = futex_wait(&self.0, seen | WAITERS, Some(nap));
            slept = patience.tick(nap) >= nap.min(LOOK);
            seen = self.0.load(Ordering::Acquire);
        }
    }

    /// The owner's id; 0: nobody has the lock.
    #[inline(always)]
    pub(crate) fn owner(&self) -> Tid {
        (self.0.load(Ordering::Relaxed) & OWNER) as Tid
    }

    /// Takes the lock of an owner that has ended, for a thread that this one held. False: another one did.
    #[inline(always)]
    pub(crate) fn inherit(&self, from: Tid, me: Tid) -> bool {
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen & OWNER == from as u32 {
            let taken = seen & !OWNER | me as u32;
            match self.0.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Lets the lock go. Only by its owner.
    #[inline(always)]
    pub(crate) fn release(&self) {
        // Release: pairs with the next owner's acquire.
        if self.0.fetch_and(GENERATION, Ordering::Release) & WAITERS != 0 {
            Kernel.wake_one(&self.0);
        }
    }

    /// Has everybody who waits make itself ready once more. Only by the owner.
    pub(crate) fn announce(&self) {
        let next = |word: u32| Some(word & !GENERATION | word.wrapping_add(NEXT) & GENERATION);
        // Release: pairs with the acquire in `acquire`. It always succeeds.
        let _ = self.0.fetch_update(Ordering::Release, Ordering::Relaxed, next);
        Kernel.wake_all(&self.0);
    }

    /// Forgets an owner that does not exist in this process. Only while a forked child takes its
    /// block over, before anybody waits.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
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
                    let waits = LOCK.0.load(Ordering::Relaxed) & WAITERS != 0;
                    waits && HEARD.load(Ordering::Relaxed) == news
                });
            }
            drop(locked);
        });
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
