//! A library that uses the crate, and has a copy of it of its own: opened by `tests/copies.rs`.

use allthreads::Signal;

/// How many threads an operation reaches; 0 when it fails.
#[unsafe(no_mangle)]
pub extern "C" fn copy_operate(signal: i32) -> usize {
    let signal = if signal == 33 { Signal::Libc33 } else { Signal::Number(signal) };
    let all = allthreads::AllThreads::new().signal(signal);
    // SAFETY: takes nothing.
    let report = unsafe { all.syscall(libc::SYS_getpid, [0; 6]) };
    report.map_or(0, |report| report.threads)
}
