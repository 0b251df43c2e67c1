//! What the stops of a world cost, counted as they happen.
//!
//! The thread that has the stop turn is the only one that writes what a stop cost, so a count is a load and a
//! store. Readers take what they find: a snapshot may have one histogram of a stop and not yet the next.

use core::array;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sigctx::fork;

use crate::options::Reason;

/// Each power of two is divided into this many parts: a time is known to 1/16.
const PARTS: usize = 16;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// The powers of two of nanoseconds, up to 18 minutes. What took longer counts as that.
const POWERS: usize = 40;
const BUCKETS: usize = (POWERS - PART_BITS as usize + 1) * PARTS;
/// How many reasons have counts of their own. Those that come later share the last.
const REASONS: usize = 16;

/// How often each time came, in buckets that are 1/16 wide. Lock-free.
#[derive(Debug)]
pub(crate) struct Counts([AtomicU32; BUCKETS]);

impl Counts {
    pub(crate) fn new() -> Self {
        Self(array::from_fn(|_| AtomicU32::new(0)))
    }

    /// By one thread at a time.
    pub(crate) fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        increment(&self.0[bucket(nanoseconds)]);
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// Adds one to what the calling thread alone writes.
fn increment(count: &AtomicU32) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The bucket of a time.
fn bucket(nanoseconds: u64) -> usize {
    let Some(above) = nanoseconds.checked_ilog2().and_then(|log| log.checked_sub(PART_BITS)) else {
        return nanoseconds as usize;
    };
    let part = (nanoseconds >> above) as usize % PARTS;
    ((above as usize + 1) * PARTS + part).min(BUCKETS - 1)
}

/// The longest time that the bucket has.
fn longest(bucket: usize) -> Duration {
    let Some(above) = (bucket / PARTS).checked_sub(1) else {
        return Duration::from_nanos(bucket as u64);
    };
    let part = (bucket % PARTS + PARTS) as u64;
    Duration::from_nanos(((part + 1) << above) - 1)
}

/// How often each time came. Each is known to 1/16.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram(Box<[u32]>);

impl Histogram {
    /// How many times there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&count| u64::from(count)).sum()
    }

    /// The time that a share `of` all times does not exceed: 0.5 is the median, 1.0 the longest. Up to 1/16 too long,
    /// never too short. Zero if there is none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "no count is as exact as a time")]
    #[doc(alias = "percentile")]
    pub fn quantile(&self, of: f64) -> Duration {
        let count = self.count();
        let rank = ((count as f64 * of.clamp(0.0, 1.0)).ceil() as u64).clamp(1, count.max(1));
        self.buckets()
            .scan(0, |sum, (time, count)| {
                *sum += u64::from(count);
                Some((time, *sum))
            })
            .find_map(|(time, sum)| (sum >= rank).then_some(time))
            .unwrap_or_default()
    }

    /// The buckets that hold a time, from short to long: the longest time of each, and how many it holds.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u32)> {
        let held = self.0.iter().enumerate().filter(|(_, count)| **count != 0);
        held.map(|(at, &count)| (longest(at), count))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.quantile(1.0))
            .finish()
    }
}

/// What the stops for one reason cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReasonMetrics {
    /// The reason. After the first 15 of a world, all others are counted under "other".
    pub reason: Reason,
    /// How many stops had their turn, and were given up at their deadline.
    pub given_up: u32,
    /// How many requests were served by another's stop
    /// ([`Mutator::stop_or_join`](crate::Mutator::stop_or_join)). They are no stops, and are in no histogram.
    pub coalesced: u32,
    /// How many were within another stop ([`Stopped::again`](crate::Stopped::again),
    /// [`Stopped::continue_as`](crate::Stopped::continue_as)). They are part of its pause, and in no histogram.
    pub nested: u32,
    /// How long each waited for its turn. Of those that succeeded, as all that follow.
    pub queued: Histogram,
    /// From its turn until all mutators had stopped.
    pub time_to_stop: Histogram,
    /// From then until the world was resumed.
    pub stopped: Histogram,
    /// How long it took to resume the world, without the time until the mutators ran.
    pub resume: Histogram,
}

/// What the requests of a world cost so far; from [`World::metrics`](crate::World::metrics).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Metrics {
    /// By reason, in the order in which they came.
    pub stops: Vec<ReasonMetrics>,
    /// How many nudges were sent.
    pub nudges: u32,
    /// How many of them failed.
    pub nudges_failed: u32,
    /// How many fences were made on all processors.
    pub fences: u32,
    /// How often a requester slept while it waited for mutators.
    pub sleeps: u32,
    /// How many pauses found the channel of [`World::pauses`](crate::World::pauses) full.
    pub pauses_dropped: u32,
}

/// One stop that is over; from [`World::pauses`](crate::World::pauses).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Pause {
    /// Which stop of the world it was, as [`World::current_stop`](crate::World::current_stop) told it.
    pub number: u32,
    /// What for.
    pub reason: Reason,
    /// When the stop was asked for.
    pub requested: Instant,
    /// How long it waited for its turn.
    pub queued: Duration,
    /// From its turn until all mutators had stopped.
    pub time_to_stop: Duration,
    /// From then until the world was resumed.
    pub stopped: Duration,
    /// How long it took to resume the world.
    pub resume: Duration,
    /// How many mutators were stopped.
    pub mutators: usize,
}

/// What is kept for one reason.
#[derive(Debug)]
struct Kept {
    reason: Reason,
    given_up: AtomicU32,
    /// Written by any thread.
    coalesced: AtomicU32,
    nested: AtomicU32,
    /// How many stops are over whose work was done.
    served: AtomicU32,
    queued: Counts,
    time_to_stop: Counts,
    stopped: Counts,
    resume: Counts,
}

impl Kept {
    fn new(reason: Reason) -> Self {
        let [given_up, coalesced, nested, served] = array::from_fn(|_| AtomicU32::new(0));
        let [queued, time_to_stop, stopped, resume] = array::from_fn(|_| Counts::new());
        Self { reason, given_up, coalesced, nested, served, queued, time_to_stop, stopped, resume }
    }
}

/// Where a [`Recorder`] keeps a reason.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place(u8);

/// Counts of what several threads do.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) nudges: AtomicU32,
    pub(crate) nudges_failed: AtomicU32,
    pub(crate) fences: AtomicU32,
    pub(crate) sleeps: AtomicU32,
}

/// Adds one to what any thread may write.
pub(crate) fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a world keeps of its stops.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Filled from the front by threads that have the stop turn; null where nothing is kept yet.
    kept: [AtomicPtr<Kept>; REASONS],
    /// With the process that listens: a fork copies a channel at any moment of its life, so the child must not touch
    /// it.
    pauses: ArcSwapOption<(Sender<Pause>, u32)>,
    dropped: AtomicU32,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        for place in &mut self.kept {
            let kept = core::mem::replace(place.get_mut(), ptr::null_mut());
            if !kept.is_null() {
                // SAFETY: from `Box::into_raw`, and there is no other handle of the world.
                drop(unsafe { Box::from_raw(kept) });
            }
        }
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let kept = array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
        Self { kept, pauses: ArcSwapOption::empty(), dropped: AtomicU32::new(0) }
    }

    /// What is kept for each reason so far.
    fn all(&self) -> impl Iterator<Item = &Kept> {
        // Acquire: pairs with the release of the thread that made it.
        // SAFETY: null, or from `Box::into_raw`, and not freed before the recorder.
        self.kept.iter().map_while(|place| unsafe { place.load(Ordering::Acquire).as_ref() })
    }

    /// Where the reason is kept. By the thread that has the stop turn: this may allocate.
    pub(crate) fn place(&self, reason: Reason) -> Place {
        let is_other = |(at, kept): &(usize, &Kept)| *at == REASONS - 1 || kept.reason == reason;
        if let Some((at, _)) = self.all().enumerate().find(is_other) {
            return Place(at as u8);
        }
        let at = self.all().count();
        let reason = if at == REASONS - 1 { Reason::new("other") } else { reason };
        let made = Box::into_raw(Box::new(Kept::new(reason)));
        self.kept[at].store(made, Ordering::Release);
        Place(at as u8)
    }

    fn at(&self, place: Place) -> &Kept {
        self.all().nth(usize::from(place.0)).expect("a place is filled before it is known")
    }

    /// A stop did not come about in time. By the thread that has the stop turn.
    pub(crate) fn given_up(&self, place: Place) {
        increment(&self.at(place).given_up);
    }

    /// The work of a stop is done, and its mutators do not run yet. By the thread that has the stop turn.
    pub(crate) fn serve(&self, place: Place) {
        // Relaxed: a mutator that runs again has seen the end of its stop, which comes later.
        increment(&self.at(place).served);
    }

    /// A stop within another. By the thread that has the stop turn.
    pub(crate) fn nested(&self, place: Place) {
        increment(&self.at(place).nested);
    }

    /// What is kept for the reason alone.
    fn own(&self, reason: Reason) -> Option<&Kept> {
        self.all().take(REASONS - 1).find(|kept| kept.reason == reason)
    }

    /// How many stops for the reason have done their work. Always 0 if the reason has no place of its own.
    pub(crate) fn served(&self, reason: Reason) -> u32 {
        self.own(reason).map_or(0, |kept| kept.served.load(Ordering::Relaxed))
    }

    /// As [`Recorder::served`]; if the reason shares the last place, `of_all`.
    pub(crate) fn served_or(&self, reason: Reason, of_all: impl FnOnce() -> u32) -> u32 {
        let shares = self.own(reason).is_none() && self.all().count() == REASONS;
        if shares { of_all() } else { self.served(reason) }
    }

    /// A request was served by the stop of another thread. By any thread, when [`Recorder::served`] has changed.
    pub(crate) fn coalesced(&self, reason: Reason) {
        if let Some(kept) = self.all().find(|kept| kept.reason == reason) {
            count(&kept.coalesced);
        }
    }

    /// A stop is over. By the thread that has the stop turn.
    pub(crate) fn record(&self, place: Place, pause: Pause) {
        let kept = self.at(place);
        kept.queued.add(pause.queued);
        kept.time_to_stop.add(pause.time_to_stop);
        kept.stopped.add(pause.stopped);
        kept.resume.add(pause.resume);
        if let Some((sender, process)) = self.pauses.load().as_deref()
            && *process == fork::process()
            && let Err(TrySendError::Full(_)) = sender.try_send(pause)
        {
            increment(&self.dropped);
        }
    }

    pub(crate) fn subscribe(&self, capacity: usize) -> Receiver<Pause> {
        // A channel without room passes an event only to a listener that waits at that moment.
        let (sender, receiver) = bounded(capacity.max(1));
        self.pauses.store(Some((sender, fork::process()).into()));
        receiver
    }

    pub(crate) fn read(&self, counters: &Counters) -> Metrics {
        let stops = self.all().map(|kept| ReasonMetrics {
            reason: kept.reason,
            given_up: kept.given_up.load(Ordering::Relaxed),
            coalesced: kept.coalesced.load(Ordering::Relaxed),
            nested: kept.nested.load(Ordering::Relaxed),
            queued: kept.queued.read(),
            time_to_stop: kept.time_to_stop.read(),
            stopped: kept.stopped.read(),
            resume: kept.resume.read(),
        });
        Metrics {
            stops: stops.collect(),
            nudges: counters.nudges.load(Ordering::Relaxed),
            nudges_failed: counters.nudges_failed.load(Ordering::Relaxed),
            fences: counters.fences.load(Ordering::Relaxed),
            sleeps: counters.sleeps.load(Ordering::Relaxed),
            pauses_dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        let mut last = None;
        for at in 0..BUCKETS {
            let most = longest(at).as_nanos() as u64;
            assert_eq!(bucket(most), at, "{most}");
            if let Some(last) = last {
                assert_eq!(bucket(last + 1), at, "{last}");
                assert!((most - last) * PARTS as u64 <= most.max(PARTS as u64), "{last} {most}");
            }
            last = Some(most);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(longest(BUCKETS - 1) > Duration::from_secs(1000));
    }

    #[test]
    fn quantiles_are_a_sixteenth_too_long_at_most() {
        let counts = Counts::new();
        assert_eq!(counts.read().quantile(0.5), Duration::ZERO);
        (1..=1000).for_each(|us| counts.add(Duration::from_micros(us)));
        let read = counts.read();
        assert_eq!(read.count(), 1000);
        for (of, exact) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let (found, exact) = (read.quantile(of), Duration::from_micros(exact));
            assert!(found >= exact && found <= exact + exact / 16, "{of}: {found:?}");
        }
        assert_eq!(read.buckets().map(|(_, count)| count).sum::<u32>(), 1000);
    }

    #[test]
    fn reasons_beyond_the_room_share_the_last_place() {
        let recorder = Recorder::new();
        let names: Vec<&'static str> =
            (0..20).map(|at| &*Box::leak(format!("reason {at}").into_boxed_str())).collect();
        for _ in 0..2 {
            for &name in &names {
                recorder.given_up(recorder.place(Reason::new(name)));
            }
        }
        let read = recorder.read(&Counters::default());
        let counts: Vec<_> = read.stops.iter().map(|s| (s.reason.as_str(), s.given_up)).collect();
        assert_eq!(counts.len(), REASONS);
        assert_eq!(
            (counts[0], counts[14], counts[15]),
            (("reason 0", 2), ("reason 14", 2), ("other", 10))
        );
    }
}
