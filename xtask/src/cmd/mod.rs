//! The commands, one file each. Those with several steps, or tables of their own, are folders.

pub(crate) mod arches;
pub(crate) mod bench;
pub(crate) mod ci;
pub(crate) mod client;
pub(crate) mod demo;
pub(crate) mod lint;
mod program;
pub(crate) mod snapshots;
pub(crate) mod systems;
pub(crate) mod test;
