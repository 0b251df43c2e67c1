//! The stopped mutators, shared out among the threads that work in the stop.

use core::iter;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::handle::{StopHandle, StoppedMutator};
use crate::stop::Stopped;

impl Stopped<'_> {
    /// The stopped mutators, for several threads that share them out among themselves: each is had by one.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Reason, World};
    ///
    /// let world = World::new();
    /// let stopped = world.stop_from_outside(Reason::GC)?;
    /// let mutators = stopped.par_mutators();
    /// std::thread::scope(|scope| {
    ///     for _ in 0..2 {
    ///         scope.spawn(|| {
    ///             for mutator in mutators.share() {
    ///                 println!("scans the roots of {:?}", mutator.id());
    ///             }
    ///         });
    ///     }
    /// });
    /// # Ok::<(), safepoint::StopError>(())
    /// ```
    #[must_use]
    pub fn par_mutators(&self) -> ParMutators<'_> {
        ParMutators::new(self.mutators())
    }
}

impl StopHandle {
    /// As [`Stopped::par_mutators`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe lock heap).
    #[must_use]
    pub fn par_mutators(&self) -> ParMutators<'_> {
        ParMutators::new(self.mutators())
    }
}

/// The mutators of a stopped world, shared out; from [`Stopped::par_mutators`].
///
/// Any number of threads [`share`](ParMutators::share) them at once. A library that splits work by itself, such as rayon,
/// takes [`ParMutators::as_slice`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
pub struct ParMutators<'a> {
    all: Box<[StoppedMutator<'a>]>,
    next: AtomicUsize,
}

impl<'a> ParMutators<'a> {
    fn new(mutators: impl Iterator<Item = StoppedMutator<'a>>) -> Self {
        Self { all: mutators.collect(), next: AtomicUsize::new(0) }
    }

    /// Those that no thread has had yet, for the calling one.
    pub fn share(&self) -> impl Iterator<Item = StoppedMutator<'a>> {
        let next = || {
            // Relaxed: threads see the mutators by what gave them the reference. Looked at first, so that the number
            // does not come round however often it is asked for.
            if self.next.load(Ordering::Relaxed) >= self.all.len() {
                return None;
            }
            self.all.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
        };
        iter::from_fn(next)
    }

    /// All of them, whether a thread has had them or not.
    #[must_use]
    pub fn as_slice(&self) -> &[StoppedMutator<'a>] {
        &self.all
    }
}
