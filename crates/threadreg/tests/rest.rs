//! Slots, events and fork.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use sigctx::sys;
use testkit::{forked, in_child, until};
use threadreg::procfs::TaskDir;
use threadreg::{Builder, Event, Slot, SlotId, attach, current, freeze_creation, threads};

const MINUTE: Duration = Duration::from_mins(1);

/// T10. A slot's value is made once a record.
#[test]
fn a_slot_outlives_its_thread_and_serves_the_next() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    static VISITS: Slot<AtomicU32> = Slot::new(SlotId::User);
    in_child("a_slot_outlives_its_thread_and_serves_the_next", MINUTE, || {
        let visit = || {
            let me = current().expect("registered");
            let made = || {
                MADE.fetch_add(1, SeqCst);
                AtomicU32::new(0)
            };
            let before = VISITS.get_or_init(me, made).fetch_add(1, SeqCst);
            (me, before)
        };
        let (first, before) = threadreg::spawn(visit).join().expect("no panic");
        assert_eq!(before, 0);
        let (second, before) = threadreg::spawn(visit).join().expect("no panic");
        assert_eq!(second.index(), first.index());
        assert_ne!(second.generation(), first.generation(), "what the slot's user compares");
        assert_eq!((before, MADE.load(SeqCst)), (1, 1), "one value a record");
        assert_eq!(VISITS.get(first).expect("stays").load(SeqCst), 2);

        let other: Slot<AtomicU32> = Slot::new(SlotId::Preempt);
        assert!(other.get(first).is_none(), "each id has its own place");
        let wrong: Slot<AtomicUsize> = Slot::new(SlotId::User);
        assert!(wrong.get(first).is_none(), "another type is not found");
        let made = std::panic::catch_unwind(|| wrong.get_or_init(first, || AtomicUsize::new(0)));
        assert!(made.is_err(), "nor made");
    });
}

#[test]
fn events_are_bounded_ordered_and_never_wait() {
    in_child("events_are_bounded_ordered_and_never_wait", MINUTE, || {
        let wide = threadreg::subscribe(64);
        let narrow = threadreg::subscribe(3);
        let deaf = threadreg::subscribe(1);
        drop(deaf);
        let begin = Instant::now();
        let mut made = Vec::new();
        for n in 0..10 {
            let name = format!("worker {n}");
            let worker = Builder::new().name(&name).spawn(sys::gettid).expect("spawns");
            let thread = worker.thread();
            made.push((name, thread, worker.join().expect("no panic")));
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "a full channel held threads up");
        for (name, thread, tid) in &made {
            match wide.receiver().try_recv().expect("there") {
                Event::Started { thread: t, tid: id, name: n } => {
                    assert_eq!((&t, &id, n.as_str()), (thread, tid, name.as_str()));
                }
                other => panic!("{other:?}"),
            }
            match wide.receiver().try_recv().expect("there") {
                Event::Exited { thread: t, tid: id, name: n } => {
                    assert_eq!((&t, &id, n.as_str()), (thread, tid, name.as_str()));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((wide.receiver().len(), wide.dropped()), (0, 0));
        assert_eq!((narrow.receiver().len(), narrow.dropped()), (3, 17));
    });
}

/// Runs `child` in a child of `fork`, and fails if it does.
fn in_fork(child: impl FnOnce() -> bool) {
    assert_eq!(forked(|| assert!(child())), 0, "in the child of fork");
}

/// T14. The list, the lock and the guards of the parent mean nothing in the child.
#[test]
fn the_child_of_a_fork_has_one_thread() {
    in_child("the_child_of_a_fork_has_one_thread", MINUTE, || {
        let me = attach().expect("attaches");
        let mine = me.thread();
        let worker = threadreg::spawn(thread::park);
        let other = worker.thread();
        until("it starts", || other.tid().is_some());
        let pinned = other.pin().expect("alive");
        let frozen = freeze_creation();
        let events = threadreg::subscribe(8);
        let tasks = TaskDir::open().expect("/proc");
        let mut guards = Some((pinned, frozen));
        in_fork(|| {
            assert_eq!(threads().collect::<Vec<_>>(), [mine]);
            assert_eq!((current(), mine.tid()), (Some(mine), Some(sys::gettid())));
            assert!(!other.is_alive() && other.pin().is_err());
            assert!(tasks.count().is_err(), "the directory is the parent's");
            // Guards from before hold nothing, and their drop gives nothing back.
            let (pinned, frozen) = guards.take().expect("copied");
            assert_eq!(pinned.signal(0), Err(threadreg::SignalError::Gone));
            let new = threadreg::try_freeze_creation().expect("free in the child");
            drop(frozen);
            assert!(threadreg::try_freeze_creation().is_none(), "still the new guard's");
            drop(new);
            let next = threadreg::spawn(move || (current().expect("registered"), pinned.tid()));
            let (listed, pinned) = next.join().expect("no panic");
            assert_eq!(listed.index(), other.index(), "the ghost's record is free");
            assert_eq!(pinned, None, "the id is the next thread's");
            assert!(events.receiver().is_empty(), "no subscriptions");
            true
        });
        // The parent is as it was.
        assert!(guards.is_some() && other.is_alive());
        drop(guards);
        assert_eq!(threads().count(), 2);
        worker.unpark();
        worker.join().expect("no panic");
        drop(me);

        // An unregistered thread forks: no listed thread is left.
        let worker = threadreg::spawn(thread::park);
        in_fork(|| {
            assert_eq!((threads().count(), current()), (0, None));
            let me = attach().expect("attaches");
            me.thread().tid() == Some(sys::gettid())
        });
        worker.unpark();
        worker.join().expect("no panic");
    });
}

/// T14. A fork may copy what another thread does to a record that is free.
#[test]
fn stress_a_late_pin_stays_with_the_parent() {
    in_child("stress_a_late_pin_stays_with_the_parent", Duration::from_secs(20), || {
        let worker = threadreg::spawn(|| ());
        let stale = worker.thread();
        worker.join().expect("no panic");
        thread::spawn(move || {
            while stale.pin().is_err() {}
            unreachable!("the thread is gone");
        });
        for _ in 0..testkit::budget(200) {
            in_fork(|| {
                let me = attach().expect("attaches");
                assert_eq!(me.thread().index(), stale.index(), "the record is free");
                // Would wait for a pin that no thread holds.
                drop(me);
                threads().count() == 0
            });
        }
    });
}

/// T14. No thread was spawned or attached before, which would have registered the handler.
#[test]
fn a_freeze_registers_the_fork_handler() {
    in_child("a_freeze_registers_the_fork_handler", MINUTE, || {
        let (frozen, is_frozen) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let _frozen = freeze_creation();
            frozen.send(()).expect("awaited");
            thread::park();
        });
        is_frozen.recv().expect("sent");
        in_fork(|| threadreg::try_freeze_creation().is_some());
    });
}

/// T14. A channel that a fork copied is not touched in the child.
#[test]
fn a_subscription_registers_the_fork_handler() {
    in_child("a_subscription_registers_the_fork_handler", MINUTE, || {
        let events = threadreg::subscribe(1);
        in_fork(|| {
            drop(attach().expect("attaches"));
            events.receiver().is_empty()
        });
    });
}

/// T14. A fork may copy the registry in the middle of any change.
#[test]
fn stress_forks_amid_a_spawn_storm_find_a_usable_registry() {
    in_child("stress_forks_amid_a_spawn_storm_find_a_usable_registry", 2 * MINUTE, || {
        for _ in 0..2 {
            thread::spawn(|| {
                loop {
                    threadreg::spawn(|| ()).join().expect("no panic");
                }
            });
        }
        let _me = attach().expect("attaches");
        for _ in 0..testkit::budget(200) {
            in_fork(|| {
                let frozen = threadreg::try_freeze_creation();
                frozen.is_some() && threads().count() == 1
            });
        }
    });
}
