//! A requester's clock: its deadline, its naps, and the nudges for those who are late.

use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::time::{Duration, Instant};

use sigctx::sys;
use threadreg::{Name, NudgeCall, NudgeError, ThreadRef};

use crate::error::{Straggler, Why};
use crate::protocol::{By, Limit, MutatorState, Pace, Protocol, Slot};
use crate::system::{self, Identity, Linux, Owner};

/// The first nap; each is twice the one before.
const FIRST_NAP: Duration = Duration::from_micros(100);
/// A nap is also how long a lost nudge goes unnoticed.
const LONGEST_NAP: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Clock<'a> {
    protocol: &'a Protocol<Linux>,
    deadline: Option<Instant>,
    nudge_after: Duration,
    start: Instant,
    nap: Duration,
    /// When the next look is due.
    next_look: Instant,
    /// The thread that waits.
    me: i32,
    nudged: Vec<Nudged>,
    /// The waiting thread itself keeps a mutator from answering.
    own_fault: bool,
}

/// What came of a late mutator's nudges.
#[derive(Debug)]
struct Nudged {
    who: By,
    times: u32,
    last: Sent,
}

#[derive(Debug)]
enum Sent {
    Asked,
    Failed(NudgeError),
    Panicked,
}

impl<'a> Clock<'a> {
    /// A deadline that is too far away for the clock is none.
    pub(crate) fn start(
        protocol: &'a Protocol<Linux>,
        me: i32,
        timeout: Option<Duration>,
        nudge_after: Duration,
    ) -> Self {
        let start = Instant::now();
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let nap = FIRST_NAP.min(nudge_after.max(Duration::from_micros(10)));
        let next_look = start + nap;
        let (nudged, own_fault) = (Vec::new(), false);
        Self { protocol, deadline, nudge_after, start, nap, next_look, me, nudged, own_fault }
    }

    /// From here on the time counts as time to stop; what came before was waiting for the turn.
    pub(crate) fn restart(&mut self) {
        self.start = Instant::now();
        self.next_look = self.start + self.nap;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether waiting was given up because the thread itself holds the task of a late mutator.
    pub(crate) fn is_own_fault(&self) -> bool {
        self.own_fault
    }

    fn nudge(
        &self,
        slot: &'static Slot<Identity>,
        thread: ThreadRef,
        wanted: &dyn Fn() -> bool,
    ) -> Option<Sent> {
        let data = ptr::from_ref(slot).expose_provenance();
        // SAFETY: `nudged` asks for the exposed address of a slot and allows for all the rest; what
        // it runs does not unwind.
        let call = unsafe { NudgeCall::new(nudged, data) };
        // The nudge is somebody else's code, and so is its destructor, which runs here when it was
        // replaced meanwhile.
        let ask = || {
            let nudge = self.protocol.edge.nudge.load();
            Some((*nudge).as_ref()?.nudge(thread, call, wanted))
        };
        // Unwinding would leave a request behind that nobody waits for. The hook has reported the
        // panic; the payload's destructor might panic in its turn.
        match panic::catch_unwind(AssertUnwindSafe(ask)) {
            Ok(sent) => sent.map(|sent| sent.map_or_else(Sent::Failed, |()| Sent::Asked)),
            Err(payload) => {
                Box::leak(payload);
                Some(Sent::Panicked)
            }
        }
    }

    fn note(&mut self, who: By, sent: Sent) {
        if let Some(nudged) = self.nudged.iter_mut().find(|nudged| nudged.who == who) {
            nudged.times += 1;
            nudged.last = sent;
        } else {
            self.nudged.push(Nudged { who, times: 1, last: sent });
        }
    }

    fn has_nudge(&self) -> bool {
        self.protocol.edge.nudge.load().is_some()
    }

    /// Whether no nudge has reached `who`, or is going to.
    fn is_out_of_reach(&self, who: By) -> bool {
        let last = self.nudged.iter().find(|nudged| nudged.who == who).map(|nudged| &nudged.last);
        !self.has_nudge() || matches!(last, Some(Sent::Failed(NudgeError::NotInstalled)))
    }

    fn why(&self, slot: &'static Slot<Identity>, owner: Owner) -> Why {
        // A thread that has left the registry may still run: it is asked for by its id.
        let gone = !owner.thread.is_alive() && sys::tgkill(sys::getpid(), owner.tid, 0).is_err();
        if gone {
            return Why::Ended;
        }
        if let Some(by) = owner.thread.suspended_by() {
            return Why::Suspended { by };
        }
        let who = slot.by();
        match self.nudged.iter().find(|nudged| nudged.who == who) {
            None if self.has_nudge() => Why::NotNudged,
            None => Why::NoNudge,
            Some(Nudged { last: Sent::Failed(error), .. }) => Why::NudgeFailed(*error),
            Some(Nudged { last: Sent::Panicked, .. }) => Why::NudgePanicked,
            Some(Nudged { times, .. }) => Why::Nudged { times: *times },
        }
    }
}

impl Limit for Clock<'_> {
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl Pace<Linux> for Clock<'_> {
    type Seen = Straggler;

    fn expired(&self) -> bool {
        self.own_fault || self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    fn nap(&self) -> Option<Duration> {
        let now = Instant::now();
        // One that has passed has been acted on: what is waited for still is not bounded by it, and
        // without a sleep the processor would be taken from it.
        let deadline = self.deadline.filter(|&at| at > now);
        let until = deadline.map_or(self.next_look, |at| at.min(self.next_look));
        Some(until.saturating_duration_since(now))
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

    fn late(&mut self, slot: &'static Slot<Identity>, wanted: &dyn Fn() -> bool) {
        let who = slot.by();
        let Some(thread) = slot.told.identity.thread() else { return };
        // Asked again at each nap, and whoever exits answers on its way.
        if self.elapsed() >= self.nudge_after
            && let Some(sent) = self.nudge(slot, thread, wanted)
        {
            self.note(who, sent);
        }
        let mine = thread.suspended_by() == Some(self.me);
        self.own_fault |= mine && self.is_out_of_reach(who);
    }

    fn look(&self, slot: &'static Slot<Identity>) -> Straggler {
        let state = slot.state();
        let owner = slot.told.identity.owner();
        Straggler {
            tid: owner.map_or(0, |owner| owner.tid),
            name: owner.map_or(Name::default(), |owner| owner.name),
            state,
            waited: self.elapsed(),
            why: owner.map_or(Why::Ended, |owner| self.why(slot, owner)),
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
    let own = identity.tid.load(core::sync::atomic::Ordering::Relaxed) == sys::gettid();
    // Under the guard of `freeze_creation` it would hold up those who make threads and are to stop:
    // it is nudged again.
    let may = !system::in_closure() && !threadreg::holds_freeze();
    if own && may && slot.state() == MutatorState::Running && slot.is_asked() {
        let world = identity.world.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: written by this thread at attach; alive as said above.
        let world = unsafe { &*world };
        world.settle(slot);
    }
}
