//! What a handshake promises, on real threads.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, eventually, mutator, poll_until};
use safepoint::{
    Answer, HandshakeError, HandshakeOptions, Mutator, MutatorId, Processor, StragglerCause, World,
};
use testkit::{budget, in_child};

const SOON: Duration = Duration::from_secs(30);

fn patient() -> HandshakeOptions<'static> {
    HandshakeOptions::new()
}

fn at_once() -> HandshakeOptions<'static> {
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
        let leave = Flag::default();
        thread::scope(|scope| {
            away(scope, world, "target", &leave);
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
        let done = Flag::default();
        let (ran, tried) = (&Flag::default(), &Flag::default());
        thread::scope(|scope| {
            away(scope, world, "target", &done);
            let target = only(world);
            let stopped = world.stop_from_outside("test").unwrap();
            let asked = scope.spawn(move || {
                let late = world.handshake(target, at_once(), |_| ran.raise());
                assert!(matches!(late, Err(HandshakeError::TimedOut { .. })));
                tried.raise();
                world.handshake(target, patient(), |_| ran.raise())
            });
            tried.wait();
            thread::sleep(Duration::from_millis(20));
            assert!(!ran.is_up(), "in the stopped world");
            stopped.resume();
            asked.join().unwrap().unwrap();
            done.raise();
        });
    });
}

/// Some run, some are blocked, and some exit meanwhile.
#[test]
fn every_mutator_answers_or_is_gone() {
    in_child("handshake::every_mutator_answers_or_is_gone", SOON, || {
        let world = World::new();
        let (done, asked) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "runs", |m| poll_until(m, &done));
            away(scope, &world, "sleeps", &done);
            mutator(scope, &world, "exits", |_| asked.wait());
            let mut own = world.attach().unwrap();
            let ids = world.mutators();
            // Its operation runs first, when all have been asked.
            let answers = own.handshake_all(patient(), |p| {
                if p.index() == 3 {
                    asked.raise();
                }
                (p.index(), p.is_current())
            });
            let expected = [
                Answer::Done((0, true)),
                Answer::Done((1, false)),
                Answer::Gone,
                Answer::Done((3, true)),
            ];
            assert_eq!(answers.unwrap(), ids.into_iter().zip(expected).collect::<Vec<_>>());
            own.detach();
            let answers = world.handshake_all(patient(), |_| ()).unwrap();
            assert_eq!(answers.len(), 2);
            done.raise();
        });
    });
}

#[test]
fn a_deadline_names_those_of_all_that_did_not_answer() {
    in_child("handshake::a_deadline_names_those_of_all_that_did_not_answer", SOON, || {
        let world = World::new();
        let (done, ran) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |m| poll_until(m, &done));
            mutator(scope, &world, "deaf", |m| {
                done.wait();
                m.poll();
            });
            // Long enough for the other to poll on a busy machine.
            let options = patient().timeout(testkit::patience(Duration::from_millis(200)));
            match world.handshake_all(options, |_| ran.fetch_add(1, Ordering::Relaxed)) {
                Err(HandshakeError::TimedOut { answered, stragglers }) => {
                    assert_eq!(answered + stragglers.len(), 2, "{stragglers:?}");
                    assert_eq!(stragglers[stragglers.len() - 1].name.as_str(), "deaf");
                }
                other => panic!("{other:?}"),
            }
            done.raise();
        });
        assert!(ran.into_inner() <= 1, "the late one polled when its operation was withdrawn");
    });
}

#[test]
fn a_panic_of_one_comes_after_all_have_answered() {
    in_child("handshake::a_panic_of_one_comes_after_all_have_answered", SOON, || {
        let world = World::new();
        let (done, ran) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                mutator(scope, &world, "target", |m| poll_until(m, &done));
            }
            let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
                world.handshake_all(patient(), |p| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    if p.index() == 1 {
                        panic::panic_any(p.index());
                    }
                })
            }));
            assert_eq!(*unwound.unwrap_err().downcast::<usize>().unwrap(), 1);
            assert_eq!(ran.load(Ordering::Relaxed), 3);
            done.raise();
        });
    });
}

fn number_of_answers(answers: &[(MutatorId, Answer<()>)]) -> usize {
    answers.iter().filter(|(_, answer)| *answer == Answer::Done(())).count()
}

/// A thousand, most of them blocked, are asked by two threads at a time: a mutator, and one from outside.
#[test]
fn a_thousand_mutators_answer() {
    in_child("handshake::a_thousand_mutators_answer", Duration::from_mins(2), || {
        const MUTATORS: usize = 1000;
        let world = World::new();
        let (done, attached) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            for at in 0..MUTATORS {
                let (world, done, attached) = (&world, &done, &attached);
                let work = move || {
                    let mut own = world.attach().unwrap();
                    attached.fetch_add(1, Ordering::Relaxed);
                    if at % 50 == 0 {
                        poll_until(&mut own, done);
                    } else {
                        own.blocking(|| {
                            while !done.is_up() {
                                thread::sleep(Duration::from_millis(50));
                            }
                        });
                    }
                };
                let small = thread::Builder::new().stack_size(64 << 10);
                small.spawn_scoped(scope, work).expect("room for a thread");
            }
            eventually(|| attached.load(Ordering::Relaxed) as usize == MUTATORS);
            let beside = scope.spawn(|| {
                let mut own = world.attach().unwrap();
                for _ in 0..budget(5) {
                    let answers = own.handshake_all(patient(), |_| ()).unwrap();
                    assert!(number_of_answers(&answers) > MUTATORS);
                }
            });
            for _ in 0..budget(5) {
                let answers = world.handshake_all(patient(), |_| ()).unwrap();
                assert!(number_of_answers(&answers) >= MUTATORS);
            }
            beside.join().unwrap();
            done.raise();
        });
    });
}

#[test]
fn nobody_waits_for_an_asynchronous_operation() {
    in_child("handshake::nobody_waits_for_an_asynchronous_operation", SOON, || {
        let world = World::new();
        let mut own = world.attach().unwrap();
        let ran = Arc::new(Mutex::new(Vec::new()));
        for number in 0..3 {
            let ran = ran.clone();
            let operation = move |p: &Processor<'_>| {
                assert!(p.is_current());
                ran.lock().unwrap().push(number);
                assert!(number != 1, "it is caught");
            };
            world.handshake_async(own.id(), operation).unwrap();
        }
        assert!(ran.lock().unwrap().is_empty(), "it has not polled");
        own.blocking(|| assert_eq!(*ran.lock().unwrap(), [0, 1, 2], "on its way into the region"));
        // The mutator goes without a poll.
        let (id, held) = (own.id(), ran.clone());
        world.handshake_async(id, move |_| drop(held)).unwrap();
        own.detach();
        assert_eq!(Arc::strong_count(&ran), 1, "dropped");
        let gone = world.handshake_async(id, |_| ());
        assert!(matches!(gone, Err(HandshakeError::Gone { .. })));
    });
}

/// Also what is dropped unrun is dropped in a running world.
#[test]
fn an_asynchronous_operation_waits_for_the_end_of_a_stop() {
    in_child("handshake::an_asynchronous_operation_waits_for_the_end_of_a_stop", SOON, || {
        let (world, stopped, over) = (World::new(), Flag::default(), Arc::new(Flag::default()));
        thread_local! {
            static OWN: RefCell<Option<Mutator>> = const { RefCell::new(None) };
        }
        struct Looks(Arc<Flag>);
        impl Drop for Looks {
            fn drop(&mut self) {
                assert!(self.0.is_up(), "in the stopped world");
            }
        }
        let tid = AtomicI32::new(0);
        let (entered, panics) = (Flag::default(), Arc::new(AtomicU32::new(0)));
        let counted = panics.clone();
        panic::set_hook(Box::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        thread::scope(|scope| {
            let exits = scope.spawn(|| {
                OWN.set(Some(world.attach().unwrap()));
                tid.store(sigctx::sys::gettid(), Ordering::Relaxed);
                let raw = world.current().unwrap();
                // SAFETY: the mutator lives until the thread's end, and there is no heap.
                let _before = unsafe { raw.enter() };
                entered.raise();
                stopped.wait();
                // It ends in its region.
            });
            entered.wait();
            let stop = world.stop_from_outside("test").unwrap();
            let looks = Looks(over.clone());
            let id = only(&world);
            world.handshake_async(id, move |_| drop(looks)).unwrap();
            stopped.raise();
            testkit::until("it waits with what it has found, or has gone", || {
                let waits = || testkit::is_asleep(tid.load(Ordering::Relaxed));
                world.handshake_async(id, |_| ()).is_err() && (exits.is_finished() || waits())
            });
            over.raise();
            stop.resume();
            exits.join().unwrap();
        });
        assert_eq!(panics.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_callback_comes_when_all_have_polled() {
    in_child("handshake::a_callback_comes_when_all_have_polled", SOON, || {
        let world = World::new();
        let called = Arc::new(Flag::default());
        let callback = called.clone();
        world.when_all_have_polled(move || callback.raise());
        assert!(called.is_up(), "at once, where there is no mutator");
        // By a poll, at the edge of a region, or by its end.
        let ends: [fn(&mut Mutator); 3] = [Mutator::poll, |m| m.blocking(|| ()), |_| ()];
        for end in ends {
            let called = Arc::new(Flag::default());
            let (go, done) = (Flag::default(), Flag::default());
            let mut own = world.attach().unwrap();
            thread::scope(|scope| {
                away(scope, &world, "sleeps", &done);
                let other = mutator(scope, &world, "runs", |m| {
                    go.wait();
                    end(m);
                });
                let callback = called.clone();
                world.when_all_have_polled(move || callback.raise());
                own.poll();
                assert!(!called.is_up(), "the other has not");
                go.raise();
                other.join().unwrap();
                assert!(called.is_up());
                done.raise();
            });
        }
    });
}

/// What a table of readers is for: none finds what it reads freed.
#[test]
fn stress_no_reader_finds_what_was_freed() {
    in_child("handshake::stress_no_reader_finds_what_was_freed", Duration::from_mins(2), || {
        const FREED: u32 = 0;
        let world = World::new();
        // Places in an array stand for addresses: reading a freed one is no undefined behaviour.
        let cells: Vec<_> = (0..64).map(|_| Arc::new(AtomicU32::new(1))).collect();
        let (current, done) = (AtomicU32::new(0), Flag::default());
        thread::scope(|scope| {
            for blocks in [false, false, true] {
                let (cells, current, done) = (&cells, &current, &done);
                mutator(scope, &world, "reads", move |m| {
                    while !done.is_up() {
                        let cell = &cells[current.load(Ordering::Acquire) as usize];
                        for _ in 0..10 {
                            assert_ne!(cell.load(Ordering::Relaxed), FREED);
                        }
                        if blocks {
                            m.blocking(|| ());
                        } else {
                            m.poll();
                        }
                    }
                });
            }
            for round in 0..budget(20_000) {
                let (old, new) = (round as usize % cells.len(), (round as usize + 1) % cells.len());
                eventually(|| {
                    round as usize + 1 < cells.len() || cells[new].load(Ordering::Acquire) == FREED
                });
                cells[new].store(1, Ordering::Relaxed);
                current.store(new as u32, Ordering::Release);
                let cell = cells[old].clone();
                world.when_all_have_polled(move || cell.store(FREED, Ordering::Release));
            }
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
