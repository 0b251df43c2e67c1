//! What a handshake promises, on real threads.

use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator, poll_until};
use safepoint::{HandshakeError, HandshakeOptions, MutatorId, Processor, StragglerCause, World};
use testkit::{budget, in_child};

const SOON: Duration = Duration::from_secs(30);

fn patient() -> HandshakeOptions {
    HandshakeOptions::new()
}

fn at_once() -> HandshakeOptions {
    patient().timeout(Duration::ZERO)
}

fn is_current(p: &Processor<'_>) -> bool {
    p.is_current()
}

/// The one mutator that there is.
fn only(world: &World) -> MutatorId {
    let [id] = world.mutators()[..] else { panic!("there are {:?}", world.mutators()) };
    id
}

#[test]
fn a_mutator_that_runs_answers_on_its_own_thread() {
    let name = "handshake::a_mutator_that_runs_answers_on_its_own_thread";
    in_child(name, SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "target", |m| poll_until(m, &done));
            let target = only(&world);
            let look = |p: &Processor<'_>| {
                let name = p.thread().name().as_str().to_owned();
                (p.id(), name, p.is_current())
            };
            let expected = (target, "target".to_owned(), true);
            assert_eq!(world.handshake(target, patient(), look).unwrap(), expected);
            let mut own = world.attach().unwrap();
            assert_eq!(own.handshake(target, patient(), look).unwrap(), expected);
            done.raise();
        });
    });
}

/// In a read that does not return. It does not leave its region while the operation runs.
#[test]
fn a_blocked_mutator_is_served_by_the_requester() {
    in_child("handshake::a_blocked_mutator_is_served_by_the_requester", SOON, || {
        let world = World::new();
        let (mut reader, mut writer) = io::pipe().unwrap();
        let (safe, left) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let (safe, left) = (&safe, &left);
            mutator(scope, &world, "target", move |m| {
                m.blocking(|| {
                    safe.raise();
                    reader.read_exact(&mut [0]).unwrap();
                });
                left.raise();
            });
            safe.wait();
            let target = only(&world);
            assert!(!world.handshake(target, patient(), is_current).unwrap());
            let mut own = world.attach().unwrap();
            own.handshake(target, patient(), |_| {
                writer.write_all(&[0]).unwrap();
                thread::sleep(Duration::from_millis(20));
                assert!(!left.is_up(), "it runs beside its operation");
            })
            .unwrap();
            left.wait();
        });
    });
}

#[test]
fn a_mutator_alone_runs_what_it_alone_may() {
    in_child("handshake::a_mutator_alone_runs_what_it_alone_may", SOON, || {
        let world = &World::new();
        let (safe, leave) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, world, "target", |m| {
                m.blocking(|| {
                    safe.raise();
                    leave.wait();
                });
            });
            safe.wait();
            let target = only(world);
            let soon = patient().self_only().timeout(Duration::from_millis(20));
            match world.handshake(target, soon, |_| panic!("not for it")) {
                Err(HandshakeError::TimedOut { answered: 0, stragglers }) => {
                    assert_eq!(stragglers[0].cause, StragglerCause::InSafeRegion);
                }
                other => panic!("{other:?}"),
            }
            let asked =
                scope.spawn(move || world.handshake(target, patient().self_only(), is_current));
            leave.raise();
            // It leaves its region, or is gone before it was asked.
            match asked.join().unwrap() {
                Ok(is_current) => assert!(is_current),
                Err(HandshakeError::Gone { id }) => assert_eq!(id, target),
                Err(error) => panic!("{error}"),
            }
        });
    });
}

#[test]
fn a_mutator_asks_itself() {
    let world = World::new();
    let mut own = world.attach().unwrap();
    let id = own.id();
    assert!(own.handshake(id, patient().self_only(), is_current).unwrap());
    own.blocking(|| {
        assert!(world.handshake(id, patient(), is_current).unwrap());
        let waits_for_itself = world.handshake(id, patient().self_only(), |_| ());
        assert!(matches!(waits_for_itself, Err(HandshakeError::OwnRegion { .. })));
    });
}

#[test]
fn what_would_wait_for_itself_is_refused() {
    let world = World::new();
    let mut own = world.attach().unwrap();
    let id = own.id();
    let runs = world.handshake(id, patient(), |_| ());
    assert!(matches!(runs, Err(HandshakeError::OwnMutatorRuns { .. })));
    let inner = own.handshake(id, patient(), |_| world.handshake(id, patient(), |_| ()));
    assert!(matches!(inner, Ok(Err(HandshakeError::InCallback))));
    own.blocking(|| {
        let _stopped = world.stop_from_outside("test").unwrap();
        let in_stop = world.handshake(id, patient(), |_| ());
        assert!(matches!(in_stop, Err(HandshakeError::HoldsStop { .. })));
    });
}

#[test]
fn a_mutator_that_exits_is_gone() {
    in_child("handshake::a_mutator_that_exits_is_gone", SOON, || {
        let world = &World::new();
        let exits = Flag::default();
        thread::scope(|scope| {
            let target = mutator(scope, world, "target", |_| exits.wait());
            let id = only(world);
            let asked =
                scope.spawn(move || world.handshake(id, patient(), |_| panic!("it polls never")));
            // The request is on its way, or comes too late: both have the same answer.
            exits.raise();
            let gone = asked.join().unwrap();
            assert!(matches!(gone, Err(HandshakeError::Gone { id: gone }) if gone == id));
            target.join().unwrap();
            let own = world.attach().unwrap();
            assert_eq!(own.id().index(), id.index(), "in the same place");
            assert_ne!(own.id(), id);
            let unborn = scope.spawn(move || world.handshake(id, patient(), |_| ()));
            assert!(matches!(unborn.join().unwrap(), Err(HandshakeError::Gone { .. })));
        });
    });
}

#[test]
fn a_deadline_names_the_mutator_that_did_not_answer() {
    in_child("handshake::a_deadline_names_the_mutator_that_did_not_answer", SOON, || {
        let world = World::new();
        let (done, ran) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |m| {
                done.wait();
                m.poll();
            });
            let target = only(&world);
            for options in [at_once(), patient().timeout(Duration::from_millis(30))] {
                let count = |_: &Processor<'_>| ran.fetch_add(1, Ordering::Relaxed);
                match world.handshake(target, options, count) {
                    Err(HandshakeError::TimedOut { answered: 0, stragglers }) => {
                        assert_eq!(stragglers.len(), 1);
                        assert_eq!(stragglers[0].name.as_str(), "deaf");
                    }
                    other => panic!("{other:?}"),
                }
            }
            done.raise();
        });
        assert_eq!(ran.into_inner(), 0, "it polled after both were withdrawn");
    });
}

#[test]
fn a_panic_is_the_requesters() {
    in_child("handshake::a_panic_is_the_requesters", SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "target", |m| poll_until(m, &done));
            let target = only(&world);
            let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
                world.handshake(target, patient(), |_| panic::panic_any(7))
            }));
            assert_eq!(*unwound.unwrap_err().downcast::<i32>().unwrap(), 7);
            assert_eq!(world.handshake(target, patient(), |_| 8).unwrap(), 8, "it did not unwind");
            done.raise();
        });
    });
}

/// No operation runs in the stopped world, also one that a thread outside of it runs for a blocked mutator.
#[test]
fn an_operation_waits_for_the_end_of_a_stop() {
    in_child("handshake::an_operation_waits_for_the_end_of_a_stop", SOON, || {
        let world = &World::new();
        let (safe, done, ran) = (Flag::default(), Flag::default(), &Flag::default());
        thread::scope(|scope| {
            mutator(scope, world, "target", |m| {
                m.blocking(|| {
                    safe.raise();
                    done.wait();
                });
            });
            safe.wait();
            let target = only(world);
            let stopped = world.stop_from_outside("test").unwrap();
            let asked = scope.spawn(move || {
                let late = world.handshake(target, at_once(), |_| ran.raise());
                assert!(matches!(late, Err(HandshakeError::TimedOut { .. })));
                world.handshake(target, patient(), |_| ran.raise())
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!ran.is_up(), "in the stopped world");
            stopped.resume();
            asked.join().unwrap().unwrap();
            done.raise();
        });
    });
}

/// Every mutator asks every other, all at once: most wait for one that waits.
#[test]
fn stress_mutators_ask_each_other() {
    in_child("handshake::stress_mutators_ask_each_other", Duration::from_mins(2), || {
        const MUTATORS: usize = 8;
        let world = World::new();
        let ids = Mutex::new(Vec::new());
        let left = AtomicU32::new(MUTATORS as u32);
        let answered: Vec<_> = (0..MUTATORS).map(|_| AtomicU32::new(0)).collect();
        let rounds = budget(400);
        thread::scope(|scope| {
            for me in 0..MUTATORS {
                let (world, ids, left, answered) = (&world, &ids, &left, &answered);
                scope.spawn(move || {
                    let mut own = world.attach().unwrap();
                    ids.lock().unwrap().push((me, own.id()));
                    own.blocking(|| eventually(|| ids.lock().unwrap().len() == MUTATORS));
                    let ids = ids.lock().unwrap().clone();
                    for round in 0..rounds as usize {
                        let (whom, id) = ids[(me + round) % MUTATORS];
                        let options =
                            if round % 3 == 0 { patient().self_only() } else { patient() };
                        own.handshake(id, options, |p| {
                            assert_eq!(p.id(), id);
                            // Nothing else runs for it: a plain read and write lose nothing.
                            let before = answered[whom].load(Ordering::Relaxed);
                            answered[whom].store(before + 1, Ordering::Relaxed);
                        })
                        .unwrap();
                    }
                    left.fetch_sub(1, Ordering::Release);
                    // The others still ask it.
                    while left.load(Ordering::Acquire) != 0 {
                        own.poll();
                        own.blocking(thread::yield_now);
                    }
                });
            }
        });
        let answered: u32 = answered.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        assert_eq!(answered as usize, rounds as usize * MUTATORS);
    });
}
