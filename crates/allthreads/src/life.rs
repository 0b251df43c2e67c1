//! Whether a thread of the process has ended, asked without `/proc`: a filter may forbid that, and the
//! handler has no room for it.
//!
//! Every signal but one is blocked in a thread that takes part, so it can end in one way: a seccomp
//! filter of its own answers a system call with the end of the thread (`SECCOMP_RET_KILL_THREAD`).

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;

use sigctx::sys::{Tid, gettid, syscall_raw};

const ESRCH: isize = -(libc::ESRCH as isize);
const EDEADLK: isize = -(libc::EDEADLK as isize);

/// Whether the calling thread is the only one of its process, the kernel's workers included. For where
/// there is no `/proc`.
pub(crate) fn is_alone() -> bool {
    // Takes part in nothing: the kernel only refuses a thread that has others beside it
    // (`kernel/fork.c`: `check_unshare_flags`).
    let args = [libc::CLONE_THREAD as usize, 0, 0, 0, 0, 0];
    // SAFETY: changes nothing.
    unsafe { syscall_raw(libc::SYS_unshare, args) == 0 }
}

/// Whether no thread of process `pid` has the id, or the one that has it will never run again.
#[inline(always)]
pub(crate) fn has_ended(pid: i32, tid: Tid) -> bool {
    // The main thread keeps its id until the process ends.
    is_gone(pid, tid) || tid == pid && leader_has_ended(tid)
}

/// Whether no thread of process `pid` has the id.
#[inline(always)]
pub(crate) fn is_gone(pid: i32, tid: Tid) -> bool {
    // SAFETY: signal 0 sends nothing.
    unsafe { syscall_raw(libc::SYS_tgkill, [pid as usize, tid as usize, 0, 0, 0, 0]) == ESRCH }
}

/// Asks for a lock that the thread is said to own. The kernel looks for the owner, and finds none that
/// could give the lock back when the thread is dead (`kernel/futex/pi.c`: `attach_to_pi_owner`).
#[inline(always)]
fn leader_has_ended(tid: Tid) -> bool {
    // An emulator may hand on the word in another byte order than the kernel's. Then it does not know
    // that the lock is the caller's own, either.
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
            drop(go);
            thread.join().unwrap();
            testkit::until("it is gone", || has_ended(pid, tid));
        });
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
