//! One kind of request, a stop or a for-each: the turn to make one, and the round that counts its
//! acknowledgements.
//!
//! # The turn
//!
//! A lock that one requester holds at a time. A mutator waits for it in a safe region, so that the holder
//! can stop the threads that wait.
//!
//! ```text
//!  word = | recalls, 30 bits | FREE, TAKEN or WANTED |
//! ```
//!
//! A handler that recalls a thread which waits changes the upper bits, so that a wait which is about to
//! begin looks again. Acquiring the turn clears them.
//!
//! # The round
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

use core::sync::atomic::{AtomicI32 as PlainI32, AtomicU32 as PlainU32, Ordering as Plain};

use super::slot::{MutatorSlot, SlotUse};
use super::{Limit, System};
use sigctx::sync::{AtomicU32, Ordering};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and a thread may be waiting.
const WANTED: u32 = 2;
const STATE: u32 = 0b11;
const RECALL: u32 = 1 << 2;

/// The turn to make a request of one kind.
#[derive(Debug)]
pub(crate) struct Turn {
    word: AtomicU32,
    /// The thread that has the turn; 0 for none, and if it was handed over. A thread compares it with its own
    /// id only, or puts it into an error.
    holder: PlainI32,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(FREE), holder: PlainI32::new(0) }
    }

    /// Acquires the turn for the thread `me`; false when `limit` passed first, at which it looks before each
    /// wait. The caller is in a safe region. While it waits it runs what the thread that holds its task wants of it.
    ///
    /// Acquire, with `release`'s release: a requester sees what the one before it wrote.
    pub(crate) fn acquire<S: System>(
        &self,
        system: &S,
        own: Option<&'static MutatorSlot<S::Identity>>,
        me: i32,
        limit: &impl Limit,
    ) -> bool {
        if self.try_acquire(me) {
            return true;
        }
        // Taken as WANTED although perhaps no thread waits: that costs one needless wake.
        while self.word.swap(WANTED, Ordering::Acquire) & STATE != FREE {
            let left = limit.left();
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            if own.is_some_and(|own| own.is_recalled(system)) {
                system.serve();
            }
            system.wait(&self.word, WANTED, left);
        }
        self.holder.store(me, Plain::Relaxed);
        true
    }

    /// Acquires the turn if no thread has it. As [`Turn::acquire`].
    pub(crate) fn try_acquire(&self, me: i32) -> bool {
        let taken = self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            self.holder.store(me, Plain::Relaxed);
        }
        taken.is_ok()
    }

    /// Whether no thread has the turn, at this moment.
    #[cfg(not(loom))]
    pub(crate) fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) & STATE == FREE
    }

    /// Releases the turn.
    pub(crate) fn release<S: System>(&self, system: &S) {
        self.release_and(|word| system.wake_one(word));
    }

    /// Releases the turn, and has all threads that wait for it look at their limits.
    #[cfg(not(loom))]
    pub(crate) fn release_to_all<S: System>(&self, system: &S) {
        self.release_and(|word| system.wake_all(word));
    }

    fn release_and(&self, wake: impl FnOnce(&AtomicU32)) {
        self.holder.store(0, Plain::Relaxed);
        if self.word.swap(FREE, Ordering::Release) & STATE == WANTED {
            wake(&self.word);
        }
    }

    /// To be called by the thread that has the turn. From here on no thread in particular has it: any may release
    /// it, once.
    pub(crate) fn hand_over(&self) {
        self.holder.store(0, Plain::Relaxed);
    }

    /// The thread that has the turn.
    pub(crate) fn holder(&self) -> Option<i32> {
        Some(self.holder.load(Plain::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Whether `tid`, the calling thread, has the turn.
    pub(crate) fn is_held_by(&self, tid: i32) -> bool {
        self.holder() == Some(tid)
    }

    /// Called by a handler on a thread that may be about to wait for the turn.
    pub(crate) fn recall(&self) {
        // Release: as for the stop word in `Protocol::recall`.
        self.word.fetch_add(RECALL, Ordering::Release);
    }

    /// In the child of a fork: the turn stays with the survivor, which was `parent` and is `me`, or is free.
    /// Returns whether the survivor has it.
    pub(crate) fn after_fork(&self, parent: i32, me: i32) -> bool {
        let keeps = self.holder() == Some(parent);
        self.holder.store(if keeps { me } else { 0 }, Plain::Relaxed);
        self.word.store(if keeps { TAKEN } else { FREE }, Ordering::Relaxed);
        keeps
    }
}

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
        }
    }

    /// Begins the next request, with the requester's own acknowledgement outstanding. Turn holder only.
    pub(crate) fn begin(&self) -> RoundNumber {
        let next = (self.number.load(Plain::Relaxed) + 1) & (u32::MAX >> 1);
        let round = RoundNumber(next.max(1));
        self.number.store(round.0, Plain::Relaxed);
        self.last.store(0, Plain::Relaxed);
        // Relaxed: no target acknowledges before its slot's pending word is stored, with release.
        self.pending.store(round.tag() | 1, Ordering::Relaxed);
        round
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
