//! Errors, one type an operation.

use core::fmt;
use core::time::Duration;

use sigctx::handler::Standing;

use crate::install::number;
use crate::symbol::Address;
use crate::thread::Outcome;

/// Why preemption could not be installed, or not as it was asked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum InstallError {
    /// The signal cannot be preemption's.
    Unusable {
        /// The signal.
        signal: i32,
        /// Why not.
        why: Unusable,
    },
    /// Preemption is installed with another signal, for the whole process.
    OtherSignal {
        /// The signal that was asked for.
        asked: i32,
        /// The one that is installed.
        installed: i32,
    },
    /// The handler could not be installed.
    Refused(sigctx::handler::InstallError),
}

/// Why a signal cannot be used for preemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no signal of that number.
    NoSignal,
    /// `SIGKILL` or `SIGSTOP`.
    Uncatchable,
    /// The CPU, the kernel or `abort` raises it because of what the thread does: to block it even for
    /// a moment ends the process then.
    Synchronous,
    /// libc keeps it for itself.
    Libc,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { signal, why } => {
                write!(f, "signal {signal} cannot be used for preemption: ")?;
                f.write_str(match why {
                    Unusable::NoSignal => "there is none of that number",
                    Unusable::Uncatchable => "no handler can catch it",
                    Unusable::Synchronous => "it is raised by what a thread does",
                    Unusable::Libc => "libc keeps it for itself",
                })
            }
            Self::OtherSignal { asked, installed } => {
                write!(f, "preemption is installed with signal {installed}, not {asked}")
            }
            Self::Refused(_) => f.write_str("cannot install the handler of preemption"),
        }
    }
}

impl core::error::Error for InstallError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

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
    /// The idle task was kept suspended for longer than the caller would wait.
    TimedOut(Held),
}

/// A task that was to go on is suspended still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The thread that suspended it last, if any has it.
    pub holder: Option<i32>,
    /// How long the caller has waited.
    pub waited: Duration,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.waited;
        match self.holder {
            Some(tid) => write!(f, "thread {tid} has the task suspended, after {waited:.0?} still"),
            None => write!(f, "others want the task suspended, after {waited:.0?} still"),
        }
    }
}

impl core::error::Error for Held {}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut(held) => return held.fmt(f),
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
    TimedOut {
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

/// Why a suspended task's thread did not run what its holder asked it to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RunError {
    /// The task was held where it was idle or blocked: no thread of it can run anything.
    NotParked,
    /// Its thread did not begin in time. It will not run it later either.
    TimedOut {
        /// The thread.
        tid: Option<i32>,
        /// The thread's name.
        name: threadreg::Name,
        /// How long the caller waited.
        waited: Duration,
        /// Why it did not begin.
        why: Why,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotParked => f.write_str("the task was held where it was idle or blocked"),
            Self::TimedOut { tid, name, waited, why } => {
                let tid = tid.unwrap_or(0);
                write!(f, "thread {tid} ({name}), whose task is suspended, ")?;
                write!(f, "did not begin to run what it was to in {waited:.0?}: {why}")
            }
        }
    }
}

impl core::error::Error for RunError {}

/// Why a task did not stop.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Why {
    /// Another suspender had it all the time.
    HeldByAnother {
        /// The thread that suspended it last, unless it has just let go.
        holder: Option<i32>,
    },
    /// It was let go by another suspender, has its turn to run, and its thread has not come to that.
    ItsTurn,
    /// It ran on no thread.
    NotRunning,
    /// The handler is not [installed](crate::install), so that only a poll could stop it.
    NotInstalled,
    /// Somebody installed a handler over ours, so that no call can be injected:
    /// [`install`](crate::install()) again puts ours on top.
    Covered {
        /// The address of that handler.
        by: usize,
    },
    /// Somebody set the default action or "ignore" in the place of our handler:
    /// [`install`](crate::install()) again.
    Replaced,
    /// The thread blocks the signal, or its handler is just running.
    SignalBlocked,
    /// The signal could not be sent.
    NotSent(threadreg::SignalError),
    /// The time was over before a signal could be sent.
    NoTime,
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

impl From<Standing> for Why {
    /// What keeps signals from our handler.
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Covered { by } => Self::Covered { by: by.get() },
            _ => Self::Replaced,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeldByAnother { holder: Some(tid) } => {
                write!(f, "thread {tid} has it suspended")
            }
            Self::HeldByAnother { holder: None } => f.write_str("another thread has it suspended"),
            Self::ItsTurn => f.write_str("it was let go by another, and has not run since"),
            Self::NotRunning => f.write_str("it ran on no thread"),
            Self::NotInstalled => f.write_str("preempt::install has not been called"),
            Self::Covered { by } => {
                let by = Address(*by);
                write!(f, "handler {by} of signal {} was installed over ours", number())
            }
            Self::Replaced => {
                write!(f, "somebody set signal {} to its default action or to be ignored", number())
            }
            Self::SignalBlocked => write!(f, "the thread blocks signal {}", number()),
            Self::NotSent(error) => write!(f, "the signal could not be sent: {error}"),
            Self::NoTime => f.write_str("the time was over before a signal could be sent"),
            Self::NotHandled => f.write_str("the signal was sent, and not handled yet"),
            Self::Refused { outcome, pc } => {
                write!(f, "no safe point was found, last at pc {}: ", Address(*pc))?;
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
            Self::TimedOut { tid: Some(tid), name, waited, why } => {
                write!(f, "the task on thread {tid} ({name}) did not stop in {waited:.0?}: {why}")
            }
            Self::TimedOut { waited, why, .. } => {
                write!(f, "the task did not stop in {waited:.0?}: {why}")
            }
        }
    }
}

impl core::error::Error for SuspendError {}

/// Why a [request](crate::Task::request_within) was not served. It stands until the task comes to a
/// safe point.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RequestError {
    /// The thread that runs the task.
    pub tid: Option<i32>,
    /// The thread's name.
    pub name: threadreg::Name,
    /// How long the caller waited.
    pub waited: Duration,
    /// Why the task did not come to a safe point.
    pub why: Why,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, name, waited, why } = self;
        match tid {
            Some(tid) => write!(f, "the task on thread {tid} ({name}) ")?,
            None => write!(f, "the task ")?,
        }
        write!(f, "did not come to its hook in {waited:.0?}: {why}")
    }
}

impl core::error::Error for RequestError {}
