//! A world in the child of a fork. The child has one thread, the survivor, and a copy of whatever the
//! others were in the middle of. They are gone: their slots are dead, what they asked is asked no
//! more, what they were to answer is answered. What the survivor itself is in the middle of goes on.

use core::sync::atomic::Ordering::Relaxed;

use super::round::Round;
use super::slot::{MutatorState, REST, STOP, Slot};
use super::{Edge, Protocol};

impl<E: Edge> Protocol<E> {
    /// To be called on the one thread of the child, which was `parent` and is `me`. `bury` forgets
    /// the owner of a slot that is not the survivor's; `survives` says which is, and puts its
    /// identity in order.
    pub(crate) fn after_fork(
        &self,
        parent: i32,
        me: i32,
        survives: impl Fn(&'static Slot<E::Identity>) -> bool,
        bury: impl Fn(&'static Slot<E::Identity>),
    ) {
        // Relaxed throughout: there is no other thread.
        let stopping = self.stop_turn.after_fork(parent, me);
        self.each_turn.after_fork(parent, me);
        // What requesters that are gone have asked is asked no more. A survivor that has the world
        // stopped from inside its safe region has asked itself. A recall is of its own handler's (I8): the
        // task is held no more, and is to go on when the region ends.
        let kept = REST | if stopping { STOP } else { 0 };
        self.arena.each_slot(|slot| {
            slot.asked.poll.fetch_and(kept, Relaxed);
            slot.asked.stop_owed.store(0, Relaxed);
            slot.asked.each_owed.store(0, Relaxed);
            if slot.state() != MutatorState::Dead && !survives(slot) {
                bury(slot);
                slot.set_state(MutatorState::Dead);
            }
        });
        // A round that the survivor is counting is over; answers to one that is are ignored.
        self.stop.after_fork();
        self.each.after_fork();
        let word = self.stop_word.load(Relaxed);
        if !stopping && !word.is_multiple_of(2) {
            self.stop_word.store(word.wrapping_add(1), Relaxed);
        }
    }
}

impl Round {
    fn after_fork(&self) {
        self.remaining.fetch_and(!super::round::COUNT, Relaxed);
    }
}
