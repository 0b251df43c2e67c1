//! The slow paths of a poll and of the end of a safe region, and how a mutator is given up.

use core::sync::atomic::Ordering;

use crate::abort::abort_with;
use crate::protocol::{MutatorSlot, MutatorState, Protocol};
use crate::roots::{Place, Stand, stand_here};
use crate::stress::stop_at_poll;
use crate::system::{self, Identity, Linux};
use crate::world::Shared;

/// What becomes of a thread that leaves its safe region while it has the world stopped.
#[derive(Clone, Copy)]
pub(crate) enum OwnStop {
    /// It panics, in the region. The stop may end in unwinding.
    Panic,
    /// It unwinds already, and did not end the stop; or its code cannot be unwound.
    Abort,
}

/// The slow path of a poll.
#[cold]
#[inline(never)]
pub(crate) fn poll_armed(shared: &Shared, slot: &'static MutatorSlot<Identity>) {
    assert!(
        !threadreg::holds_freeze(),
        "a poll under the guard of freeze_creation: poll first, freeze second"
    );
    slot.status.identity.forbidden.refuse("a poll");
    if slot.is_armed() {
        stand_here!(Some(slot), Stand::new(Place::Poll));
        if let Some(chaos) = &shared.protocol.system.chaos
            && let Some(timeout) = chaos.stops_at_poll()
        {
            stop_at_poll(shared, slot, timeout);
        }
        shared.protocol.process(slot);
    }
}

/// Leaves a safe region.
pub(crate) fn leave(shared: &Shared, slot: &'static MutatorSlot<Identity>, own_stop: OwnStop) {
    if !shared.protocol.try_leave(slot) {
        leave_armed(shared, slot, own_stop);
    }
}

/// The slot is armed, and leaving may wait. If this thread has the world stopped it would wait forever; under
/// the guard of `freeze_creation` it might.
#[cold]
#[inline(never)]
pub(crate) fn leave_armed(
    shared: &Shared,
    slot: &'static MutatorSlot<Identity>,
    own_stop: OwnStop,
) {
    let tid = slot.status.identity.tid.load(Ordering::Relaxed);
    if shared.protocol.stop_turn.is_held_by(tid) {
        match own_stop {
            OwnStop::Panic => {
                shared.protocol.stay_away(slot);
                panic!("a safe region ended while its own thread has the world stopped");
            }
            OwnStop::Abort => abort_with(format_args!(
                "thread {tid} leaves its safe region and has the world stopped"
            )),
        }
    }
    if cfg!(debug_assertions) && threadreg::holds_freeze() {
        abort_with(format_args!(
            "thread {tid} waits for a stop under the guard of freeze_creation"
        ));
    }
    shared.protocol.process(slot);
}

/// Gives the slot up: the calling thread's own, or one that is no thread's. One in its region stays out of what the
/// calling thread does meanwhile: that may have the world stopped, or have a stop wait for it.
pub(crate) fn detach(
    protocol: &Protocol<Linux>,
    slot: &'static MutatorSlot<Identity>,
    forget: impl FnOnce(),
) {
    if slot.stance().is_none() {
        return protocol.detach(slot, forget);
    }
    let runs = || {
        let own = system::own_slot(protocol);
        own.is_some_and(|own| own.state() == MutatorState::Running)
    };
    protocol.detach_safe(slot, forget, system::tid(), runs);
}
