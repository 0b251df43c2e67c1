//! What else is asked of mutators than to stop, and how stops are asked for, on real threads.
//! What may hang runs in a child process with a watchdog.

#[path = "../threads/common.rs"]
mod common;
mod current_stop;
mod handle;
mod handshake;
mod many;
mod moved;
mod mutex;
mod nested;
mod no_safepoint;
mod on_all;
mod per_mutator;
mod processors;
mod processors_bounds;
mod processors_storm;
mod reenter;
mod registered;
mod turns;
mod visits;
