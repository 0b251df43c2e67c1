#![doc = include_str!("../README.md")]

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod gather;
        mod hold;
        mod sync;

        #[cfg(all(test, loom))]
        mod model;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod batch;
        mod block;
        mod builder;
        mod call_name;
        mod calls;
        mod census;
        mod credentials;
        mod end;
        mod error;
        mod excluded;
        mod exec;
        mod life;
        mod lock;
        mod outcome;
        mod owner;
        mod patience;
        pub mod privileges;
        mod process;
        mod roll;
        mod signal;
        mod signals;
        mod table;
        mod trail;

        pub use batch::Batch;
        pub use builder::{
            AllThreads, Barrier, KernelWorkers, OnDivergence, OnMixed, Results, Signal,
        };
        pub use call_name::CallName;
        pub use calls::MAX_CALLS;
        pub use error::{Applied, Different, Diverged, Error, Straggler, TimedOut, Why};
        pub use excluded::{MAX_EXCLUDED, exclude_always};
        pub use facade::{call, syscall};
        pub use outcome::Outcome;
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
