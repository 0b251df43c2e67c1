//! The least that could do, without any of the crates: a flag, a signal, a fence, a walk over words.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use benches::Series;
use sigctx::sys::{Membarrier, futex_wait, futex_wake, getpid, gettid, membarrier, tgkill};

use crate::threads::{Limits, nap, ready, start, wait_forever, wait_until_ready};

/// A signal that nothing else uses.
const SIGNAL: i32 = 40;

/// A word on a line of its own: its neighbours' writers do not slow it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

/// One thread's words.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    asked: AtomicU32,
    state: AtomicU32,
}

static ASKED: Line<AtomicU32> = Line(AtomicU32::new(0));
static ANSWERED: Line<AtomicU32> = Line(AtomicU32::new(0));
static TARGET: AtomicI32 = AtomicI32::new(0);

/// Waits for the answer, spinning: the other thread has a processor of its own.
fn await_answer() {
    while ANSWERED.0.load(Ordering::Acquire) == 0 {
        std::hint::spin_loop();
    }
}

/// Some work between two looks.
fn work(x: u64) -> u64 {
    (0..5).fold(x, |x, _| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
}

/// A flag is raised, and a thread that looks at it every few nanoseconds answers.
pub(crate) fn flag(limits: &Limits) -> Vec<Series> {
    start(|| {
        ready();
        let mut x = 1;
        loop {
            x = std::hint::black_box(work(x));
            if ASKED.0.load(Ordering::Relaxed) != 0 {
                ASKED.0.store(0, Ordering::Relaxed);
                ANSWERED.0.store(1, Ordering::Release);
            }
        }
    });
    wait_until_ready(1);
    round_trips(limits, "flag", || ASKED.0.store(1, Ordering::Release))
}

/// A signal is sent to a thread that spins, and its handler answers.
pub(crate) fn signal(limits: &Limits) -> Vec<Series> {
    extern "C" fn answer(_: i32) {
        ANSWERED.0.store(1, Ordering::Release);
    }
    let handler: extern "C" fn(i32) = answer;
    // SAFETY: all zero is an empty action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    #[expect(clippy::disallowed_methods, reason = "the least: the kernel's delivery alone")]
    // SAFETY: the handler writes an atomic.
    let installed = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    assert_eq!(installed, 0, "the signal exists");
    start(|| {
        TARGET.store(gettid(), Ordering::SeqCst);
        ready();
        loop {
            std::hint::spin_loop();
        }
    });
    wait_until_ready(1);
    let (pid, tid) = (getpid(), TARGET.load(Ordering::SeqCst));
    round_trips(limits, "tgkill", || tgkill(pid, tid, SIGNAL).expect("the thread is there"))
}

fn round_trips(limits: &Limits, name: &'static str, ask: impl Fn()) -> Vec<Series> {
    let mut series = Series::new(name);
    limits.repeat(5, |counts| {
        ANSWERED.0.store(0, Ordering::Relaxed);
        let begin = Instant::now();
        ask();
        await_answer();
        let time = begin.elapsed();
        if counts {
            series.add(time);
        }
        nap();
    });
    vec![series]
}

/// The fence on all processors, while that many threads run.
pub(crate) fn fence(limits: &Limits) -> Vec<Series> {
    for _ in 0..limits.threads {
        start(|| {
            ready();
            loop {
                std::hint::spin_loop();
            }
        });
    }
    wait_until_ready(limits.threads);
    let mut series = Series::new("membarrier");
    if membarrier(Membarrier::REGISTER_PRIVATE_EXPEDITED).is_err() {
        return vec![];
    }
    limits.repeat(5, |counts| {
        let begin = Instant::now();
        membarrier(Membarrier::PRIVATE_EXPEDITED).expect("is registered");
        let time = begin.elapsed();
        if counts {
            series.add(time);
        }
        nap();
    });
    vec![series]
}

/// The walk over slots: a flag in each, a fence, a look at each.
fn arm(slots: &[Slot]) -> usize {
    for slot in slots {
        slot.asked.store(1, Ordering::Relaxed);
    }
    std::sync::atomic::fence(Ordering::SeqCst);
    slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == 1).count()
}

/// A walk over the slots of threads that wait.
pub(crate) fn stop_safe(limits: &Limits) -> Vec<Series> {
    let slots: &'static [Slot] = slots(limits.threads);
    for slot in slots {
        start(|| {
            slot.state.store(1, Ordering::SeqCst);
            ready();
            wait_forever()
        });
    }
    wait_until_ready(limits.threads);
    let mut series = Series::new("scan");
    limits.repeat(3, |counts| {
        let begin = Instant::now();
        let safe = arm(slots);
        let time = begin.elapsed();
        assert_eq!(safe, limits.threads);
        for slot in slots {
            slot.asked.store(0, Ordering::Relaxed);
        }
        if counts {
            series.add(time);
        }
        nap();
    });
    vec![series]
}

/// # Panics
///
/// There is no memory left.
fn slots(count: usize) -> &'static [Slot] {
    Box::leak((0..count).map(|_| Slot::default()).collect())
}

/// How many have not answered, and in which stop they are.
static PENDING: Line<AtomicUsize> = Line(AtomicUsize::new(0));
static STOP: Line<AtomicU32> = Line(AtomicU32::new(0));
static CAME: Line<AtomicU32> = Line(AtomicU32::new(0));

/// A stop of threads that look at a flag every few nanoseconds, and wait in the kernel while stopped.
pub(crate) fn stop_poll(limits: &Limits) -> Vec<Series> {
    let slots = slots(limits.threads);
    for slot in slots {
        start(|| {
            ready();
            let mut x = 1;
            loop {
                x = std::hint::black_box(work(x));
                if slot.asked.load(Ordering::Relaxed) != 0 {
                    stand_still(slot);
                }
            }
        });
    }
    wait_until_ready(limits.threads);
    let mut series = Series::new("flag");
    limits.repeat(3, |counts| {
        PENDING.0.store(limits.threads, Ordering::SeqCst);
        CAME.0.store(0, Ordering::SeqCst);
        let begin = Instant::now();
        arm(slots);
        await_all();
        let time = begin.elapsed();
        STOP.0.fetch_add(1, Ordering::SeqCst);
        futex_wake(&STOP.0, u32::MAX >> 1);
        if counts {
            series.add(time);
        }
        nap();
    });
    vec![series]
}

fn stand_still(slot: &Slot) {
    let stop = STOP.0.load(Ordering::SeqCst);
    slot.asked.store(0, Ordering::Relaxed);
    if PENDING.0.fetch_sub(1, Ordering::SeqCst) == 1 {
        CAME.0.store(1, Ordering::SeqCst);
        futex_wake(&CAME.0, 1);
    }
    while STOP.0.load(Ordering::Acquire) == stop {
        // Woken, or the word has changed.
        _ = futex_wait(&STOP.0, stop, None);
    }
}

/// Spins for a while, then sleeps.
fn await_all() {
    for _ in 0..1500 {
        if PENDING.0.load(Ordering::Acquire) == 0 {
            return;
        }
        std::hint::spin_loop();
    }
    while PENDING.0.load(Ordering::Acquire) != 0 {
        // Woken, or the word has changed.
        _ = futex_wait(&CAME.0, 0, None);
    }
}
