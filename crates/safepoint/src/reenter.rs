//! Safe regions that their code can leave for a while: callbacks from foreign code.

use crate::abort::abort_with;
use crate::mutator::Mutator;
use crate::region::{OwnStop, leave};
use crate::roots::{self, Place, Stand, stand_in_region};
use crate::same::Same;

impl Mutator {
    /// Runs `work` in a safe region as [`Mutator::blocking`] does, and lets it come back into the world for a while:
    /// foreign code that calls back into the runtime does that by [`Region::reenter`].
    ///
    /// # Blocking
    ///
    /// # Panics
    ///
    /// # Aborts
    ///
    /// As [`Mutator::blocking`].
    ///
    /// # Examples
    ///
    /// ```
    /// let mut mutator = safepoint::World::new().attach()?;
    /// let mut heap = vec![1, 2, 3];
    /// // Foreign code, with a callback that touches the heap.
    /// let sorted = mutator.blocking_with(|region| {
    ///     region.reenter(|mutator| {
    ///         heap.push(0);
    ///         mutator.poll();
    ///     });
    ///     true
    /// });
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    pub fn blocking_with<R>(&mut self, work: impl FnOnce(&mut Region<'_>) -> R) -> R {
        let mut stand = None;
        // In this frame, which is there for as long as the region.
        let stand = stand_in_region!(self.slot, stand);
        let same = Same::of(self.slot);
        let mut region = Region { mutator: self, same, stand, is_entered: false };
        region.enter();
        let result = work(&mut region);
        // As in `blocking`.
        region.leave(OwnStop::Panic);
        result
    }
}

/// A safe region that its code can leave for a while; from [`Mutator::blocking_with`].
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock).
///
/// # Examples
///
/// The mutator that comes back is not to be had after the callback:
///
/// ```compile_fail
/// let mut mutator = safepoint::World::new().attach().unwrap();
/// mutator.blocking_with(|region| {
///     let mut kept = None;
///     region.reenter(|mutator| kept = Some(mutator));
///     kept.unwrap().poll();
/// });
/// ```
#[derive(Debug)]
pub struct Region<'a> {
    mutator: &'a mut Mutator,
    /// Which one it is.
    same: Same,
    /// Where it stands, if its world wants to know.
    stand: Option<&'a Stand>,
    is_entered: bool,
}

impl Region<'_> {
    /// Leaves the region, runs `work` with the mutator, and enters the region again. In between the thread is a
    /// running mutator: a stop waits for it, and it may enter regions of its own, as deep as one likes.
    ///
    /// # Blocking
    ///
    /// Waits first, as at the end of [`Mutator::blocking`].
    ///
    /// # Panics
    ///
    /// If `work` does, in the region again. If the thread has the world stopped.
    ///
    /// # Aborts
    ///
    /// If `work` has put another mutator in the place of this one, as by `mem::swap`: the region is this one's.
    pub fn reenter<R>(&mut self, work: impl FnOnce(&mut Mutator) -> R) -> R {
        self.leave(OwnStop::Panic);
        let again = Again(self);
        work(again.0.mutator)
    }

    fn enter(&mut self) {
        // Where it stands was written for this one, and is read as that of whichever enters.
        if !self.same.is(self.mutator.slot) {
            abort_with(format_args!(
                "thread {} enters its region again with another mutator",
                self.mutator.tid()
            ));
        }
        let Mutator { shared, slot, .. } = &*self.mutator;
        roots::enter(&shared.protocol, slot, self.stand);
        self.is_entered = true;
    }

    fn leave(&mut self, own_stop: OwnStop) {
        let Mutator { shared, slot, .. } = &*self.mutator;
        leave(shared, slot, own_stop);
        if let Some(stand) = self.stand {
            stand.left(&shared.protocol, slot);
        }
        self.is_entered = false;
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // Else a panic came from `reenter`, in the region, or the region has ended.
        if self.is_entered {
            self.leave(OwnStop::Abort);
        }
    }
}

/// Enters the region again, unwinding or not.
struct Again<'a, 'b>(&'a mut Region<'b>);

impl Drop for Again<'_, '_> {
    fn drop(&mut self) {
        self.0.enter();
    }
}
