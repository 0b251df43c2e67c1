//! The world's slots: chunks in a list that only grows, so that a walk needs no lock and an
//! address once seen stays a slot.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering as Plain;

use super::Edge;
use super::slot::Slot;
use crate::sync::{AtomicPtr, AtomicU32, Ordering};

/// Slots of a chunk; few in models, where each is paid for in states.
pub(crate) const CHUNK: usize = if cfg!(loom) { 3 } else { 64 };

/// A part of an [`Arena`].
#[derive(Debug)]
pub(crate) struct Chunk<I> {
    /// How many slots from the start were ever taken: a walk goes no further.
    used: AtomicU32,
    next: AtomicPtr<Chunk<I>>,
    slots: [Slot<I>; CHUNK],
}

impl<I: Default> Chunk<I> {
    pub(crate) fn new() -> Self {
        Self {
            used: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
            slots: core::array::from_fn(|_| Slot::new()),
        }
    }
}

/// Chunks that nobody uses, linked by their `next`.
///
/// Without a lock: a fork could copy that taken, and its child has to be able to make worlds. The
/// list is taken out whole, so that no chunk that went and came back deceives an exchange; who finds
/// none meanwhile makes one. What a fork finds taken out is lost to the child.
#[derive(Debug)]
pub(crate) struct Spare<I: 'static> {
    first: AtomicPtr<Chunk<I>>,
}

impl<I> Spare<I> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()) }
    }

    pub(crate) fn take(&self) -> Option<&'static Chunk<I>> {
        // Acquire, with `put_list`'s release: the next owner's writes come after the last one's.
        let taken = NonNull::new(self.first.swap(ptr::null_mut(), Ordering::Acquire))?;
        // SAFETY: chunks are never freed, and only `put` makes one spare.
        let taken = unsafe { taken.as_ref() };
        let rest = chunk_at(&taken.next);
        taken.next.store(ptr::null_mut(), Ordering::Relaxed);
        if let Some(rest) = rest {
            self.put_list(rest);
        }
        Some(taken)
    }

    /// `chunk` has no next.
    pub(crate) fn put(&self, chunk: &'static Chunk<I>) {
        self.put_list(chunk);
    }

    fn put_list(&self, chunks: &'static Chunk<I>) {
        let first = ptr::from_ref(chunks).cast_mut();
        let mut head = ptr::null_mut();
        let mut last = chunks;
        // Release, see `take`. An older list below stays published: the exchange goes on with its
        // release sequence.
        while let Err(now) =
            self.first.compare_exchange(head, first, Ordering::Release, Ordering::Relaxed)
        {
            // Somebody has put others there: they come after ours.
            if head.is_null() {
                while let Some(next) = chunk_at(&last.next) {
                    last = next;
                }
            }
            last.next.store(now, Ordering::Relaxed);
            head = now;
        }
    }
}

/// All slots of a world.
#[derive(Debug)]
pub(crate) struct Arena<E: Edge> {
    first: AtomicPtr<Chunk<E::Identity>>,
}

impl<E: Edge> Arena<E> {
    pub(crate) fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Takes a dead slot, with a new chunk if need be; `None` at `limit` slots.
    pub(crate) fn take(&self, limit: u32) -> Option<&'static Slot<E::Identity>> {
        let mut link = &self.first;
        let mut base = 0;
        loop {
            let chunk = match chunk_at(link) {
                Some(chunk) => chunk,
                None if base >= limit => return None,
                None => append::<E>(link, base),
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

    /// Every slot that was ever taken.
    ///
    /// A slot whose owner fenced after taking it is there for a walk that starts after the
    /// requester's fence, unless the owner saw the request.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &'static Slot<E::Identity>> + use<E> {
        let mut chunk = chunk_at(&self.first);
        let mut at = 0;
        core::iter::from_fn(move || {
            loop {
                let current = chunk?;
                // Slots are taken first to last, so only a full chunk has a next one.
                if at < current.used.load(Ordering::Relaxed) as usize {
                    at += 1;
                    return current.slots.get(at - 1);
                }
                chunk = chunk_at(&current.next);
                at = 0;
            }
        })
    }
}

/// Acquire, with `append`'s release: the chunk is seen filled in.
fn chunk_at<I>(link: &AtomicPtr<Chunk<I>>) -> Option<&'static Chunk<I>> {
    let chunk = NonNull::new(link.load(Ordering::Acquire))?;
    // SAFETY: I1: a linked chunk is live for as long as its world, and nobody has a slot of a world
    // without holding the world.
    Some(unsafe { chunk.as_ref() })
}

/// Links a chunk, or finds that somebody else has.
fn append<E: Edge>(link: &AtomicPtr<Chunk<E::Identity>>, base: u32) -> &'static Chunk<E::Identity> {
    let fresh = E::fresh();
    for (at, slot) in fresh.slots.iter().enumerate() {
        slot.told.index.store(base + at as u32, Plain::Relaxed);
    }
    let address = ptr::from_ref(fresh).cast_mut();
    let linked =
        link.compare_exchange(ptr::null_mut(), address, Ordering::AcqRel, Ordering::Acquire);
    if linked.is_ok() {
        return fresh;
    }
    E::recycle(fresh);
    chunk_at(link).expect("the exchange failed because a chunk is linked")
}

impl<E: Edge> Drop for Arena<E> {
    fn drop(&mut self) {
        let mut next = chunk_at(&self.first);
        while let Some(chunk) = next {
            next = chunk_at(&chunk.next);
            // Exclusive by `&mut self`: nobody walks.
            chunk.next.store(ptr::null_mut(), Ordering::Relaxed);
            chunk.used.store(0, Ordering::Relaxed);
            E::recycle(chunk);
        }
    }
}
