//! What a mutator does with its own slot. Everything here is called by the slot's owner only.

use super::round::{Generation, MOST};
use super::slot::{AWAITED, CLAIMED, EACH, MutatorState, STOP, Slot};
use super::{Edge, Protocol};
use crate::sync::{Ordering, fence};

impl<E: Edge> Protocol<E> {
    /// Takes a slot, lets `identify` say whose it is, and leaves its first safe region: waits while
    /// the world is stopped. `None` when the world is full.
    pub(crate) fn attach(
        &self,
        identify: impl FnOnce(&'static Slot<E::Identity>),
    ) -> Option<&'static Slot<E::Identity>> {
        let slot = self.arena.take(MOST)?;
        self.settle_predecessors_debts(slot);
        identify(slot);
        slot.told.generation.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        slot.set_state(MutatorState::Safe);
        // Pairs with the fence between a requester's odd stop word and its walk: either the walk
        // meets this slot, or this look meets the odd word.
        fence(Ordering::SeqCst);
        if self.is_stopping() {
            slot.asked.poll.fetch_or(STOP, Ordering::Relaxed);
        }
        self.leave(slot);
        Some(slot)
    }

    /// A requester that saw the last owner alive may have asked something since, and then nobody
    /// answered. The new owner is not meant; as far as the request goes the old one is gone.
    fn settle_predecessors_debts(&self, slot: &Slot<E::Identity>) {
        self.answer_stop(slot);
        loop {
            let owed = slot.asked.each_owed.load(Ordering::Acquire);
            if owed & CLAIMED != 0 {
                self.await_claim(slot, owed);
            } else if owed == 0 {
                return;
            } else if Self::take_each(slot, owed) {
                self.answer_each(slot, owed);
            }
        }
    }

    /// Gives the slot up; `forget` is called when the owner owes nothing any more. Runs the closure
    /// that is owed, answers a stop without waiting for its end.
    pub(crate) fn detach(&self, slot: &'static Slot<E::Identity>, forget: impl FnOnce()) {
        loop {
            // I2: a stop that is asked from here on finds a slot that runs no user code.
            slot.set_state(MutatorState::Detaching);
            fence(Ordering::SeqCst);
            self.answer_stop(slot);
            if slot.asked.each_owed.load(Ordering::Acquire) == 0 {
                // A for-each that asks after this look finds the slot dead, and answers itself.
                forget();
                slot.set_state(MutatorState::Dead);
                return;
            }
            // The requester may not have come to set the bit yet.
            slot.asked.poll.fetch_or(EACH, Ordering::Relaxed);
            // I6: closures run in a running world.
            slot.set_state(MutatorState::Running);
            self.settle(slot);
        }
    }

    /// Enters a safe region.
    #[inline]
    pub(crate) fn enter(&self, slot: &'static Slot<E::Identity>) {
        // I2: the state, then the flag.
        slot.set_state(MutatorState::Safe);
        self.edge.light();
        if slot.is_asked() {
            self.enter_asked(slot);
        }
    }

    /// A request that came while the slot was running is answered before the region is entered:
    /// its requester may have seen `Running`, and gone to sleep.
    #[cold]
    fn enter_asked(&self, slot: &'static Slot<E::Identity>) {
        loop {
            fence(Ordering::SeqCst);
            // Acquire: the bit is set after the debt is written.
            let poll = slot.asked.poll.load(Ordering::Acquire);
            if poll & STOP != 0 {
                self.answer_stop(slot);
            }
            if poll & EACH == 0 || slot.asked.each_owed.load(Ordering::Acquire) == 0 {
                return;
            }
            slot.set_state(MutatorState::Running);
            self.settle(slot);
            slot.set_state(MutatorState::Safe);
        }
    }

    /// Leaves a safe region: waits while the world is stopped, or while a requester runs a closure
    /// for this slot.
    #[inline]
    pub(crate) fn leave(&self, slot: &'static Slot<E::Identity>) {
        slot.set_state(MutatorState::Running);
        self.edge.light();
        if slot.is_asked() {
            self.settle(slot);
        }
    }

    /// Serves what is asked until nothing is. The state is `Running` before and after; in between
    /// it is `Safe` while the world is stopped.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&self, slot: &'static Slot<E::Identity>) {
        loop {
            // I2, in full: requesters need not have made the heavy fence yet.
            fence(Ordering::SeqCst);
            let poll = slot.asked.poll.load(Ordering::Acquire);
            if poll & STOP != 0 {
                self.be_stopped(slot);
            } else if poll & EACH != 0 {
                self.serve_each(slot);
            } else {
                return;
            }
        }
    }

    /// Answers a stop and waits for its end.
    fn be_stopped(&self, slot: &'static Slot<E::Identity>) {
        slot.set_state(MutatorState::Safe);
        fence(Ordering::SeqCst);
        self.answer_stop(slot);
        loop {
            self.wait_while_stopped();
            // Only the owner clears the bit, and then looks at its source again: the next stop may
            // have set it before it was cleared. Acquire: who set the bit made the word odd before.
            slot.asked.poll.fetch_and(!STOP, Ordering::AcqRel);
            if !self.is_stopping() {
                break;
            }
            slot.asked.poll.fetch_or(STOP, Ordering::Relaxed);
        }
        slot.set_state(MutatorState::Running);
    }

    fn wait_while_stopped(&self) {
        loop {
            // Acquire, with the resume's release: what was done in the stop is seen after it.
            let word = self.stop_word.load(Ordering::Acquire);
            if word.is_multiple_of(2) {
                return;
            }
            self.edge.wait(&self.stop_word, word, None);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop_word.load(Ordering::Acquire) % 2 == 1
    }

    /// Answers the stop that the slot owes an answer to, if the requester has not done so.
    fn answer_stop(&self, slot: &Slot<E::Identity>) {
        let owed = slot.asked.stop_owed.load(Ordering::Relaxed);
        if owed != 0 && Self::take_stop(slot, owed) {
            // The requester may not have come to set the bit yet, and counts this slot as stopped
            // from the answer on: without the bit the owner would run again. Relaxed: the owner's
            // own next look finds it, and the debt's acquire has shown it the odd word.
            slot.asked.poll.fetch_or(STOP, Ordering::Relaxed);
            let last = self.stop.answer(Generation(owed), Some(slot.index()));
            if last {
                self.edge.wake_all(&self.stop.remaining);
            }
        }
    }

    /// I3: whoever succeeds answers. Release: the owner's writes so far are handed to the
    /// requester.
    pub(super) fn take_stop(slot: &Slot<E::Identity>, owed: u32) -> bool {
        let word = &slot.asked.stop_owed;
        word.compare_exchange(owed, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// I3, for the for-each. Acquire: the call was published before the debt.
    pub(super) fn take_each(slot: &Slot<E::Identity>, owed: u32) -> bool {
        let word = &slot.asked.each_owed;
        word.compare_exchange(owed, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn answer_each(&self, slot: &Slot<E::Identity>, owed: u32) {
        if self.each.answer(Generation(owed), Some(slot.index())) {
            self.edge.wake_all(&self.each.remaining);
        }
    }

    /// Sleeps until the claim on the slot's debt is resolved; may return early.
    fn await_claim(&self, slot: &Slot<E::Identity>, owed: u32) {
        let (word, awaited) = (&slot.asked.each_owed, owed | AWAITED);
        let marked = word.compare_exchange(owed, awaited, Ordering::Relaxed, Ordering::Relaxed);
        if marked.is_ok() {
            self.edge.wait(word, awaited, None);
        }
    }

    /// Runs the closure that the slot owes, or waits for the requester to have run it.
    fn serve_each(&self, slot: &'static Slot<E::Identity>) {
        let owed = slot.asked.each_owed.load(Ordering::Acquire);
        if owed == 0 {
            slot.asked.poll.fetch_and(!EACH, Ordering::AcqRel);
            // As for STOP: the next request may have set the bit before it was cleared.
            if slot.asked.each_owed.load(Ordering::Acquire) != 0 {
                slot.asked.poll.fetch_or(EACH, Ordering::Relaxed);
            }
        } else if owed & CLAIMED != 0 {
            // I4. The requester may be stopped meanwhile, and so may this thread.
            slot.set_state(MutatorState::Safe);
            fence(Ordering::SeqCst);
            self.answer_stop(slot);
            self.await_claim(slot, owed);
            slot.set_state(MutatorState::Running);
        } else if Self::take_each(slot, owed) {
            self.visit(slot);
            self.answer_each(slot, owed);
        }
    }
}
