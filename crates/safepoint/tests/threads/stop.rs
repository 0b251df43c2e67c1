//! What a stop promises, on real threads.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, eventually, mutator, poll_until};
use safepoint::{AttachError, Fences, MutatorState, Reason, StopError, StopOptions, World};
use testkit::{child, in_child, patience};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_empty_world_stops() {
    let world = World::new();
    let stopped = world.stop_from_outside(Reason::DUMP).unwrap();
    assert_eq!(stopped.stats().mutators, 0);
    assert!(stopped.last_to_stop().is_none());
    assert_eq!(stopped.reason(), Reason::DUMP);
}

#[test]
fn no_mutator_runs_in_a_stop_and_all_run_after_it() {
    in_child("stop::no_mutator_runs_in_a_stop_and_all_run_after_it", SOON, || {
        for world in [World::new(), World::fully_fenced()] {
            let (done, steps) = (Flag::default(), AtomicU32::new(0));
            thread::scope(|scope| {
                for _ in 0..3 {
                    mutator(scope, &world, "stepper", |m| {
                        while !done.is_up() {
                            steps.fetch_add(1, Ordering::Relaxed);
                            m.poll();
                        }
                    });
                }
                for _ in 0..20 {
                    let stopped = world.stop_from_outside("test").unwrap();
                    assert_eq!(stopped.stats().mutators, 3);
                    assert_eq!(stopped.mutators().count(), 3);
                    let before = steps.load(Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                    assert_eq!(steps.load(Ordering::Relaxed), before, "{:?}", world.fences());
                    stopped.resume();
                    eventually(|| steps.load(Ordering::Relaxed) != before);
                }
                done.raise();
            });
        }
        assert_eq!(World::fully_fenced().fences(), Fences::Full);
    });
}

/// W7, and T5 of threadreg. Stop first, freeze second: a creator that waits for the guard may be a mutator.
#[test]
fn no_stop_begins_under_a_freeze() {
    in_child("stop::no_stop_begins_under_a_freeze", SOON, || {
        let world = World::new();
        let frozen = threadreg::freeze_creation();
        let refused = world.stop_from_outside("test").map(drop);
        assert!(matches!(refused, Err(StopError::HoldsFreeze { .. })), "{refused:?}");
        let mut mutator = world.attach().unwrap();
        let refused = mutator.stop_the_world("test").map(drop);
        assert!(matches!(refused, Err(StopError::HoldsFreeze { .. })), "{refused:?}");
        drop(mutator);
        drop(frozen);
        let stopped = world.stop_from_outside("test").unwrap();
        drop(threadreg::freeze_creation());
        stopped.resume();
    });
}

#[test]
fn a_blocking_read_is_neither_waited_for_nor_interrupted() {
    in_child("stop::a_blocking_read_is_neither_waited_for_nor_interrupted", SOON, || {
        let world = World::new();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let reading = Flag::default();
        thread::scope(|scope| {
            let thread = mutator(scope, &world, "reader", |m| {
                let mut byte = [0];
                m.blocking(|| {
                    reading.raise();
                    // `read` and not `read_exact`, which would hide EINTR.
                    reader.read(&mut byte)
                })
                .map(|n| (n, byte[0]))
            });
            reading.wait();
            for _ in 0..100 {
                let stopped = world.stop_from_outside("test").unwrap();
                assert_eq!(stopped.stats().mutators, 1);
                assert!(stopped.last_to_stop().is_none(), "it was safe and is not to blame");
            }
            let stopped = world.stop_from_outside("test").unwrap();
            writer.write_all(b"!").unwrap();
            thread::sleep(Duration::from_millis(5));
            assert!(!thread.is_finished(), "it left its safe region in a stop");
            stopped.resume();
            assert_eq!(thread.join().unwrap().unwrap(), (1, b'!'));
        });
    });
}

#[test]
fn the_last_to_stop_is_named() {
    in_child("stop::the_last_to_stop_is_named", SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "prompt", |m| poll_until(m, &done));
            let dawdle = mutator(scope, &world, "dawdler", |m| {
                // The stop must have begun by then.
                thread::sleep(patience(Duration::from_millis(30)));
                m.poll();
            });
            let stopped = world.stop_from_outside("test").unwrap();
            let stats = *stopped.stats();
            let last = stopped.last_to_stop();
            assert_eq!(last.expect("a mutator ran").name.as_str(), "dawdler");
            assert!(stats.time_to_stop > Duration::from_millis(5), "{:?}", stats.time_to_stop);
            stopped.resume();
            dawdle.join().unwrap();
            done.raise();
        });
    });
}

#[test]
fn a_deadline_names_the_late_thread_and_releases_the_others() {
    in_child("stop::a_deadline_names_the_late_thread_and_releases_the_others", SOON, || {
        let world = World::new();
        let (done, wake, steps) = (Flag::default(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "prompt", |m| {
                while !done.is_up() {
                    steps.fetch_add(1, Ordering::Relaxed);
                    m.poll();
                }
            });
            let late = mutator(scope, &world, "late", |m| {
                wake.wait();
                poll_until(m, &done);
            });
            // Time enough for a mutator that polls.
            let deadline = patience(Duration::from_millis(100));
            let options = StopOptions::new("test").timeout(deadline);
            let begin = Instant::now();
            let error = world.stop_from_outside_with(options).unwrap_err();
            let whole = begin.elapsed();
            assert!(whole >= deadline);
            let StopError::TimedOut { stragglers, reason } = error else { panic!("{error}") };
            assert_eq!(reason.as_str(), "test");
            let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
            assert_eq!(straggler.name.as_str(), "late");
            assert_ne!(straggler.tid, 0);
            assert_eq!(straggler.state, MutatorState::Running);
            // From when it was this stop's turn; the deadline counts from the call.
            assert!(Duration::ZERO < straggler.waited && straggler.waited <= whole);
            let before = steps.load(Ordering::Relaxed);
            eventually(|| steps.load(Ordering::Relaxed) != before);
            wake.raise();
            // Nothing is left of the stop that failed.
            let stopped = world.stop_from_outside("again").unwrap();
            assert_eq!(stopped.stats().mutators, 2);
            stopped.resume();
            done.raise();
            late.join().unwrap();
        });
    });
}

#[test]
fn a_deadline_also_bounds_the_wait_for_the_turn() {
    let world = World::new();
    let stopped = world.stop_from_outside("first").unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let options = StopOptions::new("second").timeout(Duration::from_millis(5));
            world.stop_from_outside_with(options).map(drop)
        });
        let error = second.join().unwrap().unwrap_err();
        assert!(matches!(error, StopError::Busy { holder: Some(_), .. }), "{error}");
    });
    stopped.resume();
    world.stop_from_outside("third").unwrap().resume();
}

#[test]
fn a_stop_inside_a_stop_is_refused() {
    let world = World::new();
    let outer = world.stop_from_outside("outer").unwrap();
    assert!(matches!(world.stop_from_outside("inner"), Err(StopError::Nested { .. })));
    assert!(matches!(world.attach(), Err(AttachError::HoldsStop { .. })));
    drop(outer);
    let mut mutator = world.attach().unwrap();
    let outer = mutator.stop_the_world("outer").unwrap();
    assert!(matches!(world.stop_from_outside("inner"), Err(StopError::Nested { .. })));
    drop(outer);
    assert!(matches!(world.stop_from_outside("own"), Err(StopError::OwnMutatorRuns { .. })));
    mutator.blocking(|| world.stop_from_outside("safe").map(drop)).unwrap();
    mutator.poll();
}

#[test]
fn a_stop_cannot_leave_the_safe_region_it_was_made_in() {
    in_child("stop::a_stop_cannot_leave_the_safe_region_it_was_made_in", SOON, || {
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            drop(mutator.blocking(|| world.stop_from_outside("mine").unwrap()));
        }));
        result.unwrap_err();
        mutator.poll();
        world.clone().stop_from_outside("own").unwrap_err();
    });
}

/// Where not even unwinding would end the stop first, the thread would wait for itself forever.
#[test]
fn a_stop_that_outlives_its_safe_region_aborts() {
    let name = "stop::a_stop_that_outlives_its_safe_region_aborts";
    let ended = child(name, SOON, || {
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        let mut kept = None;
        mutator.blocking(|| kept = Some(world.stop_from_outside("mine").unwrap()));
        println!("left the region");
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("leaves its safe region"), "{}", ended.output);
}

#[test]
fn a_thread_attaches_once_to_a_world() {
    let (world, other) = (World::new(), World::new());
    let mutator = world.attach().unwrap();
    assert!(matches!(world.attach(), Err(AttachError::AlreadyAttached { .. })));
    let elsewhere = other.attach().unwrap();
    elsewhere.detach();
    mutator.detach();
    world.attach().unwrap().detach();
}

#[test]
fn a_panic_in_a_stop_resumes_the_world_and_reaches_the_caller() {
    in_child("stop::a_panic_in_a_stop_resumes_the_world_and_reaches_the_caller", SOON, || {
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let _stopped = mutator.stop_the_world("test").unwrap();
            panic::panic_any(7);
        }));
        assert_eq!(*result.unwrap_err().downcast::<i32>().unwrap(), 7);
        mutator.stop_the_world("again").unwrap().resume();
    });
}

#[test]
fn a_panic_in_a_safe_region_leaves_it() {
    in_child("stop::a_panic_in_a_safe_region_leaves_it", SOON, || {
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        let region = AssertUnwindSafe(|| mutator.blocking(|| panic::panic_any("out")));
        panic::catch_unwind(region).unwrap_err();
        // Running again: a stop that does not wait for it would be wrong.
        let options = StopOptions::new("test").timeout(Duration::from_millis(5));
        let world = &world;
        let result = thread::scope(|s| {
            s.spawn(move || world.stop_from_outside_with(options).map(drop)).join().unwrap()
        });
        assert!(matches!(result, Err(StopError::TimedOut { .. })));
    });
}

#[test]
fn attaching_waits_for_the_end_of_a_stop_and_detaching_does_not() {
    in_child("stop::attaching_waits_for_the_end_of_a_stop_and_detaching_does_not", SOON, || {
        let world = World::new();
        let (leave, attached) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let leaver = mutator(scope, &world, "leaver", |m| {
                m.blocking(|| leave.wait());
            });
            let runner = mutator(scope, &world, "exits", |_| leave.wait());
            let stop = scope.spawn(|| {
                let stopped = world.stop_from_outside("test").unwrap();
                let newcomer = scope.spawn(|| {
                    let mutator = world.attach().unwrap();
                    attached.raise();
                    mutator.detach();
                });
                // It detached instead of polling, and is neither waited for nor held.
                runner.join().unwrap();
                thread::sleep(Duration::from_millis(5));
                assert!(!attached.is_up(), "attached in a stop");
                stopped.resume();
                newcomer.join().unwrap();
            });
            thread::sleep(Duration::from_millis(5));
            leave.raise();
            stop.join().unwrap();
            leaver.join().unwrap();
        });
    });
}

#[test]
fn mutators_that_stop_each_other_all_get_their_turn() {
    in_child("stop::mutators_that_stop_each_other_all_get_their_turn", SOON, || {
        let world = World::new();
        let (inside, start) = (AtomicU32::new(0), Barrier::new(4));
        thread::scope(|scope| {
            for _ in 0..4 {
                mutator(scope, &world, "requester", |m| {
                    m.blocking(|| start.wait());
                    for _ in 0..200 {
                        let stopped = m.stop_the_world("mine").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two stops at once");
                        // Long enough for the others to be stopped, or to want the turn.
                        thread::sleep(Duration::from_micros(20));
                        inside.fetch_sub(1, Ordering::Relaxed);
                        stopped.resume();
                        m.poll();
                    }
                });
            }
        });
    });
}
