//! Why an operation did not do what was asked, and how much of it was done.

use core::fmt;
use core::time::Duration;
use std::io;

use safepoint::StopError;
use sigctx::module::KeepError;
use sigctx::sys::{Errno, Tid};
use threadreg::procfs::ProcError;
use threadreg::{Label, Name};

use crate::calls::{Call, CallName, MAX_CALLS, NAMED, Rehearsal};
use crate::threads::{MAX_EXCLUDED, SLOTS};

/// Why an operation failed. [`Error::applied`] says what is in effect nevertheless.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe); so is the formatting, into a writer that is.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a call on the requester, so no other thread tried it. The calls before it are in
    /// effect on every thread, it and the calls after it on none.
    Refused {
        /// Which call, from 0.
        call: usize,
        /// What it does.
        name: CallName,
        /// What the kernel said.
        errno: Errno,
    },
    /// Some threads could not be held by the deadline. Nothing is applied anywhere.
    TimedOut(TimedOut),
    /// With [`Barrier::OnePhase`](crate::Barrier::OnePhase): some threads have made the calls, and others
    /// have not, and will not.
    Partial(Partial),
    /// A call had another result on some threads than on the requester. Those threads made no further
    /// call; all others made all of them.
    Diverged(Diverged),
    /// `/proc/self/task` cannot be read, so that there is no proof that all threads are held. A program that
    /// will have no `/proc` opens it before, see [`AllThreads::tasks`](crate::AllThreads::tasks).
    NoProc(ProcError),
    /// A filter or a security module forbids to signal a thread of this process.
    Forbidden {
        /// The thread that could not be signalled.
        tid: Tid,
        /// What the kernel said.
        errno: Errno,
    },
    /// The signal cannot be used: it is no real-time signal above 32, or its action cannot be set.
    BadSignal {
        /// The signal's number.
        signal: i32,
    },
    /// The library with the handler cannot be kept loaded, and must not be unloaded: the kernel, and
    /// handlers that chain to ours, keep its address.
    NotKept(KeepError),
    /// A thread to be excluded has an id that no thread can have.
    BadThread {
        /// The id given.
        tid: Tid,
    },
    /// A user or group id is `Some(u32::MAX)`, which the kernel takes for "unchanged".
    BadId {
        /// Which call of the batch, from 0.
        call: usize,
        /// What it does.
        name: CallName,
    },
    /// Some threads have other user ids, group ids or capabilities than the requester, so that calls which
    /// change these could go well on some threads and be refused on others. Nothing is applied. See
    /// [`OnMixed`](crate::OnMixed).
    Mixed {
        /// One of them.
        tid: Tid,
        /// How many there are.
        threads: usize,
    },
    /// The kernel has threads of its own in the process, which would keep what they have, and
    /// [`KernelWorkers`](crate::KernelWorkers) was set to refuse. Nothing is applied.
    KernelWorkers {
        /// One of them.
        tid: Tid,
        /// How many there are.
        workers: usize,
    },
    /// Other operations were under way until the deadline passed. Nothing is applied.
    Busy {
        /// The thread that had the turn at the last look; `None` between two turns.
        holder: Option<Tid>,
        /// How long this operation waited for its turn.
        waited: Duration,
    },
    /// More calls than a batch holds.
    TooManyCalls {
        /// How many there were.
        calls: usize,
    },
    /// The process has more threads, or more threads that cannot take part, than the tables hold.
    TooManyThreads,
    /// More threads are to be left out than can be.
    TooManyExcluded {
        /// How many.
        tids: usize,
    },
    /// The requester is inside another operation: in a function that `call` runs.
    Nested,
    /// The world that was to be stopped first could not be.
    WorldNotStopped(StopError),
}

/// How much of an operation is in effect after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// This many calls, from the first, on every thread; the rest on none. Nothing is `Calls(0)`.
    Calls(usize),
    /// Not the same on every thread: some stopped at a result that was not the requester's, or have not come.
    Unequal,
}

impl Error {
    /// Says how much of the operation is in effect.
    #[must_use]
    pub const fn applied(&self) -> Applied {
        match *self {
            Self::Refused { call, .. } => Applied::Calls(call),
            Self::Diverged(_) | Self::Partial(_) => Applied::Unequal,
            _ => Applied::Calls(0),
        }
    }
}

impl Error {
    /// What the kernel said: of the call that it refused, on the requester or on another thread, of the
    /// signal, or of `/proc`. `None` where it was not the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Forbidden { errno, .. } => Some(*errno),
            Self::NoProc(error) => Some(error.errno()),
            Self::Partial(partial) => partial.errno(),
            Self::Diverged(diverged) => {
                let mut values = diverged.threads().map(|different| different.value);
                let refused = values.find(|value| (-4095..0).contains(value));
                let there = refused.map(|value| Errno::new(-value as i32));
                there.or(diverged.refused().map(|(_, errno)| errno))
            }
            _ => None,
        }
    }

    fn what(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { call: 0, name, errno } => {
                write!(f, "the kernel refused {name}: {errno}")
            }
            Self::Refused { call, name, errno } => write!(
                f,
                "the kernel refused {name}, call {call} of the batch: {errno}; the calls before it \
                 were applied on every thread, the rest on none"
            ),
            Self::TimedOut(threads) => write!(f, "{threads}"),
            Self::Partial(threads) => write!(f, "{threads}"),
            Self::Diverged(threads) => write!(f, "{threads}"),
            Self::NoProc(_) => f.write_str("the process's threads cannot be read from /proc"),
            Self::Forbidden { tid, errno } => {
                write!(f, "signalling thread {tid} of this process is forbidden: {errno}")
            }
            Self::BadSignal { signal } => write!(f, "signal {signal} cannot be used"),
            Self::NotKept(_) => f.write_str("the library with the handler cannot be kept loaded"),
            Self::BadThread { tid } => write!(f, "{tid} is no thread id and cannot be excluded"),
            Self::BadId { call, name } => {
                let bad = u32::MAX;
                write!(f, "{name}, call {call}, has an id of {bad}, which means \"unchanged\"")
            }
            Self::Mixed { tid, threads: 1 } => {
                write!(f, "thread {tid} has other ids or capabilities than the requester")
            }
            Self::Mixed { tid, threads } => write!(
                f,
                "{threads} threads, {tid} among them, have other ids or capabilities than the requester"
            ),
            Self::KernelWorkers { tid, workers: 1 } => write!(
                f,
                "the kernel has a thread of its own in the process, {tid}, which would keep what it has"
            ),
            Self::KernelWorkers { tid, workers } => write!(
                f,
                "the kernel has {workers} threads of its own in the process, {tid} among them, which \
                 would keep what they have"
            ),
            Self::Busy { holder: Some(holder), waited } => {
                write!(f, "waited {waited:?} for its turn, which thread {holder} has")
            }
            Self::Busy { holder: None, waited } => {
                write!(
                    f,
                    "waited {waited:?} for its turn, which other threads had one after another"
                )
            }
            Self::TooManyCalls { calls } => {
                write!(f, "{calls} calls, but a batch holds {MAX_CALLS}")
            }
            Self::TooManyThreads => write!(
                f,
                "the process has more threads than the about {SLOTS} that an operation can hold, or too \
                 many that take no part"
            ),
            Self::TooManyExcluded { tids } => {
                write!(f, "{tids} threads are to be left out, but only {MAX_EXCLUDED} can be")
            }
            Self::Nested => f.write_str("the requester is inside another operation"),
            Self::WorldNotStopped(_) => f.write_str("the world was not stopped"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what(f)?;
        if self.applied() == Applied::Calls(0) {
            f.write_str("; nothing was applied")
        } else {
            Ok(())
        }
    }
}

/// The kind is that of what the kernel said, where it said something; this error is inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::TimedOut(_)
            | Error::Busy { .. }
            | Error::Partial(Partial { stopped_by: None, .. })
            | Error::WorldNotStopped(StopError::TimedOut { .. } | StopError::Busy { .. }) => {
                io::ErrorKind::TimedOut
            }
            Error::BadSignal { .. }
            | Error::BadThread { .. }
            | Error::BadId { .. }
            | Error::TooManyCalls { .. }
            | Error::TooManyExcluded { .. } => io::ErrorKind::InvalidInput,
            Error::TooManyThreads => io::ErrorKind::QuotaExceeded,
            Error::Nested | Error::WorldNotStopped(_) => io::ErrorKind::Deadlock,
            other => match other.errno() {
                Some(errno) => Self::from_raw_os_error(errno.raw()).kind(),
                None => io::ErrorKind::Other,
            },
        };
        Self::new(kind, error)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::NoProc(error) => Some(error),
            Self::NotKept(error) => Some(error),
            Self::WorldNotStopped(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a thread could not be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StragglerCause {
    /// It has the signal blocked.
    Blocked,
    /// A job-control stop (`SIGSTOP`) holds it.
    Stopped,
    /// A tracer holds it.
    Traced,
    /// It sleeps in the kernel where no signal reaches it, as the parent in `vfork(2)` does.
    Uninterruptible,
    /// It could run its handler, but had no processor in time.
    Starved,
    /// What the kernel says of it may not be read.
    Unknown,
}

impl fmt::Display for StragglerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blocked => "has the signal blocked",
            Self::Stopped => "is stopped",
            Self::Traced => "is held by a tracer",
            Self::Uninterruptible => "is in an uninterruptible sleep",
            Self::Starved => "was not scheduled",
            Self::Unknown => "did not come",
        })
    }
}

/// A thread that could not be held.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Straggler {
    tid: Tid,
    cause: StragglerCause,
    name: [u8; 16],
}

impl Straggler {
    pub(crate) fn new(tid: Tid, cause: StragglerCause, name: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self { tid, cause, name: bytes }
    }

    /// The thread's id.
    #[must_use]
    pub const fn tid(&self) -> Tid {
        self.tid
    }

    /// What kept it away at the last look.
    #[must_use]
    pub const fn cause(&self) -> StragglerCause {
        self.cause
    }

    /// The name that the kernel has for it.
    #[must_use]
    pub fn name(&self) -> Name {
        Name::from_bytes(&self.name)
    }
}

impl fmt::Debug for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Straggler")
            .field("tid", &self.tid)
            .field("name", &self.name())
            .field("cause", &self.cause)
            .finish()
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = Label { tid: Some(self.tid), name: self.name() };
        write!(f, "{thread} {}", self.cause)
    }
}

/// The threads that could not be held: how many, and the first few by name.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut {
    count: u32,
    milliseconds: u32,
    first: [Option<Straggler>; NAMED],
}

impl TimedOut {
    pub(crate) fn new(
        stragglers: impl Iterator<Item = Straggler>,
        count: usize,
        elapsed: Duration,
    ) -> Self {
        let mut first = [None; NAMED];
        for (to, from) in first.iter_mut().zip(stragglers) {
            *to = Some(from);
        }
        Self { count: count as u32, milliseconds: 0, first }.after(elapsed)
    }

    /// The same threads after a longer time.
    pub(crate) fn after(self, elapsed: Duration) -> Self {
        let milliseconds = u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX);
        Self { milliseconds, ..self }
    }

    /// How many threads could not be held. 0 when none failed to come, but threads were made and ended so
    /// fast that they were never all held at once.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// How long the operation tried.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        Duration::from_millis(self.milliseconds as u64)
    }

    fn list(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, thread) in self.threads().enumerate() {
            write!(f, "{} {thread}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }

    /// The first of them, up to four: the error has a fixed size, so that a failing operation allocates
    /// nothing either.
    pub fn threads(&self) -> impl Iterator<Item = &Straggler> {
        self.first.iter().flatten()
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            let elapsed = self.elapsed();
            return write!(
                f,
                "threads were made and ended for {elapsed:?}, and were never all held at once"
            );
        }
        write!(f, "{} of the threads could not be held in {:?}", self.count, self.elapsed())?;
        self.list(f)
    }
}

/// The end of a one-phase operation that not all threads have taken part in: how many have made the calls,
/// and which have not.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    made: u32,
    stopped_by: Option<Errno>,
    missing: TimedOut,
}

impl Partial {
    pub(crate) fn new(made: u32, stopped_by: Option<Errno>, missing: TimedOut) -> Self {
        Self { made, stopped_by, missing }
    }

    /// How many threads have made the calls, the requester included.
    #[must_use]
    pub const fn made(&self) -> usize {
        self.made as usize
    }

    /// The threads that have not. Their count is 0 when no thread is known not to have come: threads were made
    /// and ended so fast that they were never all seen to have, or the calls took longer than the time that was
    /// given.
    #[must_use]
    pub const fn missing(&self) -> &TimedOut {
        &self.missing
    }

    /// What the kernel said when it forbade to signal or to list threads, and so ended the operation before
    /// the deadline.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        self.stopped_by
    }
}

impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (made, elapsed) = (self.made, self.missing.elapsed());
        let threads = if made == 1 { "thread has" } else { "threads have" };
        write!(f, "{made} {threads} made the calls and not all: ")?;
        if let Some(errno) = self.stopped_by {
            return write!(f, "after {elapsed:?} the kernel forbade to reach others: {errno}");
        }
        if self.missing.count == 0 {
            return write!(f, "in {elapsed:?} it was not seen that the others, or new ones, have");
        }
        write!(f, "{} did not come in {elapsed:?}", self.missing.count)?;
        self.missing.list(f)
    }
}

/// A result that was not the requester's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Different {
    /// The thread that got it.
    pub tid: Tid,
    /// Which call it was, from 0.
    pub call: usize,
    /// What the thread got; -4095 to -1 is a negated error number.
    pub value: isize,
}

/// Threads on which a call had another result than on the requester: how many, and the first few.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diverged {
    count: u32,
    /// The call at which the first of them stopped.
    name: CallName,
    expected: isize,
    /// The call at which the requester stopped, and what the kernel said.
    refused: Option<(u32, Errno)>,
    first: [(Tid, u32, isize); NAMED],
}

impl Diverged {
    pub(crate) fn new(
        count: usize,
        first: impl Iterator<Item = (Tid, usize, isize)>,
        calls: &[Call],
        rehearsal: &Rehearsal,
    ) -> Self {
        let mut diverged = Self {
            count: count as u32,
            name: CallName::UNKNOWN,
            expected: 0,
            refused: rehearsal.refused.map(|errno| (rehearsal.applied as u32, errno)),
            first: [(0, 0, 0); NAMED],
        };
        for (to, (tid, call, value)) in diverged.first.iter_mut().zip(first) {
            *to = (tid, call as u32, value);
        }
        let call = diverged.first[0].1 as usize;
        diverged.name = CallName::of(calls, call);
        diverged.expected = rehearsal.values.get(call).copied().unwrap_or_default();
        diverged
    }

    /// The call at which the first of them stopped.
    #[must_use]
    pub const fn name(&self) -> CallName {
        self.name
    }

    /// The call that the kernel refused on the requester, further on in the batch, and what it said: no
    /// thread made that call or a later one. `None` when the requester made all calls.
    #[must_use]
    pub fn refused(&self) -> Option<(usize, Errno)> {
        self.refused.map(|(call, errno)| (call as usize, errno))
    }

    /// How many threads had a different result.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// What the requester got from the call at which the first of them stopped.
    #[must_use]
    pub const fn expected(&self) -> isize {
        self.expected
    }

    /// The first of them, up to four, in the order in which they ran.
    pub fn threads(&self) -> impl Iterator<Item = Different> {
        let known = self.first.iter().take(self.count());
        known.map(|&(tid, call, value)| Different { tid, call: call as usize, value })
    }
}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.count == 1 { "thread" } else { "threads" };
        write!(f, "{} {threads} had another result than the requester", self.count)?;
        for (index, Different { tid, call, value }) in self.threads().enumerate() {
            let lead = if index == 0 { ":" } else { "," };
            write!(f, "{lead} {tid} got {value} from call {call}")?;
        }
        write!(f, "; the requester got {} from {}", self.expected, self.name)?;
        match self.refused {
            Some((call, errno)) => write!(f, ", and was refused call {call}: {errno}"),
            None => Ok(()),
        }
    }
}

const _: () = assert!(size_of::<Error>() < 128, "errors are returned by value");
