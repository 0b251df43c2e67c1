//! A previous handler without `SA_ONSTACK` runs where it would have run without this crate: on
//! the interrupted stack.

mod common;

use std::ffi::{c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::*;
use sigctx::SigCtx;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, ErrnoPolicy, Flow, Options};
use sigctx::inject::Frame;
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys::{self, KernelAction, MaskHow, SaFlags, SigSet};

const LIMIT: Duration = Duration::from_mins(1);

static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Where the previous handler had its variables.
static PLACE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn look_where(_: c_int) {
    let here = 0u8;
    PLACE.store(&raw const here as usize, SeqCst);
    CALLS.fetch_add(1, SeqCst);
}

fn chain(_: &mut Delivery<'_>) -> Flow {
    Flow::Chain
}

fn chain_at_once(delivery: &mut Delivery<'_>) -> Flow {
    delivery.chain();
    Flow::Resume
}

fn before(signal: i32, handler: usize, flags: SaFlags, mask: SigSet) {
    let action = KernelAction { handler, flags, mask };
    // SAFETY: the tests' handlers are async-signal-safe.
    unsafe { sys::rt_sigaction(signal, Some(&action)) }.expect("the previous action");
}

/// Whether [`look_where`] ran on the alternate stack.
fn was_on(alt: &AltStack) -> bool {
    let (lo, hi) = alt.bounds();
    (lo..hi).contains(&PLACE.load(SeqCst))
}

#[test]
fn a_previous_handler_runs_on_the_stack_that_its_flags_say() {
    let name = "a_previous_handler_runs_on_the_stack_that_its_flags_say";
    testkit::in_child(name, LIMIT, || {
        let alt = AltStack::install().expect("alternate stack");
        let plain = look_where as *const () as usize;
        for handler in [chain as handler::Handler, chain_at_once] {
            before(libc::SIGUSR1, plain, SaFlags::empty(), SigSet::empty());
            let installed = install(libc::SIGUSR1, handler);
            raise(libc::SIGUSR1);
            assert!(!was_on(&alt), "on the alternate stack, without SA_ONSTACK");
            installed.uninstall().expect("uninstall");
            before(libc::SIGUSR1, plain, SaFlags::ONSTACK, SigSet::empty());
            let installed = install(libc::SIGUSR1, handler);
            raise(libc::SIGUSR1);
            assert!(was_on(&alt), "not on the alternate stack, with SA_ONSTACK");
            installed.uninstall().expect("uninstall");
        }
        assert_eq!(CALLS.load(SeqCst), 4);
    });
}

#[test]
fn a_previous_handler_has_the_interrupted_stacks_room() {
    /// More than `std`'s alternate stack and this crate's have, less than a thread's.
    #[expect(clippy::large_stack_arrays, reason = "that is what is tested")]
    extern "C" fn eats(signal: c_int) {
        let mut buffer = [0u8; 256 * 1024];
        for page in buffer.chunks_mut(512) {
            page[0] = 1;
        }
        std::hint::black_box(&mut buffer);
        look_where(signal);
    }
    testkit::in_child("a_previous_handler_has_the_interrupted_stacks_room", LIMIT, || {
        before(libc::SIGUSR1, eats as *const () as usize, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGUSR1, chain);
        // The main thread, whose stack grows as it is used, one of std's, and one with ours.
        raise(libc::SIGUSR1);
        thread::spawn(|| raise(libc::SIGUSR1)).join().expect("thread");
        let attached = || {
            let _alt = AltStack::install().expect("alternate stack");
            raise(libc::SIGUSR1);
        };
        thread::spawn(attached).join().expect("thread");
        assert_eq!(CALLS.load(SeqCst), 3);
    });
}

#[test]
fn a_previous_handler_unwinds_into_the_interrupted_function() {
    static FOUND: AtomicBool = AtomicBool::new(false);

    extern "C" fn backtrace(_: c_int) {
        let text = std::backtrace::Backtrace::force_capture().to_string();
        FOUND.store(text.contains("interrupted_by_a_previous_handler"), SeqCst);
        CALLS.fetch_add(1, SeqCst);
    }
    #[inline(never)]
    fn interrupted_by_a_previous_handler() {
        raise(libc::SIGUSR1);
        std::hint::black_box(());
    }
    testkit::in_child("a_previous_handler_unwinds_into_the_interrupted_function", LIMIT, || {
        before(libc::SIGUSR1, backtrace as *const () as usize, SaFlags::empty(), SigSet::empty());
        let control = || {
            interrupted_by_a_previous_handler();
            FOUND.swap(false, SeqCst)
        };
        // Without our handler. On s390x the unwinder finds no end.
        let tried = || {
            testkit::forked(|| {
                // SAFETY: no pointers. The signal ends the child.
                unsafe { libc::alarm(60) };
                _ = control();
            })
        };
        if testkit::emulator().is_some() && libc::WIFSIGNALED(tried()) {
            testkit::skip("unwinders stumble over the emulator's signal frames, or find no end");
            return;
        }
        let alone = control();
        let _installed = install(libc::SIGUSR1, chain);
        // On std's thread, whose alternate stack is too small for that.
        let chained = thread::spawn(control).join().expect("thread");
        assert_eq!(CALLS.load(SeqCst), 2);
        assert!(chained || !alone, "the interrupted function is not found under the handler");
    });
}

/// Every signal that can be blocked, in the mask of an action and in the thread's: no bit is lost or
/// added, on either stack.
#[test]
fn each_signal_of_a_previous_handlers_mask_is_blocked() {
    static INSIDE: Mutex<Option<SigSet>> = Mutex::new(None);

    extern "C" fn look(signal: c_int) {
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        // The test does not hold the lock when it raises the signal.
        *INSIDE.lock().unwrap() = Some(mask);
        look_where(signal);
    }
    testkit::in_child("each_signal_of_a_previous_handlers_mask_is_blocked", LIMIT, || {
        let _alt = AltStack::install().expect("alternate stack");
        let all = maskable();
        let signal = libc::SIGUSR1;
        for flags in [SaFlags::empty(), SaFlags::ONSTACK] {
            for nodefer in [SaFlags::empty(), SaFlags::NODEFER] {
                for &sig in &all {
                    // Its own as the kernel does it: blocked, but for SA_NODEFER without it in the mask.
                    let own = if nodefer.is_empty() { SigSet::of(signal) } else { SigSet::empty() };
                    let expected = own | SigSet::of(sig);
                    let handler = look as *const () as usize;
                    before(signal, handler, flags | nodefer, SigSet::of(sig));
                    let installed = install(signal, chain);
                    raise(signal);
                    let inside = INSIDE.lock().unwrap().take();
                    assert_eq!(inside, Some(expected), "{sig} in the mask, {flags:?} {nodefer:?}");
                    let after = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
                    assert_eq!(after, SigSet::empty(), "after {sig} in the mask");

                    // In the thread's mask: it stays there, and comes back.
                    if sig != signal {
                        sys::sigprocmask(MaskHow::Set, &SigSet::of(sig));
                        raise(signal);
                        let inside = INSIDE.lock().unwrap().take();
                        assert_eq!(inside, Some(expected), "{sig} blocked before");
                        let after = sys::sigprocmask(MaskHow::Set, &SigSet::empty());
                        assert_eq!(after, SigSet::of(sig));
                    }
                    installed.uninstall().expect("uninstall");
                }
            }
        }
    });
}

#[test]
fn what_a_previous_handler_does_to_errno_is_kept_from_the_interrupted_code() {
    extern "C" fn spoil(_: c_int) {
        // SAFETY: every thread of the test has one.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: valid as long as the thread lives.
        unsafe { errno.write(77) };
    }
    let name = "what_a_previous_handler_does_to_errno_is_kept_from_the_interrupted_code";
    testkit::in_child(name, LIMIT, || {
        let _alt = AltStack::install().expect("alternate stack");
        before(libc::SIGUSR1, spoil as *const () as usize, SaFlags::empty(), SigSet::empty());
        for (policy, after) in [(ErrnoPolicy::Keep, 5), (ErrnoPolicy::Untouched, 77)] {
            // SAFETY: chains.
            let options = Options::new().errno(policy);
            // SAFETY: chains.
            let installed = unsafe { handler::install(libc::SIGUSR1, chain, options) };
            // SAFETY: every thread has one.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: valid as long as the thread lives.
            unsafe { errno.write(5) };
            raise(libc::SIGUSR1);
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(after));
            installed.expect("install").uninstall().expect("uninstall");
        }
    });
}

/// The frame moves to the handler's stack: what is written there must take effect.
#[test]
fn what_a_previous_handler_writes_to_the_context_takes_effect() {
    extern "C" fn step_over(_: c_int, info: *mut c_void, uc: *mut c_void) {
        // SAFETY: what the handler got; no other code looks.
        let mut ctx = unsafe { SigCtx::from_raw(info, uc) };
        sigctx::probe::step_over_known(&mut ctx);
        CALLS.fetch_add(1, SeqCst);
    }
    testkit::in_child("what_a_previous_handler_writes_to_the_context_takes_effect", LIMIT, || {
        let _alt = AltStack::install().expect("alternate stack");
        let handler = step_over as *const () as usize;
        before(libc::SIGILL, handler, SaFlags::SIGINFO, SigSet::empty());
        let _installed = install(libc::SIGILL, chain);
        // SAFETY: the handler steps over the instruction.
        unsafe { sigctx::probe::raise_undefined() };
        assert_eq!(CALLS.load(SeqCst), 1);
    });
}

/// Without this crate the kernel would end the process: there is no room for the frame.
#[test]
fn after_a_stack_overflow_the_alternate_stack_is_the_place() {
    extern "C" fn leave(_: c_int) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(77) };
    }
    fn recurse(depth: usize) -> usize {
        let here = std::hint::black_box([depth; 64]);
        if depth == usize::MAX { 0 } else { recurse(depth + 1) + here[depth % 64] }
    }
    let name = "after_a_stack_overflow_the_alternate_stack_is_the_place";
    let overflow = || {
        before(libc::SIGSEGV, leave as *const () as usize, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGSEGV, chain);
        let thread = thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            std::hint::black_box(recurse(0));
        });
        thread.join().expect("ends the process");
    };
    if let Some(ended) = testkit::child(name, LIMIT, overflow) {
        assert_eq!(ended.status.code(), Some(77), "{}", ended.output);
    }
}

#[test]
fn under_a_nested_handler_the_alternate_stack_is_the_place() {
    fn raise_another(_: &mut Delivery<'_>) -> Flow {
        raise(libc::SIGUSR1);
        Flow::Resume
    }
    let name = "under_a_nested_handler_the_alternate_stack_is_the_place";
    testkit::in_child(name, LIMIT, || {
        let alt = AltStack::install().expect("alternate stack");
        before(libc::SIGUSR1, look_where as *const () as usize, SaFlags::empty(), SigSet::empty());
        let _inner = install(libc::SIGUSR1, chain);
        let _outer = install(libc::SIGUSR2, raise_another);
        raise(libc::SIGUSR2);
        assert!(was_on(&alt) && CALLS.load(SeqCst) == 1);
    });
}

/// Chains, and injects on [`STACK`].
fn chain_and_inject(delivery: &mut Delivery<'_>) -> Flow {
    delivery.chain();
    inject_anywhere(delivery)
}

#[test]
fn a_call_is_called_off_when_the_previous_handler_sends_the_code_elsewhere() {
    static ELSEWHERE: AtomicBool = AtomicBool::new(false);

    extern "C" fn step_over(_: c_int, info: *mut c_void, uc: *mut c_void) {
        // SAFETY: what the handler got; no other code looks.
        let mut ctx = unsafe { SigCtx::from_raw(info, uc) };
        let before = ctx.pc();
        sigctx::probe::step_over_known(&mut ctx);
        ELSEWHERE.store(ctx.pc() != before, SeqCst);
        CALLS.fetch_add(1, SeqCst);
    }
    let name = "a_call_is_called_off_when_the_previous_handler_sends_the_code_elsewhere";
    testkit::in_child(name, LIMIT, || {
        let thread = thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let stack = register_own_stack();
            let handler = step_over as *const () as usize;
            before(libc::SIGILL, handler, SaFlags::SIGINFO, SigSet::empty());
            let _installed = install(libc::SIGILL, chain_and_inject);
            // SAFETY: the handler steps over the instruction.
            unsafe { sigctx::probe::raise_undefined() };
            assert_eq!(CALLS.load(SeqCst), 1);
            if !ELSEWHERE.load(SeqCst) {
                testkit::skip("the program counter is behind the instruction already");
                return;
            }
            assert_eq!(INJECTED.load(SeqCst), 0, "{}", counts());
            assert_eq!(HANDLED.load(SeqCst), 0, "it was refused: {}", counts());
            assert!(!stack.is_active());
        });
        thread.join().expect("thread");
    });
}

/// The same the other way round: the frame is on the interrupted stack already.
fn inject_and_chain(delivery: &mut Delivery<'_>) -> Flow {
    let flow = inject_anywhere(delivery);
    delivery.chain();
    flow
}

/// The loop of patterns, under a previous handler that writes every register; `handler` chains, and
/// may inject calls as well.
fn patterns_stay(handler: handler::Handler, injects: bool) {
    /// Signals, or injected calls.
    const PER_PATTERN: usize = 32;
    static STOP: Mutex<Option<Stop>> = Mutex::new(None);

    extern "C" fn clobber(_: c_int) {
        sigctx::probe::clobber_all();
        CALLS.fetch_add(1, SeqCst);
        if STACK.load(SeqCst).is_null() {
            HANDLED.fetch_add(1, SeqCst);
        }
    }
    before(libc::SIGURG, clobber as *const () as usize, SaFlags::empty(), SigSet::empty());
    let _installed = install(libc::SIGURG, handler);
    let lost = lost_by_an_ordinary_handler();
    let enough = testkit::budget(10_000) as usize;
    let mut sent = 0;
    thread::scope(|s| {
        let victim = s.spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let mut rng = testkit::Rng::from_env();
            // Leaked, with what stops it: a late signal may still look.
            let patterned = Box::leak(Box::new(Patterned::new()));
            if injects {
                STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
            }
            // SAFETY: leaked.
            *STOP.lock().unwrap() = Some(unsafe { patterned.stopper() });
            while !DONE.load(SeqCst) {
                let begin = || TID.store(sys::gettid(), SeqCst);
                let mut different = patterned.run(|| rng.next_u64(), Spin::UntilStopped, begin);
                different.retain(|difference| !lost.contains(difference.register));
                assert!(different.is_empty(), "{different:#x?}\n{}", counts());
            }
        });
        wait_for("the victim", || TID.load(SeqCst) != 0);
        let stop = STOP.lock().unwrap().take().expect("running");
        let _done = Raise(&DONE);
        let mut rng = testkit::Rng::from_env();
        // Signals that come between two patterns meet other code, and inject nothing.
        let done = if injects { &INJECTED } else { &HANDLED };
        let mut next_pattern = PER_PATTERN;
        sent = send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, || {
            let done = done.load(SeqCst);
            if done >= next_pattern {
                next_pattern = done + PER_PATTERN;
                stop.stop();
            }
            done >= enough || victim.is_finished()
        });
        DONE.store(true, SeqCst);
        // The loop goes round until it is stopped, and may be between two rounds.
        while !victim.is_finished() {
            stop.stop();
            thread::yield_now();
        }
    });
    assert_eq!(CALLS.load(SeqCst), sent, "{}", counts());
    assert_eq!(INJECTED.load(SeqCst) > 0, injects, "{}", counts());
    println!("{sent} signals; {}", counts());
}

#[test]
fn stress_a_previous_handler_on_the_interrupted_stack_changes_nothing() {
    let name = "stress_a_previous_handler_on_the_interrupted_stack_changes_nothing";
    testkit::in_child(name, DEADLINE, || patterns_stay(chain, false));
}

#[test]
fn stress_a_previous_handler_and_an_injected_call_change_nothing() {
    let name = "stress_a_previous_handler_and_an_injected_call_change_nothing";
    testkit::in_child(name, DEADLINE, || patterns_stay(chain_and_inject, true));
}

#[test]
fn stress_a_previous_handler_after_a_prepared_call_changes_nothing() {
    let name = "stress_a_previous_handler_after_a_prepared_call_changes_nothing";
    testkit::in_child(name, DEADLINE, || patterns_stay(inject_and_chain, true));
}

/// The frame's copy lies on the interrupted stack while the handler runs, and the next signal's below
/// it: they do not pile up, for the handler has its signal blocked until the frame has gone.
#[test]
fn stress_a_flood_does_not_pile_up_frames() {
    static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);

    extern "C" fn how_deep(_: c_int) {
        let here = 0u8;
        LOWEST.fetch_min(&raw const here as usize, SeqCst);
        CALLS.fetch_add(1, SeqCst);
    }
    testkit::in_child("stress_a_flood_does_not_pile_up_frames", DEADLINE, || {
        before(libc::SIGUSR1, how_deep as *const () as usize, SaFlags::empty(), SigSet::empty());
        let _installed = install(libc::SIGUSR1, chain);
        let enough = testkit::budget(10_000) as usize;
        let top = AtomicUsize::new(0);
        thread::scope(|s| {
            s.spawn(|| {
                let _alt = AltStack::install().expect("alternate stack");
                let here = 0u8;
                top.store(&raw const here as usize, SeqCst);
                TID.store(sys::gettid(), SeqCst);
                while !DONE.load(SeqCst) {
                    std::hint::spin_loop();
                }
            });
            wait_for("the victim", || TID.load(SeqCst) != 0);
            let flood = || {
                while CALLS.load(SeqCst) < enough {
                    sys::tgkill(sys::getpid(), TID.load(SeqCst), libc::SIGUSR1).expect("alive");
                }
            };
            let senders = [s.spawn(flood), s.spawn(flood)];
            for sender in senders {
                sender.join().expect("sender");
            }
            DONE.store(true, SeqCst);
        });
        let depth = top.load(SeqCst) - LOWEST.load(SeqCst);
        println!("{} signals, {depth} bytes deep", CALLS.load(SeqCst));
        assert!(depth < 256 * 1024, "{depth} bytes: frames pile up");
    });
}

/// The control of these tests: a frame is not copied where the kernel would not have put it.
#[test]
fn an_injected_call_under_a_previous_handler_is_refused_or_runs_alone() {
    fn call(frame: &mut Frame<'_>, data: usize) {
        clobbering_call(frame, data);
    }
    fn nested(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: leaked by the victim.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    extern "C" fn raises(_: c_int) {
        CALLS.fetch_add(1, SeqCst);
        // Interrupts this handler, on the interrupted stack: it is code like any other there.
        sys::tgkill(sys::getpid(), sys::gettid(), libc::SIGURG).expect("own thread");
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
    }
    let name = "an_injected_call_under_a_previous_handler_is_refused_or_runs_alone";
    testkit::in_child(name, LIMIT, || {
        let thread = thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let stack = register_own_stack();
            before(libc::SIGUSR1, raises as *const () as usize, SaFlags::empty(), SigSet::empty());
            let _chains = install(libc::SIGUSR1, chain);
            let _injects = install(libc::SIGURG, nested);
            for round in 1..100 {
                raise(libc::SIGUSR1);
                assert_eq!((CALLS.load(SeqCst), HANDLED.load(SeqCst)), (round, round));
                assert!(!stack.is_active());
            }
            println!("{}", counts());
        });
        thread.join().expect("thread");
    });
}
