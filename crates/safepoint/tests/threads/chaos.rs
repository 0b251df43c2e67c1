//! Nothing that is promised breaks where what is rare is common.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator};
use crate::storm::storm;
use safepoint::{Chaos, World};
use testkit::{budget, in_child, skip};

const LATE: Duration = Duration::from_mins(1);

/// The storm, in a world of each kind.
fn storms(chaos: &Chaos, rounds: u64) {
    storm(&World::with_chaos(chaos.clone()), rounds);
    storm(&World::fully_fenced_with_chaos(chaos.clone()), rounds);
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

/// A wake that is lost is made up for by the next look, some 10 ms later. Were wakes lost where a thread lingers between
/// what it publishes and what it looks at, most of these stops would take that long.
#[test]
fn no_wake_is_lost_between_publish_and_check() {
    in_child("chaos::no_wake_is_lost_between_publish_and_check", LATE, || {
        const DELAY: Duration = Duration::from_millis(1);
        if let Some(emulator) = testkit::emulator() {
            skip(format!("{emulator} takes its own time"));
            return;
        }
        for world in [Chaos::new(), Chaos::new().yield_at_edges()]
            .map(|chaos| World::with_chaos(chaos.delay_checks(DELAY, 1)))
        {
            let (done, ready) = (&Flag::default(), &AtomicUsize::new(0));
            thread::scope(|scope| {
                for at in 0..3 {
                    mutator(scope, &world, &format!("calls {at}"), move |mutator| {
                        ready.fetch_add(1, Ordering::Relaxed);
                        while !done.is_up() {
                            mutator.blocking(|| ());
                        }
                    });
                }
                eventually(|| ready.load(Ordering::Relaxed) == 3);
                let rounds = budget(200).max(20);
                let stop = |_| {
                    let stopped = world.stop_from_outside("test").expect("no deadline");
                    stopped.stats().time_to_stop
                };
                let mut took: Vec<_> = (0..rounds).map(stop).collect();
                done.raise();
                took.sort();
                let (half, most) = (took[took.len() / 2], took[took.len() - 1]);
                println!("{rounds} stops took {half:?} (p50), {most:?} at most");
                // The requester and one mutator linger, each at two edges at most.
                assert!(half < 4 * DELAY + Duration::from_millis(10), "{took:?}");
            });
        }
    });
}
