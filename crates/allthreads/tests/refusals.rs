//! Operations that are refused: by a thread that does not come, or by the kernel. What is in
//! effect afterwards is looked at on every thread.
//!
//! This file is long because each refusal has its own test.

mod common;

use std::ffi::c_void;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use allthreads::sigctx::sys::{self, Errno, MaskHow, SigSet, Tid, gettid};
use allthreads::threadreg::procfs::TaskDir;
use allthreads::{
    AllThreads, Applied, Batch, Error, KernelWorkers, OnMixed, Signal, StragglerCause, privileges,
};
use common::*;
use testkit::in_child;

const LIMIT: Duration = Duration::from_secs(30);

/// The operation does not reach `tid`, whose name is "deaf one", and says so.
#[track_caller]
fn assert_unresponsive(all: &AllThreads<'_>, batch: &Batch<'_>, tid: Tid) -> StragglerCause {
    loop {
        let error = all.batch(batch).unwrap_err();
        println!("{error}");
        assert_eq!(error.applied(), Applied::Calls(0));
        let Error::TimedOut(late) = error else { panic!("{error:?}") };
        let threads: Vec<_> = late.threads().collect();
        if late.count() == 1 {
            assert_eq!((threads[0].tid(), threads.len()), (tid, 1));
            assert_eq!(threads[0].name().as_str(), "deaf one");
            return threads[0].cause();
        }
        // A busy machine may keep others away for too long, too.
        assert!(
            threads.iter().all(|t| t.tid() == tid || t.cause() == StragglerCause::Starved),
            "{late}"
        );
    }
}

/// Whether `/proc` tells which threads block a signal or have it pending; says so when not.
fn proc_shows(signals: &[i32]) -> bool {
    let shows = signals.iter().all(|&signal| testkit::proc_shows_mask(signal));
    if !shows {
        testkit::skip("/proc shows the signals of the emulator's host");
    }
    shows
}

#[test]
fn it_is_said_that_a_thread_blocks_the_signal() {
    in_child("it_is_said_that_a_thread_blocks_the_signal", LIMIT, || {
        let public = libc::SIGRTMIN() + 3;
        if !proc_shows(&[SIGNAL, public]) {
            return;
        }
        let tid = deaf(SigSet::of(SIGNAL).with(public), None);
        for signal in [Signal::Libc33, Signal::Number(public)] {
            let all = AllThreads::new().signal(signal).timeout(Duration::from_millis(200));
            assert_eq!(assert_unresponsive(&all, &name(c"never"), tid), StragglerCause::Blocked);
        }
    });
}

#[test]
fn a_masked_thread_is_named_and_nothing_is_applied() {
    in_child("a_masked_thread_is_named_and_nothing_is_applied", LIMIT, || {
        park(5);
        let tid = deaf(SigSet::of(SIGNAL), None);
        let start = Instant::now();
        let all = AllThreads::new().timeout(Duration::from_millis(400));
        all.batch(&Batch::new().no_new_privs()).unwrap_err();
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(400), "{elapsed:?}");
        assert!(elapsed < testkit::patience(Duration::from_millis(1500)), "{elapsed:?}");
        assert_unresponsive(&all, &Batch::new().no_new_privs(), tid);
        assert_all("NoNewPrivs", "0");
    });
}

/// How many signals each of `count` threads that have the signal blocked is sent by two operations.
fn queued_for(count: usize) -> Vec<usize> {
    let is_over: &_ = Box::leak(Box::new(Barrier::new(count + 1)));
    let (ready, is_ready) = mpsc::channel();
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let ready = ready.clone();
            let body = move || {
                mask(MaskHow::Block, SigSet::of(SIGNAL));
                ready.send(()).unwrap();
                is_over.wait();
                let set = SigSet::of(SIGNAL);
                let now = [0u64; 2];
                let now = &raw const now as usize;
                let args = [&raw const set as usize, 0, now, size_of::<SigSet>(), 0, 0];
                let mut queued = 0;
                // SAFETY: the set and the time live during the call.
                while unsafe { sys::syscall(libc::SYS_rt_sigtimedwait, args) }.is_ok() {
                    queued += 1;
                }
                queued
            };
            thread::Builder::new().stack_size(128 << 10).spawn(body).unwrap()
        })
        .collect();
    for _ in 0..count {
        is_ready.recv().unwrap();
    }
    let all = AllThreads::new().timeout(Duration::from_millis(300));
    for _ in 0..2 {
        let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
        println!("{error}");
        assert!(matches!(error, Error::TimedOut(late) if late.count() >= count));
    }
    is_over.wait();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_masked_thread_is_sent_one_signal_however_often_it_is_tried() {
    in_child("a_masked_thread_is_sent_one_signal_however_often_it_is_tried", LIMIT, || {
        // What is pending is not sent again.
        if proc_shows(&[SIGNAL]) {
            assert_eq!(queued_for(1), [1]);
        }
    });
}

/// The queue is the user's: all processes share its limit.
#[test]
fn many_masked_threads_are_sent_one_signal_each() {
    in_child("many_masked_threads_are_sent_one_signal_each", LIMIT, || {
        // More than an operation remembers by id.
        if proc_shows(&[SIGNAL]) {
            assert_eq!(queued_for(100), [1; 100]);
        }
    });
}

#[test]
fn a_thread_masked_for_a_while_is_waited_for() {
    in_child("a_thread_masked_for_a_while_is_waited_for", LIMIT, || {
        park(5);
        let began = Instant::now();
        let span = Duration::from_millis(1500);
        deaf(SigSet::full(), Some(span));
        let all = AllThreads::new().timeout(LIMIT);
        let report = all.batch(&Batch::new().no_new_privs()).unwrap();
        println!("{report:?}");
        assert!(report.retries > 0);
        assert!(began.elapsed() >= span, "it was not waited for");
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn libc_cannot_mask_the_default_signal() {
    in_child("libc_cannot_mask_the_default_signal", LIMIT, || {
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: a set of signals may be all zeroes.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: fills the set.
            unsafe { libc::sigfillset(&raw mut set) };
            // SAFETY: reads the set.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
            };
            send.send(()).unwrap();
            loop {
                thread::park();
            }
        });
        receive.recv().unwrap();
        let report = privileges::no_new_privs().unwrap();
        assert_eq!(report.retries, 0);
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn a_public_signal_works_and_can_be_masked() {
    in_child("a_public_signal_works_and_can_be_masked", LIMIT, || {
        park(5);
        let signal = libc::SIGRTMIN() + 3;
        let all = AllThreads::new().signal(Signal::Number(signal));
        let report = all.batch(&name(c"public")).unwrap();
        assert_eq!(report.threads, tids().len());
        assert_all("Name", "public");
        let deaf = deaf(SigSet::of(signal), None);
        let all = all.timeout(Duration::from_millis(200));
        assert_unresponsive(&all, &name(c"never"), deaf);
        for tid in tids() {
            let expected = if tid == deaf { "deaf one" } else { "public" };
            assert_eq!(status(tid, "Name").as_deref(), Some(expected));
        }
        // Reachable by the other one. Not before: what of it is left makes a thread come, too.
        name(c"other").apply().unwrap();
        assert_all("Name", "other");
    });
}

#[test]
fn signals_that_cannot_work_are_refused() {
    for signal in [0, -1, libc::SIGUSR1, 32, 1000] {
        let all = AllThreads::new().signal(Signal::Number(signal));
        let error = all.batch(&name(c"never")).unwrap_err();
        assert!(matches!(error, Error::BadSignal { signal: s } if s == signal), "{error:?}");
    }
}

#[test]
fn a_stopped_process_is_waited_for() {
    in_child("a_stopped_process_is_waited_for", LIMIT, || {
        park(3);
        let pid = std::process::id();
        // Stops all of us, the requester too, in the middle of operations, and goes on.
        let shell = format!(
            "for i in 1 2 3 4 5; do kill -STOP {pid}; sleep 0.1; kill -CONT {pid}; sleep 0.05; done"
        );
        let mut child = std::process::Command::new("sh").args(["-c", &shell]).spawn().unwrap();
        let mut count = 0;
        while child.try_wait().unwrap().is_none() {
            name(c"stopped").apply().unwrap();
            count += 1;
        }
        println!("{count} operations");
    });
}

/// The whole process is stopped for longer than an operation may take: that is no thread's fault.
#[test]
fn a_stop_that_is_longer_than_the_deadline_names_no_thread() {
    in_child("a_stop_that_is_longer_than_the_deadline_names_no_thread", LIMIT, || {
        if testkit::emulator().is_some() {
            testkit::skip("an emulator needs long to get going again");
            return;
        }
        park(3);
        let pid = std::process::id();
        let shell = format!(
            "for i in 1 2 3; do kill -STOP {pid}; sleep 2.3; kill -CONT {pid}; sleep 0.2; done"
        );
        let mut child = std::process::Command::new("sh").args(["-c", &shell]).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            // Two seconds, and a little.
            name(c"stopped").apply().unwrap();
        }
    });
}

#[test]
fn what_the_kernel_refuses_no_other_thread_tries() {
    in_child("what_the_kernel_refuses_no_other_thread_tries", LIMIT, || {
        park(4);
        let error = plain(100_000, [0; 6]).unwrap_err();
        assert!(matches!(error, Error::Refused { call: 0, errno: Errno::ENOSYS, .. }), "{error:?}");
        let error = plain(libc::SYS_capget, [0; 6]).unwrap_err();
        assert!(matches!(error, Error::Refused { call: 0, errno: Errno::EFAULT, .. }), "{error:?}");
        assert_eq!(error.applied(), Applied::Calls(0));
    });
}

#[test]
fn a_batch_refused_in_its_middle_is_equal_everywhere() {
    in_child("a_batch_refused_in_its_middle_is_equal_everywhere", LIMIT, || {
        park(4);
        let first = name(c"first");
        // SAFETY: null is refused.
        let batch = unsafe { first.call(libc::SYS_capget, [0; 6]) };
        let error = batch.no_new_privs().apply().unwrap_err();
        assert!(matches!(error, Error::Refused { call: 1, errno: Errno::EFAULT, .. }), "{error:?}");
        assert_eq!(error.applied(), Applied::Calls(1));
        assert_all("Name", "first");
        assert_all("NoNewPrivs", "0");
    });
}

#[test]
fn a_call_that_only_the_requester_may_not_make_is_made_on_no_thread() {
    in_child("a_call_that_only_the_requester_may_not_make_is_made_on_no_thread", LIMIT, || {
        if !is_root() {
            return;
        }
        park(4);
        privileges::set_groups(&[4711]).unwrap();
        let error = thread::spawn(|| {
            let nobody = 65534;
            // On this thread only. SAFETY: no pointers.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
            assert_eq!(result, 0);
            let proceed = AllThreads::new().on_mixed(OnMixed::Proceed);
            proceed.batch(&Batch::new().set_groups(&[4712])).unwrap_err()
        });
        let error = error.join().unwrap();
        assert!(matches!(error, Error::Refused { call: 0, errno: Errno::EPERM, .. }), "{error:?}");
        assert_all("Groups", "4711 ");
    });
}

/// The requester was refused a call further on: that is told beside the difference.
#[test]
fn a_refusal_is_told_beside_a_divergence() {
    in_child("a_refusal_is_told_beside_a_divergence", LIMIT, || {
        park(1);
        let no_option = [0x7fff_ffff, 0, 0, 0, 0, 0];
        // SAFETY: takes nothing.
        let batch = unsafe { Batch::new().call(libc::SYS_gettid, [0; 6]) };
        // SAFETY: no pointers; there is no such option.
        let batch = unsafe { batch.call(libc::SYS_prctl, no_option) };
        let error = batch.apply().unwrap_err();
        println!("{error}");
        let text = error.to_string();
        assert_eq!(error.errno(), Some(Errno::EINVAL));
        let Error::Diverged(diverged) = error else { panic!("{error:?}") };
        assert_eq!(diverged.refused(), Some((1, Errno::EINVAL)));
        assert!(text.ends_with("and was refused call 1: EINVAL (22)"), "{text}");
        assert_eq!(diverged.name().number(), Some(libc::SYS_gettid));
    });
}

/// A thread with other credentials would be refused what the requester is not: nothing is done.
#[test]
fn a_drop_with_mixed_credentials_is_refused_whole() {
    in_child("a_drop_with_mixed_credentials_is_refused_whole", LIMIT, || {
        if !is_root() {
            return;
        }
        park(3);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let user = 1000;
            // On this thread only. SAFETY: no pointers.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, user, user, 0) };
            tell.send((result, gettid())).unwrap();
            loop {
                thread::park();
            }
        });
        let (result, odd) = told.recv().unwrap();
        assert_eq!(result, 0);
        let drop = Batch::new().set_groups(&[4711]).set_resuid(Some(1000), Some(1000), Some(0));
        let error = drop.apply().unwrap_err();
        println!("{error}");
        assert!(matches!(error, Error::Mixed { tid, threads: 1 } if tid == odd), "{error:?}");
        assert_eq!(error.applied(), Applied::Calls(0));
        for tid in tids().into_iter().filter(|&tid| tid != odd) {
            assert_eq!(status(tid, "Uid").as_deref(), Some("0\t0\t0\t0"));
            assert_ne!(status(tid, "Groups").as_deref(), Some("4711 "));
        }
        // What needs no credentials goes on, and what is asked for.
        privileges::no_new_privs().unwrap();
        let error = AllThreads::new().on_mixed(OnMixed::Proceed).batch(&drop).unwrap_err();
        assert!(matches!(error, Error::Diverged(_)), "{error:?}");
    });
}

#[test]
fn an_error_names_the_call_and_converts() {
    in_child("an_error_names_the_call_and_converts", LIMIT, || {
        park(1);
        let error = Batch::new().no_new_privs().drop_bounding(63).apply().unwrap_err();
        let text = error.to_string();
        let begin = "the kernel refused drop_bounding(63), call 1 of the batch: E";
        assert!(text.starts_with(begin), "{text}");
        let errno = error.errno().unwrap();
        let expected = std::io::Error::from_raw_os_error(errno.raw()).kind();
        let error = std::io::Error::from(error);
        assert_eq!(error.kind(), expected);
        assert_eq!(error.to_string(), text);
    });
}

/// A thread of the kernel that polls a ring keeps its credentials.
#[test]
fn a_ring_that_is_polled_is_a_reason_to_refuse() {
    in_child("a_ring_that_is_polled_is_a_reason_to_refuse", LIMIT, || {
        park(2);
        // `struct io_uring_params`: its third word are the flags.
        let mut params = [0_u32; 30];
        params[2] = 1 << 1;
        let args = [4, params.as_mut_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: the kernel reads and writes the parameters.
        if let Err(errno) = unsafe { sys::syscall(libc::SYS_io_uring_setup, args) } {
            return testkit::skip(format!("no io_uring: {errno}"));
        }
        for refuse in [KernelWorkers::RefusePolling, KernelWorkers::Refuse] {
            let all = AllThreads::new().kernel_workers(refuse);
            let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
            println!("{error}");
            let Error::KernelWorkers { tid, workers: 1 } = error else { panic!("{error:?}") };
            assert!(status(tid, "Name").unwrap().starts_with("iou-sqp-"));
            assert_eq!(error.applied(), Applied::Calls(0));
            assert_all("NoNewPrivs", "0");
        }
        assert_eq!(privileges::no_new_privs().unwrap().kernel_workers, 1);
    });
}

#[test]
fn too_many_calls_are_refused() {
    let mut batch = Batch::new();
    for _ in 0..allthreads::MAX_CALLS {
        batch = batch.keep_caps(privileges::KeepCaps::Off);
    }
    assert_eq!(batch.apply().unwrap().values().len(), allthreads::MAX_CALLS);
    let error = batch.no_new_privs().apply().unwrap_err();
    assert!(matches!(error, Error::TooManyCalls { calls: 65 }), "{error:?}");
}

/// The operation of another thread, which leaves this one out, keeps it waiting.
#[test]
fn a_requester_that_waits_for_its_turn_in_vain_is_told_so() {
    /// Goes on when it is told to, or after ten seconds.
    unsafe extern "C" fn slow(_: *mut c_void) {
        if gettid() == REQUESTER.load(Ordering::SeqCst) {
            SLOW.store(true, Ordering::SeqCst);
            for _ in 0..10_000 {
                let _ = sys::futex_wait(&TOLD, 0, Some(Duration::from_millis(1)));
                if TOLD.load(Ordering::SeqCst) != 0 {
                    break;
                }
            }
            ENDED.store(true, Ordering::SeqCst);
        }
    }
    static ENDED: AtomicBool = AtomicBool::new(false);
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    static SLOW: AtomicBool = AtomicBool::new(false);
    static TOLD: AtomicU32 = AtomicU32::new(0);
    in_child("a_requester_that_waits_for_its_turn_in_vain_is_told_so", LIMIT, || {
        park(2);
        let me = gettid();
        let other = thread::spawn(move || {
            REQUESTER.store(gettid(), Ordering::SeqCst);
            let excluded = [me];
            let all = AllThreads::new().exclude(&excluded);
            // SAFETY: raw system calls.
            unsafe { all.call(slow, std::ptr::null_mut()) }.unwrap();
        });
        while !SLOW.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let all = AllThreads::new().timeout(Duration::from_millis(50));
        let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
        println!("{error}");
        let Error::Busy { holder, waited } = error else { panic!("{error:?}") };
        assert_eq!(holder, Some(REQUESTER.load(Ordering::SeqCst)));
        assert!(waited >= Duration::from_millis(50), "{waited:?}");
        // While the other one goes on.
        assert!(!ENDED.load(Ordering::SeqCst), "it waited for the other's end");
        assert_all("NoNewPrivs", "0");
        TOLD.store(1, Ordering::SeqCst);
        // The bit that says that a thread waits is left behind, and does no harm.
        privileges::no_new_privs().unwrap();
        other.join().unwrap();
    });
}

/// Traces a thread of the parent and stops it inside the handler: says `s` when it is, and reads
/// whether to try `a`gain or to let it go. Says `n` when it may not trace.
fn debugger(parent: i32, tid: Tid, mut said: fs::File, mut told: fs::File) {
    let ptrace = |request, data: libc::c_long| {
        let none = std::ptr::null_mut::<c_void>();
        // SAFETY: none of the requests used touches memory of this process.
        unsafe { libc::ptrace(request, tid, none, data) }
    };
    let mut go = || {
        let mut word = [0];
        told.read_exact(&mut word).is_ok_and(|()| word == *b"a")
    };
    if ptrace(libc::PTRACE_SEIZE, 0) != 0 {
        return said.write_all(b"n").unwrap();
    }
    said.write_all(b"t").unwrap();
    ptrace(libc::PTRACE_INTERRUPT, 0);
    loop {
        let mut status = 0;
        // SAFETY: writes one int.
        let stopped = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        assert!(stopped == tid && libc::WIFSTOPPED(status), "{stopped} {status:#x}");
        if status >> 16 == 0 {
            // Stopped by a signal, which it is to get.
            ptrace(libc::PTRACE_CONT, libc::WSTOPSIG(status).into());
            continue;
        }
        let status = fs::read_to_string(format!("/proc/{parent}/task/{tid}/status")).unwrap();
        let blocked = status.lines().find_map(|l| l.strip_prefix("SigBlk:\t")).unwrap();
        // Only the handler has everything blocked.
        if u128::from_str_radix(blocked, 16).unwrap() & 1 << (libc::SIGTERM - 1) != 0 {
            said.write_all(b"s").unwrap();
            if !go() {
                ptrace(libc::PTRACE_DETACH, 0);
                return;
            }
        }
        ptrace(libc::PTRACE_CONT, 0);
        sleep(1);
        ptrace(libc::PTRACE_INTERRUPT, 0);
    }
}

/// A debugger stops a thread that was held by an attempt which is over: nothing was applied, so
/// no operation need wait for it past a deadline.
#[test]
fn a_thread_stopped_on_its_way_out_is_waited_for_until_the_deadline() {
    static STOPPED: AtomicBool = AtomicBool::new(false);
    in_child("a_thread_stopped_on_its_way_out_is_waited_for_until_the_deadline", LIMIT, || {
        park(1);
        let me = gettid();
        let stopped = *tids().iter().rfind(|&&tid| tid != me).unwrap();
        // Makes every attempt one that is rolled back.
        let deaf = deaf(SigSet::of(SIGNAL), None);
        let ((mut heard, said), (told, mut tell)) = (pipe(), pipe());
        // SAFETY: no pointers. It fails where every process may trace those of its user anyway.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let parent = sys::getpid();
        // SAFETY: the child ends here; libc readies malloc for it.
        if unsafe { libc::fork() } == 0 {
            // Else the end of the parent would not be the end of what it says.
            drop((heard, tell));
            let trace = || debugger(parent, stopped, said, told);
            let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(trace)).is_ok();
            // SAFETY: ends the child alone.
            unsafe { libc::_exit(i32::from(!good)) };
        }
        drop((said, told));
        let mut hear = || {
            let mut word = [0];
            heard.read_exact(&mut word).expect("the debugger speaks");
            word[0]
        };
        if hear() == b'n' {
            return testkit::skip("no right to trace");
        }
        let limit = Duration::from_millis(100);
        let all = AllThreads::new().timeout(limit);
        loop {
            STOPPED.store(false, Ordering::SeqCst);
            let attempts = thread::spawn(move || {
                while !STOPPED.load(Ordering::SeqCst) {
                    all.batch(&Batch::new().no_new_privs()).unwrap_err();
                }
            });
            assert_eq!(hear(), b's');
            STOPPED.store(true, Ordering::SeqCst);
            attempts.join().unwrap();
            let start = Instant::now();
            let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
            println!("{error}");
            assert!(start.elapsed() < testkit::patience(10 * limit), "{:?}", start.elapsed());
            assert_eq!(error.applied(), Applied::Calls(0));
            // Not the one that has the signal blocked: the operation did not come so far.
            if let Error::TimedOut(late) = error
                && late.threads().all(|thread| thread.tid() == stopped)
            {
                assert!(late.elapsed() >= limit, "{late}");
                let causes: Vec<_> = late.threads().map(allthreads::Straggler::cause).collect();
                assert_eq!(causes, [StragglerCause::Traced], "{late}");
                break;
            }
            // Stopped before it joined, or when it had left.
            tell.write_all(b"a").unwrap();
        }
        assert_all("NoNewPrivs", "0");
        drop(tell);
        let excluded = [deaf];
        AllThreads::new().exclude(&excluded).batch(&Batch::new().no_new_privs()).unwrap();
        assert_eq!(status(stopped, "NoNewPrivs").as_deref(), Some("1"));
    });
}

#[test]
fn a_deadline_beyond_the_clock_is_none() {
    in_child("a_deadline_beyond_the_clock_is_none", LIMIT, || {
        park(2);
        let all = AllThreads::new().timeout(Duration::MAX);
        assert_eq!(all.batch(&name(c"patient")).unwrap().threads, tids().len());
        assert_all("Name", "patient");
    });
}

/// Not to be able to read what the kernel says of a thread is no sign that it is gone.
#[test]
fn a_lack_of_descriptors_is_named() {
    in_child("a_lack_of_descriptors_is_named", LIMIT, || {
        deaf(SigSet::of(SIGNAL), None);
        let tasks = TaskDir::open().unwrap();
        let next = fs::File::open("/dev/null").unwrap().as_raw_fd() as libc::rlim_t;
        let all = AllThreads::new().timeout(Duration::from_millis(300)).tasks(&tasks);
        // The list is open; none is left to read what a thread does.
        let limit = libc::rlimit { rlim_cur: next, rlim_max: next };
        // SAFETY: reads the limit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
        let Error::NoProc(error) = error else { panic!("{error:?}") };
        assert_eq!(error.errno(), Errno::EMFILE);
    });
}

#[test]
fn ids_that_mean_unchanged_are_refused() {
    let bad = Some(u32::MAX);
    let batches = [
        Batch::new().set_resuid(bad, None, None),
        Batch::new().set_resuid(None, bad, None),
        Batch::new().set_resgid(None, None, bad),
    ];
    for batch in batches {
        let error = batch.apply().unwrap_err();
        assert!(matches!(error, Error::BadId { call: 0, .. }), "{error:?}");
    }
    let batch = Batch::new().no_new_privs().set_resgid(bad, bad, bad).set_resuid(bad, bad, bad);
    let error = batch.apply().unwrap_err();
    assert!(matches!(error, Error::BadId { call: 1, .. }), "{error:?}");
    assert_eq!(error.applied(), Applied::Calls(0));
    let unchanged = Batch::new().set_resgid(None, None, None).set_resuid(None, None, None);
    assert_eq!(unchanged.apply().unwrap().values(), [0, 0]);
}
