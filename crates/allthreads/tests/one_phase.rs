//! `Barrier::OnePhase`: every thread makes the calls when it comes.
#![cfg(target_os = "linux")]

use std::ffi::c_void;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::{MaskHow, SigSet, gettid};
use allthreads::{
    AllThreads, Applied, Barrier, Batch, Error, KernelWorkers, OnDivergence, Report, Straggler,
};
use common::{
    SIGNAL, assert_all, deaf, limit_queue, mask, park, pipe, raw_clone, reader, sleep, status, tids,
};
use testkit::{child, in_child};

mod common;

const LIMIT: Duration = Duration::from_secs(50);

const ONE_PHASE: AllThreads<'static> = AllThreads::new().barrier(Barrier::OnePhase);

fn plain(number: libc::c_long, args: [usize; 6]) -> Result<Report, Error> {
    // SAFETY: the tests that use this pass no pointers.
    unsafe { ONE_PHASE.syscall(number, args) }
}

#[test]
fn threads_of_every_kind_make_the_calls_in_one_phase() {
    in_child("threads_of_every_kind_make_the_calls_in_one_phase", LIMIT, || {
        static READER: AtomicI32 = AtomicI32::new(0);
        static STOP: AtomicBool = AtomicBool::new(false);
        park(20);
        raw_clone(0);
        let (reads, mut writes) = pipe();
        let reader = reader(reads, &READER);
        let spinner = thread::spawn(|| {
            while !STOP.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        testkit::until("it reads", || READER.load(Ordering::Relaxed) != 0);
        let report = ONE_PHASE.batch(&Batch::new().no_new_privs()).unwrap();
        assert_eq!((report.threads, report.retries, report.died), (tids().len(), 0, 0));
        assert_all("NoNewPrivs", "1");
        // Again and again, with a value that changes, and beside operations that hold.
        for slack in 1000..1200 {
            let args = [libc::PR_SET_TIMERSLACK as usize, slack, 0, 0, 0, 0];
            assert_eq!(plain(libc::SYS_prctl, args).unwrap().threads, tids().len());
            let get = [libc::PR_GET_TIMERSLACK as usize, 0, 0, 0, 0, 0];
            // SAFETY: no pointers.
            let same = unsafe { allthreads::syscall(libc::SYS_prctl, get) };
            assert_eq!(same.unwrap().value(), slack as isize);
        }
        std::io::Write::write_all(&mut writes, &[7]).unwrap();
        assert_eq!(reader.join().unwrap(), 7, "its read goes on");
        STOP.store(true, Ordering::Relaxed);
        spinner.join().unwrap();
    });
}

#[test]
fn a_function_runs_once_on_every_thread_in_one_phase() {
    in_child("a_function_runs_once_on_every_thread_in_one_phase", LIMIT, || {
        unsafe extern "C" fn count(counter: *mut c_void) {
            // SAFETY: the counter below.
            let counter = unsafe { &*counter.cast::<AtomicUsize>() };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        park(30);
        for _ in 0..100 {
            let counter = AtomicUsize::new(0);
            // SAFETY: one atomic instruction, and no thread runs it when the operation is over.
            let report = unsafe { ONE_PHASE.call(count, (&raw const counter).cast_mut().cast()) };
            assert_eq!(report.unwrap().threads, tids().len());
            assert_eq!(counter.load(Ordering::Relaxed), tids().len());
        }
    });
}

#[test]
fn what_the_kernel_refuses_the_requester_no_other_thread_tries_in_one_phase() {
    let name = "what_the_kernel_refuses_the_requester_no_other_thread_tries_in_one_phase";
    in_child(name, LIMIT, || {
        park(5);
        let set = |slack| [libc::PR_SET_TIMERSLACK as usize, slack, 0, 0, 0, 0];
        let batch = Batch::new();
        // SAFETY: no pointers.
        let batch = unsafe { batch.call(libc::SYS_prctl, set(4711)) };
        // SAFETY: no pointers.
        let batch = unsafe { batch.call(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]) };
        // SAFETY: no pointers.
        let batch = unsafe { batch.call(libc::SYS_prctl, set(4712)) };
        let error = ONE_PHASE.batch(&batch).unwrap_err();
        assert_eq!(error.applied(), Applied::Calls(1), "{error}");
        let get = [libc::PR_GET_TIMERSLACK as usize, 0, 0, 0, 0, 0];
        assert_eq!(plain(libc::SYS_prctl, get).unwrap().value(), 4711);
        let error = plain(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(error.applied(), Applied::Calls(0), "{error}");
    });
}

/// The one that does not come is named, the others have made the calls, and it does not make them later.
#[test]
fn a_thread_that_does_not_come_in_one_phase_is_named_and_makes_no_call_later() {
    let name = "a_thread_that_does_not_come_in_one_phase_is_named_and_makes_no_call_later";
    in_child(name, LIMIT, || {
        static LISTENS: AtomicBool = AtomicBool::new(false);
        park(5);
        let (send, receive) = mpsc::channel();
        let body = move || {
            mask(MaskHow::Set, SigSet::of(SIGNAL));
            send.send(gettid()).unwrap();
            while !LISTENS.load(Ordering::Relaxed) {
                sleep(1);
            }
            mask(MaskHow::Set, SigSet::empty());
            loop {
                thread::park();
            }
        };
        thread::Builder::new().name("deaf one".into()).spawn(body).unwrap();
        let tid = receive.recv().unwrap();
        let short = ONE_PHASE.timeout(Duration::from_secs(1));
        let error = short.batch(&Batch::new().no_new_privs()).unwrap_err();
        assert_eq!(error.applied(), Applied::Unequal);
        let Error::Partial(partial) = &error else { panic!("{error}") };
        let named: Vec<_> = partial.missing().threads().map(Straggler::tid).collect();
        let made = tids().len() - 1;
        assert_eq!((partial.made(), partial.missing().count(), named), (made, 1, vec![tid]));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!(
                "{made} threads have made the calls and not all: 1 did not come"
            )),
            "{text}"
        );
        assert!(text.contains("deaf one") && !text.contains("nothing was applied"), "{text}");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);
        for other in tids() {
            let expected = if other == tid { "0" } else { "1" };
            assert_eq!(status(other, "NoNewPrivs").unwrap(), expected, "thread {other}");
        }
        // The signal is delivered.
        LISTENS.store(true, Ordering::Relaxed);
        testkit::until("it listens", || status(tid, "SigPnd").unwrap().ends_with("000000000"));
        sleep(20);
        assert_eq!(status(tid, "NoNewPrivs").unwrap(), "0", "it made the call later");
        let report = ONE_PHASE.batch(&Batch::new().no_new_privs()).unwrap();
        assert_eq!(report.threads, tids().len());
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn a_thread_that_comes_late_in_one_phase_is_waited_for() {
    in_child("a_thread_that_comes_late_in_one_phase_is_waited_for", LIMIT, || {
        park(5);
        deaf(SigSet::of(SIGNAL), Some(Duration::from_millis(300)));
        let report = ONE_PHASE.batch(&Batch::new().no_new_privs()).unwrap();
        assert_eq!((report.threads, report.retries), (tids().len(), 0));
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn a_thread_that_does_not_come_in_one_phase_ends_the_process_when_asked_to() {
    let test = "a_thread_that_does_not_come_in_one_phase_ends_the_process_when_asked_to";
    let body = || {
        park(2);
        deaf(SigSet::of(SIGNAL), None);
        let all = ONE_PHASE.timeout(Duration::from_millis(100)).on_divergence(OnDivergence::Abort);
        let result = all.batch(&Batch::new().no_new_privs());
        println!("survived: {result:?}");
    };
    if let Some(ended) = child(test, LIMIT, body) {
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{}", ended.output);
        assert!(ended.output.contains("deaf one"), "{}", ended.output);
        assert!(!ended.output.contains("survived"), "{}", ended.output);
    }
}

#[test]
fn results_that_differ_in_one_phase_are_a_typed_error() {
    in_child("results_that_differ_in_one_phase_are_a_typed_error", LIMIT, || {
        park(6);
        let error = plain(libc::SYS_gettid, [0; 6]).unwrap_err();
        let Error::Diverged(diverged) = &error else { panic!("{error}") };
        assert_eq!((diverged.count(), diverged.expected()), (tids().len() - 1, gettid() as isize));
    });
}

#[test]
fn an_operation_inside_one_phase_is_refused() {
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    unsafe extern "C" fn nested(_: *mut c_void) {
        let registered = allthreads::threadreg::current().is_some();
        if (registered || gettid() == REQUESTER.load(Ordering::Relaxed))
            && matches!(plain(libc::SYS_getppid, [0; 6]), Err(Error::Nested))
        {
            REFUSED.fetch_add(1, Ordering::Relaxed);
        }
    }
    in_child("an_operation_inside_one_phase_is_refused", LIMIT, || {
        static ASKS: AtomicBool = AtomicBool::new(false);
        REQUESTER.store(gettid(), Ordering::Relaxed);
        // With alternate stacks that are large enough for an operation.
        let worker = allthreads::threadreg::spawn(|| {
            while !ASKS.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            plain(libc::SYS_getppid, [0; 6]).map(|report| report.threads)
        });
        testkit::until("it runs", || worker.thread().tid().is_some());
        // SAFETY: operations are async-signal-safe.
        let report = unsafe { ONE_PHASE.call(nested, std::ptr::null_mut()) }.unwrap();
        assert_eq!(REFUSED.load(Ordering::Relaxed), 2);
        // A thread that has made the calls is inside no operation.
        ASKS.store(true, Ordering::Relaxed);
        assert_eq!(worker.join().unwrap().unwrap(), report.threads);
    });
}

/// With no room in the queue the signal goes to the whole process, and so to threads that have made the calls:
/// they make none again, and pass it on.
#[test]
fn a_second_signal_makes_no_second_call() {
    in_child("a_second_signal_makes_no_second_call", LIMIT, || {
        static COUNTERS: [AtomicUsize; 4096] = [const { AtomicUsize::new(0) }; 4096];
        unsafe extern "C" fn count(_: *mut c_void) {
            COUNTERS[gettid() as usize % COUNTERS.len()].fetch_add(1, Ordering::Relaxed);
        }
        park(20);
        limit_queue(0);
        for round in 1..=3 {
            // SAFETY: one atomic instruction.
            let report = unsafe { ONE_PHASE.call(count, std::ptr::null_mut()) };
            assert_eq!(report.unwrap().threads, tids().len());
            for tid in tids() {
                let counter = &COUNTERS[tid as usize % COUNTERS.len()];
                assert_eq!(counter.load(Ordering::Relaxed), round, "{tid}");
            }
        }
    });
}

/// Threads are made and end all the time: what they are made with is what the last operation has set, on
/// every thread that is there when it returns.
#[test]
fn stress_one_phase_against_creators() {
    in_child("stress_one_phase_against_creators", Duration::from_secs(170), || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let creators = [(); 2].map(|()| {
            thread::spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    thread::spawn(|| ()).join().unwrap();
                }
            })
        });
        let get = [libc::PR_GET_TIMERSLACK as usize, 0, 0, 0, 0, 0];
        let count = testkit::budget(1000);
        let long = ONE_PHASE.timeout(Duration::from_mins(1));
        for round in 1..=count as usize {
            let set = [libc::PR_SET_TIMERSLACK as usize, 1000 + round, 0, 0, 0, 0];
            // SAFETY: no pointers.
            unsafe { long.syscall(libc::SYS_prctl, set) }.unwrap();
            // All threads answer the same, else the results differ.
            // SAFETY: no pointers.
            let now = unsafe { allthreads::syscall(libc::SYS_prctl, get) }.unwrap();
            assert_eq!(now.value(), (1000 + round) as isize);
        }
        STOP.store(true, Ordering::Relaxed);
        for creator in creators {
            creator.join().unwrap();
        }
    });
}

#[test]
fn workers_of_the_kernel_are_refused_beforehand_in_one_phase_too() {
    in_child("workers_of_the_kernel_are_refused_beforehand_in_one_phase_too", LIMIT, || {
        park(3);
        // None is there, and all are held meanwhile.
        let all = ONE_PHASE.kernel_workers(KernelWorkers::Refuse);
        assert_eq!(all.batch(&Batch::new().no_new_privs()).unwrap().threads, tids().len());
        assert_all("NoNewPrivs", "1");
    });
}
