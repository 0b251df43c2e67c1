#![doc = include_str!("../README.md")]

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod hold;
        mod sync;
        mod system;

        #[cfg(all(test, loom))]
        mod model;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod block;
        mod builder;
        mod calls;
        mod census;
        mod chain;
        mod credentials;
        mod end;
        mod error;
        mod excluded;
        mod exec;
        mod life;
        mod lock;
        mod notes;
        mod options;
        mod patience;
        pub mod privileges;
        mod report;
        mod requester;
        mod signal;
        mod signals;
        mod threads;

        pub use builder::{AllThreads, Batch};
        pub use calls::{CallName, MAX_CALLS};
        pub use error::{Applied, Different, Diverged, Error, Straggler, TimedOut, Why};
        pub use excluded::exclude_always;
        pub use facade::{call, syscall};
        pub use options::{Barrier, KernelWorkers, OnDivergence, OnMixed, Results, Signal};
        pub use report::Outcome;
        pub use threads::MAX_EXCLUDED;
        pub use {preempt, safepoint, sigctx, threadreg};
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
mod facade {
    use core::ffi::{c_long, c_void};

    use crate::{AllThreads, Error, Outcome};

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
    #[doc(alias = "AllThreadsSyscall")]
    #[doc(alias = "setxid")]
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
