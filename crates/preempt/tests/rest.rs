//! Tasks whose threads stand still for another crate: held there, with no safe point of ours.

mod common;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{StoppedAt, Task};
use sigctx::sys::gettid;
use threadreg::rest::{self, Place, Rest};
use threadreg::{Nudge, NudgeCall};

/// A place of another crate's, as a stop of the world or a safe region is one.
#[derive(Debug)]
struct Elsewhere {
    state: AtomicU32,
    recalled: AtomicU32,
    over: AtomicU32,
    left: AtomicU32,
}

const RUNNING: u32 = 0;
const WAITING: u32 = 1;
const AWAY: u32 = 2;

static PLACE: Elsewhere = Elsewhere {
    state: AtomicU32::new(RUNNING),
    recalled: AtomicU32::new(0),
    over: AtomicU32::new(0),
    left: AtomicU32::new(0),
};

unsafe fn state(_: usize) -> Rest {
    match PLACE.state.load(SeqCst) {
        RUNNING => Rest::Running,
        WAITING => Rest::Waiting,
        _ => Rest::Away,
    }
}

unsafe fn recall(_: usize) {
    PLACE.recalled.store(1, SeqCst);
}

/// Waits as a stop of the world does.
unsafe fn wait(_: usize) {
    PLACE.state.store(WAITING, SeqCst);
    while PLACE.over.load(SeqCst) == 0 {
        if PLACE.recalled.load(SeqCst) == 1 {
            rest::serve();
        }
        std::hint::spin_loop();
    }
    come_back();
}

fn come_back() {
    loop {
        if PLACE.recalled.swap(0, SeqCst) == 1 {
            rest::leave();
        }
        PLACE.state.store(RUNNING, SeqCst);
        if PLACE.recalled.load(SeqCst) == 0 {
            break;
        }
        PLACE.state.store(WAITING, SeqCst);
    }
    PLACE.left.store(1, SeqCst);
}

/// Runs `body` on a thread with the place, as a task.
fn elsewhere(name: &str, body: impl FnOnce(&Task) + Send, look: impl FnOnce(&Task)) {
    testkit::in_child(name, Duration::from_secs(20), || {
        let _code = set_up();
        let task = Task::new();
        thread::scope(|scope| {
            let task = &task;
            scope.spawn(move || {
                let _me = threadreg::attach().expect("attach");
                // SAFETY: static words, any time; `wait` and the tests keep the protocol.
                let place = unsafe { Place::new(state, recall, 0) };
                let _registered = rest::register(place).expect("attached");
                task.enter(|| body(task)).expect("entered");
            });
            until("it stands still", || PLACE.state.load(SeqCst) != RUNNING);
            look(task);
        });
    });
}

/// It stays there for as long as it is held, also when the other crate lets it go.
fn stays(held: preempt::Suspended) {
    PLACE.over.store(1, SeqCst);
    for _ in 0..100 {
        thread::yield_now();
    }
    assert_eq!(PLACE.left.load(SeqCst), 0, "it went on while it was held");
    drop(held);
    until("it goes on", || PLACE.left.load(SeqCst) == 1);
}

/// X5.
#[test]
fn a_task_that_waits_elsewhere_is_held_and_runs_errands_there() {
    let name = "a_task_that_waits_elsewhere_is_held_and_runs_errands_there";
    let (tells, told) = mpsc::channel();
    let body = move |_: &Task| {
        tells.send(gettid()).expect("the test waits");
        // SAFETY: only waits.
        unsafe { wait(0) };
    };
    elsewhere(name, body, |task| {
        for _ in 0..2 {
            let held = task.suspend(SOON).expect("it waits");
            assert_eq!(held.stopped_at(), StoppedAt::Poll);
            assert!(held.registers().is_none(), "it was not interrupted");
            drop(held);
        }
        let held = task.suspend(SOON).expect("it waits");
        let ran_on = held.run_within(SOON, |frame| (frame.is_some(), gettid()));
        assert_eq!(ran_on.ok(), Some((false, told.recv().expect("told"))));
        stays(held);
    });
}

/// X5.
#[test]
fn a_task_that_is_away_is_held_as_blocked() {
    let name = "a_task_that_is_away_is_held_as_blocked";
    let body = |task: &Task| {
        PLACE.state.store(AWAY, SeqCst);
        until("it is over", || PLACE.over.load(SeqCst) == 1);
        // What is called there works whether the task is held or not.
        assert_eq!(task.blocking(|| 7), Ok(7));
        come_back();
    };
    elsewhere(name, body, |task| {
        let held = task.suspend(SOON).expect("it is away");
        assert_eq!(held.stopped_at(), StoppedAt::Blocked);
        assert!(held.run(|_| ()).is_none());
        stays(held);
    });
}

/// X5. A task that suspends another from there is not in its own way.
#[test]
fn a_task_that_is_away_and_held_can_suspend_another() {
    let name = "a_task_that_is_away_and_held_can_suspend_another";
    let other = Task::new();
    let body = |_: &Task| {
        PLACE.state.store(AWAY, SeqCst);
        until("it is over", || PLACE.over.load(SeqCst) == 1);
        drop(other.suspend(SOON).expect("idle"));
        come_back();
    };
    elsewhere(name, body, |task| stays(task.suspend(SOON).expect("it is away")));
}

/// X8. A task that was entered where its thread was away runs code of its own there: that is stopped, not
/// taken for the region's.
#[test]
fn a_task_that_is_entered_away_is_stopped_at_its_own_code() {
    let name = "a_task_that_is_entered_away_is_stopped_at_its_own_code";
    testkit::in_child(name, Duration::from_secs(20), || {
        let _code = set_up();
        let task = Task::new();
        let spin = common::Spin::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _me = threadreg::attach().expect("attach");
                // SAFETY: static words, any time.
                let place = unsafe { Place::new(state, recall, 0) };
                let _registered = rest::register(place).expect("attached");
                PLACE.state.store(AWAY, SeqCst);
                task.enter(|| common::spin_without_polls(&spin)).expect("entered");
                PLACE.state.store(RUNNING, SeqCst);
            });
            until("it spins", || spin.count.load(SeqCst) > 0);
            let stopped = task.suspend(SOON).expect("stops");
            assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
            drop(stopped);
            spin.stop.store(true, SeqCst);
        });
    });
}

/// X6. The other crate stopped it by a nudge, in the middle of registered code: what was interrupted is
/// known, and an errand gets the frame.
#[test]
fn a_task_that_was_nudged_to_wait_has_its_registers() {
    let name = "a_task_that_was_nudged_to_wait_has_its_registers";
    testkit::in_child(name, Duration::from_secs(20), || {
        let _code = set_up();
        let (tells, told) = mpsc::channel();
        let task = Task::new();
        let spin = common::Spin::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                let me = threadreg::attach().expect("attach");
                // SAFETY: static words, any time; `wait` keeps the protocol.
                let place = unsafe { Place::new(state, recall, 0) };
                let _registered = rest::register(place).expect("attached");
                tells.send(me.thread()).expect("the test waits");
                task.enter(|| common::spin_without_polls(&spin)).expect("entered");
            });
            let runner = told.recv().expect("attached");
            until("it spins", || spin.count.load(SeqCst) > 0);
            // SAFETY: `wait` waits wherever it is called, and does not unwind.
            let call = unsafe { NudgeCall::new(wait, 0) };
            preempt::Nudger.nudge(runner, call, &|| true).expect("sent");
            until("it waits", || PLACE.state.load(SeqCst) == WAITING);

            let held = task.suspend(SOON).expect("it waits");
            assert_eq!(held.stopped_at(), StoppedAt::Instruction);
            let pc = held.pc().expect("interrupted");
            assert!(preempt::is_registered_code(pc), "{pc:#x}");
            let seen = held.run(|frame| frame.map(|frame| frame.registers()[sigctx::Reg::PC]));
            assert_eq!(seen, Some(Some(pc as _)), "the errand has the frame");
            stays(held);
            spin.stop.store(true, SeqCst);
        });
    });
}

/// X7. Held first, stopped with the world then: the thread waits there, and still runs errands.
#[test]
fn a_parked_task_that_was_nudged_to_wait_runs_errands() {
    let name = "a_parked_task_that_was_nudged_to_wait_runs_errands";
    testkit::in_child(name, Duration::from_secs(20), || {
        unsafe fn wait_here(_: usize) {
            // SAFETY: static words, any time; `wait` keeps the protocol.
            let place = unsafe { Place::new(state, recall, 0) };
            let registered = rest::register(place).expect("attached");
            // SAFETY: only waits.
            unsafe { wait(0) };
            drop(registered);
        }
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        let runner = spinner.thread.thread();
        let held = spinner.task.suspend(SOON).expect("stops");
        // SAFETY: `wait_here` waits wherever it is called, and does not unwind.
        let call = unsafe { NudgeCall::new(wait_here, 0) };
        preempt::Nudger.nudge(runner, call, &|| true).expect("sent");
        until("it waits", || PLACE.state.load(SeqCst) == WAITING);
        let ran = held.run_within(SOON, |frame| (frame.is_some(), gettid()));
        assert_eq!(ran.ok(), Some((true, runner.tid().expect("runs"))));
        assert!(held.backtrace().is_some());
        PLACE.over.store(1, SeqCst);
        until("it is back", || PLACE.left.load(SeqCst) == 1);
        drop(held);
        spinner.progress();
        spinner.end();
    });
}
