//! A child of a fork goes on with the worlds of its parent: they run, and have only the mutators of the thread
//! that forked.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, eventually, mutator, poll_until};
use safepoint::{Answer, HandshakeOptions, Mutator, Processor, StopOptions, World};
use testkit::{budget, forked, in_child};

const SOON: Duration = Duration::from_secs(30);

/// What a child does with its parent's world. A hang is ended by the watchdog of the test.
fn use_world(mutator: &mut Mutator) {
    mutator.poll();
    mutator.blocking(|| ());
    let world = mutator.world();
    let stopped = mutator.stop_the_world("in the child").expect("no other thread");
    assert_eq!((stopped.stats().mutators, stopped.mutators().count()), (0, 0));
    stopped.resume();
    let visited = mutator.for_each_processor(|p| assert!(p.is_current()));
    assert_eq!(visited.expect("no other thread"), 1);
    // Other threads of the child's own take part.
    let (go, done) = (Flag::default(), Flag::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = world.attach().expect("a thread of the child's");
            go.raise();
            poll_until(&mut other, &done);
        });
        go.wait();
        let stopped = mutator.stop_the_world("both").expect("both come");
        assert_eq!(stopped.stats().mutators, 1);
        stopped.resume();
        assert_eq!(mutator.for_each_processor(|_| ()).expect("both come"), 2);
        done.raise();
    });
}

#[test]
fn a_child_forked_in_a_region_of_a_stopped_world_leaves_it() {
    in_child("fork::a_child_forked_in_a_region_of_a_stopped_world_leaves_it", SOON, || {
        let world = World::new();
        let (safe, stopped, forked_off) = (Flag::default(), Flag::default(), Flag::default());
        let done = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "other", |m| poll_until(m, &done));
            let mut own = world.attach().unwrap();
            scope.spawn(|| {
                safe.wait();
                let guard = world.stop_from_outside("parent's").unwrap();
                stopped.raise();
                forked_off.wait();
                guard.resume();
            });
            let child = own.blocking(|| {
                safe.raise();
                stopped.wait();
                let child = fork();
                if child != 0 {
                    forked_off.raise();
                }
                child
            });
            end_of(child, || use_world(&mut own));
            // The parent's world is as it was.
            own.poll();
            let again = own.stop_the_world("again").unwrap();
            assert_eq!(again.stats().mutators, 1);
            again.resume();
            done.raise();
        });
    });
}

#[test]
fn a_child_forked_with_a_stop_asked_for_polls_and_goes_on() {
    in_child("fork::a_child_forked_with_a_stop_asked_for_polls_and_goes_on", SOON, || {
        let world = World::new();
        let mut own = world.attach().unwrap();
        let asking = Flag::default();
        let before = threads();
        thread::scope(|scope| {
            scope.spawn(|| {
                asking.raise();
                world.stop_from_outside("parent's").unwrap().resume();
            });
            asking.wait();
            // How soon the stop waits for this thread is up to the scheduler.
            thread::sleep(Duration::from_millis(20));
            let status = forked(|| {
                own.poll();
                assert!(world.attach().is_err(), "attached already");
            });
            assert_eq!(status, 0, "in the child of fork");
            own.poll();
        });
        // A thread that ends has a lock of std's, which the child would find taken as it starts a thread.
        eventually(|| threads() == before);
        let child = fork();
        end_of(child, || use_world(&mut own));
    });
}

/// A thread that has the world stopped when it forks has the child's stopped, too.
#[test]
fn a_child_of_a_thread_that_has_the_world_stopped_resumes_it() {
    in_child("fork::a_child_of_a_thread_that_has_the_world_stopped_resumes_it", SOON, || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            mutator(scope, &world, "other", |m| poll_until(m, &done));
            let mut own = world.attach().unwrap();
            let stopped = own.stop_the_world("before the fork").unwrap();
            let child = fork();
            if child == 0 {
                assert_eq!(stopped.mutators().count(), 0, "the other is gone");
                let limit = Duration::from_millis(1);
                let refused = thread::scope(|scope| {
                    scope.spawn(|| world.attach_within(limit).map(drop)).join().unwrap()
                });
                refused.expect_err("the world is stopped");
            }
            stopped.resume();
            end_of(child, || use_world(&mut own));
            own.poll();
            done.raise();
        });
    });
}

/// A requester, or a visited mutator, that forks inside a closure comes out of it in the child.
#[test]
fn a_child_forked_in_a_closure_comes_out_of_it() {
    in_child("fork::a_child_forked_in_a_closure_comes_out_of_it", SOON, || {
        let world = World::new();
        let cases = [(true, true), (true, false), (false, true), (false, false)];
        for (by_the_requester, by_handshake) in cases {
            let done = Flag::default();
            let child = AtomicI32::new(-1);
            let forks = |is_mine: bool| {
                if is_mine {
                    child.store(fork(), Ordering::SeqCst);
                }
            };
            let child_of = || child.load(Ordering::SeqCst);
            thread::scope(|scope| {
                mutator(scope, &world, "visited", |m| {
                    while !done.is_up() {
                        m.poll();
                        if !by_the_requester && child_of() == 0 {
                            use_world(m);
                            exit();
                        }
                        thread::yield_now();
                    }
                });
                let mut own = world.attach().unwrap();
                let requester = sigctx::sys::gettid();
                let visit = |_: &Processor<'_>| {
                    // In the child of the requester the id is another, and it is not asked again.
                    forks(by_the_requester == (sigctx::sys::gettid() == requester));
                };
                let visited = if by_handshake {
                    let answers = own.handshake_all(HandshakeOptions::new(), visit);
                    let answers = answers.expect("no deadline");
                    answers.iter().filter(|(_, answer)| *answer == Answer::Done(())).count()
                } else {
                    own.for_each_processor(visit).expect("no deadline")
                };
                if by_the_requester && child_of() == 0 {
                    // The other was visited or not.
                    use_world(&mut own);
                    exit();
                }
                assert_eq!(visited, 2);
                wait_for(child_of());
                done.raise();
            });
        }
    });
}

/// The requester that runs a closure for a mutator in its region is not in the child.
#[test]
fn a_child_forked_while_it_is_visited_leaves_its_region() {
    in_child("fork::a_child_forked_while_it_is_visited_leaves_its_region", SOON, || {
        let world = World::new();
        for by_handshake in [false, true] {
            fork_while_visited(&world, by_handshake);
        }
    });
}

fn fork_while_visited(world: &World, by_handshake: bool) {
    let (safe, inside, forked_off) = (Flag::default(), Flag::default(), Flag::default());
    thread::scope(|scope| {
        let mut own = world.attach().unwrap();
        let (me, id) = (sigctx::sys::gettid(), own.id());
        let (safe, inside, forked_off) = (&safe, &inside, &forked_off);
        scope.spawn(move || {
            safe.wait();
            let mut requester = world.attach().unwrap();
            let visit = |p: &Processor<'_>| {
                if p.thread().tid() == Some(me) {
                    inside.raise();
                    forked_off.wait();
                }
            };
            if by_handshake {
                requester.handshake(id, HandshakeOptions::new(), visit).unwrap();
            } else {
                assert_eq!(requester.for_each_processor(visit).unwrap(), 2);
            }
        });
        let child = own.blocking(|| {
            safe.raise();
            inside.wait();
            let child = fork();
            if child != 0 {
                forked_off.raise();
            }
            child
        });
        end_of(child, || {
            use_world(&mut own);
            // It is no longer visited: dropping it does not abort.
            drop(own);
        });
    });
}

/// What others asked for borrows from stacks that the child does not have.
#[test]
fn an_operation_that_waits_at_a_fork_is_the_parents() {
    in_child("fork::an_operation_that_waits_at_a_fork_is_the_parents", SOON, || {
        let world = World::new();
        let mut own = world.attach().unwrap();
        let ran = Arc::new(AtomicI32::new(0));
        let count = |ran: &Arc<AtomicI32>| {
            let ran = ran.clone();
            move || {
                ran.fetch_add(1, Ordering::Relaxed);
            }
        };
        let operation = count(&ran);
        world.handshake_async(own.id(), move |_| operation()).unwrap();
        world.when_all_have_polled(count(&ran));
        let child = fork();
        end_of(child, || {
            use_world(&mut own);
            assert_eq!(ran.load(Ordering::Relaxed), 0, "in the child");
            let operation = count(&ran);
            world.handshake_async(own.id(), move |_| operation()).unwrap();
            own.poll();
            assert_eq!(ran.load(Ordering::Relaxed), 1, "the child's own");
        });
        own.poll();
        assert_eq!(ran.load(Ordering::Relaxed), 2, "in the parent");
    });
}

/// Forks at any point of what the other threads do.
#[test]
fn stress_children_forked_beside_stops_go_on() {
    in_child("fork::stress_children_forked_beside_stops_go_on", Duration::from_mins(2), || {
        let world = World::new();
        let done = Flag::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.is_up() {
                    let stopped = world.stop_from_outside("parent's").unwrap();
                    thread::sleep(Duration::from_micros(300));
                    stopped.resume();
                    thread::sleep(Duration::from_micros(300));
                }
            });
            scope.spawn(|| {
                while !done.is_up() {
                    let mut requester = world.attach().unwrap();
                    for _ in 0..10 {
                        requester.for_each_processor(|_| ()).unwrap();
                        requester.poll();
                    }
                }
            });
            let mut own = world.attach().unwrap();
            for round in 0..budget(400) {
                let child = if round % 2 == 0 {
                    own.blocking(fork)
                } else {
                    own.poll();
                    fork()
                };
                if child == 0 {
                    own.poll();
                    let options = StopOptions::new("in the child").timeout(SOON);
                    assert_eq!(own.stop_with(options).unwrap().stats().mutators, 0);
                    assert_eq!(own.for_each_processor(|_| ()).unwrap(), 1);
                    exit();
                }
                own.blocking(|| wait_for(child));
            }
            done.raise();
        });
    });
}

/// How many threads the process has for the kernel, those among them that are about to end.
fn threads() -> usize {
    threadreg::procfs::TaskDir::open().expect("/proc").count().expect("/proc")
}

fn fork() -> i32 {
    // SAFETY: the children of these tests use what works in one: the crate, and threads.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    child
}

fn exit() -> ! {
    // SAFETY: ends the process; nothing of the test framework's is run.
    unsafe { libc::_exit(0) }
}

/// In the child: does `work`, and ends. In the parent: waits for that.
fn end_of(child: i32, work: impl FnOnce()) {
    if child == 0 {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            // SAFETY: as in `exit`.
            unsafe { libc::_exit(1) }
        }
        exit();
    }
    wait_for(child);
}

fn wait_for(child: i32) {
    let status = AtomicI32::new(-1);
    eventually(|| {
        // SAFETY: waits for a child of this process's, into a number.
        unsafe { libc::waitpid(child, status.as_ptr(), libc::WNOHANG) != 0 }
    });
    assert_eq!(status.into_inner(), 0, "in the child of fork");
}
