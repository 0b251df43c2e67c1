//! Which signals are blocked while a thread begins and ends, and which a new thread must not block.

use core::sync::atomic::{AtomicU32, Ordering};

use sigctx::sys::{self, MaskHow, SigSet};

/// Room for the bits 0 to 128, the highest signal number that any kernel has (MIPS).
const WORDS: usize = 5;
static NEVER_BLOCKED: [AtomicU32; WORDS] = [const { AtomicU32::new(0) }; WORDS];

/// Makes every thread that is spawned from now on begin with `sig` unblocked, whatever its creator
/// blocks.
///
/// For signals that a runtime must be able to send to every thread. Without this a new thread starts
/// with the mask of its creator, as POSIX has it. A creator in a section that blocks the signal then
/// makes a thread that blocks it forever. Numbers that are no signal are ignored.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # References
///
/// Go keeps its never-blocked signals out of each new thread's mask: `runtime/signal_unix.go`,
/// `minitSignalMask`.
#[doc(alias = "minitSignalMask")]
pub fn never_block(sig: i32) {
    let Ok(bit) = usize::try_from(sig) else { return };
    if let Some(word) = NEVER_BLOCKED.get(bit / 32) {
        // Relaxed: the set only grows, and belongs to no other data.
        word.fetch_or(1 << (bit % 32), Ordering::Relaxed);
    }
}

/// The mask for a new thread: the one that its creator asks for, without the signals that must not be
/// blocked.
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

/// Blocks every signal that can be deferred; returns the former mask.
///
/// libc's own signals stay open, and those that the kernel raises for an instruction: code under this
/// mask makes system calls, and a sandbox may trap them.
pub(crate) fn block_all() -> SigSet {
    sys::sigprocmask(MaskHow::Block, &without_libc_own(SigSet::deferrable()))
}

/// Takes out the signals that libc keeps for itself, 32 up to the first real-time signal that programs
/// may use. libc waits for every thread to answer them: a thread that blocks them makes `setuid` wait
/// forever.
fn without_libc_own(set: SigSet) -> SigSet {
    (32..libc::SIGRTMIN()).fold(set, SigSet::without)
}

/// Sets the mask.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "twice the size where there are 128 signals")]
pub(crate) fn restore(mask: &SigSet) {
    sys::sigprocmask(MaskHow::Set, mask);
}
