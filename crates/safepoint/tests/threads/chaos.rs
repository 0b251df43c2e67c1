//! What is rare is common in a world for tests, and nothing that is promised breaks there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, Says, away, mutator, poll_until};
use crate::storm::storm;
use safepoint::{Chaos, RawMutator, StopError, StopOptions, World, WorldOptions};
use testkit::{budget, in_child, patience};

const LATE: Duration = Duration::from_mins(1);

fn world_with(chaos: Chaos) -> World {
    World::with_options(WorldOptions::new().chaos(chaos))
}

/// The storm, in a world of each kind.
fn storms(chaos: &Chaos, rounds: u64) {
    let options = WorldOptions::new().chaos(chaos.clone());
    storm(&World::with_options(options.clone()), rounds);
    storm(&World::with_options(options.fully_fenced()), rounds);
}

/// How often a nudge was asked for in a stop that nothing ends, and how often it was sent.
fn nudges(chaos: Chaos) -> (u32, u32) {
    let (world, done) = (world_with(chaos), Flag::default());
    let nudge = Arc::new(Says(Ok(()), AtomicU32::new(0)));
    // SAFETY: it makes no calls.
    unsafe { world.set_nudge(nudge.clone()) };
    let asked = thread::scope(|scope| {
        mutator(scope, &world, "deaf", |_| done.wait());
        let options = StopOptions::new("test").timeout(patience(Duration::from_millis(50)));
        let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
        done.raise();
        let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
        stragglers[0].nudges
    });
    (asked, nudge.1.load(Ordering::Relaxed))
}

#[test]
fn nudges_are_lost_and_come_twice() {
    in_child("chaos::nudges_are_lost_and_come_twice", LATE, || {
        let (asked, sent) = nudges(Chaos::new());
        assert!(asked > 1 && sent == asked, "{sent} of {asked}");
        let (asked, sent) = nudges(Chaos::new().drop_nudges(1));
        assert!(asked > 1 && sent == 0, "{sent} of {asked}");
        let (asked, sent) = nudges(Chaos::new().drop_nudges(2));
        assert!(asked > 1 && sent == asked / 2, "{sent} of {asked}");
        let (asked, sent) = nudges(Chaos::new().repeat_nudges(1));
        assert!(asked > 1 && sent == 2 * asked, "{sent} of {asked}");
    });
}

#[test]
fn checks_and_acknowledgements_are_late() {
    in_child("chaos::checks_and_acknowledgements_are_late", LATE, || {
        const DELAY: Duration = Duration::from_millis(20);
        // The requester looks again at a mutator that seems safe, behind its fence.
        let (world, done) = (world_with(Chaos::new().delay_checks(DELAY, 1)), Flag::default());
        thread::scope(|scope| {
            away(scope, &world, "away", &done);
            let stopped = world.stop_from_outside("test").expect("it is safe");
            assert!(stopped.stats().time_to_stop >= DELAY, "{:?}", stopped.stats());
            stopped.resume();
            done.raise();
        });
        let chaos = Chaos::new().delay_acknowledgements(DELAY, 1);
        let (world, done) = (world_with(chaos), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            let stopped = world.stop_from_outside("test").expect("it polls");
            assert!(stopped.stats().time_to_stop >= DELAY, "{:?}", stopped.stats());
            stopped.resume();
            done.raise();
        });
    });
}

#[test]
fn all_polls_are_slow() {
    for (world, slow) in [(World::new(), false), (world_with(Chaos::new()), true)] {
        let mutator = world.attach().expect("attaches");
        // SAFETY: the word is there for as long as the mutator.
        let word = unsafe { &*mutator.as_raw().poll_word() }.load(Ordering::Relaxed);
        assert_eq!(word & RawMutator::POLL_MASK != 0, slow);
    }
}

#[test]
fn stress_slow_paths_alone() {
    in_child("chaos::stress_slow_paths_alone", LATE, || storms(&Chaos::new(), budget(2000)));
}

#[test]
fn stress_yields_at_each_edge() {
    in_child("chaos::stress_yields_at_each_edge", LATE, || {
        storms(&Chaos::new().yield_at_edges(), budget(200));
    });
}

#[test]
fn stress_late_checks_and_acknowledgements() {
    in_child("chaos::stress_late_checks_and_acknowledgements", LATE, || {
        let delay = Duration::from_micros(200);
        let chaos = Chaos::new().delay_checks(delay, 5).delay_acknowledgements(delay, 2);
        storms(&chaos, budget(400));
    });
}
