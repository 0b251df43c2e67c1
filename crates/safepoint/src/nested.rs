//! Stops within a stop: by whoever has the stop.

use core::ops::{Deref, DerefMut};
use core::time::Duration;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use sigctx::fork;

use crate::handle::StopHandle;
use crate::metrics::Place;
use crate::options::Reason;
use crate::stop::Stopped;
use crate::world::Shared;

impl Stopped<'_> {
    /// Stops the world within this stop, until the result is dropped: for code that needs a stopped world, and is
    /// called with one. The world stays stopped, before and after. Through the result the stop can be used as before,
    /// and be nested again.
    ///
    /// Nobody is asked, and nothing is waited for. The pause is that of this stop, and counts for its reason; the one
    /// within counts in [`ReasonMetrics::nested`](crate::ReasonMetrics::nested). When it ends, other than by a panic,
    /// those are served who asked for one with its reason ([`Mutator::stop_or_join`](crate::Mutator::stop_or_join)):
    /// they go on when the world runs.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, Stopped, World};
    ///
    /// fn dump(stopped: &mut Stopped<'_>) {
    ///     let nested = stopped.again(Reason::DUMP);
    ///     println!("{}: {}", nested.reason(), nested.mutators().count());
    /// }
    ///
    /// let world = World::new();
    /// let mut stopped = world.stop_from_outside(Reason::GC)?;
    /// dump(&mut stopped);
    /// // Still stopped.
    /// stopped.resume();
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    ///
    /// # References
    ///
    /// HotSpot, nested VM operations (`vmThread.cpp`)
    #[doc(alias = "nested VM operation")]
    pub fn again(&mut self, reason: impl Into<Reason>) -> NestedStop<'_, Self> {
        let shared = self.shared.clone();
        NestedStop::new(self, shared, reason.into(), None, |this| (this.shared, this.number()))
    }

    /// From here on the stop is for `reason`, and the world stays stopped. What it was for is done: those are served who
    /// asked for it, and go on when the world runs.
    ///
    /// The pause is one, and counts for the first reason; the later ones count in
    /// [`ReasonMetrics::nested`](crate::ReasonMetrics::nested).
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap).
    pub fn continue_as(&mut self, reason: impl Into<Reason>) {
        self.held.continue_as(self.shared, reason.into());
    }
}

impl StopHandle {
    /// As [`Stopped::again`]. In the child of a fork nothing is counted.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap).
    pub fn again(&mut self, reason: impl Into<Reason>) -> NestedStop<'_, Self> {
        let (shared, process) = (self.shared.clone(), Some(self.process));
        NestedStop::new(self, shared, reason.into(), process, |this| (&this.shared, this.number()))
    }

    /// As [`Stopped::continue_as`]. In the child of a fork nothing is counted.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap).
    pub fn continue_as(&mut self, reason: impl Into<Reason>) {
        if self.is_stopped() {
            self.held.continue_as(&self.shared, reason.into());
        }
    }
}

/// A stop within a stop, until it is dropped; from [`Stopped::again`] and [`StopHandle::again`]. It is the one that it is
/// within, but for its reason and its time. If another stop is put in the place of that one, as by `mem::swap`, it counts
/// as none, and serves nobody.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe). The same holds for dropping it.
#[derive(Debug)]
#[must_use = "the nested stop ends when this is dropped"]
pub struct NestedStop<'s, S> {
    outer: &'s mut S,
    shared: Arc<Shared>,
    /// The number of the stop that it is within.
    number: u32,
    /// The world and the number of a stop.
    look: fn(&S) -> (&Arc<Shared>, u32),
    reason: Reason,
    /// Where it is counted.
    place: Option<Place>,
    since: Instant,
    /// The process in which the stop is one; `None` if it stays so in the child of a fork.
    process: Option<u32>,
}

impl<'s, S> NestedStop<'s, S> {
    fn new(
        outer: &'s mut S,
        shared: Arc<Shared>,
        reason: Reason,
        process: Option<u32>,
        look: fn(&S) -> (&Arc<Shared>, u32),
    ) -> Self {
        let ((_, number), since) = (look(outer), Instant::now());
        let mut this = Self { outer, shared, number, look, reason, place: None, since, process };
        if this.is_stopped() {
            this.place = Some(this.shared.recorder.place(reason));
        }
        this
    }

    /// Whether the stop that it is within is where it was, and the world stopped by it. The outer stop is given away as
    /// a `&mut`, and may have been swapped, and ended.
    fn is_within(&self) -> bool {
        let (shared, number) = (self.look)(self.outer);
        Arc::ptr_eq(shared, &self.shared) && number == self.number && self.is_stopped()
    }

    fn is_stopped(&self) -> bool {
        self.process.is_none_or(|process| process == fork::process())
    }

    /// What the stop is for.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How long it has lasted. The world has been stopped for longer.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl<S> Deref for NestedStop<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.outer
    }
}

impl<S> DerefMut for NestedStop<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        self.outer
    }
}

impl<S> Drop for NestedStop<'_, S> {
    fn drop(&mut self) {
        // Else it has ended with its stop, and counts as none. The holder of the stop has this, and so the turn.
        if let Some(place) = self.place.filter(|_| self.is_within()) {
            self.shared.recorder.nested(place);
            // What ends by a panic may not be done.
            if !thread::panicking() {
                self.shared.recorder.serve(place);
            }
        }
    }
}
