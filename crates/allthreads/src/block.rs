//! The one block of memory that the requester and all handlers share, and the process that it belongs to.
//!
//! After `fork` the child has a copy of it, perhaps made in the middle of an operation. A child of `vfork`
//! has its parent's block itself. Neither finds its own id in [`Process`]. Both begin as a process of one
//! thread, and such a process does not use the block. When a forked child has made threads and asks for an
//! operation, it takes its copy over: the word of [`Process`] goes from what is found there, 0 or the
//! parent's id, to `TAKING | own` by compare-and-swap and, after the reset, to the child's own id.
//!
//! Not supported: a process that shares memory with another (`clone(CLONE_VM)` without
//! `CLONE_THREAD`) and has threads of its own.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use sigctx::sys::{Tid, futex_wait, futex_wake, syscall};

use crate::calls::Calls;
use crate::chain::Previous;
use crate::credentials::Credentials;
use crate::hold::Hold;
use crate::lock::{Lock, Locked};
use crate::notes::Notes;
use crate::signals::Signals;
use crate::system::{Yielding, Yields};
use crate::threads::{Entry, Excluded, Roll, Table};

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
    pub(crate) yields: Yields,
    /// 0 when instances that `kill` sent are foreign. Else they are ours, and this is one more than how often
    /// they may still be passed on. Relaxed: set before the system call that sends.
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
            yields: Yields::new(),
            broadcast: AtomicU32::new(0),
            notes: UnsafeCell::new(Notes::new()),
        }
    }

    /// Makes the block this process's, which has more than one thread. The calling thread has all signals
    /// but the operation's masked.
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
                // Another thread takes over, with all signals but its operation's masked: it is soon done.
                let _ = futex_wait(process, found, None);
            } else if process
                .compare_exchange(found, own | TAKING, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                self.lock.reset();
                self.hold.reset();
                self.roll.reset();
                self.broadcast.store(0, Ordering::Relaxed);
                // SAFETY: no other thread uses the block until `process` has this process's id; none has
                // the lock.
                unsafe { &mut *self.notes.get() }.reset();
                process.store(own, Ordering::Release);
                futex_wake(process, u32::MAX);
                return;
            }
        }
    }

    /// What the protocol of this operation sleeps by.
    #[inline(always)]
    pub(crate) fn system(&self) -> Yielding<'_> {
        self.yields.system()
    }

    /// Whether thread `tid` is held or asks for the operation that is being executed: it is in a function
    /// that `call` runs.
    pub(crate) fn is_inside(&self, tid: Tid) -> bool {
        self.hold.is_executing() && self.table.entry(tid).is_some_and(Entry::has_arrived)
    }

    /// The requester's working memory.
    pub(crate) fn notes<'a>(&'a self, _locked: &'a mut Locked<'_>) -> &'a mut Notes {
        // SAFETY: one thread has the lock, and the borrow of its guard ends before another.
        unsafe { &mut *self.notes.get() }
    }
}

/// The word when there is no page. The block is the only one but in unit tests.
static ORDINARY: AtomicU32 = AtomicU32::new(0);

/// The process that the block belongs to: a word that a child of `fork` does not inherit.
///
/// An id alone does not tell a child from its parent: the first process of a pid namespace has 1,
/// and so has its child in a namespace below. So the word lies in a page of its own, in which a
/// child finds zeroes (`MADV_WIPEONFORK`), whatever made it: `_Fork` and `clone` run no handlers of
/// `pthread_atfork`, and to register one takes locks, which an operation in a handler must not. A
/// child of `vfork` has the page itself: the id in the word tells that one.
///
/// Where the kernel cannot do that (before Linux 4.14, in an emulator, without memory), the word is
/// an ordinary one, and the id must do.
///
/// | word | writers | readers | ordering | invariant |
/// |---|---|---|---|---|
/// | `place` | the first thread that asks for the word, by CAS from null | all, handlers too | release / acquire: the page is ready | never changes again, nor does the mapping |
/// | the word | `Block::take_over` | all, handlers too | release / acquire: carries the reset of the block | 0 in a new process |
///
/// References: `madvise(2)`.
pub(crate) struct Process {
    place: AtomicPtr<AtomicU32>,
}

impl Process {
    pub(crate) const fn new() -> Self {
        Self { place: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Whether the block belongs to the calling process, whose id is `pid`.
    #[inline(always)]
    pub(crate) fn is(&self, pid: i32) -> bool {
        // SAFETY: null, or a word that stays forever.
        let word = unsafe { self.place.load(Ordering::Acquire).as_ref() };
        // Acquire: pairs with the release in `take_over`.
        word.is_some_and(|word| word.load(Ordering::Acquire) == pid as u32)
    }

    /// The word; its place is made if there is none yet. Changes no memory of libc's but errno, so that
    /// a handler may do it.
    pub(crate) fn word(&self) -> &AtomicU32 {
        let mut place = self.place.load(Ordering::Acquire);
        if place.is_null() {
            let page = map();
            let new = page.unwrap_or((&raw const ORDINARY).cast_mut());
            let first = self.place.compare_exchange(
                ptr::null_mut(),
                new,
                Ordering::Release,
                Ordering::Acquire,
            );
            place = match (first, page) {
                (Ok(_), _) => new,
                (Err(others), None) => others,
                (Err(others), Some(page)) => {
                    unmap(page);
                    others
                }
            };
        }
        // SAFETY: a word that stays forever.
        unsafe { &*place }
    }
}

/// A word in a page that a child of `fork` finds wiped.
fn map() -> Option<*mut AtomicU32> {
    let (protection, length) = (libc::PROT_READ | libc::PROT_WRITE, size_of::<AtomicU32>());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // libc's, because the system call takes its arguments in three ways.
    // SAFETY: a new mapping, wherever the kernel likes; its length is rounded up to a page.
    let page = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    let advice = [page as usize, length, libc::MADV_WIPEONFORK as usize, 0, 0, 0];
    // SAFETY: the page just made, which no other code uses.
    if unsafe { syscall(libc::SYS_madvise, advice) }.is_err() {
        unmap(page.cast());
        return None;
    }
    Some(page.cast())
}

/// Takes back a page that no other thread has seen.
fn unmap(page: *mut AtomicU32) {
    // What cannot be unmapped is one page lost.
    // SAFETY: from `map`, and not used.
    let _ =
        unsafe { syscall(libc::SYS_munmap, [page as usize, size_of::<AtomicU32>(), 0, 0, 0, 0]) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Straggler, StragglerCause};

    /// What a parent noted about its threads says nothing about those of its child.
    #[test]
    fn a_forked_child_forgets_its_parents_threads() {
        let mut block = Box::new(Block::new());
        block.take_over(1);
        block.notes.get_mut().note_missing(Straggler::new(
            4711,
            StragglerCause::Blocked,
            "parent's",
        ));
        block.take_over(1);
        assert_eq!(block.notes.get_mut().missing_count, 1);
        block.take_over(2);
        assert_eq!(block.notes.get_mut().missing_count, 0);
        assert_eq!(block.notes.get_mut().missing.iter().count(), 0);
    }

    #[test]
    fn a_child_of_fork_does_not_inherit_the_word() {
        static PROCESS: Process = Process::new();
        assert!(!PROCESS.is(1), "no process has it");
        PROCESS.word().store(1, Ordering::Release);
        assert!(PROCESS.is(1));
        assert!(!PROCESS.is(2));
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator may not wipe what it is asked to");
        }
        let child = || {
            assert!(!PROCESS.is(1));
            PROCESS.word().store(1, Ordering::Release);
            // And its children.
            assert_eq!(testkit::forked(|| assert!(!PROCESS.is(1))), 0);
            assert!(PROCESS.is(1));
        };
        assert_eq!(testkit::forked(child), 0);
        assert!(PROCESS.is(1));
    }
}
