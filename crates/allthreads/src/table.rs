//! Which thread has been signalled and which has arrived: a fixed table of thread ids.
//!
//! It helps to signal each thread once and to say who is missing. That everybody is held is proved
//! by the count alone (see `gather`), so a wrong entry costs time, never correctness.
//!
//! One word an entry: `epoch (8) | arrived (1) | sent (1) | tid (22)`. An entry of another epoch is
//! free, so that a new gathering empties the table by counting the epoch up. The kernel's thread
//! ids are below 2²² (`PID_MAX_LIMIT`).
//!
//! The owner and the handlers insert by compare-and-swap. All accesses are relaxed: an entry
//! carries nothing but itself, and the epoch is published by the opening of the gate.

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::Tid;

/// Entries, and so the largest number of threads of one operation.
pub(crate) const SLOTS: usize = 1 << 14;

const TID: u32 = (1 << 22) - 1;
const SENT: u32 = 1 << 22;
const ARRIVED: u32 = 1 << 23;
const EPOCH_SHIFT: u32 = 24;
const LAST_EPOCH: u32 = 255;

/// The table; see the module.
pub(crate) struct Table {
    epoch: AtomicU32,
    slots: [AtomicU32; SLOTS],
}

/// One thread's entry.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a>(&'a AtomicU32);

impl Table {
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time, into a static")]
    pub(crate) const fn new() -> Self {
        Self { epoch: AtomicU32::new(0), slots: [const { AtomicU32::new(0) }; SLOTS] }
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
        let tid = tid as u32 & TID;
        let fresh = self.epoch.load(Ordering::Relaxed) << EPOCH_SHIFT | tid;
        // Neighbouring ids, as threads of one process often have, take neighbouring entries.
        for step in 0..SLOTS {
            let slot = &self.slots[(tid as usize).wrapping_add(step) & (SLOTS - 1)];
            let mut seen = slot.load(Ordering::Relaxed);
            if seen >> EPOCH_SHIFT != fresh >> EPOCH_SHIFT {
                match slot.compare_exchange(seen, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some(Entry(slot)),
                    Err(now) => seen = now,
                }
            }
            if seen & TID == tid {
                return Some(Entry(slot));
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

    pub(crate) fn has_arrived(self) -> bool {
        self.0.load(Ordering::Relaxed) & ARRIVED != 0
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
        self.0.load(Ordering::Relaxed) & (SENT | ARRIVED) != 0
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
