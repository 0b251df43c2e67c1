//! The race that Go had in 2015: mutators on their way into system calls and out of them, against for-eaches and
//! stops on each other's heels. Nothing sleeps, so that every round meets mutators at the edge.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator};
use safepoint::World;
use testkit::{budget, in_child};

const MUTATORS: usize = 3;
/// Enough for two million rounds, with `STRESS=10000`.
const LATE: Duration = Duration::from_mins(20);

/// What a mutator has that a stop and a for-each may touch.
#[derive(Default)]
struct Visited {
    /// In a closure, or in code between two system calls. Not a lock: two that meet are the fault.
    inside: AtomicBool,
    visits: AtomicU32,
}

impl Visited {
    fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        // Relaxed: the protocol orders these, or two meet.
        assert!(!self.inside.load(Ordering::Relaxed), "two run at once");
        self.inside.store(true, Ordering::Relaxed);
        let result = work();
        self.inside.store(false, Ordering::Relaxed);
        result
    }
}

pub(crate) fn storm(world: &World, rounds: u64) {
    let (done, ready, calls) = (&Flag::default(), &AtomicUsize::new(0), &AtomicU32::new(0));
    let visited: &[Visited; MUTATORS] = &Default::default();
    thread::scope(|scope| {
        for (at, me) in visited.iter().enumerate() {
            mutator(scope, world, &format!("calls {at}"), move |mutator| {
                mutator.set_data(std::ptr::from_ref(me).cast_mut().cast());
                ready.fetch_add(1, Ordering::Relaxed);
                while !done.is_up() {
                    me.alone(|| ());
                    // SAFETY: no arguments.
                    mutator.blocking(|| unsafe { libc::getppid() });
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually(|| ready.load(Ordering::Relaxed) == MUTATORS);
        let mut own = world.attach().expect("attached once");
        for round in 1..=rounds {
            let asked = own.for_each_processor(|processor| {
                let data = processor.data().cast::<Visited>();
                // SAFETY: each mutator but the one that asks has set this, before the first round, to
                // what outlives it.
                let Some(me) = (unsafe { data.as_ref() }) else { return };
                me.alone(|| me.visits.fetch_add(1, Ordering::Relaxed));
            });
            asked.expect("no deadline");
            let stopped = own.stop_the_world("storm").expect("no deadline");
            for (at, me) in visited.iter().enumerate() {
                assert!(!me.inside.load(Ordering::Relaxed), "round {round}: {at} runs in a stop");
                let visits = me.visits.load(Ordering::Relaxed);
                assert_eq!(u64::from(visits), round, "round {round}: visits of {at}");
            }
            stopped.resume();
        }
        done.raise();
    });
    let calls = calls.load(Ordering::Relaxed);
    println!("{rounds} for-eaches and stops amid {calls} system calls ({:?})", world.fences());
}

#[test]
fn stress_system_calls_against_requests() {
    in_child("storm::stress_system_calls_against_requests", LATE, || {
        storm(&World::new(), budget(20_000));
    });
}

#[test]
fn stress_system_calls_against_requests_with_full_fences() {
    in_child("storm::stress_system_calls_against_requests_with_full_fences", LATE, || {
        storm(&World::fully_fenced(), budget(20_000));
    });
}
