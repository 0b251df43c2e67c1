//! Stops that are tried, stops that join another thread's, and what comes straight after a stop.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator, poll_until, wait_until_asked};
use safepoint::{
    Mutator, Processor, Reason, ReasonMetrics, StopError, StopOptions, StopOrJoined, World,
};
use testkit::{budget, in_child, is_asleep};

const SOON: Duration = Duration::from_secs(20);

fn gettid() -> i32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

#[test]
fn a_try_waits_for_mutators_and_not_for_the_turn() {
    in_child("turns::a_try_waits_for_mutators_and_not_for_the_turn", SOON, || {
        let world = World::new();
        let (done, asked) = (Flag::default(), Mutex::new(0));
        thread::scope(|scope| {
            let tried = mutator(scope, &world, "tries", |m| {
                let options = StopOptions::new("try");
                // The turn is free.
                for _ in 0..100 {
                    m.try_stop(options).unwrap().resume();
                }
                scope.spawn(|| {
                    *asked.lock().unwrap() = gettid();
                    world.stop_from_outside("slow").unwrap().resume();
                });
                wait_until_asked(m);
                // That stop waits for this mutator, which goes on.
                let refused = m.try_stop(options).map(drop);
                let Err(StopError::Busy { holder, waited, .. }) = refused else {
                    panic!("{refused:?}")
                };
                assert_eq!((holder, waited), (Some(*asked.lock().unwrap()), Duration::ZERO));
                m.poll();
                poll_until(m, &done);
            });
            eventually(|| world.metrics().stops.iter().any(|of| of.reason.as_str() == "slow"));
            // From outside: the mutator polls, and has to be waited for.
            for _ in 0..100 {
                world.try_stop_from_outside(StopOptions::new("try")).map_or_else(
                    |error| assert!(matches!(error, StopError::Busy { .. }), "{error}"),
                    safepoint::Stopped::resume,
                );
            }
            done.raise();
            tried.join().unwrap();
        });
    });
}

/// What is known of the stops for a reason.
fn of(world: &World, reason: Reason) -> ReasonMetrics {
    let metrics = world.metrics();
    metrics.stops.iter().find(|of| of.reason == reason).expect("there was a stop").clone()
}

/// Asks for a collection, and does the work if it is to.
fn collect(m: &mut Mutator, work: impl FnOnce()) {
    match m.stop_or_join(StopOptions::new(Reason::GC)).unwrap() {
        StopOrJoined::Stopped(_stopped) => work(),
        StopOrJoined::Joined { .. } => (),
    }
}

/// Has `N` mutators ask for a collection, each once, and none before all run. The first that does the work waits until
/// the others sleep.
fn all_collect<const N: usize>(world: &World, work: impl Fn() + Sync) {
    let tids: [_; N] = std::array::from_fn(|_| AtomicU32::new(0));
    let (go, first) = (Flag::default(), Flag::default());
    thread::scope(|scope| {
        for tid in &tids {
            let (tids, go, first, work) = (&tids, &go, &first, &work);
            mutator(scope, world, "wants a collection", move |m| {
                tid.store(gettid() as u32, Ordering::Relaxed);
                go.wait();
                let work = || {
                    if !first.is_up() {
                        first.raise();
                        let others = tids.iter().map(|tid| tid.load(Ordering::Relaxed) as i32);
                        others
                            .filter(|tid| *tid != gettid())
                            .for_each(|tid| eventually(|| is_asleep(tid)));
                    }
                    work();
                };
                let collected = panic::catch_unwind(AssertUnwindSafe(|| collect(m, work)));
                drop(collected);
            });
        }
        // No mutator polls, so the first stop has to wait until each has asked.
        eventually(|| tids.iter().all(|tid| tid.load(Ordering::Relaxed) != 0));
        go.raise();
    });
}

#[test]
fn mutators_that_ask_for_a_collection_at_once_get_one() {
    in_child("turns::mutators_that_ask_for_a_collection_at_once_get_one", SOON, || {
        let (world, collections) = (World::new(), AtomicU32::new(0));
        for round in 1..=5 {
            let before = world.stops();
            all_collect::<4>(&world, || _ = collections.fetch_add(1, Ordering::Relaxed));
            assert_eq!(collections.load(Ordering::Relaxed), round);
            assert_ne!(world.stops(), before);
            let metrics = of(&world, Reason::GC);
            assert_eq!(metrics.time_to_stop.count(), u64::from(round), "stops are counted once");
            assert_eq!(metrics.coalesced, 3 * round);
        }
    });
}

/// It may not have come to its work.
#[test]
fn a_collection_that_panics_serves_no_other() {
    in_child("turns::a_collection_that_panics_serves_no_other", SOON, || {
        let (world, begun) = (World::new(), AtomicU32::new(0));
        all_collect::<3>(&world, || {
            if begun.fetch_add(1, Ordering::Relaxed) == 0 {
                panic::panic_any("in the collection");
            }
        });
        assert_eq!(begun.load(Ordering::Relaxed), 2, "the second serves the third");
        assert_eq!(of(&world, Reason::GC).coalesced, 1);
    });
}

/// A stop for something else does not serve; nor does one whose work was done before.
#[test]
fn only_a_later_stop_for_the_same_reason_is_joined() {
    in_child("turns::only_a_later_stop_for_the_same_reason_is_joined", SOON, || {
        let world = World::new();
        let worked = Flag::default();
        thread::scope(|scope| {
            let stopped = world.stop_from_outside(Reason::GC).unwrap();
            stopped.resume();
            let wants = mutator(scope, &world, "wants a collection", |m| {
                wait_until_asked(m);
                collect(m, || worked.raise());
            });
            // This one has its turn, and waits for the mutator to ask.
            let dump = scope.spawn(|| {
                let stopped = world.stop_from_outside(Reason::DUMP).unwrap();
                assert!(!worked.is_up());
                stopped.resume();
            });
            dump.join().unwrap();
            wants.join().unwrap();
            assert!(worked.is_up());
            assert_eq!(of(&world, Reason::GC).coalesced, 0);
        });
    });
}

/// What a runtime changes in a stop, each mutator takes over before it runs its own code again.
#[test]
fn what_is_asked_for_in_a_stop_runs_before_the_mutator_goes_on() {
    let name = "turns::what_is_asked_for_in_a_stop_runs_before_the_mutator_goes_on";
    in_child(name, SOON, || {
        const MUTATORS: usize = 3;
        let (world, done) = (World::new(), &Flag::default());
        // Changed in stops alone.
        let wanted = &AtomicU32::new(0);
        let ready = &AtomicUsize::new(0);
        thread::scope(|scope| {
            for at in 0..MUTATORS {
                mutator(scope, &world, &format!("goes on {at}"), move |mutator| {
                    let mine = Arc::new(AtomicU32::new(0));
                    mutator.set_data(Arc::as_ptr(&mine).cast_mut().cast());
                    ready.fetch_add(1, Ordering::Relaxed);
                    while !done.is_up() {
                        mutator.poll();
                        let has = || mine.load(Ordering::Relaxed);
                        assert_eq!(has(), wanted.load(Ordering::Relaxed), "behind a poll");
                        mutator.blocking(|| ());
                        assert_eq!(has(), wanted.load(Ordering::Relaxed), "behind a region");
                    }
                });
            }
            testkit::until("all run", || ready.load(Ordering::Relaxed) == MUTATORS);
            for _ in 0..budget(500) {
                let stopped = world.stop_from_outside("change").expect("no deadline");
                let next = wanted.load(Ordering::Relaxed) + 1;
                wanted.store(next, Ordering::Relaxed);
                for mutator in stopped.mutators() {
                    let take_over = move |own: &Processor<'_>| {
                        // SAFETY: each mutator has set this to what it keeps until it detaches.
                        let mine = unsafe { &*own.data().cast::<AtomicU32>() };
                        mine.store(next, Ordering::Relaxed);
                    };
                    world.handshake_async(mutator.id(), take_over).expect("it is there");
                }
                stopped.resume();
            }
            done.raise();
        });
    });
}

/// One that stops the world again and again has the turn back before another's thread is on a processor.
#[test]
fn a_requester_that_waits_is_not_passed_over() {
    in_child("turns::a_requester_that_waits_is_not_passed_over", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let (tid, turns) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                tid.store(gettid() as u32, Ordering::Relaxed);
                while !done.is_up() {
                    let stopped = world.stop_from_outside("waits").expect("no deadline");
                    turns.fetch_add(1, Ordering::SeqCst);
                    stopped.resume();
                }
            });
            testkit::until("it runs", || turns.load(Ordering::SeqCst) != 0);
            for _ in 0..budget(500) {
                let stopped = world.stop_from_outside("again").expect("no deadline");
                let before = turns.load(Ordering::SeqCst);
                // It sleeps nowhere else.
                testkit::until("waits", || is_asleep(tid.load(Ordering::Relaxed) as i32));
                stopped.resume();
                let stopped = world.stop_from_outside("again").expect("no deadline");
                assert_ne!(turns.load(Ordering::SeqCst), before, "passed over");
                stopped.resume();
            }
            done.raise();
        });
    });
}

/// A turn that is kept for a thread which waits no longer would be nobody's.
#[test]
fn stress_requesters_that_give_up_keep_no_turn() {
    in_child("turns::stress_requesters_that_give_up_keep_no_turn", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let (given_up, inside) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for at in 0..3 {
                let (world, done, given_up, inside) = (&world, &done, &given_up, &inside);
                scope.spawn(move || {
                    let mut micros = 0;
                    while !done.is_up() {
                        micros = (micros + 7 + at) % 300;
                        let timeout = Duration::from_micros(micros);
                        let options = StopOptions::new("hasty").timeout(timeout);
                        match world.stop_from_outside_with(options) {
                            Ok(stopped) => {
                                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "alone");
                                inside.fetch_sub(1, Ordering::SeqCst);
                                stopped.resume();
                            }
                            Err(StopError::Busy { .. }) => {
                                given_up.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            let requesters = [(); 2].map(|()| {
                scope.spawn(|| {
                    for _ in 0..budget(2000) {
                        let stopped = world.stop_from_outside("patient").expect("no deadline");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "alone");
                        inside.fetch_sub(1, Ordering::SeqCst);
                        stopped.resume();
                    }
                })
            });
            for requester in requesters {
                requester.join().expect("no panic");
            }
            // Some waits come to nothing sooner or later.
            eventually(|| given_up.load(Ordering::SeqCst) != 0);
            done.raise();
        });
    });
}
