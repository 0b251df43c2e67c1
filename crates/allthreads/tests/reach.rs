//! Every thread is reached: whatever made it, whatever it does, and with the queue of signals full.

mod common;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::{self, gettid};
use allthreads::{AllThreads, Barrier, Signal, privileges};
use common::*;
use testkit::in_child;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn threads_of_a_pool_and_of_threadreg_are_reached() {
    in_child("threads_of_a_pool_and_of_threadreg_are_reached", LIMIT, || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        pool.broadcast(|_| ());
        let (started, has_started) = mpsc::channel();
        let registered = allthreads::threadreg::spawn(move || {
            started.send(gettid()).unwrap();
            loop {
                thread::park();
            }
        });
        let tid = has_started.recv().unwrap();
        assert_eq!(registered.thread().tid(), Some(tid));
        assert_eq!(status(tid, "NoNewPrivs").as_deref(), Some("0"));
        let report = privileges::no_new_privs().unwrap();
        assert_eq!(report.threads, tids().len());
        assert!(report.threads >= 6);
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn threads_that_libc_does_not_know_are_reached() {
    if cfg!(target_env = "musl") {
        return testkit::skip("musl's clone refuses to make a thread");
    }
    in_child("threads_that_libc_does_not_know_are_reached", LIMIT, || {
        park(2);
        raw_clone(0);
        // A null thread pointer: whatever touched thread-local storage would crash.
        raw_clone(libc::CLONE_SETTLS);
        for signal in [Signal::Libc33, Signal::Number(libc::SIGRTMIN() + 4)] {
            let all = AllThreads::new().signal(signal);
            assert_eq!(all.batch(&name(c"raw")).unwrap().threads, tids().len());
            assert_all("Name", "raw");
            name(c"other").apply().unwrap();
        }
    });
}

#[test]
fn a_dead_leader_is_counted_out() {
    in_child("a_dead_leader_is_counted_out", LIMIT, || {
        park(2);
        let pid = std::process::id().cast_signed();
        thread::spawn(move || {
            await_zombie(pid);
            let mut shortest = Duration::MAX;
            for round in 0..20 {
                let to = if round % 2 == 0 { c"even" } else { c"odd" };
                let report = name(to).apply().unwrap();
                // The test harness may keep another thread; the leader is none.
                assert_eq!(report.threads, tids().len() - 1);
                assert_all("Name", to.to_str().unwrap());
                if round > 0 {
                    // Known from the last time: no operation waits for it.
                    shortest = shortest.min(report.elapsed);
                }
            }
            assert!(shortest < Duration::from_millis(50), "{shortest:?}");
            // Met already, and left out as well: it is one thread.
            let excluded = [pid];
            let all = AllThreads::new().exclude(&excluded);
            for to in [c"named", c"named too"] {
                assert_eq!(all.batch(&name(to)).unwrap().threads, tids().len() - 1);
                assert_all("Name", to.to_str().unwrap());
            }
            println!("test result: ok");
            // SAFETY: the leader cannot end the process any more.
            unsafe { libc::_exit(0) }
        });
        leader_exits();
    });
}

fn await_zombie(tid: i32) {
    while status(tid, "Name").is_some() {
        sleep(1);
    }
}

/// Ends the main thread alone. The body of a test may run on another one: then the main thread
/// waits for it in `join`, and is made to end by a handler.
fn leader_exits() -> ! {
    extern "C" fn end(_: i32) {
        // SAFETY: ends this thread only; the harness's main thread only waits.
        let _ = unsafe { sys::syscall_raw(libc::SYS_exit, [0; 6]) };
    }
    let action = sys::KernelAction {
        handler: end as *const () as usize,
        flags: sys::SaFlags::empty(),
        mask: sys::SigSet::empty(),
    };
    // SAFETY: the handler is async-signal-safe.
    unsafe { sys::rt_sigaction(libc::SIGUSR2, Some(&action)) }.unwrap();
    let pid = sys::getpid();
    sys::tgkill(pid, pid, libc::SIGUSR2).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn threads_in_system_calls_are_reached_and_reads_go_on() {
    in_child("threads_in_system_calls_are_reached_and_reads_go_on", LIMIT, || {
        static READER: AtomicI32 = AtomicI32::new(0);
        static SLEEPER: AtomicI32 = AtomicI32::new(0);
        static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
        let (end, mut other) = pipe();
        let reader = reader(end, &READER);
        thread::spawn(|| {
            SLEEPER.store(gettid(), Ordering::SeqCst);
            loop {
                let long = libc::timespec { tv_sec: 5, tv_nsec: 0 };
                // SAFETY: reads the time.
                if unsafe { libc::nanosleep(&raw const long, std::ptr::null_mut()) } != 0 {
                    INTERRUPTED.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        // A mutex held: a thread in a futex wait that must go on waiting.
        let mutex: &_ = Box::leak(Box::new(std::sync::Mutex::new(0)));
        let guard = mutex.lock().unwrap();
        let waiter = thread::spawn(|| *mutex.lock().unwrap() += 1);
        while READER.load(Ordering::SeqCst) == 0 || SLEEPER.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        for _ in 0..50 {
            await_state(READER.load(Ordering::SeqCst), "S");
            await_state(SLEEPER.load(Ordering::SeqCst), "S");
            let report = name(c"blocked").apply().unwrap();
            assert_eq!(report.threads, tids().len());
        }
        std::io::Write::write_all(&mut other, b"x").unwrap();
        assert_eq!(reader.join().unwrap(), b'x');
        drop(guard);
        waiter.join().unwrap();
        // As documented: the kernel does not restart a sleep after a handler.
        println!("{} of 50 sleeps interrupted", INTERRUPTED.load(Ordering::SeqCst));
        assert!(INTERRUPTED.load(Ordering::SeqCst) > 0);
    });
}

fn full_queue(limit: libc::rlim_t, threads: usize, signal: Signal) {
    park(threads);
    limit_queue(limit);
    let all = AllThreads::new().signal(signal);
    for to in [c"full", c"still full", c"full again"] {
        let report = all.batch(&name(to)).unwrap();
        println!("{report:?}");
        assert_eq!(report.threads, tids().len());
        assert_all("Name", to.to_str().unwrap());
    }
}

#[test]
fn a_queue_without_room_is_got_round() {
    in_child("a_queue_without_room_is_got_round", LIMIT, || {
        full_queue(0, 5, Signal::Libc33);
        full_queue(0, 35, Signal::Number(libc::SIGRTMIN() + 5));
    });
}

/// The kernel offers a signal to the whole process to the main thread first, which takes no part here and
/// passes it on.
#[test]
fn a_queue_without_room_is_got_round_beside_an_excluded_main_thread() {
    in_child("a_queue_without_room_is_got_round_beside_an_excluded_main_thread", LIMIT, || {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn count(_: *mut c_void) {
            RUNS.fetch_add(1, Ordering::Relaxed);
        }
        park(5);
        limit_queue(0);
        // The test may run on the main thread.
        let requester = thread::spawn(|| {
            let main = [sys::getpid()];
            let all = AllThreads::new().exclude(&main);
            for to in [c"passed", c"passed on"] {
                let report = all.batch(&name(to)).unwrap();
                println!("{report:?}");
                assert_eq!(report.threads, tids().len() - 1);
                for tid in tids().into_iter().filter(|tid| !main.contains(tid)) {
                    assert_eq!(status(tid, "Name").as_deref(), to.to_str().ok());
                }
            }
            // SAFETY: an atomic.
            let report = unsafe { all.call(count, std::ptr::null_mut()) }.unwrap();
            assert_eq!(report.threads, RUNS.load(Ordering::Relaxed));
        });
        requester.join().unwrap();
    });
}

#[test]
fn a_queue_with_little_room_is_used_again() {
    in_child("a_queue_with_little_room_is_used_again", LIMIT, || {
        // The limit counts all processes of the user: three more than there are now.
        let queued = status(gettid(), "SigQ").unwrap();
        let queued: libc::rlim_t = queued.split('/').next().unwrap().parse().unwrap();
        full_queue(queued + 3, 40, Signal::Libc33);
    });
}

#[test]
fn threads_inside_their_exit_are_reached() {
    in_child("threads_inside_their_exit_are_reached", LIMIT, || {
        struct Slow(&'static AtomicBool);
        impl Drop for Slow {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
                loop {
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
        static EXITING: AtomicBool = AtomicBool::new(false);
        thread_local!(static SLOW: Slow = const { Slow(&EXITING) });
        thread::spawn(|| SLOW.with(|_| ()));
        while !EXITING.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let report = privileges::no_new_privs().unwrap();
        assert_eq!(report.threads, tids().len());
        assert_all("NoNewPrivs", "1");
    });
}

/// Threads exit between being listed and being signalled, and their ids are used again.
#[test]
fn stress_exits_between_listing_and_signalling() {
    in_child("stress_exits_between_listing_and_signalling", Duration::from_secs(150), || {
        static STOP: AtomicBool = AtomicBool::new(false);
        park(4);
        let makers = [(); 2].map(|()| {
            thread::spawn(|| {
                let mut made = 0u64;
                while !STOP.load(Ordering::Relaxed) {
                    let burst = [(); 16].map(|()| thread::spawn(|| ()));
                    for thread in burst {
                        thread.join().unwrap();
                        made += 1;
                    }
                }
                made
            })
        });
        let count = testkit::budget(3000);
        let mut retries = 0;
        for round in 0..count {
            let barrier = if round % 2 == 0 { Barrier::Strict } else { Barrier::Early };
            let to = if round % 3 == 0 { c"exits a" } else { c"exits b" };
            let report = AllThreads::new().barrier(barrier).batch(&name(to)).unwrap();
            retries += report.retries;
        }
        STOP.store(true, Ordering::Relaxed);
        let made: u64 = makers.into_iter().map(|m| m.join().unwrap()).sum();
        println!("{count} operations, {retries} retries, {made} threads came and went");
    });
}
