//! A sorted set of address ranges that is copied when it changes, without copying all of it.
//!
//! A handler needs a table that does not change while it looks, so each change makes a new one. With
//! one array that is quadratic: a JIT that registers 40 000 functions one by one would copy 20 000
//! ranges each time. So the table has two levels. A change copies the list of chunks, 16 bytes a
//! chunk, and the one chunk that it falls into; the others are shared with the old table.
//!
//! ```text
//!   Table   [ 0x1000 | 0x8000 | 0xf000 ]         where each chunk begins
//!               |        |        |
//!   chunks   [a b c]  [d e f]  [g h]             up to `CHUNK` ranges each, sorted
//! ```

use core::ops::Range;
use std::sync::Arc;

/// Ranges in a chunk, at most. A change then copies as much in chunks as in the list of chunks when
/// there are about a hundred thousand ranges.
const CHUNK: usize = 256;

/// A range and what belongs to it. The bounds are here once more, so that a search stays within the
/// chunk.
#[derive(Debug)]
struct Item<T> {
    start: usize,
    end: usize,
    value: Arc<T>,
}

impl<T> Clone for Item<T> {
    fn clone(&self) -> Self {
        Self { start: self.start, end: self.end, value: Arc::clone(&self.value) }
    }
}

impl<T> Item<T> {
    fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

type Chunk<T> = Arc<[Item<T>]>;

/// See the module's documentation. No chunk is empty, and no two ranges overlap.
#[derive(Debug)]
pub(crate) struct Table<T>(Vec<(usize, Chunk<T>)>);

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// The two ranges that overlap: the new one, and the one that is there.
pub(crate) type Overlap = (Range<usize>, Range<usize>);

impl<T> Table<T> {
    /// What belongs to the range that `pc` is in. Async-signal-safe: two binary searches.
    pub(crate) fn find(&self, pc: usize) -> Option<&Arc<T>> {
        self.first_ending_after(pc).filter(|item| item.start <= pc).map(|item| &item.value)
    }

    fn first_ending_after(&self, at: usize) -> Option<&Item<T>> {
        let index = self.chunk_for(at);
        let (_, chunk) = self.0.get(index)?;
        let within = chunk.partition_point(|item| item.end <= at);
        chunk.get(within).or_else(|| self.0.get(index + 1)?.1.first())
    }

    /// The chunk that a range beginning at `at` is in, or would be put into.
    fn chunk_for(&self, at: usize) -> usize {
        self.0.partition_point(|(start, _)| *start <= at).saturating_sub(1)
    }

    /// Adds a range that is not empty.
    pub(crate) fn insert(&mut self, range: &Range<usize>, value: Arc<T>) -> Result<(), Overlap> {
        let after = self.first_ending_after(range.start);
        if let Some(taken) = after.filter(|item| item.start < range.end) {
            return Err((range.clone(), taken.range()));
        }
        let index = self.chunk_for(range.start);
        let mut items = self.0.get(index).map_or(Vec::new(), |(_, chunk)| chunk.to_vec());
        let at = items.partition_point(|item| item.end <= range.start);
        items.insert(at, Item { start: range.start, end: range.end, value });
        let replaced = index..(index + 1).min(self.0.len());
        let size = if items.len() > CHUNK { items.len().div_ceil(2) } else { CHUNK };
        self.replace(replaced, &items, size);
        Ok(())
    }

    /// Adds many ranges that are not empty, or none. Takes about as long as sorting all ranges.
    pub(crate) fn insert_all(
        &mut self,
        new: impl Iterator<Item = (Range<usize>, Arc<T>)>,
    ) -> Result<(), Overlap> {
        let mut items: Vec<_> =
            self.0.iter().flat_map(|(_, chunk)| chunk.iter().cloned()).collect();
        let old = items.len();
        items.extend(new.map(|(range, value)| Item { start: range.start, end: range.end, value }));
        if items.len() == old {
            return Ok(());
        }
        // Stable: where two begin at the same address the old one is first.
        items.sort_by_key(|item| item.start);
        for pair in items.windows(2) {
            if pair[1].start < pair[0].end {
                let second_is_old =
                    self.find(pair[1].start).is_some_and(|at| Arc::ptr_eq(at, &pair[1].value));
                let (there, added) = if second_is_old { (1, 0) } else { (0, 1) };
                return Err((pair[added].range(), pair[there].range()));
            }
        }
        // Half full: what comes one by one afterwards finds room.
        self.replace(0..self.0.len(), &items, CHUNK / 2);
        Ok(())
    }

    /// Takes `range` out, if it is there with `value`. Another may have its place by now.
    pub(crate) fn remove(&mut self, range: &Range<usize>, value: &Arc<T>) {
        if !self.find(range.start).is_some_and(|there| Arc::ptr_eq(there, value)) {
            return;
        }
        let index = self.chunk_for(range.start);
        let Some((_, chunk)) = self.0.get(index) else { return };
        let others = chunk.iter().filter(|item| item.start != range.start);
        let mut items: Vec<_> = others.cloned().collect();
        let mut replaced = index..index + 1;
        // Chunks that have become small are put together, or there would be as many as ranges.
        let small = |other: &&(usize, Chunk<T>)| other.1.len() + items.len() <= CHUNK / 2;
        let previous = index.checked_sub(1).and_then(|before| self.0.get(before)).filter(small);
        if let Some((_, previous)) = previous {
            items.splice(0..0, previous.iter().cloned());
            replaced.start -= 1;
        } else if let Some((_, next)) = self.0.get(index + 1).filter(small) {
            items.extend(next.iter().cloned());
            replaced.end += 1;
        }
        self.replace(replaced, &items, CHUNK);
    }

    fn replace(&mut self, replaced: Range<usize>, items: &[Item<T>], size: usize) {
        let chunks = items.chunks(size).map(|chunk| (chunk[0].start, Chunk::from(chunk)));
        self.0.splice(replaced, chunks);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::{CHUNK, Table};

    fn shared(a: &Table<usize>, b: &Table<usize>) -> usize {
        a.0.iter().filter(|x| b.0.iter().any(|y| Arc::ptr_eq(&x.1, &y.1))).count()
    }

    /// Takes out the range that begins at `start`, if there is one.
    fn take(table: &mut Table<usize>, start: usize) {
        let found = table.first_ending_after(start).filter(|item| item.start == start).cloned();
        if let Some(item) = found {
            table.remove(&item.range(), &Arc::new(start));
            assert!(table.find(start).is_some(), "removed another's range");
            table.remove(&item.range(), &item.value);
            assert!(table.find(start).is_none(), "still there");
        }
    }

    /// C2. What keeps registration near-linear: a change copies one chunk, or two.
    #[test]
    fn a_change_copies_one_chunk_and_shares_the_others() {
        let mut table = Table::default();
        let n = 20 * CHUNK;
        for i in 0..n {
            let before = table.clone();
            // Not in order: an even spread over the chunks.
            let at = (i * 7919 % n) * 64;
            table.insert(&(at..at + 32), Arc::new(i)).expect("free");
            assert!(before.0.len() - shared(&before, &table) <= 1, "copied more than a chunk");
        }
        assert!(table.0.len() <= 2 * n / CHUNK + 1, "{} chunks", table.0.len());
        for i in 0..n {
            let before = table.clone();
            take(&mut table, (i * 7919 % n) * 64);
            assert!(before.0.len() - shared(&before, &table) <= 2, "copied more than two chunks");
        }
        assert_eq!(table.0.len(), 0);
    }

    #[test]
    fn chunks_that_become_small_are_put_together() {
        let mut table = Table::default();
        let n = 20 * CHUNK;
        table.insert_all((0..n).map(|i| (i * 64..i * 64 + 32, Arc::new(i)))).expect("free");
        for i in (0..n).filter(|i| i % 64 != 0) {
            take(&mut table, i * 64);
        }
        assert!(table.0.len() <= 4, "{} chunks for {} ranges", table.0.len(), n / 64);
        assert!((0..n).all(|i| table.find(i * 64).is_some() == (i % 64 == 0)));
    }

    /// C2.
    #[test]
    fn a_table_agrees_with_a_map() {
        let mut rng = testkit::Rng::from_env();
        let (mut table, mut map) = (Table::default(), BTreeMap::<usize, usize>::new());
        let is_taken = |map: &BTreeMap<usize, usize>, start: usize, end: usize| {
            map.range(..end).next_back().is_some_and(|(_, taken)| *taken > start)
        };
        for _ in 0..testkit::budget(100_000) {
            let start = rng.below(20_000) as usize + 1;
            let end = start + 1 + rng.below(20) as usize;
            if rng.below(3) == 0 {
                take(&mut table, start);
                map.remove(&start);
            } else {
                let free = !is_taken(&map, start, end);
                let inserted = table.insert(&(start..end), Arc::new(start));
                assert_eq!(inserted.is_ok(), free, "{start}..{end}");
                if let Err((asked, taken)) = inserted {
                    assert_eq!((asked, map[&taken.start]), (start..end, taken.end));
                    assert!(taken.start < end && start < taken.end, "{taken:?} is elsewhere");
                } else {
                    map.insert(start, end);
                }
            }
            let pc = rng.below(20_100) as usize;
            let found = map.range(..=pc).next_back().filter(|(_, end)| **end > pc);
            assert_eq!(table.find(pc).map(|at| **at), found.map(|(start, _)| *start), "{pc}");
        }
    }

    #[test]
    fn many_at_once_are_all_there_or_none_is() {
        let mut table = Table::default();
        table.insert(&(1000..1100), Arc::new(1)).expect("free");
        let ranges = |wrong: std::ops::Range<usize>| {
            (0..2 * CHUNK)
                .map(|i| 2000 + i * 10..2000 + i * 10 + 10)
                .chain([wrong])
                .map(|r| (r.clone(), Arc::new(r.start)))
        };
        for (wrong, taken) in
            [(1099..1101, 1000..1100), (990..1001, 1000..1100), (2005..2006, 2000..2010)]
        {
            let before = table.clone();
            assert_eq!(table.insert_all(ranges(wrong.clone())), Err((wrong, taken)));
            assert_eq!((before.0.len(), shared(&before, &table)), (1, 1), "something was changed");
        }
        table.insert_all(ranges(1100..1200)).expect("free");
        let hits = [999, 1099, 1100, 1999, 2000, 2000 + 20 * CHUNK - 1, 2000 + 20 * CHUNK];
        let hits = hits.map(|pc| table.find(pc).is_some());
        assert_eq!(hits, [false, true, true, false, true, true, false]);
    }
}
