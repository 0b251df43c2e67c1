//! What a handler must not do is not done: no allocation, errno kept, the alternate stack put back.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::*;
use sigctx::altstack::{AltStack, MIN_SIZE};
use sigctx::handler::{Delivery, Flow};
use sigctx::inject::{Frame, InjectedFn};
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys::{self, MaskHow, SigSet};
use testkit::Rng;

thread_local! {
    /// Set by the first handler of a signal, and cleared by the interrupted code: what `dispatch`
    /// does after the handler counts, too.
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

struct NotInHandlers;

// SAFETY: the system's allocator, after a look.
unsafe impl GlobalAlloc for NotInHandlers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IN_HANDLER.get() {
            std::process::abort();
        }
        // SAFETY: the caller's obligations.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if IN_HANDLER.get() {
            std::process::abort();
        }
        // SAFETY: the caller's obligations.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: NotInHandlers = NotInHandlers;

fn set_errno(value: i32) {
    // SAFETY: every thread has one.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { errno.write(value) };
}

fn errno() -> i32 {
    // SAFETY: every thread has one.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread lives.
    unsafe { errno.read() }
}

/// The check can fail: an allocation in a handler ends the process.
#[test]
fn an_allocation_in_a_handler_is_noticed() {
    fn allocate(_: &mut Delivery<'_>) -> Flow {
        IN_HANDLER.set(true);
        drop(std::hint::black_box(Box::new(1)));
        Flow::Resume
    }
    let ended = testkit::child("an_allocation_in_a_handler_is_noticed", DEADLINE, || {
        let _installed = install(libc::SIGURG, allocate);
        raise(libc::SIGURG);
    });
    if let Some(ended) = ended {
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    }
}

#[test]
fn stress_nothing_is_allocated_in_handlers() {
    fn call(frame: &mut Frame<'_>, data: usize) {
        IN_HANDLER.set(false);
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        IN_HANDLER.set(true);
        delivery.chain();
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call clobbers and counts.
        match unsafe { delivery.inject(stack, call, 0) } {
            Ok(injection) => Flow::Inject(injection),
            Err(error) => {
                refused(error);
                Flow::Chain
            }
        }
    }
    testkit::in_child("stress_nothing_is_allocated_in_handlers", DEADLINE, || {
        let _older = install(libc::SIGURG, |_| Flow::Chain);
        let _installed = install(libc::SIGURG, handler);
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            while !DONE.load(SeqCst) {
                std::hint::spin_loop();
            }
            TID.store(0, SeqCst);
            IN_HANDLER.set(false);
        };
        let enough = testkit::budget(20_000) as usize;
        under_signals(victim, || INJECTED.load(SeqCst) >= enough);
        println!("{}", counts());
    });
}

#[test]
fn stress_errno_is_kept_around_handlers_and_injected_calls() {
    fn call(frame: &mut Frame<'_>, data: usize) {
        set_errno(77);
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        set_errno(88);
        let stack = STACK.load(SeqCst);
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*stack };
        // SAFETY: the call clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    testkit::in_child("stress_errno_is_kept_around_handlers_and_injected_calls", DEADLINE, || {
        let _installed = install(libc::SIGURG, handler);
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            let mut value = 1;
            while !DONE.load(SeqCst) {
                set_errno(value);
                for _ in 0..100 {
                    assert_eq!(errno(), value, "{}", counts());
                }
                value = value % 60 + 1;
            }
        };
        let enough = testkit::budget(20_000) as usize;
        under_signals(victim, || INJECTED.load(SeqCst) >= enough);
        println!("{}", counts());
    });
}

/// Not one at a time: signals merge, and the handlers of the two interrupt each other and each other's
/// calls.
#[test]
fn stress_signals_from_many_senders_do_no_harm() {
    static STOP: Mutex<Option<Stop>> = Mutex::new(None);
    static FINISHED: AtomicBool = AtomicBool::new(false);

    testkit::in_child("stress_signals_from_many_senders_do_no_harm", DEADLINE, || {
        let _urgent = install(libc::SIGURG, inject_anywhere);
        let _user = install(libc::SIGUSR1, inject_anywhere);
        let enough = testkit::budget(2_000) as usize;
        let lost = lost_by_an_ordinary_handler();
        thread::scope(|s| {
            s.spawn(|| {
                let _alt = AltStack::install().expect("alternate stack");
                let mut rng = Rng::from_env();
                // Leaked, with what stops it: a late signal may still look.
                let patterned = Box::leak(Box::new(Patterned::new()));
                STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
                // SAFETY: leaked.
                *STOP.lock().unwrap() = Some(unsafe { patterned.stopper() });
                let _finished = Raise(&FINISHED);
                while !DONE.load(SeqCst) {
                    let begin = || TID.store(sys::gettid(), SeqCst);
                    let mut different = patterned.run(|| rng.next_u64(), Spin::UntilStopped, begin);
                    different.retain(|difference| !lost.contains(difference.register));
                    assert!(different.is_empty(), "{different:#x?}\n{}", counts());
                }
            });
            wait_for("the victim", || TID.load(SeqCst) != 0);
            let stop = STOP.lock().unwrap().take().expect("running");
            let done = Raise(&DONE);
            let sender = |signal| {
                move || {
                    for sent in 0u32.. {
                        if INJECTED.load(SeqCst) >= enough {
                            break;
                        }
                        sys::tgkill(sys::getpid(), TID.load(SeqCst), signal).expect("alive");
                        if sent.is_multiple_of(1000) {
                            stop.stop();
                        }
                    }
                }
            };
            let senders = [s.spawn(sender(libc::SIGURG)), s.spawn(sender(libc::SIGUSR1))];
            for sender in senders {
                sender.join().expect("sender");
            }
            drop(done);
            // The loop goes round until it is stopped, and may be between two rounds.
            while !FINISHED.load(SeqCst) {
                stop.stop();
                thread::yield_now();
            }
        });
        assert!(INJECTED.load(SeqCst) >= enough, "{}", counts());
        println!("{}", counts());
    });
}

/// A victim that is interrupted with its own mask, and has it afterwards.
fn with_hangup_blocked() {
    register_own_stack();
    sys::sigprocmask(MaskHow::Set, &SigSet::of(libc::SIGHUP));
    TID.store(sys::gettid(), SeqCst);
    while !DONE.load(SeqCst) {
        std::hint::spin_loop();
    }
    // What the callback blocked is not blocked here.
    let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
    assert_eq!(mask, SigSet::of(libc::SIGHUP));
}

#[test]
fn an_injected_call_runs_with_the_interrupted_mask() {
    static WRONG: AtomicI32 = AtomicI32::new(0);

    fn call(frame: &mut Frame<'_>, data: usize) {
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::of(libc::SIGUSR2));
        let expected = SigSet::of(libc::SIGHUP);
        if mask != expected || frame.context().signal_mask() != expected {
            WRONG.fetch_add(1, SeqCst);
        }
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call looks at the mask, clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    testkit::in_child("an_injected_call_runs_with_the_interrupted_mask", DEADLINE, || {
        let _installed = install(libc::SIGURG, handler);
        under_signals(with_hangup_blocked, || INJECTED.load(SeqCst) >= 100);
        assert_eq!(WRONG.load(SeqCst), 0, "{}", counts());
    });
}

#[test]
fn a_masked_call_has_the_handlers_mask_until_it_opens_it() {
    static WRONG: AtomicI32 = AtomicI32::new(0);

    fn call(frame: &mut Frame<'_>, data: usize) {
        let mask = || sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        let interrupted = SigSet::of(libc::SIGHUP);
        let began = !frame.is_mask_open() && mask() == interrupted.with(libc::SIGURG);
        frame.open_mask();
        let opened = frame.is_mask_open() && mask() == interrupted;
        sys::sigprocmask(MaskHow::Block, &SigSet::of(libc::SIGUSR2));
        frame.open_mask();
        if !began || !opened || mask() != interrupted.with(libc::SIGUSR2) {
            WRONG.fetch_add(1, SeqCst);
        }
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call looks at the mask, clobbers and counts.
        make_or_count(unsafe { delivery.inject_masked(stack, call, 0) })
    }
    testkit::in_child("a_masked_call_has_the_handlers_mask_until_it_opens_it", DEADLINE, || {
        let _installed = install(libc::SIGURG, handler);
        under_signals(with_hangup_blocked, || INJECTED.load(SeqCst) >= 100);
        assert_eq!(WRONG.load(SeqCst), 0, "{}", counts());
    });
}

/// Every signal that can be blocked, alone and all but it: the callback has exactly that mask, and so has
/// the interrupted code after it.
#[test]
fn each_signal_of_the_interrupted_mask_is_in_the_callbacks() {
    static INSIDE: Mutex<Option<SigSet>> = Mutex::new(None);

    fn call(frame: &mut Frame<'_>, data: usize) {
        let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        // The test does not hold the lock when it is interrupted.
        *INSIDE.lock().unwrap() = Some(mask);
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        sigctx::probe::step_over_known(delivery);
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call looks at the mask, clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    testkit::in_child("each_signal_of_the_interrupted_mask_is_in_the_callbacks", DEADLINE, || {
        let _installed = install(libc::SIGILL, handler);
        let thread = thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            register_own_stack();
            // The fault itself must come through.
            let mut all = maskable();
            all.retain(|&signal| signal != libc::SIGILL);
            let rest = all.iter().fold(SigSet::empty(), |set, &sig| set.with(sig));
            for sig in all {
                for mask in [SigSet::of(sig), rest.without(sig)] {
                    sys::sigprocmask(MaskHow::Set, &mask);
                    // SAFETY: the handler steps over the instruction.
                    unsafe { sigctx::probe::raise_undefined() };
                    let after = sys::sigprocmask(MaskHow::Set, &SigSet::empty());
                    let inside = INSIDE.lock().unwrap().take();
                    assert_eq!(inside, Some(mask), "in the callback; {}", counts());
                    assert_eq!(after, mask, "after the callback");
                }
            }
        });
        thread.join().expect("thread");
    });
}

/// A thread whose alternate stack is disarmed while a handler runs (`SS_AUTODISARM`) has it in the
/// callback, and after it, whatever other threads install meanwhile.
#[test]
fn an_alternate_stack_that_is_disarmed_for_handlers_comes_back() {
    const AUTODISARM: i32 = 1 << 31;
    static INSIDE: Mutex<Option<(usize, usize, i32)>> = Mutex::new(None);

    fn call(frame: &mut Frame<'_>, data: usize) {
        *INSIDE.lock().unwrap() = Some(alternate_stack());
        // Any change makes the return look at what is installed.
        thread::spawn(|| drop(AltStack::install())).join().expect("thread");
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        sigctx::probe::step_over_known(delivery);
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the interrupted code holds no lock.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    testkit::in_child(
        "an_alternate_stack_that_is_disarmed_for_handlers_comes_back",
        DEADLINE,
        || {
            let _installed = install(libc::SIGILL, handler);
            let thread = thread::spawn(|| {
                let memory = Box::leak(vec![0u8; 128 << 10].into_boxed_slice());
                let (sp, size) = (memory.as_mut_ptr(), memory.len());
                let stack = libc::stack_t { ss_sp: sp.cast(), ss_flags: AUTODISARM, ss_size: size };
                // SAFETY: leaked.
                if unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } != 0 {
                    return testkit::skip("this kernel disarms no alternate stacks");
                }
                register_own_stack();
                let before = alternate_stack();
                // SAFETY: the handler steps over the instruction.
                unsafe { sigctx::probe::raise_undefined() };
                assert_eq!(INJECTED.load(SeqCst), 1, "{}", counts());
                assert_eq!(*INSIDE.lock().unwrap(), Some(before), "in the callback");
                assert_eq!(alternate_stack(), before, "after the callback");
            });
            thread.join().expect("thread");
        },
    );
}

#[test]
fn what_a_callback_writes_takes_effect() {
    fn call(frame: &mut Frame<'_>, data: usize) {
        let mask = frame.context().signal_mask().with(libc::SIGHUP);
        // SAFETY: the interrupted code looks at its mask, and can go on with any.
        unsafe { frame.context_mut() }.set_signal_mask(mask);
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: leaked by the victim before the first signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call changes the mask, clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    testkit::in_child("what_a_callback_writes_takes_effect", DEADLINE, || {
        let _installed = install(libc::SIGURG, handler);
        let victim = || {
            register_own_stack();
            sys::sigprocmask(MaskHow::Set, &SigSet::empty());
            TID.store(sys::gettid(), SeqCst);
            while !DONE.load(SeqCst) {
                std::hint::spin_loop();
            }
            let mask = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
            assert_eq!(mask, SigSet::of(libc::SIGHUP));
        };
        under_signals(victim, || INJECTED.load(SeqCst) >= 10);
    });
}

#[test]
fn a_handler_is_not_interrupted_by_its_own_signal() {
    static DEPTH: AtomicI32 = AtomicI32::new(0);
    static DEEPEST: AtomicI32 = AtomicI32::new(0);

    fn raise_again(_: &mut Delivery<'_>) -> Flow {
        let depth = DEPTH.fetch_add(1, SeqCst) + 1;
        DEEPEST.fetch_max(depth, SeqCst);
        if HANDLED.fetch_add(1, SeqCst) < 3 {
            let _ = sys::tgkill(sys::getpid(), sys::gettid(), libc::SIGURG);
        }
        DEPTH.fetch_sub(1, SeqCst);
        Flow::Resume
    }
    testkit::in_child("a_handler_is_not_interrupted_by_its_own_signal", DEADLINE, || {
        let _installed = install(libc::SIGURG, raise_again);
        raise(libc::SIGURG);
        // Each comes when the one before has returned.
        assert_eq!((HANDLED.load(SeqCst), DEEPEST.load(SeqCst)), (4, 1));
    });
}

fn alternate_stack() -> (usize, usize, i32) {
    // SAFETY: all zeroes is a valid `stack_t`.
    let mut now: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: only reads.
    let read = unsafe { libc::sigaltstack(std::ptr::null(), &raw mut now) };
    assert_eq!(read, 0);
    (now.ss_sp as usize, now.ss_size, now.ss_flags)
}

#[test]
fn the_previous_alternate_stack_comes_back() {
    thread::spawn(|| {
        let before = alternate_stack();
        {
            let outer = AltStack::install().expect("alternate stack");
            let (lo, hi) = outer.bounds();
            assert!(hi - lo >= MIN_SIZE && hi % 4096 == 0);
            assert_eq!(alternate_stack(), (lo, hi - lo, 0));
            {
                let _inner = AltStack::install().expect("another");
                assert_ne!(alternate_stack().0, lo);
            }
            assert_eq!(alternate_stack(), (lo, hi - lo, 0));
        }
        assert_eq!(alternate_stack(), before);
    })
    .join()
    .expect("thread");
}

thread_local! {
    static MY_STACK: Cell<Option<AltStack>> = const { Cell::new(None) };
}

/// Interrupts a thread whose alternate stack is in [`MY_STACK`], calls `call` there, and says what
/// the alternate stack is afterwards, and after one more signal.
fn alternate_stack_after(call: InjectedFn) -> (usize, usize, i32) {
    static CALL: Mutex<Option<InjectedFn>> = Mutex::new(None);

    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: null until the victim has leaked it.
        let stack = unsafe { STACK.load(SeqCst).as_ref() };
        // Not contended: there is one signal at a time, and the test has let go of it.
        let call = *CALL.lock().unwrap();
        if let (Some(stack), Some(call), 0) = (stack, call, INJECTED.load(SeqCst)) {
            // SAFETY: the victim computes while the call changes its alternate stack.
            match unsafe { delivery.inject(stack, call, 0) } {
                Ok(injection) => return Flow::Inject(injection),
                Err(error) => refused(error),
            }
        }
        HANDLED.fetch_add(1, SeqCst);
        Flow::Resume
    }
    *CALL.lock().unwrap() = Some(call);
    let _installed = install(libc::SIGURG, handler);
    let after = Mutex::new((0, 0, 0));
    let victim = || {
        register_own_stack();
        TID.store(sys::gettid(), SeqCst);
        while INJECTED.load(SeqCst) == 0 {
            std::hint::spin_loop();
        }
        let handled = HANDLED.load(SeqCst);
        raise(libc::SIGURG);
        assert!(HANDLED.load(SeqCst) > handled);
        *after.lock().unwrap() = alternate_stack();
        while !DONE.load(SeqCst) {
            std::hint::spin_loop();
        }
    };
    thread::scope(|s| {
        s.spawn(|| {
            MY_STACK.set(Some(AltStack::install().expect("alternate stack")));
            victim();
            drop(MY_STACK.take());
        });
        let _done = Raise(&DONE);
        let mut rng = Rng::from_env();
        send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, || INJECTED.load(SeqCst) > 0);
        wait_for("the victim's look", || after.lock().unwrap().1 != 0);
    });
    *after.lock().unwrap()
}

#[test]
fn an_alternate_stack_dropped_in_a_callback_stays_away() {
    static GONE: AtomicUsize = AtomicUsize::new(0);

    fn drop_stack(frame: &mut Frame<'_>, data: usize) {
        let stack = MY_STACK.take().expect("the victim's");
        GONE.store(stack.bounds().0, SeqCst);
        drop(stack);
        clobbering_call(frame, data);
    }
    testkit::in_child("an_alternate_stack_dropped_in_a_callback_stays_away", DEADLINE, || {
        let (sp, ..) = alternate_stack_after(drop_stack);
        assert_ne!(sp, GONE.load(SeqCst));
    });
}

#[test]
fn an_alternate_stack_installed_in_a_callback_stays() {
    static NEW: AtomicUsize = AtomicUsize::new(0);

    fn install_stack(frame: &mut Frame<'_>, data: usize) {
        // Left to the process.
        let stack = ManuallyDrop::new(AltStack::install().expect("outside of a handler"));
        NEW.store(stack.bounds().0, SeqCst);
        clobbering_call(frame, data);
    }
    testkit::in_child("an_alternate_stack_installed_in_a_callback_stays", DEADLINE, || {
        let (sp, ..) = alternate_stack_after(install_stack);
        assert_eq!(sp, NEW.load(SeqCst));
    });
}

#[test]
fn an_alternate_stack_has_a_guard_page() {
    let alt = AltStack::install().expect("alternate stack");
    let (_reader, writer) = std::io::pipe().expect("pipe");
    // The kernel reads a byte for us, or says that it cannot.
    let read = |at: usize| {
        let args = [writer.as_raw_fd() as usize, at, 1, 0, 0, 0];
        // SAFETY: the kernel reads one byte, if it can.
        unsafe { sys::syscall(libc::SYS_write, args) }
    };
    let (low, _) = alt.bounds();
    assert_eq!(read(low), Ok(1));
    assert_eq!(read(low - 1), Err(sys::Errno::EFAULT));
}

#[test]
fn no_alternate_stack_is_installed_from_a_handler() {
    static ERRNO: AtomicI32 = AtomicI32::new(0);

    fn handler(_: &mut Delivery<'_>) -> Flow {
        if let Err(error) = AltStack::install() {
            ERRNO.store(error.errno().raw(), SeqCst);
        }
        Flow::Resume
    }
    testkit::in_child("no_alternate_stack_is_installed_from_a_handler", DEADLINE, || {
        let _alt = AltStack::install().expect("alternate stack");
        let _installed = install(libc::SIGUSR1, handler);
        raise(libc::SIGUSR1);
        assert_eq!(ERRNO.load(SeqCst), libc::EPERM);
    });
}
