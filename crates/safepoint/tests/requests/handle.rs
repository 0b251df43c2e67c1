//! A stop that is handed over: any thread ends it, and its requester is stopped like all others.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator, poll_until};
use safepoint::{Reason, StopError, StopHandle, StopOptions, World};
use testkit::{budget, forked, in_child, patience};

const SOON: Duration = Duration::from_secs(20);
const WHILE: Duration = Duration::from_millis(20);

/// The world's turn is taken.
fn assert_stopped(world: &World) {
    let options = StopOptions::new("probe").timeout(Duration::from_millis(1));
    let busy = world.stop_from_outside_with(options).map(drop);
    assert!(matches!(busy, Err(StopError::Busy { holder: None, .. })), "{busy:?}");
}

#[test]
fn a_stop_that_is_handed_over_holds_its_requester_too() {
    in_child("handle::a_stop_that_is_handed_over_holds_its_requester_too", SOON, || {
        let (world, done, goes_on) = (World::new(), Flag::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            let (send, receive) = mpsc::channel::<StopHandle>();
            let goes_on = &goes_on;
            mutator(scope, &world, "requester", move |mutator| {
                let stopped = mutator.stop_the_world(Reason::GC).expect("stops");
                stopped.hand_over(|stopped| send.send(stopped).expect("it is awaited"));
                goes_on.store(true, Ordering::SeqCst);
                mutator.poll();
            });
            let stopped = receive.recv().expect("handed over");
            // The one that stopped the other is stopped by now, or about to be.
            assert_eq!((stopped.stats().mutators, stopped.mutators().count()), (1, 2));
            thread::sleep(WHILE);
            assert!(!goes_on.load(Ordering::SeqCst), "the world is stopped");
            assert!(stopped.elapsed() >= WHILE);
            assert_stopped(&world);
            stopped.resume();
            testkit::until("it goes on", || goes_on.load(Ordering::SeqCst));
            done.raise();
        });
        world.stop_from_outside("next").expect("the turn is free").resume();
    });
}

/// A thread in a safe region: it may not leave that before the stop is over, and waits for no stop of its own.
#[test]
fn a_stop_from_a_region_is_handed_over() {
    in_child("handle::a_stop_from_a_region_is_handed_over", SOON, || {
        let world = World::new();
        let mut own = world.attach().expect("attaches");
        let (send, receive) = mpsc::channel::<StopHandle>();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let ended = &ended;
            scope.spawn(move || {
                let stopped = receive.recv().expect("handed over");
                thread::sleep(WHILE);
                ended.store(true, Ordering::SeqCst);
                stopped.resume();
            });
            own.blocking(|| {
                let stopped = world.stop_from_outside("gc").expect("safe");
                stopped.hand_over(|stopped| send.send(stopped).expect("it is awaited"));
            });
            assert!(ended.load(Ordering::SeqCst), "it left its region in the stopped world");
        });
        own.poll();
    });
}

/// The handle ends with the unwinding, and then the wait for it.
#[test]
fn a_panic_while_a_stop_is_handed_over_ends_it() {
    in_child("handle::a_panic_while_a_stop_is_handed_over_ends_it", SOON, || {
        let mut mutator = World::new().attach().expect("attaches");
        let stopped = mutator.stop_the_world("gc").expect("stops");
        let unwinds = AssertUnwindSafe(|| stopped.hand_over(|_stopped| panic!("in between")));
        panic::catch_unwind(unwinds).unwrap_err();
        mutator.poll();
        mutator.stop_the_world("next").expect("the turn is free").resume();
    });
}

#[test]
fn a_handle_is_of_no_use_in_the_child_of_a_fork() {
    in_child("handle::a_handle_is_of_no_use_in_the_child_of_a_fork", SOON, || {
        let world = World::new();
        let mut handle = None;
        world.stop_from_outside("gc").expect("stops").hand_over(|stopped| handle = Some(stopped));
        let status = forked(|| {
            let mut mutator = world.attach_within(patience(SOON)).expect("the world runs");
            assert_eq!(handle.as_ref().map(|stopped| stopped.mutators().count()), Some(0));
            mutator.stop_the_world("child").expect("the turn is free").resume();
            drop(mutator);
            // A word that says the wrong thing would have the world stopped from here on.
            drop(handle.take());
            let mut mutator = world.attach_within(patience(SOON)).expect("the world runs");
            mutator.stop_the_world("child").expect("the turn is free").resume();
        });
        assert_eq!(status, 0);
        assert_stopped(&world);
        drop(handle);
        world.stop_from_outside("next").expect("the turn is free").resume();
    });
}

/// As a collector has it: mutators that want a collection wait for the end of one, whoever asked for it.
#[test]
fn stress_mutators_wait_for_stops_that_are_handed_over() {
    in_child("handle::stress_mutators_wait_for_stops_that_are_handed_over", SOON, || {
        let (world, inside) = (World::new(), AtomicU32::new(0));
        let rounds = budget(2000);
        thread::scope(|scope| {
            let (ask, asked) = mpsc::sync_channel::<()>(1);
            let (hand, handed) = mpsc::channel::<StopHandle>();
            let (world, inside) = (&world, &inside);
            // One thread stops, another resumes.
            scope.spawn(move || {
                for () in asked {
                    let stopped = world.stop_from_outside("gc").expect("stops");
                    stopped.hand_over(|stopped| hand.send(stopped).expect("it is awaited"));
                }
            });
            scope.spawn(move || {
                for stopped in handed {
                    assert_eq!(inside.load(Ordering::SeqCst), 0, "no mutator runs");
                    stopped.resume();
                }
            });
            for _ in 0..3 {
                let ask = ask.clone();
                scope.spawn(move || {
                    let mut mutator = world.attach().expect("attaches");
                    for _ in 0..rounds {
                        let before = world.stops();
                        // Another's wish does as well.
                        let _full = ask.try_send(());
                        let limit = Some(patience(SOON));
                        assert!(mutator.blocking(|| world.wait_for_stop(before, limit)));
                        assert_ne!(world.stops(), before);
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            drop(ask);
        });
    });
}

/// One that polls counts the stops that it was in: it never finds fewer than that.
#[test]
fn a_mutator_that_has_seen_a_stop_end_finds_it_counted() {
    in_child("handle::a_mutator_that_has_seen_a_stop_end_finds_it_counted", SOON, || {
        let (world, written, done) = (World::new(), AtomicU32::new(0), Flag::default());
        thread::scope(|scope| {
            let (world, written, done) = (&world, &written, &done);
            let polls = mutator(scope, world, "polls", move |mutator| {
                let (mut seen, mut epoch) = (0, world.stops());
                let mut stops = 0;
                while !done.is_up() {
                    mutator.poll();
                    // What the last stop has written: it is over.
                    let now = written.load(Ordering::Relaxed);
                    if now != seen {
                        assert_ne!(world.stops(), epoch, "stop {now} is over");
                        (seen, epoch, stops) = (now, world.stops(), stops + 1);
                    }
                }
                stops
            });
            for stop in 1..=u32::try_from(budget(20_000)).expect("few") {
                let stopped = world.stop_from_outside("gc").expect("stops");
                written.store(stop, Ordering::Relaxed);
                stopped.resume();
            }
            done.raise();
            assert_ne!(polls.join().expect("no panic"), 0);
        });
    });
}

#[test]
fn a_wait_for_a_stop_ends_at_its_limit() {
    in_child("handle::a_wait_for_a_stop_ends_at_its_limit", SOON, || {
        let world = World::new();
        let before = world.stops();
        assert!(!world.wait_for_stop(before, Some(Duration::from_millis(5))));
        world.stop_from_outside("gc").expect("stops").resume();
        assert!(world.wait_for_stop(before, Some(Duration::ZERO)), "it has been");
    });
}

#[test]
fn a_wait_for_a_reason_outlasts_stops_for_others() {
    in_child("handle::a_wait_for_a_reason_outlasts_stops_for_others", SOON, || {
        let world = World::new();
        let stop = |reason| world.stop_from_outside(reason).expect("stops").resume();
        let (any, before) = (world.stops(), world.stops_for("gc"));
        stop("dump");
        assert!(world.wait_for_stop(any, None), "this was any");
        assert!(!world.wait_for_stop(before, Some(Duration::from_millis(5))));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| world.wait_for_stop(before, Some(SOON)));
            // Whether it waits already or not: none of these is for it.
            (0..100).for_each(|_| stop("dump"));
            assert!(!waiting.is_finished(), "ended by a stop for another reason");
            stop("gc");
            assert!(waiting.join().expect("no panic"), "it has been");
        });
    });
}

/// The last place of the counts is shared: its reasons are woken by each stop, not by none.
#[test]
fn a_wait_for_a_reason_that_is_not_counted_ends_with_any_stop() {
    in_child("handle::a_wait_for_a_reason_that_is_not_counted_ends_with_any_stop", SOON, || {
        let world = World::new();
        for number in 0..16 {
            let reason = &*Box::leak(format!("reason {number}").into_boxed_str());
            world.stop_from_outside(reason).expect("stops").resume();
        }
        let before = world.stops_for("reason 16");
        assert!(!world.wait_for_stop(before, Some(Duration::from_millis(5))));
        world.stop_from_outside("reason 16").expect("stops").resume();
        assert!(world.wait_for_stop(before, Some(Duration::ZERO)), "it has been");
    });
}
