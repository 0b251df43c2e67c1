//! Who runs next: two queues, and the fibers that sleep.
//!
//! ```text
//!            ┌───────── slice over ─────────┐
//!            ▼                              │
//!   expired: one queue for all ──────▶ a worker ◀── woken: a deque each, others steal
//!                                           │                     ▲
//!                                           └─ sleeps ─▶ asleep ──┘ due
//! ```
//!
//! A fiber that has slept goes before those that have had a slice, since it is likely to sleep again soon. One that
//! uses its slice up is behind them from then on. After many woken ones an expired one goes first, so that they cannot
//! starve. Expired ones have one queue: with one for each worker, three loops on one would have less each than two on
//! the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Deque};
use hdrhistogram::Histogram;
use preempt::EnterError;

use crate::fiber::{Fiber, Left};

/// After so many woken fibers in a row an expired one goes first.
const EXPIRED_AFTER: usize = 256;
/// For how long a worker without work sleeps before it looks again.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// What the workers share.
#[derive(Debug)]
pub(crate) struct Scheduler {
    expired: Injector<Fiber>,
    woken: Vec<Stealer<Fiber>>,
    asleep: Mutex<BinaryHeap<Reverse<Asleep>>>,
    is_work: Condvar,
    alive: AtomicUsize,
}

/// A fiber that sleeps, the first one due the least.
#[derive(Debug)]
struct Asleep {
    until: Instant,
    fiber: Fiber,
}

impl PartialEq for Asleep {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Asleep {}

impl PartialOrd for Asleep {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Asleep {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Asleep {
    fn key(&self) -> (Instant, usize) {
        (self.until, self.fiber.number)
    }
}

/// What a worker has seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// How many slices of each fiber have ended, by its number.
    pub(crate) slices: BTreeMap<usize, usize>,
    pub(crate) stolen: usize,
    /// From when a fiber was due until it ran, in microseconds.
    pub(crate) waits: Histogram<u32>,
    /// The most slices that began and ended, or went on, while a fiber was due.
    pub(crate) most_slices: usize,
}

impl Scheduler {
    /// With the deques of its workers.
    pub(crate) fn new(fibers: Vec<Fiber>, workers: usize) -> (Self, Vec<Deque<Fiber>>) {
        let deques: Vec<_> = (0..workers).map(|_| Deque::new_fifo()).collect();
        let scheduler = Self {
            expired: Injector::new(),
            woken: deques.iter().map(Deque::stealer).collect(),
            asleep: Mutex::default(),
            is_work: Condvar::new(),
            alive: AtomicUsize::new(fibers.len()),
        };
        for fiber in fibers {
            scheduler.expired.push(fiber);
        }
        (scheduler, deques)
    }

    /// How many fibers have not come to their end.
    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Relaxed)
    }

    /// Runs fibers on the calling thread until none is left.
    pub(crate) fn work(&self, deque: &Deque<Fiber>) -> Result<Seen, EnterError> {
        let mut worker = Worker {
            scheduler: self,
            deque,
            slices: [None; SLICES],
            in_a_row: 0,
            seen: Seen::new(),
        };
        loop {
            worker.wake();
            match worker.next() {
                Some(fiber) => worker.run(fiber)?,
                None if self.alive() == 0 => break,
                None => self.rest(),
            }
        }
        Ok(worker.seen)
    }

    /// Until a fiber is due, or another worker has one to give.
    fn rest(&self) {
        let asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let until_next = asleep.peek().map(|Reverse(first)| first.until - now);
        let rest = until_next.map_or(LONGEST_REST, |next| next.min(LONGEST_REST));
        drop(self.is_work.wait_timeout(asleep, rest));
    }
}

/// So many of its last slices a worker remembers: more than a fiber may wait for.
const SLICES: usize = 4;

struct Worker<'s> {
    scheduler: &'s Scheduler,
    deque: &'s Deque<Fiber>,
    /// When the last fibers that were then preempted began, the last one first.
    slices: [Option<Instant>; SLICES],
    /// How many woken fibers have run since the last expired one.
    in_a_row: usize,
    seen: Seen,
}

impl Worker<'_> {
    /// Takes those who have slept for long enough.
    fn wake(&self) {
        let mut asleep = self.scheduler.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut woken = 0;
        while asleep.peek().is_some_and(|Reverse(first)| first.until <= now) {
            if let Some(Reverse(Asleep { until, mut fiber })) = asleep.pop() {
                fiber.due = Some(until);
                self.deque.push(fiber);
                woken += 1;
            }
        }
        if woken > 1 {
            self.scheduler.is_work.notify_all();
        }
    }

    fn next(&mut self) -> Option<Fiber> {
        self.in_a_row += 1;
        let woken = if self.in_a_row <= EXPIRED_AFTER { self.woken() } else { None };
        woken.or_else(|| {
            self.in_a_row = 0;
            until_done(|| self.scheduler.expired.steal()).or_else(|| self.woken())
        })
    }

    fn woken(&mut self) -> Option<Fiber> {
        if let Some(fiber) = self.deque.pop() {
            return Some(fiber);
        }
        for other in &self.scheduler.woken {
            if let Some(fiber) = until_done(|| other.steal_batch_and_pop(self.deque)) {
                self.seen.stolen += 1;
                return Some(fiber);
            }
        }
        None
    }

    fn run(&mut self, mut fiber: Fiber) -> Result<(), EnterError> {
        let begun = Instant::now();
        if let Some(due) = fiber.due.take() {
            self.note_wait(due, begun);
        }
        match fiber.run()? {
            Left::Ended => _ = self.scheduler.alive.fetch_sub(1, Relaxed),
            Left::Preempted => {
                *self.seen.slices.entry(fiber.number).or_default() += 1;
                self.slices.rotate_right(1);
                self.slices[0] = Some(begun);
                self.scheduler.expired.push(fiber);
            }
            Left::Asleep { until } => {
                let mut asleep =
                    self.scheduler.asleep.lock().unwrap_or_else(PoisonError::into_inner);
                asleep.push(Reverse(Asleep { until, fiber }));
            }
        }
        Ok(())
    }

    fn note_wait(&mut self, due: Instant, now: Instant) {
        let micros = now.saturating_duration_since(due).as_micros() as u64;
        self.seen.waits.saturating_record(micros);
        // Those that began later, and the one before them.
        let later = self.slices.iter().flatten().filter(|&&begun| begun > due).count();
        self.seen.most_slices = self.seen.most_slices.max(later + 1);
    }
}

impl Seen {
    fn new() -> Self {
        let waits = Histogram::new_with_bounds(1, 60_000_000, 2).expect("in bounds");
        Self { slices: BTreeMap::new(), stolen: 0, waits, most_slices: 0 }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (&number, slices) in &other.slices {
            *self.slices.entry(number).or_default() += slices;
        }
        self.stolen += other.stolen;
        self.waits += &other.waits;
        self.most_slices = self.most_slices.max(other.most_slices);
    }
}

fn until_done(mut steal: impl FnMut() -> Steal<Fiber>) -> Option<Fiber> {
    loop {
        match steal() {
            Steal::Success(fiber) => return Some(fiber),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
