//! A guard for the mutex that a fork does not leave locked.

use sigctx::fork::process;
use sigctx::sync::{Found, Mutex};

/// A mutex is locked until this is dropped.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    mutex: &'a Mutex,
    pub(crate) found: Found,
}

impl<'a> Locked<'a> {
    /// Waits until no thread of this process has the mutex.
    pub(crate) fn new(mutex: &'a Mutex) -> Self {
        let found = mutex.lock(process(), || None).expect("waits without a timeout");
        Self { mutex, found }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.mutex.unlock();
    }
}
