//! Tasks that make way when they have had their slice, and how long they have run.

mod common;

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, Spinner, set_up, until};
use preempt::{Slicer, SlicerError, Task};
use sigctx::handler::{self, Delivery, Flow, Options};
use testkit::{forked, in_child};
use threadreg::procfs::TaskDir;

const SLICE: Duration = Duration::from_millis(1);

/// A task that counts how often it makes way.
fn counting() -> (Task, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    (Task::with_hook(move |_| _ = counted.fetch_add(1, SeqCst)), count)
}

#[test]
fn a_loop_without_polls_makes_way_after_each_slice() {
    in_child("a_loop_without_polls_makes_way_after_each_slice", SOON, || {
        let _code = set_up();
        let slicer = Slicer::start(SLICE).expect("a thread");
        let ((task, count), (other, of_other)) = (counting(), counting());
        slicer.add(&task);
        let (spinner, other) = (Spinner::start("sliced", task), Spinner::start("other", other));
        until("it has made way often", || count.load(SeqCst) >= 20);
        assert_eq!(of_other.load(SeqCst), 0, "it is not the slicer's");
        assert_eq!(other.task.run_time(), Duration::ZERO, "nobody counts its time");
        assert!(spinner.task.run_time() >= 20 * SLICE, "{:?}", spinner.task.run_time());
        spinner.end();
        other.end();
    });
}

/// What the task had been told of is done: it makes way before it is held.
fn settle(task: &Task) {
    task.suspend(SOON).expect("it computes").resume();
}

#[test]
fn no_slice_ends_while_they_are_off() {
    in_child("no_slice_ends_while_they_are_off", SOON, || {
        let _code = set_up();
        let slicer = Slicer::start(SLICE).expect("a thread");
        let (task, count) = counting();
        slicer.add(&task);
        let spinner = Spinner::start("sliced", task);
        let makes_way = || {
            let before = count.load(SeqCst);
            until("it makes way", || count.load(SeqCst) > before);
        };
        for _ in 0..3 {
            makes_way();
            slicer.turn_off();
            settle(&spinner.task);
            let before = count.load(SeqCst);
            thread::sleep(20 * SLICE);
            spinner.progress();
            assert_eq!(count.load(SeqCst), before);
            slicer.turn_on();
            makes_way();
        }
        drop(slicer);
        settle(&spinner.task);
        let before = count.load(SeqCst);
        thread::sleep(20 * SLICE);
        assert_eq!(count.load(SeqCst), before, "the slicer is gone");
        spinner.end();
    });
}

/// Whether a sleep of a hundred milliseconds was cut short.
fn is_interrupted() -> bool {
    // SAFETY: looks at no descriptor.
    let ready = unsafe { libc::poll(ptr::null_mut(), 0, 100) };
    ready != 0
}

#[test]
fn a_thread_that_sleeps_is_not_interrupted() {
    in_child("a_thread_that_sleeps_is_not_interrupted", SOON, || {
        preempt::install().expect("SIGURG handler");
        let _me = threadreg::attach().expect("not attached yet");
        let slicer = Slicer::start(20 * SLICE).expect("a thread");
        let task = Task::new();
        slicer.add(&task);
        let sleeps = |sleep: &dyn Fn() -> bool| (0..10).filter(|_| sleep()).count();
        let entered = task.enter(|| {
            let blocked = || task.blocking(is_interrupted).expect("inside");
            assert_eq!(sleeps(&blocked), 0, "it is blocked, and says so");
            // A thread that has no processor as it is looked at may have one, and sleep, when the signal comes.
            let interrupted = sleeps(&is_interrupted);
            assert!(interrupted < 5, "{interrupted} of 10");
        });
        entered.expect("enters its task");
    });
}

#[test]
fn a_slicer_sleeps_while_no_task_runs() {
    in_child("a_slicer_sleeps_while_no_task_runs", SOON, || {
        let _code = set_up();
        let slicer = Slicer::start(SLICE).expect("a thread");
        let named = |thread: &threadreg::ThreadRef| thread.name().as_str() == "preempt-slicer";
        let thread = threadreg::threads().find(named).expect("it is registered");
        until("it has begun", || thread.tid().is_some());
        let tid = thread.tid().expect("it lives");
        let tasks = TaskDir::open().expect("/proc");
        let sleeps = || tasks.status(tid).expect("it lives").voluntary_switches;
        until("it sleeps", || {
            let before = sleeps();
            thread::sleep(20 * SLICE);
            sleeps() == before
        });
        let (task, count) = counting();
        slicer.add(&task);
        let spinner = Spinner::start("sliced", task);
        until("it has made way", || count.load(SeqCst) >= 2);
        spinner.end();
        until("it sleeps again", || {
            let before = sleeps();
            thread::sleep(20 * SLICE);
            sleeps() == before
        });
    });
}

#[test]
fn only_time_in_which_the_task_runs_counts() {
    in_child("only_time_in_which_the_task_runs_counts", SOON, || {
        let _code = set_up();
        let slicer = Slicer::start(SLICE).expect("a thread");
        let task = Task::new();
        slicer.add(&task);
        let timed = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            start.elapsed()
        };
        let start = Instant::now();
        let away = {
            let _me = threadreg::attach().expect("not attached yet");
            let mut away = Duration::ZERO;
            for _ in 0..3 {
                away += task
                    .enter(|| {
                        let ran = timed(&|| thread::sleep(SLICE));
                        let blocking = || timed(&|| thread::sleep(10 * SLICE));
                        assert!(task.run_time() >= ran);
                        task.blocking(blocking).expect("inside")
                    })
                    .expect("enters its task");
                away += timed(&|| thread::sleep(10 * SLICE));
            }
            away
        };
        let spinner = Spinner::start("sliced", task);
        let held = spinner.task.suspend(SOON).expect("it computes");
        let away = away + timed(&|| thread::sleep(10 * SLICE));
        held.resume();
        spinner.progress();
        let task = spinner.task.clone();
        spinner.end();
        let (ran, lasted) = (task.run_time(), start.elapsed());
        assert!(ran + away <= lasted, "{ran:?} and {away:?} of {lasted:?}");
        assert!(ran >= 3 * SLICE, "{ran:?}");
        assert_eq!(task.run_time(), ran, "it does not run");
    });
}

fn on_tick(delivery: &mut Delivery<'_>) -> Flow {
    preempt::request_in(delivery)
}

#[test]
fn a_timers_handler_can_have_a_task_make_way() {
    in_child("a_timers_handler_can_have_a_task_make_way", SOON, || {
        let _code = set_up();
        // SAFETY: the handler is async-signal-safe.
        let ticks = unsafe { handler::install(libc::SIGALRM, on_tick, Options::new()) };
        let _ticks = ticks.expect("SIGALRM has a handler");
        let _me = threadreg::attach().expect("not attached yet");
        // It is inside no task.
        threadreg::current().expect("attached").signal(libc::SIGALRM).expect("sent");
        let (task, count) = counting();
        let spinner = Spinner::start("ticked", task);
        for _ in 0..20 {
            let before = count.load(SeqCst);
            spinner.thread.thread().signal(libc::SIGALRM).expect("it spins");
            until("it makes way", || count.load(SeqCst) > before);
        }
        spinner.end();
    });
}

#[test]
fn a_slice_that_is_too_short_or_too_long_is_refused() {
    for slice in [Duration::ZERO, Duration::from_hours(1)] {
        let error = Slicer::start(slice).expect_err("refused");
        assert!(matches!(error, SlicerError::Slice { asked } if asked == slice), "{error}");
    }
}

/// It would wait for a thread that it does not have.
#[test]
fn the_child_of_a_fork_has_slicers_of_its_own_only() {
    in_child("the_child_of_a_fork_has_slicers_of_its_own_only", SOON, || {
        let _code = set_up();
        let slicer = Slicer::start(SLICE).expect("a thread");
        let (task, count) = counting();
        slicer.add(&task);
        let mut slicer = Some(slicer);
        let status = forked(|| {
            drop(slicer.take());
            let slicer = Slicer::start(SLICE).expect("a thread");
            slicer.add(&task);
            let spinner = Spinner::start("sliced", task.clone());
            until("it has made way", || count.load(SeqCst) >= 2);
            spinner.end();
        });
        assert_eq!(status, 0);
        drop(slicer);
    });
}
