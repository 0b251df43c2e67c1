//! Hooks: once at a time, on the task's own stack, and on whichever thread they come back.

mod common;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{RequestError, StragglerCause, Task};

/// What a hook did that asks for itself again, and then does what ends in a poll.
#[derive(Default)]
struct Seen {
    task: OnceLock<Task>,
    runs: AtomicU32,
    depth: AtomicU32,
    deepest: AtomicU32,
}

/// A task with such a hook: the first run asks `again` times for another one before it does `what`.
fn asks_for_itself(what: impl Fn(&Task) + Send + Sync + 'static) -> (Task, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let hook = {
        let seen = seen.clone();
        move |_: Option<&mut preempt::Frame<'_>>| {
            let task = seen.task.get().expect("made before it is asked");
            let depth = seen.depth.fetch_add(1, SeqCst) + 1;
            seen.deepest.fetch_max(depth, SeqCst);
            if seen.runs.fetch_add(1, SeqCst) == 0 {
                for _ in 0..3 {
                    task.request().expect("sent");
                }
            }
            what(task);
            seen.depth.fetch_sub(1, SeqCst);
        }
    };
    let task = Task::with_hook(hook);
    seen.task.set(task.clone()).expect("set once");
    (task, seen)
}

type Ending = (&'static str, fn(&Task));

/// What ends in a poll, and may be done in a hook.
const ENDINGS: [Ending; 4] = [
    ("a poll", |_| preempt::poll()),
    ("a guard", |_| drop(preempt::disable())),
    ("blocking", |task| task.blocking(|| ()).expect("inside")),
    ("suspending another", |_| {
        Task::new().suspend(SOON).expect("idle").resume();
    }),
];

/// P25. The task had no thread when it was asked, and the thread looks when it enters: too early.
#[test]
fn what_is_asked_before_a_guarded_thread_enters_is_served_when_the_guard_ends() {
    preempt::install().expect("install");
    let _me = threadreg::attach().expect("attach");
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let task = Task::with_hook(move |_| _ = counted.fetch_add(1, SeqCst));
    task.request().expect("idle");
    let (outer, inner) = (preempt::disable(), preempt::disable());
    task.enter(|| {
        preempt::poll();
        drop(inner);
        assert_eq!(runs.load(SeqCst), 0, "a guard is left");
        drop(outer);
        assert_eq!(runs.load(SeqCst), 1);
    })
    .expect("enters");
}

/// H1.
#[test]
fn what_is_asked_during_a_hook_at_a_poll_is_served_once_after_it() {
    preempt::install().expect("install");
    let _me = threadreg::attach().expect("attach");
    for (name, what) in ENDINGS {
        let (task, seen) = asks_for_itself(what);
        task.request().expect("idle");
        task.enter(preempt::poll).expect("enters");
        assert_eq!((seen.runs.load(SeqCst), seen.deepest.load(SeqCst)), (2, 1), "{name}");
    }
}

/// H1.
#[test]
fn what_is_asked_during_a_hook_in_a_loop_is_served_once_after_it() {
    let _code = set_up();
    for (name, what) in ENDINGS {
        let (task, seen) = asks_for_itself(what);
        let spinner = Spinner::start("spinner", task);
        spinner.task.request_within(SOON).expect("served");
        until("the second run has ended", || {
            seen.runs.load(SeqCst) >= 2 && seen.depth.load(SeqCst) == 0
        });
        spinner.progress();
        assert_eq!((seen.runs.load(SeqCst), seen.deepest.load(SeqCst)), (2, 1), "{name}");
        spinner.end();
    }
}

/// H1. A hook that panics at a poll has ended, too.
#[test]
fn a_hook_that_panicked_at_a_poll_runs_again() {
    let _me = threadreg::attach().expect("attach");
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let task = Task::with_hook(move |_| {
        assert_ne!(counted.fetch_add(1, SeqCst), 0, "the first run panics");
    });
    task.request().expect("idle");
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| task.enter(preempt::poll)));
    assert!(panicked.is_err());
    task.request().expect("idle");
    task.enter(preempt::poll).expect("enters");
    assert_eq!(runs.load(SeqCst), 2);
}

/// H4.
#[test]
fn a_request_that_finds_other_code_is_served_when_the_task_is_back_in_its_own() {
    static PHASE: AtomicU32 = AtomicU32::new(0);

    let _code = set_up();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let task = Task::with_hook(move |frame| {
        assert!(frame.is_some(), "there is no poll");
        counted.fetch_add(1, SeqCst);
    });
    let spin = Arc::new(common::Spin::default());
    let runner = {
        let (task, spin) = (task.clone(), spin.clone());
        threadreg::Builder::new()
            .name("elsewhere".to_owned())
            .spawn(move || {
                task.enter(|| {
                    PHASE.store(1, SeqCst);
                    while PHASE.load(SeqCst) == 1 {
                        std::hint::spin_loop();
                    }
                    common::spin_without_polls(&spin);
                })
            })
            .expect("spawn")
    };
    until("the task runs", || PHASE.load(SeqCst) == 1);
    let refused: Result<(), RequestError> = refusal_of(&task);
    let error = refused.expect_err("outside the registered code");
    assert!(matches!(error.cause, StragglerCause::Refused { .. }), "{error}");
    assert!(error.to_string().contains("\"elsewhere\""), "{error}");
    assert!(error.to_string().contains("outside the registered code"), "{error}");
    assert_eq!(runs.load(SeqCst), 0);
    PHASE.store(2, SeqCst);
    task.request_within(SOON).expect("served");
    until("the hook has run", || runs.load(SeqCst) > 0);
    spin.stop.store(true, SeqCst);
    runner.join().expect("no panic").expect("entered");
}

/// With time enough for the thread to be scheduled and its handler to run, whatever else runs.
fn refusal_of(task: &Task) -> Result<(), RequestError> {
    let mut timeout = Duration::from_millis(50);
    loop {
        match task.request_within(timeout) {
            Err(RequestError {
                cause: StragglerCause::NotHandled | StragglerCause::SignalBlocked,
                ..
            }) if timeout < SOON => {
                timeout *= 2;
            }
            result => return result,
        }
    }
}

/// Switching stacks, with what the C library has for it.
#[cfg(target_env = "gnu")]
mod switched {
    use std::cell::UnsafeCell;
    use std::ffi::{c_int, c_ulong, c_void};
    use std::mem::MaybeUninit;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;
    use sigctx::inject::CallStack;

    /// glibc's `ucontext_t`, which begins like this everywhere. The crate libc has it, and the functions,
    /// for some architectures alone.
    #[repr(C, align(64))]
    struct Context {
        flags: c_ulong,
        link: *mut c_void,
        stack: libc::stack_t,
        /// More than any has.
        registers: [u64; 1024],
    }

    unsafe extern "C" {
        fn getcontext(context: *mut Context) -> c_int;
        fn makecontext(context: *mut Context, begin: extern "C" fn(), arguments: c_int, ...);
        fn swapcontext(from: *mut Context, to: *const Context) -> c_int;
    }

    /// A coroutine, and the scheduler's side of it.
    struct Coroutine {
        inside: UnsafeCell<MaybeUninit<Context>>,
        outside: UnsafeCell<MaybeUninit<Context>>,
        body: fn(),
        call_stack: CallStack,
        range: (usize, usize),
    }

    // SAFETY: one thread at a time has it; the tests hand it over by channels and joins.
    unsafe impl Sync for Coroutine {}

    static CURRENT: OnceLock<&'static Coroutine> = OnceLock::new();

    impl Coroutine {
        /// One a process.
        fn start(body: fn()) -> &'static Self {
            const SIZE: usize = 512 * 1024;
            let stack = vec![0u8; SIZE].leak();
            let range = (stack.as_ptr() as usize, stack.as_ptr() as usize + SIZE);
            let coroutine: &'static Self = Box::leak(Box::new(Self {
                inside: UnsafeCell::new(MaybeUninit::zeroed()),
                outside: UnsafeCell::new(MaybeUninit::zeroed()),
                body,
                // SAFETY: leaked, and a stack from now on; nothing in the tests needs more room.
                call_stack: unsafe { CallStack::new(range.0, range.1) },
                range,
            }));
            assert!(CURRENT.set(coroutine).is_ok(), "one a process");
            let context = coroutine.inside.get().cast::<Context>();
            // SAFETY: a context of our own.
            assert_eq!(unsafe { getcontext(context) }, 0);
            // SAFETY: as above; no other thread has it yet.
            let context = unsafe { &mut *context };
            context.stack.ss_sp = stack.as_mut_ptr().cast();
            context.stack.ss_size = SIZE;
            // SAFETY: `begin` takes no arguments, and never returns.
            unsafe { makecontext(context, begin, 0) };
            coroutine
        }

        /// Runs it on the calling thread until it leaves.
        #[inline(never)]
        fn enter(&self) {
            let (to, from) = (self.inside.get().cast(), self.outside.get().cast());
            // SAFETY: `inside` was made by `makecontext` or written by `leave`.
            assert_eq!(unsafe { swapcontext(from, to) }, 0);
        }

        /// Back to the scheduler.
        #[inline(never)]
        fn leave(&self) {
            let (to, from) = (self.outside.get().cast(), self.inside.get().cast());
            // SAFETY: `outside` was written by `enter`, whose caller waits.
            assert_eq!(unsafe { swapcontext(from, to) }, 0);
        }

        fn is_here(&self) -> bool {
            let here = 0_u8;
            (self.range.0..self.range.1).contains(&(&raw const here as usize))
        }
    }

    extern "C" fn begin() {
        let coroutine = CURRENT.get().expect("started");
        (coroutine.body)();
        coroutine.leave();
        unreachable!("entered after its end");
    }

    /// H3.
    #[test]
    fn a_request_to_a_task_that_was_switched_out_waits_until_it_is_on_its_stack_again() {
        let name = "switched::a_request_to_a_task_that_was_switched_out_waits_until_it_is_on_its_stack_again";
        testkit::in_child(name, SOON, || {
            let _me = threadreg::attach().expect("attach");
            let coroutine = Coroutine::start(preempt::poll);
            let runs = Arc::new(AtomicU32::new(0));
            let counted = runs.clone();
            let task = Task::with_hook(move |_| {
                assert!(coroutine.is_here(), "the hook runs on the scheduler's stack");
                counted.fetch_add(1, SeqCst);
            });
            task.request().expect("idle");
            task.enter_on(&coroutine.call_stack, || {
                preempt::poll();
                assert_eq!(runs.load(SeqCst), 0);
                coroutine.enter();
                assert_eq!(runs.load(SeqCst), 1);
            })
            .expect("enters");
        });
    }

    static CALLED_ON: AtomicU32 = AtomicU32::new(0);

    unsafe fn called(_data: usize) {
        CALLED_ON.store(sigctx::sys::gettid().unsigned_abs(), SeqCst);
    }

    /// H2. A coroutine is preempted on one thread and goes on, out of its hook, on another. What the first
    /// thread is asked is not done there.
    #[test]
    fn a_hook_that_comes_back_on_another_thread_makes_that_threads_calls() {
        let name = "switched::a_hook_that_comes_back_on_another_thread_makes_that_threads_calls";
        testkit::in_child(name, 2 * SOON, || {
            static SPIN: OnceLock<common::Spin> = OnceLock::new();
            static BACK: AtomicBool = AtomicBool::new(false);
            SPIN.get_or_init(common::Spin::default);
            let _code = set_up();
            let coroutine = Coroutine::start(|| {
                common::spin_without_polls(SPIN.get().expect("made"));
            });
            let task = Task::with_hook(|frame| {
                let Some(frame) = frame else { return };
                CURRENT.get().expect("started").leave();
                // SAFETY: the loop has nothing of its thread's.
                unsafe { frame.move_here() }.expect("moves");
                BACK.store(true, SeqCst);
            });
            let (switched_out, is_out) = mpsc::channel();
            let (ask, asked) = mpsc::channel::<()>();
            let first = {
                let task = task.clone();
                threadreg::spawn(move || {
                    task.enter_on(&coroutine.call_stack, || coroutine.enter()).expect("enters");
                    switched_out.send(()).expect("the test waits");
                    asked.recv().expect("the test asks");
                    preempt::poll();
                })
            };
            let spin = SPIN.get().expect("made");
            until("it spins", || spin.count.load(SeqCst) > 0);
            task.request_within(SOON).expect("served");
            is_out.recv().expect("switched out");
            // SAFETY: the function only stores a number.
            let call = unsafe { threadreg::NudgeCall::new(called, 0) };
            let tid = first.thread().tid().expect("runs").unsigned_abs();
            threadreg::Nudge::nudge(&preempt::Nudger, first.thread(), call, &|| true)
                .expect("sent");
            let second = {
                let task = task.clone();
                threadreg::spawn(move || {
                    task.enter_on(&coroutine.call_stack, || coroutine.enter()).expect("enters");
                })
            };
            until("the hook is back", || BACK.load(SeqCst));
            let before = spin.count.load(SeqCst);
            until("the loop goes on", || spin.count.load(SeqCst) != before);
            assert_eq!(CALLED_ON.load(SeqCst), 0, "the first thread, {tid}, was asked");
            // It is the second thread's task now, and stops there.
            assert_eq!(task.suspend(SOON).expect("stops").thread(), Some(second.thread()));
            ask.send(()).expect("the first thread waits");
            first.join().expect("no panic");
            assert_eq!(CALLED_ON.load(SeqCst), tid);
            spin.stop.store(true, SeqCst);
            second.join().expect("no panic");
        });
    }

    /// H5. A coroutine that unwinds its stack when it is dropped would unwind what was interrupted.
    #[test]
    fn what_unwinds_out_of_an_injected_hook_is_told_why_it_cannot() {
        let name = "switched::what_unwinds_out_of_an_injected_hook_is_told_why_it_cannot";
        let ended = testkit::child(name, SOON, || {
            let _code = set_up();
            let task = Task::with_hook(|frame| {
                if frame.is_some() {
                    // What `corosensei` does on drop.
                    std::panic::resume_unwind(Box::new(()));
                }
            });
            let spinner = Spinner::start("spinner", task);
            let _ = spinner.task.request_within(SOON);
            until("the process ends", || false);
        });
        if let Some(ended) = ended {
            let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
            assert_eq!(signal, Some(libc::SIGABRT), "{}", ended.output);
            assert!(ended.output.contains("resume a preempted coroutine"), "{}", ended.output);
        }
    }
}
