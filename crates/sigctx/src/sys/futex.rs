//! Waiting on a word, and the barrier that is issued for other threads.

use core::ffi::{c_int, c_long};
use core::sync::atomic::AtomicU32;
use core::time::Duration;

use bitflags::bitflags;

use super::{Errno, syscall};

/// The `timespec` of the system call, which has `long`s whatever libc's has.
#[repr(C)]
struct Timespec {
    seconds: c_long,
    nanoseconds: c_long,
}

/// Waits while `word` holds `expected`, at most for `timeout`.
///
/// Returns at a wake, and may return without one: look at the word again.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe), but see Blocking.
///
/// # Blocking
///
/// Waits for a [`futex_wake`] on the same word; bounded by `timeout` where there is one.
///
/// # Errors
///
/// `EAGAIN` when the word did not hold `expected`, `ETIMEDOUT`. `EINTR` when a handler ran, but not
/// without a timeout and with `SA_RESTART`: then the kernel waits on. A wait with a timeout returns
/// `EINTR` in any case.
///
/// # References
///
/// `futex(2)`, `FUTEX_WAIT_PRIVATE`
#[inline]
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Result<(), Errno> {
    let time = timeout.map(|t| Timespec {
        seconds: c_long::try_from(t.as_secs()).unwrap_or(c_long::MAX),
        nanoseconds: t.subsec_nanos().cast_signed().into(),
    });
    let time = time.as_ref().map_or(0, |t| &raw const *t as usize);
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let args = [word.as_ptr() as usize, op as usize, expected as usize, time, 0, 0];
    // SAFETY: the kernel reads the word and the time, both alive during the call.
    unsafe { syscall(libc::SYS_futex, args) }.map(drop)
}

/// Wakes up to `count` threads that wait on `word`, and says how many.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # References
///
/// `futex(2)`, `FUTEX_WAKE_PRIVATE`
#[inline]
pub fn futex_wake(word: &AtomicU32, count: u32) -> usize {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // The kernel takes an `int`, and there are never more waiters than that.
    let count = count.min(c_int::MAX as u32) as usize;
    let args = [word.as_ptr() as usize, op as usize, count, 0, 0, 0];
    // SAFETY: a private wake uses the address as a key and touches no memory.
    unsafe { syscall(libc::SYS_futex, args) }.unwrap_or(0)
}

bitflags! {
    /// Commands of [`membarrier`]; no command is the query for those the kernel has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Membarrier: u32 {
        /// A barrier on every running thread of the system; slow.
        const GLOBAL = libc::MEMBARRIER_CMD_GLOBAL as u32;
        /// A barrier on the running threads of all registered processes.
        const GLOBAL_EXPEDITED = libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED as u32;
        /// Registers the process for `GLOBAL_EXPEDITED`.
        const REGISTER_GLOBAL_EXPEDITED = libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED as u32;
        /// A barrier on every running thread of this process.
        const PRIVATE_EXPEDITED = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32;
        /// Registers the process for `PRIVATE_EXPEDITED`; must come first.
        const REGISTER_PRIVATE_EXPEDITED = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u32;
        /// As `PRIVATE_EXPEDITED`, and instruction streams are synchronised too.
        const PRIVATE_EXPEDITED_SYNC_CORE = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u32;
        /// Registers the process for `PRIVATE_EXPEDITED_SYNC_CORE`.
        const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE =
            libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    }
}

/// Issues a memory barrier on other threads' behalf, registers for it, or asks what there is.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// `ENOSYS` without the call, `EINVAL` without the command, `EPERM` when not registered or
/// filtered: all of them mean that it cannot be used.
///
/// # References
///
/// `membarrier(2)`
#[inline]
pub fn membarrier(command: Membarrier) -> Result<usize, Errno> {
    // SAFETY: no pointers; the call only orders memory accesses.
    unsafe { syscall(libc::SYS_membarrier, [command.bits() as usize, 0, 0, 0, 0, 0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_returns_at_once_when_the_word_differs() {
        let word = AtomicU32::new(1);
        assert_eq!(futex_wait(&word, 0, None), Err(Errno::EAGAIN));
    }

    #[test]
    fn wait_times_out() {
        let word = AtomicU32::new(0);
        let result = futex_wait(&word, 0, Some(Duration::from_millis(1)));
        assert_eq!(result, Err(Errno::ETIMEDOUT));
    }

    #[test]
    fn wake_counts_the_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|s| {
            s.spawn(|| {
                while word.load(core::sync::atomic::Ordering::Relaxed) == 0 {
                    let _ = futex_wait(&word, 0, None);
                }
            });
            // Until the other thread waits there is no thread to wake.
            while futex_wake(&word, u32::MAX) == 0 {
                std::thread::yield_now();
            }
            word.store(1, core::sync::atomic::Ordering::Relaxed);
            futex_wake(&word, 1);
        });
    }
}
