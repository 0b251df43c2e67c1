//! Late mutators are told of before the deadline, and the process dies in one of them if it is to.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, Says, eventually, mutator, poll_until};
use safepoint::{
    AtDeadline, EachOptions, HandshakeError, HandshakeOptions, StopOptions, Straggler,
    StragglerCause, World,
};
use sigctx::sys;
use testkit::{Ended, child, in_child, patience};

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(2);

/// What was told, and by which thread.
#[derive(Default)]
struct Told(Mutex<Vec<(Straggler, i32)>>);

impl Told {
    fn note(&self, straggler: &Straggler) {
        self.0.lock().unwrap().push((straggler.clone(), sys::gettid()));
    }

    fn any(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }

    /// It was told of "deaf" once, by this thread. On a busy machine the other is late, too.
    fn expect_deaf_once(self) {
        let mut told = self.0.into_inner().unwrap();
        told.retain(|(straggler, _)| straggler.name.as_str() != "polls");
        let [(straggler, by)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((straggler.name.as_str(), *by), ("deaf", sys::gettid()));
        assert!(straggler.waited >= SHORT, "{straggler}");
    }
}

/// A world with a mutator that polls and one, "deaf", that comes when it was looked at three times more after
/// `told`. Each look nudges it in vain.
fn beside_a_deaf_mutator(told: &Told, request: impl FnOnce(&World)) {
    let (world, done) = (World::new(), Flag::default());
    let nudge = Arc::new(Says(Ok(()), AtomicU32::new(0)));
    // SAFETY: it makes no calls.
    unsafe { world.set_nudge(nudge.clone()) };
    thread::scope(|scope| {
        mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
        mutator(scope, &world, "deaf", |_| {
            eventually(|| told.any());
            let looks = nudge.1.load(Ordering::Relaxed);
            eventually(|| nudge.1.load(Ordering::Relaxed) >= looks + 3);
        });
        request(&world);
        done.raise();
    });
}

#[test]
fn a_late_mutator_is_told_of_once_while_it_is_waited_for() {
    in_child("warn::a_late_mutator_is_told_of_once_while_it_is_waited_for", SOON, || {
        let told = Told::default();
        beside_a_deaf_mutator(&told, |world| {
            let note = |straggler: &_| told.note(straggler);
            let stopped =
                world.stop_from_outside_with(StopOptions::new("gc").on_late(SHORT, &note));
            stopped.expect("no timeout").resume();
            // The next request tells of its own late mutators: here of none.
            let unexpected = |_: &_| panic!("all have come");
            let options = StopOptions::new("gc").on_late(patience(SOON), &unexpected);
            world.stop_from_outside_with(options).expect("no timeout").resume();
        });
        told.expect_deaf_once();
    });
}

#[test]
fn a_for_each_tells_of_late_mutators_too() {
    in_child("warn::a_for_each_tells_of_late_mutators_too", SOON, || {
        let told = Told::default();
        beside_a_deaf_mutator(&told, |world| {
            let note = |straggler: &_| told.note(straggler);
            let options = EachOptions::new().on_late(SHORT, &note);
            let mut mutator = world.attach().expect("a thread of its own");
            mutator.for_each_processor_with(options, |_| ()).expect("no timeout");
        });
        told.expect_deaf_once();
    });
}

#[test]
fn a_warning_that_panics_does_not_end_the_stop() {
    in_child("warn::a_warning_that_panics_does_not_end_the_stop", SOON, || {
        let told = Told::default();
        beside_a_deaf_mutator(&told, |world| {
            let panics = |straggler: &Straggler| {
                told.note(straggler);
                panic!("in a warning");
            };
            let options = StopOptions::new("gc").on_late(SHORT, &panics);
            let stopped = world.stop_from_outside_with(options).expect("no timeout");
            assert!(stopped.stats().mutators >= 1);
        });
        told.expect_deaf_once();
    });
}

/// A stop that is to end in an abort, with a mutator "deaf" that does `first`, and then never polls.
fn abort_in_deaf(name: &str, first: fn()) -> Option<Ended> {
    child(name, SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| {
                first();
                println!("deaf is thread {}", sys::gettid());
                done.raise();
                loop {
                    std::hint::spin_loop();
                }
            });
            done.wait();
            let options = StopOptions::new("gc").timeout(SHORT).at_deadline(AtDeadline::Abort);
            let _never = world.stop_from_outside_with(options);
        });
    })
}

extern "C" fn say_where(_: libc::c_int) {
    let text = format!("died in thread {}", sys::gettid());
    // SAFETY: the bytes of the text. The handler interrupts a loop that allocates nothing.
    unsafe { libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: ends the process.
    unsafe { libc::_exit(3) };
}

#[test]
fn the_process_dies_in_the_thread_that_was_late() {
    let name = "warn::the_process_dies_in_the_thread_that_was_late";
    let handle = || {
        #[expect(clippy::disallowed_methods, reason = "plays a program's crash handler")]
        // SAFETY: a handler that may run in the loop that follows.
        unsafe {
            libc::signal(libc::SIGABRT, say_where as *const () as libc::sighandler_t)
        };
    };
    if let Some(Ended { status, output }) = abort_in_deaf(name, handle) {
        let tid = |before| number_after(&output, before);
        assert_eq!(tid("deaf is thread "), tid("died in thread "), "{output}");
        assert!(output.contains("did not stop for gc in time; late: thread"), "{output}");
        assert!(output.contains("deaf"), "{output}");
        assert_eq!(status.code(), Some(3), "{output}");
    }
}

/// It is in its region, where its thread has left it. What that does now is none of the request's.
#[test]
fn a_mutator_of_no_thread_is_not_its_last_threads_fault() {
    let name = "warn::a_mutator_of_no_thread_is_not_its_last_threads_fault";
    let ended = child(name, SOON, || {
        let world = World::new();
        let mutator = world.attach().expect("a thread of its own");
        let (id, _safe) = (mutator.id(), mutator.detach_from_thread());
        let soon = HandshakeOptions::new().self_only().timeout(SHORT);
        match world.handshake(id, soon, |_| ()) {
            Err(HandshakeError::TimedOut { stragglers, .. }) => {
                assert_eq!(stragglers[0].cause, StragglerCause::NoThread);
            }
            other => panic!("{other:?}"),
        }
        #[expect(clippy::disallowed_methods, reason = "plays a program's crash handler")]
        // SAFETY: a handler that may run where a thread aborts, or joins another.
        unsafe {
            libc::signal(libc::SIGABRT, say_where as *const () as libc::sighandler_t)
        };
        let asks = thread::spawn(move || {
            println!("asks is thread {}", sys::gettid());
            world.handshake(id, soon.at_deadline(AtDeadline::Abort), |_| ())
        });
        panic!("it lives on: {:?}", asks.join());
    });
    if let Some(Ended { status, output }) = ended {
        assert_eq!(
            number_after(&output, "asks is thread "),
            number_after(&output, "died in thread ")
        );
        assert_eq!(status.code(), Some(3), "{output}");
    }
}

fn number_after<'a>(output: &'a str, before: &str) -> &'a str {
    let at = output.find(before).expect(output) + before.len();
    let rest = &output[at..];
    &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())]
}

#[test]
fn the_process_dies_though_the_thread_blocks_the_signal() {
    let name = "warn::the_process_dies_though_the_thread_blocks_the_signal";
    let block = || {
        // SAFETY: all sets may be 0.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: fills one set.
        unsafe { libc::sigfillset(&raw mut set) };
        // SAFETY: reads the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    };
    if let Some(Ended { status, output }) = abort_in_deaf(name, block) {
        assert!(output.contains("late: thread"), "{output}");
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{output}");
    }
}
