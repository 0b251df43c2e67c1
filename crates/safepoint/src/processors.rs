//! Mutators that are no thread's own: a thread acquires one, runs with it, passes it on or gives it back. Go's Ps.
//!
//! Between two threads a processor is a [`SafeMutator`](crate::SafeMutator), so stops and for-eaches know nothing of all
//! this: they find it in its region, and serve it. Here is which thread gets it next.

mod guard;
mod set;

use core::cell::UnsafeCell;
use core::fmt;
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicI32, AtomicU32};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_utils::CachePadded;
use sigctx::fork;

pub use self::guard::{PassedProcessor, ProcessorGuard};
pub use self::set::{AcquireError, ProcessorId, ProcessorState};
use self::set::{Entry, Part, Set, may_have_one};
use crate::bound::Bound;
use crate::error::AttachError;
use crate::for_each::Processor;
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::per_mutator::{InStop, PerMutator};
use crate::retake::{Possession, Seen};
use crate::same::Same;
use crate::system;
use crate::waiters::Waiters;
use crate::world::World;

/// A set of processors: mutators of a world that threads acquire and give back, for a runtime with a scheduler of its
/// own. Each has a `T` of the runtime's: its run queue, its allocator. Clones are handles of the same set.
///
/// A for-each visits each as a [`Processor`], whichever thread has it. What that word means for a mutator of a thread's
/// own, a thread's part in the world, these are without a thread.
///
/// - An idle one is in a safe region: a stop does not wait for it, and a for-each's requester serves it.
/// - One that a thread [acquires](Processors::acquire) is that thread's mutator, until the guard is dropped.
/// - One can be [passed](ProcessorGuard::pass) from thread to thread, without being idle in between.
/// - One whose thread is in a [system call](ProcessorGuard::system_call) can be [retaken](Processors::retake).
///
/// A thread that has no processor is no mutator: no stop concerns it.
///
/// The number of processors is fixed. In the child of a fork those are there that the forking thread had, or none:
/// idle ones, and ones in system calls, which can be retaken. Those that other threads had are gone. What a processor has
/// is as [`PerMutator`] says of the values in a child.
///
/// # Aborts
///
/// When the last handle is dropped, and no guard is left, in a callback of a for-each, a handshake or a stop: the
/// mutators go with it, and the callback may be that of one of them, which would wait for itself. A closure that is sent
/// to others is to have a reference, not a handle.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe lock heap).
///
/// # Examples
///
/// ```
/// use safepoint::{Processors, World};
/// use std::num::NonZero;
/// use std::thread;
/// use std::time::Duration;
///
/// let world = World::new();
/// let two = NonZero::new(2).unwrap();
/// // Each with a run queue.
/// let processors = Processors::new(&world, two, |_| Vec::<u32>::new())?;
/// thread::scope(|scope| {
///     for task in 0..3 {
///         let processors = &processors;
///         scope.spawn(move || {
///             let soon = Some(Duration::from_secs(5));
///             let mut processor = processors.acquire(soon).unwrap();
///             processor.data_mut().push(task);
///             processor.poll();
///             // Another thread may retake it meanwhile.
///             let (_read, processor) = processor.system_call(soon, || std::io::empty());
///             println!("goes on with {}", processor.unwrap().processor_id());
///         });
///     }
/// });
/// let mut stopped = world.stop_from_outside("count")?;
/// let queued = processors.iter_mut(&mut stopped).map(|(_, queue)| queue.len()).sum::<usize>();
/// assert_eq!(queued, 3);
/// # stopped.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// Go 1.25 `runtime/proc.go`: `acquirep`, `releasep`, `handoffp`, `entersyscall`, `exitsyscall`, `retake`
#[doc(alias = "GOMAXPROCS")]
#[doc(alias = "P")]
pub struct Processors<T> {
    set: Arc<Set<T>>,
}

impl<T> Clone for Processors<T> {
    fn clone(&self) -> Self {
        Self { set: self.set.clone() }
    }
}

impl<T> fmt::Debug for Processors<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.states()).finish()
    }
}

impl<T: Send> Processors<T> {
    /// Makes `number` processors, all idle, each with what `data` returns for it.
    ///
    /// # Blocking
    ///
    /// While the world is stopped, for each.
    ///
    /// # Errors
    ///
    /// As [`World::attach`]: the calling thread attaches each, and must not be a mutator of the world.
    pub fn new(
        world: &World,
        number: NonZeroUsize,
        mut data: impl FnMut(ProcessorId) -> T,
    ) -> Result<Self, AttachError> {
        // Once for all.
        let _registration = Mutator::registered(&world.shared, system::tid())?;
        let parts = PerMutator::new(world);
        let number = u32::try_from(number.get()).unwrap_or(u32::MAX);
        let make = |id| {
            // Before: it is the caller's code, and need not poll.
            let part = Part { id, data: data(id) };
            let mut mutator = world.attach()?;
            parts.insert(&mut mutator, part);
            let entry = Entry {
                possession: Possession::new(),
                holder: AtomicI32::new(0),
                began: AtomicU32::new(0),
                slot: mutator.slot,
                same: Same::of(mutator.slot),
                mutator: UnsafeCell::new(Some(mutator.detach_from_thread())),
            };
            entry.possession.rest();
            Ok(CachePadded::new(entry))
        };
        let entries = (0..number).map(ProcessorId).map(make).collect::<Result<_, _>>()?;
        let (waiters, since) = (Waiters::new(), Instant::now());
        Ok(Self { set: Arc::new(Set { parts, entries, waiters, since }) })
    }

    /// What each processor of the stopped world has.
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    pub fn iter<'a>(&'a self, stop: &'a impl InStop) -> impl Iterator<Item = (ProcessorId, &'a T)>
    where
        T: Sync,
    {
        self.set.parts.iter(stop).map(|(_, part)| (part.id, &part.data))
    }

    /// What each processor of the stopped world has, to be changed.
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    pub fn iter_mut<'a>(
        &'a self,
        stop: &'a mut impl InStop,
    ) -> impl Iterator<Item = (ProcessorId, &'a mut T)> {
        self.set.parts.iter_mut(stop).map(|(_, part)| (part.id, &mut part.data))
    }

    /// What one processor of the stopped world has. None in the child of a fork, if its thread is not there.
    ///
    /// # Panics
    ///
    /// If another world is stopped, or the processor is of another set, which has more.
    #[must_use]
    pub fn get_stopped<'a>(
        &'a self,
        stop: &'a mut impl InStop,
        id: ProcessorId,
    ) -> Option<&'a mut T> {
        let mutator = MutatorId(self.set.entry(id).slot.current_use());
        let part = self.set.parts.get_stopped(stop, mutator)?;
        (part.id == id).then_some(&mut part.data)
    }

    /// The processor for which a for-each's closure, or a handshake's operation, runs, and what it has. None for a
    /// mutator that is not of this set.
    ///
    /// # Panics
    ///
    /// If it is one of another world.
    #[must_use]
    pub fn visited<'a>(&'a self, processor: &'a Processor<'_>) -> Option<(ProcessorId, &'a T)> {
        self.set.parts.visited(processor).map(|part| (part.id, &part.data))
    }
}

impl<T> Processors<T> {
    /// How many there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is one at least")]
    pub fn len(&self) -> usize {
        self.set.entries.len()
    }

    /// What each does. It may have changed before it is looked at.
    #[must_use]
    pub fn states(&self) -> Vec<(ProcessorId, ProcessorState)> {
        let ids = (0..).map(ProcessorId);
        ids.zip(self.set.entries.iter()).map(|(id, entry)| (id, self.set.state(entry))).collect()
    }

    /// How many threads wait for one. It may have changed before it is looked at.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.set.waiters.count(fork::process())
    }

    /// Makes an idle processor the calling thread's. If none is idle, waits until one is given back: threads get them in
    /// the order in which they came.
    ///
    /// # Blocking
    ///
    /// For at most `timeout`, for a processor and, with that in its hands, while the world is stopped; `None` is no
    /// limit. Then as [`SafeMutator::attach_within`](crate::SafeMutator::attach_within).
    ///
    /// # Errors
    ///
    /// [`AcquireError::Busy`] when the timeout is over and there is no processor: it says which threads have them.
    /// [`AcquireError::Attach`] as [`SafeMutator::attach_within`](crate::SafeMutator::attach_within): the world is still
    /// stopped, or the thread has a processor already, for example. What the thread was given goes on to the next.
    pub fn acquire(&self, timeout: Option<Duration>) -> Result<ProcessorGuard<T>, AcquireError> {
        let bound = Bound::begin(timeout);
        let registration = may_have_one(&self.set)?;
        let id = self.set.wait(None, bound)?;
        PassedProcessor { set: self.set.clone(), id }.attach_or_give(registration, bound)
    }

    /// Retakes the processors of threads that have been in a [system call](ProcessorGuard::system_call) for `after` or
    /// longer, and gives them to threads that wait, or makes them idle. Returns how many. The threads do not notice
    /// before they come back.
    ///
    /// A thread of the runtime calls this now and then: with zero for `after` if threads [wait](Processors::waiting),
    /// with more for calls to be cheap that are short.
    #[doc(alias = "sysmon")]
    pub fn retake(&self, after: Duration) -> usize {
        let mut retaken = 0;
        for (id, entry) in (0..).map(ProcessorId).zip(&self.set.entries) {
            let Seen::InCall(call) = entry.possession.look() else { continue };
            // It is this call's time if the call can be claimed.
            if self.set.lasts(entry) >= after && entry.possession.claim(call) {
                self.set.give(id);
                retaken += 1;
            }
        }
        retaken
    }
}
