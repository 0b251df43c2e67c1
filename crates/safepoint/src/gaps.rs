//! Which code polls rarely: a thread asks running mutators for nothing, and sees how long they take to come.

use core::mem;
use core::ops::ControlFlow;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use sigctx::sys::Tid;
use threadreg::Name;
use threadreg::procfs::TaskDir;

use crate::background::Background;
use crate::metrics::{Counts, Histogram};
use crate::protocol::{MutatorSlot, Protocol, SlotUse};
use crate::straggler::KernelView;
use crate::system::{Identity, Linux, Target};
use crate::world::{Shared, World};

/// The kernel is asked about gaps from here on.
const LONG: Duration = Duration::from_millis(10);

/// The unit of [`Identity::sampled`].
const TICK: Duration = Duration::from_micros(100);

/// How to look for poll gaps.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PollGapOptions {
    /// How long from one look at all mutators to the next. A gap is known to so much.
    pub interval: Duration,
    /// How many mutators have gaps of their own. Those that come later are not looked at, and counted. Each takes
    /// about 2.5 kB.
    pub mutators: usize,
}

impl Default for PollGapOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl PollGapOptions {
    /// A look every 200 µs, at 256 mutators.
    #[must_use]
    pub fn new() -> Self {
        Self { interval: Duration::from_micros(200), mutators: 256 }
    }

    /// Sets the time from one look to the next. Each mutator's next poll after a look is a slow one, which takes less
    /// than a microsecond.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how many mutators have gaps of their own.
    #[must_use]
    pub fn mutators(mut self, mutators: usize) -> Self {
        self.mutators = mutators;
        self
    }
}

impl World {
    /// Looks for code that polls rarely, until the result is finished or dropped.
    ///
    /// A thread of its own asks each mutator that runs for nothing, and sees when it comes: at a poll, or where it
    /// enters or leaves a safe region. So a gap is what a stop would have waited for that mutator had it been asked for
    /// then. Nothing is nudged, and nothing stops. A mutator pays with one slow poll for each look. The world is kept.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{PollGapOptions, World};
    /// use std::time::{Duration, Instant};
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// let gaps = world.sample_poll_gaps(PollGapOptions::new())?;
    /// let start = Instant::now();
    /// while start.elapsed() < Duration::from_millis(5) {} // Without a poll.
    /// mutator.poll();
    /// for gaps in gaps.finish().mutators {
    ///     println!("{} {:?}: {:?}", gaps.name, gaps.gaps, gaps.longest);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "time to safepoint")]
    pub fn sample_poll_gaps(&self, options: PollGapOptions) -> io::Result<PollGapSampler> {
        let mut gaps = Gaps {
            shared: self.shared.clone(),
            most: options.mutators,
            current: HashMap::new(),
            kept: Vec::new(),
            not_looked_at: 0,
            tasks: None,
        };
        // A mutator that runs is asked before this returns.
        let _goes_on = gaps.look();
        let sampler = Background::start("poll gaps", options.interval, gaps, Gaps::look)?;
        Ok(PollGapSampler { sampler })
    }
}

/// Looks for poll gaps as long as it lives; from [`World::sample_poll_gaps`].
///
/// # Signal safety
///
/// No method is async-signal-safe: they wait, and free (AS-Unsafe lock heap). Nor is dropping it.
#[derive(Debug)]
#[must_use = "it looks for as long as it lives"]
pub struct PollGapSampler {
    sampler: Background<Gaps>,
}

impl PollGapSampler {
    /// What was found. In the child of a fork nothing.
    ///
    /// # Blocking
    ///
    /// Waits for the thread that looks: for a look at all mutators.
    #[must_use]
    pub fn finish(self) -> PollGaps {
        self.sampler.end().map_or_else(PollGaps::default, Gaps::read)
    }
}

/// What a [`PollGapSampler`] has found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PollGaps {
    /// The mutators that were found running, the one with the longest gap first.
    pub mutators: Vec<MutatorGaps>,
    /// How many others there were for which there was no room.
    pub not_looked_at: usize,
}

/// The poll gaps of a mutator.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MutatorGaps {
    /// Its thread.
    pub tid: Tid,
    /// The thread's name when it attached.
    pub name: Name,
    /// The mutator's place in the world.
    pub index: usize,
    /// How many mutators have had this place, this one included.
    pub generation: u32,
    /// How long it took to come each time. Up to one interval too long.
    pub gaps: Histogram,
    /// The longest gap, if there was one.
    pub longest: Option<LongestGap>,
}

/// The longest poll gap of a mutator.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LongestGap {
    /// How long it lasted. Up to one interval too long.
    pub lasted: Duration,
    /// Whether the mutator came. If not, the gap is as long as the sampler saw it last.
    pub is_over: bool,
    /// What the kernel said of the thread when it had lasted for 10 ms: a system call outside of a safe region, with
    /// the instruction behind it, is told so.
    pub seen: Option<KernelView>,
}

/// A mutator that was found running.
#[derive(Debug)]
struct Kept {
    slot: &'static MutatorSlot<Identity>,
    slot_use: SlotUse,
    tid: Tid,
    name: Name,
    gaps: Counts,
    longest: Option<LongestGap>,
    /// When it was asked, if it has not come.
    asked: Option<Instant>,
    /// What the kernel said of it since it was asked.
    seen: Option<KernelView>,
}

impl Kept {
    /// It came, or is waited for no longer.
    fn end(&mut self, is_over: bool, system: &Linux) {
        let Some(asked) = self.asked.take() else { return };
        system.set_sampled(self.slot, false);
        let (lasted, seen) = (asked.elapsed(), self.seen.take());
        self.gaps.add(lasted);
        if self.longest.is_none_or(|longest| longest.lasted < lasted) {
            self.longest = Some(LongestGap { lasted, is_over, seen });
        }
    }
}

/// What the thread that looks has.
#[derive(Debug)]
struct Gaps {
    shared: Arc<Shared>,
    most: usize,
    /// The last use of each slot, and its place among those that are kept; `None` if there was no room.
    current: HashMap<u32, (SlotUse, Option<usize>)>,
    kept: Vec<Kept>,
    not_looked_at: usize,
    tasks: Option<TaskDir>,
}

impl Linux {
    /// The time in ticks of 100 µs, modulo 2^32: five days. Not 0.
    fn ticks(&self) -> u32 {
        ((self.epoch.elapsed().as_micros() / TICK.as_micros()) as u32).max(1)
    }

    /// A thread that looks for poll gaps has asked the target, or waits for it no longer.
    pub(crate) fn set_sampled(&self, slot: &MutatorSlot<Identity>, waits: bool) {
        let since = if waits { self.ticks() } else { 0 };
        slot.status.identity.sampled.store(since, Ordering::Relaxed);
    }

    /// How long a thread that looks for poll gaps has waited for the target, if one does. Up to a tick too long or too
    /// short.
    pub(crate) fn sampled_gap(&self, slot: &'static MutatorSlot<Identity>) -> Option<Duration> {
        let since = slot.status.identity.sampled.load(Ordering::Relaxed);
        let waits = since != 0 && !Protocol::<Self>::has_come(slot, slot.current_use());
        waits.then(|| self.ticks().wrapping_sub(since) * TICK)
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        self.end();
    }
}

impl Gaps {
    /// Sees who has come, and asks all that run.
    fn look(&mut self) -> ControlFlow<()> {
        let shared = self.shared.clone();
        let system = &shared.protocol.system;
        for kept in &mut self.kept {
            let Some(asked) = kept.asked else { continue };
            if Protocol::<Linux>::has_come(kept.slot, kept.slot_use) {
                kept.end(true, system);
            } else if kept.seen.is_none() && asked.elapsed() >= LONG {
                if self.tasks.is_none() {
                    self.tasks = TaskDir::open().ok();
                }
                kept.seen = self.tasks.as_ref().and_then(|t| KernelView::read(t, kept.tid));
            }
        }
        for slot in shared.protocol.live() {
            if let Some(at) = self.place_of(slot) {
                let kept = &mut self.kept[at];
                if kept.asked.is_none() && Protocol::<Linux>::probe(slot) {
                    kept.asked = Some(Instant::now());
                    system.set_sampled(slot, true);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn place_of(&mut self, slot: &'static MutatorSlot<Identity>) -> Option<usize> {
        let slot_use = slot.current_use();
        if let Some((known, at)) = self.current.get(&slot_use.index)
            && *known == slot_use
        {
            return *at;
        }
        let Target { tid, name, .. } = slot.status.identity.target()?;
        // The slot may be another thread's by now.
        if slot.current_use() != slot_use {
            return None;
        }
        let has_room = self.kept.len() < self.most;
        if has_room {
            let gaps = Counts::new();
            let (longest, asked, seen) = (None, None, None);
            self.kept.push(Kept { slot, slot_use, tid, name, gaps, longest, asked, seen });
        } else {
            self.not_looked_at += 1;
        }
        let at = has_room.then(|| self.kept.len() - 1);
        self.current.insert(slot_use.index, (slot_use, at));
        at
    }

    /// Waits for no mutator any longer.
    fn end(&mut self) {
        let system = &self.shared.protocol.system;
        self.kept.iter_mut().for_each(|kept| kept.end(false, system));
    }

    fn read(mut self) -> PollGaps {
        self.end();
        let mutators = mem::take(&mut self.kept)
            .into_iter()
            .filter(|kept| kept.longest.is_some())
            .map(|kept| {
                let Kept { slot_use, tid, name, gaps, longest, .. } = kept;
                let (index, generation) = (slot_use.index as usize, slot_use.generation);
                MutatorGaps { tid, name, index, generation, gaps: gaps.read(), longest }
            });
        let mut mutators: Vec<_> = mutators.collect();
        mutators.sort_by_key(|gaps| gaps.longest.map(|longest| longest.lasted));
        mutators.reverse();
        PollGaps { mutators, not_looked_at: self.not_looked_at }
    }
}
