//! What the holder of a stop wants of one target: see [`help`](super::help).

use core::sync::atomic::AtomicBool as PlainBool;

use sigctx::sync::{AtomicU32, Ordering};

/// What the holder of a stop wants of one target.
#[derive(Debug)]
pub(crate) struct Help {
    /// Number of the round of the job that is to be run for the slot; 0 for none.
    pub(super) asked: AtomicU32,
    /// Whether the target waits for the end of a stop, and looks for jobs there.
    pub(super) waits: PlainBool,
}

impl Help {
    pub(super) fn new() -> Self {
        Self { asked: AtomicU32::new(0), waits: PlainBool::new(false) }
    }

    /// Acquire: the job was published before the number. Release: the holder sees what the target did before.
    pub(super) fn take(&self, round: u32) -> bool {
        self.asked.compare_exchange(round, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[cfg(not(loom))]
    pub(super) fn after_fork(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }
}
