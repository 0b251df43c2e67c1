//! The process's one registry: the arena, the creation lock, and what a fork does to them.
//!
//! The fork handler puts in order what is in this module and below it. Above it a guard or a piece of
//! shared state keeps the count of forks ([`forks`]) from when it was made. With another count it is the
//! parent's, and means nothing in the child.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sigctx::sys;

use crate::arena::Arena;
use crate::creation::CreationLock;
use crate::lookup;

pub(crate) static ARENA: Arena = Arena::new();
pub(crate) static CREATION: CreationLock = CreationLock::new();

/// How often this process came out of a fork as the child.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The count of forks that this process, or an ancestor, came out of as the child.
pub(crate) fn forks() -> u32 {
    // Relaxed: changed only where no other thread is.
    FORKS.load(Ordering::Relaxed)
}

/// Whether the children of a fork are put in order.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Whether this process, or an ancestor that it was forked from, has spawned or attached a thread,
/// frozen creation (not by [`try_freeze_creation`](crate::try_freeze_creation)) or subscribed to
/// events. Before that no thread is registered, and a fork is not noticed.
///
/// # Signal safety
///
/// Async-signal-safe.
///
/// # Examples
///
/// ```
/// assert!(!threadreg::is_in_use());
/// let _me = threadreg::attach()?;
/// assert!(threadreg::is_in_use());
/// # Ok::<(), threadreg::AttachError>(())
/// ```
#[must_use]
pub fn is_in_use() -> bool {
    // Acquire: pairs with the store in `init`; the handler was registered before.
    REGISTERED.load(Ordering::Acquire)
}

/// Has the child of a fork put in order. To be called before anything is registered.
pub(crate) fn init() {
    // Not a `Once`: a fork could copy it while it runs, and the child would wait for a thread that
    // it does not have. Threads that come here at the same time each register the handler.
    if !is_in_use() {
        lookup::init();
        register();
        REGISTERED.store(true, Ordering::Release);
    }
}

fn register() {
    // SAFETY: `after_fork` is a function of this crate that stays loaded: libc drops the handlers
    // of a library that is unloaded.
    let failed = unsafe { libc::pthread_atfork(None, None, Some(after_fork)) };
    // ENOMEM is all that can be. A child of fork would then see threads that are not there.
    assert_eq!(failed, 0, "out of memory at pthread_atfork");
}

/// In the child of a fork: the calling thread is the only one. Atomic stores only. May run several
/// times in a row: a second run finds nothing left to do.
extern "C" fn after_fork() {
    CREATION.reset();
    FORKS.fetch_add(1, Ordering::Relaxed);
    let survivor = lookup::record();
    for record in ARENA.all() {
        if ptr::eq(record, survivor) {
            record.survive(sys::gettid());
        } else if record.reset() {
            // SAFETY: the thread that ran on that stack was not copied.
            unsafe { record.stack.set_bounds(0, 0) };
            ARENA.release(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testkit::{forked, in_child};

    use super::*;

    /// Threads that register at the same time each register the handler.
    #[test]
    fn t14_the_fork_handler_may_run_several_times() {
        let name = "registry::tests::t14_the_fork_handler_may_run_several_times";
        in_child(name, Duration::from_secs(20), || {
            for _ in 0..3 {
                register();
            }
            let me = crate::attach().expect("not attached yet");
            let other = crate::spawn(std::thread::park);
            let frozen = crate::freeze_creation();
            let status = forked(|| {
                assert_eq!(crate::current(), Some(me.thread()));
                assert_eq!(me.thread().tid(), Some(sys::gettid()));
                assert!(crate::threads().count() == 1 && !other.thread().is_alive());
                assert!(crate::try_freeze_creation().is_some());
            });
            drop(frozen);
            assert_eq!(status, 0, "in the child of fork");
            other.unpark();
            other.join().expect("no panic");
        });
    }

    /// The fork comes in the middle of a pin, whatever the scheduler does.
    #[test]
    fn t14_a_pin_that_a_fork_copies_half_made_holds_nobody_up() {
        let name = "registry::tests::t14_a_pin_that_a_fork_copies_half_made_holds_nobody_up";
        in_child(name, Duration::from_secs(20), || {
            let worker = crate::spawn(|| ());
            let stale = worker.thread();
            worker.join().expect("no panic");
            let record = ARENA.all().nth(stale.index()).expect("it had a record");
            record.begin_pin();
            let status = forked(|| {
                let me = crate::attach().expect("attaches");
                assert_eq!(me.thread().index(), stale.index(), "the record is free");
                // Would wait for a pin that nobody holds.
                drop(me);
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
