//! The one question between those who want a thread at a safe point and those who can bring it
//! there.

use core::fmt;
use core::time::Duration;

use sigctx::sys::Errno;

use crate::thread_ref::{SignalError, ThreadRef};

/// Brings a running thread to a safe point: interrupts it and has it make a call.
///
/// Stop-the-world protocols ask through this for threads that do not poll; preemption by signal
/// answers.
pub trait Nudge: Send + Sync {
    /// Asks that `thread` make `call` at its next asynchronous safe point.
    ///
    /// Does not wait for it. The call may come late, when whoever asked needs it no more; it is
    /// never made on another thread, and never inside a signal handler. The call has the room of an
    /// injected one, and what is left of the stack beyond
    /// ([`CALLBACK_ROOM`](sigctx::inject::CALLBACK_ROOM)).
    ///
    /// An implementation that interrupts the thread first marks the nudge as on its way, makes a
    /// sequentially consistent fence, and asks `wanted`. If that is false it interrupts nothing and
    /// takes the mark back. So a thread that says that it wants no nudge, and then
    /// [`settle`](Nudge::settle)s, is interrupted by none that it could still mean.
    ///
    /// # Signal safety
    ///
    /// Not required to be async-signal-safe.
    ///
    /// # Errors
    ///
    /// When the thread could not be interrupted. The call may still be made at a poll of the
    /// implementation's own.
    fn nudge(
        &self,
        thread: ThreadRef,
        call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError>;

    /// Called by a thread that may have been nudged, when it has published what makes its requesters'
    /// `wanted` false: waits until no nudge is on its way to it. True when none is; false after
    /// `timeout`, or when the thread has closed itself to nudges (it blocks the signal), so that what
    /// is on its way may interrupt it later.
    ///
    /// Begins with a sequentially consistent fence, the partner of the one in
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
}

/// The call that a nudged thread makes: `function(data)`, outside any handler, on its own stack.
///
/// Whoever has one may hand it to any [`Nudge`], so making one is a promise. It cannot be put
/// together without:
///
/// ```compile_fail,E0451
/// unsafe fn wild(address: usize) {}
/// let call = threadreg::NudgeCall { function: wild, data: 42 };
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NudgeCall {
    function: unsafe fn(usize),
    data: usize,
}

impl NudgeCall {
    /// The call `function(data)`.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Safety
    ///
    /// 1. `function(data)` is sound on every thread that is nudged with this call or a copy of it,
    ///    at any asynchronous safe point of that thread, outside signal handlers.
    /// 2. It stays so forever: a call may come late, more than once, or not at all.
    /// 3. It does not unwind.
    #[must_use]
    pub const unsafe fn new(function: unsafe fn(usize), data: usize) -> Self {
        Self { function, data }
    }

    /// Makes the call. For implementations of [`Nudge`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Safety
    ///
    /// 1. The calling thread is the one that was to be nudged with this call.
    /// 2. It is at an asynchronous safe point and not in a signal handler.
    pub unsafe fn call(self) {
        // SAFETY: place and time by this function's obligations; the rest by those of `new`.
        unsafe { (self.function)(self.data) }
    }

    /// Function and argument, for those who keep them in words of their own. [`NudgeCall::new`]
    /// makes the same call of them again.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn into_parts(self) -> (unsafe fn(usize), usize) {
        (self.function, self.data)
    }
}

/// Why a thread could not be nudged.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NudgeError {
    /// The thread has begun to exit, or is gone.
    Gone,
    /// The thread has not run yet.
    NotStarted,
    /// What interrupts threads is not installed, so that only polls make the call.
    NotInstalled,
    /// The signal found no room in the queue; try again later.
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
