//! A signal reaches the thread that it was sent to, or none: pins, exits, ids used again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use sigctx::handler::{Delivery, Flow, Options, install};
use sigctx::sys::{self, MaskHow, SigSet};
use testkit::{Rng, budget, forked, in_child, until};
use threadreg::{Builder, Cookie, SignalError, ThreadRef, current, threads};

const MINUTE: Duration = Duration::from_mins(1);
/// `si_code` of what these tests queue; negative, and used by nothing else.
const CODE: i32 = -77;

/// A word that tells one thread from another, also from an earlier thread of the same record.
fn mark(thread: ThreadRef) -> usize {
    thread.generation() as usize * 64 + thread.index() % 64
}

/// T8. Signals to threads that come and go reach the thread that they were sent to.
#[test]
fn stress_no_signal_goes_astray() {
    fn check(delivery: &mut Delivery<'_>) -> Flow {
        if delivery.code() == CODE {
            match current() {
                Some(me) if mark(me) == delivery.value() => RIGHT.fetch_add(1, SeqCst),
                _ => WRONG.fetch_add(1, SeqCst),
            };
        }
        Flow::Resume
    }
    static RIGHT: AtomicUsize = AtomicUsize::new(0);
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    in_child("stress_no_signal_goes_astray", 3 * MINUTE, || {
        let signal = libc::SIGRTMIN() + 1;
        // SAFETY: the handler touches atomics and async-signal-safe functions only.
        unsafe { install(signal, check, Options::new()) }.expect("installs");
        let senders: Vec<_> = (0..2)
            .map(|_| {
                thread::spawn(move || {
                    let (mut sent, mut gone) = (0_usize, 0_usize);
                    // Real-time signals queue: without a limit a thread does nothing but handle
                    // them.
                    let mut each = HashMap::<usize, usize>::new();
                    while !STOP.load(SeqCst) {
                        for thread in threads() {
                            let Ok(pinned) = thread.pin() else {
                                gone += 1;
                                continue;
                            };
                            let Some(tid) = pinned.tid() else { continue };
                            let so_far = each.entry(mark(thread)).or_default();
                            if *so_far == 20 {
                                continue;
                            }
                            *so_far += 1;
                            let pid = sys::getpid();
                            match sys::tgsigqueueinfo(pid, tid, signal, CODE, mark(thread)) {
                                Ok(()) => sent += 1,
                                Err(sys::Errno::EAGAIN) => thread::yield_now(),
                                Err(other) => panic!("a pinned thread was not there: {other}"),
                            }
                        }
                    }
                    (sent, gone)
                })
            })
            .collect();
        let mut rng = Rng::from_env();
        let mut made = 0;
        let mut workers = Vec::new();
        // Until some signal has come, too: when that is, is the scheduler's business.
        while made < budget(3000) || RIGHT.load(SeqCst) == 0 {
            made += 1;
            let spins = rng.below(200_000);
            workers.push(threadreg::spawn(move || {
                for n in 0..spins {
                    std::hint::black_box(n);
                }
            }));
            if workers.len() >= 8 {
                workers.swap_remove(rng.below(8) as usize).join().expect("no panic");
            }
        }
        for worker in workers {
            worker.join().expect("no panic");
        }
        STOP.store(true, SeqCst);
        let ends: Vec<_> = senders.into_iter().map(|s| s.join().expect("no panic")).collect();
        println!("{made} threads, (sent, gone) {ends:?}, right {}", RIGHT.load(SeqCst));
        assert_eq!(WRONG.load(SeqCst), 0, "signals that reached another thread");
    });
}

/// T7, T8. A pin keeps the thread's id from being given away.
#[test]
fn an_exit_waits_for_the_pin() {
    in_child("an_exit_waits_for_the_pin", MINUTE, || {
        // A pin that comes too late counts for nothing.
        let over = threadreg::spawn(|| ());
        let gone = over.thread();
        over.join().expect("no panic");
        let error = gone.pin().expect_err("it has ended");
        assert_eq!((error.thread, SignalError::from(error)), (gone, SignalError::Gone));
        let (go, wait) = mpsc::channel::<()>();
        let worker = threadreg::spawn(move || wait.recv().unwrap_or_default());
        let thread = worker.thread();
        until("it starts", || thread.tid().is_some());
        let pinned = thread.pin().expect("alive");
        let second = thread.pin().expect("alive");
        let tid = pinned.tid().expect("started");
        drop(go);
        until("it leaves the list", || !thread.is_alive());
        assert!(thread.pin().is_err(), "no new pin on a thread that leaves");
        drop(second);
        until("it sleeps in its exit", || testkit::is_asleep(tid));
        assert!(!worker.is_finished());
        assert_eq!(pinned.tid(), Some(tid));
        assert_eq!(pinned.signal(0), Ok(()), "the id is still its own");
        drop(pinned);
        worker.join().expect("no panic");
        assert_eq!(thread.signal(0), Err(SignalError::Gone));
    });
}

/// T8. Each cause has an error of its own, and a reference to a thread that is gone sends nothing.
#[test]
fn errors_of_signal_say_what_happened() {
    in_child("errors_of_signal_say_what_happened", MINUTE, || {
        let me = threadreg::attach().expect("attaches");
        let (thread, tid) = (me.thread(), sys::gettid());
        assert_eq!(thread.signal(0), Ok(()));
        let bad = thread.signal(1000).expect_err("no such signal");
        assert_eq!(bad, SignalError::Kernel { tid, sig: 1000, errno: sys::Errno::EINVAL });
        assert_eq!(
            bad.to_string(),
            format!("cannot send signal 1000 to thread {tid}: EINVAL (22)")
        );
        // With no room to queue, a real-time signal is refused.
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads one `rlimit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) }, 0);
        let sig = libc::SIGRTMIN() + 2;
        sys::sigprocmask(sys::MaskHow::Block, &sys::SigSet::of(sig));
        assert_eq!(thread.signal(sig), Err(SignalError::QueueFull { tid, sig }));
        drop(me);
        assert_eq!(thread.signal(0), Err(SignalError::Gone));
    });
}

/// T8. Ids come back soon in a namespace of few ids. A reference to the first thread with an id must
/// not reach the second.
#[test]
fn a_stale_reference_does_not_reach_the_next_thread_with_the_id() {
    const INNER: &str = "THREADREG_TEST_INNER";
    const NAME: &str = "a_stale_reference_does_not_reach_the_next_thread_with_the_id";
    in_child(NAME, 2 * MINUTE, || {
        if env::var(INNER).is_err() {
            // SAFETY: touches no memory; only children made from now on are concerned.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
                return testkit::skip("no right to make a pid namespace");
            }
            let inner = testkit::command(env::current_exe().expect("path"))
                .args([NAME, "--exact", "--nocapture"])
                .env(INNER, "1")
                .status()
                .expect("starts");
            assert!(inner.success(), "{inner}");
            return;
        }
        assert_eq!(sys::getpid(), 1, "first of its namespace");
        let outside = fs::read_to_string("/proc/sys/kernel/pid_max").expect("readable");
        if let Err(error) = fs::write("/proc/sys/kernel/pid_max", "310") {
            return testkit::skip(format!("the limit of ids is not the namespace's own: {error}"));
        }
        let mut owners: Vec<(i32, ThreadRef)> = Vec::new();
        let mut again = 0;
        for _ in 0..700 {
            let (go, wait) = mpsc::channel::<()>();
            let worker = threadreg::spawn(move || {
                wait.recv().unwrap_or_default();
                sys::gettid()
            });
            let thread = worker.thread();
            until("it starts", || thread.tid().is_some());
            let tid = thread.tid().expect("started");
            for (_, old) in owners.iter().filter(|(owner, _)| *owner == tid) {
                again += 1;
                assert_eq!(old.signal(libc::SIGKILL), Err(SignalError::Gone));
                assert_eq!((old.tid(), old.is_alive()), (None, false));
            }
            owners.push((tid, thread));
            drop(go);
            assert_eq!(worker.join().expect("no panic"), tid);
        }
        println!("{again} times an id came back (limit outside: {})", outside.trim());
        assert!(again > 0, "no id came back: nothing was tested");
    });
}

#[test]
fn a_cookie_tells_our_signals_from_others() {
    static OURS: AtomicUsize = AtomicUsize::new(0);
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static WITH_CODE: AtomicI32 = AtomicI32::new(0);
    static SECRET: OnceLock<Cookie> = OnceLock::new();
    fn look(delivery: &mut Delivery<'_>) -> Flow {
        let ours = SECRET.get().is_some_and(|secret| secret.came_with(delivery));
        let count = if ours { &OURS } else { &OTHERS };
        count.fetch_add(1, SeqCst);
        if ours {
            WITH_CODE.store(delivery.code(), SeqCst);
        }
        Flow::Resume
    }
    in_child("a_cookie_tells_our_signals_from_others", MINUTE, || {
        let secret = *SECRET.get_or_init(|| Cookie::random().expect("random numbers"));
        assert_ne!(secret, Cookie::random().expect("random numbers"));
        assert!(!format!("{secret:?}").contains(&secret.value().to_string()));
        // SAFETY: the handler touches atomics only.
        unsafe { install(libc::SIGURG, look, Options::new()) }.expect("installs");
        let me = threadreg::attach().expect("attaches");
        let me = me.thread();
        let counts = || (OURS.load(SeqCst), OTHERS.load(SeqCst));
        me.signal_with(libc::SIGURG, secret).expect("sent");
        assert_eq!(counts(), (1, 0));
        let (pid, tid) = (sys::getpid(), sys::gettid());
        me.signal(libc::SIGURG).expect("sent");
        me.signal_with(libc::SIGURG, Cookie::new(!secret.value())).expect("sent");
        assert_eq!(counts(), (1, 2));
        // To the process: any thread may take it.
        sys::kill(pid, libc::SIGURG).expect("sent");
        until("it comes", || counts() == (1, 3));
        // The right number in a signal that was not sent with a cookie.
        sys::tgsigqueueinfo(pid, tid, libc::SIGURG, CODE, secret.value()).expect("sent");
        assert_eq!(counts(), (1, 4));
        // Another process that knows everything, and does not lie about itself.
        let status = forked(|| {
            let code = WITH_CODE.load(SeqCst);
            let sent = sys::tgsigqueueinfo(pid, tid, libc::SIGURG, code, secret.value());
            sent.expect("sent to its parent");
        });
        assert_eq!(status, 0, "the child could not send");
        until("it comes", || counts() == (1, 5));
    });
}

#[test]
fn a_full_queue_is_an_error_or_is_waited_for() {
    in_child("a_full_queue_is_an_error_or_is_waited_for", MINUTE, || {
        let signal = libc::SIGRTMIN() + 2;
        // SAFETY: the handler does nothing.
        unsafe { install(signal, |_| Flow::Resume, Options::new()) }.expect("installs");
        let user = testkit::lonely_user();
        // SAFETY: touches no memory.
        if unsafe { libc::setresuid(user, user, user) } != 0 {
            return testkit::skip("only the superuser can take a user that has no other process");
        }
        let limit = libc::rlimit { rlim_cur: 3, rlim_max: 3 };
        // SAFETY: reads one `rlimit`.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit) }, 0);
        let (open, wait) = mpsc::channel::<()>();
        let deaf = Builder::new().signal_mask(SigSet::of(signal)).spawn(move || {
            wait.recv().unwrap_or_default();
            sys::sigprocmask(MaskHow::Unblock, &SigSet::of(signal));
        });
        let deaf = deaf.expect("spawns");
        let thread = deaf.thread();
        until("it starts", || thread.tid().is_some());
        let cookie = Cookie::new(1);
        let mut sent = 0;
        let error = loop {
            match thread.signal_with(signal, cookie) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent <= 3, "more than the limit");
        };
        let tid = thread.tid().expect("alive");
        assert_eq!(error, SignalError::QueueFull { tid, sig: signal });
        let (begin, time) = (Instant::now(), Duration::from_millis(5));
        assert_eq!(thread.signal_within(signal, cookie, time), Err(error));
        assert!(begin.elapsed() >= time, "it was waited for");

        let sender = thread::spawn(move || thread.signal_within(signal, cookie, MINUTE));
        drop(open);
        // There is room as soon as the thread hears, or it is gone first.
        let result = sender.join().expect("no panic");
        assert!(matches!(result, Ok(()) | Err(SignalError::Gone)), "{result:?}");
        deaf.join().expect("no panic");
    });
}
