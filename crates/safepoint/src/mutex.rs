//! A mutex whose waiters can be stopped, and that no waiter holds in a stop.
//!
//! A mutator that waits does so in a safe region. When it gets the mutex it may have to wait for the end of a stop before
//! it leaves the region. It unlocks the mutex first, and begins anew afterwards: whoever has the world stopped can lock
//! it, and may need what it protects.

use core::cell::UnsafeCell;
use core::error::Error;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicI32, Ordering};
use core::time::Duration;
use std::time::Instant;

use sigctx::fork;
use sigctx::sync::{self, Found};
use sigctx::sys::{self, Tid};
use threadreg::procfs::TaskDir;
use threadreg::{Label, Name};

use crate::mutator::Mutator;
use crate::protocol::{MutatorSlot, Stance};
use crate::region::{OwnStop, leave_armed};
use crate::roots::{Place, Stand, stand_here};
use crate::system::{self, Identity};

/// A mutex for mutators. One that waits is in a safe region, and does not have the mutex in a stop.
///
/// The guard does not borrow the mutator, so it can be kept across a safe point; then the mutex is locked in the stop.
/// [`Mutator::no_safepoint`] rules that out.
///
/// A panic does not poison it. In the child of a fork it is free if the thread that had it is not there.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock).
///
/// # Examples
///
/// ```
/// use safepoint::{Mutex, World};
///
/// static CARDS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
///
/// let world = World::new();
/// let mut mutator = world.attach()?;
/// {
///     let mut cards = CARDS.lock(&mut mutator);
///     // No stop finds it locked.
///     let _atomic = mutator.no_safepoint();
///     cards.push(7);
/// }
/// let stopped = mutator.stop_the_world("collection")?;
/// CARDS.lock_from_outside().clear();
/// stopped.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// HotSpot's `Mutex` (`runtime/mutex.cpp`), whose `lock` blocks in the VM and lets go of the lock when it comes back to a
/// safepoint (`InFlightMutexRelease`).
pub struct Mutex<T: ?Sized> {
    lock: sync::Mutex,
    /// The thread that has it; 0 for none. For errors alone.
    holder: AtomicI32,
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time has the value.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("holder", &self.holder()).finish_non_exhaustive()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Mutex<T> {
    /// Makes a mutex that no thread has.
    pub const fn new(value: T) -> Self {
        let (lock, holder) = (sync::Mutex::new(), AtomicI32::new(0));
        Self { lock, holder, value: UnsafeCell::new(value) }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// The value. No thread has the mutex.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Locks the mutex. A safe point, if it has to wait.
    ///
    /// # Blocking
    ///
    /// Until the thread that has it unlocks it; and while the world is stopped, as
    /// [`Mutator::blocking`] does at its end.
    pub fn lock(&self, mutator: &mut Mutator) -> MutexGuard<'_, T> {
        match self.lock_until(mutator, None) {
            Ok(guard) => guard,
            Err(error) => unreachable!("a wait without a limit ended: {error}"),
        }
    }

    /// Locks the mutex as [`Mutex::lock`] does, if that takes no longer than `timeout`.
    ///
    /// # Blocking
    ///
    /// For at most `timeout`; and while the world is stopped.
    ///
    /// # Errors
    ///
    /// [`LockError`] when the timeout is over. It names the thread that has the mutex.
    pub fn lock_within(
        &self,
        mutator: &mut Mutator,
        timeout: Duration,
    ) -> Result<MutexGuard<'_, T>, LockError> {
        self.lock_until(mutator, Some(timeout))
    }

    /// Locks the mutex if no thread has it. No safe point.
    pub fn try_lock(&self, mutator: &Mutator) -> Option<MutexGuard<'_, T>> {
        let found = self.lock.try_lock(fork::process())?;
        Some(self.guard(found, mutator.tid()))
    }

    /// Locks the mutex for a thread that is no mutator, or is in a safe region, or has the world stopped.
    ///
    /// # Blocking
    ///
    /// Until the thread that has it unlocks it. In a stop that may be a stopped mutator, which keeps the guard across a
    /// safe point: see [`Mutex::lock_from_outside_within`].
    ///
    /// # Panics
    ///
    /// If the mutex is locked and the thread is a running mutator, of any world: a stop would wait.
    pub fn lock_from_outside(&self) -> MutexGuard<'_, T> {
        match self.lock_outside_until(None) {
            Ok(guard) => guard,
            Err(error) => unreachable!("a wait without a limit ended: {error}"),
        }
    }

    /// Locks the mutex as [`Mutex::lock_from_outside`] does, if that takes no longer than `timeout`.
    ///
    /// # Blocking
    ///
    /// For at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError`] when the timeout is over. It names the thread that has the mutex.
    ///
    /// # Panics
    ///
    /// As [`Mutex::lock_from_outside`].
    pub fn lock_from_outside_within(
        &self,
        timeout: Duration,
    ) -> Result<MutexGuard<'_, T>, LockError> {
        self.lock_outside_until(Some(timeout))
    }

    fn lock_until(
        &self,
        mutator: &mut Mutator,
        timeout: Option<Duration>,
    ) -> Result<MutexGuard<'_, T>, LockError> {
        let mut wait = None;
        loop {
            if let Some(guard) = self.try_lock(mutator) {
                return Ok(guard);
            }
            let wait = wait.get_or_insert_with(|| Wait::begin(timeout));
            let (shared, slot) = (&mutator.shared, mutator.slot);
            stand_here!(Some(slot), Stand::new(Place::Region));
            shared.protocol.enter(slot, Stance::Away);
            let locked = self.lock.lock(fork::process(), || wait.left());
            let late = locked.is_err().then(|| wait.error(self.holder()));
            if !shared.protocol.try_leave(slot) {
                // A stop, or the thread's task is held. Not with the mutex.
                if locked.is_ok() {
                    self.lock.unlock();
                }
                // The thread has stopped no world that it runs in.
                leave_armed(shared, slot, OwnStop::Abort);
            } else if let Ok(found) = locked {
                return Ok(self.guard(found, mutator.tid()));
            }
            if let Some(late) = late {
                return Err(late);
            }
        }
    }

    fn lock_outside_until(
        &self,
        timeout: Option<Duration>,
    ) -> Result<MutexGuard<'_, T>, LockError> {
        let process = fork::process();
        let found = if let Some(found) = self.lock.try_lock(process) {
            found
        } else {
            assert!(!system::runs(), "a running mutator waits for a mutex as if it were none");
            let wait = Wait::begin(timeout);
            let locked = self.lock.lock(process, || wait.left());
            locked.map_err(|sync::TimedOut| wait.error(self.holder()))?
        };
        Ok(self.guard(found, sys::gettid()))
    }

    fn holder(&self) -> Option<Tid> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    fn guard(&self, found: Found, me: Tid) -> MutexGuard<'_, T> {
        self.holder.store(me, Ordering::Relaxed);
        MutexGuard { mutex: self, was_copied: found == Found::Copied, not_send: PhantomData }
    }
}

/// A wait for a mutex.
struct Wait {
    since: Instant,
    deadline: Option<Instant>,
}

impl Wait {
    fn begin(timeout: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { since, deadline: timeout.and_then(|timeout| since.checked_add(timeout)) }
    }

    fn left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn error(&self, holder: Option<Tid>) -> LockError {
        let stat = |tid| TaskDir::open().ok()?.stat(tid).ok();
        let name = holder.and_then(stat).map(|stat| stat.comm).unwrap_or_default();
        LockError { holder, name, waited: self.since.elapsed() }
    }
}

/// A [`Mutex`] is locked until this is dropped, and its value is this thread's.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock).
#[must_use = "dropping it unlocks the mutex"]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    was_copied: bool,
    /// The holder is named as this thread.
    not_send: PhantomData<*mut ()>,
}

// SAFETY: a shared guard is a shared value.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T: ?Sized> MutexGuard<'_, T> {
    /// Whether a fork copied the mutex locked, by a thread that the child does not have: the value may be half written.
    #[must_use]
    pub fn was_copied(this: &Self) -> bool {
        this.was_copied
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread has the mutex.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread has the mutex, and borrows the guard alone.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.holder.store(0, Ordering::Relaxed);
        self.mutex.lock.unlock();
    }
}

/// A [`Mutex`] was locked until the timeout was over.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LockError {
    /// The thread that had it when the timeout was over; `None` between two.
    pub holder: Option<Tid>,
    /// That thread's name; empty if it is not known.
    pub name: Name,
    /// How long this thread waited for the mutex.
    pub waited: Duration,
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holder, name, waited } = *self;
        write!(f, "no mutex within {waited:?}: ")?;
        match holder {
            Some(_) => write!(f, "thread {} has it", Label { tid: holder, name }),
            None => f.write_str("others have it"),
        }
    }
}

impl Error for LockError {}
