//! A requester's clock: its deadline, its naps, and the nudges for those who are late.

use std::ptr;
use std::time::{Duration, Instant};

use threadreg::NudgeCall;

use crate::callback;
use crate::edge::{Identity, Linux};
use crate::options::StopOptions;
use crate::protocol::{MutatorState, Pace, Slot};
use crate::world::Shared;

/// The first nap; each is twice the one before.
const FIRST_NAP: Duration = Duration::from_micros(100);
/// A nap is also how long a lost nudge goes unnoticed.
const LONGEST_NAP: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Clock<'a> {
    world: &'a Shared,
    deadline: Option<Instant>,
    nudge_after: Duration,
    start: Instant,
    nap: Duration,
}

impl<'a> Clock<'a> {
    /// A deadline that is too far away for the clock is none.
    pub(crate) fn start(world: &'a Shared, options: &StopOptions) -> Self {
        let start = Instant::now();
        let deadline = options.deadline.and_then(|d| start.checked_add(d));
        let nap = FIRST_NAP.min(options.nudge_after.max(Duration::from_micros(10)));
        Self { world, deadline, nudge_after: options.nudge_after, start, nap }
    }

    /// From here on the time counts as time to stop; what came before was waiting for the turn.
    pub(crate) fn restart(&mut self) {
        self.start = Instant::now();
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Pace<Linux> for Clock<'_> {
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn expired(&self) -> bool {
        self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    fn nap(&mut self) -> Option<Duration> {
        let nap = self.nap;
        self.nap = (nap * 2).min(LONGEST_NAP);
        Some(self.left().map_or(nap, |left| nap.min(left)))
    }

    fn late(&mut self, slot: &'static Slot<Identity>) {
        if self.elapsed() < self.nudge_after {
            return;
        }
        let nudge = self.world.nudge.load();
        if let (Some(nudge), Some(thread)) = (&*nudge, slot.told.identity.thread()) {
            let data = ptr::from_ref(slot).expose_provenance();
            // Best effort: asked again at the next nap, and whoever exits answers on its way.
            let _ = nudge.nudge(thread, NudgeCall { function: nudged, data });
        }
    }
}

/// What a nudged mutator does at its asynchronous safe point: the slow path of its poll.
///
/// # Safety
///
/// `data` is the exposed address of a [`Slot`]. Late and repeated calls are allowed for.
unsafe fn nudged(data: usize) {
    let slot = ptr::with_exposed_provenance::<Slot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    let slot: &'static Slot<Identity> = unsafe { &*slot };
    let identity = &slot.told.identity;
    // The slot may have another owner by now, or none. If it is this thread's it stays so during
    // this call, and the owner's mutator holds the world.
    let own = identity.tid.load(core::sync::atomic::Ordering::Relaxed) == sigctx::sys::gettid();
    if own && slot.state() == MutatorState::Running && slot.is_asked() && !callback::is_running() {
        let world = identity.world.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: written by this thread at attach; alive as said above.
        let world = unsafe { &*world };
        world.protocol.settle(slot);
    }
}
