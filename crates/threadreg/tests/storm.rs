//! Thousands of threads, with signals, walks and freezes at once; and nothing is left of them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use sigctx::altstack;
use sigctx::handler::{Delivery, Flow, Options, install};
use sigctx::sys;
use testkit::{budget, in_child};
use threadreg::procfs::TaskDir;
use threadreg::{
    Builder, Cookie, JoinHandle, SignalError, ThreadRef, current, freeze_creation, threads,
};

const MINUTE: Duration = Duration::from_mins(1);
const CREATORS: u64 = 4;
/// Threads that a creator has at a time.
const ALIVE: usize = 4;

static RIGHT: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
/// The highest index of a record.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Tells one thread from another, also from an earlier thread of the same record.
fn mark(thread: ThreadRef) -> Cookie {
    Cookie::new(thread.generation() as usize * 256 + thread.index() % 256)
}

fn check(delivery: &mut Delivery<'_>) -> Flow {
    match current() {
        Some(me) if mark(me).came_with(delivery) => RIGHT.fetch_add(1, SeqCst),
        _ => WRONG.fetch_add(1, SeqCst),
    };
    Flow::Resume
}

/// Runs `step` until the storm is over; returns how often.
fn until_over(mut step: impl FnMut()) -> usize {
    let mut count = 0;
    while !STOP.load(SeqCst) {
        step();
        count += 1;
    }
    count
}

fn send_to_all() {
    for thread in threads() {
        match thread.signal_with(libc::SIGUSR2, mark(thread)) {
            Ok(()) | Err(SignalError::Gone | SignalError::NotStarted) => {}
            // The kernel has no memory for its value, and sends it without.
            Err(error) => panic!("{error}"),
        }
    }
}

fn walk() {
    let mut seen = Vec::new();
    for thread in threads() {
        // The name of this thread or none: never a later one's, never half of it.
        let name = thread.name();
        assert!(matches!(name.as_str(), "" | "storm"), "{name}");
        seen.push(thread.index());
    }
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "a record was shown twice");
}

fn freeze() {
    let frozen = freeze_creation();
    frozen.wait_all_started(20 * MINUTE).expect("every clone comes to its thread");
    assert!(threads().all(|thread| thread.tid().is_some() || !thread.is_alive()));
    drop(frozen);
    // Pace: creators are to have their turn.
    thread::sleep(Duration::from_micros(200));
}

/// Makes threads and ends them; returns how many.
fn create(count: u64) -> u64 {
    let mut alive: Vec<JoinHandle<()>> = Vec::new();
    for _ in 0..count {
        let made = Builder::new().name("storm").stack_size(64 << 10).spawn(|| {
            let me = current().expect("registered");
            assert_eq!(me.tid(), Some(sys::gettid()));
            HIGHEST.fetch_max(me.index(), SeqCst);
        });
        if alive.len() == ALIVE {
            alive.remove(0).join().expect("no panic");
        }
        alive.push(made.expect("spawns"));
    }
    for thread in alive {
        thread.join().expect("no panic");
    }
    count
}

fn storm(each: u64) -> u64 {
    let creators = [(); CREATORS as usize].map(|()| thread::spawn(move || create(each)));
    creators.into_iter().map(|creator| creator.join().expect("no panic")).sum()
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("/proc").lines().count()
}

/// T8, T10. With `STRESS=5000` it makes a million threads.
#[test]
fn stress_a_storm_of_threads_leaves_nothing() {
    in_child("stress_a_storm_of_threads_leaves_nothing", 30 * MINUTE, || {
        // SAFETY: the handler touches atomics and async-signal-safe functions only.
        unsafe { install(libc::SIGUSR2, check, Options::new()) }.expect("installs");
        let dir = TaskDir::open().expect("/proc");
        let others = dir.count().expect("counts");
        // What libc keeps of threads that ended is there after a few.
        storm(100);
        let before = mappings();

        let begin = Instant::now();
        let helpers =
            [send_to_all, walk, freeze].map(|step| thread::spawn(move || until_over(step)));
        let mut made = 0;
        // Until some signal has come, too: when that is, is the scheduler's business.
        while made == 0 || RIGHT.load(SeqCst) == 0 {
            made += storm(budget(20_000) / CREATORS);
        }
        STOP.store(true, SeqCst);
        let [sends, walks, freezes] = helpers.map(|helper| helper.join().expect("no panic"));
        while dir.count() != Ok(others) {
            thread::yield_now();
        }
        let (right, highest, after) = (RIGHT.load(SeqCst), HIGHEST.load(SeqCst), mappings());
        println!(
            "{made} threads in {:.1} s, {right} signals handled; rounds of sending {sends}, walks \
             {walks}, freezes {freezes}; records {}, alternate stacks {}, mappings {before}, {after}",
            begin.elapsed().as_secs_f64(),
            highest + 1,
            altstack::mapped()
        );
        assert_eq!(WRONG.load(SeqCst), 0, "signals that reached another thread");
        assert_eq!(threads().count(), 0);
        // A creator makes the next before it waits for the oldest.
        assert!(highest < CREATORS as usize * (ALIVE + 1), "records are used again: {highest}");
        assert!(altstack::mapped() <= 16, "what is kept to be used again");
        assert!(after < before + 100, "stacks are given back");
    });
}
