//! What a recording has seen, put in order: the mutators over time, and the requests.
//!
//! What requesters did is exact: each says when. What mutators did is sampled, and a change came at some time since
//! the look before. Where the two meet the exact one decides: no mutator runs in a stop.

use core::time::Duration;
use std::time::Instant;

use sigctx::sys::Tid;
use threadreg::Name;

use crate::options::Reason;
use crate::protocol::{Glance, SlotUse};
use crate::tape::{EachEvent, Event, HandshakeEvent, StopEvent};

/// A mutator that was seen, and what it did.
#[derive(Debug)]
pub(crate) struct Seen {
    slot_use: SlotUse,
    tid: Tid,
    name: Name,
    changes: Vec<(Duration, Glance)>,
    ended: Option<Duration>,
}

impl Seen {
    pub(crate) fn new(slot_use: SlotUse, tid: Tid, name: Name) -> Self {
        Self { slot_use, tid, name, changes: Vec::new(), ended: None }
    }
}

/// What was sampled, and read from the tape.
#[derive(Debug)]
pub(crate) struct Sampled {
    pub(crate) start: Instant,
    /// The last look.
    pub(crate) end: Duration,
    pub(crate) seen: Vec<Seen>,
    /// How many changes there are, a mutator that was seen first counted as one.
    pub(crate) changes: usize,
    pub(crate) events: Vec<Event>,
    pub(crate) is_full: bool,
    pub(crate) dropped: u32,
}

impl Sampled {
    pub(crate) fn new(start: Instant) -> Self {
        let (seen, events) = (Vec::new(), Vec::new());
        Self { start, end: Duration::ZERO, seen, changes: 0, events, is_full: false, dropped: 0 }
    }

    /// A mutator's place among those that were seen.
    pub(crate) fn add(&mut self, seen: Seen) -> usize {
        self.changes += 1;
        self.seen.push(seen);
        self.seen.len() - 1
    }

    /// What a mutator was found to do.
    pub(crate) fn change(&mut self, at: usize, now: Duration, glance: Glance) {
        let changes = &mut self.seen[at].changes;
        if changes.last().is_none_or(|(_, before)| *before != glance) {
            changes.push((now, glance));
            self.changes += 1;
        }
    }

    /// A mutator is gone.
    pub(crate) fn end(&mut self, at: usize, now: Duration) {
        self.seen[at].ended.get_or_insert(now);
    }
}

/// What a mutator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// It runs user code.
    Running,
    /// In a safe region.
    Safe,
    /// It waits, safe: for the end of a stop, for its turn to make a request, or for a closure.
    Stopped,
    /// A request waits for it for longer than for others: from the time when late mutators are nudged.
    Late,
    /// It stops the world, or has it stopped.
    Requesting,
}

/// What a mutator did, and how long. Times are since the recording began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Span {
    /// From when on.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
    /// What.
    pub activity: Activity,
}

/// A nudge that a mutator was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NudgeMark {
    /// When, since the recording began.
    pub at: Duration,
    /// False if it failed.
    pub sent: bool,
}

/// A mutator's part of a [`Timeline`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MutatorTrack {
    /// Its thread.
    pub tid: Tid,
    /// The thread's name when it attached.
    pub name: Name,
    /// The mutator's place in the world.
    pub index: usize,
    /// How many mutators have had this place, this one included.
    pub generation: u32,
    /// What it did, in order, without gaps from when it was first seen.
    pub spans: Vec<Span>,
    /// The nudges that it was sent.
    pub nudges: Vec<NudgeMark>,
}

/// A stop of the world. Times are exact, and since the recording began.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct StopSpan {
    /// What for.
    pub reason: Reason,
    /// When it was asked for.
    pub requested: Duration,
    /// When it had its turn.
    pub started: Duration,
    /// When all mutators had stopped. `None` if it was given up.
    pub stopped: Option<Duration>,
    /// When the world was resumed.
    pub ended: Duration,
    /// How many mutators were stopped.
    pub mutators: usize,
    /// Which of [`Timeline::mutators`] acknowledged last, if the stop had to wait for one that was seen.
    pub last: Option<usize>,
}

/// A for-each. Times are exact, and since the recording began.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ForEachSpan {
    /// When it was asked for. It may have waited for its turn from then on.
    pub requested: Duration,
    /// When the last closure had run.
    pub ended: Duration,
    /// How many mutators were visited.
    pub visited: usize,
}

/// A handshake whose requester waited. Times are exact, and since the recording began.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct HandshakeSpan {
    /// When it was asked for.
    pub requested: Duration,
    /// When each mutator that was asked had answered, was gone, or was given up.
    pub ended: Duration,
    /// How many mutators were asked.
    pub asked: usize,
    /// For how many of them the operation ran.
    pub answered: usize,
    /// Which of [`Timeline::mutators`] was asked, if one alone was, and it was seen.
    pub target: Option<usize>,
    /// Whether it was given up at its deadline.
    pub given_up: bool,
}

/// What the mutators and the requests of a world did while it was recorded; from
/// [`Recording::finish`](crate::Recording::finish).
///
/// Stops, for-eaches, handshakes and nudges are exact. What mutators did is sampled: a change came at some time in the interval
/// before, and what is shorter than an interval may be missing. But no mutator is shown to run in a stop, and late is
/// one from the moment that its requester found it so. Operations and callbacks for which no thread waits are not in it.
///
/// # Signal safety
///
/// No method is async-signal-safe: they allocate (AS-Unsafe heap). The getters are AS-Safe.
#[derive(Debug, Clone)]
pub struct Timeline {
    length: Duration,
    mutators: Vec<MutatorTrack>,
    stops: Vec<StopSpan>,
    for_eaches: Vec<ForEachSpan>,
    handshakes: Vec<HandshakeSpan>,
    dropped: u32,
}

impl Timeline {
    /// `dropped` events found the tape full.
    pub(crate) fn new(sampled: Sampled, dropped: u32) -> Self {
        let Sampled { start, end, seen, events, .. } = sampled;
        let since = |at: Instant| at.saturating_duration_since(start);
        let place = |slot_use: SlotUse| seen.iter().position(|seen| seen.slot_use == slot_use);
        let (mut stops, mut for_eaches, mut handshakes) = (Vec::new(), Vec::new(), Vec::new());
        let mut lates = Vec::new();
        let mut nudges: Vec<Vec<NudgeMark>> = seen.iter().map(|_| Vec::new()).collect();
        for event in events {
            match event {
                Event::Stop(StopEvent {
                    reason,
                    requested,
                    started,
                    stopped,
                    ended,
                    mutators,
                    last,
                }) => stops.push(StopSpan {
                    reason,
                    requested: since(requested),
                    started: since(started),
                    stopped: stopped.map(since),
                    ended: since(ended),
                    mutators,
                    last: last.and_then(place),
                }),
                Event::Each(EachEvent { requested, ended, visited }) => {
                    for_eaches.push(ForEachSpan {
                        requested: since(requested),
                        ended: since(ended),
                        visited,
                    });
                }
                Event::Handshake(HandshakeEvent {
                    requested,
                    ended,
                    asked,
                    answered,
                    target,
                    given_up,
                }) => handshakes.push(HandshakeSpan {
                    requested: since(requested),
                    ended: since(ended),
                    asked,
                    answered,
                    target: target.and_then(place),
                    given_up,
                }),
                Event::Late(slot_use, at, requested) => {
                    lates.extend(place(slot_use).map(|late| (late, since(at), since(requested))));
                }
                Event::Nudge(slot_use, at, sent) => {
                    if let Some(to) = place(slot_use) {
                        nudges[to].push(NudgeMark { at: since(at), sent });
                    }
                }
            }
        }
        let length = stops.iter().map(|stop| stop.ended).fold(end, Duration::max);
        // In the order of their ends, which one turn gives.
        let of_stops = stops.iter().filter_map(|stop| Some((stop.stopped?, stop.ended)));
        let stopped: Vec<_> = of_stops.collect();
        // How long each request waited. Any number of handshakes wait at a time.
        let waits: Vec<_> = stops
            .iter()
            .map(|stop| (stop.requested, stop.stopped.unwrap_or(stop.ended)))
            .chain(for_eaches.iter().map(|each| (each.requested, each.ended)))
            .chain(handshakes.iter().map(|asked| (asked.requested, asked.ended)))
            .collect();
        let track = |(at, (seen, nudges)): (usize, (Seen, Vec<NudgeMark>))| {
            let Seen { slot_use, tid, name, changes, ended } = seen;
            let mut spans = spans(&changes, ended.unwrap_or(length));
            spans = overlay(spans, &stopped, Activity::Stopped, |activity| {
                matches!(activity, Activity::Running)
            });
            // Late from when it was found so until the request had it, or was given up.
            let mut late: Vec<_> = lates
                .iter()
                .filter(|(place, ..)| *place == at)
                .filter_map(|&(_, at, requested)| {
                    let of = waits.iter().find(|(from, to)| *from == requested && *to >= at)?;
                    Some((at, of.1))
                })
                .collect();
            late.sort_unstable();
            // Several requests may wait at a time.
            late.dedup_by(|next, last| {
                let meet = next.0 <= last.1;
                if meet {
                    last.1 = last.1.max(next.1);
                }
                meet
            });
            spans = overlay(spans, &late, Activity::Late, |activity| activity == Activity::Running);
            let (index, generation) = (slot_use.index as usize, slot_use.generation);
            MutatorTrack { tid, name, index, generation, spans, nudges }
        };
        let mutators = seen.into_iter().zip(nudges).enumerate().map(track).collect();
        let dropped = dropped + sampled.dropped;
        Self { length, mutators, stops, for_eaches, handshakes, dropped }
    }

    /// How long the world was recorded.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }

    /// The mutators, in the order in which they were first seen.
    #[must_use]
    pub fn mutators(&self) -> &[MutatorTrack] {
        &self.mutators
    }

    /// The stops that were over, or given up, in order.
    #[must_use]
    pub fn stops(&self) -> &[StopSpan] {
        &self.stops
    }

    /// The for-eaches that were over, in order.
    #[must_use]
    pub fn for_eaches(&self) -> &[ForEachSpan] {
        &self.for_eaches
    }

    /// The handshakes that were over, or given up, in the order of their ends: those with one mutator and those with
    /// all.
    #[must_use]
    pub fn handshakes(&self) -> &[HandshakeSpan] {
        &self.handshakes
    }

    /// How many events of requesters were dropped, since more came than there was room for.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        self.dropped
    }
}

/// What a mutator was found to do, until `end`.
fn spans(changes: &[(Duration, Glance)], end: Duration) -> Vec<Span> {
    let ends = changes.iter().skip(1).map(|(at, _)| *at).chain([end]);
    let spans = changes.iter().zip(ends).filter_map(|(&(from, glance), to)| {
        let activity = match glance {
            Glance::Runs => Activity::Running,
            Glance::Away => Activity::Safe,
            Glance::Works => Activity::Requesting,
            Glance::Waits => Activity::Stopped,
            Glance::Gone => return None,
        };
        Some(Span { from, to, activity })
    });
    spans.filter(|span| span.from < span.to).collect()
}

/// In `times`, which are in order and do not overlap, what `is_covered` is `by` instead.
fn overlay(
    spans: Vec<Span>,
    times: &[(Duration, Duration)],
    by: Activity,
    is_covered: impl Fn(Activity) -> bool,
) -> Vec<Span> {
    let mut laid: Vec<Span> = Vec::with_capacity(spans.len());
    let mut put = |span: Span| match laid.last_mut() {
        _ if span.from >= span.to => {}
        Some(last) if last.activity == span.activity && last.to == span.from => last.to = span.to,
        _ => laid.push(span),
    };
    for Span { from: start, to, activity } in spans {
        let mut from = start;
        // The first that ends in the span or later: the ends are in order, too.
        let first = times.partition_point(|(_, end)| *end <= from);
        for &(begin, end) in times[first..].iter().take_while(|(begin, _)| *begin < to) {
            if is_covered(activity) {
                let (begin, end) = (begin.clamp(from, to), end.clamp(from, to));
                put(Span { from, to: begin, activity });
                put(Span { from: begin, to: end, activity: by });
                from = end;
            }
        }
        put(Span { from, to, activity });
    }
    laid
}

impl Activity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Safe => "safe",
            Self::Stopped => "stopped",
            Self::Late => "late",
            Self::Requesting => "requesting",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const fn us(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }

    pub(crate) const MUTATOR: SlotUse = SlotUse { index: 3, generation: 7 };

    /// A mutator that was found to do this, beside requests that did that; recorded for a millisecond.
    pub(crate) fn timeline(
        changes: &[(u64, Glance)],
        events: impl FnOnce(Instant) -> Vec<Event>,
    ) -> Timeline {
        let mut sampled = Sampled::new(Instant::now());
        let at = sampled.add(Seen::new(MUTATOR, 42, Name::new("<a> & \"b\"")));
        for &(time, glance) in changes {
            sampled.change(at, us(time), glance);
        }
        sampled.events = events(sampled.start);
        sampled.end = us(1000);
        Timeline::new(sampled, 2)
    }

    pub(crate) fn stop(start: Instant, [started, stopped, ended]: [u64; 3]) -> Event {
        Event::Stop(StopEvent {
            reason: Reason::GC,
            requested: start + us(started),
            started: start + us(started),
            stopped: (stopped != 0).then(|| start + us(stopped)),
            ended: start + us(ended),
            mutators: 1,
            last: Some(MUTATOR),
        })
    }

    fn of(timeline: &Timeline) -> Vec<(u64, u64, Activity)> {
        let [track] = timeline.mutators() else { panic!("{timeline:?}") };
        let tuple =
            |span: &Span| (span.from.as_micros() as u64, span.to.as_micros() as u64, span.activity);
        track.spans.iter().map(tuple).collect()
    }

    /// The looks came before and after the stop: what is exact decides.
    #[test]
    fn no_mutator_is_shown_to_run_in_a_stop() {
        let stops = |start| vec![stop(start, [90, 100, 200]), stop(start, [290, 300, 400])];
        assert_eq!(
            of(&timeline(&[(10, Glance::Runs), (350, Glance::Away), (600, Glance::Runs)], stops)),
            [
                (10, 100, Activity::Running),
                (100, 200, Activity::Stopped),
                (200, 300, Activity::Running),
                (300, 350, Activity::Stopped),
                (350, 600, Activity::Safe),
                (600, 1000, Activity::Running),
            ]
        );
    }

    /// The span of a mutator that is late ends with the request's wait, whatever was sampled.
    #[test]
    fn a_mutator_is_late_while_a_request_waits_for_it() {
        let events = |start| {
            let late = |at, requested| Event::Late(MUTATOR, start + us(at), start + us(requested));
            let each = EachEvent { requested: start + us(700), ended: start + us(900), visited: 2 };
            vec![
                late(110, 10),
                stop(start, [10, 200, 300]),
                late(450, 350),
                // Given up.
                stop(start, [350, 0, 500]),
                late(800, 700),
                Event::Each(each),
                // Of a request that is not over.
                late(950, 940),
            ]
        };
        assert_eq!(
            of(&timeline(&[(0, Glance::Runs)], events)),
            [
                (0, 110, Activity::Running),
                (110, 200, Activity::Late),
                (200, 300, Activity::Stopped),
                (300, 450, Activity::Running),
                (450, 500, Activity::Late),
                (500, 800, Activity::Running),
                (800, 900, Activity::Late),
                (900, 1000, Activity::Running),
            ]
        );
    }

    pub(crate) fn handshake(start: Instant, [requested, ended]: [u64; 2]) -> Event {
        Event::Handshake(HandshakeEvent {
            requested: start + us(requested),
            ended: start + us(ended),
            asked: 1,
            answered: 1,
            target: Some(MUTATOR),
            given_up: false,
        })
    }

    /// Any number of handshakes wait at a time, and a mutator that is late for one may answer another.
    #[test]
    fn a_mutator_is_late_for_the_handshake_that_found_it_so() {
        let events = |start| {
            let late = |at, requested| Event::Late(MUTATOR, start + us(at), start + us(requested));
            let long = handshake(start, [100, 900]);
            vec![late(350, 300), handshake(start, [320, 380]), handshake(start, [300, 400]), long]
        };
        let timeline = timeline(&[(0, Glance::Runs)], events);
        assert_eq!(
            of(&timeline),
            [
                (0, 350, Activity::Running),
                (350, 400, Activity::Late),
                (400, 1000, Activity::Running),
            ]
        );
        let [_, first, _] = timeline.handshakes() else { panic!("{timeline:?}") };
        assert_eq!((first.requested, first.ended, first.target), (us(300), us(400), Some(0)));
    }
}
