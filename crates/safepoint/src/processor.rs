//! What a for-each closure gets.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use sigctx::sys;
use threadreg::ThreadRef;

use crate::edge::Identity;
use crate::protocol::Slot;

/// A mutator, while the closure of [`Mutator::for_each_processor`](crate::Mutator) runs for it. It
/// does not run user code, detach or leave its safe region meanwhile.
#[derive(Debug)]
pub struct Processor<'a> {
    slot: &'static Slot<Identity>,
    of_the_visit: PhantomData<&'a ()>,
}

impl Processor<'_> {
    pub(crate) fn new(slot: &'static Slot<Identity>) -> Self {
        Self { slot, of_the_visit: PhantomData }
    }

    /// Its place in the world: small, distinct among the mutators of a moment, used again later.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had this place, this one included. Index and generation together
    /// are this mutator's alone.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }

    /// Its thread.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: takes a lock.
    ///
    /// # Panics
    ///
    /// Never: a mutator has a thread until it has detached.
    #[must_use]
    pub fn thread(&self) -> ThreadRef {
        self.slot.told.identity.thread().expect("visited mutators are attached")
    }

    /// Whether the closure runs on the mutator's own thread.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.slot.told.identity.tid.load(Ordering::Relaxed) == sys::gettid()
    }
}
