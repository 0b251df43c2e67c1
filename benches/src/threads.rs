//! The threads that are measured, how often, and how long.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use benches::Series;
use sigctx::sys::futex_wait;

/// What a probe is asked for.
#[derive(Debug)]
pub(crate) struct Limits {
    /// How many threads there are beside the one that measures.
    pub(crate) threads: usize,
    /// How many samples of each side.
    pub(crate) samples: usize,
    /// When to end with fewer.
    pub(crate) budget: Duration,
    /// What else a probe wants to know.
    pub(crate) word: String,
}

/// The least number of samples, whatever time they take.
const FEWEST: usize = 3;

impl Limits {
    /// The number of threads, to divide by.
    pub(crate) fn count(&self) -> f64 {
        f64::from(u32::try_from(self.threads).expect("no system has so many threads"))
    }

    /// Calls `one` until there are enough samples or the time is over, after `warm` calls that do not
    /// count. It is told whether it counts.
    pub(crate) fn repeat(&self, warm: usize, mut one: impl FnMut(bool)) {
        let start = Instant::now();
        let over = || start.elapsed() > self.budget;
        for done in 0..warm {
            if done > 0 && over() {
                break;
            }
            one(false);
        }
        for done in 0..self.samples {
            if done >= FEWEST && over() {
                break;
            }
            one(true);
        }
    }

    /// Measures sides in turns. Each takes the number of its repetitions; a sample is the time of one.
    pub(crate) fn sides(
        &self,
        batch: u32,
        sides: &mut [(&'static str, &mut dyn FnMut(u32))],
    ) -> Vec<Series> {
        let mut series: Vec<_> = sides.iter().map(|(name, _)| Series::new(name)).collect();
        self.repeat(1, |counts| {
            for ((_, side), series) in sides.iter_mut().zip(&mut series) {
                let begin = Instant::now();
                side(batch);
                let time = begin.elapsed().as_secs_f64() * 1e9 / f64::from(batch);
                if counts {
                    series.add_nanoseconds(time);
                }
            }
        });
        series
    }
}

/// How many threads have started.
static READY: AtomicUsize = AtomicUsize::new(0);

/// Never woken.
static FOREVER: AtomicU32 = AtomicU32::new(0);

/// A thread says that it is at work.
pub(crate) fn ready() {
    READY.fetch_add(1, Ordering::SeqCst);
}

/// Waits until `count` threads have said so, and until those that are about to sleep do.
pub(crate) fn wait_until_ready(count: usize) {
    while READY.load(Ordering::SeqCst) < count {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
}

/// Waits to the end of the process.
pub(crate) fn wait_forever() -> ! {
    loop {
        // Interrupted by a signal: waits again.
        _ = futex_wait(&FOREVER, 0, None);
    }
}

/// Between two samples: the threads are back at what they do.
pub(crate) fn nap() {
    thread::sleep(Duration::from_micros(500));
}

/// Starts a thread of std with a small stack.
///
/// # Panics
///
/// The system has no thread left.
pub(crate) fn start(body: impl FnOnce() + Send + 'static) {
    let spawned = thread::Builder::new().stack_size(128 << 10).spawn(body);
    spawned.expect("the limits allow so many threads");
}

/// Starts a registered thread.
///
/// # Panics
///
/// The system has no thread left.
pub(crate) fn start_registered(body: impl FnOnce() + Send + 'static) {
    let spawned = threadreg::Builder::new().stack_size(256 << 10).spawn(body);
    // Never joined: it ends with the process.
    drop(spawned.expect("the limits allow so many threads"));
}
