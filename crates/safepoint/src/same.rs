//! Whether a mutator is the one that it was.

use core::ptr;

use crate::protocol::{MutatorSlot, SlotUse};
use crate::system::Identity;

/// A mutator among those of all worlds, for code that gives a `&mut Mutator` away and has to find the same one there
/// afterwards: what is given can be swapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Same {
    slot: &'static MutatorSlot<Identity>,
    slot_use: SlotUse,
}

impl Same {
    pub(crate) fn of(slot: &'static MutatorSlot<Identity>) -> Self {
        Self { slot, slot_use: slot.current_use() }
    }

    /// Whether it is this one. It lives.
    pub(crate) fn is(self, slot: &MutatorSlot<Identity>) -> bool {
        ptr::eq(self.slot, slot) && self.slot_use == slot.current_use()
    }
}
