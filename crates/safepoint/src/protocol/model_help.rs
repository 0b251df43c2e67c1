//! Models of stopped targets that help.

use core::ptr;

use loom::thread;

use super::model::*;
use super::model_entry::LooksAgain;
use super::*;
use sigctx::sync::Ordering;

/// Stops the world, has a job run for the mutator, and resumes. Returns how often it ran, and whether the mutator was
/// late for it.
fn stop_and_help(
    world: &World,
    slot: Mutator,
    self_only: bool,
    pace: &mut impl Pace<Model>,
) -> (u32, bool) {
    let ran = AtomicU32::new(0);
    assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
    world.protocol.stop(None, &mut Patient).expect("no deadline");
    world.in_stop();
    let run = |slot: Mutator| {
        world.visit(slot, || ());
        ran.fetch_add(1, Ordering::Relaxed);
    };
    let job = Job { run: &run, is_own: &|_| false, self_only };
    let slots: Vec<_> = world.protocol.live().filter(|live| ptr::eq(*live, slot)).collect();
    let late = world.protocol.have_help(&slots, &job, pace);
    // All memory is its own again: what targets did is over.
    world.in_stop();
    world.protocol.resume();
    world.protocol.stop_turn.release(&Model);
    (ran.load(Ordering::Relaxed), !late.is_empty())
}

/// Its own thread, or the holder of the stop: one of them, once, and not beside the mutator's code.
#[test]
fn help_against_a_poll() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let holder = spawn(&world, move |world| stop_and_help(world, slot, false, &mut LooksAgain));
        world.work(slot);
        world.poll(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(holder.join().unwrap(), (1, false));
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the target");
    });
}

/// Nobody runs it for the mutator, which sleeps or is about to: it is woken.
#[test]
fn help_of_the_own_thread_alone() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let holder = spawn(&world, move |world| stop_and_help(world, slot, true, &mut Patient));
        while world.visits(slot) == 0 {
            world.poll(slot);
            thread::yield_now();
        }
        assert_eq!(holder.join().unwrap(), (1, false));
        assert_eq!(world.visits(slot), 1, "ran once for the target");
        world.detach(slot);
    });
}

/// A mutator that comes back in the stop, and a holder that does not wait: it ran, or it did not and is named.
#[test]
fn help_past_its_deadline() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        let holder = spawn(&world, move |world| stop_and_help(world, slot, true, &mut Impatient));
        world.protocol.leave(slot);
        let ran = world.visits(slot);
        world.protocol.enter(slot, Stance::Away);
        let (in_stop, late) = holder.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), in_stop);
        assert!(ran <= in_stop && in_stop + u32::from(late) == 1, "{in_stop} {late}");
    });
}

/// A mutator that is dropped in its region, and the next in its slot.
#[test]
fn help_against_detach_and_attach() {
    let mut model = loom::model::Builder::new();
    // One preemption less than usual, or it would take minutes.
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        let holder = spawn(&world, move |world| stop_and_help(world, slot, true, &mut Patient));
        world.detach(slot);
        let slot = world.attach();
        world.work(slot);
        world.detach(slot);
        holder.join().unwrap();
    });
}
