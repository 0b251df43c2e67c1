//! Not one bit may change: every register holds a random pattern while calls that write all of them
//! are injected.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::{
    DONE, ELSEWHERE, HANDLED, INJECTED, Raise, STACK, TID, counts, lost_by_an_ordinary_handler,
    register_own_stack, send_one_at_a_time, under_signals,
};
use sigctx::SigCtx;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Handler, Options};
use sigctx::inject::Frame;
use sigctx::probe::{Difference, Patterned, Spin, Stop};
use sigctx::sys::{self, MaskHow, SigSet};
use testkit::Rng;

static ROUNDS: AtomicUsize = AtomicUsize::new(0);
/// A thread holds patterns.
static ROUNDS_LEFT: AtomicBool = AtomicBool::new(true);
static STOP: AtomicPtr<Stop> = AtomicPtr::new(std::ptr::null_mut());
static TIMER: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
/// A null timer may be a timer.
static HAS_TIMER: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicUsize = AtomicUsize::new(1);

/// Signals between two patterns.
const PER_PATTERN: usize = 32;

/// About how long the timer waits, in nanoseconds.
static DELAY: AtomicUsize = AtomicUsize::new(SHORTEST_DELAY);
const SHORTEST_DELAY: usize = 3_500;
/// Where the last signal came.
static LAST_PC: AtomicUsize = AtomicUsize::new(0);

/// After every signal, which came at `pc`: sometimes a new pattern, and the next signal of the
/// thread's timer, if it has one, after a random time. On a slow machine a short time is over before
/// the thread has gone on by one instruction, or is back in the loop that is to be interrupted: then
/// the next is longer. (Longer in the first case alone, a machine that comes a few instructions far
/// each time is at one callback for minutes.)
fn next_signal(pc: usize) {
    if HANDLED.load(SeqCst).is_multiple_of(PER_PATTERN) {
        // SAFETY: null, or leaked.
        if let Some(stop) = unsafe { STOP.load(SeqCst).as_ref() } {
            stop.stop();
        }
    }
    if HAS_TIMER.load(SeqCst) {
        let timer = TIMER.load(SeqCst);
        let mut random = Rng::new(RANDOM.load(SeqCst) as u64);
        // SAFETY: all zeroes is a valid `itimerspec`.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        let delay = DELAY.load(SeqCst);
        let stuck = LAST_PC.swap(pc, SeqCst) == pc || !Patterned::code().contains(&pc);
        let next = if stuck { delay + delay / 4 } else { delay - delay / 8 };
        DELAY.store(next.clamp(SHORTEST_DELAY, 10_000_000), SeqCst);
        when.it_value.tv_nsec =
            (delay / 2) as libc::c_long + random.below(delay as u64) as libc::c_long;
        RANDOM.store(random.next_u64() as usize, SeqCst);
        // SAFETY: a timer that is never deleted.
        let set = unsafe { libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }
}

/// Of the kernel; not every libc has it.
const SIGEV_THREAD_ID: libc::c_int = 4;

/// Makes a timer that signals the calling thread.
fn start_timer() {
    // SAFETY: all zeroes is a valid `sigevent`.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = libc::SIGURG;
    event.sigev_notify_thread_id = sys::gettid();
    let mut timer = std::ptr::null_mut();
    // SAFETY: both are live variables.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    assert_eq!(made, 0);
    TIMER.store(timer, SeqCst);
    HAS_TIMER.store(true, SeqCst);
    next_signal(0);
}

/// Whether floating-point operations round to the nearest, which compiled code counts on. The loop
/// that is interrupted has other modes.
fn rounds_to_nearest() -> bool {
    let (one, tiny) = std::hint::black_box((1.0f64, 1e-30f64));
    let unchanged = |sum: f64| sum.abs().to_bits() == one.to_bits();
    [one + tiny, one - tiny, tiny - one].into_iter().all(unchanged)
}

fn call(frame: &mut Frame<'_>, data: usize) {
    assert!(rounds_to_nearest(), "the callback has the interrupted code's modes");
    assert!(Patterned::code().contains(&frame.context().pc()));
    sigctx::probe::clobber_all();
    INJECTED.fetch_add(1, SeqCst);
    next_signal(frame.context().pc());
    sigctx::probe::clobber_all();
    assert_eq!(data, 4711);
    HANDLED.fetch_add(1, SeqCst);
}

fn inject_in_window(delivery: &mut Delivery<'_>) -> Flow {
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: the stack lives as long as the loop, which was interrupted.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the loop may be interrupted anywhere by anything that leaves it as it was.
        match unsafe { delivery.inject(stack, call, 4711) } {
            Ok(injection) => return Flow::Inject(injection),
            Err(error) => common::refused(error),
        }
    } else {
        ELSEWHERE.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
    }
    next_signal(delivery.pc());
    Flow::Resume
}

fn clobber_in_handler(delivery: &mut Delivery<'_>) -> Flow {
    next_signal(delivery.pc());
    sigctx::probe::clobber_all();
    HANDLED.fetch_add(1, SeqCst);
    Flow::Resume
}

fn push_trampoline(delivery: &mut Delivery<'_>) -> Flow {
    next_signal(delivery.pc());
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: there is room below the table; the trampoline keeps everything.
        unsafe { sigctx::probe::push_counted_call(delivery) };
    }
    HANDLED.fetch_add(1, SeqCst);
    Flow::Resume
}

/// Runs the loop with pattern after pattern until `enough`, and shows each one's differences to
/// `judge`.
fn hold_patterns(
    seed: u64,
    judge: impl Fn(Vec<Difference>),
    begin: impl FnOnce(),
    enough: impl Fn() -> bool,
) {
    let _alt = AltStack::install().expect("alternate stack");
    let mut rng = Rng::new(seed);
    // Leaked, with what stops it: a late signal may still look.
    let patterned = Box::leak(Box::new(Patterned::new()));
    STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
    // SAFETY: leaked.
    let stop = unsafe { patterned.stopper() };
    STOP.store(Box::leak(Box::new(stop)), SeqCst);
    let mut begin = Some(begin);
    while !enough() {
        let ready = || {
            if let Some(begin) = begin.take() {
                begin();
            }
        };
        judge(patterned.run(|| rng.next_u64(), Spin::UntilStopped, ready));
        ROUNDS.fetch_add(1, SeqCst);
    }
    ROUNDS_LEFT.store(false, SeqCst);
}

/// Fails at a difference in a register that is not known to be `lost` without us, too.
fn no_difference(lost: &BTreeSet<&'static str>) -> impl Fn(Vec<Difference>) {
    move |mut different| {
        different.retain(|difference| !lost.contains(difference.register));
        assert!(different.is_empty(), "{different:#x?}\n{}", counts());
    }
}

fn timer_storm(handler: Handler, enough: impl Fn() -> bool + Send) {
    let lost = lost_by_an_ordinary_handler();
    // SAFETY: the handlers above only count and inject.
    let installed = unsafe { handler::install(libc::SIGURG, handler, Options::new()) };
    let _installed = installed.expect("install");
    timer_storm_with(no_difference(&lost), enough);
}

/// Signals by the thread's own timer: no other thread has to be awake.
fn timer_storm_with(judge: impl Fn(Vec<Difference>) + Send, enough: impl Fn() -> bool + Send) {
    let mut rng = Rng::from_env();
    RANDOM.store(rng.next_u64() as usize, SeqCst);
    let seed = rng.next_u64();
    thread::scope(|s| {
        s.spawn(|| {
            hold_patterns(seed, judge, start_timer, enough);
            // One signal may be left: the thread ends with it blocked.
            sys::sigprocmask(MaskHow::Block, &SigSet::of(libc::SIGURG));
        });
    });
    println!("{}: {} patterns, {}", Patterned::level(), ROUNDS.load(SeqCst), counts());
}

#[test]
fn stress_injected_calls_change_nothing() {
    testkit::in_child("stress_injected_calls_change_nothing", common::DEADLINE, || {
        let count = testkit::budget(1_000_000) as usize;
        timer_storm(inject_in_window, || INJECTED.load(SeqCst) >= count);
    });
}

#[test]
fn stress_injected_calls_on_behalf_of_another_thread_change_nothing() {
    let name = "stress_injected_calls_on_behalf_of_another_thread_change_nothing";
    testkit::in_child(name, common::DEADLINE, || {
        // SAFETY: the handler only counts and injects.
        let installed = unsafe { handler::install(libc::SIGURG, inject_in_window, Options::new()) };
        let _installed = installed.expect("install");
        let lost = lost_by_an_ordinary_handler();
        let mut rng = Rng::from_env();
        let seed = rng.next_u64();
        let count = testkit::budget(200_000) as usize;
        thread::scope(|s| {
            s.spawn(|| {
                let begin = || TID.store(sys::gettid(), SeqCst);
                hold_patterns(seed, no_difference(&lost), begin, || DONE.load(SeqCst));
            });
            let _done = Raise(&DONE);
            let enough = || INJECTED.load(SeqCst) >= count;
            send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, enough);
            DONE.store(true, SeqCst);
            // The loop goes round until it is stopped, and may be between two rounds.
            while ROUNDS_LEFT.load(SeqCst) {
                // SAFETY: leaked.
                unsafe { &*STOP.load(SeqCst) }.stop();
                thread::yield_now();
            }
        });
        println!("{}: {} patterns, {}", Patterned::level(), ROUNDS.load(SeqCst), counts());
    });
}

/// The control: this crate's entry around a handler that injects nothing.
#[test]
fn stress_plain_handler_changes_nothing() {
    testkit::in_child("stress_plain_handler_changes_nothing", common::DEADLINE, || {
        let count = testkit::budget(200_000) as usize;
        timer_storm(clobber_in_handler, || HANDLED.load(SeqCst) >= count);
    });
}

/// The other control: a handler that this crate has no part in. Says what it loses, which is nothing
/// but for a kernel's own race: see `arch/riscv64/mod.rs` and `arch/s390x/mod.rs`. Run by hand on a
/// kernel that is to be judged.
#[test]
#[ignore = "a control, not a test"]
fn stress_ordinary_handler_says_what_it_loses() {
    static LOST: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());
    static LOSING: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn handler(_: libc::c_int, info: *mut c_void, uc: *mut c_void) {
        // SAFETY: what the kernel gave to this handler; no other code looks.
        let pc = unsafe { SigCtx::from_raw(info, uc) }.pc();
        next_signal(pc);
        sigctx::probe::clobber_all();
        HANDLED.fetch_add(1, SeqCst);
    }
    let name = "stress_ordinary_handler_says_what_it_loses";
    testkit::in_child(name, common::DEADLINE, || {
        let count = testkit::budget(200_000) as usize;
        // SAFETY: the handler writes what a function may write, and counts.
        unsafe { common::install_ordinary(libc::SIGURG, handler) };
        let judge = |different: Vec<Difference>| {
            let registers: BTreeSet<_> = different.iter().map(|d| d.register).collect();
            LOSING.fetch_add(usize::from(!registers.is_empty()), SeqCst);
            let mut lost = LOST.lock().expect("no panic while it is held");
            for register in registers {
                *lost.entry(register).or_default() += 1;
            }
        };
        timer_storm_with(judge, || HANDLED.load(SeqCst) >= count);
        let lost = LOST.lock().expect("no panic while it is held");
        println!("{} patterns lost something, of which: {lost:?}", LOSING.load(SeqCst));
    });
}

#[test]
fn stress_pushed_calls_of_a_full_trampoline_change_nothing() {
    let name = "stress_pushed_calls_of_a_full_trampoline_change_nothing";
    testkit::in_child(name, common::DEADLINE, || {
        let count = testkit::budget(200_000) as usize;
        let pushed = || sigctx::probe::pushed_calls() as usize;
        timer_storm(push_trampoline, || pushed() >= count);
    });
}

/// Where atomic updates are a load-linked and a store-conditional, a call comes between the two: the
/// store must fail then.
#[test]
fn stress_injected_calls_break_no_atomic_update() {
    static SUM: AtomicUsize = AtomicUsize::new(0);

    fn add() {
        let mut sum = SUM.load(SeqCst);
        while let Err(now) = SUM.compare_exchange_weak(sum, sum + 1, SeqCst, SeqCst) {
            sum = now;
        }
    }
    fn add_in_between(_: &mut Frame<'_>, _: usize) {
        add();
        INJECTED.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: leaked by the test before its thread gets a signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call adds and counts, wherever it interrupts; the stack is leaked.
        common::make_or_count(unsafe { delivery.inject(stack, add_in_between, 0) })
    }
    testkit::in_child("stress_injected_calls_break_no_atomic_update", common::DEADLINE, || {
        let _installed = common::install(libc::SIGURG, handler);
        let count = testkit::budget(100_000) as usize;
        let added = AtomicUsize::new(0);
        let enough = || INJECTED.load(SeqCst) >= count;
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            let mut adds = 0;
            while !DONE.load(SeqCst) {
                add();
                adds += 1;
            }
            added.store(adds, SeqCst);
        };
        under_signals(victim, enough);
        let expected = added.load(SeqCst) + INJECTED.load(SeqCst);
        assert_eq!(SUM.load(SeqCst), expected, "{}", counts());
        println!("{expected} updates; {}", counts());
    });
}
