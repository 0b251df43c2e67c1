//! What is written down of each thread, in three fixed lists of words that the requester and the handlers
//! share: which threads are left out ([`Excluded`]), which were signalled and have arrived ([`Table`]), and
//! which have joined and how far each has come ([`Roll`]).

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use sigctx::sys::Tid;

use crate::hold::Hold;
use crate::life;

/// Entries, and so the largest number of threads of one operation.
pub(crate) const SLOTS: usize = 1 << 14;

const TID: u32 = (1 << 22) - 1;
const SENT: u32 = 1 << 22;
const ARRIVED: u32 = 1 << 23;
const ACTED: u32 = 1 << 24;
const EPOCH_SHIFT: u32 = 25;
const LAST_EPOCH: u32 = 127;

/// Which thread has been signalled and which has arrived: a fixed table of thread ids.
///
/// It serves to signal each thread once and to say which are missing. The count alone proves that all
/// are held (`hold`), so a wrong entry costs time, never correctness. In a one-phase operation it says which
/// threads have run the calls, and only the thread itself writes that.
///
/// One word an entry: `epoch (7) | acted (1) | arrived (1) | sent (1) | tid (22)`. An entry of another epoch
/// is free, so that counting the epoch up empties the table. The kernel's thread
/// ids are below 2²² (`PID_MAX_LIMIT`).
///
/// The requester and the handlers insert by compare-and-swap. All accesses are relaxed: an entry
/// carries nothing but itself, and the epoch is published by the opening of the gate.
pub(crate) struct Table {
    epoch: AtomicU32,
    slots: [AtomicU32; SLOTS],
    /// The number of the last listing, which grows from one operation to the next; and for each entry the
    /// last one that has shown the thread. Only the requester's.
    listing: AtomicU32,
    listed: [AtomicU32; SLOTS],
}

/// One thread's entry.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a>(&'a AtomicU32);

impl Table {
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time, into a static")]
    pub(crate) const fn new() -> Self {
        Self {
            epoch: AtomicU32::new(0),
            slots: [const { AtomicU32::new(0) }; SLOTS],
            listing: AtomicU32::new(0),
            listed: [const { AtomicU32::new(0) }; SLOTS],
        }
    }

    /// Empties the table. Only while no thread can have joined.
    pub(crate) fn clear(&self) {
        let mut epoch = self.epoch.load(Ordering::Relaxed) + 1;
        if epoch > LAST_EPOCH {
            for slot in &self.slots {
                slot.store(0, Ordering::Relaxed);
            }
            epoch = 1;
        }
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// The entry of `tid`, made if there is none; `None` when the table is full.
    #[inline(always)]
    pub(crate) fn entry(&self, tid: Tid) -> Option<Entry<'_>> {
        self.place(tid).map(|(_, entry)| entry)
    }

    /// Begins a listing, and returns its number.
    pub(crate) fn begin_listing(&self) -> u32 {
        let number = self.listing.load(Ordering::Relaxed).wrapping_add(1);
        self.listing.store(number, Ordering::Relaxed);
        number
    }

    /// The entry of a thread that listing `number` shows, and the listing that showed it last.
    pub(crate) fn list(&self, tid: Tid, number: u32) -> Option<(Entry<'_>, u32)> {
        let (place, entry) = self.place(tid)?;
        let listed = self.listed.get(place)?;
        let before = listed.load(Ordering::Relaxed);
        listed.store(number, Ordering::Relaxed);
        Some((entry, before))
    }

    /// Whether the thread has run the calls of this one-phase operation. Changes nothing: asked of an
    /// operation that is over, it says something about another one.
    #[inline(always)]
    pub(crate) fn has_acted(&self, tid: Tid) -> bool {
        let tid = tid as u32 & TID;
        let epoch = self.epoch.load(Ordering::Relaxed);
        for step in 0..SLOTS {
            let slot = &self.slots[(tid as usize).wrapping_add(step) & (SLOTS - 1)];
            let seen = slot.load(Ordering::Relaxed);
            if seen >> EPOCH_SHIFT != epoch {
                return false;
            }
            if seen & TID == tid {
                return seen & ACTED != 0;
            }
        }
        false
    }

    #[inline(always)]
    fn place(&self, tid: Tid) -> Option<(usize, Entry<'_>)> {
        let tid = tid as u32 & TID;
        let fresh = self.epoch.load(Ordering::Relaxed) << EPOCH_SHIFT | tid;
        // Neighbouring ids, as threads of one process often have, take neighbouring entries.
        for step in 0..SLOTS {
            let place = (tid as usize).wrapping_add(step) & (SLOTS - 1);
            let slot = &self.slots[place];
            let mut seen = slot.load(Ordering::Relaxed);
            if seen >> EPOCH_SHIFT != fresh >> EPOCH_SHIFT {
                match slot.compare_exchange(seen, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some((place, Entry(slot))),
                    Err(now) => seen = now,
                }
            }
            if seen & TID == tid {
                return Some((place, Entry(slot)));
            }
        }
        None
    }
}

impl Entry<'_> {
    #[inline(always)]
    pub(crate) fn set_arrived(self) {
        self.0.fetch_or(ARRIVED, Ordering::Relaxed);
    }

    /// The thread goes on with its own code, perhaps before the others do.
    #[inline(always)]
    pub(crate) fn clear_arrived(self) {
        self.0.fetch_and(!ARRIVED, Ordering::Relaxed);
    }

    /// The thread has run the calls of a one-phase operation.
    #[inline(always)]
    pub(crate) fn set_acted(self) {
        self.0.fetch_or(ACTED, Ordering::Relaxed);
    }

    /// Whether it is held, or running the calls.
    pub(crate) fn has_arrived(self) -> bool {
        self.0.load(Ordering::Relaxed) & ARRIVED != 0
    }

    /// Whether it has run the calls of this one-phase operation.
    pub(crate) fn has_acted(self) -> bool {
        self.0.load(Ordering::Relaxed) & ACTED != 0
    }

    pub(crate) fn set_sent(self) {
        self.0.fetch_or(SENT, Ordering::Relaxed);
    }

    /// Lets the thread be signalled again.
    pub(crate) fn forget_sent(self) {
        self.0.fetch_and(!SENT, Ordering::Relaxed);
    }

    /// Whether a signal is on its way to the thread, or has done its work.
    pub(crate) fn needs_no_signal(self) -> bool {
        self.0.load(Ordering::Relaxed) & (SENT | ARRIVED | ACTED) != 0
    }
}

/// Its part in `done` is counted.
const DONE: u32 = 1 << 22;
/// It has ended, and the requester did its part.
const BURIED: u32 = 1 << 25;
/// It has compared its credentials with the requester's.
const CHECKED: u32 = 1 << 24;
/// Its part in `left` is counted: no word of the protocol is touched any more.
const LEFT: u32 = 1 << 23;

/// The threads that have joined, in the order of joining, and how far each has come.
///
/// A held thread can end: a seccomp filter of its own may kill it for a system call, and the words that
/// count would wait for it. So each thread writes down how far it has come, between two system calls: it
/// can end at a system call only. The requester makes up for what the dead have left undone.
///
/// | word | writers | readers | ordering | invariant |
/// |---|---|---|---|---|
/// | an entry | the thread that joined with its number; when that has ended, the requester | the requester | relaxed: what is read of a thread that has ended was written before its end, which the kernel told; `CHECKED` release / acquire | 0, then the id, then bits are added |
pub(crate) struct Roll([AtomicU32; SLOTS]);

/// One thread's entry; none for a thread beyond the most that an operation can hold.
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

    /// Does for threads that have ended what they have left undone, so that no thread waits for them.
    /// Returns how many are new. The lock is held.
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
            // Read again: it may have gone on until its end since the first read.
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

    /// The threads of the first `joined` entries.
    pub(crate) fn threads(&self, joined: u32) -> impl Iterator<Item = Tid> {
        let entries = self.0.iter().take(joined as usize).map(|e| e.load(Ordering::Relaxed) & TID);
        entries.filter(|&tid| tid != 0).map(|tid| tid as Tid)
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

/// Asks the kernel whether a thread of process `pid` has ended.
#[inline(always)]
pub(crate) fn has_ended_in(pid: i32) -> impl Fn(Tid) -> bool {
    move |tid| life::has_ended(pid, tid)
}

/// The most threads that one operation, or [`exclude_always`](crate::exclude_always), can leave out.
pub const MAX_EXCLUDED: usize = 16;

/// Those of one operation, and those of every operation.
pub(crate) const EXCLUDED: usize = 2 * MAX_EXCLUDED;

/// Threads that the program vouches for, where the handler finds them: those of the operation and
/// those of every operation. Written before the gate opens, read after; 0 is an empty place.
pub(crate) struct Excluded([AtomicI32; EXCLUDED]);

impl Excluded {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicI32::new(0) }; EXCLUDED])
    }

    pub(crate) fn set(&self, tids: [Option<Tid>; EXCLUDED]) {
        for (slot, tid) in self.0.iter().zip(tids) {
            slot.store(tid.unwrap_or(0), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(crate) fn contains(&self, tid: Tid) -> bool {
        // Not `any`: a plain loop over plain loads, for the handler.
        for slot in &self.0 {
            if slot.load(Ordering::Relaxed) == tid {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Box<Table> {
        Box::new(Table::new())
    }

    #[test]
    fn an_entry_is_found_again_until_the_table_is_cleared() {
        let table = table();
        for _ in 0..600 {
            table.clear();
            let one = table.entry(4711).unwrap();
            assert!(!one.needs_no_signal());
            one.set_arrived();
            // Same first place, another thread.
            let other = table.entry(4711 + SLOTS as Tid).unwrap();
            assert!(!other.has_arrived());
            assert!(table.entry(4711).unwrap().has_arrived());
            other.set_sent();
            assert!(other.needs_no_signal());
            other.forget_sent();
            assert!(!other.needs_no_signal());
        }
    }

    #[test]
    fn a_full_table_says_so() {
        let table = table();
        table.clear();
        for tid in 1..=SLOTS as Tid {
            assert!(table.entry(tid).is_some());
        }
        assert!(table.entry(SLOTS as Tid + 1).is_none());
        assert!(table.entry(1).is_some());
    }
}
