//! Models of handshakes.

use loom::cell::UnsafeCell;
use loom::sync::Arc;

use super::model::*;
use super::model_entry::LooksAgain;
use super::*;
use sigctx::sync::Ordering;

/// Asks for one operation. True if it ran; false if the target was gone.
fn ask_at(
    world: &World,
    own: Option<Mutator>,
    self_only: bool,
    target: Mutator,
    pace: &mut impl Pace<Model>,
) -> bool {
    let work = Box::new(|| world.visit(target, || ()));
    let asks = vec![Ask { slot: target, generation: 1, work }];
    let answers = world.protocol.handshake(own, 1, self_only, asks, pace);
    matches!(*answers, [Answer::Done])
}

fn ask(world: &World, own: Option<Mutator>, target: Mutator) -> bool {
    ask_at(world, own, false, target, &mut Patient)
}

/// Asks for an operation that nobody waits for: the target finds it as it comes by.
fn ask_and_go_on(world: &Arc<World>, target: Mutator) {
    let work = {
        let world = world.clone();
        Box::new(move || world.visit(target, || ()))
    };
    assert!(world.protocol.handshake_async(target, 1, work), "not gone");
}

/// A for-each by a mutator, which is in a region afterwards.
fn visit_all(world: &World, own: Mutator) {
    world.for_each_at(own, &mut LooksAgain);
    world.protocol.enter(own, Stance::Away);
}

/// With much to do: one preemption less than usual, or it would take minutes.
fn smaller_model(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(run);
}

/// The target alone runs it, and once.
#[test]
fn handshake_against_a_poll() {
    for self_only in [false, true] {
        loom::model(move || {
            let world = World::new();
            let slot = world.attach();
            let requester =
                spawn(&world, move |world| ask_at(world, None, self_only, slot, &mut Patient));
            world.work(slot);
            world.poll(slot);
            world.work(slot);
            let ran = world.visits(slot);
            world.detach(slot);
            assert_eq!(requester.join().unwrap(), ran == 1, "answered by what it did");
        });
    }
}

/// Whoever runs it, the target does not run meanwhile.
#[test]
fn handshake_against_a_mutator_that_leaves_a_safe_region() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, move |world| ask(world, None, slot));
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        // In the region for as long as the requester waits, as in a read that does not return.
        world.protocol.enter(slot, Stance::Away);
        assert!(requester.join().unwrap(), "not gone");
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once");
    });
}

/// The requester finds it safe when it looks again.
#[test]
fn handshake_against_a_region_entered_without_a_fence() {
    model_entry::UNFENCED.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester =
            spawn(&world, move |world| ask_at(world, None, false, slot, &mut LooksAgain));
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert!(requester.join().unwrap(), "not gone");
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once");
    });
}

/// An operation for a mutator that goes runs before it does or not at all, and not for the slot's next mutator.
#[test]
fn handshake_against_detach_and_attach() {
    for safe in [false, true] {
        loom::model(move || {
            let world = World::new();
            let slot = world.attach();
            let requester = spawn(&world, move |world| ask(world, None, slot));
            if safe {
                world.protocol.enter(slot, Stance::Away);
            } else {
                world.work(slot);
            }
            world.detach(slot);
            let again = world.attach();
            let ran = world.visits(again);
            assert_eq!(requester.join().unwrap(), ran == 1, "answered by what was done");
            world.poll(again);
            assert_eq!(world.visits(again), ran, "not after the answer");
        });
    }
}

/// The requester gives up: it has run, and counts as answered, or it never runs.
#[test]
fn handshake_past_its_deadline() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester =
            spawn(&world, move |world| ask_at(world, None, false, slot, &mut Impatient));
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        let answered = requester.join().unwrap();
        world.poll(slot);
        assert_eq!(world.visits(slot), u32::from(answered));
    });
}

/// The operations of two requesters run one after the other, on whichever threads.
#[test]
fn two_handshakes_against_a_mutator_that_leaves_a_safe_region() {
    smaller_model(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        let requesters = [(); 2].map(|()| spawn(&world, move |world| ask(world, None, slot)));
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        for requester in requesters {
            assert!(requester.join().unwrap(), "not gone");
        }
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 2, "each ran once");
    });
}

/// The requester has seen it safe. It has left its region since, and runs another operation itself (H3).
#[test]
fn handshake_against_a_mutator_with_an_operation_of_its_own() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        ask_and_go_on(&world, slot);
        let requester = spawn(&world, move |world| ask(world, None, slot));
        world.protocol.leave(slot);
        world.protocol.enter(slot, Stance::Away);
        assert!(requester.join().unwrap(), "not gone");
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 2, "each ran once");
    });
}

/// Two mutators ask each other. Each is served by the other or serves itself, though nobody may do so for it.
#[test]
fn mutators_that_ask_each_other() {
    for self_only in [false, true] {
        smaller_model(move || {
            let world = World::new();
            let (one, other) = (world.attach(), world.attach());
            let asks = spawn(&world, move |world| {
                assert!(ask_at(world, Some(other), self_only, one, &mut LooksAgain), "not gone");
                world.work(other);
                world.protocol.enter(other, Stance::Away);
            });
            assert!(ask_at(&world, Some(one), self_only, other, &mut LooksAgain), "not gone");
            world.work(one);
            world.protocol.enter(one, Stance::Away);
            asks.join().unwrap();
            for slot in [one, other] {
                world.protocol.leave(slot);
                assert_eq!(world.visits(slot), 1, "ran once");
            }
        });
    }
}

/// No operation runs in the stopped world, whoever asks for it.
#[test]
fn handshake_beside_a_stop() {
    for from_outside in [false, true] {
        smaller_model(move || {
            let world = World::new();
            let (slot, own) = (world.attach(), world.attach());
            world.protocol.enter(slot, Stance::Away);
            if from_outside {
                world.protocol.enter(own, Stance::Away);
            }
            let requester = spawn(&world, move |world| {
                let asker = (!from_outside).then_some(own);
                assert!(ask(world, asker, slot), "not gone");
                if !from_outside {
                    world.protocol.enter(own, Stance::Away);
                }
            });
            let stopper = spawn(&world, World::stop_outside);
            requester.join().unwrap();
            assert_eq!(stopper.join().unwrap(), 2, "each counted once");
            world.protocol.leave(slot);
            assert_eq!(world.visits(slot), 1, "ran once");
        });
    }
}

/// As [`handshake_beside_a_for_each`], for a mutator that comes back and runs both itself, or neither.
#[test]
fn handshake_beside_a_for_each_against_a_mutator_that_leaves() {
    smaller_model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let visitor = spawn(&world, move |world| visit_all(world, own));
        ask_and_go_on(&world, slot);
        world.protocol.leave(slot);
        world.protocol.enter(slot, Stance::Away);
        visitor.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 2, "each ran once");
    });
}

/// A for-each's closure and an operation do not run for a mutator at the same time (H5).
#[test]
fn handshake_beside_a_for_each() {
    smaller_model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let visitor = spawn(&world, move |world| visit_all(world, own));
        let requester =
            spawn(&world, move |world| ask_at(world, None, false, slot, &mut LooksAgain));
        visitor.join().unwrap();
        assert!(requester.join().unwrap(), "not gone");
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 2, "each ran once");
    });
}

/// What readers read without a lock, until it is replaced.
struct Table {
    replaced: AtomicU32,
    old: UnsafeCell<u32>,
    freed: AtomicU32,
}

// SAFETY: that accesses to the cell are ordered is what the model checks.
unsafe impl Sync for Table {}
// SAFETY: as above.
unsafe impl Send for Table {}

impl Table {
    fn read(&self) {
        if self.replaced.load(Ordering::Relaxed) == 0 {
            // SAFETY: checked by loom.
            self.old.with(|old| unsafe { *old });
        }
    }
}

/// Frees the old table when it is dropped.
struct Frees(Arc<Table>);

impl Drop for Frees {
    fn drop(&mut self) {
        // SAFETY: checked by loom.
        self.0.old.with_mut(|old| unsafe { *old = 1 });
        self.0.freed.fetch_add(1, Ordering::Relaxed);
    }
}

fn callback_against(target: impl Fn(&World, Mutator, &Table) + Send + Sync + Copy + 'static) {
    loom::model(move || {
        let world = World::new();
        let slot = world.attach();
        let table = Arc::new(Table {
            replaced: AtomicU32::new(0),
            old: UnsafeCell::new(0),
            freed: AtomicU32::new(0),
        });
        let writer = spawn(&world, {
            let table = table.clone();
            move |world| {
                table.replaced.store(1, Ordering::Relaxed);
                let frees = Arc::new(Frees(table));
                world.protocol.when_all_have_polled(|_| {
                    let frees = frees.clone();
                    Box::new(move || drop(frees))
                });
            }
        });
        table.read();
        target(&world, slot, &table);
        writer.join().unwrap();
        world.poll(slot);
        assert_eq!(table.freed.load(Ordering::Relaxed), 1, "once, when it has polled");
    });
}

#[test]
fn callback_against_a_poll() {
    callback_against(|world, slot, table| {
        world.poll(slot);
        table.read();
    });
}

#[test]
fn callback_against_a_safe_region() {
    callback_against(|world, slot, table| {
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        table.read();
    });
}

/// What nobody waits for runs once, or is dropped once where the target goes first.
#[test]
fn asynchronous_operation_against_detach() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let ended = Arc::new(AtomicU32::new(0));
        let asks = spawn(&world, {
            let ended = ended.clone();
            move |world| {
                let ends = Ends(ended);
                world.protocol.handshake_async(slot, 1, Box::new(move || drop(ends)))
            }
        });
        world.work(slot);
        world.poll(slot);
        world.detach(slot);
        asks.join().unwrap();
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    });
}

/// Counts how often it is dropped.
struct Ends(Arc<AtomicU32>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
