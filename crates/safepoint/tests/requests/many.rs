//! Several worlds in one stop, and several threads that work in one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator, poll_until};
use safepoint::{StopError, StopOptions, World};
use testkit::{in_child, is_asleep, patience};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn each_stopped_mutator_is_had_by_one_worker() {
    in_child("many::each_stopped_mutator_is_had_by_one_worker", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            for _ in 0..8 {
                mutator(scope, &world, "polls", |m| poll_until(m, &done));
            }
            let stopped = world.stop_from_outside("test").unwrap();
            let mutators = stopped.par_mutators();
            let had: Vec<Vec<_>> = thread::scope(|scope| {
                let worker = || {
                    let had = mutators.share().map(|m| m.index()).collect();
                    assert!(mutators.share().next().is_none(), "none comes out twice");
                    had
                };
                let workers = [(); 3].map(|()| scope.spawn(worker));
                workers.map(|worker| worker.join().unwrap()).into()
            });
            assert_eq!(had.iter().flatten().count(), 8, "{had:?}");
            assert_eq!(had.concat().into_iter().collect::<BTreeSet<_>>(), (0..8).collect());
            assert_eq!(mutators.as_slice().len(), 8);
            done.raise();
        });
    });
}

/// Whether a thread that stops `worlds`, of which `held` is stopped already, has stopped `other` when it waits.
fn has_stopped(worlds: [&World; 2], held: &World, other: &World) -> bool {
    let tid = AtomicI32::new(0);
    let stopped = held.stop_from_outside("held").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: no preconditions.
            tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            World::stop_many(&worlds, StopOptions::new("many")).unwrap().resume();
        });
        let tid = || tid.load(Ordering::Relaxed);
        eventually(|| tid() != 0 && is_asleep(tid()));
        let tried = other.try_stop_from_outside(StopOptions::new("try")).map(drop);
        stopped.resume();
        matches!(tried, Err(StopError::Busy { .. }))
    })
}

/// In whichever order they name them: else each could have one, and wait for the other.
#[test]
fn threads_stop_the_same_worlds_in_one_order() {
    in_child("many::threads_stop_the_same_worlds_in_one_order", SOON, || {
        let (a, b) = (&World::new(), &World::new());
        let of_a = has_stopped([a, b], a, b);
        assert_eq!(has_stopped([b, a], a, b), of_a);
        let of_b = has_stopped([a, b], b, a);
        assert_eq!(has_stopped([b, a], b, a), of_b);
        assert_ne!(of_a, of_b, "one of them is the first");
    });
}

#[test]
fn all_worlds_stop_or_none_does() {
    in_child("many::all_worlds_stop_or_none_does", SOON, || {
        let worlds = [World::new(), World::new(), World::new()];
        let [first, late, last] = &worlds;
        let (told, done) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, first, "of the first", |m| poll_until(m, &done));
            mutator(scope, last, "of the last", |m| poll_until(m, &done));
            mutator(scope, late, "late", |m| {
                told.wait();
                poll_until(m, &done);
            });
            let options = StopOptions::new("test").timeout(patience(Duration::from_millis(300)));
            let error = World::stop_many(&[first, late, last], options).map(drop).unwrap_err();
            assert_eq!(error.world, 1, "{error}");
            let StopError::TimedOut { stragglers, .. } = error.error else { panic!("{error:?}") };
            assert_eq!(stragglers[0].name.as_str(), "late");
            told.raise();
            let error = World::stop_many(&[first, last, first], StopOptions::new("test"));
            let error = error.map(drop).unwrap_err();
            assert!(error.world != 1 && matches!(error.error, StopError::Nested { .. }), "{error}");
            // All run.
            let stopped = World::stop_many(&[last, late], StopOptions::new("test")).unwrap();
            let name = |at: usize| stopped.worlds()[at].mutators().next().unwrap().thread().name();
            assert_eq!((name(0).as_str(), name(1).as_str()), ("of the last", "late"));
            stopped.resume();
            first.stop_from_outside("test").unwrap().resume();
            done.raise();
        });
    });
}
