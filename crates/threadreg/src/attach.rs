//! Registration of a thread that somebody else made.

use core::fmt;
use core::marker::PhantomData;
use std::cell::RefCell;

use sigctx::altstack::{AltStack, AltStackError};
use sigctx::sys;

use crate::mask;
use crate::membership::Membership;
use crate::name::Name;
use crate::registry::{self, ARENA};
use crate::thread_ref::{self, ThreadRef};

thread_local! {
    // The thread's membership lives here and not in the guard, so that a thread that ends without
    // dropping its guard (leaked, `pthread_exit`) leaves the registry all the same: its id must not
    // outlive it there.
    static MEMBERSHIP: RefCell<Held> = const { RefCell::new(Held(None)) };
}

struct Held(Option<Membership>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(membership) = self.0.take() {
            mask::restore(&membership.end());
        }
    }
}

/// Registers the calling thread, which was made by someone else: the main thread, a C library's, a
/// thread pool's.
///
/// The thread is listed under the name the kernel has for it, gets a large alternate signal stack,
/// and is registered until the guard is dropped, or until it ends.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates.
///
/// # Blocking
///
/// Does not wait; in particular not for [`freeze_creation`](crate::freeze_creation), since no
/// thread is made.
///
/// # Errors
///
/// [`AttachError::AlreadyAttached`] when the thread is registered already, be it by this function
/// or by [`spawn`](crate::spawn).
///
/// # Examples
///
/// ```
/// let me = threadreg::attach()?;
/// assert!(threadreg::threads().any(|thread| thread == me.thread()));
/// # Ok::<(), threadreg::AttachError>(())
/// ```
pub fn attach() -> Result<Attached, AttachError> {
    registry::init();
    if let Some(already) = thread_ref::current() {
        return Err(AttachError::AlreadyAttached { thread: already });
    }
    // Also registers the destructor, with signals still open: it allocates.
    MEMBERSHIP.try_with(|_| ()).map_err(|_| AttachError::Exiting { tid: sys::gettid() })?;
    let mask = mask::block_all();
    let result = join();
    mask::restore(&mask);
    let thread = result?;
    Ok(Attached { thread, not_send: PhantomData })
}

fn join() -> Result<ThreadRef, AttachError> {
    let tid = sys::gettid();
    let alternate = AltStack::install().map_err(|error| AttachError::AltStack { tid, error })?;
    let record = ARENA.claim().ok_or(AttachError::Full { tid })?;
    let generation = record.prepare(&kernel_name());
    record.publish();
    let membership = Membership::begin(record, generation, Some(alternate));
    let thread = membership.thread();
    MEMBERSHIP.with(|held| held.borrow_mut().0 = Some(membership));
    Ok(thread)
}

/// The calling thread's name as the kernel has it.
fn kernel_name() -> Name {
    let mut comm = [0_u8; 16];
    let args = [libc::PR_GET_NAME as usize, comm.as_mut_ptr().expose_provenance(), 0, 0, 0, 0];
    // SAFETY: PR_GET_NAME writes 16 bytes to its second argument, which has room for them.
    let result = unsafe { sys::syscall(libc::SYS_prctl, args) };
    // Cannot fail with a good address; a thread without name is no worse off.
    result.map_or(Name::default(), |_| Name::from_bytes(&comm))
}

/// Registration of the calling thread, from [`attach`]; dropping it ends it.
///
/// Bound to its thread. A guard that is leaked ends when the thread does, before or among the
/// destructors of its thread-locals.
///
/// # Aborts
///
/// When it is dropped inside a call that `sigctx` has injected on this thread's own stack.
#[must_use = "the thread is registered only while this lives"]
#[derive(Debug)]
pub struct Attached {
    thread: ThreadRef,
    not_send: PhantomData<*mut ()>,
}

impl Attached {
    /// The calling thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Ends the registration; the same as dropping the guard.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe.
    ///
    /// # Blocking
    ///
    /// Waits until no [`Pinned`](crate::Pinned) of the thread is left.
    pub fn detach(self) {
        drop(self);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // An error means that the thread-locals are gone, and the registration with them.
        let _ = MEMBERSHIP.try_with(|held| {
            let mut held = held.borrow_mut();
            // A guard whose thread-local was taken apart and registered anew is not this one's.
            if let Some(membership) = held.0.take_if(|m| m.thread() == self.thread) {
                mask::restore(&membership.end());
            }
        });
    }
}

/// Why [`attach`] did not register the thread.
#[non_exhaustive]
#[derive(Debug)]
pub enum AttachError {
    /// The thread is registered.
    AlreadyAttached {
        /// As what.
        thread: ThreadRef,
    },
    /// The thread is destroying its thread-locals; there would be nobody to end the registration.
    Exiting {
        /// The thread.
        tid: i32,
    },
    /// The alternate signal stack could not be had.
    AltStack {
        /// The thread.
        tid: i32,
        /// Why.
        error: AltStackError,
    },
    /// The registry has as many threads as Linux can have.
    Full {
        /// The thread.
        tid: i32,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyAttached { thread } => write!(
                f,
                "thread {} ({}) is registered already",
                thread.tid().unwrap_or_default(),
                thread.name()
            ),
            Self::Exiting { tid } => write!(f, "thread {tid} is exiting"),
            Self::AltStack { tid, error } => {
                write!(f, "no alternate signal stack for thread {tid}: {error}")
            }
            Self::Full { tid } => write!(f, "no room in the registry for thread {tid}"),
        }
    }
}

impl core::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::AltStack { error, .. } => Some(error),
            _ => None,
        }
    }
}
