//! Whether a thread of the process has ended, and whether there are others.
//!
//! A thread that takes part blocks all signals that can be deferred, so it can end in one way only: a seccomp
//! filter of its own answers a system call with the end of the thread (`SECCOMP_RET_KILL_THREAD`). Whether it
//! has ended is asked without `/proc`, which a filter may forbid and for which the handler has no room.

use sigctx::sys::syscall_raw;
pub(crate) use threadreg::life::{has_ended, is_gone, is_here};
use threadreg::procfs::ProcError;

/// Whether the calling thread is the only one of its process, the kernel's workers included. Needs no
/// `/proc`.
pub(crate) fn is_alone() -> bool {
    // Changes nothing: the kernel only refuses a thread that has others beside it
    // (`kernel/fork.c`: `check_unshare_flags`).
    let args = [libc::CLONE_THREAD as usize, 0, 0, 0, 0, 0];
    // SAFETY: changes nothing.
    unsafe { syscall_raw(libc::SYS_unshare, args) == 0 }
}

/// `None` when there is no such thread; that something cannot be read says nothing about threads.
pub(crate) fn unless_gone<T>(read: Result<T, ProcError>) -> Result<Option<T>, ProcError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}
