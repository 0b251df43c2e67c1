//! What is rare is common in a world for tests, and nothing that is promised breaks there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, Says, away, mutator, poll_until};
use crate::storm::storm;
use safepoint::{Chaos, RawMutator, Reason, StopError, StopOptions, World, WorldOptions};
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

#[test]
fn the_world_is_stopped_at_each_nth_poll() {
    for (one_in, stops) in [(1, 12), (3, 4)] {
        let world = world_with(Chaos::new().stop_at_polls(one_in, LATE));
        let pauses = world.pauses(16);
        let mut mutator = world.attach().expect("attaches");
        for _ in 0..6 {
            mutator.poll();
            // SAFETY: nothing here relies on that the world runs.
            unsafe { mutator.as_raw().poll() };
        }
        let reasons: Vec<_> = pauses.try_iter().map(|pause| pause.reason).collect();
        assert_eq!(reasons, vec![Reason::CHAOS; stops]);
        let metrics = world.metrics();
        assert_eq!((metrics.stops.len(), metrics.stops[0].given_up), (1, 0));
    }
    let world = world_with(Chaos::new());
    world.attach().expect("attaches").poll();
    assert!(world.metrics().stops.is_empty(), "the mode is off");
}

#[test]
fn a_poll_stops_others_or_gives_up() {
    in_child("chaos::a_poll_stops_others_or_gives_up", LATE, || {
        const LONG: Duration = Duration::from_millis(20);
        let world = world_with(Chaos::new().stop_at_polls(1, LONG));
        let pauses = world.pauses(16);
        let mut own = world.attach().expect("attaches");
        let (deaf, done) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let other = mutator(scope, &world, "deaf", |_| deaf.wait());
            let before = std::time::Instant::now();
            own.poll();
            assert!(before.elapsed() >= LONG, "it waited for the one that is deaf");
            assert_eq!(world.metrics().stops[0].given_up, 1);
            deaf.raise();
            other.join().expect("no panic");
            assert!(pauses.is_empty(), "the world did not stop");
            away(scope, &world, "away", &done);
            own.poll();
            assert_eq!(pauses.try_iter().map(|pause| pause.mutators).collect::<Vec<_>>(), [1]);
            done.raise();
        });
    });
}

/// Polls that stop each other, beside requests.
#[test]
fn stress_stops_at_polls() {
    in_child("chaos::stress_stops_at_polls", LATE, || {
        let chaos = Chaos::new().stop_at_polls(3, LATE).yield_at_edges();
        let options = WorldOptions::new().chaos(chaos);
        for world in [
            World::with_options(options.clone()),
            World::with_options(options.clone().roots()),
            World::with_options(options.fully_fenced()),
        ] {
            let done = &Flag::default();
            thread::scope(|scope| {
                for at in 0..3 {
                    mutator(scope, &world, &format!("polls {at}"), |own| poll_until(own, done));
                }
                let mut own = world.attach().expect("attached once");
                for _ in 0..budget(200) {
                    own.poll();
                    own.for_each_processor(|_| ()).expect("no deadline");
                    own.stop_the_world("test").expect("no deadline").resume();
                }
                done.raise();
            });
            let metrics = world.metrics();
            let chaos = metrics.stops.iter().find(|stops| stops.reason == Reason::CHAOS);
            let chaos = chaos.expect("it polled");
            assert_eq!(chaos.given_up, 0);
            println!("{} stops at polls ({:?})", chaos.time_to_stop.count(), world.fences());
        }
    });
}
