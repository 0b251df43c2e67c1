//! Asking a target for nothing, to see how long it takes to come to a safe point. Any thread may, at any time.
//!
//! The bit is that of a stop, set in vain. The target clears it as any other: it looks whether a stop is on, finds
//! none, and goes on (I9). A requester that finds the bit may leave it there for the same reason. The thread that asks
//! does not take the bit back: it may stand for a stop by then.

use super::Protocol;
use super::System;
use super::slot::{MutatorSlot, MutatorState, STOP, SlotUse};
use sigctx::sync::Ordering;

impl<S: System> Protocol<S> {
    /// Asks a target that runs. False if it does not run, or is asked for something already.
    pub(crate) fn probe(slot: &MutatorSlot<S::Identity>) -> bool {
        let asks = slot.state() == MutatorState::Running && !slot.is_armed();
        if asks {
            // Relaxed: nothing is to be found behind the bit.
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
        }
        asks
    }

    /// Whether the target that was asked has come to a safe point since: it has cleared the bit, or is in a region,
    /// stopped or gone.
    pub(crate) fn has_come(slot: &MutatorSlot<S::Identity>, asked: SlotUse) -> bool {
        slot.requests.poll.load(Ordering::Relaxed) & STOP == 0
            || slot.state() != MutatorState::Running
            || slot.current_use() != asked
    }
}
