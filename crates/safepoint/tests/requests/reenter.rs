//! Regions that are left for a while, and mutators without a borrow.

use std::mem;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator, poll_until};
use safepoint::{
    Mutator, MutatorState, RawMutator, Region, StopError, StopOptions, World, WorldOptions,
};
use testkit::{budget, child, in_child, patience};

const SOON: Duration = Duration::from_secs(20);

fn stops_within(world: &World, timeout: Duration) -> bool {
    let options = StopOptions::new("test").timeout(timeout);
    match world.stop_from_outside_with(options).map(drop) {
        Ok(()) => true,
        Err(StopError::TimedOut { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn state(world: &World) -> MutatorState {
    world.current().expect("attached").state()
}

/// As deep as one likes: outside, in a region, in a callback of its code, in a region of that.
fn nested(region: &mut Region<'_>, depth: u32, check: &dyn Fn(bool)) {
    check(true);
    region.reenter(|mutator| {
        check(false);
        mutator.poll();
        if depth > 0 {
            mutator.blocking_with(|region| nested(region, depth - 1, check));
        }
        check(false);
    });
    check(true);
}

#[test]
fn a_stop_waits_for_a_mutator_that_came_back() {
    in_child("reenter::a_stop_waits_for_a_mutator_that_came_back", SOON, || {
        let world = World::new();
        let mut own = world.attach().expect("attaches");
        let looks = AtomicU32::new(0);
        own.blocking_with(|region| {
            nested(region, 2, &|is_safe| {
                // Asked from another thread: this one would wait for itself.
                let timeout = if is_safe { patience(SOON) } else { Duration::from_millis(5) };
                let stops = thread::scope(|scope| {
                    scope.spawn(|| stops_within(&world, timeout)).join().expect("no panic")
                });
                assert_eq!(stops, is_safe, "look {}", looks.load(Ordering::Relaxed));
                looks.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!((looks.into_inner(), state(&world)), (12, MutatorState::Running));
    });
}

#[test]
fn panics_leave_every_region_as_it_was() {
    in_child("reenter::panics_leave_every_region_as_it_was", SOON, || {
        let world = World::new();
        let mut own = world.attach().expect("attaches");
        let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
            own.blocking_with(|region| {
                let inner = AssertUnwindSafe(|| region.reenter(|_| panic!("in the callback")));
                panic::catch_unwind(inner).unwrap_err();
                assert_eq!(state(&world), MutatorState::Safe, "foreign code goes on");
                region.reenter(|_| assert_eq!(state(&world), MutatorState::Running));
                panic!("in the region");
            });
        }));
        assert!(unwound.is_err());
        assert_eq!(state(&world), MutatorState::Running);
        own.poll();
    });
}

/// Foreign code that stopped the world calls back: the thread would wait for itself.
#[test]
fn a_region_with_its_own_stop_is_not_left() {
    in_child("reenter::a_region_with_its_own_stop_is_not_left", SOON, || {
        let world = World::new();
        let mut own = world.attach().expect("attaches");
        own.blocking_with(|region| {
            let stopped = world.stop_from_outside("own").expect("safe");
            let back = AssertUnwindSafe(|| region.reenter(|_| ()));
            panic::catch_unwind(back).unwrap_err();
            assert_eq!(state(&world), MutatorState::Safe);
            stopped.resume();
            region.reenter(Mutator::poll);
        });
    });
}

/// Has a region's code come back, and puts another mutator in the place of the region's.
fn assert_aborts(name: &str, puts: impl FnOnce(&mut Mutator, &[World; 2], Mutator)) {
    let ended = child(name, SOON, || {
        // The one's stand would be read as the other's, which is elsewhere.
        let worlds = [World::new(), World::with_options(WorldOptions::new().roots())];
        let [mut own, other] = worlds.each_ref().map(|world| world.attach().unwrap());
        own.blocking_with(|region| {
            region.reenter(Mutator::poll);
            println!("came back");
            region.reenter(|own| puts(own, &worlds, other));
            println!("went on");
        });
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("came back"), "{}", ended.output);
    assert!(ended.output.contains("again with another mutator"), "{}", ended.output);
    assert!(!ended.output.contains("went on"), "{}", ended.output);
}

#[test]
fn a_region_that_is_entered_again_with_another_mutator_aborts() {
    let name = "reenter::a_region_that_is_entered_again_with_another_mutator_aborts";
    assert_aborts(name, |own, _, mut other| {
        mem::swap(own, &mut other);
        // So that neither of the two is gone.
        let _kept = mem::ManuallyDrop::new(other);
    });
}

/// In the same place of the same world.
#[test]
fn a_region_that_is_entered_again_with_the_next_mutator_aborts() {
    let name = "reenter::a_region_that_is_entered_again_with_the_next_mutator_aborts";
    assert_aborts(name, |own, worlds, other| {
        let index = own.index();
        drop(mem::replace(own, other));
        *own = worlds[0].attach().unwrap();
        assert_eq!((own.index(), own.generation()), (index, 2));
    });
}

/// As a face in C has it: enter and leave are two calls, by a pointer, and nest.
#[test]
fn a_raw_mutator_nests_and_restores() {
    in_child("reenter::a_raw_mutator_nests_and_restores", SOON, || {
        let world = World::new();
        assert!(world.current().is_none());
        let mutator = world.attach().expect("attaches");
        assert!(World::new().current().is_none(), "another world");
        let raw = world.current().expect("attached");
        assert_eq!(raw.poll_word(), mutator.as_raw().poll_word());
        let states = [MutatorState::Running, MutatorState::Safe];
        // SAFETY: the mutator lives, there is no heap, and each change is undone in turn.
        let undo = |raw: RawMutator, before| unsafe { raw.restore(before) };
        for enter_first in [true, false] {
            let change = |raw: RawMutator, enter: bool| {
                if enter {
                    // SAFETY: as above.
                    unsafe { raw.enter() }
                } else {
                    // SAFETY: as above.
                    unsafe { raw.leave() }
                }
            };
            let first = change(raw, enter_first);
            assert_eq!((first, raw.state()), (states[0], states[usize::from(enter_first)]));
            let again = change(raw, enter_first);
            assert_eq!(again, raw.state(), "nothing to do");
            let back = change(raw, !enter_first);
            assert_eq!((back, raw.state()), (again, states[usize::from(!enter_first)]));
            undo(raw, back);
            undo(raw, again);
            assert_eq!(raw.state(), again);
            undo(raw, first);
            assert_eq!(raw.state(), MutatorState::Running);
        }
        drop(mutator);
        assert!(world.current().is_none());
    });
}

/// Code that is emitted at run time looks at the word itself.
#[test]
fn the_poll_word_says_when_to_poll() {
    in_child("reenter::the_poll_word_says_when_to_poll", SOON, || {
        for world in [World::new(), World::fully_fenced()] {
            let asked = |raw: RawMutator| {
                // SAFETY: the word is there for as long as the mutator.
                let word = unsafe { &*raw.poll_word() };
                word.load(Ordering::Relaxed) & RawMutator::POLL_MASK
            };
            let unasked = world.attach().expect("attaches");
            assert_eq!(asked(unasked.as_raw()), 0, "nothing is pending");
            unasked.detach();
            let done = Flag::default();
            thread::scope(|scope| {
                let polls = mutator(scope, &world, "emitted", |mutator| {
                    let raw = mutator.as_raw();
                    let mut polls = 0;
                    while !done.is_up() {
                        if asked(raw) != 0 {
                            // SAFETY: the mutator lives, and there is no heap.
                            unsafe { raw.poll() };
                            polls += 1;
                        }
                    }
                    polls
                });
                let stops = budget(1000);
                for _ in 0..stops {
                    world.stop_from_outside("test").expect("it polls").resume();
                }
                done.raise();
                let polls: u64 = polls.join().expect("no panic");
                assert!((1..=stops).contains(&polls), "{polls}");
            });
        }
    });
}

#[test]
fn a_raw_mutator_that_leaves_its_own_stop_aborts() {
    let name = "reenter::a_raw_mutator_that_leaves_its_own_stop_aborts";
    let ended = child(name, SOON, || {
        let world = World::new();
        let mut mutator = world.attach().expect("attaches");
        let raw = mutator.as_raw();
        let stopped = mutator.stop_the_world("own").expect("stops");
        // SAFETY: the mutator lives, and there is no heap.
        let _left = unsafe { raw.leave() };
        println!("runs in the stopped world");
        drop(stopped);
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("leaves its safe region"), "{}", ended.output);
}

#[test]
fn data_is_found_in_stops_and_visits_and_on_the_thread() {
    in_child("reenter::data_is_found_in_stops_and_visits_and_on_the_thread", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let values = [1_u32, 2];
        thread::scope(|scope| {
            for value in &values {
                let world = &world;
                let done = &done;
                mutator(scope, world, "data", move |mutator| {
                    assert!(mutator.as_raw().data().is_null());
                    mutator.set_data(std::ptr::from_ref(value).cast_mut().cast());
                    let found = world.current().expect("attached").data().cast::<u32>();
                    // SAFETY: set above, and never written.
                    assert_eq!(unsafe { *found }, *value);
                    poll_until(mutator, done);
                });
            }
            let read = |data: *mut ()| {
                // SAFETY: null, or one of `values`.
                unsafe { data.cast::<u32>().as_ref() }.copied()
            };
            // Each was attached, and may not have come to set it.
            testkit::until("both have set it", || {
                let stopped = world.stop_from_outside("look").expect("they poll");
                let mut found: Vec<_> =
                    stopped.mutators().filter_map(|mutator| read(mutator.data())).collect();
                found.sort_unstable();
                found == values
            });
            assert_eq!(world.number_of_mutators(), 2);
            let mut own = world.attach().expect("attaches");
            assert_eq!((own.index(), world.number_of_mutators()), (2, 3));
            let sum = AtomicU32::new(0);
            own.for_each_processor(|processor| {
                sum.fetch_add(read(processor.data()).unwrap_or(0), Ordering::Relaxed);
            })
            .expect("they poll");
            assert_eq!(sum.into_inner(), 3);
            done.raise();
        });
        // The places are used again.
        let next = [(), ()].map(|()| {
            let world = world.clone();
            thread::spawn(move || world.attach().expect("attaches").as_raw().data().is_null())
        });
        assert!(next.into_iter().all(|next| next.join().expect("no panic")));
    });
}

/// Stops beside mutators that come and go, in and out of regions.
#[test]
fn stress_no_mutator_runs_in_a_stop_however_deep_it_is() {
    in_child("reenter::stress_no_mutator_runs_in_a_stop_however_deep_it_is", SOON, || {
        let (world, running, done) = (World::new(), AtomicU32::new(0), Flag::default());
        thread::scope(|scope| {
            for _ in 0..2 {
                mutator(scope, &world, "nests", |mutator| {
                    let runs = |mutator: &mut Mutator| {
                        running.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        running.fetch_sub(1, Ordering::SeqCst);
                        mutator.poll();
                    };
                    while !done.is_up() {
                        mutator.blocking_with(|region| {
                            region.reenter(|mutator| {
                                runs(mutator);
                                mutator.blocking_with(|region| region.reenter(runs));
                                runs(mutator);
                            });
                        });
                    }
                });
            }
            for _ in 0..budget(20_000) {
                let stopped = world.stop_from_outside("test").expect("stops");
                assert_eq!(running.load(Ordering::SeqCst), 0);
                stopped.resume();
            }
            done.raise();
        });
    });
}
