//! Whether all threads have the requester's credentials, before any thread changes its own.
//!
//! A drop of privileges that goes well on the requester may be refused on a thread with other credentials,
//! and would be half applied. So where a batch has such calls, each thread compares its user ids, group ids
//! and capabilities with the requester's when it has joined. The requester begins only when all have done
//! so and none differs. A seccomp filter or a security module may still refuse a call on one thread: that
//! cannot be known before.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `wanted`, `requesters` | requester, before the gate opens | held threads | relaxed, published by the gate | the requester's own |
//! | `odd`, `first` | held threads | requester | relaxed, published by the thread's mark in `threads::Roll` | those that differ |

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use sigctx::sys::{Tid, id_calls, syscall_raw};

/// Three user ids, three group ids; effective and permitted capabilities in two words each.
const WORDS: usize = 10;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION_3: u32 = 0x2008_0522;

/// See the module.
pub(crate) struct Credentials {
    wanted: AtomicU32,
    requesters: [AtomicU32; WORDS],
    odd: AtomicU32,
    first: AtomicI32,
}

/// Threads with other credentials than the requester's: how many, and one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Odd {
    pub(crate) threads: u32,
    pub(crate) tid: Tid,
}

impl Credentials {
    pub(crate) const fn new() -> Self {
        Self {
            wanted: AtomicU32::new(0),
            requesters: [const { AtomicU32::new(0) }; WORDS],
            odd: AtomicU32::new(0),
            first: AtomicI32::new(0),
        }
    }

    /// If `wanted`, takes the requester's credentials for those that all should have. Only while no thread
    /// can have joined.
    pub(crate) fn prepare(&self, wanted: bool) {
        self.odd.store(0, Ordering::Relaxed);
        self.wanted.store(wanted.into(), Ordering::Relaxed);
        if wanted {
            for (word, value) in self.requesters.iter().zip(own()) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Compares the calling thread's with the requester's.
    #[inline(always)]
    pub(crate) fn compare(&self, tid: Tid) {
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut differ = false;
        for (word, value) in self.requesters.iter().zip(own()) {
            differ |= word.load(Ordering::Relaxed) != value;
        }
        if differ {
            self.first.store(tid, Ordering::Relaxed);
            self.odd.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The threads that differ. Only when all held threads have compared theirs.
    pub(crate) fn odd(&self) -> Option<Odd> {
        let threads = self.odd.load(Ordering::Relaxed);
        (threads > 0).then(|| Odd { threads, tid: self.first.load(Ordering::Relaxed) })
    }
}

/// The calling thread's credentials. What a filter forbids to read stays zero, on every thread alike.
#[inline(always)]
fn own() -> [u32; WORDS] {
    let mut ids = [0_u32; 6];
    let at = |index: usize| (&raw const ids).addr() + index * size_of::<u32>();
    let (users, groups) = ([at(0), at(1), at(2), 0, 0, 0], [at(3), at(4), at(5), 0, 0, 0]);
    (&raw mut ids).expose_provenance();
    // SAFETY: the kernel writes three of the ids.
    let _ = unsafe { syscall_raw(id_calls::GETRESUID, users) };
    // SAFETY: the kernel writes three of the ids.
    let _ = unsafe { syscall_raw(id_calls::GETRESGID, groups) };
    let mut header = [VERSION_3, 0];
    // Effective, permitted, inheritable; twice.
    let mut sets = [0_u32; 6];
    let args = [&raw mut header as usize, &raw mut sets as usize, 0, 0, 0, 0];
    // SAFETY: the kernel reads and writes the header, and writes the sets.
    let _ = unsafe { syscall_raw(libc::SYS_capget, args) };
    let [real, effective, saved, real_group, effective_group, saved_group] = ids;
    let [low, low_permitted, _, high, high_permitted, _] = sets;
    [
        real,
        effective,
        saved,
        real_group,
        effective_group,
        saved_group,
        low,
        low_permitted,
        high,
        high_permitted,
    ]
}
