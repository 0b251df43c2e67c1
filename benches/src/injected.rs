//! What an injected call costs above an empty handler. The signal is raised by an undefined instruction:
//! at a system call nothing is injected.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Instant;

use benches::Series;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::{CallStack, Frame};

use crate::threads::Limits;

static INJECT: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());

/// Signals a sample.
const BATCH: u32 = 100;

fn call(_: &mut Frame<'_>, _: usize) {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

fn on_illegal(delivery: &mut Delivery<'_>) -> Flow {
    sigctx::probe::step_over_known(delivery);
    if !INJECT.load(Ordering::Relaxed) {
        return Flow::Resume;
    }
    // SAFETY: leaked, and set before the first signal.
    let stack = unsafe { &*STACK.load(Ordering::Relaxed) };
    // SAFETY: the call counts.
    unsafe { delivery.inject(stack, call, 0) }.map_or(Flow::Resume, Flow::Inject)
}

/// The time of one signal, in nanoseconds.
fn raise(inject: bool) -> f64 {
    INJECT.store(inject, Ordering::Relaxed);
    let begin = Instant::now();
    for _ in 0..BATCH {
        // SAFETY: the handler steps over the instruction.
        unsafe { sigctx::probe::raise_undefined() };
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
}

/// `ours`: a call's time less that of an empty handler, measured right before it.
pub(crate) fn calls(limits: &Limits) -> Vec<Series> {
    let _alternate = AltStack::install().expect("alternate stack");
    let here = 0_u8;
    let sp = &raw const here as usize;
    // SAFETY: the main thread's stack grows on demand; this much is in its limit.
    let stack = unsafe { CallStack::new(sp - (256 << 10), sp + 4096) };
    STACK.store(Box::leak(Box::new(stack)), Ordering::Relaxed);
    // SAFETY: the handler steps over the instruction and injects.
    let installed = unsafe { handler::install(libc::SIGILL, on_illegal, Options::new()) };
    let _installed = installed.expect("installs");

    let (mut ours, mut empty) = (Series::new("ours"), Series::new("empty"));
    let mut batches = 0;
    limits.repeat(3, |counts| {
        batches += 1;
        let (without, with) = (raise(false), raise(true));
        if counts {
            ours.add_nanoseconds(with - without);
            empty.add_nanoseconds(without);
        }
    });
    let all = batches * u64::from(BATCH);
    assert_eq!(CALLS.load(Ordering::Relaxed), all, "not every call was injected");
    vec![ours, empty]
}
