//! Whether the calling thread is inside a for-each closure, and for which slots closures run.

use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use crate::edge::Identity;

thread_local! {
    // Const and without destructor: also readable where a nudged thread was interrupted.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread runs a closure of [`Mutator::for_each_processor`](crate::Mutator), of
/// whatever world.
pub(crate) fn is_running() -> bool {
    DEPTH.get() != 0
}

/// While it lives, [`is_running`], and [`Identity::visited`] of whoever is visited.
pub(crate) struct Running<'a> {
    visited: &'a Identity,
    /// The depth is the thread's.
    not_send: PhantomData<*mut ()>,
}

impl<'a> Running<'a> {
    /// A slot has one visitor at a time: who took, or claimed, what it owes.
    pub(crate) fn new(visited: &'a Identity) -> Self {
        DEPTH.set(DEPTH.get() + 1);
        visited.visited.store(true, Ordering::Relaxed);
        Self { visited, not_send: PhantomData }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.visited.visited.store(false, Ordering::Relaxed);
        DEPTH.set(DEPTH.get() - 1);
    }
}
