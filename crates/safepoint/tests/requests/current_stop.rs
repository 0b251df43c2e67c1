//! What a mutator, or anyone, finds of the stop that is asked for or under way; and that the stopped mutators stay the
//! same.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, eventually, mutator};
use safepoint::{
    CurrentStop, Hooks, MutatorId, Parked, PerMutator, Reason, StopError, StopOptions, Stopped,
    World, WorldOptions,
};
use testkit::{Rng, budget, forked, in_child, is_asleep};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_stop_is_found_from_when_it_is_asked_for_until_it_is_over() {
    in_child(
        "current_stop::a_stop_is_found_from_when_it_is_asked_for_until_it_is_over",
        SOON,
        || {
            let world = World::new();
            let (pauses, checks) = (world.pauses(4), Flag::default());
            thread::scope(|scope| {
                let mut own = world.attach().unwrap();
                let (world, checks) = (&world, &checks);
                let requester = scope.spawn(move || {
                    let stopped = world.stop_from_outside(Reason::GC).unwrap();
                    let found = world.current_stop().unwrap();
                    assert_eq!((found.number, found.reason), (stopped.number(), Reason::GC));
                    assert!(found.stopped);
                    checks.wait();
                    stopped.hand_over(|handle| assert_eq!(handle.number(), found.number));
                    found.number
                });
                eventually(|| world.current_stop().is_some());
                let found = world.current_stop().unwrap();
                assert_eq!(found.reason, Reason::GC);
                assert!(!found.stopped, "this one runs");
                own.blocking(|| {
                    eventually(|| world.current_stop().unwrap().stopped);
                    checks.raise();
                    assert_eq!(requester.join().unwrap(), found.number);
                });
                assert_eq!(world.current_stop(), None);
                assert_eq!(pauses.recv().unwrap().number, found.number);
                // One that is given up has a number, too.
                let gives_up = scope.spawn(|| {
                    let options = StopOptions::new("in vain").timeout(Duration::from_millis(5));
                    let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
                    assert!(matches!(error, StopError::TimedOut { .. }), "{error}");
                    assert_eq!(world.current_stop(), None, "it is given up");
                });
                gives_up.join().unwrap();
                let stopped = own.stop_the_world("next").unwrap();
                assert_eq!(stopped.number(), found.number + 2);
                let found = world.current_stop().unwrap();
                assert_eq!((found.reason.as_str(), found.stopped), ("next", true));
            });
            assert_eq!(world.current_stop(), None);
        },
    );
}

/// Notes for which stop a mutator parks.
#[derive(Default)]
struct Notes {
    world: Mutex<Option<World>>,
    found: Mutex<Vec<CurrentStop>>,
}

impl Hooks for Notes {
    fn parking(&self, _at: &Parked<'_>) {
        let found = self.world.lock().unwrap().as_ref().and_then(World::current_stop);
        self.found.lock().unwrap().extend(found);
    }
}

#[test]
fn a_hook_finds_the_stop_for_which_its_mutator_parks() {
    in_child("current_stop::a_hook_finds_the_stop_for_which_its_mutator_parks", SOON, || {
        let notes = Arc::new(Notes::default());
        let world = World::with_options(WorldOptions::new().hooks(notes.clone()));
        *notes.world.lock().unwrap() = Some(world.clone());
        let (done, steps) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            let steps = &steps;
            mutator(scope, &world, "polls", |m| {
                while !done.is_up() {
                    steps.fetch_add(1, Ordering::Relaxed);
                    m.poll();
                }
            });
            let numbers = ["first", "second"].map(|reason| {
                let stopped = world.stop_from_outside(reason).unwrap();
                let (number, before) = (stopped.number(), steps.load(Ordering::Relaxed));
                stopped.resume();
                // Until it runs the next stop finds it where it stands, and it does not park anew.
                eventually(|| steps.load(Ordering::Relaxed) != before);
                (number, reason)
            });
            done.raise();
            let found = notes.found.lock().unwrap();
            let found: Vec<_> =
                found.iter().map(|stop| (stop.number, stop.reason.as_str())).collect();
            assert_eq!(found, numbers);
        });
        // It would keep the world for ever.
        *notes.world.lock().unwrap() = None;
    });
}

#[test]
fn a_child_of_a_fork_finds_no_stop_of_another_thread() {
    in_child("current_stop::a_child_of_a_fork_finds_no_stop_of_another_thread", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                let stopped = world.stop_from_outside("of the parent").unwrap();
                tell.send(()).unwrap();
                done.wait();
                stopped.resume();
            });
            told.recv().unwrap();
            assert!(world.current_stop().is_some());
            let status = forked(|| {
                assert_eq!(world.current_stop(), None);
                let stopped = world.stop_from_outside("of the child").unwrap();
                let found = world.current_stop().unwrap();
                assert_eq!(found.reason.as_str(), "of the child");
                stopped.resume();
                assert_eq!(world.current_stop(), None);
            });
            assert_eq!(status, 0, "in the child of fork");
            done.raise();
        });
        let mut stopped = Some(world.stop_from_outside("of this thread").unwrap());
        let status = forked(|| {
            assert_eq!(world.current_stop().unwrap().reason.as_str(), "of this thread");
            stopped.take().unwrap().resume();
            assert_eq!(world.current_stop(), None);
        });
        assert_eq!(status, 0, "in the child of fork");
        drop(stopped);
    });
}

fn ids(stopped: &Stopped<'_>) -> Vec<MutatorId> {
    let mut ids: Vec<_> = stopped.mutators().map(|mutator| mutator.id()).collect();
    ids.sort_by_key(|id| id.index());
    ids
}

/// A collector counts its mutators, and then looks at each.
#[test]
fn a_thread_that_attaches_in_a_stop_is_none_of_the_stopped_mutators() {
    let name = "current_stop::a_thread_that_attaches_in_a_stop_is_none_of_the_stopped_mutators";
    in_child(name, SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let values = PerMutator::<u32>::new(&world);
        thread::scope(|scope| {
            away(scope, &world, "was there", &done);
            let mut stopped = world.stop_from_outside("test").unwrap();
            let before = ids(&stopped);
            assert_eq!((before.len(), world.mutators()), (1, before.clone()));
            let (tell, told) = mpsc::channel();
            let (world, values, done) = (&world, &values, &done);
            let comes = scope.spawn(move || {
                tell.send(sigctx::sys::gettid()).unwrap();
                let mut mutator = world.attach().unwrap();
                values.insert(&mut mutator, 7);
                let id = mutator.id();
                mutator.blocking(|| done.wait());
                id
            });
            let tid = told.recv().unwrap();
            eventually(|| world.number_of_mutators() == 2 && is_asleep(tid));
            assert_eq!(ids(&stopped), before);
            assert_eq!(stopped.par_mutators().as_slice().len(), 1);
            let all = world.mutators();
            assert!(all.len() == 2 && all.contains(&before[0]), "{all:?} has both");
            assert!(values.iter_mut(&mut stopped).next().is_none());
            stopped.resume();
            let there = |value: &u32| *value == 7;
            testkit::until("it is there", || {
                let mut stopped = world.stop_from_outside("test").unwrap();
                assert!(values.take_detached(&mut stopped).is_empty(), "it is not gone");
                let is_there = values.iter(&stopped).any(|(_, value)| there(value));
                is_there && ids(&stopped).len() == 2
            });
            done.raise();
            let id = comes.join().unwrap();
            assert!(all.contains(&id), "{all:?} has {id}, which attached");
        });
    });
}

/// Threads come and go meanwhile. Each value is that of a stopped mutator, or left by one that has gone.
#[test]
fn stress_the_mutators_of_a_stop_stay_the_same() {
    in_child("current_stop::stress_the_mutators_of_a_stop_stay_the_same", 3 * SOON, || {
        let world = World::new();
        let values = PerMutator::<u32>::new(&world);
        let (done, start) = (Flag::default(), Rng::from_env().below(1 << 30));
        let (made, mut met) = (AtomicU32::new(0), 0);
        thread::scope(|scope| {
            let (world, values, done, made) = (&world, &values, &done, &made);
            let threads: Vec<_> = (0..3)
                .map(|at| {
                    scope.spawn(move || {
                        let mut rng = Rng::new(start + at);
                        while !done.is_up() {
                            let mut mutator = world.attach().unwrap();
                            if values.insert(&mut mutator, 1).is_none() {
                                made.fetch_add(1, Ordering::Relaxed);
                            }
                            for _ in 0..rng.below(3) {
                                mutator.poll();
                            }
                        }
                    })
                })
                .collect();
            for _ in 0..budget(3_000) {
                let mut stopped = world.stop_from_outside("test").unwrap();
                let before = ids(&stopped);
                let with: Vec<_> = values.iter(&stopped).map(|(id, _)| id).collect();
                thread::yield_now();
                assert_eq!(ids(&stopped), before);
                met += values.take_detached(&mut stopped).len();
                let then: Vec<_> = values.iter(&stopped).map(|(id, _)| id).collect();
                assert_eq!(then, with, "those with a value");
                assert!(with.iter().all(|id| before.contains(id)), "{with:?} of {before:?}");
            }
            done.raise();
            for thread in threads {
                thread.join().unwrap();
            }
        });
        println!("{} values, {met} taken out", made.load(Ordering::Relaxed));
    });
}
