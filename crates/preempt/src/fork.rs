//! The child of a fork: it has one thread, and a copy of whatever the others were in the middle of.
//!
//! What belongs to the one thread is put in order at once. What may have been copied while another
//! thread had it to itself says which [`process`] that was in, and is free for every other.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::task;
use crate::thread::ThreadState;

/// How often this process came out of a fork as the child, at least.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Has children of a fork put in order. To be called before there is anything for them to copy.
pub(crate) fn watch() {
    // Not a `Once`: a fork could copy it while it runs, and the child would wait for a thread that
    // it does not have. Threads that come here at the same time each register the handler, which may
    // run several times.
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // Acquire: pairs with the store below; the handler was registered before.
    if !WATCHED.load(Ordering::Acquire) {
        // SAFETY: the handler only stores to atomics, and stays loaded: libc drops the handlers of a
        // library that is unloaded. It can fail for want of memory; then a child is as deaf as its
        // parent left it.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
        WATCHED.store(true, Ordering::Release);
    }
}

/// Differs between a process and its ancestors.
pub(crate) fn process() -> u32 {
    // Relaxed: changed only where no other thread is.
    FORKS.load(Ordering::Relaxed)
}

/// Nobody who asked the one thread for anything is left, no signal that was on its way comes, and no
/// other thread reads the registry of code.
extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    crate::code::after_fork();
    if let Some(state) = threadreg::current().and_then(ThreadState::get) {
        state.after_fork();
    }
    if let Some(task) = task::current() {
        task.after_fork();
    }
}
