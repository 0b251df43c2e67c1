//! Threads that every operation of the process leaves out: the program vouches for them.

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
    /// The low half of its start time, which tells it from a later thread with its id. Half is enough: it
    /// comes round after 497 days, to the tick.
    start_time: AtomicU32,
}

/// See [`exclude_always`].
static ALWAYS: [Always; MAX_EXCLUDED] =
    [const { Always { tid: AtomicI32::new(0), start_time: AtomicU32::new(0) } }; MAX_EXCLUDED];

impl Always {
    /// The program orders its calls of `exclude_always` among each other and with operations. If it does not,
    /// a thread may fail to be left out: no thread has the id of one and the start time of another.
    fn set(&self, thread: Option<(Tid, u32)>) {
        let (tid, start_time) = thread.unwrap_or((0, 0));
        self.start_time.store(start_time, Ordering::Relaxed);
        // Release: pairs with `get`, which sees the time with the id.
        self.tid.store(tid, Ordering::Release);
    }

    fn get(&self) -> Option<(Tid, u32)> {
        // Acquire: pairs with `set`.
        let tid = self.tid.load(Ordering::Acquire);
        (tid != 0).then(|| (tid, self.start_time.load(Ordering::Relaxed)))
    }
}

/// The threads that every operation leaves out, each with the low half of its start time.
pub(crate) fn always() -> impl Iterator<Item = (Tid, u32)> {
    ALWAYS.iter().filter_map(Always::get)
}

/// Makes it look as if the first of them had ended and another thread had its id.
#[cfg(test)]
pub(crate) fn pretend_it_began_earlier() {
    ALWAYS[0].start_time.fetch_sub(1, Ordering::Relaxed);
}

/// Leaves these threads out of every operation from now on, instead of those named before. It is
/// [`AllThreads::exclude`](crate::AllThreads::exclude) for the whole process, and so for the operations of
/// libraries, too.
///
/// For threads that can never answer a signal, such as those that a user-mode emulator keeps in the process
/// with all signals blocked. Their ids are those of the tasks in `/proc/self/task` before `main` has made a
/// thread. What is remembered is the thread that has the id now: when it has ended and another one gets its
/// id, that one takes part. Ids that no thread has are ignored. A child of `fork` leaves no thread out until
/// it names its own.
/// [`Report::excluded`](crate::Report::excluded) says how many an operation left out.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// [`Error::TooManyExcluded`] for more than [`MAX_EXCLUDED`], [`Error::BadThread`] for an id that is
/// not positive, [`Error::NoProc`] when `/proc` does not tell which threads have the ids. Nothing is changed
/// then.
pub fn exclude_always(tids: &[Tid]) -> Result<(), Error> {
    check_excluded(tids)?;
    let mut threads = [None; MAX_EXCLUDED];
    // An empty list needs no `/proc`.
    if !tids.is_empty() {
        let dir = TaskDir::open().map_err(Error::NoProc)?;
        for (thread, &tid) in threads.iter_mut().zip(tids) {
            if let Some(stat) = unless_gone(dir.stat(tid)).map_err(Error::NoProc)? {
                *thread = Some((tid, stat.start_time as u32));
            }
        }
    }
    for (slot, thread) in ALWAYS.iter().zip(threads) {
        slot.set(thread);
    }
    Ok(())
}

/// Refuses a list of excluded threads that is too long or has an impossible id.
pub(crate) fn check_excluded(tids: &[Tid]) -> Result<(), Error> {
    if tids.len() > MAX_EXCLUDED {
        return Err(Error::TooManyExcluded { tids: tids.len() });
    }
    match tids.iter().find(|&&tid| tid <= 0) {
        Some(&tid) => Err(Error::BadThread { tid }),
        None => Ok(()),
    }
}
