#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `docs/ARCHITECTURE.md` in the repository traces a suspension through these files, and has the words of all
//! crates.
//!
//! Each module uses only those below it.
//!
//! | file | what |
//! |---|---|
//! | `install`, `nudge` | which signal is installed; what `safepoint` calls for late mutators |
//! | `handler` | the handler, and the injected call |
//! | `slicer` | time slices: who ends them |
//! | `suspend` | the requester's side: suspend, look, resume; requests |
//! | `task` | tasks, and how a thread enters one and blocks in it |
//! | `poll` | safe points that code has of its own accord, and sections without any |
//! | `rest` | tasks whose thread stands still for another crate |
//! | `target` | the target's side: what the thread of a task does at a safe point, and how it waits |
//! | `slices` | which slices are over |
//! | `thread` | what is known of a thread: the signal on its way, its calls, what it waits for |
//! | `stats` | how often what has happened |
//! | `code`, `ranges` | which code may be interrupted |
//! | `error`, `symbol` | errors, and names for addresses in them |
//! | `signal` | which signal, and whether our handler still gets it |
//! | `place`, `lock` | where a task runs; locks that a fork does not leave locked |
//! | `word` | protocol: whether a task runs, is wanted, is held; checked by loom |
//! | `pending` | protocol: the signal on its way, acknowledged first; checked by loom |
//! | `asked` | protocol: whether a poll has anything to look for; checked by loom |
//! | `slice` | protocol: since when a thread runs its task, and that the slice is over; checked by loom |
//! | `seen` | protocol: where the handler found a thread last; checked by loom |
//! | `clock` | how old a mark is, and how long ago a task went on |
//!
//! A suspension passes through `suspend`, `word`, `thread`, `signal`, `pending`, the kernel, `handler`,
//! `code`, `target`, and back by `word` and `suspend`.

// Under loom only the protocols are built: the rest makes system calls.
#![cfg_attr(loom, allow(dead_code, reason = "used by the models of the protocols alone"))]

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod asked;
        #[cfg(all(test, loom))]
        mod model;
        mod pending;
        mod slice;
        mod seen;
        mod word;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod clock;
        #[cfg_attr(test, macro_use)]
        mod code;
        mod error;
        mod handler;
        mod install;
        mod nudge;
        mod place;
        mod poll;
        mod ranges;
        mod rest;
        mod signal;
        mod slicer;
        mod slices;
        mod stats;
        mod suspend;
        mod symbol;
        mod target;
        mod task;
        mod thread;

        pub use code::{
            CodeError, CodeRange, RetireError, is_registered_code, register_code,
            register_code_ranges,
        };
        pub use error::{
            EnterError, Held, InstallError, RequestError, RunError, SignalOutcome, StragglerCause,
            SuspendError, Unusable,
        };
        pub use install::{Options, install, install_with};
        pub use nudge::Nudger;
        pub use poll::{Disabled, disable, poll, request_in};
        pub use sigctx::inject::Frame;
        pub use slicer::{Slicer, SlicerError};
        pub use stats::{Stats, stats};
        pub use suspend::{StoppedAt, Suspended};
        pub use task::Task;
    }
}
