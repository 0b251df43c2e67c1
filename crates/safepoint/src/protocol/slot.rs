//! A mutator's slot.
//!
//! What requesters write and what they look at is at the start of a slot, in one cache line: a stop of many
//! targets takes as long as it takes to get at their lines. Two slots share none.

use core::fmt;
use core::hint::cold_path;
use core::sync::atomic::{AtomicU32 as PlainU32, Ordering as Plain, compiler_fence};

use super::System;
use super::asked::Help;
use super::operations::{self, Queue};
pub(crate) use super::stand::Stance;
use super::stand::{KNOWN, Stands};
use sigctx::sync::{AtomicU32, Ordering};

/// Bit of the poll word: a stop is pending, or was.
pub(crate) const STOP: u32 = 1 << 0;
/// Bit of the poll word: a for-each's closure is pending, or was.
pub(crate) const EACH: u32 = 1 << 1;
/// Bit of the poll word: the thread's task was held while the slot stood still. A handler on the target's
/// thread sets it, between two instructions.
pub(crate) const REST: u32 = 1 << 2;
/// Bit of the poll word: a nudge brought the target to its last safe point, and it has come to none by itself
/// since. The target sets it, in the nudged call, and clears it at its next poll or region.
pub(crate) const NUDGED: u32 = 1 << 3;
/// Bit of the poll word: the targets of this world fence (I2). It asks for nothing. The target sets it when it
/// takes the slot, so that it finds this out by a look that it has to make anyway.
pub(crate) const FENCED: u32 = 1 << 4;
/// Bit of the poll word: operations of handshakes are queued, or were.
pub(crate) const HANDSHAKE: u32 = 1 << 5;
/// Bit of the poll word: the target takes the slow paths, in a world for tests. The target sets it when it takes the
/// slot. It asks for nothing else.
pub(crate) const SLOW: u32 = 1 << 6;
/// Bit of the poll word: the targets of this world say where they stand before they count as safe (I10). It asks
/// for nothing, and has regions entered and left by the slow path. The target sets it when it takes the slot.
pub(crate) const STANDS: u32 = 1 << 7;
/// Bits of the poll word that are the runtime's: any thread sets them, the target clears them. They ask for nothing.
pub(crate) const USER_BITS: u32 = 0xff << USER_SHIFT;
pub(crate) const USER_SHIFT: u32 = 24;
/// The bits of the poll word with which a poll takes its slow path.
pub(crate) const POLL_MASK: u32 = !(FENCED | STANDS);
/// Bit of `each_pending`: the requester has claimed the closure, and runs it or hands it back.
pub(crate) const CLAIMED: u32 = 1 << 31;

/// What a mutator does, as requesters see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum MutatorState {
    /// No thread has the slot.
    Dead = 0,
    /// A thread has taken the slot and has not written its identity yet.
    Attaching = 1,
    /// In a safe region: it touches nothing that a stop protects.
    Safe = 2,
    /// Running user code; acknowledges at its next poll.
    Running = 3,
    /// On its way to `Dead`. It runs no user code; an acknowledgement may be outstanding.
    Detaching = 4,
}

/// The bits of the state word that are the state. Above them is the [`Stance`].
const STATE: u32 = 0b111;

/// A state, and a stance in it.
#[cfg(all(not(loom), feature = "timeline"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Glance {
    /// [`MutatorState::Running`].
    Runs,
    /// [`Stance::Works`], or [`Stance::Helps`].
    Works,
    /// [`Stance::Away`].
    Away,
    /// [`Stance::Waits`].
    Waits,
    /// No mutator, or one on its way in or out.
    Gone,
}

impl Stance {
    /// Of a word that says `Safe`.
    fn from_word(word: u32) -> Self {
        match word & !(STATE | KNOWN) {
            0 => Self::Works,
            word if word == Self::Away as u32 => Self::Away,
            word if word == Self::Helps as u32 => Self::Helps,
            _ => Self::Waits,
        }
    }
}

impl MutatorState {
    fn from_word(word: u32) -> Self {
        match word & STATE {
            0 => Self::Dead,
            1 => Self::Attaching,
            2 => Self::Safe,
            3 => Self::Running,
            _ => Self::Detaching,
        }
    }

    /// Whether requests have to ask the slot.
    pub(crate) fn is_live(self) -> bool {
        !matches!(self, Self::Dead | Self::Attaching)
    }
}

impl fmt::Display for MutatorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dead => "dead",
            Self::Attaching => "attaching",
            Self::Safe => "safe",
            Self::Running => "running",
            Self::Detaching => "detaching",
        })
    }
}

/// What requesters write.
#[derive(Debug)]
pub(crate) struct Requests {
    /// The poll word: armed if it is not 0. Requesters set bits. The target sets the bit of a request that
    /// it finds pending before the requester has. Only the target clears bits.
    pub(crate) poll: AtomicU32,
    /// Number of the round of the stop that the target has to acknowledge; 0 for none.
    pub(crate) stop_pending: AtomicU32,
    /// Number of the round of the for-each whose closure the target has to run; 0 for none.
    pub(crate) each_pending: AtomicU32,
    /// Whether a requester runs operations of handshakes for the slot. Written under the queue's lock.
    pub(crate) served: AtomicU32,
}

/// What the target writes, and what is queued for it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Status<I> {
    pub(super) state: AtomicU32,
    /// 1 while the target sleeps, or is about to, because the requester has claimed its closure.
    pub(crate) awaits: AtomicU32,
    pub(crate) stands: Stands,
    /// How many threads have had the slot. Not part of the protocol, so not modelled.
    pub(crate) generation: PlainU32,
    /// Place in the world's arena. Written before the slot is published there.
    pub(crate) index: PlainU32,
    /// Which thread has the slot. The system's: the protocol does not look at it.
    pub(crate) identity: I,
    /// What the holder of a stop wants of the target.
    pub(super) help: Help,
    /// The operations of handshakes that wait for the target.
    pub(super) queue: Queue,
}

/// One mutator's place in the world.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct MutatorSlot<I> {
    pub(crate) requests: Requests,
    pub(crate) status: Status<I>,
}

impl<I: Default> MutatorSlot<I> {
    pub(crate) fn new() -> Self {
        Self {
            requests: Requests {
                poll: AtomicU32::new(0),
                stop_pending: AtomicU32::new(0),
                each_pending: AtomicU32::new(0),
                served: AtomicU32::new(operations::FREE),
            },
            status: Status {
                state: AtomicU32::new(MutatorState::Dead as u32),
                awaits: AtomicU32::new(0),
                stands: Stands::new(),
                generation: PlainU32::new(0),
                index: PlainU32::new(0),
                identity: I::default(),
                help: Help::new(),
                queue: Queue::new(),
            },
        }
    }
}

impl<I> MutatorSlot<I> {
    /// The fast path: whether the poll word is armed.
    ///
    /// Relaxed: a bit that is missed here is found by the next poll, and the slow path reads what it stands
    /// for behind a fence.
    #[inline(always)]
    pub(crate) fn is_armed(&self) -> bool {
        self.requests.poll.load(Ordering::Relaxed) & POLL_MASK != 0
    }

    /// Target only, after its store of a state: whether the poll word is armed, or the target says where it stands.
    /// Calls `fence` before it looks, in a world whose targets fence; elsewhere this is one load.
    #[inline(always)]
    pub(crate) fn is_armed_behind(&self, fence: impl FnOnce()) -> bool {
        // I2: the store is not to be moved below the look.
        compiler_fence(Plain::SeqCst);
        // In models all targets fence: a look that finds out no more than that would only make them slower.
        let mut poll = if cfg!(loom) { FENCED } else { self.requests.poll.load(Ordering::Relaxed) };
        if poll != 0 {
            cold_path();
            if poll & FENCED != 0 {
                fence();
                poll = self.requests.poll.load(Ordering::Relaxed) & !FENCED;
            }
        }
        poll != 0
    }

    /// Target only, when it has taken the slot: sets a bit for as long as it has that, or clears what the last target
    /// has left.
    pub(crate) fn set_standing(&self, bit: u32, on: bool) {
        let poll = &self.requests.poll;
        // Relaxed: for this thread's own looks.
        if (poll.load(Ordering::Relaxed) & bit != 0) != on {
            poll.fetch_xor(bit, Ordering::Relaxed);
        }
    }

    /// Target only, when it has taken the slot: the last target's bits are not its own.
    pub(crate) fn forget_user_bits(&self) {
        // Relaxed: nobody knows this target yet.
        if self.requests.poll.load(Ordering::Relaxed) & USER_BITS != 0 {
            self.requests.poll.fetch_and(!USER_BITS, Ordering::Relaxed);
        }
    }

    /// Target only: whether there is something to do for others.
    pub(crate) fn is_asked(&self) -> bool {
        let asks = !(NUDGED | FENCED | SLOW | STANDS | USER_BITS);
        self.requests.poll.load(Ordering::Relaxed) & asks != 0
    }

    /// Requester only, for a slot whose bit it has set: whether the target takes the slow path before its next
    /// region, whatever fences there are (I7).
    pub(crate) fn is_nudged(&self) -> bool {
        self.requests.poll.load(Ordering::Relaxed) & NUDGED != 0
    }

    /// Target only, where it comes to a safe point by itself. Returns whether a nudge brought it to the last one.
    pub(crate) fn forget_nudge(&self) -> bool {
        let is_nudged = self.is_nudged();
        // Acquire: it then sees what a requester wrote that has found the bit there.
        if is_nudged {
            self.requests.poll.fetch_and(!NUDGED, Ordering::AcqRel);
        }
        is_nudged
    }

    /// Requester only: sets a bit of the poll word. A bit that an earlier request has left there is left as
    /// it is: its target clears it, fences, looks at its source, and sets it again if need be (I9). The caller
    /// has fenced since it wrote the source.
    pub(crate) fn arm(&self, bit: u32) {
        if self.requests.poll.load(Ordering::Relaxed) & bit == 0 {
            self.requests.poll.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Requester only, behind its heavy fence, for a slot that it has claimed: whether the target stays safe until
    /// the claim ends.
    #[inline]
    pub(super) fn is_kept_safe(&self, stands: bool) -> bool {
        // I9. A bit that is seen here was not cleared by a target that had not seen the claim.
        let is_armed = self.requests.poll.load(Ordering::Relaxed) & EACH != 0;
        is_armed && !self.is_served() && self.state_in(stands) == MutatorState::Safe
    }

    /// Requester of a for-each only, behind a fence that follows its claim (H5): whether operations run for the slot
    /// on another thread. Acquire: if not, what they did is seen.
    #[inline]
    pub(crate) fn is_served(&self) -> bool {
        self.requests.served.load(Ordering::Acquire) != operations::FREE
    }

    /// Acquire, with `set_state`'s release: a requester that sees `Safe` sees all that the target did before.
    pub(crate) fn state(&self) -> MutatorState {
        self.state_in(self.status.stands.are_said())
    }

    /// [`MutatorSlot::state`], for walks: whether the world's targets say where they stand is looked up once. For each
    /// slot it took a quarter of the time of a stop.
    #[inline]
    pub(super) fn state_in(&self, stands: bool) -> MutatorState {
        let word = self.status.state.load(Ordering::Acquire);
        match MutatorState::from_word(word) {
            // I10.
            MutatorState::Safe if stands && word & KNOWN == 0 => MutatorState::Running,
            state => state,
        }
    }

    /// Whether requests have to ask the slot, wherever its target stands.
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        MutatorState::from_word(self.status.state.load(Ordering::Acquire)).is_live()
    }

    /// Target only. Release, see [`MutatorSlot::state`]. The caller makes the fence that must follow.
    #[inline(always)]
    pub(crate) fn set_state(&self, state: MutatorState) {
        self.status.state.store(state as u32, Ordering::Release);
    }

    /// What the target does in its safe region; `None` outside of one. Relaxed: called on the target's thread, also in
    /// handlers; and by a requester that keeps the target where it is.
    pub(crate) fn stance(&self) -> Option<Stance> {
        let word = self.status.state.load(Ordering::Relaxed);
        (MutatorState::from_word(word) == MutatorState::Safe).then_some(Stance::from_word(word))
    }

    /// What the target does, as any thread sees it. It may have changed before it is looked at.
    #[cfg(all(not(loom), feature = "timeline"))]
    pub(crate) fn glance(&self) -> Glance {
        let word = self.status.state.load(Ordering::Relaxed);
        match (MutatorState::from_word(word), Stance::from_word(word)) {
            (MutatorState::Running, _) => Glance::Runs,
            (MutatorState::Safe, Stance::Works | Stance::Helps) => Glance::Works,
            (MutatorState::Safe, Stance::Away) => Glance::Away,
            (MutatorState::Safe, Stance::Waits) => Glance::Waits,
            _ => Glance::Gone,
        }
    }

    /// Whether the target's task was held while the slot stood still. Relaxed: set on this thread.
    pub(crate) fn is_recalled(&self, system: &impl System) -> bool {
        system.may_recall() && self.requests.poll.load(Ordering::Relaxed) & REST != 0
    }

    /// Takes a dead slot. Acquire: the last target's writes come before the new one's.
    pub(crate) fn take(&self) -> bool {
        let (dead, attaching) = (MutatorState::Dead as u32, MutatorState::Attaching as u32);
        let state = &self.status.state;
        // The look first keeps a walk over live slots from pulling their lines away.
        state.load(Ordering::Relaxed) == dead
            && state.compare_exchange(dead, attaching, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn index(&self) -> u32 {
        self.status.index.load(Ordering::Relaxed)
    }

    /// The slot and its generation.
    pub(crate) fn current_use(&self) -> SlotUse {
        SlotUse { index: self.index(), generation: self.generation() }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.status.generation.load(Ordering::Relaxed)
    }
}

/// One use of a slot. Later the slot may be another thread's, and its generation another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SlotUse {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}
