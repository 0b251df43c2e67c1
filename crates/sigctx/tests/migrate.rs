//! A frame that one thread was interrupted with can resume on another.

mod common;

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use common::*;
use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::inject::{Frame, Parked};
use sigctx::probe::{Patterned, Spin, Stop};
use sigctx::sys;
use testkit::Rng;

static PARKED: Mutex<Option<Parked>> = Mutex::new(None);
static STOP: Mutex<Option<Stop>> = Mutex::new(None);
static HOPS: AtomicUsize = AtomicUsize::new(0);
static WRONG_STACK: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicBool = AtomicBool::new(false);
static DIFFERENT: AtomicUsize = AtomicUsize::new(usize::MAX);

thread_local! {
    static MY_STACK: Cell<usize> = const { Cell::new(0) };
}

/// The thread's part is over; its stack belongs to the thread that resumes the frame, so it must not run
/// any code again.
fn stand_still() -> ! {
    loop {
        static NEVER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let _ = sys::futex_wait(&NEVER, 0, None);
    }
}

fn hand_over(frame: &mut Frame<'_>, _: usize) {
    sigctx::probe::clobber_all();
    // SAFETY: all zeroes is a valid `stack_t`.
    let mut alt: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: only reads.
    unsafe { libc::sigaltstack(std::ptr::null(), &raw mut alt) };
    if alt.ss_sp as usize != MY_STACK.get() {
        WRONG_STACK.fetch_add(1, SeqCst);
    }
    INJECTED.fetch_add(1, SeqCst);
    // No signal comes before the next thread has said which one it is.
    TID.store(0, SeqCst);
    // SAFETY: this thread stands still from here on, in a system call that never ends.
    let parked = unsafe { frame.park() };
    *PARKED.lock().unwrap() = Some(parked);
    HANDLED.fetch_add(1, SeqCst);
    stand_still();
}

fn handler(delivery: &mut Delivery<'_>) -> Flow {
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the loop may be interrupted anywhere, and uses nothing of its thread's.
        match unsafe { delivery.inject(stack, hand_over, 0) } {
            Ok(injection) => return Flow::Inject(injection),
            Err(error) => refused(error),
        }
    } else {
        HANDLED.fetch_add(1, SeqCst);
    }
    Flow::Resume
}

/// errno belongs to the thread, and to the interrupted code: what a parked frame had comes with it.
#[test]
fn a_parked_frame_resumes_with_its_errno() {
    static PARKED: Mutex<Option<Parked>> = Mutex::new(None);
    static SEEN: AtomicUsize = AtomicUsize::new(0);

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
    fn park(frame: &mut Frame<'_>, _: usize) {
        // SAFETY: this thread stands still from here on.
        let parked = unsafe { frame.park() };
        *PARKED.lock().unwrap() = Some(parked);
        stand_still();
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        sigctx::probe::step_over_known(delivery);
        // SAFETY: leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the interrupted code uses nothing of its thread's but errno.
        make_or_count(unsafe { delivery.inject(stack, park, 0) })
    }
    testkit::in_child("a_parked_frame_resumes_with_its_errno", DEADLINE, || {
        let _installed = install(libc::SIGILL, handler);
        // Never joined: the threads stand still when the process ends.
        thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            register_own_stack();
            set_errno(42);
            // SAFETY: the handler steps over the instruction.
            unsafe { sigctx::probe::raise_undefined() };
            // On another thread, whose errno it is now.
            SEEN.store(errno() as usize, SeqCst);
            stand_still();
        });
        wait_for("a parked frame", || PARKED.lock().unwrap().is_some());
        thread::spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let parked = PARKED.lock().unwrap().take().expect("parked");
            set_errno(7);
            // SAFETY: this stack is needed no more.
            let Err((_, error)) = unsafe { parked.resume() };
            testkit::skip(format!("frames stay on their threads here: {error}"));
            SEEN.store(42, SeqCst);
        });
        wait_for("the resumed code", || SEEN.load(SeqCst) != 0);
        assert_eq!(SEEN.load(SeqCst), 42);
    });
}

#[test]
fn stress_a_parked_frame_resumes_on_other_threads() {
    testkit::in_child("stress_a_parked_frame_resumes_on_other_threads", DEADLINE, || {
        // SAFETY: counts and injects.
        let installed = unsafe { handler::install(libc::SIGURG, handler, Options::new()) };
        let _installed = installed.expect("install");
        let lost = lost_by_an_ordinary_handler();
        let mut rng = Rng::from_env();
        let seed = rng.next_u64();
        // Never joined: the threads stand still when the process ends.
        thread::spawn(move || {
            let alt = AltStack::install().expect("alternate stack");
            MY_STACK.set(alt.bounds().0);
            let mut rng = Rng::new(seed);
            let patterned = Box::leak(Box::new(Patterned::new()));
            STACK.store(std::ptr::from_ref(patterned.call_stack()).cast_mut(), SeqCst);
            // SAFETY: leaked.
            let stop = unsafe { patterned.stopper() };
            let mut different = patterned.run(
                || rng.next_u64(),
                Spin::UntilStopped,
                || {
                    *STOP.lock().unwrap() = Some(stop);
                    TID.store(sys::gettid(), SeqCst);
                },
            );
            different.retain(|difference| !lost.contains(difference.register));
            // Another thread than the one that began.
            eprintln!("{different:#x?}");
            DIFFERENT.store(different.len(), SeqCst);
            FINISHED.store(true, SeqCst);
            stand_still();
        });
        let hops = testkit::budget(300) as usize;
        for _ in 0..hops {
            send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, || {
                PARKED.lock().unwrap().is_some()
            });
            thread::spawn(|| {
                let alt = AltStack::install().expect("alternate stack");
                MY_STACK.set(alt.bounds().0);
                let parked = PARKED.lock().unwrap().take().expect("parked");
                HOPS.fetch_add(1, SeqCst);
                TID.store(sys::gettid(), SeqCst);
                // SAFETY: the loop uses nothing of its thread's; this stack is needed no more
                // (the alternate stack stays mapped: its `AltStack` is not dropped).
                let Err((_, error)) = unsafe { parked.resume() };
                panic!("{error}");
            });
            wait_for("the next thread", || TID.load(SeqCst) != 0);
        }
        STOP.lock().unwrap().take().expect("running").stop();
        wait_for("the end of the loop", || FINISHED.load(SeqCst));
        assert_eq!(DIFFERENT.load(SeqCst), 0, "{}", counts());
        assert_eq!(WRONG_STACK.load(SeqCst), 0, "a thread ran on another's alternate stack");
        assert_eq!(HOPS.load(SeqCst), hops);
        println!("{} hops; {}", hops, counts());
    });
}
