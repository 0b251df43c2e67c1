//! Mutators that one stop after the other has passed over: they wait for the end of a stop, and whenever they come to a
//! processor the next one has begun.
//!
//! ```text
//!  word = | number, low 12 bits | count, 20 bits |
//!
//!  target:    count + 1 once enough stops have passed over it; count - 1 when it runs, or waits no longer
//!  requester: has the turn, and the world runs: waits until the count is 0, or until its patience ends. Then
//!             (number + 1, 0): those that are still counted count themselves again in the next stop
//! ```
//!
//! A requester gives way with the turn in its hands, so no stop begins meanwhile, and each mutator that is counted runs
//! as soon as it has a processor. One that cannot run, since its task is held or its thread stopped, does not get to
//! count itself again, and so costs the requesters their patience once.
//!
//! A target counts itself while the stop word is odd, then fences, and looks at the word again before it sleeps. The
//! requester fences when it has made the word odd. So the count is seen by the requester of the next stop or of the one
//! after, whatever the delay. One look at the word is what a stop pays where no mutator is counted.

use super::slot::MutatorSlot;
use super::{Limit, Protocol, System};
use sigctx::sync::{AtomicU32, Ordering, fence};

const COUNT_BITS: u32 = 20;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// How many stops in a row pass over a mutator before the next one gives way. Few enough to be no long wait. Each costs
/// a requester the time until other threads are on a processor, so more than one.
pub(super) const MOST: u32 = if cfg!(loom) { 1 } else { 8 };

/// How many mutators have been passed over.
#[derive(Debug)]
pub(crate) struct PassedOver {
    word: AtomicU32,
}

impl PassedOver {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// In the child of a fork: nobody is counted.
    #[cfg(not(loom))]
    pub(super) fn after_fork(&self) {
        self.word.store(0, Ordering::Relaxed);
    }
}

/// A target that waits for the end of stops.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// The stop word when the wait began.
    first: Option<u32>,
    /// The number under which the target has counted itself.
    counted: Option<u32>,
}

impl Waits {
    /// The word was changed to have the target help, and no stop has passed over it.
    pub(super) fn goes_on(&mut self) {
        self.first = self.first.map(|first| first.wrapping_add(2));
    }
}

impl<S: System> Protocol<S> {
    /// Target only, which has found the world stopped by `word`: counts it if enough stops have passed over it.
    pub(super) fn is_passed_over(&self, waits: &mut Waits, word: u32) {
        let first = *waits.first.get_or_insert(word);
        // A recall changes the word as a stop does, and counts as one.
        if word.wrapping_sub(first) / 2 < MOST {
            return;
        }
        let counts = &self.passed_over.word;
        if waits.counted == Some(counts.load(Ordering::Relaxed) >> COUNT_BITS) {
            return;
        }
        waits.counted = Some(counts.fetch_add(1, Ordering::Relaxed) >> COUNT_BITS);
        // Pairs with the fence in `stop`.
        fence(Ordering::SeqCst);
    }

    /// Target only: it runs, or waits no longer.
    pub(super) fn waits_no_longer(&self, waits: &mut Waits) {
        let Some(number) = waits.counted.take() else { return };
        let counts = &self.passed_over.word;
        let mut seen = counts.load(Ordering::Relaxed);
        while seen >> COUNT_BITS == number && seen & COUNT != 0 {
            // Release: the requester that gave way finds the target running.
            match counts.compare_exchange_weak(seen, seen - 1, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) if seen & COUNT == 1 => return self.system.wake_all(counts),
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Stop turn holder only, in a safe region and before the stop: waits until the mutators that were passed over
    /// run, at most until `patience` ends. Returns whether it had to.
    pub(crate) fn give_way<L: Limit>(
        &self,
        own: Option<&'static MutatorSlot<S::Identity>>,
        patience: impl FnOnce() -> L,
    ) -> bool {
        let counts = &self.passed_over.word;
        let mut seen = counts.load(Ordering::Relaxed);
        if seen & COUNT == 0 {
            return false;
        }
        let patience = patience();
        while seen & COUNT != 0 {
            let left = patience.left();
            if left.is_some_and(|left| left.is_zero()) {
                // Targets change the count alone.
                counts.store(((seen >> COUNT_BITS) + 1) << COUNT_BITS, Ordering::Relaxed);
                break;
            }
            if own.is_some_and(|own| own.is_recalled(&self.system)) {
                self.system.serve();
            }
            self.system.wait(counts, seen, left);
            // Acquire, with the release of the target that runs.
            seen = counts.load(Ordering::Acquire);
        }
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::protocol::patient::Patient;
    use crate::system::{Fences, Linux};

    /// Its patience is over.
    struct Impatient;

    impl Limit for Impatient {
        fn left(&self) -> Option<Duration> {
            Some(Duration::ZERO)
        }
    }

    /// A thread that does not get a processor, such as one that a debugger holds.
    #[test]
    fn a_mutator_that_cannot_run_is_waited_for_once() {
        let protocol = Protocol::new(Linux::new(Fences::Full));
        assert!(!protocol.give_way(None, || Impatient), "nobody was passed over");
        let mut waits = Waits::default();
        for stop in 0..=MOST {
            assert!(!protocol.give_way(None, || Impatient), "after {stop} stops");
            protocol.is_passed_over(&mut waits, 2 * stop + 1);
        }
        protocol.is_passed_over(&mut waits, 2 * MOST + 1);
        assert!(protocol.give_way(None, || Impatient), "it was counted");
        assert!(!protocol.give_way(None, || Impatient), "it has not come back");
        // It was counted under the last number, and comes too late.
        protocol.waits_no_longer(&mut waits);
        protocol.is_passed_over(&mut waits, 2 * MOST + 3);
        protocol.waits_no_longer(&mut waits);
        assert!(!protocol.give_way(None, || Patient), "it runs");
    }

    /// As often as a processor is slow to take the mutator up.
    #[test]
    fn a_mutator_runs_between_stops_without_a_pause() {
        let name = "protocol::passed::tests::a_mutator_runs_between_stops_without_a_pause";
        testkit::in_child(name, Duration::from_secs(20), || {
            let protocol = Protocol::new(Linux::new(Fences::Full));
            let protocol = &protocol;
            std::thread::scope(|scope| {
                protocol.stop(None, &mut Patient).expect("no mutators");
                let (tell, told) = std::sync::mpsc::channel();
                let attaches = scope.spawn(move || {
                    tell.send(sigctx::sys::gettid()).expect("the test waits");
                    let slot = protocol.attach(|_| (), |_| (), &Patient).expect("room");
                    protocol.enter(slot, crate::protocol::Stance::Away);
                    slot
                });
                let tid = told.recv().expect("it says so");
                let mut stops = 0;
                while !attaches.is_finished() {
                    // In a stop: it comes to its wait, and does not leave it.
                    testkit::until("sleeps", || testkit::is_asleep(tid) || attaches.is_finished());
                    protocol.resume();
                    protocol.give_way(None, || Patient);
                    protocol.stop(None, &mut Patient).expect("no deadline");
                    stops += 1;
                }
                protocol.resume();
                protocol.detach(attaches.join().expect("no panic"), || ());
                assert!(stops <= MOST + 3, "{stops} stops passed over it");
            });
        });
    }
}
