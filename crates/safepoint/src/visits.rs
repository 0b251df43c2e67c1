//! Visits of a stop: a function that is called for each mutator as soon as that is stopped.

use core::any::Any;
use core::time::Duration;
use std::panic::{self, AssertUnwindSafe};

use crate::error::StopError;
use crate::handle::StoppedMutator;
use crate::mutator::Mutator;
use crate::options::StopOptions;
use crate::pace::Clock;
use crate::protocol::{Limit, MutatorSlot, Pace};
use crate::roots::{Place, Stand, stand_here};
use crate::stop::{Request, Stopped};
use crate::straggler::Straggler;
use crate::system::{Identity, Linux};
use crate::world::World;

/// What looks at mutators as they stop: [`Mutator::stop_visiting`], [`World::stop_visiting_from_outside`].
///
/// Each function that takes a `&StoppedMutator` is one. It runs on the thread that stops the world.
pub trait StopVisitor {
    /// A mutator is stopped: it runs no user code before the stop is over or given up.
    ///
    /// Others still run. What only a stopped world protects, such as the heap, is not at rest; nor is what the
    /// operation of a handshake, or the closure of a for-each, touches, which another mutator may still run for this
    /// one. What is the mutator's alone is: its stack, its registers.
    fn stopped(&mut self, mutator: &StoppedMutator<'_>);

    /// The stop is given up. The mutators that were visited run when this has returned, not before: who scans them on
    /// other threads waits for those here.
    fn given_up(&mut self) {}
}

impl<F: FnMut(&StoppedMutator<'_>)> StopVisitor for F {
    fn stopped(&mut self, mutator: &StoppedMutator<'_>) {
        self(mutator);
    }
}

impl Mutator {
    /// Stops the world as [`Mutator::stop_with`] does, and has the visitor called for each mutator as soon as that is
    /// stopped, while others are still waited for: a collector scans the first stacks meanwhile.
    ///
    /// When this returns every mutator of [`Stopped::mutators`] was visited, once; one that attaches during the stop may
    /// be missing.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::stop_with`]. Late mutators are nudged between two visits, and visits take of the timeout: one that
    /// takes long belongs on another thread. A visit that waits for a mutator, or for a lock that one has, may wait
    /// forever.
    ///
    /// # Errors
    ///
    /// As [`Mutator::stop_with`]. After [`StopError::TimedOut`] and [`StopError::HoldsMutators`] the mutators that were
    /// visited run again: what was found there is stale. [`StopVisitor::given_up`] was called before.
    ///
    /// # Panics
    ///
    /// If the visitor does, and then when all mutators have stopped, or the stop was given up. The visitor is called for
    /// no other mutator, and the world runs.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, StopOptions, StoppedMutator, World};
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// let mut found = Vec::new();
    /// let mut scan = |mutator: &StoppedMutator<'_>| found.push(mutator.id());
    /// let stopped = mutator.stop_visiting(StopOptions::new(Reason::GC), &mut scan)?;
    /// assert_eq!(found.len(), stopped.mutators().count());
    /// stopped.resume();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop_visiting(
        &mut self,
        options: StopOptions<'_>,
        visitor: &mut impl StopVisitor,
    ) -> Result<Stopped<'_>, StopError> {
        stand_here!(Some(self.slot), Stand::new(Place::Request));
        stop(Request::of(self, options)?, visitor)
    }
}

impl World {
    /// As [`Mutator::stop_visiting`], from a thread that is not one of its mutators, or is in a safe region.
    ///
    /// # Blocking
    ///
    /// # Panics
    ///
    /// As [`Mutator::stop_visiting`].
    ///
    /// # Errors
    ///
    /// As for [`World::stop_from_outside_with`]. Of visits as [`Mutator::stop_visiting`].
    pub fn stop_visiting_from_outside(
        &self,
        options: StopOptions<'_>,
        visitor: &mut impl StopVisitor,
    ) -> Result<Stopped<'_>, StopError> {
        stop(Request::from_outside(self, options)?, visitor)
    }
}

fn stop<'a: 'o, 'o>(
    mut request: Request<'a, 'o>,
    visitor: &mut impl StopVisitor,
) -> Result<Stopped<'a>, StopError> {
    if !request.acquire(|| false) {
        return Err(request.busy());
    }
    let mut panicked = None;
    let result = request.stop_by(|protocol, own, clock| {
        let mut visiting = Visiting { clock, visitor, visited: Vec::new(), panicked: None };
        let result = protocol.stop(own, &mut visiting);
        panicked = visiting.panicked;
        result
    });
    match panicked {
        None => result,
        // Drops the result: the world runs.
        Some(payload) => panic::resume_unwind(payload),
    }
}

/// The clock of a request whose visitor is called.
#[derive(Debug)]
struct Visiting<'v, 'o, V> {
    clock: &'v mut Clock<'o>,
    visitor: &'v mut V,
    /// By slot, the generation that was visited.
    visited: Vec<Option<u32>>,
    panicked: Option<Box<dyn Any + Send>>,
}

impl<V: StopVisitor> Visiting<'_, '_, V> {
    /// Calls the visitor, unless it has panicked. Unwinding would leave the request behind.
    fn call(&mut self, call: impl FnOnce(&mut V)) {
        if self.panicked.is_none() {
            let called = panic::catch_unwind(AssertUnwindSafe(|| call(self.visitor)));
            self.panicked = called.err();
        }
    }
}

impl<V> Limit for Visiting<'_, '_, V> {
    fn left(&self) -> Option<Duration> {
        self.clock.left()
    }
}

impl<V: StopVisitor> Pace<Linux> for Visiting<'_, '_, V> {
    type Seen = Option<Straggler>;

    fn expired(&self) -> bool {
        self.clock.expired()
    }

    fn nap(&self) -> Option<Duration> {
        self.clock.nap()
    }

    fn due(&mut self) -> bool {
        self.clock.due()
    }

    fn expect_late(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
        self.clock.expect_late(slot, wanted);
    }

    fn late(&mut self, slot: &'static MutatorSlot<Identity>, wanted: &dyn Fn() -> bool) {
        self.clock.late(slot, wanted);
    }

    fn visits(&self) -> bool {
        true
    }

    fn stopped(&mut self, slot: &'static MutatorSlot<Identity>) {
        let slot_use = slot.current_use();
        let at = slot_use.index as usize;
        if self.visited.len() <= at {
            self.visited.resize(at + 1, None);
        }
        // As `Stopped::mutators`.
        if self.visited[at] != Some(slot_use.generation)
            && slot.status.identity.is_attached()
            && let Some(mutator) = StoppedMutator::of(slot)
        {
            self.visited[at] = Some(slot_use.generation);
            self.call(|visitor| visitor.stopped(&mutator));
        }
    }

    fn gives_up(&mut self) {
        self.call(StopVisitor::given_up);
    }

    fn look(&self, slot: &'static MutatorSlot<Identity>) -> Option<Straggler> {
        self.clock.look(slot)
    }
}
