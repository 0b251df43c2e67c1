//! What a stop says of a mutator that nudges by signals did not bring to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use safepoint::{StopError, StopOptions, Straggler, StragglerCause, World};
use sigctx::sys::{self, MaskHow, SigSet};
use testkit::{in_child, patience};

const SOON: Duration = Duration::from_secs(20);

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin(started: &AtomicBool, done: &AtomicBool) {
    started.store(true, Ordering::Relaxed);
    while !done.load(Ordering::Relaxed) {}
}

#[inline(never)]
fn spin_in_foreign_code(started: &AtomicBool, done: &AtomicBool) {
    started.store(true, Ordering::Relaxed);
    while !done.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// Has a mutator do `work`, which says when it has started, and waits for a stop that tells a cause which `is_right`.
/// A busy machine may give the mutator no processor in one stop or another, which is told first.
fn assert_told(
    is_right: impl Fn(StragglerCause) -> bool,
    work: impl FnOnce(&AtomicBool, &AtomicBool) + Send + 'static,
) {
    assert_seen(|straggler| is_right(straggler.cause), work);
}

/// As [`assert_told`], of all that is known of the straggler.
fn assert_seen(
    is_right: impl Fn(&Straggler) -> bool,
    work: impl FnOnce(&AtomicBool, &AtomicBool) + Send + 'static,
) {
    preempt::install().expect("install");
    let world = World::new();
    // SAFETY: the mutators keep no references into a heap; there is none.
    unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
    let flags = Arc::<[AtomicBool; 2]>::default();
    let worker = threadreg::Builder::new().name("late").spawn({
        let (world, flags) = (world.clone(), flags.clone());
        move || {
            let _mutator = world.attach().expect("attach");
            work(&flags[0], &flags[1]);
        }
    });
    testkit::until("it has started", || flags[0].load(Ordering::Relaxed));
    testkit::until("the cause is told", || {
        let options = StopOptions::new("test").timeout(patience(Duration::from_millis(50)));
        let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
        println!("{error}");
        let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
        let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
        assert!(straggler.nudges > 0, "{straggler}");
        is_right(straggler)
    });
    flags[1].store(true, Ordering::Relaxed);
    worker.expect("spawn").join().expect("no panic");
}

/// Where a function is, for at least as long as it is small.
fn is_in(pc: usize, function: usize) -> bool {
    (function..function + 256).contains(&pc)
}

#[test]
fn foreign_code_is_told_with_its_place() {
    in_child("foreign_code_is_told_with_its_place", SOON, || {
        let function = spin_in_foreign_code as fn(&AtomicBool, &AtomicBool) as usize;
        let is_right =
            |cause| matches!(cause, StragglerCause::ForeignCode { pc } if is_in(pc, function));
        assert_told(is_right, spin_in_foreign_code);
    });
}

#[test]
fn code_that_forbids_interruption_is_told() {
    in_child("code_that_forbids_interruption_is_told", SOON, || {
        // SAFETY: the section holds one function of this file, which only looks at a flag.
        let code = unsafe { preempt::register_code(preempt::preemptible_section!()) };
        let is_right = |cause| matches!(cause, StragglerCause::Disabled { .. });
        assert_told(is_right, |started, done| {
            let _disabled = preempt::disable();
            spin(started, done);
        });
        drop(code.expect("registered once"));
    });
}

#[test]
fn a_blocked_signal_is_told() {
    in_child("a_blocked_signal_is_told", SOON, || {
        if !testkit::proc_shows_mask(libc::SIGURG) {
            return testkit::skip("/proc shows the signals of the emulator's host");
        }
        assert_told(
            |cause| cause == StragglerCause::SignalBlocked,
            |started, done| {
                sys::sigprocmask(MaskHow::Block, &SigSet::of(libc::SIGURG));
                spin_in_foreign_code(started, done);
            },
        );
    });
}

extern "C" fn another(_signal: libc::c_int) {}

/// As a library does that does not chain. Ours is put on top again a few times only.
#[test]
fn a_handler_over_the_nudges_is_told() {
    in_child("a_handler_over_the_nudges_is_told", SOON, || {
        let handler = another as extern "C" fn(libc::c_int) as libc::sighandler_t;
        let is_right = |cause| cause == StragglerCause::Covered { by: handler };
        assert_told(is_right, move |started, done| {
            #[expect(clippy::disallowed_methods, reason = "a library that knows nothing of chains")]
            let install = || {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: a handler that does nothing.
                    unsafe { libc::signal(libc::SIGURG, handler) };
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(install);
                spin_in_foreign_code(started, done);
            });
        });
    });
}

/// Kept in the function's frame, aligned to more than the stack is: the function then keeps a frame pointer, in any build.
#[repr(align(64))]
struct Aligned([AtomicBool; 64]);

#[inline(never)]
fn inner_loop(started: &AtomicBool, done: &AtomicBool) {
    let own = Aligned([const { AtomicBool::new(false) }; 64]);
    let own = std::hint::black_box(&own);
    started.store(true, Ordering::Relaxed);
    while !done.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    std::hint::black_box(own.0[0].load(Ordering::Relaxed));
}

#[inline(never)]
fn outer(started: &AtomicBool, done: &AtomicBool) {
    inner_loop(started, done);
    // No tail call.
    std::hint::black_box(done);
}

#[test]
fn a_straggler_has_its_registers_and_callers() {
    in_child("a_straggler_has_its_registers_and_callers", SOON, || {
        let [inner, outer_at] =
            [inner_loop, outer].map(|f: fn(&AtomicBool, &AtomicBool)| f as usize);
        let is_right = |straggler: &Straggler| {
            let Some(registers) = straggler.registers() else { return false };
            let backtrace = straggler.backtrace();
            assert_eq!(backtrace[0], registers.pc);
            assert!(registers.sp.is_multiple_of(size_of::<usize>()));
            assert!(straggler.to_string().contains(&format!("sp {:#x}", registers.sp)));
            let called = backtrace.get(1).is_some_and(|&caller| is_in(caller, outer_at));
            is_in(registers.pc, inner) && (called || !sigctx::frames::FRAME_POINTERS)
        };
        assert_seen(is_right, outer);
    });
}
