//! Models of stops whose targets are visited while others still run.

use core::time::Duration;

use loom::thread;

use super::model::*;
use super::*;
use sigctx::sync::Ordering;

/// Visits each slot once, and touches what is its target's alone.
struct Visits<'a> {
    world: &'a World,
    visited: Vec<u32>,
    /// Told of a slot's visit.
    tell: &'a dyn Fn(Mutator),
    /// Whether the deadline passes at the first visit, or has passed from the start.
    until_visited: bool,
    given_up: bool,
}

impl<'a> Visits<'a> {
    fn new(world: &'a World, until_visited: bool, tell: &'a dyn Fn(Mutator)) -> Self {
        Self { world, visited: Vec::new(), tell, until_visited, given_up: false }
    }
}

impl Limit for Visits<'_> {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl Pace<Model> for Visits<'_> {
    type Seen = ();

    fn expired(&self) -> bool {
        self.until_visited && !self.visited.is_empty()
    }
    fn nap(&self) -> Option<Duration> {
        None
    }
    fn due(&mut self) -> bool {
        false
    }
    fn late(&mut self, _slot: Mutator, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: Mutator) {}
    fn visits(&self) -> bool {
        true
    }
    fn stopped(&mut self, slot: Mutator) {
        if !self.visited.contains(&slot.index()) {
            self.visited.push(slot.index());
            self.world.visit(slot, || ());
            (self.tell)(slot);
        }
    }
    fn gives_up(&mut self) {
        // Nobody runs again before this.
        for &index in &self.visited {
            let slot = self.world.protocol.live().find(|slot| slot.index() == index);
            self.world.visit(slot.expect("it is here"), || ());
        }
        self.given_up = true;
    }
}

/// Stops the world, visiting. Returns how many were visited, and whether the stop was given up.
fn stop_visiting(world: &World, until_visited: bool, tell: &dyn Fn(Mutator)) -> (usize, bool) {
    assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
    let mut visits = Visits::new(world, until_visited, tell);
    let stopped = world.protocol.stop(None, &mut visits).is_ok();
    assert_ne!(stopped, visits.given_up);
    if stopped {
        world.in_stop();
        world.protocol.resume();
    }
    world.protocol.stop_turn.release(&Model);
    (visits.visited.len(), visits.given_up)
}

/// One that enters and leaves a region, with its request pending or not: it is not visited while it runs.
#[test]
fn a_visit_against_a_mutator_that_leaves_its_region() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, |world| stop_visiting(world, false, &|_| ()));
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(requester.join().unwrap(), (1, false));
    });
}

/// Three threads: one preemption less than usual, or it would take minutes.
fn of_three_threads() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model
}

/// One comes only when the other was visited: the first acknowledgement wakes the requester.
#[test]
fn a_visit_before_the_last_has_come() {
    of_three_threads().check(|| {
        let world = World::new();
        let (prompt, late) = (world.attach(), world.attach());
        let visited = loom::sync::Arc::new(AtomicU32::new(0));
        let of_late = visited.clone();
        let first = spawn(&world, move |world| world.protocol.enter(prompt, Stance::Away));
        let second = spawn(&world, move |world| {
            while of_late.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            world.work(late);
            world.protocol.enter(late, Stance::Away);
        });
        let tell = |slot: Mutator| {
            if core::ptr::eq(slot, prompt) {
                visited.store(1, Ordering::Release);
            }
        };
        assert_eq!(stop_visiting(&world, false, &tell), (2, false));
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// A stop that is given up: what was visited does not run before that is told.
#[test]
fn a_visit_of_a_stop_that_is_given_up() {
    of_three_threads().check(|| {
        let world = World::new();
        let (comes, late) = (world.attach(), world.attach());
        let first = spawn(&world, move |world| {
            world.poll(comes);
            world.work(comes);
            world.protocol.enter(comes, Stance::Away);
        });
        let second = spawn(&world, move |world| {
            world.work(late);
            world.protocol.enter(late, Stance::Away);
        });
        let (visited, _) = stop_visiting(&world, true, &|_| ());
        assert_ne!(visited, 0);
        first.join().unwrap();
        second.join().unwrap();
    });
}
