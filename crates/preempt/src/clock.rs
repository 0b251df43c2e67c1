//! The two clocks: how old a signal's mark is, and how long a task's thread has had a processor.

/// Milliseconds since some time before the process began, modulo 2^32. Async-signal-safe.
pub(crate) fn millis() -> u32 {
    read(libc::CLOCK_MONOTONIC, 1_000).unwrap_or(0)
}

/// Microseconds of processor time that the calling thread has had, modulo 2^32; `None` where a
/// filter refuses to say. Async-signal-safe.
pub(crate) fn own_micros() -> Option<u32> {
    read(libc::CLOCK_THREAD_CPUTIME_ID, 1_000_000)
}

fn read(clock: libc::clockid_t, per_second: u32) -> Option<u32> {
    let mut time = core::mem::MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a place for the time. POSIX lists the call as async-signal-safe.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in by the call that succeeded.
    let time = unsafe { time.assume_init() };
    let part = time.tv_nsec as u32 / (1_000_000_000 / per_second);
    Some((time.tv_sec as u32).wrapping_mul(per_second).wrapping_add(part))
}
