//! Against threads that are made and end without pause.

mod common;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allthreads::sigctx::sys;
use allthreads::threadreg::procfs::TaskDir;
use common::*;
use testkit::in_child;

static STOP: AtomicBool = AtomicBool::new(false);
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Four threads that make and join others without pause.
fn creators() -> [thread::JoinHandle<()>; 4] {
    [(); 4].map(|()| {
        thread::spawn(|| {
            while !STOP.load(Ordering::Relaxed) {
                thread::spawn(|| ()).join().unwrap();
                MADE.fetch_add(1, Ordering::Relaxed);
            }
        })
    })
}

fn stop(creators: [thread::JoinHandle<()>; 4]) {
    STOP.store(true, Ordering::Relaxed);
    for creator in creators {
        creator.join().unwrap();
    }
}

/// After each call every living thread has the new value, the ones made meanwhile too.
#[test]
fn stress_10_000_calls_against_creators() {
    in_child("stress_10_000_calls_against_creators", Duration::from_secs(170), || {
        let tasks = TaskDir::open().unwrap();
        let start = Instant::now();
        let creators = creators();
        let (mut seen, mut retries) = (0u64, 0u64);
        let count = testkit::budget(10_000);
        for round in 0..count {
            let to = if round % 2 == 0 { c"even" } else { c"odd" };
            let args = [libc::PR_SET_NAME as usize, to.as_ptr() as usize, 0, 0, 0, 0];
            // SAFETY: reads a static string.
            let report = unsafe { allthreads::syscall(libc::SYS_prctl, args) }.unwrap();
            retries += u64::from(report.retries);
            for tid in tids() {
                // Gone meanwhile, some of them.
                let Ok(name) = std::fs::read(format!("/proc/self/task/{tid}/comm")) else {
                    continue;
                };
                let name = name.trim_ascii_end();
                // Nor is a call for one that had begun to end before it, and is still there.
                let ends = || tasks.stat(tid).map_or(true, |stat| stat.is_exiting());
                if name.is_empty() || name != to.to_bytes() && ends() {
                    continue;
                }
                assert_eq!(name, to.to_bytes(), "thread {tid} in round {round}");
                seen += 1;
            }
        }
        stop(creators);
        let made = MADE.load(Ordering::Relaxed);
        println!(
            "{count} calls in {:?}, {seen} values read, {made} threads made, {retries} retries",
            start.elapsed()
        );
        assert!(made > 0);
    });
}

/// A call that is not idempotent, on an attribute that `clone` hands on: had one thread made it
/// before it cloned another that made it again, or not at all, the values would differ forever.
#[test]
fn stress_exactly_once_through_clone() {
    in_child("stress_exactly_once_through_clone", Duration::from_secs(170), || {
        unsafe extern "C" fn increment(_: *mut c_void) {
            let get = [libc::PR_GET_TIMERSLACK as usize, 0, 0, 0, 0, 0];
            // SAFETY: no pointers.
            let slack = unsafe { sys::syscall_raw(libc::SYS_prctl, get) };
            let set = [libc::PR_SET_TIMERSLACK as usize, (slack + 1).cast_unsigned(), 0, 0, 0, 0];
            // SAFETY: no pointers.
            let _ = unsafe { sys::syscall_raw(libc::SYS_prctl, set) };
        }
        let get = [libc::PR_GET_TIMERSLACK as usize, 0, 0, 0, 0, 0];
        let base = plain(libc::SYS_prctl, get).unwrap().value();
        let creators = creators();
        let count = testkit::budget(3000);
        for round in 1..=count {
            // SAFETY: two raw system calls.
            unsafe { allthreads::call(increment, std::ptr::null_mut()) }.unwrap();
            // All threads must answer the same, else the results differ.
            let now = plain(libc::SYS_prctl, get).unwrap().value();
            assert_eq!(now, base + round.cast_signed() as isize);
        }
        stop(creators);
        println!("{count} increments, {} threads made", MADE.load(Ordering::Relaxed));
    });
}
