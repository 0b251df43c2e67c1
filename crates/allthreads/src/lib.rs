#![doc = include_str!("../README.md")]

#[cfg(not(loom))]
mod batch;
#[cfg(not(loom))]
mod block;
#[cfg(not(loom))]
mod builder;
#[cfg(not(loom))]
mod calls;
#[cfg(not(loom))]
mod census;
#[cfg(not(loom))]
mod end;
#[cfg(not(loom))]
mod error;
mod gather;
mod hold;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
mod outcome;
#[cfg(not(loom))]
mod owner;
#[cfg(not(loom))]
pub mod privileges;
#[cfg(not(loom))]
mod signal;
mod sync;
#[cfg(not(loom))]
mod table;

#[cfg(all(test, loom))]
mod model;

#[cfg(not(loom))]
pub use facade::*;

#[cfg(not(loom))]
mod facade {
    pub use crate::batch::Batch;
    pub use crate::builder::{AllThreads, Barrier, OnDivergence, Signal};
    pub use crate::calls::MAX_CALLS;
    pub use crate::census::MAX_EXCLUDED;
    pub use crate::error::{Applied, Different, Diverged, Error, Straggler, Unresponsive, Why};
    pub use crate::outcome::Outcome;
    pub use {preempt, safepoint, sigctx, threadreg};

    use core::ffi::{c_long, c_void};

    /// Makes one system call on every thread, with the default options.
    ///
    /// # Signal safety
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Blocking
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Errors
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Safety
    ///
    /// As for [`AllThreads::syscall`].
    pub unsafe fn syscall(number: c_long, args: [usize; 6]) -> Result<Outcome, Error> {
        // SAFETY: the obligations are the caller's.
        unsafe { AllThreads::new().syscall(number, args) }
    }

    /// Runs `function(data)` once on every thread, with the default options.
    ///
    /// # Signal safety
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Blocking
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Errors
    ///
    /// As [`AllThreads::call`].
    ///
    /// # Safety
    ///
    /// As for [`AllThreads::call`].
    pub unsafe fn call(
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Result<Outcome, Error> {
        // SAFETY: the obligations are the caller's.
        unsafe { AllThreads::new().call(function, data) }
    }
}
