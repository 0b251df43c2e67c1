//! The round of one kind of request, a stop or a for-each, which counts its acknowledgements.
//!
//! The stop has one and the for-each another. They are never shared: a late acknowledgement of one request
//! would count for the other.
//!
//! ```text
//!  pending = | round number, low 12 bits | count, 20 bits |
//!
//!   begin: (n, 1) --expect--> (n, targets + 1) --acknowledge, by each target and the requester--> (n, 0)
//! ```
//!
//! The requester's own acknowledgement stays outstanding until it has asked every target, so the count
//! cannot reach zero early. Exactly one acknowledgement is the last. If it is the requester's, no thread
//! has to be woken.

use core::sync::atomic::{AtomicBool as PlainBool, AtomicU32 as PlainU32, Ordering as Plain};

use super::slot::SlotUse;
use sigctx::sync::{AtomicU32, Ordering};

const COUNT_BITS: u32 = 20;
pub(crate) const COUNT: u32 = (1 << COUNT_BITS) - 1;
/// The most targets that a round can count.
pub(crate) const MOST: u32 = COUNT - 1;

/// The acknowledgements of one request that are outstanding.
#[derive(Debug)]
pub(crate) struct Round {
    /// The word that the requester waits on. Each acknowledgement changes it, and the last one wakes.
    pub(crate) pending: AtomicU32,
    /// Written by the holder of the turn only.
    number: PlainU32,
    /// Index of the slot whose target acknowledged last, plus one; 0 if the requester did.
    last: PlainU32,
    /// The slot's generation then.
    last_generation: PlainU32,
    /// Whether each acknowledgement wakes the requester, not the last one alone. Written as `number` is.
    wakes_each: PlainBool,
}

/// The number of one request. Never 0, and the top bit is free for `CLAIMED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundNumber(pub(crate) u32);

impl RoundNumber {
    fn tag(self) -> u32 {
        self.0 << COUNT_BITS
    }
}

impl Round {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            number: PlainU32::new(0),
            last: PlainU32::new(0),
            last_generation: PlainU32::new(0),
            wakes_each: PlainBool::new(false),
        }
    }

    /// Begins the next request, with the requester's own acknowledgement outstanding. Turn holder only.
    pub(crate) fn begin(&self) -> RoundNumber {
        let next = (self.number.load(Plain::Relaxed) + 1) & (u32::MAX >> 1);
        let round = RoundNumber(next.max(1));
        self.number.store(round.0, Plain::Relaxed);
        self.last.store(0, Plain::Relaxed);
        self.wakes_each.store(false, Plain::Relaxed);
        // Relaxed: no target acknowledges before its slot's pending word is stored, with release.
        self.pending.store(round.tag() | 1, Ordering::Relaxed);
        round
    }

    /// Each acknowledgement of this round wakes the requester. Turn holder only, before any target is asked: it is
    /// published with the round's number.
    pub(crate) fn wake_at_each(&self) {
        self.wakes_each.store(true, Plain::Relaxed);
    }

    /// Whether a thread that has acknowledged, and was not the last, wakes the requester all the same.
    pub(crate) fn wakes_at_each(&self) -> bool {
        self.wakes_each.load(Plain::Relaxed)
    }

    /// Expects one more acknowledgement, before its target is asked. Turn holder only.
    pub(crate) fn expect(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Acknowledges: a target for its slot, or (`None`) the requester. True for the last acknowledgement:
    /// the requester, if it is another thread, has to be woken.
    ///
    /// Release, so that the requester sees what was done before every acknowledgement (its load of the
    /// zero is an acquire, and all exchanges between are one release sequence). Acquire, because the
    /// requester itself may acknowledge last.
    pub(crate) fn acknowledge(&self, round: RoundNumber, by: Option<SlotUse>) -> bool {
        let mut seen = self.pending.load(Ordering::Relaxed);
        loop {
            if seen & !COUNT != round.tag() || seen & COUNT == 0 {
                // The request is over.
                return false;
            }
            if seen & COUNT == 1 {
                // This is the only one outstanding, so no other thread writes this now.
                self.last.store(by.map_or(0, |by| by.index + 1), Plain::Relaxed);
                self.last_generation.store(by.map_or(0, |by| by.generation), Plain::Relaxed);
            }
            match self.pending.compare_exchange_weak(
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

    /// The value of the word to wait on; `None` when all have acknowledged.
    pub(crate) fn pending(&self) -> Option<u32> {
        let seen = self.pending.load(Ordering::Acquire);
        (seen & COUNT != 0).then_some(seen)
    }

    /// The target that acknowledged last; `None` if the requester did.
    pub(crate) fn last(&self) -> Option<SlotUse> {
        let index = self.last.load(Plain::Relaxed).checked_sub(1)?;
        Some(SlotUse { index, generation: self.last_generation.load(Plain::Relaxed) })
    }

    /// In the child of a fork: nothing is outstanding, and later acknowledgements are ignored.
    #[cfg(not(loom))]
    pub(super) fn after_fork(&self) {
        self.pending.fetch_and(!COUNT, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A target that forks inside its closure acknowledges in the child, where its requester is not, and where the
    /// next request may have begun.
    #[test]
    fn a_late_acknowledgement_is_none_of_the_next_request() {
        let round = Round::new();
        let before = round.begin();
        round.expect();
        round.after_fork();
        let next = round.begin();
        assert!(!round.acknowledge(before, None));
        assert_eq!(round.pending().map(|pending| pending & COUNT), Some(1), "still outstanding");
        assert!(round.acknowledge(next, None), "the last");
    }
}
