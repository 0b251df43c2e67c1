//! Models of stops that follow each other without a pause. The mutator comes to a processor in a stop only: that is when
//! the requester yields.

use loom::sync::Arc;
use loom::thread;

use super::model::*;
use super::*;

/// At which loom may keep the mutator from its processor all the same. One less than usual, or it would take a minute.
const PREEMPTIONS: usize = 2;

/// How many stops the mutator may meet: the one that it finds, those that pass over it, one whose requester does not see
/// the count yet, and those at which it has no processor.
const STOPS: u32 = 2 + passed::MOST + PREEMPTIONS as u32;

#[test]
fn stops_give_way_to_a_thread_that_attaches() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.map(|n| n.min(PREEMPTIONS));
    model.check(|| {
        let world = World::new();
        let ran = Arc::new(AtomicU32::new(0));
        let attaches = spawn(&world, {
            let ran = ran.clone();
            move |world| {
                let slot = world.attach();
                world.work(slot);
                // Before its region: a requester that finds it safe finds this.
                ran.store(1, Ordering::Release);
                world.protocol.enter(slot, Stance::Away);
            }
        });
        let (mut stops, mut gave_way) = (0, false);
        while ran.load(Ordering::Acquire) == 0 {
            assert!(stops < STOPS, "passed over again and again");
            stops += 1;
            assert!(world.protocol.stop_turn.acquire(&Model, None, 1, &Patient), "no deadline");
            if world.protocol.give_way(None, || Patient) {
                assert!(!gave_way, "waited for in vain: it did not get past its last look");
                gave_way = true;
            }
            world.protocol.stop(None, &mut Patient).expect("no deadline");
            world.in_stop();
            thread::yield_now();
            world.protocol.resume();
            world.protocol.stop_turn.release(&Model);
        }
        attaches.join().unwrap();
    });
}
