//! Not one bit may change: every register holds a random pattern while calls that write all of them
//! are injected.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::thread;

use common::{ELSEWHERE, HANDLED, INJECTED, STACK, counts, send_one_at_a_time};
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Handler, Options};
use sigctx::inject::Frame;
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys;
use testkit::Rng;

static TID: AtomicI32 = AtomicI32::new(0);
static DONE: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static STOP: Mutex<Option<Stop>> = Mutex::new(None);

fn call(frame: &mut Frame<'_>, round: usize) {
    assert!(Patterned::code().contains(&frame.context().pc()));
    common::clobbering_call(frame, round);
}

fn inject_in_window(delivery: &mut Delivery<'_>) -> Flow {
    if !Patterned::code().contains(&delivery.pc()) {
        ELSEWHERE.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
        return Flow::Resume;
    }
    // SAFETY: the stack lives as long as the loop, which was interrupted.
    let stack = unsafe { &*STACK.load(SeqCst) };
    // SAFETY: the loop may be interrupted anywhere by anything that leaves it as it was.
    match unsafe { delivery.inject(stack, call, 0) } {
        Ok(injection) => Flow::Inject(injection),
        Err(error) => {
            common::refused(error);
            Flow::Resume
        }
    }
}

fn clobber_in_handler(_: &mut Delivery<'_>) -> Flow {
    sigctx::probe::clobber_all();
    HANDLED.fetch_add(1, SeqCst);
    Flow::Resume
}

fn push_trampoline(delivery: &mut Delivery<'_>) -> Flow {
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: there is room below the table; the trampoline keeps everything.
        unsafe { sigctx::probe::push_counted_call(delivery) };
    }
    HANDLED.fetch_add(1, SeqCst);
    Flow::Resume
}

/// Runs the loop on a thread of its own under `count` signals, and fails at the first difference.
fn storm(handler: Handler, count: u64) {
    // SAFETY: the handlers above only count and inject.
    let installed = unsafe { handler::install(libc::SIGURG, handler, Options::new()) };
    let installed = installed.expect("install");
    let mut rng = Rng::from_env();
    let seed = rng.next_u64();
    thread::scope(|s| {
        s.spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let mut rng = Rng::new(seed);
            let mut patterned = Patterned::new();
            STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
            while !DONE.load(SeqCst) {
                // SAFETY: taken back below, before the table is gone.
                let stop = unsafe { patterned.stopper() };
                let begin = || {
                    *STOP.lock().unwrap() = Some(stop);
                    TID.store(sys::gettid(), SeqCst);
                };
                let different = patterned.run(|| rng.next_u64(), Spin::UntilStopped, begin);
                *STOP.lock().unwrap() = None;
                assert!(different.is_empty(), "{different:#x?}\n{}", counts());
                ROUNDS.fetch_add(1, SeqCst);
            }
        });
        let mut sent = 0;
        while sent < count {
            // A new pattern after every few signals.
            sent +=
                send_one_at_a_time(&TID, libc::SIGURG, 32.min(count - sent), &mut rng, || false);
            if sent >= count {
                DONE.store(true, SeqCst);
            }
            if let Some(stop) = STOP.lock().unwrap().take() {
                stop.stop();
            }
        }
        // The loop may have been between two rounds at the last look.
        while ROUNDS.load(SeqCst) < 1 || STOP.lock().unwrap().is_some() {
            if let Some(stop) = STOP.lock().unwrap().take() {
                stop.stop();
            }
        }
    });
    installed.uninstall().expect("uninstall");
    println!("{}: {} patterns, {}", Patterned::level(), ROUNDS.load(SeqCst), counts());
}

#[test]
fn stress_injected_calls_change_nothing() {
    testkit::in_child("stress_injected_calls_change_nothing", common::DEADLINE, || {
        let count = testkit::budget(1_000_000);
        // Some signals arrive between two rounds; the rest of the budget is for them.
        storm(inject_in_window, count + count / 8 + 100);
        let injected = INJECTED.load(SeqCst);
        assert!(injected >= count, "only {injected} of {count} calls were injected: {}", counts());
    });
}

/// The control: if this fails, the kernel (or an emulator) loses state with an ordinary handler.
#[test]
fn stress_plain_handler_changes_nothing() {
    testkit::in_child("stress_plain_handler_changes_nothing", common::DEADLINE, || {
        storm(clobber_in_handler, testkit::budget(100_000));
    });
}

#[test]
fn stress_pushed_calls_of_a_full_trampoline_change_nothing() {
    let name = "stress_pushed_calls_of_a_full_trampoline_change_nothing";
    testkit::in_child(name, common::DEADLINE, || {
        let count = testkit::budget(100_000);
        storm(push_trampoline, count);
        let pushed = u64::from(sigctx::probe::pushed_calls());
        assert!(pushed >= count / 2, "only {pushed} of {count} calls were pushed");
    });
}
