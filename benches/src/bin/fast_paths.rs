//! The fast paths as they are compiled into a user's code, for `cargo xtask test paths`, which runs them under
//! a debugger and counts their instructions.

use std::hint::black_box;

use safepoint::{Mutator, World};
use threadreg::ThreadRef;

// The names are for the debugger.

#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn safepoint_poll(mutator: &mut Mutator) {
    mutator.poll();
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn safe_region(mutator: &mut Mutator) {
    mutator.blocking(|| ());
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn current_thread() -> Option<ThreadRef> {
    threadreg::current()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn no_preempt() {
    drop(preempt::disable());
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn preempt_poll() {
    preempt::poll();
}

/// Where the debugger stops first. From here on nothing is done for the first time.
#[unsafe(no_mangle)]
#[inline(never)]
extern "Rust" fn ready() {
    black_box(());
}

fn main() {
    let mut mutator = World::new().attach().expect("nothing keeps this thread from attaching");
    for is_warm in [false, true] {
        if is_warm {
            ready();
        }
        safepoint_poll(&mut mutator);
        safe_region(&mut mutator);
        black_box(current_thread());
        no_preempt();
        preempt_poll();
    }
}
