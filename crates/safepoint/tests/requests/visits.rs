//! Stops that visit each mutator as soon as it is stopped.

use std::collections::{HashMap, HashSet};
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, mutator, poll_until};
use safepoint::{
    MutatorId, Reason, StopError, StopOptions, StopVisitor, StoppedMutator, World, WorldOptions,
};
use testkit::{budget, in_child, patience};

const SOON: Duration = Duration::from_secs(20);
/// Until a stop is given up.
const SHORT: Duration = Duration::from_millis(30);
/// As long as a mutator that runs would have been seen to.
const WHILE: Duration = Duration::from_millis(20);

fn patient() -> StopOptions<'static> {
    StopOptions::new(Reason::GC).timeout(patience(SOON) / 2)
}

/// The late one comes to a safe point only when both others were visited.
#[test]
fn mutators_are_visited_while_another_is_late() {
    in_child("visits::mutators_are_visited_while_another_is_late", SOON, || {
        for options in [WorldOptions::new(), WorldOptions::new().roots()] {
            let (world, done) = (World::with_options(options), Flag::default());
            let visited = AtomicU32::new(0);
            thread::scope(|scope| {
                mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
                away(scope, &world, "in its region", &done);
                mutator(scope, &world, "late", |mutator| {
                    testkit::until("two visits", || visited.load(Ordering::SeqCst) == 2);
                    poll_until(mutator, &done);
                });
                let mut visit = |_: &StoppedMutator<'_>| _ = visited.fetch_add(1, Ordering::SeqCst);
                let stopped = world.stop_visiting_from_outside(patient(), &mut visit);
                stopped.expect("the late one waits for visits alone").resume();
                assert_eq!(visited.load(Ordering::SeqCst), 3, "each once");
                done.raise();
            });
        }
    });
}

/// The one that asks is not visited, and those who were are the stopped ones.
#[test]
fn a_mutator_that_asks_visits_all_others() {
    in_child("visits::a_mutator_that_asks_visits_all_others", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            for _ in 0..3 {
                mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            }
            away(scope, &world, "in its region", &done);
            let mut own = world.attach().expect("attaches");
            for _ in 0..budget(200) {
                let mut visited = Vec::new();
                let mut visit = |mutator: &StoppedMutator<'_>| visited.push(mutator.id());
                let stopped = own.stop_visiting(patient(), &mut visit).expect("all poll");
                let all: HashSet<_> = stopped.mutators().map(|mutator| mutator.id()).collect();
                assert_eq!((visited.len(), all.len()), (4, 4));
                assert_eq!(visited.into_iter().collect::<HashSet<_>>(), all);
                stopped.resume();
            }
            done.raise();
        });
    });
}

/// Notes how far the mutators that it visits are.
struct Follows<'a> {
    steps: &'a AtomicU32,
    seen: Vec<u32>,
    given_up: bool,
}

impl StopVisitor for Follows<'_> {
    fn stopped(&mut self, _mutator: &StoppedMutator<'_>) {
        self.seen.push(self.steps.load(Ordering::SeqCst));
    }

    fn given_up(&mut self) {
        thread::sleep(WHILE);
        assert_eq!(self.seen, [self.steps.load(Ordering::SeqCst)], "it ran");
        self.given_up = true;
    }
}

#[test]
fn a_visited_mutator_runs_on_when_the_stop_was_given_up() {
    in_child("visits::a_visited_mutator_runs_on_when_the_stop_was_given_up", SOON, || {
        let (world, done, late) = (World::new(), Flag::default(), Flag::default());
        let steps = AtomicU32::new(0);
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| {
                while !done.is_up() {
                    steps.fetch_add(1, Ordering::SeqCst);
                    mutator.poll();
                }
            });
            mutator(scope, &world, "late", |mutator| {
                late.wait();
                poll_until(mutator, &done);
            });
            let mut follows = Follows { steps: &steps, seen: Vec::new(), given_up: false };
            let options = StopOptions::new(Reason::GC).timeout(SHORT);
            let result = world.stop_visiting_from_outside(options, &mut follows).map(drop);
            let Err(StopError::TimedOut { stragglers, .. }) = result else { panic!("{result:?}") };
            assert_eq!(stragglers.len(), 1);
            assert!(follows.given_up, "it was told");
            testkit::until("it runs", || steps.load(Ordering::SeqCst) > follows.seen[0]);
            // And the next stop visits it anew.
            late.raise();
            let mut count = 0;
            let mut visit = |_: &StoppedMutator<'_>| count += 1;
            world.stop_visiting_from_outside(patient(), &mut visit).expect("all poll").resume();
            assert_eq!(count, 2);
            done.raise();
        });
    });
}

#[test]
fn a_visit_that_panics_leaves_the_world_running() {
    in_child("visits::a_visit_that_panics_leaves_the_world_running", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let steps = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                mutator(scope, &world, "polls", |mutator| {
                    while !done.is_up() {
                        steps.fetch_add(1, Ordering::SeqCst);
                        mutator.poll();
                    }
                });
            }
            let mut visits = 0;
            let mut visit = |_: &StoppedMutator<'_>| {
                visits += 1;
                panic::panic_any("in a visit");
            };
            let unwinds = || world.stop_visiting_from_outside(patient(), &mut visit).map(drop);
            let payload = panic::catch_unwind(AssertUnwindSafe(unwinds)).expect_err("panics");
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"in a visit"));
            assert_eq!(visits, 1, "it is called no more");
            let before = steps.load(Ordering::SeqCst);
            testkit::until("they run", || steps.load(Ordering::SeqCst) > before + 10);
            world.stop_from_outside_with(patient()).expect("the turn is free").resume();
            done.raise();
        });
    });
}

/// From its visit to the end of the stop no mutator takes a step; with regions, and mutators that come and go.
#[test]
fn stress_no_mutator_runs_between_its_visit_and_the_end() {
    in_child("visits::stress_no_mutator_runs_between_its_visit_and_the_end", SOON, || {
        let (world, done) = (World::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            for at in 0..4 {
                let (world, done) = (&world, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let mut mutator = world.attach().expect("room");
                        let steps = Box::new(AtomicU32::new(0));
                        mutator.set_data((&raw const *steps).cast_mut().cast());
                        for _ in 0..50 {
                            steps.fetch_add(1, Ordering::Relaxed);
                            if at % 2 == 0 { mutator.poll() } else { mutator.blocking(|| ()) }
                        }
                        // While it runs: a stop finds the data there, or none.
                        mutator.set_data(ptr::null_mut());
                        drop(mutator);
                        drop(steps);
                    }
                });
            }
            let steps = |mutator: &StoppedMutator<'_>| {
                // SAFETY: null, or what the mutator keeps: it takes that back while it runs, and so not in a stop.
                let steps = unsafe { mutator.data().cast::<AtomicU32>().as_ref() };
                steps.map(|steps| steps.load(Ordering::Relaxed))
            };
            for round in 0..budget(3000) {
                let mut seen = HashMap::<MutatorId, Option<u32>>::new();
                let mut visit = |mutator: &StoppedMutator<'_>| {
                    assert!(seen.insert(mutator.id(), steps(mutator)).is_none(), "visited twice");
                };
                // Some are given up, and some come at the last moment.
                let timeout =
                    if round % 2 == 0 { patience(SOON) } else { Duration::from_micros(50) };
                let options = StopOptions::new(Reason::GC).timeout(timeout);
                match world.stop_visiting_from_outside(options, &mut visit) {
                    Ok(stopped) => {
                        for mutator in stopped.mutators() {
                            // One that attaches in the stop has not set its data.
                            let now = steps(&mutator);
                            let before = seen.get(&mutator.id()).copied().flatten();
                            assert_eq!(before, now, "{} ran", mutator.id());
                        }
                        stopped.resume();
                    }
                    Err(StopError::TimedOut { .. }) if round % 2 == 1 => (),
                    Err(error) => panic!("{error}"),
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}
