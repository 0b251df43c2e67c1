//! Unwinders walk from a handler, and from an injected call, through to the interrupted function
//! and its callers.

mod common;

use std::backtrace::Backtrace;
use std::ffi::c_void;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::*;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::Frame;
use sigctx::sys;
use testkit::Rng;

static SEEN: AtomicBool = AtomicBool::new(false);

/// Computes in registers alone, so that a backtrace of it may be taken anywhere. (With a `black_box`
/// in the loop it has a frame, which on s390x it opens without a rule for the stack pointer.)
#[inline(never)]
fn interrupted_function(mut x: u64) -> u64 {
    while !SEEN.load(SeqCst) {
        x = x.wrapping_mul(3);
    }
    x
}

#[inline(never)]
fn caller_of_the_interrupted(x: u64) -> u64 {
    let y = interrupted_function(x);
    // Not a tail call.
    black_box(y) + 1
}

#[inline(never)]
fn show(name: &str) {
    println!("BACKTRACE of {name}\n{}\nEND", Backtrace::force_capture());
}

/// Where the debugger stops.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sigctx_test_stop_here() {
    black_box(());
}

fn injected_callback(_frame: &mut Frame<'_>, _: usize) {
    sigctx_test_stop_here();
    show("injected call");
    INJECTED.fetch_add(1, SeqCst);
    SEEN.store(true, SeqCst);
    HANDLED.fetch_add(1, SeqCst);
}

fn handler_on_top(delivery: &mut Delivery<'_>) -> Flow {
    // SAFETY: registered before the first signal is sent, and leaked.
    let stack = unsafe { &*STACK.load(SeqCst) };
    // SAFETY: the interrupted function holds no lock and does not allocate; what comes before it is
    // refused below.
    match unsafe { delivery.inject(stack, injected_callback, 0) } {
        Ok(injection) if SPINNING.load(SeqCst) && !SEEN.load(SeqCst) => {
            if SHOW_HANDLER.load(SeqCst) {
                show("handler");
            }
            Flow::Inject(injection)
        }
        // Dropped: called off.
        Ok(_) => {
            HANDLED.fetch_add(1, SeqCst);
            Flow::Resume
        }
        Err(error) => {
            refused(error);
            Flow::Resume
        }
    }
}

static SPINNING: AtomicBool = AtomicBool::new(false);
static SHOW_HANDLER: AtomicBool = AtomicBool::new(false);

fn interrupt_once() {
    // SAFETY: see the handler.
    let installed = unsafe { handler::install(libc::SIGURG, handler_on_top, Options::new()) };
    let _installed = installed.expect("install");
    interrupt_until_seen();
}

fn interrupt_until_seen() {
    // Loads and caches what later backtraces need.
    drop(Backtrace::force_capture().to_string());
    let mut rng = Rng::from_env();
    thread::scope(|s| {
        s.spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let here = 0u8;
            let sp = &raw const here as usize;
            // Large enough for a backtrace within the injected call.
            // SAFETY: test threads have 2 MiB of stack.
            let stack = unsafe { sigctx::inject::CallStack::new(sp - (1 << 20), sp + (64 << 10)) };
            STACK.store(Box::leak(Box::new(stack)), SeqCst);
            TID.store(sys::gettid(), SeqCst);
            SPINNING.store(true, SeqCst);
            black_box(caller_of_the_interrupted(1));
        });
        send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, || SEEN.load(SeqCst));
    });
}

/// Whether `names` appear in `text` in this order.
fn names_are_in_order(text: &str, names: &[&str]) -> bool {
    let mut rest = text;
    names.iter().all(|name| match rest.split_once(name) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

fn assert_in_order(text: &str, names: &[&str]) {
    assert!(names_are_in_order(text, names), "not there, or not in this order: {names:?}\n{text}");
}

/// A backtrace in the output; empty when there is none.
fn section<'a>(output: &'a str, of: &str) -> &'a str {
    let after = output.split_once(&format!("BACKTRACE of {of}\n"));
    after.and_then(|(_, rest)| rest.split_once("\nEND")).map_or("", |(section, _)| section)
}

const INTERRUPTED: [&str; 2] = ["interrupted_function", "caller_of_the_interrupted"];

#[test]
fn std_walks_through_an_injected_call() {
    let name = "std_walks_through_an_injected_call";
    let Some(ended) = testkit::child(name, DEADLINE, interrupt_once) else { return };
    assert!(ended.status.success(), "{}", ended.output);
    let injected = section(&ended.output, "injected call");
    assert_in_order(injected, &["injected_callback", INTERRUPTED[0], INTERRUPTED[1]]);
    assert!(!injected.contains("handler_on_top"), "the handler has been left:\n{injected}");
}

#[test]
fn std_walks_through_a_handler() {
    let name = "std_walks_through_a_handler";
    let interrupt = || {
        SHOW_HANDLER.store(true, SeqCst);
        interrupt_once();
    };
    let Some(ended) = testkit::child(name, DEADLINE, interrupt) else { return };
    let seen = ended.status.success()
        && names_are_in_order(
            section(&ended.output, "handler"),
            &["handler_on_top", INTERRUPTED[0], INTERRUPTED[1]],
        );
    if !seen && testkit::emulator().is_some() && !an_ordinary_handler_has_a_backtrace() {
        testkit::skip("unwinders find no way through the emulator's signal frames");
        return;
    }
    assert!(seen, "{}\n{}", ended.status, ended.output);
}

/// The control: a handler that this crate has no part in.
fn an_ordinary_handler_has_a_backtrace() -> bool {
    let control =
        testkit::child("ordinary_handler", DEADLINE, || unreachable!("the parent's name"));
    control.is_some_and(|ended| {
        ended.status.success()
            && names_are_in_order(section(&ended.output, "ordinary handler"), &INTERRUPTED)
    })
}

/// Run by the test above.
#[test]
#[ignore = "a control, not a test"]
fn ordinary_handler() {
    extern "C" fn handler(_: i32, _: *mut c_void, _: *mut c_void) {
        if SPINNING.load(SeqCst) && !SEEN.load(SeqCst) {
            show("ordinary handler");
            SEEN.store(true, SeqCst);
        }
        HANDLED.fetch_add(1, SeqCst);
    }
    testkit::in_child("ordinary_handler", DEADLINE, || {
        // SAFETY: the interrupted function holds no lock and does not allocate.
        unsafe { install_ordinary(libc::SIGURG, handler) };
        interrupt_until_seen();
    });
}

/// Follows frame records from the injected call: each has the one before it and an address.
#[test]
fn frame_pointers_lead_from_an_injected_call_to_the_interrupted_function() {
    static FOUND: AtomicUsize = AtomicUsize::new(0);

    fn walk(frame: &mut Frame<'_>, _: usize) {
        let to = sigctx::probe::FRAME_POINTER_TO.expect("asked before");
        let mut fp = sigctx::probe::frame_pointer();
        // SAFETY: leaked.
        let (lo, hi) = unsafe { &*STACK.load(SeqCst) }.bounds();
        let context = frame.context();
        // Records lie further and further up, and here all of them below the interrupted frame.
        while fp.is_multiple_of(align_of::<usize>()) && (lo..context.sp()).contains(&fp) {
            // SAFETY: within the stack, among the frames of this call: words that can be read.
            let [above, pc] =
                to.map(|offset| unsafe { (fp.wrapping_add_signed(offset) as *const usize).read() });
            if pc == context.pc() && above == context.fp() {
                FOUND.fetch_add(1, SeqCst);
                break;
            }
            assert!(above > fp, "record at {fp:#x} leads down to {above:#x} ({lo:#x}..{hi:#x})");
            fp = above;
        }
        INJECTED.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: registered before the first signal is sent, and leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call reads and counts.
        make_or_count(unsafe { delivery.inject(stack, walk, 0) })
    }
    if sigctx::probe::FRAME_POINTER_TO.is_none() {
        testkit::skip("code keeps no frame pointers on this architecture");
        return;
    }
    let name = "frame_pointers_lead_from_an_injected_call_to_the_interrupted_function";
    testkit::in_child(name, DEADLINE, || {
        // SAFETY: see the handler.
        let installed = unsafe { handler::install(libc::SIGURG, handler, Options::new()) };
        let _installed = installed.expect("install");
        let mut rng = Rng::from_env();
        thread::scope(|s| {
            s.spawn(|| {
                let _alt = AltStack::install().expect("alternate stack");
                register_own_stack();
                TID.store(sys::gettid(), SeqCst);
                black_box(caller_of_the_interrupted(1));
            });
            let _seen = Raise(&SEEN);
            send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, || {
                INJECTED.load(SeqCst) >= 100
            });
        });
        assert_eq!(FOUND.load(SeqCst), INJECTED.load(SeqCst), "{}", counts());
    });
}

/// Run by the debugger.
#[test]
#[ignore = "the debugger's victim, not a test"]
fn gdb_victim() {
    interrupt_once();
}

#[test]
fn gdb_walks_through_an_injected_call() {
    if testkit::emulator().is_some() {
        testkit::skip("a debugger cannot start a program in the emulator");
        return;
    }
    if Command::new("gdb").arg("--version").output().is_err() {
        testkit::skip("gdb is not installed");
        return;
    }
    let exe = std::env::current_exe().expect("path of the test binary");
    let output = Command::new("gdb")
        .args(["-batch", "-nx", "-iex", "set debuginfod enabled off"])
        .args(["-ex", "handle SIGURG nostop noprint pass"])
        .args(["-ex", "break sigctx_test_stop_here", "-ex", "run", "-ex", "bt", "-ex", "kill"])
        .arg("--args")
        .arg(exe)
        .args(["gdb_victim", "--exact", "--include-ignored", "--nocapture"])
        .output()
        .expect("gdb");
    let text = String::from_utf8_lossy(&output.stdout);
    // gdb's own lines begin with a frame's number.
    let frames: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
    let frames = frames.join("\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!frames.is_empty(), "no frames:\n{text}\n{errors}");
    let expected = [
        "sigctx_test_stop_here",
        "injected_callback",
        "<signal handler called>",
        "interrupted_function",
        "caller_of_the_interrupted",
    ];
    assert_in_order(&frames, &expected);
}
