//! A thread is registered for as long as it has a mutator, whichever came first.

use std::num::NonZero;
use std::time::Duration;

use safepoint::{AcquireError, Processors, StopError, StopOptions, StragglerCause, World};
use testkit::{forked, in_child};

const SOON: Duration = Duration::from_secs(20);

fn is_registered() -> bool {
    threadreg::current().is_some()
}

/// The first one's guard has no say over the others.
#[test]
fn mutators_of_several_worlds_are_dropped_in_any_order() {
    let name = "registered::mutators_of_several_worlds_are_dropped_in_any_order";
    in_child(name, SOON, || {
        let worlds = [World::new(), World::new(), World::new()];
        for last in 0..3 {
            let mut mutators = worlds.each_ref().map(|world| Some(world.attach().unwrap()));
            let thread = mutators[last].as_ref().unwrap().thread();
            let mut ends = || {
                for gone in (0..3).filter(|at| *at != last) {
                    // One is dropped, the other goes away and comes back.
                    let safe = mutators[gone].take().unwrap().detach_from_thread();
                    let comes_back = gone == (last + 1) % 3;
                    drop(comes_back.then_some(safe).map(|safe| safe.attach().unwrap()));
                    assert!(is_registered() && thread.is_alive(), "{gone} is gone, {last} is not");
                }
                let mut mutator = mutators[last].take().unwrap();
                assert_eq!(threadreg::current(), Some(mutator.thread()));
                mutator.poll();
                drop(mutator);
                assert!(!is_registered());
            };
            assert_eq!(forked(&mut ends), 0, "in the child of fork");
            ends();
        }
    });
}

/// What the runtime has registered itself, for less time than its mutator lives.
#[test]
fn a_mutator_keeps_what_its_runtime_has_registered() {
    let name = "registered::a_mutator_keeps_what_its_runtime_has_registered";
    in_child(name, SOON, || {
        let registration = threadreg::attach().unwrap();
        let mutator = World::new().attach().unwrap();
        drop(registration);
        assert_eq!(threadreg::current(), Some(mutator.thread()));
        drop(mutator);
        assert!(!is_registered());
    });
}

/// The outer call fails, since the thread has a processor by then.
#[test]
fn a_processor_acquired_in_a_system_call_keeps_its_thread_registered() {
    let name = "registered::a_processor_acquired_in_a_system_call_keeps_its_thread_registered";
    in_child(name, SOON, || {
        let world = World::new();
        let processors = Processors::new(&world, NonZero::new(2).unwrap(), |_| ()).unwrap();
        assert!(!is_registered());
        let processor = processors.acquire(None).unwrap();
        let (inner, outer) = processor.system_call(None, || processors.acquire(None).unwrap());
        assert!(matches!(outer, Err(AcquireError::Attach { .. })));
        assert_eq!(threadreg::current(), Some(inner.thread()));
        // So it can be named.
        let late = StopOptions::new("late").timeout(Duration::from_millis(1));
        let stop = || world.stop_from_outside_with(late).map(drop);
        let error = std::thread::scope(|scope| scope.spawn(stop).join().unwrap()).unwrap_err();
        let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
        assert!(!matches!(stragglers[0].cause, StragglerCause::Ended), "{}", stragglers[0]);
        drop(inner);
        assert!(!is_registered());
    });
}
