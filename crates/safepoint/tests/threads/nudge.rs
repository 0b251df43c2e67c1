//! Late mutators are nudged, and a nudge does no harm.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Flag, Says, eventually, mutator};
use safepoint::{Mutator, StopError, StopOptions, World};
use sigctx::sys;
use testkit::{child, in_child, patience};
use threadreg::{Nudge, NudgeCall, NudgeError, ThreadRef};

/// Hands the calls out as a handler would: to each thread its own.
#[derive(Default)]
struct Mailbox {
    calls: Mutex<Vec<(ThreadRef, NudgeCall)>>,
    asked: AtomicU32,
}

impl Nudge for Mailbox {
    fn nudge(
        &self,
        thread: ThreadRef,
        call: NudgeCall,
        _wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        // Every other one gets lost.
        if self.asked.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            self.calls.lock().unwrap().push((thread, call));
        }
        Ok(())
    }

    /// Interrupts no thread.
    fn settle(&self, _timeout: Duration) -> bool {
        true
    }
}

impl Mailbox {
    /// What the calling thread does at an asynchronous safe point.
    fn deliver(&self) {
        let me = threadreg::current();
        let call = {
            let mut calls = self.calls.lock().unwrap();
            calls.iter().position(|(t, _)| Some(*t) == me).map(|at| calls.swap_remove(at).1)
        };
        if let Some(call) = call {
            // SAFETY: made by the crate for this thread; outside any handler.
            unsafe { call.call() };
        }
    }
}

/// Counts its steps, makes the calls that it is handed, and never polls.
fn never_polls(mailbox: &Mailbox, steps: &AtomicU32, done: &Flag) {
    while !done.is_up() {
        steps.fetch_add(1, Ordering::Relaxed);
        mailbox.deliver();
    }
}

#[test]
fn a_mutator_that_never_polls_is_nudged_until_it_stops() {
    let name = "nudge::a_mutator_that_never_polls_is_nudged_until_it_stops";
    in_child(name, Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(mailbox.clone()) };
        let (done, steps) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| never_polls(&mailbox, &steps, &done));
            let mut waited = 0;
            while waited < 20 {
                // It has left the stop before.
                let before = steps.load(Ordering::Relaxed);
                eventually(|| steps.load(Ordering::Relaxed) != before);
                let options = StopOptions::new("test").nudge_after(Duration::from_micros(50));
                let stopped = world.stop_from_outside_with(options).unwrap();
                // Not waited for: a nudge of the stop before came when this one asked.
                if let Some(last) = stopped.last_to_stop() {
                    assert_eq!(last.name.as_str(), "deaf");
                    waited += 1;
                }
            }
            assert!(mailbox.asked.load(Ordering::Relaxed) >= 40, "a lost nudge is sent again");
            let mut own = world.attach().unwrap();
            assert_eq!(own.for_each_processor(|_| ()).unwrap(), 2);
            own.detach();
            done.raise();
        });
        assert_eq!(world.stop_from_outside("after").unwrap().stats().mutators, 0);
    });
}

/// The option has precedence over what is known of a mutator.
#[test]
fn no_mutator_is_nudged_before_the_time_that_is_set() {
    let name = "nudge::no_mutator_is_nudged_before_the_time_that_is_set";
    in_child(name, Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(mailbox.clone()) };
        let (done, steps) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| never_polls(&mailbox, &steps, &done));
            world.stop_from_outside("test").unwrap().resume();
            let asked = mailbox.asked.load(Ordering::Relaxed);
            assert!(asked > 0, "it does not poll");
            // No call of that stop is to come in the next.
            eventually(|| mailbox.calls.lock().unwrap().is_empty());
            let before = steps.load(Ordering::Relaxed);
            eventually(|| steps.load(Ordering::Relaxed).wrapping_sub(before) >= 2);
            let options = StopOptions::new("test").nudge_after(Duration::from_hours(1));
            let options = options.timeout(Duration::from_millis(50));
            let late = world.stop_from_outside_with(options).map(drop).expect_err("not nudged");
            assert!(matches!(late, StopError::TimedOut { .. }), "{late}");
            assert_eq!(mailbox.asked.load(Ordering::Relaxed), asked);
            done.raise();
        });
    });
}

#[test]
fn a_late_nudge_does_nothing() {
    in_child("nudge::a_late_nudge_does_nothing", Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(mailbox.clone()) };
        thread::scope(|scope| {
            mutator(scope, &world, "late", |m| {
                // The stop must have begun by then.
                thread::sleep(patience(Duration::from_millis(20)));
                m.poll();
            });
            world.stop_from_outside("test").unwrap().resume();
        });
        drop(world);
        let calls = std::mem::take(&mut *mailbox.calls.lock().unwrap());
        assert!(!calls.is_empty(), "no thread was nudged");
        // The mutator and its world are gone, and this is another thread.
        for (_, call) in &calls {
            // SAFETY: the crate's own call, which looks whose thread it is on; no handler runs.
            unsafe { call.call() };
        }
        // The slot again, with another target, for which nothing is pending.
        let world = World::new();
        let mut mutator = world.attach().unwrap();
        for (_, call) in calls {
            // SAFETY: as above.
            unsafe { call.call() };
        }
        mutator.poll();
    });
}

/// The nudged call would go on with a slot and a world that are not its own any more.
#[test]
fn a_mutator_that_is_dropped_in_its_own_closure_aborts() {
    thread_local! {
        static MINE: RefCell<Option<Mutator>> = const { RefCell::new(None) };
    }
    let name = "nudge::a_mutator_that_is_dropped_in_its_own_closure_aborts";
    let ended = child(name, Duration::from_secs(20), || {
        let world = World::new();
        let mailbox = Arc::new(Mailbox::default());
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(mailbox.clone()) };
        let (attached, done) = (Flag::default(), Flag::default());
        thread::scope(|scope| {
            scope.spawn(|| {
                MINE.set(Some(world.attach().unwrap()));
                attached.raise();
                while !done.is_up() {
                    mailbox.deliver();
                }
            });
            attached.wait();
            let mut own = world.attach().unwrap();
            own.for_each_processor(|_| drop(MINE.take())).unwrap();
            done.raise();
        });
        println!("went on");
    });
    let Some(ended) = ended else { return };
    assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{}", ended.output);
    assert!(ended.output.contains("detaches in a closure"), "{}", ended.output);
}

extern "C" fn ignore(_signal: i32) {}

/// Each signal cuts the requester's sleep short, which must not put the next look off.
#[test]
fn a_requester_that_is_interrupted_all_the_time_nudges_as_often() {
    let name = "nudge::a_requester_that_is_interrupted_all_the_time_nudges_as_often";
    in_child(name, Duration::from_secs(20), || {
        #[expect(clippy::disallowed_methods, reason = "plays a profiler's timer")]
        // SAFETY: the handler does nothing.
        let old = unsafe { libc::signal(libc::SIGPROF, ignore as *const () as usize) };
        assert_ne!(old, libc::SIG_ERR);
        let (world, counter) = (World::new(), Arc::new(Says(Ok(()), AtomicU32::new(0))));
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(counter.clone()) };
        let (done, me) = (Flag::default(), sys::gettid());
        let long = patience(Duration::from_secs(1));
        thread::scope(|scope| {
            mutator(scope, &world, "deaf", |_| {
                while !done.is_up() {
                    thread::sleep(Duration::from_millis(5));
                }
            });
            scope.spawn(|| {
                while !done.is_up() {
                    sys::tgkill(sys::getpid(), me, libc::SIGPROF).expect("the requester is there");
                    thread::sleep(Duration::from_micros(500));
                }
            });
            let options = StopOptions::new("test").timeout(long);
            world.stop_from_outside_with(options).map(drop).unwrap_err();
            // One every 5 ms, by the longest nap; a quarter of it for a busy machine.
            let nudges = counter.1.swap(0, Ordering::Relaxed);
            assert!(nudges >= 50, "only {nudges} nudges in the stop");

            let mut own = world.attach().unwrap();
            scope.spawn(|| {
                thread::sleep(long);
                done.raise();
            });
            let start = Instant::now();
            own.for_each_processor(|_| ()).unwrap();
            let nudges = counter.1.load(Ordering::Relaxed);
            assert!(nudges >= 50, "only {nudges} nudges in a for-each of {:?}", start.elapsed());
        });
    });
}

struct Panics(AtomicU32);

impl Nudge for Panics {
    fn nudge(
        &self,
        _thread: ThreadRef,
        _call: NudgeCall,
        _wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("out of the nudge");
    }

    fn settle(&self, _timeout: Duration) -> bool {
        true
    }
}

/// A panicking nudge is one that did nothing: nothing is left half done, and no request is lost.
#[test]
fn a_nudge_that_panics_ends_neither_a_stop_nor_a_for_each() {
    let name = "nudge::a_nudge_that_panics_ends_neither_a_stop_nor_a_for_each";
    in_child(name, Duration::from_secs(20), || {
        let (world, nudge) = (World::new(), Arc::new(Panics(AtomicU32::new(0))));
        // SAFETY: the mutator makes the calls that it hands out where it borrows nothing of the world.
        unsafe { world.set_nudge(nudge.clone()) };
        let (done, closures) = (Flag::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            mutator(scope, &world, "dawdler", |m| {
                while !done.is_up() {
                    thread::sleep(Duration::from_millis(20));
                    m.poll();
                }
            });
            let asked = || nudge.0.swap(0, Ordering::Relaxed);
            while asked() == 0 {
                let stopped = world.stop_from_outside("test").unwrap();
                assert_eq!(stopped.stats().mutators, 1);
                stopped.resume();
                thread::sleep(Duration::from_millis(1));
            }
            let mut own = world.attach().unwrap();
            while asked() == 0 {
                closures.store(0, Ordering::Relaxed);
                let visited = own.for_each_processor(|_| {
                    closures.fetch_add(1, Ordering::Relaxed);
                });
                let visited = visited.unwrap();
                assert_eq!((visited, closures.load(Ordering::Relaxed)), (2, 2));
                thread::sleep(Duration::from_millis(1));
            }
            done.raise();
        });
    });
}

/// A nudge that takes its time between its mark and the signal, which it does not really send.
#[derive(Default)]
struct Slow {
    marked: Flag,
    on_its_way: AtomicU32,
    wanted: AtomicU32,
    /// If set, waits for `acknowledged` before it looks whether it is wanted.
    late: bool,
    acknowledged: Flag,
    settled: AtomicU32,
}

impl Nudge for Slow {
    fn nudge(
        &self,
        _thread: ThreadRef,
        _call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        self.on_its_way.store(1, Ordering::SeqCst);
        self.marked.raise();
        if self.late {
            self.acknowledged.wait();
        }
        if wanted() {
            self.wanted.fetch_add(1, Ordering::SeqCst);
            // The signal comes in this time.
            thread::sleep(Duration::from_millis(20));
        }
        self.on_its_way.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Called by a target that has acknowledged.
    fn settle(&self, timeout: Duration) -> bool {
        self.acknowledged.raise();
        let start = Instant::now();
        while self.on_its_way.load(Ordering::SeqCst) != 0 && start.elapsed() < timeout {
            thread::yield_now();
        }
        self.settled.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// Asks the one mutator of `world`: by a for-each, or by a stop.
fn ask(world: &World, each: bool) {
    if each {
        let mut own = world.attach().unwrap();
        assert_eq!(own.for_each_processor(|_| ()).unwrap(), 2);
    } else {
        world.stop_from_outside("test").unwrap().resume();
    }
}

/// `poll`: acknowledges at a poll, and enters the region afterwards.
fn a_region_with_a_nudge_on_its_way(poll: bool, each: bool) {
    let (world, nudge) = (World::new(), Arc::new(Slow::default()));
    // SAFETY: it makes no calls.
    unsafe { world.set_nudge(nudge.clone()) };
    let over = Flag::default();
    thread::scope(|scope| {
        let blocks = mutator(scope, &world, "blocks", |m| {
            nudge.marked.wait();
            if poll {
                m.poll();
            }
            m.blocking(|| {
                let on_its_way = nudge.on_its_way.load(Ordering::SeqCst);
                assert_eq!(on_its_way, 0, "a nudge comes in the region ({poll}, {each})");
                over.wait();
            });
        });
        ask(&world, each);
        over.raise();
        blocks.join().unwrap();
    });
    assert!(nudge.settled.load(Ordering::SeqCst) > 0, "no thread waited for the nudge");
}

#[test]
fn a_region_is_not_entered_with_a_nudge_on_its_way() {
    let name = "nudge::a_region_is_not_entered_with_a_nudge_on_its_way";
    in_child(name, Duration::from_secs(20), || {
        for (poll, each) in [(false, false), (true, false), (false, true), (true, true)] {
            a_region_with_a_nudge_on_its_way(poll, each);
        }
    });
}

/// A requester that was about to nudge a target that has acknowledged meanwhile does not.
#[test]
fn a_mutator_that_has_acknowledged_is_not_nudged() {
    let name = "nudge::a_mutator_that_has_acknowledged_is_not_nudged";
    in_child(name, Duration::from_secs(20), || {
        for each in [false, true] {
            let world = World::new();
            let nudge = Arc::new(Slow { late: true, ..Slow::default() });
            // SAFETY: it makes no calls.
            unsafe { world.set_nudge(nudge.clone()) };
            let over = Flag::default();
            thread::scope(|scope| {
                let target = mutator(scope, &world, "target", |m| {
                    nudge.marked.wait();
                    if each {
                        m.poll();
                    }
                    m.blocking(|| over.wait());
                });
                ask(&world, each);
                over.raise();
                target.join().unwrap();
            });
            let wanted = nudge.wanted.load(Ordering::SeqCst);
            assert_eq!(wanted, 0, "nudged after it acknowledged (each: {each})");
        }
    });
}
