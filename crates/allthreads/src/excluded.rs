//! Threads that somebody vouches for and that no operation waits for: as the handler finds them, and
//! those that every operation of the process leaves out.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use sigctx::sys::Tid;
use threadreg::procfs::TaskDir;

use crate::error::Error;
use crate::life::unless_gone;
use crate::threads::MAX_EXCLUDED;

/// A thread that every operation of the process leaves out.
struct Always {
    /// 0: none.
    tid: AtomicI32,
    /// The low half of the time of its start: it tells the thread from the next owner of its id.
    /// Half is enough: it comes round after 497 days, to the tick.
    start_time: AtomicU32,
}

/// See [`exclude_always`].
static ALWAYS: [Always; MAX_EXCLUDED] =
    [const { Always { tid: AtomicI32::new(0), start_time: AtomicU32::new(0) } }; MAX_EXCLUDED];

impl Always {
    /// Calls side by side, or beside an operation, are their callers' to order. What comes of it
    /// otherwise is a thread that is not left out, since an id and another's time fit nobody.
    fn set(&self, tid: Tid, start_time: u32) {
        self.start_time.store(start_time, Ordering::Relaxed);
        // Release: pairs with `get`; who sees the id sees its time.
        self.tid.store(tid, Ordering::Release);
    }

    fn get(&self) -> Option<(Tid, u32)> {
        // Acquire: pairs with `set`.
        let tid = self.tid.load(Ordering::Acquire);
        (tid != 0).then(|| (tid, self.start_time.load(Ordering::Relaxed)))
    }
}

/// The threads that every operation leaves out, each with the low half of the time of its start.
pub(crate) fn always() -> impl Iterator<Item = (Tid, u32)> {
    ALWAYS.iter().filter_map(Always::get)
}

/// Makes whoever has the id of the first of them another thread.
#[cfg(test)]
pub(crate) fn pretend_it_began_earlier() {
    ALWAYS[0].start_time.fetch_sub(1, Ordering::Relaxed);
}

/// Leaves out these threads in every operation from now on, in the place of those named before:
/// [`AllThreads::exclude`](crate::AllThreads::exclude) for the whole process, and so for operations
/// that some library makes.
///
/// For whoever knows of threads that can never answer a signal, such as those that a user-mode
/// emulator keeps in the process, all signals blocked. Their ids are those of the tasks in
/// `/proc/self/task` before `main` has made a thread. What is remembered is the thread that has the
/// id now: when it has ended and another one gets its id, that one takes part. Ids that no thread
/// has are ignored. A child of `fork` leaves nobody out until it names its own.
/// [`Outcome::excluded`](crate::Outcome::excluded) says how many an operation left out.
///
/// # Signal safety
///
/// Async-signal-safe.
///
/// # Errors
///
/// [`Error::TooManyThreads`] for more than [`MAX_EXCLUDED`], [`Error::BadThread`] for an id that is
/// not positive, [`Error::NoProc`] when it cannot be learnt which threads have the ids. Nothing is
/// changed then.
pub fn exclude_always(tids: &[Tid]) -> Result<(), Error> {
    check_excluded(tids)?;
    let mut threads = [(0, 0); MAX_EXCLUDED];
    // Who leaves out nobody needs no `/proc`.
    if !tids.is_empty() {
        let dir = TaskDir::open().map_err(Error::NoProc)?;
        for (thread, &tid) in threads.iter_mut().zip(tids) {
            if let Some(stat) = unless_gone(dir.stat(tid)).map_err(Error::NoProc)? {
                *thread = (tid, stat.start_time as u32);
            }
        }
    }
    for (slot, (tid, start_time)) in ALWAYS.iter().zip(threads) {
        slot.set(tid, start_time);
    }
    Ok(())
}

/// Whether a list of excluded threads can be one.
pub(crate) fn check_excluded(tids: &[Tid]) -> Result<(), Error> {
    if tids.len() > MAX_EXCLUDED {
        return Err(Error::TooManyThreads);
    }
    match tids.iter().find(|&&tid| tid <= 0) {
        Some(&tid) => Err(Error::BadThread { tid }),
        None => Ok(()),
    }
}
