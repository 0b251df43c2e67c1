//! One request of a kind: whose turn it is to make it, and the count of the answers to it.
//!
//! # The turn
//!
//! Whose turn it is to make a request of a kind. Waited for in a safe region only, so that whoever
//! has the turn can stop those who wait for it.
//!
//! ```text
//!  word = | recalls, 30 bits | FREE, TAKEN or WANTED |
//! ```
//!
//! A handler that recalls a thread which waits changes the upper bits, so that a wait which is about
//! to begin looks again. What takes the turn wipes them off.
//!
//! # The round
//!
//! Counting the answers to one request. The stop has one and the for-each another: a round is
//! never shared, or a late answer to one request would be counted for the other.
//!
//! ```text
//!  pending = | round, low 12 bits | count, 20 bits |
//!
//!   begin: (g, 1)  --expect--> (g, n + 1)  --answer (n times), requester's own share--> (g, 0)
//! ```
//!
//! The requester holds one share until it has asked everybody, so the count cannot reach zero
//! early. Whoever takes the last share is told so, once; if that is the requester nobody is woken.

use core::sync::atomic::{AtomicI32 as PlainI32, AtomicU32 as PlainU32, Ordering as Plain};

use super::slot::{MutatorSlot, SlotUse};
use super::{Pace, System};
use crate::sync::{AtomicU32, Ordering};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may be waiting.
const WANTED: u32 = 2;
const STATE: u32 = 0b11;
const RECALL: u32 = 1 << 2;

#[derive(Debug)]
pub(crate) struct Turn {
    word: AtomicU32,
    /// The thread that has the turn; 0: nobody. A thread compares it with itself only, or tells it
    /// in an error.
    holder: PlainI32,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(FREE), holder: PlainI32::new(0) }
    }

    /// Takes the turn for the thread `me`; false when `pace` ran out first. The caller is in a safe
    /// region, and runs what the holder of its task asks of it meanwhile.
    ///
    /// Acquire, with `pass`'s release: a requester sees what the one before it wrote.
    pub(crate) fn acquire<S: System>(
        &self,
        system: &S,
        own: Option<&'static MutatorSlot<S::Identity>>,
        me: i32,
        pace: &mut impl Pace<S>,
    ) -> bool {
        let taken = self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            // Taken as WANTED although perhaps nobody waits: that costs one wake too many, once.
            while self.word.swap(WANTED, Ordering::Acquire) & STATE != FREE {
                if pace.expired() {
                    return false;
                }
                if own.is_some_and(|own| own.is_recalled(system)) {
                    system.serve();
                }
                system.wait(&self.word, WANTED, pace.left());
            }
        }
        self.holder.store(me, Plain::Relaxed);
        true
    }

    /// Gives the turn up.
    pub(crate) fn release<S: System>(&self, system: &S) {
        self.holder.store(0, Plain::Relaxed);
        if self.word.swap(FREE, Ordering::Release) & STATE == WANTED {
            system.wake_one(&self.word);
        }
    }

    /// The thread that has the turn.
    pub(crate) fn holder(&self) -> Option<i32> {
        Some(self.holder.load(Plain::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Whether `tid`, the calling thread, has the turn.
    pub(crate) fn is_held_by(&self, tid: i32) -> bool {
        self.holder() == Some(tid)
    }

    /// Handler: the thread may be about to wait for the turn.
    pub(crate) fn recall(&self) {
        // Release: as for the stop word in `Protocol::recall`.
        self.word.fetch_add(RECALL, Ordering::Release);
    }

    /// In the child of a fork: the turn is the survivor's, which was `parent` and is `me`, or free.
    pub(crate) fn after_fork(&self, parent: i32, me: i32) -> bool {
        let keeps = self.holder() == Some(parent);
        self.holder.store(if keeps { me } else { 0 }, Plain::Relaxed);
        self.word.store(if keeps { TAKEN } else { FREE }, Ordering::Relaxed);
        keeps
    }
}

const COUNT_BITS: u32 = 20;
pub(crate) const COUNT: u32 = (1 << COUNT_BITS) - 1;
/// Most mutators that a round can count, beside the requester's share.
pub(crate) const MOST: u32 = COUNT - 1;

/// Shares of one request that are not answered yet.
#[derive(Debug)]
pub(crate) struct Round {
    /// Also the word that the requester waits on: it changes with every answer, and the last
    /// answer wakes.
    pub(crate) pending: AtomicU32,
    /// Written by requesters only, one after the other by the turn.
    number: PlainU32,
    /// Index of the slot that took the last share, plus one; 0: the requester did.
    last: PlainU32,
    /// Which of the slot's owners that was.
    last_generation: PlainU32,
}

/// One request's number. Never 0, and leaves the top two bits free.
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
        }
    }

    /// Starts the next request with the requester's own share. Turn holder only.
    pub(crate) fn begin(&self) -> RoundNumber {
        let next = (self.number.load(Plain::Relaxed) + 1) & (u32::MAX >> 2);
        let round = RoundNumber(next.max(1));
        self.number.store(round.0, Plain::Relaxed);
        self.last.store(0, Plain::Relaxed);
        // Relaxed: nobody answers before it owes, and `pending` is stored with release.
        self.pending.store(round.tag() | 1, Ordering::Relaxed);
        round
    }

    /// Adds a share, before its slot is told that it owes one. Turn holder only.
    pub(crate) fn expect(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a share, for the slot that took it out of `pending` or (`None`) for the requester. True
    /// for the last one: the requester, if it is another thread, has to be woken.
    ///
    /// Release, so that the requester sees what was done before every answer (its load of the
    /// zero is an acquire, and all exchanges between are one release sequence); acquire, because
    /// the requester itself may be the one that takes the last share.
    pub(crate) fn acknowledge(&self, round: RoundNumber, by: Option<SlotUse>) -> bool {
        let mut seen = self.pending.load(Ordering::Relaxed);
        loop {
            if seen & !COUNT != round.tag() || seen & COUNT == 0 {
                // An answer to a request that is over.
                return false;
            }
            if seen & COUNT == 1 {
                // Only one share is left and it is ours, so nobody else writes this now.
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

    /// The word to wait on while it is not `None`, which it is when all have answered.
    pub(crate) fn pending(&self) -> Option<u32> {
        let seen = self.pending.load(Ordering::Acquire);
        (seen & COUNT != 0).then_some(seen)
    }

    /// Who answered last; `None` when the requester found everybody safe.
    pub(crate) fn last(&self) -> Option<SlotUse> {
        let index = self.last.load(Plain::Relaxed).checked_sub(1)?;
        Some(SlotUse { index, generation: self.last_generation.load(Plain::Relaxed) })
    }
}

impl Round {
    #[cfg(not(loom))]
    pub(super) fn after_fork(&self) {
        self.pending.fetch_and(!COUNT, Ordering::Relaxed);
    }
}
