//! Unwinders find every register of the interrupted code, through an injected call and through a
//! handler. Debuggers and profilers show them; an unwinder goes on with the callee-saved ones.

mod common;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use common::*;
use sigctx::handler::{Delivery, Flow};
use sigctx::inject::Frame;
use sigctx::probe::{self, Patterned, Spin, Stop, Unwound};
use sigctx::sys;
use sigctx::{Reg, SigCtx};
use testkit::Rng;

static STOP: AtomicPtr<Stop> = AtomicPtr::new(std::ptr::null_mut());
/// How often an unwinder was sent from the interrupted loop, and how often it came there.
static LOOKED: AtomicUsize = AtomicUsize::new(0);
static FOUND: AtomicUsize = AtomicUsize::new(0);

const ENOUGH: usize = 40;

// Of the platform's unwinder.
unsafe extern "C" {
    fn _Unwind_Backtrace(
        trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
}

struct Walk<'a> {
    interrupted: &'a SigCtx<'a>,
    /// The rules between here and the interrupted code are this crate's alone.
    own_rules: bool,
}

/// Called by the unwinder for each frame. At the interrupted one it compares all registers with those
/// of the kernel's frame.
extern "C" fn compare(context: *mut c_void, argument: *mut c_void) -> c_int {
    /// `_URC_NO_REASON`: go on.
    const ON: c_int = 0;
    /// `_URC_NORMAL_STOP`, though any other value would do.
    const ENOUGH: c_int = 4;

    // SAFETY: lives as long as the unwinder's walk.
    let &Walk { interrupted, own_rules } = unsafe { &*argument.cast::<Walk<'_>>() };
    // SAFETY: the unwinder is there until this returns.
    let unwound = unsafe { Unwound::from_raw(context) };
    let (pc, sp) = unwound.place();
    if pc != interrupted.pc() {
        return ON;
    }
    // An emulator's rules may have another address for its frame.
    if let Some(sp) = sp
        && (own_rules || testkit::emulator().is_none())
    {
        assert_eq!(sp, interrupted.sp(), "the frame's address");
    }
    for &(first, registers) in probe::DWARF_REGISTERS {
        for (number, &register) in (first..).zip(registers) {
            // The frame's address tells it; not all rules do so again (386's vDSO does not).
            if register == Reg::SP && !own_rules {
                continue;
            }
            // SAFETY: above a handler or an injected call.
            let found = unsafe { unwound.get(number) };
            let expected = interrupted.get(register) as usize;
            assert_eq!(found, expected, "{} (number {number})", register.name());
        }
    }
    FOUND.fetch_add(1, SeqCst);
    ENOUGH
}

fn look(interrupted: &SigCtx<'_>, own_rules: bool) {
    let walk = Walk { interrupted, own_rules };
    let argument = (&raw const walk).cast_mut().cast();
    // SAFETY: the function keeps to the unwinder's rules, and its argument outlives the walk. A
    // failed assertion in it aborts the process.
    unsafe { _Unwind_Backtrace(compare, argument) };
    LOOKED.fetch_add(1, SeqCst);
    // SAFETY: leaked, before the first signal.
    unsafe { &*STOP.load(SeqCst) }.stop();
}

/// Interrupts loops with patterns in all registers by signals with this handler.
fn interrupt_patterns(handler: fn(&mut Delivery<'_>) -> Flow) {
    let _installed = install(libc::SIGURG, handler);
    let mut rng = Rng::from_env();
    let seed = rng.next_u64();
    let victim = || {
        let mut rng = Rng::new(seed);
        let patterned = Box::leak(Box::new(Patterned::new()));
        STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
        // SAFETY: leaked.
        let stop = unsafe { patterned.stopper() };
        STOP.store(Box::leak(Box::new(stop)), SeqCst);
        while LOOKED.load(SeqCst) < ENOUGH {
            let ready = || TID.store(sys::gettid(), SeqCst);
            patterned.run(|| rng.next_u64(), Spin::UntilStopped, ready);
        }
    };
    under_signals(victim, || LOOKED.load(SeqCst) >= ENOUGH);
}

#[test]
fn every_register_is_found_through_an_injected_call() {
    fn callback(frame: &mut Frame<'_>, _: usize) {
        look(frame.context(), true);
        INJECTED.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        if !Patterned::code().contains(&delivery.pc()) {
            ELSEWHERE.fetch_add(1, SeqCst);
            HANDLED.fetch_add(1, SeqCst);
            return Flow::Resume;
        }
        // SAFETY: leaked, before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the loop may be interrupted anywhere by anything that leaves it as it was.
        make_or_count(unsafe { delivery.inject(stack, callback, 0) })
    }
    if cfg!(target_env = "musl") {
        testkit::skip("the unwinder of programs with musl finds no frame through an injected call");
        return;
    }
    let name = "every_register_is_found_through_an_injected_call";
    testkit::in_child(name, DEADLINE, || {
        interrupt_patterns(handler);
        assert_eq!(FOUND.load(SeqCst), LOOKED.load(SeqCst), "{}", counts());
    });
}

#[test]
fn every_register_is_found_through_a_handler() {
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        if Patterned::code().contains(&delivery.pc()) {
            look(delivery, false);
        }
        HANDLED.fetch_add(1, SeqCst);
        Flow::Resume
    }
    let name = "every_register_is_found_through_a_handler";
    testkit::in_child(name, DEADLINE, || {
        if testkit::emulator().is_some() {
            let tried = testkit::forked(|| interrupt_patterns(handler));
            if libc::WIFSIGNALED(tried) {
                testkit::skip("unwinders stumble over the emulator's signal frames");
                return;
            }
        }
        interrupt_patterns(handler);
        let (found, looked) = (FOUND.load(SeqCst), LOOKED.load(SeqCst));
        if found == 0 && testkit::emulator().is_some() {
            testkit::skip("unwinders find no way through the emulator's signal frames");
            return;
        }
        // musl's return from a handler has no unwind table, and LLVM's unwinder does not know the
        // instructions by sight.
        if found == 0 && cfg!(target_env = "musl") {
            testkit::skip("the unwinder of programs with musl finds no way through signal frames");
            return;
        }
        assert_eq!(found, looked, "{}", counts());
    });
}
