#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `docs/ARCHITECTURE.md` in the repository has the words of all crates, and their layers.
//!
//! In layers: a module uses modules of the rows above it, and of its own row in one direction only.
//!
//! | module | contents |
//! |---|---|
//! | `name` | a thread's name |
//! | `record` | one thread's record: its phases, and the pin (protocol) |
//! | `arena` | the records: claimed, walked, used again (protocol) |
//! | `finding` | words that were found once, compared whole (protocol) |
//! | `creation` | the creation lock, and the order of steps of a spawn (protocol) |
//! | [`spin`] | whether a thread that waits for another spins before it sleeps |
//! | `lookup`, `registry` | the calling thread's record; the process's arena and creation lock, and the handler of a fork |
//! | `cookie`, `thread_ref` | references to threads, pins, signals |
//! | [`procfs`], [`life`] | the kernel's files about threads; whether a thread has ended, without these files |
//! | `stack`, `mask` | a thread's stack bounds and signal mask |
//! | `slot`, `nudge`, [`rest`] | what upper crates keep on a thread and ask of each other |
//! | `freeze`, `exec`, `events` | the guard that stops creation; `exec` under it; events of threads |
//! | `membership`, `attach`, `spawn`, `template` | the begin and the end of a thread's registration; the thread that makes clean threads |

// Under loom only the protocols are built: the rest makes system calls and real threads.
#![cfg_attr(
    all(loom, not(test)),
    expect(
        dead_code,
        reason = "without the rest and without the models nothing uses the protocols"
    )
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
        mod finding;
        mod name;
        mod record;

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
        pub mod life;
        mod lookup;
        mod mask;
        mod membership;
        mod nudge;
        pub mod procfs;
        mod registry;
        pub mod rest;
        mod slot;
        mod spawn;
        pub mod spin;
        mod stack;
        mod template;
        mod thread_ref;

        pub use attach::{AttachError, Attached, attach, ensure_attached};
        pub use cookie::Cookie;
        pub use events::{Event, Subscription, subscribe};
        pub use exec::{BeforeExecError, ExecHold, ExecHook, ExecTimedOut, before_exec, exec, exec_within};
        pub use freeze::{
            CreationFrozen, FreezeTimedOut, StartTimedOut, freeze_creation, freeze_creation_within,
            holds_freeze, try_freeze_creation,
        };
        pub use mask::never_block;
        pub use name::Label;
        pub use nudge::{Nudge, NudgeCall, NudgeError, NudgeOutcome};
        pub use procfs::{OsThread, OsThreads, dump, os_threads};
        pub use registry::is_in_use;
        pub use slot::{Slot, SlotId};
        pub use spawn::{Builder, JoinHandle, ScopedJoinHandle, spawn};
        pub use template::{CleanError, start_template};
        pub use thread_ref::{Gone, Pinned, SignalError, ThreadRef, Threads, current, threads};
    }
}
