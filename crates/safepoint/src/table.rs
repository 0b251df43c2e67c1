//! A table by small numbers that only grows, read without a lock: also in handlers.
//!
//! ```text
//!  chunks[0]   16 entries: 0..16
//!  chunks[1]   32 entries: 16..48
//!  chunks[2]   64 entries: 48..112     a chunk is made when its first entry is wanted, and stays
//! ```

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use crossbeam_utils::CachePadded;

/// Entries of the first chunk. Each next one has twice as many.
const FIRST: u32 = 16;

/// Chunks for every index of 32 bits.
const CHUNKS: usize = (u32::MAX / FIRST + 1).ilog2() as usize + 1;

/// An entry for each index, made when it is first wanted.
pub(crate) struct Table<E> {
    /// Null, or the first entry of a chunk.
    chunks: [AtomicPtr<CachePadded<E>>; CHUNKS],
    owns: PhantomData<Box<[E]>>,
}

impl<E> fmt::Debug for Table<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

/// The chunk of an entry, and its place there.
fn place(index: u32) -> (usize, usize) {
    let row = index / FIRST + 1;
    let chunk = row.ilog2();
    (chunk as usize, (index - FIRST * ((1 << chunk) - 1)) as usize)
}

fn length(chunk: usize) -> usize {
    (FIRST as usize) << chunk
}

impl<E: Default> Table<E> {
    pub(crate) const fn new() -> Self {
        let chunks = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
        Self { chunks, owns: PhantomData }
    }

    /// The entry, if one of its chunk was ever wanted. For handlers, too.
    pub(crate) fn get(&self, index: u32) -> Option<&E> {
        let (chunk, at) = place(index);
        // Acquire, with `grow`: the entries are found as they were made.
        let first = NonNull::new(self.chunks[chunk].load(Ordering::Acquire))?;
        // SAFETY: `at` is less than the chunk's length (`place`).
        let entry = unsafe { first.add(at) };
        // SAFETY: a chunk is there until the table is dropped, and its entries are shared alone.
        Some(unsafe { entry.as_ref() })
    }

    /// The entry.
    pub(crate) fn entry(&self, index: u32) -> &E {
        if self.get(index).is_none() {
            self.grow(place(index).0);
        }
        self.get(index).expect("its chunk was just made")
    }

    /// Makes a chunk, or finds the one that another thread has made.
    #[cold]
    fn grow(&self, chunk: usize) {
        let fresh: Box<[_]> = (0..length(chunk)).map(|_| CachePadded::new(E::default())).collect();
        let fresh = Box::into_raw(fresh).cast::<CachePadded<E>>();
        let link = &self.chunks[chunk];
        // Release, with `get`.
        let linked =
            link.compare_exchange(ptr::null_mut(), fresh, Ordering::Release, Ordering::Relaxed);
        if linked.is_err() {
            // SAFETY: made above, and shown to no other thread.
            drop(unsafe { boxed(fresh, chunk) });
        }
    }

    /// The entries of all chunks that were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &E)> {
        let made = (0..CHUNKS).filter(|chunk| {
            // Relaxed: `get` looks again.
            !self.chunks[*chunk].load(Ordering::Relaxed).is_null()
        });
        let indices = made.flat_map(|chunk| {
            let first = FIRST * ((1 << chunk) - 1);
            (0..length(chunk) as u32).map(move |at| first + at)
        });
        indices.filter_map(|index| Some((index, self.get(index)?)))
    }
}

impl<E> Drop for Table<E> {
    fn drop(&mut self) {
        for (chunk, link) in self.chunks.iter_mut().enumerate() {
            let first = *link.get_mut();
            if !first.is_null() {
                // SAFETY: from `grow`, and by `&mut self` no other thread looks.
                drop(unsafe { boxed(first, chunk) });
            }
        }
    }
}

/// # Safety
///
/// `first` is from the box of this chunk, which nothing else refers to.
unsafe fn boxed<E>(first: *mut CachePadded<E>, chunk: usize) -> Box<[CachePadded<E>]> {
    let all = ptr::slice_from_raw_parts_mut(first, length(chunk));
    // SAFETY: the caller's obligation; the length is that with which it was made.
    unsafe { Box::from_raw(all) }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut places = BTreeSet::new();
        for index in (0..300).chain([u32::MAX - 1, u32::MAX]) {
            let (chunk, at) = place(index);
            assert!(chunk < CHUNKS && at < length(chunk), "{index}: {chunk}, {at}");
            assert!(places.insert((chunk, at)), "{index} shares its place");
        }
    }

    #[test]
    fn threads_that_grow_a_table_find_each_others_entries() {
        let table = Table::<AtomicU32>::new();
        assert!(table.get(0).is_none() && table.iter().next().is_none());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for index in (0..60).step_by(7) {
                        table.entry(index).fetch_add(index, Ordering::Relaxed);
                    }
                });
            }
        });
        for (index, entry) in table.iter() {
            let times = if index.is_multiple_of(7) && index < 60 { 3 } else { 0 };
            assert_eq!(entry.load(Ordering::Relaxed), times * index, "{index}");
        }
        assert_eq!(table.iter().count(), 16 + 32 + 64);
    }
}
