//! Stops and for-eaches by the thousand, against mutators that come, go, block and poll at random.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{Mutator, World};
use testkit::{Rng, budget, in_child};

const MUTATORS: usize = 8;
const LATE: Duration = Duration::from_mins(3);

/// Memory of a mutator, protected by the world alone. The counter is plain, so
/// that the compiler and the processor may reorder and tear it as they may a heap.
#[derive(Default)]
struct Heap {
    counter: UnsafeCell<u64>,
    /// Says that the thread is between two polls.
    working: AtomicBool,
    /// How often it worked, for threads that wait until it has.
    moved: AtomicU32,
}

// SAFETY: the counter is touched by its mutator while that runs and by requesters of stops while it does
// not: what this file tests.
unsafe impl Sync for Heap {}

impl Heap {
    /// User code between two polls.
    fn work(&self, steps: u64) {
        self.working.store(true, Ordering::Relaxed);
        for _ in 0..steps {
            // SAFETY: this mutator runs.
            let counter = unsafe { &mut *self.counter.get() };
            *counter = core::hint::black_box(*counter) + 1;
        }
        self.working.store(false, Ordering::Relaxed);
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        // SAFETY: the world is stopped, or the mutator gone.
        unsafe { *self.counter.get() }
    }
}

/// Lets the others work: one request in eight comes on the heels of the last, the rest when some
/// mutator has worked a few times since.
fn let_run(heaps: &[Heap], rng: &mut Rng) {
    match rng.below(8) {
        0 => return,
        // Waking up takes the processor from a mutator at a place of the scheduler's choice.
        1..4 => thread::sleep(Duration::from_micros(20)),
        _ => {}
    }
    let moved = || heaps.iter().map(|h| h.moved.load(Ordering::Relaxed)).fold(0, u32::wrapping_add);
    let (before, enough) = (moved(), rng.below(50) as u32);
    let has_run = || moved().wrapping_sub(before) > enough;
    // Looks on from its own processor for a while: a thread that yields to a mutator comes back when that
    // one sleeps, and would hardly ever find one running.
    while !(0..500).any(|_| has_run()) {
        thread::yield_now();
    }
}

/// One mutator's life: between attach and detach it works, polls and blocks.
fn live(world: &World, heap: &Heap, done: &Flag, rng: &mut Rng, attached: &AtomicU32) -> u64 {
    let mut steps = 0;
    let mut mutator = world.attach().expect("attached once");
    attached.fetch_add(1, Ordering::Relaxed);
    for _ in 0..rng.below(10_000) {
        if done.is_up() {
            break;
        }
        let work = rng.below(50);
        heap.work(work);
        steps += work;
        step(&mut mutator, rng);
    }
    // Still running here: a stop that does not count this mutator may not end.
    attached.fetch_sub(1, Ordering::Relaxed);
    mutator.detach();
    steps
}

fn step(mutator: &mut Mutator, rng: &mut Rng) {
    match rng.below(400) {
        0 => mutator.blocking(|| thread::sleep(Duration::from_micros(20))),
        1..20 => mutator.blocking(thread::yield_now),
        20..60 => mutator.blocking(|| ()),
        _ => mutator.poll(),
    }
}

fn stops(world: &World, count: u64, seed: &mut Rng) {
    let heaps: [Heap; MUTATORS] = Default::default();
    let (done, attached) = (Flag::default(), AtomicU32::new(0));
    let (mut most, mut ran, mut waits, mut time) = (0, 0, 0, Duration::ZERO);
    let rounds = thread::scope(|scope| {
        let workers: Vec<_> = heaps
            .iter()
            .map(|heap| {
                let (done, attached, mut rng) = (&done, &attached, Rng::new(seed.next_u64()));
                scope.spawn(move || {
                    let mut steps = 0;
                    while !done.is_up() {
                        steps += live(world, heap, done, &mut rng, attached);
                    }
                    steps
                })
            })
            .collect();
        let mut round = 0;
        // Goes on until a stop has found a mutator running, which on one processor may take more rounds.
        while round < count || ran == 0 {
            let stopped = world.stop_from_outside("stress").expect("not nested");
            let before: [u64; MUTATORS] = core::array::from_fn(|i| heaps[i].read());
            // Between attach's end and detach's start: the stop must know of these.
            let attached = attached.load(Ordering::Relaxed) as usize;
            let known = stopped.mutators().count();
            assert!(known <= MUTATORS, "round {round}: {known} mutators of {MUTATORS}");
            assert!(attached <= known, "round {round}: {attached} run, {known} are known");
            let stats = *stopped.stats();
            assert!(stats.mutators <= MUTATORS, "round {round}: counted {}", stats.mutators);
            if round % 64 == 0 {
                thread::yield_now();
            }
            for (heap, before) in heaps.iter().zip(before) {
                assert!(!heap.working.load(Ordering::Relaxed), "round {round}: one is at work");
                assert_eq!(heap.read(), before, "round {round}: one ran in a stop");
            }
            most = stats.mutators.max(most);
            ran += u64::from(stats.running != 0);
            waits += u64::from(stopped.last_to_stop().is_some());
            time += stats.time_to_stop;
            stopped.resume();
            let_run(&heaps, seed);
            round += 1;
        }
        done.raise();
        for (worker, heap) in workers.into_iter().zip(&heaps) {
            assert_eq!(worker.join().expect("no panic"), heap.read(), "no step is lost");
        }
        round
    });
    let mean = time / u32::try_from(rounds).expect("a count of stops");
    let fences = world.fences();
    println!(
        "{rounds} stops ({fences:?}), up to {most} mutators, {ran} found one running, {waits} waited; mean {mean:?}"
    );
}

#[test]
fn stress_100_000_stops() {
    in_child("stress::stress_100_000_stops", LATE, || {
        let mut seed = Rng::from_env();
        stops(&World::new(), budget(100_000), &mut seed);
    });
}

#[test]
fn stress_stops_with_full_fences() {
    in_child("stress::stress_stops_with_full_fences", LATE, || {
        let mut seed = Rng::from_env();
        stops(&World::fully_fenced(), budget(20_000), &mut seed);
    });
}

/// Every mutator that is attached throughout is visited once a round; stops go on beside.
#[test]
fn stress_for_each_is_exactly_once_beside_stops() {
    in_child("stress::stress_for_each_is_exactly_once_beside_stops", LATE, || {
        let mut seed = Rng::from_env();
        let world = &World::new();
        let rounds = budget(10_000);
        let heaps: [Heap; MUTATORS] = Default::default();
        let (done, stops, in_stop) = (&Flag::default(), &AtomicUsize::new(0), &Switch::default());
        thread::scope(|scope| {
            // Half stay, the others come and go.
            for (at, heap) in heaps.iter().enumerate() {
                let mut rng = Rng::new(seed.next_u64());
                let work = move |m: &mut Mutator| {
                    while !done.is_up() {
                        heap.work(rng.below(50));
                        step(m, &mut rng);
                        if at >= MUTATORS / 2 && rng.below(100) == 0 {
                            return;
                        }
                    }
                };
                if at < MUTATORS / 2 {
                    mutator(scope, world, &format!("stays {at}"), work);
                } else {
                    scope.spawn(move || {
                        let mut work = work;
                        while !done.is_up() {
                            work(&mut world.attach().expect("attached once"));
                        }
                    });
                }
            }
            scope.spawn(move || {
                while !done.is_up() {
                    let stopped = world.stop_from_outside("beside").expect("not nested");
                    in_stop.set(true);
                    thread::yield_now();
                    in_stop.set(false);
                    stopped.resume();
                    stops.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(50));
                }
            });
            let mut own = world.attach().expect("attached once");
            for round in 0..rounds {
                let visits: [AtomicU32; 16] = Default::default();
                own.for_each_processor(|p| {
                    assert!(!in_stop.get(), "round {round}: a closure runs in a stop");
                    visits[p.index()].fetch_add(1, Ordering::Relaxed);
                })
                .expect("no deadline");
                let visits = visits.map(AtomicU32::into_inner);
                // Mutators that stay attached first, one after the other.
                assert_eq!(visits[..MUTATORS / 2], [1; MUTATORS / 2], "round {round}");
                // A place can be given up and taken again while the round asks around; the new
                // thread is then visited for itself.
                assert!(visits.iter().all(|&n| n <= 2), "round {round}: {visits:?}");
                own.blocking(|| let_run(&heaps, &mut seed));
            }
            done.raise();
            own.detach();
        });
        println!("{rounds} for-eaches beside {} stops", stops.load(Ordering::Relaxed));
    });
}

/// A flag that goes down again.
#[derive(Default)]
struct Switch(AtomicBool);

impl Switch {
    fn set(&self, up: bool) {
        self.0.store(up, Ordering::SeqCst);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
