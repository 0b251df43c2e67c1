//! Stops for nothing that mutators make at their polls, in worlds for tests.

use std::time::Duration;

use crate::asking::{Asking, Patience};
use crate::options::Reason;
use crate::pace::Clock;
use crate::protocol::{MutatorSlot, Stance};
use crate::system::{self, Identity};
use crate::world::Shared;

/// Stops the world and resumes it, at a poll of the mutator that has the slot, if it is nobody's turn. It stands where
/// its world wants to know of it.
pub(crate) fn stop_at_poll(
    shared: &Shared,
    slot: &'static MutatorSlot<Identity>,
    timeout: Duration,
) {
    // As in `stop::refusal`: no stop begins in a closure.
    if system::in_closure() {
        return;
    }
    let (protocol, tid) = (&shared.protocol, system::tid());
    let mut clock = Clock::start(protocol, tid, Some(timeout), None);
    // Safe, before it has the turn: another may stop this thread first.
    protocol.enter(slot, Stance::Waits);
    if protocol.stop_turn.try_acquire(tid) {
        protocol.give_way(Some(slot), || Patience::of(&clock));
        if protocol.begin_work(slot) {
            let asking = Asking::begin(shared, Reason::CHAOS);
            match protocol.stop(Some(slot), &mut clock) {
                Ok(counted) => asking.stopped(counted, &clock).end(shared),
                Err(_) => asking.given_up(&clock),
            }
        } else {
            // Its task is held.
            protocol.stop_turn.release(&protocol.system);
        }
    }
    protocol.leave(slot);
}
