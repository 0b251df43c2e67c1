//! References to threads: who, what to call it, pin it, signal it.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sigctx::inject::CallStack;
use sigctx::sys::{self, Errno};

use crate::arena::Claimed;
use crate::cookie::Cookie;
use crate::lookup;
use crate::name::Name;
use crate::record::Record;
use crate::registry::{self, ARENA};

/// A thread that is or was registered.
///
/// Two words. May be kept forever: the record behind it is never freed, and when it is used for
/// another thread its generation changes, so a reference never silently becomes one to another
/// thread.
#[derive(Clone, Copy)]
pub struct ThreadRef {
    pub(crate) record: &'static Record,
    pub(crate) generation: u32,
}

impl ThreadRef {
    /// The kernel's id of the thread, or `None` when it has not started yet or has begun to exit.
    ///
    /// The id may be given to another thread right after this returns; see [`ThreadRef::pin`].
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn tid(&self) -> Option<i32> {
        self.record.tid(self.generation).filter(|&tid| tid != 0)
    }

    /// The thread's name, or the empty name when it had none or is gone.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn name(&self) -> Name {
        self.record.name(self.generation).unwrap_or_default()
    }

    /// Whether the thread is listed: it may not have started yet, but it has not begun to exit.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.record.is_listed(self.generation)
    }

    /// Keeps the thread from finishing its exit until the guard is dropped.
    ///
    /// While the guard lives the thread's id is its own. The thread goes on running, and may even
    /// reach its exit, where it waits with its signals blocked: so whoever waits for an answer from
    /// a pinned thread must look at [`ThreadRef::is_alive`] too. A thread that exits while it holds
    /// a pin of itself waits forever, and so does one whose pin was leaked.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe. Two atomic operations, no waiting; a pin that comes too late may wake the
    /// thread that exits.
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
        let forks = registry::forks();
        // Made only if the pin holds: dropping it takes a pin back.
        let pinned = self.record.pin(self.generation).then(|| Pinned { thread: *self, forks });
        pinned.ok_or(Gone { thread: *self })
    }

    /// Sends the thread a signal. It reaches this thread or none.
    ///
    /// The one exception is a thread that ended by the raw `exit` system call, past its destructors:
    /// nobody told the registry, and its id may be another thread's.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe: pins, sends, unpins.
    ///
    /// # Errors
    ///
    /// [`SignalError::Gone`] when the thread has begun to exit, [`SignalError::NotStarted`] when it
    /// was made but has not run yet, [`SignalError::QueueFull`] when a real-time signal found no
    /// room. Nothing was sent then.
    ///
    /// # References
    ///
    /// `tgkill(2)`.
    pub fn signal(&self, sig: i32) -> Result<(), SignalError> {
        self.pin()?.signal(sig)
    }

    /// Sends the thread a signal that carries `cookie`, by which its handler knows it for this
    /// process's own: [`Cookie::came_with`].
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
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

    /// Like [`signal_with`](Self::signal_with), but tries again while the queue of signals is full:
    /// after 50 microseconds first, then twice as long each time, up to a millisecond.
    ///
    /// The thread is not pinned between two tries.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Blocking
    ///
    /// At most for `limit`.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal); [`SignalError::QueueFull`] when there was no room in time.
    pub fn signal_within(
        &self,
        sig: i32,
        cookie: Cookie,
        limit: Duration,
    ) -> Result<(), SignalError> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            match self.signal_with(sig, cookie) {
                Err(SignalError::QueueFull { .. }) if begin.elapsed() < limit => {}
                result => return result,
            }
            let left = limit.saturating_sub(begin.elapsed());
            // Nobody wakes it.
            let _ = sys::futex_wait(&AtomicU32::new(0), 0, Some(pause.min(left)));
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// The stack that the thread runs on when it runs no task: where a call may be injected.
    ///
    /// It is the record's: its bounds are empty before the thread starts and after it is gone, and
    /// those of the next thread that the record is used for. An injection on the wrong one is refused
    /// ([`InjectError::NotOnThisStack`](sigctx::inject::InjectError::NotOnThisStack)).
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn call_stack(&self) -> &'static CallStack {
        &self.record.stack
    }

    /// The record's place in the registry: small, and used again when the thread is gone.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn index(&self) -> usize {
        self.record.index()
    }

    /// Who has the thread's task suspended, by what the suspender said: the id of a thread. For
    /// errors that name who is in the way; it may be old by the time it is looked at.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn suspended_by(&self) -> Option<i32> {
        let by = self.record.suspended_by.load(Ordering::Relaxed) as i32;
        (by != 0 && self.is_alive()).then_some(by)
    }

    /// Says who has the thread's task suspended; `None` when nobody has any more. For a crate that
    /// suspends tasks.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    pub fn set_suspended_by(&self, suspender: Option<i32>) {
        // The record of one that is gone may be another thread's. It may also become so right now;
        // that is undone when the record is freed, and nothing but an error's text depends on it.
        if self.is_alive() {
            let by = suspender.unwrap_or(0).cast_unsigned();
            self.record.suspended_by.store(by, Ordering::Relaxed);
        }
    }

    /// How many owners the record had before this thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
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
/// Async-signal-safe, on every thread at every moment of its life: a load of a thread-local without
/// initialiser or destructor, and one of the thread's own record. In a library that was opened with
/// `dlopen`, where the first touch of a thread-local allocates, it asks `pthread_getspecific`
/// instead, which does not.
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
    // SAFETY: null, or a record of the arena, which is never freed.
    let record = unsafe { lookup::record().as_ref() }?;
    // The thread's own record keeps its generation for as long as the thread-local points to it.
    let (generation, _) = record.state();
    Some(ThreadRef { record, generation })
}

/// Keeps a thread from finishing its exit; from [`ThreadRef::pin`].
///
/// Made before a `fork` and dropped in the child, it does nothing: the child has no such thread.
#[must_use = "the thread is pinned only while this lives"]
#[derive(Debug)]
pub struct Pinned {
    thread: ThreadRef,
    forks: u32,
}

impl Pinned {
    /// The pinned thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// The kernel's id of the thread, and of no other while this lives; `None` before it started, and
    /// in the child of a `fork`.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn tid(&self) -> Option<i32> {
        if self.forks != registry::forks() {
            return None;
        }
        self.thread.record.pinned_tid()
    }

    /// Sends the pinned thread a signal.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Errors
    ///
    /// As [`ThreadRef::signal`]. `Gone` is possible all the same: a thread that was registered and
    /// ended without the registry being told, and any thread of the parent in the child of a
    /// `fork`.
    pub fn signal(&self, sig: i32) -> Result<(), SignalError> {
        self.send(sig, |tid| sys::tgkill(sys::getpid(), tid, sig))
    }

    /// Sends the pinned thread a signal that carries `cookie`; see [`ThreadRef::signal_with`].
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_with(&self, sig: i32, cookie: Cookie) -> Result<(), SignalError> {
        self.send(sig, |tid| cookie.send(tid, sig))
    }

    fn send(&self, sig: i32, by: impl FnOnce(i32) -> Result<(), Errno>) -> Result<(), SignalError> {
        if self.forks != registry::forks() {
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
        if self.forks == registry::forks() {
            self.thread.record.unpin();
        }
    }
}

/// The thread has begun to exit, or is gone; from [`ThreadRef::pin`].
///
/// Its id may be another thread's by now, and its name with it, so neither is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// What referred to it.
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
    /// The thread was made but has not run yet; it has no id to send to.
    NotStarted,
    /// The queue of real-time signals is full (`RLIMIT_SIGPENDING`); later there may be room.
    QueueFull {
        /// The thread.
        tid: i32,
        /// The signal.
        sig: i32,
    },
    /// The kernel refused for another reason, such as a number that is no signal.
    Kernel {
        /// The thread.
        tid: i32,
        /// The signal.
        sig: i32,
        /// What the kernel said.
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
/// Async-signal-safe, the walk included: it takes no lock and allocates nothing.
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
#[must_use = "a walk does nothing until it is iterated"]
pub fn threads() -> Threads {
    Threads { records: ARENA.claimed() }
}

/// Walk over the registered threads.
///
/// Each thread that was listed before the walk began and is listed until it ends is shown exactly
/// once. Others may be shown or not. While creation is frozen ([`crate::freeze_creation`]) no
/// spawned thread can be among the "others" that come.
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
