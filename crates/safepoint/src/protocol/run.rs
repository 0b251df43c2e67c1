//! The slots that a for-each's requester visits one after the other: claimed, and safe behind its heavy fence.
//!
//! Most of a large world is in safe regions. A visit there costs a few looks and a store in one cache line, so that
//! what a closure needs around it (a panic is to be caught, the thread is inside a closure) would cost as much. It
//! is done once for a run of them.

use super::arena::Slots;
use super::slot::MutatorSlot;
use super::{Protocol, System};
use sigctx::sync::Ordering;

/// The closure of a round. It must not unwind.
pub(crate) trait Visitor<S: System>: Sync {
    /// Runs it for one slot, on this thread.
    fn visit(&self, slot: &'static MutatorSlot<S::Identity>);

    /// Runs it for each slot of `run`, unless it ends early: the slot that came last counts as visited.
    fn visit_all(&self, run: &mut Run<'_, S>) {
        run.visit(|slot| self.visit(slot));
    }
}

impl<S: System, F: Fn(&'static MutatorSlot<S::Identity>) + Sync> Visitor<S> for F {
    fn visit(&self, slot: &'static MutatorSlot<S::Identity>) {
        self(slot);
    }
}

/// Slots that follow one another, are claimed, and are safe behind the heavy fence.
pub(crate) struct Run<'a, S: System> {
    protocol: &'a Protocol<S>,
    own: &'static MutatorSlot<S::Identity>,
    claimed: u32,
    walk: Walk<S::Identity>,
}

/// How far a requester has come.
struct Walk<I: 'static> {
    slots: Slots<I>,
    upcoming: Option<&'static MutatorSlot<I>>,
    /// Its closure has begun, and its claim is to be released.
    visited: Option<&'static MutatorSlot<I>>,
    visits: u32,
}

impl<'a, S: System> Run<'a, S> {
    /// Calls `visit` for each slot, and releases its claim. If that unwinds the run may go on with the next.
    #[inline]
    pub(crate) fn visit(&mut self, visit: impl Fn(&'static MutatorSlot<S::Identity>)) {
        let Self { protocol, own, claimed, ref mut walk } = *self;
        // What it works on is nobody else's, and stays in registers.
        let mut moved = Moved { now: walk.copy(), walk };
        let walk = &mut moved.now;
        while let Some(slot) = walk.upcoming.filter(|slot| protocol.may_visit(own, slot, claimed)) {
            walk.visited = walk.upcoming;
            walk.upcoming = walk.slots.next();
            walk.visits += 1;
            visit(slot);
            walk.visited = None;
            protocol.release_claim(slot);
        }
    }

    pub(super) fn new(
        protocol: &'a Protocol<S>,
        own: &'static MutatorSlot<S::Identity>,
        claimed: u32,
    ) -> Self {
        let mut slots = protocol.arena.slots();
        let upcoming = slots.next();
        let walk = Walk { slots, upcoming, visited: None, visits: 0 };
        Self { protocol, own, claimed, walk }
    }

    /// Has the closure run for as many slots as possible. Returns the one after these.
    pub(super) fn until_another(
        &mut self,
        visitor: &dyn Visitor<S>,
    ) -> Option<&'static MutatorSlot<S::Identity>> {
        while self.goes_on() {
            visitor.visit_all(self);
            // Its visit has unwound.
            if let Some(slot) = self.walk.visited.take() {
                self.protocol.release_claim(slot);
            }
        }
        let another = self.walk.upcoming;
        self.walk.upcoming = self.walk.slots.next();
        another
    }

    /// How often the closure ran.
    pub(super) fn visits(&self) -> u32 {
        self.walk.visits
    }

    /// Whether there is a slot for which the closure may run, and nothing else is to be done before.
    fn goes_on(&self) -> bool {
        self.walk.upcoming.is_some_and(|slot| self.protocol.may_visit(self.own, slot, self.claimed))
    }
}

impl<I> Walk<I> {
    #[inline]
    fn copy(&self) -> Self {
        Self { slots: self.slots.clone(), ..*self }
    }
}

/// A copy of a walk that is written back at the end, unwinding or not.
struct Moved<'a, I: 'static> {
    now: Walk<I>,
    walk: &'a mut Walk<I>,
}

impl<I> Drop for Moved<'_, I> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.walk = self.now.copy();
    }
}

impl<S: System> Protocol<S> {
    /// Behind the heavy fence: whether the closure may run for the slot, and nothing else is to be done before.
    #[inline]
    fn may_visit(
        &self,
        own: &'static MutatorSlot<S::Identity>,
        slot: &'static MutatorSlot<S::Identity>,
        claimed: u32,
    ) -> bool {
        slot.requests.each_pending.load(Ordering::Relaxed) == claimed
            && slot.is_kept_safe(self.system.targets_stand())
            && !own.is_armed()
            && self.each_awaited.load(Ordering::Relaxed) == 0
    }
}
