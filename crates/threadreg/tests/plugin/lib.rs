//! A library that `tests/lookup.rs` opens at run time, with a registry of its own.

use std::cell::Cell;

thread_local! {
    static LOCAL: Cell<usize> = const { Cell::new(1) };
}

/// Registers the calling thread until it ends.
#[unsafe(no_mangle)]
extern "C" fn plugin_attach() -> bool {
    threadreg::attach().map(std::mem::forget).is_ok()
}

/// Whether the calling thread is registered.
#[unsafe(no_mangle)]
extern "C" fn plugin_current() -> bool {
    threadreg::current().is_some()
}

/// Writes a thread-local.
#[unsafe(no_mangle)]
extern "C" fn plugin_touch() -> usize {
    LOCAL.set(LOCAL.get() + 1);
    LOCAL.get()
}
