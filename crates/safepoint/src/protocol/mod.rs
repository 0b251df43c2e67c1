//! The protocol of polls, safe regions, stop-the-world and for-each, without system calls: fences
//! for others, waiting and time come in through [`System`] and [`Pace`], so that the very same code
//! runs under loom.
//!
//! ```text
//!  one slot                      owner: take             owner: identity written
//!            +------------ Dead ---------> Attaching --------------------------+
//!            |                                                                 v
//!  owner: owes nothing                    owner: leave, poll word is 0       Safe
//!            |                      +-----------------------------------------/^
//!            |                      v         owner: enter, or a poll that     |
//!        Detaching <----------- Running ------ finds STOP or a claimed EACH ---+
//!              owner: detach        ^
//!                 \________________/  owner: still owes a closure
//!
//!  one stop   requester: stop_word odd, arm every live slot, heavy fence, answer for the safe ones
//!             owner:     state Safe, *then* look at the poll word, answer, wait while odd
//!             last answer wakes the requester; requester: stop_word even, wake all
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `poll` | requesters and owner set bits, owner clears | owner | set: release; clear: acq-rel, then the sources are looked at again | a bit may be set in vain, never missing |
//! | `state` | owner | requesters | release / acquire, and a fence before the owner's next look at `poll` | I2 |
//! | `stop_pending`, `each_pending` | requester 0→g; owner or requester g→0 by exchange; requester g→claimed→0 | both | acq-rel | I3, I4 |
//! | `pending` (one a round) | requester, answerers | requester | acq-rel | I5 |
//! | `stop_word` | holder of the stop turn | owners | release / acquire, fence after it is made odd | odd: a stop is wanted or on |
//! | turns | requesters; a handler adds to the upper bits | requesters | acquire / release | one thread has a turn |
//! | `each_call` | holder of the for-each turn | who took `each_pending` | release / acquire | I6 |
//!
//! - **I1** A slot outlives everybody who holds its world.
//! - **I2** *State first, then the flag.* The owner publishes its state, fences, looks at `poll`;
//!   the requester publishes `poll`, fences, looks at `state`. One of them sees the other. With the
//!   light fence on the owner's side the requester's is the heavy one; slow paths fence in full.
//! - **I3** Who takes a generation out of an `pending` word answers it, once, and nobody else does. An
//!   owner that takes one before the requester has set the bit sets it itself, and so does not run
//!   past what it has answered.
//! - **I4** While `each_pending` is claimed the owner cannot leave its safe region; only a slot that
//!   was seen `Safe` after the heavy fence is claimed.
//! - **I5** The stop and the for-each have a [`Round`] each. No share of a finished round is out.
//! - **I6** Closures run on threads whose own state is `Running`: never in a stopped world. The
//!   call is alive while somebody holds a share of its round.
//! - **I7** A nudge is wanted while the slot is `Running` and owes what its requester has asked, and is
//!   sent after the heavy fence only. So the slot's bit is set; and the owner, before it clears the bit
//!   or goes on into a safe region with it, waits out the nudges on their way. None interrupts the
//!   region.
//! - **I8** A recall comes from a handler on the owner's thread, while the slot stands still. It sets
//!   REST, which the owner looks at after each store of `Running`, and it changes the word that the
//!   owner waits on.
//!
//! *Exit*: detach answers what is pending; a slot found dead owes nothing that the requester cannot
//! answer itself. *Fork*: the child puts each world in order, see `Protocol::after_fork`. *Signals*: a handler calls
//! `recall` alone, and waits look again after `EINTR`. *Nesting* is refused by the crate's outer layer.
//!
//! References: Go commits f0dd002 (a count and a wait word each), ff7cf2d (requesters can be
//! stopped); HotSpot `safepoint.cpp`, `handshake.cpp` (JEP 312); Dekker's pair as in membarrier(2).

mod each;
mod request;
mod slot;
mod stop;
mod target;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, loom))]
mod model_regions;

use core::fmt;
use core::time::Duration;

use self::each::Call;
#[cfg(not(loom))]
pub(crate) use self::each::NotVisited;
use self::request::{Round, Turn};
use self::slot::Arena;
#[cfg(not(loom))]
pub use self::slot::MutatorState;
#[cfg(any(test, not(loom)))]
pub(crate) use self::slot::Stance;
pub(crate) use self::slot::{Chunk, MutatorSlot};
#[cfg(not(loom))]
use self::slot::{REST, STOP};
#[cfg(not(loom))]
pub(crate) use self::slot::{SlotUse, Spare};
#[cfg(not(loom))]
pub(crate) use self::stop::{Counted, TimedOut};
#[cfg(not(loom))]
pub(crate) use self::target::NoSlot;
#[cfg(not(loom))]
use crate::sync::Ordering;
use crossbeam_utils::CachePadded;

use crate::sync::{AtomicPtr, AtomicU32};

/// What the protocol needs of the system.
pub(crate) trait System: fmt::Debug + Send + Sync + Sized + 'static {
    /// What is kept of a slot's owner.
    type Identity: Default + fmt::Debug + Send + Sync + 'static;

    /// The owner's side of a fence pair; the other side is [`System::heavy`] or a full fence that
    /// both sides make.
    fn light(&self);
    /// A full fence here, and for every thread that relies on [`System::light`].
    fn heavy(&self);
    /// Sleeps while the word holds `expected`; returns early as it likes.
    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>);
    fn wake_all(&self, word: &AtomicU32);
    fn wake_one(&self, word: &AtomicU32);
    /// Waits until no nudge is on its way to the calling thread, which wants none.
    fn settle_nudges(&self);
    /// Whether a thread's task may be held by somebody. Models say no where it is not the question.
    fn may_recall(&self) -> bool {
        true
    }
    /// Runs what the holder of the calling thread's task wants of it.
    fn serve(&self);
    /// Waits while the calling thread's task is held.
    fn stay_while_held(&self);
    /// Runs `done` for as long as spinning beats sleeping while `running` others need a processor.
    /// The result is `done`'s last.
    fn spin(&self, running: u32, done: impl Fn() -> bool) -> bool;
    /// An empty chunk, no longer used by anybody.
    fn fresh() -> &'static Chunk<Self::Identity>;
    /// Takes back a chunk that nobody uses.
    fn recycle(chunk: &'static Chunk<Self::Identity>);
}

/// How long something may be waited for.
pub(crate) trait Limit {
    /// Time until the deadline; `None` without one.
    fn left(&self) -> Option<Duration>;
}

/// How long a requester waits, and what it does about those who are late.
pub(crate) trait Pace<S: System>: Limit {
    /// What is kept of one who is late.
    type Seen;

    /// Whether the deadline has passed, or waiting longer is of no use.
    fn expired(&self) -> bool;
    /// How long to sleep: until the next look is due, or until the deadline.
    fn nap(&self) -> Option<Duration>;
    /// Whether the time of the next look has come. If so, sets the time of the one after: looks
    /// come by the clock, however often a sleep is cut short.
    fn due(&mut self) -> bool;
    /// Called in each look for a slot that still runs; a nudge is of use while `wanted`. Must not
    /// unwind.
    fn late(&mut self, slot: &'static MutatorSlot<S::Identity>, wanted: &dyn Fn() -> bool);
    /// Who is late, while the slot is still theirs. Must not unwind.
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
    each: Round,
    each_call: AtomicPtr<Call<'static, S>>,
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
            each: Round::new(),
            each_call: AtomicPtr::new(core::ptr::null_mut()),
            stop_turn: Turn::new(),
            each_turn: Turn::new(),
        }
    }

    /// Slots that have an owner now; may be old by the time it is looked at, except in a stop.
    pub(crate) fn live(&self) -> impl Iterator<Item = &'static MutatorSlot<S::Identity>> + use<S> {
        self.arena.slots().filter(|slot| slot.state().is_live())
    }

    /// The slot at `index`, which was found by a walk before.
    #[cfg(not(loom))]
    pub(crate) fn slot(&self, index: u32) -> Option<&'static MutatorSlot<S::Identity>> {
        self.arena.slots().find(|slot| slot.index() == index)
    }

    /// A world in the child of a fork. The child has one thread, the survivor, and a copy of whatever the
    /// others were in the middle of. They are gone: their slots are dead, what they asked is asked no
    /// more, what they were to answer is answered. What the survivor itself is in the middle of goes on.
    ///
    /// To be called on the one thread of the child, which was `parent` and is `me`. `reclaim` forgets
    /// the owner of a slot that is not the survivor's; `survives` says which is, and puts its
    /// identity in order.
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
        // What requesters that are gone have asked is asked no more. A survivor that has the world
        // stopped from inside its safe region has asked itself. A recall is of its own handler's (I8): the
        // task is held no more, and is to go on when the region ends.
        let kept = REST | if stopping { STOP } else { 0 };
        self.arena.each_slot(|slot| {
            slot.requests.poll.fetch_and(kept, Ordering::Relaxed);
            slot.requests.stop_pending.store(0, Ordering::Relaxed);
            slot.requests.each_pending.store(0, Ordering::Relaxed);
            if slot.state() != MutatorState::Dead && !survives(slot) {
                reclaim(slot);
                slot.set_state(MutatorState::Dead);
            }
        });
        // A round that the survivor is counting is over; answers to one that is are ignored.
        self.stop.after_fork();
        self.each.after_fork();
        let word = self.stop_word.load(Ordering::Relaxed);
        if !stopping && !word.is_multiple_of(2) {
            self.stop_word.store(word.wrapping_add(1), Ordering::Relaxed);
        }
    }
}
