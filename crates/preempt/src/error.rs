//! Errors, one type an operation, and the causes that they give.

use core::fmt;
use core::time::Duration;

use sigctx::handler::Standing;
use sigctx::inject::InjectError;
use sigctx::sys::Tid;

use crate::signal::number;
use crate::symbol::Address;

/// Tells why preemption could not be installed, or not as it was asked.
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

/// Tells why a signal cannot be used for preemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no signal of that number.
    NoSignal,
    /// `SIGKILL` or `SIGSTOP`.
    Uncatchable,
    /// The CPU, the kernel or `abort` raises it because of what the thread does. If such a thread blocks
    /// it even for a moment, the process ends.
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

/// Tells why a thread cannot enter a task, or block in it.
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
    /// The idle task was kept suspended for longer than the timeout.
    TimedOut(Held),
}

/// A task that was to go on is still suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The thread that suspended it last, if any has it.
    pub holder: Option<Tid>,
    /// How long the calling thread has waited.
    pub waited: Duration,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.waited;
        match self.holder {
            Some(tid) => write!(f, "thread {tid} still has the task suspended after {waited:.0?}"),
            None => write!(f, "other threads still want the task suspended after {waited:.0?}"),
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

/// Tells why a task could not be suspended. The task is left as it was.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SuspendError {
    /// A task cannot suspend itself.
    Own,
    /// The task did not stop in time.
    TimedOut {
        /// The thread that runs it.
        tid: Option<Tid>,
        /// The thread's name.
        name: threadreg::Name,
        /// How long the requester waited.
        waited: Duration,
        /// Why it did not stop.
        cause: StragglerCause,
    },
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("a task cannot suspend itself"),
            Self::TimedOut { tid, name, waited, cause } => {
                write!(f, "{} did not stop in {waited:.0?}: {cause}", OnThread(*tid, name))
            }
        }
    }
}

impl core::error::Error for SuspendError {}

/// Tells why the thread of a suspended task did not run a closure of the holder's.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RunError {
    /// The task was held where it was idle or blocked: no thread of it can run anything.
    NotParked,
    /// Its thread did not begin in time. It is not going to run the closure later either.
    TimedOut {
        /// The thread.
        tid: Option<Tid>,
        /// The thread's name.
        name: threadreg::Name,
        /// How long the holder waited.
        waited: Duration,
        /// Why it did not begin.
        cause: StragglerCause,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotParked => f.write_str("the task was held where it was idle or blocked"),
            Self::TimedOut { tid, name, waited, cause } => {
                let task = OnThread(*tid, name);
                write!(
                    f,
                    "{task}, suspended, did not begin with the closure in {waited:.0?}: {cause}"
                )
            }
        }
    }
}

impl core::error::Error for RunError {}

/// Tells why a [request](crate::Task::request_within) was not served. It stands until the task comes to
/// a safe point.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RequestError {
    /// The thread that runs the task.
    pub tid: Option<Tid>,
    /// The thread's name.
    pub name: threadreg::Name,
    /// How long the requester waited.
    pub waited: Duration,
    /// Why the task did not come to a safe point.
    pub cause: StragglerCause,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tid, name, waited, cause } = self;
        write!(f, "{} did not come to its hook in {waited:.0?}: {cause}", OnThread(*tid, name))
    }
}

impl core::error::Error for RequestError {}

/// Names a task by its thread: `the task on thread 123 "name"`.
struct OnThread<'a>(Option<Tid>, &'a threadreg::Name);

impl fmt::Display for OnThread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(None, _) => f.write_str("the task"),
            Self(tid, &name) => write!(f, "the task on thread {}", threadreg::Label { tid, name }),
        }
    }
}

/// Tells why a task did not stop, or did not come to a safe point, in time.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StragglerCause {
    /// Another requester had it all the time.
    HeldByAnother {
        /// The thread that suspended it last, unless it has just let go.
        holder: Option<Tid>,
    },
    /// Another requester let it go, so it has its turn to run, and its thread has not come to that.
    ItsTurn,
    /// It ran on no thread.
    NotRunning,
    /// The handler is not [installed](crate::install), so that only a poll could stop it.
    NotInstalled,
    /// Another handler was installed over ours, so that no call can be injected:
    /// [`install`](crate::install()) puts ours on top again.
    Covered {
        /// The address of that handler.
        by: usize,
    },
    /// The default action or "ignore" was set in the place of our handler: call
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
        outcome: SignalOutcome,
        /// Where it found it.
        pc: usize,
    },
}

impl From<Standing> for StragglerCause {
    /// Says what keeps signals from our handler.
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Covered { by } => Self::Covered { by: by.get() },
            _ => Self::Replaced,
        }
    }
}

impl fmt::Display for StragglerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeldByAnother { holder: Some(tid) } => {
                write!(f, "thread {tid} has it suspended")
            }
            Self::HeldByAnother { holder: None } => f.write_str("another thread has it suspended"),
            Self::ItsTurn => f.write_str("another thread let it go, and it has not run since"),
            Self::NotRunning => f.write_str("it ran on no thread"),
            Self::NotInstalled => f.write_str("preempt::install has not been called"),
            Self::Covered { by } => {
                let by = Address(*by);
                write!(f, "handler {by} of signal {} was installed over ours", number())
            }
            Self::Replaced => {
                write!(f, "signal {} was set to its default action or to be ignored", number())
            }
            Self::SignalBlocked => write!(f, "the thread blocks signal {}", number()),
            Self::NotSent(error) => write!(f, "the signal could not be sent: {error}"),
            Self::NoTime => f.write_str("the time was over before a signal could be sent"),
            Self::NotHandled => f.write_str("the signal was sent, and not handled yet"),
            Self::Refused { outcome, pc } => {
                write!(f, "no safe point was found, last at pc {}: {outcome}", Address(*pc))
            }
        }
    }
}

/// What came of the last signal that found a request: whether the thread was interrupted at its pc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias("isAsyncSafePoint", "wantAsyncPreempt"))]
pub enum SignalOutcome {
    /// No signal has found a request yet.
    Unknown = 0,
    /// The call was made.
    Interrupted = 1,
    /// The thread was outside registered code.
    OutsideCode = 2,
    /// The thread held a [`Disabled`](crate::Disabled) guard.
    Disabled = 3,
    /// The stack had no room left for the call.
    NoRoom = 4,
    /// The stack pointer was not on the task's stack.
    OtherStack = 5,
    /// An injected call was running already.
    Nested = 6,
    /// The pc was in the vDSO or at a system call.
    Kernel = 7,
    /// Some other reason; see [`sigctx::inject::InjectError`].
    Other = 8,
}

impl SignalOutcome {
    pub(crate) fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::Unknown,
            1 => Self::Interrupted,
            2 => Self::OutsideCode,
            3 => Self::Disabled,
            4 => Self::NoRoom,
            5 => Self::OtherStack,
            6 => Self::Nested,
            7 => Self::Kernel,
            _ => Self::Other,
        }
    }

    pub(crate) fn of(refusal: &InjectError) -> Self {
        match refusal {
            InjectError::NoRoom { .. } => Self::NoRoom,
            InjectError::NotOnThisStack { .. } | InjectError::OnAltStack { .. } => Self::OtherStack,
            InjectError::Nested | InjectError::InTrampoline { .. } => Self::Nested,
            InjectError::InVdso { .. } | InjectError::AtSyscall { .. } => Self::Kernel,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for SignalOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsideCode => "outside the registered code",
            Self::Disabled => "preemption is disabled",
            Self::NoRoom => "no room on its stack",
            Self::OtherStack => "on another stack than the task's",
            Self::Nested => "inside an injected call",
            Self::Kernel => "in the vDSO or at a system call",
            Self::Interrupted => "interrupted, but not parked yet",
            Self::Unknown | Self::Other => "refused",
        })
    }
}
