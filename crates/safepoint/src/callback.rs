//! Whether the calling thread is inside a for-each closure.

use core::cell::Cell;
use core::marker::PhantomData;

thread_local! {
    // Const and without destructor: also readable where a nudged thread was interrupted.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread runs a closure of [`Mutator::for_each_processor`](crate::Mutator), of
/// whatever world.
pub(crate) fn is_running() -> bool {
    DEPTH.get() != 0
}

/// While it lives, [`is_running`].
pub(crate) struct Running(PhantomData<*mut ()>);

impl Running {
    pub(crate) fn new() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self(PhantomData)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
