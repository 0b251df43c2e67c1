//! Code without safe points.

use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{MutatorState, StopError, StopOptions, StragglerCause, World};
use testkit::{in_child, patience};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_mutator_that_is_late_in_code_without_safe_points_is_told_where_it_begins() {
    let name =
        "no_safepoint::a_mutator_that_is_late_in_code_without_safe_points_is_told_where_it_begins";
    in_child(name, SOON, || {
        let world = World::new();
        let (inside, done, line) = (Flag::default(), Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "atomic", |m| {
                line.store(line!() + 1, Ordering::Relaxed);
                let atomic = m.no_safepoint();
                inside.raise();
                // SAFETY: the mutator lives. Nested, and ended before the one that it is in.
                drop(unsafe { atomic.as_raw().no_safepoint() });
                done.wait();
                drop(atomic);
                m.poll();
            });
            inside.wait();
            let options = StopOptions::new("test").timeout(patience(Duration::from_millis(50)));
            let refused = world.stop_from_outside_with(options).map(drop);
            let Err(StopError::TimedOut { stragglers, .. }) = refused else {
                panic!("{refused:?}")
            };
            let cause = stragglers[0].cause;
            // It spins, and may find no processor.
            if cause != StragglerCause::Starved {
                let StragglerCause::NoSafepoint { at } = cause else { panic!("{cause}") };
                assert_eq!(
                    (at.file(), at.line()),
                    (file!(), line.load(Ordering::Relaxed)),
                    "{cause}"
                );
            }
            done.raise();
            world.stop_from_outside("test").unwrap().resume();
        });
    });
}

#[test]
fn a_raw_mutator_comes_to_no_safe_point_in_code_without() {
    let world = World::new();
    let mutator = world.attach().unwrap();
    let raw = mutator.as_raw();
    // SAFETY: the mutator lives, here and below.
    let outer = unsafe { raw.no_safepoint() };
    // SAFETY: as above.
    let inner = unsafe { raw.no_safepoint() };
    drop(outer);
    if cfg!(debug_assertions) {
        // SAFETY: as above.
        let poll = AssertUnwindSafe(|| unsafe { raw.poll() });
        panic::catch_unwind(poll).unwrap_err();
        // SAFETY: as above.
        let region = AssertUnwindSafe(|| unsafe { raw.enter() });
        panic::catch_unwind(region).unwrap_err();
        assert_eq!(raw.state(), MutatorState::Running);
    }
    drop(inner);
    // SAFETY: as above.
    unsafe { raw.poll() };
    // SAFETY: as above.
    let before = unsafe { raw.enter() };
    // SAFETY: as above.
    unsafe { raw.restore(before) };
}

/// Else its next thread could neither poll nor be nudged.
#[test]
fn a_leak_ends_with_its_mutator() {
    let world = World::new();
    let mut mutator = world.attach().unwrap();
    let _leaked = ManuallyDrop::new(mutator.no_safepoint());
    mutator.detach();
    let mut mutator = world.attach().unwrap();
    assert_eq!((mutator.index(), mutator.generation()), (0, 2), "the same slot");
    mutator.poll();
}

/// Nor when it goes on to another thread.
#[test]
fn a_leak_ends_where_its_mutator_leaves_its_thread() {
    let world = World::new();
    let mut mutator = world.attach().unwrap();
    let _leaked = ManuallyDrop::new(mutator.no_safepoint());
    let safe = mutator.detach_from_thread();
    let polls = thread::spawn(move || {
        let mut mutator = safe.attach().unwrap();
        // Else a release build's poll has nothing to do.
        mutator.world().handshake_async(mutator.id(), |_| ()).unwrap();
        mutator.poll();
        let at = mutator.no_safepoint();
        assert!(format!("{at:?}").contains(file!()), "{at:?}");
    });
    polls.join().unwrap();
}
