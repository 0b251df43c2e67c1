//! The write side of the creation lock, as a guard.

use core::fmt;
use core::marker::PhantomData;
use std::time::{Duration, Instant};

use sigctx::sys::{self, Errno};

use crate::name::Name;
use crate::procfs::TaskDir;
use crate::registry::{self, ARENA, CREATION};
use crate::thread_ref::{ThreadRef, threads};

/// The longest wait for the guard without a look whether the thread that holds it lives.
const LOOK: Duration = Duration::from_millis(100);

/// Stops this crate from making threads until the guard is dropped.
///
/// When it returns, every spawned thread that is listed exists (its `clone` has returned) or has
/// left, and none can come. Threads may leave at any time, and threads that nobody registered are
/// not affected.
///
/// # Lock order
///
/// *Stop a world first, freeze second*: nothing that a creator may hold while it spawns is to be
/// awaited under the guard. A creator that waits for the guard is in the middle of running code, and
/// can be stopped only because it waits with its signals open. A thread that holds the guard must
/// not spawn, freeze again or stop a world: it would wait for itself. In builds with debug
/// assertions it panics instead.
///
/// # Signal safety
///
/// Not async-signal-safe: waits. [`try_freeze_creation`] is.
///
/// # Blocking
///
/// For other holders of the guard, without bound, and for the creations under way. New creators
/// queue behind this call, so it is not overtaken forever. [`freeze_creation_within`] gives up.
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
/// # Ok::<(), threadreg::NotStarted>(())
/// ```
///
/// # References
///
/// Go's `allocmLock` and `execLock`, `runtime/proc.go`.
pub fn freeze_creation() -> CreationFrozen {
    assert_not_frozen_here();
    registry::init();
    let me = me();
    CREATION.write(|| Some(look()));
    CreationFrozen::new(me)
}

/// Like [`freeze_creation`], but gives up after `limit` and says who was in the way.
///
/// # Signal safety
///
/// Not async-signal-safe: waits.
///
/// # Blocking
///
/// At most for `limit`. Creators queue behind it while it waits, and go on when it gives up.
///
/// # Errors
///
/// [`FreezeTimedOut`] when the time was over.
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
pub fn freeze_creation_within(limit: Duration) -> Result<CreationFrozen, FreezeTimedOut> {
    assert_not_frozen_here();
    registry::init();
    let (me, begin) = (me(), Instant::now());
    if CREATION.write(|| Some(limit.saturating_sub(begin.elapsed()).min(look()))) {
        Ok(CreationFrozen::new(me))
    } else {
        Err(FreezeTimedOut::now(limit))
    }
}

/// Like [`freeze_creation`], or `None` when a thread is being made or another holds the guard.
///
/// # Signal safety
///
/// Async-signal-safe, and so is dropping the guard: no waiting, no allocation. For the same reason it
/// does not see to forks: unless the crate [`is_in_use`](crate::is_in_use), no other thread may fork
/// while the guard lives.
#[must_use]
pub fn try_freeze_creation() -> Option<CreationFrozen> {
    let me = me();
    CREATION.try_write().then(|| CreationFrozen::new(me))
}

/// Whether the calling thread holds the guard of [`freeze_creation`]: then it must not wait for
/// other threads to stop, spawn or freeze.
///
/// # Signal safety
///
/// Async-signal-safe.
#[must_use]
pub fn holds_freeze() -> bool {
    // Only this thread makes the holder's id its own.
    CREATION.holder.get().is_some_and(|(_, tid)| tid == sys::gettid())
}

/// For who is going to wait for the guard: gives it back for a thread that has ended with it, leaked or
/// killed by a seccomp filter of its own. Returns how long to wait before the next look.
pub(crate) fn look() -> Duration {
    if let Some((process, tid)) = CREATION.holder.get()
        && has_ended(process, tid)
        && CREATION.holder.take_from(tid)
    {
        CREATION.release_write();
    }
    LOOK
}

/// The ids of the calling process and thread.
fn me() -> (i32, i32) {
    (sys::getpid(), sys::gettid())
}

fn has_ended(pid: i32, tid: i32) -> bool {
    // The main thread keeps its id until the process ends.
    let is_dead_leader = || {
        let stat = TaskDir::open().and_then(|tasks| tasks.stat(tid));
        stat.is_ok_and(|stat| stat.is_exiting())
    };
    sys::tgkill(pid, tid, 0) == Err(Errno::ESRCH)
        || tid == pid && pid == sys::getpid() && is_dead_leader()
}

/// The lock order, in builds with debug assertions.
pub(crate) fn assert_not_frozen_here() {
    debug_assert!(
        !holds_freeze(),
        "this thread holds the guard of `freeze_creation`: it would wait for itself"
    );
}

/// No thread is made through this crate while this lives; from [`freeze_creation`].
///
/// Belongs to its thread. In the child of a `fork` it holds nothing any more, nor when its thread has
/// ended: whoever waits for it looks, every 100 ms, whether that lives.
#[must_use = "creation is frozen only while this lives"]
#[derive(Debug)]
pub struct CreationFrozen {
    forks: u32,
    not_send: PhantomData<*mut ()>,
}

impl CreationFrozen {
    /// The caller, `me`, has the write side, and has made no system call since: at one a filter of its own
    /// could end it, and it is not known yet.
    fn new(me: (i32, i32)) -> Self {
        CREATION.holder.set(me);
        Self { forks: registry::forks(), not_send: PhantomData }
    }

    /// Waits until every listed thread has stored its id: it can be signalled, or has left.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe while no thread fails to start; the clock is read through the vDSO.
    ///
    /// # Blocking
    ///
    /// At most for `limit`.
    ///
    /// # Errors
    ///
    /// The first thread found that had not started when the time was over.
    pub fn wait_all_started(&self, limit: Duration) -> Result<(), NotStarted> {
        let begin = Instant::now();
        for (record, generation) in ARENA.listed() {
            let left = || Some(limit.saturating_sub(begin.elapsed()));
            if !record.wait_started(generation, left) {
                return Err(NotStarted { thread: ThreadRef { record, generation }, limit });
            }
        }
        Ok(())
    }

    /// Lets threads be made again; the same as dropping the guard.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for CreationFrozen {
    fn drop(&mut self) {
        if self.forks == registry::forks() {
            CREATION.holder.clear();
            CREATION.release_write();
        }
    }
}

/// Creation could not be frozen in time; from [`freeze_creation_within`].
#[derive(Clone, Copy, Debug)]
pub struct FreezeTimedOut {
    /// How long it was waited for.
    pub limit: Duration,
    /// The thread that holds the guard, if one did when the time was over: id and name.
    pub freezer: Option<(i32, Name)>,
    /// A thread that was being made then.
    pub being_made: Option<ThreadRef>,
    /// How many threads were being made.
    pub creators: u32,
}

impl FreezeTimedOut {
    fn now(limit: Duration) -> Self {
        let freezer = CREATION.holder.get().map(|(_, tid)| {
            let known = threads().find(|thread| thread.tid() == Some(tid));
            (tid, known.map(|thread| thread.name()).unwrap_or_default())
        });
        let being_made = threads().find(|thread| thread.tid().is_none() && thread.is_alive());
        Self { limit, freezer, being_made, creators: CREATION.creators() }
    }
}

impl fmt::Display for FreezeTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "creation of threads could not be frozen within {:?}: ", self.limit)?;
        if let Some((tid, name)) = self.freezer {
            return write!(f, "thread {tid} ({name}) holds it frozen");
        }
        write!(f, "{} being made", self.creators)?;
        match self.being_made {
            Some(thread) => write!(f, ", thread {} for one", thread.name()),
            None => Ok(()),
        }
    }
}

impl core::error::Error for FreezeTimedOut {}

/// A listed thread did not run in time; from [`CreationFrozen::wait_all_started`].
#[derive(Clone, Copy, Debug)]
pub struct NotStarted {
    /// The thread.
    pub thread: ThreadRef,
    /// How long it was waited for.
    pub limit: Duration,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} was made but has not run for {:?}", self.thread.name(), self.limit)
    }
}

impl core::error::Error for NotStarted {}
