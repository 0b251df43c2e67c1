//! Spawning: a thread is listed before it exists, none is made while creation is frozen, and none stays
//! listed when it cannot be made.

use std::collections::BTreeSet;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use sigctx::handler::{Delivery, Flow, Options, install};
use sigctx::sys::{self, MaskHow, SigSet};
use testkit::{budget, in_child, patience, until};
use threadreg::procfs::TaskDir;
use threadreg::{
    Builder, freeze_creation, freeze_creation_within, never_block, threads, try_freeze_creation,
};

const MINUTE: Duration = Duration::from_mins(1);

/// The ids of all threads of the process whose name in the kernel begins with `prefix`.
fn named(prefix: &str) -> BTreeSet<i32> {
    let dir = TaskDir::open().expect("/proc");
    let all = threadreg::os_threads().expect("/proc");
    all.iter()
        .map(|thread| thread.tid)
        .filter(|&tid| dir.stat(tid).is_ok_and(|stat| stat.comm.as_str().starts_with(prefix)))
        .collect()
}

/// T1, T6. Under a freeze the listed threads are exactly those that the kernel has.
#[test]
fn stress_frozen_list_is_the_kernels_list() {
    in_child("stress_frozen_list_is_the_kernels_list", 3 * MINUTE, || {
        /// The round that threads stay in while creation is frozen; 0 between two.
        static PAUSE: AtomicUsize = AtomicUsize::new(0);
        /// A round, and how many threads stay in it.
        static STAYING: AtomicUsize = AtomicUsize::new(0);
        static STOP: AtomicBool = AtomicBool::new(false);
        static MADE: AtomicUsize = AtomicUsize::new(0);
        fn stay_while_frozen() {
            let round = PAUSE.load(SeqCst);
            let count = |staying: usize| (staying >> 16 == round).then_some(staying + 1);
            if round != 0 && STAYING.fetch_update(SeqCst, SeqCst, count).is_ok() {
                while PAUSE.load(SeqCst) == round {
                    thread::yield_now();
                }
            }
        }
        let creators: Vec<_> = (0..3)
            .map(|_| {
                thread::spawn(|| {
                    let mut last = None;
                    while !STOP.load(SeqCst) {
                        let body = || {
                            assert!(threadreg::current().is_some_and(|me| me.tid().is_some()));
                            stay_while_frozen();
                        };
                        let made = Builder::new().name("storm").stack_size(65536).spawn(body);
                        MADE.fetch_add(1, SeqCst);
                        if let Some(last) = last.replace(made.expect("spawns")) {
                            last.join().expect("no panic");
                        }
                    }
                    drop(last.map(threadreg::JoinHandle::join));
                })
            })
            .collect();
        let (mut seen, mut rounds) = (0, 0);
        // Until some were alive while frozen, too: when that is, is the scheduler's business.
        while rounds < budget(300) || seen == 0 {
            rounds += 1;
            STAYING.store((rounds as usize) << 16, SeqCst);
            PAUSE.store(rounds as usize, SeqCst);
            let frozen = freeze_creation();
            frozen.wait_all_started(MINUTE).expect("all start");
            let listed = || threads().filter_map(|t| t.tid()).collect::<BTreeSet<_>>();
            // Threads on their way out are unlisted first and vanish then; the others stay.
            until("listed threads are the kernel's", || {
                let named = named("storm");
                named == listed() && named.len() == STAYING.load(SeqCst) & 0xffff
            });
            let before = MADE.load(SeqCst);
            let these = listed();
            seen += these.len();
            for _ in 0..3 {
                thread::yield_now();
                assert_eq!(listed(), these, "listed while frozen");
                assert_eq!(named("storm"), these, "made while frozen");
            }
            // A creator that was between its clone and this count when creation froze.
            assert!(MADE.load(SeqCst) <= before + 3, "spawned while frozen");
            frozen.thaw();
            PAUSE.store(0, SeqCst);
            let made = MADE.load(SeqCst);
            until("creation goes on", || MADE.load(SeqCst) > made);
        }
        STOP.store(true, SeqCst);
        for creator in creators {
            creator.join().expect("no panic");
        }
        assert_eq!(threads().count(), 0);
        println!("{} threads made, {rounds} freezes, {seen} threads compared", MADE.load(SeqCst));
    });
}

/// T1. A thread is listed before its first instruction.
#[test]
fn stress_every_thread_finds_itself_listed() {
    in_child("stress_every_thread_finds_itself_listed", MINUTE, || {
        for _ in 0..budget(2000) {
            let worker = threadreg::spawn(|| {
                let me = threadreg::current().expect("registered");
                assert!(threads().any(|thread| thread == me), "runs unlisted");
                me
            });
            let thread = worker.thread();
            assert_eq!(worker.join().expect("listed"), thread);
            assert!(!thread.is_alive());
        }
    });
}

/// T5. A creator that waits for the lock can be signalled.
#[test]
fn a_creator_that_waits_for_a_freeze_hears_signals() {
    fn count(_: &mut Delivery<'_>) -> Flow {
        HEARD.fetch_add(1, SeqCst);
        Flow::Resume
    }
    static HEARD: AtomicUsize = AtomicUsize::new(0);
    in_child("a_creator_that_waits_for_a_freeze_hears_signals", MINUTE, || {
        // SAFETY: the handler touches one atomic.
        unsafe { install(libc::SIGUSR1, count, Options::new()) }.expect("installs");
        let frozen = freeze_creation();
        assert!(try_freeze_creation().is_none());
        let made = Arc::new(AtomicBool::new(false));
        let (send, receive) = mpsc::channel();
        let creator = {
            let made = made.clone();
            thread::spawn(move || {
                send.send(sys::gettid()).expect("listened to");
                let worker = threadreg::spawn(move || made.store(true, SeqCst));
                worker.join().expect("no panic");
            })
        };
        let tid = receive.recv().expect("sent");
        until("the creator sleeps", || testkit::is_asleep(tid));
        for sent in 1..=3 {
            sys::tgkill(sys::getpid(), tid, libc::SIGUSR1).expect("sent");
            until("the creator hears it", || HEARD.load(SeqCst) == sent);
        }
        assert!(!made.load(SeqCst) && threads().count() == 0, "made while frozen");
        drop(frozen);
        creator.join().expect("no panic");
        assert!(made.load(SeqCst));
        drop(try_freeze_creation().expect("free again"));
    });
}

/// T3. No listed thread, no lock and no mask is left behind.
#[test]
fn a_clone_that_fails_leaves_nothing_listed() {
    in_child("a_clone_that_fails_leaves_nothing_listed", MINUTE, || {
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        for _ in 0..4 {
            let made = Builder::new().name("huge").stack_size(usize::MAX / 8 * 7).spawn(|| ());
            let error = made.expect_err("no such address space");
            // From the kernel, or from a libc that refuses to ask it.
            let refused =
                error.raw_os_error().is_some() || error.kind() == io::ErrorKind::InvalidInput;
            assert!(refused, "{error}");
            assert_eq!(threads().count(), 0);
        }
        let error = Builder::new().name("zero\0byte").spawn(|| ()).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(mask, sys::sigprocmask(MaskHow::Block, &SigSet::empty()));
        // The lock is free, and the record is used again.
        drop(try_freeze_creation().expect("free"));
        let worker = threadreg::spawn(|| ());
        assert_eq!(worker.thread().index(), 0);
        worker.join().expect("no panic");
    });
}

/// T3. The kernel refuses the thread, and goes on to refuse it.
#[test]
fn a_thread_limit_is_an_error_of_spawn() {
    in_child("a_thread_limit_is_an_error_of_spawn", MINUTE, || {
        let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        // SAFETY: reads one `rlimit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) }, 0);
        // The superuser is not limited. Nothing else of this process needs its rights.
        let user = testkit::lonely_user();
        // SAFETY: touches no memory.
        if unsafe { libc::setresuid(user, user, user) } != 0 {
            println!("not the superuser: limited as it is");
        }
        let error = Builder::new().spawn(|| ()).expect_err("limited");
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(threads().count(), 0);
    });
}

/// T15. A thread made in a section that blocks signals must not block them forever.
#[test]
fn a_new_thread_hears_what_its_creator_blocked() {
    in_child("a_new_thread_hears_what_its_creator_blocked", MINUTE, || {
        let blocks = || sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        let both = SigSet::of(libc::SIGURG).with(libc::SIGUSR2);
        sys::sigprocmask(MaskHow::Block, &both);
        let inherits = threadreg::spawn(blocks).join().expect("no panic");
        assert!(inherits.contains(libc::SIGURG) && inherits.contains(libc::SIGUSR2));

        never_block(libc::SIGURG);
        let mask = threadreg::spawn(blocks).join().expect("no panic");
        assert!(!mask.contains(libc::SIGURG), "deaf: {mask:?}");
        assert!(mask.contains(libc::SIGUSR2), "the rest is inherited: {mask:?}");

        let given = SigSet::of(libc::SIGTERM).with(libc::SIGURG);
        let worker = Builder::new().signal_mask(given).spawn(blocks).expect("spawns");
        assert_eq!(worker.join().expect("no panic"), SigSet::of(libc::SIGTERM));
        assert_eq!(blocks(), both, "the creator's own mask is as it was");
    });
}

/// S16. A mask that was asked for leaves out libc's own signals.
#[test]
fn no_mask_makes_a_thread_deaf_to_libc() {
    in_child("no_mask_makes_a_thread_deaf_to_libc", Duration::from_secs(20), || {
        let worker = Builder::new().signal_mask(SigSet::full()).spawn(|| {
            let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
            thread::park();
            mask
        });
        let worker = worker.expect("spawns");
        // SAFETY: cannot fail.
        let own = unsafe { libc::geteuid() };
        // SAFETY: touches no memory, and changes nothing.
        assert_eq!(unsafe { libc::seteuid(own) }, 0, "and it returns");
        worker.unpark();
        let mask = worker.join().expect("no panic");
        assert!((32..libc::SIGRTMIN()).all(|sig| !mask.contains(sig)), "deaf: {mask:?}");
        assert!(mask.contains(libc::SIGTERM) && mask.contains(libc::SIGRTMIN()), "{mask:?}");
    });
}

#[test]
fn a_panic_reaches_join_and_unlists_the_thread() {
    in_child("a_panic_reaches_join_and_unlists_the_thread", MINUTE, || {
        let worker = threadreg::spawn(|| panic!("on purpose"));
        let thread = worker.thread();
        let payload = worker.join().expect_err("panicked");
        assert_eq!(payload.downcast_ref(), Some(&"on purpose"));
        assert!(!thread.is_alive());
        assert_eq!((thread.tid(), threads().count()), (None, 0));
    });
}

/// T13. No `clone` is under way when the process is replaced.
#[test]
fn exec_under_a_freeze_never_meets_a_clone_under_way() {
    in_child("exec_under_a_freeze_never_meets_a_clone_under_way", MINUTE, || {
        for _ in 0..3 {
            thread::spawn(|| {
                loop {
                    let _ = Builder::new().spawn(|| ()).map(threadreg::JoinHandle::join);
                }
            });
        }
        sleep(Duration::from_millis(20));
        // A failed exec gives the lock back.
        let error = threadreg::exec(&mut Command::new("/nonexistent"));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        threadreg::spawn(|| ()).join().expect("creation goes on");

        // The watchdog's parent looks for the harness's own words.
        let mut command = Command::new("/bin/echo");
        command.arg("running 1 test: this output is exec's; test result: ok");
        panic!("{}", threadreg::exec(&mut command));
    });
}

/// T3. The kernel refuses the thread for a moment.
#[test]
fn a_clone_refused_for_now_is_tried_again() {
    in_child("a_clone_refused_for_now_is_tried_again", MINUTE, || {
        let user = testkit::lonely_user();
        // SAFETY: touches no memory.
        if unsafe { libc::setresuid(user, user, user) } != 0 {
            return testkit::skip("only the superuser can take a user that has no other process");
        }
        let room = threadreg::os_threads().expect("/proc").as_slice().len() as libc::rlim_t + 1;
        let limit = libc::rlimit { rlim_cur: room, rlim_max: room };
        // SAFETY: reads one `rlimit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) }, 0);
        let (begin, me) = (Instant::now(), sys::gettid());
        loop {
            static TRIES: AtomicBool = AtomicBool::new(false);
            static TRIED: AtomicBool = AtomicBool::new(false);
            TRIES.store(false, SeqCst);
            TRIED.store(false, SeqCst);
            // It takes the room until the one that tries sleeps, which it does between two tries.
            let in_the_way = threadreg::spawn(move || {
                let sleeps = || TRIES.load(SeqCst) && testkit::is_asleep(me);
                while !sleeps() && !TRIED.load(SeqCst) {
                    thread::yield_now();
                }
            });
            until("it starts", || in_the_way.thread().tid().is_some());
            TRIES.store(true, SeqCst);
            let made = Builder::new().spawn(|| ());
            TRIED.store(true, SeqCst);
            in_the_way.join().expect("no panic");
            // When the room is free is the kernel's business.
            if made.is_ok_and(|made| made.join().is_ok()) {
                break;
            }
            assert!(begin.elapsed() < patience(MINUTE / 2), "refused, and not tried again");
        }
    });
}

#[test]
fn scoped_threads_borrow_and_are_registered() {
    in_child("scoped_threads_borrow_and_are_registered", MINUTE, || {
        let mut words = ["b", "c", "a"];
        let seen = AtomicUsize::new(0);
        thread::scope(|scope| {
            let sorter = Builder::new().name("sorter").spawn_scoped(scope, || {
                let me = threadreg::current().expect("registered");
                assert_eq!(me.name().as_str(), "sorter");
                words.sort_unstable();
                me
            });
            let sorter = sorter.expect("spawns");
            let thread = sorter.thread();
            assert_eq!(sorter.join().expect("no panic"), thread);
            for _ in 0..8 {
                let look = || {
                    seen.fetch_add(usize::from(threadreg::current().is_some()), SeqCst);
                };
                Builder::new().spawn_scoped(scope, look).expect("spawns");
            }
        });
        assert_eq!((words, seen.into_inner()), (["a", "b", "c"], 8));
        assert_eq!(threads().count(), 0, "they leave before the scope ends");
    });
}

/// T5. The error names the holder, and creators go on.
#[test]
fn a_freeze_that_times_out_names_the_holder_and_leaves_creation_free() {
    in_child("a_freeze_that_times_out_names_the_holder_and_leaves_creation_free", MINUTE, || {
        let me = threadreg::attach().expect("attaches");
        let held = freeze_creation();
        let timeout = Duration::from_millis(10);
        let late = thread::spawn(move || freeze_creation_within(timeout).map(drop));
        let error = late.join().expect("no panic").expect_err("held");
        assert_eq!(error.holder, Some((sys::gettid(), me.thread().name())));
        let (text, held_by) = (error.to_string(), format!("thread {} holds", me.thread()));
        assert!(text.contains(&held_by) && text.contains("within 10ms"), "{text}");
        // A creator queues behind the one that gives up as well, and then behind the guard alone.
        let creator = thread::spawn(|| threadreg::spawn(|| ()).join());
        let late = thread::spawn(move || freeze_creation_within(timeout).map(drop));
        assert!(late.join().expect("no panic").is_err());
        drop(held);
        creator.join().expect("no panic").expect("no panic");
        drop(freeze_creation_within(patience(MINUTE / 2)).expect("free"));
        threadreg::spawn(|| ()).join().expect("creation goes on");
    });
}

/// T5. A thread that waits for itself would wait forever.
#[test]
#[cfg(debug_assertions)]
fn the_lock_order_is_asserted() {
    in_child("the_lock_order_is_asserted", MINUTE, || {
        let frozen = freeze_creation();
        assert!(threadreg::holds_freeze());
        assert!(!thread::spawn(threadreg::holds_freeze).join().expect("no panic"));
        let panics = |what: fn()| std::panic::catch_unwind(what).is_err();
        assert!(panics(|| drop(threadreg::spawn(|| ()))), "spawn");
        assert!(panics(|| drop(freeze_creation())), "freeze");
        assert!(panics(|| drop(freeze_creation_within(Duration::ZERO))), "freeze_within");
        assert!(panics(|| drop(threadreg::exec(&mut Command::new("/nonexistent")))), "exec");
        drop(frozen);
        assert!(!threadreg::holds_freeze());
        threadreg::spawn(|| ()).join().expect("creation goes on");
    });
}

/// T13, T14. Children of `posix_spawn` and of `fork` come to their end.
#[test]
fn stress_commands_start_amid_a_spawn_storm() {
    in_child("stress_commands_start_amid_a_spawn_storm", 2 * MINUTE, || {
        use std::os::unix::process::CommandExt;
        static STOP: AtomicBool = AtomicBool::new(false);
        let creators = [0, 1].map(|_| {
            thread::spawn(|| {
                while !STOP.load(SeqCst) {
                    threadreg::spawn(|| ()).join().expect("no panic");
                }
            })
        });
        for round in 0..budget(60) {
            let mut command = Command::new("/bin/echo");
            command.arg(format!("round {round}"));
            if round % 2 == 1 {
                let only = || {
                    let alone = threads().count() == 0 && try_freeze_creation().is_some();
                    if alone { Ok(()) } else { Err(io::Error::other("ghosts")) }
                };
                // By fork: the child is this program for a while.
                // SAFETY: atomics only.
                unsafe { command.pre_exec(only) };
            }
            let output = command.output().expect("starts");
            assert_eq!(output.stdout, format!("round {round}\n").into_bytes());
        }
        STOP.store(true, SeqCst);
        for creator in creators {
            creator.join().expect("no panic");
        }
    });
}

/// A leaked guard, in place of a seccomp filter that kills the thread: neither drops the guard.
#[test]
fn a_freeze_ends_with_its_thread() {
    in_child("a_freeze_ends_with_its_thread", MINUTE / 3, || {
        let leak = || {
            let _leaked = std::mem::ManuallyDrop::new(freeze_creation());
        };
        let freeze_and_end = || thread::spawn(leak).join();
        freeze_and_end().expect("no panic");
        let made = Builder::new().spawn(|| 7).expect("made").join();
        assert_eq!(made.expect("no panic"), 7);
        freeze_and_end().expect("no panic");
        freeze_creation().thaw();
        freeze_and_end().expect("no panic");
        freeze_creation_within(patience(MINUTE / 6)).expect("the thread is gone").thaw();
        assert!(try_freeze_creation().is_some());
    });
}
