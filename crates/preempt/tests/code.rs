//! The registry of interruptible code.

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{
    CodeError, SignalOutcome, StoppedAt, StragglerCause, SuspendError, Task, is_registered_code,
    register_code,
};

#[test]
fn ranges_are_found_by_their_addresses_and_only_while_registered() {
    // SAFETY: nothing runs at these addresses.
    let b = unsafe { register_code(200..300) }.expect("free");
    // SAFETY: as above.
    let a = unsafe { register_code(100..200) }.expect("beside it");
    let hits: Vec<_> = [99, 100, 199, 200, 299, 300].map(is_registered_code).into();
    assert_eq!(hits, [false, true, true, true, true, false]);
    drop(b);
    assert!(is_registered_code(199));
    assert!(!is_registered_code(200));
    drop(a);
    assert!(!is_registered_code(150));
}

#[test]
fn empty_and_overlapping_ranges_are_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "the bad input that is tested")]
    // SAFETY: nothing runs at these addresses.
    let backwards = unsafe { register_code(20..10) };
    assert_eq!(backwards.expect_err("backwards").to_string(), "code range 0x14..0xa is empty");
    // SAFETY: as above.
    let _code = unsafe { register_code(1000..2000) }.expect("free");
    for range in [900..1001, 1999..2001, 1200..1300, 900..2100] {
        // SAFETY: as above.
        let error = unsafe { register_code(range.clone()) }.expect_err("overlaps");
        assert_eq!(error, CodeError::Overlaps { range, registered: 1000..2000 });
    }
}

/// Lookups go on while ranges come and go; under a memory checker or with poisoned frees this
/// would show a snapshot freed too early.
#[test]
fn stress_lookups_while_ranges_come_and_go() {
    // SAFETY: nothing runs at these addresses.
    let _kept = unsafe { register_code(10_000..10_100) }.expect("free");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(is_registered_code(10_050));
                    assert!(!is_registered_code(10_100));
                }
            });
        }
        for i in 0..testkit::budget(20_000) as usize {
            // SAFETY: as above.
            let range = unsafe { register_code(20_000 + i..20_001 + i) }.expect("free");
            assert!(is_registered_code(20_000 + i));
            drop(range);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// C2.
#[test]
fn many_ranges_are_registered_at_once_or_none_is() {
    let ranges =
        |last: usize| (0..10_000).map(|i| 0x10_0000 + i * 16).chain([last]).map(|at| at..at + 8);
    // SAFETY: nothing runs at these addresses.
    let _taken = unsafe { register_code(0x50_0000..0x50_0010) }.expect("free");
    // SAFETY: as above.
    let error = unsafe { preempt::register_code_ranges(ranges(0x50_0008)) }.expect_err("overlaps");
    let range = 0x50_0008..0x50_0010;
    assert_eq!(error, CodeError::Overlaps { range, registered: 0x50_0000..0x50_0010 });
    assert!(!is_registered_code(0x10_0000));
    // SAFETY: as above.
    let all = unsafe { preempt::register_code_ranges(ranges(0x60_0000)) }.expect("free");
    assert_eq!(all.len(), 10_001);
    assert!(ranges(0x60_0000).all(|r| is_registered_code(r.start) && !is_registered_code(r.end)));
    drop(all);
    assert!(ranges(0x60_0000).all(|r| !is_registered_code(r.start)));
}

/// C1. A JIT may use the memory again only when nothing leads back into it.
#[test]
fn a_range_is_retired_when_no_task_stands_still_in_it() {
    let code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    let stopped = spinner.task.suspend(SOON).expect("stops");
    assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
    let error = code.retire(Duration::from_millis(10)).expect_err("a task is stopped in there");
    let tid = spinner.thread.thread().tid().expect("runs");
    let threads: Vec<_> =
        error.threads().iter().map(|(tid, name)| (*tid, name.to_string())).collect();
    assert_eq!((error.stopped(), threads), (1, vec![(tid, "spinner".to_owned())]), "{error}");
    assert!(error.to_string().contains(&format!("thread {tid} \"spinner\"")), "{error}");
    stopped.resume();
    code.retire(SOON).expect("it goes on");
    spinner.progress();
    let mut patience = Duration::from_millis(50);
    let error = loop {
        match spinner.task.suspend(patience).expect_err("not registered any more") {
            SuspendError::TimedOut { cause: StragglerCause::Refused { outcome, .. }, .. } => {
                break outcome;
            }
            error => assert!(patience < SOON, "{error}"),
        }
        patience *= 2;
    };
    assert_eq!(error, SignalOutcome::OutsideCode);
    // Again: there is nothing to take out, and nothing to wait for.
    code.retire(Duration::ZERO).expect("empty");
    spinner.end();
}

/// C1. A task that was preempted stands still in its hook.
#[test]
fn a_range_is_retired_when_the_hook_of_a_preempted_task_has_returned() {
    static GO_ON: AtomicBool = AtomicBool::new(false);
    let code = set_up();
    let task = Task::with_hook(|_| until("it may go on", || GO_ON.load(SeqCst)));
    let spinner = Spinner::start("spinner", task);
    spinner.task.request_within(SOON).expect("served");
    let error = code.retire(Duration::from_millis(10)).expect_err("preempted in there");
    assert_eq!(error.stopped(), 1, "{error}");
    GO_ON.store(true, SeqCst);
    code.retire(SOON).expect("it goes on");
    spinner.end();
}

/// C3. What a debug build meets: the pc is in a function that was not inlined.
#[test]
fn the_error_names_the_function_that_is_not_registered() {
    let code = set_up();
    let spinner = Spinner::start("spinner", Task::new());
    drop(code);
    let mut patience = Duration::from_millis(50);
    let text = loop {
        let error = spinner.task.suspend(patience).expect_err("not registered");
        if matches!(error, SuspendError::TimedOut { cause: StragglerCause::Refused { .. }, .. }) {
            break error.to_string();
        }
        assert!(patience < SOON, "{error}");
        patience *= 2;
    };
    assert!(text.contains("outside the registered code"), "{text}");
    if cfg!(feature = "symbols") {
        assert!(text.contains("spin_without_polls"), "{text}");
    }
    spinner.end();
}
