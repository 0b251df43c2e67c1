//! A mutator that is late is named, and so is what kept it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, Says, mutator};
use safepoint::{
    EachError, MutatorState, StopError, StopOptions, Straggler, StragglerCause, World,
};
use sigctx::sys;
use testkit::{budget, in_child, patience, until};
use threadreg::NudgeError;

const SOON: Duration = Duration::from_secs(20);

/// The one straggler of a stop of `world`, in which a mutator "deaf" never polls.
fn straggler(world: &World, deadline: Duration) -> Straggler {
    let done = Flag::default();
    thread::scope(|scope| {
        let deaf = mutator(scope, world, "deaf", |_| {
            done.wait();
            sys::gettid()
        });
        let options = StopOptions::new("test").timeout(patience(deadline));
        let stop = || {
            let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
            let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
            let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
            straggler.clone()
        };
        // A busy machine may give it no processor, which is told first.
        let mut straggler = stop();
        until("it has a processor", || {
            let starved = straggler.cause == StragglerCause::Starved;
            if starved {
                straggler = stop();
            }
            !starved
        });
        done.raise();
        assert_eq!(straggler.name.as_str(), "deaf");
        assert_eq!(straggler.tid, deaf.join().unwrap());
        straggler
    })
}

#[test]
fn a_straggler_says_what_came_of_its_nudges() {
    in_child("straggler::a_straggler_says_what_came_of_its_nudges", SOON, || {
        let world = World::new();
        let while_ = Duration::from_millis(50);
        assert_eq!(straggler(&world, while_).cause, StragglerCause::NoNudge);
        for says in [Ok(()), Err(NudgeError::NotInstalled), Err(NudgeError::QueueFull)] {
            let nudge = Arc::new(Says(says, AtomicU32::new(0)));
            // SAFETY: it makes no calls.
            unsafe { world.set_nudge(nudge.clone()) };
            let straggler = straggler(&world, while_);
            let times = nudge.1.load(Ordering::Relaxed);
            assert!((1..=times).contains(&straggler.nudges), "{straggler}");
            match says {
                Ok(()) => assert_eq!(straggler.cause, StragglerCause::NotHandled),
                Err(error) => {
                    assert_eq!(straggler.cause, StragglerCause::NudgeFailed(error), "{straggler}");
                }
            }
        }
    });
}

#[test]
fn a_leaked_mutator_is_named_though_its_thread_is_gone() {
    in_child("straggler::a_leaked_mutator_is_named_though_its_thread_is_gone", SOON, || {
        let world = World::new();
        let leaker = || {
            let _leaked = std::mem::ManuallyDrop::new(world.attach().unwrap());
            sys::gettid()
        };
        let tid = thread::scope(|scope| {
            let leaker = thread::Builder::new().name("leaker".into()).spawn_scoped(scope, leaker);
            leaker.unwrap().join().unwrap()
        });
        // std's join does not wait for the kernel's thread to be gone.
        testkit::until("the thread is gone", || sys::tgkill(sys::getpid(), tid, 0).is_err());
        let options = StopOptions::new("test").timeout(Duration::from_millis(5));
        let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
        let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
        let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
        assert_eq!((straggler.tid, straggler.name.as_str()), (tid, "leaker"));
        assert_eq!(straggler.cause, StragglerCause::Ended);
    });
}

/// The thread would wait for itself, or until its deadline. It is told at once.
#[test]
fn a_thread_that_holds_a_mutators_task_is_refused() {
    in_child("straggler::a_thread_that_holds_a_mutators_task_is_refused", SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let done = &done;
            mutator(scope, &world, "held", move |_| {
                tell.send(threadreg::current().unwrap()).unwrap();
                done.wait();
            });
            let held = told.recv().unwrap();
            held.set_suspended_by(Some(sys::gettid()));
            let refused = world.stop_from_outside("test").map(drop);
            let Err(StopError::HoldsMutators { stragglers, .. }) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(stragglers[0].cause, StragglerCause::Suspended { by: sys::gettid() });
            let mut own = world.attach().unwrap();
            let refused = own.for_each_processor(|_| ());
            assert!(matches!(refused, Err(EachError::HoldsMutators { visited: 1, .. })));
            drop(own);
            // A nudge reaches it, unless it says that it has no means to.
            // SAFETY: it makes no calls.
            unsafe { world.set_nudge(Arc::new(Says(Ok(()), AtomicU32::new(0)))) };
            let options = StopOptions::new("test").timeout(Duration::from_millis(20));
            let late = world.stop_from_outside_with(options).map(drop);
            assert!(matches!(late, Err(StopError::TimedOut { .. })), "{late:?}");
            let deaf = Says(Err(NudgeError::NotInstalled), AtomicU32::new(0));
            // SAFETY: as above.
            unsafe { world.set_nudge(Arc::new(deaf)) };
            let refused = world.stop_from_outside("test").map(drop);
            assert!(matches!(refused, Err(StopError::HoldsMutators { .. })), "{refused:?}");
            // Another holder may let go.
            held.set_suspended_by(Some(1));
            let late = world.stop_from_outside_with(options).map(drop);
            let Err(StopError::TimedOut { stragglers, .. }) = late else { panic!("{late:?}") };
            assert_eq!(stragglers[0].cause, StragglerCause::Suspended { by: 1 });
            done.raise();
        });
    });
}

/// Slots change hands while stops give up: a thread that is named had been asked, is named right, and
/// was running.
#[test]
fn stress_stragglers_are_named_right_while_slots_change_hands() {
    let name = "straggler::stress_stragglers_are_named_right_while_slots_change_hands";
    in_child(name, Duration::from_mins(2), || {
        let world = World::new();
        let done = Flag::default();
        // The id of each thread, by its name.
        let names: Mutex<HashMap<String, i32>> = Mutex::default();
        let mut late = 0;
        thread::scope(|scope| {
            for worker in 0..2_u64 {
                let (world, done, names) = (&world, &done, &names);
                scope.spawn(move || {
                    let mut rng = testkit::Rng::new(worker);
                    for serial in 0_u32.. {
                        if done.is_up() {
                            break;
                        }
                        let name = format!("{worker}-{serial}");
                        let spin = Duration::from_micros(1500 + rng.below(1000));
                        let one = || {
                            names.lock().unwrap().insert(name.clone(), sys::gettid());
                            let mutator = world.attach().unwrap();
                            let begin = Instant::now();
                            while begin.elapsed() < spin {
                                std::hint::spin_loop();
                            }
                            drop(mutator);
                        };
                        thread::scope(|inner| {
                            let thread = thread::Builder::new().name(name.clone());
                            thread.spawn_scoped(inner, one).unwrap().join().unwrap();
                        });
                    }
                });
            }
            let mut left = budget(3000);
            // On a slow machine few stops of a short run meet a mutator.
            while left > 0 || late == 0 {
                left = left.saturating_sub(1);
                let options = StopOptions::new("test").timeout(Duration::from_millis(1));
                match world.stop_from_outside_with(options).map(drop) {
                    Err(StopError::TimedOut { stragglers, .. }) => {
                        for straggler in stragglers {
                            late += 1;
                            assert_eq!(straggler.state, MutatorState::Running, "{straggler}");
                            let tid = names.lock().unwrap().get(straggler.name.as_str()).copied();
                            assert_eq!(Some(straggler.tid), tid, "{straggler}");
                        }
                    }
                    other => other.unwrap(),
                }
                thread::sleep(Duration::from_micros(300));
            }
            done.raise();
        });
        println!("{late} stragglers");
    });
}
