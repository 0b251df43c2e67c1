//! Counting the answers to one request. The stop has one and the for-each another: a round is
//! never shared, or a late answer to one request would be counted for the other.
//!
//! ```text
//!  remaining = | generation, low 12 bits | count, 20 bits |
//!
//!   begin: (g, 1)  --expect--> (g, n + 1)  --answer (n times), requester's own share--> (g, 0)
//! ```
//!
//! The requester holds one share until it has asked everybody, so the count cannot reach zero
//! early. Whoever takes the last share is told so, once; if that is the requester nobody is woken.

use core::sync::atomic::{AtomicU32 as PlainU32, Ordering as Plain};

use crate::sync::{AtomicU32, Ordering};

const COUNT_BITS: u32 = 20;
pub(crate) const COUNT: u32 = (1 << COUNT_BITS) - 1;
/// Most mutators that a round can count, beside the requester's share.
pub(crate) const MOST: u32 = COUNT - 1;

/// Shares of one request that are not answered yet.
#[derive(Debug)]
pub(crate) struct Round {
    /// Also the word that the requester waits on: it changes with every answer, and the last
    /// answer wakes.
    pub(crate) remaining: AtomicU32,
    /// Written by requesters only, one after the other by the turn.
    generation: PlainU32,
    /// Index of the slot that took the last share, plus one; 0: the requester did.
    last: PlainU32,
    /// Which of the slot's owners that was.
    last_owner: PlainU32,
}

/// A slot, and which of its owners: the slot may be another's when this is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct By {
    pub(crate) index: u32,
    pub(crate) owner: u32,
}

/// One request's number. Never 0, and leaves the top two bits free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) u32);

impl Generation {
    fn tag(self) -> u32 {
        self.0 << COUNT_BITS
    }
}

impl Round {
    pub(crate) fn new() -> Self {
        Self {
            remaining: AtomicU32::new(0),
            generation: PlainU32::new(0),
            last: PlainU32::new(0),
            last_owner: PlainU32::new(0),
        }
    }

    /// Starts the next request with the requester's own share. Turn holder only.
    pub(crate) fn begin(&self) -> Generation {
        let next = (self.generation.load(Plain::Relaxed) + 1) & (u32::MAX >> 2);
        let generation = Generation(next.max(1));
        self.generation.store(generation.0, Plain::Relaxed);
        self.last.store(0, Plain::Relaxed);
        // Relaxed: nobody answers before it owes, and `owed` is stored with release.
        self.remaining.store(generation.tag() | 1, Ordering::Relaxed);
        generation
    }

    /// Adds a share, before its slot is told that it owes one. Turn holder only.
    pub(crate) fn expect(&self) {
        self.remaining.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a share, for the slot that took it out of `owed` or (`None`) for the requester. True
    /// for the last one: the requester, if it is another thread, has to be woken.
    ///
    /// Release, so that the requester sees what was done before every answer (its load of the
    /// zero is an acquire, and all exchanges between are one release sequence); acquire, because
    /// the requester itself may be the one that takes the last share.
    pub(crate) fn answer(&self, generation: Generation, by: Option<By>) -> bool {
        let mut seen = self.remaining.load(Ordering::Relaxed);
        loop {
            if seen & !COUNT != generation.tag() || seen & COUNT == 0 {
                // An answer to a request that is over.
                return false;
            }
            if seen & COUNT == 1 {
                // Only one share is left and it is ours, so nobody else writes this now.
                self.last.store(by.map_or(0, |by| by.index + 1), Plain::Relaxed);
                self.last_owner.store(by.map_or(0, |by| by.owner), Plain::Relaxed);
            }
            match self.remaining.compare_exchange_weak(
                seen,
                seen - 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return seen & COUNT == 1,
                Err(now) => seen = now,
            }
        }
    }

    /// The word to wait on while it is not `None`, which it is when all have answered.
    pub(crate) fn pending(&self) -> Option<u32> {
        let seen = self.remaining.load(Ordering::Acquire);
        (seen & COUNT != 0).then_some(seen)
    }

    /// Who answered last; `None` when the requester found everybody safe.
    pub(crate) fn last(&self) -> Option<By> {
        let index = self.last.load(Plain::Relaxed).checked_sub(1)?;
        Some(By { index, owner: self.last_owner.load(Plain::Relaxed) })
    }
}
