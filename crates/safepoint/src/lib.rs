#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `protocol` is the core and makes no system calls; `edge` gives it fences, waiting and memory.
//! `world`, `mutator`, `stopped` and `processor` are what users hold; `pace` is how long requesters
//! wait and when they nudge.

// Under loom only the protocol is built: the rest makes system calls and real threads.
#![cfg_attr(
    loom,
    expect(dead_code, unreachable_pub, reason = "some parts of the protocol serve the rest only")
)]

mod protocol;
mod sync;

#[cfg(not(loom))]
mod callback;
#[cfg(not(loom))]
mod edge;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod mutator;
#[cfg(not(loom))]
mod options;
#[cfg(not(loom))]
mod pace;
#[cfg(not(loom))]
mod processor;
#[cfg(not(loom))]
mod stopped;
#[cfg(not(loom))]
mod world;

#[cfg(not(loom))]
pub use self::{
    edge::Fences,
    error::{AttachError, StopError, Straggler},
    mutator::Mutator,
    options::{Reason, StopOptions},
    processor::Processor,
    protocol::MutatorState,
    stopped::{Last, StopStats, Stopped, StoppedMutator},
    world::World,
};
