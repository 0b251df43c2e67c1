//! Several calls in one stop.

use core::ffi::{c_long, c_void};
use core::fmt;
use core::marker::PhantomData;

use crate::AllThreads;
use crate::call_name::CallName;
use crate::calls::{Call, Function, MAX_CALLS};
use crate::error::Error;
use crate::outcome::Outcome;

/// Up to [`MAX_CALLS`] calls that all threads make in one stop, in order. It holds them in place, in 4 KiB.
///
/// The calling thread makes them first. At the first one that the kernel refuses it stops, and
/// everybody else makes exactly those before it: whatever happens, all threads end with the same
/// calls in effect. No thread runs its own code between the first call and the last one.
///
/// # Examples
///
/// ```
/// let outcome = allthreads::Batch::new().no_new_privs().apply()?;
/// assert_eq!(outcome.values(), [0]);
/// # Ok::<(), allthreads::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    calls: [Call; MAX_CALLS],
    asked: usize,
    /// The first call with an id that means "unchanged" to the kernel.
    bad_id: Option<usize>,
    /// What the arguments point to.
    pointees: PhantomData<&'a [u8]>,
}

impl Batch<'_> {
    /// A batch without calls.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new() -> Self {
        Self { calls: [Call::NONE; MAX_CALLS], asked: 0, bad_id: None, pointees: PhantomData }
    }

    pub(crate) const fn with(mut self, call: Call) -> Self {
        if self.asked < MAX_CALLS {
            self.calls[self.asked] = call;
        }
        self.asked += 1;
        self
    }

    /// Remembers that the call added next is not to be made.
    pub(crate) const fn refuse_next(mut self) -> Self {
        if self.bad_id.is_none() {
            self.bad_id = Some(self.asked);
        }
        self
    }

    /// Adds a system call.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Safety
    ///
    /// For as long as the batch may be applied:
    ///
    /// 1. The call is sound on every thread of the process, in a signal handler at any point of
    ///    its code, and with all other threads held.
    /// 2. Pointers among the arguments are valid for the call, on all threads at the same time.
    #[must_use]
    pub const unsafe fn call(self, number: c_long, args: [usize; 6]) -> Self {
        self.with(Call::Syscall(number, args))
    }

    /// Adds a system call that the calling thread makes alone: for what belongs to the process, like its
    /// root directory or its umask, and is changed for all threads by one of them.
    ///
    /// It has its place among the others: what comes after it is not made when it is refused. A thread
    /// that has left the others (`unshare(CLONE_FS)`) keeps what it has.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Safety
    ///
    /// For as long as the batch may be applied:
    ///
    /// 1. The call is sound on the thread that applies the batch, with all other threads held.
    /// 2. Pointers among the arguments are valid for the call.
    ///
    /// # Examples
    ///
    /// ```
    /// use allthreads::Batch;
    ///
    /// // SAFETY: no pointers.
    /// let batch = unsafe { Batch::new().call_once(libc::SYS_umask, [0o077, 0, 0, 0, 0, 0]) };
    /// let outcome = batch.no_new_privs().apply()?;
    /// println!("the mask was {:o}", outcome.values()[0]);
    /// # Ok::<(), allthreads::Error>(())
    /// ```
    #[must_use]
    pub const unsafe fn call_once(self, number: c_long, args: [usize; 6]) -> Self {
        self.with(Call::Once(number, args))
    }

    /// Adds a function that every thread runs once; the result counts as 0.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Safety
    ///
    /// As for [`AllThreads::call`], for as long as the batch may be applied.
    #[must_use]
    pub const unsafe fn function(
        self,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Self {
        self.with(Call::Function(function as Function, data))
    }

    /// Makes the calls on every thread, with the default options.
    ///
    /// # Signal safety
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Blocking
    ///
    /// As [`AllThreads::batch`].
    ///
    /// # Errors
    ///
    /// As [`AllThreads::batch`].
    pub fn apply(&self) -> Result<Outcome, Error> {
        AllThreads::new().batch(self)
    }

    /// The calls; an error when there were too many, or one that cannot be meant.
    pub(crate) fn check(&self) -> Result<&[Call], Error> {
        if self.asked > MAX_CALLS {
            return Err(Error::TooManyCalls { calls: self.asked });
        }
        if let Some(call) = self.bad_id {
            return Err(Error::BadId { call, name: CallName::of(&self.calls, call) });
        }
        Ok(self.calls.get(..self.asked).unwrap_or_default())
    }
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.calls.iter().take(self.asked)).finish()
    }
}
