//! Whether a thread of the process has ended, asked without `/proc`: a filter may forbid that, and the
//! handler has no room for it.
//!
//! Every signal but one is blocked in a thread that takes part, so it can end in one way: a seccomp
//! filter of its own answers a system call with the end of the thread (`SECCOMP_RET_KILL_THREAD`).

use sigctx::sys::syscall_raw;
pub(crate) use threadreg::life::{has_ended, is_gone};

/// Whether the calling thread is the only one of its process, the kernel's workers included. For where
/// there is no `/proc`.
pub(crate) fn is_alone() -> bool {
    // Takes part in nothing: the kernel only refuses a thread that has others beside it
    // (`kernel/fork.c`: `check_unshare_flags`).
    let args = [libc::CLONE_THREAD as usize, 0, 0, 0, 0, 0];
    // SAFETY: changes nothing.
    unsafe { syscall_raw(libc::SYS_unshare, args) == 0 }
}
