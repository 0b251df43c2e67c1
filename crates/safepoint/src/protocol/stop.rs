//! The requester's side of stop-the-world. The caller has the stop turn and is, if a mutator, in a
//! safe region: it can be counted and asked by others while it waits.

use core::ptr;

use super::round::Generation;
use super::slot::{MutatorState, STOP, Slot};
use super::{Edge, Pace, Protocol};
use crate::sync::{Ordering, fence};

/// A stop that succeeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Mutators that were stopped, the requester not among them.
    pub(crate) mutators: u32,
    /// Those among them that were running when they were asked.
    pub(crate) running: u32,
    /// Index of the one that answered last; `None` if the requester answered for it.
    pub(crate) last: Option<u32>,
}

/// A stop that was taken back; the slots are those that had not answered.
#[derive(Debug)]
pub(crate) struct TooLate<I: 'static>(pub(crate) Vec<&'static Slot<I>>);

impl<E: Edge> Protocol<E> {
    /// Stops every mutator but `own`. After `Ok` nobody is `Running` until [`Protocol::resume`];
    /// after `Err` the world runs.
    pub(crate) fn stop(
        &self,
        own: Option<&'static Slot<E::Identity>>,
        pace: &mut impl Pace<E>,
    ) -> Result<Counted, TooLate<E::Identity>> {
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
            self.answer_for_the_safe(generation, |_| ());
        }
        if !self.stop.answer(generation, None) {
            let done = || self.stop.pending().is_none();
            if !self.edge.spin(mutators - safe, done) {
                while let Some(seen) = self.stop.pending() {
                    if pace.expired() {
                        self.withdraw(generation)?;
                    } else if !fenced {
                        self.edge.heavy();
                        fenced = true;
                        self.answer_for_the_safe(generation, |_| ());
                    } else {
                        self.edge.wait(&self.stop.remaining, seen, pace.nap());
                        if pace.due() {
                            self.answer_for_the_safe(generation, |slot| pace.late(slot));
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
        mut late: impl FnMut(&'static Slot<E::Identity>),
    ) {
        for slot in self.arena.slots() {
            if slot.asked.stop_owed.load(Ordering::Relaxed) != generation.0 {
                continue;
            }
            if slot.state() == MutatorState::Running {
                late(slot);
            } else if Self::take_stop(slot, generation.0) {
                self.stop.answer(generation, None);
            }
        }
    }

    /// Past the deadline: takes back what is still owed and lets everybody go. `Ok` if nothing was
    /// owed any more, so that the stop succeeds after all.
    fn withdraw(&self, generation: Generation) -> Result<(), TooLate<E::Identity>> {
        let mut stragglers = Vec::new();
        for slot in self.arena.slots() {
            let owed = slot.asked.stop_owed.load(Ordering::Relaxed);
            if owed == generation.0 && Self::take_stop(slot, owed) {
                self.stop.answer(generation, None);
                stragglers.push(slot);
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
