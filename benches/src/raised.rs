//! A signal that an undefined instruction raises, and the call that its handler injects, or does not: at a
//! system call nothing is injected.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Installed, Options};
use sigctx::inject::{CallStack, Frame};

/// What the handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Nothing.
    Empty,
    /// It injects a call that begins with the interrupted signal mask.
    Plain,
    /// It injects one that begins with the handler's, as `preempt` does.
    Masked,
}

static CALL: AtomicU32 = AtomicU32::new(Call::Empty as u32);
static CALLS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());

fn call(_: &mut Frame<'_>, _: usize) {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

fn on_illegal(delivery: &mut Delivery<'_>) -> Flow {
    sigctx::probe::step_over_known(delivery);
    let which = CALL.load(Ordering::Relaxed);
    if which == Call::Empty as u32 {
        return Flow::Resume;
    }
    // SAFETY: leaked, and set before the first signal.
    let stack = unsafe { &*STACK.load(Ordering::Relaxed) };
    let injection = if which == Call::Masked as u32 {
        // SAFETY: the call counts.
        unsafe { delivery.inject_masked(stack, call, 0) }
    } else {
        // SAFETY: as above.
        unsafe { delivery.inject(stack, call, 0) }
    };
    injection.map_or(Flow::Resume, Flow::Inject)
}

/// Raises signals on the main thread.
#[derive(Debug)]
pub struct Raiser {
    _installed: Installed,
    _alternate: AltStack,
}

impl Raiser {
    /// Installs the handler. To be called on the main thread.
    ///
    /// # Panics
    ///
    /// The kernel refuses the handler, or the alternate stack.
    #[must_use]
    pub fn new() -> Self {
        let alternate = AltStack::install().expect("alternate stack");
        let here = 0_u8;
        let sp = &raw const here as usize;
        // SAFETY: the main thread's stack grows on demand; this much is in its limit.
        let stack = unsafe { CallStack::new(sp - (256 << 10), sp + 4096) };
        STACK.store(Box::leak(Box::new(stack)), Ordering::Relaxed);
        // SAFETY: the handler steps over the instruction and injects.
        let installed = unsafe { handler::install(libc::SIGILL, on_illegal, Options::new()) };
        Self { _installed: installed.expect("installs"), _alternate: alternate }
    }

    /// Raises one.
    pub fn raise(&self, call: Call) {
        CALL.store(call as u32, Ordering::Relaxed);
        // SAFETY: the handler steps over the instruction.
        unsafe { sigctx::probe::raise_undefined() };
    }

    /// The mean time of one, of so many, in nanoseconds.
    ///
    /// # Panics
    ///
    /// Not every call was injected.
    #[must_use]
    pub fn time(&self, call: Call, times: u32) -> f64 {
        let before = CALLS.load(Ordering::Relaxed);
        let begin = Instant::now();
        for _ in 0..times {
            self.raise(call);
        }
        let time = begin.elapsed().as_secs_f64() * 1e9 / f64::from(times);
        let wanted = if call == Call::Empty { 0 } else { u64::from(times) };
        assert_eq!(CALLS.load(Ordering::Relaxed) - before, wanted, "not every call was injected");
        time
    }
}

impl Default for Raiser {
    fn default() -> Self {
        Self::new()
    }
}
