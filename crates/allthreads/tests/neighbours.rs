//! Beside everything else that a process does: other requesters, handlers, libc's own broadcast,
//! fork, vfork, foreign signals, threads that use `errno`.

mod common;

use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allthreads::sigctx::sys::{self, KernelAction, MaskHow, SaFlags, SigSet, gettid};
use allthreads::{AllThreads, Barrier, Batch, Signal};
use common::*;
use testkit::{forked, in_child};

const LIMIT: Duration = Duration::from_mins(1);

static STOP: AtomicBool = AtomicBool::new(false);
/// Rounds of all that `until_stop` runs.
static ROUNDS: AtomicUsize = AtomicUsize::new(0);

fn until_stop(mut body: impl FnMut() + Send + 'static) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut rounds = 0;
        while !STOP.load(Ordering::Relaxed) {
            body();
            rounds += 1;
            ROUNDS.fetch_add(1, Ordering::Relaxed);
        }
        rounds
    })
}

#[test]
fn concurrent_requesters_take_turns() {
    in_child("concurrent_requesters_take_turns", LIMIT, || {
        park(2);
        let count = testkit::budget(400);
        let names = [c"one", c"two", c"three", c"four"];
        for barrier in [Barrier::Strict, Barrier::Early] {
            let requesters = names.map(|to| {
                thread::spawn(move || {
                    let all = AllThreads::new().barrier(barrier);
                    for _ in 0..count {
                        all.batch(&name(to)).unwrap();
                    }
                })
            });
            for requester in requesters {
                requester.join().unwrap();
            }
            // The last one won, on all.
            let last = status(gettid(), "Name").unwrap();
            assert!(names.iter().any(|n| n.to_str().unwrap() == last), "{last}");
            assert_all("Name", &last);
        }
    });
}

/// A thread that waits for its turn can be held by an operation with another signal.
#[test]
fn requesters_with_different_signals_do_not_wait_for_each_other() {
    in_child("requesters_with_different_signals_do_not_wait_for_each_other", LIMIT, || {
        park(2);
        let count = testkit::budget(300);
        let public = Signal::Number(libc::SIGRTMIN() + 3);
        let requesters =
            [Signal::Libc33, public, Signal::Number(libc::SIGRTMIN() + 4)].map(|signal| {
                thread::spawn(move || {
                    let all = AllThreads::new().signal(signal);
                    let call = |_| all.batch(&name(c"turns")).unwrap();
                    (0..count).map(call).filter(|report| report.retries > 0).count()
                })
            });
        let retried: usize = requesters.map(|requester| requester.join().unwrap()).iter().sum();
        println!("{retried} of {} were tried again", 3 * count);
        // One or two when a signal is used for the first time, and what a busy machine does.
        assert!(retried as u64 <= 3 + count / 5, "{retried}");
    });
}

#[test]
fn a_handler_may_call_at_any_point_of_an_operation() {
    in_child("a_handler_may_call_at_any_point_of_an_operation", LIMIT, || {
        static NESTED: AtomicUsize = AtomicUsize::new(0);
        static FAILED: AtomicUsize = AtomicUsize::new(0);
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
        let (pid, requester) = (sys::getpid(), gettid());
        let seed = testkit::Rng::from_env();
        let poker = thread::spawn(move || {
            let mut random = seed;
            while !STOP.load(Ordering::Relaxed) {
                // A signal that is pending already is no loss.
                let _ = sys::tgkill(pid, requester, libc::SIGUSR1);
                thread::sleep(Duration::from_micros(30 + random.below(200)));
            }
        });
        // Until enough of them have come: how fast they do is the scheduler's business.
        let mut rounds = 0;
        while rounds < testkit::budget(2000) || NESTED.load(Ordering::Relaxed) < 10 {
            name(c"outer").apply().unwrap();
            rounds += 1;
        }
        STOP.store(true, Ordering::Relaxed);
        poker.join().unwrap();
        let nested = NESTED.load(Ordering::Relaxed);
        println!("{nested} nested operations in {rounds}");
        assert_eq!(FAILED.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn libc_broadcasts_go_on_beside_ours() {
    in_child("libc_broadcasts_go_on_beside_ours", LIMIT, || {
        static THEIRS: AtomicUsize = AtomicUsize::new(0);
        park(3);
        let libcs = [(); 2].map(|()| {
            until_stop(|| {
                // SAFETY: takes nothing.
                let gid = unsafe { libc::getegid() };
                // SAFETY: no pointers; the ids stay what they are.
                let result = unsafe { libc::setresgid(u32::MAX, gid, u32::MAX) };
                assert_eq!(result, 0);
                THEIRS.fetch_add(1, Ordering::Relaxed);
            })
        });
        let start = Instant::now();
        let (mut ours, theirs) = (0u64, || THEIRS.load(Ordering::Relaxed));
        while start.elapsed() < Duration::from_secs(3) || ours <= 20 || theirs() <= 20 {
            let to = if ours.is_multiple_of(2) { c"ours a" } else { c"ours b" };
            name(to).apply().unwrap();
            ours += 1;
        }
        STOP.store(true, Ordering::Relaxed);
        for libc in libcs {
            libc.join().unwrap();
        }
        println!("{ours} of ours, {} of libc's", theirs());
    });
}

#[test]
fn a_forked_child_calls_with_one_thread_and_with_more() {
    in_child("a_forked_child_calls_with_one_thread_and_with_more", LIMIT, || {
        park(2);
        // Operations all the time, so that children are copied from the middle of them.
        let requester = until_stop(|| {
            name(c"parent").apply().unwrap();
        });
        // std's lock of a thread that just begins is not to be copied: the child's threads would
        // wait for it.
        testkit::until("the requester asks", || ROUNDS.load(Ordering::Relaxed) != 0);
        for _ in 0..testkit::budget(100) {
            let status = forked(|| {
                name(c"child").apply().unwrap();
                park(2);
                let report = name(c"children").apply().unwrap();
                assert_eq!(report.threads, 3);
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
        assert!(requester.join().unwrap() > 0);
    });
}

/// The first process of a pid namespace has a child, made while all threads are held, that is the
/// first one of a namespace below: the ids are the same, the processes are not.
#[test]
fn a_child_that_has_its_parents_id_is_another_process() {
    static CHILD: AtomicI32 = AtomicI32::new(-1);
    unsafe extern "C" fn fork_on_requester(_: *mut c_void) {
        if gettid() != 1 {
            return;
        }
        let status = in_namespace(|| {
            // The requester has all blocked.
            mask(MaskHow::Set, SigSet::empty());
            park(2);
            let report = name(c"child").apply().unwrap();
            assert_eq!(report.threads, 3);
            assert_all("Name", "child");
        });
        CHILD.store(status.unwrap(), Ordering::Relaxed);
    }
    in_child("a_child_that_has_its_parents_id_is_another_process", LIMIT, || {
        if testkit::emulator().is_some() {
            return testkit::skip("an emulator may not wipe what it is asked to");
        }
        let status = in_namespace(|| {
            park(2);
            // SAFETY: system calls on one thread; the others are held outside of any lock.
            let report = unsafe { allthreads::call(fork_on_requester, std::ptr::null_mut()) };
            assert_eq!(report.unwrap().threads, 3);
            assert_eq!(CHILD.load(Ordering::Relaxed), 0);
        });
        assert!(status.is_none_or(|status| status == 0), "{status:?}");
    });
}

/// With a full queue, instances of `kill` may be the operation's own. Not in a child that was made
/// meanwhile, where no operation is: they are for the handler that was there before.
#[test]
fn a_child_made_in_the_middle_of_an_operation_gets_its_own_signals() {
    static GOT: AtomicUsize = AtomicUsize::new(0);
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    static CHILD: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn theirs(_: i32) {
        GOT.fetch_add(1, Ordering::Relaxed);
    }
    unsafe extern "C" fn fork_on_requester(_: *mut c_void) {
        if gettid() != REQUESTER.load(Ordering::Relaxed) {
            return;
        }
        let status = forked(|| {
            mask(MaskHow::Set, SigSet::empty());
            for round in 1..=2 {
                sys::kill(sys::getpid(), libc::SIGRTMIN() + 6).unwrap();
                assert_eq!(GOT.load(Ordering::Relaxed), round);
            }
        });
        CHILD.store(status, Ordering::Relaxed);
    }
    in_child("a_child_made_in_the_middle_of_an_operation_gets_its_own_signals", LIMIT, || {
        let signal = libc::SIGRTMIN() + 6;
        park(3);
        let action = KernelAction {
            handler: theirs as *const () as usize,
            flags: SaFlags::empty(),
            mask: SigSet::empty(),
        };
        // SAFETY: the handler is async-signal-safe.
        unsafe { sys::rt_sigaction(signal, Some(&action)) }.unwrap();
        REQUESTER.store(gettid(), Ordering::Relaxed);
        limit_queue(0);
        let all = AllThreads::new().signal(Signal::Number(signal));
        // SAFETY: system calls on one thread; the others are held outside of any lock.
        unsafe { all.call(fork_on_requester, std::ptr::null_mut()) }.unwrap();
        assert_eq!(CHILD.load(Ordering::Relaxed), 0);
        assert_eq!(GOT.load(Ordering::Relaxed), 0, "the parent's own were taken for foreign ones");
    });
}

/// A child that shares memory and whose parent thread sleeps until it ends, as `vfork` and
/// `posix_spawn` make them.
fn vforked(body: extern "C" fn(*mut c_void) -> i32) -> i32 {
    let stack = Box::leak(vec![0u8; 256 << 10].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's forever.
    let pid = unsafe { libc::clone(body, top.cast(), flags, std::ptr::null_mut()) };
    assert!(pid > 0);
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Whether such a child runs in its parent's memory; says so when not.
fn vfork_shares_memory() -> bool {
    static SHARED: AtomicBool = AtomicBool::new(false);
    extern "C" fn set(_: *mut c_void) -> i32 {
        SHARED.store(true, Ordering::Relaxed);
        0
    }
    assert_eq!(vforked(set), 0);
    let shared = SHARED.load(Ordering::Relaxed);
    if !shared {
        testkit::skip("the emulator's vfork is a fork");
    }
    shared
}

#[test]
fn a_vforked_child_leaves_its_parents_operations_alone() {
    in_child("a_vforked_child_leaves_its_parents_operations_alone", LIMIT, || {
        extern "C" fn child(_: *mut c_void) -> i32 {
            i32::from(!name(c"vforked").apply().is_ok_and(|report| report.threads == 1))
        }
        if !vfork_shares_memory() {
            return;
        }
        park(3);
        // Also as the very first operation of the process.
        for _ in 0..20 {
            assert_eq!(vforked(child), 0);
            let report = name(c"parent").apply().unwrap();
            assert_eq!(report.threads, tids().len());
            assert_all("Name", "parent");
        }
    });
}

#[test]
fn a_thread_in_vfork_is_waited_for_and_the_others_run() {
    in_child("a_thread_in_vfork_is_waited_for_and_the_others_run", LIMIT, || {
        /// Set when the operation has waited long enough, and others have run meanwhile. The child
        /// runs in this memory.
        static END: AtomicU32 = AtomicU32::new(0);
        static PROGRESS: AtomicUsize = AtomicUsize::new(0);
        static PARENT: AtomicI32 = AtomicI32::new(0);
        /// When the operation began, and how far the others were then.
        static START: OnceLock<(Instant, usize)> = OnceLock::new();
        extern "C" fn slow(_: *mut c_void) -> i32 {
            let last = Instant::now() + LIMIT;
            while END.load(Ordering::Relaxed) == 0 && Instant::now() < last {
                let _ = sys::futex_wait(&END, 0, Some(Duration::from_millis(50)));
            }
            0
        }
        if !vfork_shares_memory() {
            return;
        }
        until_stop(|| {
            let progress = PROGRESS.fetch_add(1, Ordering::Relaxed);
            if START.get().is_some_and(|&(start, before)| {
                start.elapsed() > Duration::from_millis(600) && progress > before + 100
            }) {
                END.store(1, Ordering::Relaxed);
            }
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
        START.set((Instant::now(), PROGRESS.load(Ordering::Relaxed))).unwrap();
        let all = AllThreads::new().timeout(LIMIT);
        let report = all.batch(&Batch::new().no_new_privs()).unwrap();
        println!("{report:?}");
        assert!(report.retries > 0);
        assert_eq!(END.load(Ordering::Relaxed), 1, "the others did not run on");
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
        let mut applied = 0;
        // Until a storm has passed, too: when that is, is the scheduler's business.
        while applied < testkit::budget(300) || ROUNDS.load(Ordering::Relaxed) == 0 {
            name(c"storm").apply().unwrap();
            applied += 1;
        }
        STOP.store(true, Ordering::Relaxed);
        storm.join().unwrap();
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
        static GOT: AtomicUsize = AtomicUsize::new(0);
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

/// A handler that was there before ours, one that is installed over ours and chains to it, and a
/// third one that does the same: the last one gets a signal, and hands it on to the first.
#[test]
fn the_first_handler_is_reached_through_one_that_chains_to_ours() {
    static FIRST: AtomicUsize = AtomicUsize::new(0);
    static CHAINING: AtomicUsize = AtomicUsize::new(0);
    /// What was replaced by the one that chains.
    static REPLACED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn first(_: i32) {
        FIRST.fetch_add(1, Ordering::Relaxed);
    }
    extern "C" fn chaining(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
        type Action = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        CHAINING.fetch_add(1, Ordering::Relaxed);
        let replaced = REPLACED.load(Ordering::Relaxed);
        // SAFETY: what `install` found is a handler of this kind.
        let replaced = unsafe { std::mem::transmute::<usize, Action>(replaced) };
        replaced(signal, info, context);
    }
    fn install(signal: i32, handler: usize) -> usize {
        let flags = SaFlags::SIGINFO;
        let action = KernelAction { handler, flags, mask: SigSet::empty() };
        // SAFETY: the handlers are async-signal-safe.
        unsafe { sys::rt_sigaction(signal, Some(&action)) }.unwrap().handler
    }
    in_child("the_first_handler_is_reached_through_one_that_chains_to_ours", LIMIT, || {
        let signal = libc::SIGRTMIN() + 6;
        let (first, chaining) = (first as *const () as usize, chaining as *const () as usize);
        park(2);
        let all = AllThreads::new().signal(allthreads::Signal::Number(signal));
        let raise = || sys::tgkill(sys::getpid(), gettid(), signal).unwrap();
        let got = || [&FIRST, &CHAINING].map(|count| count.swap(0, Ordering::Relaxed));

        install(signal, first);
        all.batch(&name(c"over first")).unwrap();
        raise();
        assert_eq!(got(), [1, 0]);
        REPLACED.store(install(signal, chaining), Ordering::Relaxed);
        raise();
        assert_eq!(got(), [1, 1]);
        for _ in 0..3 {
            all.batch(&name(c"over both")).unwrap();
            raise();
            assert_eq!(got(), [1, 1], "a handler was lost, or called again");
        }

        // Both chain to each other, and there is no other: once each, not forever.
        let signal = signal + 1;
        let all = AllThreads::new().signal(allthreads::Signal::Number(signal));
        all.batch(&name(c"alone")).unwrap();
        REPLACED.store(install(signal, chaining), Ordering::Relaxed);
        all.batch(&name(c"in a ring")).unwrap();
        sys::tgkill(sys::getpid(), gettid(), signal).unwrap();
        assert_eq!(got(), [0, 1]);
    });
}

/// `siginterrupt` and its like keep a handler and change its flags.
#[test]
fn flags_and_mask_that_were_changed_are_put_back() {
    in_child("flags_and_mask_that_were_changed_are_put_back", LIMIT, || {
        park(2);
        name(c"ours").apply().unwrap();
        // SAFETY: only reads.
        let ours = unsafe { sys::rt_sigaction(SIGNAL, None) }.unwrap();
        let (no_restart, open) = (ours.flags - SaFlags::RESTART, SigSet::empty());
        for changed in
            [KernelAction { flags: no_restart, ..ours }, KernelAction { mask: open, ..ours }]
        {
            // SAFETY: the handler is the same.
            unsafe { sys::rt_sigaction(SIGNAL, Some(&changed)) }.unwrap();
            name(c"again").apply().unwrap();
            // SAFETY: only reads.
            assert_eq!(unsafe { sys::rt_sigaction(SIGNAL, None) }.unwrap(), ours);
        }
    });
}

/// With a full queue, threads are summoned by signals to the whole process, and what is left of those
/// is taken out in the end; a foreign instance for the requester is not.
#[test]
fn a_foreign_signal_pending_on_the_requester_is_delivered_afterwards() {
    static GOT: AtomicUsize = AtomicUsize::new(0);
    static SENT: AtomicBool = AtomicBool::new(false);
    static REQUESTER: AtomicI32 = AtomicI32::new(0);
    extern "C" fn theirs(_: i32, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the kernel's frame.
        let code = unsafe { (*info).si_code };
        // What else comes to them here would be a signal to the whole process.
        assert_eq!(code, libc::SI_TKILL);
        GOT.fetch_add(1, Ordering::Relaxed);
    }
    unsafe extern "C" fn send_to_requester(_: *mut c_void) {
        // By one of the others, which come after the requester: it has the signal blocked by then.
        let requester = REQUESTER.load(Ordering::Relaxed);
        if gettid() != requester && !SENT.swap(true, Ordering::Relaxed) {
            limit_queue(1000);
            sys::tgkill(sys::getpid(), requester, SIGNAL).unwrap();
        }
    }
    in_child("a_foreign_signal_pending_on_the_requester_is_delivered_afterwards", LIMIT, || {
        park(20);
        let action = KernelAction {
            handler: theirs as *const () as usize,
            flags: SaFlags::SIGINFO,
            mask: SigSet::empty(),
        };
        // SAFETY: the handler is async-signal-safe.
        unsafe { sys::rt_sigaction(SIGNAL, Some(&action)) }.unwrap();
        REQUESTER.store(gettid(), Ordering::Relaxed);
        for round in 1..=10 {
            SENT.store(false, Ordering::Relaxed);
            limit_queue(0);
            // SAFETY: raw system calls.
            unsafe { allthreads::call(send_to_requester, std::ptr::null_mut()) }.unwrap();
            assert_eq!(GOT.load(Ordering::Relaxed), round);
        }
    });
}

#[test]
fn errno_of_running_threads_is_kept() {
    in_child("errno_of_running_threads_is_kept", LIMIT, || {
        static CHANGED: AtomicUsize = AtomicUsize::new(0);
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
