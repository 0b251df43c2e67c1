//! The processors of a set: which thread has each, and threads that wait for one.
//!
//! | possession | the mutator is | in |
//! |---|---|---|
//! | held | attached | the guard |
//! | held, in passing | safe | its entry: it was given to a waiter, or to a [`PassedProcessor`](super::PassedProcessor) |
//! | in a call | safe | its entry: its thread claims it when it comes back, others retake it |
//! | resting | safe | its entry |
//!
//! An entry's mutator is touched by the thread that holds the possession (R1 in `retake`).

use core::cell::UnsafeCell;
use core::error::Error;
use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use core::time::Duration;
use std::time::Instant;

use crossbeam_utils::CachePadded;
use sigctx::fork;
use sigctx::sys::Tid;
use threadreg::Attached;

use crate::bound::Bound;
use crate::error::AttachError;
use crate::moved::SafeMutator;
use crate::mutator::Mutator;
use crate::per_mutator::PerMutator;
use crate::protocol::{Limit, MutatorSlot, MutatorState};
use crate::retake::{Possession, Seen};
use crate::same::Same;
use crate::system::{self, Identity};
use crate::waiters::Waiters;
use crate::world::World;

/// Which processor of a set: from 0 up to their number, exclusive.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessorId(pub(crate) u32);

impl ProcessorId {
    /// Its place in the set. Not its mutator's place in the world.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ProcessorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processor {}", self.0)
    }
}

/// What a processor does, see [`Processors::states`](crate::Processors::states).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessorState {
    /// No thread has it.
    Idle,
    /// A thread has it.
    Held {
        /// The thread.
        tid: Tid,
        /// Where its mutator is. One in a safe region may block there for long, and keeps the processor: a
        /// [`system_call`](crate::ProcessorGuard::system_call) does not.
        state: MutatorState,
    },
    /// It is passed from one thread to another.
    Passed,
    /// Its thread is in a system call: [`Processors::retake`](crate::Processors::retake) takes it away.
    InSystemCall {
        /// The thread.
        tid: Tid,
        /// For how long: to 64 µs, rounded down. Wrong for a call that takes more than a day.
        lasts: Duration,
    },
}

impl fmt::Display for ProcessorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Held { tid, state: MutatorState::Safe } => {
                write!(f, "held by thread {tid} in a safe region")
            }
            Self::Held { tid, state } => write!(f, "held by thread {tid}, {state}"),
            Self::Passed => f.write_str("passed to a thread that has not come for it"),
            Self::InSystemCall { tid, lasts } => {
                write!(f, "in a system call of thread {tid} for {lasts:?}")
            }
        }
    }
}

/// Why a thread did not get a processor.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// No processor was given back before the timeout was over. Threads that have one may wait in calls for which
    /// [`ProcessorGuard::system_call`](crate::ProcessorGuard::system_call) was not used; what is in a system call is to be
    /// [retaken](crate::Processors::retake).
    Busy {
        /// The thread that did not get one.
        tid: Tid,
        /// How long it waited.
        waited: Duration,
        /// Which thread had each, then.
        holders: Vec<(ProcessorId, ProcessorState)>,
    },
    /// The thread cannot be a mutator of the world.
    Attach {
        /// Why.
        error: AttachError,
    },
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { tid, waited, holders } => {
                write!(f, "thread {tid} got no processor within {waited:?}:")?;
                let mut separator = " ";
                for (id, state) in holders {
                    write!(f, "{separator}{id} is {state}")?;
                    separator = ", ";
                }
                Ok(())
            }
            Self::Attach { .. } => f.write_str("the thread cannot have a processor of the world"),
        }
    }
}

impl Error for AcquireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Attach { error } => Some(error),
            Self::Busy { .. } => None,
        }
    }
}

/// What a processor has of the runtime's.
pub(crate) struct Part<T> {
    pub(crate) id: ProcessorId,
    pub(crate) data: T,
}

pub(crate) struct Set<T> {
    pub(crate) parts: PerMutator<Part<T>>,
    pub(crate) entries: Box<[CachePadded<Entry>]>,
    pub(crate) waiters: Waiters,
    /// From when times are counted.
    pub(crate) since: Instant,
}

pub(crate) struct Entry {
    pub(crate) possession: Possession,
    /// The thread that has it, or is in its system call; 0 for none. For errors alone.
    pub(crate) holder: AtomicI32,
    /// When the system call began. Written before the possession says that it has.
    pub(crate) began: AtomicU32,
    pub(crate) slot: &'static MutatorSlot<Identity>,
    /// Which mutator it is.
    pub(crate) same: Same,
    /// The mutator while it is no thread's.
    pub(crate) mutator: UnsafeCell<Option<SafeMutator>>,
}

// SAFETY: the mutator can be sent, and is touched by the thread that holds the possession (R1).
unsafe impl Sync for Entry {}

impl<T> Set<T> {
    pub(crate) fn entry(&self, id: ProcessorId) -> &Entry {
        &self.entries[id.index()]
    }

    pub(crate) fn world(&self) -> &World {
        self.parts.world()
    }

    /// In units of 64 µs.
    pub(crate) fn now(&self) -> u32 {
        (self.since.elapsed().as_micros() >> 6) as u32
    }

    /// How long a system call has lasted, at least.
    pub(crate) fn lasts(&self, entry: &Entry) -> Duration {
        // Relaxed: ordered by the look at the possession.
        let began = entry.began.load(Ordering::Relaxed);
        // Negative in the first 64 µs: the beginning is rounded up.
        let lasts = self.now().wrapping_sub(began).cast_signed().max(0);
        Duration::from_micros(u64::from(lasts.unsigned_abs()) << 6)
    }

    pub(crate) fn state(&self, entry: &Entry) -> ProcessorState {
        let seen = entry.possession.look();
        match (seen, entry.holder.load(Ordering::Relaxed)) {
            (Seen::Resting, _) => ProcessorState::Idle,
            (Seen::InCall(_), tid) => {
                ProcessorState::InSystemCall { tid, lasts: self.lasts(entry) }
            }
            (Seen::Held, 0) => ProcessorState::Passed,
            (Seen::Held, tid) => ProcessorState::Held { tid, state: entry.slot.state() },
        }
    }

    /// Holder only, with the mutator in its entry: gives the processor to a thread that waits, if there is one.
    pub(crate) fn give(&self, id: ProcessorId) {
        let entry = self.entry(id);
        entry.holder.store(0, Ordering::Relaxed);
        self.waiters.give(fork::process(), id.0, || entry.possession.rest());
    }

    /// Waits for a processor, at best for the one that is wanted. The thread has none, and has checked that it can.
    pub(crate) fn wait(
        &self,
        wanted: Option<ProcessorId>,
        bound: Bound,
    ) -> Result<ProcessorId, AcquireError> {
        let all = || (0..self.entries.len() as u32).map(ProcessorId);
        let take = || {
            let rests = |id: &ProcessorId| self.entry(*id).possession.take();
            wanted.into_iter().chain(all()).find(rests).map(|id| id.0)
        };
        let found = self.waiters.acquire(fork::process(), take, || bound.left());
        found.map(ProcessorId).ok_or_else(|| AcquireError::Busy {
            tid: system::tid(),
            waited: bound.elapsed(),
            holders: all().map(|id| (id, self.state(self.entry(id)))).collect(),
        })
    }
}

/// The thread can have a processor, once there is one, and is registered for as long as the result lives.
pub(crate) fn may_have_one<T>(set: &Set<T>) -> Result<Attached, AcquireError> {
    let tid = system::tid();
    let refused = |error| Err(AcquireError::Attach { error });
    if system::in_closure() {
        return refused(AttachError::InCallback { tid });
    }
    if threadreg::holds_freeze() {
        return refused(AttachError::HoldsFreeze { tid });
    }
    Mutator::registered(&set.world().shared, tid).or_else(refused)
}
