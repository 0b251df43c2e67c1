//! The protocol of polls, safe regions, stop-the-world, for-each and handshakes. It makes no system calls: fences,
//! waiting and time come in through [`System`] and [`Pace`], so that the same code runs under loom.
//!
//! The *target* is the thread that a slot belongs to, a mutator. The *requester* is the thread that asks
//! for a stop or a for-each.
//!
//! ```text
//!  one slot                      target: take            target: identity written
//!            +------------ Dead ---------> Attaching --------------------------+
//!            |                                                                 v
//!  target: nothing pending               target: leave, poll word is 0       Safe
//!            |                      +-----------------------------------------/^
//!            |                      v         target: enter, or a poll that    |
//!        Detaching <----------- Running ---- finds STOP, REST, claimed EACH ---+
//!              target: detach       ^
//!                 \________________/  target: a closure is still pending
//!
//!  From Safe to Detaching goes a target that is dropped in its region, or whose attach times out.
//!
//!  one stop   requester: stop_word odd, arm every live slot, heavy fence, look at the safe ones again
//!             target:    state Safe, *then* look at the poll word, acknowledge, wait while odd
//!             last acknowledgement wakes the requester; requester: stop_word even, wake all
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `poll` | requesters, probes and target set bits, target clears | target; requesters, before they set one | set: release; clear: acq-rel, then a fence, then the sources are looked at again | a bit may be set in vain, never missing; I9 |
//! | `state` | target | requesters | release / acquire, and a fence before the target's next look at `poll` | I2 |
//! | `stop_pending`, `each_pending` | requester 0→n; target or requester n→0 by exchange | both | acq-rel | I3 |
//! | `each_pending`, claimed | requester 0→claimed by a store, n→claimed by exchange, claimed→0 or n by a store | both | release / acquire | I4 |
//! | `awaits`, `each_awaited` | target 0→1, before it sleeps on a claim; `awaits` target 1→0, `each_awaited` requester 1→0 | requester | release / acq-rel; fences before the sleep, and after a pass over the claims | I4 |
//! | `pending` (one a round) | requester, threads that acknowledge | requester | acq-rel | I5 |
//! | `stop_word` | holder of the stop turn +1; a handler that recalls +2 | targets | release / acquire, fence after it is made odd | odd: a stop is wanted or on |
//! | `passed_over` | targets +1 and -1; holder of the stop turn | holder of the stop turn | fence after +1 / the fence after `stop_word` is made odd; release / acquire | see `passed` |
//! | turns | see `turn` | | acquire / release | one thread has a turn |
//! | `served`, HANDSHAKE | see `handshake` | | | H2, H3 |
//! | `stand` | target | requester in its stop, or with its claim | relaxed, before the state | I10 |
//! | `help` | see `help` | | | I11 |
//! | `each_call` | holder of the for-each turn | the thread that took `each_pending` | release / acquire | I6 |
//!
//! - **I1** A slot outlives every thread that holds its world.
//! - **I2** *State first, then the flag.* The target publishes its state, fences, looks at `poll`;
//!   the requester publishes `poll`, fences, looks at `state`. One of them sees the other. With the
//!   light fence on the target's side the requester's is the heavy one; slow paths fence in full.
//!   Leaving a region needs this: a requester relies on `Safe`. Entering one needs it only for nudges
//!   (I7). Where there are none and the requester has no heavy fence, the target enters without a
//!   fence. Then neither may see the other, and the requester finds `Safe` at its next look.
//! - **I3** The thread that takes a round's number out of a slot's pending word acknowledges the request,
//!   once, and no other thread does. A target that takes one before the requester has set the bit sets
//!   the bit as well, and so does not run past what it has acknowledged. A slot gets the number of a stop
//!   only if it was seen running: one that is safe, with its bit set, is stopped without (I2).
//! - **I4** A target that finds `each_pending` claimed waits, safe. The requester runs the closure of a claim for
//!   a slot that it sees `Safe`, with its bit set, after the heavy fence. Any other claim it takes back, or hands
//!   back to the target as a number: all that are left before it is stopped itself.
//! - **I5** The stop and the for-each have a [`Round`] each. A finished round has nothing outstanding.
//! - **I6** Closures run on threads whose own state is `Running`: never in a stopped world. The
//!   call is alive while an acknowledgement of its round is outstanding.
//! - **I7** A nudge is wanted while the slot is `Running` and its request is pending, and is sent after
//!   the heavy fence only. So the slot's bit is set. Before the target clears the bit, or goes on into a
//!   safe region with it, it waits for the nudges on their way. None interrupts the region. Without the fence
//!   a target is nudged whose poll word has NUDGED behind the request's bit. It has set that itself, so it
//!   takes the slow path before its next region. There it clears NUDGED, by an exchange that comes after the
//!   request's, and so it finds the request's bit.
//! - **I8** A recall comes from a handler on the target's thread, while the slot stands still. It sets
//!   REST, which the target looks at after each store of `Running`. It changes the stop word and the
//!   turns, on which the target may wait; in other waits the target looks for a recall every 10 ms.
//! - **I9** A bit is cleared by its target alone, which then fences, looks at what the bit stands for, and sets
//!   it again if need be. So a requester that has written that, and fenced, may leave a bit that it finds. A
//!   bit that stays from a request before, on a target that has not left its region since, costs no
//!   read-modify-write.
//! - **I10** In a world whose targets say where they stand (`stand`), each does so before it publishes `Safe` with
//!   KNOWN, by a release that requesters acquire. The way into a region that has no slow path publishes `Safe`
//!   without KNOWN first. Requesters take that for `Running`, and wait for the acknowledgement, or for KNOWN. A
//!   target writes `stand` only while no requester reads it: it runs, and has been in no stop and no claim since
//!   its last look, or has the world stopped itself. On the way out of a region it writes it behind that look.
//!
//! - **I11** What the holder of a stop has its targets do (`help`) is over before it resumes the world. So a target
//!   that finds itself asked is stopped, wherever it is, and stays so until it has answered.
//!
//! *Exit*: detach acknowledges what is pending; for a slot found dead the requester acknowledges. A slot that is given
//! up in its region does not run for that: the thread that does so may be one that the slot would have to wait for, as
//! the holder of a stop. *Fork*: the child puts each world in order, see [`Protocol::after_fork`]. *Signals*: a handler calls `recall`
//! alone, and waits look again after `EINTR`. *Nesting* is refused by the crate's outer layer.
//!
//! References: Go commits f0dd002 (a count and a wait word each), ff7cf2d (requesters can be
//! stopped); HotSpot `safepoint.cpp`, `handshake.cpp` (JEP 312); Dekker's pair as in membarrier(2).

mod arena;
mod asked;
mod each;
mod entry;
mod handshake;
mod help;
mod operations;
mod passed;
mod probe;
mod request;
mod run;
mod slot;
mod stand;
mod stop;
mod target;
mod turn;

#[cfg(all(test, not(loom)))]
mod linger;
#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, loom))]
mod model_detach;
#[cfg(all(test, loom))]
mod model_entry;
#[cfg(all(test, loom))]
mod model_handshake;
#[cfg(all(test, loom))]
mod model_help;
#[cfg(all(test, loom))]
mod model_passed;
#[cfg(all(test, loom))]
mod model_regions;
#[cfg(all(test, loom))]
mod model_turn;
#[cfg(all(test, loom))]
mod model_visit;
#[cfg(all(test, not(loom)))]
mod patient;

use core::fmt;
use core::time::Duration;

use crossbeam_utils::CachePadded;

use self::arena::Arena;
pub(crate) use self::arena::Chunk;
#[cfg(not(loom))]
pub(crate) use self::arena::Spare;
use self::each::Call;
#[cfg(not(loom))]
pub(crate) use self::each::NotVisited;
#[cfg(any(test, not(loom)))]
pub(crate) use self::handshake::{Answer, Ask};
pub(crate) use self::help::Job;
use self::passed::PassedOver;
use self::request::{Round, RoundNumber};
#[cfg(not(loom))]
pub(crate) use self::run::{Run, Visitor};
#[cfg(all(not(loom), feature = "timeline"))]
pub(crate) use self::slot::Glance;
pub(crate) use self::slot::MutatorSlot;
pub use self::slot::MutatorState;
use self::slot::Requests;
#[cfg(any(test, not(loom)))]
pub(crate) use self::slot::Stance;
#[cfg(not(loom))]
use self::slot::{FENCED, REST, SLOW, STANDS, STOP};
#[cfg(not(loom))]
pub(crate) use self::slot::{POLL_MASK, SlotUse, USER_BITS, USER_SHIFT};
#[cfg(not(loom))]
pub(crate) use self::stop::{Counted, TimedOut};
#[cfg(not(loom))]
pub(crate) use self::target::NoSlot;
use self::turn::Turn;
use sigctx::sync::{AtomicPtr, AtomicU32, Ordering};

/// What the protocol needs of the system.
pub(crate) trait System: fmt::Debug + Send + Sync + Sized + 'static {
    /// Which thread a slot belongs to.
    type Identity: Default + fmt::Debug + Send + Sync + 'static;

    /// Whether targets fence in full, since [`System::heavy`] is no fence of theirs. Always the same.
    fn targets_fence(&self) -> bool;
    /// Whether targets say where they stand before they count as safe (I10). Always the same.
    fn targets_stand(&self) -> bool {
        false
    }
    /// The target's side of a fence pair, where [targets fence](System::targets_fence). The other side is
    /// [`System::heavy`], or a full fence that both sides make.
    fn light(&self);
    /// [`System::light`] where a region is entered: a fence only if I2 needs one there.
    fn light_to_enter(&self);
    /// A full fence here, and for every thread that relies on [`System::light`].
    fn heavy(&self);
    /// Sleeps while the word holds `expected`; it may return earlier.
    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>);
    /// Wakes every thread that waits on the word.
    fn wake_all(&self, word: &AtomicU32);
    /// Wakes one thread that waits on the word.
    fn wake_one(&self, word: &AtomicU32);
    /// Waits until no nudge is on its way to the calling thread, which has acknowledged.
    fn settle_nudges(&self);
    /// Whether a thread's task can be held at all. Models say no where they are about something else.
    fn may_recall(&self) -> bool {
        true
    }
    /// Runs what the thread that holds the calling thread's task wants of it.
    fn serve(&self);
    /// Waits while the calling thread's task is held.
    fn stay_while_held(&self);
    /// Calls `done` again and again for as long as spinning beats sleeping while `running` other threads
    /// need a processor. Returns the last result.
    fn spin(&self, running: u32, done: impl Fn() -> bool) -> bool;
    /// Whether targets take the slow paths always. Always the same.
    fn is_slow(&self) -> bool {
        false
    }
    /// A thread comes by an edge of the protocol, in a slow path.
    fn edge(&self, _edge: Edge) {}
    /// An empty chunk that no thread uses.
    fn fresh() -> &'static Chunk<Self::Identity>;
    /// Takes back a chunk that no thread uses.
    fn recycle(chunk: &'static Chunk<Self::Identity>);
}

/// Where tests disturb a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Between what it has published and what it looks at next (I2).
    Published,
    /// Before it acknowledges.
    Acknowledges,
    /// Before it sleeps, or wakes others.
    #[cfg_attr(loom, expect(dead_code, reason = "the system's"))]
    Waits,
}

/// Bounds a wait.
pub(crate) trait Limit {
    /// Time until the deadline; `None` without one.
    fn left(&self) -> Option<Duration>;
}

/// No deadline.
struct Unlimited;

impl Limit for Unlimited {
    fn left(&self) -> Option<Duration> {
        None
    }
}

/// How long a requester waits, and what it does about late targets.
pub(crate) trait Pace<S: System>: Limit {
    /// What is kept of a late target.
    type Seen;

    /// Whether the deadline has passed, or waiting longer is of no use.
    fn expired(&self) -> bool;
    /// How long to sleep: until the next look is due, or until the deadline.
    fn nap(&self) -> Option<Duration>;
    /// Whether the next look is due. If so, schedules the one after: looks come by the clock, however
    /// often a sleep is cut short.
    fn due(&mut self) -> bool;
    /// Called once, straight after the request, for a slot that runs and whose target a nudge brought to its
    /// last safe point. A nudge is of use while `wanted`. Must not unwind.
    fn expect_late(
        &mut self,
        _slot: &'static MutatorSlot<S::Identity>,
        _wanted: &dyn Fn() -> bool,
    ) {
    }
    /// Called in each look for a slot that still runs. A nudge is of use while `wanted`. Must not unwind.
    fn late(&mut self, slot: &'static MutatorSlot<S::Identity>, wanted: &dyn Fn() -> bool);
    /// Whether the holder of the turn is told of targets as soon as they are stopped.
    fn visits(&self) -> bool {
        false
    }
    /// Called for a target that is stopped, while others may still run; again and again. Must not unwind.
    fn stopped(&mut self, _slot: &'static MutatorSlot<S::Identity>) {}
    /// Called when the stop is given up, before any target runs again. Must not unwind.
    fn gives_up(&mut self) {}
    /// What is to be kept of a late target. Called while the request is pending, so that the slot is still
    /// the target's. Must not unwind.
    fn look(&self, slot: &'static MutatorSlot<S::Identity>) -> Self::Seen;
}

/// A world's shared state.
#[derive(Debug)]
pub(crate) struct Protocol<S: System> {
    pub(crate) system: S,
    arena: Arena<S>,
    /// Read by every thread that waits for a resume.
    stop_word: CachePadded<AtomicU32>,
    stop: Round,
    passed_over: PassedOver,
    each: Round,
    each_call: AtomicPtr<Call<'static, S>>,
    /// 1 if a target has come to wait for a claim since the requester looked last.
    each_awaited: AtomicU32,
    help: Round,
    help_job: AtomicPtr<Job<'static, S>>,
    pub(crate) stop_turn: Turn,
    pub(crate) each_turn: Turn,
}

impl<S: System> Protocol<S> {
    pub(crate) fn new(system: S) -> Self {
        Self {
            system,
            arena: Arena::new(),
            stop_word: CachePadded::new(AtomicU32::new(0)),
            stop: Round::new(),
            passed_over: PassedOver::new(),
            each: Round::new(),
            each_call: AtomicPtr::new(core::ptr::null_mut()),
            each_awaited: AtomicU32::new(0),
            help: Round::new(),
            help_job: AtomicPtr::new(core::ptr::null_mut()),
            stop_turn: Turn::new(),
            each_turn: Turn::new(),
        }
    }

    /// Slots that belong to a thread now. Except in a stop this may change before it is looked at.
    pub(crate) fn live(&self) -> impl Iterator<Item = &'static MutatorSlot<S::Identity>> + use<S> {
        self.arena.slots().filter(|slot| slot.is_live())
    }

    /// The slot at `index`, which was found by a walk before.
    #[cfg(not(loom))]
    pub(crate) fn slot(&self, index: u32) -> Option<&'static MutatorSlot<S::Identity>> {
        self.arena.at(index)
    }

    /// Nudges the targets that are expected to come by a nudge alone. `pending` is the word of a slot that has the
    /// round's number.
    fn nudge_at_once<P: Pace<S>>(
        &self,
        round: RoundNumber,
        pending: fn(&Requests) -> &AtomicU32,
        pace: &mut P,
    ) {
        for slot in self.arena.slots() {
            let is_pending = || pending(&slot.requests).load(Ordering::Relaxed) == round.0;
            let runs = || slot.state() == MutatorState::Running;
            // I7: the look at NUDGED comes after the request's bit was set.
            if is_pending() && runs() && slot.is_nudged() {
                pace.expect_late(slot, &|| runs() && is_pending());
            }
        }
    }

    /// Puts the world in order in the child of a fork.
    ///
    /// The child has one thread, the survivor, and a copy of what the other threads were in the middle of.
    /// Those are gone: their slots become dead, their requests end, and what they had to acknowledge
    /// counts as acknowledged. What the survivor is in the middle of goes on.
    ///
    /// To be called on the survivor, whose id was `parent` and is `me`. `survives` says whether a slot is
    /// the survivor's and updates its identity; `reclaim` clears the identity of any other.
    #[cfg(not(loom))]
    pub(crate) fn after_fork(
        &self,
        parent: i32,
        me: i32,
        survives: impl Fn(&'static MutatorSlot<S::Identity>) -> bool,
        reclaim: impl Fn(&'static MutatorSlot<S::Identity>),
    ) {
        // Relaxed throughout: there is no other thread.
        let stopping = self.stop_turn.after_fork(parent, me);
        self.each_turn.after_fork(parent, me);
        // Requests of threads that are gone end. A survivor that has the world stopped from inside its safe
        // region has armed its own slot. A recall came from its own handler (I8): the task is held no more,
        // and has to be told so when the region ends. What the world is like stays as it is, and what the runtime asks.
        let kept = REST | FENCED | SLOW | STANDS | USER_BITS | if stopping { STOP } else { 0 };
        self.arena.each_slot(|slot| {
            slot.requests.poll.fetch_and(kept, Ordering::Relaxed);
            slot.requests.stop_pending.store(0, Ordering::Relaxed);
            slot.requests.each_pending.store(0, Ordering::Relaxed);
            slot.requests.served.store(operations::FREE, Ordering::Relaxed);
            slot.status.awaits.store(0, Ordering::Relaxed);
            slot.status.help.after_fork();
            let survives = slot.state() != MutatorState::Dead && survives(slot);
            slot.status.queue.after_fork(survives);
            if slot.state() != MutatorState::Dead && !survives {
                reclaim(slot);
                slot.set_state(MutatorState::Dead);
            }
        });
        // A round that the survivor is counting is over. Later acknowledgements of it are ignored.
        self.stop.after_fork();
        self.passed_over.after_fork();
        self.each.after_fork();
        self.help.after_fork();
        let word = self.stop_word.load(Ordering::Relaxed);
        if !stopping && !word.is_multiple_of(2) {
            self.stop_word.store(word.wrapping_add(1), Ordering::Relaxed);
        }
    }
}
