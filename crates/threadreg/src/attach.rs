//! Registration of a thread that was made without this crate.

use core::fmt;
use core::marker::PhantomData;
use std::cell::Cell;

use sigctx::altstack::{AltStack, AltStackError};
use sigctx::sys::{self, Tid};

use crate::membership::Membership;
use crate::name::Name;
use crate::registry::{self, ARENA};
use crate::thread_ref::{self, ThreadRef};
use crate::{mask, stack};

thread_local! {
    // The membership lives here and not in the guard. So a thread that ends without dropping its guard
    // (leaked, `pthread_exit`) leaves the registry all the same, and its id does not outlive it there.
    static HELD: Held = const { Held { membership: Cell::new(None), guards: Cell::new(0) } };
}

/// Cells: no code that a nudge runs in between finds anything borrowed.
struct Held {
    /// None on a thread of [`spawn`](crate::spawn), which has it elsewhere.
    membership: Cell<Option<Membership>>,
    /// How many guards the thread has. The last one ends the membership.
    guards: Cell<u32>,
}

impl Held {
    fn end(&self) {
        if let Some(membership) = self.membership.take() {
            mask::restore(&membership.end());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

/// Registers the calling thread, which was made without this crate: the main thread, a thread of a C
/// library or of a thread pool.
///
/// The thread is listed under the name that the kernel has for it, and gets a large alternate signal
/// stack. It is registered until the guard is dropped, and those of [`ensure_attached`], or until it ends.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates.
///
/// # Blocking
///
/// Does not wait. A freeze ([`freeze_creation`](crate::freeze_creation)) does not hold it up, since no
/// thread is made.
///
/// # Errors
///
/// [`AttachError::AlreadyAttached`] when the thread is registered already, by this function or by
/// [`spawn`](crate::spawn); the other variants of [`AttachError`] when it cannot be registered.
///
/// # Examples
///
/// ```
/// let me = threadreg::attach()?;
/// assert!(threadreg::threads().any(|thread| thread == me.thread()));
/// # Ok::<(), threadreg::AttachError>(())
/// ```
pub fn attach() -> Result<Attached, AttachError> {
    match thread_ref::current() {
        Some(already) => Err(AttachError::AlreadyAttached { thread: already }),
        None => begin(),
    }
}

/// Keeps the calling thread registered until the guard is dropped: registers it as [`attach`] does, unless it is
/// registered already.
///
/// For libraries that need a registered thread, and do not know what else on it does. The order in which guards are
/// dropped is of no matter: the last one ends the registration. That of a thread from [`spawn`](crate::spawn) ends with
/// the thread.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates.
///
/// # Blocking
///
/// Does not wait, as [`attach`].
///
/// # Errors
///
/// As [`attach`], but for [`AttachError::AlreadyAttached`].
///
/// # Examples
///
/// ```
/// let one = threadreg::ensure_attached()?;
/// let other = threadreg::ensure_attached()?;
/// drop(one);
/// assert_eq!(threadreg::current(), Some(other.thread()));
/// drop(other);
/// assert_eq!(threadreg::current(), None);
/// # Ok::<(), threadreg::AttachError>(())
/// ```
///
/// # References
///
/// JNI's `AttachCurrentThread`, which does nothing on a thread that is attached
#[doc(alias = "AttachCurrentThread")]
pub fn ensure_attached() -> Result<Attached, AttachError> {
    let Some(thread) = thread_ref::current() else { return begin() };
    // On an error the thread-locals are gone: it is a thread of `spawn`, which ends its registration itself.
    let _ = HELD.try_with(|held| held.guards.set(held.guards.get() + 1));
    Ok(Attached { thread, not_send: PhantomData })
}

/// The thread is not registered.
fn begin() -> Result<Attached, AttachError> {
    registry::init();
    // Also registers the destructor, which allocates, while signals are still open.
    HELD.try_with(|_| ()).map_err(|_| AttachError::Exiting { tid: sys::gettid() })?;
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
    let membership =
        Membership::begin(record, generation, tid, stack::bounds(tid), Some(alternate));
    let thread = membership.thread();
    HELD.with(|held| {
        held.guards.set(1);
        held.membership.set(Some(membership));
    });
    Ok(thread)
}

/// The calling thread's name as the kernel has it.
fn kernel_name() -> Name {
    let mut comm = [0_u8; 16];
    let args = [libc::PR_GET_NAME as usize, comm.as_mut_ptr().expose_provenance(), 0, 0, 0, 0];
    // SAFETY: PR_GET_NAME writes 16 bytes to its second argument, which has room for them.
    let result = unsafe { sys::syscall(libc::SYS_prctl, args) };
    // Cannot fail with a valid address; if it did, the thread would have no name.
    result.map_or(Name::default(), |_| Name::from_bytes(&comm))
}

/// The registration of the calling thread, which ends when the last of these is dropped; from [`attach`] and
/// [`ensure_attached`].
///
/// Bound to its thread. The registration of a leaked guard ends with the thread, before or among the
/// destructors of its thread-locals.
///
/// # Signal safety
///
/// None is async-signal-safe (AS-Unsafe lock heap), including the drop, except
/// [`thread`](Self::thread).
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
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Ends the registration if the thread has no other guard; the same as dropping the guard.
    ///
    /// # Blocking
    ///
    /// If it ends the registration, until no [`Pinned`](crate::Pinned) of the thread is left.
    pub fn detach(self) {
        drop(self);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // On an error the thread-locals are gone, and the registration with them.
        let _ = HELD.try_with(|held| {
            // A later registration of the same thread is not this guard's.
            if thread_ref::current() == Some(self.thread) {
                let others = held.guards.get() - 1;
                held.guards.set(others);
                if others == 0 {
                    held.end();
                }
            }
        });
    }
}

/// [`attach`] did not register the thread.
#[non_exhaustive]
#[derive(Debug)]
pub enum AttachError {
    /// The thread is registered already.
    AlreadyAttached {
        /// The thread.
        thread: ThreadRef,
    },
    /// The thread is destroying its thread-locals, so nothing could end the registration.
    Exiting {
        /// The thread.
        tid: Tid,
    },
    /// The thread could not be given an alternate signal stack.
    AltStack {
        /// The thread.
        tid: Tid,
        /// The cause.
        error: AltStackError,
    },
    /// The registry has as many threads as Linux can have.
    Full {
        /// The thread.
        tid: Tid,
    },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyAttached { thread } => write!(f, "thread {thread} is registered already"),
            Self::Exiting { tid } => write!(f, "thread {tid} is exiting"),
            Self::AltStack { tid, .. } => {
                write!(f, "no alternate signal stack for thread {tid}")
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
