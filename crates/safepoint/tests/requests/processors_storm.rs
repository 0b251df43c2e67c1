//! Processors amid for-eaches, stops, passes, system calls and retakes, all at once.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::common::Flag;
use safepoint::{
    Chaos, PassedProcessor, ProcessorGuard, ProcessorState, Processors, World, WorldOptions,
};
use testkit::{Rng, budget, in_child};

const LATE: Duration = Duration::from_mins(2);
const PROCESSORS: usize = 3;
const THREADS: u64 = 5;

/// What a processor has. The halves agree whenever another thread looks.
#[derive(Default)]
struct Halves {
    counts: [u64; 2],
    visits: AtomicU64,
}

/// How often each thing came about.
#[derive(Debug, Default)]
struct Counts {
    for_eaches: AtomicU64,
    retaken: AtomicU64,
    kept: AtomicU64,
    passed: AtomicU64,
    timed_out: AtomicU64,
}

impl Counts {
    fn all(&self) -> [u64; 5] {
        let Self { for_eaches, retaken, kept, passed, timed_out } = self;
        [for_eaches, retaken, kept, passed, timed_out].map(|count| count.load(Ordering::Relaxed))
    }
}

struct Storm<'a> {
    world: &'a World,
    processors: Processors<Halves>,
    counts: Counts,
    on_their_way: (SyncSender<PassedProcessor<Halves>>, Mutex<Receiver<PassedProcessor<Halves>>>),
}

fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

impl Storm<'_> {
    /// What one thread does with its processor, and whether it has one afterwards.
    fn step(
        &self,
        mut own: ProcessorGuard<Halves>,
        rng: &mut Rng,
    ) -> Option<ProcessorGuard<Halves>> {
        let [first, second] = &mut own.data_mut().counts;
        assert_eq!(first, second, "another thread was in the middle");
        *first += 1;
        if rng.below(4) == 0 {
            thread::yield_now();
        }
        *second += 1;
        match rng.below(8) {
            0 | 1 => own.poll(),
            2 => own.blocking(thread::yield_now),
            3 => {
                let visited = own.for_each_processor(|p| {
                    let (_, halves) = self.processors.visited(p).expect("of the set");
                    let [first, second] = halves.counts;
                    assert_eq!(first, second, "visited in the middle");
                    count(&halves.visits);
                });
                assert_eq!(visited.unwrap(), PROCESSORS);
                count(&self.counts.for_eaches);
            }
            4 => {
                count(&self.counts.passed);
                // If there is no room, it is given back.
                let _full = self.on_their_way.0.try_send(own.pass());
                return None;
            }
            5 | 6 => return self.system_call(own, rng),
            _ => return None,
        }
        Some(own)
    }

    fn system_call(
        &self,
        own: ProcessorGuard<Halves>,
        rng: &mut Rng,
    ) -> Option<ProcessorGuard<Halves>> {
        let (id, yields, is_retaken) = (own.processor_id(), rng.below(4), rng.below(8) == 0);
        let patience = Duration::from_micros(rng.below(200));
        let ((), own) = own.system_call(Some(patience), || {
            for _ in 0..yields {
                thread::yield_now();
            }
            if is_retaken {
                self.retake(Duration::ZERO);
            }
        });
        match &own {
            Ok(own) if own.processor_id() == id => count(&self.counts.kept),
            Ok(_) => {}
            Err(_) => count(&self.counts.timed_out),
        }
        own.ok()
    }

    /// A processor for a thread that has none.
    fn acquire(&self, rng: &mut Rng) -> Option<ProcessorGuard<Halves>> {
        let passed = self.on_their_way.1.lock().unwrap().try_recv();
        if let Ok(passed) = passed {
            return Some(passed.attach().unwrap());
        }
        let acquired = self.processors.acquire(Some(Duration::from_micros(rng.below(200))));
        if acquired.is_err() {
            count(&self.counts.timed_out);
        }
        acquired.ok()
    }

    fn retake(&self, after: Duration) {
        let retaken = self.processors.retake(after) as u64;
        self.counts.retaken.fetch_add(retaken, Ordering::Relaxed);
    }

    /// What a thread without a processor does, over and over.
    fn retake_and_stop(&self, rng: &mut Rng) {
        self.retake(Duration::from_micros(rng.below(100)));
        thread::yield_now();
        if rng.below(4) != 0 {
            return;
        }
        let mut stopped = self.world.stop_from_outside("test").unwrap();
        let mut met = 0;
        for (_, Halves { counts: [first, second], .. }) in self.processors.iter_mut(&mut stopped) {
            assert_eq!(first, second, "stopped in the middle");
            (*first, *second) = (*first + 1, *second + 1);
            met += 1;
        }
        assert_eq!(met, PROCESSORS);
        stopped.resume();
    }

    fn rage(&self, start: u64, steps: u64) {
        let done = Flag::default();
        thread::scope(|scope| {
            let works = |at| {
                move || {
                    let mut rng = Rng::new(start + at);
                    let mut has = None;
                    for _ in 0..steps {
                        has = has.or_else(|| self.acquire(&mut rng));
                        has = has.and_then(|own| self.step(own, &mut rng));
                    }
                }
            };
            let workers: Vec<_> = (0..THREADS).map(|at| scope.spawn(works(at))).collect();
            scope.spawn(|| {
                let mut rng = Rng::new(start + THREADS);
                while !done.is_up() {
                    self.retake_and_stop(&mut rng);
                }
            });
            let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            done.raise();
            assert!(ended.iter().all(Result::is_ok), "a thread has panicked");
        });
    }
}

/// Each processor is visited once by each for-each, is had by one thread at a time, and none is lost.
fn storm(options: WorldOptions, steps: u64) {
    let world = World::with_options(options);
    let number = NonZero::new(PROCESSORS).unwrap();
    let processors = Processors::new(&world, number, |_| Halves::default()).unwrap();
    let (send, receive) = sync_channel(2);
    let on_their_way = (send, Mutex::new(receive));
    let storm = Storm { world: &world, processors, counts: Counts::default(), on_their_way };
    let start = Rng::from_env().below(1 << 30);
    storm.rage(start, steps);
    println!("{:?}", storm.counts);
    let Storm { processors, counts, on_their_way, .. } = storm;
    drop(on_their_way);
    let idle =
        processors.states().iter().filter(|(_, state)| *state == ProcessorState::Idle).count();
    assert_eq!(idle, PROCESSORS, "one is lost: {processors:?}");
    let mut stopped = world.stop_from_outside("test").unwrap();
    for (id, halves) in processors.iter_mut(&mut stopped) {
        let visits = *halves.visits.get_mut();
        assert_eq!(visits, counts.all()[0], "{id}: once in each for-each");
    }
    stopped.resume();
    assert!(counts.all().iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn stress_processors_are_visited_once_whatever_happens_to_them() {
    let name = "processors_storm::stress_processors_are_visited_once_whatever_happens_to_them";
    in_child(name, LATE, || {
        storm(WorldOptions::new(), budget(5_000));
        storm(WorldOptions::new().roots().fully_fenced(), budget(2_000));
    });
}

#[test]
fn stress_processors_are_visited_once_in_a_world_for_tests() {
    let name = "processors_storm::stress_processors_are_visited_once_in_a_world_for_tests";
    in_child(name, LATE, || {
        let chaos = Chaos::new().delay_checks(Duration::from_micros(20), 7).yield_at_edges();
        storm(WorldOptions::new().chaos(chaos), budget(1_000));
    });
}
