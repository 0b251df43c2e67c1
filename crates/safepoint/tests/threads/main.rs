//! The crate on real threads. What may hang runs in a child process with a watchdog.

mod bounds;
mod chaos;
mod common;
mod for_each;
mod fork;
mod gaps;
mod handle;
mod handshake;
mod interrupted;
mod jit;
mod late;
mod many;
mod metrics;
mod mutex;
mod no_safepoint;
mod nudge;
mod recording;
mod reenter;
mod roots;
mod stop;
mod storm;
mod straggler;
mod stress;
mod trace;
mod turns;
mod warn;
