//! A mark on signals, by which a handler tells its own from everybody else's.

use core::fmt;
use core::mem;

use sigctx::SigCtx;
use sigctx::sys::{self, Errno};

/// `si_code` of a signal that carries a cookie: "TR". Negative, as the kernel wants it of those who
/// are not the kernel, and far from the codes that libc gives meanings.
const CODE: i32 = -0x5452;

/// A mark that signals carry; from [`ThreadRef::signal_with`](crate::ThreadRef::signal_with).
///
/// A signal's number alone says little: anybody can send `SIGURG`, and the kernel does. A handler
/// that asks [`came_with`](Self::came_with) first acts only on what its own program asked for, and
/// hands on the rest.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
/// use std::sync::OnceLock;
/// use sigctx::handler::{Delivery, Flow, Options, install};
/// use threadreg::Cookie;
///
/// static OURS: OnceLock<Cookie> = OnceLock::new();
/// static SEEN: AtomicU32 = AtomicU32::new(0);
///
/// fn handler(delivery: &mut Delivery<'_>) -> Flow {
///     if OURS.get().is_some_and(|cookie| cookie.came_with(delivery)) {
///         SEEN.fetch_add(1, Relaxed);
///     }
///     Flow::Resume
/// }
///
/// let cookie = *OURS.get_or_init(|| Cookie::random().unwrap());
/// // SAFETY: the handler touches atomics only.
/// let _installed = unsafe { install(libc::SIGURG, handler, Options::new()) }?;
/// let me = threadreg::attach()?;
/// me.thread().signal(libc::SIGURG)?;
/// me.thread().signal_with(libc::SIGURG, cookie)?;
/// assert_eq!(SEEN.load(Relaxed), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(usize);

impl Cookie {
    /// A cookie that nobody can guess.
    ///
    /// Another process that may signal this one can put any sender into what it sends. What it
    /// cannot know is this number.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    ///
    /// # Errors
    ///
    /// What `getrandom(2)` says.
    pub fn random() -> Result<Self, Errno> {
        let mut value = 0_usize;
        let place = &raw mut value as usize;
        let args = [place, mem::size_of::<usize>(), 0, 0, 0, 0];
        // SAFETY: the kernel writes that many bytes to `value`.
        unsafe { sys::syscall(libc::SYS_getrandom, args) }?;
        Ok(Self(value))
    }

    /// A cookie of the program's choice: an index, a generation, an address.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new(value: usize) -> Self {
        Self(value)
    }

    /// The number itself.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn value(self) -> usize {
        self.0
    }

    /// The cookie that a signal carries, if it carries one and says that it comes from this process.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn of(signal: &SigCtx<'_>) -> Option<Self> {
        let ours = signal.code() == CODE
            && signal.sender().is_some_and(|sender| sender.pid == sys::getpid());
        ours.then(|| Self(signal.value()))
    }

    /// Whether a signal carries this cookie.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn came_with(self, signal: &SigCtx<'_>) -> bool {
        Self::of(signal) == Some(self)
    }

    pub(crate) fn send(self, tid: i32, sig: i32) -> Result<(), Errno> {
        sys::tgsigqueueinfo(sys::getpid(), tid, sig, CODE, self.0)
    }
}

impl fmt::Debug for Cookie {
    /// Without the number, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie")
    }
}
