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
