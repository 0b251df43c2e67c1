#![doc = include_str!("../README.md")]
//!
//! # Map of the modules
//!
//! | module | what is there |
//! |---|---|
//! | [`sys`] | raw system calls, signal sets, kernel actions, futexes: no errno, no TLS |
//! | [`handler`] | install a handler, what it gets, how it chains to the previous action |
//! | [`SigCtx`], [`Reg`], [`Registers`], [`Status`] | the interrupted context, by name |
//! | [`inject`] | run a call in the interrupted code and resume exactly |
//! | [`altstack`] | a large alternate signal stack with a guard page |
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod arch;

pub mod altstack;
mod context;
pub mod handler;
pub mod inject;
#[doc(hidden)]
pub mod probe;
mod registers;
pub mod sys;
mod vdso;

pub use arch::{Reg, Status};
pub use context::{Sender, SigCtx};
pub use registers::Registers;
