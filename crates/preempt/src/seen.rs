//! Where the handler found a thread last: written by the handler, read by whoever nudged.
//!
//! ```text
//!   handler                          reader
//!   version odd                      version, even
//!   fence                            words
//!   words                            fence
//!   version even, 2 more             the same version: what was read belongs together
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `version` | the handler on the thread +1 before and +1 after | any | fence after odd / acquire; release / fence before the second look | S1 |
//! | `own` | the handler on the thread | the same | relaxed | what it has written to `version` |
//! | `words` | the handler on the thread | any | relaxed | S1 |
//!
//! - S1: words that are read between two looks at one even version were written together.
//!
//! Neither side waits. A reader that meets a writer gets nothing: what it reads is for messages. A handler that finds the
//! version odd has interrupted itself, and writes nothing.
//!
//! The handler looks at `own`, not at `version`: of a load and the store of a thread that has loaded the word itself loom
//! explores one order (0.7.2, tokio-rs/loom#392).

use core::array;
use core::ptr::without_provenance_mut;
use core::sync::atomic::AtomicU32 as PlainU32;

use sigctx::sync::{
    AtomicPtr, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

/// Some words, as one thread wrote them together.
#[derive(Debug)]
pub(crate) struct Seen<const WORDS: usize> {
    version: AtomicU32,
    own: PlainU32,
    words: [AtomicPtr<()>; WORDS],
}

impl<const WORDS: usize> Seen<WORDS> {
    pub(crate) fn new() -> Self {
        let words = array::from_fn(|_| AtomicPtr::new(without_provenance_mut(0)));
        Self { version: AtomicU32::new(0), own: PlainU32::new(0), words }
    }

    /// By the thread that the words are about alone, in its handler. Async-signal-safe.
    pub(crate) fn write(&self, words: [usize; WORDS]) {
        let version = self.own.load(Relaxed);
        if !version.is_multiple_of(2) {
            return;
        }
        self.own.store(version.wrapping_add(1), Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        // Partner: the fence in `read`. A reader that has a new word finds the odd version, or a later one.
        fence(Release);
        for (place, word) in self.words.iter().zip(words) {
            place.store(without_provenance_mut(word), Relaxed);
        }
        // Partner: the first look in `read`.
        self.version.store(version.wrapping_add(2), Release);
        self.own.store(version.wrapping_add(2), Relaxed);
    }

    /// What was written last. `None` before, and while it is written. Async-signal-safe.
    pub(crate) fn read(&self) -> Option<[usize; WORDS]> {
        let version = self.version.load(Acquire);
        if version == 0 || !version.is_multiple_of(2) {
            return None;
        }
        let words = array::from_fn(|at| self.words[at].load(Relaxed).addr());
        // Partner: the fence in `write`.
        fence(Acquire);
        (self.version.load(Relaxed) == version).then_some(words)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Seen;

    #[test]
    fn what_was_written_last_is_read() {
        let seen = Seen::new();
        assert_eq!(seen.read(), None);
        for words in [[1, 2], [3, 4]] {
            seen.write(words);
            assert_eq!(seen.read(), Some(words));
        }
    }

    /// As if it had interrupted itself: what is half written stays unread.
    #[test]
    fn a_handler_in_itself_writes_nothing() {
        let seen = Seen::new();
        let count = || {
            seen.own.fetch_add(1, super::Relaxed);
            seen.version.fetch_add(1, super::Relaxed);
        };
        seen.write([1]);
        count();
        seen.write([2]);
        assert_eq!(seen.read(), None);
        count();
        assert_eq!(seen.read(), Some([1]));
    }
}
