//! Handlers that share a signal with the action that it had before.
//!
//! One assembly entry is the kernel's handler for every signal installed here. It calls
//! `dispatch`, which offers the signal to the registered handlers, newest first, and at the end to
//! the previous actions, those that the kernel had when ours was put in, latest first:
//!
//! ```text
//!  kernel -> entry -> newest handler --Chain--> older handler --Chain--> previous actions
//!                        |                          |                     |  without SA_ONSTACK:
//!                        +--Resume--> return        +--Inject--> pivot <--+  after all of these
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `SignalEntry::head`, `Registration::next` | `install`, `uninstall`, under the lock | `dispatch` | release / acquire | I1, I2 |
//! | `SignalEntry::newest`, `SignalEntry::latest` | `install`, `restore`, under the lock | `dispatch` | release / acquire | I1, I3 |
//! | `Previous::action` | handlers: `SA_RESETHAND`, an action that resets itself | `dispatch` | release / acquire | I4 |
//! | `Previous::time` | `install`, `restore`, under the lock | `dispatch` | relaxed | two words: an order that is wrong once does no harm |
//!
//! - **I1** A registration and a `Previous` are never freed or changed but for the words in the table:
//!   a handler may hold one for as long as the process lives.
//! - **I2** `head` is published before the kernel is told, so that the entry always finds a handler.
//! - **I3** A previous action is in the list before the kernel is told of ours, and stays there: the
//!   entry can still run after an uninstall, and hands the signal on. The list begins anew when a first
//!   handler is installed, and when the default or "ignore" was set in the place of ours.
//! - **I4** `action` is a static, or was leaked by `install`.
//!
//! **Circles**: a handler that chains to ours may be installed over it, and ours over that one again. Each
//! signal's way is kept in its passage (`chain.rs`), so that each handler gets it once. **Unloading**:
//! the library with the entry, and that with the handler, are kept loaded ([`module`]).
//! **Exit**: nothing to do. **fork**: the child has the same handlers, and can install more: the lock is
//! free in it, also when another thread was installing. **Nesting**: while a
//! handler runs its own signal is blocked, and no other, so that at most one frame of each signal
//! is on the alternate stack. With `SA_NODEFER` a sender that is faster than the kernel's delivery
//! piles up frames until the stack overflows, before the handler has executed one instruction.
//! An injected call runs with the interrupted mask: see [`inject`](crate::inject).
//!
//! References: `sigaction(2)`, Go `runtime/signal_unix.go` (`sigfwdgo`).

mod delivery;
mod previous;

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use alloc::boxed::Box;

use crate::arch;
use crate::fork;
use crate::inject::Injection;
use crate::module::{self, CodeAddress};
use crate::sync::{Guard, Mutex};
use crate::sys::{Errno, KernelAction, SIG_DFL, SIG_IGN, SaFlags, SigSet, rt_sigaction};
use crate::vdso;

pub use delivery::Delivery;
pub(crate) use delivery::dispatch;
use previous::Previous;

/// A signal handler. It must keep to what is async-signal-safe.
pub type Handler = fn(&mut Delivery<'_>) -> Flow;

/// What happens after a handler.
#[derive(Debug)]
#[must_use]
pub enum Flow {
    /// The interrupted code goes on.
    Resume,
    /// The signal was not meant for this handler: the next one gets it, and in the end the previous
    /// action. After [`Delivery::chain`] the same as `Resume`.
    Chain,
    /// The call prepared by [`Delivery::inject`] is run, and then the interrupted code goes on.
    Inject(Injection),
}

/// Whether errno is kept around a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrnoPolicy {
    /// errno is saved and restored.
    #[default]
    Keep,
    /// The handler does not touch errno, so that it can run on a thread that has no thread-local
    /// storage at all (made by a bare `clone`). On such a thread it injects nothing: errno is kept
    /// around every injected call.
    Untouched,
}

/// How a handler is installed.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether errno is kept around the handler.
    pub errno: ErrnoPolicy,
}

impl Options {
    /// The usual ones: errno is kept.
    #[must_use]
    pub const fn new() -> Self {
        Self { errno: ErrnoPolicy::Keep }
    }

    /// Sets whether errno is kept.
    #[must_use]
    pub const fn errno(mut self, errno: ErrnoPolicy) -> Self {
        self.errno = errno;
        self
    }
}

/// One handler of one signal.
struct Registration {
    handler: Handler,
    options: Options,
    next: AtomicPtr<Self>,
}

/// The handlers of one signal, and the actions that it had before.
struct SignalEntry {
    head: AtomicPtr<Registration>,
    /// The action that was found last: the one that ours has replaced.
    latest: AtomicPtr<Previous>,
    /// All actions that were found, the newest find first.
    newest: AtomicPtr<Previous>,
}

/// Indexed by signal number.
static SIGNAL_ENTRIES: [SignalEntry; arch::NSIG + 1] = [const {
    SignalEntry {
        head: AtomicPtr::new(ptr::null_mut()),
        latest: AtomicPtr::new(ptr::null_mut()),
        newest: AtomicPtr::new(ptr::null_mut()),
    }
}; arch::NSIG + 1];

/// The action that the kernel is given in place of `base`.
fn action(signal: i32, base: &KernelAction) -> KernelAction {
    // The kernel looks at these flags whatever the handler is.
    let mut kept = base.flags & (SaFlags::NOCLDSTOP | SaFlags::NOCLDWAIT);
    if signal == libc::SIGCHLD && base.handler == SIG_IGN {
        // Ignored means: no zombies.
        kept |= SaFlags::NOCLDWAIT;
    }
    KernelAction {
        handler: arch::entry(),
        // ONSTACK: an injected call needs it. RESTART: interrupted calls go on, as far as they can.
        // Not NODEFER, which would save the one system call of an injection: see "Nesting" above.
        flags: kept | SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART,
        mask: SigSet::empty(),
    }
}

/// A handler that is installed. Dropping it leaves the handler where it is.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`restore`](Self::restore) and
/// [`uninstall`](Self::uninstall).
#[derive(Debug)]
pub struct Installed {
    signal: i32,
    registration: *const Registration,
}

// SAFETY: the registration is shared and never freed (I1).
unsafe impl Send for Installed {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Installed {}

/// Why a handler was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// The kernel does not take a handler for this signal.
    Refused {
        /// The signal.
        signal: i32,
        /// What the kernel said.
        errno: Errno,
    },
    /// The library with the handler cannot be kept loaded: see [`module::keep_loaded`].
    NotKept {
        /// The signal.
        signal: i32,
        /// The error, which names the code in that library.
        why: module::KeepError,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { signal, errno } => write!(f, "no handler for signal {signal}: {errno}"),
            Self::NotKept { signal, why } => write!(f, "no handler for signal {signal}: {why}"),
        }
    }
}

impl core::error::Error for InstallError {}

/// Why a handler was not uninstalled. It is still in force.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
pub struct UninstallError {
    installed: Installed,
    by: usize,
}

impl UninstallError {
    /// The handler, to be uninstalled later.
    #[must_use]
    pub fn into_installed(self) -> Installed {
        self.installed
    }

    /// The address of the handler that was put over ours; [`CodeAddress`] names it.
    #[must_use]
    pub fn covered_by(&self) -> usize {
        self.by
    }
}

impl fmt::Display for UninstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (signal, by) = (self.installed.signal, CodeAddress::new(self.by));
        write!(f, "handler {by} covers this crate's handler of signal {signal}")
    }
}

impl core::error::Error for UninstallError {}

/// What the kernel does with a signal, seen from a handler that was installed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// The kernel calls this crate's entry.
    First,
    /// The kernel calls another handler, which was installed over ours. Ours gets the signal if that
    /// one chains, and injects calls only if that one is of another copy of this crate.
    Covered {
        /// Its address.
        by: CodeAddress,
    },
    /// The default action or "ignore" was set in the place of ours, which gets no signal any more.
    Replaced {
        /// The handler word: [`SIG_DFL`] or [`SIG_IGN`].
        action: usize,
    },
}

impl Standing {
    fn of(action: &KernelAction) -> Self {
        match action.handler {
            handler if handler == arch::entry() => Self::First,
            action @ (SIG_DFL | SIG_IGN) => Self::Replaced { action },
            handler => Self::Covered { by: CodeAddress::new(handler) },
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::First => f.write_str("ours is the first handler"),
            Self::Covered { by } => write!(f, "handler {by} was put over ours"),
            Self::Replaced { action: SIG_IGN } => f.write_str("the signal was set to be ignored"),
            Self::Replaced { .. } => f.write_str("the default action was set over ours"),
        }
    }
}

/// Locked while actions change, for a few system calls.
///
/// In the child of a fork it is free, also if another thread held it at the fork: each store under it
/// leaves the lists whole, and what was half done is one handler more than the kernel knows of.
static LOCK: Mutex = Mutex::new();

/// Locks the actions.
fn installing() -> Guard<'static> {
    // Without memory for that a child of fork may find the lock taken, as with any of libc's.
    let _ = fork::watch();
    LOCK.guard(fork::process())
}

/// Locks the actions for a handler, which cannot wait: the holder may be what it interrupted.
fn try_installing() -> Option<Guard<'static>> {
    LOCK.try_guard(fork::process())
}

fn signal_entry(signal: i32) -> Option<&'static SignalEntry> {
    // Entry 0 is there only to make the index the number.
    usize::try_from(signal).ok().filter(|&s| s != 0).and_then(|s| SIGNAL_ENTRIES.get(s))
}

/// Whether it is a handler other than ours, which may chain to ours. The default action and "ignore"
/// do not chain: set over ours, they end it.
fn covers(handler: usize) -> bool {
    handler != arch::entry() && handler != SIG_DFL && handler != SIG_IGN
}

/// Installs a handler for a signal, before those that are there.
///
/// The kernel's action becomes this crate's entry with `SA_SIGINFO`, `SA_ONSTACK` and `SA_RESTART`,
/// and an empty mask: in the handler only the signal itself is blocked. The previous action is
/// kept and chained to (see [`Delivery::chain`]), but system calls that the signal interrupts are
/// restarted even if that action had no `SA_RESTART`: without it every system call of the process could
/// fail because of a signal that the caller knows nothing of. The previous action's flags about children
/// stay in force (`SA_NOCLDSTOP`, `SA_NOCLDWAIT`, and no zombies when `SIGCHLD` was ignored). This works
/// for the signals 32 and 33 too, which libc keeps for itself.
///
/// A handler that was installed over ours is a previous action like any other: ours goes on top of it,
/// and it gets the signal next. When it chains to ours, ours has had the signal already and hands it
/// further back.
///
/// Each call keeps a few words forever, also after the uninstall: a handler on another thread may
/// still look at them. Install once, not in a loop. The library that has the handler, and the one that
/// has this crate, stay loaded until the process ends, whatever `dlclose` is told.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap): allocates and locks.
///
/// # Errors
///
/// [`InstallError::Refused`] for a number that is no signal, `SIGKILL` and `SIGSTOP`;
/// [`InstallError::NotKept`] when the library with the handler cannot be kept loaded. Nothing is
/// installed then.
///
/// # Safety
///
/// 1. `handler` is async-signal-safe, on every thread that can get the signal.
/// 2. What it leaves in the context is such that the interrupted code can go on.
/// 3. It returns [`Flow::Inject`] only with what the same call of it prepared.
/// 4. With [`ErrnoPolicy::Untouched`] it does not change errno, and injects only on threads that
///    have thread-local storage.
/// 5. No code of the process counts on the signal interrupting a system call (`EINTR`): `SA_RESTART`
///    is set, whether the previous action had it or not.
///
/// # References
///
/// `sigaction(2)`, `signal-safety(7)`
#[doc(alias = "sigaction")]
pub unsafe fn install(
    signal: i32,
    handler: Handler,
    options: Options,
) -> Result<Installed, InstallError> {
    let refused = |errno| InstallError::Refused { signal, errno };
    let signal_entry = signal_entry(signal).ok_or(refused(Errno::EINVAL))?;
    for code in [arch::entry() as *const (), handler as *const ()] {
        module::keep_loaded(code).map_err(|why| InstallError::NotKept { signal, why })?;
    }
    vdso::find();
    let _installing = installing();
    // SAFETY: only reads.
    let before = unsafe { rt_sigaction(signal, None) }.map_err(refused)?;
    let head = signal_entry.head.load(Ordering::Acquire);
    let next = AtomicPtr::new(head);
    if before.handler != arch::entry() {
        signal_entry.found(signal, before, head.is_null()); // I3
    }
    let registration = Box::into_raw(Box::new(Registration { handler, options, next }));
    signal_entry.head.store(registration, Ordering::Release); // I2
    if let Err(errno) = signal_entry.put_on_top(signal, before) {
        signal_entry.head.store(head, Ordering::Release);
        return Err(refused(errno));
    }
    Ok(Installed { signal, registration })
}

impl SignalEntry {
    /// Makes this crate's entry the kernel's action, in the place of `before`, which is in the list.
    /// Called under the lock.
    fn put_on_top(&self, signal: i32, mut before: KernelAction) -> Result<(), Errno> {
        while before.handler != arch::entry() {
            // SAFETY: the entry handles every signal; `install`'s callers answer for the handlers that it
            // calls.
            let old = unsafe { rt_sigaction(signal, Some(&action(signal, &before))) }?;
            if old == before || old.handler == arch::entry() {
                break;
            }
            // The action was changed since it was read: the new one is what ours has to chain to.
            self.found(signal, old, false);
            before = old;
        }
        Ok(())
    }
}

impl Installed {
    /// The signal.
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.signal
    }

    /// The action that ours has replaced: the one before the install, or, when a handler was installed
    /// over ours and ours was put on top again, that handler's.
    #[must_use]
    pub fn previous(&self) -> KernelAction {
        signal_entry(self.signal)
            .map_or(KernelAction::DEFAULT, |signal_entry| *signal_entry.latest())
    }

    /// What the kernel calls for the signal: this crate's entry, or what was put over it since.
    #[must_use]
    pub fn standing(&self) -> Standing {
        // SAFETY: only reads. It was read before, so the kernel does not refuse.
        let now = unsafe { rt_sigaction(self.signal, None) };
        now.as_ref().map_or(Standing::First, Standing::of)
    }

    /// Puts ours on top again, over the action that covers it, which gets the signal next. Returns what
    /// there was.
    ///
    /// A handler that covers ours without chaining keeps every signal to itself, and no call can be
    /// injected under a handler that is not of this crate. Call this when [`Installed::standing`] says
    /// that ours is covered, but not in a loop: two libraries that each want to be first would take
    /// turns forever.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap): allocates and locks.
    ///
    /// # Errors
    ///
    /// [`InstallError::Refused`] with the kernel's answer. It has accepted the same action before.
    pub fn restore(&self) -> Result<Standing, InstallError> {
        let signal = self.signal;
        let refused = |errno| InstallError::Refused { signal, errno };
        let signal_entry = signal_entry(signal).ok_or(refused(Errno::EINVAL))?;
        let _installing = installing();
        // SAFETY: only reads.
        let before = unsafe { rt_sigaction(signal, None) }.map_err(refused)?;
        if before.handler != arch::entry() {
            signal_entry.found(signal, before, false);
            signal_entry.put_on_top(signal, before).map_err(refused)?;
        }
        Ok(Standing::of(&before))
    }

    /// Takes the handler out; with the last one the kernel gets [`Installed::previous`] back.
    ///
    /// A handler that has begun on another thread may still be running afterwards.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock): locks.
    ///
    /// # Errors
    ///
    /// [`UninstallError`] when a handler covers ours, since it may chain to it. Nothing is changed. The
    /// default action or "ignore" that was set in the place of ours stays, and is no error.
    pub fn uninstall(self) -> Result<(), UninstallError> {
        let _installing = installing();
        let Some(signal_entry) = signal_entry(self.signal) else { return Ok(()) };
        // SAFETY: only reads.
        let now = unsafe { rt_sigaction(self.signal, None) }.unwrap_or(KernelAction::DEFAULT);
        if covers(now.handler) {
            return Err(UninstallError { installed: self, by: now.handler });
        }
        let head = signal_entry.head.load(Ordering::Acquire);
        // SAFETY: registrations are never freed (I1); this one is in the list.
        let ours = unsafe { &*self.registration };
        let next = ours.next.load(Ordering::Acquire);
        let last = ptr::eq(head, self.registration) && next.is_null();
        // An action that has replaced ours stays.
        if last && now.handler == arch::entry() {
            // SAFETY: gives back what was there.
            let old = unsafe { rt_sigaction(self.signal, Some(signal_entry.latest())) };
            if let Ok(old) = old
                && old.handler != arch::entry()
            {
                // Another action was set in between: it stays. It was in force, so it is valid.
                // SAFETY: gives back what was there.
                let _ = unsafe { rt_sigaction(self.signal, Some(&old)) };
                if covers(old.handler) {
                    return Err(UninstallError { installed: self, by: old.handler });
                }
            }
        }
        let mut link = &signal_entry.head;
        while let Some(at) = {
            let at = link.load(Ordering::Acquire);
            // SAFETY: null, or a registration that is never freed (I1).
            unsafe { at.as_ref() }
        } {
            if ptr::eq(at, self.registration) {
                link.store(next, Ordering::Release);
                break;
            }
            link = &at.next;
        }
        Ok(())
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use testkit::{forked, in_child};

    use super::*;

    #[test]
    fn a_child_installs_though_another_thread_did_at_the_fork() {
        let name = "handler::tests::a_child_installs_though_another_thread_did_at_the_fork";
        in_child(name, Duration::from_secs(20), || {
            let (tell, told) = mpsc::channel();
            let (let_go, may_go) = mpsc::channel::<()>();
            let other = thread::spawn(move || {
                let _installing = installing();
                tell.send(()).unwrap();
                may_go.recv().unwrap();
            });
            told.recv().unwrap();
            let status = forked(|| {
                // SAFETY: it does nothing.
                let installed = unsafe { install(libc::SIGUSR1, |_| Flow::Resume, Options::new()) };
                assert_eq!(installed.unwrap().standing(), Standing::First);
            });
            let_go.send(()).unwrap();
            other.join().unwrap();
            assert_eq!(status, 0);
        });
    }
}
