//! The process's one registry: the arena and the creation lock, and the handler of a fork.
//!
//! The handler runs in the child of a fork, and puts in order what is in this module and below it. The
//! guards and the shared state of the modules above keep the number of the process that made them
//! ([`fork::process`]). In another process they hold nothing and mean nothing.

use core::ptr;

use sigctx::{fork, sys};

use crate::arena::Arena;
use crate::creation::CreationLock;
use crate::{lookup, spin};

pub(crate) static ARENA: Arena = Arena::new();
pub(crate) static CREATION: CreationLock = CreationLock::new();

static HOOKS: fork::Hooks = fork::Hooks::new(None, after_fork);

/// Whether the crate is in use in this process.
///
/// That is so after the process, or an ancestor that it was forked from, has spawned or attached a
/// thread, frozen creation (not by [`try_freeze_creation`](crate::try_freeze_creation)) or subscribed
/// to events. Before that no thread is registered, and a fork is not noticed.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
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
    HOOKS.is_registered()
}

/// Registers the handler of a fork, once. To be called before anything that a fork could copy.
pub(crate) fn init() {
    if !is_in_use() {
        lookup::init();
        // The only error is ENOMEM. The child of a fork would then list threads that it does not have.
        HOOKS.register().expect("out of memory at pthread_atfork");
    }
}

/// Makes the registry that of the child of a fork, where the calling thread is the only one. It makes
/// atomic stores only. It may run several times in a row: a second run finds nothing left to do.
extern "C" fn after_fork() {
    CREATION.reset();
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
    spin::after_fork();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testkit::{forked, in_child};

    use super::*;

    /// T14. Threads that register at the same time each register the handler, which then runs several
    /// times.
    #[test]
    fn the_fork_handler_may_run_several_times() {
        let name = "registry::tests::the_fork_handler_may_run_several_times";
        in_child(name, Duration::from_secs(20), || {
            let me = crate::attach().expect("not attached yet");
            let other = crate::spawn(std::thread::park);
            let frozen = crate::freeze_creation();
            let status = forked(|| {
                for _ in 0..2 {
                    after_fork();
                }
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

    /// T14. The fork comes in the middle of a pin, whatever the scheduler does.
    #[test]
    fn a_pin_that_a_fork_copies_half_made_holds_no_thread_up() {
        let name = "registry::tests::a_pin_that_a_fork_copies_half_made_holds_no_thread_up";
        in_child(name, Duration::from_secs(20), || {
            let worker = crate::spawn(|| ());
            let stale = worker.thread();
            worker.join().expect("no panic");
            let record = ARENA.all().nth(stale.index()).expect("it had a record");
            record.begin_pin();
            let status = forked(|| {
                let me = crate::attach().expect("attaches");
                assert_eq!(me.thread().index(), stale.index(), "the record is free");
                // Would wait for a pin that no thread holds.
                drop(me);
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
