//! A stopped world has no thread wait for a processor, or for a mutator of no thread, past its timeout.

use std::num::NonZero;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use safepoint::{
    AcquireError, AttachError, MutatorState, ProcessorState, Processors, StopError, StopHandle,
    StopOptions, World, WorldOptions,
};
use testkit::in_child;

const SOON: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(10);
const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn worlds() -> [World; 2] {
    [World::with_options(WorldOptions::new().roots()), World::fully_fenced()]
}

fn one(world: &World) -> Processors<u32> {
    Processors::new(world, NonZero::<usize>::MIN, |_| 7).unwrap()
}

/// The thread is what it was before it waited.
fn assert_stopped(error: &AttachError, world: &World) {
    let AttachError::Stopped { tid, waited, .. } = error else { panic!("{error}") };
    assert_eq!((*tid, *waited >= LIMIT), (sigctx::sys::gettid(), true), "{error}");
    assert!(world.current().is_none() && threadreg::current().is_none());
}

fn assert_refused<T>(result: Result<T, AcquireError>, world: &World) {
    let Err(AcquireError::Attach { error }) = result.map(drop) else { panic!("it runs") };
    assert_stopped(&error, world);
}

fn assert_idle(processors: &Processors<u32>) {
    assert_eq!(processors.states()[0].1, ProcessorState::Idle);
    assert_eq!(processors.waiting(), 0);
}

/// The processor is what it was: a stop waits for it when a thread has it, and it has its own.
fn assert_good(processors: &Processors<u32>, world: &World) {
    let processor = processors.acquire(AT_ONCE).unwrap();
    assert_eq!((*processor.data(), processor.as_raw().state()), (7, MutatorState::Running));
    let late = || world.stop_from_outside_with(StopOptions::new("late").timeout(LIMIT)).map(drop);
    let late = thread::scope(|scope| scope.spawn(late).join().unwrap());
    assert!(matches!(late, Err(StopError::TimedOut { .. })), "{late:?}");
    drop(processor);
    world.stop_from_outside("test").unwrap().resume();
    assert_idle(processors);
}

#[test]
fn no_processor_is_waited_for_past_its_timeout_in_a_stop() {
    let name = "processors_bounds::no_processor_is_waited_for_past_its_timeout_in_a_stop";
    in_child(name, SOON, || {
        for world in worlds() {
            let processors = one(&world);
            let passed = one(&world).acquire(None).unwrap().pass();
            let stopped = world.stop_from_outside("test").unwrap();
            let waits = || {
                assert_refused(processors.acquire(Some(LIMIT)), &world);
                let (passed, error) = passed.attach_within(LIMIT).map(drop).unwrap_err();
                assert_refused(Err::<(), _>(error), &world);
                passed
            };
            let passed = thread::scope(|scope| scope.spawn(waits).join().unwrap());
            assert_idle(&processors);
            assert_eq!(stopped.mutators().count(), 2);
            stopped.resume();
            assert_good(&processors, &world);
            assert_eq!(*passed.attach_within(LIMIT).unwrap().data(), 7);
        }
    });
}

/// It waits for itself.
#[test]
fn a_thread_with_the_stop_in_its_hands_gets_no_processor_and_goes_on() {
    let name =
        "processors_bounds::a_thread_with_the_stop_in_its_hands_gets_no_processor_and_goes_on";
    in_child(name, SOON, || {
        for world in worlds() {
            let processors = one(&world);
            let mut handle: Option<StopHandle> = None;
            world.stop_from_outside("test").unwrap().hand_over(|stopped| handle = Some(stopped));
            assert_refused(processors.acquire(Some(LIMIT)), &world);
            assert_idle(&processors);
            handle.unwrap().resume();
            assert_good(&processors, &world);
        }
    });
}

#[test]
fn a_system_call_that_ends_in_a_stop_is_bounded() {
    let name = "processors_bounds::a_system_call_that_ends_in_a_stop_is_bounded";
    in_child(name, SOON, || {
        for (world, is_retaken) in
            worlds().into_iter().flat_map(|w| [(w.clone(), true), (w, false)])
        {
            let processors = one(&world);
            let (in_call, stops) = (Barrier::new(2), Barrier::new(2));
            thread::scope(|scope| {
                let calls = scope.spawn(|| {
                    let processor = processors.acquire(None).unwrap();
                    let ((), processor) = processor.system_call(Some(LIMIT), || {
                        in_call.wait();
                        stops.wait();
                    });
                    assert_refused(processor, &world);
                });
                in_call.wait();
                let stopped = world.stop_from_outside("test").unwrap();
                if is_retaken {
                    assert_eq!(processors.retake(Duration::ZERO), 1);
                }
                stops.wait();
                calls.join().unwrap();
                assert_idle(&processors);
                stopped.resume();
            });
            assert_good(&processors, &world);
        }
    });
}

#[test]
fn a_mutator_of_no_thread_comes_back_at_the_timeout() {
    let name = "processors_bounds::a_mutator_of_no_thread_comes_back_at_the_timeout";
    in_child(name, SOON, || {
        for world in worlds() {
            let mutator = world.attach().unwrap();
            let id = mutator.id();
            let safe = mutator.detach_from_thread();
            let stopped = world.stop_from_outside("test").unwrap();
            let gets = || {
                let (safe, error) = safe.attach_within(LIMIT).map(drop).unwrap_err();
                assert_stopped(&error, &world);
                safe
            };
            let safe = thread::scope(|scope| scope.spawn(gets).join().unwrap());
            assert_eq!(stopped.mutators().map(|mutator| mutator.index()).next(), Some(id.index()));
            stopped.resume();
            world.stop_from_outside("no thread's").unwrap().resume();
            let mut mutator = safe.attach_within(LIMIT).unwrap();
            assert_eq!((mutator.id(), mutator.as_raw().state()), (id, MutatorState::Running));
            mutator.poll();
            mutator.stop_the_world("its own").unwrap().resume();
        }
    });
}
