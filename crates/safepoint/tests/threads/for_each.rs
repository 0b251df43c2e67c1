//! What a for-each promises, on real threads.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, eventually, mutator, poll_until};
use safepoint::{EachError, Mutator, StopError, World};
use testkit::in_child;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn every_mutator_is_visited_once_on_its_thread_or_in_its_safe_region() {
    in_child(
        "for_each::every_mutator_is_visited_once_on_its_thread_or_in_its_safe_region",
        SOON,
        || {
            let world = World::new();
            let done = Flag::default();
            thread::scope(|scope| {
                mutator(scope, &world, "runs", |m| poll_until(m, &done));
                away(scope, &world, "sleeps", &done);
                let mut own = world.attach().unwrap();
                for _ in 0..50 {
                    let visits = Mutex::new(Vec::new());
                    let count = own.for_each_processor(|p| {
                        let name = p.thread().name().as_str().to_owned();
                        visits.lock().unwrap().push((p.index(), name, p.is_current()));
                    });
                    let mut visits = visits.into_inner().unwrap();
                    visits.sort();
                    assert_eq!(count.unwrap(), 3);
                    assert_eq!(visits.iter().map(|v| v.0).collect::<Vec<_>>(), [0, 1, 2]);
                    assert_eq!(visits[0], (0, "runs".into(), true));
                    assert_eq!(visits[1], (1, "sleeps".into(), false));
                    assert!(visits[2].2, "the requester runs its own");
                }
                done.raise();
            });
        },
    );
}

#[test]
fn a_visited_mutator_does_not_leave_its_safe_region() {
    in_child("for_each::a_visited_mutator_does_not_leave_its_safe_region", SOON, || {
        let world = World::new();
        let (safe, leave, left) = (Flag::default(), Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "target", |m| {
                m.blocking(|| {
                    safe.raise();
                    leave.wait();
                });
                left.raise();
            });
            safe.wait();
            let mut own = world.attach().unwrap();
            own.for_each_processor(|p| {
                if !p.is_current() {
                    leave.raise();
                    thread::sleep(Duration::from_millis(20));
                    assert!(!left.is_up(), "it runs beside its closure");
                }
            })
            .unwrap();
            left.wait();
        });
    });
}

#[test]
fn no_stop_inside_a_closure() {
    let world = World::new();
    let mut mutator = world.attach().unwrap();
    let other = World::new();
    let visited = mutator.for_each_processor(|_| {
        assert!(matches!(world.stop_from_outside("inner"), Err(StopError::InCallback)));
        let mut elsewhere = other.attach().unwrap();
        assert!(matches!(elsewhere.stop_the_world("inner"), Err(StopError::InCallback)));
        let inner = elsewhere.for_each_processor(|_| ());
        assert!(matches!(inner, Err(EachError::InCallback)));
    });
    assert_eq!(visited.unwrap(), 1);
    mutator.stop_the_world("after").unwrap().resume();
}

/// A for-each whose closure panics for one mutator, with that one's place: what it panicked with, and how often the
/// closure ran.
fn panic_in(own: &mut Mutator, guilty: usize) -> (usize, u32) {
    let visited = AtomicU32::new(0);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        own.for_each_processor(|p| {
            visited.fetch_add(1, Ordering::Relaxed);
            if p.index() == guilty {
                panic::panic_any(guilty);
            }
        })
    }));
    (*result.unwrap_err().downcast::<usize>().unwrap(), visited.into_inner())
}

#[test]
fn a_panic_in_any_closure_reaches_the_requester_after_all_have_run() {
    in_child(
        "for_each::a_panic_in_any_closure_reaches_the_requester_after_all_have_run",
        SOON,
        || {
            let world = World::new();
            let done = Flag::default();
            thread::scope(|scope| {
                for _ in 0..2 {
                    mutator(scope, &world, "target", |m| poll_until(m, &done));
                }
                let mut own = world.attach().unwrap();
                for guilty in 0..3 {
                    assert_eq!(panic_in(&mut own, guilty), (guilty, 3));
                }
                // The targets did not unwind.
                assert_eq!(own.for_each_processor(|_| ()).unwrap(), 3);
                done.raise();
            });
        },
    );
}

/// They are visited one after the other by the requester.
#[test]
fn a_panic_for_a_mutator_in_its_region_is_its_own() {
    let name = "for_each::a_panic_for_a_mutator_in_its_region_is_its_own";
    in_child(name, SOON, || {
        for guilty in 1..4 {
            let world = World::new();
            let (inside, done) = (Barrier::new(4), Flag::default());
            let mut own = world.attach().unwrap();
            thread::scope(|scope| {
                for _ in 0..3 {
                    let blocks = || {
                        inside.wait();
                        done.wait();
                    };
                    mutator(scope, &world, "target", move |m| m.blocking(blocks));
                }
                inside.wait();
                assert_eq!(panic_in(&mut own, guilty), (guilty, 4));
                done.raise();
                // All get out of their regions.
            });
        }
    });
}

#[test]
fn a_requester_that_waits_is_stopped_by_another() {
    in_child("for_each::a_requester_that_waits_is_stopped_by_another", SOON, || {
        // Tried again until the stop was still waiting when `late` polled, which is up to the scheduler.
        eventually(|| stop_during_for_each().as_deref() == Some("late"));
    });
}

/// Returns the mutator that stopped last.
fn stop_during_for_each() -> Option<String> {
    let world = World::new();
    let (go, done) = (Flag::default(), Flag::default());
    let (running, asked) = (Flag::default(), Flag::default());
    thread::scope(|scope| {
        mutator(scope, &world, "late", |m| {
            go.wait();
            poll_until(m, &done);
        });
        let requester = mutator(scope, &world, "requester", |m| {
            running.raise();
            let visited = m.for_each_processor(|_| asked.raise());
            done.raise();
            visited.unwrap()
        });
        running.wait();
        asked.wait();
        // The for-each waits for `late`, and so does this stop. The requester must acknowledge it.
        let stop = scope.spawn(|| {
            let stopped = world.stop_from_outside("test").unwrap();
            assert!(!done.is_up(), "the for-each ended before `late` was visited");
            assert_eq!(stopped.stats().mutators, 2);
            let last = stopped.last_to_stop();
            stopped.resume();
            last.map(|l| l.name.as_str().to_owned())
        });
        // Time enough for the stop to begin.
        thread::sleep(Duration::from_millis(5));
        go.raise();
        assert_eq!(requester.join().unwrap(), 2);
        stop.join().unwrap()
    })
}

#[test]
fn a_mutator_that_detaches_runs_its_pending_closure() {
    in_child("for_each::a_mutator_that_detaches_runs_its_pending_closure", SOON, || {
        let world = World::new();
        let exit = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "leaver", |_| exit.wait());
            let mut own = world.attach().unwrap();
            let names = Mutex::new(Vec::new());
            own.for_each_processor(|p| {
                names.lock().unwrap().push(p.thread().name().as_str().to_owned());
                // The requester's own closure runs after all were asked: the leaver's is pending by now.
                exit.raise();
            })
            .unwrap();
            assert!(names.into_inner().unwrap().contains(&"leaver".to_owned()));
        });
    });
}
