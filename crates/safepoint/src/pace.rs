//! A requester's clock: its deadline, its naps, and the nudges for late targets.

use std::cell::Cell;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::time::{Duration, Instant};

use sigctx::inject::Frame;
use sigctx::sys::{self, Tid};
use threadreg::procfs::{Served, TaskDir};
use threadreg::{Name, NudgeCall, NudgeError, NudgeOutcome, ThreadRef};

use crate::metrics::count;
use crate::options::OnLate;
use crate::protocol::{Limit, MutatorSlot, MutatorState, Pace, Protocol, SlotUse};
use crate::roots::{Interrupted, Stand, stand_here};
use crate::straggler::{KernelView, LastNudge, Straggler, StragglerCause};
use crate::system::{self, Identity, Linux, NO_THREAD, NudgePanicked, Target};
use crate::tape::Event;

/// When a target that runs is nudged of which nothing is known. Well above the time from a request to a poll's
/// acknowledgement.
const NUDGE_AFTER: Duration = Duration::from_micros(100);
/// The first nap. Each is twice as long as the one before.
const FIRST_NAP: Duration = Duration::from_micros(100);
/// The longest nap. For as long a lost nudge goes unnoticed, and a target that has published that it is safe, and lingers
/// before it looks whether anyone wants to know (I2): at most one nap lies in between, and it is to last for less than
/// 10 ms, with what the kernel adds.
const LONGEST_NAP: Duration = Duration::from_millis(5);
/// What a delay between what a target publishes and what it looks at may cost.
const BOUND: Duration = Duration::from_millis(10);
const _: () = assert!(LONGEST_NAP.as_nanos() < BOUND.as_nanos());
/// From when on a target is watched, to tell at the deadline whether it ran: `/proc` is read, which few requests
/// come to.
const WATCH_AFTER: Duration = Duration::from_millis(5);
/// Over less time than this a thread that shares its processor may not run, and nothing is wrong.
const SHORTEST_WATCH: Duration = Duration::from_millis(20);
/// How many stragglers of a request the kernel is asked about. Each takes some ten microseconds, beyond the deadline.
const LOOKS: u32 = 32;

/// Times one request.
#[derive(Debug)]
pub(crate) struct Clock<'a> {
    protocol: &'a Protocol<Linux>,
    deadline: Option<Instant>,
    /// `None`: at once, or after [`NUDGE_AFTER`], by what is known of the target.
    nudge_after: Option<Duration>,
    /// What is told of late targets before the deadline.
    on_late: Option<OnLate<'a>>,
    start: Instant,
    /// When the request was made. Until `start` it waited for its turn.
    requested: Instant,
    /// The first nap: all targets have been asked, behind a heavy fence, and will find it. What has not acknowledged
    /// since has come to no safe point since.
    asked: Cell<Option<Instant>>,
    nap: Duration,
    /// When the next look is due.
    next_look: Instant,
    /// The thread that waits.
    me: i32,
    lates: Vec<Late>,
    /// The process's threads, for what the kernel says of late ones. Opened when the first is watched.
    tasks: Option<TaskDir>,
    watches: u32,
    looks: Cell<u32>,
    /// The waiting thread itself keeps a target from acknowledging.
    own_fault: bool,
}

/// A target, when it was found late.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "nobody is told"))]
pub(crate) struct Found {
    pub(crate) tid: Tid,
    pub(crate) name: Name,
    /// How long after the request.
    pub(crate) after: Duration,
}

/// What is kept of a late target.
#[derive(Debug)]
pub(crate) struct Late {
    slot_use: SlotUse,
    nudges: u32,
    last: Option<Sent>,
    /// How much its thread had run, and when that was asked.
    watched: Option<(Served, Instant)>,
    /// That it was found late.
    found: Option<Found>,
    /// Whether it was told of.
    warned: bool,
}

#[cfg(feature = "tracing")]
impl Late {
    /// That it was found late, and how often it was nudged.
    pub(crate) fn found(&self) -> Option<(Found, u32)> {
        Some((self.found?, self.nudges))
    }
}

#[derive(Debug)]
enum Sent {
    Requests,
    Failed(NudgeError),
    Panicked,
}

impl<'a> Clock<'a> {
    /// Starts the clock. A timeout that is too long for it is none.
    pub(crate) fn start(
        protocol: &'a Protocol<Linux>,
        me: i32,
        timeout: Option<Duration>,
        nudge_after: Option<Duration>,
    ) -> Self {
        let start = Instant::now();
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let nap = nudge_after.unwrap_or(NUDGE_AFTER);
        let nap = FIRST_NAP.min(nap.max(Duration::from_micros(10)));
        let next_look = start + nap;
        Self {
            protocol,
            deadline,
            nudge_after,
            on_late: None,
            start,
            requested: start,
            asked: Cell::new(None),
            nap,
            next_look,
            me,
            lates: Vec::new(),
            tasks: None,
            watches: 0,
            looks: Cell::new(0),
            own_fault: false,
        }
    }

    /// Has a warning given of late targets.
    pub(crate) fn warning(mut self, on_late: Option<OnLate<'a>>) -> Self {
        self.on_late = on_late;
        self.schedule(self.start);
        self
    }

    /// Counts the time to stop from here on. What came before was the wait for the turn.
    pub(crate) fn restart(&mut self) {
        self.start = Instant::now();
        self.schedule(self.start);
    }

    /// The next look is a nap from `now` on, or when warnings are due.
    fn schedule(&mut self, now: Instant) {
        let warning = self.on_late.and_then(|on_late| self.start.checked_add(on_late.after));
        let next = now + self.nap;
        self.next_look = warning.filter(|&at| at > now).map_or(next, |at| at.min(next));
    }

    /// When the request was made.
    pub(crate) fn requested(&self) -> Instant {
        self.requested
    }

    /// When it had its turn: the time to stop begins.
    pub(crate) fn started(&self) -> Instant {
        self.start
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether the wait ended because the thread itself holds the task of a late target.
    pub(crate) fn is_own_fault(&self) -> bool {
        self.own_fault
    }

    /// What is kept of late targets, when the request is over.
    pub(crate) fn take_lates(&mut self) -> Vec<Late> {
        mem::take(&mut self.lates)
    }

    fn nudge(
        &self,
        slot: &'static MutatorSlot<Identity>,
        thread: ThreadRef,
        wanted: &dyn Fn() -> bool,
    ) -> Option<Sent> {
        let data = ptr::from_ref(slot).expose_provenance();
        // SAFETY: `nudged` requires the exposed address of a slot, and allows for all the rest. What it
        // runs does not unwind.
        let call = unsafe { NudgeCall::new(nudged, data) };
        let sent = self.protocol.system.ask_nudge(|nudge| nudge.nudge(thread, call, wanted))?;
        Some(match sent {
            Ok(sent) => sent.map_or_else(Sent::Failed, |()| Sent::Requests),
            Err(NudgePanicked) => Sent::Panicked,
        })
    }

    fn late_of(&self, slot_use: SlotUse) -> Option<&Late> {
        self.lates.iter().find(|late| late.slot_use == slot_use)
    }

    fn note_late(&mut self, slot_use: SlotUse) -> &mut Late {
        let at = self.lates.iter().position(|late| late.slot_use == slot_use);
        let at = at.unwrap_or_else(|| {
            self.lates.push(Late {
                slot_use,
                nudges: 0,
                last: None,
                watched: None,
                found: None,
                warned: false,
            });
            self.lates.len() - 1
        });
        &mut self.lates[at]
    }

    fn note_sent(&mut self, slot_use: SlotUse, sent: Sent) {
        let late = self.note_late(slot_use);
        late.nudges += 1;
        let failed = !matches!(sent, Sent::Requests);
        late.last = Some(sent);
        let Linux { counters, tape, .. } = &self.protocol.system;
        tape.note(|| Event::Nudge(slot_use, Instant::now(), !failed));
        count(&counters.nudges);
        if failed {
            count(&counters.nudges_failed);
        }
    }

    /// Asks how much a late target has run so far, once, and of no more targets than the kernel is asked about at
    /// the deadline.
    fn watch(&mut self, slot_use: SlotUse, thread: ThreadRef) {
        if self.deadline.is_none()
            || self.watches >= LOOKS
            || self.late_of(slot_use).is_some_and(|late| late.watched.is_some())
        {
            return;
        }
        self.watches += 1;
        if self.tasks.is_none() {
            self.tasks = TaskDir::open().ok();
        }
        if let (Some(tasks), Some(tid)) = (&self.tasks, thread.tid())
            && let Ok(Some(served)) = tasks.served(tid)
        {
            self.note_late(slot_use).watched = Some((served, Instant::now()));
        }
    }

    /// Tells of a late target, once.
    fn warn(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
        let slot_use = slot.current_use();
        let Some(OnLate { call, .. }) = self.on_late else { return };
        if mem::replace(&mut self.note_late(slot_use).warned, true) {
            return;
        }
        let seen = self.look(slot);
        // One that has come meanwhile is not late any more, and what was looked at may be the slot's next.
        if let Some(straggler) = seen.filter(|_| wanted()) {
            // Unwinding would leave the request behind. The payload's destructor might panic, too.
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| call(&straggler))) {
                Box::leak(payload);
            }
        }
    }

    fn has_nudge(&self) -> bool {
        self.protocol.system.nudge.load().is_some()
    }

    /// Whether no nudge can reach the target.
    fn is_out_of_reach(&self, slot_use: SlotUse) -> bool {
        let last = self.late_of(slot_use).and_then(|late| late.last.as_ref());
        !self.has_nudge() || matches!(last, Some(Sent::Failed(NudgeError::NotInstalled)))
    }

    /// What kept the target, and what the kernel says of it.
    fn cause(&self, target: Target, late: Option<&Late>) -> (StragglerCause, Option<KernelView>) {
        // A thread that has left the registry may still run: the kernel knows by its id.
        let gone = !target.thread.is_alive() && sys::tgkill(sys::getpid(), target.tid, 0).is_err();
        if gone {
            return (StragglerCause::Ended, None);
        }
        if let Some(by) = target.thread.suspended_by() {
            return (StragglerCause::Suspended { by }, None);
        }
        let last = match late.and_then(|late| late.last.as_ref()) {
            None if self.has_nudge() => LastNudge::Early,
            None => LastNudge::Impossible,
            Some(Sent::Requests) => LastNudge::Sent(self.outcome(target.thread)),
            Some(Sent::Failed(error)) => LastNudge::Failed(*error),
            Some(Sent::Panicked) => LastNudge::Panicked,
        };
        let (seen, ran) = self.ask_kernel(target.tid, late).unzip();
        (StragglerCause::judge(seen.as_ref(), ran.flatten(), last), seen)
    }

    /// What the kernel says of a thread, and for how much of which time it ran.
    fn ask_kernel(
        &self,
        tid: Tid,
        late: Option<&Late>,
    ) -> Option<(KernelView, Option<(Duration, Duration)>)> {
        if self.looks.replace(self.looks.get() + 1) >= LOOKS {
            return None;
        }
        let opened;
        let tasks = if let Some(tasks) = &self.tasks {
            tasks
        } else {
            opened = TaskDir::open().ok()?;
            &opened
        };
        let view = KernelView::read(tasks, tid)?;
        let ran = late.and_then(|late| late.watched).and_then(|(before, when)| {
            let now = tasks.served(tid).ok().flatten()?;
            Some((now.ran.saturating_sub(before.ran), when.elapsed()))
        });
        Some((view, ran.filter(|(_, of)| *of >= SHORTEST_WATCH)))
    }

    /// For how long at least a target that has not acknowledged has come to no safe point.
    fn not_polled_for(&self, slot: &MutatorSlot<Identity>) -> Duration {
        // It came, for another request, and acknowledges when that closure is over.
        let visited = slot.status.identity.visited.load(core::sync::atomic::Ordering::Relaxed);
        let asked = self.asked.get().filter(|_| !visited);
        asked.map_or(Duration::ZERO, |asked| asked.elapsed())
    }

    /// What came of the last nudge.
    fn outcome(&self, thread: ThreadRef) -> NudgeOutcome {
        let answer = self.protocol.system.ask_nudge(|nudge| nudge.outcome(thread));
        answer.and_then(Result::ok).unwrap_or(NudgeOutcome::Unknown)
    }
}

impl Limit for Clock<'_> {
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl Pace<Linux> for Clock<'_> {
    /// `None` where no thread has the slot: it has given its slot up, and so has acknowledged.
    type Seen = Option<Straggler>;

    fn expired(&self) -> bool {
        self.own_fault || self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    fn nap(&self) -> Option<Duration> {
        count(&self.protocol.system.counters.sleeps);
        let now = Instant::now();
        self.asked.set(self.asked.get().or(Some(now)));
        // A deadline that has passed has been acted on, and does not bound what is still waited for. With
        // no sleep at all, the wait would take the processor from that.
        let deadline = self.deadline.filter(|&at| at > now);
        let until = deadline.map_or(self.next_look, |at| at.min(self.next_look));
        Some(until.saturating_duration_since(now))
    }

    fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next_look;
        if due {
            self.nap = (self.nap * 2).min(LONGEST_NAP);
            self.schedule(now);
        }
        due
    }

    fn expect_late(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
        if self.nudge_after.is_none()
            && let Some(thread) = slot.status.identity.thread()
            && let Some(sent) = self.nudge(slot, thread, wanted)
        {
            self.note_sent(slot.current_use(), sent);
        }
    }

    fn late(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
        let slot_use = slot.current_use();
        let Some(Target { thread, tid, name }) = slot.status.identity.target() else { return };
        // Nudged again at each nap. A target that exits acknowledges on its way.
        let elapsed = self.elapsed();
        let is_late = elapsed >= self.nudge_after.unwrap_or(NUDGE_AFTER);
        if is_late && self.note_late(slot_use).found.is_none() {
            self.note_late(slot_use).found = Some(Found { tid, name, after: elapsed });
            self.protocol
                .system
                .tape
                .note(|| Event::Late(slot_use, Instant::now(), self.requested));
        }
        if is_late && let Some(sent) = self.nudge(slot, thread, wanted) {
            self.note_sent(slot_use, sent);
        }
        if elapsed >= WATCH_AFTER {
            self.watch(slot_use, thread);
        }
        if self.on_late.is_some_and(|on_late| elapsed >= on_late.after) {
            self.warn(slot, wanted);
        }
        let mine = thread.suspended_by() == Some(self.me);
        self.own_fault |= mine && self.is_out_of_reach(slot_use);
    }

    fn look(&self, slot: &'static MutatorSlot<Identity>) -> Option<Straggler> {
        let state = slot.state();
        let target = slot.status.identity.target()?;
        let late = self.late_of(slot.current_use());
        let waited = self.elapsed();
        let not_polled_for = self.not_polled_for(slot);
        let sampled_gap = self.protocol.system.sampled_gap(slot);
        // What its last thread does now has nothing to do with it.
        let is_idle =
            slot.status.identity.tid.load(core::sync::atomic::Ordering::Relaxed) == NO_THREAD;
        let (cause, seen) =
            if is_idle { (StragglerCause::NoThread, None) } else { self.cause(target, late) };
        let cause = cause.or_no_safepoint(slot.status.identity.forbidden.at());
        let nudges = late.map_or(0, |late| late.nudges);
        let Target { tid, name, thread } = target;
        let sighting = self.protocol.system.ask_nudge(|nudge| nudge.sighting(thread, waited));
        let sighting = sighting.filter(|_| !is_idle).and_then(Result::ok).flatten().map(Box::new);
        Some(Straggler {
            tid,
            name,
            state,
            waited,
            not_polled_for,
            sampled_gap,
            nudges,
            seen,
            cause,
            sighting,
        })
    }
}

/// What a nudged mutator does at its asynchronous safe point: the slow path of its poll. It notes that a nudge
/// has brought it there.
///
/// # Safety
///
/// `data` is the exposed address of a [`MutatorSlot`]. Calls may come late and repeatedly.
unsafe fn nudged(data: usize) {
    let slot = ptr::with_exposed_provenance::<MutatorSlot<Identity>>(data);
    // SAFETY: the caller's obligation, and slots are never freed.
    let slot: &'static MutatorSlot<Identity> = unsafe { &*slot };
    let identity = &slot.status.identity;
    // The slot may be another thread's by now, or none's. If it is this thread's it stays so during this
    // call, and the mutator holds the world: only closures for this slot are called from here, and a
    // mutator that is dropped in its own closure aborts.
    let me = sys::gettid();
    let own = identity.tid.load(core::sync::atomic::Ordering::Relaxed) == me;
    // Under the guard of `freeze_creation` it would hold up mutators that wait to make a thread and have to
    // stop. It is nudged again.
    let may =
        !system::in_closure() && !threadreg::holds_freeze() && identity.forbidden.at().is_none();
    if own && may && slot.state() == MutatorState::Running && slot.is_asked() {
        let world = identity.world.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: written by this thread at attach; alive as said above.
        let world = unsafe { &*world };
        // A thread that leaves its region while it has the world stopped is running for a moment, until it
        // has found that out. Here it would wait for itself.
        if !world.stop_turn.is_held_by(me) {
            let of = |frame: Option<&Frame<'_>>| {
                frame.filter(|_| slot.status.stands.are_said()).map(Interrupted::of)
            };
            let interrupted = NudgeCall::interrupted(of);
            stand_here!(Some(slot), Stand::of_a_nudge(interrupted.as_ref()));
            world.process_nudged(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::World;
    use crate::protocol::Stance;

    #[test]
    fn a_nudge_is_no_safe_point_in_code_without() {
        let world = World::new();
        let mut mutator = world.attach().expect("a world of its own");
        let slot = mutator.slot;
        let atomic = mutator.no_safepoint();
        world.shared.protocol.recall(slot);
        let data = ptr::from_ref(slot).expose_provenance();
        // SAFETY: the exposed address of a slot.
        unsafe { nudged(data) };
        assert!(slot.is_asked(), "it is nudged again");
        drop(atomic);
        // SAFETY: as above.
        unsafe { nudged(data) };
        assert!(!slot.is_asked());
    }

    /// Such a thread is running for a moment, in which it may be nudged for a for-each.
    #[test]
    fn a_nudge_does_not_wait_for_a_stop_of_its_own_thread() {
        let name = "pace::tests::a_nudge_does_not_wait_for_a_stop_of_its_own_thread";
        testkit::in_child(name, Duration::from_secs(20), || {
            let world = World::new();
            let mut mutator = world.attach().expect("a world of its own");
            let slot = mutator.slot;
            mutator.blocking(|| {
                let stopped = world.stop_from_outside("own").expect("safe");
                slot.set_state(MutatorState::Running);
                // SAFETY: the exposed address of a slot.
                unsafe { nudged(ptr::from_ref(slot).expose_provenance()) };
                slot.set_safe(Stance::Away);
                stopped.resume();
            });
        });
    }

    /// From when it is known to have been asked, not from when the request began.
    #[test]
    fn a_straggler_has_not_polled_since_it_was_asked() {
        const LONG: Duration = Duration::from_millis(5);
        let world = World::new();
        let mutator = world.attach().expect("a world of its own");
        let clock = Clock::start(&world.shared.protocol, mutator.tid(), None, None);
        let look = || clock.look(mutator.slot).expect("attached");
        std::thread::sleep(LONG);
        assert_eq!(look().not_polled_for, Duration::ZERO, "nobody was asked so far");
        clock.nap();
        std::thread::sleep(LONG);
        clock.nap();
        let Straggler { not_polled_for, waited, .. } = look();
        assert!(not_polled_for >= LONG && waited >= not_polled_for + LONG, "{not_polled_for:?}");
        let _inside = system::Visit::new(mutator.slot);
        assert_eq!(look().not_polled_for, Duration::ZERO, "it came for another request");
    }

    /// However long the request lasts.
    #[test]
    fn each_nap_is_shorter_than_the_bound() {
        let world = World::new();
        let me = system::tid();
        for nudge_after in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
            let mut clock = Clock::start(&world.shared.protocol, me, None, nudge_after);
            for _ in 0..64 {
                let nap = clock.nap().expect("it looks again");
                assert!(nap < BOUND, "{nap:?}");
                clock.next_look = Instant::now();
                assert!(clock.due());
            }
        }
    }

    /// What was looked at may be the slot's next mutator.
    #[test]
    fn a_mutator_that_has_come_is_not_told_of() {
        let world = World::new();
        let mutator = world.attach().expect("a world of its own");
        for wanted in [true, false] {
            let told = AtomicBool::new(false);
            let tell = |_: &Straggler| told.store(true, Ordering::Relaxed);
            let clock = Clock::start(&world.shared.protocol, mutator.tid(), None, None);
            let mut clock = clock.warning(Some(OnLate { after: Duration::ZERO, call: &tell }));
            clock.late(mutator.slot, &|| wanted);
            assert_eq!(told.into_inner(), wanted);
        }
    }
}
