//! Why the demo did not come to its end, for the user: what was to be done, what was in the way, and
//! what helps.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use allthreads::Error as AllThreadsError;
use preempt::SuspendError;
use safepoint::StopError;
use sigctx::sys::Errno;
use threadreg::procfs::ProcError;

/// A step that could not be made.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What could not be done.
    step: &'static str,
    cause: Cause,
    error: Box<dyn Error>,
}

/// What was in the way, as far as it is known what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// There is no `/proc`.
    NoProc,
    /// `/proc` shows another pid namespace.
    ProcOfAnother,
    /// The process can make no thread: its children are to live in another pid namespace.
    ChildrenElsewhere,
    /// The limit of open files.
    Files,
    /// A limit of threads or processes.
    Threads,
    /// Memory.
    Memory,
    /// The machine is too busy, or threads are held by a debugger.
    Busy,
    /// The output is not read any more.
    OutputClosed,
    /// Something else: the error says it.
    Other,
}

impl Failure {
    /// Says of an error which step it ended.
    pub(crate) fn of(step: &'static str) -> impl FnOnce(Box<dyn Error>) -> Self {
        move |error| Self { step, cause: Cause::of(&*error), error }
    }

    /// 3; where the output is not read on, what the shell shows of a program that ended by SIGPIPE.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.cause {
            Cause::OutputClosed => ExitCode::from(128 + libc::SIGPIPE as u8),
            _ => ExitCode::from(3),
        }
    }

    /// Whether the output is still read.
    pub(crate) fn is_to_be_told(&self) -> bool {
        self.cause != Cause::OutputClosed
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.error)?;
        let mut source = self.error.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        let help = self.cause.help();
        if help.is_empty() { Ok(()) } else { write!(f, "\n  {help}") }
    }
}

impl Cause {
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut errno = None;
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<Slow>() {
                return Self::Busy;
            }
            if let Some(error) = error.downcast_ref::<ProcError>() {
                match error.errno() {
                    Errno::ENOENT | Errno::ENOTDIR => return Self::NoProc,
                    Errno::ESRCH => return Self::ProcOfAnother,
                    other => errno = Some(other.raw()),
                }
            } else if let Some(error) = error.downcast_ref::<Errno>() {
                errno = Some(error.raw());
            } else if let Some(error) = error.downcast_ref::<io::Error>() {
                errno = error.raw_os_error().or(errno);
            } else if is_of_a_busy_machine(error) {
                return Self::Busy;
            } else if let Some(error) = error.downcast_ref::<AllThreadsError>() {
                errno = error.errno().map(Errno::raw).or(errno);
            }
            next = error.source();
        }
        match errno {
            Some(libc::EMFILE | libc::ENFILE) => Self::Files,
            Some(libc::EAGAIN) => Self::Threads,
            Some(libc::ENOMEM) => Self::Memory,
            Some(libc::EPIPE) => Self::OutputClosed,
            // clone(2) with CLONE_THREAD, after unshare(CLONE_NEWPID).
            Some(libc::EINVAL) if children_are_elsewhere() => Self::ChildrenElsewhere,
            _ => Self::Other,
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::NoProc => {
                "the demo looks at its threads there; `mount -t proc proc /proc` mounts it"
            }
            Self::ProcOfAnother => {
                "`mount -t proc proc /proc` mounts this namespace's own; a new one gets it from \
                 `unshare --pid --fork --mount-proc`"
            }
            Self::ChildrenElsewhere => {
                "its children are to live in another pid namespace than it does, and there a process \
                 can make no thread; start it by `unshare --pid --fork --mount-proc`"
            }
            Self::Files => "allow the process more open files, by `ulimit -n 256` for example",
            Self::Threads => {
                "allow the user more threads (`ulimit -u`) or the container (`pids.max`); the demo \
                 makes about 15"
            }
            Self::Memory => "allow the process more memory (`ulimit -v`, or the container's)",
            Self::Busy => {
                "the machine may be too busy, or a debugger may hold a thread; try it again when \
                 less runs"
            }
            Self::OutputClosed | Self::Other => "",
        }
    }
}

/// Errors that say that a thread did not come in time.
fn is_of_a_busy_machine(error: &(dyn Error + 'static)) -> bool {
    matches!(
        error.downcast_ref(),
        Some(AllThreadsError::Busy { .. } | AllThreadsError::TimedOut(_))
    ) || matches!(error.downcast_ref(), Some(SuspendError::TimedOut { .. }))
        || matches!(error.downcast_ref(), Some(StopError::Busy { .. } | StopError::TimedOut { .. }))
}

/// Whether `unshare(CLONE_NEWPID)` was called: the children's namespace is not the process's own.
fn children_are_elsewhere() -> bool {
    let link = |name| fs::read_link(format!("/proc/self/ns/{name}")).ok();
    // Until the first child is there, the other namespace has no name: the link cannot be read.
    link("pid").is_some_and(|own| link("pid_for_children") != Some(own))
}

/// A thread of the demo that did not get on.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) thread: String,
    pub(crate) waited: Duration,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} has done no work for {:.0?}", self.thread, self.waited)
    }
}

impl Error for Slow {}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: impl Error + 'static) -> String {
        Failure::of("do it")(Box::new(error)).to_string()
    }

    #[test]
    fn failures_say_what_helps() {
        let of = |errno| told(io::Error::from_raw_os_error(errno));
        assert!(of(libc::EMFILE).contains("ulimit -n"), "{}", of(libc::EMFILE));
        assert!(of(libc::EAGAIN).contains("ulimit -u"), "{}", of(libc::EAGAIN));
        // What is behind an error counts.
        let behind = AllThreadsError::Forbidden { tid: 1, errno: Errno::EAGAIN };
        assert!(told(behind).contains("ulimit -u"));
        let away = AllThreadsError::WorldNotStopped(StopError::Busy {
            reason: "test".into(),
            holder: None,
            waited: Duration::from_secs(2),
        });
        assert!(told(away).contains("try it again"));
        let busy = AllThreadsError::Busy { holder: None, waited: Duration::from_secs(2) };
        assert!(told(busy).contains("busy"));
        assert!(!told(AllThreadsError::Nested).contains('\n'));
    }

    #[test]
    fn output_that_nobody_reads_is_no_fault_to_tell() {
        let error: Box<dyn Error> = Box::new(io::Error::from_raw_os_error(libc::EPIPE));
        assert!(!Failure::of("print")(error).is_to_be_told());
    }
}
