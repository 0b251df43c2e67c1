//! Another program in this one's place while operations are made: `threadreg::exec` waits for them, and
//! children are not reached by their signals.

mod common;

use std::ffi::c_void;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::gettid;
use allthreads::{AllThreads, Error, Signal, privileges, threadreg};
use common::*;
use testkit::{in_child, until};

const LIMIT: Duration = Duration::from_mins(1);

/// What the parent looks for, in the words of the test harness.
const END: &str = "running 1 test: this output is exec's; test result: ok";

static IN_CALL: AtomicBool = AtomicBool::new(false);
static CALL_ENDED: AtomicBool = AtomicBool::new(false);

/// Stays for long on the thread whose id it is given, and not at all on others.
unsafe extern "C" fn stay(requester: *mut c_void) {
    if gettid() as usize == requester.addr() {
        IN_CALL.store(true, SeqCst);
        let long = libc::timespec { tv_sec: 1, tv_nsec: 500_000_000 };
        // SAFETY: reads one `timespec`.
        unsafe { libc::nanosleep(&raw const long, std::ptr::null_mut()) };
        let text = b"the operation has ended\n";
        // SAFETY: reads the text.
        unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
        CALL_ENDED.store(true, SeqCst);
    }
}

/// A thread makes an operation that the calling thread has no part in and that lasts; returns when it
/// has begun.
fn long_operation_without_the_caller() -> thread::JoinHandle<()> {
    let excluded = gettid();
    let operation = thread::spawn(move || {
        let me = std::ptr::without_provenance_mut(gettid() as usize);
        // SAFETY: the function makes system calls and stores.
        unsafe { AllThreads::new().exclude(&[excluded]).call(stay, me) }.map(drop).unwrap();
    });
    until("the operation is made", || IN_CALL.load(SeqCst));
    operation
}

#[test]
fn exec_waits_for_an_operation() {
    let test = "exec_waits_for_an_operation";
    let Some(ended) = testkit::child(test, LIMIT, || {
        // One that fails lets operations go on, and waits for them like one that does not.
        let operation = long_operation_without_the_caller();
        let error = threadreg::exec(&mut Command::new("/nonexistent"));
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(CALL_ENDED.load(SeqCst), "exec did not wait");
        operation.join().unwrap();
        privileges::no_new_privs().unwrap();

        IN_CALL.store(false, SeqCst);
        let _operation = long_operation_without_the_caller();
        let mut command = Command::new("/bin/echo");
        panic!("{}", threadreg::exec(command.arg(END)));
    }) else {
        return;
    };
    assert!(ended.status.success(), "{}:\n{}", ended.status, ended.output);
    let said = |text| ended.output.matches(text).count();
    assert_eq!((said("the operation has ended"), said(END)), (2, 1), "{}", ended.output);
}

#[test]
fn an_exec_that_waits_too_long_names_the_operations_requester() {
    in_child("an_exec_that_waits_too_long_names_the_operations_requester", LIMIT, || {
        static REQUESTER: AtomicI32 = AtomicI32::new(0);
        let excluded = gettid();
        let operation = thread::spawn(move || {
            REQUESTER.store(gettid(), SeqCst);
            let me = std::ptr::without_provenance_mut(gettid() as usize);
            // SAFETY: the function makes system calls and stores.
            unsafe { AllThreads::new().exclude(&[excluded]).call(stay, me) }.map(drop).unwrap();
        });
        until("the operation is made", || IN_CALL.load(SeqCst));
        let mut command = Command::new("/nonexistent");
        let error = threadreg::exec_within(&mut command, Duration::from_millis(20));
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        let requester = REQUESTER.load(SeqCst).to_string();
        assert!(error.to_string().contains(&requester), "{error}");
        operation.join().unwrap();
        // Nothing is held after that.
        privileges::no_new_privs().unwrap();
        assert!(threadreg::try_freeze_creation().is_some());
    });
}

/// The other way round: while `exec` is at it an operation waits for its turn.
#[test]
fn an_operation_waits_for_an_exec() {
    use allthreads::sigctx::sys::SigSet;
    use std::time::Instant;
    use threadreg::{ExecHold, ExecHook};

    static EXECUTING: AtomicBool = AtomicBool::new(false);
    static RELEASED: AtomicBool = AtomicBool::new(false);

    fn linger(_: Option<Instant>) -> ExecHold {
        EXECUTING.store(true, SeqCst);
        until("an operation was refused", || RELEASED.load(SeqCst));
        ExecHold::Free
    }
    static LINGER: ExecHook = ExecHook::new(SigSet::empty, linger, || ());

    in_child("an_operation_waits_for_an_exec", LIMIT, || {
        threadreg::before_exec(&LINGER, None).unwrap();
        let executing = thread::spawn(|| {
            threadreg::exec(&mut Command::new("/nonexistent"));
        });
        until("it executes", || EXECUTING.load(SeqCst));
        // The first operation of the process: no thread knew of it when `exec` began.
        let all = AllThreads::new().timeout(Duration::from_millis(20));
        let refused = all.batch(&name(c"late")).unwrap_err();
        assert!(matches!(refused, Error::Busy { holder: Some(_), .. }), "{refused}");
        RELEASED.store(true, SeqCst);
        executing.join().unwrap();
        privileges::no_new_privs().unwrap();
    });
}

/// Programs that are started beside operations; each comes to its end.
#[test]
fn stress_programs_start_beside_operations() {
    in_child("stress_programs_start_beside_operations", 3 * LIMIT, || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let operations = thread::spawn(|| {
            while !STOP.load(SeqCst) {
                // One in vfork may not be reached in time.
                let _ = privileges::no_new_privs();
            }
        });
        for round in 0..testkit::budget(200) {
            let mut command = Command::new("/bin/true");
            if round % 2 == 1 {
                // By fork instead of vfork.
                // SAFETY: does nothing.
                unsafe { command.pre_exec(|| Ok(())) };
            }
            let status = command.status().expect("starts");
            assert!(status.success(), "{status}");
        }
        STOP.store(true, SeqCst);
        operations.join().unwrap();
    });
}

/// What the README advises where `threadreg::exec` cannot be used.
#[test]
fn stress_a_signal_that_is_ignored_by_default_harms_no_new_program() {
    let test = "stress_a_signal_that_is_ignored_by_default_harms_no_new_program";
    in_child(test, 3 * LIMIT, || {
        for _ in 0..testkit::budget(100) {
            let status = testkit::forked(|| {
                static BEGUN: AtomicBool = AtomicBool::new(false);
                let all = AllThreads::new().signal(Signal::Number(libc::SIGWINCH));
                thread::spawn(move || {
                    loop {
                        let _ = all.batch(&name(c"held"));
                        BEGUN.store(true, SeqCst);
                    }
                });
                until("operations are made", || BEGUN.load(SeqCst));
                panic!("{}", Command::new("/bin/true").exec());
            });
            assert_eq!(status, 0, "the status of the new program");
        }
    });
}
