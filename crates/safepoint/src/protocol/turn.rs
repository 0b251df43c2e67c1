//! Whose turn it is to make a request of a kind. Waited for in a safe region only, so that whoever
//! has the turn can stop those who wait for it.

use super::{Edge, Pace};
use crate::sync::{AtomicU32, Ordering};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may be waiting.
const WANTED: u32 = 2;

#[derive(Debug)]
pub(crate) struct Turn {
    word: AtomicU32,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(FREE) }
    }

    /// Takes the turn; false when `pace` ran out first. The caller is in a safe region.
    ///
    /// Acquire, with `pass`'s release: a requester sees what the one before it wrote.
    pub(crate) fn take<E: Edge>(&self, edge: &E, pace: &mut impl Pace<E>) -> bool {
        let taken = self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            return true;
        }
        // Taken as WANTED although perhaps nobody waits: that costs one wake too many, once.
        while self.word.swap(WANTED, Ordering::Acquire) != FREE {
            if pace.expired() {
                return false;
            }
            edge.wait(&self.word, WANTED, pace.left());
        }
        true
    }

    /// Gives the turn up.
    pub(crate) fn pass<E: Edge>(&self, edge: &E) {
        if self.word.swap(FREE, Ordering::Release) == WANTED {
            edge.wake_one(&self.word);
        }
    }
}
