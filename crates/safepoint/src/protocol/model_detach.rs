//! Models of mutators that are given up in their regions, by whichever thread.

use loom::sync::Arc;

use super::model::*;
use super::*;
use sigctx::sync::Ordering;

/// A thread that has no turn.
pub(super) const NOBODY: i32 = 9;

/// The one that has the world stopped.
const HOLDER: i32 = 2;

impl World {
    /// The thread `me` gives the mutator up.
    pub(super) fn detach_safe(&self, slot: Mutator, me: i32, runs: bool) {
        self.protocol.detach_safe(slot, || (), me, || runs);
    }
}

fn smaller_model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(run);
}

/// The operation reads what requesters change in stops when it is dropped, and counts that.
fn queue_what_is_dropped(world: &Arc<World>, slot: Mutator, dropped: &Arc<AtomicU32>) {
    struct Reads(Arc<World>, Mutator, Arc<AtomicU32>);
    impl Drop for Reads {
        fn drop(&mut self) {
            self.0.visit(self.1, || ());
            self.2.fetch_add(1, Ordering::Relaxed);
        }
    }
    let reads = Reads(world.clone(), slot, dropped.clone());
    assert!(world.protocol.handshake_async(slot, 1, Box::new(move || drop(reads))), "not gone");
}

/// The thread that has the world stopped gives up what a for-each has claimed, whose requester it stops.
#[test]
fn a_claimed_mutator_is_given_up_in_a_stop() {
    smaller_model(|| {
        let world = World::new();
        let (slot, last, own) = (world.attach(), world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        world.protocol.enter(last, Stance::Away);
        let holder = spawn(&world, move |world| {
            assert!(world.protocol.stop_turn.acquire(&Model, None, HOLDER, &Patient));
            world.protocol.stop(None, &mut Patient).expect("no deadline");
            world.in_stop();
            world.detach_safe(last, HOLDER, false);
            world.in_stop();
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
        });
        world.for_each(own);
        world.protocol.enter(own, Stance::Away);
        holder.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the one that stays");
    });
}

/// The next in the slot runs, and no closure of the one before beside it.
#[test]
fn for_each_against_a_mutator_that_is_given_up_and_attach() {
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let requester = spawn(&world, move |world| world.for_each(own));
        world.detach_safe(slot, NOBODY, false);
        let slot = world.attach();
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// A mutator that runs gives up another, and is waited for by a stop. The for-each is in its requester's hands.
#[test]
fn a_claimed_mutator_is_given_up_beside_a_stop() {
    smaller_model(|| {
        let world = World::new();
        let (slot, own, runs) = (world.attach(), world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let of_each = spawn(&world, move |world| {
            world.for_each(own);
            world.protocol.enter(own, Stance::Away);
        });
        let of_stop = spawn(&world, World::stop_outside);
        world.work(runs);
        world.detach_safe(slot, NOBODY, true);
        world.work(runs);
        world.protocol.enter(runs, Stance::Away);
        of_each.join().unwrap();
        of_stop.join().unwrap();
    });
}

/// What the operation drops is dropped once, and not in the stop of another thread.
#[test]
fn operations_of_a_mutator_that_is_given_up_beside_a_stop() {
    for runs in [false, true] {
        loom::model(move || {
            let world = World::new();
            let (slot, own) = (world.attach(), world.attach());
            let dropped = Arc::new(AtomicU32::new(0));
            world.protocol.enter(slot, Stance::Away);
            queue_what_is_dropped(&world, slot, &dropped);
            if !runs {
                world.protocol.enter(own, Stance::Away);
            }
            let of_stop = spawn(&world, World::stop_outside);
            world.detach_safe(slot, NOBODY, runs);
            assert_eq!(dropped.load(Ordering::Relaxed), 1);
            if runs {
                world.protocol.enter(own, Stance::Away);
            }
            of_stop.join().unwrap();
        });
    }
}
