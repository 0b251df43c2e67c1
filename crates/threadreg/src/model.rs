//! The protocols under loom: every interleaving within the bound on preemptions.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::arena::Arena;
use crate::creation::{CreationLock, NotCreated, abandon, create, leave};
use crate::finding::Finding;
use crate::name::Name;
use crate::record::{Id, Phase, Record};

fn named(text: &str) -> Name {
    Name::new(text)
}

/// One thread's life after `clone`.
fn live(arena: &Arena, record: &Record, tid: i32) {
    record.start(tid);
    record.close();
    leave(arena, record);
}

/// T1, T2. While creation is frozen, a thread that exists is listed, and a listed one exists.
#[test]
fn frozen_list_and_existing_threads_agree() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let lock = Arc::new(CreationLock::new());
        // Threads that `clone` has brought into being.
        let exist = Arc::new(AtomicU32::new(0));

        let creator = {
            let (arena, lock, exist) = (arena.clone(), lock.clone(), exist.clone());
            thread::spawn(move || {
                while !lock.try_read() {
                    lock.wait_readable(|| None);
                }
                create(&arena, &named("new"), |_, _| {
                    exist.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, ()>(())
                })
                .expect("room, and a clone that works");
                lock.release_read();
            })
        };

        assert!(lock.write(|| None));
        assert_eq!(arena.listed().count(), exist.load(Ordering::SeqCst) as usize);
        lock.release_write();
        creator.join().expect("no panic");
    });
}

/// T1. A walker that learns of a thread by any other way finds it listed, lock or no lock.
#[test]
fn a_thread_that_runs_is_listed_already() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let lock = CreationLock::new();
        assert!(lock.try_read());
        let walker = create(&arena, &named("new"), |record, generation| {
            let arena = arena.clone();
            Ok::<_, ()>(thread::spawn(move || {
                let me = arena.listed().find(|&(listed, _)| core::ptr::eq(listed, record));
                assert_eq!(me.map(|(_, listed)| listed), Some(generation), "runs unlisted");
                live(&arena, record, 7);
            }))
        })
        .expect("room");
        lock.release_read();
        walker.join().expect("no panic");
        assert_eq!(arena.listed().count(), 0);
    });
}

/// T8, T10. While a pin holds, the thread has not exited, and the id is its own.
#[test]
fn a_pinned_thread_has_not_exited() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let record = arena.claim().expect("room");
        let generation = record.prepare(&named("first"));
        record.publish();
        record.start(7);
        // What the kernel would do after the thread's last instruction: give the id away.
        let exited = Arc::new(AtomicU32::new(0));

        let pinners: Vec<_> = (0..2)
            .map(|_| {
                let exited = exited.clone();
                thread::spawn(move || {
                    if record.pin(generation) {
                        assert!(matches!(record.tid(generation), Id::Gone | Id::Known(7)));
                        assert_eq!(exited.load(Ordering::SeqCst), 0, "exited under a pin");
                        record.unpin();
                    }
                })
            })
            .collect();

        record.close();
        exited.store(1, Ordering::SeqCst);
        leave(&arena, record);
        for pinner in pinners {
            pinner.join().expect("no panic");
        }
    });
}

/// A thread that is found in the list can be pinned, unless it exits: it does not look gone while it
/// arrives.
#[test]
fn an_arriving_thread_is_not_taken_for_one_that_exits() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let walker = {
            let arena = arena.clone();
            thread::spawn(move || {
                for (record, generation) in arena.listed() {
                    assert!(record.pin(generation), "listed, not exiting, and not to be pinned");
                    record.unpin();
                }
            })
        };
        let record = arena.claim().expect("room");
        record.prepare(&named("x"));
        record.publish();
        record.start(7);
        walker.join().expect("no panic");
    });
}

/// Runs `stale` with a reference to a thread whose record another thread takes over meanwhile.
fn taken_over(stale: fn(&'static Record, u32)) {
    loom::model(move || {
        let arena = Arena::new();
        let record = arena.claim().expect("room");
        let old = record.prepare(&named("ab"));
        record.publish();
        record.start(7);

        let stale = thread::spawn(move || stale(record, old));

        record.close();
        leave(&arena, record);
        let again = arena.claim().expect("room");
        assert!(core::ptr::eq(again, record));
        assert_eq!(again.prepare(&named("cdefgh")), old + 1);
        again.publish();
        again.start(8);
        assert!(again.pin(old + 1), "a late pin of the old thread must not keep the new one's out");
        again.unpin();
        stale.join().expect("no panic");
    });
}

/// T8. The id of a later thread of the record is never taken for that of the first.
#[test]
fn a_stale_reference_has_no_other_id() {
    taken_over(|record, old| {
        let tid = record.tid(old);
        assert!(matches!(tid, Id::Gone | Id::Known(7)), "{tid:?}");
    });
}

/// T8, T10. A pin by a stale reference fails, or was in time and then holds the first thread.
#[test]
fn a_stale_reference_pins_no_other_thread() {
    taken_over(|record, old| {
        if record.pin(old) {
            assert!(matches!(record.tid(old), Id::Gone | Id::Known(7)));
            assert_eq!(record.state().0, old, "the record changed hands under a pin");
            record.unpin();
        }
    });
}

/// T10. A name is read whole, or not at all.
#[test]
fn a_stale_reference_reads_no_torn_name() {
    taken_over(|record, old| {
        if let Some(name) = record.name(old) {
            assert_eq!(name, named("ab"));
        }
    });
}

/// A walk over records that come, go and come again shows each thread at most once, with its own
/// id.
#[test]
fn a_walk_shows_no_half_made_record() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let walker = {
            let arena = arena.clone();
            thread::spawn(move || {
                for (record, generation) in arena.listed() {
                    if let Id::Known(tid) = record.tid(generation) {
                        assert_eq!(
                            tid,
                            generation as i32 + 10,
                            "what this generation stores below"
                        );
                    }
                }
            })
        };
        for _ in 0..2 {
            let record = arena.claim().expect("room");
            let generation = record.prepare(&named("x"));
            record.publish();
            live(&arena, record, generation as i32 + 10);
        }
        walker.join().expect("no panic");
    });
}

/// Two claimers never get the same record.
#[test]
fn a_record_has_one_claimer() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let claim = |arena: &Arena| {
            let record = arena.claim().expect("room");
            record.prepare(&named("x"));
            record.publish();
            record.index()
        };
        let other = {
            let arena = arena.clone();
            thread::spawn(move || claim(&arena))
        };
        let mine = claim(&arena);
        assert_ne!(mine, other.join().expect("no panic"));
        assert_eq!(arena.listed().count(), 2);
    });
}

/// T6. A thread that waits for a start is woken by the start, and by a clone that failed.
#[test]
fn waiting_for_a_start_ends() {
    for fails in [false, true] {
        loom::model(move || {
            let arena = Arc::new(Arena::new());
            let record = arena.claim().expect("room");
            let generation = record.prepare(&named("x"));
            record.publish();
            let waiter = thread::spawn(move || {
                assert!(record.wait_started(generation, || None));
                record.tid(generation)
            });
            if fails {
                record.close();
                leave(&arena, record);
            } else {
                record.start(7);
            }
            let tid = waiter.join().expect("no panic");
            assert_eq!(tid, if fails { Id::Gone } else { Id::Known(7) });
        });
    }
}

/// T3. A clone that fails leaves nothing behind, whatever a walker does meanwhile.
#[test]
fn a_failed_clone_is_unlisted() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let walker = {
            let arena = arena.clone();
            thread::spawn(move || {
                for (record, generation) in arena.listed() {
                    if record.pin(generation) {
                        assert!(matches!(record.tid(generation), Id::Gone | Id::NotStarted));
                        record.unpin();
                    }
                }
            })
        };
        let lock = CreationLock::new();
        assert!(lock.try_read());
        let made = create(&arena, &named("x"), |_, _| Err::<(), _>("no"));
        let Err(NotCreated::Clone("no", record)) = made else { panic!("no record to abandon") };
        lock.release_read();
        abandon(&arena, record, || true);
        assert_eq!(arena.claimed().count(), 0);
        walker.join().expect("no panic");
        let record = arena.claim().expect("room");
        assert_eq!(record.state().1, Phase::Free);
    });
}

/// T3. A thread that has pinned another may wait for the lock: a creator waits for pins without it.
#[test]
fn a_failed_clone_holds_no_thread_up() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let lock = Arc::new(CreationLock::new());
        let requester = {
            let (arena, lock) = (arena.clone(), lock.clone());
            thread::spawn(move || {
                let listed = arena.listed().next();
                let pinned = listed.filter(|(record, generation)| record.pin(*generation));
                assert!(lock.write(|| None));
                lock.release_write();
                if let Some((record, _)) = pinned {
                    record.unpin();
                }
            })
        };
        while !lock.try_read() {
            lock.wait_readable(|| None);
        }
        let made = create(&arena, &named("x"), |_, _| Err::<(), _>(()));
        lock.release_read();
        let Err(NotCreated::Clone((), record)) = made else { panic!("no record to abandon") };
        abandon(&arena, record, || true);
        requester.join().expect("no panic");
    });
}

/// C1, C2, C3. The write side excludes creators and other writers, and every thread gets its turn.
#[test]
fn writers_exclude_creators_and_writers() {
    loom::model(|| {
        let lock = Arc::new(CreationLock::new());
        let inside = Arc::new(AtomicU32::new(0));
        let write = |lock: &CreationLock, inside: &AtomicU32| {
            assert!(lock.write(|| None));
            assert_eq!(inside.swap(1, Ordering::Relaxed), 0, "a writer is not alone");
            inside.store(0, Ordering::Relaxed);
            lock.release_write();
        };
        let writer = {
            let (lock, inside) = (lock.clone(), inside.clone());
            thread::spawn(move || write(&lock, &inside))
        };
        let reader = {
            let (lock, inside) = (lock.clone(), inside.clone());
            thread::spawn(move || {
                while !lock.try_read() {
                    lock.wait_readable(|| None);
                }
                assert_eq!(inside.load(Ordering::Relaxed), 0, "a creator beside a writer");
                lock.release_read();
            })
        };
        write(&lock, &inside);
        writer.join().expect("no panic");
        reader.join().expect("no panic");
    });
}

/// The write side excludes creators also when it is tried for, and a failed try leaves no trace.
#[test]
fn a_failed_try_for_the_write_side_leaves_it_free() {
    loom::model(|| {
        let lock = Arc::new(CreationLock::new());
        let trier = {
            let lock = lock.clone();
            thread::spawn(move || {
                if lock.try_write() {
                    lock.release_write();
                }
            })
        };
        while !lock.try_read() {
            lock.wait_readable(|| None);
        }
        assert!(!lock.try_write());
        lock.release_read();
        assert!(lock.write(|| None));
        lock.release_write();
        trier.join().expect("no panic");
    });
}

/// T5. A freeze that gives up leaves nothing behind, whatever creators and other requesters do
/// meanwhile.
#[test]
fn a_freeze_that_gives_up_leaves_creation_free() {
    loom::model(|| {
        let lock = Arc::new(CreationLock::new());
        assert!(lock.try_read());
        let late = {
            let lock = lock.clone();
            thread::spawn(move || {
                // No time at all.
                if lock.write(|| Some(core::time::Duration::ZERO)) {
                    lock.release_write();
                }
            })
        };
        let creator = {
            let lock = lock.clone();
            thread::spawn(move || {
                while !lock.try_read() {
                    lock.wait_readable(|| None);
                }
                lock.release_read();
            })
        };
        lock.release_read();
        late.join().expect("no panic");
        creator.join().expect("no panic");
        assert!(lock.try_write(), "neither side is held");
        lock.release_write();
    });
}

/// T6. A change that each thread is to get once, and that a new thread inherits from its creator. The
/// requester waits for every start first: else a creator that was changed already could make a thread
/// that has the change and gets it again.
#[test]
fn a_change_reaches_every_thread_once_through_clone() {
    loom::model(|| {
        let arena = Arc::new(Arena::new());
        let lock = Arc::new(CreationLock::new());
        // What the kernel keeps of each thread: the creator's and its child's.
        let changes = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let creator_record = arena.claim().expect("room");
        let creator_generation = creator_record.prepare(&named("c"));
        creator_record.publish();
        creator_record.start(1);

        let creator = {
            let (arena, lock, changes) = (arena.clone(), lock.clone(), changes.clone());
            thread::spawn(move || {
                while !lock.try_read() {
                    lock.wait_readable(|| None);
                }
                let made = create(&arena, &named("n"), |record, _| {
                    // `clone` copies the state of its caller.
                    changes[1].store(changes[0].load(Ordering::SeqCst), Ordering::SeqCst);
                    Ok::<_, ()>(thread::spawn(move || record.start(2)))
                });
                lock.release_read();
                made.expect("room").join().expect("no panic");
            })
        };

        assert!(lock.write(|| None));
        for (record, generation) in arena.listed() {
            assert!(record.wait_started(generation, || None));
        }
        for (record, generation) in arena.listed() {
            let Id::Known(tid) = record.tid(generation) else { panic!("cannot be told to change") };
            changes[tid as usize - 1].fetch_add(1, Ordering::SeqCst);
        }
        lock.release_write();
        creator.join().expect("no panic");
        assert!(creator_record.is_listed(creator_generation));
        let counts = [0, 1].map(|n: usize| changes[n].load(Ordering::SeqCst));
        assert_eq!(counts, [1, 1]);
    });
}

/// F1. Words of two writings are never taken for those of one, and what was kept is found.
#[test]
fn a_finding_is_compared_whole() {
    loom::model(|| {
        let finding = Arc::new(Finding::<2>::new());
        assert!(!finding.is([0, 0]), "nothing was kept");
        finding.keep([1, 1]);
        let writer = {
            let finding = finding.clone();
            thread::spawn(move || finding.keep([2, 2]))
        };
        assert!(!finding.is([1, 2]), "words of two writings");
        writer.join().expect("no panic");
        assert!(finding.is([2, 2]) && !finding.is([1, 1]));
    });
}

/// A writer that meets another one leaves the words to it.
#[test]
fn a_finding_has_one_writer_at_a_time() {
    loom::model(|| {
        let finding = Arc::new(Finding::<2>::new());
        let writers = [1, 2].map(|value| {
            let finding = finding.clone();
            thread::spawn(move || finding.keep([value; 2]))
        });
        for writer in writers {
            writer.join().expect("no panic");
        }
        assert!(finding.is([1, 1]) != finding.is([2, 2]));
    });
}
