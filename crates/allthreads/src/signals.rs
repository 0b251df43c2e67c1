//! The signals that operations of this process use.
//!
//! An operation with one signal must be able to hold a thread that waits for its turn with another one: so
//! a waiting thread keeps all of them open. The requester enters a signal when its handler is in place, and
//! then announces it to the waiting threads (see `lock`).

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::SigSet;

/// Signals an architecture may have (128 on MIPS), and one more because they count from 1.
pub(crate) const SIGNALS: usize = 129;

/// See the module.
pub(crate) struct Signals([AtomicU32; SIGNALS.div_ceil(32)]);

impl Signals {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; _])
    }

    /// Enters a signal; whether it is new.
    pub(crate) fn add(&self, signal: i32) -> bool {
        let signal = signal as usize;
        let bit = 1 << (signal % 32);
        // Relaxed: the announcement publishes it.
        let word = self.0.get(signal / 32);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    /// `set` without these signals.
    pub(crate) fn without(&self, set: SigSet) -> SigSet {
        self.iter().fold(set, SigSet::without)
    }

    /// These signals.
    pub(crate) fn set(&self) -> SigSet {
        self.iter().fold(SigSet::empty(), SigSet::with)
    }

    fn iter(&self) -> impl Iterator<Item = i32> {
        let has = |signal: &usize| {
            let word = self.0.get(signal / 32);
            word.is_some_and(|word| word.load(Ordering::Relaxed) >> (signal % 32) & 1 != 0)
        };
        (1..SIGNALS).filter(has).map(|signal| signal as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_was_entered_is_taken_out() {
        let signals = Signals::new();
        assert_eq!(signals.without(SigSet::full()), SigSet::full());
        assert!(signals.add(33) && !signals.add(33) && signals.add(64));
        assert_eq!(signals.without(SigSet::full()), SigSet::full().without(33).without(64));
    }
}
