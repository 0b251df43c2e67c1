//! A recording of a world: a thread that samples what each mutator does, and reads the tape on which requesters
//! write.

use core::ops::ControlFlow;
use core::time::Duration;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::background::Background;
use crate::protocol::{Glance, MutatorSlot, SlotUse};
use crate::system::{Identity, Target};
use crate::tape::Event;
use crate::timeline::{Sampled, Seen, Timeline};
use crate::world::{Shared, World};

/// How to record a world.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RecordingOptions {
    /// How long from one look at all mutators to the next.
    pub interval: Duration,
    /// How many changes of mutators, and how many events, are kept. When there are as many the recording is over, and
    /// what comes then is dropped and counted. A change takes 24 bytes, an event about 100.
    pub capacity: usize,
}

impl Default for RecordingOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordingOptions {
    /// A look every 100 µs, and room for 100 000 changes and as many events.
    #[must_use]
    pub fn new() -> Self {
        Self { interval: Duration::from_micros(100), capacity: 100_000 }
    }

    /// Sets the time from one look to the next. The kernel makes some 50 µs more of it.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how much is kept.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }
}

/// Why a world is not recorded.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecordError {
    /// It is recorded already: finish or drop that recording first.
    AlreadyRecorded,
    /// No thread could be made that looks at the mutators.
    NoThread(io::Error),
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::AlreadyRecorded => f.write_str("the world is recorded already"),
            Self::NoThread(_) => f.write_str("no thread to record the world with"),
        }
    }
}

impl core::error::Error for RecordError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::AlreadyRecorded => None,
            Self::NoThread(error) => Some(error),
        }
    }
}

impl World {
    /// Records what the mutators and the requests of this world do, until the result is finished or dropped.
    ///
    /// A thread of its own looks at each mutator's state again and again, first before this returns; requests are
    /// written down by the threads that make them. Polls and safe regions are as they are without a recording: not one
    /// instruction is added. The recording keeps the world. In the child of a fork it is empty.
    ///
    /// # Errors
    ///
    /// [`RecordError`]: the world is recorded already, or there is no thread to be had.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{RecordingOptions, World};
    ///
    /// let world = World::new();
    /// let recording = world.record(RecordingOptions::new())?;
    /// world.stop_from_outside("gc")?.resume();
    /// let timeline = recording.finish();
    /// assert_eq!(timeline.stops()[0].reason.as_str(), "gc");
    /// let mut svg = Vec::new();
    /// timeline.to_svg(&mut svg)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn record(&self, options: RecordingOptions) -> Result<Recording, RecordError> {
        let tape = self.shared.protocol.system.tape.begin().ok_or(RecordError::AlreadyRecorded)?;
        let mut sampler = Sampler {
            shared: self.shared.clone(),
            tape,
            current: HashMap::new(),
            sampled: Sampled::new(Instant::now()),
            capacity: options.capacity.max(1),
        };
        let _goes_on = sampler.look();
        match Background::start("recording", options.interval, sampler, Sampler::look) {
            Ok(sampler) => Ok(Recording { shared: self.shared.clone(), sampler: Some(sampler) }),
            Err(error) => {
                self.shared.protocol.system.tape.end();
                Err(RecordError::NoThread(error))
            }
        }
    }
}

/// A recording that is on; from [`World::record`].
///
/// # Signal safety
///
/// No method is async-signal-safe: they wait, and free (AS-Unsafe lock heap). Nor is dropping it.
#[derive(Debug)]
#[must_use = "the recording is over when this is dropped"]
pub struct Recording {
    shared: Arc<Shared>,
    /// Taken when the recording is over.
    sampler: Option<Background<Sampler>>,
}

impl Recording {
    /// Ends the recording. A request that is not over yet is not in it.
    ///
    /// # Blocking
    ///
    /// Waits for the thread that records: for a look at all mutators.
    #[must_use]
    pub fn finish(mut self) -> Timeline {
        let now = Instant::now();
        let dropped = self.shared.protocol.system.tape.end();
        match self.sampler.take().and_then(Background::end) {
            // What came when the recording was full is still on the tape.
            Some(Sampler { sampled, tape, .. }) => {
                Timeline::new(sampled, dropped + tape.try_iter().count() as u32)
            }
            None => Timeline::new(Sampled::new(now), 0),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.sampler.take().is_some() {
            self.shared.protocol.system.tape.end();
        }
    }
}

/// What the thread that records has.
#[derive(Debug)]
struct Sampler {
    shared: Arc<Shared>,
    tape: Receiver<Event>,
    /// The use that each slot was last seen in, and its place among the mutators that were seen.
    current: HashMap<u32, (SlotUse, usize)>,
    sampled: Sampled,
    capacity: usize,
}

impl Sampler {
    /// Looks at all mutators, and reads the tape. Breaks off when there is no room for more.
    fn look(&mut self) -> ControlFlow<()> {
        if self.sampled.is_full {
            self.sampled.dropped += self.tape.try_iter().count() as u32;
            return ControlFlow::Break(());
        }
        let room = self.capacity.saturating_sub(self.sampled.events.len());
        self.sampled.events.extend(self.tape.try_iter().take(room));
        for slot in self.shared.protocol.live() {
            self.look_at(slot);
        }
        let now = self.sampled.start.elapsed();
        // A slot that no thread has ends what is known of its last one.
        for (use_, at) in self.current.values() {
            let slot = self.shared.protocol.slot(use_.index);
            if slot.is_none_or(|slot| !slot.state().is_live() || slot.current_use() != *use_) {
                self.sampled.end(*at, now);
            }
        }
        self.sampled.end = now;
        self.sampled.is_full =
            self.sampled.changes >= self.capacity || self.sampled.events.len() >= self.capacity;
        ControlFlow::Continue(())
    }

    fn look_at(&mut self, slot: &'static MutatorSlot<Identity>) {
        let slot_use = slot.current_use();
        let glance = slot.glance();
        // Behind the look: a change came before the time that is written down for it.
        let now = self.sampled.start.elapsed();
        let at = match self.current.get(&slot_use.index) {
            Some((known, at)) if *known == slot_use => *at,
            _ => {
                // Read before the second look at the generation: the slot may be another thread's by now.
                let Some(Target { tid, name, .. }) = slot.status.identity.target() else { return };
                if slot.current_use() != slot_use {
                    return;
                }
                let at = self.sampled.add(Seen::new(slot_use, tid, name));
                if let Some((_, before)) = self.current.insert(slot_use.index, (slot_use, at)) {
                    self.sampled.end(before, now);
                }
                at
            }
        };
        if glance != Glance::Gone {
            self.sampled.change(at, now, glance);
        }
    }
}
