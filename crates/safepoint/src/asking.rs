//! A stop that is asked for, by the thread that has the turn: what is noted of it, whoever makes it.

use core::time::Duration;
use std::time::Instant;

use crate::handle::{Held, StopStats};
use crate::metrics::Place;
use crate::options::Reason;
use crate::pace::Clock;
use crate::protocol::{Counted, Limit};
use crate::tape::{Event, StopEvent};
use crate::trace::Trace;
use crate::world::Shared;

/// The longest time for which a stop gives way. A thread that can run gets a processor in less, unless they are scarce.
const GIVE_WAY: Duration = Duration::from_millis(10);

/// How long a stop gives way to mutators that others have passed over.
pub(crate) struct Patience<'a> {
    clock: &'a Clock<'a>,
    until: Instant,
}

impl<'a> Patience<'a> {
    pub(crate) fn of(clock: &'a Clock<'a>) -> Self {
        Self { clock, until: Instant::now() + GIVE_WAY }
    }
}

impl Limit for Patience<'_> {
    fn left(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        Some(self.clock.left().map_or(left, |of_all| of_all.min(left)))
    }
}

/// From the request on, until all mutators have stopped, or the request is given up.
pub(crate) struct Asking<'s> {
    shared: &'s Shared,
    reason: Reason,
    place: Place,
    number: u32,
}

impl<'s> Asking<'s> {
    /// Before any mutator is asked.
    pub(crate) fn begin(shared: &'s Shared, reason: Reason) -> Self {
        let place = shared.recorder.place(reason);
        let number = shared.protocol.system.current.begin(reason.as_str());
        Self { shared, reason, place, number }
    }

    /// All have stopped.
    pub(crate) fn stopped(self, counted: Counted, clock: &Clock<'_>) -> Held {
        let since = Instant::now();
        self.shared.protocol.system.current.stopped();
        Held {
            number: self.number,
            asked_for: self.reason,
            place: self.place,
            reason: self.reason,
            serves: self.place,
            stats: StopStats::new(counted, clock, since),
            last: counted.last,
            requested: clock.requested(),
            since,
            trace: Trace::default(),
        }
    }

    /// The deadline has passed, and all run again. Releases the turn.
    pub(crate) fn given_up(self, clock: &Clock<'_>) {
        let Self { shared, reason, place, .. } = self;
        let system = &shared.protocol.system;
        shared.recorder.given_up(place);
        system.tape.note(|| {
            Event::Stop(StopEvent {
                reason,
                requested: clock.requested(),
                started: clock.started(),
                stopped: None,
                ended: Instant::now(),
                mutators: 0,
                last: None,
            })
        });
        system.current.over();
        shared.protocol.stop_turn.release(system);
    }
}
