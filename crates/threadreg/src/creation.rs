//! The creation lock, and the order of steps in which a thread is made.
//!
//! ```text
//!   creator                                     requester of a freeze
//!   ───────                                     ─────────────────────
//!   signals blocked, read side taken            write side taken: every creator is outside
//!     record claimed, named                       here every listed thread exists,
//!     record published (STARTING, tid 0)          none is between "listed" and "exists",
//!     clone ──────────▶ thread: LIVE, tid         and no creator can begin
//!     (failed: record unlisted)                 write side given back
//!   read side given back, signals restored
//!   (failed: no pin left, record freed)
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `state` | creators count themselves; the requester sets and clears WRITER | both | taken acquire, given back release | C1, C2 |
//! | `writers` | requesters | requesters | see [`Mutex`] | C3 |
//! | `holder` | the thread that has the write side; a thread that finds it dead | all that wait for the lock | see [`Holder`] | C5 |
//!
//! - **C1** A creator counts itself only while WRITER is clear, in one compare-exchange. So once WRITER
//!   is set the count only falls: writers are preferred, and a freeze waits for the clones under way
//!   and no longer.
//! - **C2** The requester has the lock when WRITER is set and the count is 0.
//! - **C3** `writers` is a mutex around WRITER: one requester at a time.
//! - **C4** A record is published before `clone` and under the read side. So a thread that can exist is
//!   listed, and while the lock is frozen a thread that is listed exists or has left.
//! - **C5** `holder` is set after the write side is taken, and cleared before it is given back.
//!
//! *Exit:* takes no lock; threads leave while creation is frozen. A thread that waits for the lock
//! looks whether the holder has ended, and gives the write side back for a dead one (`freeze`). *Fork:*
//! the child starts with a free lock (`reset`). *EAGAIN from clone:* the record is unlisted before the
//! read side is given back. Pins are waited for afterwards, since a thread that holds one may be
//! waiting for the lock. *Masked signals:* a creator blocks signals while it holds the read side, and
//! only then, so a creator that waits for the lock can be signalled. *Nesting:* no thread takes a side
//! while it holds one. A handler that freezes cannot interrupt a creator, since the creator's signals
//! are blocked. Any other handler may only try.
//!
//! References: Go's `allocmLock` and `execLock`, which are one lock here (`runtime/proc.go`: `newm`,
//! `allocm`, `newm1`; `runtime/rwmutex.go`).

use core::time::Duration;

use sigctx::fork::process;
use sigctx::sync::{AtomicU32, Mutex, Ordering, wait, wake_all};
#[cfg(not(loom))]
use sigctx::sys::Tid;

use crate::arena::Arena;
use crate::name::Name;
use crate::record::Record;

const WRITER: u32 = 1 << 31;

/// Read side: creators. Write side: a requester that needs that no thread is made.
#[derive(Debug)]
pub(crate) struct CreationLock {
    state: AtomicU32,
    writers: Mutex,
    #[cfg(not(loom))]
    pub(crate) holder: Holder,
}

impl CreationLock {
    sigctx::const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self {
                state: AtomicU32::new(0),
                writers: Mutex::new(),
                #[cfg(not(loom))]
                holder: Holder { tid: AtomicU32::new(0), pid: AtomicU32::new(0) },
            }
        }
    }

    /// Takes the read side, unless a requester has the lock or waits for it.
    pub(crate) fn try_read(&self) -> bool {
        // Relaxed: the exchange decides.
        let mut now = self.state.load(Ordering::Relaxed);
        while now & WRITER == 0 {
            // C1. Acquire: pairs with `release_write`; what the holder did is seen.
            match self.state.compare_exchange_weak(
                now,
                now + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
        false
    }

    /// Sleeps while a requester has the lock or waits for it. Calls `nap` before each sleep; the result
    /// is how long that may be. Nothing is held afterwards.
    pub(crate) fn wait_readable(&self, mut nap: impl FnMut() -> Option<Duration>) {
        loop {
            // Relaxed: a hint; `try_read` decides.
            let now = self.state.load(Ordering::Relaxed);
            if now & WRITER == 0 {
                return;
            }
            wait(&self.state, now, nap());
        }
    }

    /// Gives the read side back.
    pub(crate) fn release_read(&self) {
        // Release: the holder sees the records published under the lock. Pairs with C2's loads.
        if self.state.fetch_sub(1, Ordering::Release) == WRITER | 1 {
            wake_all(&self.state);
        }
    }

    /// Takes the write side: waits for other requesters and for the creators under way, until no time
    /// is `left` (`None`: forever). Returns whether it has it; if not, the lock is as it was.
    pub(crate) fn write(&self, mut left: impl FnMut() -> Option<Duration>) -> bool {
        // C3. After a fork `reset` has freed it, so it is never found copied.
        if self.writers.lock(process(), &mut left).is_err() {
            return false;
        }
        // C2. Acquire, here and below: pairs with `release_read`.
        let mut now = self.state.fetch_or(WRITER, Ordering::Acquire) | WRITER;
        while now != WRITER {
            let left = left();
            if left.is_some_and(|left| left.is_zero()) {
                self.release_write();
                return false;
            }
            wait(&self.state, now, left);
            now = self.state.load(Ordering::Acquire);
        }
        true
    }

    /// Takes the write side if no thread has either side.
    pub(crate) fn try_write(&self) -> bool {
        // C3.
        if self.writers.try_lock(process()).is_none() {
            return false;
        }
        // C2. Acquire: pairs with `release_read`.
        let free =
            self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !free {
            self.writers.unlock();
        }
        free
    }

    /// Gives the write side back.
    pub(crate) fn release_write(&self) {
        // Release: pairs with `try_read`.
        self.state.fetch_and(!WRITER, Ordering::Release);
        wake_all(&self.state);
        self.writers.unlock();
    }

    /// How many creators are between "listed" and "exists", or about to be.
    #[cfg(not(loom))]
    pub(crate) fn creators(&self) -> u32 {
        // Relaxed: for an error's text, and out of date at once.
        self.state.load(Ordering::Relaxed) & !WRITER
    }

    /// Frees both sides in the child of a fork, which did not copy the threads that held them.
    #[cfg(not(loom))]
    pub(crate) fn reset(&self) {
        self.state.store(0, Ordering::Relaxed);
        self.writers.reset();
        self.holder.clear();
    }
}

/// The thread that has the write side. Threads that wait for the lock look whether it lives.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Holder {
    /// 0: no thread.
    tid: AtomicU32,
    /// The process of that thread: a child of `vfork` finds its parent's.
    pid: AtomicU32,
}

#[cfg(not(loom))]
impl Holder {
    /// The process and the thread, if one has the write side.
    pub(crate) fn get(&self) -> Option<(i32, Tid)> {
        // Acquire: pairs with `set`; the process belongs to the thread.
        let tid = self.tid.load(Ordering::Acquire).cast_signed();
        let pid = self.pid.load(Ordering::Relaxed).cast_signed();
        (tid != 0).then_some((pid, tid))
    }

    /// The caller, which is this thread, has taken the write side.
    pub(crate) fn set(&self, (pid, tid): (i32, Tid)) {
        self.pid.store(pid.cast_unsigned(), Ordering::Relaxed);
        // Release: pairs with `get`.
        self.tid.store(tid.cast_unsigned(), Ordering::Release);
    }

    /// The caller is about to give the write side back.
    pub(crate) fn clear(&self) {
        // Relaxed: the lock orders what comes after.
        self.tid.store(0, Ordering::Relaxed);
    }

    /// Clears the mark of `dead`, a holder that has ended. Of several threads that try, one succeeds.
    pub(crate) fn take_from(&self, dead: Tid) -> bool {
        // Relaxed: a thread that sees that another has ended sees what it wrote.
        let dead = dead.cast_unsigned();
        self.tid.compare_exchange(dead, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Why no thread was made.
#[derive(Debug)]
pub(crate) enum NotCreated<E> {
    /// The arena has no room.
    Full,
    /// `clone` failed. The creator gives back the read side, and then the record to [`abandon`].
    Clone(E, &'static Record),
}

/// Makes a thread: lists it, and then calls `clone` to create it (C4).
///
/// The caller holds the read side of the creation lock. `clone` gets the record and the generation. The
/// new thread calls [`Record::start`] on the record, and in the end [`Record::close`] and [`leave`].
pub(crate) fn create<T, E>(
    arena: &Arena,
    name: &Name,
    clone: impl FnOnce(&'static Record, u32) -> Result<T, E>,
) -> Result<T, NotCreated<E>> {
    let record = arena.claim().ok_or(NotCreated::Full)?;
    let generation = record.prepare(name);
    record.publish();
    clone(record, generation).map_err(|error| {
        record.unlist();
        NotCreated::Clone(error, record)
    })
}

/// Waits for the last pin of a thread that could not be made, and gives its record back if it still
/// `is_ours`: a handler may have forked meanwhile, and then the fork handler has given it back in the
/// child.
pub(crate) fn abandon(arena: &Arena, record: &Record, is_ours: impl FnOnce() -> bool) {
    record.wait_unpinned();
    if is_ours() {
        leave(arena, record);
    }
}

/// Gives a closed record back to the arena.
pub(crate) fn leave(arena: &Arena, record: &Record) {
    if record.free() {
        arena.release(record);
    }
}
