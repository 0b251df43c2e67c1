//! Several worlds in one stop.

use core::error::Error;
use core::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::error::StopError;
use crate::options::StopOptions;
use crate::stop::Stopped;
use crate::world::World;

impl World {
    /// Stops several worlds, all or none, from a thread that is a mutator of none of them or in a safe region of each.
    ///
    /// The worlds are stopped one after the other, in an order that is the same for all threads: two that stop the same
    /// worlds do not wait for each other. The first is stopped while the others are waited for.
    ///
    /// # Blocking
    ///
    /// As [`World::stop_from_outside_with`], for each. The timeout is for all together.
    ///
    /// A thread that is a running mutator of two of the worlds is stopped in one, and does not come to a safe point of the
    /// other: it has to be in a safe region of one whenever it polls in the other.
    ///
    /// # Errors
    ///
    /// [`StopManyError`] says which world did not stop, and why: [`StopError::Nested`] if it is there twice, and all others
    /// of [`World::stop_from_outside_with`]. The worlds that had stopped run again.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, StopOptions, World};
    ///
    /// let (isolate, shared) = (World::new(), World::new());
    /// let stopped = World::stop_many(&[&isolate, &shared], StopOptions::new(Reason::GC))?;
    /// assert_eq!(stopped.worlds().len(), 2);
    /// stopped.resume();
    /// # Ok::<(), safepoint::StopManyError>(())
    /// ```
    pub fn stop_many<'a>(
        worlds: &[&'a Self],
        options: StopOptions<'_>,
    ) -> Result<StoppedMany<'a>, StopManyError> {
        let deadline = options.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut order: Vec<_> = (0..worlds.len()).collect();
        order.sort_by_key(|&at| Arc::as_ptr(&worlds[at].shared));
        let mut stopped = Vec::with_capacity(worlds.len());
        for at in order {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let options = StopOptions { timeout: left, ..options };
            let one = worlds[at].stop_from_outside_with(options);
            stopped.push((at, one.map_err(|error| StopManyError { world: at, error })?));
        }
        stopped.sort_by_key(|(at, _)| *at);
        Ok(StoppedMany { worlds: stopped.into_iter().map(|(_, one)| one).collect() })
    }
}

/// Several worlds are stopped until this is dropped; from [`World::stop_many`].
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock heap).
#[derive(Debug)]
#[must_use = "the worlds are resumed when this is dropped"]
pub struct StoppedMany<'a> {
    worlds: Vec<Stopped<'a>>,
}

impl<'a> StoppedMany<'a> {
    /// The stopped worlds, in the order in which they were given.
    pub fn worlds(&self) -> &[Stopped<'a>] {
        &self.worlds
    }

    /// Lets all worlds run, as dropping this does.
    pub fn resume(self) {
        drop(self);
    }
}

/// Why several worlds were not stopped. Those that were run again.
#[derive(Debug)]
#[non_exhaustive]
pub struct StopManyError {
    /// The world that did not stop: its place among those that were given.
    pub world: usize,
    /// Why.
    pub error: StopError,
}

impl fmt::Display for StopManyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "world {} did not stop", self.world)
    }
}

impl Error for StopManyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}
