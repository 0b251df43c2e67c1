//! The slots of a world.
//!
//! The arena is a list of chunks that only grows. So a walk needs no lock, and an address that was a slot
//! once stays one.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering as Plain;

use crossbeam_utils::CachePadded;

use super::System;
use super::slot::MutatorSlot;
use sigctx::fork::process;
use sigctx::sync::{AtomicPtr, AtomicU32, Mutex, Ordering};

/// Slots of a chunk; few in models, where each is paid for in states.
pub(crate) const CHUNK: usize = if cfg!(loom) { 3 } else { 64 };

/// A part of an [`Arena`].
#[derive(Debug)]
pub(crate) struct Chunk<I> {
    /// How many slots from the start were ever taken: a walk goes no further.
    used: AtomicU32,
    next: AtomicPtr<Chunk<I>>,
    slots: [CachePadded<MutatorSlot<I>>; CHUNK],
}

impl<I: Default> Chunk<I> {
    pub(crate) fn new() -> Self {
        Self {
            used: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
            slots: core::array::from_fn(|_| CachePadded::new(MutatorSlot::new())),
        }
    }
}

impl<I> Chunk<I> {
    /// The slots that were ever taken.
    fn used(&self) -> &[CachePadded<MutatorSlot<I>>] {
        // Slots are taken first to last.
        let used = self.used.load(Ordering::Relaxed) as usize;
        self.slots.get(..used).unwrap_or(&self.slots)
    }
}

/// Chunks that no world uses, linked by their `next`.
///
/// A fork may copy the lock taken, by a thread that the child does not have, and the child has to be able to
/// make worlds. It finds the lock free. The list is whole after every store, so the child goes on with it. A
/// chunk that was being taken or put is lost to the child.
#[derive(Debug)]
pub(crate) struct Spare<I: 'static> {
    lock: Mutex,
    first: AtomicPtr<Chunk<I>>,
}

impl<I> Spare<I> {
    sigctx::const_unless_loom! {
        pub(crate) fn new() -> Self {
            Self { lock: Mutex::new(), first: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Takes a chunk, if there is one.
    pub(crate) fn take(&self) -> Option<&'static Chunk<I>> {
        self.locked(|| {
            let taken = chunk_at(&self.first)?;
            self.first.store(taken.next.load(Ordering::Relaxed), Ordering::Relaxed);
            taken.next.store(ptr::null_mut(), Ordering::Relaxed);
            Some(taken)
        })
    }

    /// Puts a chunk that has no next.
    pub(crate) fn put(&self, chunk: &'static Chunk<I>) {
        self.locked(|| {
            chunk.next.store(self.first.load(Ordering::Relaxed), Ordering::Relaxed);
            self.first.store(ptr::from_ref(chunk).cast_mut(), Ordering::Relaxed);
        });
    }

    fn locked<R>(&self, work: impl FnOnce() -> R) -> R {
        // The list is whole also where the lock is found copied.
        let _one = self.lock.guard(process());
        work()
    }
}

/// All slots of a world.
#[derive(Debug)]
pub(crate) struct Arena<S: System> {
    first: AtomicPtr<Chunk<S::Identity>>,
}

impl<S: System> Arena<S> {
    pub(crate) fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Takes a dead slot, in a new chunk if need be; `None` at `limit` slots.
    pub(crate) fn take(&self, limit: u32) -> Option<&'static MutatorSlot<S::Identity>> {
        let mut link = &self.first;
        let mut base = 0;
        loop {
            let chunk = match chunk_at(link) {
                Some(chunk) => chunk,
                None if base >= limit => return None,
                None => append::<S>(link, base),
            };
            for (at, slot) in chunk.slots.iter().enumerate() {
                if slot.take() {
                    // Relaxed: `attach` fences between this and its look at the stop word.
                    chunk.used.fetch_max(at as u32 + 1, Ordering::Relaxed);
                    return Some(slot);
                }
            }
            base += CHUNK as u32;
            link = &chunk.next;
        }
    }

    /// Calls `visit` for every slot, also for one that was never taken, or is being taken.
    #[cfg(not(loom))]
    pub(crate) fn each_slot(&self, visit: impl Fn(&'static MutatorSlot<S::Identity>)) {
        let mut next = chunk_at(&self.first);
        while let Some(chunk) = next {
            chunk.slots.iter().for_each(|slot| visit(slot));
            next = chunk_at(&chunk.next);
        }
    }

    /// The slot at `index`, if there is a chunk for it.
    #[cfg(not(loom))]
    pub(crate) fn at(&self, index: u32) -> Option<&'static MutatorSlot<S::Identity>> {
        let mut chunk = chunk_at(&self.first)?;
        for _ in 0..index as usize / CHUNK {
            chunk = chunk_at(&chunk.next)?;
        }
        chunk.slots.get(index as usize % CHUNK).map(|slot| &**slot)
    }

    /// Every slot that was ever taken.
    ///
    /// A slot whose target fenced after taking it is met by a walk that starts after the requester's fence,
    /// unless the target saw the request.
    pub(crate) fn slots(&self) -> Slots<S::Identity> {
        Slots { here: [].iter(), next: chunk_at(&self.first) }
    }
}

/// A walk over an arena's slots.
#[derive(Debug)]
pub(crate) struct Slots<I: 'static> {
    here: core::slice::Iter<'static, CachePadded<MutatorSlot<I>>>,
    next: Option<&'static Chunk<I>>,
}

// Not derived: the slots need not be cloned.
impl<I> Clone for Slots<I> {
    #[inline]
    fn clone(&self) -> Self {
        Self { here: self.here.clone(), next: self.next }
    }
}

impl<I> Iterator for Slots<I> {
    type Item = &'static MutatorSlot<I>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slot) = self.here.next() {
                return Some(slot);
            }
            let chunk = self.next?;
            // Only a full chunk has a next one.
            self.next = chunk_at(&chunk.next);
            self.here = chunk.used().iter();
        }
    }
}

/// Acquire, with `append`'s release: the chunk is seen filled in.
fn chunk_at<I>(link: &AtomicPtr<Chunk<I>>) -> Option<&'static Chunk<I>> {
    let chunk = NonNull::new(link.load(Ordering::Acquire))?;
    // SAFETY: I1: a linked chunk is live for as long as its world, and no thread has a slot of a world
    // without holding the world.
    Some(unsafe { chunk.as_ref() })
}

/// Links a chunk, or finds the one that another thread has linked.
fn append<S: System>(
    link: &AtomicPtr<Chunk<S::Identity>>,
    base: u32,
) -> &'static Chunk<S::Identity> {
    let fresh = S::fresh();
    for (at, slot) in fresh.slots.iter().enumerate() {
        slot.status.index.store(base + at as u32, Plain::Relaxed);
    }
    let address = ptr::from_ref(fresh).cast_mut();
    let linked =
        link.compare_exchange(ptr::null_mut(), address, Ordering::AcqRel, Ordering::Acquire);
    if linked.is_ok() {
        return fresh;
    }
    S::recycle(fresh);
    chunk_at(link).expect("the exchange failed because a chunk is linked")
}

impl<S: System> Drop for Arena<S> {
    fn drop(&mut self) {
        let mut next = chunk_at(&self.first);
        while let Some(chunk) = next {
            next = chunk_at(&chunk.next);
            // Exclusive by `&mut self`: no thread walks.
            chunk.next.store(ptr::null_mut(), Ordering::Relaxed);
            chunk.used.store(0, Ordering::Relaxed);
            S::recycle(chunk);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::system::Linux;

    /// A slot that a walk forgets is a mutator that a stop does not wait for.
    #[test]
    fn a_walk_meets_every_slot_of_full_and_of_begun_chunks() {
        for taken in [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192] {
            // Left behind: its slots stay taken, and their chunks must not be used again.
            let arena: &'static _ = Box::leak(Box::new(Arena::<Linux>::new()));
            assert_eq!(arena.slots().count(), 0);
            let indices = || arena.slots().map(|slot| slot.status.index.load(Plain::Relaxed));
            for at in 0..taken {
                let slot = arena.take(u32::MAX).expect("there is room");
                assert_eq!(slot.status.index.load(Plain::Relaxed), at, "first to last");
                assert!(arena.at(at).is_some_and(|found| ptr::eq(found, slot)), "found again");
                assert_eq!(indices().last(), Some(at), "at once");
            }
            assert!(indices().eq(0..taken), "of {taken}: {:?}", indices().collect::<Vec<_>>());
            let full = taken.next_multiple_of(CHUNK as u32);
            for _ in taken..full {
                assert!(arena.take(full).is_some(), "{taken}: room up to the limit");
            }
            assert!(arena.take(full).is_none(), "{taken}: no room beyond the limit");
        }
    }

    /// The fork comes while the lock is taken, whatever the scheduler does.
    #[test]
    fn a_lock_that_a_fork_copies_taken_is_free_in_the_child() {
        let name = "protocol::arena::tests::a_lock_that_a_fork_copies_taken_is_free_in_the_child";
        testkit::in_child(name, Duration::from_secs(20), || {
            sigctx::fork::watch().expect("room for the hooks");
            let spare = Spare::<()>::new();
            let status = spare.locked(|| {
                testkit::forked(|| {
                    assert!(spare.take().is_none());
                    spare.put(Box::leak(Box::new(Chunk::new())));
                    assert!(spare.take().is_some());
                })
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
