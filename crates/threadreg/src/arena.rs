//! The append-only arena of records: claimed, listed, walked, used again, never freed.
//!
//! ```text
//!   CHUNKS ─┬─▶ chunk 0: live bits 1101…0  ┌────────┬────────┬─── 64 records
//!           ├─▶ chunk 1: live bits 0000…0  │record 0│record 1│
//!           └─▶ null: no more              └────────┴────────┴───
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `chunks[i]` | a thread that finds no free record, by compare-exchange from null | all | release / acquire | A1 |
//! | `live` bits | the claimer sets, the thread that frees clears | all | claim acquire, clear release | A2 |
//!
//! - **A1** `chunks[i]` goes from null to a chunk once; `chunks[i + 1]` is set only after
//!   `chunks[i]`. So the first null ends a walk, and a chunk once seen is there forever.
//! - **A2** From the claim of a bit to its clearing only the claimer may move the record on from FREE.
//!   A record in any other phase has its bit set, so a walk over set bits meets every listed record.
//!
//! A walk shows each thread exactly once that was listed before the walk began and stays listed until
//! it ends. Threads that come or go meanwhile may or may not be shown. While a thread holds the
//! creation lock ([`crate::freeze_creation`]) no spawned thread comes.

use core::ptr;

use sigctx::sync::{AtomicPtr, AtomicU32, Ordering};

use crate::record::Record;

#[cfg(not(loom))]
mod size {
    /// With 64 records a chunk: as many as Linux can have threads (`PID_MAX_LIMIT`, 4 Mi).
    pub(super) const CHUNKS: usize = 1 << 16;
    /// Words of live bits in a chunk.
    pub(super) const WORDS: usize = 2;
    /// Live bits in a word.
    pub(super) const BITS: usize = 32;
}
#[cfg(loom)]
mod size {
    pub(super) const CHUNKS: usize = 2;
    pub(super) const WORDS: usize = 1;
    pub(super) const BITS: usize = 2;
}
use size::{BITS, CHUNKS, WORDS};

/// All bits of a word that stand for a record.
const FULL: u32 = u32::MAX >> (32 - BITS);

struct Chunk {
    live: [AtomicU32; WORDS],
    records: Box<[Record]>,
}

impl Chunk {
    fn new(number: usize) -> Self {
        let first = number * WORDS * BITS;
        Self {
            live: core::array::from_fn(|_| AtomicU32::new(0)),
            records: (first..first + WORDS * BITS).map(|i| Record::new(i as u32)).collect(),
        }
    }

    fn claim(&self) -> Option<&Record> {
        for (word, live) in self.live.iter().enumerate() {
            loop {
                // Relaxed: a hint; the claim below decides.
                let bit = live.load(Ordering::Relaxed).trailing_ones();
                if bit as usize >= BITS {
                    break;
                }
                // A2. Acquire: pairs with the clearing in `release`; the FREE of the record's last
                // thread is seen.
                if live.fetch_or(1 << bit, Ordering::Acquire) & 1 << bit == 0 {
                    return self.records.get(word * BITS + bit as usize);
                }
            }
        }
        None
    }
}

/// The table of chunks.
pub(crate) struct Arena {
    chunks: [AtomicPtr<Chunk>; CHUNKS],
}

impl Arena {
    #[cfg(not(loom))]
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time, for a static")]
    pub(crate) const fn new() -> Self {
        Self { chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS] }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self { chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())) }
    }

    fn chunk(&self, number: usize) -> Option<&'static Chunk> {
        // A1. Acquire: pairs with the exchange in `grow`; the records are initialised.
        let chunk = self.chunks.get(number)?.load(Ordering::Acquire);
        // SAFETY: null or a chunk leaked by `grow`, which is never freed or mutably borrowed (A1).
        unsafe { chunk.as_ref() }
    }

    /// Claims a free record. It stays invisible until it is published.
    ///
    /// Returns `None` when the table is full, which takes more threads than Linux can have.
    pub(crate) fn claim(&self) -> Option<&'static Record> {
        for number in 0..CHUNKS {
            let chunk = match self.chunk(number) {
                Some(chunk) => chunk,
                None => self.grow(number)?,
            };
            if let Some(record) = chunk.claim() {
                return Some(record);
            }
        }
        None
    }

    fn grow(&self, number: usize) -> Option<&'static Chunk> {
        let new = Box::into_raw(Box::new(Chunk::new(number)));
        // A1. Release: the records before the pointer to them.
        let place = self.chunks.get(number)?;
        let won = place
            .compare_exchange(ptr::null_mut(), new, Ordering::Release, Ordering::Relaxed)
            .is_ok();
        if !won {
            // SAFETY: `new` came from `Box::into_raw` above; no other thread knows it.
            drop(unsafe { Box::from_raw(new) });
        }
        self.chunk(number)
    }

    /// Gives back a record that was claimed and is FREE again.
    pub(crate) fn release(&self, record: &Record) {
        let index = record.index();
        let Some(chunk) = self.chunk(index / (WORDS * BITS)) else { return };
        let Some(live) = chunk.live.get(index / BITS % WORDS) else { return };
        // A2. Release: pairs with the next claim.
        live.fetch_and(!(1 << (index % BITS)), Ordering::Release);
    }

    /// Walks all records, claimed or not.
    #[cfg(not(loom))]
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Record> {
        (0..CHUNKS).map_while(|number| self.chunk(number)).flat_map(|chunk| &chunk.records)
    }

    /// Walks all records that are claimed, whatever their phase.
    pub(crate) fn claimed(&self) -> Claimed<'_> {
        Claimed { arena: self, chunk: None, next_word: 0, bits: 0 }
    }

    /// Walks the records of all threads that are listed, with their generations.
    pub(crate) fn listed(&self) -> impl Iterator<Item = (&'static Record, u32)> + Clone {
        self.claimed().filter_map(|record| Some((record, record.listed()?)))
    }
}

/// Walk over the claimed records; see [`Arena::claimed`].
#[derive(Clone)]
pub(crate) struct Claimed<'a> {
    arena: &'a Arena,
    chunk: Option<&'static Chunk>,
    /// The index of the word of live bits to be read next, over all chunks.
    next_word: usize,
    /// What is left of the word read last.
    bits: u32,
}

impl Iterator for Claimed<'_> {
    type Item = &'static Record;

    fn next(&mut self) -> Option<Self::Item> {
        while self.bits == 0 {
            if self.next_word.is_multiple_of(WORDS) {
                self.chunk = self.arena.chunk(self.next_word / WORDS);
            }
            // Acquire: the record does not need it (its words have their own orderings). With it a walk
            // that finds a bit clear has also seen the last store of the thread that had the record.
            let word = self.chunk?.live.get(self.next_word % WORDS)?;
            self.bits = word.load(Ordering::Acquire) & FULL;
            self.next_word += 1;
        }
        let bit = self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        self.chunk?.records.get((self.next_word - 1) % WORDS * BITS + bit)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Arena, BITS, WORDS};
    use crate::name::Name;
    use crate::record::{Id, Record};

    #[test]
    fn records_are_used_again_with_a_new_generation() {
        let arena = Arena::new();
        let first = arena.claim().expect("room");
        let generation = first.prepare(&Name::new("first"));
        first.publish();
        first.start(17);
        assert_eq!(first.tid(generation), Id::Known(17));
        first.close();
        assert!(first.free());
        arena.release(first);

        let second = arena.claim().expect("room");
        assert!(core::ptr::eq(first, second));
        assert_eq!(second.prepare(&Name::new("second")), generation + 1);
        second.publish();
        second.start(18);
        // T8, T10: a reference to the first thread does not reach the second.
        assert_eq!(first.tid(generation), Id::Gone);
        assert!(!first.pin(generation));
        assert_eq!(first.name(generation), None);
        assert_eq!(second.name(generation + 1), Some(Name::new("second")));
        assert!(second.pin(generation + 1));
        second.unpin();
    }

    /// A record that a walk forgets is a thread that is never signalled.
    #[test]
    fn a_walk_meets_every_record_of_full_and_of_begun_words_and_chunks() {
        for claimed in [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192] {
            // Too large for a stack. The chunks are left behind, as always.
            let arena: Box<Arena> = boxed();
            assert_eq!((arena.claimed().count(), arena.all().count()), (0, 0));
            let listed = || arena.listed().map(|(record, _)| record.index());
            for at in 0..claimed {
                let record = arena.claim().expect("room");
                assert_eq!(record.index(), at, "first to last");
                assert!(!listed().any(|index| index == at), "not published yet");
                record.prepare(&Name::default());
                record.publish();
                assert_eq!(listed().last(), Some(at), "at once");
            }
            assert!(listed().eq(0..claimed), "of {claimed}: {:?}", listed().collect::<Vec<_>>());
            assert_eq!(arena.claimed().count(), claimed);
            // After a fork all are looked at, claimed or not.
            let chunks = claimed.next_multiple_of(WORDS * BITS);
            assert!(arena.all().map(Record::index).eq(0..chunks), "{claimed}");
            // A record that is given back is no longer shown, and is the next to be claimed.
            for gone in 0..claimed {
                let record = arena.all().nth(gone).expect("is there");
                record.close();
                assert!(record.free());
                arena.release(record);
                assert!(listed().eq((0..claimed).filter(|&index| index != gone)), "{gone}");
                let next = arena.claim().expect("room");
                assert!(core::ptr::eq(next, record), "{gone} of {claimed}");
                next.prepare(&Name::default());
                next.publish();
            }
        }
    }

    fn boxed() -> Box<Arena> {
        // SAFETY: null pointers are what an arena begins with.
        unsafe { Box::new_zeroed().assume_init() }
    }

    #[test]
    fn walks_cross_chunks_and_skip_what_is_not_published() {
        let arena = Arena::new();
        let many = WORDS * BITS * 3 + 5;
        for n in 0..many {
            let record = arena.claim().expect("room");
            assert_eq!(record.index(), n);
            record.prepare(&Name::default());
            if n % 3 == 0 {
                record.publish();
            }
        }
        assert_eq!(arena.claimed().count(), many);
        let listed: Vec<_> = arena.listed().map(|(record, _)| record.index()).collect();
        assert_eq!(listed, (0..many).step_by(3).collect::<Vec<_>>());
    }
}
