//! Late mutators are nudged, and a nudge does no harm.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator};
use safepoint::{StopOptions, World};
use testkit::in_child;
use threadreg::{Nudge, NudgeCall, NudgeError, ThreadRef};

/// Hands the calls to whoever asks for them, as a handler would: each thread its own.
#[derive(Default)]
struct Mailbox {
    calls: Mutex<Vec<(ThreadRef, NudgeCall)>>,
    asked: AtomicU32,
}

impl Nudge for Mailbox {
    fn nudge(&self, thread: ThreadRef, call: NudgeCall) -> Result<(), NudgeError> {
        // Every other one gets lost.
        if self.asked.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            self.calls.lock().unwrap().push((thread, call));
        }
        Ok(())
    }
}

impl Mailbox {
    /// What the calling thread does at an asynchronous safe point.
    fn deliver(&self) {
        let me = threadreg::current();
        let call = {
            let mut calls = self.calls.lock().unwrap();
            calls.iter().position(|(t, _)| Some(*t) == me).map(|at| calls.swap_remove(at).1)
        };
        if let Some(call) = call {
            // SAFETY: made by the crate for this thread; outside any handler.
            unsafe { (call.function)(call.data) };
        }
    }
}

#[test]
fn a_mutator_that_never_polls_is_nudged_until_it_stops() {
    let name = "nudge::a_mutator_that_never_polls_is_nudged_until_it_stops";
    in_child(name, Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        world.set_nudge(mailbox.clone());
        let (done, steps) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| {
                while !done.is_up() {
                    steps.fetch_add(1, Ordering::Relaxed);
                    mailbox.deliver();
                }
            });
            for _ in 0..20 {
                // It has left the stop before.
                let before = steps.load(Ordering::Relaxed);
                eventually(|| steps.load(Ordering::Relaxed) != before);
                let options = StopOptions::new("test").nudge_after(Duration::from_micros(50));
                let stopped = world.stop_from_outside_with(options).unwrap();
                assert_eq!(stopped.stats().last.expect("it ran").name.as_str(), "deaf");
            }
            assert!(mailbox.asked.load(Ordering::Relaxed) >= 40, "a lost nudge is sent again");
            let mut own = world.attach().unwrap();
            assert_eq!(own.for_each_processor(|_| ()), 2);
            own.detach();
            done.raise();
        });
        assert_eq!(world.stop_from_outside("after").unwrap().stats().mutators, 0);
    });
}

#[test]
fn a_late_nudge_does_nothing() {
    in_child("nudge::a_late_nudge_does_nothing", Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        world.set_nudge(mailbox.clone());
        thread::scope(|scope| {
            mutator(scope, &world, "late", |m| {
                thread::sleep(Duration::from_millis(20));
                m.poll();
            });
            world.stop_from_outside("test").unwrap().resume();
        });
        drop(world);
        let calls = std::mem::take(&mut *mailbox.calls.lock().unwrap());
        assert!(!calls.is_empty(), "nobody was nudged");
        // The mutator and its world are gone, and this is another thread.
        for (_, call) in &calls {
            // SAFETY: late calls are part of the contract.
            unsafe { (call.function)(call.data) };
        }
        // The slot again, with another owner that is asked nothing.
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        for (_, call) in calls {
            // SAFETY: as above.
            unsafe { (call.function)(call.data) };
        }
        mutator.poll();
    });
}
