//! Test modes: a world in which what is rare is common.

#[cfg(test)]
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::thread;

use sigctx::frames::Sighting;
use threadreg::{Nudge, NudgeCall, NudgeError, NudgeOutcome, ThreadRef};

use crate::protocol::Edge;

/// What goes wrong, or slowly, in a world for tests: see [`WorldOptions::chaos`](crate::WorldOptions::chaos).
///
/// It changes when things happen and whether nudges arrive, not what is promised: stops and for-eaches are what they
/// are in other worlds, and take longer. Each mode is off until it is asked for. All polls, and all entries and ends
/// of safe regions, take their slow paths.
///
/// "One in `n`" counts what happens in the whole world: the first is hit, and each `n`th from there on.
///
/// | mode | what it finds |
/// |---|---|
/// | [`drop_nudges`](Self::drop_nudges) | waits that rely on one signal |
/// | [`repeat_nudges`](Self::repeat_nudges) | calls that are made twice, and signals that come late |
/// | [`delay_checks`](Self::delay_checks) | code that runs on between what it publishes and what it looks at |
/// | [`delay_acknowledgements`](Self::delay_acknowledgements) | deadlines that pass just before the answer |
/// | [`yield_at_edges`](Self::yield_at_edges) | orders of threads that a busy machine has once a year |
/// | [`stop_at_polls`](Self::stop_at_polls) | code that polls where no stop may come, and polls that stand too close |
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use safepoint::{Chaos, World, WorldOptions};
///
/// let chaos = Chaos::new().drop_nudges(2).delay_checks(Duration::from_micros(50), 3);
/// let world = World::with_options(WorldOptions::new().chaos(chaos));
/// let mut mutator = world.attach()?;
/// mutator.stop_the_world("test")?.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Chaos {
    dropped: Option<u32>,
    repeated: Option<u32>,
    checks: Option<(Duration, u32)>,
    acknowledgements: Option<(Duration, u32)>,
    yields: bool,
    stops: Option<(Duration, u32)>,
}

impl Chaos {
    /// Slow paths, and nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses one nudge in `one_in`: it is said to be sent, and is not.
    ///
    /// # Panics
    ///
    /// If `one_in` is 0, as in all modes.
    #[must_use]
    pub fn drop_nudges(self, one_in: u32) -> Self {
        Self { dropped: Some(at_least_one(one_in)), ..self }
    }

    /// Sends one nudge in `one_in` twice.
    #[must_use]
    pub fn repeat_nudges(self, one_in: u32) -> Self {
        Self { repeated: Some(at_least_one(one_in)), ..self }
    }

    /// Sleeps for `delay`, one time in `one_in`, between what a thread publishes and what it then looks at: its state
    /// and its poll word in a mutator, the request and the states of mutators in a requester.
    #[must_use]
    pub fn delay_checks(self, delay: Duration, one_in: u32) -> Self {
        Self { checks: Some((delay, at_least_one(one_in))), ..self }
    }

    /// Sleeps for `delay`, one time in `one_in`, before a mutator acknowledges a stop or a for-each.
    #[must_use]
    pub fn delay_acknowledgements(self, delay: Duration, one_in: u32) -> Self {
        Self { acknowledgements: Some((delay, at_least_one(one_in))), ..self }
    }

    /// Gives up the processor at each edge of the protocol, also where a thread is about to sleep or to wake others.
    #[must_use]
    pub fn yield_at_edges(self) -> Self {
        Self { yields: true, ..self }
    }

    /// Has the world stopped at one poll in `one_in`, for nothing, by the mutator that polls: with 1, at each. Where
    /// another thread stops the world, or waits for that, the poll meets that stop. The stop is one for
    /// [`Reason::CHAOS`](crate::Reason::CHAOS), with hooks, metrics and all. It is given up where others have not stopped after `timeout`, and
    /// is not made where [`Mutator::stop_the_world`](crate::Mutator::stop_the_world) would be refused.
    #[must_use]
    pub fn stop_at_polls(self, one_in: u32, timeout: Duration) -> Self {
        Self { stops: Some((timeout, at_least_one(one_in))), ..self }
    }
}

fn at_least_one(one_in: u32) -> u32 {
    assert!(one_in != 0, "one in none");
    one_in
}

/// A world's chaos, with its counts.
#[derive(Debug)]
pub(crate) struct Disturbance {
    modes: Chaos,
    nudges: AtomicU32,
    checks: AtomicU32,
    acknowledgements: AtomicU32,
    polls: AtomicU32,
}

impl Disturbance {
    pub(crate) fn new(modes: Chaos) -> Self {
        let (nudges, checks, acknowledgements, polls) = Default::default();
        Self { modes, nudges, checks, acknowledgements, polls }
    }

    /// A mutator polls: how long it may wait for others if it is to stop the world.
    pub(crate) fn stops_at_poll(&self) -> Option<Duration> {
        let (timeout, one_in) = self.modes.stops?;
        hits(next(&self.polls), one_in).then_some(timeout)
    }

    /// A thread comes by.
    pub(crate) fn at(&self, edge: Edge) {
        #[cfg(test)]
        LINGERS.with_borrow(|lingers| lingers.iter().for_each(|linger| linger(edge)));
        let (count, mode) = match edge {
            Edge::Published => (&self.checks, self.modes.checks),
            Edge::Acknowledges => (&self.acknowledgements, self.modes.acknowledgements),
            Edge::Waits => (&self.checks, None),
        };
        if let Some((delay, one_in)) = mode
            && hits(next(count), one_in)
        {
            thread::sleep(delay);
        } else if self.modes.yields {
            #[cfg(test)]
            YIELDS.set(YIELDS.get() + 1);
            thread::yield_now();
        }
    }
}

#[cfg(test)]
type Linger = Box<dyn Fn(Edge)>;

#[cfg(test)]
thread_local! {
    /// What the thread does at the edges of a world with chaos: for unit tests that need it to stay there until
    /// something happens, and not for a time.
    static LINGERS: RefCell<Option<Linger>> = const { RefCell::new(None) };
    /// How often the thread has given up its processor at an edge.
    static YIELDS: Cell<u32> = const { Cell::new(0) };
}

#[cfg(test)]
pub(crate) fn linger(at: impl Fn(Edge) + 'static) {
    LINGERS.set(Some(Box::new(at)));
}

/// Relaxed: any order of the threads will do.
fn next(count: &AtomicU32) -> u32 {
    count.fetch_add(1, Ordering::Relaxed)
}

fn hits(number: u32, one_in: u32) -> bool {
    number.is_multiple_of(one_in)
}

/// Loses nudges, and sends others twice.
pub(crate) struct UnreliableNudge {
    pub(crate) nudge: Arc<dyn Nudge>,
    pub(crate) disturbance: Arc<Disturbance>,
}

impl Nudge for UnreliableNudge {
    fn nudge(
        &self,
        thread: ThreadRef,
        call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        let Disturbance { modes, nudges, .. } = &*self.disturbance;
        let number = next(nudges);
        let is_hit = |mode: Option<u32>| mode.is_some_and(|one_in| hits(number, one_in));
        if is_hit(modes.dropped) {
            return Ok(());
        }
        if is_hit(modes.repeated) {
            // Of the two the second counts.
            let _first = self.nudge.nudge(thread, call, wanted);
        }
        self.nudge.nudge(thread, call, wanted)
    }

    fn settle(&self, timeout: Duration) -> bool {
        self.nudge.settle(timeout)
    }

    fn outcome(&self, thread: ThreadRef) -> NudgeOutcome {
        self.nudge.outcome(thread)
    }

    fn sighting(&self, thread: ThreadRef, within: Duration) -> Option<Sighting> {
        self.nudge.sighting(thread, within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{World, WorldOptions};

    #[test]
    fn each_edge_yields_in_its_mode_alone() {
        for (chaos, yields) in [(Chaos::new(), 0), (Chaos::new().yield_at_edges(), 1)] {
            let chaos = Disturbance::new(chaos);
            for edge in [Edge::Published, Edge::Acknowledges, Edge::Waits] {
                YIELDS.set(0);
                chaos.at(edge);
                assert_eq!(YIELDS.get(), yields, "{edge:?}");
            }
        }
    }

    /// In a poll, on the way into a region and out of it, and in a request.
    #[test]
    fn mutators_and_requesters_come_by_edges() {
        let options = WorldOptions::new().chaos(Chaos::new().yield_at_edges());
        let world = World::with_options(options);
        let mut mutator = world.attach().expect("a world of its own");
        let yields = || YIELDS.replace(0);
        yields();
        mutator.poll();
        assert_eq!(yields(), 1, "a poll looks once");
        let inside = mutator.blocking(yields);
        assert_eq!((inside, yields()), (1, 1), "a region's entry and its end look once");
        mutator.blocking(|| {
            yields();
            world.stop_from_outside("test").expect("it is safe").resume();
            assert!(yields() >= 2, "a requester looks behind its fence, and wakes mutators");
        });
    }
}
