//! Whose turn it is to make a request of a kind. Waited for in a safe region only, so that whoever
//! has the turn can stop those who wait for it.
//!
//! ```text
//!  word = | recalls, 30 bits | FREE, TAKEN or WANTED |
//! ```
//!
//! A handler that recalls a thread which waits changes the upper bits, so that a wait which is about
//! to begin looks again. What takes the turn wipes them off.

use core::sync::atomic::{AtomicI32 as PlainI32, Ordering as Plain};

use super::{Edge, Pace, Slot};
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
    pub(crate) fn take<E: Edge>(
        &self,
        edge: &E,
        own: Option<&'static Slot<E::Identity>>,
        me: i32,
        pace: &mut impl Pace<E>,
    ) -> bool {
        let taken = self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            // Taken as WANTED although perhaps nobody waits: that costs one wake too many, once.
            while self.word.swap(WANTED, Ordering::Acquire) & STATE != FREE {
                if pace.expired() {
                    return false;
                }
                if own.is_some_and(|own| own.is_recalled(edge)) {
                    edge.serve();
                }
                edge.wait(&self.word, WANTED, pace.left());
            }
        }
        self.holder.store(me, Plain::Relaxed);
        true
    }

    /// Gives the turn up.
    pub(crate) fn pass<E: Edge>(&self, edge: &E) {
        self.holder.store(0, Plain::Relaxed);
        if self.word.swap(FREE, Ordering::Release) & STATE == WANTED {
            edge.wake_one(&self.word);
        }
    }

    /// The thread that has the turn.
    pub(crate) fn holder(&self) -> Option<i32> {
        Some(self.holder.load(Plain::Relaxed)).filter(|&tid| tid != 0)
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
