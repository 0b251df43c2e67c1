//! Threads that the requester leaves out: each is subtracted once from those to be held, and only if it
//! takes no part indeed. If one were subtracted twice, another thread would go on with its own code while
//! all are thought to be held.

mod common;

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::{SigSet, Tid, gettid};
use allthreads::threadreg::procfs::TaskDir;
use allthreads::{AllThreads, Applied, Error};
use common::*;
use testkit::in_child;

const LIMIT: Duration = Duration::from_secs(30);

/// All but `tid`, whose name is "deaf one", are reached when `excluded` are left out.
#[track_caller]
fn leaves_out(excluded: &[Tid], tid: Tid) {
    for to in [c"others", c"once more"] {
        // A busy machine may keep others away for too long; no operation waits for those left out.
        let mut retries = 1;
        while retries > 0 {
            let report = AllThreads::new().exclude(excluded).batch(&name(to)).unwrap();
            assert_eq!(report.excluded, testkit::early_tasks().len() + 1, "{excluded:?}");
            assert_eq!(report.threads, tids().len() - 1, "{excluded:?}");
            retries = report.retries;
        }
        for other in tids() {
            let expected = if other == tid { "deaf one" } else { to.to_str().unwrap() };
            assert_eq!(status(other, "Name").as_deref(), Some(expected), "{excluded:?}");
        }
    }
}

#[test]
fn a_thread_that_is_excluded_is_left_out() {
    in_child("a_thread_that_is_excluded_is_left_out", LIMIT, || {
        park(4);
        let tid = deaf(SigSet::full(), None);
        leaves_out(&[tid], tid);
    });
}

#[test]
fn a_thread_that_is_named_twice_counts_once() {
    in_child("a_thread_that_is_named_twice_counts_once", LIMIT, || {
        park(4);
        let tid = deaf(SigSet::full(), None);
        leaves_out(&[tid, tid], tid);
        leaves_out(&[tid; allthreads::MAX_EXCLUDED], tid);
    });
}

#[test]
fn the_requester_cannot_leave_itself_out() {
    in_child("the_requester_cannot_leave_itself_out", LIMIT, || {
        park(4);
        let tid = deaf(SigSet::full(), None);
        leaves_out(&[gettid(), tid], tid);
    });
}

#[test]
fn an_id_without_a_thread_leaves_no_thread_out() {
    in_child("an_id_without_a_thread_leaves_no_thread_out", LIMIT, || {
        park(4);
        let tid = deaf(SigSet::full(), None);
        // No thread of this process, and an id beyond the kernel's.
        leaves_out(&[1, tid, i32::MAX], tid);
    });
}

#[test]
fn an_id_that_is_not_positive_is_refused() {
    in_child("an_id_that_is_not_positive_is_refused", LIMIT, || {
        park(2);
        let other = *tids().iter().find(|&&tid| tid != gettid()).unwrap();
        for bad in [-other, 0, -1, Tid::MIN] {
            let excluded = [other, bad];
            let error = AllThreads::new().exclude(&excluded).batch(&name(c"never")).unwrap_err();
            assert!(matches!(error, Error::BadThread { tid } if tid == bad), "{error:?}");
            assert_eq!(error.applied(), Applied::Calls(0));
        }
    });
}

#[test]
fn a_thread_that_is_always_excluded_is_left_out_of_every_operation() {
    in_child("a_thread_that_is_always_excluded_is_left_out_of_every_operation", LIMIT, || {
        park(4);
        let tid = deaf(SigSet::full(), None);
        let mut always = testkit::early_tasks();
        always.push(tid);
        allthreads::exclude_always(&always).unwrap();
        leaves_out(&[], tid);
        leaves_out(&[tid], tid);
        // What is refused changes nothing.
        let bad = allthreads::exclude_always(&[tid, -1]).unwrap_err();
        assert!(matches!(bad, Error::BadThread { tid: -1 }), "{bad:?}");
        let many = [tid; allthreads::MAX_EXCLUDED + 1];
        let many = allthreads::exclude_always(&many).unwrap_err();
        assert!(matches!(many, Error::TooManyExcluded { .. }), "{many:?}");
        leaves_out(&[], tid);
    });
}

/// The program vouches for a thread, not for an id: the next thread with the id takes part.
#[test]
fn the_next_thread_with_an_excluded_id_takes_part() {
    in_child("the_next_thread_with_an_excluded_id_takes_part", LIMIT, || {
        let status = in_namespace(|| {
            park(3);
            let tasks = TaskDir::open().unwrap();
            let emulator = testkit::early_tasks();
            // A thread that ends when it is told to.
            let start = || {
                let ((tell, told), (end, ends)) = (mpsc::channel(), mpsc::channel::<()>());
                let thread = thread::spawn(move || {
                    tell.send(gettid()).unwrap();
                    let _ended = ends.recv();
                });
                let tid: Tid = told.recv().unwrap();
                (tid, tasks.stat(tid).unwrap().start_time, end, thread)
            };
            let end = |tid, end, thread: thread::JoinHandle<()>| {
                drop(end);
                thread.join().unwrap();
                // The id is free a moment later than that.
                testkit::until("it ends", || tasks.stat(tid).is_err());
            };
            let (tid, start_time, ender, thread) = start();
            let mut always = emulator.clone();
            always.push(tid);
            allthreads::exclude_always(&always).unwrap();
            let report = name(c"without").apply().unwrap();
            assert_eq!(report.excluded, always.len());
            assert_eq!(report.threads, tids().len() - 1);
            assert_ne!(status(tid, "Name").as_deref(), Some("without"));
            end(tid, ender, thread);
            // Until one has the id, and began in another tick of the clock.
            let _last = loop {
                let next = (tid - 1).to_string();
                if let Err(error) = fs::write("/proc/sys/kernel/ns_last_pid", next) {
                    return testkit::skip(format!("the next id cannot be chosen: {error}"));
                }
                let next = start();
                if next.0 == tid && next.1 != start_time {
                    break next;
                }
                end(next.0, next.2, next.3);
            };
            let report = name(c"with").apply().unwrap();
            assert_eq!((report.excluded, report.threads), (emulator.len(), tids().len()));
            assert_all("Name", "with");
        });
        assert!(status.is_none_or(|status| status == 0), "{status:?}");
    });
}
