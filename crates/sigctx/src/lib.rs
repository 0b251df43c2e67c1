#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! `docs/ARCHITECTURE.md` in the repository has the words of all crates, and their layers.
//!
//! | module | what is there |
//! |---|---|
//! | [`sys`] | raw system calls, signal sets, kernel actions, futexes: no errno, no TLS |
//! | [`handler`] | install a handler, what it gets, how it chains to the previous action |
//! | `context`, `registers` | [`SigCtx`], [`Reg`], [`Registers`], [`Status`]: the interrupted context, by name |
//! | [`frames`] | the callers of interrupted code, by frame pointers, for messages |
//! | [`inject`] | run a call in the interrupted code and resume exactly |
//! | [`module`] | keep the library with a handler loaded; name the code at an address |
//! | [`altstack`] | a large alternate signal stack with a guard page |
//! | [`snapshot`] | contexts printed the same way in every run, for snapshot tests |
//! | [`spill`] | the registers that a function keeps for its caller, written to memory: for scanners of roots |
//! | [`sync`] | words and sleeping on them, as loom can check them; a mutex that a fork does not leave locked |
//! | [`fork`] | what a library does in the child of a fork |
//! | `arch` | everything that depends on the architecture, one folder for each |
//! | `chain` | one signal's way through several handlers, so that it never goes round in a circle |
//! | `vdso` | where the vDSO is: no call is injected there |
//! | `support` | [`supported`] and [`Unsupported`] |
//! | `probe` | loops that show whether an interruption lost anything: for tests alone, behind a feature |
//!
//! Systems other than Linux have [`supported`] and [`Unsupported`] alone.
#![no_std]
#![cfg_attr(any(target_arch = "mips", target_arch = "mips64"), feature(asm_experimental_arch))]

#[cfg(target_os = "linux")]
extern crate alloc;
#[cfg(any(test, loom, not(target_os = "linux")))]
extern crate std;

mod support;

pub use support::{Unsupported, supported};

// Under loom only what models are made of is built: the rest makes system calls.
cfg_if::cfg_if! {
    if #[cfg(target_os = "linux")] {
        pub mod sync;

        /// A model is one process.
        #[cfg(loom)]
        #[doc(hidden)]
        pub mod fork {
            /// The one process.
            ///
            /// # Signal safety
            ///
            /// AS-Safe: a constant.
            #[must_use]
            pub const fn process() -> u32 {
                0
            }
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(target_os = "linux", not(loom)))] {
        mod arch;

        pub mod altstack;
        mod chain;
        mod context;
        pub mod fork;
        pub mod frames;
        pub mod handler;
        pub mod inject;
        pub mod module;
        #[cfg(feature = "probe")]
        #[doc(hidden)]
        pub mod probe;
        mod registers;
        pub mod snapshot;
        pub mod spill;
        pub mod sys;
        mod vdso;

        pub use arch::{Reg, SigCtx, Status};
        pub use context::Sender;
        pub use registers::Registers;
    }
}
