//! Unwinders walk from a handler, and from an injected call, through to the interrupted function
//! and its callers.

mod common;

use std::backtrace::Backtrace;
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

/// Computes in registers alone, so that a backtrace of it may be taken anywhere.
#[inline(never)]
fn interrupted_function(mut x: u64) -> u64 {
    while !SEEN.load(SeqCst) {
        x = black_box(x.wrapping_mul(3));
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
            show("handler");
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

fn interrupt_once() {
    // SAFETY: see the handler.
    let installed = unsafe { handler::install(libc::SIGURG, handler_on_top, Options::new()) };
    let _installed = installed.expect("install");
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

/// Fails unless `names` appear in `text` in this order.
fn assert_in_order(text: &str, names: &[&str]) {
    let mut rest = text;
    for name in names {
        let Some(at) = rest.find(name) else {
            panic!("`{name}` is not there, or not here:\n{text}")
        };
        rest = &rest[at + name.len()..];
    }
}

fn section<'a>(output: &'a str, of: &str) -> &'a str {
    let (_, rest) = output.split_once(&format!("BACKTRACE of {of}\n")).expect(output);
    rest.split_once("\nEND").expect(output).0
}

#[test]
fn std_walks_through_handler_and_injected_call() {
    let name = "std_walks_through_handler_and_injected_call";
    let Some(ended) = testkit::child(name, DEADLINE, interrupt_once) else { return };
    assert!(ended.status.success(), "{}", ended.output);
    let interrupted = ["interrupted_function", "caller_of_the_interrupted"];
    let handler = section(&ended.output, "handler");
    assert_in_order(handler, &["handler_on_top", interrupted[0], interrupted[1]]);
    let injected = section(&ended.output, "injected call");
    assert_in_order(injected, &["injected_callback", interrupted[0], interrupted[1]]);
    assert!(!injected.contains("handler_on_top"), "the handler has been left:\n{injected}");
}

/// Follows frame records from the injected call: each has the one before it and an address.
#[test]
fn frame_pointers_lead_from_an_injected_call_to_the_interrupted_function() {
    static FOUND: AtomicUsize = AtomicUsize::new(0);

    fn walk(frame: &mut Frame<'_>, _: usize) {
        let mut fp = sigctx::probe::frame_pointer();
        // SAFETY: leaked.
        let (lo, hi) = unsafe { &*STACK.load(SeqCst) }.bounds();
        let context = frame.context();
        // Records lie further and further up, and here all of them below the interrupted frame.
        while fp.is_multiple_of(align_of::<usize>()) && (lo..context.sp()).contains(&fp) {
            // SAFETY: within the stack, among the frames of this call: two words that can be read.
            let [above, pc] =
                unsafe { ((fp - sigctx::probe::RECORD_BELOW) as *const [usize; 2]).read() };
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
    if Command::new("gdb").arg("--version").output().is_err() {
        println!("skipped: gdb is not installed");
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
