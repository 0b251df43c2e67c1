//! What a mutator does with its own slot. Everything here is called by the slot's owner only.

use core::time::Duration;

use super::request::{MOST, RoundNumber};
use super::slot::{AWAITED, CLAIMED, EACH, MutatorSlot, MutatorState, REST, STOP, Stance};
use super::{Limit, Protocol, System};
use crate::sync::{Ordering, fence};

/// How long a wait that a recall cannot cut short goes without looking for one.
const NAP: Duration = Duration::from_millis(10);

/// As long as it takes.
struct Unlimited;

impl Limit for Unlimited {
    fn left(&self) -> Option<Duration> {
        None
    }
}

/// Why a thread got no slot.
#[derive(Debug)]
pub(crate) enum NoSlot {
    /// The world is full.
    Full,
    /// The world was stopped until the limit.
    Stopped,
}

impl<S: System> Protocol<S> {
    /// Takes a slot, lets `identify` say whose it is, and leaves its first safe region: waits while
    /// the world is stopped, as `limit` allows. A slot that is given up is passed to `forget`.
    pub(crate) fn attach(
        &self,
        identify: impl FnOnce(&'static MutatorSlot<S::Identity>),
        forget: impl FnOnce(&'static MutatorSlot<S::Identity>),
        limit: &impl Limit,
    ) -> Result<&'static MutatorSlot<S::Identity>, NoSlot> {
        let slot = self.arena.take(MOST).ok_or(NoSlot::Full)?;
        self.acknowledge_unserved(slot);
        identify(slot);
        slot.status.generation.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        slot.set_safe(Stance::Waits);
        // Pairs with the fence between a requester's odd stop word and its walk: either the walk
        // meets this slot, or this look meets the odd word.
        fence(Ordering::SeqCst);
        let mut in_time = true;
        if self.is_stopping() {
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
            // Not by way of Running, where a stop that gives up would find, and blame, it.
            in_time = self.be_stopped(slot, limit);
        }
        if in_time && self.leave_within(slot, limit) {
            return Ok(slot);
        }
        // It never ran: what is asked of it is answered, and not done.
        loop {
            slot.set_state(MutatorState::Detaching);
            fence(Ordering::SeqCst);
            self.acknowledge_unserved(slot);
            if slot.requests.each_pending.load(Ordering::Acquire) == 0 {
                break;
            }
        }
        // I8. No recall comes any more: to handlers on this thread it does not stand still.
        self.stay_while_held(slot);
        forget(slot);
        slot.set_state(MutatorState::Dead);
        Err(NoSlot::Stopped)
    }

    /// Answers what is pending by one that does not run, and does none of it. A requester that saw the
    /// last owner alive may have asked something since, and then nobody answered. The new owner is
    /// not meant; as far as the request goes the old one is gone.
    fn acknowledge_unserved(&self, slot: &MutatorSlot<S::Identity>) {
        self.acknowledge_stop(slot);
        loop {
            let pending = slot.requests.each_pending.load(Ordering::Acquire);
            if pending & CLAIMED != 0 {
                self.await_claim(slot, pending);
            } else if pending == 0 {
                return;
            } else if Self::take_each(slot, pending) {
                self.acknowledge_each(slot, pending);
            }
        }
    }

    /// Gives the slot up; `forget` is called when the owner owes nothing any more. Runs the closure
    /// that is pending, answers a stop without waiting for its end.
    pub(crate) fn detach(&self, slot: &'static MutatorSlot<S::Identity>, forget: impl FnOnce()) {
        loop {
            // I2: a stop that is asked from here on finds a slot that runs no user code.
            slot.set_state(MutatorState::Detaching);
            fence(Ordering::SeqCst);
            self.acknowledge_stop(slot);
            if slot.requests.each_pending.load(Ordering::Acquire) == 0 {
                // A for-each that asks after this look finds the slot dead, and answers itself.
                forget();
                slot.set_state(MutatorState::Dead);
                return;
            }
            // The requester may not have come to set the bit yet.
            slot.requests.poll.fetch_or(EACH, Ordering::Relaxed);
            // I6: closures run in a running world.
            slot.set_state(MutatorState::Running);
            self.process(slot);
        }
    }

    /// Enters a safe region.
    #[inline]
    pub(crate) fn enter(&self, slot: &'static MutatorSlot<S::Identity>, stance: Stance) {
        // I2: the state, then the flag.
        slot.set_safe(stance);
        self.system.light();
        if slot.is_armed() {
            self.enter_armed(slot, stance);
        }
    }

    /// A request that came while the slot was running is answered before the region is entered:
    /// its requester may have seen `Running`, and gone to sleep.
    #[cold]
    fn enter_armed(&self, slot: &'static MutatorSlot<S::Identity>, stance: Stance) {
        loop {
            fence(Ordering::SeqCst);
            // Acquire: the bit is set after the debt is written.
            let poll = slot.requests.poll.load(Ordering::Acquire);
            if poll & STOP != 0 {
                self.acknowledge_stop(slot);
            }
            if poll & EACH == 0 || slot.requests.each_pending.load(Ordering::Acquire) == 0 {
                break;
            }
            slot.set_state(MutatorState::Running);
            self.process(slot);
            slot.set_safe(stance);
        }
        // I7.
        self.system.settle_nudges();
    }

    /// Leaves a safe region: waits while the world is stopped, or while a requester runs a closure
    /// for this slot, or while the thread's task is held.
    #[inline]
    pub(crate) fn leave(&self, slot: &'static MutatorSlot<S::Identity>) {
        slot.set_state(MutatorState::Running);
        self.system.light();
        if slot.is_armed() {
            self.process(slot);
        }
    }

    /// [`Protocol::leave`], while `limit` allows. Where it does not: false, and still safe.
    fn leave_within(&self, slot: &'static MutatorSlot<S::Identity>, limit: &impl Limit) -> bool {
        slot.set_state(MutatorState::Running);
        self.system.light();
        !slot.is_armed() || self.process_within(slot, limit)
    }

    /// Serves what is asked until nothing is. The state is `Running` before and after; in between
    /// it is `Safe` while the world is stopped.
    #[cold]
    #[inline(never)]
    pub(crate) fn process(&self, slot: &'static MutatorSlot<S::Identity>) {
        self.process_within(slot, &Unlimited);
    }

    /// [`Protocol::process`], with a limit on being stopped. False when that is over: the state is
    /// `Safe` then.
    fn process_within(&self, slot: &'static MutatorSlot<S::Identity>, limit: &impl Limit) -> bool {
        loop {
            // I2, in full: requesters need not have made the heavy fence yet.
            fence(Ordering::SeqCst);
            let poll = slot.requests.poll.load(Ordering::Acquire);
            if poll & STOP != 0 {
                if !self.be_stopped(slot, limit) {
                    return false;
                }
            } else if poll & EACH != 0 {
                self.serve_each(slot);
            } else if poll & REST != 0 {
                self.be_held(slot);
            } else {
                return true;
            }
        }
    }

    /// Answers a stop and waits for its end. False if `limit` was over before.
    fn be_stopped(&self, slot: &'static MutatorSlot<S::Identity>, limit: &impl Limit) -> bool {
        slot.set_safe(Stance::Waits);
        fence(Ordering::SeqCst);
        self.acknowledge_stop(slot);
        loop {
            if !self.wait_while_stopped(slot, limit) {
                return false;
            }
            // I7: none is wanted of a slot that is safe.
            self.system.settle_nudges();
            self.stay_while_held(slot);
            // Only the owner clears the bit, and then looks at its source again: the next stop may
            // have set it before it was cleared. Acquire: who set the bit made the word odd before.
            slot.requests.poll.fetch_and(!STOP, Ordering::AcqRel);
            if !self.is_stopping() {
                break;
            }
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
        }
        // I8: whoever called this looks at the poll word again.
        slot.set_state(MutatorState::Running);
        true
    }

    fn wait_while_stopped(&self, slot: &MutatorSlot<S::Identity>, limit: &impl Limit) -> bool {
        loop {
            // Acquire, with the resume's release: what was done in the stop is seen after it.
            let word = self.stop_word.load(Ordering::Acquire);
            if word.is_multiple_of(2) {
                return true;
            }
            let left = limit.left();
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            // I8: after the load. A recall that comes later changes the word.
            if slot.is_recalled(&self.system) {
                self.system.serve();
            }
            self.system.wait(&self.stop_word, word, left);
        }
    }

    /// The thread's task was held while the slot stood still: stands still until it is not.
    fn be_held(&self, slot: &'static MutatorSlot<S::Identity>) {
        slot.set_safe(Stance::Waits);
        fence(Ordering::SeqCst);
        // As in `be_stopped`: a requester may have seen `Running`, and gone to sleep.
        self.acknowledge_stop(slot);
        self.stay_while_held(slot);
        slot.set_state(MutatorState::Running);
    }

    /// Safe, and stays so while the thread's task is held, if it was when the slot stood still.
    pub(crate) fn stay_while_held(&self, slot: &MutatorSlot<S::Identity>) {
        // I8: cleared first. A recall that comes after this is found by the next look.
        if slot.is_recalled(&self.system) {
            slot.requests.poll.fetch_and(!REST, Ordering::AcqRel);
            self.system.stay_while_held();
        }
    }

    /// Handler, on the owner's thread, which stands still: its task is held from now on, or the holder
    /// wants something of it.
    pub(crate) fn recall(&self, slot: &MutatorSlot<S::Identity>) {
        // Release, as for the other bits: on one thread that is so anyway, in models the handler is
        // another.
        slot.requests.poll.fetch_or(REST, Ordering::Release);
        // A wait that the signal cuts short, or that is about to begin, finds another value. Release:
        // whoever finds it finds REST.
        self.stop_word.fetch_add(2, Ordering::Release);
        self.stop_turn.recall();
        self.each_turn.recall();
    }

    /// A requester that waits for its turn goes on to its work in the same safe region. False when its
    /// task was held meanwhile: it still waits, and has to [stay](Protocol::stay_while_held).
    pub(crate) fn begin_work(&self, slot: &MutatorSlot<S::Identity>) -> bool {
        slot.set_safe(Stance::Works);
        // I8. The handler runs on this thread: only the compiler could swap the two.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        let works = !slot.is_recalled(&self.system);
        if !works {
            slot.set_safe(Stance::Waits);
        }
        works
    }

    fn is_stopping(&self) -> bool {
        self.stop_word.load(Ordering::Acquire) % 2 == 1
    }

    /// Answers the stop that the slot owes an answer to, if the requester has not done so.
    fn acknowledge_stop(&self, slot: &MutatorSlot<S::Identity>) {
        let pending = slot.requests.stop_pending.load(Ordering::Relaxed);
        if pending != 0 && Self::take_stop(slot, pending) {
            // The requester may not have come to set the bit yet, and counts this slot as stopped
            // from the answer on: without the bit the owner would run again. Relaxed: the owner's
            // own next look finds it, and the debt's acquire has shown it the odd word.
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
            let last = self.stop.acknowledge(RoundNumber(pending), Some(slot.current_use()));
            if last {
                self.system.wake_all(&self.stop.pending);
            }
        }
    }

    /// I3: whoever succeeds answers. Release: the owner's writes so far are handed to the
    /// requester.
    pub(super) fn take_stop(slot: &MutatorSlot<S::Identity>, pending: u32) -> bool {
        let word = &slot.requests.stop_pending;
        word.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// I3, for the for-each. Acquire: the call was published before the debt.
    pub(super) fn take_each(slot: &MutatorSlot<S::Identity>, pending: u32) -> bool {
        let word = &slot.requests.each_pending;
        word.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn acknowledge_each(&self, slot: &MutatorSlot<S::Identity>, pending: u32) {
        if self.each.acknowledge(RoundNumber(pending), Some(slot.current_use())) {
            self.system.wake_all(&self.each.pending);
        }
    }

    /// Sleeps until the claim on the slot's debt is resolved; may return early.
    fn await_claim(&self, slot: &MutatorSlot<S::Identity>, pending: u32) {
        if slot.is_recalled(&self.system) {
            self.system.serve();
        }
        let (word, awaited) = (&slot.requests.each_pending, pending | AWAITED);
        let marked = word.compare_exchange(pending, awaited, Ordering::Relaxed, Ordering::Relaxed);
        if marked.is_ok() {
            self.system.wait(word, awaited, Some(NAP));
        }
    }

    /// Runs the closure that the slot owes, or waits for the requester to have run it.
    fn serve_each(&self, slot: &'static MutatorSlot<S::Identity>) {
        let pending = slot.requests.each_pending.load(Ordering::Acquire);
        if pending == 0 {
            // I7: none is wanted of a slot that owes nothing.
            self.system.settle_nudges();
            slot.requests.poll.fetch_and(!EACH, Ordering::AcqRel);
            // As for STOP: the next request may have set the bit before it was cleared.
            if slot.requests.each_pending.load(Ordering::Acquire) != 0 {
                slot.requests.poll.fetch_or(EACH, Ordering::Relaxed);
            }
        } else if pending & CLAIMED != 0 {
            // I4. The requester may be stopped meanwhile, and so may this thread.
            slot.set_safe(Stance::Waits);
            fence(Ordering::SeqCst);
            self.acknowledge_stop(slot);
            self.await_claim(slot, pending);
            slot.set_state(MutatorState::Running);
        } else if Self::take_each(slot, pending) {
            self.visit(slot);
            self.acknowledge_each(slot, pending);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;
    use core::time::Duration;

    use threadreg::rest::{self, Resident};

    use super::{EACH, Limit, MutatorSlot, NoSlot, Protocol, STOP, Stance};
    use crate::protocol::Pace;
    use crate::system::{Fences, Identity, Linux};

    thread_local! {
        /// How often this thread stayed while its task was held.
        static STAYED: Cell<u32> = const { Cell::new(0) };
    }

    /// A protocol beside a crate that suspends tasks.
    fn protocol() -> Protocol<Linux> {
        static RESIDENT: Resident =
            Resident { serve: || (), leave: || STAYED.set(STAYED.get() + 1) };
        rest::set_resident(&RESIDENT);
        Protocol::new(Linux::new(Fences::Full))
    }

    /// A handler recalls the thread just before its time is over.
    struct RecalledAtLast<'a> {
        protocol: &'a Protocol<Linux>,
        slot: Cell<Option<&'static MutatorSlot<Identity>>>,
    }

    impl Limit for RecalledAtLast<'_> {
        fn left(&self) -> Option<Duration> {
            if let Some(slot) = self.slot.take() {
                assert_eq!(slot.stance(), Some(Stance::Waits), "a handler finds it at rest");
                self.protocol.recall(slot);
            }
            Some(Duration::ZERO)
        }
    }

    impl Pace<Linux> for RecalledAtLast<'_> {
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
        fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
        fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
    }

    /// Its task counts as stopped at a safe point from the recall on.
    #[test]
    fn an_attach_that_times_out_stays_while_its_task_is_held() {
        let protocol = protocol();
        let mut limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
        protocol.stop(None, &mut limit).expect("nobody to be late");
        let forget = |_| assert_eq!(STAYED.get(), 1, "it ran while its task was held");
        let attached = protocol.attach(|slot| limit.slot.set(Some(slot)), forget, &limit);
        assert!(matches!(attached, Err(NoSlot::Stopped)));
        assert_eq!(STAYED.get(), 1);
        protocol.resume();
    }

    /// Nobody holds its task any more, but the task still has to be told that it goes on.
    #[test]
    fn a_recall_that_came_before_a_fork_is_heeded_in_the_child() {
        let protocol = protocol();
        let limit = RecalledAtLast { protocol: &protocol, slot: Cell::new(None) };
        let slot = protocol.attach(|_| (), |_| (), &limit).expect("room");
        protocol.enter(slot, Stance::Away);
        protocol.recall(slot);
        slot.requests.poll.fetch_or(STOP | EACH, super::Ordering::Relaxed);
        protocol.after_fork(1, 2, |_| true, |_| ());
        protocol.leave(slot);
        assert_eq!(STAYED.get(), 1, "it ran, and its task counts as blocked");
        assert!(!slot.is_armed(), "nothing else is left");
        protocol.detach(slot, || ());
    }
}
