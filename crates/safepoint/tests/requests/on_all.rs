//! Stopped threads that help with what they were stopped for.

use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crate::common::{Flag, away, mutator, poll_until};
use safepoint::{
    Answer, HandshakeError, Reason, RunOptions, StopHandle, StoppedMutator, StragglerCause, World,
};
use testkit::{budget, forked, in_child};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn stopped_mutators_help_on_their_own_threads() {
    in_child("on_all::stopped_mutators_help_on_their_own_threads", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let threads = &Mutex::new(Vec::<ThreadId>::new());
        thread::scope(|scope| {
            for _ in 0..3 {
                let done = &done;
                mutator(scope, &world, "polls", move |mutator| {
                    threads.lock().unwrap().push(thread::current().id());
                    poll_until(mutator, done);
                });
            }
            away(scope, &world, "away", &done);
            let mut own = world.attach().expect("attaches");
            testkit::until("all run", || threads.lock().unwrap().len() == 3);
            for _ in 0..budget(200) {
                let mut stopped = own.stop_the_world(Reason::GC).expect("stops");
                let work =
                    |mutator: &StoppedMutator<'_>| (mutator.is_current(), thread::current().id());
                let mut answers = stopped.run_on_all(RunOptions::new(), work).expect("all come");
                stopped.resume();
                let place = answers
                    .iter()
                    .position(|(_, answer)| matches!(answer, Answer::Done((false, _))));
                let (_, of_away) = answers.remove(place.expect("one cannot come"));
                assert_eq!(of_away, Answer::Done((false, thread::current().id())));
                let helped: Vec<_> = answers
                    .into_iter()
                    .map(|(_, answer)| match answer {
                        Answer::Done((true, thread)) => thread,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                let threads = threads.lock().unwrap();
                assert_eq!(helped.len(), 3);
                assert!(threads.iter().all(|thread| helped.contains(thread)), "each its own");
            }
            done.raise();
        });
    });
}

/// All are in it at the same time, and the world runs for none of them meanwhile.
#[test]
fn helpers_work_at_the_same_time() {
    in_child("on_all::helpers_work_at_the_same_time", SOON, || {
        let (world, done, go) = (World::new(), Flag::default(), Flag::default());
        let (ran, running) = (AtomicU32::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                mutator(scope, &world, "polls", |mutator| {
                    running.fetch_add(1, Ordering::SeqCst);
                    while !done.is_up() {
                        assert!(!go.is_up() || ran.load(Ordering::SeqCst) == 2, "ran too early");
                        mutator.poll();
                    }
                });
            }
            testkit::until("both run", || running.load(Ordering::SeqCst) == 2);
            let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
            go.raise();
            let work = |mutator: &StoppedMutator<'_>| {
                assert!(mutator.is_current());
                ran.fetch_add(1, Ordering::SeqCst);
                // Each on its own thread, so neither keeps the other from it.
                testkit::until("both are here", || ran.load(Ordering::SeqCst) == 2);
            };
            let answers = stopped.run_on_all(RunOptions::new(), work).expect("all come");
            assert_eq!(answers.len(), 2);
            stopped.resume();
            done.raise();
        });
    });
}

#[test]
fn a_mutator_that_may_help_only_by_itself_and_does_not_come_is_named() {
    let name = "on_all::a_mutator_that_may_help_only_by_itself_and_does_not_come_is_named";
    in_child(name, SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            let region = away(scope, &world, "in its region", &done);
            let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
            let ran = AtomicU32::new(0);
            let work = |_: &StoppedMutator<'_>| ran.fetch_add(1, Ordering::SeqCst);
            let options = RunOptions::new().self_only();
            let error = stopped
                .run_on_all(options.timeout(Duration::from_millis(30)), work)
                .expect_err("one stays in its region");
            let HandshakeError::TimedOut { answered: 1, stragglers } = error else {
                panic!("{error}")
            };
            assert_eq!(stragglers.len(), 1);
            assert_eq!(stragglers[0].name.as_str(), "in its region");
            assert_eq!(stragglers[0].cause, StragglerCause::InSafeRegion);
            // It comes back, and waits for the end of the stop: then it helps.
            done.raise();
            let answers = stopped.run_on_all(options, work).expect("both come");
            assert_eq!((answers.len(), ran.load(Ordering::SeqCst)), (2, 3));
            assert!(!region.is_finished(), "it does not leave its region in the stop");
            stopped.resume();
        });
    });
}

#[test]
fn a_helper_that_panics_ends_neither_the_stop_nor_the_others() {
    in_child("on_all::a_helper_that_panics_ends_neither_the_stop_nor_the_others", SOON, || {
        let (world, done, ran) = (World::new(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            }
            let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
            let mut run = || {
                stopped.run_on_all(RunOptions::new(), |mutator| {
                    ran.fetch_add(1, Ordering::SeqCst);
                    // What asks inside of it would wait for itself.
                    let refused = world.stop_from_outside("nested").map(drop);
                    assert!(refused.is_err());
                    assert!(mutator.index() != 0, "the first panics");
                })
            };
            let payload = panic::catch_unwind(AssertUnwindSafe(&mut run)).expect_err("panics");
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"the first panics"));
            assert_eq!(ran.load(Ordering::SeqCst), 2);
            assert_eq!(stopped.mutators().count(), 2);
            stopped.resume();
            done.raise();
        });
    });
}

/// The mutator that asked for the stop helps, too, and whoever has the handle asks.
#[test]
fn a_mutator_that_handed_its_stop_over_helps() {
    in_child("on_all::a_mutator_that_handed_its_stop_over_helps", SOON, || {
        let world = World::new();
        thread::scope(|scope| {
            let (send, receive) = mpsc::channel::<StopHandle>();
            mutator(scope, &world, "requester", move |mutator| {
                let stopped = mutator.stop_the_world(Reason::GC).expect("stops");
                stopped.hand_over(|stopped| send.send(stopped).expect("it is awaited"));
            });
            let mut stopped = receive.recv().expect("handed over");
            let options = RunOptions::new().self_only();
            let on_its_own = |helper: &StoppedMutator<'_>| helper.is_current();
            let answers = stopped.run_on_all(options, on_its_own).expect("comes");
            assert!(matches!(*answers, [(_, Answer::Done(true))]), "{answers:?}");
            let status = forked(|| {
                let answers = stopped.run_on_all(options, |_| ()).expect("nobody is asked");
                assert!(answers.is_empty());
            });
            assert_eq!(status, 0);
            stopped.resume();
        });
    });
}

/// Regions begin and end, and mutators come and go.
#[test]
fn stress_each_mutator_is_helped_for_once() {
    in_child("on_all::stress_each_mutator_is_helped_for_once", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            for at in 0..3 {
                let (world, done) = (&world, &done);
                scope.spawn(move || {
                    while !done.is_up() {
                        let mut mutator = world.attach().expect("room");
                        // Counted in stops alone, and looked at while it runs.
                        let mine = Box::new(AtomicU32::new(0));
                        mutator.set_data((&raw const *mine).cast_mut().cast());
                        for _ in 0..50 {
                            let before = mine.load(Ordering::Relaxed);
                            thread::yield_now();
                            assert_eq!(mine.load(Ordering::Relaxed), before, "it ran in a stop");
                            if at == 0 { mutator.poll() } else { mutator.blocking(|| ()) }
                        }
                        // While it runs: a stop finds the data there, or none.
                        mutator.set_data(ptr::null_mut());
                        drop(mutator);
                        drop(mine);
                    }
                });
            }
            for _ in 0..budget(2000) {
                let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
                let work = |mutator: &StoppedMutator<'_>| {
                    let mine = mutator.data().cast::<AtomicU32>();
                    // SAFETY: null, or what the mutator keeps: it takes that back while it runs, and so not in a stop.
                    unsafe { mine.as_ref() }.map(|mine| mine.fetch_add(1, Ordering::Relaxed))
                };
                let count = |mutator: StoppedMutator<'_>| {
                    let mine = mutator.data().cast::<AtomicU32>();
                    // SAFETY: as above.
                    unsafe { mine.as_ref() }
                        .map(|mine| (mutator.id(), mine.load(Ordering::Relaxed)))
                };
                let before: Vec<_> = stopped.mutators().filter_map(count).collect();
                let answers = stopped.run_on_all(RunOptions::new(), work).expect("all come");
                let after: Vec<_> = stopped.mutators().filter_map(count).collect();
                for (id, counted) in before {
                    assert!(after.contains(&(id, counted + 1)), "{id} once");
                    assert!(answers.contains(&(id, Answer::Done(Some(counted)))), "{id}");
                }
                stopped.resume();
            }
            done.raise();
        });
    });
}
