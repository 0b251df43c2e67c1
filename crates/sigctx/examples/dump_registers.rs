//! "What was my program doing, register by register?"
//!
//! A busy thread is interrupted from outside; its registers are printed by a call that is injected
//! into it, where printing is allowed, and then it goes on as if nothing had happened.
//!
//! `cargo run -p sigctx --example dump_registers`

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::thread;

use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::{CallStack, Frame};
use sigctx::sys;

static TID: AtomicI32 = AtomicI32::new(0);
static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());
static BUSY: AtomicBool = AtomicBool::new(false);
static DUMPED: AtomicBool = AtomicBool::new(false);

/// Runs on the busy thread, outside of any handler.
fn dump(frame: &mut Frame<'_>, _: usize) {
    println!("interrupted at:\n{}", frame.registers());
    DUMPED.store(true, Ordering::Release);
}

fn on_urgent(delivery: &mut Delivery<'_>) -> Flow {
    // SAFETY: leaked, or null.
    let Some(stack) = (unsafe { STACK.load(Ordering::Acquire).as_ref() }) else {
        return Flow::Chain;
    };
    if !BUSY.load(Ordering::Relaxed) || DUMPED.load(Ordering::Relaxed) {
        return Flow::Chain;
    }
    // SAFETY: while BUSY is set the thread computes, and holds no lock that printing needs; the
    // stack is leaked.
    match unsafe { delivery.inject(stack, dump, 0) } {
        Ok(injection) => Flow::Inject(injection),
        // Not here: the sender tries again.
        Err(_) => Flow::Resume,
    }
}

fn busy() -> Result<u64, Box<dyn Error + Send + Sync>> {
    let _alternate = AltStack::install()?;
    let here = 0u8;
    let sp = &raw const here as usize;
    // SAFETY: this thread has 2 MiB of stack.
    let stack = unsafe { CallStack::new(sp - (1 << 20), sp + 4096) };
    STACK.store(Box::leak(Box::new(stack)), Ordering::Release);
    TID.store(sys::gettid(), Ordering::Release);
    BUSY.store(true, Ordering::Relaxed);
    let mut sum = 0u64;
    while !DUMPED.load(Ordering::Acquire) {
        sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
    }
    BUSY.store(false, Ordering::Relaxed);
    Ok(sum)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // SAFETY: the handler only reads words and injects.
    let installed = unsafe { handler::install(libc::SIGURG, on_urgent, Options::new()) }?;
    let worker = thread::spawn(busy);
    while !DUMPED.load(Ordering::Acquire) && !worker.is_finished() {
        let tid = TID.load(Ordering::Acquire);
        if tid != 0 {
            // The thread may have finished since.
            let _ = sys::tgkill(sys::getpid(), tid, libc::SIGURG);
        }
        thread::yield_now();
    }
    let sum = worker.join().expect("the worker does not panic")?;
    installed.uninstall().map_err(|error| error.to_string())?;
    println!("\nand it went on: {sum:#x}");
    Ok(())
}
