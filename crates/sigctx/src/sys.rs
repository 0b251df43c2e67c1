//! The kernel's interface without libc: no errno, no TLS, no wrappers that do more than they say.
//!
//! Everything here is async-signal-safe and may run on a thread of any origin, also one that has
//! no thread-local storage at all. Functions are inlined where a handler must not make an external
//! call.

mod errno;
mod futex;
mod siginfo;
mod signal;
mod sigset;

use core::ffi::c_long;

pub use errno::Errno;
pub(crate) use errno::{errno, set_errno};
pub use futex::{Membarrier, futex_wait, futex_wake, membarrier};
pub(crate) use siginfo::SigInfo;
pub(crate) use signal::queue_info;
pub use signal::{
    KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, kill, rt_sigaction, sigprocmask, tgkill,
    tgsigqueueinfo,
};
pub use sigset::SigSet;

use crate::arch;

/// Numbers of the calls that take or give user and group ids of 32 bits. The calls with the plain
/// names have ids of 16 bits on some architectures.
///
/// # Examples
///
/// ```
/// use sigctx::sys::{id_calls, syscall};
///
/// // SAFETY: takes no arguments.
/// let uid = unsafe { syscall(id_calls::GETUID, [0; 6]) };
/// assert!(uid.is_ok());
/// ```
///
/// # References
///
/// `setuid(2)`, C library/kernel differences
pub mod id_calls {
    use core::ffi::c_long;

    use crate::arch;

    /// The number of `getresgid`.
    pub const GETRESGID: c_long = arch::SYS_GETRESGID;
    /// The number of `getresuid`.
    pub const GETRESUID: c_long = arch::SYS_GETRESUID;
    /// The number of `getuid`.
    pub const GETUID: c_long = arch::SYS_GETUID;
    /// The number of `setgroups`.
    pub const SETGROUPS: c_long = arch::SYS_SETGROUPS;
    /// The number of `setresgid`.
    pub const SETRESGID: c_long = arch::SYS_SETRESGID;
    /// The number of `setresuid`.
    pub const SETRESUID: c_long = arch::SYS_SETRESUID;
}

/// A thread id as the kernel gives it.
pub type Tid = i32;

/// Makes a system call and returns the kernel's word: -4095 to -1 is a negated error number.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): one instruction, nothing else is touched.
///
/// # Safety
///
/// 1. The arguments are what call `nr` takes, and pointers among them point to memory that the
///    kernel may read or write as the call does.
/// 2. What the call does to the process is something the rest of the program can live with.
#[inline(always)]
#[must_use]
pub unsafe fn syscall_raw(nr: c_long, args: [usize; 6]) -> isize {
    // SAFETY: obligations 1 and 2 are the caller's.
    unsafe { arch::syscall(nr, args) }
}

/// Makes a system call and tells an error from a result.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), see [`syscall_raw`].
///
/// # Errors
///
/// What the kernel says.
///
/// # Safety
///
/// As for [`syscall_raw`].
#[inline(always)]
pub unsafe fn syscall(nr: c_long, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the caller keeps `syscall_raw`'s obligations.
    let word = unsafe { syscall_raw(nr, args) };
    Errno::check(word)
}

/// The calling thread's id.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): a system call each time, so also right after `fork` and `clone`.
///
/// # References
///
/// `gettid(2)`
#[inline(always)]
#[must_use]
pub fn gettid() -> Tid {
    // SAFETY: takes no arguments and cannot fail.
    let word = unsafe { syscall_raw(libc::SYS_gettid, [0; 6]) };
    word as Tid
}

/// The calling process's id.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): a system call each time, so also right after `fork`.
///
/// # References
///
/// `getpid(2)`
#[inline(always)]
#[must_use]
pub fn getpid() -> i32 {
    // SAFETY: takes no arguments and cannot fail.
    let word = unsafe { syscall_raw(libc::SYS_getpid, [0; 6]) };
    word as i32
}
