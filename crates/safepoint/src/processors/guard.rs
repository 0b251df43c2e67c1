//! A processor as the thread has it, and on its way from one thread to another.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use threadreg::Attached;

use super::set::{AcquireError, ProcessorId, Set, may_have_one};
use crate::abort::abort_with;
use crate::bound::Bound;
use crate::mutator::Mutator;
use crate::retake::Call;
use crate::system;

/// A processor that the calling thread has, and the thread's [`Mutator`]. Dropping it gives the processor back.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock heap).
///
/// # Examples
///
/// It stays on its thread:
///
/// ```compile_fail,E0277
/// let one = std::num::NonZero::new(1).unwrap();
/// let processors = safepoint::Processors::new(&safepoint::World::new(), one, |_| ()).unwrap();
/// let processor = processors.acquire(None).unwrap();
/// std::thread::spawn(move || drop(processor));
/// ```
#[must_use = "a processor that is dropped is given back"]
pub struct ProcessorGuard<T> {
    mutator: ManuallyDrop<Mutator>,
    id: ProcessorId,
    set: Arc<Set<T>>,
    /// The thread stays registered in a system call.
    registration: Attached,
}

impl<T> fmt::Debug for ProcessorGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessorGuard")
            .field("id", &self.id)
            .field("mutator", &self.mutator)
            .finish_non_exhaustive()
    }
}

impl<T> Deref for ProcessorGuard<T> {
    type Target = Mutator;

    fn deref(&self) -> &Mutator {
        &self.mutator
    }
}

impl<T> DerefMut for ProcessorGuard<T> {
    fn deref_mut(&mut self) -> &mut Mutator {
        &mut self.mutator
    }
}

impl<T: Send> ProcessorGuard<T> {
    /// What the processor has of the runtime's.
    ///
    /// # Panics
    ///
    /// If the mutator was swapped with that of another guard, or a stop of it was leaked.
    #[must_use]
    pub fn data(&self) -> &T {
        &self.set.parts.get(&self.mutator).expect("a mutator of the set").data
    }

    /// What the processor has of the runtime's, to be changed.
    ///
    /// # Panics
    ///
    /// As [`ProcessorGuard::data`](crate::ProcessorGuard::data).
    #[must_use]
    pub fn data_mut(&mut self) -> &mut T {
        &mut self.set.parts.get_mut(&mut self.mutator).expect("a mutator of the set").data
    }
}

impl<T> ProcessorGuard<T> {
    /// Which processor it is.
    #[must_use]
    pub fn processor_id(&self) -> ProcessorId {
        self.id
    }

    /// Runs `work`, such as a system call that may take long, without the processor, which
    /// [`Processors::retake`](crate::Processors::retake) gives to another thread meanwhile. Returns what `work` returned,
    /// and the processor: the same if no thread has it, or another one.
    ///
    /// In [`Mutator::blocking`] a thread keeps its processor. That takes a few nanoseconds, and this some hundred.
    ///
    /// While `work` runs the thread is no mutator: a stop does not know its stack, so roots that it keeps there are to be
    /// found elsewhere, as those of a green thread that waits. To `preempt` it runs: for its task to count as blocked, use
    /// `Task::blocking` inside.
    ///
    /// # Blocking
    ///
    /// After `work`, as [`Processors::acquire`](crate::Processors::acquire) with this timeout, which begins then. Nothing
    /// is waited for if the processor was not retaken, but for the end of a stop.
    ///
    /// # Errors
    ///
    /// As [`Processors::acquire`](crate::Processors::acquire). The thread has no processor then.
    ///
    /// # Panics
    ///
    /// If `work` does. The processor is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Processors, World};
    /// use std::num::NonZero;
    /// use std::time::Duration;
    ///
    /// let processors = Processors::new(&World::new(), NonZero::<usize>::MIN, |_| ())?;
    /// let processor = processors.acquire(None)?;
    /// let (retaken, processor) = processor.system_call(None, || processors.retake(Duration::ZERO));
    /// assert_eq!(retaken, 1);
    /// // Nobody wanted it.
    /// assert_eq!(processor?.processor_id().index(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "entersyscall")]
    #[doc(alias = "exitsyscall")]
    pub fn system_call<R>(
        self,
        timeout: Option<Duration>,
        work: impl FnOnce() -> R,
    ) -> (R, Result<Self, AcquireError>) {
        let Parts { set, id, registration } = self.give_up();
        let entry = set.entry(id);
        // Rounded up.
        entry.began.store(set.now().wrapping_add(1), Ordering::Relaxed);
        let call = entry.possession.begin_call();
        let unwinds = Unwinds { set: &set, id, call };
        let result = work();
        let _returned = ManuallyDrop::new(unwinds);
        let bound = Bound::begin(timeout);
        let id = if entry.possession.claim(call) { Ok(id) } else { set.wait(Some(id), bound) };
        (result, id.and_then(|id| PassedProcessor { set, id }.attach_or_give(registration, bound)))
    }

    /// Gives the processor to whichever thread [attaches](PassedProcessor::attach) the result. No thread that waits gets
    /// it in between, nor does a stop wait for it.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::detach_from_thread`].
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{Processors, World};
    /// use std::num::NonZero;
    ///
    /// let processors = Processors::new(&World::new(), NonZero::<usize>::MIN, |_| 0)?;
    /// let mut processor = processors.acquire(None)?;
    /// *processor.data_mut() += 1;
    /// let passed = processor.pass();
    /// std::thread::spawn(move || {
    ///     let mut processor = passed.attach().expect("a thread of its own");
    ///     assert_eq!(*processor.data(), 1);
    ///     processor.poll();
    /// })
    /// .join()
    /// .unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "handoffp")]
    pub fn pass(self) -> PassedProcessor<T> {
        let Parts { set, id, .. } = self.give_up();
        set.entry(id).holder.store(0, Ordering::Relaxed);
        PassedProcessor { set, id }
    }

    /// Gives the processor back, as dropping this does.
    ///
    /// # Blocking
    ///
    /// As [`Mutator::detach_from_thread`].
    pub fn release(self) {
        drop(self);
    }

    /// The mutator is safe and in its entry, and the processor is held still.
    fn give_up(self) -> Parts<T> {
        let mut this = ManuallyDrop::new(self);
        this.put_mutator();
        // SAFETY: read once, and not dropped.
        let registration = unsafe { ptr::read(&raw const this.registration) };
        // SAFETY: read once, and not dropped.
        let set = unsafe { ptr::read(&raw const this.set) };
        Parts { set, id: this.id, registration }
    }

    /// Once, as the last thing that is done with the mutator.
    ///
    /// # Aborts
    ///
    /// If the mutator is another one: that of another guard, which may be of another world, or one that the thread has
    /// attached in its place, for which the processor has nothing.
    fn put_mutator(&mut self) {
        let entry = self.set.entry(self.id);
        if !entry.same.is(self.mutator.slot) {
            abort_with(format_args!("{} is given back with another's mutator", self.id));
        }
        // SAFETY: its last use.
        let mutator = unsafe { ManuallyDrop::take(&mut self.mutator) };
        let safe = mutator.detach_from_thread();
        // SAFETY: R1: held by the guard.
        unsafe { *entry.mutator.get() = Some(safe) };
    }
}

impl<T> Drop for ProcessorGuard<T> {
    fn drop(&mut self) {
        self.put_mutator();
        self.set.give(self.id);
    }
}

/// A guard whose mutator is in its entry.
struct Parts<T> {
    set: Arc<Set<T>>,
    id: ProcessorId,
    registration: Attached,
}

/// Gives back the processor of a call that panics, if it was not retaken.
struct Unwinds<'a, T> {
    set: &'a Set<T>,
    id: ProcessorId,
    call: Call,
}

impl<T> Drop for Unwinds<'_, T> {
    fn drop(&mut self) {
        if self.set.entry(self.id).possession.claim(self.call) {
            self.set.give(self.id);
        }
    }
}

/// A processor on its way from one thread to another; from [`ProcessorGuard::pass`]. Dropping it gives it back.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock heap).
#[must_use = "a processor that is dropped is given back"]
pub struct PassedProcessor<T> {
    pub(crate) set: Arc<Set<T>>,
    pub(crate) id: ProcessorId,
}

impl<T> fmt::Debug for PassedProcessor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassedProcessor").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<T> PassedProcessor<T> {
    /// Which processor it is.
    #[must_use]
    pub fn processor_id(&self) -> ProcessorId {
        self.id
    }

    /// Makes the processor the calling thread's.
    ///
    /// # Blocking
    ///
    /// While the world is stopped, as [`SafeMutator::attach`](crate::SafeMutator::attach), without a limit.
    ///
    /// # Errors
    ///
    /// As [`SafeMutator::attach`](crate::SafeMutator::attach). The processor comes back with the error.
    pub fn attach(self) -> Result<ProcessorGuard<T>, (Self, AcquireError)> {
        self.attach_by(Bound::begin(None))
    }

    /// Makes the processor the calling thread's, if the world runs before `timeout` is over.
    ///
    /// # Blocking
    ///
    /// As [`SafeMutator::attach_within`](crate::SafeMutator::attach_within).
    ///
    /// # Errors
    ///
    /// As [`SafeMutator::attach_within`](crate::SafeMutator::attach_within). The processor comes back with the error.
    pub fn attach_within(
        self,
        timeout: Duration,
    ) -> Result<ProcessorGuard<T>, (Self, AcquireError)> {
        self.attach_by(Bound::begin(Some(timeout)))
    }

    fn attach_by(self, bound: Bound) -> Result<ProcessorGuard<T>, (Self, AcquireError)> {
        match may_have_one(&self.set) {
            Ok(registration) => self.attach_registered(registration, bound),
            Err(error) => Err((self, error)),
        }
    }

    /// For a thread that has waited for the processor: gives it to the next if it cannot have it.
    pub(crate) fn attach_or_give(
        self,
        registration: Attached,
        bound: Bound,
    ) -> Result<ProcessorGuard<T>, AcquireError> {
        self.attach_registered(registration, bound).map_err(|(_given, error)| error)
    }

    fn attach_registered(
        self,
        registration: Attached,
        bound: Bound,
    ) -> Result<ProcessorGuard<T>, (Self, AcquireError)> {
        let entry = self.set.entry(self.id);
        entry.holder.store(system::tid(), Ordering::Relaxed);
        // SAFETY: R1: held, in passing.
        let mutator = unsafe { &mut *entry.mutator.get() };
        let safe = mutator.take().expect("a processor in passing is in its entry");
        match safe.attach_by(bound) {
            Ok(attached) => {
                let this = ManuallyDrop::new(self);
                // SAFETY: read once, and not dropped.
                let set = unsafe { ptr::read(&raw const this.set) };
                let (mutator, id) = (ManuallyDrop::new(attached), this.id);
                Ok(ProcessorGuard { mutator, id, set, registration })
            }
            Err((safe, error)) => {
                *mutator = Some(safe);
                entry.holder.store(0, Ordering::Relaxed);
                Err((self, AcquireError::Attach { error }))
            }
        }
    }
}

impl<T> Drop for PassedProcessor<T> {
    fn drop(&mut self) {
        self.set.give(self.id);
    }
}
