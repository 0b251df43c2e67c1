//! The crates together: stops that reach loops without polls, suspensions and calls on every thread
//! beside stops.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use allthreads::AllThreads;
use preempt::{CodeRange, StoppedAt, Task};
use safepoint::{HandshakeOptions, Processor, Reason, StopError, StopOptions, World};
use threadreg::JoinHandle;

const SOON: Duration = Duration::from_secs(20);

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin_without_polls(stop: &AtomicBool, count: &AtomicUsize) {
    while !stop.load(Relaxed) {
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn count_without_polls(length: usize, count: &AtomicUsize) {
    while count.load(Relaxed) < length {
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
    count.store(0, Relaxed);
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
        // SAFETY: the section holds two functions of this file, which only count.
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

/// On its own thread, in a nudged call, and without a stop.
#[test]
fn a_mutator_that_never_polls_answers_a_handshake() {
    testkit::in_child("a_mutator_that_never_polls_answers_a_handshake", SOON, || {
        let loops = Loops::start();
        let [id] = loops.world.mutators()[..] else { panic!("one mutator") };
        for _ in 0..100 {
            let before = loops.count.load(Relaxed);
            let answer =
                loops
                    .world
                    .handshake(id, HandshakeOptions::new(), |it: &Processor<'_>| it.is_current());
            assert!(answer.expect("it is there"));
            while loops.count.load(Relaxed) == before {
                thread::yield_now();
            }
        }
        loops.end();
    });
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
    let call = AllThreads::new().world(&loops.world).timeout(SOON);
    for _ in 0..20 {
        // SAFETY: reads a number.
        let pid = unsafe { call.syscall(libc::SYS_getpid, [0; 6]) }.expect("called");
        assert!(pid.threads >= 2, "{pid:?}");
    }
    loops.end();
}

/// What a collector does: first the stop, then the roots.
#[test]
fn a_mutator_that_is_stopped_has_registers_and_runs_errands() {
    let name = "a_mutator_that_is_stopped_has_registers_and_runs_errands";
    testkit::in_child(name, Duration::from_mins(1), || {
        let loops = Loops::start();
        let stopped = loops.world.stop_from_outside(Reason::new("test")).expect("stops");
        let before = loops.count.load(Relaxed);
        let held = loops.task.suspend(SOON).expect("it stands still");
        assert_eq!(held.stopped_at(), StoppedAt::Instruction);
        assert!(held.registers().is_some());
        let tid = loops.thread.thread().tid();
        assert_eq!(held.run(|_| threadreg::current().and_then(|me| me.tid())), Some(tid));
        // Whichever goes first, the loop goes on only when it is neither held nor stopped.
        drop(stopped);
        assert_eq!(loops.count.load(Relaxed), before, "a held task ran");
        drop(held);
        testkit::until("it goes on", || loops.count.load(Relaxed) != before);
        loops.end();
    });
}

/// The other way round: held first, stopped with its world then.
#[test]
fn a_held_mutator_is_stopped_and_still_runs_errands() {
    let name = "a_held_mutator_is_stopped_and_still_runs_errands";
    testkit::in_child(name, Duration::from_mins(1), || {
        let loops = Loops::start();
        let held = loops.task.suspend(SOON).expect("stops");
        let stopped = loops.world.stop_from_outside(Reason::new("test")).expect("stops");
        assert_eq!(held.run(|frame| frame.is_some()), Some(true));
        assert!(held.backtrace().is_some());
        let before = loops.count.load(Relaxed);
        drop(held);
        assert_eq!(loops.count.load(Relaxed), before, "a stopped mutator ran");
        drop(stopped);
        testkit::until("it goes on", || loops.count.load(Relaxed) != before);
        loops.end();
    });
}

/// The holder may be a mutator that the same stop has stopped already.
#[test]
fn a_mutator_that_waits_to_enter_a_held_task_is_stopped() {
    let name = "a_mutator_that_waits_to_enter_a_held_task_is_stopped";
    testkit::in_child(name, Duration::from_mins(1), || {
        let loops = Loops::start();
        let task = Task::new();
        let held = task.suspend(SOON).expect("idle");
        thread::scope(|scope| {
            let (waits, tid) = std::sync::mpsc::channel();
            let (world, waiting) = (&loops.world, &task);
            scope.spawn(move || {
                let _mutator = world.attach().expect("attach");
                waits.send(sigctx::sys::gettid()).expect("the test waits");
                waiting.enter(|| ()).expect("when it is let go");
            });
            let tid = tid.recv().expect("it tells");
            testkit::until("it waits", || testkit::is_asleep(tid));
            let stopped =
                loops.world.stop_from_outside_with(StopOptions::new("test").timeout(SOON));
            assert_eq!(stopped.expect("both stand still").stats().mutators, 2);
            drop(held);
        });
        loops.end();
    });
}

/// The holder of a mutator's task waits for itself where no nudge can reach it.
#[test]
fn a_stop_by_the_holder_of_a_mutators_task_is_refused_without_a_nudge() {
    let name = "a_stop_by_the_holder_of_a_mutators_task_is_refused_without_a_nudge";
    testkit::in_child(name, Duration::from_mins(1), || {
        let world = World::new();
        let (task, stop, runs) = (Task::new(), AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = world.attach().expect("attach");
                let poll = || {
                    while !stop.load(Relaxed) {
                        runs.store(true, Relaxed);
                        mutator.poll();
                        preempt::poll();
                    }
                };
                task.enter(poll).expect("enter");
            });
            testkit::until("it runs", || runs.load(Relaxed));
            let held = task.suspend(SOON).expect("stops at its poll");
            let refused = world.stop_from_outside("test");
            assert!(matches!(refused, Err(StopError::HoldsMutators { .. })), "{refused:?}");
            drop(held);
            drop(world.stop_from_outside("test").expect("let go"));
            stop.store(true, Relaxed);
        });
    });
}

/// A nudge that was sent while the mutator ran must not find it in its region's system call.
#[test]
fn stress_no_nudge_interrupts_a_safe_region() {
    testkit::in_child("stress_no_nudge_interrupts_a_safe_region", Duration::from_secs(100), || {
        let loops = Loops::start();
        let (done, sleeps) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = loops.world.attach().expect("attach");
                let task = Task::new();
                let (mut rng, counted) = (testkit::Rng::from_env(), AtomicUsize::new(0));
                while !done.load(Relaxed) {
                    // Registered code, of a length that stops and nudges fall into.
                    let length = 10_000 + rng.below(300_000) as usize;
                    task.enter(|| count_without_polls(length, &counted)).expect("enter");
                    let slept = mutator.blocking(|| {
                        let time = libc::timespec { tv_sec: 0, tv_nsec: 300_000 };
                        // SAFETY: reads the time; there is no place for what is left.
                        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) }
                    });
                    assert_eq!(slept, 0, "a safe region's sleep was interrupted");
                    sleeps.fetch_add(1, Relaxed);
                }
            });
            let often = StopOptions::new("test").nudge_after(Duration::from_micros(30));
            while sleeps.load(Relaxed) < testkit::budget(1000) as usize {
                drop(loops.world.stop_from_outside_with(often).expect("stops"));
                thread::sleep(Duration::from_micros(100));
            }
            done.store(true, Relaxed);
        });
        loops.end();
    });
}

/// Three requesters that each want the same loop in another way.
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
                        loops.task.suspend(SOON).expect("stops").resume();
                    }
                });
                scope.spawn(|| {
                    for _ in 0..testkit::budget(1000) {
                        let call = AllThreads::new().timeout(SOON);
                        // SAFETY: reads a number.
                        unsafe { call.syscall(libc::SYS_getpid, [0; 6]) }.expect("called");
                    }
                });
            });
            loops.end();
        },
    );
}
