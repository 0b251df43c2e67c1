//! A few words that were found to be so, kept for later: compared whole or not at all, with no wait.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `version` | a writer: odd by compare-and-swap, then even by a store | all | acquire / release, with fences | F1 |
//! | `words` | the writer that made `version` odd | all | relaxed, between the fences | F1 |
//!
//! - **F1** A reader that finds `version` even and the same before and after has read words of one writing.
//!
//! A writer that meets another one writes nothing. A fork may copy a writer that is in the middle: `version`
//! stays odd in the child, which keeps nothing then, and finds out each time.

use sigctx::sync::{AtomicU32, Ordering, fence};

/// See the module.
#[derive(Debug)]
pub(crate) struct Finding<const N: usize> {
    /// 0 when nothing was ever kept.
    version: AtomicU32,
    words: [AtomicU32; N],
}

impl<const N: usize> Finding<N> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self { version: AtomicU32::new(0), words: [const { AtomicU32::new(0) }; N] }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self { version: AtomicU32::new(0), words: [(); N].map(|()| AtomicU32::new(0)) }
    }

    /// Whether these are the words that were kept last.
    pub(crate) fn is(&self, words: [u32; N]) -> bool {
        // Acquire: pairs with the release of the even version in `keep`.
        let before = self.version.load(Ordering::Acquire);
        if before == 0 || before & 1 != 0 {
            return false;
        }
        let same = self.words.iter().zip(words).all(|(word, wanted)| {
            // Relaxed: the fence below comes after.
            word.load(Ordering::Relaxed) == wanted
        });
        // Pairs with the fence in `keep`: who has read a word of a later writing sees its odd version.
        fence(Ordering::Acquire);
        same && self.version.load(Ordering::Relaxed) == before
    }

    /// Keeps these words, if no other thread is just keeping some.
    pub(crate) fn keep(&self, words: [u32; N]) {
        let seen = self.version.load(Ordering::Relaxed);
        let odd = seen.wrapping_add(1);
        if seen & 1 != 0
            || self
                .version
                // Acquire: the words of the writer before are written before these.
                .compare_exchange(seen, odd, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        // Pairs with the fence in `is`.
        fence(Ordering::Release);
        for (word, new) in self.words.iter().zip(words) {
            word.store(new, Ordering::Relaxed);
        }
        // Never 0 again. Release: whoever sees this version sees the words.
        self.version.store(odd.wrapping_add(1).max(2), Ordering::Release);
    }
}
