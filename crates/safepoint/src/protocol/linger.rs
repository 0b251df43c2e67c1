//! Threads that linger between what they publish and what they look at (I2), without a limit: until something happens,
//! not for a time. What that costs a stop is a number of naps, and `pace` says how long a nap is.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::thread;

use sigctx::sys::{self, Tid};
use testkit::{in_child, is_asleep, until};

use super::patient::Patient;
use super::{Edge, Limit, MutatorSlot, Pace, Protocol, Stance};
use crate::chaos::{Chaos, Disturbance, linger};
use crate::system::{Fences, Identity, Linux};

const LATE: Duration = Duration::from_secs(30);

/// Threads wait in front of it until it is open.
#[derive(Debug, Default)]
struct Door(AtomicBool);

impl Door {
    fn open(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn pass(&self) {
        until("a door is open", || self.is_open());
    }
}

/// Where a mutator and its requester meet.
#[derive(Debug, Default)]
struct Doors {
    attached: Door,
    /// The mutator may come to its edge.
    go: Door,
    /// It has published, and lingers.
    published: Door,
    /// It may look.
    look: Door,
    /// It has acknowledged.
    acknowledged: Door,
    /// The requester has looked for the last time before it sleeps.
    sleeps: Door,
}

impl Doors {
    /// Has the mutator come, and returns when it lingers.
    fn come(&self) {
        self.go.open();
        self.published.pass();
    }

    fn linger(&self) {
        self.published.open();
        self.look.pass();
    }
}

/// Counts naps, and has something done in each.
struct Naps<F> {
    begun: Cell<u32>,
    /// `None`: the requester looks when it is woken, and never else.
    length: Option<Duration>,
    in_each: F,
}

impl<F> Naps<F> {
    fn new(length: Option<Duration>, in_each: F) -> Self {
        Self { begun: Cell::new(0), length, in_each }
    }
}

impl<F> Limit for Naps<F> {
    fn left(&self) -> Option<Duration> {
        None
    }
}

impl<F: Fn(u32)> Pace<Linux> for Naps<F> {
    type Seen = ();

    fn expired(&self) -> bool {
        false
    }
    fn nap(&self) -> Option<Duration> {
        self.begun.set(self.begun.get() + 1);
        (self.in_each)(self.begun.get());
        self.length
    }
    fn due(&mut self) -> bool {
        true
    }
    fn late(&mut self, _slot: &'static MutatorSlot<Identity>, _wanted: &dyn Fn() -> bool) {}
    fn look(&self, _slot: &'static MutatorSlot<Identity>) {}
}

fn world(fences: Fences) -> Protocol<Linux> {
    let mut system = Linux::new(fences);
    system.chaos = Some(Arc::new(Disturbance::new(Chaos::new())));
    Protocol::new(system)
}

fn attach(world: &Protocol<Linux>) -> &'static MutatorSlot<Identity> {
    world.attach(|_| (), |_| (), &Patient).expect("room")
}

/// How many naps a requester begins, or is in, from the moment on in which a mutator publishes that it is safe. That is
/// before the request (0), or in the requester's nap of that number. The mutator looks when the stop has come about,
/// or `MOST` naps later.
fn naps_beside_a_lingering_entry(fences: Fences, publishes_in: u32) -> u32 {
    const MOST: u32 = 8;
    let (world, doors) = (&world(fences), Arc::new(Doors::default()));
    thread::scope(|scope| {
        let its = doors.clone();
        scope.spawn(move || {
            let slot = attach(world);
            its.attached.open();
            its.go.pass();
            let at = its.clone();
            linger(move |edge| {
                if edge == Edge::Published {
                    at.linger();
                }
            });
            world.enter(slot, Stance::Away);
            world.leave(slot);
            world.detach(slot, || ());
        });
        doors.attached.pass();
        if publishes_in == 0 {
            doors.come();
        }
        let in_each = |nap| {
            if nap == publishes_in {
                doors.come();
            } else if nap > publishes_in + MOST {
                doors.look.open();
            }
        };
        let mut pace = Naps::new(Some(Duration::from_millis(1)), in_each);
        let counted = world.stop(None, &mut pace).expect("no deadline");
        assert_eq!(counted.mutators, 1);
        world.resume();
        doors.look.open();
        let (naps, first) = (pace.begun.get(), publishes_in.max(1));
        (naps + 1).saturating_sub(first)
    })
}

/// It need not look at all: the requester finds it safe at its next look, which is one nap away at most.
#[test]
fn a_delay_after_an_entry_costs_one_nap() {
    in_child("protocol::linger::a_delay_after_an_entry_costs_one_nap", LATE, || {
        for fences in [Fences::probe(), Fences::Full] {
            assert_eq!(naps_beside_a_lingering_entry(fences, 0), 0, "{fences:?}: safe when asked");
            for nap in 1..4 {
                let naps = naps_beside_a_lingering_entry(fences, nap);
                assert_eq!(naps, 1, "{fences:?}: published in nap {nap}");
            }
        }
    });
}

/// What a mutator publishes before it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// That it runs, and goes on to do so: a poll.
    ByPoll,
    /// That it runs, and was safe when it was asked.
    OutOfItsRegion,
}

/// What the requester does when the mutator that it waits for acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requester {
    /// It has looked, and is about to sleep.
    HasLooked,
    IsAsleep,
}

/// A requester whose naps end when it is woken, and never else.
fn stop_by_wakes_alone(fences: Fences, comes: Comes, requester: Requester) {
    let (world, doors, me) = (&world(fences), Arc::new(Doors::default()), sys::gettid());
    thread::scope(|scope| {
        let its = doors.clone();
        scope.spawn(move || {
            let slot = attach(world);
            if comes == Comes::OutOfItsRegion {
                world.enter(slot, Stance::Away);
            }
            its.attached.open();
            its.go.pass();
            mutator_lingers(its, requester, me);
            match comes {
                Comes::ByPoll => world.process(slot),
                Comes::OutOfItsRegion => world.leave(slot),
            }
            world.detach(slot, || ());
        });
        doors.attached.pass();
        let mine = doors.clone();
        linger(move |edge| match (edge, requester) {
            (Edge::Published, _) => mine.come(),
            (Edge::Acknowledges, _) => {}
            (Edge::Waits, _) if mine.sleeps.is_open() => {}
            (Edge::Waits, Requester::HasLooked) => {
                mine.look.open();
                mine.acknowledged.pass();
                mine.sleeps.open();
            }
            (Edge::Waits, Requester::IsAsleep) => {
                mine.sleeps.open();
                mine.look.open();
            }
        });
        let mut pace = Naps::new(None, |_| ());
        world.stop(None, &mut pace).expect("no deadline");
        assert!(pace.begun.get() != 0, "{comes:?}: it did not have to wait");
        world.resume();
    });
}

fn mutator_lingers(doors: Arc<Doors>, requester: Requester, its: Tid) {
    linger(move |edge| match (edge, requester) {
        (Edge::Published, _) => doors.linger(),
        (Edge::Acknowledges, Requester::HasLooked) => {}
        (Edge::Acknowledges, Requester::IsAsleep) => {
            doors.sleeps.pass();
            until("the requester sleeps", || is_asleep(its));
        }
        (Edge::Waits, _) => doors.acknowledged.open(),
    });
}

/// However long a mutator lingers before it looks, the requester is woken when it has: no clock is needed.
#[test]
fn no_wake_is_lost_between_publish_and_check() {
    in_child("protocol::linger::no_wake_is_lost_between_publish_and_check", LATE, || {
        for fences in [Fences::probe(), Fences::Full] {
            for comes in [Comes::ByPoll, Comes::OutOfItsRegion] {
                stop_by_wakes_alone(fences, comes, Requester::HasLooked);
                stop_by_wakes_alone(fences, comes, Requester::IsAsleep);
            }
        }
    });
}
