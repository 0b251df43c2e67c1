//! The requester's side of for-each: a closure that runs once for every mutator, on the mutator's own
//! thread if that runs, and on the requester's if the mutator is in a safe region.
//!
//! ```text
//!  each_pending: 0 --requester: asks--> n --target, at its poll: runs the closure---------> 0
//!                                       |  \--requester: slot is gone, nothing to run-----> 0
//!                 requester: slot Safe  v
//!                                   n|CLAIMED --requester has run the closure-------------> 0
//!                                       |
//!                                       +--target wants to leave: |AWAITED, sleeps until 0
//! ```
//!
//! A look at the state that finds `Safe` counts only after the heavy fence: then the target finds its poll bit
//! before it runs user code again. It takes its pending request or finds it claimed: the exchange on
//! `each_pending` decides. The fence is made if a target seems safe when it is asked, or before the requester
//! sleeps. Where all run, and come to their polls while the requester spins, there is none.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use super::request::RoundNumber;
use super::slot::{AWAITED, CLAIMED, EACH, MutatorSlot, MutatorState, Stance};
use super::{Pace, Protocol, System};
use sigctx::sync::Ordering;

/// What was kept of the targets for which no closure ran.
pub(crate) type Unvisited<T> = Vec<T>;

/// A for-each that timed out.
#[derive(Debug)]
pub(crate) enum NotVisited<T> {
    /// It did not get the turn. No closure ran.
    NoTurn,
    /// Closures ran for all but these.
    TimedOut(Unvisited<T>),
}

/// The closure of a round. It must not unwind.
pub(crate) struct Call<'a, S: System> {
    pub(crate) visit: &'a (dyn Fn(&'static MutatorSlot<S::Identity>) + Sync),
}

impl<S: System> fmt::Debug for Call<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

/// I6: aborts when dropped. Unwinding would free a call that others may still make.
struct MustNotUnwind;

impl Drop for MustNotUnwind {
    fn drop(&mut self) {
        // Under loom a model that fails unwinds through here, and loom reports it.
        #[cfg(not(loom))]
        crate::abort::abort_with(format_args!(
            "a panic left a for-each that other threads may still run closures of"
        ));
    }
}

/// What a requester knows when it begins to wait.
struct Wait {
    /// It has made the heavy fence since it asked.
    fenced: bool,
    /// How many targets ran when they were asked.
    running: u32,
}

impl<S: System> Protocol<S> {
    /// Runs `visit` once for `own` and once for every other slot that is live when it is asked. A target
    /// that detaches meanwhile is visited or not. `visit` must not unwind.
    ///
    /// `own` is the slot of the calling thread, `me`. It is running before and after, and in a safe region
    /// while the thread waits.
    pub(crate) fn for_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        me: i32,
        visit: &(dyn Fn(&'static MutatorSlot<S::Identity>) + Sync),
        pace: &mut P,
    ) -> Result<(), NotVisited<P::Seen>> {
        self.enter(own, Stance::Waits);
        let took = self.each_turn.acquire(&self.system, Some(own), me, pace);
        // I6: blocks while the world is stopped.
        self.leave(own);
        if !took {
            return Err(NotVisited::NoTurn);
        }

        let call: Call<'_, S> = Call { visit };
        let outstanding = MustNotUnwind;
        let round = self.each.begin();
        // Release, with `visit`'s acquire. I6: removed when nothing is outstanding.
        self.each_call.store(ptr::from_ref(&call).cast_mut().cast(), Ordering::Release);
        let (asked, safe) = self.arm_each(own, round);
        (call.visit)(own);
        // I2: a target that is seen running after the fence sees the bit before it changes state.
        let fenced = safe != 0;
        if fenced {
            self.system.heavy();
            self.visit_the_safe(own, round, &call, |_, _| ());
        }
        let mut unvisited = Vec::new();
        if !self.each.acknowledge(round, None) {
            let wait = Wait { fenced, running: asked - safe };
            self.await_each(own, round, &call, wait, pace, &mut unvisited);
        }
        self.each_call.store(ptr::null_mut(), Ordering::Relaxed);
        let _over = ManuallyDrop::new(outstanding);
        self.each_turn.release(&self.system);
        if unvisited.is_empty() { Ok(()) } else { Err(NotVisited::TimedOut(unvisited)) }
    }

    /// Asks every live slot but `own`. Returns how many, and how many of them seemed safe.
    fn arm_each(&self, own: &'static MutatorSlot<S::Identity>, round: RoundNumber) -> (u32, u32) {
        let (mut asked, mut safe) = (0, 0);
        for slot in self.live().filter(|slot| !ptr::eq(own, *slot)) {
            self.each.expect();
            slot.requests.each_pending.store(round.0, Ordering::Release);
            slot.requests.poll.fetch_or(EACH, Ordering::AcqRel);
            asked += 1;
            safe += u32::from(slot.state() != MutatorState::Running);
        }
        (asked, safe)
    }

    /// Waits for all acknowledgements, in a safe region: a requester that waits can be stopped. Past the
    /// deadline it waits only for closures that have begun.
    fn await_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        mut wait: Wait,
        pace: &mut P,
        unvisited: &mut Unvisited<P::Seen>,
    ) {
        let mut withdrawn = false;
        while self.each.pending().is_some() {
            self.enter(own, Stance::Waits);
            let done = self.system.spin(wait.running, || self.each.pending().is_none());
            let fence_first = !done && !wait.fenced;
            let (mut late, mut expired) = (false, false);
            while !(done || fence_first || late || expired)
                && let Some(seen) = self.each.pending()
            {
                if own.is_recalled(&self.system) {
                    self.system.serve();
                }
                expired = !withdrawn && pace.expired();
                if !expired {
                    self.system.wait(&self.each.pending, seen, pace.nap());
                    late = pace.due();
                }
            }
            self.leave(own);
            if fence_first {
                // I2: a target that was seen running may have entered a region and not found its bit.
                self.system.heavy();
                wait.fenced = true;
                self.visit_the_safe(own, round, call, |_, _| ());
            } else if expired {
                self.withdraw_each(own, round, call, pace, unvisited);
                withdrawn = true;
            } else if late && !withdrawn {
                let late = |slot: &'static MutatorSlot<S::Identity>, wanted: &dyn Fn() -> bool| {
                    pace.late(slot, wanted);
                };
                self.visit_the_safe(own, round, call, late);
            }
        }
    }

    /// Past the deadline: visits the slots that are safe, and withdraws what is still pending.
    fn withdraw_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        pace: &P,
        unvisited: &mut Unvisited<P::Seen>,
    ) {
        self.visit_the_safe(own, round, call, |slot, _| {
            // Looked at while the request is pending: the slot is still that of the target that was asked.
            let seen = pace.look(slot);
            if Self::take_each(slot, round.0) {
                self.each.acknowledge(round, None);
                unvisited.push(seen);
            }
        });
    }

    /// Runs the closure for every slot that is safe and for which it is pending. Slots that run are passed
    /// to `late`.
    fn visit_the_safe(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        mut late: impl FnMut(&'static MutatorSlot<S::Identity>, &dyn Fn() -> bool),
    ) {
        for slot in self.arena.slots() {
            let is_pending = || slot.requests.each_pending.load(Ordering::Relaxed) == round.0;
            if !is_pending() {
                continue;
            }
            // A stop waits for one closure at most, and no closure runs in it (I6).
            if own.is_armed() {
                self.process(own);
            }
            match slot.state() {
                // I7.
                MutatorState::Running => {
                    late(slot, &|| slot.state() == MutatorState::Running && is_pending());
                }
                MutatorState::Safe => self.visit_for(slot, round, call),
                // Gone, or going: it looks at what is pending before it runs user code again.
                _ => {
                    if Self::take_each(slot, round.0) {
                        self.each.acknowledge(round, None);
                    }
                }
            }
        }
    }

    /// Claims what is pending for a safe slot, and runs the closure on this thread.
    fn visit_for(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
    ) {
        let (pending, claim) = (&slot.requests.each_pending, round.0 | CLAIMED);
        // Acquire: the look at the state came before, and the closure must come after.
        if pending.compare_exchange(round.0, claim, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        (call.visit)(slot);
        // Release: the target sees what the closure did.
        if pending.swap(0, Ordering::Release) & AWAITED != 0 {
            self.system.wake_all(pending);
        }
        self.each.acknowledge(round, None);
    }

    /// Runs the round's closure for the calling thread's slot. The caller has taken the slot's pending
    /// request, and acknowledges after this.
    pub(super) fn visit(&self, slot: &'static MutatorSlot<S::Identity>) {
        let call = self.each_call.load(Ordering::Acquire);
        // SAFETY: I6: the requester keeps the call alive while an acknowledgement of its round is
        // outstanding, and the caller acknowledges after this.
        let call = unsafe { &*call };
        (call.visit)(slot);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::time::Duration;

    use testkit::child;

    use super::{MutatorSlot, Pace, Protocol};
    use crate::protocol::Limit;
    use crate::system::{Fences, Identity, Linux};

    /// Breaks the rule that `late` does not unwind.
    struct Panics;

    impl Limit for Panics {
        fn left(&self) -> Option<Duration> {
            None
        }
    }

    impl Pace<Linux> for Panics {
        type Seen = ();

        fn expired(&self) -> bool {
            false
        }
        fn nap(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
        fn due(&mut self) -> bool {
            true
        }
        fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {
            panic!("out of the round");
        }
        fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
    }

    #[test]
    fn unwinding_out_of_a_round_aborts() {
        let name = "protocol::each::tests::unwinding_out_of_a_round_aborts";
        let ended = child(name, Duration::from_secs(20), || {
            let protocol = Protocol::new(Linux::new(Fences::Full));
            let own = protocol.attach(|_| (), |_| (), &Panics).expect("room");
            // Runs, and never polls.
            protocol.attach(|_| (), |_| (), &Panics).expect("room");
            let _ = protocol.for_each(own, 1, &|_| (), &mut Panics);
        });
        if let Some(ended) = ended {
            assert!(ended.output.contains("may still run closures"), "{}", ended.output);
            assert!(!ended.status.success());
        }
    }
}
