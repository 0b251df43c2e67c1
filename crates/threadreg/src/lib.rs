#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! | module | what is there |
//! |---|---|
//! | `record` | one thread's record: its phases, and the pin (protocol) |
//! | `arena` | the records: claimed, walked, used again (protocol) |
//! | `creation` | the creation lock and the order of steps of a spawn (protocol) |
//! | `registry`, `lookup` | the process's instance of these, the calling thread, fork |
//! | `membership`, `spawn`, `attach`, `mask`, `stack` | what a thread does to begin and to end |
//! | `template` | the thread that makes clean threads |
//! | `freeze`, `exec`, `thread_ref`, `cookie`, `slot`, `nudge`, [`rest`], `events`, `name` | the public face |
//! | [`procfs`] | what the kernel's files say |

// Under loom only the protocol cores are built: the rest makes system calls and real threads.
#![cfg_attr(
    all(loom, not(test)),
    expect(dead_code, reason = "without the rest and without the models nobody uses the cores")
)]
#![cfg_attr(
    loom,
    expect(
        clippy::modulo_one,
        clippy::trivially_copy_pass_by_ref,
        reason = "models are small: one word a chunk, short names"
    )
)]

pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod arena;
        mod creation;
        mod name;
        mod record;
        mod sync;

        #[cfg(all(test, loom))]
        mod model;

        pub use name::Name;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod attach;
        mod cookie;
        mod events;
        mod exec;
        mod freeze;
        mod lookup;
        mod mask;
        mod membership;
        mod nudge;
        pub mod procfs;
        mod registry;
        pub mod rest;
        mod slot;
        mod spawn;
        mod stack;
        mod template;
        mod thread_ref;

        pub use attach::{AttachError, Attached, attach};
        pub use cookie::Cookie;
        pub use events::{Event, Subscription, subscribe};
        pub use exec::{ExecHold, ExecHook, ExecTimedOut, before_exec, exec, exec_within};
        pub use freeze::{
            CreationFrozen, FreezeTimedOut, NotStarted, freeze_creation, freeze_creation_within,
            holds_freeze, try_freeze_creation,
        };
        pub use mask::never_block;
        pub use nudge::{Nudge, NudgeCall, NudgeError};
        pub use procfs::{OsThread, OsThreads, dump, os_threads};
        pub use registry::is_in_use;
        pub use slot::{Slot, SlotId};
        pub use spawn::{Builder, JoinHandle, ScopedJoinHandle, spawn};
        pub use template::{CleanError, start_template};
        pub use thread_ref::{Gone, Pinned, SignalError, ThreadRef, Threads, current, threads};
    }
}
