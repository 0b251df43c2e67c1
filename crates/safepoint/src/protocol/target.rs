//! The target's side: what a mutator does with its own slot. Only the slot's thread calls this, but for the
//! two functions that take a pending number, by which requesters compete with it.

use core::sync::atomic::Ordering as Plain;
use core::time::Duration;

use super::passed::Waits;
use super::request::{MOST, RoundNumber};
use super::slot::{
    CLAIMED, EACH, FENCED, HANDSHAKE, MutatorSlot, MutatorState, NUDGED, POLL_MASK, REST, SLOW,
    STANDS, STOP, Stance,
};
use super::{Edge, Limit, Protocol, System, Unlimited};
use sigctx::sync::{Ordering, fence};

/// How often a wait that a recall does not end looks for one.
pub(super) const NAP: Duration = Duration::from_millis(10);

/// Why a thread got no slot.
#[derive(Debug)]
pub(crate) enum NoSlot {
    /// The world is full.
    Full,
    /// The world was stopped until the deadline.
    Stopped,
}

impl<S: System> Protocol<S> {
    /// Takes a slot, has `identify` write its identity, and leaves its first safe region: waits while the
    /// world is stopped, at most until `limit`'s deadline. Past it, `forget` clears the identity and the
    /// slot is dead again.
    pub(crate) fn attach(
        &self,
        identify: impl FnOnce(&'static MutatorSlot<S::Identity>),
        forget: impl FnOnce(&'static MutatorSlot<S::Identity>),
        limit: &impl Limit,
    ) -> Result<&'static MutatorSlot<S::Identity>, NoSlot> {
        let slot = self.arena.take(MOST).ok_or(NoSlot::Full)?;
        self.acknowledge_unserved(slot);
        slot.set_standing(FENCED, self.system.targets_fence());
        slot.set_standing(SLOW, self.system.is_slow());
        slot.forget_user_bits();
        slot.set_standing(STANDS, self.system.targets_stand());
        slot.status.stands.begin(self.system.targets_stand());
        // First: what is found of this thread is found with this generation, not the last thread's.
        slot.status.generation.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        slot.open_queue();
        identify(slot);
        slot.set_safe(Stance::Waits);
        // Pairs with the fence between a requester's odd stop word and its walk: either the walk
        // meets this slot, or this look meets the odd word.
        fence(Ordering::SeqCst);
        let (mut in_time, mut waits) = (true, Waits::default());
        if self.is_stopping() {
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
            // Not by way of `Running`, where a stop that times out would find this slot and blame it.
            in_time = self.be_stopped(slot, limit, &mut waits);
        }
        in_time = in_time && self.leave_within(slot, limit, &mut waits);
        self.waits_no_longer(&mut waits);
        if in_time {
            return Ok(slot);
        }
        // It never ran: it acknowledges what it is asked, and does not do it.
        for operation in self.close_queue(slot) {
            operation.gone(&self.system);
        }
        self.settle_unserved(slot);
        // I8. No recall comes any more: handlers on this thread see that the slot does not stand still.
        self.stay_while_held(slot);
        forget(slot);
        slot.set_state(MutatorState::Dead);
        Err(NoSlot::Stopped)
    }

    /// Acknowledges what is pending for a slot that does not run, without doing it. A requester that saw
    /// the slot's last target alive may have asked after that one's last look. The request does not mean
    /// the new target, and the last one is gone.
    fn acknowledge_unserved(&self, slot: &MutatorSlot<S::Identity>) {
        self.acknowledge_stop(slot);
        self.decline_help(slot);
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

    /// The slot runs nothing from here on, and nothing is pending for it.
    fn settle_unserved(&self, slot: &MutatorSlot<S::Identity>) {
        loop {
            // I2: what is asked from here on finds a slot that runs no user code, and is not claimed for long (I4).
            slot.set_state(MutatorState::Detaching);
            fence(Ordering::SeqCst);
            self.acknowledge_unserved(slot);
            if slot.requests.each_pending.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// Gives up a slot that is safe, on whichever thread. The slot does not run for that, and no closure is run for
    /// it: the calling thread, `me`, may be the one that has the world stopped, or one that the stop waits for.
    /// `forget` clears the identity once nothing is pending.
    ///
    /// Ends the operations that are queued when the slot is dead: what is dropped with them is the users', and a stop
    /// that waits for it has to find whose code it is. `runs` says whether the calling thread is itself a mutator of
    /// this world that runs.
    pub(crate) fn detach_safe(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        forget: impl FnOnce(),
        me: i32,
        runs: impl FnOnce() -> bool,
    ) {
        let unserved = self.close_queue(slot);
        self.settle_unserved(slot);
        forget();
        slot.set_state(MutatorState::Dead);
        if unserved.is_empty() {
            return;
        }
        // I6: in a running world, or on the thread that has it stopped.
        let turn = (!self.stop_turn.is_held_by(me) && !runs()).then_some(&self.stop_turn);
        let took = turn.is_none_or(|turn| turn.acquire(&self.system, None, me, &Unlimited));
        debug_assert!(took, "no limit");
        for operation in unserved {
            operation.gone(&self.system);
        }
        if let Some(turn) = turn {
            turn.release(&self.system);
        }
    }

    /// Gives up a slot that runs. Ends the operations that are queued, runs a closure that is pending, and acknowledges
    /// a stop without waiting for its end. `forget` clears the identity once nothing is pending.
    pub(crate) fn detach(&self, slot: &'static MutatorSlot<S::Identity>, forget: impl FnOnce()) {
        // I6: what is dropped with them is the users', and may run code.
        for operation in self.close_queue(slot) {
            operation.gone(&self.system);
        }
        loop {
            // I2: a stop that is asked from here on finds a slot that runs no user code.
            slot.set_state(MutatorState::Detaching);
            fence(Ordering::SeqCst);
            self.acknowledge_stop(slot);
            self.decline_help(slot);
            if slot.requests.each_pending.load(Ordering::Acquire) == 0 {
                // A for-each that asks after this look finds the slot dead, and acknowledges for it.
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

    /// Enters a safe region. A target that says where it stands has done so.
    pub(crate) fn enter(&self, slot: &'static MutatorSlot<S::Identity>, stance: Stance) {
        if !Self::try_enter_of(|| self, slot, stance, true) {
            self.enter_armed(slot, stance);
        }
    }

    /// Enters a safe region if nothing is pending, and the target does not say where it stands. If false the state is
    /// `Safe` all the same, and the caller goes on with [`Protocol::enter_armed`]; or with
    /// [`Protocol::enter_standing`] if the slot says where it stands, and this is not `known` yet.
    #[inline(always)]
    pub(crate) fn try_enter_of<'a>(
        protocol: impl Fn() -> &'a Self,
        slot: &'static MutatorSlot<S::Identity>,
        stance: Stance,
        known: bool,
    ) -> bool {
        // I2: the state, then the flag.
        slot.set_entering(stance, known);
        !slot.is_armed_behind(|| protocol().system.light_to_enter())
    }

    /// Acknowledges a request that came while the slot was running, before the region is entered: its
    /// requester may have seen `Running`, and gone to sleep.
    #[cold]
    pub(crate) fn enter_armed(&self, slot: &'static MutatorSlot<S::Identity>, stance: Stance) {
        let mut is_asked = slot.forget_nudge();
        loop {
            self.system.edge(Edge::Published);
            fence(Ordering::SeqCst);
            // Acquire: the bit is set after the pending word.
            let poll = slot.requests.poll.load(Ordering::Acquire);
            is_asked |= poll & POLL_MASK != 0;
            if poll & STOP != 0 {
                self.acknowledge_stop(slot);
            }
            let each = poll & EACH != 0 && slot.requests.each_pending.load(Ordering::Acquire) != 0;
            if !each && poll & HANDSHAKE == 0 {
                break;
            }
            slot.set_state(MutatorState::Running);
            self.process(slot);
            slot.set_safe(stance);
        }
        // I7. A target that only had to say where it stands is not on anyone's list.
        if is_asked {
            self.system.settle_nudges();
        }
    }

    /// Leaves a safe region. Waits while the world is stopped, a requester runs a closure for this slot, or
    /// the thread's task is held.
    pub(crate) fn leave(&self, slot: &'static MutatorSlot<S::Identity>) {
        if !self.try_leave(slot) {
            self.process(slot);
        }
    }

    /// Leaves a safe region if nothing is pending. If false the state is `Running` all the same, and the
    /// caller has to [process](Protocol::process) what is pending, or to [stay](Protocol::stay_away).
    pub(crate) fn try_leave(&self, slot: &'static MutatorSlot<S::Identity>) -> bool {
        Self::try_leave_of(|| self, slot)
    }

    /// [`Protocol::try_leave`], which asks for the protocol only if it needs more than the slot.
    #[inline(always)]
    pub(crate) fn try_leave_of<'a>(
        protocol: impl Fn() -> &'a Self,
        slot: &'static MutatorSlot<S::Identity>,
    ) -> bool {
        slot.set_state(MutatorState::Running);
        !slot.is_armed_behind(|| protocol().system.light())
    }

    /// Goes back into the safe region that it was about to leave. The caller has the world stopped, so no
    /// stop is pending. The requester of a for-each that saw `Running` looks again after its nap.
    #[cfg(not(loom))]
    pub(crate) fn stay_away(&self, slot: &'static MutatorSlot<S::Identity>) {
        slot.set_safe(Stance::Away);
        fence(Ordering::SeqCst);
        // I7.
        self.system.settle_nudges();
    }

    /// [`Protocol::leave`], until `limit`'s deadline. Past it: false, and the slot is still safe.
    pub(crate) fn leave_until(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
    ) -> bool {
        self.leave_within(slot, limit, &mut Waits::default())
    }

    fn leave_within(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
        waits: &mut Waits,
    ) -> bool {
        self.try_leave(slot) || self.process_within(slot, limit, waits)
    }

    /// The slow path of a poll: does what is pending until nothing is. The state is `Running` before and
    /// after. In between it is `Safe` while the world is stopped.
    #[cold]
    #[inline(never)]
    pub(crate) fn process(&self, slot: &'static MutatorSlot<S::Identity>) {
        self.process_within(slot, &Unlimited, &mut Waits::default());
    }

    /// [`Protocol::process`], in a nudged call. Requesters nudge the target at once the next time, unless it
    /// comes to a poll or a region by itself before.
    pub(crate) fn process_nudged(&self, slot: &'static MutatorSlot<S::Identity>) {
        // Relaxed: the target's own next look finds it.
        slot.requests.poll.fetch_or(NUDGED, Ordering::Relaxed);
        self.process_but(NUDGED, slot, &Unlimited, &mut Waits::default());
    }

    /// [`Protocol::process`], with a deadline for being stopped. Past it: false, and the state is `Safe`.
    fn process_within(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
        waits: &mut Waits,
    ) -> bool {
        slot.forget_nudge();
        self.process_but(0, slot, limit, waits)
    }

    /// [`Protocol::process_within`], with some bits left alone.
    fn process_but(
        &self,
        left_alone: u32,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
        waits: &mut Waits,
    ) -> bool {
        let in_time = loop {
            self.system.edge(Edge::Published);
            // I2, in full: requesters need not have made the heavy fence yet.
            fence(Ordering::SeqCst);
            let poll = slot.requests.poll.load(Ordering::Acquire) & !left_alone;
            if poll & STOP != 0 {
                if !self.be_stopped(slot, limit, waits) {
                    break false;
                }
            } else if poll & HANDSHAKE != 0 && self.is_served_by_another(slot) {
                // H2. It has waited.
            } else if poll & EACH != 0 {
                // H5: before it runs operations.
                self.serve_each(slot);
            } else if poll & HANDSHAKE != 0 {
                self.serve_own(slot);
            } else if poll & REST != 0 {
                self.be_held(slot);
            } else {
                break true;
            }
        };
        // Not earlier: the next stop may come between its store of `Running` and its last look.
        self.waits_no_longer(waits);
        in_time
    }

    /// Acknowledges a stop and waits for its end. False if `limit`'s deadline passed first.
    fn be_stopped(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
        waits: &mut Waits,
    ) -> bool {
        // First: the holder of the stop finds it.
        slot.status.help.waits.store(true, Plain::Relaxed);
        slot.set_safe(Stance::Waits);
        fence(Ordering::SeqCst);
        self.acknowledge_stop(slot);
        loop {
            if !self.wait_while_stopped(slot, limit, waits) {
                slot.status.help.waits.store(false, Plain::Relaxed);
                return false;
            }
            // I7: no nudge is wanted for a slot that is safe.
            self.system.settle_nudges();
            self.stay_while_held(slot);
            // Only the target clears the bit, and then looks at its source again: the next stop may
            // have set it before it was cleared, or have found it and left it there (I9).
            slot.requests.poll.fetch_and(!STOP, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            if !self.is_stopping() {
                break;
            }
            slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
        }
        slot.status.help.waits.store(false, Plain::Relaxed);
        // I8: the caller looks at the poll word again.
        slot.set_state(MutatorState::Running);
        true
    }

    fn wait_while_stopped(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        limit: &impl Limit,
        waits: &mut Waits,
    ) -> bool {
        loop {
            // Acquire, with the resume's release: this thread sees what was done in the stop.
            let word = self.stop_word.load(Ordering::Acquire);
            if word.is_multiple_of(2) {
                return true;
            }
            let left = limit.left();
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            self.is_passed_over(waits, word);
            if self.helps(slot) {
                waits.goes_on();
                continue;
            }
            // I8: after the load. A recall that comes later changes the word.
            if slot.is_recalled(&self.system) {
                self.system.serve();
            }
            self.system.wait(&self.stop_word, word, left);
        }
    }

    /// The thread's task was held while the slot stood still: waits until it is not.
    fn be_held(&self, slot: &'static MutatorSlot<S::Identity>) {
        slot.set_safe(Stance::Waits);
        fence(Ordering::SeqCst);
        // As in `be_stopped`: a requester may have seen `Running`, and gone to sleep.
        self.acknowledge_stop(slot);
        self.stay_while_held(slot);
        slot.set_state(MutatorState::Running);
    }

    /// Waits, safe, while the thread's task is held, if it was held while the slot stood still.
    pub(crate) fn stay_while_held(&self, slot: &MutatorSlot<S::Identity>) {
        // I8: cleared first. A recall that comes after this is found by the next look.
        if slot.is_recalled(&self.system) {
            slot.requests.poll.fetch_and(!REST, Ordering::AcqRel);
            // It may take long: the holder of a stop need not wait for it.
            let waits = slot.status.help.waits.swap(false, Plain::Relaxed);
            self.system.stay_while_held();
            slot.status.help.waits.store(waits, Plain::Relaxed);
        }
    }

    /// Called by a handler on the target's thread, whose slot stands still: its task is held from now on, or
    /// the thread that holds it wants something of it.
    pub(crate) fn recall(&self, slot: &MutatorSlot<S::Identity>) {
        // Release, as for the other bits. On one thread it changes nothing; in models the handler is another
        // thread.
        slot.requests.poll.fetch_or(REST, Ordering::Release);
        // A wait that the signal cuts short, or that is about to begin, finds another value. Release:
        // a thread that finds it finds REST.
        self.stop_word.fetch_add(2, Ordering::Release);
        self.stop_turn.recall();
        self.each_turn.recall();
    }

    /// A requester that has acquired its turn begins its work in the same safe region. False when its task
    /// was held meanwhile: it still waits, and has to [stay](Protocol::stay_while_held).
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

    /// A requester that has the world stopped is to be stopped like all others: it is in its safe region, and does not
    /// leave that before the stop is over.
    pub(crate) fn stop_too(slot: &MutatorSlot<S::Identity>) {
        // Relaxed: its own next look finds it.
        slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
        // What it runs from here on is none of the stop's: whoever has that finds it like all others.
        slot.set_safe(Stance::Away);
    }

    fn is_stopping(&self) -> bool {
        self.stop_word.load(Ordering::Acquire) % 2 == 1
    }

    /// Acknowledges the stop that is pending for the slot, unless the requester does.
    pub(super) fn acknowledge_stop(&self, slot: &MutatorSlot<S::Identity>) {
        let pending = slot.requests.stop_pending.load(Ordering::Relaxed);
        if pending != 0 && Self::take_stop(slot, pending) {
            // The requester may not have come to set the bit yet, and counts this slot as stopped from
            // the acknowledgement on: without the bit the target would run again. Relaxed: the target's
            // own next look finds it, and taking the number, an acquire, has shown it the odd word.
            // Only the target clears the bit, and most find it there.
            if slot.requests.poll.load(Ordering::Relaxed) & STOP == 0 {
                slot.requests.poll.fetch_or(STOP, Ordering::Relaxed);
            }
            self.system.edge(Edge::Acknowledges);
            let last = self.stop.acknowledge(RoundNumber(pending), Some(slot.current_use()));
            if last || self.stop.wakes_at_each() {
                self.system.wake_all(&self.stop.pending);
            }
        }
    }

    /// Takes the number of the pending stop. I3: the thread that succeeds acknowledges. Release: the
    /// requester sees the target's writes so far.
    pub(super) fn take_stop(slot: &MutatorSlot<S::Identity>, pending: u32) -> bool {
        let word = &slot.requests.stop_pending;
        word.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes the number of the pending for-each. I3. Acquire: the call was published before the number.
    pub(super) fn take_each(slot: &MutatorSlot<S::Identity>, pending: u32) -> bool {
        let word = &slot.requests.each_pending;
        word.compare_exchange(pending, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn acknowledge_each(&self, slot: &MutatorSlot<S::Identity>, pending: u32) {
        if self.each.acknowledge(RoundNumber(pending), Some(slot.current_use())) {
            self.system.wake_all(&self.each.pending);
        }
    }

    /// Sleeps until the requester has run the closure that it has claimed, or hands the claim back; may
    /// return early.
    fn await_claim(&self, slot: &MutatorSlot<S::Identity>, pending: u32) {
        if slot.is_recalled(&self.system) {
            self.system.serve();
        }
        slot.status.awaits.store(1, Ordering::Relaxed);
        // Release: a requester that finds this finds the slot's mark.
        self.each_awaited.store(1, Ordering::Release);
        // I4. Either the requester, which fences when it has settled some claims, finds the marks, or this
        // thread finds its claim settled.
        fence(Ordering::SeqCst);
        self.system.wait(&slot.requests.each_pending, pending, Some(NAP));
        slot.status.awaits.store(0, Ordering::Relaxed);
    }

    /// Runs the pending closure, or waits until the requester has.
    fn serve_each(&self, slot: &'static MutatorSlot<S::Identity>) {
        let pending = slot.requests.each_pending.load(Ordering::Acquire);
        if pending == 0 {
            // I7: no nudge is wanted for a slot with nothing pending.
            self.system.settle_nudges();
            slot.requests.poll.fetch_and(!EACH, Ordering::AcqRel);
            // As for STOP: the next request may have set the bit before it was cleared, or left it (I9).
            fence(Ordering::SeqCst);
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
            self.system.edge(Edge::Acknowledges);
            self.acknowledge_each(slot, pending);
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "target_tests.rs"]
mod tests;
