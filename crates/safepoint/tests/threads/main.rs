//! The crate on real threads. What may hang runs in a child process with a watchdog.

mod bounds;
mod chaos;
mod common;
mod for_each;
mod fork;
mod metrics;
mod nudge;
mod stop;
mod storm;
mod straggler;
mod stress;
