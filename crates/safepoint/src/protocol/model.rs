//! Models of the protocol: the real code, every interleaving, loom's memory model.

use core::cell::Cell;
use core::ptr;
use core::time::Duration;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use sigctx::sync::{self, Ordering, fence};

loom::thread_local! {
    /// The thread is a requester that no other thread asks. Its own light fences order nothing, as on a
    /// processor: it has to make the heavy one where it needs one.
    static ASKS_ONLY: Cell<bool> = Cell::new(false);
}

/// Both fences are full ones, but for models of nudges before the heavy one: most models are about the pair, not
/// about membarrier.
#[derive(Debug)]
pub(super) struct Model;

impl System for Model {
    type Identity = ();

    fn targets_fence(&self) -> bool {
        true
    }

    fn targets_stand(&self) -> bool {
        super::model_entry::targets_stand()
    }

    fn light(&self) {
        if !ASKS_ONLY.with(Cell::get) && !super::model_regions::is_light() {
            fence(Ordering::SeqCst);
        }
    }

    fn light_to_enter(&self) {
        if !super::model_entry::is_unfenced() {
            self.light();
        }
    }

    fn heavy(&self) {
        fence(Ordering::SeqCst);
        super::model_regions::have_target_fence();
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        if timeout == Some(Duration::ZERO) {
            return;
        }
        // No timeout: no wait may rely on one.
        sync::wait(word, expected, timeout);
    }

    fn wake_all(&self, word: &AtomicU32) {
        sync::wake_all(word);
    }

    fn wake_one(&self, word: &AtomicU32) {
        sync::wake_one(word);
    }

    fn spin(&self, _running: u32, done: impl Fn() -> bool) -> bool {
        done()
    }

    fn settle_nudges(&self) {
        super::model_regions::settle_nudges();
    }

    fn may_recall(&self) -> bool {
        super::model_regions::may_recall()
    }

    fn serve(&self) {
        super::model_regions::serve();
    }

    fn stay_while_held(&self) {
        super::model_regions::stay_while_held();
    }

    fn fresh() -> &'static Chunk<()> {
        Box::leak(Box::new(Chunk::new()))
    }

    fn recycle(chunk: &'static Chunk<()>) {
        // SAFETY: from `fresh`, and no thread uses it any more: that is the arena's contract.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(chunk).cast_mut()) });
    }
}

/// Waits forever.
pub(super) struct Patient;

impl Limit for Patient {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl Pace<Model> for Patient {
    type Seen = ();

    fn expired(&self) -> bool {
        false
    }
    fn nap(&self) -> Option<Duration> {
        None
    }
    fn due(&mut self) -> bool {
        false
    }
    fn late(&mut self, _slot: &'static MutatorSlot<()>, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: &'static MutatorSlot<()>) {}
}

/// Its deadline has always passed already.
pub(super) struct Impatient;

impl Limit for Impatient {
    fn left(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Pace<Model> for Impatient {
    type Seen = ();

    fn expired(&self) -> bool {
        true
    }
    /// Asked past the deadline only.
    fn nap(&self) -> Option<Duration> {
        None
    }
    fn due(&mut self) -> bool {
        true
    }
    fn late(&mut self, _slot: &'static MutatorSlot<()>, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: &'static MutatorSlot<()>) {}
}

/// The world, and memory as a user has it. Plain memory as far as loom is concerned: two accesses
/// that nothing orders fail the model.
pub(super) struct World {
    pub(super) protocol: Protocol<Model>,
    /// Touched by mutators only when they run, and changed by requesters only when no mutator runs.
    heap: UnsafeCell<u32>,
    /// A mutator's own, by slot: touched by the mutator when it runs, and by the closure for it.
    own: [UnsafeCell<u32>; arena::CHUNK],
}

// SAFETY: that accesses to the cells are ordered is what the models check.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

pub(super) type Mutator = &'static MutatorSlot<()>;

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            protocol: Protocol::new(Model),
            heap: UnsafeCell::new(0),
            own: core::array::from_fn(|_| UnsafeCell::new(0)),
        })
    }

    pub(super) fn attach(&self) -> Mutator {
        self.protocol.attach(|_| (), |_| (), &Patient).expect("room for a model's threads")
    }

    pub(super) fn detach(&self, slot: Mutator) {
        if slot.stance().is_some() {
            self.detach_safe(slot, super::model_detach::NOBODY, false);
        } else {
            self.protocol.detach(slot, || ());
        }
    }

    /// User code.
    pub(super) fn work(&self, slot: Mutator) {
        // SAFETY: checked by loom.
        self.heap.with(|heap| unsafe { *heap });
        // SAFETY: checked by loom.
        self.own[slot.index() as usize].with_mut(|own| unsafe { *own |= 0x100 });
    }

    pub(super) fn poll(&self, slot: Mutator) {
        if slot.is_armed() {
            self.protocol.process(slot);
        }
    }

    /// The requester's work, with all memory to itself.
    pub(super) fn in_stop(&self) {
        // SAFETY: checked by loom.
        self.heap.with_mut(|heap| unsafe { *heap += 1 });
        for slot in self.protocol.live() {
            // SAFETY: checked by loom.
            self.own[slot.index() as usize].with_mut(|own| unsafe { *own |= 0x100 });
        }
    }

    pub(super) fn stop_outside(&self) -> u32 {
        self.stop_but(None)
    }

    /// Stops all mutators but one.
    fn stop_but(&self, one: Option<Mutator>) -> u32 {
        assert!(self.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "has no deadline");
        let counted = self.protocol.stop(one, &mut Patient).expect("has no deadline");
        self.in_stop();
        self.protocol.resume();
        self.protocol.stop_turn.release(&Model);
        counted.mutators
    }

    pub(super) fn stop_as(&self, own: Mutator) {
        self.protocol.enter(own, Stance::Waits);
        let took = self.protocol.stop_turn.acquire(&Model, Some(own), 1, &Patient);
        assert!(took && self.protocol.begin_work(own), "no deadline, nothing held");
        self.protocol.stop(Some(own), &mut Patient).expect("has no deadline");
        self.in_stop();
        self.protocol.resume();
        self.protocol.stop_turn.release(&Model);
        self.protocol.leave(own);
    }

    /// Counts the visit in the mutator's own memory. Reads the heap, which no requester may touch then.
    pub(super) fn for_each(&self, own: Mutator) {
        self.for_each_at(own, &mut Patient);
    }

    /// As [`World::for_each`], at a pace without a deadline.
    pub(super) fn for_each_at(&self, own: Mutator, pace: &mut impl Pace<Model>) {
        self.for_each_inside(own, pace, || ());
    }

    /// As [`World::for_each`], with `inside` called in each closure.
    pub(super) fn for_each_with(&self, own: Mutator, inside: impl Fn() + Sync) {
        self.for_each_inside(own, &mut Patient, inside);
    }

    fn for_each_inside(&self, own: Mutator, pace: &mut impl Pace<Model>, inside: impl Fn() + Sync) {
        let visit = |slot: Mutator| self.visit(slot, &inside);
        assert!(self.protocol.for_each(own, 1, &visit, pace).is_ok(), "has no deadline");
    }

    /// What runs for a mutator.
    pub(super) fn visit(&self, slot: Mutator, inside: impl Fn()) {
        // SAFETY: checked by loom.
        self.heap.with(|heap| unsafe { *heap });
        inside();
        // SAFETY: checked by loom.
        self.own[slot.index() as usize].with_mut(|own| unsafe { *own += 1 });
    }

    /// How often closures ran for the mutator. The mutator asks, while it runs.
    pub(super) fn visits(&self, slot: Mutator) -> u32 {
        // SAFETY: checked by loom.
        self.own[slot.index() as usize].with(|own| unsafe { *own } & 0xff)
    }
}

pub(super) fn spawn<T: 'static>(
    world: &Arc<World>,
    work: impl FnOnce(&World) -> T + 'static,
) -> thread::JoinHandle<T> {
    let world = world.clone();
    thread::spawn(move || work(&world))
}

/// W1. A mutator that enters or leaves a safe region while a stop begins is stopped, and not waited for.
#[test]
fn stop_against_a_safe_region() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, World::stop_outside);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        // In the region forever, as in a read that never returns.
        assert_eq!(requester.join().unwrap(), 1, "counted once");
    });
}

#[test]
fn stop_against_a_poll() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, World::stop_outside);
        world.work(slot);
        world.poll(slot);
        world.work(slot);
        world.detach(slot);
        requester.join().unwrap();
    });
}

/// Two acknowledgements for one mutator would end a stop before the other mutator has stopped.
#[test]
fn stop_waits_for_each_of_two() {
    let mut model = loom::model::Builder::new();
    // Three threads: one preemption less than usual, or it would take minutes.
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let (prompt, late) = (world.attach(), world.attach());
        let first = spawn(&world, move |world| world.protocol.enter(prompt, Stance::Away));
        let second = spawn(&world, move |world| {
            world.work(late);
            world.protocol.enter(late, Stance::Away);
        });
        assert_eq!(world.stop_outside(), 2, "each counted once");
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// A mutator that only polls, and wakes from the first stop when the second has begun, must not
/// clear the second's bit with the first's.
#[test]
fn second_stop_against_a_mutator_that_leaves_the_first() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let done = Arc::new(AtomicU32::new(0));
        let requester = spawn(&world, {
            let done = done.clone();
            move |world| {
                world.stop_outside();
                world.stop_outside();
                done.store(1, Ordering::Release);
            }
        });
        // If the second stop's bit is lost this goes on forever, and loom gives up.
        while done.load(Ordering::Acquire) == 0 {
            world.poll(slot);
            thread::yield_now();
        }
        world.detach(slot);
        requester.join().unwrap();
    });
}

#[test]
fn attach_and_detach_during_a_stop() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, World::stop_outside);
        world.detach(slot);
        // The same slot, perhaps with a request still pending.
        let slot = world.attach();
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// W5. Two mutators want to stop each other. One waits for its turn and is stopped.
#[test]
fn two_requesters_of_stops() {
    loom::model(|| {
        let world = World::new();
        let (slot, theirs) = (world.attach(), world.attach());
        let other = spawn(&world, move |world| {
            world.stop_as(theirs);
            world.work(theirs);
            world.protocol.enter(theirs, Stance::Away);
        });
        world.stop_as(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        other.join().unwrap();
    });
}

/// W2, W3. Exactly once, whatever the target does meanwhile.
fn for_each_against(target: impl Fn(&World, Mutator) + Send + Sync + Copy + 'static) {
    loom::model(move || {
        let world = World::new();
        let slot = world.attach();
        let own = world.attach();
        let requester = spawn(&world, move |world| {
            ASKS_ONLY.with(|asks| asks.set(true));
            world.for_each(own);
            assert_eq!(world.visits(own), 1, "the requester's own closure ran once");
            world.detach(own);
        });
        target(&world, slot);
        requester.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the target");
    });
}

#[test]
fn for_each_against_a_runner_that_polls() {
    for_each_against(|world, slot| {
        world.work(slot);
        world.poll(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
    });
}

#[test]
fn for_each_against_a_mutator_that_leaves_a_safe_region() {
    for_each_against(|world, slot| {
        world.protocol.enter(slot, Stance::Away);
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
    });
}

/// W4. A target that detaches is visited or gone, and the requester is woken either way.
#[test]
fn for_each_against_detach_and_attach() {
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, move |world| world.for_each(own));
        world.detach(slot);
        let slot = world.attach();
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// A requester of a for-each can be stopped while it waits, and no closure runs in the stop.
#[test]
fn for_each_beside_a_stop() {
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let requester = spawn(&world, World::stop_outside);
        world.for_each(own);
        assert_eq!(world.visits(own), 1, "the requester's own closure ran once");
        world.protocol.enter(own, Stance::Away);
        assert_eq!(requester.join().unwrap(), 2, "each counted once");
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the target");
    });
}

/// All three on threads of their own. One preemption less than usual, or it would take minutes.
#[test]
fn for_each_beside_a_stop_against_a_runner() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let of_stop = spawn(&world, World::stop_outside);
        let of_each = spawn(&world, move |world| {
            world.for_each(own);
            world.protocol.enter(own, Stance::Away);
        });
        world.poll(slot);
        world.protocol.enter(slot, Stance::Away);
        of_stop.join().unwrap();
        of_each.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "ran once for the target");
    });
}

/// A target that waits for a claimed closure acknowledges a stop whose bit is not set yet. It must not run
/// again all the same.
///
/// The stop leaves out the thread that asks for the closure, which touches nothing: no more than what the target
/// may meet.
#[test]
fn stop_against_a_mutator_that_leaves_under_a_claim() {
    let mut model = loom::model::Builder::new();
    // Three threads: one preemption less than usual. A yield is no preemption.
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        let requester = spawn(&world, move |world| world.stop_but(Some(own)));
        let leaver = spawn(&world, move |world| {
            world.protocol.leave(slot);
            world.work(slot);
            thread::yield_now();
            world.protocol.enter(slot, Stance::Away);
        });
        let visit = |_: Mutator| thread::yield_now();
        assert!(world.protocol.for_each(own, 1, &visit, &mut Patient).is_ok(), "has no deadline");
        assert_eq!(requester.join().unwrap(), 1, "counted once");
        leaver.join().unwrap();
    });
}

/// As above, for a target that detaches with a closure pending: that does not run in the stop.
#[test]
fn stop_against_a_mutator_that_detaches_with_a_closure_pending() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, World::stop_outside);
        let leaver = spawn(&world, move |world| world.detach(slot));
        world.for_each_with(own, thread::yield_now);
        world.protocol.enter(own, Stance::Away);
        requester.join().unwrap();
        leaver.join().unwrap();
    });
}

/// A spare chunk is given to one thread at a time, with all that the last one wrote, and none gets lost.
#[test]
fn a_spare_chunk_is_taken_once() {
    /// The chunks' contents, as far as loom is concerned.
    struct Contents([(usize, UnsafeCell<u32>); 2]);
    // SAFETY: that accesses to the cells are ordered is what the model checks.
    unsafe impl Sync for Contents {}
    // SAFETY: as above.
    unsafe impl Send for Contents {}

    fn use_one(spare: &arena::Spare<()>, contents: &Contents) {
        let Some(chunk) = spare.take() else { return };
        let (_, cell) = contents
            .0
            .iter()
            .find(|(address, _)| *address == ptr::from_ref(chunk).addr())
            .expect("one of the two");
        // SAFETY: checked by loom.
        cell.with_mut(|count| unsafe { *count += 1 });
        spare.put(chunk);
    }

    loom::model(|| {
        let spare = Arc::new(arena::Spare::new());
        let contents = Arc::new(Contents([(); 2].map(|()| {
            let chunk = Model::fresh();
            spare.put(chunk);
            (ptr::from_ref(chunk).addr(), UnsafeCell::new(0))
        })));
        let other = {
            let (spare, contents) = (spare.clone(), contents.clone());
            thread::spawn(move || {
                use_one(&spare, &contents);
                use_one(&spare, &contents);
            })
        };
        use_one(&spare, &contents);
        other.join().unwrap();
        for _ in 0..2 {
            Model::recycle(spare.take().expect("both are there again"));
        }
        assert!(spare.take().is_none(), "more than there were");
    });
}

/// The steps by which Go's shared count went wrong (Go commit f0dd002), as far as they exist here.
///
/// 1. The collector asks for a stop.
/// 2. M1 publishes its safe region, 3. finds the request, 4. and is held up before it acknowledges.
/// 5. The collector acknowledges for M1, does its work, 6. and resumes, 7. without waiting for M1.
/// 8. M2 comes back from a safe region, 9. runs, 10. and enters another.
/// 11. The collector asks for a for-each, and M1 gives the acknowledgement that it was about to give.
///
/// M1 acknowledges the stop. Counted for the for-each, that would end it too early.
#[test]
fn late_acknowledgement_of_a_stop_is_none_of_a_for_each() {
    loom::model(|| {
        let world = World::new();
        let (m1, m2, collector) = (world.attach(), world.attach(), world.attach());
        world.protocol.enter(m2, Stance::Away);
        let first = spawn(&world, move |world| world.protocol.enter(m1, Stance::Away)); // 2, 3, 4, 11
        world.stop_as(collector); // 1, 5, 6, 7
        world.protocol.leave(m2); // 8, 9
        world.protocol.enter(m2, Stance::Away); // 10
        world.for_each(collector); // 11
        world.protocol.leave(m2);
        assert_eq!([world.visits(m2), world.visits(collector)], [1, 1], "all once");
        first.join().unwrap();
        assert_eq!(world.visits(m1), 1, "for-each returned with M1 visited");
    });
}
