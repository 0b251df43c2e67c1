//! `exec` while no thread is being made and no signal is on its way to a thread.
//!
//! A pending signal survives `execve`, its handler does not: a signal that arrives while the kernel
//! ends the other threads kills the new program. So a crate that sends signals to the threads of the
//! process registers a hook here, by which [`exec`] keeps it from sending until the process is another
//! program.
//!
//! ```text
//!   exec                                       a sender, before its first signal
//!   ────                                       ─────────────────────────────────
//!   EXECUTING = own id                         its hook into HOOKS
//!   HOOKS read ◀───────── one sees the other ─▶ EXECUTING read: set? then it waits
//!   the hooks' signals unblocked               takes its own lock
//!   each hook holds its sender still ◀──────── … sends, and gives the lock back
//!   former mask                                  waits for its lock
//!   execve; failed: all given back             goes on
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `EXECUTING` | the thread in `exec`, under the creation lock | a thread that registers a hook | sequentially consistent | X1 |
//! | `EXECUTING_PROCESS` | the same, before `EXECUTING` | the same, after `EXECUTING` | relaxed | the process that `EXECUTING` belongs to |
//! | `HOOKS` | a thread that registers a hook, once a place | the thread in `exec`, a thread that registers a hook | sequentially consistent | X1 |
//!
//! - **X1** Each side writes its own word before it reads the other's, and all four accesses have one
//!   order. So `exec` sees the hook, or the thread that registers the hook sees `exec`, or both.
//! - **X2** A hook's signals are unblocked while `exec` waits for its sender: the sender may be waiting
//!   for this very thread to answer. What was pending is then handled, and not inherited by the new
//!   program.
//!
//! *Fork:* in the child no thread is in `exec`. The hooks stay: their functions act on the child's own
//! copy of what they hold still. *Masked signals:* all other signals are blocked while `exec` waits for
//! a sender. *Nesting:* a handler that calls `exec` on top of an `exec` waits for itself at the
//! creation lock, as documented there. *Exit:* no thread leaves anything here behind.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use sigctx::fork;
use sigctx::sys::{self, MaskHow, SigSet, Tid};

use crate::freeze::{freeze_creation, freeze_creation_within};
use crate::name::{Label, Name};
use crate::thread_ref::registered_name;

/// The thread in [`exec`]; 0: none.
static EXECUTING: AtomicU32 = AtomicU32::new(0);

/// The process that `EXECUTING` belongs to. In the child of a fork it is another one's.
static EXECUTING_PROCESS: AtomicU32 = AtomicU32::new(0);

/// More senders than any program has.
static HOOKS: [AtomicPtr<ExecHook>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];

/// Keeps a sender of signals still while [`exec`] replaces the process; see [`before_exec`].
#[derive(Debug)]
pub struct ExecHook {
    signals: fn() -> SigSet,
    hold: fn(Option<Instant>) -> ExecHold,
    release: fn(),
}

/// The answer of a hook that was asked to hold its sender still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecHold {
    /// No signal is on its way, and none will be until the release.
    Still,
    /// There is nothing to hold still: the calling thread is itself the sender, or the only thread. The
    /// hook's `release` is not called.
    Free,
    /// The sender did not become still before the deadline.
    TimedOut {
        /// The thread that was sending, if the hook knows it.
        holder: Option<Tid>,
    },
}

impl ExecHook {
    /// Makes a hook of three functions, which [`exec`] calls on its own thread.
    ///
    /// - `signals` returns the signals that the sender uses. They are unblocked while `hold` waits.
    /// - `hold` waits until none of them is on its way to any thread, and keeps it so. It gives up at
    ///   the deadline that it is given; without one it waits as long as it takes.
    /// - `release` undoes what `hold` did. It is called when the process could not be replaced.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub const fn new(
        signals: fn() -> SigSet,
        hold: fn(Option<Instant>) -> ExecHold,
        release: fn(),
    ) -> Self {
        Self { signals, hold, release }
    }
}

/// Registers a hook by which [`exec`] holds a sender of signals still.
///
/// To be called before the sender's first signal. A hook that is registered already is not added again.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Blocking
///
/// While another thread is in [`exec`]: until that fails, or until `deadline`. Without a deadline it
/// waits as long as it takes, which is forever if that `exec` succeeds.
///
/// # Errors
///
/// [`BeforeExecError`]: there was no room for the hook, or another thread was in [`exec`] until the
/// deadline.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use sigctx::sys::SigSet;
/// use threadreg::{ExecHold, ExecHook};
///
/// static SENDING: AtomicBool = AtomicBool::new(false);
/// static HOOK: ExecHook = ExecHook::new(
///     || SigSet::of(libc::SIGUSR1),
///     |_deadline| {
///         let taken = SENDING.swap(true, Ordering::Acquire);
///         if taken { ExecHold::TimedOut { holder: None } } else { ExecHold::Still }
///     },
///     || SENDING.store(false, Ordering::Release),
/// );
/// threadreg::before_exec(&HOOK, None)?;
/// # Ok::<(), threadreg::BeforeExecError>(())
/// ```
///
/// # References
///
/// Go's `syscall.runtime_BeforeExec`.
#[doc(alias = "runtime_BeforeExec")]
pub fn before_exec(
    hook: &'static ExecHook,
    deadline: Option<Instant>,
) -> Result<(), BeforeExecError> {
    let own = ptr::from_ref(hook).cast_mut();
    let listed = HOOKS.iter().any(|place| {
        // X1. A place only goes from null to a hook, and all threads try them in the same order: no
        // hook is there twice.
        match place.compare_exchange(ptr::null_mut(), own, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(there) => ptr::eq(there, own),
        }
    });
    if !listed {
        return Err(BeforeExecError::Full);
    }
    while let Some(holder) = executing() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(BeforeExecError::TimedOut { holder });
        }
        // An early return only goes round again.
        let _ = sys::futex_wait(&EXECUTING, holder.cast_unsigned(), left);
    }
    Ok(())
}

/// The thread of this process that is in [`exec`].
fn executing() -> Option<Tid> {
    // X1.
    let tid = EXECUTING.load(Ordering::SeqCst).cast_signed();
    // Relaxed: written before the id, which the load above acquires.
    let of_this_process = EXECUTING_PROCESS.load(Ordering::Relaxed) == fork::process();
    (tid != 0 && of_this_process).then_some(tid)
}

/// [`before_exec`] did not let the sender go on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeforeExecError {
    /// Sixteen other hooks are registered. [`exec`] does not know of this one.
    Full,
    /// Another thread was in [`exec`] until the deadline. The hook is to be given again before the
    /// sender sends anything.
    TimedOut {
        /// That thread.
        holder: Tid,
    },
}

impl fmt::Display for BeforeExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("no room for another hook of `exec`"),
            Self::TimedOut { holder } => write!(f, "thread {} is in `exec`", Label::of(*holder)),
        }
    }
}

impl core::error::Error for BeforeExecError {}

/// Replaces the process by another program; returns only if that failed.
///
/// While it lasts this crate makes no thread: with a `clone` under way beside `execve` the kernel
/// refuses one of the two, or a program with changed credentials starts without the change. Senders of
/// signals that called [`before_exec`] send none, as the operations of `allthreads` do: a pending
/// signal survives `execve`, its handler does not, and the new program would be killed. After a failure
/// everything goes on as before.
///
/// # What it cannot do
///
/// It does not hold up signals of other senders: libc's own broadcast, for one, when another thread
/// calls `setuid` meanwhile (signal 33 with glibc, 34 with musl). [`CommandExt::exec`] and libc's
/// functions hold up nothing. A child ([`Command::spawn`], `posix_spawn`, `fork`) is another process;
/// signals for its parent's threads do not reach it.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
///
/// # Blocking
///
/// For the creations under way, as [`freeze_creation`], and for the senders that called
/// [`before_exec`]; without bound. [`exec_within`] gives up.
///
/// # Errors
///
/// As [`CommandExt::exec`]: the value that it returns.
///
/// # Panics
///
/// With debug assertions, when the calling thread holds the guard of [`freeze_creation`].
///
/// # Examples
///
/// ```
/// use std::io::ErrorKind;
/// use std::process::Command;
///
/// let error = threadreg::exec(&mut Command::new("/nowhere/to/be/found"));
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert!(threadreg::try_freeze_creation().is_some());
/// ```
///
/// # References
///
/// `execve(2)`, "Effect on process attributes": pending signals are preserved. Go's `execLock`,
/// `syscall.runtime_BeforeExec`; Go issues 18146 and 19546.
#[doc(alias = "execLock")]
pub fn exec(command: &mut Command) -> io::Error {
    let _frozen = freeze_creation();
    run(command, None).unwrap_or_else(|holder| ExecTimedOut::error(Duration::MAX, holder))
}

/// Like [`exec`], but gives up after `timeout` and names the thread that was in the way.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
///
/// # Blocking
///
/// At most for `timeout`.
///
/// # Errors
///
/// As [`exec`]. After `timeout` the error is of the kind `TimedOut` and contains a
/// [`FreezeTimedOut`](crate::FreezeTimedOut) or an [`ExecTimedOut`].
///
/// # Panics
///
/// With debug assertions, when the calling thread holds the guard of [`freeze_creation`].
///
/// # Examples
///
/// ```
/// use std::io::ErrorKind;
/// use std::process::Command;
/// use std::time::Duration;
///
/// let mut command = Command::new("/nowhere/to/be/found");
/// let error = threadreg::exec_within(&mut command, Duration::from_secs(1));
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// ```
pub fn exec_within(command: &mut Command, timeout: Duration) -> io::Error {
    // `None`: no clock goes that far.
    let deadline = Instant::now().checked_add(timeout);
    match freeze_creation_within(timeout) {
        Ok(_frozen) => {
            run(command, deadline).unwrap_or_else(|holder| ExecTimedOut::error(timeout, holder))
        }
        Err(late) => io::Error::new(io::ErrorKind::TimedOut, late),
    }
}

/// Replaces the process; the calling thread holds creation frozen. Fails with the thread that was
/// sending signals at the deadline.
fn run(command: &mut Command, deadline: Option<Instant>) -> Result<io::Error, Option<Tid>> {
    let _still = Still::hold(deadline)?;
    Ok(command.exec())
}

/// Every sender is held still as long as this lives.
struct Still {
    /// The hooks to be released.
    held: [Option<&'static ExecHook>; HOOKS.len()],
}

impl Still {
    fn hold(deadline: Option<Instant>) -> Result<Self, Option<Tid>> {
        // One thread at a time writes both: it has the creation lock.
        EXECUTING_PROCESS.store(fork::process(), Ordering::Relaxed);
        // X1.
        EXECUTING.store(sys::gettid().cast_unsigned(), Ordering::SeqCst);
        // From here on its drop gives back what was taken.
        let mut still = Self { held: [None; HOOKS.len()] };
        // Read once: a sender that comes later waits in `before_exec`; its signals stay blocked here.
        let hooks = HOOKS.each_ref().map(|place| {
            // X1.
            let hook = place.load(Ordering::SeqCst);
            // SAFETY: null, or from a `&'static` by `before_exec`.
            unsafe { hook.as_ref() }
        });
        let hooks = || hooks.iter().copied().flatten();
        let used = hooks().fold(SigSet::empty(), |all, hook| all | (hook.signals)());
        // X2. All others are blocked, so that no handler comes and wants what is being taken here.
        let open = used.iter().fold(SigSet::deferrable(), SigSet::without);
        let _mask = Mask(sys::sigprocmask(MaskHow::Set, &open));
        for (hook, held) in hooks().zip(&mut still.held) {
            match (hook.hold)(deadline) {
                ExecHold::Still => *held = Some(hook),
                ExecHold::Free => {}
                ExecHold::TimedOut { holder } => return Err(holder),
            }
        }
        Ok(still)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        for hook in self.held.iter().rev().flatten() {
            (hook.release)();
        }
        EXECUTING.store(0, Ordering::SeqCst);
        sys::futex_wake(&EXECUTING, u32::MAX);
    }
}

/// A signal mask that is put back.
struct Mask(SigSet);

impl Drop for Mask {
    fn drop(&mut self) {
        sys::sigprocmask(MaskHow::Set, &self.0);
    }
}

/// The process was not replaced, since signals were being sent until the deadline; in the error of
/// [`exec_within`].
#[derive(Clone, Copy, Debug)]
pub struct ExecTimedOut {
    /// How long [`exec_within`] was to wait.
    pub timeout: Duration,
    /// The thread that was sending, if it is known: its id, and its name if it is registered.
    pub holder: Option<(Tid, Name)>,
}

impl ExecTimedOut {
    fn error(timeout: Duration, holder: Option<Tid>) -> io::Error {
        let holder = holder.map(|tid| (tid, registered_name(tid)));
        io::Error::new(io::ErrorKind::TimedOut, Self { timeout, holder })
    }
}

impl fmt::Display for ExecTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holder {
            Some((tid, name)) => write!(f, "thread {}", Label { tid: Some(tid), name })?,
            None => f.write_str("a thread")?,
        }
        write!(f, " was sending signals to all threads for {:?}", self.timeout)
    }
}

impl core::error::Error for ExecTimedOut {}
