//! A world: the mutators that a stop stops.

use core::fmt;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use threadreg::Nudge;

use crate::forks;
use crate::protocol::{MutatorSlot, Protocol};
use crate::system::{Fences, Identity, Linux};

/// What all handles of a world share.
pub(crate) struct Shared {
    pub(crate) protocol: Protocol<Linux>,
    /// Where a child of a fork finds the world.
    node: Option<&'static forks::Node>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Before anything is taken apart.
        if let Some(node) = self.node {
            node.give_back();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("holder", &self.protocol.stop_turn.holder())
            .field("live", &self.protocol.live().count())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The calling thread's slot.
    pub(crate) fn slot_of(&self, tid: i32) -> Option<&'static MutatorSlot<Identity>> {
        let is_own =
            |s: &&MutatorSlot<Identity>| s.status.identity.tid.load(Ordering::Relaxed) == tid;
        self.protocol.live().find(is_own)
    }
}

/// A set of threads that are stopped together.
///
/// Clones are handles of the same world. Worlds know nothing of each other.
///
/// # Examples
///
/// ```
/// use safepoint::World;
///
/// let world = World::new();
/// let mut mutator = world.attach()?;
/// mutator.poll();
/// # Ok::<(), safepoint::AttachError>(())
/// ```
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) shared: Arc<Shared>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty, running world with the best fences that the system has.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Fences::probe())
    }

    /// A world that does without `membarrier(2)`, for a program that is going to forbid itself that
    /// call. Safe regions cost a fence at each end.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    #[must_use]
    pub fn fully_fenced() -> Self {
        Self::with(Fences::Full)
    }

    fn with(fences: Fences) -> Self {
        let protocol = Protocol::new(Linux::new(fences));
        let mut shared = Arc::new(Shared { protocol, node: None });
        let node = forks::enlist(&raw const shared.protocol);
        Arc::get_mut(&mut shared).expect("shown to nobody yet").node = Some(node);
        Self { shared }
    }

    /// Which fences the world uses.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn fences(&self) -> Fences {
        self.shared.protocol.system.fences
    }

    /// Sets how late mutators are brought to a safe point; replaces what was set before.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    ///
    /// # Safety
    ///
    /// With it, a thread that is a mutator of this world comes to a safe point of the world also where
    /// it does not say so to its [`Mutator`](crate::Mutator): it is stopped, or runs for-each closures,
    ///
    /// - at each instruction that the nudge may interrupt: for `preempt::Nudger`, of registered code;
    /// - in each call into the nudge's crate that polls or waits: for `preempt`, `poll`, the drop of
    ///   the last `Disabled`, `Task::enter`, `Task::blocking`, `suspend`, and what is done with a
    ///   `Suspended`.
    ///
    /// A borrow of the mutator does not keep these away. The caller promises that at none of them
    /// code on a mutator's thread relies on not being stopped: that it keeps no reference there to
    /// what a stop, or a for-each closure, may move or change, whatever the reference borrows from.
    ///
    /// # Examples
    ///
    /// ```compile_fail,E0133
    /// # struct Nobody;
    /// # impl threadreg::Nudge for Nobody {
    /// #     fn nudge(
    /// #         &self,
    /// #         _: threadreg::ThreadRef,
    /// #         _: threadreg::NudgeCall,
    /// #         _: &dyn Fn() -> bool,
    /// #     ) -> Result<(), threadreg::NudgeError> {
    /// #         Ok(())
    /// #     }
    /// #     fn settle(&self, _: std::time::Duration) -> bool {
    /// #         true
    /// #     }
    /// # }
    /// let world = safepoint::World::new();
    /// world.set_nudge(std::sync::Arc::new(Nobody));
    /// ```
    pub unsafe fn set_nudge(&self, nudge: Arc<dyn Nudge>) {
        self.shared.protocol.system.nudge.store(Some(Arc::new(nudge)));
    }
}
