//! The kernel's signal set, which is shorter than libc's.

use core::ffi::c_ulong;
use core::fmt;
use core::ops::BitOr;

use crate::arch;

const WORD_BITS: usize = c_ulong::BITS as usize;

/// A set of signals as the kernel has it.
///
/// Unlike libc's functions it can name the signals that libc keeps for itself (32, 33).
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct SigSet([c_ulong; arch::NSIG / WORD_BITS]);

impl SigSet {
    /// No signal.
    #[inline(always)]
    #[must_use]
    pub const fn empty() -> Self {
        Self([0; _])
    }

    /// Every signal, libc's own included.
    #[inline(always)]
    #[must_use]
    pub const fn full() -> Self {
        Self([c_ulong::MAX; _])
    }

    /// The signals that the kernel raises for an instruction: `SIGILL`, `SIGTRAP`, `SIGBUS`, `SIGFPE`,
    /// `SIGSEGV` and `SIGSYS`.
    #[inline(always)]
    #[must_use]
    pub const fn synchronous() -> Self {
        Self::of(libc::SIGILL)
            .with(libc::SIGTRAP)
            .with(libc::SIGBUS)
            .with(libc::SIGFPE)
            .with(libc::SIGSEGV)
            .with(libc::SIGSYS)
    }

    /// Every signal but those of [`SigSet::synchronous`]: for the mask of a section that no signal is
    /// to interrupt.
    ///
    /// To block one that an instruction raises does not put it off: the kernel ends the process. A
    /// sandbox answers the system calls that its filter traps (`SECCOMP_RET_TRAP`) in a handler of
    /// `SIGSYS`, and a section that makes system calls must let it.
    ///
    /// # References
    ///
    /// `force_sig_info_to_task` in the kernel's `kernel/signal.c`
    #[inline(always)]
    #[must_use]
    pub const fn deferrable() -> Self {
        let mut set = Self::full();
        let synchronous = Self::synchronous().0;
        let mut word = 0;
        while word < synchronous.len() {
            set.0[word] &= !synchronous[word];
            word += 1;
        }
        set
    }

    /// The set with one signal; empty when the kernel has no signal of that number.
    #[inline(always)]
    #[must_use]
    pub const fn of(sig: i32) -> Self {
        Self::empty().with(sig)
    }

    /// The place of a signal: word and bit.
    #[inline(always)]
    const fn place(sig: i32) -> Option<(usize, c_ulong)> {
        if sig < 1 || sig as usize > arch::NSIG {
            return None;
        }
        let bit = sig as usize - 1;
        Some((bit / WORD_BITS, 1 << (bit % WORD_BITS)))
    }

    /// This set and `sig`.
    #[inline(always)]
    #[must_use]
    pub const fn with(mut self, sig: i32) -> Self {
        if let Some((word, bit)) = Self::place(sig) {
            self.0[word] |= bit;
        }
        self
    }

    /// This set without `sig`.
    #[inline(always)]
    #[must_use]
    pub const fn without(mut self, sig: i32) -> Self {
        if let Some((word, bit)) = Self::place(sig) {
            self.0[word] &= !bit;
        }
        self
    }

    /// Whether `sig` is in the set.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, sig: i32) -> bool {
        match Self::place(sig) {
            Some((word, bit)) => self.0[word] & bit != 0,
            None => false,
        }
    }

    /// Whether no signal is in the set.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::empty()
    }

    /// The signals of the set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        (1..=arch::NSIG as i32).filter(|&sig| self.contains(sig))
    }

    /// Reads the lowest 64 signals from the number that `/proc/<pid>/status` prints: bit 0 is
    /// signal 1.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let mut set = Self::empty();
        let mut sig = 1;
        while sig <= 64 {
            if bits >> (sig - 1) & 1 != 0 {
                set = set.with(sig);
            }
            sig += 1;
        }
        set
    }
}

impl BitOr for SigSet {
    type Output = Self;

    #[inline]
    fn bitor(mut self, other: Self) -> Self {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
        self
    }
}

impl fmt::Debug for SigSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn holds_the_signals_that_libc_hides() {
        let set = SigSet::empty().with(32).with(33).with(1).with(arch::NSIG as i32);
        assert!(set.contains(32) && set.contains(33) && set.contains(1));
        assert!(!set.contains(34) && !set.contains(0) && !set.contains(-1));
        assert_eq!(format!("{:?}", SigSet::of(33) | SigSet::of(1)), "{1, 33}");
        assert_eq!(
            set.without(32).without(33).without(1).without(arch::NSIG as i32),
            SigSet::empty()
        );
    }

    #[test]
    fn all_but_what_an_instruction_raises_can_be_deferred() {
        let raised = [4, 5, libc::SIGBUS, 8, 11, libc::SIGSYS];
        for sig in 1..=arch::NSIG as i32 {
            assert_eq!(SigSet::synchronous().contains(sig), raised.contains(&sig), "{sig}");
            assert_eq!(SigSet::deferrable().contains(sig), !raised.contains(&sig), "{sig}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_in_no_set() {
        assert!(SigSet::of(0).is_empty());
        assert!(SigSet::of(arch::NSIG as i32 + 1).is_empty());
        assert!(!SigSet::full().contains(arch::NSIG as i32 + 1));
        assert_eq!(SigSet::full().iter().count(), arch::NSIG);
    }

    #[test]
    fn reads_the_kernels_hexadecimal_form() {
        assert_eq!(SigSet::from_bits(1 << 22 | 1), SigSet::of(23).with(1));
    }
}
