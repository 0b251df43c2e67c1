//! One mutator's words: what others ask of it on one cache line, what it tells on the other.

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::AtomicU32 as PlainU32;

use super::Edge;
use super::round::By;
use crate::sync::{AtomicU32, Ordering};

/// Bit of the poll word: a stop wants an answer, or has wanted one.
pub(crate) const STOP: u32 = 1 << 0;
/// Bit of the poll word: a for-each wants its closure run, or has wanted it.
pub(crate) const EACH: u32 = 1 << 1;
/// Bit of the poll word: the thread's task was held while the slot stood still. Set by a handler on the
/// owner's thread, so never between two of the owner's steps that are one to the compiler.
pub(crate) const REST: u32 = 1 << 2;
/// Bit of `each_owed`: the requester has taken the closure on itself and may be running it.
pub(crate) const CLAIMED: u32 = 1 << 31;
/// Bit of a claimed `each_owed`: the owner sleeps until the claim is resolved.
pub(crate) const AWAITED: u32 = 1 << 30;

/// Where a mutator is, as seen by requesters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum MutatorState {
    /// Nobody has the slot.
    Dead = 0,
    /// A thread has taken the slot and has not announced itself yet.
    Attaching = 1,
    /// In a safe region: it touches nothing that a stop protects.
    Safe = 2,
    /// Running user code; answers at its next poll.
    Running = 3,
    /// On its way to `Dead`: runs no user code, and owes at most an answer.
    Detaching = 4,
}

/// The bits of the state word that are the state; above them is the [`Stance`].
const STATE: u32 = 0b111;

/// What a thread does in a safe region; for handlers on that thread, requesters do not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stance {
    /// It has the world stopped, or is about to, and runs what wanted that.
    Works = 0,
    /// It runs a closure that touches nothing protected.
    Away = 1 << 3,
    /// It waits inside the protocol.
    Waits = 1 << 4,
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

    /// Whether a request has to reckon with the slot.
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

/// Keeps what is in it on cache lines of its own; 128 because processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct OwnLines<T>(pub(crate) T);

impl<T> Deref for OwnLines<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Written by requesters.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What the owner's poll looks at. Requesters set bits, and the owner what it finds before they
    /// do; only the owner clears them.
    pub(crate) poll: AtomicU32,
    /// Generation of the stop that this slot owes an answer to; 0: none.
    pub(crate) stop_owed: AtomicU32,
    /// Generation of the for-each that this slot owes a run of the closure to; 0: none.
    pub(crate) each_owed: AtomicU32,
}

/// Written by the owner.
#[derive(Debug)]
pub(crate) struct Told<I> {
    state: AtomicU32,
    /// Who the owner is; kept by the edge, the protocol does not look at it.
    pub(crate) identity: I,
    /// How many owners the slot has had. Not part of the protocol, so not modelled.
    pub(crate) generation: PlainU32,
    /// Place in the world's arena; written before the slot is published there.
    pub(crate) index: PlainU32,
}

/// One mutator's place in the world.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<I> {
    pub(crate) asked: OwnLines<Asked>,
    pub(crate) told: OwnLines<Told<I>>,
}

impl<I: Default> Slot<I> {
    pub(crate) fn new() -> Self {
        Self {
            asked: OwnLines(Asked {
                poll: AtomicU32::new(0),
                stop_owed: AtomicU32::new(0),
                each_owed: AtomicU32::new(0),
            }),
            told: OwnLines(Told {
                state: AtomicU32::new(MutatorState::Dead as u32),
                identity: I::default(),
                generation: PlainU32::new(0),
                index: PlainU32::new(0),
            }),
        }
    }
}

impl<I> Slot<I> {
    /// The fast path: whether somebody wants something.
    ///
    /// Relaxed: a bit that is seen late is seen at the next poll; what the bit stands for is read
    /// again behind a fence by the slow path.
    #[inline(always)]
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.poll.load(Ordering::Relaxed) != 0
    }

    /// Acquire, with `set_state`'s release: who sees `Safe` sees all that the owner did before.
    pub(crate) fn state(&self) -> MutatorState {
        MutatorState::from_word(self.told.state.load(Ordering::Acquire))
    }

    /// Owner only. Release, see [`Slot::state`]. The fence that must follow is the caller's.
    #[inline(always)]
    pub(crate) fn set_state(&self, state: MutatorState) {
        self.told.state.store(state as u32, Ordering::Release);
    }

    /// Owner only: `Safe`, with what the thread does there. As [`Slot::set_state`].
    #[inline(always)]
    pub(crate) fn set_safe(&self, stance: Stance) {
        self.told.state.store(MutatorState::Safe as u32 | stance as u32, Ordering::Release);
    }

    /// What the owner does in its safe region; `None` outside of one. Owner's thread only, handlers
    /// included: relaxed.
    pub(crate) fn stance(&self) -> Option<Stance> {
        let word = self.told.state.load(Ordering::Relaxed);
        (MutatorState::from_word(word) == MutatorState::Safe).then_some(match word & !STATE {
            0 => Stance::Works,
            word if word == Stance::Away as u32 => Stance::Away,
            _ => Stance::Waits,
        })
    }

    /// Whether the owner's task was held while the slot stood still. Relaxed: set on this thread.
    pub(crate) fn is_recalled(&self, edge: &impl Edge) -> bool {
        edge.may_recall() && self.asked.poll.load(Ordering::Relaxed) & REST != 0
    }

    /// Takes a dead slot. Acquire: the last owner's writes come before the new owner's.
    pub(crate) fn take(&self) -> bool {
        let (dead, attaching) = (MutatorState::Dead as u32, MutatorState::Attaching as u32);
        let state = &self.told.state;
        // The look first keeps a walk over live slots from pulling their lines away.
        state.load(Ordering::Relaxed) == dead
            && state.compare_exchange(dead, attaching, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn index(&self) -> u32 {
        self.told.index.load(Ordering::Relaxed)
    }

    /// The slot and its owner.
    pub(crate) fn by(&self) -> By {
        By { index: self.index(), owner: self.generation() }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.told.generation.load(Ordering::Relaxed)
    }
}
