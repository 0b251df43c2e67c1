//! Installing the handler, for which signal.

use sigctx::fork;
use sigctx::handler::{self, Standing};
use sigctx::sync::Mutex;

use crate::error::{InstallError, Unusable};
use crate::handler::on_signal;
use crate::signal::{DEFAULT, installed, set_installed};

/// One installation at a time.
static INSTALLING: Mutex = Mutex::new();

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
    // Fails for want of memory: then a child may find the mutex locked.
    let _ = fork::watch();
    // In the child of a fork beside an installation, the handler may be there already. Then it is there
    // twice: the second to run finds no more to do than a second signal would.
    let _one = INSTALLING.guard(fork::process());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use sigctx::{fork, handler};
    use testkit::{forked, in_child};

    use super::{INSTALLING, on_signal};
    use crate::{Task, install, register_code};

    /// Every instruction is a safe point.
    #[unsafe(link_section = "preemptible")]
    #[inline(never)]
    fn spin(hooks: &AtomicU32) {
        while hooks.load(Relaxed) == 0 {}
    }

    /// F3. At the fork another thread has put the handler in, and has not said so yet: the child puts it in
    /// once more.
    #[test]
    fn a_child_of_a_fork_beside_an_installation_installs_and_preempts() {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        static HOOKS: AtomicU32 = AtomicU32::new(0);
        let name = "install::tests::a_child_of_a_fork_beside_an_installation_installs_and_preempts";
        in_child(name, Duration::from_secs(30), || {
            let (tell, told) = mpsc::channel();
            let (let_go, may_go) = mpsc::channel::<()>();
            let installer = thread::spawn(move || {
                fork::watch().expect("there is memory");
                let _one = INSTALLING.guard(fork::process());
                let options = handler::Options::default();
                // SAFETY: as in `install_with`.
                let installed = unsafe { handler::install(libc::SIGURG, on_signal, options) };
                installed.expect("SIGURG has a handler");
                tell.send(()).expect("the test waits");
                may_go.recv().expect("the test tells");
            });
            told.recv().expect("the installer tells");
            let status = forked(|| {
                install().expect("the lock is free in the child");
                // SAFETY: the section holds `spin` alone, which takes no locks.
                let _code = unsafe { register_code(preemptible_section!()) }.expect("free");
                let _me = threadreg::attach().expect("not attached yet");
                let task = Task::with_hook(|frame| {
                    assert!(frame.is_some(), "it polls nowhere");
                    HOOKS.fetch_add(1, Relaxed);
                });
                let requester = {
                    let task = task.clone();
                    thread::spawn(move || {
                        // At its entry the task polls.
                        testkit::until("it spins", || STARTED.load(Relaxed) == 1);
                        task.request_within(Duration::from_secs(20))
                    })
                };
                let entered = task.enter(|| {
                    STARTED.store(1, Relaxed);
                    spin(&HOOKS);
                });
                entered.expect("enters its task");
                requester.join().expect("no panic").expect("served");
                assert_eq!(HOOKS.load(Relaxed), 1, "one request");
            });
            let_go.send(()).expect("the installer waits");
            installer.join().expect("no panic");
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
