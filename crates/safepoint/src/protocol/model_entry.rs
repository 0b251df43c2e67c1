//! Models of a safe region that is entered without a fence, as in a fully fenced world without a nudge (I2).

use std::cell::Cell;

use loom::thread;

use super::model::*;
use super::*;

// As in `model_regions`.
thread_local! {
    pub(super) static UNFENCED: Cell<bool> = const { Cell::new(false) };
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
