//! The signal: which one it is, and whether our handler still gets it.
//!
//! A signal has one action, which all code in the process may replace. A call can be injected only by
//! the handler that the kernel calls. So a sender looks whether ours is that one, and puts it on top
//! again: the handler that was put over it gets the signal next, as if ours had come later.

use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sigctx::handler::{Installed, Standing};
use sigctx::sys::{self, SIG_DFL, SIG_IGN};
use threadreg::ThreadRef;

/// The signal, unless another is asked for: harmless by default, rarely used, and not special to any
/// debugger or libc. Go chose it for the same reasons (proposal 24543).
pub(crate) const DEFAULT: i32 = libc::SIGURG;

/// How often ours is put on top again without being asked: two that each want to be first would take
/// turns without end. `install` is not counted.
const RESTORES: u32 = 8;

/// Null until the handler is installed; from then on for as long as the process lives. Not a
/// `OnceLock`: a fork could copy it while it is set, and the child would wait for a thread that it does
/// not have.
static INSTALLED: AtomicPtr<Installed> = AtomicPtr::new(ptr::null_mut());

/// The handler, if it is installed. Async-signal-safe.
pub(crate) fn installed() -> Option<&'static Installed> {
    // Acquire: pairs with the release in `set_installed`.
    let installed = INSTALLED.load(Ordering::Acquire);
    // SAFETY: null, or leaked by `set_installed`.
    unsafe { installed.as_ref() }
}

/// Says that the handler is installed. Only for the thread that installed it, once.
pub(crate) fn set_installed(installed: Installed) {
    note_process();
    INSTALLED.store(Box::into_raw(Box::new(installed)), Ordering::Release);
}

/// The process, to spare its handlers the system call. Relaxed: a number, for a first look.
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// Notes which process this is. To be called again in the child of a fork.
pub(crate) fn note_process() {
    PROCESS.store(sys::getpid(), Ordering::Relaxed);
}

/// Whether `pid` is this process. Async-signal-safe.
///
/// In a child that no hook has run in (`_Fork`, a plain `clone`) its parent seems to be this process, too.
pub(crate) fn is_this_process(pid: i32) -> bool {
    pid == PROCESS.load(Ordering::Relaxed) || pid == sys::getpid()
}

/// The signal: the one that is installed, or will be by default. Async-signal-safe.
pub(crate) fn number() -> i32 {
    installed().map_or(DEFAULT, Installed::signal)
}

/// Whether the handler is installed. A signal sent before would be ignored, and its mark would stay.
pub(crate) fn is_installed() -> bool {
    installed().is_some()
}

/// Whether no function stands behind ours, but the default action or "ignore". Async-signal-safe.
pub(crate) fn is_last() -> bool {
    installed().is_none_or(|at| matches!(at.previous().handler, SIG_DFL | SIG_IGN))
}

/// What stands between the kernel and our handler, if anything does.
pub(crate) fn obstacle() -> Option<Standing> {
    installed().map(Installed::standing).filter(|standing| *standing != Standing::First)
}

/// Whether the thread blocks the signal, or its handler is just running. False where the kernel does not tell.
pub(crate) fn is_blocked(thread: ThreadRef) -> bool {
    let tasks = threadreg::procfs::TaskDir::open().ok();
    let status = tasks.zip(thread.tid()).and_then(|(dir, tid)| dir.status(tid).ok());
    status.is_some_and(|status| status.blocked.contains(number()))
}

/// Whether the default action is to do nothing.
pub(crate) fn is_harmless(signal: i32) -> bool {
    matches!(signal, libc::SIGURG | libc::SIGCHLD | libc::SIGWINCH | libc::SIGCONT)
}

/// Puts ours on top again where it was replaced, or where a handler covers it that did not before, or where
/// the thread has not heard the signal before the last. Returns whether it did: what was sent before may
/// have gone elsewhere.
pub(crate) fn look_after(is_deaf: bool) -> bool {
    static RESTORED: AtomicU32 = AtomicU32::new(0);
    static LAST_COVER: AtomicUsize = AtomicUsize::new(0);

    let is_lost = match obstacle() {
        None => false,
        // Once each: another copy of the crates does the same, and hands signals on in either order.
        // Relaxed: a thread that sees another's value puts ours on top once more.
        Some(Standing::Covered { by }) => {
            LAST_COVER.swap(by.get(), Ordering::Relaxed) != by.get() || is_deaf
        }
        Some(_) => true,
    };
    // Relaxed: a count.
    let is_restored = is_lost && RESTORED.fetch_add(1, Ordering::Relaxed) < RESTORES;
    if is_restored {
        // The kernel has taken the same before; if it does not now, the error of a late stop says which
        // handler covers ours.
        let _ = installed().map(Installed::restore);
    }
    is_restored
}
