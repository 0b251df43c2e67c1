//! What can go wrong, and which threads were in the way; and the end of the process where to go on, or to
//! unwind, would break what other threads rely on.

use core::error::Error;
use core::fmt;
use core::time::Duration;
use std::io::{self, Write as _};

use threadreg::{Name, NudgeError};

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
    /// The world was stopped, and the time was over before it ran.
    Stopped {
        /// The thread.
        tid: i32,
        /// The thread that had the world stopped when this one gave up; `None` between two stops.
        holder: Option<i32>,
        /// How long this one waited.
        waited: Duration,
    },
    /// The world is stopped, and the thread holds `threadreg::freeze_creation`'s guard: who stops the
    /// world may wait for a thread that waits for the guard. Attach first, freeze second.
    HoldsFreeze {
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
        /// StragglerCause.
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
            Self::Stopped { tid, holder, waited } => {
                write!(f, "thread {tid} could not attach in {waited:?}; {}", Holder(*holder))
            }
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} would wait for a stop and holds the guard of freeze_creation"
                )
            }
            Self::Full { tid } => write!(f, "no room in the world for thread {tid}"),
            Self::Unregistered { tid, .. } => write!(f, "cannot register thread {tid}"),
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
    /// The thread holds `threadreg::freeze_creation`'s guard. A mutator that waits for it to make a
    /// thread would not come to a stop. Stop first, freeze second.
    HoldsFreeze {
        /// The thread.
        tid: i32,
    },
    /// Others were stopping the world until the deadline passed.
    Busy {
        /// What this stop was for.
        reason: Reason,
        /// The thread that had the world stopped when this one gave up; `None` between two stops.
        holder: Option<i32>,
        /// How long this one waited for its turn, and how long it then stood still: a mutator comes
        /// back from a stop that failed when no other has the world stopped, as from any safe region.
        waited: Duration,
    },
    /// Not everybody had stopped when the deadline passed. All are released.
    TimedOut {
        /// What this stop was for.
        reason: Reason,
        /// Who had not stopped.
        stragglers: Vec<Straggler>,
    },
    /// The thread holds tasks of mutators suspended (by `preempt::Task::suspend`) that run as far as this
    /// world knows, and the world has no nudge that reaches a suspended thread. All are released.
    /// Resume them, stop the world first and suspend second, or set a nudge.
    HoldsMutators {
        /// What this stop was for.
        reason: Reason,
        /// The mutators, and whoever else had not stopped.
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
            Self::HoldsFreeze { tid } => {
                write!(
                    f,
                    "thread {tid} holds the guard of freeze_creation: stop first, freeze second"
                )
            }
            Self::Busy { reason, holder, waited } => {
                write!(f, "no turn to stop for {reason} in {waited:?}; {}", Holder(*holder))
            }
            Self::TimedOut { reason, stragglers } => {
                write!(f, "world not stopped for {reason} in time; late:")?;
                list(f, stragglers)
            }
            Self::HoldsMutators { reason, stragglers } => {
                write!(f, "world not stopped for {reason} by who holds tasks of its mutators:")?;
                list(f, stragglers)
            }
        }
    }
}

/// Whose turn it was.
struct Holder(Option<i32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(tid) => write!(f, "thread {tid} had the turn"),
            None => f.write_str("others had the turn one after another"),
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

/// Why a for-each did not visit everybody. Closures that ran, ran; none runs any more.
#[non_exhaustive]
#[derive(Debug)]
pub enum EachError {
    /// The thread runs a for-each closure. No closure ran.
    InCallback,
    /// The thread holds `threadreg::freeze_creation`'s guard: see [`StopError::HoldsFreeze`]. No
    /// closure ran.
    HoldsFreeze {
        /// The thread.
        tid: i32,
    },
    /// Others had their for-each until the deadline passed. No closure ran.
    Busy {
        /// The thread that had the turn when this one gave up; `None` between two turns.
        holder: Option<i32>,
        /// How long this one waited, stops that it waited for included.
        waited: Duration,
    },
    /// Not everybody had been visited when the deadline passed.
    TimedOut {
        /// For how many the closure ran.
        visited: usize,
        /// For whom it did not.
        stragglers: Vec<Straggler>,
    },
    /// As [`StopError::HoldsMutators`].
    HoldsMutators {
        /// For how many the closure ran.
        visited: usize,
        /// For whom it did not.
        stragglers: Vec<Straggler>,
    },
}

impl fmt::Display for EachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCallback => f.write_str("no for-each inside a for-each closure"),
            Self::HoldsFreeze { tid } => {
                write!(f, "thread {tid} holds the guard of freeze_creation: freeze afterwards")
            }
            Self::Busy { holder, waited } => {
                write!(f, "no turn for a for-each in {waited:?}; {}", Holder(*holder))
            }
            Self::TimedOut { visited, stragglers } => {
                write!(f, "only {visited} mutators were visited in time; late:")?;
                list(f, stragglers)
            }
            Self::HoldsMutators { visited, stragglers } => {
                write!(f, "only {visited} mutators were visited by who holds tasks of others:")?;
                list(f, stragglers)
            }
        }
    }
}

impl Error for EachError {}

/// A mutator that did not stop, or was not visited, in time. What is said of it was seen while the
/// request to it stood.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Straggler {
    /// Its thread.
    pub tid: i32,
    /// The thread's name when it attached.
    pub name: Name,
    /// Where the mutator was.
    pub state: MutatorState,
    /// How long it was waited for, from when it was this request's turn.
    pub waited: Duration,
    /// What kept it, as far as that is known.
    pub cause: StragglerCause,
}

/// What kept a mutator from answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StragglerCause {
    /// It did not poll, and the world has no nudge.
    NoNudge,
    /// It did not poll, and the time for a nudge had not come.
    NotNudged,
    /// It was nudged so many times, and neither polled nor came to an asynchronous safe point.
    Nudged {
        /// How many times.
        times: u32,
    },
    /// It did not poll, and the last nudge failed.
    NudgeFailed(NudgeError),
    /// It did not poll, and the last nudge panicked.
    NudgePanicked,
    /// Its task is suspended.
    Suspended {
        /// SlotUse this thread.
        by: i32,
    },
    /// Its thread has ended, and its mutator was never dropped.
    Ended,
}

impl fmt::Display for StragglerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNudge => f.write_str("no poll, and the world has no nudge"),
            Self::NotNudged => f.write_str("no poll, and not nudged yet"),
            Self::Nudged { times } => {
                write!(f, "no poll, and nudged {times} times outside of any code that allows it")
            }
            Self::NudgeFailed(error) => write!(f, "no poll, and the nudge failed: {error}"),
            Self::NudgePanicked => f.write_str("no poll, and the nudge panicked"),
            Self::Suspended { by } => write!(f, "suspended by thread {by}"),
            Self::Ended => f.write_str("the thread has ended, and its mutator was not dropped"),
        }
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, name, state, waited, cause } = self;
        write!(f, "thread {tid} ({name}), {state} for {waited:?}: {cause}")
    }
}

/// Says why, as far as standard error takes it, and aborts.
///
/// `eprintln!` panics when standard error is a broken pipe, and would unwind from where nothing may.
pub(crate) fn abort_with(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(io::stderr(), "safepoint: {why}");
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use testkit::child;

    use super::abort_with;

    #[test]
    fn the_process_aborts_though_nothing_can_be_written() {
        let name = "error::tests::the_process_aborts_though_nothing_can_be_written";
        let ended = child(name, Duration::from_secs(20), || {
            let (reader, writer) = std::io::pipe().expect("room for a pipe");
            drop(reader);
            // SAFETY: two open descriptors. std ignores SIGPIPE, so that a write fails.
            let broken = unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) };
            assert_eq!(broken, libc::STDERR_FILENO);
            abort_with(format_args!("into a broken pipe"));
        });
        if let Some(ended) = ended {
            assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
        }
    }
}
