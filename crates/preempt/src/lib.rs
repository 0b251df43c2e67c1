#![doc = include_str!("../README.md")]
//!
//! # Map
//!
//! | file | what |
//! |---|---|
//! | `word` | protocol: who runs, wants and holds a task; pure, under loom |
//! | `pending` | protocol: the signal on its way, acknowledged first; pure, under loom |
//! | `install` | which signal, and whether our handler still gets it |
//! | `signal` | the handler and the injected call |
//! | `task`, `place`, `suspend` | tasks, where they run, and stopping them |
//! | `code`, `ranges` | which code may be interrupted |
//! | `wait` | how threads wait here, and tasks of threads that wait elsewhere |
//! | `clock` | how old a mark is, and how long a task ran |
//! | `disable` | sections that must not be |
//! | `nudge` | the door for `safepoint` |
//! | `thread` | what the handler finds of a thread |
//! | `fork` | what a child of a fork takes back |
//! | `symbol` | names for addresses in errors |

// Under loom only the two protocols are built: the rest makes system calls.
#![cfg_attr(loom, allow(dead_code, reason = "used by the models of the protocols alone"))]

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        #[cfg(all(test, loom))]
        mod model;
        mod pending;
        mod sync;
        mod word;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod clock;
        mod code;
        mod disable;
        mod error;
        mod fork;
        mod fork_lock;
        mod install;
        mod nudge;
        mod place;
        mod ranges;
        mod signal;
        mod suspend;
        mod symbol;
        mod task;
        mod thread;
        mod wait;

        pub use code::{
            CodeError, CodeRange, RetireError, is_registered_code, register_code,
            register_code_ranges,
        };
        pub use disable::{Disabled, disable};
        pub use error::{
            EnterError, Held, InstallError, RequestError, RunError, SuspendError, Unusable, Why,
        };
        pub use install::{Options, install, install_with};
        pub use nudge::Nudger;
        pub use signal::poll;
        pub use sigctx::inject::Frame;
        pub use suspend::{StoppedAt, Suspended};
        pub use task::Task;
        pub use thread::Outcome;
    }
}
