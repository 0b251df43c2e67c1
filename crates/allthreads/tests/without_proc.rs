//! Operations of a process that has no `/proc` any more, and calls that are the process's.

mod common;

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use allthreads::sigctx::sys::{self, Errno, SigSet};
use allthreads::threadreg::procfs::TaskDir;
use allthreads::{AllThreads, Batch, Error, StragglerCause, privileges};
use common::*;
use testkit::{forked, in_child};

const LIMIT: Duration = Duration::from_secs(30);
const NOBODY: Option<u32> = Some(65534);

/// An empty directory.
fn jail() -> CString {
    let path = std::env::temp_dir().join(format!("allthreads-jail-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn change_root(to: &CStr) {
    // SAFETY: the path ends in zero.
    assert_eq!(unsafe { libc::chroot(to.as_ptr()) }, 0);
    // SAFETY: the path ends in zero.
    assert_eq!(unsafe { libc::chdir(c"/".as_ptr()) }, 0);
}

#[test]
fn after_a_change_of_root_threads_are_found_by_an_open_directory() {
    in_child("after_a_change_of_root_threads_are_found_by_an_open_directory", LIMIT, || {
        if !is_root() {
            return;
        }
        let jail = jail();
        park(3);
        let tasks = TaskDir::open().unwrap();
        let threads = tids().len();
        let drop = Batch::new()
            .set_groups(&[])
            .set_resgid(NOBODY, NOBODY, NOBODY)
            .set_resuid(NOBODY, NOBODY, NOBODY);
        change_root(&jail);
        let error = privileges::no_new_privs().unwrap_err();
        assert!(matches!(error, Error::NoProc(_)), "{error:?}");
        let all = AllThreads::new().tasks(&tasks);
        assert_eq!(all.batch(&drop).unwrap().threads, threads);
        let mut seen = 0;
        tasks
            .for_each_tid(&mut [0; 1024], |tid| {
                if testkit::early_tasks().contains(&tid) {
                    return;
                }
                let status = tasks.status(tid).unwrap();
                assert_eq!((status.uid, status.gid), ([65534; 4], [65534; 4]));
                assert!(status.groups.as_slice().is_empty());
                seen += 1;
            })
            .unwrap();
        assert_eq!(seen, threads);
        assert_eq!(all.batch(&Batch::new().no_new_privs()).unwrap().threads, threads);
    });
}

/// A directory is that of one process.
#[test]
fn a_child_of_fork_opens_a_directory_of_its_own() {
    in_child("a_child_of_fork_opens_a_directory_of_its_own", LIMIT, || {
        if !is_root() {
            return;
        }
        if testkit::emulator().is_some() {
            testkit::skip("an emulator has threads of its own");
            return;
        }
        let (proc, tasks) = (std::fs::File::open("/proc").unwrap(), TaskDir::open().unwrap());
        let all = AllThreads::new().tasks(&tasks);
        change_root(&jail());
        let status = forked(|| {
            park(1);
            let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::new(libc::ESTALE)));
            let tasks = TaskDir::open_at(proc.as_fd()).unwrap();
            let all = AllThreads::new().tasks(&tasks);
            assert_eq!(all.batch(&Batch::new().no_new_privs()).unwrap().threads, 2);
        });
        assert_eq!(status, 0);
    });
}

#[test]
fn a_process_of_one_thread_needs_no_proc() {
    in_child("a_process_of_one_thread_needs_no_proc", LIMIT, || {
        if !is_root() {
            return;
        }
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator has threads of its own");
        }
        let jail = jail();
        let status = forked(|| {
            change_root(&jail);
            assert_eq!(privileges::no_new_privs().unwrap().threads, 1);
            thread::spawn(|| {
                loop {
                    thread::park();
                }
            });
            let error = privileges::no_new_privs().unwrap_err();
            assert!(matches!(error, Error::NoProc(_)), "{error:?}");
        });
        assert_eq!(status, 0);
    });
}

#[test]
fn a_call_of_the_process_is_made_once() {
    in_child("a_call_of_the_process_is_made_once", LIMIT, || {
        if !is_root() {
            return;
        }
        let jail = jail();
        park(3);
        let tasks = TaskDir::open().unwrap();
        // Neither the path nor the mask would be the same a second time.
        // SAFETY: no pointers.
        let batch = unsafe { Batch::new().call_once(libc::SYS_umask, [0o123, 0, 0, 0, 0, 0]) };
        let batch = batch.chroot(&jail).chdir(c"/").set_groups(&[4711]);
        let report = batch.apply().unwrap();
        assert_eq!(report.values()[1..], [0, 0, 0]);
        assert!(!std::path::Path::new("/proc").exists());
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::umask(0) }, 0o123);
        let me = sys::gettid();
        assert_eq!(tasks.status(me).unwrap().groups.as_slice(), [4711]);
        // No thread makes what follows a call that is refused.
        let batch = Batch::new().chdir(c"/none").set_groups(&[]);
        let error = AllThreads::new().tasks(&tasks).batch(&batch).unwrap_err();
        assert_eq!(error.to_string(), "the kernel refused chdir: ENOENT (2); nothing was applied");
    });
}

/// Landlock forbids to open files below `/proc`; an open directory can still be listed.
#[test]
fn behind_landlock_threads_are_found_by_an_open_directory() {
    in_child("behind_landlock_threads_are_found_by_an_open_directory", LIMIT, || {
        park(3);
        let tasks = TaskDir::open().unwrap();
        let threads = tids().len();
        let Some(ruleset) = no_files() else { return };
        // SAFETY: no pointers.
        let batch = unsafe {
            Batch::new()
                .no_new_privs()
                .call(libc::SYS_landlock_restrict_self, [ruleset, 0, 0, 0, 0, 0])
        };
        assert_eq!(batch.apply().unwrap().threads, threads);
        let error = privileges::no_new_privs().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EACCES));
        let all = AllThreads::new().tasks(&tasks);
        for _ in 0..10 {
            assert_eq!(all.batch(&Batch::new().no_new_privs()).unwrap().threads, threads);
        }
    });
}

/// What keeps a thread away cannot be read then; that it stays away can be told.
#[test]
fn behind_landlock_threads_that_do_not_come_are_named() {
    in_child("behind_landlock_threads_that_do_not_come_are_named", LIMIT, || {
        park(1);
        let deaf = deaf(SigSet::of(SIGNAL), None);
        let tasks = TaskDir::open().unwrap();
        let Some(ruleset) = no_files() else { return };
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: no pointers.
        let restricted =
            unsafe { sys::syscall(libc::SYS_landlock_restrict_self, [ruleset, 0, 0, 0, 0, 0]) };
        restricted.unwrap();
        let all = AllThreads::new().tasks(&tasks).timeout(Duration::from_millis(300));
        let error = all.batch(&Batch::new().no_new_privs()).unwrap_err();
        println!("{error}");
        let Error::TimedOut(late) = error else { panic!("{error:?}") };
        let named: Vec<_> = late.threads().map(|thread| (thread.tid(), thread.cause())).collect();
        assert!(named.contains(&(deaf, StragglerCause::Unknown)), "{named:?}");
    });
}

/// A ruleset by which files and directories can be read nowhere; says so when there is none.
fn no_files() -> Option<usize> {
    let handled = [1_u64 << 2 | 1 << 3];
    let args = [handled.as_ptr() as usize, size_of_val(&handled), 0, 0, 0, 0];
    // SAFETY: the kernel reads the attributes.
    let ruleset = unsafe { sys::syscall(libc::SYS_landlock_create_ruleset, args) };
    if let Err(errno) = ruleset {
        testkit::skip(format!("no Landlock: {errno}"));
    }
    ruleset.ok()
}
