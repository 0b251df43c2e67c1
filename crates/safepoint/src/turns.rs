//! Stops that are tried, and stops that join another thread's.
//!
//! A request joins a stop if that has the same reason, and its work begins after the request was made: a collection that
//! is under way may have missed the garbage for which another is asked. No word says when the work of a stop began,
//! and none is needed. A mutator that makes a request runs, and so is in no stop. A stop that ends from then on had
//! to stop this mutator first, or find it in the safe region where it waits, and its work came after that.
//!
//! So the request waits for its turn as any other does, and counts how many stops for its reason have done their work:
//! if there is one more than when it was made, that one has served it. The count changes before the mutators of a stop
//! run ([`Recorder::serve`](crate::metrics::Recorder::serve)).

use core::time::Duration;

use crate::error::StopError;
use crate::mutator::Mutator;
use crate::options::StopOptions;
use crate::protocol::MutatorSlot;
use crate::roots::{Place, Stand, stand_here};
use crate::stop::{Request, Stopped, refusal};
use crate::system::Identity;
use crate::world::World;

impl Mutator {
    /// Stops the world as [`Mutator::stop_with`] does, if no other thread has the turn to: this one does not wait for
    /// its turn. The timeout bounds the wait for the other mutators alone.
    ///
    /// # Blocking
    ///
    /// Waits until every other mutator has polled or entered a safe region. If another thread gets the turn at the
    /// same moment, this one waits for the end of its stop, as a [`poll`](Mutator::poll) does.
    ///
    /// # Errors
    ///
    /// [`StopError::Busy`] if another thread has the turn. All others of [`Mutator::stop_with`].
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{StopError, StopOptions, World};
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// match mutator.try_stop(StopOptions::new("trim")) {
    ///     Ok(stopped) => stopped.resume(),
    ///     Err(StopError::Busy { .. }) => {} // The next time.
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_stop(&mut self, options: StopOptions) -> Result<Stopped<'_>, StopError> {
        let protocol = &self.shared.protocol;
        refusal(protocol, self.tid())?;
        if !protocol.stop_turn.is_free() {
            // The mutator goes on, where a request would take it to a safe point.
            let holder = protocol.stop_turn.holder();
            return Err(StopError::Busy { reason: options.reason, holder, waited: Duration::ZERO });
        }
        stand_here!(Some(self.slot), Stand::new(Place::Request));
        Request::of(self, options)?.stop_at_once()
    }

    /// Stops the world as [`Mutator::stop_with`] does, or joins a stop of another thread for the same reason: of many
    /// mutators that want a collection at once one makes it, and the others wait for its end.
    ///
    /// It joins only what serves it: a stop whose work begins after this call, and is not ended by a panic. Reasons are
    /// the same if their texts are. A world tells 15 reasons apart, and joins no stop for those that come after.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::stop_with`]; and until the end of the stop that it joins.
    ///
    /// # Errors
    ///
    /// As [`Mutator::stop_with`].
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, StopOptions, StopOrJoined, World};
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// match mutator.stop_or_join(StopOptions::new(Reason::GC))? {
    ///     StopOrJoined::Stopped(stopped) => {
    ///         // Collect.
    ///         stopped.resume();
    ///     }
    ///     StopOrJoined::Joined { .. } => {} // Another thread has collected.
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "coalesce")]
    pub fn stop_or_join(&mut self, options: StopOptions) -> Result<StopOrJoined<'_>, StopError> {
        let reason = options.reason;
        // While the mutator runs: no work of a stop is under way.
        let before = self.shared.recorder.served(reason);
        stand_here!(Some(self.slot), Stand::new(Place::Request));
        let mut request = Request::of(self, options)?;
        let shared = request.shared;
        let is_served = || shared.recorder.served(reason) != before;
        let joiner = shared.stops.join();
        let has_turn = request.acquire(is_served);
        drop(joiner);
        if is_served() {
            if has_turn {
                request.release();
            }
            shared.recorder.coalesced(reason);
            return Ok(StopOrJoined::Joined { waited: request.leave() });
        }
        if !has_turn {
            return Err(request.busy());
        }
        request.stop().map(StopOrJoined::Stopped)
    }
}

impl World {
    /// Stops the world as [`World::stop_from_outside_with`] does, if no other thread has the turn to: this one does not
    /// wait for its turn. The timeout bounds the wait for the mutators alone.
    ///
    /// # Blocking
    ///
    /// Waits until every mutator has polled or entered a safe region.
    ///
    /// # Errors
    ///
    /// [`StopError::Busy`] if another thread has the turn. All others of [`World::stop_from_outside_with`].
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{StopError, StopOptions, World};
    ///
    /// let world = World::new();
    /// let stopped = world.stop_from_outside("dump")?;
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| world.try_stop_from_outside(StopOptions::new("sample")).map(drop));
    ///     assert!(matches!(other.join().unwrap(), Err(StopError::Busy { .. })));
    /// });
    /// # drop(stopped);
    /// # Ok::<(), StopError>(())
    /// ```
    pub fn try_stop_from_outside(&self, options: StopOptions) -> Result<Stopped<'_>, StopError> {
        Request::from_outside(self, options)?.stop_at_once()
    }
}

/// A stop of one's own, or the end of another's; from [`Mutator::stop_or_join`].
#[derive(Debug)]
#[cfg_attr(
    feature = "tracing",
    expect(
        clippy::large_enum_variant,
        reason = "on the stack, and the large one is the usual one"
    )
)]
#[must_use = "the world is resumed when this is dropped"]
pub enum StopOrJoined<'a> {
    /// The world is stopped, and the work is this thread's.
    Stopped(Stopped<'a>),
    /// Another thread has stopped the world for the same reason, and has done the work.
    Joined {
        /// How long it took, and until this mutator could go on.
        waited: Duration,
    },
}
