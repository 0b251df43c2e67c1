//! What emitted code and its compiler need beside the poll: bits of their own in the poll word, a stack watermark, and a
//! barrier for code that was changed.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use sigctx::sys::{self, Errno, Membarrier};

use crate::handle::StoppedMutator;
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::protocol::{MutatorSlot, USER_BITS, USER_SHIFT};
use crate::raw::RawMutator;
use crate::system::{Identity, NO_WATERMARK};
use crate::world::World;

impl World {
    /// Sets bits of the runtime's own in a mutator's poll word: a second reason to leave a loop, such as a deadline, an
    /// exception that another thread throws, or compiled code that is ready. The mutator's polls take the slow path
    /// until it has [taken](Mutator::take_user_bits) them. It is not nudged for them. False if the mutator is detached.
    ///
    /// One that detaches at the same moment may leave bits to the next mutator in its place: what a bit asks for has to
    /// be looked up, and may turn out to be nothing.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::World;
    ///
    /// const INTERRUPTED: u8 = 1;
    ///
    /// let world = World::new();
    /// let mut mutator = world.attach()?;
    /// assert!(world.set_user_bits(mutator.id(), INTERRUPTED));
    /// // In the slow path of the runtime's own poll:
    /// mutator.poll();
    /// assert_eq!(mutator.take_user_bits(), INTERRUPTED);
    /// assert_eq!(mutator.take_user_bits(), 0);
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    #[must_use = "the mutator may be detached"]
    pub fn set_user_bits(&self, id: MutatorId, bits: u8) -> bool {
        let is_its = |slot: &&'static MutatorSlot<Identity>| {
            slot.state().is_live() && slot.current_use() == id.0
        };
        let Some(slot) = self.shared.protocol.slot(id.0.index).filter(is_its) else { return false };
        // Release, with the acquire of `take`: whoever finds the bit finds what the caller wrote before.
        slot.requests.poll.fetch_or(u32::from(bits) << USER_SHIFT, Ordering::Release);
        is_its(&slot)
    }
}

impl Mutator {
    /// Clears the bits that [`World::set_user_bits`] has set, and returns them.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use = "the bits are cleared"]
    pub fn take_user_bits(&mut self) -> u8 {
        take(self.slot)
    }
}

/// Acquire: see [`World::set_user_bits`].
fn take(slot: &MutatorSlot<Identity>) -> u8 {
    let poll = &slot.requests.poll;
    // Most polls are for something else.
    if poll.load(Ordering::Relaxed) & USER_BITS == 0 {
        return 0;
    }
    (poll.fetch_and(!USER_BITS, Ordering::AcqRel) >> USER_SHIFT) as u8
}

impl RawMutator {
    /// The bits of the [poll word](RawMutator::poll_word) that are the runtime's. They are in
    /// [`RawMutator::POLL_MASK`].
    pub const USER_BITS: u32 = USER_BITS;

    /// As [`Mutator::take_user_bits`].
    ///
    /// # Safety
    ///
    /// The [`Mutator`] lives: it is neither detached nor dropped.
    #[must_use = "the bits are cleared"]
    pub unsafe fn take_user_bits(self) -> u8 {
        take(self.slot())
    }

    /// The word that code compares the stack pointer with where it returns: a frame at a higher address than the
    /// watermark was not looked at yet by whoever set it, such as a collector that scans stacks while threads run. It is
    /// [`NO_WATERMARK`](RawMutator::NO_WATERMARK) until it is set, and at one address for as long as the mutator lives.
    /// In code for stacks that grow down: `cmp sp, [word]; ja slow_path`. A relaxed load is enough.
    ///
    /// The mutator sets it too, when it has looked at more frames. What its loads and stores mean is the runtime's.
    #[must_use]
    pub fn watermark_word(self) -> *const AtomicUsize {
        &raw const self.slot().status.identity.watermark
    }

    /// The watermark above all frames.
    pub const NO_WATERMARK: usize = NO_WATERMARK;
}

impl StoppedMutator<'_> {
    /// Sets the [watermark](RawMutator::watermark_word) of the mutator, which finds it when it goes on.
    pub fn set_watermark(&self, address: usize) {
        // Relaxed: the end of the stop hands it over.
        self.slot().status.identity.watermark.store(address, Ordering::Relaxed);
    }
}

/// Has each thread of the process execute an instruction, before it next runs code of its own, behind which it fetches
/// instructions anew. To be called when code was changed and the data caches were cleaned, as the architecture demands:
/// no thread then runs the code as it was, whatever it has in its pipeline. In a stopped world, before it is resumed, it
/// makes changed code safe for all mutators and for threads in safe regions.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// [`NoSyncCore`] where the kernel cannot. Then each thread has to execute such an instruction by itself, for example in
/// a [for-each](Mutator::for_each_processor).
///
/// # References
///
/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`, Linux 4.16; `Documentation/features/sched/membarrier-sync-core` has the
/// architectures.
pub fn sync_core() -> Result<(), NoSyncCore> {
    /// 1 once the process is registered, which the child of a fork inherits. Relaxed: nothing else is handed over, and
    /// registering twice is harmless.
    static REGISTERED: AtomicU32 = AtomicU32::new(0);
    // The changes come first.
    fence(Ordering::SeqCst);
    if REGISTERED.load(Ordering::Relaxed) == 0 {
        sys::membarrier(Membarrier::REGISTER_PRIVATE_EXPEDITED_SYNC_CORE).map_err(NoSyncCore)?;
        REGISTERED.store(1, Ordering::Relaxed);
    }
    sys::membarrier(Membarrier::PRIVATE_EXPEDITED_SYNC_CORE).map(drop).map_err(NoSyncCore)
}

/// The kernel does not have threads fetch their instructions anew: it is too old, does not do it on this architecture,
/// or a filter forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSyncCore(pub Errno);

impl fmt::Display for NoSyncCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "membarrier(2) synchronises no instruction streams here: {}", self.0)
    }
}

impl core::error::Error for NoSyncCore {}
