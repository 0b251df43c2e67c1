//! How a target becomes safe, and enters a safe region if it says where it stands (I10).

use super::slot::{MutatorSlot, MutatorState, Stance};
use super::stand::KNOWN;
use super::{Protocol, System};
use sigctx::sync::Ordering;

impl<I> MutatorSlot<I> {
    /// Target only: `Safe`, with what the thread does there. As [`MutatorSlot::set_state`]. If the target says where
    /// it stands, it has done so.
    pub(crate) fn set_safe(&self, stance: Stance) {
        self.set_entering(stance, true);
    }

    /// As [`MutatorSlot::set_safe`]; or, if not `known`, of a target that says where it stands next, if it has to.
    #[inline(always)]
    pub(crate) fn set_entering(&self, stance: Stance, known: bool) {
        let word = MutatorState::Safe as u32 | stance as u32 | if known { KNOWN } else { 0 };
        self.status.state.store(word, Ordering::Release);
    }
}

impl<S: System> Protocol<S> {
    /// Enters a safe region in which the target stands at `stand`. `parking` is called just before.
    pub(crate) fn enter_standing(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        stance: Stance,
        stand: *mut (),
        parking: impl FnOnce(),
    ) {
        // I10. To requesters it runs, also if it comes from `try_enter_of`.
        slot.status.stands.set(stand);
        slot.set_state(MutatorState::Running);
        // I8: a handler may have found it away.
        self.process(slot);
        parking();
        self.enter(slot, stance);
    }
}
