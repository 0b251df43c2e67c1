//! A signal that is not ours reaches the previous action.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{install, raise};
use sigctx::altstack::AltStack;
use sigctx::handler::{
    self, Delivery, ErrnoPolicy, Flow, Handler, InstallError, Options, Standing,
};
use sigctx::module::CodeAddress;
use sigctx::sys::{self, KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigSet};

const DEADLINE: Duration = Duration::from_mins(1);

static OLD_CALLS: AtomicUsize = AtomicUsize::new(0);
static OLD_SIGNAL: AtomicI32 = AtomicI32::new(0);
static OLD_CODE: AtomicI32 = AtomicI32::new(0);
static OLD_PID: AtomicI32 = AtomicI32::new(0);
static OURS: AtomicUsize = AtomicUsize::new(0);
static BLOCKED_INSIDE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn old_full(signal: i32, info: *mut libc::siginfo_t, _uc: *mut libc::c_void) {
    OLD_SIGNAL.store(signal, SeqCst);
    // SAFETY: the kernel's own, handed on.
    let info = unsafe { &*info };
    OLD_CODE.store(info.si_code, SeqCst);
    // SAFETY: a signal that was sent has a pid.
    OLD_PID.store(unsafe { info.si_pid() }, SeqCst);
    OLD_CALLS.fetch_add(1, SeqCst);
}

extern "C" fn old_plain(signal: i32) {
    OLD_SIGNAL.store(signal, SeqCst);
    let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
    let blocked = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];
    BLOCKED_INSIDE.store(blocked.iter().filter(|&&s| mask.contains(s)).count(), SeqCst);
    OLD_CALLS.fetch_add(1, SeqCst);
}

fn before(signal: i32, handler: usize, flags: SaFlags, mask: SigSet) {
    let action = KernelAction { handler, flags, mask };
    // SAFETY: the handlers above are async-signal-safe.
    unsafe { sys::rt_sigaction(signal, Some(&action)) }.expect("the previous action");
}

fn pass_on(_: &mut Delivery<'_>) -> Flow {
    OURS.fetch_add(1, SeqCst);
    Flow::Chain
}

fn keep(_: &mut Delivery<'_>) -> Flow {
    OURS.fetch_add(1, SeqCst);
    Flow::Resume
}

fn calls() -> (usize, usize) {
    (OURS.load(SeqCst), OLD_CALLS.load(SeqCst))
}

/// As a program does that puts its own handler over ours for a while.
#[test]
#[expect(clippy::disallowed_methods, reason = "plays a program that goes through libc")]
fn an_action_that_libc_has_read_and_set_again_works() {
    testkit::in_child("an_action_that_libc_has_read_and_set_again_works", DEADLINE, || {
        let _installed = install(libc::SIGUSR1, keep);
        // SAFETY: all zeroes is a valid action.
        let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
        // SAFETY: writes one action.
        let got = unsafe { libc::sigaction(libc::SIGUSR1, std::ptr::null(), &raw mut action) };
        assert_eq!(got, 0);
        // SAFETY: the action that is there.
        let set =
            unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        raise(libc::SIGUSR1);
        raise(libc::SIGUSR1);
        assert_eq!(calls(), (2, 0));
    });
}

#[test]
fn previous_handler_with_siginfo_gets_the_signal() {
    before(libc::SIGUSR1, old_full as *const () as usize, SaFlags::SIGINFO, SigSet::empty());
    let installed = install(libc::SIGUSR1, pass_on);
    assert_eq!(installed.previous().handler, old_full as *const () as usize);
    raise(libc::SIGUSR1);
    assert_eq!(calls(), (1, 1));
    assert_eq!(OLD_SIGNAL.load(SeqCst), libc::SIGUSR1);
    assert_eq!(OLD_CODE.load(SeqCst), libc::SI_TKILL);
    assert_eq!(OLD_PID.load(SeqCst), sys::getpid());
    sys::tgsigqueueinfo(sys::getpid(), sys::gettid(), libc::SIGUSR1, -77, 5).expect("own thread");
    assert_eq!((calls(), OLD_CODE.load(SeqCst)), ((2, 2), -77));
    installed.uninstall().expect("uninstall");
}

#[test]
fn previous_plain_handler_runs_with_its_mask() {
    testkit::in_child("previous_plain_handler_runs_with_its_mask", DEADLINE, || {
        let plain = old_plain as *const () as usize;
        before(libc::SIGUSR1, plain, SaFlags::empty(), SigSet::of(libc::SIGHUP));
        let _installed = install(libc::SIGUSR1, pass_on);
        raise(libc::SIGUSR1);
        assert_eq!(calls(), (1, 1));
        // SIGHUP by its mask, SIGUSR1 because it has no SA_NODEFER.
        assert_eq!(BLOCKED_INSIDE.load(SeqCst), 2);
        let after = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        assert!(!after.contains(libc::SIGHUP) && !after.contains(libc::SIGUSR1), "{after:?}");
    });
}

#[test]
fn previous_handler_with_nodefer_is_not_blocked() {
    testkit::in_child("previous_handler_with_nodefer_is_not_blocked", DEADLINE, || {
        before(libc::SIGUSR2, old_plain as *const () as usize, SaFlags::NODEFER, SigSet::empty());
        let _installed = install(libc::SIGUSR2, pass_on);
        raise(libc::SIGUSR2);
        assert_eq!((calls(), BLOCKED_INSIDE.load(SeqCst)), ((1, 1), 0));
    });
}

#[test]
fn previous_ignore_ignores() {
    testkit::in_child("previous_ignore_ignores", DEADLINE, || {
        before(libc::SIGUSR1, SIG_IGN, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGUSR1, pass_on);
        raise(libc::SIGUSR1);
        raise(libc::SIGUSR1);
        assert_eq!(calls(), (2, 0));
    });
}

#[test]
fn previous_default_that_ignores_does_nothing() {
    testkit::in_child("previous_default_that_ignores_does_nothing", DEADLINE, || {
        for signal in [libc::SIGURG, libc::SIGCHLD, libc::SIGWINCH, libc::SIGCONT] {
            let _installed = install(signal, pass_on);
            raise(signal);
            raise(signal);
        }
        assert_eq!(calls(), (8, 0));
    });
}

#[test]
fn previous_default_that_kills_kills() {
    let ended = testkit::child("previous_default_that_kills_kills", DEADLINE, || {
        before(libc::SIGUSR1, SIG_DFL, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGUSR1, pass_on);
        raise(libc::SIGUSR1);
        unreachable!("the signal's default action ends the process");
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.signal(), Some(libc::SIGUSR1), "{}", ended.output);
    }
}

/// The kernel's handler for a signal.
fn installed_handler(signal: i32) -> usize {
    // SAFETY: only reads.
    unsafe { sys::rt_sigaction(signal, None) }.expect("read").handler
}

#[test]
fn children_of_an_ignored_signal_leave_no_zombies() {
    let wait_for_a_child = || {
        let pid = Command::new("true").spawn().expect("true").id() as i32;
        // SAFETY: the status is not asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) == pid }
    };
    testkit::in_child("children_of_an_ignored_signal_leave_no_zombies", DEADLINE, || {
        if testkit::emulator().is_some() {
            // The control: an action that this crate has no part in.
            let plain = old_plain as *const () as usize;
            before(libc::SIGCHLD, plain, SaFlags::NOCLDWAIT, SigSet::empty());
            if wait_for_a_child() {
                return testkit::skip("the emulator keeps SA_NOCLDWAIT from the kernel");
            }
        }
        before(libc::SIGCHLD, SIG_IGN, SaFlags::empty(), SigSet::empty());
        let installed = install(libc::SIGCHLD, pass_on);
        assert!(!wait_for_a_child(), "there was a zombie");
        installed.uninstall().expect("uninstall");
        before(libc::SIGCHLD, SIG_DFL, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGCHLD, pass_on);
        assert!(wait_for_a_child(), "there was none, though the signal was not ignored");
    });
}

#[test]
fn flags_about_children_are_kept() {
    testkit::in_child("flags_about_children_are_kept", DEADLINE, || {
        let plain = old_plain as *const () as usize;
        for flags in [SaFlags::NOCLDSTOP, SaFlags::NOCLDWAIT] {
            before(libc::SIGCHLD, plain, flags, SigSet::empty());
            let installed = install(libc::SIGCHLD, pass_on);
            // SAFETY: only reads.
            let now = unsafe { sys::rt_sigaction(libc::SIGCHLD, None) }.expect("read");
            assert_eq!(now.flags & (SaFlags::NOCLDSTOP | SaFlags::NOCLDWAIT), flags);
            installed.uninstall().expect("uninstall");
        }
    });
}

/// Wakes this process for as long as the value lives, whenever it is stopped.
struct Waker(std::process::Child);

impl Waker {
    fn start() -> Self {
        let script = format!("while kill -CONT {}; do sleep 0.001; done", sys::getpid());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
        Self(shell.stderr(Stdio::null()).spawn().expect("sh"))
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        // It ends with this process at the latest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_previous_default_that_stops_stops_and_the_handler_stays() {
    let name = "a_previous_default_that_stops_stops_and_the_handler_stays";
    testkit::in_child(name, DEADLINE, || {
        // SAFETY: the child makes system calls and allocates, which glibc allows after a fork.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // A group of its own, whose leader's parent is in another: a stop is not ignored.
            // SAFETY: no pointers.
            unsafe { libc::setpgid(0, 0) };
            let _installed = install(libc::SIGTSTP, pass_on);
            let ours = installed_handler(libc::SIGTSTP);
            raise(libc::SIGTSTP);
            let good = installed_handler(libc::SIGTSTP) == ours && calls() == (1, 0);
            // SAFETY: ends the process.
            unsafe { libc::_exit(if good { 77 } else { 1 }) };
        }
        let wait = |flags| {
            let mut status = 0;
            // SAFETY: writes one live variable.
            let waited = unsafe { libc::waitpid(child, &raw mut status, flags) };
            assert_eq!(waited, child);
            status
        };
        let status = wait(libc::WUNTRACED);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        assert_eq!(libc::WSTOPSIG(status), libc::SIGTSTP);
        sys::kill(child, libc::SIGCONT).expect("own child");
        let status = wait(0);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 77, "{status:#x}");
    });
}

#[test]
fn stress_stops_on_two_threads_leave_the_handler_installed() {
    let name = "stress_stops_on_two_threads_leave_the_handler_installed";
    if testkit::emulator().is_some() {
        // Seen once in dozens of runs: a thread was sent to address 0, the default action, it seems,
        // that the other had just put in.
        return testkit::skip("an action that another thread changes is read in two steps");
    }
    testkit::in_child(name, DEADLINE, || {
        let _waker = Waker::start();
        let _installed = install(libc::SIGTSTP, pass_on);
        let ours = installed_handler(libc::SIGTSTP);
        let count = testkit::budget(1_000);
        let stop_often = || {
            let _alt = AltStack::install().expect("alternate stack");
            for _ in 0..count {
                raise(libc::SIGTSTP);
            }
        };
        std::thread::scope(|s| {
            s.spawn(stop_often);
            s.spawn(stop_often);
        });
        assert_eq!(installed_handler(libc::SIGTSTP), ours);
        println!("{:?}", calls());
    });
}

#[test]
fn previous_one_shot_handler_is_called_once() {
    let ended = testkit::child("previous_one_shot_handler_is_called_once", DEADLINE, || {
        before(libc::SIGUSR1, old_plain as *const () as usize, SaFlags::RESETHAND, SigSet::empty());
        let _installed = install(libc::SIGUSR1, pass_on);
        raise(libc::SIGUSR1);
        assert_eq!(calls(), (1, 1));
        println!("the first was handled");
        raise(libc::SIGUSR1);
        unreachable!("the second has the default action");
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.signal(), Some(libc::SIGUSR1), "{}", ended.output);
        assert!(ended.output.contains("the first was handled"), "{}", ended.output);
    }
}

#[test]
fn a_real_urgent_signal_from_another_process_reaches_the_previous_handler() {
    /// Takes every signal for its own, and still offers it on.
    fn ours_and_chain(delivery: &mut Delivery<'_>) -> Flow {
        OURS.fetch_add(1, SeqCst);
        delivery.chain();
        delivery.chain();
        Flow::Chain
    }
    let name = "a_real_urgent_signal_from_another_process_reaches_the_previous_handler";
    testkit::in_child(name, DEADLINE, || {
        before(libc::SIGURG, old_full as *const () as usize, SaFlags::SIGINFO, SigSet::empty());
        let _installed = install(libc::SIGURG, ours_and_chain);
        let kill = format!("kill -URG {}", sys::getpid());
        let mut shell = Command::new("sh").args(["-c", &kill]).spawn().expect("sh");
        let sender = shell.id() as i32;
        assert!(shell.wait().expect("sh").success());
        let start = Instant::now();
        while OLD_CALLS.load(SeqCst) == 0 {
            assert!(start.elapsed() < DEADLINE, "the signal never came");
            std::thread::yield_now();
        }
        assert_eq!(calls(), (1, 1), "offered once, however often it is chained");
        assert_eq!((OLD_CODE.load(SeqCst), OLD_PID.load(SeqCst)), (libc::SI_USER, sender));
    });
}

/// What the C handler does to errno stays, as it does without this crate: no code has read errno,
/// for which thread-local storage is needed.
#[test]
fn without_keeping_errno_it_is_not_read() {
    extern "C" fn spoil_errno(_: i32) {
        // SAFETY: every thread of the test has one.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: valid as long as the thread lives.
        unsafe { errno.write(77) };
    }
    fn chain_inside(delivery: &mut Delivery<'_>) -> Flow {
        delivery.chain();
        Flow::Resume
    }
    fn errno_after(handler: Handler, policy: ErrnoPolicy) -> Option<i32> {
        let options = Options::new().errno(policy);
        // SAFETY: the handlers chain.
        let installed = unsafe { handler::install(libc::SIGUSR1, handler, options) };
        let installed = installed.expect("install");
        // SAFETY: every thread has one.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: valid as long as the thread lives.
        unsafe { errno.write(5) };
        raise(libc::SIGUSR1);
        let after = std::io::Error::last_os_error().raw_os_error();
        installed.uninstall().expect("uninstall");
        after
    }
    testkit::in_child("without_keeping_errno_it_is_not_read", DEADLINE, || {
        let spoil = spoil_errno as *const () as usize;
        before(libc::SIGUSR1, spoil, SaFlags::empty(), SigSet::empty());
        for handler in [pass_on as Handler, chain_inside] {
            assert_eq!(errno_after(handler, ErrnoPolicy::Keep), Some(5));
            assert_eq!(errno_after(handler, ErrnoPolicy::Untouched), Some(77));
        }
    });
}

static ORDER: Mutex<Vec<&str>> = Mutex::new(Vec::new());

#[test]
fn newest_handler_is_first_and_the_middle_one_can_go() {
    fn note(name: &'static str) -> Flow {
        // Signals of this test are sent by this thread, while it does not hold the lock.
        ORDER.lock().unwrap().push(name);
        Flow::Chain
    }
    testkit::in_child("newest_handler_is_first_and_the_middle_one_can_go", DEADLINE, || {
        // Three handlers that allocate, one above the other, are too much for std's 8 KiB.
        let _alt = AltStack::install().expect("alternate stack");
        before(libc::SIGUSR1, old_plain as *const () as usize, SaFlags::empty(), SigSet::empty());
        let oldest = install(libc::SIGUSR1, |_| note("oldest"));
        let middle = install(libc::SIGUSR1, |_| note("middle"));
        let newest = install(libc::SIGUSR1, |_| note("newest"));
        raise(libc::SIGUSR1);
        assert_eq!(*ORDER.lock().unwrap(), ["newest", "middle", "oldest"]);
        middle.uninstall().expect("the middle one");
        ORDER.lock().unwrap().clear();
        raise(libc::SIGUSR1);
        assert_eq!(*ORDER.lock().unwrap(), ["newest", "oldest"]);
        oldest.uninstall().expect("the oldest one");
        newest.uninstall().expect("the last one");
        ORDER.lock().unwrap().clear();
        raise(libc::SIGUSR1);
        assert_eq!(ORDER.lock().unwrap().len(), 0);
        assert_eq!(OLD_CALLS.load(SeqCst), 3, "the kernel has the previous action again");
        let again = install(libc::SIGUSR1, |_| note("again"));
        raise(libc::SIGUSR1);
        assert_eq!(*ORDER.lock().unwrap(), ["again"]);
        assert_eq!(OLD_CALLS.load(SeqCst), 4);
        again.uninstall().expect("the new one");
    });
}

#[test]
fn a_handler_that_was_covered_stays() {
    testkit::in_child("a_handler_that_was_covered_stays", DEADLINE, || {
        let installed = install(libc::SIGUSR1, keep);
        // SAFETY: only reads.
        let ours = unsafe { sys::rt_sigaction(libc::SIGUSR1, None) }.expect("read");
        assert_eq!(installed.standing(), Standing::First);
        let plain = old_plain as *const () as usize;
        before(libc::SIGUSR1, plain, SaFlags::empty(), SigSet::empty());
        assert_eq!(installed.standing(), Standing::Covered { by: CodeAddress::new(plain) });
        let error = installed.uninstall().expect_err("covered");
        assert_eq!(error.covered_by(), plain);
        // SAFETY: what was there.
        unsafe { sys::rt_sigaction(libc::SIGUSR1, Some(&ours)) }.expect("uncover");
        raise(libc::SIGUSR1);
        assert_eq!(calls(), (1, 0));
        error.into_installed().uninstall().expect("uncovered");
    });
}

#[test]
fn stress_a_one_shot_handler_is_called_once_on_two_threads() {
    let name = "stress_a_one_shot_handler_is_called_once_on_two_threads";
    testkit::in_child(name, DEADLINE, || {
        let rounds = testkit::budget(10_000) as usize;
        let plain = old_plain as *const () as usize;
        let mut installed = None;
        let mut wrong = 0;
        let (ready, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let spin_until = |word: &AtomicUsize, value| {
            let start = Instant::now();
            while word.load(SeqCst) < value {
                assert!(start.elapsed() < DEADLINE, "the other thread is gone");
                std::hint::spin_loop();
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| {
                for round in 1..=rounds {
                    spin_until(&ready, round);
                    raise(libc::SIGURG);
                    done.store(round, SeqCst);
                }
            });
            for round in 1..=rounds {
                before(libc::SIGURG, plain, SaFlags::RESETHAND, SigSet::empty());
                installed = Some(install(libc::SIGURG, pass_on));
                ready.store(round, SeqCst);
                raise(libc::SIGURG);
                spin_until(&done, round);
                if OLD_CALLS.swap(0, SeqCst) != 1 {
                    wrong += 1;
                }
                installed.take().expect("just installed").uninstall().expect("uninstall");
            }
        });
        assert_eq!((wrong, OURS.load(SeqCst)), (0, 2 * rounds));
    });
}

/// `over` does not chain: after it a new handler starts with `over` as the previous action, and
/// the old one can be taken out.
fn is_no_cover(over: usize) {
    let first = install(libc::SIGURG, pass_on);
    let ours = installed_handler(libc::SIGURG);
    before(libc::SIGURG, over, SaFlags::empty(), SigSet::empty());
    first.uninstall().expect("not covered");
    assert_eq!(installed_handler(libc::SIGURG), over, "the other handler stays");

    let second = install(libc::SIGURG, pass_on);
    before(libc::SIGURG, over, SaFlags::empty(), SigSet::empty());
    let third = install(libc::SIGURG, pass_on);
    assert_eq!(installed_handler(libc::SIGURG), ours);
    assert_eq!(third.previous().handler, over);
    raise(libc::SIGURG);
    assert_eq!(calls(), (2, 0));
    second.uninstall().expect("second");
    third.uninstall().expect("third");
    assert_eq!(installed_handler(libc::SIGURG), over);
}

#[test]
fn the_default_action_over_ours_is_no_cover() {
    testkit::in_child("the_default_action_over_ours_is_no_cover", DEADLINE, || {
        is_no_cover(SIG_DFL);
    });
}

#[test]
fn ignored_over_ours_is_no_cover() {
    testkit::in_child("ignored_over_ours_is_no_cover", DEADLINE, || is_no_cover(SIG_IGN));
}

#[test]
fn signals_without_handlers_are_refused() {
    let too_many = SigSet::full().iter().count() as i32 + 1;
    for signal in [0, -1, too_many, libc::SIGKILL, libc::SIGSTOP] {
        // SAFETY: refused.
        let result = unsafe { handler::install(signal, keep, Options::new()) };
        let refused = InstallError::Refused { signal, errno: sys::Errno::EINVAL };
        assert_eq!(result.expect_err("no such handler"), refused);
    }
}

#[test]
fn libcs_own_signals_can_be_handled() {
    testkit::in_child("libcs_own_signals_can_be_handled", DEADLINE, || {
        for signal in [32, 33] {
            let installed = install(signal, keep);
            raise(signal);
            installed.uninstall().expect("uninstall");
        }
        assert_eq!(calls(), (2, 0));
    });
}

/// Signals arrive while handlers come and go: each finds one of ours or the previous one.
#[test]
fn stress_no_signal_is_lost_while_handlers_change() {
    testkit::in_child("stress_no_signal_is_lost_while_handlers_change", DEADLINE, || {
        // The kernel reads an action under a lock. An emulator may take the handler of one and the
        // flags of another, so there both have the same kind of frame.
        let emulated = testkit::emulator().is_some();
        let flags = if emulated { SaFlags::SIGINFO } else { SaFlags::empty() };
        before(libc::SIGUSR1, old_plain as *const () as usize, flags, SigSet::empty());
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(SeqCst) {
                    let first = install(libc::SIGUSR1, keep);
                    let second = install(libc::SIGUSR1, keep);
                    first.uninstall().expect("first");
                    second.uninstall().expect("second");
                }
            });
            for sent in 1..=testkit::budget(20_000) as usize {
                raise(libc::SIGUSR1);
                let (ours, old) = calls();
                assert_eq!(ours + old, sent, "a signal was lost or doubled");
            }
            stop.store(true, SeqCst);
        });
        println!("{:?}", calls());
    });
}
