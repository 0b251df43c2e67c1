#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! | module | what is there |
//! |---|---|
//! | `record` | one thread's record: its phases, and the pin (protocol) |
//! | `arena` | the records: claimed, walked, used again (protocol) |
//! | `creation` | the creation lock and the order of steps of a spawn (protocol) |
//! | `registry` | the process's instance of these, the calling thread, fork |
//! | `membership`, `spawn`, `attach`, `mask` | what a thread does to begin and to end |
//! | `freeze`, `thread_ref`, `slot`, `nudge`, `events`, `name` | the public face |
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

mod arena;
mod creation;
mod name;
mod record;
mod sync;

#[cfg(all(test, loom))]
mod model;

#[cfg(not(loom))]
mod attach;
#[cfg(not(loom))]
mod events;
#[cfg(not(loom))]
mod freeze;
#[cfg(not(loom))]
mod mask;
#[cfg(not(loom))]
mod membership;
#[cfg(not(loom))]
mod nudge;
#[cfg(not(loom))]
pub mod procfs;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
mod slot;
#[cfg(not(loom))]
mod spawn;
#[cfg(not(loom))]
mod thread_ref;

pub use name::Name;

#[cfg(not(loom))]
pub use self::{
    attach::{AttachError, Attached, attach},
    events::{Event, Subscription, subscribe},
    freeze::{CreationFrozen, NotStarted, freeze_creation, try_freeze_creation},
    mask::never_block,
    nudge::{Nudge, NudgeCall, NudgeError},
    procfs::{OsThread, OsThreads, dump, os_threads},
    registry::current,
    slot::{Slot, SlotId},
    spawn::{Builder, JoinHandle, spawn},
    thread_ref::{Pinned, SignalError, ThreadRef, Threads, threads},
};
