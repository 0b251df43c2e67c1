//! What is seen of mutators, on real threads: why they are late, where they stand, what they did.
//! What may hang runs in a child process with a watchdog.

#[path = "../threads/common.rs"]
mod common;
mod gaps;
mod interrupted;
mod jit;
mod late;
mod recording;
mod roots;
mod trace;
mod warn;
