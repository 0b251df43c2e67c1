//! Another program in this one's place, while another thread sends signals to all threads.

use std::io::ErrorKind::{NotFound, TimedOut};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use sigctx::sys::{self, KernelAction, MaskHow, SaFlags, SigSet};
use testkit::{in_child, until};
use threadreg::{
    BeforeExecError, ExecHold, ExecHook, before_exec, exec, exec_within, try_freeze_creation,
};

const MINUTE: Duration = Duration::from_mins(1);

fn nowhere() -> Command {
    Command::new("/nonexistent")
}

fn mask() -> SigSet {
    sys::sigprocmask(MaskHow::Block, &SigSet::empty())
}

/// T13. After a failure everything goes on as before.
#[test]
fn a_failed_exec_releases_the_senders_that_it_held_and_no_other() {
    static HELD: AtomicI32 = AtomicI32::new(0);
    static FREE: AtomicI32 = AtomicI32::new(0);
    static LATE: AtomicBool = AtomicBool::new(false);

    fn held(_: Option<Instant>) -> ExecHold {
        HELD.fetch_add(1, SeqCst);
        assert!(try_freeze_creation().is_none(), "threads are made");
        ExecHold::Still
    }
    fn free(_: Option<Instant>) -> ExecHold {
        assert_eq!(HELD.load(SeqCst), 1, "in the order in which they came");
        if LATE.load(SeqCst) {
            ExecHold::TimedOut { holder: Some(sys::gettid()) }
        } else {
            ExecHold::Free
        }
    }
    fn not_held() {
        FREE.fetch_add(1, SeqCst);
    }
    fn let_go() {
        HELD.fetch_sub(1, SeqCst);
    }
    static HOLDS: ExecHook = ExecHook::new(SigSet::empty, held, let_go);
    static IS_FREE: ExecHook = ExecHook::new(SigSet::empty, free, not_held);

    in_child("a_failed_exec_releases_the_senders_that_it_held_and_no_other", MINUTE, || {
        let me = threadreg::attach().expect("attaches");
        for _ in 0..3 {
            // The second time nothing happens.
            before_exec(&HOLDS, None).expect("room");
            before_exec(&IS_FREE, None).expect("room");
        }
        let before = mask();
        let left = || (HELD.load(SeqCst), FREE.load(SeqCst), try_freeze_creation().is_some());
        assert_eq!(exec(&mut nowhere()).kind(), NotFound);
        assert_eq!((left(), mask()), ((0, 0, true), before));
        // Also where the last one could not be held.
        LATE.store(true, SeqCst);
        let error = exec_within(&mut nowhere(), Duration::from_secs(7));
        assert_eq!((error.kind(), left(), mask()), (TimedOut, (0, 0, true), before));
        let error = error.to_string();
        let named = error.contains(&format!("thread {}", me.thread()));
        assert!(named && error.contains("7s"), "{error}");
        before_exec(&HOLDS, Some(Instant::now())).expect("no thread is in `exec`");
    });
}

/// T13. A frozen creation is in the way too.
#[test]
fn an_exec_gives_up_under_a_freeze_of_another_thread() {
    in_child("an_exec_gives_up_under_a_freeze_of_another_thread", MINUTE, || {
        let frozen = threadreg::freeze_creation();
        let late = thread::spawn(|| exec_within(&mut nowhere(), Duration::from_millis(5)));
        let error = late.join().expect("no panic");
        assert_eq!(error.kind(), TimedOut);
        assert!(error.to_string().contains("holds it frozen"), "{error}");
        drop(frozen);
        assert_eq!(exec_within(&mut nowhere(), Duration::MAX).kind(), NotFound);
    });
}

/// T13. What is pending would be the new program's, which has no handler for it.
#[test]
fn what_is_pending_is_handled_before_exec_and_not_inherited() {
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    static OTHERS: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn count(signal: i32) {
        let own = signal == libc::SIGUSR1;
        if own { &HANDLED } else { &OTHERS }.fetch_add(1, SeqCst);
    }
    fn held(_: Option<Instant>) -> ExecHold {
        // A sender would wait for this thread to answer.
        let open = mask();
        assert!(!open.contains(libc::SIGUSR1) && open.contains(libc::SIGUSR2));
        assert_eq!((HANDLED.load(SeqCst), OTHERS.load(SeqCst)), (1, 0));
        ExecHold::Free
    }
    static HOOK: ExecHook = ExecHook::new(|| SigSet::of(libc::SIGUSR1), held, || ());

    in_child("what_is_pending_is_handled_before_exec_and_not_inherited", MINUTE, || {
        let action = KernelAction {
            handler: count as *const () as usize,
            flags: SaFlags::RESTART,
            mask: SigSet::empty(),
        };
        let both = SigSet::of(libc::SIGUSR1).with(libc::SIGUSR2);
        sys::sigprocmask(MaskHow::Block, &both);
        for signal in both.iter() {
            // SAFETY: the handler counts.
            unsafe { sys::rt_sigaction(signal, Some(&action)) }.expect("can be handled");
            // SAFETY: a signal to this thread.
            assert_eq!(unsafe { libc::raise(signal) }, 0);
        }
        let before = mask();
        before_exec(&HOOK, None).expect("room");
        assert_eq!(exec(&mut nowhere()).kind(), NotFound);
        assert_eq!((HANDLED.load(SeqCst), mask()), (1, before));
    });
}

/// T13. A sender comes when another thread is in `exec` already, which does not know of it.
#[test]
fn a_sender_that_comes_during_an_exec_waits_for_its_end() {
    static STAGE: AtomicI32 = AtomicI32::new(0);

    fn linger(_: Option<Instant>) -> ExecHold {
        STAGE.store(sys::gettid(), SeqCst);
        until("it may go on", || STAGE.load(SeqCst) == 0);
        ExecHold::Free
    }
    fn never(_: Option<Instant>) -> ExecHold {
        panic!("it came after `exec` had begun");
    }
    static FIRST: ExecHook = ExecHook::new(SigSet::empty, linger, || ());
    static LATER: ExecHook = ExecHook::new(SigSet::empty, never, || ());

    in_child("a_sender_that_comes_during_an_exec_waits_for_its_end", MINUTE, || {
        before_exec(&FIRST, None).expect("room");
        let executing = thread::spawn(|| exec(&mut nowhere()).kind());
        until("it executes", || STAGE.load(SeqCst) != 0);
        let executor = STAGE.load(SeqCst);
        // The hook that `exec` holds already, for another thread, and one that it has not seen.
        for hook in [&FIRST, &LATER] {
            let late = before_exec(hook, Some(Instant::now()));
            assert_eq!(late, Err(BeforeExecError::TimedOut { holder: executor }));
        }
        let later = thread::spawn(|| before_exec(&LATER, None));
        thread::sleep(Duration::from_millis(20));
        assert!(!later.is_finished(), "it is let through");
        // Of two threads the child of a fork has one, which does not execute.
        let child = || assert_eq!(before_exec(&FIRST, Some(Instant::now())), Ok(()));
        assert_eq!(testkit::forked(child), 0, "in the child of fork");
        STAGE.store(0, SeqCst);
        assert_eq!(later.join().expect("no panic"), Ok(()));
        assert_eq!(executing.join().expect("no panic"), NotFound);
    });
}
