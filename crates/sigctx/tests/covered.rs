//! Other handlers are installed over ours, and ours over them: no signal goes round in a circle, and each
//! handler gets it once.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::{install, raise};
use sigctx::handler::{Delivery, Flow, Installed, Standing};
use sigctx::module::CodeAddress;
use sigctx::sys::{self, KernelAction, SIG_DFL, SIG_IGN, SaFlags, SigSet};

const DEADLINE: Duration = Duration::from_mins(1);
const SIGNAL: i32 = libc::SIGUSR1;
const ON_STACK: SaFlags = SaFlags::SIGINFO.union(SaFlags::ONSTACK);

/// The handlers that had the signal, in this order.
static WAY: Mutex<Vec<&str>> = Mutex::new(Vec::new());

fn note(name: &'static str) {
    // Signals are sent by the thread that handles them, which does not hold the lock then.
    WAY.lock().unwrap().push(name);
}

fn way() -> Vec<&'static str> {
    raise(SIGNAL);
    std::mem::take(&mut WAY.lock().unwrap())
}

fn ours(_: &mut Delivery<'_>) -> Flow {
    note("ours");
    Flow::Chain
}

extern "C" fn first(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    note("first");
}

extern "C" fn alone(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    note("alone");
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Chains to what it found, as handlers do that are installed by `sigaction`.
extern "C" fn chaining(signal: i32, info: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    type Action = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    note("chaining");
    let next = NEXT.load(SeqCst);
    if next != SIG_DFL && next != SIG_IGN {
        // SAFETY: a handler of three arguments.
        let next = unsafe { std::mem::transmute::<usize, Action>(next) };
        next(signal, info, uc);
    }
    // Not as a jump: a handler that jumps to ours looks as if the kernel had called ours.
    std::hint::black_box(next);
}

fn set(handler: usize, flags: SaFlags) -> KernelAction {
    let action = KernelAction { handler, flags, mask: SigSet::empty() };
    // SAFETY: the handlers above note and chain.
    unsafe { sys::rt_sigaction(SIGNAL, Some(&action)) }.expect("an action")
}

/// Installs `first`, ours, and `chaining` over ours.
fn covered(flags: SaFlags) -> Installed {
    set(first as *const () as usize, flags);
    let installed = install(SIGNAL, ours);
    let before = set(chaining as *const () as usize, flags);
    NEXT.store(before.handler, SeqCst);
    installed
}

/// In a child, with a stack that has room for handlers that allocate.
fn in_child(name: &str, body: impl FnOnce()) {
    testkit::in_child(name, DEADLINE, || {
        let _alt = sigctx::altstack::AltStack::install().expect("alternate stack");
        body();
    });
}

#[test]
fn a_handler_over_ours_is_named() {
    in_child("a_handler_over_ours_is_named", || {
        let installed = install(SIGNAL, ours);
        assert_eq!(installed.standing(), Standing::First);
        set(alone as *const () as usize, ON_STACK);
        let Standing::Covered { by } = installed.standing() else { panic!("covered") };
        assert_eq!(by.get(), alone as *const () as usize);
        // Exported functions have names; the program's path is known for others.
        let program = std::env::current_exe().expect("the test program");
        let program = program.file_name().expect("a name").to_str().expect("UTF-8");
        let text = by.to_string();
        if CodeAddress::new(libc::malloc as *const () as usize).to_string().contains("malloc") {
            assert!(text.contains(program), "{text}");
        } else {
            testkit::skip("the program is static: no dynamic linker knows what is where");
        }
        for action in [SIG_DFL, SIG_IGN] {
            set(action, SaFlags::empty());
            assert_eq!(installed.standing(), Standing::Replaced { action });
        }
    });
}

#[test]
fn ours_is_put_on_top_again() {
    in_child("ours_is_put_on_top_again", || {
        set(first as *const () as usize, ON_STACK);
        let installed = install(SIGNAL, ours);
        let by = CodeAddress::new(alone as *const () as usize);
        set(by.get(), ON_STACK);
        assert_eq!(way(), ["alone"], "it does not chain");
        assert_eq!(installed.restore(), Ok(Standing::Covered { by }));
        assert_eq!(installed.restore(), Ok(Standing::First));
        assert_eq!(installed.previous().handler, by.get());
        assert_eq!(way(), ["ours", "alone"], "which replaced the first");
        installed.uninstall().expect("on top");
        assert_eq!(way(), ["alone"]);
    });
}

#[test]
fn a_circle_ends_and_every_handler_gets_the_signal_once() {
    let name = "a_circle_ends_and_every_handler_gets_the_signal_once";
    in_child(name, || {
        // The kernel's flags decide where `chaining` runs: it chains from there.
        let installed = covered(ON_STACK);
        assert_eq!(way(), ["chaining", "ours", "first"]);
        installed.restore().expect("on top");
        for _ in 0..3 {
            assert_eq!(way(), ["ours", "chaining", "first"]);
        }
        // Again and again: `chaining` over ours, and ours over it.
        for _ in 0..30 {
            set(chaining as *const () as usize, ON_STACK);
            assert_eq!(way(), ["chaining", "ours", "first"]);
            installed.restore().expect("on top");
            assert_eq!(way(), ["ours", "chaining", "first"]);
        }
    });
}

#[test]
fn a_circle_through_the_interrupted_stack_ends() {
    in_child("a_circle_through_the_interrupted_stack_ends", || {
        let installed = covered(SaFlags::SIGINFO);
        assert_eq!(way(), ["chaining", "ours", "first"]);
        installed.restore().expect("on top");
        for _ in 0..3 {
            assert_eq!(way(), ["ours", "chaining", "first"]);
        }
    });
}

#[test]
fn a_new_handler_goes_on_top_of_one_that_covers_ours() {
    fn newer(_: &mut Delivery<'_>) -> Flow {
        note("newer");
        Flow::Chain
    }
    in_child("a_new_handler_goes_on_top_of_one_that_covers_ours", || {
        let installed = covered(ON_STACK);
        let newest = install(SIGNAL, newer);
        assert_eq!(installed.standing(), Standing::First);
        assert_eq!(way(), ["newer", "ours", "chaining", "first"]);
        installed.uninstall().expect("on top");
        newest.uninstall().expect("on top");
        // The kernel has `chaining`, which goes through this crate's entry still.
        assert_eq!(way(), ["chaining", "first"]);
    });
}

#[test]
fn a_signal_that_ours_takes_goes_no_further_in_a_circle() {
    fn takes(_: &mut Delivery<'_>) -> Flow {
        note("takes");
        Flow::Resume
    }
    in_child("a_signal_that_ours_takes_goes_no_further_in_a_circle", || {
        let _installed = covered(ON_STACK);
        let _taker = install(SIGNAL, takes);
        assert_eq!(way(), ["takes"]);
        set(chaining as *const () as usize, ON_STACK);
        assert_eq!(way(), ["chaining", "takes"]);
    });
}

#[test]
fn stress_ours_and_another_take_turns_at_the_top() {
    in_child("stress_ours_and_another_take_turns_at_the_top", || {
        let installed = covered(ON_STACK);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            let _done = common::Raise(&stop);
            s.spawn(|| {
                while !stop.load(SeqCst) {
                    set(chaining as *const () as usize, ON_STACK);
                    installed.restore().expect("on top");
                }
            });
            for _ in 0..testkit::budget(20_000) {
                let mut had = way();
                assert_eq!(had.last(), Some(&"first"), "{had:?}");
                had.sort_unstable();
                // Ours may be put on top between the call of `chaining` and the look at what covers ours.
                had.dedup_by(|a, b| a == b && *a == "chaining");
                assert_eq!(had, ["chaining", "first", "ours"]);
            }
        });
    });
}
