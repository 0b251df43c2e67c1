#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `protocol` is the core and makes no system calls; `edge` gives it fences, waiting and memory.
//! `world`, `mutator`, `stopped` and `processor` are what users hold; `pace` is how long requesters
//! wait and when they nudge; `forks` puts worlds in order in the child of a fork.

// Under loom only the protocol is built: the rest makes system calls and real threads.
#![cfg_attr(
    loom,
    expect(dead_code, unreachable_pub, reason = "some parts of the protocol serve the rest only")
)]

// The models do without `sigctx`.
#[cfg(not(loom))]
pub use sigctx::{Unsupported, supported};

cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        mod protocol;
        mod sync;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod error;
        mod for_each;
        mod forks;
        mod mutator;
        mod options;
        mod pace;
        mod stop;
        mod system;
        mod world;

        pub use error::{AttachError, EachError, StopError, Straggler, StragglerCause};
        pub use for_each::Processor;
        pub use mutator::Mutator;
        pub use options::{EachOptions, Reason, StopOptions};
        pub use protocol::MutatorState;
        pub use stop::{LastToStop, StopStats, Stopped, StoppedMutator};
        pub use system::Fences;
        pub use world::World;
    }
}
