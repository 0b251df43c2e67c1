//! Models of what else concerns a safe region: nudges on their way, bits that are left, handlers of a crate that
//! suspends tasks, and deadlines.

use std::cell::Cell;

use loom::thread;

use super::model::*;
use super::*;
use sigctx::sync::{Ordering, fence};

loom::lazy_static! {
    /// A nudge is on its way to the one thread that is nudged.
    static ref PENDING: AtomicU32 = AtomicU32::new(0);
    /// That thread is in a region, or in code that it entered after it had acknowledged.
    static ref INSIDE: AtomicU32 = AtomicU32::new(0);
    static ref SERVED: AtomicU32 = AtomicU32::new(0);
    /// The thread's task is held.
    static ref HELD: AtomicU32 = AtomicU32::new(1);
    /// The thread stayed, and found its task held.
    static ref STAYED: AtomicU32 = AtomicU32::new(0);
    /// 1 while a heavy fence waits for the one target to make a full one.
    static ref FENCE_WANTED: AtomicU32 = AtomicU32::new(0);
}

// What the model is about, so that the other models are not larger for it. Thread-locals will do: loom
// runs all threads of a model on one.
thread_local! {
    static NUDGES: Cell<bool> = const { Cell::new(false) };
    static RECALLS: Cell<bool> = const { Cell::new(false) };
    static LIGHT: Cell<bool> = const { Cell::new(false) };
}

/// The one target's light fence: nothing, unless the kernel makes it fence just there. Else false.
pub(super) fn is_light() -> bool {
    if LIGHT.get() {
        may_fence();
    }
    LIGHT.get()
}

/// A point of the one target's code at which a heavy fence of another thread may make it fence.
fn may_fence() {
    if FENCE_WANTED.load(Ordering::Relaxed) == 1 {
        fence(Ordering::SeqCst);
        FENCE_WANTED.store(0, Ordering::Release);
    }
}

/// What membarrier does: waits until the one target has made a full fence, anywhere in its code.
pub(super) fn have_target_fence() {
    if LIGHT.get() {
        FENCE_WANTED.store(1, Ordering::Release);
        while FENCE_WANTED.load(Ordering::Acquire) == 1 {
            thread::yield_now();
        }
        fence(Ordering::SeqCst);
    }
}

pub(super) fn may_recall() -> bool {
    RECALLS.get()
}

/// As the `settle` of a nudge, which begins with a fence.
pub(super) fn settle_nudges() {
    if !NUDGES.get() {
        return;
    }
    fence(Ordering::SeqCst);
    while PENDING.load(Ordering::Acquire) != 0 {
        thread::yield_now();
    }
}

pub(super) fn serve() {
    SERVED.store(1, Ordering::Release);
}

pub(super) fn stay_while_held() {
    STAYED.store(HELD.load(Ordering::Acquire), Ordering::Release);
}

/// Nudges at once where that is expected to be of use, and at its first look, and then only waits.
struct Nudges(bool);

impl Nudges {
    fn nudge(wanted: &dyn Fn() -> bool) {
        PENDING.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if wanted() {
            // The signal comes to the thread at some time from here on, and its handler acknowledges.
            // The thread gets on without a preemption, of which a model has few.
            thread::yield_now();
            assert_eq!(INSIDE.load(Ordering::Relaxed), 0, "a nudge came to a thread in its region");
        }
        PENDING.store(0, Ordering::Release);
    }
}

impl Limit for Nudges {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl Pace<Model> for Nudges {
    type Seen = ();

    fn expired(&self) -> bool {
        false
    }
    fn nap(&self) -> Option<Duration> {
        self.0.then_some(Duration::ZERO)
    }
    fn due(&mut self) -> bool {
        core::mem::take(&mut self.0)
    }
    fn expect_late(&mut self, _slot: Mutator, wanted: &dyn Fn() -> bool) {
        Self::nudge(wanted);
    }
    fn late(&mut self, _slot: Mutator, wanted: &dyn Fn() -> bool) {
        Self::nudge(wanted);
    }
    fn look(&self, _slot: Mutator) {}
}

/// In a region, where no nudge is to come.
fn blocks(world: &World, slot: Mutator) {
    world.protocol.enter(slot, Stance::Away);
    INSIDE.store(1, Ordering::Relaxed);
    // As in `Nudges::late`.
    thread::yield_now();
    INSIDE.store(0, Ordering::Relaxed);
    world.protocol.leave(slot);
}

/// I7. A target waits for a nudge that is on its way before it enters a region.
#[test]
fn no_nudge_for_a_stop_comes_to_a_region() {
    NUDGES.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, |world| {
            assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
            world.protocol.stop(None, &mut Nudges(true)).expect("no deadline");
            world.in_stop();
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
        });
        thread::yield_now();
        blocks(&world, slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// I7, for a target that has run its closure while its requester was about to nudge it.
#[test]
fn no_nudge_for_a_for_each_comes_to_a_region() {
    NUDGES.set(true);
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, move |world| {
            let visit = |_: Mutator| ();
            world.protocol.for_each(own, 1, &visit, &mut Nudges(true)).expect("no deadline");
            world.protocol.enter(own, Stance::Away);
        });
        thread::yield_now();
        world.poll(slot);
        blocks(&world, slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// A target enters a region, whose light fence is none, while a stop nudges. `nudged`: a nudge brought it to its
/// last safe point.
fn nudges_at_once_against_a_region(nudged: bool) {
    NUDGES.set(true);
    LIGHT.set(true);
    loom::model(move || {
        let world = World::new();
        let slot = world.attach();
        if nudged {
            world.protocol.process_nudged(slot);
        }
        let over = loom::sync::Arc::new(AtomicU32::new(0));
        let requester = spawn(&world, {
            let over = over.clone();
            move |world| {
                let took = world.protocol.stop_turn.acquire(&Model, None, 1, &Patient);
                assert!(took, "no deadline");
                let counted = world.protocol.stop(None, &mut Nudges(true)).expect("no deadline");
                assert_eq!(counted.mutators, 1, "counted once");
                over.store(1, Ordering::Release);
            }
        });
        may_fence();
        world.protocol.enter(slot, Stance::Away);
        INSIDE.store(1, Ordering::Relaxed);
        // As in `Nudges::nudge`. It does not leave the region.
        while over.load(Ordering::Acquire) == 0 {
            may_fence();
            thread::yield_now();
        }
        requester.join().unwrap();
    });
}

/// I7. Of a target of which nothing is known the light fence tells nothing: no nudge before the heavy one.
#[test]
fn no_nudge_before_the_heavy_fence() {
    nudges_at_once_against_a_region(false);
}

/// I7. A target that a nudge brought to its last safe point may be nudged without.
#[test]
fn no_nudge_at_once_comes_to_a_region() {
    nudges_at_once_against_a_region(true);
}

/// I9. The bit of the stop before is there, and the second stop leaves it as it is. The target, which leaves its
/// region, may be about to clear it.
#[test]
fn stop_against_a_bit_of_the_stop_before() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        world.stop_outside();
        let requester = spawn(&world, World::stop_outside);
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(requester.join().unwrap(), 1, "counted once");
    });
}

/// I9. Another thread asks for nothing, at any moment beside the stop.
#[test]
fn stop_against_a_probe() {
    let mut model = loom::model::Builder::new();
    // Three threads.
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, World::stop_outside);
        let prober = spawn(&world, move |_| Protocol::<Model>::probe(slot));
        world.protocol.process(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(requester.join().unwrap(), 1, "counted once");
        prober.join().unwrap();
    });
}

/// I9. The bit of the for-each before is there, and the second leaves it as it is. The target may be about to
/// clear it, and then does not find it when it leaves its next region.
#[test]
fn for_each_against_a_bit_of_the_for_each_before() {
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        world.protocol.enter(slot, Stance::Away);
        world.for_each(own);
        // The requester goes first: that leaves a preemption for the last step of the other.
        let target = spawn(&world, move |world| {
            for _ in 0..2 {
                world.protocol.leave(slot);
                world.work(slot);
                world.protocol.enter(slot, Stance::Away);
            }
        });
        world.for_each(own);
        target.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 2, "ran once for each");
    });
}

/// I8. A thread that waits for the end of a stop does what the holder of its task wants, though it was just
/// about to sleep. The real handler runs on that thread. As a thread of its own it interleaves in all the
/// ways in which the handler can, and more.
#[test]
fn a_recall_in_a_stop_is_served() {
    RECALLS.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, |world| {
            assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
            world.protocol.stop(None, &mut Patient).expect("no deadline");
            // The requester holds the task, too.
            let only = world.protocol.live().next().expect("the mutator");
            world.protocol.recall(only);
            sigctx::sync::interrupt();
            while SERVED.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
        });
        while !slot.is_armed() {
            thread::yield_now();
        }
        world.poll(slot);
        assert_eq!(STAYED.load(Ordering::Acquire), 1, "stays while its task is held");
        assert!(!slot.is_armed(), "nothing is left");
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
    });
}

/// I8. A recall that comes in a region is found when the region is left, or by the next look. So is one that
/// comes while the target acts on an earlier one and finds its task not held.
#[test]
fn a_recall_is_not_lost() {
    RECALLS.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        HELD.store(0, Ordering::Relaxed);
        world.protocol.enter(slot, Stance::Away);
        let handler = spawn(&world, move |world| {
            world.protocol.recall(slot);
            HELD.store(1, Ordering::Release);
            world.protocol.recall(slot);
        });
        world.protocol.leave(slot);
        handler.join().unwrap();
        world.poll(slot);
        assert_eq!(STAYED.load(Ordering::Acquire), 1, "stays while its task is held");
    });
}

/// A requester whose task is held while it waits for its turn does not begin its work before the task is
/// resumed.
#[test]
fn a_recalled_requester_does_not_go_to_work() {
    RECALLS.set(true);
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no thread has it");
        let waiter = spawn(&world, move |world| {
            world.protocol.enter(slot, Stance::Waits);
            loop {
                let took = world.protocol.stop_turn.acquire(&Model, Some(slot), 2, &Patient);
                assert!(took, "no deadline");
                if world.protocol.begin_work(slot) {
                    break;
                }
                world.protocol.stop_turn.release(&Model);
                world.protocol.stay_while_held(slot);
            }
            let stayed = STAYED.load(Ordering::Acquire);
            world.protocol.stop_turn.release(&Model);
            world.protocol.leave(slot);
            stayed
        });
        world.protocol.recall(slot);
        sigctx::sync::interrupt();
        while SERVED.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        world.protocol.stop_turn.release(&Model);
        assert_eq!(waiter.join().unwrap(), 1, "went to work while its task was held");
    });
}

/// An attach that times out leaves nothing behind, and does not hold up the stop that it met.
#[test]
fn attach_that_gives_up_against_a_stop() {
    loom::model(|| {
        let world = World::new();
        let requester = spawn(&world, World::stop_outside);
        if let Ok(slot) = world.protocol.attach(|_| (), |_| (), &Impatient) {
            world.work(slot);
            world.detach(slot);
        }
        requester.join().unwrap();
        let slot = world.attach();
        assert!(!slot.is_armed() || slot.requests.stop_pending.load(Ordering::Relaxed) == 0);
        world.work(slot);
        world.detach(slot);
        assert_eq!(world.protocol.live().count(), 0);
    });
}

/// As above, beside a for-each, whose requester waits for acknowledgements.
#[test]
fn attach_that_gives_up_beside_a_for_each() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(2));
    model.check(|| {
        let world = World::new();
        let own = world.attach();
        let of_stop = spawn(&world, World::stop_outside);
        let of_each = spawn(&world, move |world| {
            world.for_each(own);
            world.protocol.enter(own, Stance::Away);
        });
        if let Ok(slot) = world.protocol.attach(|_| (), |_| (), &Impatient) {
            world.protocol.enter(slot, Stance::Away);
        }
        of_stop.join().unwrap();
        of_each.join().unwrap();
    });
}

/// A region that a stop keeps from ending in time is not left, and is left later: what another thread may find.
#[test]
fn a_region_that_is_not_left_in_time() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        world.protocol.enter(slot, Stance::Away);
        let requester = spawn(&world, World::stop_outside);
        if world.protocol.leave_until(slot, &Impatient) {
            world.work(slot);
            world.protocol.enter(slot, Stance::Away);
        } else {
            assert_eq!(slot.state(), MutatorState::Safe);
            slot.set_safe(Stance::Away);
        }
        world.protocol.leave(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
        assert_eq!(world.stop_outside(), 1);
    });
}

/// A stop that times out resumes the world, and leaves nothing behind that disturbs the next one.
#[test]
fn stop_past_its_deadline() {
    loom::model(|| {
        let world = World::new();
        let slot = world.attach();
        let requester = spawn(&world, |world| {
            assert!(
                world.protocol.stop_turn.acquire(&Model, None, 1, &Impatient),
                "no other thread has it"
            );
            let stopped = world.protocol.stop(None, &mut Impatient);
            if stopped.is_ok() {
                world.in_stop();
                world.protocol.resume();
            }
            world.protocol.stop_turn.release(&Model);
            world.stop_outside()
        });
        world.work(slot);
        world.poll(slot);
        world.work(slot);
        world.protocol.enter(slot, Stance::Away);
        assert_eq!(requester.join().unwrap(), 1, "counted once");
    });
}

/// A for-each that times out has visited each target or reports it, and leaves nothing behind that disturbs
/// the next one.
#[test]
fn for_each_past_its_deadline() {
    loom::model(|| {
        let world = World::new();
        let (slot, own) = (world.attach(), world.attach());
        let requester = spawn(&world, move |world| {
            let visits = core::sync::atomic::AtomicU32::new(0);
            let visit = |_: Mutator| {
                visits.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
            };
            let visited = match world.protocol.for_each(own, 1, &visit, &mut Impatient) {
                Ok(says) => says,
                Err(each::NotVisited::TimedOut(says, late)) => {
                    assert_eq!(says, 2 - late.len() as u32, "each target is visited or late");
                    says
                }
                Err(each::NotVisited::NoTurn) => panic!("no other thread has it"),
            };
            assert_eq!(visits.into_inner(), visited, "as many as it says");
            world.for_each(own);
            world.protocol.enter(own, Stance::Away);
        });
        world.poll(slot);
        world.protocol.enter(slot, Stance::Away);
        requester.join().unwrap();
        world.protocol.leave(slot);
        assert_eq!(world.visits(slot), 1, "the second ran once for the target");
    });
}
