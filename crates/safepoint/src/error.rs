//! What can go wrong, and which threads were in the way.

use core::error::Error;
use core::fmt;
use core::time::Duration;

use sigctx::sys::Tid;

use crate::id::MutatorId;
use crate::options::Reason;
use crate::straggler::Straggler;

/// Why a thread did not become a mutator.
#[non_exhaustive]
#[derive(Debug)]
pub enum AttachError {
    /// The thread is a mutator of this world.
    AlreadyAttached {
        /// The thread.
        tid: Tid,
    },
    /// The thread has the world stopped, and would wait for itself.
    HoldsStop {
        /// The thread.
        tid: Tid,
    },
    /// The thread runs a for-each closure, which may be that of the mutator that it was to get.
    InCallback {
        /// The thread.
        tid: Tid,
    },
    /// The world was stopped until the timeout was over.
    Stopped {
        /// The thread.
        tid: Tid,
        /// The thread that had the turn to stop the world when the wait timed out; `None` between two turns, and
        /// if the stop was handed over.
        holder: Option<Tid>,
        /// How long the thread waited.
        waited: Duration,
    },
    /// The world is stopped, and the thread holds `threadreg::freeze_creation`'s guard. The requester of the
    /// stop may wait for a thread that waits for the guard. Attach first, freeze second.
    HoldsFreeze {
        /// The thread.
        tid: Tid,
    },
    /// The world has as many mutators as it can count.
    Full {
        /// The thread.
        tid: Tid,
    },
    /// The thread could not be registered.
    Unregistered {
        /// The thread.
        tid: Tid,
        /// Why.
        error: threadreg::AttachError,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyAttached { tid } => {
                write!(f, "thread {tid} is a mutator of this world already")
            }
            Self::HoldsStop { tid } => {
                write!(f, "thread {tid} has the world stopped, and cannot attach to it")
            }
            Self::InCallback { tid } => {
                write!(f, "thread {tid} is in a for-each closure, and cannot get a mutator there")
            }
            Self::Stopped { tid, holder, waited } => {
                write!(f, "thread {tid} did not attach within {waited:?}: {}", Holder(*holder))
            }
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} would wait for the end of a stop and holds the guard of freeze_creation"
                )
            }
            Self::Full { tid } => write!(f, "the world has no room for thread {tid}"),
            Self::Unregistered { tid, .. } => write!(f, "thread {tid} could not be registered"),
        }
    }
}

impl Error for AttachError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unregistered { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Why a request did not stop the world. It runs, unless this or another thread has it stopped.
#[non_exhaustive]
#[derive(Debug)]
pub enum StopError {
    /// The thread has the world stopped already. Whoever has the stop can nest one in it
    /// ([`Stopped::again`](crate::Stopped::again)).
    Nested {
        /// The thread.
        tid: Tid,
    },
    /// The thread runs a for-each closure.
    InCallback,
    /// The thread is a running mutator of this world, and would wait for itself. It can stop the world
    /// through its [`Mutator`](crate::Mutator), or in a safe region.
    OwnMutatorRuns {
        /// The thread.
        tid: Tid,
    },
    /// The thread holds `threadreg::freeze_creation`'s guard. A mutator that waits for it to make a
    /// thread would not come to a stop. Stop first, freeze second.
    HoldsFreeze {
        /// The thread.
        tid: Tid,
    },
    /// Other threads had the turn to stop the world until the timeout was over.
    Busy {
        /// What this stop was for.
        reason: Reason,
        /// The thread that had the turn to stop the world when the wait timed out; `None` between two turns, and
        /// if the stop was handed over.
        holder: Option<Tid>,
        /// How long the thread waited for its turn, and until it could go on: a mutator comes back from a
        /// stop that failed as from any safe region, when no other thread has the world stopped.
        waited: Duration,
    },
    /// The timeout was over before all mutators had stopped. All run again, those too that a
    /// [`StopVisitor`](crate::StopVisitor) has seen.
    TimedOut {
        /// What this stop was for.
        reason: Reason,
        /// The mutators that had not stopped.
        stragglers: Vec<Straggler>,
    },
    /// The thread holds tasks of mutators suspended (by `preempt::Task::suspend`). As far as this world knows
    /// the mutators run, and the world has no nudge that reaches a suspended thread. All run again. Resume
    /// the tasks, stop the world first and suspend second, or set a nudge.
    HoldsMutators {
        /// What this stop was for.
        reason: Reason,
        /// These mutators, and all others that had not stopped.
        stragglers: Vec<Straggler>,
    },
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested { tid } => write!(f, "thread {tid} has the world stopped already"),
            Self::InCallback => f.write_str("cannot stop the world inside a for-each closure"),
            Self::OwnMutatorRuns { tid } => {
                write!(
                    f,
                    "thread {tid} is a running mutator of the world: use the mutator, or a safe region"
                )
            }
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} holds the guard of freeze_creation: stop first, freeze second"
                )
            }
            Self::Busy { reason, holder, waited } => {
                write!(
                    f,
                    "no turn to stop the world for {reason} within {waited:?}: {}",
                    Holder(*holder)
                )
            }
            Self::TimedOut { reason, stragglers } => {
                write!(f, "the world did not stop for {reason} in time; late:")?;
                list(f, stragglers)
            }
            Self::HoldsMutators { reason, stragglers } => {
                write!(
                    f,
                    "the thread that stops the world for {reason} holds tasks of its mutators suspended:"
                )?;
                list(f, stragglers)
            }
        }
    }
}

/// The thread that had the turn.
struct Holder(Option<Tid>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(tid) => write!(f, "thread {tid} has the turn"),
            None => f.write_str("others have the turn"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, stragglers: &[Straggler]) -> fmt::Result {
    let mut separator = " ";
    for straggler in stragglers {
        write!(f, "{separator}{straggler}")?;
        separator = ", ";
    }
    Ok(())
}

impl Error for StopError {}

/// Why a for-each did not visit every mutator. No closure runs any more.
#[non_exhaustive]
#[derive(Debug)]
pub enum EachError {
    /// The thread runs a for-each closure. No closure ran.
    InCallback,
    /// The thread holds `threadreg::freeze_creation`'s guard: see [`StopError::HoldsFreeze`]. No
    /// closure ran.
    HoldsFreeze {
        /// The thread.
        tid: Tid,
    },
    /// Other threads had the turn until the timeout was over. No closure ran.
    Busy {
        /// The thread that had the turn when the wait timed out; `None` between two turns.
        holder: Option<Tid>,
        /// How long the thread waited, for the ends of stops as well.
        waited: Duration,
    },
    /// The timeout was over before all mutators had been visited.
    TimedOut {
        /// How many mutators the closure ran for.
        visited: usize,
        /// The mutators that it did not run for.
        stragglers: Vec<Straggler>,
    },
    /// As [`StopError::HoldsMutators`].
    HoldsMutators {
        /// How many mutators the closure ran for.
        visited: usize,
        /// The mutators that it did not run for.
        stragglers: Vec<Straggler>,
    },
}

impl fmt::Display for EachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCallback => f.write_str("cannot start a for-each inside a for-each closure"),
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} holds the guard of freeze_creation: visit first, freeze second"
                )
            }
            Self::Busy { holder, waited } => {
                write!(f, "no turn for a for-each within {waited:?}: {}", Holder(*holder))
            }
            Self::TimedOut { visited, stragglers } => {
                write!(f, "only {visited} mutators were visited in time; late:")?;
                list(f, stragglers)
            }
            Self::HoldsMutators { visited, stragglers } => {
                write!(
                    f,
                    "only {visited} mutators were visited; the thread that asks holds tasks of others suspended:"
                )?;
                list(f, stragglers)
            }
        }
    }
}

impl Error for EachError {}

/// Why a handshake was not answered by every mutator that was asked. No operation runs any more.
#[non_exhaustive]
#[derive(Debug)]
pub enum HandshakeError {
    /// The thread runs an operation, or a for-each closure. Nothing was asked.
    InCallback,
    /// The thread has the world stopped, and operations run in a running world only. Nothing was asked.
    HoldsStop {
        /// The thread.
        tid: Tid,
    },
    /// The thread holds `threadreg::freeze_creation`'s guard: see [`StopError::HoldsFreeze`]. Nothing was asked.
    HoldsFreeze {
        /// The thread.
        tid: Tid,
    },
    /// The thread is a running mutator of this world. It can ask through its [`Mutator`](crate::Mutator), or in a
    /// safe region. Nothing was asked.
    OwnMutatorRuns {
        /// The thread.
        tid: Tid,
    },
    /// The thread is in a safe region, and its own mutator alone may run the operation: it would wait for itself.
    /// Nothing was asked.
    OwnRegion {
        /// The thread.
        tid: Tid,
    },
    /// The mutator is detached, or detached before it ran the operation.
    Gone {
        /// The mutator.
        id: MutatorId,
    },
    /// The timeout was over before every operation had begun.
    TimedOut {
        /// How many mutators ran theirs.
        answered: usize,
        /// The mutators whose operation did not run.
        stragglers: Vec<Straggler>,
    },
    /// As [`StopError::HoldsMutators`].
    HoldsMutators {
        /// How many mutators ran their operation.
        answered: usize,
        /// The mutators whose operation did not run.
        stragglers: Vec<Straggler>,
    },
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCallback => f.write_str("cannot ask for a handshake inside an operation"),
            Self::HoldsStop { tid } => {
                write!(f, "thread {tid} has the world stopped: resume it first")
            }
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} holds the guard of freeze_creation: ask first, freeze second"
                )
            }
            Self::OwnMutatorRuns { tid } => {
                write!(
                    f,
                    "thread {tid} is a running mutator of the world: use the mutator, or a safe region"
                )
            }
            Self::OwnRegion { tid } => {
                write!(f, "thread {tid} waits for itself to leave its safe region")
            }
            Self::Gone { id } => write!(f, "mutator {id} is gone"),
            Self::TimedOut { answered, stragglers } => {
                write!(f, "only {answered} mutators answered a handshake in time; late:")?;
                list(f, stragglers)
            }
            Self::HoldsMutators { answered, stragglers } => {
                write!(
                    f,
                    "only {answered} mutators answered; the thread that asks holds tasks of others suspended:"
                )?;
                list(f, stragglers)
            }
        }
    }
}

impl Error for HandshakeError {}
