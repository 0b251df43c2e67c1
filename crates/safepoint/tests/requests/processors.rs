//! Processors that are no thread's own: acquired, passed, in system calls, retaken; and visited once each, whoever has
//! them.

use std::collections::BTreeSet;
use std::mem::{self, ManuallyDrop};
use std::num::NonZero;
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, eventually};
use safepoint::{
    AcquireError, AttachError, MutatorState, ProcessorState, Processors, Reason, World,
    WorldOptions,
};
use testkit::{child, forked, in_child, is_asleep};

const SOON: Duration = Duration::from_secs(20);
const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn make<T: Send>(world: &World, number: usize, data: impl FnMut(usize) -> T) -> Processors<T> {
    let (number, mut data) = (NonZero::new(number).unwrap(), data);
    Processors::new(world, number, |id| data(id.index())).unwrap()
}

fn states<T>(processors: &Processors<T>) -> Vec<ProcessorState> {
    processors.states().into_iter().map(|(_, state)| state).collect()
}

fn is_in_call(state: ProcessorState) -> bool {
    matches!(state, ProcessorState::InSystemCall { .. })
}

/// On a thread of its own that acquires a processor and waits for the flag.
fn held_until<'scope, T: Send + Sync>(
    scope: &'scope thread::Scope<'scope, '_>,
    processors: &'scope Processors<T>,
    until: &'scope Flag,
) {
    let (tell, told) = mpsc::channel();
    scope.spawn(move || {
        let mut processor = processors.acquire(Some(SOON)).unwrap();
        tell.send(()).unwrap();
        while !until.is_up() {
            processor.poll();
            thread::yield_now();
        }
    });
    told.recv().unwrap();
}

/// On a thread of its own that is in a system call on a processor until the flag is up, and then waits for `timeout`.
fn in_call_until<'scope, T: Send + Sync>(
    scope: &'scope thread::Scope<'scope, '_>,
    processors: &'scope Processors<T>,
    until: &'scope Flag,
    timeout: Option<Duration>,
) -> thread::ScopedJoinHandle<'scope, Result<usize, AcquireError>> {
    let (tell, told) = mpsc::channel();
    let thread = scope.spawn(move || {
        let processor = processors.acquire(Some(SOON)).unwrap();
        let work = || {
            tell.send(()).unwrap();
            until.wait();
        };
        let ((), processor) = processor.system_call(timeout, work);
        processor.map(|processor| processor.processor_id().index())
    });
    told.recv().unwrap();
    thread
}

#[test]
fn every_processor_is_visited_and_stopped_whoever_has_it() {
    in_child("processors::every_processor_is_visited_and_stopped_whoever_has_it", SOON, || {
        for options in [WorldOptions::new(), WorldOptions::new().roots().fully_fenced()] {
            let world = World::with_options(options);
            let processors = make(&world, 5, |at| AtomicU32::new(10 * at as u32));
            assert_eq!((processors.len(), world.number_of_mutators()), (5, 5));
            let done = Flag::default();
            thread::scope(|scope| {
                let _done = RaiseOnDrop(&done);
                let passed = processors.acquire(AT_ONCE).unwrap().pass();
                held_until(scope, &processors, &done);
                in_call_until(scope, &processors, &done, None);
                let mut own = processors.acquire(AT_ONCE).unwrap();
                let seen = states(&processors);
                assert!(matches!(seen[0], ProcessorState::Passed), "{seen:?}");
                assert!(matches!(seen[1], ProcessorState::Held { .. }), "{seen:?}");
                assert!(is_in_call(seen[2]), "{seen:?}");
                assert!(matches!(seen[3], ProcessorState::Held { .. }), "{seen:?}");
                assert_eq!(seen[4], ProcessorState::Idle);
                let visited = own
                    .for_each_processor(|p| {
                        let (id, value) = processors.visited(p).expect("of the set");
                        let before = value.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(before as usize, 10 * id.index(), "once each");
                    })
                    .unwrap();
                assert_eq!(visited, 5);
                let ids: Vec<_> = processors.states().into_iter().map(|(id, _)| id).collect();
                let mut stopped = own.stop_the_world(Reason::GC).unwrap();
                let all: Vec<_> = processors
                    .iter(&stopped)
                    .map(|(id, value)| (id.index(), value.load(Ordering::Relaxed)))
                    .collect();
                assert_eq!(all, [(0, 1), (1, 11), (2, 21), (3, 31), (4, 41)]);
                for (id, value) in processors.iter_mut(&mut stopped) {
                    *value.get_mut() = id.index() as u32;
                }
                for id in ids {
                    let value = processors.get_stopped(&mut stopped, id).unwrap();
                    assert_eq!(*value.get_mut() as usize, id.index());
                }
                stopped.resume();
                assert_eq!(own.data().load(Ordering::Relaxed) as usize, own.processor_id().index());
                drop(passed);
                done.raise();
            });
            assert_eq!(states(&processors), [ProcessorState::Idle; 5]);
            drop(processors);
            assert_eq!(world.number_of_mutators(), 0);
        }
    });
}

/// What waits for a flag ends, also where the test fails.
struct RaiseOnDrop<'a>(&'a Flag);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}

#[test]
fn a_processor_is_passed_from_thread_to_thread() {
    in_child("processors::a_processor_is_passed_from_thread_to_thread", SOON, || {
        let world = World::new();
        let processors = make(&world, 1, |_| vec![1]);
        let mut processor = processors.acquire(AT_ONCE).unwrap();
        processor.data_mut().push(2);
        let passed = processor.pass();
        assert_eq!(states(&processors), [ProcessorState::Passed]);
        assert!(matches!(processors.acquire(AT_ONCE), Err(AcquireError::Busy { .. })), "not idle");
        assert_eq!(processors.retake(Duration::ZERO), 0, "in no system call");
        thread::scope(|scope| {
            let gets = scope.spawn(|| {
                let mut processor = passed.attach().unwrap();
                processor.data_mut().push(3);
                let visited = processor.for_each_processor(|p| assert!(p.is_current()));
                assert_eq!(visited.unwrap(), 1);
                processor.pass()
            });
            let passed = gets.join().unwrap();
            // One that nobody takes is given back.
            drop(passed);
        });
        let mut processor = processors.acquire(AT_ONCE).unwrap();
        assert_eq!(*processor.data_mut(), [1, 2, 3]);
        processor.release();
    });
}

/// The requester runs the closure for the processor on its way. The thread that gets it meanwhile waits, and does not
/// run it too.
#[test]
fn a_passed_processor_is_served_once_though_a_thread_attaches_it_meanwhile() {
    let name =
        "processors::a_passed_processor_is_served_once_though_a_thread_attaches_it_meanwhile";
    in_child(name, SOON, || {
        let processors = make(&World::new(), 2, |_| AtomicU32::new(0));
        let passed = processors.acquire(AT_ONCE).unwrap().pass();
        let on_its_way = passed.processor_id();
        let mut own = processors.acquire(AT_ONCE).unwrap();
        let (processors, begun) = (&processors, &Flag::default());
        thread::scope(|scope| {
            let _raise = RaiseOnDrop(begun);
            let (tell, told) = mpsc::channel();
            let gets = scope.spawn(move || {
                tell.send(sigctx::sys::gettid()).unwrap();
                begun.wait();
                let mut processor = passed.attach().unwrap();
                processor.poll();
                processor.data().load(Ordering::Relaxed)
            });
            let tid = told.recv().unwrap();
            let visited = own.for_each_processor(|p| {
                let (id, visits) = processors.visited(p).expect("of the set");
                visits.fetch_add(1, Ordering::Relaxed);
                if id == on_its_way {
                    begun.raise();
                    let at = on_its_way.index();
                    eventually(|| matches!(states(processors)[at], ProcessorState::Held { .. }));
                    eventually(|| is_asleep(tid));
                }
            });
            assert_eq!((visited.unwrap(), gets.join().unwrap()), (2, 1), "once each");
        });
    });
}

/// The thread that waits gets it while the call lasts. The other one comes back, and waits in its turn.
#[test]
fn a_processor_in_a_long_system_call_is_retaken() {
    in_child("processors::a_processor_in_a_long_system_call_is_retaken", SOON, || {
        let world = World::new();
        let processors = make(&world, 1, |_| 0_u32);
        let (back, done) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            let _raise = (RaiseOnDrop(&back), RaiseOnDrop(&done));
            let returns = in_call_until(scope, &processors, &back, Some(SOON));
            let hour = Duration::from_hours(1);
            assert_eq!(processors.retake(hour), 0, "it has not lasted that long");
            let after = Duration::from_millis(3);
            let waits = scope.spawn(|| {
                let mut processor = processors.acquire(Some(SOON)).unwrap();
                *processor.data_mut() += 1;
                done.wait();
                processor.poll();
            });
            eventually(|| processors.waiting() == 1);
            while processors.retake(after) == 0 {
                assert!(is_in_call(states(&processors)[0]));
            }
            assert_eq!(processors.waiting(), 0);
            eventually(|| matches!(states(&processors)[0], ProcessorState::Held { .. }));
            assert_eq!(processors.retake(Duration::ZERO), 0, "its holder runs");
            back.raise();
            eventually(|| processors.waiting() == 1);
            assert!(!returns.is_finished(), "it goes on without a processor");
            done.raise();
            waits.join().unwrap();
            assert_eq!(returns.join().unwrap().unwrap(), 0);
        });
        assert_eq!(*processors.acquire(AT_ONCE).unwrap().data(), 1);
    });
}

/// A call is retaken when it has lasted for as long as was said, and not before.
#[test]
fn a_system_call_is_not_retaken_before_its_time() {
    in_child("processors::a_system_call_is_not_retaken_before_its_time", SOON, || {
        let processors = make(&World::new(), 1, |_| ());
        for after in [1, 5, 20].map(Duration::from_millis) {
            let processor = processors.acquire(AT_ONCE).unwrap();
            // Before the call does.
            let begun = Instant::now();
            let ((), processor) = processor.system_call(AT_ONCE, || {
                while processors.retake(after) == 0 {}
                assert!(begun.elapsed() >= after, "after {:?}", begun.elapsed());
                assert_eq!(states(&processors), [ProcessorState::Idle]);
            });
            drop(processor.unwrap());
        }
    });
}

#[test]
fn a_thread_gets_its_own_processor_back_if_none_has_it() {
    in_child("processors::a_thread_gets_its_own_processor_back_if_none_has_it", SOON, || {
        let world = World::new();
        let processors = make(&world, 3, |at| at);
        let first = processors.acquire(AT_ONCE).unwrap().pass();
        let own = processors.acquire(AT_ONCE).unwrap();
        assert_eq!((*own.data(), own.processor_id().index()), (1, 1));
        drop(first);
        // In the call and back.
        let (result, own) = own.system_call(None, || {
            assert!(world.current().is_none() && is_in_call(states(&processors)[1]));
            7
        });
        let own = own.unwrap();
        assert_eq!((result, *own.data()), (7, 1));
        assert!(world.current().is_some());
        // Retaken, and idle: better than the first, which is idle too.
        let (retaken, own) = own.system_call(None, || processors.retake(Duration::ZERO));
        assert_eq!((retaken, *own.unwrap().data()), (1, 1));
        // Retaken by another thread, which has it.
        let own = processors.acquire(AT_ONCE).unwrap();
        assert_eq!(*own.data(), 0);
        let (passed, own) = own.system_call(None, || {
            assert_eq!(processors.retake(Duration::ZERO), 1);
            processors.acquire(AT_ONCE).unwrap().pass()
        });
        assert_eq!((passed.processor_id().index(), *own.unwrap().data()), (0, 1));
        drop(passed);
        // Retaken, and in a call of another thread's by now: that is not the call that is over.
        let own = processors.acquire(AT_ONCE).unwrap();
        assert_eq!(*own.data(), 0);
        let done = Flag::default();
        thread::scope(|scope| {
            let _raise = RaiseOnDrop(&done);
            let (other, own) = own.system_call(None, || {
                assert_eq!(processors.retake(Duration::ZERO), 1);
                in_call_until(scope, &processors, &done, AT_ONCE)
            });
            assert!(is_in_call(states(&processors)[0]), "{:?}", states(&processors));
            assert_eq!(*own.unwrap().data(), 1);
            done.raise();
            assert_eq!(other.join().unwrap().unwrap(), 0);
        });
    });
}

/// One that gives its processor back and wants one again does not overtake those that wait.
#[test]
fn threads_get_processors_in_the_order_in_which_they_came() {
    in_child("processors::threads_get_processors_in_the_order_in_which_they_came", SOON, || {
        let processors = make(&World::new(), 1, |_| ());
        let order = Mutex::new(Vec::new());
        let mut own = processors.acquire(AT_ONCE).unwrap();
        thread::scope(|scope| {
            for at in 0..3 {
                let (processors, order) = (&processors, &order);
                scope.spawn(move || {
                    let _processor = processors.acquire(Some(SOON)).unwrap();
                    order.lock().unwrap().push(at);
                });
                eventually(|| processors.waiting() == at + 1);
            }
            own.poll();
            drop(own);
            let _own = processors.acquire(Some(SOON)).unwrap();
            assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
        });
    });
}

#[test]
fn a_wait_that_times_out_says_which_thread_has_each() {
    in_child("processors::a_wait_that_times_out_says_which_thread_has_each", SOON, || {
        let processors = make(&World::new(), 4, |_| ());
        let done = Flag::default();
        thread::scope(|scope| {
            let _raise = RaiseOnDrop(&done);
            held_until(scope, &processors, &done);
            let passed = processors.acquire(AT_ONCE).unwrap().pass();
            in_call_until(scope, &processors, &done, None);
            let (tell, told) = mpsc::channel();
            let (processors, done) = (&processors, &done);
            scope.spawn(move || {
                let mut keeps = processors.acquire(AT_ONCE).unwrap();
                keeps.blocking(|| {
                    tell.send(()).unwrap();
                    done.wait();
                });
            });
            told.recv().unwrap();
            let begun = Instant::now();
            let time = Duration::from_millis(5);
            let error = processors.acquire(Some(time)).unwrap_err();
            assert!(begun.elapsed() >= time);
            let text = error.to_string();
            let AcquireError::Busy { tid, waited, holders } = error else { panic!("{text}") };
            assert!(tid == sigctx::sys::gettid() && waited >= time, "{text}");
            let [(_, held), (_, ProcessorState::Passed), (_, in_call), (_, away)] = holders[..]
            else {
                panic!("{text}");
            };
            let (
                ProcessorState::Held { tid: first, .. },
                ProcessorState::InSystemCall { tid: second, .. },
                ProcessorState::Held { tid: third, state: MutatorState::Safe },
            ) = (held, in_call, away)
            else {
                panic!("{text}");
            };
            let tids = BTreeSet::from([tid, first, second, third]);
            assert!(tids.len() == 4, "{text}");
            for part in [
                format!("processor 0 is held by thread {first}"),
                "processor 1 is passed".to_owned(),
                format!("processor 2 is in a system call of thread {second}"),
                format!("processor 3 is held by thread {third} in a safe region"),
            ] {
                assert!(text.contains(&part), "{text}");
            }
            // It waits no longer: what is given back rests.
            assert_eq!(processors.waiting(), 0);
            drop(passed);
            assert_eq!(states(processors)[1], ProcessorState::Idle);
        });
    });
}

#[test]
fn a_thread_that_cannot_be_a_mutator_gets_no_processor() {
    in_child("processors::a_thread_that_cannot_be_a_mutator_gets_no_processor", SOON, || {
        let world = World::new();
        let processors = make(&world, 2, |_| ());
        let refused = |error: AcquireError| {
            assert_eq!(processors.waiting(), 0);
            let AcquireError::Attach { error } = error else { panic!("{error}") };
            error
        };
        let error = || refused(processors.acquire(None).unwrap_err());
        let mut own = processors.acquire(None).unwrap();
        assert!(matches!(error(), AttachError::AlreadyAttached { .. }));
        own.for_each_processor(|_| assert!(matches!(error(), AttachError::InCallback { .. })))
            .unwrap();
        let passed = own.pass();
        let own = processors.acquire(None).unwrap();
        let (passed, error_) = passed.attach().unwrap_err();
        assert!(matches!(refused(error_), AttachError::AlreadyAttached { .. }));
        drop((passed, own));
        let stopped = world.stop_from_outside("test").unwrap();
        assert!(matches!(error(), AttachError::HoldsStop { .. }));
        stopped.resume();
        let frozen = threadreg::freeze_creation();
        assert!(matches!(error(), AttachError::HoldsFreeze { .. }));
        drop(frozen);
        // A call that makes the thread a mutator.
        let own = processors.acquire(None).unwrap();
        let (mutator, back) = own.system_call(None, || world.attach().unwrap());
        assert!(matches!(refused(back.unwrap_err()), AttachError::AlreadyAttached { .. }));
        drop(mutator);
        // One that panics.
        let own = processors.acquire(None).unwrap();
        let panics = || drop(own.system_call::<()>(None, || panic!("in a system call")));
        assert!(panic::catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(states(&processors), [ProcessorState::Idle; 2]);
        // And one whose processor is retaken before.
        let own = processors.acquire(None).unwrap();
        let panics = || {
            drop(own.system_call::<()>(None, || {
                assert_eq!(processors.retake(Duration::ZERO), 1);
                let _kept = ManuallyDrop::new(processors.acquire(None).unwrap().pass());
                panic!("in a system call")
            }));
        };
        assert!(panic::catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(states(&processors), [ProcessorState::Passed, ProcessorState::Idle]);
    });
}

/// A thread that acquires one in a stop has it, and does not run.
#[test]
fn no_processor_runs_in_a_stop() {
    in_child("processors::no_processor_runs_in_a_stop", SOON, || {
        let world = World::new();
        let processors = make(&world, 2, |_| ());
        let (back, runs) = (Flag::default(), AtomicU32::new(0));
        let (processors, runs) = (&processors, &runs);
        thread::scope(|scope| {
            let _raise = RaiseOnDrop(&back);
            let returns = in_call_until(scope, processors, &back, None);
            let stopped = world.stop_from_outside("test").unwrap();
            let (tell, told) = mpsc::channel();
            scope.spawn(move || {
                tell.send(sigctx::sys::gettid()).unwrap();
                let _processor = processors.acquire(None).unwrap();
                runs.fetch_add(1, Ordering::Relaxed);
            });
            let tid = told.recv().unwrap();
            let state = MutatorState::Safe;
            eventually(|| states(processors)[1] == ProcessorState::Held { tid, state });
            eventually(|| is_asleep(tid));
            back.raise();
            eventually(|| matches!(states(processors)[0], ProcessorState::Held { .. }));
            thread::sleep(Duration::from_millis(5));
            assert!(runs.load(Ordering::Relaxed) == 0 && !returns.is_finished(), "ran in a stop");
            stopped.resume();
            assert_eq!(returns.join().unwrap().unwrap(), 0);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    });
}

/// Those that other threads had, and those that were given to threads that waited, are gone.
#[test]
fn the_child_of_a_fork_has_the_processors_that_no_other_thread_had() {
    let name = "processors::the_child_of_a_fork_has_the_processors_that_no_other_thread_had";
    in_child(name, SOON, || {
        let world = World::new();
        let processors = make(&world, 4, |at| at);
        let done = Flag::default();
        thread::scope(|scope| {
            let _raise = RaiseOnDrop(&done);
            held_until(scope, &processors, &done);
            in_call_until(scope, &processors, &done, None);
            let mut own = Some(processors.acquire(AT_ONCE).unwrap());
            let status = forked(|| {
                let mut own = own.take().unwrap();
                assert_eq!((own.data(), world.number_of_mutators()), (&2, 3));
                assert_eq!(own.for_each_processor(|_| ()).unwrap(), 3);
                let mut stopped = own.stop_the_world("in the child").unwrap();
                assert_eq!(processors.iter_mut(&mut stopped).count(), 3);
                stopped.resume();
                drop(own);
                assert_eq!(processors.retake(Duration::ZERO), 1);
                // Three, and no fourth.
                let mut passed = Vec::new();
                for at in 1..4 {
                    let own = processors.acquire(AT_ONCE).unwrap();
                    assert_eq!(*own.data(), at);
                    passed.push(own.pass());
                }
                assert!(processors.acquire(AT_ONCE).is_err());
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    });
}

/// It could be one of another world, which stops for others.
#[test]
fn a_processor_that_comes_back_with_another_mutator_aborts() {
    let name = "processors::a_processor_that_comes_back_with_another_mutator_aborts";
    let ended = child(name, SOON, || {
        let (first, second) = (make(&World::new(), 1, |_| ()), make(&World::new(), 1, |_| ()));
        let (mut one, mut other) = (first.acquire(None).unwrap(), second.acquire(None).unwrap());
        mem::swap(&mut *one, &mut *other);
        assert!(panic::catch_unwind(AssertUnwindSafe(|| one.data())).is_err());
        drop(one);
        println!("given back");
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("with another's mutator"), "{}", ended.output);
}

/// What the processor has is that of the mutator before.
#[test]
fn a_processor_that_comes_back_with_the_next_mutator_aborts() {
    let name = "processors::a_processor_that_comes_back_with_the_next_mutator_aborts";
    let ended = child(name, SOON, || {
        let (world, elsewhere) = (World::new(), World::new());
        let processors = make(&world, 1, |_| ());
        let mut processor = processors.acquire(None).unwrap();
        let index = processor.index();
        drop(mem::replace(&mut *processor, elsewhere.attach().unwrap()));
        *processor = world.attach().unwrap();
        assert_eq!((processor.index(), processor.generation()), (index, 2), "the same slot");
        drop(processor);
        println!("given back");
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("with another's mutator"), "{}", ended.output);
}
