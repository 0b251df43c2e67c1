//! The write side of the creation lock, as a guard.

use core::fmt;
use core::marker::PhantomData;
use std::time::{Duration, Instant};

use sigctx::fork;
use sigctx::sys::{self, Tid};

use crate::life;
use crate::name::{Label, Name};
use crate::procfs::TaskDir;
use crate::registry::{self, ARENA, CREATION};
use crate::thread_ref::{ThreadRef, registered_name, threads};

/// The longest sleep of a thread that waits for the guard, before it looks whether the holder lives.
const LOOK: Duration = Duration::from_millis(100);

/// Stops this crate from making threads until the guard is dropped.
///
/// When it returns, every spawned thread that is listed exists (its `clone` has returned) or has left,
/// and no new one can come. Threads may leave at any time. Threads that are made without this crate are
/// not affected.
///
/// # Lock order
///
/// *Stop a world first, freeze second.* Under the guard, do not wait for anything that a thread may
/// hold while it spawns. A creator that waits for the guard is in the middle of running code, and can
/// be stopped only because it waits with its signals open. A thread that holds the guard must not
/// spawn, freeze again or stop a world: it would wait for itself. In builds with debug assertions it
/// panics instead.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock): it waits. [`try_freeze_creation`] is.
///
/// # Blocking
///
/// For other holders of the guard, without bound, and for the creations under way. New creators queue
/// behind this call, so they cannot overtake it forever. [`freeze_creation_within`] gives up.
///
/// # Panics
///
/// With debug assertions, when the calling thread holds the guard.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let frozen = threadreg::freeze_creation();
/// frozen.wait_all_started(Duration::from_secs(1))?;
/// assert!(threadreg::threads().all(|thread| thread.tid().is_some() || !thread.is_alive()));
/// # Ok::<(), threadreg::StartTimedOut>(())
/// ```
///
/// # References
///
/// Go's `allocmLock` and `execLock`, `runtime/proc.go`.
#[doc(alias = "allocmLock")]
#[doc(alias = "execLock")]
pub fn freeze_creation() -> CreationFrozen {
    assert_not_frozen_here();
    registry::init();
    let me = me();
    CREATION.write(|| Some(look()));
    CreationFrozen::new(me)
}

/// Like [`freeze_creation`], but gives up after `timeout` and names the thread that was in the way.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock): it waits.
///
/// # Blocking
///
/// At most for `timeout`. Creators queue behind it while it waits, and go on when it gives up.
///
/// # Errors
///
/// [`FreezeTimedOut`] after `timeout`.
///
/// # Panics
///
/// With debug assertions, when the calling thread holds the guard.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let held = threadreg::freeze_creation();
/// let late = std::thread::spawn(|| {
///     threadreg::freeze_creation_within(Duration::from_millis(5)).map(drop)
/// });
/// let error = late.join().unwrap().unwrap_err();
/// assert!(error.to_string().contains("holds it frozen"));
/// # drop(held);
/// ```
pub fn freeze_creation_within(timeout: Duration) -> Result<CreationFrozen, FreezeTimedOut> {
    assert_not_frozen_here();
    registry::init();
    let (me, begin) = (me(), Instant::now());
    if CREATION.write(|| Some(timeout.saturating_sub(begin.elapsed()).min(look()))) {
        Ok(CreationFrozen::new(me))
    } else {
        Err(FreezeTimedOut::now(timeout))
    }
}

/// Like [`freeze_creation`], but returns `None` when a thread is being made or the guard is held.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), and so is dropping the guard: no waiting, no allocation. For that
/// reason it does not register the handler that frees the lock in the child of a `fork`: until the
/// crate [`is_in_use`](crate::is_in_use), no other thread may fork while the guard lives.
#[must_use]
pub fn try_freeze_creation() -> Option<CreationFrozen> {
    let me = me();
    CREATION.try_write().then(|| CreationFrozen::new(me))
}

/// Whether the calling thread holds the guard of [`freeze_creation`]. Then it must not wait for other
/// threads to stop, spawn or freeze.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
#[must_use]
pub fn holds_freeze() -> bool {
    // Only this thread makes the holder's id its own.
    CREATION.holder.get().is_some_and(|(_, tid)| tid == sys::gettid())
}

/// Gives the guard back for a holder that has ended with it: the guard was leaked, or a seccomp filter
/// of the holder's own killed it. A thread calls this before it sleeps for the guard; the result is how
/// long it may sleep.
pub(crate) fn look() -> Duration {
    if let Some((pid, tid)) = CREATION.holder.get()
        && has_ended(pid, tid)
        && CREATION.holder.take_from(tid)
    {
        CREATION.release_write();
    }
    LOOK
}

/// The ids of the calling process and thread.
fn me() -> (i32, Tid) {
    (sys::getpid(), sys::gettid())
}

fn has_ended(pid: i32, tid: Tid) -> bool {
    // Under an emulator only `/proc` tells whether the main thread has ended.
    let is_dead_leader = || {
        let stat = TaskDir::open().and_then(|tasks| tasks.stat(tid));
        stat.is_ok_and(|stat| stat.is_exiting())
    };
    life::has_ended(pid, tid) || tid == pid && pid == sys::getpid() && is_dead_leader()
}

/// The lock order, in builds with debug assertions.
pub(crate) fn assert_not_frozen_here() {
    debug_assert!(
        !holds_freeze(),
        "this thread holds the guard of `freeze_creation`: it would wait for itself"
    );
}

/// While this lives no thread is made through this crate; from [`freeze_creation`].
///
/// Belongs to its thread. It holds nothing any more in the child of a `fork`, or when its thread has
/// ended: a thread that waits for it looks every 100 ms whether the holder lives.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe). [`wait_all_started`](Self::wait_all_started) waits.
#[must_use = "creation is frozen only while this lives"]
#[derive(Debug)]
pub struct CreationFrozen {
    process: u32,
    not_send: PhantomData<*mut ()>,
}

impl CreationFrozen {
    /// Makes the guard of the calling thread, `me`, which has just taken the write side. It has made no
    /// system call since: at one a seccomp filter could end the thread before it is known as the
    /// holder.
    fn new(me: (i32, Tid)) -> Self {
        CREATION.holder.set(me);
        Self { process: fork::process(), not_send: PhantomData }
    }

    /// Waits until every listed thread has stored its id. It can then be signalled, or it has left.
    ///
    /// The clock is read through the vDSO.
    ///
    /// # Blocking
    ///
    /// At most for `timeout`.
    ///
    /// # Errors
    ///
    /// [`StartTimedOut`] with the first thread found that had not started after `timeout`.
    pub fn wait_all_started(&self, timeout: Duration) -> Result<(), StartTimedOut> {
        let begin = Instant::now();
        for (record, generation) in ARENA.listed() {
            let left = || Some(timeout.saturating_sub(begin.elapsed()));
            if !record.wait_started(generation, left) {
                return Err(StartTimedOut { thread: ThreadRef { record, generation }, timeout });
            }
        }
        Ok(())
    }

    /// Lets threads be made again; the same as dropping the guard.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for CreationFrozen {
    fn drop(&mut self) {
        if self.process == fork::process() {
            CREATION.holder.clear();
            CREATION.release_write();
        }
    }
}

/// Creation was not frozen in time; from [`freeze_creation_within`].
#[derive(Clone, Copy, Debug)]
pub struct FreezeTimedOut {
    /// How long [`freeze_creation_within`] was to wait.
    pub timeout: Duration,
    /// The thread that held the guard at the end, if one did: id and name.
    pub holder: Option<(Tid, Name)>,
    /// A thread that was being made at the end.
    pub being_made: Option<ThreadRef>,
    /// How many threads were being made at the end.
    pub creators: u32,
}

impl FreezeTimedOut {
    fn now(timeout: Duration) -> Self {
        let holder = CREATION.holder.get().map(|(_, tid)| (tid, registered_name(tid)));
        let being_made = threads().find(|thread| thread.tid().is_none() && thread.is_alive());
        Self { timeout, holder, being_made, creators: CREATION.creators() }
    }
}

impl fmt::Display for FreezeTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "creation of threads could not be frozen within {:?}: ", self.timeout)?;
        if let Some((tid, name)) = self.holder {
            return write!(f, "thread {} holds it frozen", Label { tid: Some(tid), name });
        }
        match self.creators {
            1 => f.write_str("a thread is being made")?,
            creators => write!(f, "{creators} threads are being made")?,
        }
        match self.being_made {
            Some(thread) => write!(f, ", among them thread {thread}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for FreezeTimedOut {}

/// A listed thread did not start in time; from [`CreationFrozen::wait_all_started`].
#[derive(Clone, Copy, Debug)]
pub struct StartTimedOut {
    /// The thread.
    pub thread: ThreadRef,
    /// How long [`CreationFrozen::wait_all_started`] was to wait.
    pub timeout: Duration,
}

impl fmt::Display for StartTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} was made, but did not start within {:?}", self.thread, self.timeout)
    }
}

impl core::error::Error for StartTimedOut {}
