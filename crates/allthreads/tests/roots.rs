//! What a conservative scanner finds of a mutator that `preempt` has interrupted.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use preempt::Task;
use safepoint::{Place, Stopped, World, WorldOptions};
use sigctx::Reg;
use sigctx::probe::{Patterned, Spin, Stop};
use testkit::{Rng, in_child};

const SOON: Duration = Duration::from_mins(1);

/// Ends the loop, also where the test fails.
struct Stops(Stop);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The values in the registers and vectors of the loop that are found in a stop.
fn found(stopped: &Stopped<'_>, given: &HashSet<usize>) -> usize {
    let mutator = stopped.mutators().next().expect("it is there");
    let parked = mutator.parked().expect("the world knows roots");
    assert_eq!(parked.place(), Place::Interrupted);
    let registers = parked.registers().expect("interrupted");
    assert!(Patterned::code().contains(&(registers[Reg::PC] as usize)), "{parked:?}");
    // SAFETY: the loop's stack is leaked.
    let words = parked.roots().flat_map(|range| unsafe { range.words() });
    words.collect::<HashSet<_>>().intersection(given).count()
}

/// Has a task of a mutator hold a pattern in all registers in a loop that never polls.
fn finds_roots(look: impl FnOnce(&World, &Task, &HashSet<usize>)) {
    preempt::install().expect("install");
    // SAFETY: the loop may be interrupted anywhere by anything that leaves it as it was.
    let _code = unsafe { preempt::register_code(Patterned::code()) }.expect("registered once");
    let world = World::with_options(WorldOptions::new().roots());
    // SAFETY: the loop keeps no reference into the world.
    unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
    let (given, stop, ready) = (Mutex::new(Vec::new()), Mutex::new(None), AtomicBool::new(false));
    let task = Task::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mutator = world.attach().expect("a thread of its own");
            let patterned = Box::leak(Box::new(Patterned::new()));
            let stack = patterned.shared_call_stack();
            let (low, high) = stack.bounds();
            mutator.set_stack(low..high);
            // SAFETY: leaked.
            *stop.lock().unwrap() = Some(unsafe { patterned.stopper() });
            let mut rng = Rng::from_env();
            let random = || {
                let random = rng.next_u64();
                given.lock().unwrap().push(random);
                random
            };
            let body = || patterned.run(random, Spin::UntilStopped, || ready.store(true, SeqCst));
            let differences = task.enter_on(&stack, body).expect("nobody else enters it");
            assert!(differences.is_empty(), "{differences:?}");
        });
        while !ready.load(SeqCst) {
            thread::yield_now();
        }
        let _stops = Stops(stop.lock().unwrap().take().expect("it runs"));
        let words = given.lock().unwrap().clone();
        let halves = |word: u64| [word as usize, (word >> 32) as usize];
        look(&world, &task, &words.into_iter().flat_map(halves).collect());
    });
}

/// More than there are general registers: the vectors, or what there is of floating point.
fn enough() -> usize {
    Reg::ALL.len() + 8
}

#[test]
fn roots_in_registers_of_a_mutator_that_was_nudged_are_found() {
    in_child("roots_in_registers_of_a_mutator_that_was_nudged_are_found", SOON, || {
        finds_roots(|world, _, given| {
            for _ in 0..20 {
                let stopped = world.stop_from_outside("test").expect("nudged");
                let found = found(&stopped, given);
                assert!(found > enough(), "{found} in {}", Patterned::level());
            }
        });
    });
}

#[test]
fn roots_in_registers_of_a_task_that_is_held_are_found() {
    in_child("roots_in_registers_of_a_task_that_is_held_are_found", SOON, || {
        finds_roots(|world, task, given| {
            for _ in 0..20 {
                let held = task.suspend(SOON).expect("it computes");
                let stopped = world.stop_from_outside("test").expect("held, or nudged");
                let found = found(&stopped, given);
                assert!(found > enough(), "{found} in {}", Patterned::level());
                drop(stopped);
                held.resume();
            }
        });
    });
}
