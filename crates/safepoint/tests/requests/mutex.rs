//! A mutex whose waiters can be stopped.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator, poll_until};
use safepoint::{LockError, Mutex, MutexGuard, Place, World, WorldOptions};
use testkit::{budget, in_child, is_asleep, patience};

const SOON: Duration = Duration::from_secs(20);

fn gettid() -> i32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

#[test]
fn a_waiter_is_stopped_and_lets_go_of_the_mutex() {
    in_child("mutex::a_waiter_is_stopped_and_lets_go_of_the_mutex", SOON, || {
        let world = World::with_options(WorldOptions::new().roots());
        let (mutex, tid) = (Mutex::new(0), AtomicI32::new(0));
        thread::scope(|scope| {
            let mine = mutex.lock_from_outside();
            let waits = mutator(scope, &world, "waits", |m| {
                tid.store(gettid(), Ordering::Relaxed);
                *mutex.lock(m) += 1;
                m.poll();
            });
            let asleep = || is_asleep(tid.load(Ordering::Relaxed));
            eventually(|| tid.load(Ordering::Relaxed) != 0 && asleep());
            let stopped = world.stop_from_outside("test").unwrap();
            assert_eq!(stopped.stats().running, 0, "it waits in a safe region");
            let waiter = stopped.mutators().next().expect("it is there");
            let parked = waiter.parked().expect("its world has roots");
            assert_eq!(parked.place(), Place::Region);
            assert!(parked.stack().contains(&parked.sp()) && parked.roots().count() >= 2);
            // It gets the mutex, and is to wait for the end of the stop.
            drop(mine);
            eventually(asleep);
            let mine = mutex.lock_from_outside_within(patience(Duration::from_secs(5)));
            assert_eq!(*mine.expect("no stopped mutator has it"), 0);
            stopped.resume();
            waits.join().unwrap();
            assert_eq!(*mutex.lock_from_outside(), 1);
        });
    });
}

#[test]
fn the_thread_that_has_the_mutex_is_named() {
    in_child("mutex::the_thread_that_has_the_mutex_is_named", SOON, || {
        let (world, mutex) = (World::new(), Mutex::new(()));
        let (has_it, done, tid) = (Flag::default(), Flag::default(), AtomicI32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "holder", |m| {
                let guard = mutex.try_lock(m).expect("it is free");
                assert!(mutex.try_lock(m).is_none());
                tid.store(gettid(), Ordering::Relaxed);
                has_it.raise();
                poll_until(m, &done);
                drop(guard);
            });
            has_it.wait();
            let is_named = |error: LockError, timeout| {
                assert_eq!(error.holder, Some(tid.load(Ordering::Relaxed)));
                assert_eq!(error.name.as_str(), "holder");
                assert!(error.waited >= timeout, "{error}");
            };
            let timeout = Duration::from_millis(3);
            is_named(mutex.lock_from_outside_within(timeout).unwrap_err(), timeout);
            let mut m = world.attach().unwrap();
            is_named(mutex.lock_within(&mut m, timeout).unwrap_err(), timeout);
            m.detach();
            done.raise();
        });
        assert!(!MutexGuard::was_copied(&mutex.lock_from_outside()));
    });
}

#[test]
fn a_running_mutator_does_not_wait_as_if_it_were_none() {
    let (world, mutex) = (World::new(), Mutex::new(()));
    let (has_it, done) = (Flag::default(), Flag::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = mutex.lock_from_outside();
            has_it.raise();
            done.wait();
        });
        has_it.wait();
        let waits = scope.spawn(|| {
            let _mutator = world.attach().unwrap();
            drop(mutex.lock_from_outside());
        });
        waits.join().unwrap_err();
        done.raise();
    });
}

/// Beside stops, some of whose makers lock the mutex.
#[test]
fn stress_one_thread_at_a_time_has_the_mutex() {
    in_child("mutex::stress_one_thread_at_a_time_has_the_mutex", Duration::from_mins(2), || {
        let (world, mutex, inside) = (World::new(), Mutex::new(0), AtomicU32::new(0));
        let rounds = budget(5000) as u32;
        let add = |mut guard: MutexGuard<'_, u32>| {
            assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0);
            *guard += 1;
            inside.fetch_sub(1, Ordering::Relaxed);
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                mutator(scope, &world, "locks", |m| {
                    for round in 0..rounds {
                        if round % 64 == 0 {
                            let stopped = m.stop_the_world("test").unwrap();
                            add(mutex.lock_from_outside());
                            stopped.resume();
                        } else {
                            let guard = mutex.lock(m);
                            let _atomic = m.no_safepoint();
                            add(guard);
                        }
                        m.poll();
                    }
                });
            }
        });
        assert_eq!(mutex.into_inner(), 3 * rounds);
    });
}
