//! What an injected call costs above an empty handler, with the interrupted mask and with the handler's.
//! They run in turns, so that the ratio holds whatever else the machine does.
//!
//! The signal is raised by an undefined instruction: at a system call nothing is injected.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use benches::medians;
use criterion::Criterion;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::{CallStack, Frame};

static INJECT: AtomicBool = AtomicBool::new(false);
static MASKED: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());

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
    let injection = if MASKED.load(Ordering::Relaxed) {
        // SAFETY: the call counts.
        unsafe { delivery.inject_masked(stack, call, 0) }
    } else {
        // SAFETY: as above.
        unsafe { delivery.inject(stack, call, 0) }
    };
    injection.map_or(Flow::Resume, Flow::Inject)
}

fn raise(inject: bool) {
    INJECT.store(inject, Ordering::Relaxed);
    // SAFETY: the handler steps over the instruction.
    unsafe { sigctx::probe::raise_undefined() };
}

fn main() {
    let _alternate = AltStack::install().expect("alternate stack");
    let here = 0u8;
    let sp = &raw const here as usize;
    // SAFETY: the main thread's stack grows on demand; this much is in its limit.
    let stack = unsafe { CallStack::new(sp - (256 << 10), sp + 4096) };
    STACK.store(Box::leak(Box::new(stack)), Ordering::Relaxed);
    // SAFETY: the handler steps over the instruction and injects.
    let installed = unsafe { handler::install(libc::SIGILL, on_illegal, Options::new()) };
    let _installed = installed.expect("install");

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("signal");
    group.bench_function("empty handler", |b| b.iter(|| raise(false)));
    group.bench_function("injected call", |b| b.iter(|| raise(true)));
    MASKED.store(true, Ordering::Relaxed);
    group.bench_function("masked call", |b| b.iter(|| raise(true)));
    group.finish();
    criterion.final_summary();

    for (masked, name) in [(false, "injected call"), (true, "masked call")] {
        MASKED.store(masked, Ordering::Relaxed);
        let calls = CALLS.load(Ordering::Relaxed);
        let [empty, injected] = medians(500, 500, &mut [&mut || raise(false), &mut || raise(true)]);
        assert!(CALLS.load(Ordering::Relaxed) - calls == 500 * 500, "not every call was injected");
        println!("empty handler {empty:.0} ns, {name} {injected:.0} ns");
        println!("ratio {:.3}, difference {:+.0} ns", injected / empty, injected - empty);
    }
}
