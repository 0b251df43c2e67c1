//! What an operation returns, and what it changes, when all threads come.

mod common;

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use allthreads::safepoint::{StopError, StopOptions, World};
use allthreads::sigctx::sys::{
    KernelAction, SaFlags, SigSet, getpid, gettid, rt_sigaction, tgkill,
};
use allthreads::threadreg::procfs::TaskDir;
use allthreads::{
    AllThreads, Applied, Barrier, Batch, Error, OnDivergence, Results, privileges,
    privileges::KeepCaps,
};
use common::*;
use testkit::{child, forked, in_child};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn no_new_privs_is_on_for_every_thread() {
    in_child("no_new_privs_is_on_for_every_thread", LIMIT, || {
        park(6);
        assert_all("NoNewPrivs", "0");
        let report = privileges::no_new_privs().unwrap();
        assert_eq!((report.value(), report.threads), (0, tids().len()));
        assert_all("NoNewPrivs", "1");
    });
}

#[test]
fn a_process_of_one_thread_makes_the_plain_call() {
    in_child("a_process_of_one_thread_makes_the_plain_call", LIMIT, || {
        // The harness may have a thread beside the test's: a forked child has one.
        let status = forked(|| {
            let tid = gettid() as isize;
            let report = plain(libc::SYS_gettid, [0; 6]).unwrap();
            assert_eq!((report.value(), report.threads), (tid, 1));
            let error = plain(libc::SYS_capget, [0; 6]).unwrap_err();
            assert!(matches!(error, Error::Refused { call: 0, .. }));
        });
        assert_eq!(status, 0);
    });
}

#[test]
fn results_that_differ_are_a_typed_error() {
    in_child("results_that_differ_are_a_typed_error", LIMIT, || {
        park(6);
        for barrier in [Barrier::Strict, Barrier::Early] {
            let all = AllThreads::new().barrier(barrier);
            // SAFETY: takes nothing.
            let batch = unsafe { name(c"before").call(libc::SYS_gettid, [0; 6]) };
            let error = all.batch(&batch.no_new_privs()).unwrap_err();
            println!("{error}");
            assert_eq!(error.applied(), Applied::Unequal);
            let Error::Diverged(diverged) = error else { panic!("{error:?}") };
            assert_eq!(diverged.count(), tids().len() - 1);
            assert_eq!(diverged.expected(), gettid() as isize);
            assert_eq!(diverged.threads().count(), 4);
            for thread in diverged.threads() {
                assert_eq!((thread.value, thread.call), (thread.tid as isize, 1));
            }
            // What went before is everywhere; what follows, only on the requester.
            assert_all("Name", "before");
            for tid in tids() {
                let expected = if tid == gettid() { "1" } else { "0" };
                assert_eq!(status(tid, "NoNewPrivs").as_deref(), Some(expected));
            }
            name(c"again").apply().unwrap();
        }
    });
}

#[test]
fn results_that_differ_end_the_process_when_asked_to() {
    let test = "results_that_differ_end_the_process_when_asked_to";
    let body = || {
        park(6);
        let all = AllThreads::new().on_divergence(OnDivergence::Abort);
        // SAFETY: takes nothing.
        let result = unsafe { all.syscall(libc::SYS_gettid, [0; 6]) };
        println!("survived: {result:?}");
    };
    if let Some(ended) = child(test, LIMIT, body) {
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{}", ended.output);
        assert!(ended.output.contains("allthreads: "), "{}", ended.output);
        assert!(!ended.output.contains("survived"), "{}", ended.output);
    }
}

/// The first process of a pid namespace cannot kill itself; nor may a full pipe keep it, whose
/// reader may be one of the threads that are held.
#[test]
fn results_that_differ_end_the_first_process_of_a_namespace_too() {
    in_child("results_that_differ_end_the_first_process_of_a_namespace_too", LIMIT, || {
        let status = in_namespace(|| {
            let (_reader, writer) = pipe();
            // SAFETY: both descriptors are open.
            assert_eq!(unsafe { libc::dup2(writer.as_raw_fd(), 2) }, 2);
            // SAFETY: the descriptor is open.
            unsafe { libc::fcntl(2, libc::F_SETFL, libc::O_NONBLOCK) };
            // SAFETY: the bytes live during the call.
            while unsafe { libc::write(2, [0u8; 4096].as_ptr().cast(), 4096) } > 0 {}
            // SAFETY: the descriptor is open.
            unsafe { libc::fcntl(2, libc::F_SETFL, 0) };
            park(3);
            let all = AllThreads::new().on_divergence(OnDivergence::Abort);
            // SAFETY: takes nothing.
            let _survived = unsafe { all.syscall(libc::SYS_gettid, [0; 6]) };
        });
        let Some(status) = status else { return };
        assert!(libc::WIFEXITED(status), "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 128 + libc::SIGKILL);
    });
}

#[test]
fn a_function_runs_once_on_every_thread() {
    in_child("a_function_runs_once_on_every_thread", LIMIT, || {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        static SEEN: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];
        unsafe extern "C" fn note(data: *mut c_void) {
            assert_eq!(data.addr(), 4711);
            let at = RUNS.fetch_add(1, Ordering::Relaxed);
            SEEN[at % 64].store(gettid(), Ordering::Relaxed);
        }
        park(6);
        let data = std::ptr::without_provenance_mut(4711);
        // SAFETY: only atomics and a raw system call.
        let report = unsafe { allthreads::call(note, data) }.unwrap();
        let runs = RUNS.load(Ordering::Relaxed);
        assert_eq!((runs, report.threads), (tids().len(), runs));
        let mut seen: Vec<_> = SEEN.iter().map(|t| t.load(Ordering::Relaxed)).take(runs).collect();
        seen.sort_unstable();
        let mut tids = tids();
        tids.sort_unstable();
        assert_eq!(seen, tids);
    });
}

#[test]
fn an_operation_inside_an_operation_is_refused() {
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    unsafe extern "C" fn nested(_: *mut c_void) {
        let registered = allthreads::threadreg::current().is_some();
        if (registered || gettid() == REQUESTER.load(Ordering::Relaxed))
            && matches!(privileges::no_new_privs(), Err(Error::Nested))
        {
            REFUSED.fetch_add(1, Ordering::Relaxed);
        }
    }
    in_child("an_operation_inside_an_operation_is_refused", LIMIT, || {
        REQUESTER.store(gettid(), Ordering::Relaxed);
        // With alternate stacks that are large enough for an operation.
        let ready: &AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            allthreads::threadreg::spawn(|| {
                ready.fetch_add(1, Ordering::SeqCst);
                loop {
                    thread::park();
                }
            });
        }
        while ready.load(Ordering::SeqCst) < 3 {
            thread::yield_now();
        }
        // SAFETY: operations are async-signal-safe.
        unsafe { allthreads::call(nested, std::ptr::null_mut()) }.unwrap();
        assert_eq!(REFUSED.load(Ordering::Relaxed), 4);
        assert_all("NoNewPrivs", "0");
    });
}

#[test]
fn a_batch_of_three_is_one_stop() {
    in_child("a_batch_of_three_is_one_stop", LIMIT, || {
        park(6);
        let batch = name(c"batch").keep_caps(KeepCaps::On).no_new_privs();
        let report = batch.apply().unwrap();
        assert_eq!(report.values(), [0, 0, 0]);
        assert_eq!(report.threads, tids().len());
        assert_all("Name", "batch");
        assert_all("NoNewPrivs", "1");
        let args = [libc::PR_GET_KEEPCAPS as usize, 0, 0, 0, 0, 0];
        // Every thread must answer the same, else the results differ.
        assert_eq!(plain(libc::SYS_prctl, args).unwrap().value(), 1);
    });
}

#[test]
fn results_that_differ_and_are_no_errors_will_do_when_asked_for() {
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    in_child("results_that_differ_and_are_no_errors_will_do_when_asked_for", LIMIT, || {
        park(3);
        let all = AllThreads::new().results(Results::Succeed);
        // SAFETY: takes nothing.
        let report = unsafe { all.syscall(libc::SYS_gettid, [0; 6]) }.unwrap();
        assert_eq!((report.value(), report.threads), (gettid() as isize, tids().len()));
        REQUESTER.store(gettid(), Ordering::Relaxed);
        thread::spawn(|| {
            // SAFETY: no pointers; this thread alone cannot gain privileges any more.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            REQUESTER.store(0, Ordering::SeqCst);
            loop {
                thread::park();
            }
        });
        while REQUESTER.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        let args = [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0];
        assert!(matches!(plain(libc::SYS_prctl, args), Err(Error::Diverged(_))));
        // SAFETY: no pointers.
        assert_eq!(unsafe { all.syscall(libc::SYS_prctl, args) }.unwrap().value(), 0);
    });
}

/// Has a handler run on the calling thread without this crate: the kernel calls it, and ends it.
fn raise_with(handler: extern "C" fn(i32)) {
    let action = KernelAction {
        handler: handler as *const () as usize,
        flags: SaFlags::empty(),
        mask: SigSet::empty(),
    };
    // SAFETY: the callers' handlers touch registers of the thread, and nothing else.
    unsafe { rt_sigaction(libc::SIGUSR1, Some(&action)) }.unwrap();
    tgkill(getpid(), gettid(), libc::SIGUSR1).unwrap();
}

/// All threads end alike: what a signal handler's end puts back is put back on the requester, too.
#[test]
fn what_a_function_does_to_registers_is_undone_on_every_thread() {
    #[link(name = "m")]
    unsafe extern "C" {
        safe fn fegetround() -> i32;
        safe fn fesetround(mode: i32) -> i32;
    }
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static CHANGED: AtomicUsize = AtomicUsize::new(0);
    fn changes_the_mode() -> bool {
        let before = fegetround();
        // The numbers are the architectures' own: one of these is another mode on each.
        [0x400, 0x40_0000, 1].iter().any(|&mode| fesetround(mode) == 0 && fegetround() != before)
    }
    unsafe extern "C" fn round_otherwise(_: *mut c_void) {
        CHANGED.fetch_add(usize::from(changes_the_mode()), Ordering::Relaxed);
        RUNS.fetch_add(1, Ordering::Relaxed);
    }
    extern "C" fn handler(_: i32) {
        changes_the_mode();
    }
    in_child("what_a_function_does_to_registers_is_undone_on_every_thread", LIMIT, || {
        let barrier = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            let others = [(); 3].map(|()| {
                scope.spawn(|| {
                    barrier.wait();
                    barrier.wait();
                    fegetround()
                })
            });
            barrier.wait();
            let before = fegetround();
            // The control: QEMU's user mode loses the register on MIPS.
            raise_with(handler);
            let keeps = fegetround() == before;
            fesetround(before);
            // SAFETY: touches a register of the thread, and atomics.
            let report =
                unsafe { allthreads::call(round_otherwise, std::ptr::null_mut()) }.unwrap();
            let requester = fegetround();
            barrier.wait();
            let others = others.map(|other| other.join().unwrap());
            assert_eq!(RUNS.load(Ordering::Relaxed), report.threads);
            if CHANGED.load(Ordering::Relaxed) != report.threads {
                return testkit::skip("no other rounding mode");
            }
            if !keeps {
                return testkit::skip("the end of a handler does not put the rounding mode back");
            }
            assert_eq!((requester, others), (before, [before; 3]));
        });
    });
}

/// A batch is long enough to empty the bounding set.
#[test]
fn all_capabilities_leave_the_bounding_set_in_one_stop() {
    in_child("all_capabilities_leave_the_bounding_set_in_one_stop", LIMIT, || {
        if !is_root() {
            return;
        }
        park(3);
        let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let mut batch = Batch::new();
        for capability in 0..=last {
            batch = batch.drop_bounding(capability);
        }
        let report = batch.no_new_privs().apply().unwrap();
        assert_eq!((report.values().len(), report.threads), (last as usize + 2, tids().len()));
        let tasks = TaskDir::open().unwrap();
        for tid in tids() {
            let status = tasks.status(tid).unwrap();
            assert_eq!(status.bounding_capabilities, 0, "{tid}");
            assert!(status.no_new_privs);
        }
    });
}

#[test]
fn batches_may_be_kept_and_shared() {
    static DROP: Batch<'static> = Batch::new().no_new_privs();
    const fn shared<T: Send + Sync>() {}
    const { shared::<Batch<'static>>() };
    assert_eq!(format!("{DROP:?}").matches("Syscall").count(), 1);
}

#[test]
fn ids_and_groups_change_on_every_thread() {
    in_child("ids_and_groups_change_on_every_thread", LIMIT, || {
        if !is_root() {
            return;
        }
        park(6);
        let groups = [10, 20];
        let batch = Batch::new()
            .set_groups(&groups)
            .set_resgid(Some(30), Some(30), Some(30))
            .set_resuid(Some(40), Some(40), None);
        let report = batch.apply().unwrap();
        assert_eq!(report.threads, tids().len());
        assert_all("Groups", "10 20 ");
        assert_all("Gid", "30\t30\t30\t30");
        assert_all("Uid", "40\t40\t0\t40");
        // No longer privileged, with the process perhaps not dumpable: it works all the same.
        privileges::set_resuid(None, None, Some(40)).unwrap();
        assert_all("Uid", "40\t40\t40\t40");
        let error = privileges::set_resuid(None, Some(0), None).unwrap_err();
        assert!(matches!(error, Error::Refused { call: 0, .. }), "{error:?}");
    });
}

#[test]
fn early_release_applies_the_same() {
    in_child("early_release_applies_the_same", LIMIT, || {
        park(6);
        let all = AllThreads::new().barrier(Barrier::Early);
        for round in 0..200 {
            let to = if round % 2 == 0 { c"early a" } else { c"early b" };
            let report = all.batch(&name(to)).unwrap();
            assert_eq!(report.threads, tids().len());
            assert_all("Name", to.to_str().unwrap());
        }
    });
}

/// That the world is stopped is asked from inside the operation: where the mutator happens to be when
/// the signal comes depends on the processors that there are.
#[test]
fn a_world_is_stopped_first() {
    static WORLD: OnceLock<World> = OnceLock::new();
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    static HELD: AtomicUsize = AtomicUsize::new(0);
    static POLLS: AtomicUsize = AtomicUsize::new(0);
    /// Only a thread that has the world stopped is told so.
    unsafe extern "C" fn look(_: *mut c_void) {
        if gettid() != REQUESTER.load(Ordering::SeqCst) {
            return;
        }
        let options = StopOptions::new("again").timeout(Duration::ZERO);
        match WORLD.get().unwrap().stop_from_outside_with(options) {
            Err(StopError::Nested { .. }) => drop(HELD.fetch_add(1, Ordering::SeqCst)),
            other => println!("not stopped: {other:?}"),
        }
    }
    in_child("a_world_is_stopped_first", LIMIT, || {
        let world = WORLD.get_or_init(World::new);
        REQUESTER.store(gettid(), Ordering::SeqCst);
        thread::spawn(|| {
            let mut mutator = world.attach().unwrap();
            loop {
                mutator.poll();
                POLLS.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
            }
        });
        while POLLS.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let all = AllThreads::new().world(world);
        for round in 1..=20 {
            // SAFETY: on this thread alone more than atomics, and that is refused at once.
            unsafe { all.call(look, std::ptr::null_mut()) }.unwrap();
            assert_eq!(HELD.load(Ordering::SeqCst), round);
            // It runs again.
            let before = POLLS.load(Ordering::SeqCst);
            while POLLS.load(Ordering::SeqCst) < before + 10 {
                thread::yield_now();
            }
        }
        let _mutator = world.attach().unwrap();
        let error = all.batch(&name(c"never")).unwrap_err();
        assert!(matches!(error, Error::WorldNotStopped(_)), "{error:?}");
    });
}

/// The default bound covers the stop of the world, too.
#[test]
fn a_world_that_does_not_stop_is_refused_by_default() {
    static DONE: AtomicBool = AtomicBool::new(false);
    static ATTACHED: AtomicBool = AtomicBool::new(false);
    in_child("a_world_that_does_not_stop_is_refused_by_default", LIMIT, || {
        let world = World::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _mutator = world.attach().unwrap();
                ATTACHED.store(true, Ordering::SeqCst);
                while !DONE.load(Ordering::SeqCst) {
                    sleep(1);
                }
            });
            while !ATTACHED.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let error = AllThreads::new().world(&world).batch(&name(c"never")).unwrap_err();
            assert!(matches!(error, Error::WorldNotStopped(StopError::TimedOut { .. })), "{error}");
            assert_eq!(error.applied(), Applied::Calls(0));
            DONE.store(true, Ordering::SeqCst);
        });
    });
}
