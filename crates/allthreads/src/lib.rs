#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `docs/ARCHITECTURE.md` in the repository traces an operation through these files, and has the words of all
//! crates.
//!
//! An operation goes through the eight files of the first table. The second has what they share, and what
//! stands beside them. The modules form layers: of two, one may name the other, and never both, neither
//! directly nor through others.
//!
//! | module | what is there | runs on |
//! |---|---|---|
//! | `builder` | [`AllThreads`] and [`Batch`]: what is to be done, checked | the requester |
//! | `requester` | one operation, attempt by attempt: masks, turn, gather, calls, release | the requester |
//! | `census` | which threads there are, which are missing and why; sends the signals (`/proc/self/task`) | the requester |
//! | `signal` | the handler; the action, the mask, sending | both |
//! | `lock` | the turn: one requester at a time | both |
//! | `hold` | the protocol that holds all threads and proves it (models: `model.rs`) | both |
//! | `threads` | what is written down of each thread: excluded, signalled, joined, done | both |
//! | `calls` | the calls, their names, their results | both |
//!
//! | module | what is there |
//! |---|---|
//! | `privileges` | typed calls, as batches |
//! | `exec` | keeps operations and `threadreg::exec` out of each other's way |
//! | `end` | ends the process when results differ and that was asked for |
//! | `block` | the one static that has all shared words, and whose process it is |
//! | `chain` | the handlers that were there before ours |
//! | `notes` | the requester's working memory |
//! | `excluded` | the threads that every operation leaves out |
//! | `report`, `error`, `options` | what goes in and comes out |
//! | `credentials` | whether all threads have the same, before a drop |
//! | `signals`, `life`, `patience` | signals in use; whether a thread has ended; time |
//! | `system` | sleeping and waking on a word |

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod hold;
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
        pub use error::{Applied, Different, Diverged, Error, Partial, Straggler, TimedOut, StragglerCause};
        pub use excluded::exclude_always;
        pub use facade::{call, syscall};
        pub use options::{Barrier, KernelWorkers, OnDivergence, OnMixed, Results, Signal};
        pub use report::Report;
        pub use threads::MAX_EXCLUDED;
        pub use {preempt, safepoint, sigctx, threadreg};
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
mod facade {
    use core::ffi::{c_long, c_void};

    use crate::{AllThreads, Error, Report};

    /// Makes one system call on every thread, with the default options.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe), as [`AllThreads`].
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
    #[doc(alias = "doAllThreadsSyscall")]
    #[doc(alias = "setxid")]
    #[doc(alias = "INTERNAL_SYSCALL_SETXID")]
    pub unsafe fn syscall(number: c_long, args: [usize; 6]) -> Result<Report, Error> {
        // SAFETY: the obligations are the caller's.
        unsafe { AllThreads::new().syscall(number, args) }
    }

    /// Runs `function(data)` once on every thread, with the default options.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe), as [`AllThreads`].
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
    ) -> Result<Report, Error> {
        // SAFETY: the obligations are the caller's.
        unsafe { AllThreads::new().call(function, data) }
    }
}
