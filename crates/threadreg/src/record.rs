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
//! | `state` | the creator until `start`, then the thread; a thread that waits for the start marks STARTING as AWAITED | all | stores release, loads acquire | I1 |
//! | `tid` | the thread in `start`; the thread that frees | all | release / acquire | I2 |
//! | `gate` | every thread that pins; the threads that publish and close | all | pin acquire, unpin release, close acquire | I3, I4 |
//! | `name` | the creator, while FREE | all | relaxed between two looks at `state` (a sequence lock) | I5 |
//! | `slots` | all, once each | all | release / acquire | never null again |
//! | `suspended_by` | the requester of a suspension | all | relaxed: for diagnosis | 0 while FREE |
//! | `places` | the thread; the thread that frees | the thread, in handlers too | relaxed, compiler fences | null while FREE |
//!
//! - **I1** `state` holds generation and phase in one word; one generation is one thread.
//! - **I2** `tid` is 0 or the kernel's id of the thread of this generation. It is 0 again before the
//!   generation changes.
//! - **I3** `gate` counts pins. Its top bit, CLOSED, is clear from just before STARTING is stored until
//!   `close`: a thread that is found through its record can be pinned, or is exiting. A pin holds only
//!   if the read-modify-write that counted it saw the gate open, and `state` then listed the pin's
//!   generation. Through the gate of a record that is still FREE no thread is pinned. All writes to
//!   `gate` are read-modify-writes of one word, so pin and close are ordered: either the pin sees
//!   CLOSED, or the closing thread sees the pin. No barrier between two words is involved.
//! - **I4** `close` does not return before the count is 0, and the thread exits after that. So while a
//!   pin holds, the kernel cannot give `tid` to another thread.
//! - **I5** `name` changes only in phase FREE of the generation that it belongs to.
//!
//! A pin that comes too late, or with the generation of an earlier thread, counts itself and takes
//! itself back. It can delay a `close` for that moment, and wakes it like any other unpin.
//!
//! *Exit:* `close`, then `free`. *Failed clone:* the same, by the creator, which waits for pins only
//! after it has given the creation lock back. *Fork:* the child frees all records but the surviving
//! thread's (`reset`). It has one thread, so plain stores are enough. It resets free records too: the
//! gate of one may have been copied with the count of a pin that came too late. *Masked signals,
//! nesting:* nothing here sends signals or waits for them. Every function may run in a handler on top
//! of any other, except `close`: it waits for pins, and must not run on top of a frame that holds one.

use crossbeam_utils::CachePadded;
#[cfg(not(loom))]
use sigctx::inject::CallStack;
use sigctx::sync::{AtomicPtr, AtomicU32, Ordering, fence, wait, wake_all};
#[cfg(not(loom))]
use sigctx::sys::Tid;

use crate::name::{Name, WORDS};

// Under loom `sigctx` has no module `sys`.
#[cfg(loom)]
type Tid = i32;

/// The phase of a record's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Free,
    Starting,
    /// STARTING, and another thread sleeps until that ends.
    Awaited,
    Live,
    Exiting,
}

const PHASE_BITS: u32 = 3;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;
/// The last generation. A record that reaches it is not used again, so no reference is ever valid for
/// two threads.
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
#[cfg(not(loom))]
pub(crate) const SLOTS: usize = 2;

/// The answer of a record that is asked for the id of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// The thread has begun to exit, or is gone.
    Gone,
    /// The thread has not run yet.
    NotStarted,
    /// The kernel's id of the thread.
    Known(Tid),
}

/// A thread's record. Never freed: a `&'static Record` is valid forever.
#[derive(Debug)]
pub(crate) struct Record {
    state: AtomicU32,
    tid: AtomicU32,
    index: u32,
    name: [AtomicU32; WORDS],
    /// The id of the requester that has this thread's task suspended; 0: none. For diagnosis.
    pub(crate) suspended_by: AtomicU32,
    #[cfg(not(loom))]
    pub(crate) stack: CallStack,
    /// The first of the thread's places to rest; see [`crate::rest`]. Only the thread itself touches
    /// it, and the thread that frees the record.
    pub(crate) places: AtomicPtr<()>,
    #[cfg(not(loom))]
    pub(crate) slots: [AtomicPtr<()>; SLOTS],
    /// On a cache line of its own: other threads write it, which must not slow down what the thread
    /// reads.
    gate: CachePadded<AtomicU32>,
}

#[cfg(not(loom))]
const _: () = {
    let line = size_of::<CachePadded<u8>>();
    assert!(
        size_of::<Record>() <= line + line.next_multiple_of(128),
        "one line for the thread, one for the others"
    );
};

impl Record {
    pub(crate) fn new(index: u32) -> Self {
        Self {
            state: AtomicU32::new(word(0, Phase::Free)),
            tid: AtomicU32::new(0),
            index,
            name: core::array::from_fn(|_| AtomicU32::new(0)),
            suspended_by: AtomicU32::new(0),
            places: AtomicPtr::new(core::ptr::null_mut()),
            #[cfg(not(loom))]
            stack: CallStack::unset(),
            #[cfg(not(loom))]
            slots: core::array::from_fn(|_| AtomicPtr::new(core::ptr::null_mut())),
            gate: CachePadded::new(AtomicU32::new(CLOSED)),
        }
    }

    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// The present generation and phase.
    #[inline]
    pub(crate) fn state(&self) -> (u32, Phase) {
        // Acquire: pairs with the release stores of `state`. A thread that sees a phase sees what came
        // before it.
        let now = self.state.load(Ordering::Acquire);
        (generation(now), phase(now))
    }

    /// Whether the thread of `generation` exists or is about to, and has not begun to exit.
    pub(crate) fn is_listed(&self, generation: u32) -> bool {
        let (now, phase) = self.state();
        now == generation && listed(phase)
    }

    /// The generation, if a walk is to show the record's thread.
    pub(crate) fn listed(&self) -> Option<u32> {
        let (generation, phase) = self.state();
        listed(phase).then_some(generation)
    }

    /// Names the thread that is to be made, and returns its generation. Only the creator that claimed
    /// the record calls this.
    pub(crate) fn prepare(&self, name: &Name) -> u32 {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Free, "a claimed record is free");
        // I5, writer's side of the sequence lock: a thread that sees one of these bytes must see the
        // FREE that `free` stored before. Pairs with the fence in `name`.
        fence(Ordering::Release);
        for (to, from) in self.name.iter().zip(name.words()) {
            to.store(from, Ordering::Relaxed);
        }
        generation
    }

    /// Lists the thread, before it can exist. Only the creator calls this.
    pub(crate) fn publish(&self) {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Free, "only a free record is published");
        // I3: opened first. Else a walk would find a listed thread that cannot be pinned, and take it
        // for one that exits. Release: a thread that pins through the open gate sees this generation in
        // `state`, FREE at first, and none before it.
        self.gate.fetch_and(!CLOSED, Ordering::Release);
        // Release: the name and the open gate belong to what a reader of STARTING may read.
        self.state.store(word(generation, Phase::Starting), Ordering::Release);
    }

    /// Stores the thread's id and makes it LIVE. Only the thread itself calls this.
    pub(crate) fn start(&self, tid: Tid) {
        // Release, for threads that read `tid` alone.
        self.tid.store(tid.cast_unsigned(), Ordering::Release);
        let (generation, _) = self.state();
        // A swap, not a store: the mark of a waiting thread must not be lost between look and store.
        // Release: I2 for a thread that reads `state` first. Acquire: nothing but the old value itself
        // is needed.
        let old = self.state.swap(word(generation, Phase::Live), Ordering::AcqRel);
        match phase(old) {
            Phase::Starting => {}
            Phase::Awaited => wake_all(&self.state),
            other => unreachable!("a thread started on a record that is {other:?}"),
        }
    }

    /// Waits until the thread of `generation` is no longer STARTING, or until no time is `left`.
    /// Returns whether the thread has started or is gone.
    pub(crate) fn wait_started(
        &self,
        generation: u32,
        mut left: impl FnMut() -> Option<std::time::Duration>,
    ) -> bool {
        let starting = word(generation, Phase::Starting);
        let awaited = word(generation, Phase::Awaited);
        // Most threads have started. Their cache line is then only read.
        while self.is_starting(generation) {
            // Acquire: a caller that learns of LIVE here reads `tid` next (I2).
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

    /// Keeps the thread of `generation` from finishing its exit. Returns `false` if the thread has
    /// begun to exit, or is gone.
    pub(crate) fn pin(&self, generation: u32) -> bool {
        // I3. Acquire: pairs with `publish`, so that the generation looked at below is the one whose
        // gate this is. It counts first and looks afterwards: a look before the count may be out of
        // date by then.
        let old = self.gate.fetch_add(1, Ordering::Acquire);
        if old & CLOSED == 0 && self.is_listed(generation) {
            return true;
        }
        self.unpin();
        false
    }

    /// Ends a pin.
    pub(crate) fn unpin(&self) {
        // Release: what was done under the pin is over before the thread exits. Pairs with
        // `wait_unpinned`.
        let old = self.gate.fetch_sub(1, Ordering::Release);
        if old == CLOSED | 1 {
            wake_all(&self.gate);
        }
    }

    /// Takes the thread off the list and waits for the last pin. Only the thread itself calls this.
    pub(crate) fn close(&self) {
        self.unlist();
        self.wait_unpinned();
    }

    /// Takes the thread off the list; from now on no new pin holds. Only the thread itself calls this,
    /// or the creator whose `clone` failed.
    pub(crate) fn unlist(&self) {
        let (generation, _) = self.state();
        // A swap for the mark of a waiting thread, as in `start`. Release: a walk that sees EXITING
        // sees everything that the thread did while it was registered.
        let old = self.state.swap(word(generation, Phase::Exiting), Ordering::AcqRel);
        match phase(old) {
            Phase::Starting | Phase::Live => {}
            Phase::Awaited => wake_all(&self.state),
            other => unreachable!("a thread left a record that is {other:?}"),
        }
        // I3. Relaxed: `wait_unpinned` has the acquire.
        self.gate.fetch_or(CLOSED, Ordering::Relaxed);
    }

    /// Waits for the last pin (I4). Only the thread that unlisted the record calls this.
    pub(crate) fn wait_unpinned(&self) {
        loop {
            // Acquire: pairs with `unpin`.
            let now = self.gate.load(Ordering::Acquire);
            if now == CLOSED {
                return;
            }
            wait(&self.gate, now, None);
        }
    }

    /// Makes the record free for the next generation, and returns whether there is one. Only the thread
    /// that closed it calls this.
    pub(crate) fn free(&self) -> bool {
        let (generation, phase) = self.state();
        assert_eq!(phase, Phase::Exiting, "only a closed record is freed");
        if generation == LAST_GENERATION {
            return false;
        }
        // I2: before the generation changes, and so before the gate opens again. Release: a thread that
        // reads this 0 also sees EXITING, and does not take the record's thread for one that has yet to
        // start. Pairs with `tid`.
        self.tid.store(0, Ordering::Release);
        self.forget_guests();
        self.state.store(word(generation + 1, Phase::Free), Ordering::Release);
        true
    }

    /// Clears what upper crates left on the record: it is not the next thread's. Relaxed: the store of
    /// `state` comes after.
    fn forget_guests(&self) {
        self.suspended_by.store(0, Ordering::Relaxed);
        self.places.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// Does the first half of a pin: it counts, and does not look yet.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn begin_pin(&self) {
        self.gate.fetch_add(1, Ordering::Acquire);
    }

    /// Forgets the thread, which a fork did not copy; returns whether the record can be used again.
    /// Called in the child, where no other thread runs.
    #[cfg(not(loom))]
    pub(crate) fn reset(&self) -> bool {
        let (generation, phase) = self.state();
        self.gate.store(CLOSED, Ordering::Relaxed);
        self.tid.store(0, Ordering::Relaxed);
        self.forget_guests();
        if phase == Phase::Free {
            return true;
        }
        let next = if generation == LAST_GENERATION { generation } else { generation + 1 };
        self.state.store(word(next, Phase::Free), Ordering::Release);
        next != generation
    }

    /// Gives the surviving thread of a fork its new id; no thread pins it or has its task suspended any
    /// more. Called in the child.
    #[cfg(not(loom))]
    pub(crate) fn survive(&self, tid: Tid) {
        self.tid.store(tid.cast_unsigned(), Ordering::Release);
        // The requester that had its task suspended was not copied. Its places are still its own.
        self.suspended_by.store(0, Ordering::Relaxed);
        // A fork in the middle of a thread's exit is unsupported: the gate of such a thread stays
        // closed.
        self.gate.fetch_and(CLOSED, Ordering::Relaxed);
    }

    /// The kernel's id of the thread of `generation`.
    pub(crate) fn tid(&self, generation: u32) -> Id {
        let tid = self.tid.load(Ordering::Acquire).cast_signed();
        // The load of `state` comes after that of `tid` (acquire). So if the generation is still the
        // one asked for, the id is that thread's: `free` changes the generation before the next thread
        // stores its own id.
        match tid {
            _ if !self.is_listed(generation) => Id::Gone,
            0 => Id::NotStarted,
            tid => Id::Known(tid),
        }
    }

    /// The id of a thread that the caller has pinned; `None`: it has not started. Once known, the id
    /// does not change while the pin holds.
    #[cfg(not(loom))]
    pub(crate) fn pinned_tid(&self) -> Option<Tid> {
        // Acquire: pairs with `start`.
        Some(self.tid.load(Ordering::Acquire).cast_signed()).filter(|&tid| tid != 0)
    }

    /// The name, if the record is still that of `generation`.
    pub(crate) fn name(&self, of: u32) -> Option<Name> {
        if self.state().0 != of {
            return None;
        }
        let words = core::array::from_fn(|i| {
            self.name.get(i).map_or(0, |word| word.load(Ordering::Relaxed))
        });
        // I5, reader's side: had one of the loads seen a later thread's name, the load below would see
        // that thread's generation. Pairs with the fence in `prepare`.
        fence(Ordering::Acquire);
        (generation(self.state.load(Ordering::Relaxed)) == of).then(|| Name::from_words(words))
    }
}
