//! The crates together: stops that reach loops without polls, suspensions and calls on every thread
//! beside stops.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use allthreads::AllThreads;
use preempt::{CodeRange, Task};
use safepoint::{Reason, World};
use threadreg::JoinHandle;

const SOON: Duration = Duration::from_secs(20);

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin_without_polls(stop: &AtomicBool, count: &AtomicUsize) {
    while !stop.load(Relaxed) {
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

/// A world whose mutators never poll, and the means to stop them.
struct Loops {
    world: World,
    task: Task,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
    _code: CodeRange,
}

impl Loops {
    fn start() -> Self {
        preempt::install().expect("install");
        // SAFETY: the section holds `spin_without_polls` alone, which only counts.
        let code = unsafe { preempt::register_code(preempt::preemptible_section!()) };
        let world = World::new();
        // SAFETY: the mutators keep no references into a heap; there is none.
        unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let task = Task::new();
        let thread = {
            let (world, task) = (world.clone(), task.clone());
            let (stop, count) = (stop.clone(), count.clone());
            threadreg::Builder::new()
                .name("loop")
                .spawn(move || {
                    let _mutator = world.attach().expect("attach");
                    task.enter(|| spin_without_polls(&stop, &count)).expect("enter");
                })
                .expect("spawn")
        };
        while count.load(Relaxed) == 0 {
            thread::yield_now();
        }
        Self { world, task, stop, count, thread, _code: code.expect("registered once") }
    }

    fn end(self) {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("no panic");
    }
}

#[test]
fn a_mutator_that_never_polls_is_stopped_and_stays_so() {
    let loops = Loops::start();
    for _ in 0..100 {
        let stopped = loops.world.stop_from_outside(Reason::new("test")).expect("stops");
        let before = loops.count.load(Relaxed);
        for _ in 0..10 {
            thread::yield_now();
        }
        assert_eq!(loops.count.load(Relaxed), before, "a stopped mutator ran");
        drop(stopped);
        while loops.count.load(Relaxed) == before {
            thread::yield_now();
        }
    }
    loops.end();
}

#[test]
fn a_call_on_every_thread_can_stop_the_world_first() {
    let loops = Loops::start();
    let call = AllThreads::new().world(&loops.world).deadline(SOON);
    for _ in 0..20 {
        // SAFETY: reads a number.
        let pid = unsafe { call.syscall(libc::SYS_getpid, [0; 6]) }.expect("called");
        assert!(pid.threads >= 2, "{pid:?}");
    }
    loops.end();
}

/// Three requesters who each want the same loop in another way.
#[test]
fn stress_stops_suspensions_and_calls_beside_each_other() {
    testkit::in_child(
        "stress_stops_suspensions_and_calls_beside_each_other",
        Duration::from_secs(150),
        || {
            let loops = Loops::start();
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..testkit::budget(1000) {
                        drop(loops.world.stop_from_outside(Reason::new("test")).expect("stops"));
                    }
                });
                scope.spawn(|| {
                    for _ in 0..testkit::budget(1000) {
                        preempt::suspend(&loops.task, SOON).expect("stops").resume();
                    }
                });
                scope.spawn(|| {
                    for _ in 0..testkit::budget(1000) {
                        let call = AllThreads::new().deadline(SOON);
                        // SAFETY: reads a number.
                        unsafe { call.syscall(libc::SYS_getpid, [0; 6]) }.expect("called");
                    }
                });
            });
            loops.end();
        },
    );
}
