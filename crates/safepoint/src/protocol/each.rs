//! The requester's side of for-each: a closure that runs once for every mutator, on the mutator's own
//! thread if that runs, and on the requester's if the mutator is in a safe region.
//!
//! ```text
//!  each_pending, of a slot that runs when it is asked:
//!    0 --requester: asks--> n --target, at its poll: runs the closure---------> 0
//!                           |  \--requester: slot is gone, nothing to run-----> 0
//!     requester: slot Safe  v
//!                       n|CLAIMED --requester has run the closure-------------> 0
//!
//!  of a slot that seems safe:
//!    0 --requester--> n|CLAIMED --fence, slot Safe: requester runs the closure-> 0
//!                           |  \--fence, slot is gone, nothing to run---------> 0
//!                           v fence, slot runs; or its target waits
//!                           n, as above
//! ```
//!
//! A look at the state that finds `Safe` counts only after the heavy fence: then the target finds its poll bit
//! before it runs user code again. It takes its pending request or finds it claimed. The fence is made if a
//! target seems safe when it is asked, or before the requester sleeps. Where all run, and come to their polls
//! while the requester spins, there is none.
//!
//! A slot that seems safe is claimed when it is asked, by a store, and has no share of the round's count. If it
//! is safe behind the fence its target has to wait for the claim, so the requester alone decides, and a store
//! releases it. No step of this is a read-modify-write. Such slots are visited in a [`Run`], one after the other.
//! Before each closure the requester looks whether a target has come to wait, and hands back what that waits
//! for: no target waits for the closures of many others.
//! A store may miss a target that is just about to wait. That is woken at the next of these looks, the last of
//! which comes behind a fence.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use super::request::RoundNumber;
use super::run::{Run, Visitor};
use super::slot::{CLAIMED, EACH, MutatorSlot, MutatorState, Stance};
use super::{Pace, Protocol, System};
use sigctx::sync::{AtomicU32, Ordering, fence};

/// What was kept of the targets for which no closure ran.
pub(crate) type Unvisited<T> = Vec<T>;

/// A for-each that timed out.
#[derive(Debug)]
pub(crate) enum NotVisited<T> {
    /// It did not get the turn. No closure ran.
    NoTurn,
    /// Closures ran for so many, and for all but these.
    TimedOut(u32, Unvisited<T>),
}

/// What threads run in a round, and how often they did.
pub(crate) struct Call<'a, S: System> {
    visitor: &'a dyn Visitor<S>,
    /// How often targets ran it. Relaxed: the round's count orders it before the requester's look.
    by_targets: AtomicU32,
}

impl<S: System> fmt::Debug for Call<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

/// I6, H6: aborts when dropped. Unwinding would free a call that others may still make. With what it is left.
pub(super) struct MustNotUnwind(pub(super) &'static str);

impl Drop for MustNotUnwind {
    fn drop(&mut self) {
        // Under loom a model that fails unwinds through here, and loom reports it.
        #[cfg(not(loom))]
        crate::abort::abort_with(format_args!(
            "a panic left a {} that other threads may still run closures of",
            self.0
        ));
    }
}

/// What a requester knows when it begins to wait.
struct Wait {
    /// It has made the heavy fence since it asked.
    fenced: bool,
    /// How many targets were running when they were asked.
    running: u32,
}

/// What a requester knows when it has asked.
struct Asked {
    wait: Wait,
    /// Whether a target seemed safe.
    safe: bool,
    /// Whether a nudge brought one that runs to its last safe point.
    nudged: bool,
}

/// What the requester has done in one pass over the slots.
#[derive(Debug, Default, Clone, Copy)]
struct Pass {
    /// How often it ran the closure.
    visited: u32,
    /// How many claims it handed back, since their targets were not safe, or waited.
    left: u32,
}

impl<S: System> Protocol<S> {
    /// Runs the closure once for `own` and once for every other slot that is live when it is asked. A target
    /// that detaches meanwhile is visited or not. Returns how often it ran.
    ///
    /// `own` is the slot of the calling thread, `me`. It is running before and after, and in a safe region
    /// while the thread waits.
    pub(crate) fn for_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        me: i32,
        visitor: &dyn Visitor<S>,
        pace: &mut P,
    ) -> Result<u32, NotVisited<P::Seen>> {
        self.enter(own, Stance::Waits);
        let took = self.each_turn.acquire(&self.system, Some(own), me, pace);
        // I6: blocks while the world is stopped.
        self.leave(own);
        if !took {
            return Err(NotVisited::NoTurn);
        }

        let call: Call<'_, S> = Call { visitor, by_targets: AtomicU32::new(0) };
        let outstanding = MustNotUnwind("for-each");
        let round = self.each.begin();
        // Release, with `visit`'s acquire. I6: removed when nothing is outstanding.
        self.each_call.store(ptr::from_ref(&call).cast_mut().cast(), Ordering::Release);
        let Asked { mut wait, safe, nudged } = self.arm_each(own, round);
        if nudged {
            self.nudge_at_once(round, |requests| &requests.each_pending, pace);
        }
        call.visitor.visit(own);
        let mut visited = 1;
        if safe {
            // I2: a target that is seen running after the fence sees the bit before it changes state.
            self.system.heavy();
            let pass = self.visit_the_safe(own, round, &call, |_, _| ());
            visited += pass.visited;
            wait.running += pass.left;
            // What was handed back was asked after the fence.
            wait.fenced = pass.left == 0;
        }
        let mut unvisited = Vec::new();
        if !self.each.acknowledge(round, None) {
            visited += self.await_each(own, round, &call, wait, pace, &mut unvisited);
        }
        self.each_call.store(ptr::null_mut(), Ordering::Relaxed);
        let _over = ManuallyDrop::new(outstanding);
        self.each_turn.release(&self.system);
        visited += call.by_targets.load(Ordering::Relaxed);
        if unvisited.is_empty() {
            Ok(visited)
        } else {
            Err(NotVisited::TimedOut(visited, unvisited))
        }
    }

    /// Asks every live slot but `own`, and claims those that seem safe.
    fn arm_each(&self, own: &'static MutatorSlot<S::Identity>, round: RoundNumber) -> Asked {
        let (mut running, mut safe, mut nudged) = (0, false, false);
        let stands = self.system.targets_stand();
        for slot in self.arena.slots() {
            match slot.state_in(stands) {
                MutatorState::Dead | MutatorState::Attaching => {}
                _ if ptr::eq(own, slot) => {}
                MutatorState::Running => {
                    self.ask_for_visit(slot, round);
                    running += 1;
                    nudged |= slot.is_nudged();
                }
                MutatorState::Safe | MutatorState::Detaching => {
                    // Release: a target that finds the claim finds what came before.
                    slot.requests.each_pending.store(round.0 | CLAIMED, Ordering::Release);
                    // The fence that I9 wants comes later. If the target clears the bit until then, that is seen.
                    slot.arm(EACH);
                    safe = true;
                }
            }
        }
        Asked { wait: Wait { fenced: false, running }, safe, nudged }
    }

    /// Asks a slot for which nothing is pending, or whose claim is handed back. Its target, or this thread in
    /// its place, has to acknowledge.
    fn ask_for_visit(&self, slot: &'static MutatorSlot<S::Identity>, round: RoundNumber) {
        self.each.expect();
        // The number, then the bit: a target that finds the bit finds the number.
        slot.requests.each_pending.store(round.0, Ordering::Release);
        slot.requests.poll.fetch_or(EACH, Ordering::AcqRel);
    }

    /// Waits for all acknowledgements, in a safe region: a requester that waits can be stopped. Past the
    /// deadline it waits only for closures that have begun. Returns how often it ran the closure.
    fn await_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        mut wait: Wait,
        pace: &mut P,
        unvisited: &mut Unvisited<P::Seen>,
    ) -> u32 {
        let mut visited = 0;
        let (mut spun, mut withdrawn) = (false, false);
        while self.each.pending().is_some() {
            self.enter(own, Stance::Waits);
            // Once: what has not come in that time needs the processor, or longer.
            let done = !spun && self.system.spin(wait.running, || self.each.pending().is_none());
            spun = true;
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
                visited += self.visit_the_safe(own, round, call, |_, _| ()).visited;
            } else if expired {
                visited += self.withdraw_each(own, round, call, pace, unvisited);
                withdrawn = true;
            } else if late && !withdrawn {
                let late = |slot: &'static MutatorSlot<S::Identity>, wanted: &dyn Fn() -> bool| {
                    pace.late(slot, wanted);
                };
                visited += self.visit_the_safe(own, round, call, late).visited;
            }
        }
        visited
    }

    /// Past the deadline: visits the slots that are safe, and withdraws what is still pending.
    fn withdraw_each<P: Pace<S>>(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        pace: &P,
        unvisited: &mut Unvisited<P::Seen>,
    ) -> u32 {
        let pass = self.visit_the_safe(own, round, call, |slot, _| {
            // Looked at while the request is pending: the slot is still that of the target that was asked.
            let seen = pace.look(slot);
            if Self::take_each(slot, round.0) {
                self.each.acknowledge(round, None);
                unvisited.push(seen);
            }
        });
        pass.visited
    }

    /// Runs the closure for every slot that is safe and for which it is pending. Slots that run are passed
    /// to `late`. Leaves no claim.
    fn visit_the_safe(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        mut late: impl FnMut(&'static MutatorSlot<S::Identity>, &dyn Fn() -> bool),
    ) -> Pass {
        let mut pass = Pass::default();
        let claimed = round.0 | CLAIMED;
        let mut run = Run::new(self, own, claimed);
        while let Some(slot) = run.until_another(call.visitor) {
            let pending = || slot.requests.each_pending.load(Ordering::Relaxed);
            let is_pending = || pending() == round.0;
            if pending() & !CLAIMED != round.0 {
                continue;
            }
            // A stop waits for one closure at most, and no closure runs in it (I6).
            if own.is_asked() {
                // I4: a claim does not last as long as the stop.
                let handed_back = self.hand_back_all(round);
                self.process(own);
                if handed_back != 0 {
                    pass.left += handed_back;
                    // I2: for the looks at the slots that were asked just now.
                    self.system.heavy();
                }
            } else {
                own.forget_nudge();
            }
            // I4: a target waits for one closure at most, too.
            if self.each_awaited.load(Ordering::Relaxed) != 0 {
                pass.left += self.hand_back(round);
            }
            if pending() == claimed {
                self.settle_claim(slot, round, call, &mut pass);
                continue;
            }
            match slot.state() {
                // I7.
                MutatorState::Running => {
                    late(slot, &|| slot.state() == MutatorState::Running && is_pending());
                }
                MutatorState::Safe => pass.visited += u32::from(self.visit_for(slot, round, call)),
                // Gone, or going: it looks at what is pending before it runs user code again.
                _ => {
                    if Self::take_each(slot, round.0) {
                        self.each.acknowledge(round, None);
                    }
                }
            }
        }
        pass.visited += run.visits();
        // I4: with the fence of a target that is about to wait.
        fence(Ordering::SeqCst);
        pass.left += self.hand_back(round);
        pass
    }

    /// Behind the heavy fence: runs the closure that was claimed when the slot was asked, or gives up the claim.
    fn settle_claim(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
        pass: &mut Pass,
    ) {
        match slot.state() {
            _ if slot.is_kept_safe(self.system.targets_stand()) => {
                call.visitor.visit(slot);
                pass.visited += 1;
                self.release_claim(slot);
            }
            MutatorState::Safe | MutatorState::Running => {
                self.ask_for_visit(slot, round);
                self.wake_waiting(slot);
                pass.left += 1;
            }
            // Gone, or going, or another target that has just come: as in `visit_the_safe`.
            _ => self.release_claim(slot),
        }
    }

    /// A claim ends, with nothing pending.
    #[inline]
    pub(super) fn release_claim(&self, slot: &'static MutatorSlot<S::Identity>) {
        // Release: the target sees what the closure did.
        slot.requests.each_pending.store(0, Ordering::Release);
        self.wake_waiting(slot);
    }

    /// Wakes a target that waits for a claim, after that has been settled. One that is about to wait may be
    /// missed: see `hand_back`.
    fn wake_waiting(&self, slot: &'static MutatorSlot<S::Identity>) {
        if slot.status.awaits.load(Ordering::Relaxed) != 0 {
            self.system.wake_all(&slot.requests.each_pending);
        }
    }

    /// For each target that waits for a claim: hands back one that is not settled, and wakes the target.
    /// Returns how many it handed back.
    fn hand_back(&self, round: RoundNumber) -> u32 {
        let mut left = 0;
        // Acquire: it sees the marks of all slots whose targets have written this before.
        if self.each_awaited.load(Ordering::Relaxed) != 0
            && self.each_awaited.swap(0, Ordering::Acquire) != 0
        {
            for slot in self.arena.slots() {
                if slot.status.awaits.load(Ordering::Relaxed) != 0 {
                    let pending = slot.requests.each_pending.load(Ordering::Relaxed);
                    if pending == round.0 | CLAIMED {
                        self.ask_for_visit(slot, round);
                        left += 1;
                    }
                    self.system.wake_all(&slot.requests.each_pending);
                }
            }
        }
        left
    }

    /// Hands back all claims, since this thread may be stopped before it comes to them. A target that waits, or goes,
    /// takes its own; it may be on the thread that has the world stopped. Returns how many.
    fn hand_back_all(&self, round: RoundNumber) -> u32 {
        let mut left = 0;
        for slot in self.arena.slots() {
            if slot.requests.each_pending.load(Ordering::Relaxed) == round.0 | CLAIMED {
                self.ask_for_visit(slot, round);
                left += 1;
            }
        }
        // I4: as at the end of a pass.
        fence(Ordering::SeqCst);
        left + self.hand_back(round)
    }

    /// Claims what is pending for a safe slot, and runs the closure on this thread. False if the target was
    /// first, or another thread runs operations for it.
    fn visit_for(
        &self,
        slot: &'static MutatorSlot<S::Identity>,
        round: RoundNumber,
        call: &Call<'_, S>,
    ) -> bool {
        let (pending, claim) = (&slot.requests.each_pending, round.0 | CLAIMED);
        // Acquire: the look at the state came before, and the closure must come after.
        if pending.compare_exchange(round.0, claim, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        // H5.
        fence(Ordering::SeqCst);
        if slot.is_served() {
            // Looked at again. Release: its target may take it.
            pending.store(round.0, Ordering::Release);
            self.wake_waiting(slot);
            return false;
        }
        call.visitor.visit(slot);
        self.release_claim(slot);
        self.each.acknowledge(round, None);
        true
    }

    /// Runs the round's closure for the calling thread's slot. The caller has taken the slot's pending
    /// request, and acknowledges after this.
    pub(super) fn visit(&self, slot: &'static MutatorSlot<S::Identity>) {
        let call = self.each_call.load(Ordering::Acquire);
        // SAFETY: I6: the requester keeps the call alive while an acknowledgement of its round is
        // outstanding, and the caller acknowledges after this.
        let call = unsafe { &*call };
        call.visitor.visit(slot);
        call.by_targets.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicBool;
    use core::time::Duration;
    use std::sync::{Barrier, Mutex};
    use std::thread;
    use std::time::Instant;

    use testkit::{child, in_child};

    use super::{MutatorSlot, Ordering, Pace, Protocol, Stance};
    use crate::protocol::Limit;
    use crate::protocol::patient::Patient;
    use crate::system::{Fences, Identity, Linux};

    fn soon(done: &dyn Fn() -> bool) {
        let start = Instant::now();
        while !done() && start.elapsed() < Duration::from_secs(10) {
            thread::yield_now();
        }
    }

    /// The requester's slot. Two others, in safe regions, are visited after it, in order.
    fn before_two_in_regions(protocol: &Protocol<Linux>) -> &'static MutatorSlot<Identity> {
        let attach = || protocol.attach(|_| (), |_| (), &Patient).expect("room");
        let own = attach();
        for other in [attach(), attach()] {
            protocol.enter(other, Stance::Away);
        }
        own
    }

    /// The requester is stopped before the next one, though nothing else is between them.
    #[test]
    fn a_stop_waits_for_one_closure() {
        let name = "protocol::each::tests::a_stop_waits_for_one_closure";
        in_child(name, Duration::from_secs(30), || {
            let protocol = &Protocol::new(Linux::new(Fences::Full));
            let own = before_two_in_regions(protocol);
            let inside = Barrier::new(2);
            let (stopped, in_time) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    inside.wait();
                    let (turn, system) = (&protocol.stop_turn, &protocol.system);
                    assert!(turn.acquire(system, None, 2, &Patient), "no limit");
                    protocol.stop(None, &mut Patient).expect("no limit");
                    stopped.store(true, Ordering::Relaxed);
                    protocol.resume();
                    turn.release(system);
                });
                let visit = |slot: &'static MutatorSlot<Identity>| match slot.index() {
                    1 => {
                        inside.wait();
                        soon(&|| own.is_armed());
                    }
                    2 => in_time.store(stopped.load(Ordering::Relaxed), Ordering::Relaxed),
                    _ => {}
                };
                assert_eq!(protocol.for_each(own, 1, &visit, &mut Patient).expect("no limit"), 3);
                assert!(in_time.into_inner(), "before the second closure begins");
            });
        });
    }

    /// A mutator that comes back from its region does not wait for the closures of all that come before it: the
    /// last gets on while the second closure runs.
    #[test]
    fn a_target_that_waits_gets_its_closure_back() {
        let name = "protocol::each::tests::a_target_that_waits_gets_its_closure_back";
        in_child(name, Duration::from_secs(30), || {
            let protocol = &Protocol::new(Linux::new(Fences::Full));
            let own = before_two_in_regions(protocol);
            let attach = || protocol.attach(|_| (), |_| (), &Patient).expect("room");
            let (inside, leave) = (Barrier::new(2), Barrier::new(2));
            let (visits, in_time) = (Mutex::new(Vec::new()), AtomicBool::new(false));
            let last_is_visited = || visits.lock().unwrap().iter().any(|&(at, _)| at == 3);
            thread::scope(|scope| {
                let last = scope.spawn(|| {
                    let last = attach();
                    protocol.enter(last, Stance::Away);
                    inside.wait();
                    leave.wait();
                    protocol.leave(last);
                    protocol.enter(last, Stance::Away);
                });
                inside.wait();
                let visit = |slot: &'static MutatorSlot<Identity>| {
                    let at = slot.index();
                    visits.lock().unwrap().push((at, thread::current().id()));
                    if at == 1 {
                        leave.wait();
                        let waits = |slot: &MutatorSlot<Identity>| {
                            slot.status.awaits.load(Ordering::Relaxed) == 1
                        };
                        soon(&|| protocol.live().any(waits));
                    } else if at == 2 {
                        soon(&last_is_visited);
                        in_time.store(last_is_visited(), Ordering::Relaxed);
                    }
                };
                assert_eq!(protocol.for_each(own, 1, &visit, &mut Patient).expect("no limit"), 4);
                let (me, other) = (thread::current().id(), last.thread().id());
                assert!(in_time.into_inner(), "before the second closure ends");
                let mut visits = visits.lock().unwrap();
                // The last may begin before the second does.
                visits.sort_unstable_by_key(|&(at, _)| at);
                assert_eq!(*visits, [(0, me), (1, me), (2, me), (3, other)]);
            });
        });
    }

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
            let _ = protocol.for_each(own, 1, &|_: &'static _| (), &mut Panics);
        });
        if let Some(ended) = ended {
            assert!(ended.output.contains("may still run closures"), "{}", ended.output);
            assert!(!ended.status.success());
        }
    }
}
