//! A thousand mutators on one processor, where half of the nudges are lost and no signal finds room in the queue.

use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use preempt::Task;
use safepoint::{Chaos, EachOptions, StopOptions, World, WorldOptions};
use testkit::{budget, in_child, patience, skip, until};

const LATE: Duration = Duration::from_mins(3);
/// Mutators that block, and those that never poll.
const MUTATORS: usize = 1000;
const LOOPS: usize = 8;

#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn spin_without_polls(stop: &AtomicBool, count: &AtomicUsize) {
    while !stop.load(Relaxed) {
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

/// All threads, those to come included.
fn keep_to_one_processor() {
    // SAFETY: no arguments.
    let processor = unsafe { libc::sched_getcpu() };
    // SAFETY: an array of words.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the processor is one that the kernel has named.
    unsafe { libc::CPU_SET(processor as usize, &mut set) };
    // SAFETY: the kernel reads the set.
    let failed = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

fn no_room_in_the_queue() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads one structure.
    let failed: c_int = unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const none) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn stress_a_thousand_mutators_with_lost_nudges_a_full_queue_and_one_processor() {
    let name = "stress_a_thousand_mutators_with_lost_nudges_a_full_queue_and_one_processor";
    in_child(name, LATE, || {
        if let Some(emulator) = testkit::emulator() {
            skip(format!("{emulator} needs the queue itself, and its time for a thousand threads"));
            return;
        }
        keep_to_one_processor();
        preempt::install().expect("install");
        // SAFETY: the section holds one function of this file, which only counts.
        let code = unsafe { preempt::register_code(preempt::preemptible_section!()) };
        let _code = code.expect("registered once");
        let chaos = Chaos::new().drop_nudges(2);
        let world = World::with_options(WorldOptions::new().chaos(chaos));
        // SAFETY: the mutators keep no references into a heap; there is none.
        unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
        let stop = &AtomicBool::new(false);
        let counts: &[AtomicUsize; LOOPS] = &Default::default();
        thread::scope(|scope| {
            for at in 0..MUTATORS {
                let builder = thread::Builder::new().stack_size(128 << 10);
                let world = &world;
                let work = move || {
                    let mut mutator = world.attach().expect("attaches");
                    if let Some(count) = counts.get(at) {
                        let task = Task::new();
                        task.enter(|| spin_without_polls(stop, count)).expect("enter");
                        return;
                    }
                    while !stop.load(Relaxed) {
                        mutator.blocking(|| thread::sleep(Duration::from_millis(200)));
                        mutator.poll();
                    }
                };
                builder.spawn_scoped(scope, work).expect("spawn");
            }
            until("all have begun", || {
                counts.iter().all(|count| count.load(Relaxed) != 0)
                    && world.number_of_mutators() == MUTATORS
            });
            no_room_in_the_queue();
            for round in 0..budget(20) {
                let options = StopOptions::new("scarce").timeout(patience(Duration::from_secs(20)));
                let stopped = world.stop_from_outside_with(options);
                let stopped = stopped.unwrap_or_else(|error| panic!("round {round}: {error}"));
                assert_eq!(stopped.mutators().count(), MUTATORS);
                let before = counts.each_ref().map(|count| count.load(Relaxed));
                thread::yield_now();
                assert_eq!(before, counts.each_ref().map(|count| count.load(Relaxed)));
                stopped.resume();
            }
            let mut own = world.attach().expect("attaches");
            let visited = AtomicUsize::new(0);
            let options = EachOptions::new().timeout(patience(Duration::from_secs(20)));
            let each = own.for_each_processor_with(options, |_| {
                visited.fetch_add(1, Relaxed);
            });
            each.expect("all answer");
            assert_eq!(visited.into_inner(), MUTATORS + 1);
            stop.store(true, Relaxed);
        });
    });
}
