//! A requester's clock: its deadline, its naps, and the nudges for those who are late.

use std::panic::{self, AssertUnwindSafe};
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
    /// When the next look is due.
    next_look: Instant,
}

impl<'a> Clock<'a> {
    /// A deadline that is too far away for the clock is none.
    pub(crate) fn start(world: &'a Shared, options: &StopOptions) -> Self {
        let start = Instant::now();
        let deadline = options.deadline.and_then(|d| start.checked_add(d));
        let nap = FIRST_NAP.min(options.nudge_after.max(Duration::from_micros(10)));
        let (nudge_after, next_look) = (options.nudge_after, start + nap);
        Self { world, deadline, nudge_after, start, nap, next_look }
    }

    /// From here on the time counts as time to stop; what came before was waiting for the turn.
    pub(crate) fn restart(&mut self) {
        self.start = Instant::now();
        self.next_look = self.start + self.nap;
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

    fn nap(&self) -> Option<Duration> {
        let until = self.deadline.map_or(self.next_look, |at| at.min(self.next_look));
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next_look;
        if due {
            self.nap = (self.nap * 2).min(LONGEST_NAP);
            self.next_look = now + self.nap;
        }
        due
    }

    fn late(&mut self, slot: &'static Slot<Identity>) {
        if self.elapsed() < self.nudge_after {
            return;
        }
        let Some(thread) = slot.told.identity.thread() else { return };
        let data = ptr::from_ref(slot).expose_provenance();
        // SAFETY: `nudged` asks for the exposed address of a slot and allows for all the rest; what
        // it runs does not unwind.
        let call = unsafe { NudgeCall::new(nudged, data) };
        // The nudge is somebody else's code, and so is its destructor, which runs here when it was
        // replaced meanwhile.
        let ask = || {
            if let Some(nudge) = &*self.world.nudge.load() {
                // Best effort: asked again at the next nap, and whoever exits answers on its way.
                let wanted = || slot.state() == MutatorState::Running;
                let _ = nudge.nudge(thread, call, &wanted);
            }
        };
        // Unwinding would leave a request behind that nobody waits for. The hook has reported the
        // panic; the payload's destructor might panic in its turn.
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(ask)) {
            Box::leak(payload);
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
    // this call, and the owner's mutator holds the world: what is called from here are closures for
    // this slot, in which the mutator cannot be dropped (it aborts).
    let own = identity.tid.load(core::sync::atomic::Ordering::Relaxed) == sigctx::sys::gettid();
    if own && slot.state() == MutatorState::Running && slot.is_asked() && !callback::is_running() {
        let world = identity.world.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: written by this thread at attach; alive as said above.
        let world = unsafe { &*world };
        world.protocol.settle(slot);
    }
}
