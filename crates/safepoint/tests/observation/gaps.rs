//! Code that polls rarely is found, and named.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, away, mutator, poll_until};
use safepoint::{
    HandshakeError, HandshakeOptions, MutatorGaps, PollGapOptions, PollGaps, Processor, StopError,
    StopOptions, Straggler, World,
};
use sigctx::sys;
use testkit::{budget, forked, in_child, is_asleep, until};

const SOON: Duration = Duration::from_secs(20);
const GAP: Duration = Duration::from_millis(30);

fn of<'g>(gaps: &'g PollGaps, name: &str) -> &'g MutatorGaps {
    let found = gaps.mutators.iter().find(|gaps| gaps.name.as_str() == name);
    found.unwrap_or_else(|| panic!("{name}: {gaps:?}"))
}

fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn the_mutator_that_polls_rarely_is_named_with_its_longest_gap() {
    in_child("gaps::the_mutator_that_polls_rarely_is_named_with_its_longest_gap", SOON, || {
        let world = World::new();
        let (begin, done) = (Flag::default(), Flag::default());
        let gaps = thread::scope(|scope| {
            mutator(scope, &world, "polls", |mutator| poll_until(mutator, &done));
            away(scope, &world, "away", &done);
            let computes = mutator(scope, &world, "computes", |mutator| {
                begin.wait();
                compute(GAP);
                mutator.poll();
            });
            // It is asked before this returns.
            let sampler = world.sample_poll_gaps(PollGapOptions::new()).expect("a thread");
            begin.raise();
            computes.join().expect("no panic");
            let gaps = sampler.finish();
            done.raise();
            gaps
        });
        let computes = of(&gaps, "computes");
        let longest = computes.longest.expect("it was asked");
        assert!(longest.is_over && longest.lasted >= GAP, "{computes:?}");
        assert!(computes.gaps.quantile(1.0) >= longest.lasted, "{computes:?}");
        assert!(of(&gaps, "polls").gaps.count() >= 1, "{gaps:?}");
        assert!(gaps.mutators.iter().all(|gaps| gaps.name.as_str() != "away"), "{gaps:?}");
        assert_eq!(gaps.not_looked_at, 0);
    });
}

#[test]
fn a_gap_that_is_not_over_is_told_with_what_the_kernel_says() {
    in_child("gaps::a_gap_that_is_not_over_is_told_with_what_the_kernel_says", SOON, || {
        let (world, (mut reader, writer)) = (World::new(), io::pipe().expect("a pipe"));
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            mutator(scope, &world, "sleeps", move |_| {
                tell.send(sys::gettid()).expect("the test waits");
                assert_eq!(reader.read(&mut [0]).expect("reads"), 0);
            });
            let tid = told.recv().expect("it runs");
            until("it sleeps", || is_asleep(tid));
            let sampler = world.sample_poll_gaps(PollGapOptions::new()).expect("a thread");
            thread::sleep(GAP);
            let gaps = sampler.finish();
            drop(writer);
            let sleeps = of(&gaps, "sleeps");
            let longest = sleeps.longest.expect("it was asked");
            assert!(!longest.is_over && longest.lasted >= GAP, "{sleeps:?}");
            assert_eq!((sleeps.tid, sleeps.gaps.count()), (tid, 1), "{sleeps:?}");
            // An emulator has threads of the host's that are in other calls.
            if testkit::emulator().is_none() {
                assert_eq!(longest.seen.expect("/proc is there").state, 'S', "{sleeps:?}");
            }
        });
    });
}

#[test]
fn mutators_for_which_there_is_no_room_are_counted() {
    in_child("gaps::mutators_for_which_there_is_no_room_are_counted", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        thread::scope(|scope| {
            for name in ["first", "second", "third"] {
                mutator(scope, &world, name, |mutator| poll_until(mutator, &done));
            }
            let one = PollGapOptions::new().mutators(1);
            let gaps = world.sample_poll_gaps(one).expect("a thread").finish();
            done.raise();
            assert_eq!((gaps.mutators.len(), gaps.not_looked_at), (1, 2), "{gaps:?}");
        });
    });
}

/// The child has the bit that asked its thread, and no thread that looks.
#[test]
fn the_child_of_a_fork_polls_and_finds_no_gaps() {
    in_child("gaps::the_child_of_a_fork_polls_and_finds_no_gaps", SOON, || {
        let world = World::new();
        let mut mutator = world.attach().expect("a thread of its own");
        let mut sampler = Some(world.sample_poll_gaps(PollGapOptions::new()).expect("a thread"));
        let status = forked(|| {
            mutator.poll();
            mutator.stop_the_world("in the child").expect("no other mutator").resume();
            let gaps = sampler.take().expect("copied").finish();
            assert!(gaps.mutators.is_empty() && gaps.not_looked_at == 0, "{gaps:?}");
        });
        assert_eq!(status, 0);
        mutator.poll();
        assert_eq!(sampler.take().expect("not the child's").finish().mutators.len(), 1);
    });
}

#[test]
fn stress_no_mutator_runs_in_a_stop_beside_a_sampler() {
    let name = "gaps::stress_no_mutator_runs_in_a_stop_beside_a_sampler";
    in_child(name, Duration::from_mins(1), || {
        let (world, done) = (World::new(), Flag::default());
        let work = [const { AtomicU64::new(0) }; 2];
        thread::scope(|scope| {
            for counter in &work {
                mutator(scope, &world, "works", |mutator| {
                    while !done.is_up() {
                        for _ in 0..100 {
                            counter.fetch_add(1, Ordering::Relaxed);
                            mutator.poll();
                        }
                        mutator.blocking(|| ());
                    }
                });
            }
            let options = PollGapOptions::new().interval(Duration::from_micros(10));
            let sampler = world.sample_poll_gaps(options).expect("a thread");
            for _ in 0..budget(300) {
                let stopped = world.stop_from_outside("test").expect("stops");
                let look = || work.each_ref().map(|work| work.load(Ordering::Relaxed));
                let before = look();
                thread::yield_now();
                assert_eq!(look(), before, "a mutator runs in a stop");
                stopped.resume();
            }
            done.raise();
            drop(sampler);
        });
    });
}

/// Since before the request, which began when the gap had lasted for a while.
#[test]
fn a_straggler_is_told_with_the_gap_that_a_sampler_sees() {
    in_child("gaps::a_straggler_is_told_with_the_gap_that_a_sampler_sees", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let late = |world: &World| {
            let options = StopOptions::new("test").timeout(GAP);
            let error = world.stop_from_outside_with(options).map(drop).unwrap_err();
            let StopError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
            let [straggler] = &stragglers[..] else { panic!("{stragglers:?}") };
            straggler.clone()
        };
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| done.wait());
            let unseen = late(&world);
            assert_eq!(unseen.sampled_gap, None);
            assert!(unseen.not_polled_for <= unseen.waited, "{unseen:?}");
            // The mutator has the bit of the stop that was given up: it is not asked before it has come.
            done.raise();
        });
        let (done, begin) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |mutator| {
                begin.wait();
                mutator.poll();
                done.wait();
            });
            let before = Instant::now();
            let sampler = world.sample_poll_gaps(PollGapOptions::new()).expect("a thread");
            compute(GAP);
            let seen = late(&world);
            let gap = seen.sampled_gap.expect("the sampler waits for it");
            // Less a tick of the clock.
            assert!(gap + Duration::from_millis(1) >= seen.waited + GAP, "{seen:?}");
            assert!(gap <= before.elapsed(), "{seen:?}");
            assert!(seen.to_string().contains("no poll sampled for"), "{seen}");
            drop(sampler);
            assert_eq!(late(&world).sampled_gap, None, "nobody waits for it");
            begin.raise();
            done.raise();
        });
    });
}

/// It has come since it was asked, and answers when the operation is over.
#[test]
fn a_straggler_in_an_operation_is_not_said_to_have_polled_for_long() {
    let name = "gaps::a_straggler_in_an_operation_is_not_said_to_have_polled_for_long";
    in_child(name, SOON, || {
        let (world, done, asked) = (World::new(), Arc::new(Flag::default()), Flag::default());
        thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            let asked = &asked;
            mutator(scope, &world, "works", move |mutator| {
                send.send(mutator.id()).expect("received");
                asked.wait();
                mutator.poll();
            });
            let (begun, end) = (Arc::new(Flag::default()), Arc::clone(&done));
            let begins = Arc::clone(&begun);
            let operation = move |_: &Processor<'_>| {
                begins.raise();
                end.wait();
            };
            let target = receive.recv().expect("sent");
            world.handshake_async(target, operation).expect("attached");
            let told = Mutex::new(None);
            let tell = |late: &Straggler| {
                asked.raise();
                begun.wait();
                *told.lock().unwrap() = Some(late.clone());
            };
            let options = HandshakeOptions::new().timeout(10 * GAP).on_late(GAP, &tell);
            let error = world.handshake(target, options, |_| ()).unwrap_err();
            let before = told.into_inner().unwrap().expect("it was late");
            assert!(before.not_polled_for > Duration::ZERO, "{before:?}");
            let HandshakeError::TimedOut { stragglers, .. } = error else { panic!("{error}") };
            assert_eq!(stragglers[0].not_polled_for, Duration::ZERO, "{stragglers:?}");
            done.raise();
        });
    });
}
