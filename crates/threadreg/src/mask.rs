//! Which signals are blocked while a thread begins and ends, and which a new thread must hear.

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::{self, MaskHow, SigSet};

/// Room for the bits 0 to 128, the highest number that any kernel has (MIPS).
const WORDS: usize = 5;
static NEVER_BLOCKED: [AtomicU32; WORDS] = [const { AtomicU32::new(0) }; WORDS];

/// Makes every thread that is spawned from now on begin with `sig` unblocked, whatever its creator
/// had blocked.
///
/// For signals that a runtime must be able to send to every thread. Without this a new thread
/// starts with the mask of its creator, as POSIX has it, and a creator in a section that blocks the
/// signal makes a thread that is deaf for good. Numbers that are no signal are ignored.
///
/// # Signal safety
///
/// Async-signal-safe.
///
/// # References
///
/// Go keeps its never-blocked signals out of each new thread's mask: `runtime/signal_unix.go`,
/// `minitSignalMask`.
pub fn never_block(sig: i32) {
    let Ok(bit) = usize::try_from(sig) else { return };
    if let Some(word) = NEVER_BLOCKED.get(bit / 32) {
        // Relaxed: the set only grows, and belongs to no other data.
        word.fetch_or(1 << (bit % 32), Ordering::Relaxed);
    }
}

/// The mask for a new thread: what its creator says, less the signals that must get through.
pub(crate) fn for_new_thread(recorded: SigSet) -> SigSet {
    let mut recorded = without_libc_own(recorded);
    for (word, bits) in NEVER_BLOCKED.iter().enumerate() {
        let mut bits = bits.load(Ordering::Relaxed);
        while bits != 0 {
            recorded = recorded.without((word * 32) as i32 + bits.trailing_zeros() as i32);
            bits &= bits - 1;
        }
    }
    recorded
}

/// Blocks every signal that can be put off; returns the mask that was there.
///
/// libc's own signals stay open, and those that an instruction raises: what is done under this mask
/// makes system calls, which a sandbox may trap.
pub(crate) fn block_all() -> SigSet {
    sys::sigprocmask(MaskHow::Block, &without_libc_own(SigSet::deferrable()))
}

/// Less the signals that libc keeps for itself, 32 up to the first real-time signal that it gives
/// away: it waits for threads to answer them, and one that is deaf makes `setuid` wait forever.
fn without_libc_own(set: SigSet) -> SigSet {
    (32..libc::SIGRTMIN()).fold(set, SigSet::without)
}

/// Sets the mask.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "twice the size where there are 128 signals")]
pub(crate) fn restore(mask: &SigSet) {
    sys::sigprocmask(MaskHow::Set, mask);
}
