//! The one block of memory that the owner and all handlers share, and which process it belongs to.
//!
//! After `fork` the child has a copy of it, perhaps made in the middle of an operation; a child of
//! `vfork` has the block itself, which is its parent's. Neither finds itself in `process` (see
//! there). A process of one thread does not use the block at all, which is what both are at first.
//! When the forked child has made threads and calls, it takes its copy over: the word of `process`
//! goes from what it finds, 0 or its parent's id, to `TAKING | own` by compare-and-swap and, after
//! the reset, to the own one.
//!
//! Not supported: a process that shares memory with another (`clone(CLONE_VM)` without
//! `CLONE_THREAD`) and has threads of its own.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::{futex_wait, futex_wake};

use crate::calls::Calls;
use crate::census::Notes;
use crate::credentials::Credentials;
use crate::excluded::Excluded;
use crate::hold::Hold;
use crate::lock::{Lock, Locked};
use crate::process::Process;
use crate::roll::Roll;
use crate::signal::Previous;
use crate::signals::Signals;
use crate::table::Table;

const TAKING: u32 = 1 << 31;

/// See the module.
pub(crate) struct Block {
    /// The process whose threads the words count.
    pub(crate) process: Process,
    pub(crate) lock: Lock,
    pub(crate) hold: Hold,
    pub(crate) table: Table,
    pub(crate) roll: Roll,
    pub(crate) calls: Calls,
    pub(crate) credentials: Credentials,
    pub(crate) excluded: Excluded,
    pub(crate) previous: Previous,
    pub(crate) signals: Signals,
    /// Not 0 while instances of `kill` are ours. Relaxed: set before the system call that sends.
    pub(crate) broadcast: AtomicU32,
    notes: UnsafeCell<Notes>,
}

// SAFETY: `notes` is only reached through `Block::notes`, which wants the lock; the rest is atomic.
unsafe impl Sync for Block {}

pub(crate) static BLOCK: Block = Block::new();

impl Block {
    const fn new() -> Self {
        Self {
            process: Process::new(),
            lock: Lock::new(),
            hold: Hold::new(),
            table: Table::new(),
            roll: Roll::new(),
            calls: Calls::new(),
            credentials: Credentials::new(),
            excluded: Excluded::new(),
            previous: Previous::new(),
            signals: Signals::new(),
            broadcast: AtomicU32::new(0),
            notes: UnsafeCell::new(Notes::new()),
        }
    }

    /// Makes the block this process's. The caller's process has more than one thread, and the
    /// caller has all signals but the operation's masked.
    pub(crate) fn take_over(&self, pid: i32) {
        let own = pid as u32;
        let process = self.process.word();
        loop {
            // Acquire: pairs with the release below, so that the reset is seen.
            let found = process.load(Ordering::Acquire);
            if found == own {
                return;
            }
            if found == own | TAKING {
                // Another thread is at it, with all signals but its operation's masked: it will not be long.
                let _ = futex_wait(process, found, None);
            } else if process
                .compare_exchange(found, own | TAKING, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                self.lock.reset();
                self.hold.reset();
                self.roll.reset();
                self.broadcast.store(0, Ordering::Relaxed);
                // SAFETY: who took over is alone until `process` says so: nobody has the lock.
                unsafe { &mut *self.notes.get() }.reset();
                process.store(own, Ordering::Release);
                futex_wake(process, u32::MAX);
                return;
            }
        }
    }

    /// The owner's working memory.
    pub(crate) fn notes<'a>(&'a self, _owner: &'a mut Locked<'_>) -> &'a mut Notes {
        // SAFETY: one thread has the lock, and the borrow of its guard ends before another.
        unsafe { &mut *self.notes.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Straggler, Why};

    /// What a parent noted about its threads says nothing about those of its child.
    #[test]
    fn a_forked_child_forgets_its_parents_threads() {
        let mut block = Box::new(Block::new());
        block.take_over(1);
        block.notes.get_mut().note_missing(Straggler::new(4711, Why::Blocked, "parent's"));
        block.take_over(1);
        assert_eq!(block.notes.get_mut().missing_count, 1);
        block.take_over(2);
        assert_eq!(block.notes.get_mut().missing_count, 0);
        assert_eq!(block.notes.get_mut().missing.iter().count(), 0);
    }
}
