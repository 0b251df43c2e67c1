//! Where requesters write what they did while a recording is on: when a request is over, and when they nudge.
//!
//! The tape is a bounded channel. Nobody waits for it: what finds it full is dropped, and counted.

#[cfg(feature = "timeline")]
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

#[cfg(feature = "timeline")]
use arc_swap::ArcSwapOption;
#[cfg(feature = "timeline")]
use crossbeam_channel::{Receiver, Sender, bounded};
#[cfg(feature = "timeline")]
use sigctx::fork;

use crate::options::Reason;
use crate::protocol::SlotUse;

/// A stop that is over, or was given up.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "timeline"), expect(dead_code, reason = "no tape is read"))]
pub(crate) struct StopEvent {
    pub(crate) reason: Reason,
    pub(crate) requested: Instant,
    /// When it had its turn.
    pub(crate) started: Instant,
    /// When all had stopped; `None` if it was given up.
    pub(crate) stopped: Option<Instant>,
    /// When the world was resumed.
    pub(crate) ended: Instant,
    pub(crate) mutators: usize,
    pub(crate) last: Option<SlotUse>,
}

/// A for-each that is over, or was given up.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "timeline"), expect(dead_code, reason = "no tape is read"))]
pub(crate) struct EachEvent {
    pub(crate) requested: Instant,
    pub(crate) ended: Instant,
    pub(crate) visited: usize,
}

/// A handshake that is over, or was given up.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "timeline"), expect(dead_code, reason = "no tape is read"))]
pub(crate) struct HandshakeEvent {
    pub(crate) requested: Instant,
    pub(crate) ended: Instant,
    pub(crate) asked: usize,
    pub(crate) answered: usize,
    /// The mutator, if one alone was asked.
    pub(crate) target: Option<SlotUse>,
    pub(crate) given_up: bool,
}

/// What a requester did.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "timeline"), expect(dead_code, reason = "no tape is read"))]
pub(crate) enum Event {
    Stop(StopEvent),
    Each(EachEvent),
    Handshake(HandshakeEvent),
    /// It found a mutator late, for the request that was made at the second time.
    Late(SlotUse, Instant, Instant),
    /// It nudged a mutator; false if that failed.
    Nudge(SlotUse, Instant, bool),
}

/// How many events wait for the thread that reads them.
#[cfg(feature = "timeline")]
const LENGTH: usize = 1024;

/// A recording's end of the tape.
#[cfg(feature = "timeline")]
#[derive(Debug)]
struct Reel {
    events: Sender<Event>,
    dropped: AtomicU32,
    /// A fork copies a channel at any moment of its life: the child must not touch it.
    process: u32,
}

/// Empty, and without cost, unless the feature `timeline` is on.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    #[cfg(feature = "timeline")]
    reel: ArcSwapOption<Reel>,
}

#[cfg(not(feature = "timeline"))]
impl Tape {
    #[inline]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(crate) fn note(&self, _event: impl FnOnce() -> Event) {}
}

#[cfg(feature = "timeline")]
impl Tape {
    /// Writes an event down, if there is a recording.
    pub(crate) fn note(&self, event: impl FnOnce() -> Event) {
        if let Some(reel) = &*self.reel.load()
            && reel.process == fork::process()
            && reel.events.try_send(event()).is_err()
        {
            reel.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a reel in; `None` if this process has one in it.
    pub(crate) fn begin(&self) -> Option<Receiver<Event>> {
        let (events, receiver) = bounded(LENGTH);
        let process = fork::process();
        let reel = Some(Reel { events, dropped: AtomicU32::new(0), process }.into());
        let there = self.reel.load();
        if there.as_ref().is_some_and(|there| there.process == process) {
            return None;
        }
        // A thread that comes between gets there first, and this one finds its reel.
        let before = self.reel.compare_and_swap(&there, reel);
        let same = match (&*before, &*there) {
            (Some(before), Some(there)) => std::sync::Arc::ptr_eq(before, there),
            (before, there) => before.is_none() && there.is_none(),
        };
        same.then_some(receiver)
    }

    /// Takes the reel out. How many events were dropped.
    pub(crate) fn end(&self) -> u32 {
        self.reel.swap(None).map_or(0, |reel| reel.dropped.load(Ordering::Relaxed))
    }
}

#[cfg(all(test, feature = "timeline"))]
mod tests {
    use super::*;

    #[test]
    fn what_finds_the_tape_full_is_counted() {
        let tape = Tape::default();
        let nudge = || Event::Nudge(SlotUse { index: 0, generation: 0 }, Instant::now(), true);
        let note = || tape.note(nudge);
        note();
        let events = tape.begin().expect("no other");
        assert!(tape.begin().is_none(), "one at a time");
        (0..LENGTH + 3).for_each(|_| note());
        assert_eq!(events.len(), LENGTH, "none from before");
        assert_eq!(tape.end(), 3);
        note();
        assert_eq!((events.len(), tape.end()), (LENGTH, 0), "none from after");
        assert!(tape.begin().is_some());
    }
}
