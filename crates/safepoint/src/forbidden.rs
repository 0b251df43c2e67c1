//! That a mutator comes to no safe point: how deep in such code it is, and where it began.
//!
//! Written by the mutator's thread. Requesters look where it began when the mutator is late: relaxed, as what they find
//! is static, and may be over when it is reported.

use core::panic::Location;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// The places are nested. The outermost one is kept: it has to be left before a safe point may come.
#[derive(Debug, Default)]
pub(crate) struct Forbidden {
    depth: AtomicU32,
    /// Null outside.
    at: AtomicPtr<Location<'static>>,
}

impl Forbidden {
    pub(crate) fn begin(&self, at: &'static Location<'static>) {
        let depth = self.depth.load(Ordering::Relaxed);
        self.depth.store(depth + 1, Ordering::Relaxed);
        if depth == 0 {
            self.at.store(ptr::from_ref(at).cast_mut(), Ordering::Relaxed);
        }
    }

    pub(crate) fn end(&self) {
        let depth = self.depth.load(Ordering::Relaxed) - 1;
        self.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            self.at.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }

    /// The mutator is gone, and perhaps never came to the end.
    pub(crate) fn clear(&self) {
        self.depth.store(0, Ordering::Relaxed);
        self.at.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Where it began.
    pub(crate) fn at(&self) -> Option<&'static Location<'static>> {
        // SAFETY: null, or from a static reference.
        unsafe { self.at.load(Ordering::Relaxed).as_ref() }
    }

    /// Panics if no safe point may come here.
    #[track_caller]
    pub(crate) fn refuse(&self, safe_point: &str) {
        if let Some(at) = self.at() {
            panic!("{safe_point} in code without safe points, which begins at {at}");
        }
    }
}
