//! Installing the handler: for which signal, and whether ours still gets it.
//!
//! A signal has one action, which everybody in the process may replace. A call can be injected only by
//! the handler that the kernel calls. So a sender looks whether ours is that one, and puts it on top
//! again: the handler that was put over it gets the signal next, as if ours had come later.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use sigctx::handler::{self, Installed, Standing};
use sigctx::sys::{SIG_DFL, SIG_IGN};

use crate::error::{InstallError, Unusable};
use crate::fork;
use crate::signal::on_signal;

/// The signal, unless another is asked for: harmless by default, rarely used, and not special to any
/// debugger or libc. Go chose it for the same reasons (proposal 24543).
const DEFAULT: i32 = libc::SIGURG;

/// How often ours is put on top again without being asked: two that each want to be first would take
/// turns without end. `install` is not counted.
const RESTORES: u32 = 8;

static INSTALLED: OnceLock<Installed> = OnceLock::new();
static INSTALLING: Mutex<()> = Mutex::new(());

/// How preemption is installed; for [`install_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The signal; `None` for the one that is installed, or SIGURG.
    pub signal: Option<i32>,
}

impl Options {
    /// The usual ones: whichever signal is installed, or SIGURG.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new() -> Self {
        Self { signal: None }
    }

    /// Sets the signal.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn signal(mut self, signal: i32) -> Self {
        self.signal = Some(signal);
        self
    }
}

/// Installs the handler of SIGURG, or of the signal that [`install_with`] chose, for the process.
///
/// When it is installed, looks whether somebody has replaced or covered it since; then ours is put on
/// top again, and the other one gets the signal next.
///
/// A signal that somebody else sent, or that was merged with ours, goes on to the handler that was
/// installed before; so does ours, since the kernel merges two that are pending into one.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates and locks.
///
/// # Errors
///
/// The kernel refused the handler.
///
/// # Examples
///
/// ```
/// preempt::install()?;
/// # Ok::<(), preempt::InstallError>(())
/// ```
pub fn install() -> Result<(), InstallError> {
    install_with(Options::new())
}

/// As [`install`], with a signal of the caller's choice: for a program that uses SIGURG itself in a
/// way that cannot be shared, such as a `signalfd` that another thread than the main one reads.
///
/// A real-time signal from `libc::SIGRTMIN()` on is a good choice. Where the action from before is
/// the default, which ends the process for most signals, one that a thread of this process sends to a
/// thread (`pthread_kill`) is taken for preemption's, and ends nothing. Unlike SIGURG, such a signal
/// ends a program that is started by `exec` at the moment when it is sent: a task that may be asked
/// to stop uses `threadreg::exec`, or starts programs by `fork` and `exec` of the child.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates and locks.
///
/// # Errors
///
/// The signal cannot be used, another one is installed, or the kernel refused the handler.
///
/// # Examples
///
/// ```
/// use preempt::{InstallError, Options, Unusable};
///
/// let refused = preempt::install_with(Options::new().signal(libc::SIGSEGV));
/// assert!(matches!(refused, Err(InstallError::Unusable { why: Unusable::Synchronous, .. })));
/// preempt::install_with(Options::new().signal(libc::SIGRTMIN() + 3))?;
/// preempt::install()?; // as it is
/// # Ok::<(), InstallError>(())
/// ```
pub fn install_with(options: Options) -> Result<(), InstallError> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(installed) = INSTALLED.get() {
        let signal = installed.signal();
        return match options.signal {
            Some(asked) if asked != signal => {
                Err(InstallError::OtherSignal { asked, installed: signal })
            }
            _ if installed.standing() == Standing::First => Ok(()),
            _ => installed.restore().map(drop).map_err(InstallError::Refused),
        };
    }
    let signal = options.signal.unwrap_or(DEFAULT);
    check(signal)?;
    // A thread that inherited a mask with the signal in it could not be interrupted.
    threadreg::never_block(signal);
    fork::watch();
    // SAFETY: `on_signal` fulfils what a handler must: it does not allocate, lock, panic or
    // touch anything but atomics, constant thread-locals and the delivery.
    let installed = unsafe { handler::install(signal, on_signal, handler::Options::default()) };
    let installed = installed.map_err(InstallError::Refused)?;
    let set = INSTALLED.set(installed);
    debug_assert!(set.is_ok(), "installed twice, under a lock");
    Ok(())
}

/// Whether a signal can be preemption's.
fn check(signal: i32) -> Result<(), InstallError> {
    let why = match signal {
        libc::SIGKILL | libc::SIGSTOP => Unusable::Uncatchable,
        libc::SIGSEGV
        | libc::SIGBUS
        | libc::SIGFPE
        | libc::SIGILL
        | libc::SIGTRAP
        | libc::SIGSYS
        | libc::SIGABRT => Unusable::Synchronous,
        _ if signal < 1 || signal > libc::SIGRTMAX() => Unusable::NoSignal,
        _ if (FIRST_OF_LIBC..libc::SIGRTMIN()).contains(&signal) => Unusable::Libc,
        _ => return Ok(()),
    };
    Err(InstallError::Unusable { signal, why })
}

/// The kernel's first real-time signal; libc keeps the first few for itself.
const FIRST_OF_LIBC: i32 = 32;

/// The signal: the one that is installed, or will be by default. Async-signal-safe.
pub(crate) fn number() -> i32 {
    INSTALLED.get().map_or(DEFAULT, Installed::signal)
}

/// Whether the handler is installed. A signal sent before would be ignored, and its mark would stay.
pub(crate) fn is_installed() -> bool {
    INSTALLED.get().is_some()
}

/// Whether no function stands behind ours, but the default action or "ignore". Async-signal-safe.
pub(crate) fn is_last() -> bool {
    INSTALLED.get().is_none_or(|at| matches!(at.previous().handler, SIG_DFL | SIG_IGN))
}

/// What stands between the kernel and our handler, if anything does.
pub(crate) fn obstacle() -> Option<Standing> {
    INSTALLED.get().map(Installed::standing).filter(|standing| *standing != Standing::First)
}

/// A sender, before it sends: puts ours on top again where it was replaced, or where a handler covers it
/// that did not before, or the thread was seen to be `deaf`.
pub(crate) fn look_after(deaf: impl FnOnce() -> bool) {
    static RESTORED: AtomicU32 = AtomicU32::new(0);
    static LAST_COVER: AtomicUsize = AtomicUsize::new(0);

    let is_lost = match obstacle() {
        None => false,
        // Once each: another copy of the crates does the same, and hands signals on in either order.
        // Relaxed: whoever sees another's value puts ours on top once more.
        Some(Standing::Covered { by }) => {
            LAST_COVER.swap(by.get(), Ordering::Relaxed) != by.get() || deaf()
        }
        Some(_) => true,
    };
    // Relaxed: a count.
    if is_lost && RESTORED.fetch_add(1, Ordering::Relaxed) < RESTORES {
        // The kernel has taken the same before; if not now, the error of a late stop says who covers.
        let _ = INSTALLED.get().map(Installed::restore);
    }
}
