//! Stops for nothing that mutators make at their polls, in worlds for tests.

use std::time::{Duration, Instant};

use crate::metrics::Pause;
use crate::options::Reason;
use crate::pace::Clock;
use crate::protocol::{Limit, MutatorSlot, Stance};
use crate::system::{self, Identity};
use crate::tape::{Event, StopEvent};
use crate::world::Shared;

/// As other stops give way.
const GIVE_WAY: Duration = Duration::from_millis(10);

struct Until(Instant);

impl Limit for Until {
    fn left(&self) -> Option<Duration> {
        Some(self.0.saturating_duration_since(Instant::now()))
    }
}

/// Stops the world and resumes it, at a poll of the mutator that has the slot, if it is nobody's turn. It stands where
/// its world wants to know of it.
pub(crate) fn stop_at_poll(
    shared: &Shared,
    slot: &'static MutatorSlot<Identity>,
    timeout: Duration,
) {
    // As in `stop::refusal`: no stop begins in a closure.
    if system::in_closure() {
        return;
    }
    let (protocol, tid) = (&shared.protocol, system::tid());
    let mut clock = Clock::start(protocol, tid, Some(timeout), None);
    // Safe, before it has the turn: another may stop this thread first.
    protocol.enter(slot, Stance::Waits);
    if protocol.stop_turn.try_acquire(tid) {
        let give_way = GIVE_WAY.min(timeout);
        protocol.give_way(Some(slot), || Until(Instant::now() + give_way));
        // Its task may be held.
        if protocol.begin_work(slot) {
            stop_in_turn(shared, slot, &mut clock);
        }
        // Those, too, that wait to join a stop.
        protocol.stop_turn.release_to_all(&protocol.system);
    }
    protocol.leave(slot);
}

fn stop_in_turn(shared: &Shared, slot: &'static MutatorSlot<Identity>, clock: &mut Clock<'_>) {
    let Shared { protocol, recorder, stops, .. } = shared;
    let (reason, requested) = (Reason::CHAOS, clock.requested());
    let place = recorder.place(reason);
    let number = protocol.system.current.begin(reason.as_str());
    let stopped = protocol.stop(Some(slot), clock);
    let now = Instant::now();
    let (mutators, last) = match &stopped {
        Ok(counted) => (counted.mutators as usize, counted.last),
        Err(late) => (late.0.len(), None),
    };
    if stopped.is_ok() {
        // As `Held::end`.
        recorder.serve(place);
        stops.count();
        protocol.system.current.over();
        protocol.resume();
        recorder.record(
            place,
            Pause {
                number,
                reason,
                requested,
                queued: Duration::ZERO,
                time_to_stop: now - requested,
                stopped: Duration::ZERO,
                resume: now.elapsed(),
                mutators,
            },
        );
    } else {
        protocol.system.current.over();
        recorder.given_up(place);
    }
    protocol.system.tape.note(|| {
        let (started, stopped) = (requested, stopped.is_ok().then_some(now));
        let ended = Instant::now();
        Event::Stop(StopEvent { reason, requested, started, stopped, ended, mutators, last })
    });
}
