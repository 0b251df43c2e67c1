//! What a runtime has for each mutator, typed: on its thread, in stops, in visits, and when the mutator is gone.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, eventually, mutator, poll_until};
use safepoint::{HandshakeOptions, PerMutator, World};
use testkit::{Rng, budget, forked, in_child};

const SOON: Duration = Duration::from_secs(20);

/// Counts its drops.
struct Counted<'a>(u32, &'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_value_is_found_on_its_thread_in_stops_and_in_visits() {
    in_child("per_mutator::a_value_is_found_on_its_thread_in_stops_and_in_visits", SOON, || {
        let (world, done) = (World::new(), Flag::default());
        let values = PerMutator::<Cell<u32>>::new(&world);
        thread::scope(|scope| {
            let mut own = world.attach().unwrap();
            assert_eq!(values.insert(&mut own, Cell::new(1)), None);
            assert_eq!(values.insert(&mut own, Cell::new(2)), Some(Cell::new(1)));
            let (values, done) = (&values, &done);
            let (tell, told) = std::sync::mpsc::channel();
            mutator(scope, &world, "runs", move |m| {
                assert!(values.get(m).is_none() && values.current_ptr().is_null());
                values.insert(m, Cell::new(10));
                tell.send(m.id()).unwrap();
                poll_until(m, done);
                assert_eq!(values.get_mut(m), Some(&mut Cell::new(113)));
                assert_eq!(values.remove(m), Some(Cell::new(113)));
                assert_eq!(values.remove(m), None);
            });
            let id = told.recv().unwrap();
            // One that has none is met nowhere.
            away(scope, &world, "has none", done);
            own.for_each_processor(|p| {
                if let Some(value) = values.visited(p) {
                    value.set(value.get() + 1);
                }
            })
            .unwrap();
            let seen =
                own.handshake(id, HandshakeOptions::new(), |p| values.visited(p).unwrap().get());
            assert_eq!(seen.unwrap(), 11);
            let own_id = own.id();
            let mut stopped = own.stop_the_world("test").unwrap();
            let mut all: Vec<_> =
                values.iter_mut(&mut stopped).map(|(id, value)| (id, value.get())).collect();
            all.sort_by_key(|(id, _)| id.index());
            assert_eq!(all, [(own_id, 3), (id, 11)], "that of the requester, too");
            values.get_stopped(&mut stopped, id).unwrap().set(100);
            stopped.resume();
            own.blocking(|| {
                let stopped = world.stop_from_outside("test").unwrap();
                stopped.hand_over(|mut handle| {
                    for (_, value) in values.iter_mut(&mut handle) {
                        value.set(value.get() + 13);
                    }
                });
            });
            assert_eq!(values.get(&own), Some(&Cell::new(16)));
            // SAFETY: no reference to it is in use.
            assert_eq!(unsafe { (*values.as_ptr(own.as_raw())).get() }, 16);
            done.raise();
        });
    });
}

/// Not the next one's in its place; and not dropped in the stop whose holder may have a reference to it.
#[test]
fn a_value_stays_behind_its_mutator_and_is_no_other_ones() {
    in_child("per_mutator::a_value_stays_behind_its_mutator_and_is_no_other_ones", SOON, || {
        let (world, drops) = (World::new(), AtomicU32::new(0));
        let values = PerMutator::<Counted<'_>>::new(&world);
        let dropped = || drops.load(Ordering::Relaxed);
        let mut first = world.attach().unwrap();
        values.insert(&mut first, Counted(1, &drops));
        let (index, first) = (first.index(), first.detach_from_thread());
        let mut stopped = world.stop_from_outside("test").unwrap();
        {
            let mut all = values.iter_mut(&mut stopped);
            let (id, value) = all.next().unwrap();
            drop(first);
            assert_eq!((id.index(), value.0, dropped()), (index, 1, 0));
        }
        assert_eq!(values.iter_mut(&mut stopped).count(), 0, "it is gone");
        stopped.resume();
        let mut second = world.attach().unwrap();
        assert_eq!(second.index(), index);
        assert!(values.get(&second).is_none() && values.get_mut(&mut second).is_none());
        assert!(values.remove(&mut second).is_none() && values.current_ptr().is_null());
        second.for_each_processor(|p| assert!(values.visited(p).is_none())).unwrap();
        assert!(values.insert(&mut second, Counted(2, &drops)).is_none(), "it had none");
        assert_eq!(dropped(), 1, "the one before");
        let mut stopped = second.stop_the_world("test").unwrap();
        assert!(values.take_detached(&mut stopped).is_empty(), "it is there");
        stopped.resume();
        second.detach();
        let mut stopped = world.stop_from_outside("test").unwrap();
        let left: Vec<_> = values.take_detached(&mut stopped).iter().map(|value| value.0).collect();
        assert_eq!((left, dropped()), (vec![2], 2));
        assert!(values.take_detached(&mut stopped).is_empty());
        stopped.resume();
        let mut third = world.attach().unwrap();
        values.insert(&mut third, Counted(3, &drops));
        drop(values);
        assert_eq!(dropped(), 3);
    });
}

#[test]
fn a_value_goes_with_its_mutator_from_thread_to_thread() {
    in_child("per_mutator::a_value_goes_with_its_mutator_from_thread_to_thread", SOON, || {
        let world = World::new();
        let values = PerMutator::<Vec<u32>>::new(&world);
        let mut mutator = world.attach().unwrap();
        values.insert(&mut mutator, vec![1]);
        let safe = mutator.detach_from_thread();
        assert!(values.current_ptr().is_null());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut mutator = safe.attach().unwrap();
                values.get_mut(&mut mutator).unwrap().push(2);
                assert_eq!(values.remove(&mut mutator), Some(vec![1, 2]));
            });
        });
    });
}

fn refused(work: impl FnOnce()) {
    assert!(panic::catch_unwind(AssertUnwindSafe(work)).is_err());
}

#[test]
fn values_are_had_in_their_own_world_and_while_it_runs() {
    in_child("per_mutator::values_are_had_in_their_own_world_and_while_it_runs", SOON, || {
        let (world, other) = (World::new(), World::new());
        let values = PerMutator::<u32>::new(&world);
        let (mut own, mut others) = (world.attach().unwrap(), other.attach().unwrap());
        values.insert(&mut own, 7);
        refused(|| _ = values.get(&others));
        refused(|| _ = values.get_mut(&mut others));
        refused(|| _ = values.insert(&mut others, 8));
        assert!(values.as_ptr(others.as_raw()).is_null());
        let visits = panic::catch_unwind(AssertUnwindSafe(|| {
            others.for_each_processor(|p| _ = values.visited(p))
        }));
        assert!(visits.is_err());
        let mut stopped = others.stop_the_world("test").unwrap();
        refused(|| _ = values.iter_mut(&mut stopped).count());
        refused(|| _ = values.iter(&stopped).count());
        refused(|| _ = values.take_detached(&mut stopped));
        stopped.resume();
        assert_eq!(values.get(&own), Some(&7));
        // A holder of the stop may have the value, whichever thread has it.
        let _leaked = ManuallyDrop::new(own.stop_the_world("leaked").unwrap());
        refused(|| _ = values.get(&own));
        refused(|| _ = values.get_mut(&mut own));
        refused(|| _ = values.remove(&mut own));
    });
}

/// The thread may have been in the middle of changing it.
#[test]
fn a_value_of_a_thread_that_a_fork_left_behind_is_leaked() {
    in_child("per_mutator::a_value_of_a_thread_that_a_fork_left_behind_is_leaked", SOON, || {
        let (world, drops, done) = (World::new(), AtomicU32::new(0), Flag::default());
        let values = PerMutator::<Counted<'_>>::new(&world);
        let dropped = || drops.load(Ordering::Relaxed);
        let mut own = world.attach().unwrap();
        values.insert(&mut own, Counted(1, &drops));
        thread::scope(|scope| {
            let (values, done, drops) = (&values, &done, &drops);
            mutator(scope, &world, "left behind", move |m| {
                values.insert(m, Counted(2, drops));
                m.blocking(|| done.wait());
            });
            let mut handle = None;
            own.blocking(|| {
                let stopped = world.stop_from_outside("test").unwrap();
                stopped.hand_over(|stopped| handle = Some(stopped));
                let status = forked(|| {
                    let handle = handle.as_mut().unwrap();
                    assert_eq!(values.iter_mut(handle).count(), 0, "the world runs here");
                    assert_eq!(values.take_detached(handle).len(), 0);
                });
                assert_eq!(status, 0, "in the child of fork");
                handle.take().unwrap().resume();
            });
            let mut own = Some(own);
            let status = forked(|| {
                let mut own = own.take().unwrap();
                assert_eq!(values.get(&own).unwrap().0, 1, "its own is here");
                let mut stopped = own.stop_the_world("test").unwrap();
                assert_eq!(values.iter_mut(&mut stopped).count(), 1);
                assert!(values.take_detached(&mut stopped).is_empty());
                assert_eq!(dropped(), 0);
                stopped.resume();
                assert!(values.remove(&mut own).is_some());
                assert_eq!(dropped(), 1);
            });
            assert_eq!(status, 0, "in the child of fork");
            done.raise();
        });
        drop(values);
        assert_eq!(dropped(), 2);
    });
}

/// No read or write of one tears another's: the halves are equal whenever one looks.
#[test]
fn stress_values_are_had_by_one_thread_at_a_time() {
    in_child("per_mutator::stress_values_are_had_by_one_thread_at_a_time", 3 * SOON, || {
        let world = World::new();
        let values = PerMutator::<[u64; 2]>::new(&world);
        let (done, rounds) = (Flag::default(), budget(2_000));
        let start = Rng::from_env().below(1 << 30);
        let total = AtomicU32::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|at| {
                    let (world, values, done, total) = (&world, &values, &done, &total);
                    scope.spawn(move || {
                        let mut rng = Rng::new(start + at);
                        while !done.is_up() {
                            let mut mutator = world.attach().unwrap();
                            assert!(values.insert(&mut mutator, [0, 0]).is_none());
                            for _ in 0..rng.below(200) {
                                let [first, second] = values.get_mut(&mut mutator).unwrap();
                                assert_eq!(first, second, "a stop's holder was in the middle");
                                *first += 1;
                                if rng.below(8) == 0 {
                                    thread::yield_now();
                                }
                                *second += 1;
                                total.fetch_add(1, Ordering::Relaxed);
                                match rng.below(4) {
                                    0 => mutator.poll(),
                                    1 => mutator.blocking(thread::yield_now),
                                    2 => mutator = mutator.detach_from_thread().attach().unwrap(),
                                    _ => {}
                                }
                            }
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            for _ in 0..rounds {
                let mut stopped = world.stop_from_outside("test").unwrap();
                for (_, [first, second]) in values.iter_mut(&mut stopped) {
                    assert_eq!(first, second, "a mutator was in the middle");
                    seen += *first;
                    (*first, *second) = (0, 0);
                }
                for [first, second] in values.take_detached(&mut stopped) {
                    assert_eq!(first, second);
                    seen += first;
                }
                drop(stopped);
            }
            eventually(|| total.load(Ordering::Relaxed) > 0);
            done.raise();
            for worker in workers {
                worker.join().unwrap();
            }
            assert!(seen <= u64::from(total.load(Ordering::Relaxed)));
        });
    });
}
