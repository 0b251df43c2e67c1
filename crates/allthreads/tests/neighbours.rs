//! Beside everything else that a process does: other callers, handlers, libc's own broadcast,
//! fork, vfork, foreign signals, threads that use `errno`.

mod common;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allthreads::privileges;
use allthreads::sigctx::sys::{self, KernelAction, SaFlags, SigSet, gettid};
use common::*;
use testkit::in_child;

const LIMIT: Duration = Duration::from_mins(1);

static STOP: AtomicBool = AtomicBool::new(false);

fn until_stop(mut body: impl FnMut() + Send + 'static) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut rounds = 0;
        while !STOP.load(Ordering::Relaxed) {
            body();
            rounds += 1;
        }
        rounds
    })
}

#[test]
fn concurrent_callers_take_turns() {
    in_child("concurrent_callers_take_turns", LIMIT, || {
        park(2);
        let count = testkit::budget(400);
        let names = [c"one", c"two", c"three", c"four"];
        let callers = names.map(|to| {
            thread::spawn(move || {
                for _ in 0..count {
                    name(to).apply().unwrap();
                }
            })
        });
        for caller in callers {
            caller.join().unwrap();
        }
        // The last one won, on all.
        let last = status(gettid(), "Name").unwrap();
        assert!(names.iter().any(|n| n.to_str().unwrap() == last), "{last}");
        assert_all("Name", &last);
    });
}

#[test]
fn a_handler_may_call_at_any_point_of_a_caller() {
    in_child("a_handler_may_call_at_any_point_of_a_caller", LIMIT, || {
        static NESTED: AtomicU64 = AtomicU64::new(0);
        static FAILED: AtomicU64 = AtomicU64::new(0);
        extern "C" fn nested(_: i32) {
            match name(c"nested").apply() {
                Ok(_) => NESTED.fetch_add(1, Ordering::Relaxed),
                Err(_) => FAILED.fetch_add(1, Ordering::Relaxed),
            };
        }
        let action = KernelAction {
            handler: nested as *const () as usize,
            flags: SaFlags::RESTART,
            mask: SigSet::empty(),
        };
        // SAFETY: operations are async-signal-safe.
        unsafe { sys::rt_sigaction(libc::SIGUSR1, Some(&action)) }.unwrap();
        park(3);
        let (pid, caller) = (sys::getpid(), gettid());
        let seed = testkit::Rng::from_env();
        let poker = thread::spawn(move || {
            let mut random = seed;
            while !STOP.load(Ordering::Relaxed) {
                // A signal that is pending already is no loss.
                let _ = sys::tgkill(pid, caller, libc::SIGUSR1);
                thread::sleep(Duration::from_micros(30 + random.below(200)));
            }
        });
        for _ in 0..testkit::budget(2000) {
            name(c"outer").apply().unwrap();
        }
        STOP.store(true, Ordering::Relaxed);
        poker.join().unwrap();
        let nested = NESTED.load(Ordering::Relaxed);
        println!("{nested} nested operations");
        assert!(nested > 10);
        assert_eq!(FAILED.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn libc_broadcasts_go_on_beside_ours() {
    in_child("libc_broadcasts_go_on_beside_ours", LIMIT, || {
        park(3);
        let libcs = [(); 2].map(|()| {
            until_stop(|| {
                // SAFETY: takes nothing.
                let gid = unsafe { libc::getegid() };
                // SAFETY: no pointers; the ids stay what they are.
                let result = unsafe { libc::setresgid(u32::MAX, gid, u32::MAX) };
                assert_eq!(result, 0);
            })
        });
        let start = Instant::now();
        let mut ours = 0u64;
        while start.elapsed() < Duration::from_secs(3) {
            let to = if ours.is_multiple_of(2) { c"ours a" } else { c"ours b" };
            name(to).apply().unwrap();
            ours += 1;
        }
        STOP.store(true, Ordering::Relaxed);
        let theirs: u64 = libcs.into_iter().map(|t| t.join().unwrap()).sum();
        println!("{ours} of ours, {theirs} of libc's");
        assert!(ours > 20 && theirs > 20, "{ours} of ours, {theirs} of libc's");
    });
}

#[test]
fn a_forked_child_calls_with_one_thread_and_with_more() {
    in_child("a_forked_child_calls_with_one_thread_and_with_more", LIMIT, || {
        park(2);
        // Operations all the time, so that children are copied from the middle of them.
        let caller = until_stop(|| {
            name(c"parent").apply().unwrap();
        });
        for _ in 0..testkit::budget(100) {
            let status = forked(|| {
                name(c"child").apply().unwrap();
                park(2);
                let outcome = name(c"children").apply().unwrap();
                assert_eq!(outcome.threads, 3);
                assert_all("Name", "children");
                // And its children.
                let status = forked(|| {
                    park(1);
                    assert_eq!(name(c"grandchild").apply().unwrap().threads, 2);
                });
                assert_eq!(status, 0);
            });
            assert_eq!(status, 0);
        }
        STOP.store(true, Ordering::Relaxed);
        assert!(caller.join().unwrap() > 0);
    });
}

/// A child that shares memory and whose parent thread sleeps until it ends, as `vfork` and
/// `posix_spawn` make them.
fn vforked(body: extern "C" fn(*mut c_void) -> i32) -> i32 {
    let stack = Box::leak(vec![0u8; 256 << 10].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's for ever.
    let pid = unsafe { libc::clone(body, top.cast(), flags, std::ptr::null_mut()) };
    assert!(pid > 0);
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

#[test]
fn a_vforked_child_leaves_its_parents_operations_alone() {
    in_child("a_vforked_child_leaves_its_parents_operations_alone", LIMIT, || {
        extern "C" fn child(_: *mut c_void) -> i32 {
            i32::from(!name(c"vforked").apply().is_ok_and(|outcome| outcome.threads == 1))
        }
        park(3);
        // Also as the very first operation of the process.
        for _ in 0..20 {
            assert_eq!(vforked(child), 0);
            let outcome = name(c"parent").apply().unwrap();
            assert_eq!(outcome.threads, tids().len());
            assert_all("Name", "parent");
        }
    });
}

#[test]
fn a_thread_in_vfork_is_waited_for_and_the_others_run() {
    in_child("a_thread_in_vfork_is_waited_for_and_the_others_run", LIMIT, || {
        extern "C" fn slow(_: *mut c_void) -> i32 {
            let word = std::sync::atomic::AtomicU32::new(0);
            let end = Instant::now() + Duration::from_millis(600);
            while Instant::now() < end {
                let _ = sys::futex_wait(&word, 0, Some(Duration::from_millis(50)));
            }
            0
        }
        static PROGRESS: AtomicU64 = AtomicU64::new(0);
        static PARENT: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
        until_stop(|| {
            PROGRESS.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        });
        let parent = thread::spawn(|| {
            PARENT.store(gettid(), Ordering::SeqCst);
            assert_eq!(vforked(slow), 0);
        });
        while PARENT.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        await_state(PARENT.load(Ordering::SeqCst), "D");
        let before = PROGRESS.load(Ordering::Relaxed);
        let outcome = privileges::no_new_privs().unwrap();
        println!("{outcome:?}");
        assert!(outcome.retries > 0);
        assert!(PROGRESS.load(Ordering::Relaxed) - before > 100);
        parent.join().unwrap();
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn spawned_processes_come_and_go_beside() {
    in_child("spawned_processes_come_and_go_beside", LIMIT, || {
        park(2);
        let spawner = until_stop(|| {
            assert!(std::process::Command::new("true").status().unwrap().success());
        });
        for _ in 0..testkit::budget(500) {
            name(c"beside").apply().unwrap();
        }
        STOP.store(true, Ordering::Relaxed);
        println!("{} processes", spawner.join().unwrap());
    });
}

#[test]
fn foreign_and_forged_signals_do_nothing() {
    in_child("foreign_and_forged_signals_do_nothing", LIMIT, || {
        park(3);
        name(c"before").apply().unwrap();
        let parent = sys::getpid();
        let storm = until_stop(move || {
            let status = forked(|| {
                for _ in 0..50 {
                    sys::kill(parent, SIGNAL).unwrap();
                    // Forged: the private code, and a value that must not be dereferenced. Only
                    // a full queue may refuse it.
                    let _ = sys::tgsigqueueinfo(parent, parent, SIGNAL, -60, 0xdead_beef);
                }
            });
            assert_eq!(status, 0);
        });
        for _ in 0..testkit::budget(300) {
            name(c"storm").apply().unwrap();
        }
        STOP.store(true, Ordering::Relaxed);
        assert!(storm.join().unwrap() > 0);
        assert_all("Name", "storm");
        // With no operation under way.
        sys::kill(parent, SIGNAL).unwrap();
        sys::tgsigqueueinfo(parent, gettid(), SIGNAL, -60, 0).unwrap();
        assert_all("Name", "storm");
    });
}

#[test]
fn a_handler_that_was_there_gets_its_signals() {
    in_child("a_handler_that_was_there_gets_its_signals", LIMIT, || {
        static GOT: AtomicU64 = AtomicU64::new(0);
        extern "C" fn theirs(_: i32) {
            GOT.fetch_add(1, Ordering::Relaxed);
        }
        let signal = libc::SIGRTMIN() + 6;
        let action = KernelAction {
            handler: theirs as *const () as usize,
            flags: SaFlags::empty(),
            mask: SigSet::empty(),
        };
        park(2);
        let all = allthreads::AllThreads::new().signal(allthreads::Signal::Number(signal));
        for round in 1..=10 {
            // Installed over ours each time.
            // SAFETY: the handler is async-signal-safe.
            unsafe { sys::rt_sigaction(signal, Some(&action)) }.unwrap();
            all.batch(&name(c"ours")).unwrap();
            assert_eq!(GOT.load(Ordering::Relaxed), round - 1);
            sys::tgkill(sys::getpid(), gettid(), signal).unwrap();
            assert_eq!(GOT.load(Ordering::Relaxed), round);
        }
    });
}

#[test]
fn errno_of_running_threads_is_kept() {
    in_child("errno_of_running_threads_is_kept", LIMIT, || {
        static CHANGED: AtomicU64 = AtomicU64::new(0);
        let spinners = [(); 3].map(|()| {
            // SAFETY: always a valid place.
            let errno = || unsafe { libc::__errno_location() };
            until_stop(move || {
                // SAFETY: this thread's own.
                unsafe { errno().write_volatile(12345) };
                for _ in 0..200 {
                    // SAFETY: this thread's own.
                    if unsafe { errno().read_volatile() } != 12345 {
                        CHANGED.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        for _ in 0..testkit::budget(300) {
            // Refused on every one of them, were it made there.
            plain(libc::SYS_capget, [0; 6]).unwrap_err();
            name(c"errno").apply().unwrap();
        }
        STOP.store(true, Ordering::Relaxed);
        for spinner in spinners {
            assert!(spinner.join().unwrap() > 0);
        }
        assert_eq!(CHANGED.load(Ordering::Relaxed), 0);
    });
}
