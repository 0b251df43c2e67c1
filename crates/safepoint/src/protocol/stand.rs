//! What a target does in a safe region, and where it stands.

use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering as Plain};

use sigctx::sync::{AtomicPtr, Ordering};

/// What a thread does in a safe region. Only handlers on that thread look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stance {
    /// It has the world stopped, or is about to, and runs the code that asked for that.
    Works = 0,
    /// It runs a closure that touches nothing that a stop protects.
    Away = 1 << 3,
    /// It waits inside the protocol.
    Waits = 1 << 4,
    /// It is stopped, and runs what the holder of the stop wants of it.
    Helps = 1 << 6,
}

/// Bit of the state word, beside a [`Stance`]: where the target stands is known (I10). What enters a region without a
/// slow path does not set it.
pub(super) const KNOWN: u32 = 1 << 5;

/// Where a target stands, if it says so (I10).
#[derive(Debug)]
pub(crate) struct Stands {
    /// What it points to is the crate's outer layer's.
    at: AtomicPtr<()>,
    /// As the poll word has it, which models need not look at. Written when the slot is taken.
    are_said: AtomicBool,
}

impl Stands {
    pub(super) fn new() -> Self {
        Self { at: AtomicPtr::new(ptr::null_mut()), are_said: AtomicBool::new(false) }
    }

    /// Target only, when it has taken the slot.
    pub(super) fn begin(&self, are_said: bool) {
        // Relaxed: before the first state that requesters look at.
        self.are_said.store(are_said, Plain::Relaxed);
        if are_said {
            self.set(ptr::null_mut());
        }
    }

    /// Whether the target says where it stands.
    pub(crate) fn are_said(&self) -> bool {
        self.are_said.load(Plain::Relaxed)
    }

    /// Where the target stands. For the target; and for a requester while it keeps the target from running.
    pub(crate) fn at(&self) -> *mut () {
        // Relaxed: I10.
        self.at.load(Ordering::Relaxed)
    }

    /// Target only, while it runs (I10).
    pub(crate) fn set(&self, at: *mut ()) {
        self.at.store(at, Ordering::Relaxed);
    }
}
