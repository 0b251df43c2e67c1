//! One signal, and other code in the process that uses it, too.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use common::{SOON, Spinner, set_up, until};
use preempt::{
    InstallError, Options, StoppedAt, StragglerCause, SuspendError, Task, Unusable, install,
    install_with,
};
use sigctx::sys::{
    KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigSet, getpid, kill, rt_sigaction,
    sigprocmask,
};

static COVER_CALLS: AtomicU32 = AtomicU32::new(0);
static BENEATH: AtomicUsize = AtomicUsize::new(0);

/// Keeps every signal to itself. One function for each `N`.
extern "C" fn keeps<const N: u32>(_signal: i32) {
    COVER_CALLS.fetch_add(N, SeqCst);
}

type Full = extern "C" fn(i32, *mut libc::c_void, *mut libc::c_void);

/// Hands on to the handler from before, as signal-hook does.
extern "C" fn chains(signal: i32, info: *mut libc::c_void, context: *mut libc::c_void) {
    COVER_CALLS.fetch_add(1, SeqCst);
    let beneath = BENEATH.load(SeqCst) as *const ();
    // SAFETY: `cover` found it there, with `SA_SIGINFO`.
    let beneath = unsafe { std::mem::transmute::<*const (), Full>(beneath) };
    beneath(signal, info, context);
}

/// Sets the action of a signal; returns the handler that was there.
fn set_action(signal: i32, handler: usize, flags: SaFlags) -> usize {
    let action = KernelAction { handler, flags: flags | SaFlags::RESTART, mask: SigSet::empty() };
    // SAFETY: the tests' handlers only count, and may be called on every thread.
    unsafe { rt_sigaction(signal, Some(&action)) }.expect("sets").handler
}

/// Every request and every suspension reaches the loop.
fn works(spinner: &Spinner) {
    for _ in 0..3 {
        let stopped = spinner.task.suspend(SOON).expect("stops");
        assert_eq!(stopped.stopped_at(), StoppedAt::Instruction);
        stopped.resume();
        spinner.progress();
    }
}

/// G1.
#[test]
fn install_again_puts_ours_on_top_again() {
    testkit::in_child("install_again_puts_ours_on_top_again", Duration::from_mins(2), || {
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        let over =
            [SIG_IGN, SIG_DFL, keeps::<1> as *const () as usize, chains as *const () as usize];
        for handler in over {
            let flags = if handler == chains as *const () as usize {
                SaFlags::SIGINFO
            } else {
                SaFlags::empty()
            };
            let ours = set_action(libc::SIGURG, handler, flags);
            BENEATH.store(ours, SeqCst);
            install().expect("installs again");
            assert_eq!(handler_of(libc::SIGURG), ours, "over {handler:#x}");
            works(&spinner);
        }
        spinner.end();
    });
}

/// The present handler.
fn handler_of(signal: i32) -> usize {
    // SAFETY: only reads.
    unsafe { rt_sigaction(signal, None) }.expect("reads").handler
}

/// G1. A handler that was put over ours gets the signal next, and tasks stop as before, without `install`.
#[test]
fn a_handler_over_ours_keeps_its_signals_and_tasks_stop() {
    let name = "a_handler_over_ours_keeps_its_signals_and_tasks_stop";
    testkit::in_child(name, Duration::from_mins(2), || {
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        works(&spinner);
        let over = [
            (keeps::<1> as *const () as usize, SaFlags::empty()),
            (chains as *const () as usize, SaFlags::SIGINFO),
            (keeps::<2> as *const () as usize, SaFlags::ONSTACK),
        ];
        for (handler, flags) in over {
            BENEATH.store(set_action(libc::SIGURG, handler, flags), SeqCst);
            works(&spinner);
            let before = COVER_CALLS.load(SeqCst);
            kill(getpid(), libc::SIGURG).expect("sent");
            until("it gets its signal", || COVER_CALLS.load(SeqCst) > before);
        }
        for action in [SIG_IGN, SIG_DFL] {
            set_action(libc::SIGURG, action, SaFlags::empty());
            works(&spinner);
        }
        spinner.end();
    });
}

/// G1. The signal is sent before its action is looked at. A request that is made once still reaches the loop
/// when another action got the signal.
#[test]
fn a_request_that_another_action_gets_is_sent_again() {
    let name = "a_request_that_another_action_gets_is_sent_again";
    testkit::in_child(name, Duration::from_mins(1), || {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let _code = set_up();
        let hook = |_: Option<&mut preempt::Frame<'_>>| _ = RUNS.fetch_add(1, SeqCst);
        let spinner = Spinner::start("spinner", Task::with_hook(hook));
        for (n, action) in
            [SIG_IGN, SIG_DFL, keeps::<1> as *const () as usize].into_iter().enumerate()
        {
            set_action(libc::SIGURG, action, SaFlags::empty());
            spinner.task.request().expect("sent");
            until("the hook runs", || RUNS.load(SeqCst) as usize == n + 1);
        }
        spinner.end();
    });
}

/// G1. Ours is not put on top without end: two that both want to be first would never rest.
#[test]
fn the_error_names_the_handler_that_stays_over_ours() {
    let name = "the_error_names_the_handler_that_stays_over_ours";
    testkit::in_child(name, Duration::from_mins(2), || {
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        let many: [extern "C" fn(i32); 10] = [
            keeps::<1>,
            keeps::<2>,
            keeps::<3>,
            keeps::<4>,
            keeps::<5>,
            keeps::<6>,
            keeps::<7>,
            keeps::<8>,
            keeps::<9>,
            keeps::<10>,
        ];
        let (mut stopped, mut last) = (0, None);
        for handler in many {
            set_action(libc::SIGURG, handler as *const () as usize, SaFlags::empty());
            match spinner.task.suspend(Duration::from_secs(1)) {
                Ok(held) => {
                    held.resume();
                    // Parked still, it would be held again without a signal.
                    spinner.progress();
                    stopped += 1;
                }
                Err(error) => {
                    last = Some((handler as *const () as usize, error));
                    break;
                }
            }
        }
        let (handler, error) = last.expect("put on top without end");
        assert_eq!(stopped, 8, "{error}");
        let text = error.to_string();
        let SuspendError::TimedOut { cause: StragglerCause::Covered { by }, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(by, handler, "{text}");
        assert!(text.contains(&format!("{by:#x}")), "{text}");
        if cfg!(feature = "symbols") {
            assert!(text.contains("keeps"), "{text}");
        }
        install().expect("asked for");
        let another = Spinner::start("another", Task::new());
        works(&another);
        another.end();
        spinner.end();
    });
}

/// G2. A signal to the process that only the main thread is to read. It has a thread that is open to it
/// only because of us, and so the kernel gives it to that one.
#[test]
fn a_signal_that_the_main_thread_reads_comes_back_to_it() {
    let name = "a_signal_that_the_main_thread_reads_comes_back_to_it";
    testkit::in_child(name, Duration::from_mins(2), || {
        // Which thread is to read it shows in the masks.
        if !testkit::proc_shows_mask(libc::SIGURG) {
            return testkit::skip("/proc shows the signals of the emulator's host");
        }
        // In a child of a fork this is the main thread.
        let status = testkit::forked(|| {
            let urgent = SigSet::of(libc::SIGURG);
            sigprocmask(MaskHow::Block, &urgent);
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
            // SAFETY: writes the set.
            unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGURG) };
            // SAFETY: a set; zeroes are the empty one.
            let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK) };
            assert!(fd >= 0);
            let _code = set_up();
            let spinner = Spinner::start("spinner", Task::new());
            for _ in 0..20 {
                kill(getpid(), libc::SIGURG).expect("sent");
                // Read at once, it would be ours before the other thread has come to run.
                until("the open thread takes it", || !is_pending_for_the_process(libc::SIGURG));
                let mut info = [0_u8; 128];
                until("the signal can be read", || {
                    // SAFETY: writes at most as many bytes as there are.
                    let read = unsafe { libc::read(fd, info.as_mut_ptr().cast(), info.len()) };
                    read == info.len() as isize
                });
                works(&spinner);
            }
            spinner.end();
        });
        assert_eq!(status, 0, "in the child");
    });
}

/// Whether a signal waits for any thread that takes it.
fn is_pending_for_the_process(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let shared = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("a line");
    let shared = u128::from_str_radix(shared.trim(), 16).expect("hexadecimal");
    shared & (1 << (signal - 1)) != 0
}

/// G2, G3.
#[test]
fn a_chosen_signal_preempts_and_leaves_sigurg_alone() {
    testkit::in_child(
        "a_chosen_signal_preempts_and_leaves_sigurg_alone",
        Duration::from_mins(2),
        || {
            let signal = libc::SIGRTMIN() + 3;
            install_with(Options::new().signal(signal)).expect("installs");
            install().expect("as it is");
            let other = install_with(Options::new().signal(libc::SIGURG));
            assert!(
                matches!(other, Err(InstallError::OtherSignal { asked: libc::SIGURG, installed }) if installed == signal),
                "{other:?}"
            );
            assert_eq!(handler_of(libc::SIGURG), SIG_DFL);
            let _code = set_up();
            let runs = Arc::new(AtomicU32::new(0));
            let counted = runs.clone();
            let spinner = Spinner::start(
                "spinner",
                Task::with_hook(move |_| {
                    counted.fetch_add(1, SeqCst);
                }),
            );
            works(&spinner);
            for _ in 0..10 {
                spinner.task.request_within(SOON).expect("served");
            }
            until("the hook has run", || runs.load(SeqCst) >= 10);
            spinner.end();
        },
    );
}

/// G3. Its default action stands: only what the crate sends does not end the process.
#[test]
fn a_chosen_signal_from_outside_does_what_it_did() {
    let name = "a_chosen_signal_from_outside_does_what_it_did";
    let ended = testkit::child(name, Duration::from_mins(1), || {
        install_with(Options::new().signal(libc::SIGUSR2)).expect("installs");
        let _code = set_up();
        let spinner = Spinner::start("spinner", Task::new());
        works(&spinner);
        kill(getpid(), libc::SIGUSR2).expect("sent");
        until("the process ends", || false);
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.signal(), Some(libc::SIGUSR2), "{}", ended.output);
    }
}

/// G3. One that was on its way when its thread left the registry.
#[test]
fn a_chosen_signal_does_not_end_the_process_when_it_comes_late() {
    let name = "a_chosen_signal_does_not_end_the_process_when_it_comes_late";
    testkit::in_child(name, Duration::from_mins(1), || {
        install_with(Options::new().signal(libc::SIGUSR2)).expect("installs");
        let me = threadreg::attach().expect("attach");
        let task = Task::new();
        let signal = SigSet::of(libc::SIGUSR2);
        sigprocmask(MaskHow::Block, &signal);
        task.enter(|| task.request().expect("sent")).expect("enters");
        assert!(is_pending(libc::SIGUSR2), "nothing was sent");
        drop(me);
        sigprocmask(MaskHow::Unblock, &signal);
        assert!(!is_pending(libc::SIGUSR2), "not delivered");
    });
}

fn is_pending(signal: i32) -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes the set.
    assert_eq!(unsafe { libc::sigpending(set.as_mut_ptr()) }, 0);
    // SAFETY: written, over zeroes.
    unsafe { libc::sigismember(set.as_ptr(), signal) == 1 }
}

#[test]
fn signals_that_cannot_be_used_are_refused() {
    let refused = [
        (0, Unusable::NoSignal),
        (-1, Unusable::NoSignal),
        (libc::SIGRTMAX() + 1, Unusable::NoSignal),
        (libc::SIGKILL, Unusable::Uncatchable),
        (libc::SIGSTOP, Unusable::Uncatchable),
        (libc::SIGSEGV, Unusable::Synchronous),
        (libc::SIGTRAP, Unusable::Synchronous),
        (libc::SIGSYS, Unusable::Synchronous),
        (libc::SIGABRT, Unusable::Synchronous),
        (33, Unusable::Libc),
    ];
    for (signal, reason) in refused {
        let error = install_with(Options::new().signal(signal)).expect_err("refused");
        assert!(
            matches!(error, InstallError::Unusable { signal: s, why } if (s, why) == (signal, reason)),
            "{error}"
        );
    }
    install().expect("nothing was installed");
}
