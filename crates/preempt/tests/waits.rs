//! Waits end: a signal that another thread consumed, a task that requesters hand to each other, and every
//! wait's bound, with the name of the thread that is in the way.

mod common;

use std::ptr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::{SOON, Spin, Spinner, set_up, until};
use preempt::{EnterError, RunError, StoppedAt, StragglerCause, SuspendError, Task};
use sigctx::sys::{MaskHow, SigSet, gettid, sigprocmask};
use threadreg::{Nudge, NudgeCall};

/// How a SIGURG is lost to our handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// To `sigtimedwait`.
    Taken,
    /// To a moment of `SIG_IGN`.
    Ignored,
    /// To a handler above ours that does not chain.
    Covered,
}

static COVERED: AtomicU32 = AtomicU32::new(0);

extern "C" fn cover(_signal: i32) {
    COVERED.fetch_add(1, SeqCst);
}

/// Sets what is done with SIGURG, and returns what was.
#[expect(clippy::disallowed_methods, reason = "plays a program that handles SIGURG in its own way")]
fn set_action(action: &libc::sigaction) -> libc::sigaction {
    // SAFETY: all zeroes is a valid action.
    let mut old = unsafe { std::mem::zeroed::<libc::sigaction>() };
    // SAFETY: both are valid, and the handlers only count.
    let set = unsafe { libc::sigaction(libc::SIGURG, action, &raw mut old) };
    assert_eq!(set, 0);
    old
}

fn action(handler: usize) -> libc::sigaction {
    // SAFETY: all zeroes is a valid action.
    let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
    action.sa_sigaction = handler;
    action
}

/// The thread runs `then` as `task` after its one signal was lost.
fn after_a_lost_signal(lost: Lost, task: &Task, then: impl FnOnce() + Send + 'static) {
    let urg = SigSet::of(libc::SIGURG);
    let (ready, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let runner = {
        let (task, ready, told) = (task.clone(), ready.clone(), told.clone());
        threadreg::spawn(move || {
            task.enter(|| {
                if lost != Lost::Covered {
                    sigprocmask(MaskHow::Block, &urg);
                }
                ready.store(true, SeqCst);
                while !told.load(SeqCst) {
                    std::hint::spin_loop();
                }
                match lost {
                    Lost::Taken => {
                        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
                        // SAFETY: a place for the set.
                        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
                        // SAFETY: initialised by the line above.
                        unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGURG) };
                        let time = libc::timespec { tv_sec: 10, tv_nsec: 0 };
                        // SAFETY: a set, a time, and no place for the rest.
                        let taken = unsafe {
                            libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const time)
                        };
                        assert_eq!(taken, libc::SIGURG);
                    }
                    Lost::Ignored => {
                        // What is pending is dropped.
                        let ours = set_action(&action(libc::SIG_IGN));
                        set_action(&ours);
                    }
                    Lost::Covered => {}
                }
                sigprocmask(MaskHow::Unblock, &urg);
                then();
            })
        })
    };
    until("it runs", || ready.load(SeqCst));
    let ours = (lost == Lost::Covered).then(|| set_action(&action(cover as *const () as usize)));
    task.suspend(Duration::from_millis(30)).map(drop).expect_err("it does not get the signal");
    if let Some(ours) = ours {
        until("another's handler has it", || COVERED.load(SeqCst) > 0);
        set_action(&ours);
    }
    told.store(true, SeqCst);
    if !runner.thread().is_alive() {
        return;
    }
    thread::spawn(move || runner.join().expect("no panic").expect("entered"));
}

fn a_thread_is_stopped_after(lost: Lost, name: &str) {
    testkit::in_child(name, Duration::from_mins(1), || {
        let _code = set_up();
        let task = Task::new();
        let spin = Arc::new(Spin::default());
        let theirs = spin.clone();
        after_a_lost_signal(lost, &task, move || common::spin_without_polls(&theirs));
        let count = || spin.count.load(SeqCst);
        until("it spins", || count() > 0);
        for _ in 0..3 {
            let stopped = task.suspend(SOON).expect("stops, though one signal was lost");
            assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
        }
        spin.stop.store(true, SeqCst);
    });
}

/// P3c.
#[test]
fn a_thread_is_stopped_after_its_signal_was_taken() {
    a_thread_is_stopped_after(Lost::Taken, "a_thread_is_stopped_after_its_signal_was_taken");
}

/// P3c.
#[test]
fn a_thread_is_stopped_after_its_signal_was_ignored() {
    a_thread_is_stopped_after(Lost::Ignored, "a_thread_is_stopped_after_its_signal_was_ignored");
}

/// P3c.
#[test]
fn a_thread_is_stopped_after_its_signal_went_to_another_handler() {
    a_thread_is_stopped_after(
        Lost::Covered,
        "a_thread_is_stopped_after_its_signal_went_to_another_handler",
    );
}

/// P3d. It settles at once, and does not wait for a signal that does not come.
#[test]
fn a_task_blocks_after_its_signal_was_lost() {
    let name = "a_task_blocks_after_its_signal_was_lost";
    testkit::in_child(name, Duration::from_mins(1), || {
        let _code = set_up();
        for lost in [Lost::Taken, Lost::Ignored, Lost::Covered] {
            let task = Task::new();
            let blocked = Arc::new(AtomicU32::new(0));
            let (theirs, done) = (task.clone(), blocked.clone());
            after_a_lost_signal(lost, &task, move || {
                let before = std::time::Instant::now();
                theirs.blocking(|| done.store(1, SeqCst)).expect("inside");
                // The bound on requesters that are about to send is a second; there are none.
                let at_once = before.elapsed() < testkit::patience(Duration::from_millis(900));
                done.store(if at_once { 2 } else { 3 }, SeqCst);
            });
            until("it comes back", || blocked.load(SeqCst) >= 2);
            assert_eq!(blocked.load(SeqCst), 2, "{lost:?}: it waited for the signal");
        }
    });
}

/// P4. Requesters that hold the task for longer than it takes the others to queue up. What is counted is
/// the loop's progress between two holds, not time.
#[test]
fn stress_a_task_runs_between_two_holds() {
    testkit::in_child("stress_a_task_runs_between_two_holds", Duration::from_secs(100), || {
        let _code = set_up();
        let spinner = Spinner::start("victim", Task::new());
        // The count at the last hold; holds with progress since the one before, and without.
        let holds = Mutex::new((0, 0_u32, 0_u32));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..testkit::budget(1000) {
                        let stopped = spinner.task.suspend(SOON).expect("stops");
                        let count = spinner.count();
                        let mut holds = holds.lock().expect("no panic");
                        if count == holds.0 {
                            holds.2 += 1;
                        } else {
                            holds.1 += 1;
                        }
                        holds.0 = count;
                        drop(holds);
                        // All other requesters want it by now.
                        thread::sleep(Duration::from_micros(100));
                        drop(stopped);
                    }
                });
            }
        });
        let (_, with, without) = *holds.lock().expect("no panic");
        // The bound is one of processor time, in which a virtual machine's host may have run instead;
        // an emulator spends it on translating the loop, first of all.
        let chance = if testkit::emulator().is_some() { 1 } else { 50 };
        assert!(
            without * chance <= with,
            "{without} holds found it where the last one had left it"
        );
        spinner.end();
    });
}

/// P5a.
#[test]
fn a_thread_that_waits_to_enter_is_told_which_thread_has_the_task() {
    let _me = threadreg::attach().expect("attach");
    let task = Task::new();
    let held = task.suspend(SOON).expect("idle");
    let late = task.enter_within(Duration::from_millis(20), || ());
    let Err(EnterError::TimedOut(error)) = late else { panic!("{late:?}") };
    assert_eq!(error.holder, Some(gettid()));
    assert!(error.waited >= Duration::from_millis(20), "{error}");
    assert!(error.to_string().contains(&gettid().to_string()), "{error}");
    drop(held);
    assert_eq!(task.enter_within(SOON, || 7), Ok(7));
}

/// P5a.
#[test]
fn a_task_that_comes_back_from_blocking_is_told_which_thread_has_it() {
    testkit::in_child(
        "a_task_that_comes_back_from_blocking_is_told_which_thread_has_it",
        Duration::from_secs(30),
        || {
            let _me = threadreg::attach().expect("attach");
            let task = Task::new();
            let told = task.enter(|| {
                let (mut holder, mut told) = (None, Vec::new());
                let over = Arc::new(AtomicBool::new(false));
                let body = || {
                    let (theirs, over) = (task.clone(), over.clone());
                    let (says, said) = std::sync::mpsc::channel();
                    holder = Some(thread::spawn(move || {
                        let held = theirs.suspend(SOON).expect("blocked");
                        assert_eq!(held.stopped_at(), StoppedAt::Blocked);
                        says.send(gettid()).expect("the test waits");
                        until("the target is late twice", || over.load(SeqCst));
                    }));
                    said.recv().expect("held")
                };
                let tid = task.blocking_within(Duration::from_millis(10), body, |held| {
                    told.push(held.holder);
                    over.store(told.len() >= 2, SeqCst);
                });
                holder.expect("started").join().expect("no panic");
                (tid.expect("inside"), told)
            });
            let (tid, told) = told.expect("entered");
            assert!(told.len() >= 2 && told[..2] == [Some(tid); 2], "{told:?}, not {tid}");
        },
    );
}

/// What a thread is made to do by a nudge: it stays there until told.
static STAYS: AtomicU32 = AtomicU32::new(0);

unsafe fn stay(_: usize) {
    STAYS.store(1, SeqCst);
    while STAYS.load(SeqCst) == 1 {
        std::hint::spin_loop();
    }
}

static CALLED_ON: AtomicUsize = AtomicUsize::new(0);

unsafe fn called(_: usize) {
    CALLED_ON.store(gettid() as usize, SeqCst);
}

/// P5a.
#[test]
fn an_errand_that_is_not_begun_in_time_is_taken_back() {
    let name = "an_errand_that_is_not_begun_in_time_is_taken_back";
    testkit::in_child(name, Duration::from_mins(1), || {
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        let thread = spinner.thread.thread();
        let stopped = spinner.task.suspend(SOON).expect("stops");
        assert_eq!(stopped.run_within(SOON, |_| gettid()).ok(), thread.tid());
        // SAFETY: `stay` only waits.
        let call = unsafe { NudgeCall::new(stay, 0) };
        preempt::Nudger.nudge(thread, call, &|| true).expect("sent");
        until("it is away", || STAYS.load(SeqCst) == 1);
        let begun = AtomicBool::new(false);
        let late = stopped.run_within(Duration::from_millis(30), |_| begun.store(true, SeqCst));
        let Err(RunError::TimedOut { tid, ref name, .. }) = late else { panic!("{late:?}") };
        assert_eq!((tid, name.to_string().as_str()), (thread.tid(), "spinner"));
        STAYS.store(2, SeqCst);
        assert_eq!(stopped.run_within(SOON, |_| gettid()).ok(), thread.tid());
        assert!(!begun.load(SeqCst), "run after it was taken back");
        drop(stopped);
        spinner.end();
        let idle = Task::new().suspend(SOON).expect("idle");
        assert!(matches!(idle.run_within(SOON, |_| ()), Err(RunError::NotParked)));
    });
}

/// `wait` waits for what the test holds, on a thread that is then nudged.
fn a_waiting_thread_makes_calls(name: &str, wait: impl FnOnce(&Task) + Send) {
    testkit::in_child(name, Duration::from_mins(1), || {
        preempt::install().expect("install");
        let task = Task::new();
        let held = task.suspend(SOON).expect("idle");
        thread::scope(|scope| {
            let (tells, told) = std::sync::mpsc::channel();
            let task = &task;
            scope.spawn(move || {
                let me = threadreg::attach().expect("attach");
                tells.send(me.thread()).expect("the test waits");
                wait(task);
            });
            let waiter = told.recv().expect("attached");
            let tid = waiter.tid().expect("runs");
            // A call that is there before the wait is made without being told of.
            until("it waits", || testkit::is_asleep(tid));
            until("the call is made", || {
                // SAFETY: `called` only stores a number.
                let call = unsafe { NudgeCall::new(called, 0) };
                preempt::Nudger.nudge(waiter, call, &|| true).expect("sent");
                CALLED_ON.load(SeqCst) == tid as usize
            });
            assert!(held.stopped_at() == StoppedAt::Idle);
            drop(held);
        });
    });
}

/// X4.
#[test]
fn a_thread_that_waits_to_enter_makes_calls() {
    let name = "a_thread_that_waits_to_enter_makes_calls";
    a_waiting_thread_makes_calls(name, |task| task.enter(|| ()).expect("entered"));
}

/// X4.
#[test]
fn a_thread_that_waits_to_suspend_makes_calls() {
    let name = "a_thread_that_waits_to_suspend_makes_calls";
    a_waiting_thread_makes_calls(name, |task| task.suspend(SOON).map(drop).expect("let go"));
}

/// X4.
#[test]
fn a_task_that_comes_back_from_blocking_makes_calls() {
    let name = "a_task_that_comes_back_from_blocking_makes_calls";
    a_waiting_thread_makes_calls(name, |task| {
        let own = Task::new();
        let blocked = own.enter(|| {
            own.blocking(|| {
                // The one that the test lets go when the call is made.
                let (theirs, others) = (own.clone(), task.clone());
                let (holds, held) = std::sync::mpsc::channel();
                thread::spawn(move || {
                    let blocked = theirs.suspend(SOON).expect("blocked");
                    holds.send(()).expect("it waits");
                    drop(others.suspend(SOON).expect("let go"));
                    drop(blocked);
                });
                held.recv().expect("held");
            })
        });
        assert_eq!(blocked, Ok(Ok(())));
    });
}

#[test]
fn no_signal_is_said_to_be_sent_when_there_was_no_time() {
    testkit::in_child("no_signal_is_said_to_be_sent_when_there_was_no_time", SOON, || {
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        let error = spinner.task.suspend(Duration::ZERO).map(drop).expect_err("it runs");
        assert!(
            matches!(error, SuspendError::TimedOut { cause: StragglerCause::NoTime, .. }),
            "{error}"
        );
        spinner.end();
    });
}

/// Another requester's hold is the reason, not the thread.
#[test]
fn a_requester_is_told_that_another_has_the_task() {
    let task = Task::new();
    let held = task.suspend(SOON).expect("idle");
    let error = task.suspend(Duration::from_millis(20)).map(drop).expect_err("held");
    let SuspendError::TimedOut { cause: StragglerCause::HeldByAnother { holder }, .. } = error
    else {
        panic!("{error}")
    };
    assert_eq!(holder, Some(gettid()));
    drop(held);
}
