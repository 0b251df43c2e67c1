//! Which mutator is meant, for as long as the world lives.

use core::fmt;

use crate::protocol::SlotUse;

/// A mutator of a world, by its place there. No other mutator of that world ever has the same id, but for one that
/// comes 2³² mutators later to the same place. It keeps nothing alive, and stands for nobody when the mutator is
/// detached. In another world it stands for another mutator.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MutatorId(pub(crate) SlotUse);

impl MutatorId {
    /// The mutator's place in the world: a small number, distinct among the mutators of a moment, and used again
    /// later.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.index as usize
    }

    /// How many mutators have had that place, this one included.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.0.generation
    }
}

impl fmt::Debug for MutatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutatorId")
            .field("index", &self.index())
            .field("generation", &self.generation())
            .finish()
    }
}

impl fmt::Display for MutatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.index, self.0.generation)
    }
}
