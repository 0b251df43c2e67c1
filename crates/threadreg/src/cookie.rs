//! A mark on signals, by which a handler tells its own program's from all others.

use core::fmt;
use core::mem;

use sigctx::SigCtx;
use sigctx::sys::{self, Errno, Tid};

/// `si_code` of a signal that carries a cookie: "TR". Negative, as the kernel demands of senders other
/// than itself, and far from the codes to which libc gives a meaning.
const CODE: i32 = -0x5452;

/// A mark that signals carry; from [`ThreadRef::signal_with`](crate::ThreadRef::signal_with).
///
/// A signal's number alone says little: any process of the user can send `SIGURG`, and the kernel does.
/// A handler that asks [`came_with`](Self::came_with) first acts only on the signals that its own
/// program sent, and passes on the others.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
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
    /// Makes a cookie that cannot be guessed.
    ///
    /// Another process that may signal this one can pretend to be any sender. It cannot know this
    /// number.
    ///
    /// # Errors
    ///
    /// As `getrandom(2)`.
    pub fn random() -> Result<Self, Errno> {
        let mut value = 0_usize;
        let place = &raw mut value as usize;
        let args = [place, mem::size_of::<usize>(), 0, 0, 0, 0];
        // SAFETY: the kernel writes that many bytes to `value`.
        unsafe { sys::syscall(libc::SYS_getrandom, args) }?;
        Ok(Self(value))
    }

    /// Makes a cookie of a number of the program's choice: an index, a generation, an address.
    #[must_use]
    pub const fn new(value: usize) -> Self {
        Self(value)
    }

    /// The number itself.
    #[must_use]
    pub const fn value(self) -> usize {
        self.0
    }

    /// The cookie of a signal, if it carries one and says that this process sent it.
    #[must_use]
    pub fn of(signal: &SigCtx<'_>) -> Option<Self> {
        let ours = signal.code() == CODE
            && signal.sender().is_some_and(|sender| sender.pid == sys::getpid());
        ours.then(|| Self(signal.value()))
    }

    /// Whether a signal carries this cookie.
    #[must_use]
    pub fn came_with(self, signal: &SigCtx<'_>) -> bool {
        Self::of(signal) == Some(self)
    }

    pub(crate) fn send(self, tid: Tid, sig: i32) -> Result<(), Errno> {
        sys::tgsigqueueinfo(sys::getpid(), tid, sig, CODE, self.0)
    }
}

impl fmt::Debug for Cookie {
    /// Leaves out the number, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie")
    }
}
