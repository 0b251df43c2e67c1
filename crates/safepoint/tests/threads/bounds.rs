//! Each wait has a bound, and what may not wait is refused.

#[cfg(debug_assertions)]
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, away, mutator, poll_until};
use safepoint::{
    AttachError, EachError, EachOptions, StopError, StopOptions, StragglerCause, World,
};
use testkit::{child, in_child, patience};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_for_each_past_its_deadline_names_the_mutators_not_visited() {
    in_child("bounds::a_for_each_past_its_deadline_names_the_mutators_not_visited", SOON, || {
        let world = World::new();
        let (done, wake) = (Flag::default(), Flag::default());
        let visits = AtomicU32::new(0);
        thread::scope(|scope| {
            mutator(scope, &world, "prompt", |m| poll_until(m, &done));
            let late = mutator(scope, &world, "late", |m| {
                wake.wait();
                poll_until(m, &done);
            });
            let mut own = world.attach().unwrap();
            // Time enough for a mutator that polls.
            let options = EachOptions::new().timeout(patience(Duration::from_millis(100)));
            let error = own
                .for_each_processor_with(options, |_| {
                    visits.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap_err();
            let EachError::TimedOut { visited, stragglers } = error else { panic!("{error}") };
            assert_eq!((visited, visits.load(Ordering::Relaxed)), (2, 2));
            let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
            assert_eq!(straggler.name.as_str(), "late");
            // A busy machine may have given it no processor.
            let causes = [StragglerCause::NoNudge, StragglerCause::Starved];
            assert!(causes.contains(&straggler.cause), "{straggler}");
            wake.raise();
            // The closure is gone, and is not called any more; the next for-each visits all.
            assert_eq!(own.for_each_processor(|_| ()).unwrap(), 3);
            assert_eq!(visits.load(Ordering::Relaxed), 2);
            done.raise();
            late.join().unwrap();
        });
    });
}

/// What has begun borrows from the requester, and is waited for.
#[test]
fn a_closure_that_has_begun_is_waited_for_past_the_deadline() {
    in_child("bounds::a_closure_that_has_begun_is_waited_for_past_the_deadline", SOON, || {
        let world = World::new();
        let (done, began) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "slow", |m| poll_until(m, &done));
            let mut own = world.attach().unwrap();
            let ended = Flag::default();
            let options = EachOptions::new().timeout(patience(Duration::from_millis(50)));
            let visited = own.for_each_processor_with(options, |p| {
                // The own closure runs first, and would be long enough for the other to be late.
                if p.thread().name().as_str() == "slow" {
                    began.raise();
                    thread::sleep(patience(Duration::from_millis(150)));
                    ended.raise();
                } else {
                    began.wait();
                }
            });
            assert!(ended.is_up(), "went on beside a closure");
            assert_eq!(visited.unwrap(), 2);
            done.raise();
        });
    });
}

#[test]
fn a_for_each_gives_up_waiting_for_its_turn() {
    in_child("bounds::a_for_each_gives_up_waiting_for_its_turn", SOON, || {
        let world = World::new();
        let (inside, leave) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let first = mutator(scope, &world, "first", |m| {
                m.for_each_processor(|p| {
                    if p.thread().name().as_str() == "first" {
                        inside.raise();
                        leave.wait();
                    }
                })
                .unwrap()
            });
            inside.wait();
            let holder = world.stop_from_outside_with(StopOptions::new("").timeout(Duration::ZERO));
            holder.map(drop).unwrap_err();
            let mut own = world.attach().unwrap();
            let options = EachOptions::new().timeout(Duration::from_millis(5));
            let error = own.for_each_processor_with(options, |_| ()).unwrap_err();
            assert!(matches!(error, EachError::Busy { holder: Some(_), .. }), "{error}");
            leave.raise();
            own.blocking(|| first.join().unwrap());
            assert_eq!(own.for_each_processor(|_| ()).unwrap(), 1);
        });
    });
}

#[test]
fn attaching_gives_up_after_its_timeout() {
    in_child("bounds::attaching_gives_up_after_its_timeout", SOON, || {
        let world = World::new();
        let stopped = world.stop_from_outside("long").unwrap();
        let limit = Duration::from_millis(20);
        thread::scope(|scope| {
            let newcomer = scope.spawn(|| {
                let begin = Instant::now();
                let error = world.attach_within(limit).map(drop).unwrap_err();
                assert!(begin.elapsed() >= limit);
                assert!(threadreg::current().is_none(), "as it was before");
                error
            });
            let error = newcomer.join().unwrap();
            let me = sigctx::sys::gettid();
            let AttachError::Stopped { holder, waited, .. } = error else { panic!("{error}") };
            assert_eq!(holder, Some(me));
            assert!(waited >= limit);
            assert_eq!(stopped.mutators().count(), 0, "no thread attached");
            let again = scope.spawn(|| {
                let mut mutator = world.attach_within(SOON).unwrap();
                mutator.poll();
            });
            stopped.resume();
            again.join().unwrap();
        });
    });
}

/// A mutator does not come back from a failed stop into a stopped world, and says how long it took.
#[test]
fn a_failed_stop_says_how_long_the_mutator_stood_still() {
    in_child("bounds::a_failed_stop_says_how_long_the_mutator_stood_still", SOON, || {
        let world = World::new();
        let (first, resumed) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let late = mutator(scope, &world, "second", |m| {
                first.wait();
                // The first stop waits for this thread, and is complete once it asks for its own.
                thread::sleep(Duration::from_millis(5));
                let begin = Instant::now();
                let options = StopOptions::new("short").timeout(Duration::from_millis(1));
                let error = m.stop_with(options).map(drop).unwrap_err();
                let whole = begin.elapsed();
                assert!(resumed.is_up(), "it ran in a stopped world");
                let StopError::Busy { waited, .. } = error else { panic!("{error}") };
                (waited, whole)
            });
            first.raise();
            let stopped = world.stop_from_outside("long").unwrap();
            thread::sleep(Duration::from_millis(100));
            resumed.raise();
            stopped.resume();
            let (waited, whole) = late.join().unwrap();
            assert!(
                waited >= Duration::from_millis(100) && waited <= whole,
                "{waited:?} {whole:?}"
            );
        });
    });
}

/// A deadline that has passed before the first look is no reason to blame a safe mutator.
#[test]
fn a_safe_mutator_is_not_late() {
    in_child("bounds::a_safe_mutator_is_not_late", SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            away(scope, &world, "safe", &done);
            let options = StopOptions::new("at once").timeout(Duration::ZERO);
            assert_eq!(world.stop_from_outside_with(options).unwrap().stats().mutators, 1);
            let mut own = world.attach().unwrap();
            let options = EachOptions::new().timeout(Duration::ZERO);
            assert_eq!(own.for_each_processor_with(options, |_| ()).unwrap(), 2);
            done.raise();
        });
    });
}

/// W7, and T5 of threadreg.
#[test]
fn no_for_each_and_no_poll_under_a_freeze() {
    in_child("bounds::no_for_each_and_no_poll_under_a_freeze", SOON, || {
        let world = World::new();
        let mut own = world.attach().unwrap();
        let frozen = threadreg::freeze_creation();
        let refused = own.for_each_processor(|_| ());
        assert!(matches!(refused, Err(EachError::HoldsFreeze { .. })), "{refused:?}");
        let asking = Flag::default();
        thread::scope(|scope| {
            let requester = scope.spawn(|| {
                asking.wait();
                world.stop_from_outside("test").unwrap().stats().mutators
            });
            asking.raise();
            // In a release build the assertion comes with the stop.
            let asserted = panic::catch_unwind(AssertUnwindSafe(|| {
                let begin = Instant::now();
                while begin.elapsed() < patience(Duration::from_secs(5)) {
                    own.poll();
                    thread::yield_now();
                }
            }));
            asserted.expect_err("polled under the guard");
            drop(frozen);
            // The stop, if it has come, is served now.
            own.blocking(|| assert_eq!(requester.join().unwrap(), 1));
            own.poll();
        });
    });
}

/// W7, and T5 of threadreg.
#[test]
fn an_attach_under_a_freeze_does_not_wait() {
    in_child("bounds::an_attach_under_a_freeze_does_not_wait", SOON, || {
        let world = World::new();
        let (go, refused) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let newcomer = scope.spawn(|| {
                go.wait();
                let frozen = threadreg::freeze_creation();
                let error = world.attach().map(drop).unwrap_err();
                assert!(matches!(error, AttachError::HoldsFreeze { .. }), "{error}");
                refused.raise();
                drop(frozen);
                drop(world.attach().unwrap());
            });
            let stopped = world.stop_from_outside("test").unwrap();
            go.raise();
            refused.wait();
            stopped.resume();
            newcomer.join().unwrap();
            let _frozen = threadreg::freeze_creation();
            drop(world.attach().expect("the world runs"));
        });
    });
}

/// W7, and T5 of threadreg.
#[test]
#[cfg(debug_assertions)]
fn a_region_that_ends_in_a_stop_under_a_freeze_aborts() {
    let name = "bounds::a_region_that_ends_in_a_stop_under_a_freeze_aborts";
    let ended = child(name, SOON, || {
        let world = World::new();
        let (safe, stopped) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            scope.spawn(|| {
                safe.wait();
                let _stopped = world.stop_from_outside("test").unwrap();
                stopped.raise();
                thread::sleep(SOON * 2);
            });
            let mut own = world.attach().unwrap();
            let _frozen = threadreg::freeze_creation();
            own.blocking(|| {
                safe.raise();
                stopped.wait();
            });
        });
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("under the guard of freeze_creation"), "{}", ended.output);
}

/// Leaking the stop leaves the mutator in its safe region. Only the stop never ends.
#[test]
fn a_mutator_whose_stop_was_leaked_can_be_dropped() {
    let world = World::new();
    let mut mutator = world.attach().unwrap();
    // A leak that a reference count may make, too.
    let _leaked = std::mem::ManuallyDrop::new(mutator.stop_the_world("leaked").unwrap());
    let refused = mutator.stop_the_world("again").map(drop);
    assert!(matches!(refused, Err(StopError::Nested { .. })), "{refused:?}");
    drop(mutator);
    let limit = Duration::from_millis(1);
    thread::scope(|scope| {
        let other = scope.spawn(|| world.attach_within(limit).map(drop));
        let refused = other.join().unwrap();
        assert!(matches!(refused, Err(AttachError::Stopped { .. })), "{refused:?}");
    });
}

/// An exit runs the destructors of thread-locals inside the region, that of the mutator among them.
#[test]
fn a_mutator_in_a_thread_local_survives_an_exit_in_its_region() {
    use std::cell::RefCell;
    thread_local! {
        static MINE: RefCell<Option<safepoint::Mutator>> = const { RefCell::new(None) };
    }
    for in_a_stop in [false, true] {
        let world = World::new();
        let status = testkit::forked(|| {
            MINE.set(Some(world.attach().unwrap()));
            MINE.with_borrow_mut(|mine| {
                mine.as_mut().unwrap().blocking(|| {
                    if in_a_stop {
                        let world = world.clone();
                        let (tell, told) = std::sync::mpsc::channel();
                        thread::spawn(move || {
                            let _stopped = world.stop_from_outside("test").unwrap();
                            tell.send(()).unwrap();
                            thread::sleep(SOON * 2);
                        });
                        told.recv().unwrap();
                    }
                    // SAFETY: runs what a return from `main` runs.
                    unsafe { libc::exit(7) }
                })
            });
        });
        assert_eq!(status, 7 << 8, "in a stop: {in_a_stop}");
    }
}
