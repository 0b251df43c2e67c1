//! A mutator that goes from one thread to another.

use std::mem::ManuallyDrop;
use std::num::NonZero;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{
    AcquireError, AttachError, Place, Processors, StopError, StopOptions, World, WorldOptions,
};
use testkit::{forked, in_child};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_mutator_goes_from_thread_to_thread() {
    in_child("moved::a_mutator_goes_from_thread_to_thread", SOON, || {
        let with_roots = World::with_options(WorldOptions::new().roots());
        for (world, has_roots) in [(with_roots, true), (World::fully_fenced(), false)] {
            let data = ptr::from_ref(&SOON).cast_mut().cast();
            let mutator = world.attach().unwrap();
            mutator.set_data(data);
            let (index, generation) = (mutator.index(), mutator.generation());
            let safe = mutator.detach_from_thread();
            assert!(world.current().is_none());
            // This thread has none, and gets another.
            let mut own = world.attach().unwrap();
            assert_ne!(own.index(), index);
            let stopped = own.stop_the_world("test").unwrap();
            let between = stopped.mutators().next().expect("the other one");
            assert_eq!((between.index(), between.data()), (index, data));
            let place = between.parked().map(|parked| parked.place());
            assert_eq!(place.ok(), has_roots.then_some(Place::Outside), "it has no stack");
            stopped.resume();
            let visits = own.for_each_processor(|_| ());
            assert!(visits.is_ok());
            let (safe, error) = safe.attach().map(drop).unwrap_err();
            assert!(matches!(error, AttachError::AlreadyAttached { .. }), "{error}");
            let (runs, done) = (Flag::default(), Flag::default());
            thread::scope(|scope| {
                let (runs, done, world, data) = (&runs, &done, &world, data.addr());
                let gets = move || {
                    let mut mutator = safe.attach().unwrap();
                    assert_eq!((mutator.index(), mutator.generation()), (index, generation));
                    assert_eq!(world.current().expect("it is its own").data().addr(), data);
                    runs.raise();
                    while !done.is_up() {
                        mutator.poll();
                    }
                    mutator.detach_from_thread()
                };
                let gets = thread::Builder::new().name("gets it".into()).spawn_scoped(scope, gets);
                runs.wait();
                // It runs there, and is waited for.
                let stopped = own.stop_the_world("test").unwrap();
                assert_eq!(stopped.last_to_stop().expect("it ran").name.as_str(), "gets it");
                stopped.resume();
                done.raise();
                let safe = gets.unwrap().join().unwrap();
                assert_eq!((world.number_of_mutators(), safe.data().addr()), (2, data));
                drop(safe);
                assert_eq!(world.number_of_mutators(), 1);
            });
            own.poll();
        }
    });
}

/// And a thread that drops it in the stop does not wait.
#[test]
fn a_thread_that_gets_a_mutator_waits_for_the_end_of_a_stop() {
    in_child("moved::a_thread_that_gets_a_mutator_waits_for_the_end_of_a_stop", SOON, || {
        let (world, got) = (World::new(), Flag::default());
        let safe = world.attach().unwrap().detach_from_thread();
        let dropped = world.attach().unwrap().detach_from_thread();
        let stopped = world.stop_from_outside("test").unwrap();
        assert_eq!((stopped.stats().mutators, stopped.stats().running), (2, 0));
        thread::scope(|scope| {
            let gets = scope.spawn(|| {
                let mutator = safe.attach().unwrap();
                got.raise();
                mutator.detach();
            });
            scope.spawn(|| drop(dropped)).join().unwrap();
            thread::sleep(Duration::from_millis(5));
            assert!(!got.is_up(), "it ran in a stop");
            stopped.resume();
            gets.join().unwrap();
        });
        assert_eq!(world.number_of_mutators(), 0);
    });
}

/// No thread that is gone had it.
#[test]
fn a_mutator_of_no_thread_is_there_in_the_child_of_a_fork() {
    in_child("moved::a_mutator_of_no_thread_is_there_in_the_child_of_a_fork", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            let safe = world.attach().unwrap().detach_from_thread();
            mutator(scope, &world, "is gone", |m| m.blocking(|| done.wait()));
            let mut safe = Some(safe);
            let status = forked(|| {
                assert_eq!(world.number_of_mutators(), 1);
                let mut mutator = safe.take().expect("it is here").attach().unwrap();
                mutator.stop_the_world("in the child").unwrap().resume();
                mutator.detach();
                assert_eq!(world.number_of_mutators(), 0);
            });
            assert_eq!(status, 0, "in the child of fork");
            done.raise();
        });
    });
}

/// The leak ends the borrow of the mutator, not the stop.
#[test]
fn a_mutator_whose_stop_was_leaked_waits_for_its_end_elsewhere() {
    let name = "moved::a_mutator_whose_stop_was_leaked_waits_for_its_end_elsewhere";
    in_child(name, SOON, || {
        const LIMIT: Duration = Duration::from_millis(10);
        let with_roots = World::with_options(WorldOptions::new().roots());
        for world in [with_roots, World::fully_fenced()] {
            let me = sigctx::sys::gettid();
            let is_stopped = |error: &AttachError| matches!(error, AttachError::Stopped { holder, .. } if *holder == Some(me));
            let mut mutator = world.attach().unwrap();
            let processors = Processors::new(&World::new(), NonZero::<usize>::MIN, |_| ()).unwrap();
            let _leaked = ManuallyDrop::new(mutator.stop_the_world("leaked").unwrap());
            let safe = mutator.detach_from_thread();
            let gets = || safe.attach_within(LIMIT).map(drop).unwrap_err();
            let (safe, error) = thread::scope(|scope| scope.spawn(gets).join().unwrap());
            assert!(is_stopped(&error), "{error}");
            drop(safe);

            let mut processor = processors.acquire(None).unwrap();
            let _leaked = ManuallyDrop::new(processor.stop_the_world("leaked").unwrap());
            drop(processor);
            let gets = || processors.acquire(Some(LIMIT)).map(drop).unwrap_err();
            let error = thread::scope(|scope| scope.spawn(gets).join().unwrap());
            let AcquireError::Attach { error } = error else { panic!("{error}") };
            assert!(is_stopped(&error), "{error}");
        }
    });
}

/// What a drop runs is the code of the thread that drops, not of the one that had the mutator.
#[test]
fn a_stop_that_waits_for_a_drop_names_the_thread_that_drops() {
    struct Waits<'a>(&'a Flag, &'a Flag);
    impl Drop for Waits<'_> {
        fn drop(&mut self) {
            self.0.raise();
            self.1.wait();
        }
    }
    in_child("moved::a_stop_that_waits_for_a_drop_names_the_thread_that_drops", SOON, || {
        static FLAGS: [(Flag, Flag); 2] = [const { (Flag::new(), Flag::new()) }; 2];
        for (is_mutator, (begun, goes_on)) in [false, true].into_iter().zip(&FLAGS) {
            let (world, had_it) = (World::new(), Flag::default());
            thread::scope(|scope| {
                let (tell, told) = std::sync::mpsc::channel();
                let (had_it, world) = (&had_it, &world);
                scope.spawn(move || {
                    let mutator = world.attach().unwrap();
                    let id = mutator.id();
                    tell.send((mutator.detach_from_thread(), id)).unwrap();
                    had_it.wait();
                });
                let (safe, id) = told.recv().unwrap();
                let waits = Waits(begun, goes_on);
                world.handshake_async(id, move |_| drop(waits)).unwrap();
                let drops = scope.spawn(move || {
                    let own = is_mutator.then(|| world.attach().unwrap());
                    let tid = sigctx::sys::gettid();
                    drop(safe);
                    drop(own);
                    tid
                });
                begun.wait();
                let soon = StopOptions::new("test").timeout(Duration::from_millis(1));
                let late = world.stop_from_outside_with(soon).map(drop).unwrap_err();
                goes_on.raise();
                had_it.raise();
                let named = match late {
                    StopError::Busy { holder, .. } => holder,
                    StopError::TimedOut { stragglers, .. } => {
                        assert_eq!(stragglers.len(), 1);
                        Some(stragglers[0].tid)
                    }
                    other => panic!("{other}"),
                };
                assert_eq!(named, Some(drops.join().unwrap()), "a mutator: {is_mutator}");
            });
        }
    });
}

/// The thread that drops it is not in the child, and waits for a closure that never ends there.
#[test]
fn a_mutator_that_is_being_dropped_is_not_there_in_the_child_of_a_fork() {
    let name = "moved::a_mutator_that_is_being_dropped_is_not_there_in_the_child_of_a_fork";
    in_child(name, SOON, || {
        let world = &World::new();
        let safe = world.attach().unwrap().detach_from_thread();
        let (inside, ends, tid) = (&Flag::default(), &Flag::default(), &AtomicI32::new(0));
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut own = world.attach().unwrap();
                own.for_each_processor(|processor| {
                    if processor.index() == 0 {
                        inside.raise();
                        ends.wait();
                    }
                })
                .unwrap();
            });
            inside.wait();
            scope.spawn(move || {
                tid.store(sigctx::sys::gettid(), Ordering::Release);
                drop(safe);
            });
            testkit::until("it waits for the closure", || {
                let tid = tid.load(Ordering::Acquire);
                tid != 0 && testkit::is_asleep(tid)
            });
            let status = forked(|| {
                assert_eq!(world.number_of_mutators(), 0);
                world.stop_from_outside("in the child").unwrap().resume();
            });
            assert_eq!(status, 0, "in the child of fork");
            ends.raise();
        });
    });
}
