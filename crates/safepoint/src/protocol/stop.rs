//! The requester's side of stop-the-world. The caller has the stop turn. If it is a mutator it is in a safe
//! region, so that for-eaches can visit it while it waits.
//!
//! A target that seems safe when it is asked gets the bit alone: no number, and no share of the round's count.
//! If it still does after the heavy fence it is stopped, since it finds the bit before it runs user code (I2),
//! and stays so while the stop word is odd. Threads that block are most of a large world, and each costs two
//! looks at its line. A target that is seen running after the fence has left its region meanwhile, or is on its
//! way to find the bit. It is asked as one that ran from the start: it gets a number, and has to acknowledge.
//!
//! A requester that visits its targets ([`Pace::visits`]) does so while others still run: behind the heavy fence a target
//! that is safe is stopped, whether it has acknowledged or not. Each acknowledgement wakes such a requester.

use core::ptr;

use super::request::RoundNumber;
use super::slot::{MutatorSlot, MutatorState, STOP, SlotUse};
use super::{Pace, Protocol, System};
use sigctx::sync::{Ordering, fence};

/// A stop that succeeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Mutators that were stopped, the requester not among them.
    pub(crate) mutators: u32,
    /// Those among them that were running when they were asked.
    pub(crate) running: u32,
    /// The target that acknowledged last; `None` if the requester acknowledged for it.
    pub(crate) last: Option<SlotUse>,
}

/// How many slots were asked, by what they seemed to do.
#[derive(Debug, Clone, Copy)]
struct Asked {
    running: u32,
    safe: u32,
    /// Whether a nudge brought one that runs to its last safe point.
    nudged: bool,
}

/// A stop that was withdrawn, with what was kept of the targets that had not acknowledged.
#[derive(Debug)]
pub(crate) struct TimedOut<T>(pub(crate) Vec<T>);

fn is_own<I>(own: Option<&'static MutatorSlot<I>>, slot: &MutatorSlot<I>) -> bool {
    own.is_some_and(|own| ptr::eq(own, slot))
}

impl<S: System> Protocol<S> {
    /// Stops every mutator but `own`. After `Ok` no slot is `Running` until [`Protocol::resume`]; after
    /// `Err` the world runs.
    pub(crate) fn stop<P: Pace<S>>(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        pace: &mut P,
    ) -> Result<Counted, TimedOut<P::Seen>> {
        let round = self.stop.begin();
        let visits = pace.visits();
        if visits {
            self.stop.wake_at_each();
        }
        // Release: a target that finds its bit finds the odd word. A recall adds 2, not 1.
        self.stop_word.fetch_add(1, Ordering::Release);
        // Pairs with `attach`'s fence, and with that of a target that has cleared its bit (I9).
        fence(Ordering::SeqCst);
        let Asked { running, safe, nudged } = self.arm_stop(own, round);
        if nudged {
            self.nudge_at_once(round, |requests| &requests.stop_pending, pace);
        }
        // I2: needed before relying on a slot that was seen safe, and before sleeping. When all targets
        // run and acknowledge in time, neither happens and the fence is saved.
        let (mut fenced, mut left) = (false, 0);
        if safe != 0 {
            self.system.heavy();
            left = self.look_again(own, round);
            fenced = left == 0;
        }
        if !self.stop.acknowledge(round, None) {
            let done = || self.stop.pending().is_none();
            if visits || !self.system.spin(running + left, done) {
                while let Some(seen) = self.stop.pending() {
                    if pace.expired() {
                        self.withdraw(round, pace)?;
                    } else if !fenced {
                        self.system.heavy();
                        fenced = true;
                        self.acknowledge_for_the_safe(round, |_, _| ());
                    } else {
                        // After the look at `pending`: what is acknowledged later ends the wait.
                        if visits {
                            self.visit_stopped(own, pace);
                        }
                        self.system.wait(&self.stop.pending, seen, pace.nap());
                        if pace.due() {
                            let late =
                                |slot: &'static MutatorSlot<S::Identity>,
                                 wanted: &dyn Fn() -> bool| {
                                    pace.late(slot, wanted);
                                };
                            self.acknowledge_for_the_safe(round, late);
                        }
                    }
                }
            }
        }
        if visits {
            // All are stopped: also those on their way from one wait to the next.
            let others = self.live().filter(|slot| !is_own(own, slot));
            others.for_each(|slot| pace.stopped(slot));
        }
        Ok(Counted { mutators: running + safe, running, last: self.stop.last() })
    }

    /// Asks every live slot but `own`.
    fn arm_stop(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        round: RoundNumber,
    ) -> Asked {
        let mut asked = Asked { running: 0, safe: 0, nudged: false };
        let stands = self.system.targets_stand();
        self.live().filter(|slot| !is_own(own, slot)).for_each(|slot| {
            if slot.state_in(stands) == MutatorState::Running {
                self.ask_to_stop(slot, round);
                asked.running += 1;
                asked.nudged |= slot.is_nudged();
            } else {
                slot.arm(STOP);
                asked.safe += 1;
            }
        });
        asked
    }

    /// Asks a slot that runs. Its target, or this thread in its place, has to acknowledge.
    fn ask_to_stop(&self, slot: &'static MutatorSlot<S::Identity>, round: RoundNumber) {
        self.stop.expect();
        // The number, then the bit: a target that finds the bit finds the number.
        slot.requests.stop_pending.store(round.0, Ordering::Release);
        slot.requests.poll.fetch_or(STOP, Ordering::AcqRel);
    }

    /// Behind the heavy fence: acknowledges for asked slots that are safe, and asks those that run and are not
    /// asked. Returns how many these were. One that has acknowledged may be among them, on its way from one wait
    /// to the next: it acknowledges again.
    fn look_again(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        round: RoundNumber,
    ) -> u32 {
        let (mut left, stands) = (0, self.system.targets_stand());
        self.arena.slots().for_each(|slot| {
            let pending = slot.requests.stop_pending.load(Ordering::Relaxed) == round.0;
            let runs = slot.state_in(stands) == MutatorState::Running;
            if runs && !pending && !is_own(own, slot) {
                self.ask_to_stop(slot, round);
                left += 1;
            } else if pending && !runs && Self::take_stop(slot, round.0) {
                self.stop.acknowledge(round, None);
            }
        });
        left
    }

    /// Acknowledges for all slots that are not running: they look at the poll word before they run. The
    /// others are passed to `late`.
    fn acknowledge_for_the_safe(
        &self,
        round: RoundNumber,
        mut late: impl FnMut(&'static MutatorSlot<S::Identity>, &dyn Fn() -> bool),
    ) {
        for slot in self.arena.slots() {
            let is_pending = || slot.requests.stop_pending.load(Ordering::Relaxed) == round.0;
            let runs = || slot.state() == MutatorState::Running;
            if !is_pending() {
                continue;
            }
            if runs() {
                // I7.
                late(slot, &|| runs() && is_pending());
            } else if Self::take_stop(slot, round.0) {
                self.stop.acknowledge(round, None);
            }
        }
    }

    /// Behind the heavy fence: visits those that are stopped (I2).
    fn visit_stopped<P: Pace<S>>(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        pace: &mut P,
    ) {
        let stands = self.system.targets_stand();
        let others = self.arena.slots().filter(|slot| !is_own(own, slot));
        others
            .filter(|slot| slot.state_in(stands) == MutatorState::Safe)
            .for_each(|slot| pace.stopped(slot));
    }

    /// Past the deadline: withdraws what is still pending, and resumes the world. `Ok` if nothing was
    /// pending for a running slot any more: the stop has succeeded after all.
    fn withdraw<P: Pace<S>>(
        &self,
        round: RoundNumber,
        pace: &mut P,
    ) -> Result<(), TimedOut<P::Seen>> {
        // A target in a safe region is not late: the deadline may have passed before the first look.
        self.system.heavy();
        self.acknowledge_for_the_safe(round, |_, _| ());
        let mut stragglers = Vec::new();
        for slot in self.arena.slots() {
            if slot.requests.stop_pending.load(Ordering::Relaxed) != round.0 {
                continue;
            }
            // Looked at while the request is pending: a target acknowledges before it leaves the slot, and
            // the slot's next one before it writes its identity.
            let runs = slot.state() == MutatorState::Running;
            let seen = pace.look(slot);
            if Self::take_stop(slot, round.0) {
                self.stop.acknowledge(round, None);
                if runs {
                    stragglers.push(seen);
                }
            }
        }
        // I5: targets that took their request are a few instructions from acknowledging it.
        while let Some(seen) = self.stop.pending() {
            self.system.wait(&self.stop.pending, seen, None);
        }
        if stragglers.is_empty() {
            return Ok(());
        }
        pace.gives_up();
        self.resume();
        Err(TimedOut(stragglers))
    }

    /// Lets all mutators run, and waits for none. Stop turn holder only, once after each `Ok`.
    pub(crate) fn resume(&self) {
        // Release: mutators that run again see what was done in the stop.
        self.stop_word.fetch_add(1, Ordering::Release);
        self.system.wake_all(&self.stop_word);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::protocol::Limit;
    use crate::system::{Fences, Identity, Linux};

    /// Its deadline has passed from the start. Notes whether the request is pending, and the world stops.
    struct Expired<'a>(&'a Protocol<Linux>);

    impl Limit for Expired<'_> {
        fn left(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
    }

    impl Pace<Linux> for Expired<'_> {
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
        fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, slot: &'static MutatorSlot<Identity>) -> (bool, bool) {
            let is_pending = slot.requests.stop_pending.load(Ordering::Relaxed) != 0;
            (is_pending, !self.0.stop_word.load(Ordering::Relaxed).is_multiple_of(2))
        }
    }

    /// Has the mutator enter its region just before the look at the deadline.
    struct SafeAtLast(&'static MutatorSlot<Identity>);

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
        fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
    }

    /// Has the mutator that it is to nudge at once enter its region.
    struct NudgedAtOnce<'a>(&'a Protocol<Linux>, u32);

    impl Limit for NudgedAtOnce<'_> {
        fn left(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
    }

    impl Pace<Linux> for NudgedAtOnce<'_> {
        type Seen = ();

        fn expired(&self) -> bool {
            true
        }
        fn nap(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
        fn due(&mut self) -> bool {
            true
        }
        fn expect_late(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
            assert!(wanted(), "it has not acknowledged");
            self.0.enter(slot, super::super::Stance::Away);
            assert!(!wanted(), "it has acknowledged");
            self.1 += 1;
        }
        fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
    }

    /// One that has polled, or was in a region, since then is not.
    #[test]
    fn a_mutator_that_came_by_a_nudge_is_nudged_at_once() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        let slot = protocol.attach(|_| (), |_| (), &Expired(&protocol)).expect("room");
        let nudged_at_once = || {
            let mut pace = NudgedAtOnce(&protocol, 0);
            let stopped = protocol.stop(None, &mut pace);
            if stopped.is_ok() {
                protocol.resume();
                protocol.leave(slot);
            }
            (stopped.is_ok(), pace.1)
        };
        assert_eq!(nudged_at_once(), (false, 0), "nothing is known of it");
        protocol.process_nudged(slot);
        assert_eq!(nudged_at_once(), (true, 1));
        assert_eq!(nudged_at_once(), (false, 0), "it has entered a region by itself");
        protocol.process_nudged(slot);
        protocol.process(slot);
        assert_eq!(nudged_at_once(), (false, 0), "it has polled by itself");
        protocol.process_nudged(slot);
        protocol.detach(slot, || ());
        let slot = protocol.attach(|_| (), |_| (), &Expired(&protocol)).expect("room");
        assert!(!slot.is_armed(), "of another target nothing is known");
        protocol.detach(slot, || ());
    }

    /// The deadline passes before the first look.
    #[test]
    fn a_mutator_that_is_safe_by_the_deadline_is_not_late() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        let slot = protocol.attach(|_| (), |_| (), &Expired(&protocol)).expect("room");
        let counted = protocol.stop(None, &mut SafeAtLast(slot)).expect("it is safe");
        assert_eq!((counted.mutators, counted.running), (1, 1));
        protocol.resume();
        protocol.detach(slot, || ());
    }

    /// Later the slot may be another thread's, or its thread be somewhere else.
    #[test]
    fn stragglers_are_looked_at_while_their_request_is_pending() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        let slots =
            [0, 1].map(|_| protocol.attach(|_| (), |_| (), &Expired(&protocol)).expect("room"));
        let late = protocol.stop(None, &mut Expired(&protocol)).expect_err("no mutator polls");
        assert_eq!(late.0, [(true, true), (true, true)]);
        // The slots are used again by other worlds.
        for slot in slots {
            protocol.detach(slot, || ());
        }
    }
}
