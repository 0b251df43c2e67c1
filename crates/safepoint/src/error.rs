//! What can go wrong, and who was in the way.

use core::error::Error;
use core::fmt;
use core::time::Duration;

use threadreg::Name;

use crate::options::Reason;
use crate::protocol::MutatorState;

/// Why a thread did not become a mutator.
#[non_exhaustive]
#[derive(Debug)]
pub enum AttachError {
    /// The thread is a mutator of this world.
    AlreadyAttached {
        /// The thread.
        tid: i32,
    },
    /// The thread has the world stopped, and would wait for itself.
    HoldsStop {
        /// The thread.
        tid: i32,
    },
    /// The world has as many mutators as it can count.
    Full {
        /// The thread.
        tid: i32,
    },
    /// The thread could not be registered.
    Unregistered {
        /// The thread.
        tid: i32,
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
            Self::HoldsStop { tid } => write!(f, "thread {tid} has this world stopped"),
            Self::Full { tid } => write!(f, "no room in the world for thread {tid}"),
            Self::Unregistered { tid, error } => {
                write!(f, "cannot register thread {tid}: {error}")
            }
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

/// Why the world was not stopped. It runs.
#[non_exhaustive]
#[derive(Debug)]
pub enum StopError {
    /// The thread has the world stopped already.
    Nested {
        /// The thread.
        tid: i32,
    },
    /// The thread runs a for-each closure.
    InCallback,
    /// The thread is a running mutator of this world: it would wait for itself. It can stop the
    /// world through its [`Mutator`](crate::Mutator), or in a safe region.
    OwnMutatorRuns {
        /// The thread.
        tid: i32,
    },
    /// Others were stopping the world until the deadline passed.
    Busy {
        /// What this stop was for.
        reason: Reason,
        /// The thread that had the world last seen; 0 if it was between two stops.
        holder: i32,
        /// How long this one waited.
        waited: Duration,
    },
    /// Not everybody had stopped when the deadline passed. All are released.
    Deadline {
        /// What this stop was for.
        reason: Reason,
        /// Who had not stopped.
        stragglers: Vec<Straggler>,
    },
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested { tid } => write!(f, "thread {tid} has the world stopped already"),
            Self::InCallback => f.write_str("cannot stop the world inside a for-each closure"),
            Self::OwnMutatorRuns { tid } => {
                write!(f, "thread {tid} is a running mutator of the world that it stops")
            }
            Self::Busy { reason, holder, waited } => {
                write!(f, "no turn to stop for {reason} in {waited:?}; thread {holder} has it")
            }
            Self::Deadline { reason, stragglers } => {
                write!(f, "world not stopped for {reason} in time; late:")?;
                let mut separator = " ";
                for straggler in stragglers {
                    write!(f, "{separator}{straggler}")?;
                    separator = ", ";
                }
                Ok(())
            }
        }
    }
}

impl Error for StopError {}

/// A mutator that did not stop in time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Straggler {
    /// Its thread; 0 if that is gone by now.
    pub tid: i32,
    /// The thread's name.
    pub name: Name,
    /// Where the mutator was.
    pub state: MutatorState,
    /// How long it was waited for, from when it was this stop's turn.
    pub waited: Duration,
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, name, state, waited } = self;
        write!(f, "thread {tid} ({name}), {state} for {waited:?}")
    }
}
