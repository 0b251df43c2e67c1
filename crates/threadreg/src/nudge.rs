//! The interface between a crate that wants a thread at a safe point and a crate that can bring it
//! there.

use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::time::Duration;

use sigctx::frames::Sighting;
use sigctx::inject::Frame;
use sigctx::sys::Errno;

use crate::thread_ref::{SignalError, ThreadRef};

/// Brings a running thread to a safe point: interrupts it and has it make a call.
///
/// A stop-the-world protocol calls this for threads that do not poll; preemption by signals implements
/// it.
#[doc(alias = "preemptone")]
pub trait Nudge: Send + Sync {
    /// Asks that `thread` make `call` at its next asynchronous safe point.
    ///
    /// It does not wait for the call. The call may come late, when the requester needs it no more. It
    /// is never made on another thread, and never inside a signal handler. It has the room of an
    /// injected call ([`CALLBACK_ROOM`](sigctx::inject::CALLBACK_ROOM)), and what is left of the stack
    /// beyond.
    ///
    /// An implementation that interrupts the thread first marks the nudge as on its way, makes a
    /// sequentially consistent fence, and then calls `wanted`. If that returns false it interrupts
    /// nothing and takes the mark back. So a thread that first makes `wanted` false, and then
    /// [`settle`](Nudge::settle)s, is not interrupted by a nudge after that.
    ///
    /// # Signal safety
    ///
    /// Not required to be async-signal-safe.
    ///
    /// # Errors
    ///
    /// [`NudgeError`] when the thread could not be interrupted. The call may still be made at a poll of
    /// the implementation's own.
    fn nudge(
        &self,
        thread: ThreadRef,
        call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError>;

    /// Waits until no nudge is on its way to the calling thread.
    ///
    /// A thread that may have been nudged calls this when it has published what makes its requesters'
    /// `wanted` false. The result is true when no nudge is on its way. It is false after `timeout`, or
    /// when the thread blocks the signal, so that a nudge on its way may interrupt it later.
    ///
    /// It begins with a sequentially consistent fence, the partner of the one in
    /// [`nudge`](Nudge::nudge).
    ///
    /// # Signal safety
    ///
    /// Not required to be async-signal-safe.
    ///
    /// # Blocking
    ///
    /// At most about `timeout`.
    fn settle(&self, timeout: Duration) -> bool;

    /// What came of the last nudge that `thread` was sent. For messages: it may be older than that by the time it
    /// is read.
    ///
    /// The default knows nothing.
    ///
    /// # Signal safety
    ///
    /// Not required to be async-signal-safe.
    fn outcome(&self, thread: ThreadRef) -> NudgeOutcome {
        let _ = thread;
        NudgeOutcome::Unknown
    }

    /// Where a nudge found `thread` last, if that is less than `within` ago. For messages.
    ///
    /// The default knows nothing.
    ///
    /// # Signal safety
    ///
    /// Not required to be async-signal-safe.
    fn sighting(&self, thread: ThreadRef, within: Duration) -> Option<Sighting> {
        let _ = (thread, within);
        None
    }
}

thread_local! {
    /// The frame of the call that the thread is in.
    static INTERRUPTED: Cell<Option<NonNull<Frame<'static>>>> = const { Cell::new(None) };
}

/// What came of a nudge, as far as the thread that sent it can know.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NudgeOutcome {
    /// Nothing is known, or the thread made the call.
    Unknown,
    /// It was sent, and its handler has not run since.
    NotHandled,
    /// The thread blocks the signal.
    SignalBlocked,
    /// Another handler was installed over the nudge's.
    Covered {
        /// The address of that handler.
        by: usize,
    },
    /// The signal was set to its default action, or to be ignored.
    Replaced,
    /// The handler ran, and found the thread outside of code that may be interrupted.
    OutsideCode {
        /// Where.
        pc: usize,
    },
    /// The handler ran, and found that the thread has forbidden to be interrupted.
    Disabled {
        /// Where.
        pc: usize,
    },
    /// The handler ran, and could not interrupt the thread for another reason.
    Refused {
        /// Where.
        pc: usize,
    },
}

/// The call that a nudged thread makes: `function(data)`, outside any handler, on its own stack.
///
/// Code that has one may pass it to any [`Nudge`], so making one is a promise (`unsafe`). Safe code
/// cannot put one together:
///
/// ```compile_fail,E0451
/// unsafe fn wild(address: usize) {}
/// let call = threadreg::NudgeCall { function: wild, data: 42 };
/// ```
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe) except [`call`](Self::call).
#[derive(Clone, Copy, Debug)]
pub struct NudgeCall {
    function: unsafe fn(usize),
    data: usize,
}

impl NudgeCall {
    /// The call `function(data)`.
    ///
    /// # Safety
    ///
    /// 1. `function(data)` is sound on every thread that is nudged with this call or a copy of it,
    ///    at any asynchronous safe point of that thread, outside signal handlers.
    /// 2. That stays so forever: a call may come late, more than once, or not at all.
    /// 3. It does not unwind.
    #[must_use]
    pub const unsafe fn new(function: unsafe fn(usize), data: usize) -> Self {
        Self { function, data }
    }

    /// Makes the call. For implementations of [`Nudge`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe): it runs the caller's function.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the one that was to be nudged with this call.
    /// 2. It is at an asynchronous safe point and not in a signal handler.
    pub unsafe fn call(self) {
        // SAFETY: place and time by the obligations of this function; the rest by those of `new`.
        unsafe { (self.function)(self.data) }
    }

    /// Makes the call as [`NudgeCall::call`] does, in an injected call: at the instruction that `frame` belongs to.
    /// The call finds it by [`NudgeCall::interrupted`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe): it runs the caller's function.
    ///
    /// # Safety
    ///
    /// As [`NudgeCall::call`]. The frame, if there is one, is that of an injected call which has not returned, and is
    /// not written while [`NudgeCall::interrupted`] reads it.
    pub unsafe fn call_at(self, frame: Option<NonNull<Frame<'_>>>) {
        let before = INTERRUPTED.replace(frame.map(NonNull::cast));
        // SAFETY: the caller's obligation. It comes back on this thread, and does not unwind.
        unsafe { self.call() };
        INTERRUPTED.set(before);
    }

    /// In a call: what was interrupted for it. `None` at a poll, and where no call is made.
    pub fn interrupted<R>(read: impl FnOnce(Option<&Frame<'_>>) -> R) -> R {
        // SAFETY: the obligation of `call_at`, which has not returned on this thread.
        read(INTERRUPTED.get().map(|frame| unsafe { frame.as_ref() }))
    }

    /// Function and argument, to be kept in two words. [`NudgeCall::new`] makes the same call of them
    /// again.
    #[must_use]
    pub const fn into_parts(self) -> (unsafe fn(usize), usize) {
        (self.function, self.data)
    }
}

/// A thread could not be nudged.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NudgeError {
    /// The thread has begun to exit, or is gone.
    Gone,
    /// The thread has not run yet.
    NotStarted,
    /// No signal handler is installed that interrupts threads. Only polls make the call.
    NotInstalled,
    /// The signal found no room in the queue. There may be room later.
    QueueFull,
    /// The kernel refused for another reason.
    Kernel(Errno),
}

impl From<SignalError> for NudgeError {
    fn from(error: SignalError) -> Self {
        match error {
            SignalError::Gone => Self::Gone,
            SignalError::NotStarted => Self::NotStarted,
            SignalError::QueueFull { .. } => Self::QueueFull,
            SignalError::Kernel { errno, .. } => Self::Kernel(errno),
        }
    }
}

impl fmt::Display for NudgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the thread is gone"),
            Self::NotStarted => f.write_str("the thread has not started yet"),
            Self::NotInstalled => f.write_str("no handler is installed to interrupt threads"),
            Self::QueueFull => f.write_str("no room to queue the signal"),
            Self::Kernel(errno) => write!(f, "cannot signal the thread: {errno}"),
        }
    }
}

impl core::error::Error for NudgeError {}
