//! The requester's working memory: the threads that take no part, and those that were missing at the last
//! look.

use sigctx::sys::Tid;
use threadreg::procfs::TaskStat;

use crate::error::Straggler;
use crate::threads::SLOTS;

/// The most threads that take no part.
const BYSTANDERS: usize = 128;

/// Why a thread takes no part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Dead, or on its way: a leader that called `pthread_exit` stays so until the process ends.
    Exiting,
    /// The kernel's own worker in this process (`io_uring`, vhost).
    Worker,
    /// A worker that polls a ring: it acts with the credentials that it was made with.
    Polling,
    /// The program vouches for it.
    Excluded,
}

#[derive(Clone, Copy)]
pub(crate) struct Bystander {
    pub(crate) tid: Tid,
    /// Tells a thread from another that got its id later.
    pub(crate) start_time: u64,
    pub(crate) kind: Kind,
}

impl Bystander {
    /// Whether `stat`, of the same id, is still this thread, and still a bystander. The start time alone
    /// does not tell: it counts ticks, and an id may be used again within one.
    pub(crate) fn is(&self, stat: &TaskStat) -> bool {
        stat.start_time == self.start_time
            && match self.kind {
                Kind::Exiting => stat.is_exiting(),
                Kind::Worker | Kind::Polling => stat.is_kernel_worker(),
                Kind::Excluded => true,
            }
    }
}

/// A list of fixed capacity.
pub(crate) struct Few<T, const N: usize> {
    items: [Option<T>; N],
    pub(crate) len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    pub(crate) const fn new() -> Self {
        Self { items: [const { None }; N], len: 0 }
    }

    pub(crate) fn push(&mut self, item: T) -> bool {
        let Some(slot) = self.items.get_mut(self.len) else { return false };
        *slot = Some(item);
        self.len += 1;
        true
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().take(self.len).flatten()
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            let Some(Some(item)) = self.items.get(index).copied() else { continue };
            if keep(&item) {
                if let Some(slot) = self.items.get_mut(kept) {
                    *slot = Some(item);
                }
                kept += 1;
            }
        }
        self.len = kept;
    }
}

impl Few<Bystander, BYSTANDERS> {
    /// The only way in. A thread is here once, however often it was met or named: each entry is subtracted
    /// from the size of the thread group.
    pub(crate) fn add(&mut self, bystander: Bystander) -> bool {
        self.retain(|known| known.tid != bystander.tid);
        self.push(bystander)
    }
}

/// The requester's working memory: static, because a handler's stack may be small.
pub(crate) struct Notes {
    pub(crate) buffer: [u8; 16 * 1024],
    pub(crate) bystanders: Few<Bystander, BYSTANDERS>,
    /// The threads that were missing at the last look, and how many there were.
    pub(crate) missing: Few<Straggler, 32>,
    pub(crate) missing_count: usize,
    pub(crate) known: Known,
}

/// The threads of the operation before: most likely those of this one, too.
pub(crate) struct Known {
    tids: [Tid; SLOTS],
    len: usize,
    /// Of the operation that is under way.
    requester: Tid,
}

impl Known {
    #[expect(clippy::large_stack_arrays, reason = "evaluated at compile time, into a static")]
    const fn new() -> Self {
        Self { tids: [0; SLOTS], len: 0, requester: 0 }
    }

    /// Takes those that were held, and the requester, for those known, as an operation of `requester` begins.
    pub(crate) fn begin(&mut self, held: impl Iterator<Item = Tid>, requester: Tid) {
        let before = (self.requester != 0).then_some(self.requester);
        self.len = 0;
        for (to, from) in self.tids.iter_mut().zip(held.chain(before)) {
            *to = from;
            self.len += 1;
        }
        // As a listing has them. In the order in which they came, the threads of one processor have all their
        // signals before those of another, which has nothing to do until then.
        self.tids.get_mut(..self.len).unwrap_or_default().sort_unstable();
        self.requester = requester;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Tid> {
        self.tids.iter().take(self.len).copied()
    }
}

impl Notes {
    pub(crate) const fn new() -> Self {
        Self {
            buffer: [0; _],
            bystanders: Few::new(),
            missing: Few::new(),
            missing_count: 0,
            known: Known::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn note_missing(&mut self, thread: Straggler) {
        self.missing.push(thread);
        self.missing_count += 1;
    }

    /// Forgets the missing: all have come, or the process is another one.
    pub(crate) fn forget_missing(&mut self) {
        self.missing.clear();
        self.missing_count = 0;
    }

    /// Forgets the threads of another process.
    pub(crate) fn reset(&mut self) {
        self.bystanders.clear();
        self.forget_missing();
        (self.known.len, self.known.requester) = (0, 0);
    }

    /// The bystanders of these kinds.
    pub(crate) fn bystanders_of(&self, kinds: &[Kind]) -> impl Iterator<Item = Tid> {
        self.bystanders.iter().filter(|b| kinds.contains(&b.kind)).map(|b| b.tid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigctx::sys;
    use threadreg::procfs::TaskDir;

    fn bystander(kind: Kind) -> (Bystander, TaskStat) {
        let tid = sys::gettid();
        let stat = TaskDir::open().unwrap().stat(tid).unwrap();
        (Bystander { tid, start_time: stat.start_time, kind }, stat)
    }

    #[test]
    fn a_thread_is_subtracted_once_however_often_it_is_added() {
        let mut few = Few::new();
        for kind in [Kind::Exiting, Kind::Excluded, Kind::Excluded] {
            assert!(few.add(bystander(kind).0));
        }
        assert_eq!(few.len, 1);
        assert!(few.iter().all(|b| b.kind == Kind::Excluded));
    }

    /// The id of a dead thread, used again within one tick of the clock.
    #[test]
    fn a_live_thread_with_a_bystanders_id_is_no_bystander() {
        for kind in [Kind::Exiting, Kind::Worker] {
            let (bystander, stat) = bystander(kind);
            assert!(!bystander.is(&stat), "{kind:?}");
        }
        let (mut bystander, stat) = bystander(Kind::Excluded);
        assert!(bystander.is(&stat));
        bystander.start_time += 1;
        assert!(!bystander.is(&stat));
    }
}
