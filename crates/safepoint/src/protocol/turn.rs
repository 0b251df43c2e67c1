//! The turn to make a request of one kind: a lock that one requester holds at a time. A mutator waits for it in a safe
//! region, so that the holder can stop the threads that wait.
//!
//! Turns are handed out in groups. Threads that come while the turn is taken, or while a group has its turns, form the
//! next group. When all of a group have had their turn, or do not wait any more, the next group has its turns. So no
//! thread has more than two turns while another waits: one with the group before, and one with that other's.
//!
//! ```text
//!  word = | waiting in the next group, 15 bits | in the group that has its turns, 15 bits | its side | TAKEN |
//!
//!   0 --acquire--> TAKEN --release--> 0           nobody waits: one exchange each
//!   taken, or a group has its turns:              acquire: next group + 1, remembers that group's side
//!   released, or the last of the group leaves:    nobody is left in the group: the next group has its turns
//!   free, and it is the turn of its side:         group - 1, TAKEN
//!   past its deadline:                            group - 1, or next group - 1
//! ```
//!
//! A thread waits on the signal of its group's side, which changes whenever that group may have the turn. One thread is
//! woken: all of a group may take it. A thread that leaves instead passes that on.
//!
//! A handler that recalls a thread which waits changes the signals, so that a wait which is about to begin looks again.

use core::sync::atomic::{AtomicI32 as PlainI32, AtomicU32 as PlainU32, Ordering as Plain};
use core::time::Duration;

use super::slot::MutatorSlot;
use super::{Limit, System};
use sigctx::sync::{AtomicU32, Ordering};

const TAKEN: u32 = 1;
const SIDE: u32 = 1 << 1;
const GROUP: u32 = 1 << 2;
const NEXT: u32 = 1 << 17;
/// The most threads that a group has.
const MOST: u32 = (1 << 15) - 1;
/// How long a thread sleeps for which there is no room in the next group.
const NO_ROOM: Duration = Duration::from_millis(1);

/// What the word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turns(u32);

impl Turns {
    fn is_taken(self) -> bool {
        self.0 & TAKEN != 0
    }

    /// The side of the group that has its turns.
    fn side(self) -> usize {
        usize::from(self.0 & SIDE != 0)
    }

    /// How many of the group wait.
    fn group(self) -> u32 {
        (self.0 / GROUP) & MOST
    }

    /// How many wait in the next group.
    fn next(self) -> u32 {
        self.0 / NEXT
    }

    /// When the turn was released, or a thread left: it is the next group's if nobody is left in this one.
    fn handed_on(self) -> Self {
        if self.is_taken() || self.group() != 0 {
            self
        } else if self.next() != 0 {
            Self((!self.0 & SIDE) + self.next() * GROUP)
        } else {
            Self(0)
        }
    }
}

/// The turn to make a request of one kind.
#[derive(Debug)]
pub(crate) struct Turn {
    word: AtomicU32,
    /// By side.
    signals: [AtomicU32; 2],
    /// How many forks the process comes from. Those who wait at a fork are counted in the parent.
    forks: PlainU32,
    /// The thread that has the turn; 0 for none, and if it was handed over. A thread compares it with its own
    /// id only, or puts it into an error.
    holder: PlainI32,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            signals: [AtomicU32::new(0), AtomicU32::new(0)],
            forks: PlainU32::new(0),
            holder: PlainI32::new(0),
        }
    }

    /// Acquires the turn for the thread `me`; false when `limit` passed first, at which it looks before each
    /// wait. The caller is in a safe region. While it waits it runs what the thread that holds its task wants of it.
    ///
    /// Acquire, with `release`'s release: a requester sees what the one before it wrote.
    pub(crate) fn acquire<S: System>(
        &self,
        system: &S,
        own: Option<&'static MutatorSlot<S::Identity>>,
        me: i32,
        limit: &impl Limit,
    ) -> bool {
        self.try_acquire(me) || self.wait(system, own, me, limit)
    }

    #[cold]
    fn wait<S: System>(
        &self,
        system: &S,
        own: Option<&'static MutatorSlot<S::Identity>>,
        me: i32,
        limit: &impl Limit,
    ) -> bool {
        // The side of the group that this thread is in, and when it was counted there.
        let mut place: Option<(usize, u32)> = None;
        loop {
            let forks = self.forks.load(Plain::Relaxed);
            let side = place.filter(|&(_, at)| at == forks).map(|(side, _)| side);
            // Before the look at the word, which changes first.
            let seen = side.map(|side| self.signals[side].load(Ordering::Acquire));
            if self.take(side) {
                self.holder.store(me, Plain::Relaxed);
                return true;
            }
            let left = limit.left();
            if left.is_some_and(|left| left.is_zero()) {
                if let Some(side) = side {
                    self.leave(side, system);
                }
                return false;
            }
            if own.is_some_and(|own| own.is_recalled(system)) {
                system.serve();
            }
            if let (Some(side), Some(seen)) = (side, seen) {
                system.wait(&self.signals[side], seen, left);
            } else if let Some(side) = self.join() {
                place = Some((side, forks));
            } else {
                let nap = left.map_or(NO_ROOM, |left| left.min(NO_ROOM));
                system.wait(&self.word, self.word.load(Ordering::Relaxed), Some(nap));
            }
        }
    }

    /// Changes the word until `change` has nothing more to say against it. What it was, and is.
    fn change(
        &self,
        order: Ordering,
        change: impl Fn(Turns) -> Option<Turns>,
    ) -> Option<(Turns, Turns)> {
        let mut seen = Turns(self.word.load(Ordering::Relaxed));
        loop {
            let next = change(seen)?;
            match self.word.compare_exchange_weak(seen.0, next.0, order, Ordering::Relaxed) {
                Ok(_) => return Some((seen, next)),
                Err(now) => seen = Turns(now),
            }
        }
    }

    /// Takes the turn if it is free, for a thread that waits in the group of that side, or in none.
    fn take(&self, side: Option<usize>) -> bool {
        let taken = |seen: Turns| match side {
            _ if seen.is_taken() => None,
            // Not even a group that is counted in the parent of a fork.
            Some(side) if seen.side() == side && seen.group() != 0 => {
                Some(Turns(seen.0 - GROUP + TAKEN))
            }
            None if seen == Turns(0) => Some(Turns(TAKEN)),
            _ => None,
        };
        self.change(Ordering::Acquire, taken).is_some()
    }

    /// Joins the next group. Returns its side; `None` if there is no room.
    fn join(&self) -> Option<usize> {
        let joined = |seen: Turns| {
            // It has become free: this thread is a group by itself.
            (seen.next() != MOST).then(|| Turns(seen.0 + NEXT).handed_on())
        };
        let (seen, now) = self.change(Ordering::Relaxed, joined)?;
        Some(if now.side() == seen.side() { seen.side() ^ 1 } else { now.side() })
    }

    /// Waits no longer in the group of that side.
    fn leave<S: System>(&self, side: usize, system: &S) {
        let left = |seen: Turns| {
            let (count, one) =
                if seen.side() == side { (seen.group(), GROUP) } else { (seen.next(), NEXT) };
            // Not counted in the child of a fork.
            (count != 0).then(|| Turns(seen.0 - one).handed_on())
        };
        if let Some((_, now)) = self.change(Ordering::Relaxed, left)
            && !now.is_taken()
        {
            // This thread may have been woken for it.
            self.signal(now, |word| system.wake_one(word));
        }
    }

    /// It may be the group's turn.
    fn signal(&self, now: Turns, wake: impl Fn(&AtomicU32)) {
        if now.group() != 0 {
            let signal = &self.signals[now.side()];
            // Release: a thread that finds it changed finds the word changed.
            signal.fetch_add(1, Ordering::Release);
            wake(signal);
        }
    }

    /// Acquires the turn if no thread has it, or waits for it. As [`Turn::acquire`].
    pub(crate) fn try_acquire(&self, me: i32) -> bool {
        let taken = self.word.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            self.holder.store(me, Plain::Relaxed);
        }
        taken.is_ok()
    }

    /// Whether no thread has the turn, or waits for it, at this moment.
    #[cfg(not(loom))]
    pub(crate) fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    /// Releases the turn.
    pub(crate) fn release<S: System>(&self, system: &S) {
        if let Some(now) = self.give_up() {
            self.signal(now, |word| system.wake_one(word));
        }
    }

    /// Releases the turn, and has all threads that wait for it look at their limits.
    #[cfg(not(loom))]
    pub(crate) fn release_to_all<S: System>(&self, system: &S) {
        if self.give_up().is_some() {
            for signal in &self.signals {
                signal.fetch_add(1, Ordering::Release);
                system.wake_all(signal);
            }
        }
    }

    /// Releases the turn. Returns whose it is then, if threads wait.
    fn give_up(&self) -> Option<Turns> {
        self.holder.store(0, Plain::Relaxed);
        let alone = self.word.compare_exchange(TAKEN, 0, Ordering::Release, Ordering::Relaxed);
        if alone.is_ok() {
            return None;
        }
        let (_, now) =
            self.change(Ordering::Release, |seen| Some(Turns(seen.0 & !TAKEN).handed_on()))?;
        Some(now)
    }

    /// To be called by the thread that has the turn. From here on no thread in particular has it: any may release
    /// it, once.
    pub(crate) fn hand_over(&self) {
        self.holder.store(0, Plain::Relaxed);
    }

    /// The thread that has the turn.
    pub(crate) fn holder(&self) -> Option<i32> {
        Some(self.holder.load(Plain::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Whether `tid`, the calling thread, has the turn.
    pub(crate) fn is_held_by(&self, tid: i32) -> bool {
        self.holder() == Some(tid)
    }

    /// Whether threads wait for the turn.
    #[cfg(all(test, loom))]
    pub(super) fn is_awaited(&self) -> bool {
        let seen = Turns(self.word.load(Ordering::Acquire));
        seen.group() + seen.next() != 0
    }

    /// Called by a handler on a thread that may be about to wait for the turn.
    pub(crate) fn recall(&self) {
        // Release: as for the stop word in `Protocol::recall`.
        for signal in &self.signals {
            signal.fetch_add(1, Ordering::Release);
        }
    }

    /// In the child of a fork: the turn stays with the survivor, which was `parent` and is `me`, or is free.
    /// Returns whether the survivor has it.
    pub(crate) fn after_fork(&self, parent: i32, me: i32) -> bool {
        let keeps = self.holder() == Some(parent);
        self.holder.store(if keeps { me } else { 0 }, Plain::Relaxed);
        self.word.store(if keeps { TAKEN } else { 0 }, Ordering::Relaxed);
        self.forks.fetch_add(1, Plain::Relaxed);
        keeps
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::system::{Fences, Linux};

    /// Finds itself in the child of a fork when it has come to wait.
    struct ForksAsItWaits<'a>(&'a Turn, Cell<u32>);

    impl Limit for ForksAsItWaits<'_> {
        fn left(&self) -> Option<Duration> {
            let Self(turn, looks) = self;
            looks.set(looks.get() + 1);
            if looks.get() == 2 {
                assert!(!turn.after_fork(2, 3), "another thread has the turn");
            }
            Some(if looks.get() < 4 { Duration::from_millis(1) } else { Duration::ZERO })
        }
    }

    /// In an errand, or in a handler. The thread that had the turn is not there, and nor is the group.
    #[test]
    fn a_child_of_a_thread_that_waits_for_its_turn_has_it() {
        let system = Linux::new(Fences::Full);
        let turn = Turn::new();
        assert!(turn.acquire(&system, None, 1, &ForksAsItWaits(&turn, Cell::new(2))));
        assert!(turn.acquire(&system, None, 2, &ForksAsItWaits(&turn, Cell::new(0))));
        turn.release(&system);
        assert!(turn.is_free());
    }

    /// It would be counted out of a group in which it is not.
    #[test]
    fn a_child_of_a_thread_that_gives_up_leaves_the_turn_free() {
        let system = Linux::new(Fences::Full);
        let turn = Turn::new();
        for side in [0, 1] {
            turn.leave(side, &system);
            assert!(turn.is_free(), "side {side}");
        }
    }
}
