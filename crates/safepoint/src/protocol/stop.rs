//! The requester's side of stop-the-world. The caller has the stop turn and is, if a mutator, in a
//! safe region: it can be counted and asked by others while it waits.

use core::ptr;

use super::request::Generation;
use super::slot::{By, MutatorState, STOP, Slot};
use super::{Edge, Pace, Protocol};
use crate::sync::{Ordering, fence};

/// A stop that succeeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Mutators that were stopped, the requester not among them.
    pub(crate) mutators: u32,
    /// Those among them that were running when they were asked.
    pub(crate) running: u32,
    /// Who answered last; `None` if the requester answered for it.
    pub(crate) last: Option<By>,
}

/// A stop that was taken back; what was seen of those who had not answered.
#[derive(Debug)]
pub(crate) struct TooLate<S>(pub(crate) Vec<S>);

impl<E: Edge> Protocol<E> {
    /// Stops every mutator but `own`. After `Ok` nobody is `Running` until [`Protocol::resume`];
    /// after `Err` the world runs.
    pub(crate) fn stop<P: Pace<E>>(
        &self,
        own: Option<&'static Slot<E::Identity>>,
        pace: &mut P,
    ) -> Result<Counted, TooLate<P::Seen>> {
        let generation = self.stop.begin();
        // Release: whoever finds the bit finds the odd word. The turn makes this the only writer.
        self.stop_word.fetch_add(1, Ordering::Release);
        // Pairs with `attach`'s fence.
        fence(Ordering::SeqCst);
        let (mutators, safe) = self.arm_stop(own, generation);
        // I2: needed before a slot that was seen safe is relied on, and before sleeping. When all
        // run and answer in time, neither happens and the fence is not paid for.
        let mut fenced = safe != 0;
        if fenced {
            self.edge.heavy();
            self.answer_for_the_safe(generation, |_, _| ());
        }
        if !self.stop.answer(generation, None) {
            let done = || self.stop.pending().is_none();
            if !self.edge.spin(mutators - safe, done) {
                while let Some(seen) = self.stop.pending() {
                    if pace.expired() {
                        self.withdraw(generation, pace)?;
                    } else if !fenced {
                        self.edge.heavy();
                        fenced = true;
                        self.answer_for_the_safe(generation, |_, _| ());
                    } else {
                        self.edge.wait(&self.stop.remaining, seen, pace.nap());
                        if pace.due() {
                            let late =
                                |slot: &'static Slot<E::Identity>, wanted: &dyn Fn() -> bool| {
                                    pace.late(slot, wanted);
                                };
                            self.answer_for_the_safe(generation, late);
                        }
                    }
                }
            }
        }
        Ok(Counted { mutators, running: mutators - safe, last: self.stop.last() })
    }

    /// Asks every live slot. Returns how many, and how many of them seemed safe.
    fn arm_stop(
        &self,
        own: Option<&'static Slot<E::Identity>>,
        generation: Generation,
    ) -> (u32, u32) {
        let (mut asked, mut safe) = (0, 0);
        for slot in self.live() {
            if own.is_some_and(|own| ptr::eq(own, slot)) {
                continue;
            }
            self.stop.expect();
            // The debt, then the bit: who finds the bit finds the debt.
            slot.asked.stop_owed.store(generation.0, Ordering::Release);
            slot.asked.poll.fetch_or(STOP, Ordering::AcqRel);
            asked += 1;
            safe += u32::from(slot.state() != MutatorState::Running);
        }
        (asked, safe)
    }

    /// Takes the answers of all slots that are not running; they look at the poll word before they
    /// run. `late` gets the others.
    fn answer_for_the_safe(
        &self,
        generation: Generation,
        mut late: impl FnMut(&'static Slot<E::Identity>, &dyn Fn() -> bool),
    ) {
        for slot in self.arena.slots() {
            let owes = || slot.asked.stop_owed.load(Ordering::Relaxed) == generation.0;
            let runs = || slot.state() == MutatorState::Running;
            if !owes() {
                continue;
            }
            if runs() {
                // I7.
                late(slot, &|| runs() && owes());
            } else if Self::take_stop(slot, generation.0) {
                self.stop.answer(generation, None);
            }
        }
    }

    /// Past the deadline: takes back what is still owed and lets everybody go. `Ok` if no running
    /// slot owed anything any more, so that the stop succeeds after all.
    fn withdraw<P: Pace<E>>(
        &self,
        generation: Generation,
        pace: &P,
    ) -> Result<(), TooLate<P::Seen>> {
        // Who is in a safe region is not late: the deadline may have passed before the first look.
        self.edge.heavy();
        self.answer_for_the_safe(generation, |_, _| ());
        let mut stragglers = Vec::new();
        for slot in self.arena.slots() {
            if slot.asked.stop_owed.load(Ordering::Relaxed) != generation.0 {
                continue;
            }
            // Looked at while it owes: an owner answers before it leaves, and the slot's next owner
            // before it says who it is.
            let runs = slot.state() == MutatorState::Running;
            let seen = pace.look(slot);
            if Self::take_stop(slot, generation.0) {
                self.stop.answer(generation, None);
                if runs {
                    stragglers.push(seen);
                }
            }
        }
        // I5: those who took their debt themselves are a few instructions from their answer.
        while let Some(seen) = self.stop.pending() {
            self.edge.wait(&self.stop.remaining, seen, None);
        }
        if stragglers.is_empty() {
            return Ok(());
        }
        self.resume();
        Err(TooLate(stragglers))
    }

    /// Lets everybody go and waits for nobody. Stop turn holder only, once after each `Ok`.
    pub(crate) fn resume(&self) {
        // Release: what was done in the stop is seen by those who run again.
        self.stop_word.fetch_add(1, Ordering::Release);
        self.edge.wake_all(&self.stop_word);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::protocol::Limit;
    use crate::system::{Fences, Identity, Linux};

    /// Too late from the start; looks at who owes what.
    struct TooLate<'a>(&'a Protocol<Linux>);

    impl Limit for TooLate<'_> {
        fn left(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
    }

    impl Pace<Linux> for TooLate<'_> {
        type Seen = (bool, bool);

        fn expired(&self) -> bool {
            true
        }
        fn nap(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
        fn due(&mut self) -> bool {
            true
        }
        fn late(&mut self, _slot: &'static Slot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, slot: &'static Slot<Identity>) -> (bool, bool) {
            let owes = slot.asked.stop_owed.load(Ordering::Relaxed) != 0;
            (owes, !self.0.stop_word.load(Ordering::Relaxed).is_multiple_of(2))
        }
    }

    /// Has the mutator enter its region just before its deadline is looked at.
    struct SafeAtLast(&'static Slot<Identity>);

    impl Limit for SafeAtLast {
        fn left(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
    }

    impl Pace<Linux> for SafeAtLast {
        type Seen = ();

        fn expired(&self) -> bool {
            self.0.set_safe(super::super::Stance::Away);
            true
        }
        fn nap(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
        fn due(&mut self) -> bool {
            true
        }
        fn late(&mut self, _slot: &'static Slot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, _slot: &'static Slot<Identity>) {}
    }

    #[test]
    fn who_is_safe_by_the_deadline_is_not_late() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        let slot = protocol.attach(|_| (), |_| (), &TooLate(&protocol)).expect("room");
        let counted = protocol.stop(None, &mut SafeAtLast(slot)).expect("it is safe");
        assert_eq!((counted.mutators, counted.running), (1, 1));
        protocol.resume();
        protocol.detach(slot, || ());
    }

    /// Later the slot may be another's, or its owner be somewhere else.
    #[test]
    fn stragglers_are_looked_at_while_they_owe_and_the_world_stops() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        let slots =
            [0, 1].map(|_| protocol.attach(|_| (), |_| (), &TooLate(&protocol)).expect("room"));
        let late = protocol.stop(None, &mut TooLate(&protocol)).expect_err("nobody polls");
        assert_eq!(late.0, [(true, true), (true, true)]);
        // The slots are used again by other worlds.
        for slot in slots {
            protocol.detach(slot, || ());
        }
    }
}
