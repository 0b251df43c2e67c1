//! Seccomp filters that end a single thread in the middle of an operation, or keep it from waking
//! others. Whichever thread it is, no other waits for it, and the next operations go on.

mod common;

use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::{self, Tid, gettid};
use allthreads::threadreg::life::has_ended;
use allthreads::{AllThreads, Barrier, Batch, Report};
use common::*;
use testkit::{forked, in_child};

const LIMIT: Duration = Duration::from_secs(40);
/// `SECCOMP_RET_KILL_THREAD`
const KILL_THREAD: u32 = 0;
/// `SECCOMP_RET_ERRNO` with `EPERM`
const REFUSE: u32 = 0x0005_0000 | libc::EPERM as u32;

/// From now on the calling thread, and it alone, cannot make a system call. False where there are no
/// filters.
#[must_use]
fn forbid(call: libc::c_long, answer: u32) -> bool {
    let filter = |code: u32, jt, k| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut program = [
        // The number of the call, the first word of `struct seccomp_data`.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0x7fff_0000),
        filter(libc::BPF_RET | libc::BPF_K, 0, answer),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
    let args = [mode, 0, &raw const program as usize, 0, 0, 0];
    // SAFETY: the kernel copies the filter.
    let result = unsafe { sys::syscall(libc::SYS_seccomp, args) };
    if let Err(errno) = result {
        testkit::skip(format!("no seccomp filters: {errno}"));
    }
    result.is_ok()
}

/// Counts as long as it runs.
static BEATS: AtomicU32 = AtomicU32::new(0);

fn beat() {
    thread::spawn(|| {
        loop {
            BEATS.fetch_add(1, Ordering::Relaxed);
            sleep(1);
        }
    });
    until_it_beats();
}

fn until_it_beats() {
    let before = BEATS.load(Ordering::Relaxed);
    testkit::until("others go on", || BEATS.load(Ordering::Relaxed) > before + 2);
}

/// A thread that spins in its own code, with one system call forbidden.
fn spinner(call: libc::c_long) -> Option<Tid> {
    static SPIN: AtomicBool = AtomicBool::new(true);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let tid = gettid();
        // The other end must be woken, before that is forbidden.
        tell.send(tid).unwrap();
        drop(tell);
        while SPIN.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let tid = told.recv().unwrap();
    forbid_on(tid, call).then_some(tid)
}

/// Has a thread forbid itself a call, in a signal handler.
fn forbid_on(tid: Tid, call: libc::c_long) -> bool {
    static CALL: AtomicIsize = AtomicIsize::new(0);
    static DONE: AtomicU32 = AtomicU32::new(0);
    extern "C" fn handler(_: i32) {
        let done = forbid(CALL.load(Ordering::SeqCst) as libc::c_long, KILL_THREAD);
        DONE.store(if done { 1 } else { 2 }, Ordering::SeqCst);
    }
    CALL.store(call as isize, Ordering::SeqCst);
    DONE.store(0, Ordering::SeqCst);
    let action = sys::KernelAction {
        handler: handler as *const () as usize,
        flags: sys::SaFlags::empty(),
        mask: sys::SigSet::empty(),
    };
    // SAFETY: the handler makes system calls.
    unsafe { sys::rt_sigaction(libc::SIGUSR1, Some(&action)) }.unwrap();
    sys::tgkill(sys::getpid(), tid, libc::SIGUSR1).unwrap();
    testkit::until("it is forbidden", || DONE.load(Ordering::SeqCst) != 0);
    DONE.load(Ordering::SeqCst) == 1
}

fn operation() -> Report {
    operation_with(Barrier::Strict)
}

fn operation_with(barrier: Barrier) -> Report {
    // A call that nothing else here makes.
    let args = [libc::PR_SET_TIMERSLACK as usize, 1_000_000, 0, 0, 0, 0];
    // SAFETY: no pointers.
    let batch = unsafe { Batch::new().call(libc::SYS_getpgid, [0; 6]) };
    // SAFETY: no pointers.
    let batch = unsafe { batch.call(libc::SYS_prctl, args) };
    AllThreads::new().timeout(LIMIT).barrier(barrier).batch(&batch).expect("the operation")
}

#[test]
fn a_thread_that_a_filter_kills_in_one_phase_is_not_waited_for() {
    in_child("a_thread_that_a_filter_kills_in_one_phase_is_not_waited_for", LIMIT, || {
        park(2);
        beat();
        // Before it has joined, in the middle of the calls, on its way out.
        for (call, died) in [
            (libc::SYS_gettid, 0),
            (libc::SYS_getpgid, 1),
            (libc::SYS_prctl, 1),
            (libc::SYS_rt_sigreturn, 0),
        ] {
            let Some(tid) = spinner(call) else { return };
            let report = operation_with(Barrier::OnePhase);
            println!("system call {call}: {report:?}");
            testkit::until("it is dead", || status(tid, "Name").is_none());
            assert_eq!(report.died, died, "system call {call}");
            // Nothing is left of it.
            let next = operation_with(Barrier::OnePhase);
            assert_eq!((next.threads, next.died), (tids().len(), 0));
            until_it_beats();
        }
    });
}

#[test]
fn a_held_thread_that_a_filter_kills_is_not_waited_for() {
    in_child("a_held_thread_that_a_filter_kills_is_not_waited_for", LIMIT, || {
        park(2);
        beat();
        // On its way in, while it waits, in the middle of the calls.
        for call in [libc::SYS_gettid, libc::SYS_futex, libc::SYS_getpgid, libc::SYS_prctl] {
            let Some(tid) = spinner(call) else { return };
            let threads = tids().len();
            let mut report = operation();
            // In an operation that is over soon no thread waits by the call.
            testkit::until("it makes the call", || {
                let has_died = report.threads < threads;
                if !has_died {
                    report = operation();
                }
                has_died
            });
            println!("system call {call}: {report:?}");
            testkit::until("it is dead", || status(tid, "Name").is_none());
            assert_eq!(report.threads, tids().len());
            // Nothing is left of it.
            let next = operation();
            assert_eq!((next.threads, next.died), (tids().len(), 0));
            until_it_beats();
        }
    });
}

#[test]
fn a_requester_that_a_filter_kills_leaves_no_thread_behind() {
    in_child("a_requester_that_a_filter_kills_leaves_no_thread_behind", LIMIT, || {
        park(2);
        beat();
        // While it gathers, in its calls, while it wakes the others.
        for call in
            [libc::SYS_rt_tgsigqueueinfo, libc::SYS_getpgid, libc::SYS_prctl, libc::SYS_futex]
        {
            let (tell, told) = mpsc::channel();
            thread::spawn(move || {
                let tid = gettid();
                // Not dropped by a thread that cannot wake any more.
                std::mem::ManuallyDrop::new(tell).send(tid).unwrap();
                if !forbid(call, KILL_THREAD) {
                    return;
                }
                operation();
                println!("the requester survived");
                std::process::abort();
            });
            let tid = told.recv().unwrap();
            // Without libc's locks, on which a wake that ends the requester leaves others asleep.
            testkit::until("the requester is dead", || has_ended(sys::getpid(), tid));
            // Without another operation.
            until_it_beats();
            assert_eq!(operation().threads, tids().len());
        }
    });
}

/// A requester has `threadreg` make no thread while it gathers.
#[test]
fn threads_are_made_when_a_filter_has_killed_a_requester() {
    in_child("threads_are_made_when_a_filter_has_killed_a_requester", LIMIT, || {
        park(2);
        // From here on operations freeze the creation of threads.
        threadreg::spawn(|| ()).join().unwrap();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            tell.send(gettid()).unwrap();
            if forbid(libc::SYS_rt_tgsigqueueinfo, KILL_THREAD) {
                operation();
                println!("the requester survived");
                std::process::abort();
            }
        });
        let tid = told.recv().unwrap();
        testkit::until("the requester is dead", || status(tid, "Name").is_none());
        threadreg::spawn(|| ()).join().unwrap();
    });
}

/// The main thread stays a thread of the process when it is dead.
#[test]
fn a_main_thread_that_a_filter_kills_leaves_no_thread_behind() {
    in_child("a_main_thread_that_a_filter_kills_leaves_no_thread_behind", LIMIT, || {
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator's main thread is not the program's");
        }
        for call in [libc::SYS_getpgid, libc::SYS_futex] {
            let status = forked(|| {
                static LOOKS: AtomicBool = AtomicBool::new(false);
                let pid = sys::getpid();
                beat();
                thread::spawn(move || {
                    LOOKS.store(true, Ordering::SeqCst);
                    testkit::until("the main thread is dead", || has_ended(pid, pid));
                    until_it_beats();
                    let report = operation();
                    let good = report.threads == tids().len() - 1;
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(if good { 42 } else { 1 }) };
                });
                // It allocates nothing from here on: it could wait for libc's lock, which this thread, ended
                // by the wake, would leave it to wait for.
                testkit::until("the other looks", || LOOKS.load(Ordering::SeqCst));
                if forbid(call, KILL_THREAD) {
                    operation();
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(43) };
            });
            assert!(libc::WIFEXITED(status), "{status:#x}");
            match libc::WEXITSTATUS(status) {
                42 => {}
                43 => return testkit::skip("no seccomp filters"),
                other => panic!("{other}"),
            }
        }
    });
}

/// The filter keeps the requester from waking others, and so they look again.
#[test]
fn a_requester_that_cannot_wake_others_does_not_keep_them() {
    static DONE: AtomicBool = AtomicBool::new(false);
    in_child("a_requester_that_cannot_wake_others_does_not_keep_them", LIMIT, || {
        park(2);
        beat();
        thread::spawn(|| {
            if forbid(libc::SYS_futex, REFUSE) {
                println!("{:?}", operation());
            }
            DONE.store(true, Ordering::SeqCst);
            loop {
                // Not a park, which it could not make.
                sleep(1000);
            }
        });
        testkit::until("it has called", || DONE.load(Ordering::SeqCst));
        until_it_beats();
        operation();
    });
}
