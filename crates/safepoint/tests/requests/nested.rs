//! Stops within a stop: the world stays stopped, and the pause is one.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator, wait_until_asked};
use safepoint::{
    Mutator, Reason, RunOptions, StopHandle, StopOptions, StopOrJoined, Stopped, World,
};
use testkit::{forked, in_child};

const SOON: Duration = Duration::from_secs(20);
/// As long as a mutator that runs would have been seen to.
const WHILE: Duration = Duration::from_millis(20);

/// How many stops for the reason were pauses, and how many within another.
fn counted(world: &World, reason: Reason) -> (u64, u32) {
    let metrics = world.metrics();
    let of = metrics.stops.iter().find(|of| of.reason == reason);
    of.map_or((0, 0), |of| (of.stopped.count(), of.nested))
}

/// A mutator that counts its steps, and takes none while a stop is on.
fn steps<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    world: &World,
    steps: &'scope AtomicU32,
    done: &'scope Flag,
) {
    mutator(scope, world, "steps", |mutator| {
        while !done.is_up() {
            steps.fetch_add(1, Ordering::SeqCst);
            mutator.poll();
        }
    });
}

fn assert_no_step(steps: &AtomicU32, when: &str) {
    let before = steps.load(Ordering::SeqCst);
    thread::sleep(WHILE);
    assert_eq!(steps.load(Ordering::SeqCst), before, "{when}");
}

/// It has the world, and needs it stopped for something of its own.
fn dump(stopped: &mut Stopped<'_>) -> usize {
    let mut nested = stopped.again(Reason::DUMP);
    assert_eq!(nested.reason(), Reason::DUMP);
    let answers = nested.run_on_all(RunOptions::new(), |_| ()).expect("no deadline");
    let deeper = nested.again("trim");
    assert_eq!((deeper.reason(), deeper.mutators().count()), (Reason::new("trim"), answers.len()));
    answers.len()
}

#[test]
fn a_nested_stop_leaves_the_world_stopped() {
    in_child("nested::a_nested_stop_leaves_the_world_stopped", SOON, || {
        let (world, done, taken) = (World::new(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            steps(scope, &world, &taken, &done);
            let pauses = world.pauses(8);
            let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
            // One alone: two that each let the world run, and stop it, would not be seen.
            drop(stopped.again(Reason::CODE));
            assert_no_step(&taken, "a nested stop has ended, and the outer has not");
            for _ in 0..2 {
                assert_eq!(dump(&mut stopped), 1);
                assert_no_step(&taken, "a nested stop has ended, and the outer has not");
            }
            assert_eq!(stopped.reason(), Reason::GC);
            stopped.resume();
            let before = taken.load(Ordering::SeqCst);
            testkit::until("it runs", || taken.load(Ordering::SeqCst) > before);
            done.raise();
            assert_eq!(counted(&world, Reason::GC), (1, 0));
            assert_eq!(counted(&world, Reason::CODE), (0, 1));
            assert_eq!(counted(&world, Reason::DUMP), (0, 2));
            assert_eq!(counted(&world, Reason::new("trim")), (0, 2));
            let told: Vec<_> = pauses.try_iter().map(|pause| pause.reason).collect();
            assert_eq!(told, [Reason::GC], "one pause");
        });
    });
}

/// The reasons are served one after the other; the pause is that of the first.
#[test]
fn a_stop_goes_on_for_another_reason() {
    in_child("nested::a_stop_goes_on_for_another_reason", SOON, || {
        let (world, done, taken) = (World::new(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            steps(scope, &world, &taken, &done);
            let before = [Reason::GC, Reason::CODE].map(|reason| world.stops_for(reason));
            let mut stopped = world.stop_from_outside(Reason::GC).expect("stops");
            stopped.continue_as(Reason::CODE);
            assert_eq!(stopped.reason(), Reason::CODE);
            assert_no_step(&taken, "it is stopped");
            stopped.resume();
            assert!(before.into_iter().all(|before| world.wait_for_stop(before, Some(WHILE))));
            assert_eq!(counted(&world, Reason::GC), (1, 0));
            assert_eq!(counted(&world, Reason::CODE), (0, 1));
            done.raise();
        });
    });
}

/// Has a mutator ask for a collection while one that dumps has the turn, and stops it. Returns whether it has done the
/// work itself.
fn collects_itself(inside: impl FnOnce(Stopped<'_>)) -> bool {
    let world = World::new();
    thread::scope(|scope| {
        let collects = |mutator: &mut Mutator| {
            // By the stop that has the turn: the request comes before the work of that.
            wait_until_asked(mutator);
            let options = StopOptions::new(Reason::GC);
            matches!(mutator.stop_or_join(options).expect("no deadline"), StopOrJoined::Stopped(_))
        };
        let collects = mutator(scope, &world, "wants a collection", collects);
        let stopped = world.stop_from_outside(Reason::DUMP).expect("no deadline");
        inside(stopped);
        collects.join().expect("no panic")
    })
}

#[test]
fn a_nested_collection_serves_those_who_asked_for_one() {
    in_child("nested::a_nested_collection_serves_those_who_asked_for_one", SOON, || {
        assert!(collects_itself(|_| ()), "there was none");
        assert!(!collects_itself(|mut stopped| drop(stopped.again(Reason::GC))));
        assert!(!collects_itself(|mut stopped| stopped.continue_as(Reason::GC)));
        // It may not have come to its work.
        let panics = |mut stopped: Stopped<'_>| {
            let unwinds = AssertUnwindSafe(|| {
                let _nested = stopped.again(Reason::GC);
                panic::panic_any("in the collection");
            });
            panic::catch_unwind(unwinds).unwrap_err();
        };
        assert!(collects_itself(panics));
    });
}

#[test]
fn a_stop_that_was_handed_over_is_nested_by_its_holder() {
    in_child("nested::a_stop_that_was_handed_over_is_nested_by_its_holder", SOON, || {
        let (world, done, taken) = (World::new(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            steps(scope, &world, &taken, &done);
            let mut handle: Option<StopHandle> = None;
            let stopped = world.stop_from_outside(Reason::GC).expect("stops");
            stopped.hand_over(|stopped| handle = Some(stopped));
            let mut handle = handle.expect("handed over");
            let nested = handle.again(Reason::DUMP);
            let status = forked(|| {
                drop(nested);
                assert_eq!(counted(&world, Reason::DUMP), (0, 0), "it has no stop");
            });
            assert_eq!(status, 0);
            assert_eq!(counted(&world, Reason::DUMP), (0, 1), "it has ended here");
            assert_no_step(&taken, "a nested stop has ended, and the outer has not");
            done.raise();
            handle.continue_as(Reason::CODE);
            assert_eq!(handle.reason(), Reason::CODE);
            handle.resume();
            assert_eq!(counted(&world, Reason::CODE), (0, 1));
        });
    });
}

/// The outer stop is given away as a `&mut`: another one may be there in the end, and it be over.
#[test]
fn a_nested_stop_whose_outer_one_is_swapped_counts_as_none() {
    in_child("nested::a_nested_stop_whose_outer_one_is_swapped_counts_as_none", SOON, || {
        let (one, other) = (World::new(), World::new());
        let epochs = || [&one, &other].map(|world| world.stops_for(Reason::GC));
        let before = epochs();
        let mut outer = one.stop_from_outside(Reason::DUMP).expect("stops");
        let mut stranger = other.stop_from_outside(Reason::DUMP).expect("stops");
        let mut nested = outer.again(Reason::GC);
        mem::swap(&mut *nested, &mut stranger);
        drop(stranger);
        assert!(one.current_stop().is_none(), "it was the outer one");
        drop(nested);
        drop(outer);
        assert_eq!(epochs(), before, "nobody is served");
        assert_eq!([&one, &other].map(|world| counted(world, Reason::GC)), [(0, 0); 2]);

        // A later one of the same world.
        let [mut outer, mut later] = [&one, &other].map(|world| {
            let mut handle = None;
            let stopped = world.stop_from_outside(Reason::DUMP).expect("stops");
            stopped.hand_over(|stopped| handle = Some(stopped));
            handle.expect("handed over")
        });
        let mut nested = outer.again(Reason::GC);
        mem::swap(&mut *nested, &mut later);
        later.resume();
        let stopped = one.stop_from_outside(Reason::DUMP).expect("runs");
        stopped.hand_over(|stopped| *nested = stopped);
        drop(nested);
        outer.resume();
        assert_eq!(epochs(), before, "nobody is served");
        // Where it is what it was, it is one.
        let mut outer = one.stop_from_outside(Reason::DUMP).expect("stops");
        let mut stranger = other.stop_from_outside(Reason::DUMP).expect("stops");
        let mut nested = outer.again(Reason::GC);
        mem::swap(&mut *nested, &mut stranger);
        mem::swap(&mut *nested, &mut stranger);
        drop(nested);
        assert_ne!(epochs()[0], before[0]);
        assert_eq!(counted(&one, Reason::GC), (0, 1));
    });
}
