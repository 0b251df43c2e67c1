//! Models of the protocol: the real code above, every interleaving, loom's memory model.

use core::time::Duration;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;
use crate::sync::{Ordering, fence};

/// Both fences in full: the pair is what the models are about, not membarrier.
#[derive(Debug)]
struct Model;

// One queue for all words: a wake wakes everybody, which is allowed, since sleepers look again. A
// wake that is missing leaves a sleeper behind, and loom reports the deadlock. No timeouts: the
// protocol has to get there without looking again.
loom::lazy_static! {
    static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
}

impl Edge for Model {
    type Identity = ();

    fn light(&self) {
        fence(Ordering::SeqCst);
    }

    fn heavy(&self) {
        fence(Ordering::SeqCst);
    }

    fn wait(&self, word: &AtomicU32, expected: u32, _timeout: Option<Duration>) -> bool {
        let held = QUEUE.0.lock().expect("no model panics with it held");
        if word.load(Ordering::SeqCst) == expected {
            drop(QUEUE.1.wait(held).expect("no model panics with it held"));
        }
        false
    }

    fn wake_all(&self, _word: &AtomicU32) {
        let _held = QUEUE.0.lock().expect("no model panics with it held");
        QUEUE.1.notify_all();
    }

    fn wake_one(&self, word: &AtomicU32) {
        self.wake_all(word);
    }

    fn spin(&self, _running: u32, done: impl Fn() -> bool) -> bool {
        done()
    }

    fn fresh() -> &'static Chunk<()> {
        Box::leak(Box::new(Chunk::new()))
    }

    fn recycle(chunk: &'static Chunk<()>) {
        // SAFETY: from `fresh`, and the arena's contract is that nobody uses it any more.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(chunk).cast_mut()) });
    }
}

/// Waits for ever.
struct Patient;

impl Pace<Model> for Patient {
    fn left(&self) -> Option<Duration> {
        None
    }
    fn expired(&self) -> bool {
        false
    }
    fn nap(&mut self) -> Option<Duration> {
        None
    }
    fn late(&mut self, _slot: &'static Slot<()>) {}
}

/// Its deadline has always passed already.
struct Impatient;

impl Pace<Model> for Impatient {
    fn left(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn expired(&self) -> bool {
        true
    }
    fn nap(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn late(&mut self, _slot: &'static Slot<()>) {}
}

/// The world, and something that mutators touch only when they run and stoppers only when they do
/// not. Plain memory as far as loom is concerned: two accesses that nothing orders are a failure.
struct World {
    protocol: Protocol<Model>,
    heap: loom::cell::UnsafeCell<u32>,
}

// SAFETY: that accesses to the heap are ordered is what the models check.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

type Mutator = &'static Slot<()>;

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { protocol: Protocol::new(Model), heap: loom::cell::UnsafeCell::new(0) })
    }

    fn attach(&self) -> Mutator {
        self.protocol.attach(|_| ()).expect("room for a model's threads")
    }

    /// User code: many mutators may read at once.
    fn touch(&self) {
        // SAFETY: checked by loom.
        self.heap.with(|heap| unsafe { *heap });
    }

    fn poll(&self, slot: Mutator) {
        if slot.is_asked() {
            self.protocol.settle(slot);
        }
    }

    /// The stopper's work: needs the heap for itself.
    fn in_stop(&self) {
        // SAFETY: checked by loom.
        self.heap.with_mut(|heap| unsafe { *heap += 1 });
        assert!(
            self.protocol.live().all(|slot| slot.state() != MutatorState::Running
                || slot.asked.poll.load(Ordering::Relaxed) != 0),
            "a mutator runs in a stopped world and is not on its way back"
        );
    }

    fn stop_outside(&self) -> u32 {
        assert!(self.protocol.stop_turn.take(&Model, &mut Patient), "has no deadline");
        let counted = self.protocol.stop(None, &mut Patient).expect("has no deadline");
        self.in_stop();
        self.protocol.resume();
        self.protocol.stop_turn.pass(&Model);
        counted.mutators
    }

    fn stop_as(&self, own: Mutator) {
        self.protocol.enter(own);
        assert!(self.protocol.stop_turn.take(&Model, &mut Patient), "has no deadline");
        self.protocol.stop(Some(own), &mut Patient).expect("has no deadline");
        self.in_stop();
        self.protocol.resume();
        self.protocol.stop_turn.pass(&Model);
        self.protocol.leave(own);
    }
}

#[test]
fn stop_against_a_safe_region() {
    loom::model(|| {
        let world = World::new();
        let stopper = thread::spawn({
            let world = world.clone();
            move || world.stop_outside()
        });
        let slot = world.attach();
        world.touch();
        world.protocol.enter(slot);
        world.protocol.leave(slot);
        world.touch();
        world.protocol.detach(slot, || ());
        stopper.join().unwrap();
    });
}
