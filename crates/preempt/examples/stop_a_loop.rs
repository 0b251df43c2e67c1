//! How do I stop a compute loop that never polls, look at it, and let it go on?
//!
//! `cargo run -p preempt --example stop_a_loop`

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

static STOP: AtomicBool = AtomicBool::new(false);
static STEPS: AtomicUsize = AtomicUsize::new(0);

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn collatz(mut n: u64) {
    while !STOP.load(Relaxed) {
        n = if n.is_multiple_of(2) { n / 2 } else { n.wrapping_mul(3).wrapping_add(1) };
        STEPS.store(STEPS.load(Relaxed) + 1, Relaxed);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    preempt::install()?;
    // SAFETY: the section holds `collatz` alone, which takes no locks.
    let _code = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;

    let task = preempt::Task::new();
    let runner = {
        let task = task.clone();
        threadreg::Builder::new().name("collatz").spawn(move || task.enter(|| collatz(27)))?
    };
    while STEPS.load(Relaxed) == 0 {
        std::thread::yield_now();
    }

    let stopped = task.suspend(Duration::from_secs(5))?;
    println!("stopped after {} steps, at {:?}", STEPS.load(Relaxed), stopped.stopped_at());
    if let Some(registers) = stopped.registers() {
        println!("{registers}");
    }
    if let Some(backtrace) = stopped.backtrace() {
        println!("{backtrace}");
    }
    stopped.resume();

    STOP.store(true, Relaxed);
    runner.join().expect("no panic")?;
    println!("ended after {} steps", STEPS.load(Relaxed));
    Ok(())
}
