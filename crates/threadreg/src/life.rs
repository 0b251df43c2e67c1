//! Whether a thread has ended, asked without `/proc`: a seccomp filter may forbid that, and a signal
//! handler may have no room for it.
//!
//! A thread can end with a lock or another duty that other threads wait for: a seccomp filter of its
//! own answers a system call with the end of the thread (`SECCOMP_RET_KILL_THREAD`), or its guard was
//! leaked. A thread that waits looks now and then whether the holder lives.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;

use sigctx::sys::{Tid, gettid, syscall_raw};

const ESRCH: isize = -(libc::ESRCH as isize);
const EDEADLK: isize = -(libc::EDEADLK as isize);

/// Whether no thread of process `pid` has the id, or the thread that has it will never run again.
///
/// The main thread keeps its id until the process ends. Whether it has ended is known for the calling
/// process only; under an emulator it may not be known, and the answer is then `false`.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): up to four raw system calls, which are inlined and do not touch
/// `errno`.
///
/// # Examples
///
/// ```
/// use sigctx::sys::{getpid, gettid};
/// use threadreg::life::has_ended;
///
/// assert!(!has_ended(getpid(), gettid()));
/// let tid = std::thread::spawn(gettid).join().unwrap();
/// // The kernel may take a moment to forget it.
/// while !has_ended(getpid(), tid) {
///     std::thread::yield_now();
/// }
/// ```
#[must_use]
#[inline(always)]
pub fn has_ended(pid: i32, tid: Tid) -> bool {
    is_gone(pid, tid) || tid == pid && leader_has_ended(tid)
}

/// Whether no thread of process `pid` has the id.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): one raw system call, which is inlined and does not touch `errno`.
///
/// # References
///
/// `tgkill(2)` with signal 0.
#[must_use]
#[inline(always)]
pub fn is_gone(pid: i32, tid: Tid) -> bool {
    // SAFETY: signal 0 sends nothing.
    unsafe { syscall_raw(libc::SYS_tgkill, [pid as usize, tid as usize, 0, 0, 0, 0]) == ESRCH }
}

/// Whether a thread of the calling process certainly has the id. It costs half of [`is_gone`]. Where it says
/// no, that is to be asked: a seccomp filter or an emulator may not tell.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe): one raw system call, which is inlined and does not touch `errno`.
///
/// # References
///
/// `pthread_getcpuclockid(3)`: the clock of a thread's processor time has the thread's id in its own. The kernel
/// knows those of the own process only (`kernel/time/posix-cpu-timers.c`: `pid_for_clock`).
#[must_use]
#[inline(always)]
pub fn is_here(tid: Tid) -> bool {
    /// A thread's, and the scheduler's.
    const CLOCK: i32 = 4 | 2;
    let clock = !tid << 3 | CLOCK;
    // SAFETY: without a place to write to, it writes nothing.
    unsafe { syscall_raw(libc::SYS_clock_getres, [clock as usize, 0, 0, 0, 0, 0]) == 0 }
}

/// Asks for a lock whose word says that the thread owns it. The kernel looks for the owner, and when
/// the thread is dead finds none that could give the lock back (`kernel/futex/pi.c`:
/// `attach_to_pi_owner`).
#[inline(always)]
fn leader_has_ended(tid: Tid) -> bool {
    // An emulator may pass on the word in another byte order than the kernel's. Then the kernel does
    // not see that the lock is the calling thread's own, either.
    owned_by(gettid()) == EDEADLK && owned_by(tid) == ESRCH
}

#[inline(always)]
fn owned_by(tid: Tid) -> isize {
    let word = AtomicU32::new(tid as u32);
    // A moment long past, in either layout of the time.
    let past = [0u64; 2];
    let operation: c_int = libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG;
    let args = [word.as_ptr() as usize, operation as usize, 0, &raw const past as usize, 0, 0];
    // SAFETY: the word and the time live during the call, which waits for nothing.
    unsafe { syscall_raw(libc::SYS_futex, args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigctx::sys::{self, KernelAction, SaFlags, SigSet, getpid};

    #[test]
    fn a_thread_that_has_ended_is_told_from_one_that_lives() {
        let (pid, me) = (getpid(), gettid());
        assert!(!has_ended(pid, me) && !has_ended(pid, pid));
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (go, goes) = std::sync::mpsc::channel::<()>();
            let thread = scope.spawn(move || {
                tell.send(gettid()).unwrap();
                let _ended = goes.recv();
            });
            let tid = told.recv().unwrap();
            assert!(!has_ended(pid, tid));
            let knows = is_here(tid);
            assert!(knows || testkit::emulator().is_some());
            drop(go);
            thread.join().unwrap();
            testkit::until("it is gone", || has_ended(pid, tid));
            assert!(!is_here(tid));
        });
        // A thread of another process.
        assert!(!is_here(std::os::unix::process::parent_id().cast_signed()));
    }

    #[test]
    fn a_leader_that_has_ended_is_told_from_one_that_lives() {
        extern "C" fn end(_: c_int) {
            // SAFETY: ends this thread alone.
            let _ = unsafe { syscall_raw(libc::SYS_exit, [0; 6]) };
        }
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator may not look for the owner of a lock");
        }
        let child = || {
            let leader = getpid();
            let (handler, flags) = (end as *const () as usize, SaFlags::empty());
            let action = KernelAction { handler, flags, mask: SigSet::empty() };
            // SAFETY: the handler ends the thread.
            unsafe { sys::rt_sigaction(libc::SIGUSR1, Some(&action)) }.unwrap();
            std::thread::spawn(move || {
                let dead = || {
                    let stat = std::fs::read_to_string(format!("/proc/self/task/{leader}/stat"));
                    stat.is_ok_and(|stat| stat.contains(") Z "))
                };
                assert!(!has_ended(leader, leader));
                sys::tgkill(leader, leader, libc::SIGUSR1).unwrap();
                testkit::until("the leader is dead", dead);
                let status = if has_ended(leader, leader) { 42 } else { 1 };
                // SAFETY: ends the process.
                unsafe { libc::_exit(status) };
            });
            loop {
                std::thread::park();
            }
        };
        let status = testkit::forked(child);
        assert_eq!(libc::WEXITSTATUS(status), 42, "{status:#x}");
    }
}
