//! What `/proc` says, and what is left without it.

use std::ptr;
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, SigSet};
use testkit::{forked, in_child, proc_shows_mask, until};
use threadreg::procfs::{InKernel, TaskDir};
use threadreg::{Builder, ThreadRef, os_threads, threads};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until the thread sleeps.
fn asleep(dir: &TaskDir, thread: ThreadRef) -> i32 {
    let state = |tid| dir.stat(tid).map(|stat| stat.state);
    until("it sleeps", || thread.tid().is_some_and(|tid| state(tid) == Ok('S')));
    thread.tid().expect("it sleeps")
}

#[test]
fn proc_tells_names_and_exits() {
    in_child("proc_tells_names_and_exits", MINUTE, || {
        let dir = TaskDir::open().expect("/proc");
        let count = dir.count().expect("counts");
        let worker = Builder::new().name("a) b (c").spawn(thread::park).expect("spawns");
        let tid = asleep(&dir, worker.thread());
        assert_eq!(dir.count(), Ok(count + 1));

        let stat = dir.stat(tid).expect("read");
        assert_eq!(stat.comm.as_str(), "a) b (c");
        assert!(!stat.is_exiting() && !stat.is_kernel_worker() && stat.start_time > 0);
        let status = dir.status(tid).expect("read");
        assert_eq!(status.name.as_str(), "a) b (c");
        // SAFETY: touches no memory.
        assert_eq!(status.uid[1], unsafe { libc::geteuid() });

        // A buffer for two entries at a time shows all of them.
        let mut tids = Vec::new();
        dir.for_each_tid(&mut [0; 64], |tid| tids.push(tid)).expect("lists");
        tids.sort_unstable();
        let all = threadreg::os_threads().expect("lists");
        assert_eq!(tids, all.iter().map(|t| t.tid).collect::<Vec<_>>());

        worker.unpark();
        worker.join().expect("no panic");
        until("the kernel forgets it", || dir.count() == Ok(count));
        let error = dir.stat(tid).expect_err("gone");
        assert!(error.is_gone(), "{error}");
        assert_eq!(error.to_string(), format!("cannot read stat of thread {tid}: ENOENT (2)"));
    });
}

#[test]
fn proc_tells_masks_and_what_is_pending() {
    in_child("proc_tells_masks_and_what_is_pending", MINUTE, || {
        let signals = [libc::SIGUSR1, libc::SIGRTMAX()];
        if !signals.into_iter().all(proc_shows_mask) {
            return testkit::skip("/proc shows the signals of the emulator's host");
        }
        let dir = TaskDir::open().expect("/proc");
        let blocked = SigSet::of(libc::SIGUSR1).with(libc::SIGRTMAX());
        let worker = Builder::new().signal_mask(blocked).spawn(thread::park).expect("spawns");
        let tid = asleep(&dir, worker.thread());
        worker.thread().signal(libc::SIGUSR1).expect("sent");
        let status = dir.status(tid).expect("read");
        assert_eq!(status.blocked, blocked);
        assert_eq!(status.pending, SigSet::of(libc::SIGUSR1));
        worker.unpark();
        worker.join().expect("no panic");
    });
}

#[test]
fn proc_tells_what_a_thread_does() {
    in_child("proc_tells_what_a_thread_does", MINUTE, || {
        let dir = TaskDir::open().expect("/proc");
        let worker = Builder::new().spawn(|| {
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            thread::park();
        });
        let worker = worker.expect("spawns");
        let tid = asleep(&dir, worker.thread());
        if let Some(emulator) = testkit::emulator() {
            testkit::skip(format!("/proc shows what {emulator} does"));
        } else {
            match dir.in_kernel(tid).expect("read") {
                Some(InKernel::InCall { call, sp, pc }) => {
                    assert!(call.name().is_some_and(|name| name.starts_with("futex")), "{call}");
                    assert!(sp != 0 && pc != 0);
                }
                other => assert_eq!(other, None, "the kernel may not tell"),
            }
        }
        if let Some(served) = dir.served(tid).expect("read") {
            assert!(served.ran > Duration::from_millis(1) && served.turns > 0, "{served:?}");
        }
        worker.unpark();
        worker.join().expect("no panic");
    });
}

#[test]
fn a_listing_needs_no_more_than_the_buffer_it_is_given() {
    in_child("a_listing_needs_no_more_than_the_buffer_it_is_given", MINUTE, || {
        let mut dir = TaskDir::open().expect("/proc");
        let before = dir.count().expect("counts");
        let workers: Vec<_> = (0..40).map(|_| threadreg::spawn(thread::park)).collect();
        let count = before + workers.len();
        let mut tids = [0; 128];
        let all = dir.list(&mut tids).expect("lists");
        assert!(all.is_complete());
        assert_eq!((all.tids().len(), all.count()), (count, count));
        assert!(all.tids().is_sorted());
        let mine = |worker: &threadreg::JoinHandle<()>| {
            worker.thread().tid().is_none_or(|tid| all.tids().contains(&tid))
        };
        assert!(workers.iter().all(mine));

        let mut few = [0; 7];
        let some = dir.list(&mut few).expect("lists");
        assert!(!some.is_complete());
        assert_eq!((some.tids().len(), some.count()), (7, count), "how many there are is told");
        for worker in workers {
            worker.unpark();
            worker.join().expect("no panic");
        }
    });
}

/// Gives the calling process a `/proc` of its own: `kind` with `options`. `false`: it may not.
fn other_proc(kind: &std::ffi::CStr, options: &std::ffi::CStr) -> bool {
    // SAFETY: the process has one thread that uses files, this one.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return false;
    }
    let (root, proc) = (c"/".as_ptr(), c"/proc".as_ptr());
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: C strings, or nothing where the kernel wants nothing.
    let apart = unsafe { libc::mount(ptr::null(), root, ptr::null(), private, ptr::null()) };
    // SAFETY: C strings.
    let mounted =
        unsafe { libc::mount(kind.as_ptr(), proc, kind.as_ptr(), 0, options.as_ptr().cast()) };
    (apart, mounted) == (0, 0)
}

const NOT_ALLOWED: &str = "only the superuser can mount another /proc";

#[test]
fn without_proc_the_registered_threads_are_served() {
    in_child("without_proc_the_registered_threads_are_served", MINUTE, || {
        let me = threadreg::attach().expect("attaches");
        let worker = Builder::new().name("worker").spawn(thread::park).expect("spawns");
        until("it starts", || worker.thread().tid().is_some());
        if !other_proc(c"tmpfs", c"") {
            return testkit::skip(NOT_ALLOWED);
        }
        let error = os_threads().map(drop).expect_err("no /proc");
        assert_eq!(error.errno().raw(), libc::ENOENT, "{error}");
        assert!(error.to_string().contains("/proc/self/task"), "{error}");
        assert_eq!(threads().count(), 2);
        assert_eq!(worker.thread().signal(0), Ok(()));
        let table = threadreg::dump().to_string();
        assert!(table.contains("worker") && table.contains("registered threads only"), "{table}");
        let tid = me.thread().tid().expect("alive").to_string();
        assert!(table.contains(&tid), "{table}");
        // Creation does without it, too.
        threadreg::spawn(|| ()).join().expect("no panic");
        worker.unpark();
        worker.join().expect("no panic");
    });
}

#[test]
fn a_proc_of_an_outer_pid_namespace_is_refused() {
    in_child("a_proc_of_an_outer_pid_namespace_is_refused", MINUTE, || {
        // SAFETY: for children of this process.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return testkit::skip("only the superuser can make a pid namespace");
        }
        assert!(TaskDir::open().is_ok(), "the process itself stays where it was");
        let status = forked(|| {
            assert_eq!(sys::getpid(), 1);
            let error = TaskDir::open().map(drop).expect_err("its threads have other ids there");
            assert!(error.to_string().contains("another pid namespace"), "{error}");
            let table = threadreg::dump().to_string();
            assert!(table.contains("registered threads only"), "{table}");
        });
        assert_eq!(status, 0, "in the namespace");
    });
}

/// What was found of the first is not taken for the second, nor for the first when it is seen again.
#[test]
fn a_proc_that_is_mounted_over_another_is_looked_at() {
    in_child("a_proc_that_is_mounted_over_another_is_looked_at", MINUTE, || {
        assert!(TaskDir::open().is_ok(), "the process's own");
        // SAFETY: for children of this process.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return testkit::skip("only the superuser can make a pid namespace");
        }
        let status = forked(|| {
            let has_own_ids = || TaskDir::open().is_ok();
            for _ in 0..2 {
                assert!(!has_own_ids() && !has_own_ids(), "the outer namespace's");
                assert!(other_proc(c"proc", c""), "mounted");
                assert!(has_own_ids() && has_own_ids(), "the inner namespace's");
                // SAFETY: a C string.
                assert_eq!(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) }, 0);
            }
        });
        assert_eq!(status, 0, "in the namespace");
    });
}

/// What no kernel writes, or not every one.
#[test]
fn an_odd_proc_is_survived() {
    in_child("an_odd_proc_is_survived", MINUTE, || {
        if !other_proc(c"tmpfs", c"") {
            return testkit::skip(NOT_ALLOWED);
        }
        let tid = sys::gettid();
        let files = [(format!("task/{tid}/stat"), "7 (x) S 1"), ("status".to_owned(), "Name:\tx")];
        for name in [tid.to_string().as_str(), "2147483648", "18446744073709551617", "x"] {
            std::fs::create_dir_all(format!("/proc/self/task/{name}")).expect("made");
        }
        for (name, text) in files {
            std::fs::write(format!("/proc/self/{name}"), text).expect("written");
        }
        let mut dir = TaskDir::open().expect("opens");
        let mut tids = [0; 8];
        let all = dir.list(&mut tids).expect("lists");
        assert_eq!((all.tids(), all.count(), all.is_complete()), (&[tid][..], 4, false));
        assert_eq!(dir.stat(tid).expect_err("too short").errno().raw(), libc::EIO);
        assert!(dir.wchan(tid + 1).expect_err("no such thread").is_gone());
        let fields = "7 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21";
        std::fs::write(format!("/proc/self/task/{tid}/stat"), fields).expect("written");
        assert_eq!(dir.wchan(tid).expect("it is there").as_str(), "", "the kernel has no wchan");
    });
}

#[test]
fn a_process_sees_its_threads_under_hidepid() {
    in_child("a_process_sees_its_threads_under_hidepid", MINUTE, || {
        let worker = Builder::new().name("worker").spawn(thread::park).expect("spawns");
        until("it starts", || worker.thread().tid().is_some());
        if !other_proc(c"proc", c"hidepid=2") {
            return testkit::skip(NOT_ALLOWED);
        }
        // No rights at all: another user, no groups, and not dumpable.
        // SAFETY: reads no group.
        assert_eq!(unsafe { libc::setgroups(0, ptr::null()) }, 0);
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::setresgid(65534, 65534, 65534) }, 0);
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        assert!(std::fs::read_dir("/proc/1").is_err(), "the control: others are hidden");
        let all = os_threads().expect("its own");
        assert!(all.is_complete());
        assert!(all.iter().any(|thread| thread.registered == Some(worker.thread())));
        let dir = TaskDir::open().expect("its own");
        let tid = asleep(&dir, worker.thread());
        assert_eq!(dir.status(tid).expect("its own").name.as_str(), "worker");
        assert!(threadreg::dump().to_string().contains("worker"));
        worker.unpark();
        worker.join().expect("no panic");
    });
}
