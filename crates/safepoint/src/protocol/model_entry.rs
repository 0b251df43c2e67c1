//! Models of how a safe region is entered: without a fence, as in a fully fenced world without a nudge (I2); and
//! by a target that says where it stands (I10).

use std::cell::Cell;
use std::ptr;

use loom::thread;

use super::model::*;
use super::*;

// As in `model_regions`.
thread_local! {
    pub(super) static UNFENCED: Cell<bool> = const { Cell::new(false) };
    static STANDS: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn targets_stand() -> bool {
    STANDS.get()
}

pub(super) fn is_unfenced() -> bool {
    UNFENCED.get()
}

/// Never sleeps for longer than a nap, and looks again after each.
pub(super) struct LooksAgain;

impl Limit for LooksAgain {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl Pace<Model> for LooksAgain {
    type Seen = ();

    fn expired(&self) -> bool {
        false
    }
    fn nap(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn due(&mut self) -> bool {
        // The nap: the others get on, and their stores arrive.
        thread::yield_now();
        true
    }
    fn late(&mut self, _slot: Mutator, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: Mutator) {}
}

/// The mutator stays in its region forever, so the requester has to find it safe by itself. It stands still
/// in the stop, though it enters and leaves a region meanwhile.
#[test]
fn stop_against_a_region_entered_without_a_fence() {
    UNFENCED.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, |world| {
            assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
            let counted = world.protocol.stop(None, &mut LooksAgain).expect("no deadline");
            world.in_stop();
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
            counted.mutators
        });
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(requester.join().unwrap(), 1, "counted once");
    });
}

/// The closure runs once, on one of the two threads.
#[test]
fn for_each_against_a_region_entered_without_a_fence() {
    UNFENCED.set(true);
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, move |world| {
            world.for_each_at(own, &mut LooksAgain);
            world.protocol.enter(own, Stance::Away);
        });
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the target");
    });
}

/// Places in the target's code: nothing is dereferenced.
const POLL: *mut () = ptr::without_provenance_mut(16);
const REGION: *mut () = ptr::without_provenance_mut(32);

/// As the crate's outer layer has a target do it.
fn stand_in_a_region(world: &World, slot: Mutator, away: impl FnOnce()) {
    let before = slot.status.stands.at();
    if !Protocol::try_enter_of(|| &world.protocol, slot, Stance::Away, false) {
        world.protocol.enter_standing(slot, Stance::Away, REGION, || ());
    }
    away();
    world.protocol.leave(slot);
    slot.status.stands.set(before);
}

/// In its stop, and until it is over, a requester finds where the target stands.
#[test]
fn a_stop_sees_where_a_target_stands() {
    STANDS.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, move |world| {
            assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
            world.protocol.stop(None, &mut Patient).expect("no deadline");
            let is_there = slot.state() == MutatorState::Safe;
            world.in_stop();
            if is_there {
                assert_eq!(slot.status.stands.at(), REGION, "where it is in its region");
            }
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
        });
        world.work(slot);
        stand_in_a_region(&world, slot, || ());
        world.work(slot);
        world.detach(slot);
        requester.join().unwrap();
    });
}

/// The closure finds it, too, on whichever thread: what runs in between has stood still elsewhere.
#[test]
fn a_for_each_sees_where_a_target_stands() {
    STANDS.set(true);
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, move |world| {
            let visit = move |visited: Mutator| {
                if visited.index() == slot.index() {
                    assert!(
                        [POLL, REGION].contains(&visited.status.stands.at()),
                        "{:?}",
                        visited.status.stands.at()
                    );
                }
            };
            assert!(world.protocol.for_each(own, 2, &visit, &mut Patient).is_ok(), "no deadline");
            world.detach(own);
        });
        stand_in_a_region(&world, slot, || ());
        if slot.is_armed() {
            slot.status.stands.set(POLL);
            world.protocol.process(slot);
        }
        slot.status.stands.set(POLL);
        world.detach(slot);
        requester.join().unwrap();
    });
}
