//! One thread's record: its life, and the pin that keeps the thread from finishing its exit.
//!
//! ```text
//!          publish                start                 close
//!   FREE ───────────▶ STARTING ──────────▶ LIVE ─────────────────▶ EXITING
//!   gen g   creator   gen g, tid 0  thread gen g, tid t   thread    gen g
//!     ▲                │    ▲                                        │
//!     │                ▼    │ (start, close: wake)                   │
//!     │              AWAITED ── close (clone failed): creator ──▶    │
//!     └──────────────────────────────────────────────────────────────┘
//!        free: gen g+1, tid 0, only when no pin is left
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `state` | creator until `start`, then the thread; a waiter may mark STARTING as AWAITED | all | stores release, loads acquire | I1 |
//! | `tid` | the thread in `start`; whoever frees | all | release / acquire | I2 |
//! | `gate` | anybody who pins; who closes and who publishes | all | pin acquire, unpin release, close acquire | I3, I4 |
//! | `name` | creator, while FREE | all | relaxed between two looks at `state` (a sequence lock) | I5 |
//! | `slots` | anybody, once | all | release / acquire | never null again |
//! | `suspended_by` | who suspends the thread's task | all | relaxed: for diagnosis | 0 while FREE |
//! | `places` | the thread; whoever frees | the thread, in handlers too | relaxed, compiler fences | null while FREE |
//!
//! - **I1** `state` holds generation and phase in one word; one generation is one thread.
//! - **I2** `tid` is 0 or the kernel's id of the thread of this generation; it is 0 again before
//!   the generation changes.
//! - **I3** `gate` counts pins; its top bit, CLOSED, is set except from just before STARTING is
//!   stored until `close`: whoever learns of a thread from its record finds the gate open, or the
//!   thread exiting. A pin holds only if the same read-modify-write that counted it saw the gate
//!   open, and `state` then listed the pin's generation: through the gate of a record that is
//!   still FREE nobody is pinned. All writes to `gate` are read-modify-writes of one word, so pin
//!   and close are ordered: either the pin sees CLOSED, or the closer sees the pin. No barrier
//!   between two words is involved.
//! - **I4** The closer does not return before the count is 0; the thread exits after that. So while
//!   a pin holds, the kernel cannot give `tid` to another thread.
//! - **I5** `name` changes only in phase FREE of the generation that it belongs to.
//!
//! A pin that comes too late, or with the generation of an earlier thread, counts itself and takes
//! itself back. It can delay a closer for that moment, and wakes it like any other unpin.
//!
//! *Exit:* `close`, then `free`. *Failed clone:* the same, by the creator, which waits for pins only
//! when it has given the creation lock back. *Fork:* the child frees all but the survivor (`reset`);
//! it is the only thread, so plain stores do. Free records too: the gate of one may have been copied
//! with the count of a pin that came too late. *Masked signals,
//! nesting:* nothing here sends or waits for signals; every function may run in a handler on top of
//! any other, except `close`, which waits for pins and must not run on top of a frame that holds
//! one.

use core::mem::align_of;

use sigctx::inject::CallStack;

use crate::name::{Name, WORDS};
use crate::sync::{AtomicPtr, AtomicU32, Ordering, fence, wait, wake_all};

/// What a record says about its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    Starting,
    /// STARTING, and somebody sleeps until that ends.
    Awaited,
    Live,
    Exiting,
}

const PHASE_BITS: u32 = 3;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;
/// The last generation; a record that reaches it is not used again, so no reference is ever right
/// about two threads.
const LAST_GENERATION: u32 = u32::MAX >> PHASE_BITS;
const CLOSED: u32 = 1 << 31;

const fn word(generation: u32, phase: Phase) -> u32 {
    generation << PHASE_BITS | phase as u32
}

const fn generation(word: u32) -> u32 {
    word >> PHASE_BITS
}

const fn phase(word: u32) -> Phase {
    match word & PHASE_MASK {
        1 => Phase::Starting,
        2 => Phase::Awaited,
        3 => Phase::Live,
        4 => Phase::Exiting,
        _ => Phase::Free,
    }
}

const fn listed(phase: Phase) -> bool {
    matches!(phase, Phase::Starting | Phase::Awaited | Phase::Live)
}

/// Number of per-record slots; see [`crate::SlotId`].
pub(crate) const SLOTS: usize = 4;

/// A thread's record. Never freed: a `&'static Record` is right forever.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Record {
    state: AtomicU32,
    tid: AtomicU32,
    index: u32,
    name: [AtomicU32; WORDS],
    /// Who has the thread's task suspended: a thread's id, or 0. For diagnosis.
    pub(crate) suspended_by: AtomicU32,
    pub(crate) stack: CallStack,
    /// The first of the thread's places to stand still; see [`crate::rest`]. Touched by the thread
    /// itself only, and when it is gone.
    pub(crate) places: AtomicPtr<()>,
    pub(crate) slots: [AtomicPtr<()>; SLOTS],
    gate: Gate,
}

/// On a cache line of its own: what others write must not slow down what the owner reads.
#[derive(Debug)]
#[repr(align(128))]
struct Gate(AtomicU32);

const _: () = assert!(align_of::<Record>() == 128);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Record>() == 256, "one line for the owner, one for the others");

impl Record {
    pub(crate) fn new(index: u32) -> Self {
        Self {
            state: AtomicU32::new(word(0, Phase::Free)),
            tid: AtomicU32::new(0),
            index,
            name: core::array::from_fn(|_| AtomicU32::new(0)),
            suspended_by: AtomicU32::new(0),
            places: AtomicPtr::new(core::ptr::null_mut()),
            stack: CallStack::unset(),
            slots: core::array::from_fn(|_| AtomicPtr::new(core::ptr::null_mut())),
            gate: Gate(AtomicU32::new(CLOSED)),
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// The present generation and phase.
    pub(crate) fn state(&self) -> (u32, Phase) {
        // Pairs with the release stores of `state`: who sees a phase sees what came before it.
        let now = self.state.load(Ordering::Acquire);
        (generation(now), phase(now))
    }

    /// Whether the thread of `generation` exists, or is about to, and has not begun to exit.
    pub(crate) fn is_listed(&self, generation: u32) -> bool {
        let (now, phase) = self.state();
        now == generation && listed(phase)
    }

    /// The generation, if the record is that of a thread to be shown to walkers.
    pub(crate) fn listed(&self) -> Option<u32> {
        let (generation, phase) = self.state();
        listed(phase).then_some(generation)
    }

    /// Creator, on a claimed record: names it. Returns the generation of the thread to be.
    pub(crate) fn prepare(&self, name: &Name) -> u32 {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Free, "a claimed record is free");
        // I5, writer's side of the sequence lock: the FREE that was stored before (by `free`) must
        // be visible to whoever sees one of these bytes. Pairs with the fence in `name`.
        fence(Ordering::Release);
        for (to, from) in self.name.iter().zip(name.words()) {
            to.store(from, Ordering::Relaxed);
        }
        generation
    }

    /// Creator: shows the record to walkers, before the thread can exist.
    pub(crate) fn publish(&self) {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Free, "only a free record is published");
        // I3: opened first, or a walker would find a listed thread that cannot be pinned, and take
        // it for one that exits. Release: who pins through the open gate sees this generation in
        // `state`, FREE at first, and none before it.
        self.gate.0.fetch_and(!CLOSED, Ordering::Release);
        // Release: the name and the open gate belong to what a reader of STARTING may read.
        self.state.store(word(generation, Phase::Starting), Ordering::Release);
    }

    /// The thread itself: stores its id and becomes LIVE.
    pub(crate) fn start(&self, tid: i32) {
        // Release, for readers that come by `tid` alone.
        self.tid.store(tid as u32, Ordering::Release);
        let (generation, _) = self.state();
        // A swap, not a store: the waiter's mark must not be lost between look and store.
        // Release: I2 for who reads `state` first. Acquire: nothing is taken from the old value but
        // itself.
        let old = self.state.swap(word(generation, Phase::Live), Ordering::AcqRel);
        match phase(old) {
            Phase::Starting => {}
            Phase::Awaited => wake_all(&self.state),
            other => unreachable!("a thread started on a record that is {other:?}"),
        }
    }

    /// Waits until the thread of `generation` is no longer STARTING or no time is `left`. Returns
    /// whether it was seen started or gone.
    pub(crate) fn wait_started(
        &self,
        generation: u32,
        mut left: impl FnMut() -> Option<std::time::Duration>,
    ) -> bool {
        let starting = word(generation, Phase::Starting);
        let awaited = word(generation, Phase::Awaited);
        // Started threads are the common case: their line is not to be written.
        while self.is_starting(generation) {
            // Acquire: who learns of LIVE here reads `tid` next (I2).
            match self.state.compare_exchange(
                starting,
                awaited,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => {}
                Err(now) if now == awaited => {}
                Err(_) => return true,
            }
            match left() {
                Some(left) if left.is_zero() => return false,
                left => wait(&self.state, awaited, left),
            }
        }
        true
    }

    fn is_starting(&self, generation: u32) -> bool {
        let (now, phase) = self.state();
        now == generation && matches!(phase, Phase::Starting | Phase::Awaited)
    }

    /// Holds the thread of `generation` back from finishing its exit. `false`: it is gone or going.
    pub(crate) fn pin(&self, generation: u32) -> bool {
        // I3. Acquire: pairs with `publish`, so that the generation looked at below is the one
        // whose gate this is. Count first, look afterwards: a look before the count may be out of
        // date by then.
        let old = self.gate.0.fetch_add(1, Ordering::Acquire);
        if old & CLOSED == 0 && self.is_listed(generation) {
            return true;
        }
        self.unpin();
        false
    }

    /// Ends a pin.
    pub(crate) fn unpin(&self) {
        // Release: what was done under the pin is over before the thread exits. Pairs with `close`.
        let old = self.gate.0.fetch_sub(1, Ordering::Release);
        if old == CLOSED | 1 {
            wake_all(&self.gate.0);
        }
    }

    /// The thread: leaves the list and waits until no pin is left.
    pub(crate) fn close(&self) {
        self.unlist();
        self.wait_unpinned();
    }

    /// The thread, or the creator whose clone failed: leaves the list. From now on no pin holds.
    pub(crate) fn unlist(&self) {
        let (generation, _) = self.state();
        // A swap for the sake of the waiter's mark, as in `start`. Release is for walkers that
        // conclude from EXITING that the thread's last registered act is done.
        let old = self.state.swap(word(generation, Phase::Exiting), Ordering::AcqRel);
        match phase(old) {
            Phase::Starting | Phase::Live => {}
            Phase::Awaited => wake_all(&self.state),
            other => unreachable!("a thread left a record that is {other:?}"),
        }
        // I3. Relaxed: `wait_unpinned` has the acquire.
        self.gate.0.fetch_or(CLOSED, Ordering::Relaxed);
    }

    /// Who unlisted it: waits until no pin is left (I4).
    pub(crate) fn wait_unpinned(&self) {
        loop {
            // Acquire: pairs with `unpin`.
            let now = self.gate.0.load(Ordering::Acquire);
            if now == CLOSED {
                return;
            }
            wait(&self.gate.0, now, None);
        }
    }

    /// Who closed it: makes the record free for the next generation. Returns whether there is one.
    pub(crate) fn free(&self) -> bool {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Exiting, "only a closed record is freed");
        if generation == LAST_GENERATION {
            return false;
        }
        // I2: before the generation changes, and so before the gate opens again. Release: who reads
        // this 0 also sees EXITING, and does not take the thread for one that has yet to start.
        // Pairs with `tid`.
        self.tid.store(0, Ordering::Release);
        self.forget_guests();
        self.state.store(word(generation + 1, Phase::Free), Ordering::Release);
        true
    }

    /// What upper crates left on the record is not the next thread's. Relaxed: before the state.
    fn forget_guests(&self) {
        self.suspended_by.store(0, Ordering::Relaxed);
        self.places.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// What a pin has done when it has counted and not looked yet.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn begin_pin(&self) {
        self.gate.0.fetch_add(1, Ordering::Acquire);
    }

    /// After fork, in the child, where nobody else runs: forgets the thread, which was not copied.
    #[cfg(not(loom))]
    pub(crate) fn reset(&self) -> bool {
        let (generation, phase) = self.state();
        self.gate.0.store(CLOSED, Ordering::Relaxed);
        self.tid.store(0, Ordering::Relaxed);
        self.forget_guests();
        if phase == Phase::Free {
            return true;
        }
        let next = if generation == LAST_GENERATION { generation } else { generation + 1 };
        self.state.store(word(next, Phase::Free), Ordering::Release);
        next != generation
    }

    /// After fork, in the child: the survivor has a new id, and nobody pins it any more.
    #[cfg(not(loom))]
    pub(crate) fn survive(&self, tid: i32) {
        self.tid.store(tid as u32, Ordering::Release);
        // Its places are its own still; who had its task was another thread.
        self.suspended_by.store(0, Ordering::Relaxed);
        // A thread that forks while it exits is not one we know how to meet: its gate stays closed.
        self.gate.0.fetch_and(CLOSED, Ordering::Relaxed);
    }

    /// The kernel's id of the thread of `generation`; 0 while it has not started. `None`: gone.
    pub(crate) fn tid(&self, generation: u32) -> Option<i32> {
        let tid = self.tid.load(Ordering::Acquire) as i32;
        // The load of `state` comes after that of `tid` (acquire), so a generation that is still
        // the one asked for vouches for the id: `free` changes it before the next thread stores its
        // own.
        self.is_listed(generation).then_some(tid)
    }

    /// The id, for who holds a pin: it stays what it is, 0 becoming the id at most.
    #[cfg(not(loom))]
    pub(crate) fn pinned_tid(&self) -> Option<i32> {
        // Acquire: pairs with `start`.
        Some(self.tid.load(Ordering::Acquire) as i32).filter(|&tid| tid != 0)
    }

    /// The name, if the record is still that of `generation`.
    pub(crate) fn name(&self, of: u32) -> Option<Name> {
        if self.state().0 != of {
            return None;
        }
        let words = core::array::from_fn(|i| {
            self.name.get(i).map_or(0, |word| word.load(Ordering::Relaxed))
        });
        // I5, reader's side: had one of the loads seen a later owner's name, the load below would
        // see that owner's generation. Pairs with the fence in `prepare`.
        fence(Ordering::Acquire);
        (generation(self.state.load(Ordering::Relaxed)) == of).then(|| Name::from_words(words))
    }
}
