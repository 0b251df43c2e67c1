//! A library that `tests/copies.rs` opens at run time, any number of times, each with a copy of this
//! crate of its own.

use std::ffi::c_int;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use sigctx::handler::{self, Delivery, Flow, Installed, Options};
use sigctx::inject::{CallStack, Frame};

static STACK: CallStack = CallStack::unset();
static INSTALLED: AtomicPtr<Installed> = AtomicPtr::new(std::ptr::null_mut());
static SEEN: AtomicUsize = AtomicUsize::new(0);
static INJECTED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);
/// One signal of this many is this copy's.
static EVERY: AtomicUsize = AtomicUsize::new(0);

fn call(_: &mut Frame<'_>, _: usize) {
    sigctx::probe::clobber_all();
    INJECTED.fetch_add(1, SeqCst);
}

fn on_signal(delivery: &mut Delivery<'_>) -> Flow {
    let seen = SEEN.fetch_add(1, SeqCst);
    delivery.chain();
    let every = EVERY.load(SeqCst);
    if every == 0 || !seen.is_multiple_of(every) {
        return Flow::Resume;
    }
    // SAFETY: the call clobbers and counts; the stack is a static.
    let prepared = unsafe { delivery.inject(&STACK, call, 0) };
    prepared.map_or_else(
        |_| {
            REFUSED.fetch_add(1, SeqCst);
            Flow::Resume
        },
        Flow::Inject,
    )
}

/// Installs this copy's handler, or puts it on top again.
#[unsafe(no_mangle)]
extern "C" fn copy_install(signal: c_int) -> bool {
    // SAFETY: null, or leaked below.
    if let Some(installed) = unsafe { INSTALLED.load(SeqCst).as_ref() } {
        return installed.restore().is_ok();
    }
    // SAFETY: the handler counts, chains and injects.
    match unsafe { handler::install(signal, on_signal, Options::new()) } {
        Ok(installed) => {
            INSTALLED.store(Box::leak(Box::new(installed)), SeqCst);
            true
        }
        Err(_) => false,
    }
}

/// Lets one of `every` signals inject a call on `[low, high)`.
///
/// # Safety
///
/// As for [`CallStack::new`].
#[unsafe(no_mangle)]
unsafe extern "C" fn copy_inject(low: usize, high: usize, every: usize) {
    // SAFETY: the caller's obligation.
    unsafe { STACK.set_bounds(low, high) };
    EVERY.store(every, SeqCst);
}

/// Signals seen, calls injected, calls refused.
#[unsafe(no_mangle)]
extern "C" fn copy_count(which: c_int) -> usize {
    [&SEEN, &INJECTED, &REFUSED][which as usize].load(SeqCst)
}
