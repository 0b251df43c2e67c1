//! Code without safe points, as types.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::panic::Location;

use crate::mutator::Mutator;
use crate::protocol::MutatorSlot;
use crate::raw::RawMutator;
use crate::system::Identity;

impl Mutator {
    /// Begins code without safe points, which ends when the result is dropped: no poll, no safe region and no stop can
    /// come there, since the mutator is borrowed, and no nudge stops the thread. For a few instructions that a collector
    /// must not see half done.
    ///
    /// A stop waits for the end of it. A mutator that is late there has
    /// [`StragglerCause::NoSafepoint`](crate::StragglerCause) with the place of this call.
    ///
    /// If the result is leaked, each later poll of the mutator that has something to do panics, until it is
    /// [taken off its thread](Mutator::detach_from_thread).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let atomic = mutator.no_safepoint();
    /// // Getters are still there.
    /// let at = atomic.index();
    /// drop(atomic);
    /// mutator.poll();
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    ///
    /// A safe point in it does not compile:
    ///
    /// ```compile_fail,E0499
    /// let mut mutator = safepoint::World::new().attach().unwrap();
    /// let atomic = mutator.no_safepoint();
    /// mutator.poll();
    /// drop(atomic);
    /// ```
    ///
    /// nor does one by way of it:
    ///
    /// ```compile_fail,E0596
    /// let mut mutator = safepoint::World::new().attach().unwrap();
    /// let atomic = mutator.no_safepoint();
    /// atomic.blocking(|| ());
    /// ```
    ///
    /// # References
    ///
    /// HotSpot's `NoSafepointVerifier` (`runtime/safepointVerifiers.hpp`), which checks at run time.
    #[doc(alias = "NoSafepointVerifier")]
    #[doc(alias = "DisallowGarbageCollection")]
    #[track_caller]
    pub fn no_safepoint(&mut self) -> NoSafepoint<'_> {
        self.slot.status.identity.forbidden.begin(Location::caller());
        NoSafepoint { mutator: self }
    }
}

impl RawMutator {
    /// As [`Mutator::no_safepoint`], where no borrow says so: a [`poll`](RawMutator::poll) that has something to do
    /// panics until the result is dropped. With debug assertions each does, and each
    /// [`enter`](RawMutator::enter). They nest, and may be dropped in any order.
    ///
    /// # Safety
    ///
    /// The mutator runs, and is this thread's until the result is dropped: neither detached nor taken off its thread.
    #[track_caller]
    pub unsafe fn no_safepoint(self) -> RawNoSafepoint {
        self.slot.status.identity.forbidden.begin(Location::caller());
        RawNoSafepoint { slot: self.slot, not_send: PhantomData }
    }
}

/// Code without safe points; from [`Mutator::no_safepoint`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[must_use = "safe points are allowed again when this is dropped"]
pub struct NoSafepoint<'a> {
    mutator: &'a Mutator,
}

impl fmt::Debug for NoSafepoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.slot.status.identity.forbidden.at();
        f.debug_struct("NoSafepoint").field("at", &at).finish_non_exhaustive()
    }
}

impl Deref for NoSafepoint<'_> {
    type Target = Mutator;

    fn deref(&self) -> &Mutator {
        self.mutator
    }
}

impl Drop for NoSafepoint<'_> {
    fn drop(&mut self) {
        self.slot.status.identity.forbidden.end();
    }
}

/// Code without safe points; from [`RawMutator::no_safepoint`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[must_use = "safe points are allowed again when this is dropped"]
pub struct RawNoSafepoint {
    slot: &'static MutatorSlot<Identity>,
    /// The mutator is this thread's.
    not_send: PhantomData<*mut ()>,
}

impl fmt::Debug for RawNoSafepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.slot.status.identity.forbidden.at();
        f.debug_struct("RawNoSafepoint").field("at", &at).finish_non_exhaustive()
    }
}

impl Drop for RawNoSafepoint {
    fn drop(&mut self) {
        self.slot.status.identity.forbidden.end();
    }
}
