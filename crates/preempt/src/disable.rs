//! Sections of registered code that must not be interrupted.

use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::thread::add_disabled;

/// Keeps the calling thread from being interrupted for as long as it lives; see [`disable`].
#[derive(Debug)]
#[must_use = "the thread can be interrupted again as soon as this is dropped"]
pub struct Disabled {
    /// The count is the thread's.
    not_send: PhantomData<*mut ()>,
}

/// Keeps the calling thread from being interrupted until the guard is dropped. Guards nest.
///
/// A request that comes meanwhile is served when the last guard is dropped.
///
/// # Signal safety
///
/// Async-signal-safe; the drop of the last guard is not, since it serves requests.
///
/// # Examples
///
/// ```
/// let guard = preempt::disable();
/// // Change what interrupting code looks at …
/// drop(guard);
/// ```
pub fn disable() -> Disabled {
    add_disabled(1);
    // The handler runs on this thread: only the compiler could move what follows above the count.
    compiler_fence(Ordering::SeqCst);
    Disabled { not_send: PhantomData }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        if add_disabled(-1) == 0 {
            crate::poll();
        }
    }
}
