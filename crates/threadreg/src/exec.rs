//! `exec` while no thread is being made and no signals are on their way to the threads.
//!
//! A pending signal survives `execve`, the handlers do not: what arrives while the kernel ends the
//! other threads kills the new program. So whoever sends signals of its own to the process's threads
//! has a hook here, and is held still until the process is another one.
//!
//! ```text
//!   exec                                       a user of signals, before it first sends
//!   ────                                       ──────────────────────────────────────
//!   EXECUTING = own id                         its hook into HOOKS
//!   hooks read ◀──────── one sees the other ─▶ EXECUTING read: 0? else it waits
//!   the hooks' signals opened                  takes its own lock
//!   each hook holds its user still ◀────────── … sends, and gives the lock back
//!   former mask                                  waits for its lock
//!   execve; failed: all given back             goes on
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `EXECUTING` | who executes, under the creation lock | who registers a hook | sequentially consistent | X1 |
//! | `HOOKS` | who registers, once a place | who executes, who registers | sequentially consistent | X1 |
//!
//! - **X1** Both write their word before they read the other's, in one order for all four accesses.
//!   So either who executes sees the hook, or who registers it sees who executes.
//! - **X2** A hook's signals are open while its user is waited for. The one that waits may be the one
//!   whom the user's signals are to reach; and what was pending is handled by then, not inherited.
//!
//! *Fork:* the child starts with nobody executing; the hooks stay, since what they hold still is the
//! child's own copy. *Masked signals:* all others are blocked while a user is waited for.
//! *Nesting:* a handler that executes on top of an `exec` waits for itself at the creation lock, as
//! documented there. *Exit:* no thread has anything here that outlives the call.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use sigctx::sys::{self, MaskHow, SigSet};

use crate::freeze::{freeze_creation, freeze_creation_within};
use crate::name::Name;
use crate::registry;
use crate::thread_ref::threads;

/// The thread in [`exec`]; 0: none.
static EXECUTING: AtomicU32 = AtomicU32::new(0);

/// The count of forks when that was set. With another count it is a thread of the parent's.
static EXECUTING_FORKS: AtomicU32 = AtomicU32::new(0);

/// More users of signals than any program has.
static HOOKS: [AtomicPtr<ExecHook>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];

/// Somebody who sends signals to the threads of the process, and must not while it is replaced by
/// another program; see [`before_exec`].
#[derive(Debug)]
pub struct ExecHook {
    signals: fn() -> SigSet,
    hold: fn(Option<Instant>) -> ExecHold,
    release: fn(),
}

/// What a hook says when it was asked to hold its user still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecHold {
    /// Nothing is on its way, and nothing will be until the release.
    Still,
    /// Nothing needs to be held: the calling thread is itself the one that sends, or no other is
    /// there. It will not be released.
    Free,
    /// It was too late.
    TimedOut {
        /// The thread that was sending.
        holder: i32,
    },
}

impl ExecHook {
    /// A hook of three functions, which [`exec`] calls on its own thread.
    ///
    /// `signals` says which signals are used; they are open while `hold` waits. `hold` waits until
    /// none of them is on its way to any thread and keeps it so, or gives up at the moment it is
    /// given. `release` undoes that, when the program could not be replaced.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new(
        signals: fn() -> SigSet,
        hold: fn(Option<Instant>) -> ExecHold,
        release: fn(),
    ) -> Self {
        Self { signals, hold, release }
    }
}

/// Has [`exec`] hold the user of signals still that `hook` is for. To be called before its signals
/// are sent; a hook that is there already is not added again.
///
/// # Signal safety
///
/// Async-signal-safe.
///
/// # Blocking
///
/// While another thread is in [`exec`], until that fails or `until` has come: without a moment for
/// as long as it takes, which is the rest of the process's time if it succeeds.
///
/// # Errors
///
/// The id of the thread in [`exec`], when it was still there at `until`; the hook is to be given
/// again then. 0 when there are sixteen hooks.
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
///     |_until| {
///         let taken = SENDING.swap(true, Ordering::Acquire);
///         if taken { ExecHold::TimedOut { holder: 0 } } else { ExecHold::Still }
///     },
///     || SENDING.store(false, Ordering::Release),
/// );
/// threadreg::before_exec(&HOOK, None).expect("nobody executes");
/// ```
pub fn before_exec(hook: &'static ExecHook, until: Option<Instant>) -> Result<(), i32> {
    let own = ptr::from_ref(hook).cast_mut();
    let listed = HOOKS.iter().any(|place| {
        // X1. Only goes from null to a hook, and all look in the same order: no hook is there twice.
        match place.compare_exchange(ptr::null_mut(), own, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(there) => ptr::eq(there, own),
        }
    });
    if !listed {
        return Err(0);
    }
    loop {
        let Some(executing) = executing() else { return Ok(()) };
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(executing as i32);
        }
        // Early returns only go round again.
        let _ = sys::futex_wait(&EXECUTING, executing, left);
    }
}

/// The thread of this process that is in [`exec`].
fn executing() -> Option<u32> {
    // X1.
    let tid = EXECUTING.load(Ordering::SeqCst);
    // Relaxed: written before the id, which the load above acquires.
    let of_this_process = EXECUTING_FORKS.load(Ordering::Relaxed) == registry::forks();
    (tid != 0 && of_this_process).then_some(tid)
}

/// Replaces the process by another program; returns only if that failed, and then all goes on as
/// before.
///
/// While it lasts no thread of this crate is being made: a `clone` under way beside `execve` makes
/// the kernel refuse the one or the other, and a program with changed credentials may start without
/// the change. And no signals are sent by those who told [`before_exec`], as operations on all
/// threads do: a signal that is pending survives `execve`, the handlers do not, and the new program
/// would be killed.
///
/// # What it cannot do
///
/// Signals that others send are not held up: libc's own broadcast, for one, when another thread calls
/// `setuid` meanwhile (33 for glibc, 34 for musl). [`CommandExt::exec`] and libc's functions
/// hold up nothing. A child ([`Command::spawn`], `posix_spawn`, `fork`) is another process, and
/// signals for its parent's threads do not reach it.
///
/// # Signal safety
///
/// Not async-signal-safe.
///
/// # Blocking
///
/// For the creations under way, as [`freeze_creation`], and for what [`before_exec`] was told of;
/// without bound. [`exec_within`] gives up.
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
pub fn exec(command: &mut Command) -> io::Error {
    let _frozen = freeze_creation();
    run(command, None).unwrap_or_else(|holder| ExecTimedOut::error(Duration::MAX, holder))
}

/// Like [`exec`], but gives up after `limit` and says who was in the way.
///
/// # Signal safety
///
/// Not async-signal-safe.
///
/// # Blocking
///
/// At most for `limit`.
///
/// # Errors
///
/// As [`exec`]; of the kind `TimedOut`, with a [`FreezeTimedOut`](crate::FreezeTimedOut) or an
/// [`ExecTimedOut`] in it, when the time was over.
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
pub fn exec_within(command: &mut Command, limit: Duration) -> io::Error {
    // `None`: the clock ends before the limit.
    let until = Instant::now().checked_add(limit);
    match freeze_creation_within(limit) {
        Ok(_frozen) => {
            run(command, until).unwrap_or_else(|holder| ExecTimedOut::error(limit, holder))
        }
        Err(late) => io::Error::new(io::ErrorKind::TimedOut, late),
    }
}

/// The caller has creation frozen. Fails with who was sending signals at `until`.
fn run(command: &mut Command, until: Option<Instant>) -> Result<io::Error, i32> {
    let _still = Still::hold(until)?;
    Ok(command.exec())
}

/// Every user of signals is held still as long as this lives.
struct Still {
    /// Those to be released.
    held: [Option<&'static ExecHook>; HOOKS.len()],
}

impl Still {
    fn hold(until: Option<Instant>) -> Result<Self, i32> {
        // One thread at a time writes both: it has the creation lock.
        EXECUTING_FORKS.store(registry::forks(), Ordering::Relaxed);
        // X1.
        EXECUTING.store(sys::gettid() as u32, Ordering::SeqCst);
        // From here on dropping it gives back what was taken.
        let mut still = Self { held: [None; HOOKS.len()] };
        // Looked at once: who comes later waits in `before_exec`, and its signals are not open here.
        let hooks = HOOKS.each_ref().map(|place| {
            // X1.
            let hook = place.load(Ordering::SeqCst);
            // SAFETY: null, or from a `&'static` by `before_exec`.
            unsafe { hook.as_ref() }
        });
        let hooks = || hooks.iter().copied().flatten();
        let used = hooks().fold(SigSet::empty(), |all, hook| all | (hook.signals)());
        // X2. All others are blocked: no handler is to come and want what is being taken here.
        let open = used.iter().fold(SigSet::deferrable(), SigSet::without);
        let _mask = Mask(sys::sigprocmask(MaskHow::Set, &open));
        for (hook, held) in hooks().zip(&mut still.held) {
            match (hook.hold)(until) {
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

/// The program was not replaced, since signals were being sent; in the error of [`exec_within`].
#[derive(Clone, Copy, Debug)]
pub struct ExecTimedOut {
    /// How long it was waited for.
    pub limit: Duration,
    /// The thread that was sending: id, and name if it is registered.
    pub holder: (i32, Name),
}

impl ExecTimedOut {
    fn error(limit: Duration, holder: i32) -> io::Error {
        let known = threads().find(|thread| thread.tid() == Some(holder));
        let name = known.map(|thread| thread.name()).unwrap_or_default();
        io::Error::new(io::ErrorKind::TimedOut, Self { limit, holder: (holder, name) })
    }
}

impl fmt::Display for ExecTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, holder: (tid, name) } = self;
        write!(f, "thread {tid} ({name}) was sending signals to all threads for {limit:?}")
    }
}

impl core::error::Error for ExecTimedOut {}
