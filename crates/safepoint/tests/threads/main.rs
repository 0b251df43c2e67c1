//! The crate on real threads. What may hang runs in a child process with a watchdog.

mod common;
mod for_each;
mod nudge;
mod stop;
mod stress;
