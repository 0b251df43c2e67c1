//! Requests: hooks, calls by nudge, and the signal itself.

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{SignalOutcome, Task};
use threadreg::{Nudge, NudgeCall};

/// P2. One request, one run of the hook: none is lost, though no requester asks twice.
#[test]
fn stress_each_single_request_runs_the_hook() {
    testkit::in_child("stress_each_single_request_runs_the_hook", Duration::from_secs(100), || {
        let _code = set_up();
        let runs = Arc::new(AtomicU32::new(0));
        let task = {
            let runs = runs.clone();
            Task::with_hook(move |frame| {
                assert!(frame.is_some(), "there is no poll in the loop");
                runs.fetch_add(1, SeqCst);
            })
        };
        let spinner = Spinner::start("spinner", task);
        for n in 1..=testkit::budget(10_000) as u32 {
            spinner.task.request().expect("sent");
            until("the hook runs", || runs.load(SeqCst) == n);
        }
        spinner.end();
    });
}

/// P3a. No signal is sent to a blocked task; what it was asked is done when it comes back.
#[test]
fn a_request_to_a_blocked_task_runs_the_hook_when_it_comes_back() {
    preempt::install().expect("install");
    let _me = threadreg::attach().expect("attach");
    let runs = Arc::new(AtomicU32::new(0));
    let task = {
        let runs = runs.clone();
        Task::with_hook(move |_| {
            runs.fetch_add(1, SeqCst);
        })
    };
    let blocked = task.enter(|| {
        let during = task.blocking(|| {
            let asked = task.clone();
            let request = std::thread::spawn(move || asked.request());
            request.join().expect("no panic").expect("asked");
            runs.load(SeqCst)
        });
        (during, runs.load(SeqCst))
    });
    assert_eq!(blocked, Ok((Ok(0), 1)));
}

static CALLS: AtomicU32 = AtomicU32::new(0);
static CALLED_WITH: AtomicUsize = AtomicUsize::new(0);

unsafe fn called(data: usize) {
    CALLED_WITH.store(data, SeqCst);
    CALLS.fetch_add(1, SeqCst);
}

fn call(data: usize) -> NudgeCall {
    // SAFETY: `called` only stores numbers, whenever and wherever, and does not unwind.
    unsafe { NudgeCall::new(called, data) }
}

#[test]
fn a_nudge_makes_its_call_on_a_thread_that_never_polls() {
    let _code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let call = call(42);
    preempt::Nudger.nudge(spinner.thread.thread(), call, &|| true).expect("sent");
    until("the call is made", || CALLS.load(SeqCst) == 1);
    assert_eq!(CALLED_WITH.load(SeqCst), 42);
    let gone = spinner.thread.thread();
    spinner.end();
    assert!(preempt::Nudger.nudge(gone, call, &|| true).is_err(), "sent to a thread that is gone");
}

/// What a thread was asked and never did is not done by the next thread in its record.
#[test]
fn a_call_for_a_thread_that_is_gone_is_not_made_by_its_successor() {
    preempt::install().expect("install");
    let asked = threadreg::spawn(|| {
        let me = threadreg::current().expect("registered");
        // Asked of oneself, and left undone.
        preempt::Nudger.nudge(me, call(7), &|| true).expect("sent");
        me.index()
    });
    let asked = asked.join().expect("no panic");
    let mut reused = false;
    for _ in 0..100 {
        let index = threadreg::spawn(|| {
            preempt::poll();
            threadreg::current().expect("registered").index()
        });
        reused |= index.join().expect("no panic") == asked;
    }
    assert!(reused, "record {asked} was never used again");
    assert_eq!(CALLS.load(SeqCst), 0, "a call for another thread was made");
}

static PREVIOUS: AtomicU32 = AtomicU32::new(0);

extern "C" fn previous(_signal: i32) {
    PREVIOUS.fetch_add(1, SeqCst);
}

/// P18.
#[test]
fn a_signal_from_another_process_reaches_the_handler_that_was_there_before() {
    testkit::in_child(
        "a_signal_from_another_process_reaches_the_handler_that_was_there_before",
        Duration::from_secs(30),
        || {
            #[expect(clippy::disallowed_methods, reason = "plays a program with its own handler")]
            // SAFETY: the handler only counts.
            let old = unsafe { libc::signal(libc::SIGURG, previous as *const () as usize) };
            assert_ne!(old, libc::SIG_ERR);
            let _code = set_up();
            let hooks = Arc::new(AtomicU32::new(0));
            let counted = hooks.clone();
            let task = Task::with_hook(move |_| _ = counted.fetch_add(1, SeqCst));
            let spinner = Spinner::start("spinner", task);
            let pid = std::process::id().to_string();
            let sent = Command::new("kill").args(["-URG", &pid]).status().expect("kill");
            assert!(sent.success());
            until("the signal is handled", || PREVIOUS.load(SeqCst) > 0);
            assert_eq!(hooks.load(SeqCst), 0, "no preemption was asked for");
            spinner.task.suspend(SOON).expect("stops").resume();
            spinner.end();
        },
    );
}

/// The record, where the injected call's end is written down, would be another thread's by then.
#[test]
fn a_hook_that_detaches_its_thread_ends_the_process() {
    thread_local! {
        static ME: std::cell::RefCell<Option<threadreg::Attached>> = const { std::cell::RefCell::new(None) };
    }
    let ended = testkit::child(
        "a_hook_that_detaches_its_thread_ends_the_process",
        Duration::from_secs(30),
        || {
            let _code = set_up();
            let task = Task::with_hook(|frame| {
                if frame.is_some() {
                    ME.with_borrow_mut(Option::take);
                }
            });
            let spin = Arc::new(common::Spin::default());
            let runner = {
                let (task, spin) = (task.clone(), spin.clone());
                std::thread::spawn(move || {
                    ME.set(Some(threadreg::attach().expect("attach")));
                    task.enter(|| common::spin_without_polls(&spin))
                })
            };
            until("the process ends", || {
                task.request().expect("sent");
                runner.is_finished()
            });
        },
    );
    if let Some(ended) = ended {
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(signal, Some(libc::SIGABRT), "{}", ended.output);
        assert!(ended.output.contains("inside an injected call"), "{}", ended.output);
    }
}

/// P3. SIGURG is below the real-time signals: a full queue costs it the siginfo, not the delivery.
#[test]
fn a_full_signal_queue_does_not_lose_the_request() {
    testkit::in_child(
        "a_full_signal_queue_does_not_lose_the_request",
        Duration::from_mins(1),
        || {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a valid limit.
            let set = unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) };
            assert_eq!(set, 0);
            let _code = set_up();
            let spinner = Spinner::start("spinner", Task::new());
            for _ in 0..100 {
                spinner.task.suspend(SOON).expect("stops").resume();
                spinner.progress();
            }
            spinner.end();
        },
    );
}

/// Requests of a thread in registered code interrupt it, and one of a thread elsewhere finds it there.
#[test]
fn signals_are_counted_by_what_became_of_them() {
    testkit::in_child("signals_are_counted_by_what_became_of_them", 2 * SOON, || {
        const REQUESTS: usize = 5;
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::with_hook(|_| ()));
        let before = preempt::stats();
        for _ in 0..REQUESTS {
            spinner.task.request_within(SOON).expect("it is interrupted");
        }
        let now = preempt::stats().since(&before);
        assert_eq!(now.hooks, REQUESTS, "{now:?}");
        assert_eq!(now.parked, 0, "{now:?}");
        // One that comes while the call is there that the last one has made needs no signal.
        let interrupted = now.outcome(SignalOutcome::Interrupted);
        assert!((1..=now.handled).contains(&interrupted) && now.handled <= now.sent, "{now:?}");

        spinner.task.suspend(SOON).expect("it stops").resume();
        assert_eq!(preempt::stats().since(&before).parked, 1);
        spinner.end();

        let (over, elsewhere) = (Arc::new(AtomicBool::new(false)), Task::new());
        let (its, task) = (over.clone(), elsewhere.clone());
        let entered = Arc::new(AtomicBool::new(false));
        let tell = entered.clone();
        let thread = threadreg::spawn(move || {
            task.enter(|| {
                tell.store(true, SeqCst);
                while !its.load(SeqCst) {
                    std::hint::spin_loop();
                }
            })
        });
        until("it is inside", || entered.load(SeqCst));
        let before = preempt::stats();
        elsewhere.suspend(Duration::from_millis(50)).expect_err("it finds no safe point");
        let now = preempt::stats().since(&before);
        assert!(now.outcome(SignalOutcome::OutsideCode) > 0, "{now:?}");
        assert_eq!((now.hooks, now.parked), (0, 0), "{now:?}");
        over.store(true, SeqCst);
        thread.join().expect("no panic").expect("entered");
    });
}
