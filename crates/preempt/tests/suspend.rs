//! Suspending tasks: where they can be stopped, that they stay stopped, and what is named when they
//! do not stop.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{SignalOutcome, StoppedAt, StragglerCause, SuspendError, Task};
use sigctx::sys::{MaskHow, SigSet, sigprocmask};

/// P23.
#[test]
fn a_parked_task_sleeps_while_its_holder_takes_long() {
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    let tid = stopped.thread().and_then(|thread| thread.tid()).expect("it lives");
    until("the parked task sleeps", || testkit::is_asleep(tid));
    stopped.resume();
    spinner.progress();
    spinner.end();
}

/// P17.
#[test]
fn a_loop_without_polls_stops_and_goes_on() {
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    for _ in 0..100 {
        let stopped = spinner.task.suspend(SOON).expect("stops");
        assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
        let pc = stopped.pc().expect("interrupted");
        assert!(preempt::is_registered_code(pc), "stopped at {pc:#x}");
        let count = spinner.count();
        for _ in 0..10 {
            thread::yield_now();
        }
        assert_eq!(spinner.count(), count, "a suspended task ran");
        stopped.resume();
        spinner.progress();
    }
    spinner.end();
}

#[test]
fn the_backtrace_leads_through_the_injected_call() {
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    let backtrace = stopped.backtrace().expect("interrupted").to_string();
    for frame in ["spin_without_polls", "caller_of_the_spin"] {
        assert!(backtrace.contains(frame), "{frame} is not in\n{backtrace}");
    }
    drop(stopped);
    spinner.end();
}

/// P10.
#[test]
fn an_idle_task_is_held_at_once_and_starts_when_let_go() {
    let task = Task::new();
    let held = task.suspend(SOON).expect("idle");
    assert_eq!(held.stopped_at(), StoppedAt::Idle);
    assert!(held.run(|_| ()).is_none(), "no thread can run anything on an idle task");
    let entered = Arc::new(AtomicBool::new(false));
    let runner = {
        let (task, entered) = (task.clone(), entered.clone());
        threadreg::spawn(move || task.enter(|| entered.store(true, SeqCst)))
    };
    until("the runner waits", || runner.thread().tid().is_some_and(testkit::is_asleep));
    assert!(!entered.load(SeqCst), "entered a held task");
    held.resume();
    runner.join().expect("no panic").expect("entered");
    assert!(entered.load(SeqCst));
}

#[test]
fn a_task_that_polls_stops_at_the_poll() {
    preempt::install().expect("install");
    let task = Task::new();
    let stop = Arc::new(AtomicBool::new(false));
    let runner = {
        let (task, stop) = (task.clone(), stop.clone());
        threadreg::spawn(move || {
            task.enter(|| {
                while !stop.load(SeqCst) {
                    preempt::poll();
                }
            })
        })
    };
    until("it runs", || task.suspend(SOON).expect("stops").stopped_at() == StoppedAt::Poll);
    stop.store(true, SeqCst);
    runner.join().expect("no panic").expect("entered");
}

/// P3a.
#[test]
fn a_blocked_task_is_held_without_a_signal() {
    preempt::install().expect("install");
    let task = Task::new();
    let (reader, writer) = std::io::pipe().expect("pipe");
    let runner = {
        let task = task.clone();
        threadreg::spawn(move || {
            task.enter(|| {
                task.blocking(|| {
                    let mut byte = [0_u8];
                    // A system call that a signal ends: not one that is restarted.
                    let mut fd = libc::pollfd {
                        fd: std::os::fd::AsRawFd::as_raw_fd(&reader),
                        events: libc::POLLIN,
                        revents: 0,
                    };
                    // SAFETY: one valid pollfd.
                    let ready = unsafe { libc::poll(&raw mut fd, 1, -1) };
                    assert_eq!(ready, 1, "{}", std::io::Error::last_os_error());
                    std::io::Read::read(&mut &reader, &mut byte).expect("read")
                })
            })
        })
    };
    let mut seen_blocked = 0;
    until("it blocks", || {
        let stopped = task.suspend(SOON).expect("held");
        seen_blocked += u32::from(stopped.stopped_at() == StoppedAt::Blocked);
        seen_blocked == 100
    });
    std::io::Write::write_all(&mut &writer, b"x").expect("write");
    let read = runner.join().expect("poll was interrupted by a signal");
    assert_eq!(read.expect("entered").expect("inside"), 1);
}

/// P20. A signal that is sent before would be ignored, and wait for its acknowledgement forever.
#[test]
fn without_a_handler_nothing_is_sent_and_the_error_says_so() {
    let spinner = Spinner::start("spinner", Task::new());
    let error = spinner.task.suspend(Duration::from_millis(20)).expect_err("no handler");
    let SuspendError::TimedOut { cause: StragglerCause::NotInstalled, .. } = error else {
        panic!("{error}")
    };
    let _code = set_up();
    let stopped = spinner.task.suspend(SOON).expect("stops now");
    assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
    drop(stopped);
    spinner.end();
}

/// P1, P19. Also: a signal that finds nothing asked is acknowledged, else nothing would be sent any more.
#[test]
fn a_thread_that_blocks_the_signal_is_named_and_stops_after_it_unblocks() {
    let _code = set_up();
    let masked = Arc::new(AtomicBool::new(true));
    let task = Task::new();
    let spin = Arc::new(common::Spin::default());
    let runner = {
        let (task, spin, masked) = (task.clone(), spin.clone(), masked.clone());
        threadreg::Builder::new()
            .name("masker")
            .spawn(move || {
                let urg = SigSet::of(libc::SIGURG);
                sigprocmask(MaskHow::Block, &urg);
                task.enter(|| {
                    while masked.load(SeqCst) {
                        spin.count.fetch_add(1, SeqCst);
                    }
                    // The signal of the attempt that failed comes here, where no requester asks any more.
                    sigprocmask(MaskHow::Unblock, &urg);
                    common::spin_without_polls(&spin);
                })
            })
            .expect("spawn")
    };
    until("it spins", || spin.count.load(SeqCst) > 0);
    let error = task.suspend(Duration::from_millis(50)).expect_err("masked");
    let SuspendError::TimedOut { tid, ref name, ref cause, .. } = error else { panic!("{error}") };
    assert_eq!(tid, runner.thread().tid());
    assert_eq!(name.to_string(), "masker");
    let told = testkit::proc_shows_mask(libc::SIGURG);
    assert!(!told || matches!(cause, StragglerCause::SignalBlocked), "{error}");

    masked.store(false, SeqCst);
    let count = spin.count.load(SeqCst);
    until("it spins unmasked", || spin.count.load(SeqCst) > count + 1000);
    let stopped = task.suspend(SOON).expect("stops now");
    assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
    drop(stopped);
    spin.stop.store(true, SeqCst);
    runner.join().expect("no panic").expect("entered");
    if !told {
        testkit::skip("/proc shows the signals of the emulator's host: the reason is not known");
    }
}

/// Why the handler, once it has run, did not stop the task.
fn refusal(task: &Task) -> (SignalOutcome, usize) {
    let mut refused = None;
    // On a busy machine the handler may not have run when the time is over.
    until("the signal is handled", || {
        match task.suspend(Duration::from_millis(50)).expect_err("refused") {
            SuspendError::TimedOut { cause: StragglerCause::Refused { outcome, pc }, .. } => {
                refused = Some((outcome, pc));
            }
            // A handler that runs blocks its own signal.
            SuspendError::TimedOut {
                cause: StragglerCause::NotHandled | StragglerCause::SignalBlocked,
                ..
            } => {}
            error => panic!("{error}"),
        }
        refused.is_some()
    });
    refused.expect("just found")
}

/// P6.
#[test]
fn code_that_is_not_registered_is_not_interrupted_and_the_error_says_where_it_was() {
    preempt::install().expect("install");
    let spinner = Spinner::start("outside", Task::new());
    let (outcome, pc) = refusal(&spinner.task);
    assert_eq!(outcome, SignalOutcome::OutsideCode);
    let code = preempt::preemptible_section!();
    assert!(code.contains(&pc), "{pc:#x} is not in {code:x?}");
    spinner.end();
}

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin_disabled(flag: &AtomicBool, count: &AtomicU32) {
    while flag.load(SeqCst) {
        count.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_guard_puts_the_stop_off_until_it_is_dropped() {
    let _code = set_up();
    let task = Task::new();
    let guarded = Arc::new(AtomicBool::new(true));
    let count = Arc::new(AtomicU32::new(0));
    let runner = {
        let (task, guarded, count) = (task.clone(), guarded.clone(), count.clone());
        threadreg::spawn(move || {
            task.enter(|| {
                let guard = preempt::disable();
                spin_disabled(&guarded, &count);
                drop(guard);
            })
        })
    };
    until("it spins", || count.load(SeqCst) > 0);
    assert_eq!(refusal(&task).0, SignalOutcome::Disabled);

    let requester = thread::spawn(move || task.suspend(SOON).map(|s| s.stopped_at()));
    guarded.store(false, SeqCst);
    let at = requester.join().expect("no panic").expect("stops");
    assert!(matches!(at, StoppedAt::Poll | StoppedAt::Idle), "{at:?}");
    runner.join().expect("no panic").expect("entered");
}

/// P5.
#[test]
fn a_task_cannot_suspend_itself() {
    let _me = threadreg::attach().expect("attach");
    let task = Task::new();
    let own = task.enter(|| task.suspend(SOON).map(drop)).expect("entered");
    assert!(matches!(own, Err(SuspendError::Own)));
    let again = task.enter(|| task.enter(|| ())).expect("entered");
    assert_eq!(again, Err(preempt::EnterError::InsideTask));
}

/// P5. Each of two tasks suspends the other again and again; neither waits forever.
#[test]
fn stress_two_tasks_suspend_each_other() {
    testkit::in_child("stress_two_tasks_suspend_each_other", Duration::from_secs(100), || {
        preempt::install().expect("install");
        let rounds = testkit::budget(20_000);
        let tasks = [Task::new(), Task::new()];
        let together = Arc::new(std::sync::Barrier::new(2));
        let threads: Vec<_> = [0, 1]
            .map(|i| {
                let (tasks, together) = (tasks.clone(), together.clone());
                threadreg::spawn(move || {
                    tasks[i].enter(|| {
                        together.wait();
                        for _ in 0..rounds {
                            let other = tasks[1 - i].suspend(SOON).expect("the other stops");
                            assert_ne!(other.stopped_at(), StoppedAt::Instruction);
                            // Held for a while, so that the other comes to want us.
                            thread::yield_now();
                            drop(other);
                            preempt::poll();
                        }
                    })
                })
            })
            .into();
        for thread in threads {
            thread.join().expect("no panic").expect("entered");
        }
    });
}

/// P4, P11. Many requesters of one loop: they take turns, and the loop makes progress between them.
#[test]
fn stress_many_requesters_do_not_starve_the_task() {
    testkit::in_child(
        "stress_many_requesters_do_not_starve_the_task",
        Duration::from_secs(100),
        || {
            let _code = set_up();
            let spinner = Spinner::start("victim", Task::new());
            let holders = AtomicU32::new(0);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for round in 0..testkit::budget(500) {
                            let stopped = spinner.task.suspend(SOON).expect("stops");
                            assert_eq!(holders.fetch_add(1, SeqCst), 0, "held twice");
                            holders.fetch_sub(1, SeqCst);
                            drop(stopped);
                            if round % 50 == 0 {
                                // With the others at it all the time.
                                spinner.progress();
                            }
                        }
                    });
                }
            });
            spinner.progress();
            spinner.end();
        },
    );
}

/// P10. The task ends and begins again while it is suspended.
#[test]
fn stress_a_task_that_comes_and_goes() {
    testkit::in_child("stress_a_task_that_comes_and_goes", Duration::from_secs(100), || {
        preempt::install().expect("install");
        let task = Task::new();
        let held = Arc::new(AtomicBool::new(false));
        let over = Arc::new(AtomicBool::new(false));
        let runner = {
            let (task, held, over) = (task.clone(), held.clone(), over.clone());
            threadreg::spawn(move || {
                while !over.load(SeqCst) {
                    let inside = task.enter(|| {
                        assert!(!held.load(SeqCst), "entered a held task");
                        preempt::poll();
                        assert!(!held.load(SeqCst), "left the poll of a held task");
                    });
                    inside.expect("no other thread runs it");
                }
            })
        };
        for _ in 0..testkit::budget(20_000) {
            let stopped = task.suspend(SOON).expect("stops");
            held.store(true, SeqCst);
            held.store(false, SeqCst);
            drop(stopped);
        }
        over.store(true, SeqCst);
        runner.join().expect("no panic");
    });
}

/// P10. What the thread's record is used for next has nothing to do with the task.
#[test]
fn a_thread_that_is_detached_inside_a_task_takes_the_task_out_of_reach() {
    let _code = set_up();
    let task = Task::new();
    let spin = Arc::new(common::Spin::default());
    let detached = Arc::new(AtomicBool::new(false));
    let runner = {
        let (task, spin, detached) = (task.clone(), spin.clone(), detached.clone());
        thread::spawn(move || {
            let me = threadreg::attach().expect("attach");
            task.enter(|| {
                drop(me);
                detached.store(true, SeqCst);
                common::spin_without_polls(&spin);
            })
        })
    };
    until("it is detached", || detached.load(SeqCst));
    let successor_over = Arc::new(AtomicBool::new(false));
    let successor = {
        let over = successor_over.clone();
        threadreg::spawn(move || {
            while !over.load(SeqCst) {
                preempt::poll();
            }
        })
    };
    let error = task.suspend(Duration::from_millis(50)).expect_err("no thread can reach it");
    assert!(matches!(error, SuspendError::TimedOut { .. }), "{error}");
    successor_over.store(true, SeqCst);
    successor.join().expect("no panic");
    spin.stop.store(true, SeqCst);
    runner.join().expect("no panic").expect("entered");
}

/// P5.
#[test]
fn a_parked_or_blocked_task_can_suspend_another() {
    let _code = set_up();
    let (spinner, other) = (Spinner::start("spinner", Task::new()), Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    let from_parked = stopped.run(|_| other.suspend(SOON).map(|s| s.stopped_at()));
    assert!(matches!(from_parked, Some(Ok(StoppedAt::Idle))), "{from_parked:?}");
    drop(stopped);
    spinner.progress();
    let _me = threadreg::attach().expect("attach");
    let task = Task::new();
    let blocked = task.enter(|| {
        task.blocking(|| {
            drop(spinner.task.suspend(SOON).expect("stops"));
            task.suspend(SOON).is_err()
        })
    });
    assert_eq!(blocked, Ok(Ok(true)), "a task can suspend another, not itself");
    spinner.end();
}

/// X4. A stop of the world needs a parked task to make its calls: the requester that holds the task may be
/// stopped already.
#[test]
fn a_parked_task_makes_the_calls_that_its_thread_is_asked_to_make() {
    static CALLED_ON: AtomicU32 = AtomicU32::new(0);

    unsafe fn called(_: usize) {
        CALLED_ON.store(sigctx::sys::gettid().unsigned_abs(), SeqCst);
    }
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    let count = spinner.count();
    let thread = spinner.thread.thread();
    let tid = thread.tid().expect("runs");
    // Else it could find the call on its way there.
    until("the parked task sleeps", || testkit::is_asleep(tid));
    // SAFETY: the function only stores a number.
    let call = unsafe { threadreg::NudgeCall::new(called, 0) };
    threadreg::Nudge::nudge(&preempt::Nudger, thread, call, &|| true).expect("sent");
    until("the call is made", || CALLED_ON.load(SeqCst) != 0);
    assert_eq!(CALLED_ON.load(SeqCst), tid.unsigned_abs(), "on another thread");
    assert_eq!(spinner.count(), count, "the task ran");
    drop(stopped);
    spinner.progress();
    spinner.end();
}

/// P24. Else what takes long there could not be interrupted.
#[test]
fn hooks_errands_and_calls_run_with_the_signals_of_the_task() {
    static OPEN_IN_HOOK: AtomicU32 = AtomicU32::new(0);
    static OPEN_IN_CALL: AtomicU32 = AtomicU32::new(0);

    fn is_open() -> bool {
        !sigprocmask(MaskHow::Block, &SigSet::empty()).contains(libc::SIGURG)
    }
    fn note(open: &AtomicU32) {
        open.store(1 + u32::from(is_open()), SeqCst);
    }
    unsafe fn called(_: usize) {
        note(&OPEN_IN_CALL);
    }
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::with_hook(|_| note(&OPEN_IN_HOOK)));
    spinner.task.request_within(SOON).expect("served");
    until("the hook has run", || OPEN_IN_HOOK.load(SeqCst) != 0);
    assert_eq!(OPEN_IN_HOOK.load(SeqCst), 2, "in a hook the signal is blocked");
    // SAFETY: the function only looks at its mask and stores a number.
    let call = unsafe { threadreg::NudgeCall::new(called, 0) };
    let thread = spinner.thread.thread();
    threadreg::Nudge::nudge(&preempt::Nudger, thread, call, &|| true).expect("sent");
    until("the call is made", || OPEN_IN_CALL.load(SeqCst) != 0);
    assert_eq!(OPEN_IN_CALL.load(SeqCst), 2, "in a call the signal is blocked");
    let stopped = spinner.task.suspend(SOON).expect("stops");
    assert_eq!(stopped.run(|_| is_open()), Some(true), "in an errand the signal is blocked");
    stopped.resume();
    spinner.progress();
    spinner.end();
}

/// F1. The signal that was on its way in the parent never comes in the child.
#[test]
fn a_child_of_a_fork_waits_for_no_thread() {
    testkit::in_child("a_child_of_a_fork_waits_for_no_thread", Duration::from_secs(30), || {
        preempt::install().expect("install");
        let _me = threadreg::attach().expect("attach");
        let task = Task::new();
        let urg = SigSet::of(libc::SIGURG);
        let status = task.enter(|| {
            let _ = sigprocmask(MaskHow::Block, &urg);
            let requester = {
                let task = task.clone();
                thread::spawn(move || task.suspend(Duration::from_millis(20)).map(drop))
            };
            requester.join().expect("no panic").expect_err("masked");
            // SAFETY: the child makes only calls that are in order there, and leaves by `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let _ = sigprocmask(MaskHow::Unblock, &urg);
                let blocked = task.blocking(|| 7);
                preempt::poll();
                // SAFETY: ends the child here.
                unsafe { libc::_exit(i32::from(blocked != Ok(7))) };
            }
            let mut status = 0;
            // SAFETY: a child of this process, and a valid place for its status.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(waited, child);
            let _ = sigprocmask(MaskHow::Unblock, &urg);
            status
        });
        assert_eq!(status, Ok(0));
    });
}

/// F2. The handler is not installed here: a blocked task is held without it.
#[test]
fn a_task_that_forks_while_it_is_held_goes_on_in_the_child() {
    let name = "a_task_that_forks_while_it_is_held_goes_on_in_the_child";
    testkit::in_child(name, Duration::from_secs(30), || {
        let _me = threadreg::attach().expect("attach");
        let task = Task::new();
        let forked = Arc::new(AtomicBool::new(false));
        let child = task.enter(|| {
            let (holds, held) = std::sync::mpsc::channel();
            let mut holder = None;
            let child = task.blocking(|| {
                let (theirs, over) = (task.clone(), forked.clone());
                holder = Some(thread::spawn(move || {
                    let stopped = theirs.suspend(SOON).expect("blocked");
                    holds.send(()).expect("the test waits");
                    until("the fork", || over.load(SeqCst));
                    stopped.resume();
                }));
                held.recv().expect("held");
                // SAFETY: the child makes only calls that are in order there, and leaves by `_exit`.
                let child = unsafe { libc::fork() };
                // In the child no thread is left that would see it.
                forked.store(true, SeqCst);
                child
            });
            if child == Ok(0) {
                // SAFETY: ends the child here.
                unsafe { libc::_exit(0) };
            }
            holder.expect("started").join().expect("no panic");
            child
        });
        let child = child.expect("entered").expect("blocked");
        let mut status = 0;
        // SAFETY: a child of this process, and a valid place for its status.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((waited, status), (child, 0));
    });
}

#[test]
fn a_panic_on_the_suspended_task_comes_back() {
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stopped.run(|frame| {
            assert!(frame.is_none(), "there is a frame");
        })
    }));
    assert!(panic.is_err(), "the panic was lost");
    let thread = stopped.run(|_| threadreg::current()).expect("parked");
    assert_eq!(thread, Some(spinner.thread.thread()), "run on another thread");
    drop(stopped);
    spinner.progress();
    spinner.end();
}
