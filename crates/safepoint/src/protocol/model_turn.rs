//! Models of turns: one thread has the turn, none waits in vain, and none is passed over.

use core::cell::Cell;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::model::*;
use super::turn::Turn;
use super::*;
use sigctx::sync::Ordering;

/// A turn, and what its holder alone touches, as far as loom is concerned.
struct Shared {
    turn: Turn,
    turns: UnsafeCell<u32>,
    theirs: AtomicU32,
}

// SAFETY: that accesses to the cell are ordered is what the models check.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Arc<Self> {
        let (turns, theirs) = (UnsafeCell::new(0), AtomicU32::new(0));
        Arc::new(Self { turn: Turn::new(), turns, theirs })
    }

    fn acquire(&self, limit: &impl Limit) -> bool {
        let has = self.turn.acquire::<Model>(&Model, None, 1, limit);
        if has {
            // SAFETY: checked by loom.
            self.turns.with_mut(|turns| unsafe { *turns += 1 });
        }
        has
    }

    fn release(&self) {
        self.turn.release(&Model);
    }

    /// As another thread, which says that it has had its turn.
    fn take_turn(&self, limit: &impl Limit) {
        if self.acquire(limit) {
            self.theirs.store(1, Ordering::Relaxed);
            self.release();
        }
    }
}

fn spawn(model: &Arc<Shared>, work: impl FnOnce(&Shared) + 'static) -> thread::JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || work(&model))
}

/// Gives up as soon as it waits.
struct Hasty(Cell<bool>);

impl Limit for Hasty {
    fn left(&self) -> Option<Duration> {
        let left = if self.0.replace(true) { Duration::ZERO } else { Duration::MAX };
        thread::yield_now();
        Some(left)
    }
}

/// The turn is back with a thread that asks again and again only after that of a thread which waited.
#[test]
fn a_turn_against_a_thread_that_waits() {
    loom::model(|| {
        let model = Shared::new();
        assert!(model.acquire(&Patient));
        let other = spawn(&model, |model| model.take_turn(&Patient));
        let is_awaited = model.turn.is_awaited();
        model.release();
        assert!(model.acquire(&Patient));
        if is_awaited {
            assert_eq!(model.theirs.load(Ordering::Relaxed), 1, "passed over");
        }
        model.release();
        other.join().unwrap();
    });
}

/// Both wait, or come one after the other: each has its turn, and is woken for it.
#[test]
fn a_turn_against_two_that_wait() {
    let mut builder = loom::model::Builder::new();
    // Three threads: one preemption less than usual, or it would take minutes.
    builder.preemption_bound = builder.preemption_bound.map(|n| n.min(2));
    builder.check(|| {
        let model = Shared::new();
        assert!(model.acquire(&Patient));
        let others = [(); 2].map(|()| spawn(&model, |model| model.take_turn(&Patient)));
        model.release();
        assert!(model.acquire(&Patient));
        model.release();
        for other in others {
            other.join().unwrap();
        }
        assert!(model.turn.try_acquire(1), "it is free");
        // SAFETY: checked by loom.
        assert_eq!(model.turns.with(|turns| unsafe { *turns }), 4);
    });
}

/// A thread that gives up may have been woken for its turn: the others have it.
#[test]
fn a_turn_against_one_that_gives_up() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.map(|n| n.min(2));
    builder.check(|| {
        let model = Shared::new();
        assert!(model.acquire(&Patient));
        let hasty = spawn(&model, |model| model.take_turn(&Hasty(Cell::new(false))));
        let patient = spawn(&model, |model| model.take_turn(&Patient));
        model.release();
        assert!(model.acquire(&Patient));
        model.release();
        hasty.join().unwrap();
        patient.join().unwrap();
        assert!(model.turn.try_acquire(1), "it is free");
    });
}
