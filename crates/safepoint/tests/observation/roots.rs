//! What a conservative scanner finds of mutators that stand still.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator, poll_until};
use safepoint::{
    Hooks, Mutator, MutatorState, Parked, Place, Reason, RootKind, RootsError, StopHandle, World,
    WorldOptions,
};
use sigctx::spill::with_marks;
use testkit::{child, in_child};

const SOON: Duration = Duration::from_secs(20);

fn with_roots() -> World {
    World::with_options(WorldOptions::new().roots())
}

/// All that a scanner reads.
fn scan(parked: &Parked<'_>) -> HashSet<usize> {
    // SAFETY: the mutators of these tests are on their threads' own stacks.
    parked.roots().flat_map(|range| unsafe { range.words() }).collect()
}

#[track_caller]
fn assert_found(parked: &Parked<'_>, marks: &[usize]) {
    let found = scan(parked);
    let lost = marks.iter().enumerate().filter(|(_, mark)| !found.contains(mark));
    let lost: Vec<_> = lost.map(|(n, _)| n).collect();
    assert_eq!(lost, [0; 0], "registers not found, of {}: {parked:?}", marks.len());
    assert!(parked.stack().contains(&parked.sp()));
}

/// Lets the mutator go on, also where the test fails.
struct Raises<'a>(&'a Flag);

impl Drop for Raises<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Has a mutator do `work` with a mark in each callee-saved register, stops the world when that has raised the flag
/// which it gets, and looks for the marks.
fn finds_marks(place: Place, work: impl Fn(&mut Mutator, &Flag, &Flag) + Send + Sync) {
    let (world, ready, done) = (with_roots(), Flag::default(), Flag::default());
    let marks = Mutex::new(&[][..]);
    // Where they are, without them.
    *marks.lock().unwrap() = with_marks(|| ());
    thread::scope(|scope| {
        mutator(scope, &world, "marked", |mutator| {
            with_marks(|| work(mutator, &ready, &done));
        });
        ready.wait();
        let _done = Raises(&done);
        for _ in 0..100 {
            let stopped = world.stop_from_outside("test").unwrap();
            for mutator in stopped.mutators() {
                let parked = mutator.parked().expect("the world knows roots");
                assert_eq!(parked.place(), place);
                assert_found(&parked, &marks.lock().unwrap());
            }
            stopped.resume();
        }
    });
}

#[test]
fn a_root_in_a_callee_saved_register_is_found_at_a_poll() {
    in_child("roots::a_root_in_a_callee_saved_register_is_found_at_a_poll", SOON, || {
        finds_marks(Place::Poll, |mutator, ready, done| {
            ready.raise();
            poll_until(mutator, done);
        });
    });
}

/// Uses the stack and the registers.
fn other_work(ready: &Flag, done: &Flag) {
    let numbers: Vec<usize> = (0..100).map(|n| n * n).collect();
    println!("{numbers:?}");
    ready.raise();
    while !done.is_up() {
        std::hint::black_box(format!("{numbers:?}"));
    }
}

#[test]
fn a_root_in_a_callee_saved_register_is_found_in_a_region() {
    in_child("roots::a_root_in_a_callee_saved_register_is_found_in_a_region", SOON, || {
        finds_marks(Place::Region, |mutator, ready, done| {
            mutator.blocking(|| other_work(ready, done));
        });
    });
}

/// What ran in between has stood still elsewhere.
#[test]
fn a_region_stands_where_it_did_when_its_code_comes_back() {
    in_child("roots::a_region_stands_where_it_did_when_its_code_comes_back", SOON, || {
        finds_marks(Place::Region, |mutator, ready, done| {
            let world = mutator.world();
            mutator.blocking_with(|region| {
                region.reenter(|mutator| {
                    mutator.blocking(|| world.stop_from_outside("inner").unwrap().resume());
                    mutator.for_each_processor(|_| ()).unwrap();
                });
                other_work(ready, done);
            });
        });
        finds_marks(Place::Region, |mutator, ready, done| {
            let raw = mutator.as_raw();
            let (world, other) = (mutator.world(), Flag::default());
            let region = || {
                // SAFETY: nothing here keeps a reference into the world.
                let inner = || unsafe { raw.blocking(|| drop(world.stop_from_outside("inner"))) };
                // SAFETY: as above.
                unsafe { raw.reenter(inner) };
                other.raise();
                other_work(ready, done);
            };
            // SAFETY: as above.
            unsafe { raw.blocking(region) };
            assert!(other.is_up());
        });
    });
}

#[test]
fn roots_of_a_mutator_that_hands_its_stop_over_are_found() {
    in_child("roots::roots_of_a_mutator_that_hands_its_stop_over_are_found", SOON, || {
        let (world, marks) = (with_roots(), with_marks(|| ()));
        let (send, receive) = mpsc::channel::<StopHandle>();
        thread::scope(|scope| {
            mutator(scope, &world, "marked", move |mutator| {
                let mutator = Cell::new(Some(mutator));
                with_marks(|| {
                    let stopped = mutator.take().unwrap().stop_the_world(Reason::GC).unwrap();
                    stopped.hand_over(|stopped| send.send(stopped).unwrap());
                });
            });
            let stopped = receive.recv().unwrap();
            let found: Vec<_> = stopped.mutators().collect();
            let [mutator] = &found[..] else { panic!("{found:?}") };
            // It may still be on its way to its wait, and stands there already.
            let parked = mutator.parked().unwrap();
            assert_eq!(parked.place(), Place::Request);
            assert_found(&parked, marks);
            stopped.resume();
        });
    });
}

#[test]
fn a_for_each_finds_the_roots_of_those_that_it_visits() {
    in_child("roots::a_for_each_finds_the_roots_of_those_that_it_visits", SOON, || {
        let (world, done) = (with_roots(), Flag::default());
        let (polling, away) = (Flag::default(), Flag::default());
        let mut own = world.attach().unwrap();
        let marks = with_marks(|| ());
        let polls = |mutator: &mut Mutator| {
            with_marks(|| {
                polling.raise();
                poll_until(mutator, &done);
            });
        };
        let is_away = |mutator: &mut Mutator| {
            with_marks(|| mutator.blocking(|| other_work(&away, &done)));
        };
        let visits = AtomicU32::new(0);
        thread::scope(|scope| {
            mutator(scope, &world, "polls", polls);
            mutator(scope, &world, "is away", is_away);
            polling.wait();
            away.wait();
            let of_others = |p: &safepoint::Processor<'_>| {
                let parked = p.parked().unwrap();
                if parked.place() != Place::Request {
                    assert_found(&parked, marks);
                    visits.fetch_add(1, Ordering::Relaxed);
                }
            };
            own.for_each_processor(|p| of_others(p)).unwrap();
            done.raise();
        });
        assert_eq!(visits.into_inner(), 2);
    });
}

/// What is known of a mutator in a region, with a stack of its own if there is one.
fn away(world: &World, stack: Option<Range<usize>>) -> Result<(), RootsError> {
    let (ready, done) = (Flag::default(), Flag::default());
    thread::scope(|scope| {
        mutator(scope, world, "away", |mutator| {
            if let Some(stack) = stack {
                mutator.set_stack(stack);
            }
            mutator.blocking(|| {
                ready.raise();
                done.wait();
            });
        });
        ready.wait();
        let stopped = world.stop_from_outside("test").unwrap();
        let known = stopped.mutators().next().unwrap().parked().map(drop);
        drop(stopped);
        done.raise();
        known
    })
}

#[test]
fn a_world_that_does_not_know_roots_says_so() {
    in_child("roots::a_world_that_does_not_know_roots_says_so", SOON, || {
        assert_eq!(away(&World::new(), None), Err(RootsError::NotAsked));
        assert_eq!(away(&with_roots(), None), Ok(()));
        let elsewhere = 4096..8192;
        let error = away(&with_roots(), Some(elsewhere.clone())).unwrap_err();
        assert!(matches!(error, RootsError::OffStack { stack, .. } if stack == elsewhere));
    });
}

/// Notes what it is told, with the state that the mutator has.
#[derive(Default)]
struct Notes {
    world: OnceLock<World>,
    told: Mutex<Vec<(bool, Place, MutatorState)>>,
}

impl Notes {
    fn note(&self, parks: bool, at: &Parked<'_>) {
        let state = self.world.get().unwrap().current().unwrap().state();
        self.told.lock().unwrap().push((parks, at.place(), state));
        assert!(at.roots().any(|range| range.kind() == RootKind::CalleeSaved));
    }
}

impl Hooks for Notes {
    fn parking(&self, at: &Parked<'_>) {
        self.note(true, at);
    }

    fn running(&self, at: &Parked<'_>) {
        self.note(false, at);
    }
}

#[test]
fn hooks_are_called_in_pairs_while_the_mutator_runs() {
    in_child("roots::hooks_are_called_in_pairs_while_the_mutator_runs", SOON, || {
        let notes = Arc::new(Notes::default());
        let world = World::with_options(WorldOptions::new().hooks(notes.clone()));
        notes.world.set(world.clone()).unwrap();
        let (running, safe) = (MutatorState::Running, MutatorState::Safe);
        let told_in = |place: Place, before: MutatorState, after: MutatorState| {
            let told = std::mem::take(&mut *notes.told.lock().unwrap());
            assert_eq!(told, [(true, place, before), (false, place, after)]);
        };
        let told = |place| told_in(place, running, running);
        let mut own = world.attach().unwrap();
        own.poll();
        assert!(notes.told.lock().unwrap().is_empty(), "nothing is asked");
        own.blocking(|| ());
        told(Place::Region);
        own.blocking_with(|_| ());
        told(Place::Region);
        // SAFETY: touches nothing.
        unsafe { own.as_raw().blocking(|| ()) };
        told(Place::Region);
        own.for_each_processor(|_| ()).unwrap();
        told(Place::Request);
        // Where it leaves its stop the next may find it.
        let stopped = own.stop_the_world("test").unwrap();
        told_in(Place::Request, running, safe);
        stopped.resume();
        told_in(Place::Request, safe, running);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            own.blocking(|| panic!("out of the region"));
        }));
        assert!(unwound.is_err());
        told(Place::Region);
        thread::scope(|scope| {
            let requester = scope.spawn(|| world.stop_from_outside("test").unwrap().resume());
            while notes.told.lock().unwrap().is_empty() {
                own.poll();
            }
            requester.join().unwrap();
        });
        told(Place::Poll);
    });
}

#[test]
fn a_hook_that_panics_aborts() {
    struct Panics;

    impl Hooks for Panics {
        fn parking(&self, _: &Parked<'_>) {
            panic!("out of the hook");
        }
    }
    let name = "roots::a_hook_that_panics_aborts";
    let ended = child(name, SOON, || {
        let world = World::with_options(WorldOptions::new().hooks(Arc::new(Panics)));
        world.attach().unwrap().blocking(|| ());
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
}

/// The function that enters returns, and with it goes what it has on the stack.
#[test]
fn a_raw_mutator_that_cannot_stand_aborts() {
    let name = "roots::a_raw_mutator_that_cannot_stand_aborts";
    let ended = child(name, SOON, || {
        let mutator = with_roots().attach().unwrap();
        // SAFETY: it does not come back.
        let _before = unsafe { mutator.as_raw().enter() };
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
}
