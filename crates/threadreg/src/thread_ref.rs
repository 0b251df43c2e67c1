//! References to threads: their ids and names, pins, signals.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sigctx::fork;
use sigctx::inject::CallStack;
use sigctx::sys::{self, Errno, Tid};

use crate::arena::Claimed;
use crate::cookie::Cookie;
use crate::lookup;
use crate::name::{Label, Name};
use crate::record::{Id, Record};
use crate::registry::ARENA;

/// A thread that is or was registered.
///
/// Two words, which may be kept forever. The record behind them is never freed, and its generation
/// changes when it is used for another thread. So a reference never comes to mean another thread.
///
/// Prints as errors name a thread: `123 "worker"`, without what is not known.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe): no lock, no allocation.
#[derive(Clone, Copy)]
pub struct ThreadRef {
    pub(crate) record: &'static Record,
    pub(crate) generation: u32,
}

impl ThreadRef {
    /// The kernel's id of the thread, or `None` when it has not started yet or has begun to exit.
    ///
    /// The id may be given to another thread right after this returns; see [`ThreadRef::pin`].
    #[must_use]
    pub fn tid(&self) -> Option<Tid> {
        match self.record.tid(self.generation) {
            Id::Known(tid) => Some(tid),
            Id::NotStarted | Id::Gone => None,
        }
    }

    /// The thread's name. Empty when the thread has none, and when its record is another thread's by
    /// now.
    #[must_use]
    pub fn name(&self) -> Name {
        self.record.name(self.generation).unwrap_or_default()
    }

    /// Whether the thread is listed: it may not have started yet, but it has not begun to exit.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.record.is_listed(self.generation)
    }

    /// Keeps the thread from finishing its exit until the guard is dropped.
    ///
    /// While the guard lives the thread's id is its own. The thread goes on running, and may reach its
    /// exit, where it waits with its signals blocked. So a thread that waits for an answer from a
    /// pinned one must look at [`ThreadRef::is_alive`] too. A thread that exits while it holds a pin of
    /// itself waits forever, and so does one whose pin was leaked.
    ///
    /// Costs two atomic operations and does not wait. A pin that comes too late may wake the thread
    /// that exits.
    ///
    /// # Errors
    ///
    /// [`Gone`] when the thread has begun to exit.
    ///
    /// # Examples
    ///
    /// ```
    /// let worker = threadreg::spawn(std::thread::park);
    /// {
    ///     let pinned = worker.thread().pin()?;
    ///     println!("{:?} is the worker until the end of this block", pinned.tid());
    /// }
    /// # worker.unpark();
    /// # worker.join().unwrap();
    /// # Ok::<(), threadreg::Gone>(())
    /// ```
    pub fn pin(&self) -> Result<Pinned, Gone> {
        let process = fork::process();
        // Made only if the pin holds: dropping it takes a pin back.
        let pinned = self.record.pin(self.generation).then(|| Pinned { thread: *self, process });
        pinned.ok_or(Gone { thread: *self })
    }

    /// Sends the thread a signal. The signal reaches this thread or none.
    ///
    /// The one exception is a thread that ended by the raw `exit` system call, past its destructors: it
    /// is still listed, and its id may be another thread's.
    ///
    /// # Errors
    ///
    /// Nothing was sent: [`SignalError::Gone`] when the thread has begun to exit,
    /// [`SignalError::NotStarted`] when it was made but has not run yet, [`SignalError::QueueFull`]
    /// when a real-time signal found no room.
    ///
    /// # References
    ///
    /// `tgkill(2)`; Go's `signalM`.
    #[doc(alias = "signalM")]
    #[doc(alias = "tgkill")]
    pub fn signal(&self, sig: i32) -> Result<(), SignalError> {
        self.pin()?.signal(sig)
    }

    /// Sends the thread a signal that carries `cookie`. Its handler can tell it from other signals:
    /// [`Cookie::came_with`].
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    ///
    /// # References
    ///
    /// `rt_tgsigqueueinfo(2)`.
    pub fn signal_with(&self, sig: i32, cookie: Cookie) -> Result<(), SignalError> {
        self.pin()?.signal_with(sig, cookie)
    }

    /// Like [`signal_with`](Self::signal_with), but tries again while the queue of signals is full.
    ///
    /// It waits 50 microseconds before the second try, and twice as long before each further one, up to
    /// a millisecond. The thread is not pinned between two tries.
    ///
    /// # Blocking
    ///
    /// At most for `timeout`.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal); [`SignalError::QueueFull`] when there was no room within `timeout`.
    pub fn signal_within(
        &self,
        sig: i32,
        cookie: Cookie,
        timeout: Duration,
    ) -> Result<(), SignalError> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            match self.signal_with(sig, cookie) {
                Err(SignalError::QueueFull { .. }) if begin.elapsed() < timeout => {}
                result => return result,
            }
            let left = timeout.saturating_sub(begin.elapsed());
            // A sleep: no thread wakes it.
            let _ = sys::futex_wait(&AtomicU32::new(0), 0, Some(pause.min(left)));
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// The thread's own stack, on which a call may be injected while the thread runs no task.
    ///
    /// It belongs to the record. Its bounds are empty before the thread starts and after it is gone,
    /// and then become those of the record's next thread. An injection on the wrong stack is refused
    /// ([`InjectError::NotOnThisStack`](sigctx::inject::InjectError::NotOnThisStack)).
    #[must_use]
    pub fn call_stack(&self) -> &'static CallStack {
        &self.record.stack
    }

    /// The index of the thread's record in the registry. It is small, and used again when the thread is
    /// gone.
    #[must_use]
    pub fn index(&self) -> usize {
        self.record.index()
    }

    /// The requester that has this thread's task suspended, as it has noted itself. For errors that name
    /// the thread in the way: the answer may be out of date at once.
    #[must_use]
    pub fn suspended_by(&self) -> Option<Tid> {
        let by = self.record.suspended_by.load(Ordering::Relaxed).cast_signed();
        (by != 0 && self.is_alive()).then_some(by)
    }

    /// Notes the requester that has this thread's task suspended; `None`: the task is no longer
    /// suspended. For a crate that suspends tasks.
    pub fn set_suspended_by(&self, requester: Option<Tid>) {
        // The record of a thread that is gone may be another thread's. It may also become so right now;
        // the note is then cleared when the record is freed, and only an error's text depends on it.
        if self.is_alive() {
            let by = requester.unwrap_or(0).cast_unsigned();
            self.record.suspended_by.store(by, Ordering::Relaxed);
        }
    }

    /// How many threads had the record before this one.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }
}

impl PartialEq for ThreadRef {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self.record, other.record) && self.generation == other.generation
    }
}

impl Eq for ThreadRef {}

impl Hash for ThreadRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.record.index(), self.generation).hash(state);
    }
}

impl fmt::Display for ThreadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Label { tid: self.tid(), name: self.name() }.fmt(f)
    }
}

impl fmt::Debug for ThreadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadRef")
            .field("index", &self.index())
            .field("generation", &self.generation)
            .field("tid", &self.tid())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// The calling thread, if it is registered.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe) on every thread, at every moment of its life: it loads two thread-locals
/// without initialiser or destructor. In a library that was
/// opened with `dlopen`, where the first touch of a thread-local allocates, it calls
/// `pthread_getspecific` instead.
///
/// # Examples
///
/// ```
/// assert!(threadreg::current().is_none());
/// let me = threadreg::attach()?;
/// assert_eq!(threadreg::current(), Some(me.thread()));
/// # Ok::<(), threadreg::AttachError>(())
/// ```
#[inline]
#[must_use]
pub fn current() -> Option<ThreadRef> {
    // The thread's own record keeps its generation for as long as the thread has it.
    let (record, generation) = lookup::noted();
    // SAFETY: null, or a record of the arena, which is never freed.
    unsafe { record.as_ref() }.map(|record| ThreadRef { record, generation })
}

/// Keeps a thread from finishing its exit; from [`ThreadRef::pin`].
///
/// A pin that a `fork` copied does nothing in the child, which has no such thread.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), and so is dropping it.
#[must_use = "the thread is pinned only while this lives"]
#[derive(Debug)]
pub struct Pinned {
    thread: ThreadRef,
    process: u32,
}

impl Pinned {
    /// The pinned thread.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// The kernel's id of the thread, which no other thread has while this lives. `None` before the
    /// thread has started, and in the child of a `fork`.
    #[must_use]
    pub fn tid(&self) -> Option<Tid> {
        if self.process != fork::process() {
            return None;
        }
        self.thread.record.pinned_tid()
    }

    /// Sends the pinned thread a signal.
    ///
    /// # Errors
    ///
    /// As [`ThreadRef::signal`]. `Gone` is possible although the thread is pinned: for a thread that
    /// ended by the raw `exit` system call, and for any thread of the parent in the child of a `fork`.
    pub fn signal(&self, sig: i32) -> Result<(), SignalError> {
        self.send(sig, |tid| sys::tgkill(sys::getpid(), tid, sig))
    }

    /// Sends the pinned thread a signal that carries `cookie`; see [`ThreadRef::signal_with`].
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_with(&self, sig: i32, cookie: Cookie) -> Result<(), SignalError> {
        self.send(sig, |tid| cookie.send(tid, sig))
    }

    fn send(&self, sig: i32, by: impl FnOnce(Tid) -> Result<(), Errno>) -> Result<(), SignalError> {
        if self.process != fork::process() {
            return Err(SignalError::Gone);
        }
        let tid = self.tid().ok_or(SignalError::NotStarted)?;
        by(tid).map_err(|errno| match errno {
            Errno::ESRCH => SignalError::Gone,
            Errno::EAGAIN => SignalError::QueueFull { tid, sig },
            errno => SignalError::Kernel { tid, sig, errno },
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.process == fork::process() {
            self.thread.record.unpin();
        }
    }
}

/// The thread has begun to exit, or is gone; from [`ThreadRef::pin`].
///
/// Its id may be another thread's by now, so the error names neither id nor name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The reference to it.
    pub thread: ThreadRef,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, generation) = (self.thread.index(), self.thread.generation());
        write!(f, "the thread is gone (record {index}, generation {generation})")
    }
}

impl core::error::Error for Gone {}

impl From<Gone> for SignalError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Why [`ThreadRef::signal`] sent nothing.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalError {
    /// The thread has begun to exit, or is gone.
    Gone,
    /// The thread was made but has not run yet. It has no id to send to.
    NotStarted,
    /// The queue of real-time signals is full (`RLIMIT_SIGPENDING`). There may be room later.
    QueueFull {
        /// The thread.
        tid: Tid,
        /// The signal.
        sig: i32,
    },
    /// The kernel refused for another reason, such as a number that is no signal.
    Kernel {
        /// The thread.
        tid: Tid,
        /// The signal.
        sig: i32,
        /// The kernel's error.
        errno: Errno,
    },
}

impl fmt::Display for SignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the thread is gone"),
            Self::NotStarted => f.write_str("the thread has not started yet"),
            Self::QueueFull { tid, sig } => {
                write!(f, "no room to queue signal {sig} for thread {tid}")
            }
            Self::Kernel { tid, sig, errno } => {
                write!(f, "cannot send signal {sig} to thread {tid}: {errno}")
            }
        }
    }
}

impl core::error::Error for SignalError {}

/// Walks all registered threads; see [`Threads`].
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), the walk included: it takes no lock and allocates nothing.
///
/// # Examples
///
/// ```
/// let _me = threadreg::attach()?;
/// for thread in threadreg::threads() {
///     println!("{:?} {}", thread.tid(), thread.name());
/// }
/// # Ok::<(), threadreg::AttachError>(())
/// ```
///
/// # References
///
/// Go's `allm`, `runtime/proc.go`.
#[doc(alias = "allm")]
#[must_use = "a walk does nothing until it is iterated"]
pub fn threads() -> Threads {
    Threads { records: ARENA.claimed() }
}

/// A walk over the registered threads; from [`threads`].
///
/// It shows each thread exactly once that was listed before the walk began and stays listed until it
/// ends. Threads that come or go meanwhile may be shown or not. While creation is frozen
/// ([`crate::freeze_creation`]) no spawned thread comes.
#[derive(Clone)]
pub struct Threads {
    records: Claimed<'static>,
}

impl Iterator for Threads {
    type Item = ThreadRef;

    fn next(&mut self) -> Option<ThreadRef> {
        self.records.find_map(|record| {
            let generation = record.listed()?;
            Some(ThreadRef { record, generation })
        })
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// The name of the registered thread that has the id; empty if there is none.
pub(crate) fn registered_name(tid: Tid) -> Name {
    let known = threads().find(|thread| thread.tid() == Some(tid));
    known.map(|thread| thread.name()).unwrap_or_default()
}

impl Label {
    /// The thread that has the id.
    pub(crate) fn of(tid: Tid) -> Self {
        Self { tid: Some(tid), name: registered_name(tid) }
    }
}
