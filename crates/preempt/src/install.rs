//! Installing the handler, for which signal.

use sigctx::handler::{self, Standing};

use crate::error::{InstallError, Unusable};
use crate::fork_lock::ForkLock;
use crate::handler::on_signal;
use crate::signal::{DEFAULT, installed, set_installed};
use crate::thread::watch_forks;

/// One installation at a time.
static INSTALLING: ForkLock = ForkLock::new();

/// How preemption is installed; for [`install_with`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The signal; `None` for the one that is installed, or SIGURG.
    pub signal: Option<i32>,
}

impl Options {
    /// The usual ones: whichever signal is installed, or SIGURG.
    #[must_use]
    pub const fn new() -> Self {
        Self { signal: None }
    }

    /// Sets the signal.
    #[must_use]
    pub const fn signal(mut self, signal: i32) -> Self {
        self.signal = Some(signal);
        self
    }
}

/// Installs the handler of SIGURG, or of the signal that [`install_with`] chose, for the process.
///
/// When it is installed already, looks whether another one has replaced or covered it since; then ours is
/// put on top again, and the other one gets the signal next.
///
/// A signal that was not sent by this crate, or that was merged with ours, goes on to the handler that was
/// installed before; so does ours, since the kernel merges two that are pending into one.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
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

/// As [`install`], with a chosen signal: for a program that uses SIGURG in a way that cannot be shared,
/// such as a `signalfd` that another thread than the main one reads.
///
/// A real-time signal from `libc::SIGRTMIN()` on is a good choice. Where the action from before is
/// the default, which ends the process for most signals, one that a thread of this process sends to a
/// thread (`pthread_kill`) is taken for preemption's, and ends nothing. Unlike SIGURG, such a signal
/// ends a program that is started by `exec` at the moment when it is sent: a task that may be asked
/// to stop uses `threadreg::exec`, or starts programs by `fork` and `exec` of the child.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
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
    watch_forks();
    // In the child of a fork beside an installation, the handler may be there already. Then it is there
    // twice: the second to run finds no more to do than a second signal would.
    let _one = INSTALLING.lock();
    if let Some(installed) = installed() {
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
    // SAFETY: `on_signal` fulfils what a handler must: it does not allocate, lock, panic or
    // touch anything but atomics, constant thread-locals and the delivery.
    let installed = unsafe { handler::install(signal, on_signal, handler::Options::default()) };
    let installed = installed.map_err(InstallError::Refused)?;
    set_installed(installed);
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
