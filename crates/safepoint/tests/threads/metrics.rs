//! What a world says of its stops is what they took.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, Says, mutator, poll_until};
use safepoint::{Histogram, Metrics, ReasonMetrics, StopOptions, World};
use testkit::{forked, in_child, patience};
use threadreg::NudgeError;

const SOON: Duration = Duration::from_secs(20);

fn of<'m>(metrics: &'m Metrics, reason: &str) -> &'m ReasonMetrics {
    metrics.stops.iter().find(|stops| stops.reason.as_str() == reason).expect("a stop for it")
}

/// Several threads stop the world for several reasons, and each counts its own.
#[test]
fn each_stop_is_counted_once_under_its_reason() {
    in_child("metrics::each_stop_is_counted_once_under_its_reason", SOON, || {
        const STOPS: u64 = 500;
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            let requesters = ["gc", "dump"].map(|reason| {
                let world = &world;
                scope.spawn(move || {
                    for _ in 0..STOPS {
                        world.stop_from_outside(reason).expect("stops").resume();
                    }
                })
            });
            for requester in requesters {
                requester.join().expect("no panic");
            }
            done.raise();
        });
        let metrics = world.metrics();
        assert_eq!(metrics.stops.len(), 2);
        for reason in ["gc", "dump"] {
            let ReasonMetrics { queued, time_to_stop, stopped, resume, given_up, .. } =
                of(&metrics, reason);
            let counts = [queued, time_to_stop, stopped, resume].map(Histogram::count);
            assert_eq!((counts, *given_up), ([STOPS; 4], 0), "{reason}");
        }
    });
}

#[test]
fn a_pause_has_the_times_of_its_stop() {
    in_child("metrics::a_pause_has_the_times_of_its_stop", SOON, || {
        let (while_, world) = (Duration::from_millis(5), World::new());
        let pauses = world.pauses(1);
        let before = Instant::now();
        let first = world.stop_from_outside("first").expect("stops");
        // Another waits for its turn meanwhile.
        let elapsed = thread::scope(|scope| {
            let second =
                scope.spawn(|| world.stop_from_outside("second").expect("stops").stats().queued);
            thread::sleep(while_);
            assert!(!second.is_finished(), "the world is stopped");
            let elapsed = first.elapsed();
            first.resume();
            assert!(second.join().expect("no panic") <= before.elapsed());
            elapsed
        });
        assert!(elapsed >= while_);
        let pause = pauses.try_recv().expect("one has room");
        assert_eq!(pause.reason.as_str(), "first");
        assert!(pause.stopped >= elapsed && pause.requested >= before);
        assert!(pause.requested.elapsed() >= pause.queued + pause.time_to_stop + pause.stopped);
        let metrics = world.metrics();
        // The second found the channel full, unless the first was read before.
        assert_eq!(metrics.pauses_dropped as usize + pauses.len(), 1);
        let longest = of(&metrics, "first").stopped.quantile(1.0);
        assert!(longest >= pause.stopped && longest <= pause.stopped * 17 / 16, "{longest:?}");
    });
}

#[test]
fn a_stop_that_is_given_up_is_no_pause() {
    in_child("metrics::a_stop_that_is_given_up_is_no_pause", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        // SAFETY: it makes no calls.
        unsafe { world.set_nudge(Arc::new(Says(Err(NudgeError::QueueFull), AtomicU32::new(0)))) };
        let pauses = world.pauses(1);
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| done.wait());
            let options = StopOptions::new("gc").timeout(patience(Duration::from_millis(20)));
            world.stop_from_outside_with(options).map(drop).unwrap_err();
            done.raise();
        });
        let metrics = world.metrics();
        assert_eq!((of(&metrics, "gc").given_up, of(&metrics, "gc").stopped.count()), (1, 0));
        assert!(metrics.nudges > 0 && metrics.nudges == metrics.nudges_failed, "{metrics:?}");
        assert!(metrics.fences > 0 && metrics.sleeps > 0, "{metrics:?}");
        assert!(pauses.is_empty());
    });
}

/// The fork may have copied the channel with its lock taken.
#[test]
fn the_child_of_a_fork_counts_and_tells_no_listener() {
    in_child("metrics::the_child_of_a_fork_counts_and_tells_no_listener", SOON, || {
        let world = World::new();
        let pauses = world.pauses(1);
        world.stop_from_outside("dump").expect("stops").resume();
        let status = forked(|| {
            world.stop_from_outside("dump").expect("stops").resume();
            let metrics = world.metrics();
            assert_eq!((of(&metrics, "dump").stopped.count(), metrics.pauses_dropped), (2, 0));
        });
        assert_eq!((status, pauses.len()), (0, 1));
    });
}
