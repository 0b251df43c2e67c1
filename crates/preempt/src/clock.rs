//! The clock: how old a signal's mark is, and how long ago a task went on.

/// Milliseconds since some time before the process began, modulo 2^32. Async-signal-safe.
pub(crate) fn millis() -> u32 {
    read(1_000)
}

/// Microseconds since then, modulo 2^32. Async-signal-safe.
pub(crate) fn micros() -> u32 {
    read(1_000_000)
}

/// Nanoseconds since then. Async-signal-safe.
pub(crate) fn nanos() -> u64 {
    let (seconds, nanos) = now();
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)
}

fn read(per_second: u32) -> u32 {
    let (seconds, nanos) = now();
    let part = nanos as u32 / (1_000_000_000 / per_second);
    (seconds as u32).wrapping_mul(per_second).wrapping_add(part)
}

/// Seconds and nanoseconds.
///
/// Not the thread's own processor time, whose clock is a system call: these are none.
fn now() -> (u64, u64) {
    let mut time = core::mem::MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a place for the time. POSIX lists the call as async-signal-safe.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) } != 0 {
        return (0, 0);
    }
    // SAFETY: filled in by the call that succeeded.
    let time = unsafe { time.assume_init() };
    (time.tv_sec as u64, time.tv_nsec as u64)
}
