//! Who has joined, in the order of joining, and how far each has come.
//!
//! A held thread can end: a seccomp filter of its own may kill it for a system call. Words that count
//! would then wait for it. So each thread writes down how far it has come, between two system calls,
//! at each of which alone it can end; the owner makes up for what the dead have left undone.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | an entry | the thread that joined with its number; when that has ended, the owner | the owner | relaxed: what is read of a thread that has ended was written before its end, which the kernel told; `CHECKED` release / acquire | 0, then the id, then bits are added |

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::Tid;

use crate::hold::Hold;
use crate::life;
use crate::table::SLOTS;

const TID: u32 = (1 << 22) - 1;
/// Its part in `done` is counted.
const DONE: u32 = 1 << 22;
/// It ended, and the owner did its part.
const BURIED: u32 = 1 << 25;
/// It has compared its credentials with the caller's.
const CHECKED: u32 = 1 << 24;
/// Its part in `left` is counted: no word of the protocol is touched any more.
const LEFT: u32 = 1 << 23;

/// See the module.
pub(crate) struct Roll([AtomicU32; SLOTS]);

/// One thread's entry; none beyond the most threads that an operation can hold.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a>(Option<&'a AtomicU32>);

impl Roll {
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time, into a static")]
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; SLOTS])
    }

    /// Forgets the threads of another process.
    pub(crate) fn reset(&self) {
        self.clear(SLOTS as u32);
    }

    /// Empties the first `count` entries. Only while no thread can have joined.
    pub(crate) fn clear(&self, count: u32) {
        for entry in self.0.iter().take(count as usize) {
            entry.store(0, Ordering::Relaxed);
        }
    }

    /// The entry of the thread that joined with this number, from 1.
    #[inline(always)]
    pub(crate) fn enter(&self, number: u32, tid: Tid) -> Line<'_> {
        let line = Line(self.0.get(number as usize - 1));
        if let Some(entry) = line.0 {
            entry.store(tid as u32 & TID, Ordering::Relaxed);
        }
        line
    }

    /// Does for threads that have ended what they have left undone, so that nobody waits for them.
    /// Returns how many are new. Only with the lock.
    #[inline(always)]
    pub(crate) fn bury(&self, hold: &Hold, joined: u32, has_ended: impl Fn(Tid) -> bool) -> u32 {
        let mut buried = 0;
        for entry in self.0.iter().take(joined as usize) {
            let seen = entry.load(Ordering::Relaxed);
            let tid = (seen & TID) as Tid;
            // Not yet written: no system call lies between that and the join.
            if tid == 0 || seen & LEFT != 0 || !has_ended(tid) {
                continue;
            }
            // Again: it may have gone on between the two, to its end.
            let last = entry.fetch_or(DONE | LEFT | BURIED, Ordering::Relaxed);
            if last & LEFT == 0 {
                hold.bury(last & DONE == 0);
                buried += 1;
            }
        }
        buried
    }

    /// How many of the first `held` were buried.
    pub(crate) fn buried(&self, held: u32) -> u32 {
        let entries = self.0.iter().take(held as usize);
        entries.filter(|entry| entry.load(Ordering::Relaxed) & BURIED != 0).count() as u32
    }

    /// Whether the first `held` have all compared their credentials, or ended.
    pub(crate) fn have_checked(&self, held: u32) -> bool {
        // Acquire: pairs with `Line::checked`; what they found is seen.
        let mut entries = self.0.iter().take(held as usize).map(|e| e.load(Ordering::Acquire));
        entries.all(|entry| entry & (CHECKED | LEFT) != 0)
    }

    /// The threads that have not left, of the first `joined`.
    pub(crate) fn inside(&self, joined: u32) -> impl Iterator<Item = Tid> {
        let entries = self.0.iter().take(joined as usize).map(|e| e.load(Ordering::Relaxed));
        entries.filter(|e| e & LEFT == 0 && e & TID != 0).map(|e| (e & TID) as Tid)
    }
}

impl Line<'_> {
    #[inline(always)]
    pub(crate) fn checked(self) {
        if let Some(entry) = self.0 {
            // Release: pairs with `have_checked`.
            entry.fetch_or(CHECKED, Ordering::Release);
        }
    }

    #[inline(always)]
    pub(crate) fn done(self) {
        if let Some(entry) = self.0 {
            entry.fetch_or(DONE, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(crate) fn left(self) {
        if let Some(entry) = self.0 {
            entry.fetch_or(LEFT, Ordering::Relaxed);
        }
    }
}

/// The ordinary question, for who has time for the answer.
#[inline(always)]
pub(crate) fn has_ended_in(pid: i32) -> impl Fn(Tid) -> bool {
    move |tid| life::has_ended(pid, tid)
}
