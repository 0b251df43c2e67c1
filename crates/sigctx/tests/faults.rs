//! Faults and sent signals that go on to the previous action, and what that action does to itself.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::{install, raise};
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow, Standing};
use sigctx::sys::{self, KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigSet};

const LIMIT: Duration = Duration::from_secs(20);

static OURS: AtomicUsize = AtomicUsize::new(0);
static THEIRS: AtomicUsize = AtomicUsize::new(0);

fn pass_on(_: &mut Delivery<'_>) -> Flow {
    OURS.fetch_add(1, SeqCst);
    Flow::Chain
}

fn set(signal: i32, handler: usize, flags: SaFlags) {
    let action = KernelAction { handler, flags, mask: SigSet::empty() };
    // SAFETY: the tests' handlers count, and change the action.
    unsafe { sys::rt_sigaction(signal, Some(&action)) }.expect("an action");
}

fn counts() -> (usize, usize) {
    (OURS.load(SeqCst), THEIRS.load(SeqCst))
}

/// Runs the body in a child, which `signal` must end.
fn is_ended_by(signal: i32, name: &str, body: impl FnOnce()) {
    if let Some(ended) = testkit::child(name, LIMIT, body) {
        assert_eq!(ended.status.signal(), Some(signal), "{}", ended.output);
    }
}

fn read_nothing() {
    // SAFETY: a fault, which is what is tested.
    unsafe { std::ptr::read_volatile(std::hint::black_box(8 as *const u8)) };
}

#[test]
fn an_ignored_fault_of_an_access_ends_the_process() {
    is_ended_by(libc::SIGSEGV, "an_ignored_fault_of_an_access_ends_the_process", || {
        set(libc::SIGSEGV, SIG_IGN, SaFlags::empty());
        let _installed = install(libc::SIGSEGV, pass_on);
        read_nothing();
    });
}

#[test]
fn an_ignored_fault_of_an_instruction_ends_the_process() {
    if testkit::emulator().is_some() {
        testkit::skip("an emulator may report it as a signal that was sent (QEMU 10.0, loong64)");
        return;
    }
    is_ended_by(libc::SIGILL, "an_ignored_fault_of_an_instruction_ends_the_process", || {
        set(libc::SIGILL, SIG_IGN, SaFlags::empty());
        let _installed = install(libc::SIGILL, pass_on);
        // SAFETY: no handler steps over it: that is what is tested.
        unsafe { sigctx::probe::raise_undefined() };
    });
}

#[test]
fn a_sent_signal_that_was_ignored_stays_ignored() {
    testkit::in_child("a_sent_signal_that_was_ignored_stays_ignored", LIMIT, || {
        for signal in SigSet::synchronous().iter() {
            set(signal, SIG_IGN, SaFlags::empty());
            let installed = install(signal, pass_on);
            raise(signal);
            raise(signal);
            assert_eq!(installed.standing(), Standing::First);
        }
        assert_eq!(counts().0, 12);
    });
}

/// `std`'s handler takes a sent `SIGSEGV` for a crash, sets the default action and returns: the fault
/// would come again.
#[test]
fn after_a_sent_signal_that_resets_the_action_ours_is_still_there() {
    let name = "after_a_sent_signal_that_resets_the_action_ours_is_still_there";
    is_ended_by(libc::SIGSEGV, name, || {
        let installed = install(libc::SIGSEGV, pass_on);
        assert!(!matches!(installed.previous().handler, SIG_DFL | SIG_IGN), "std's own");
        raise(libc::SIGSEGV);
        assert_eq!(installed.standing(), Standing::First);
        assert_eq!(installed.previous().handler, SIG_DFL);
        assert_eq!(counts().0, 1);
        println!("the sent one was survived");
        read_nothing();
    });
}

extern "C" fn resets(signal: i32) {
    THEIRS.fetch_add(1, SeqCst);
    set(signal, SIG_IGN, SaFlags::empty());
}

extern "C" fn rearms(signal: i32) {
    THEIRS.fetch_add(1, SeqCst);
    // What `signal` does where a handler is good for one call.
    set(signal, rearms as *const () as usize, SaFlags::RESETHAND);
}

extern "C" fn replaces(signal: i32) {
    THEIRS.fetch_add(1, SeqCst);
    set(signal, rearms as *const () as usize, SaFlags::empty());
}

#[test]
fn what_a_previous_handler_sets_is_its_own_action() {
    testkit::in_child("what_a_previous_handler_sets_is_its_own_action", LIMIT, || {
        let signal = libc::SIGUSR1;
        let mut expected = (0, 0);
        for flags in [SaFlags::empty(), SaFlags::ONSTACK] {
            let _alt = AltStack::install().expect("alternate stack");
            set(signal, resets as *const () as usize, flags);
            let installed = install(signal, pass_on);
            for round in 0..3 {
                raise(signal);
                expected = (expected.0 + 1, expected.1 + usize::from(round == 0));
                assert_eq!((counts(), installed.standing()), (expected, Standing::First));
            }
            assert_eq!(installed.previous().handler, SIG_IGN);
            installed.uninstall().expect("uninstall");

            set(signal, rearms as *const () as usize, flags | SaFlags::RESETHAND);
            let installed = install(signal, pass_on);
            for _ in 0..3 {
                raise(signal);
                expected = (expected.0 + 1, expected.1 + 1);
                assert_eq!((counts(), installed.standing()), (expected, Standing::First));
            }
            installed.uninstall().expect("uninstall");
        }
        // Another handler covers ours like any other.
        set(signal, replaces as *const () as usize, SaFlags::empty());
        let installed = install(signal, pass_on);
        raise(signal);
        let Standing::Covered { by } = installed.standing() else { panic!("covered") };
        assert_eq!(by.get(), rearms as *const () as usize);
    });
}

/// As on a thread of `std`'s that keeps an alternate stack of this crate's in a thread-local: by then
/// `std` has disabled the thread's alternate stack, and unmapped the previous one.
#[test]
fn an_alternate_stack_that_ends_with_the_thread_locals_is_given_back() {
    thread_local! {
        static KEPT: std::cell::Cell<Option<AltStack>> = const { std::cell::Cell::new(None) };
    }
    let name = "an_alternate_stack_that_ends_with_the_thread_locals_is_given_back";
    testkit::in_child(name, LIMIT, || {
        for round in 0..100 {
            let thread = thread::spawn(|| {
                KEPT.set(Some(AltStack::install().expect("alternate stack")));
            });
            thread.join().expect("thread");
            let mapped = sigctx::altstack::mapped();
            assert!(mapped <= 1, "{mapped} stacks after {round} threads");
        }
    });
}

#[test]
fn another_alternate_stack_over_ours_stays() {
    stays_over_ours("another_alternate_stack_over_ours_stays", drop);
}

#[test]
fn another_alternate_stack_stays_when_a_thread_ends() {
    stays_over_ours("another_alternate_stack_stays_when_a_thread_ends", |ours| {
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::deferrable());
        // SAFETY: all signals are blocked.
        unsafe { ours.disable_blocked() };
        sys::sigprocmask(MaskHow::Set, &mask);
    });
}

fn stays_over_ours(test: &str, remove: fn(AltStack)) {
    testkit::in_child(test, LIMIT, || {
        let ours = AltStack::install().expect("alternate stack");
        let mut memory = vec![0u8; 64 << 10];
        let other =
            libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
        // SAFETY: the memory outlives its use.
        assert_eq!(unsafe { libc::sigaltstack(&raw const other, std::ptr::null_mut()) }, 0);
        remove(ours);
        // SAFETY: all zeroes is a valid `stack_t`.
        let mut now: libc::stack_t = unsafe { std::mem::zeroed() };
        // SAFETY: only reads.
        assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), &raw mut now) }, 0);
        assert_eq!(now.ss_sp, other.ss_sp);
        // The code that installed it may put ours back: it must be there still.
        assert_eq!(sigctx::altstack::mapped(), 1);
        now.ss_flags = libc::SS_DISABLE;
        // SAFETY: disables.
        unsafe { libc::sigaltstack(&raw const now, std::ptr::null_mut()) };
    });
}
