#![doc = include_str!("../README.md")]
//!
//! # Map
//!
//! | file | what |
//! |---|---|
//! | `word` | protocol: who runs, wants and holds a task; pure, under loom |
//! | `pending` | protocol: the signal on its way, acknowledged first; pure, under loom |
//! | `signal` | the handler and the injected call |
//! | `task`, `suspend` | tasks, and stopping them |
//! | `code` | which code may be interrupted |
//! | `disable` | sections that must not be |
//! | `nudge` | the door for `safepoint` |
//! | `thread` | what the handler finds of a thread |

// Under loom only the two protocols are built: the rest makes system calls.
#![cfg_attr(loom, allow(dead_code, reason = "used by the models of the protocols alone"))]

#[cfg(all(test, loom))]
mod model;
mod pending;
mod sync;
mod word;

#[cfg(not(loom))]
mod code;
#[cfg(not(loom))]
mod disable;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod nudge;
#[cfg(not(loom))]
mod signal;
#[cfg(not(loom))]
mod suspend;
#[cfg(not(loom))]
mod task;
#[cfg(not(loom))]
mod thread;

#[cfg(not(loom))]
pub use exports::*;

#[cfg(not(loom))]
mod exports {
    pub use crate::code::{CodeError, CodeRange, is_registered_code, register_code};
    pub use crate::disable::{Disabled, disable};
    pub use crate::error::{EnterError, InstallError, SuspendError, Why};
    pub use crate::nudge::Nudger;
    pub use crate::signal::{install, poll};
    pub use crate::suspend::{StoppedAt, Suspended, suspend};
    pub use crate::task::Task;
    pub use crate::thread::Outcome;
    pub use sigctx::inject::Frame;
}
