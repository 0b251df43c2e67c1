//! Errors, one type an operation.

use core::fmt;
use core::time::Duration;

use crate::thread::Outcome;

/// The handler of SIGURG could not be installed.
#[derive(Debug, Clone)]
pub struct InstallError(pub(crate) sigctx::handler::InstallError);

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot install the handler of SIGURG: {}", self.0)
    }
}

impl core::error::Error for InstallError {}

/// Why a thread cannot enter a task, or block in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnterError {
    /// The calling thread is not registered; see `threadreg::attach`.
    NotRegistered,
    /// The calling thread is inside a task.
    InsideTask,
    /// The task runs on another thread.
    Running,
    /// The calling thread is not inside this task, or the task is blocked already.
    NotInside,
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRegistered => "the thread is not registered",
            Self::InsideTask => "the thread is inside a task already",
            Self::Running => "the task runs on another thread",
            Self::NotInside => "the thread is not running inside this task",
        })
    }
}

impl core::error::Error for EnterError {}

/// Why a task could not be suspended. The task is left as it was.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SuspendError {
    /// A task cannot suspend itself.
    Own,
    /// The task did not stop in time.
    Late {
        /// The thread that runs it.
        tid: Option<i32>,
        /// The thread's name.
        name: threadreg::Name,
        /// How long the caller waited.
        waited: Duration,
        /// Why it did not stop.
        why: Why,
    },
}

/// Why a task did not stop.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Why {
    /// Another suspender had it all the time.
    HeldByAnother,
    /// It was between two threads.
    NotRunning,
    /// The handler is not [installed](crate::install), so that only a poll could stop it.
    NotInstalled,
    /// The thread blocks SIGURG, or its handler is just running.
    SignalBlocked,
    /// The signal could not be sent.
    NotSent(threadreg::SignalError),
    /// The signal was sent, but its handler has not run: the thread is not scheduled, stopped, or
    /// traced.
    NotHandled,
    /// The handler ran, but never found the task at a safe point.
    Refused {
        /// What it found last.
        outcome: Outcome,
        /// Where it found it.
        pc: usize,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeldByAnother => f.write_str("somebody else has it suspended"),
            Self::NotRunning => f.write_str("it was changing threads"),
            Self::NotInstalled => f.write_str("the handler of SIGURG is not installed"),
            Self::SignalBlocked => f.write_str("the thread blocks SIGURG"),
            Self::NotSent(error) => write!(f, "the signal could not be sent: {error}"),
            Self::NotHandled => f.write_str("the signal was sent, and not handled yet"),
            Self::Refused { outcome, pc } => {
                write!(f, "no safe point was found, last at pc {pc:#x}: ")?;
                f.write_str(match outcome {
                    Outcome::OutsideCode => "outside the registered code",
                    Outcome::Disabled => "preemption is disabled",
                    Outcome::NoRoom => "no room on its stack",
                    Outcome::OtherStack => "on another stack than the task's",
                    Outcome::Nested => "inside an injected call",
                    Outcome::Kernel => "in the vDSO or at a system call",
                    Outcome::Interrupted => "interrupted, but not parked yet",
                    Outcome::Unknown | Outcome::Other => "refused",
                })
            }
        }
    }
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("a task cannot suspend itself"),
            Self::Late { tid: Some(tid), name, waited, why } => {
                write!(f, "the task on thread {tid} ({name}) did not stop in {waited:.0?}: {why}")
            }
            Self::Late { waited, why, .. } => {
                write!(f, "the task did not stop in {waited:.0?}: {why}")
            }
        }
    }
}

impl core::error::Error for SuspendError {}
