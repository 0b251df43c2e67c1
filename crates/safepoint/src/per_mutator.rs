//! What a runtime has for each mutator, typed: its own thread has it while it runs, a stop's holder while it does not.
//!
//! | entry | who may touch it |
//! |---|---|
//! | of a slot whose mutator runs | the mutator's thread, while it borrows the mutator |
//! | of a slot for which a closure or an operation runs | the thread that runs it |
//! | any | the holder of the world's stop |
//!
//! The protocol keeps these three apart (I2, I6), and the borrows keep a thread from holding a reference at its own safe
//! points: these take `&mut Mutator`. That a mutator runs is looked at all the same: one whose stop was leaked does not.
//!
//! A value is not dropped when its mutator is detached: that may happen in a stop, whose holder has a reference to it. It
//! stays until the slot's next mutator brings its own, a stop's holder takes it out, or the table goes. In the child of a
//! fork the values of the parent's other threads may be half written: they are leaked.

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sigctx::fork;

use crate::for_each::Processor;
use crate::handle::{StopHandle, stopped_slots};
use crate::id::MutatorId;
use crate::mutator::Mutator;
use crate::protocol::{MutatorSlot, MutatorState};
use crate::raw::RawMutator;
use crate::stop::Stopped;
use crate::system::Identity;
use crate::table::Table;
use crate::world::{Shared, World};

/// A value for each mutator of a world, by the mutator.
///
/// [`Mutator::set_data`] keeps an address and asks for `unsafe` at each use. This asks for it where no borrow can be
/// had: deep inside an allocator, in a handler ([`PerMutator::as_ptr`]). The runtime keeps the table where it keeps its
/// world, and may have several.
///
/// A value outlives its mutator: until the next one in its place [inserts](PerMutator::insert), a stop's holder
/// [takes it out](PerMutator::take_detached), or the table is dropped.
///
/// # Forks
///
/// The child of a fork has the values of its own mutators, and of those that are no thread's. Values of other threads'
/// mutators are leaked. What it has is as it was at the fork, half written too: by the forking thread, if that forks while
/// it changes a value; or by the holder of a stop, or the requester of a for-each, on another thread, if the mutator is in
/// a safe region. Nothing tells the child. A thread that forks, and whose child goes on with values, forks as a running
/// mutator, or with the world stopped by itself, with no reference to a value in use.
///
/// # Signal safety
///
/// No method is async-signal-safe (AS-Unsafe heap), except [`PerMutator::as_ptr`] and [`PerMutator::current_ptr`].
///
/// # Examples
///
/// ```
/// use safepoint::{PerMutator, Reason, World};
/// use std::thread;
///
/// #[derive(Default)]
/// struct Allocator {
///     bytes: usize,
/// }
///
/// let world = World::new();
/// let allocators = PerMutator::<Allocator>::new(&world);
/// thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
///     scope.spawn(|| {
///         let mut mutator = world.attach().unwrap();
///         allocators.insert(&mut mutator, Allocator::default());
///         for _ in 0..100 {
///             allocators.get_mut(&mut mutator).unwrap().bytes += 16;
///             mutator.poll();
///         }
///     });
///     let mut stopped = world.stop_from_outside(Reason::GC)?;
///     for (id, allocator) in allocators.iter_mut(&mut stopped) {
///         println!("{id}: {} bytes", allocator.bytes);
///         allocator.bytes = 0;
///     }
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A reference is gone before the next safe point:
///
/// ```compile_fail,E0502
/// # let world = safepoint::World::new();
/// let cells = safepoint::PerMutator::<std::cell::Cell<u32>>::new(&world);
/// let mut mutator = world.attach().unwrap();
/// cells.insert(&mut mutator, std::cell::Cell::new(1));
/// let cell = cells.get(&mutator).unwrap();
/// mutator.poll();
/// cell.set(2);
/// ```
///
/// and before the world runs again:
///
/// ```compile_fail,E0505
/// # let world = safepoint::World::new();
/// let cells = safepoint::PerMutator::<u32>::new(&world);
/// let mut stopped = world.stop_from_outside("test").unwrap();
/// let first = cells.iter_mut(&mut stopped).next();
/// stopped.resume();
/// drop(first);
/// ```
///
/// A value has to be one that can be sent, since a stop's holder has it on another thread:
///
/// ```compile_fail,E0277
/// fn is_shared<T: Sync>() {}
/// is_shared::<safepoint::PerMutator<std::rc::Rc<u32>>>();
/// ```
#[doc(alias = "thread local")]
pub struct PerMutator<T> {
    world: World,
    table: Table<Entry<T>>,
    /// [`Table`] has the entries behind pointers.
    owns: PhantomData<UnsafeCell<T>>,
}

/// One slot's value.
struct Entry<T> {
    /// Whether there is one. Release after the rest: a handler of the same thread looks.
    is_full: AtomicBool,
    /// Which of the slot's mutators it is of. Relaxed, as `process`: the protocol hands the entry over.
    generation: AtomicU32,
    /// In which process it was put in.
    process: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            is_full: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            process: AtomicU32::new(0),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }
}

// SAFETY: one thread at a time touches the value: see the module's table. `PerMutator` is what hands it out.
unsafe impl<T: Send> Sync for Entry<T> {}

// SAFETY: as for `Entry`. `iter`, which shares values among threads, asks for more.
unsafe impl<T: Send> Sync for PerMutator<T> {}

impl<T> Entry<T> {
    fn is_of(&self, generation: u32) -> bool {
        self.is_full.load(Ordering::Acquire)
            && self.generation.load(Ordering::Relaxed) == generation
    }

    fn as_ptr(&self) -> *mut T {
        self.value.get().cast()
    }

    /// # Safety
    ///
    /// The calling thread may touch the entry, which is empty.
    unsafe fn put(&self, generation: u32, value: T) {
        // SAFETY: the caller's obligation.
        unsafe { self.as_ptr().write(value) };
        self.generation.store(generation, Ordering::Relaxed);
        self.process.store(fork::process(), Ordering::Relaxed);
        self.is_full.store(true, Ordering::Release);
    }

    /// Empties the entry, if there is something in it.
    ///
    /// # Safety
    ///
    /// The calling thread may touch the entry, and nothing refers to the value.
    unsafe fn take(&self) -> Option<Taken<T>> {
        if !self.is_full.load(Ordering::Relaxed) {
            return None;
        }
        self.is_full.store(false, Ordering::Release);
        // SAFETY: it was full, and is so no longer.
        let value = unsafe { self.as_ptr().read() };
        let is_whole = self.process.load(Ordering::Relaxed) == fork::process();
        Some(Taken { generation: self.generation.load(Ordering::Relaxed), value, is_whole })
    }
}

/// What was in an entry.
struct Taken<T> {
    generation: u32,
    value: T,
    /// It is not from before a fork.
    is_whole: bool,
}

impl<T> Taken<T> {
    /// The value of a mutator that is not the caller's. What a fork has copied may be half written.
    fn of_another(self) -> Option<T> {
        let value = ManuallyDrop::new(self.value);
        self.is_whole.then(|| ManuallyDrop::into_inner(value))
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        // SAFETY: by `&mut self` no other thread looks.
        drop(unsafe { self.take() }.and_then(Taken::of_another));
    }
}

impl<T> fmt::Debug for PerMutator<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerMutator").field("world", &self.world).finish_non_exhaustive()
    }
}

impl<T> PerMutator<T> {
    /// An empty table for the mutators of a world, which it keeps alive.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self { world: world.clone(), table: Table::new(), owns: PhantomData }
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Gives the mutator a value. Returns the one that it had.
    ///
    /// # Panics
    ///
    /// If the mutator is one of another world, or does not run since a stop of its thread was leaked.
    pub fn insert(&self, mutator: &mut Mutator, value: T) -> Option<T> {
        let slot = self.own(mutator);
        let entry = self.table.entry(slot.index());
        let generation = slot.generation();
        // SAFETY: the mutator runs, on this thread, and by its borrow nothing refers to the value.
        let before = unsafe { entry.take() };
        // SAFETY: as above, and it was emptied.
        unsafe { entry.put(generation, value) };
        let before = before?;
        if before.generation == generation {
            Some(before.value)
        } else {
            before.of_another().and(None)
        }
    }

    /// Takes the mutator's value away, if it has one.
    ///
    /// # Panics
    ///
    /// As [`PerMutator::insert`].
    pub fn remove(&self, mutator: &mut Mutator) -> Option<T> {
        let slot = self.own(mutator);
        let entry = self.table.get(slot.index())?;
        if !entry.is_of(slot.generation()) {
            return None;
        }
        // SAFETY: as in `insert`.
        Some(unsafe { entry.take() }?.value)
    }

    /// The mutator's value, if it has one.
    ///
    /// # Panics
    ///
    /// As [`PerMutator::insert`].
    #[must_use]
    pub fn get<'a>(&'a self, mutator: &'a Mutator) -> Option<&'a T> {
        let value = self.found(self.own(mutator))?;
        // SAFETY: the mutator runs, on this thread. By its borrow it comes to no safe point while the result lives; at
        // those of a nudge, or without a borrow, it is their caller that promises (`World::set_nudge`, `RawMutator`).
        Some(unsafe { &*value })
    }

    /// The mutator's value, if it has one, to be changed.
    ///
    /// # Panics
    ///
    /// As [`PerMutator::insert`].
    #[must_use]
    pub fn get_mut<'a>(&'a self, mutator: &'a mut Mutator) -> Option<&'a mut T> {
        let value = self.found(self.own(mutator))?;
        // SAFETY: as in `get`, and by the exclusive borrow there is no other reference.
        Some(unsafe { &mut *value })
    }

    /// The value of the mutator for which a for-each's closure, or a handshake's operation, runs.
    ///
    /// # Panics
    ///
    /// If it is one of another world.
    #[must_use]
    pub fn visited<'a>(&'a self, processor: &'a Processor<'_>) -> Option<&'a T> {
        let slot = processor.slot();
        assert!(self.is_mine(slot), "a mutator of another world is visited");
        let value = self.found(slot)?;
        // SAFETY: the mutator does nothing before the visit is over, no other visit is beside it, and the world is not
        // stopped.
        Some(unsafe { &*value })
    }

    /// The values of the mutators of the stopped world, with that of the mutator that stopped it.
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    pub fn iter<'a>(&'a self, stop: &'a impl InStop) -> impl Iterator<Item = (MutatorId, &'a T)>
    where
        T: Sync,
    {
        // SAFETY: no mutator runs before the stop is over, which is borrowed; others have it shared as well.
        self.stopped(stop).map(|(id, value)| (id, unsafe { &*value }))
    }

    /// The values of the mutators of the stopped world, to be changed.
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    pub fn iter_mut<'a>(
        &'a self,
        stop: &'a mut impl InStop,
    ) -> impl Iterator<Item = (MutatorId, &'a mut T)> {
        // SAFETY: no mutator runs before the stop is over, which is borrowed exclusively, and there is one stop of a
        // world at a time. A slot is met once.
        self.stopped(stop).map(|(id, value)| (id, unsafe { &mut *value }))
    }

    /// The value of one mutator of the stopped world.
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    #[must_use]
    pub fn get_stopped<'a>(
        &'a self,
        stop: &'a mut impl InStop,
        id: MutatorId,
    ) -> Option<&'a mut T> {
        let value = self.found_in(self.world_of(stop)?, id)?;
        // SAFETY: as in `iter_mut`.
        Some(unsafe { &mut *value })
    }

    /// Takes the values out that detached mutators have left: to drop them, or for what is still to be done with them. In a
    /// stop each value is found here or by [`PerMutator::iter_mut`].
    ///
    /// # Panics
    ///
    /// If another world is stopped.
    pub fn take_detached(&self, stop: &mut impl InStop) -> Vec<T> {
        let Some(shared) = self.world_of(stop) else { return Vec::new() };
        let is_left = |(index, entry): &(u32, &Entry<T>)| {
            let slot = shared.protocol.slot(*index);
            let attached = slot.filter(|slot| slot.status.identity.is_attached());
            !attached.is_some_and(|slot| entry.is_of(slot.generation()))
        };
        let left = self.table.iter().filter(is_left);
        // SAFETY: as in `iter_mut`, and nothing else refers to the value.
        left.filter_map(|(_, entry)| unsafe { entry.take() }?.of_another()).collect()
    }

    /// Where the value of a mutator of the calling thread is; null if it has none, or is one of another world.
    ///
    /// A reference made of this must not live where one of another method does that excludes it, nor at a safe point. The
    /// address is good until the value is replaced or removed.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    #[must_use]
    pub fn as_ptr(&self, mutator: RawMutator) -> *mut T {
        let slot = mutator.slot();
        if !self.is_mine(slot) {
            return ptr::null_mut();
        }
        self.found(slot).unwrap_or(ptr::null_mut())
    }

    /// As [`PerMutator::as_ptr`], of the calling thread; null if it is no mutator of the world.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe (AS-Safe).
    ///
    /// # Examples
    ///
    /// ```
    /// use safepoint::{PerMutator, World};
    ///
    /// let world = World::new();
    /// let allocated = PerMutator::<usize>::new(&world);
    /// let mut mutator = world.attach()?;
    /// allocated.insert(&mut mutator, 7);
    /// // Deep inside an allocator:
    /// let mine = allocated.current_ptr();
    /// // SAFETY: no reference to it is in use, and there is no safe point in between.
    /// unsafe { *mine += 1 };
    /// assert_eq!(allocated.get(&mutator), Some(&8));
    /// # Ok::<(), safepoint::AttachError>(())
    /// ```
    #[must_use]
    pub fn current_ptr(&self) -> *mut T {
        self.world.current().map_or(ptr::null_mut(), |mutator| self.as_ptr(mutator))
    }

    /// Whether the slot is, or was last, one of this world's.
    fn is_mine(&self, slot: &MutatorSlot<Identity>) -> bool {
        let world = slot.status.identity.world.load(Ordering::Relaxed);
        ptr::eq(world, &raw const self.world.shared.protocol)
    }

    /// The slot of a mutator of this thread, which may touch its entry.
    #[track_caller]
    fn own(&self, mutator: &Mutator) -> &'static MutatorSlot<Identity> {
        let slot = mutator.slot;
        assert!(self.is_mine(slot), "a mutator of another world");
        assert_eq!(slot.state(), MutatorState::Running, "a stop of this thread was leaked");
        slot
    }

    /// Where the value of the slot's mutator is.
    fn found(&self, slot: &MutatorSlot<Identity>) -> Option<*mut T> {
        let entry = self.table.get(slot.index())?;
        entry.is_of(slot.generation()).then(|| entry.as_ptr())
    }

    /// Where the value of a mutator is that is part of the world.
    fn found_in(&self, shared: &Shared, id: MutatorId) -> Option<*mut T> {
        let slot =
            shared.protocol.slot(id.0.index).filter(|slot| slot.status.identity.is_attached())?;
        if slot.current_use() == id.0 { self.found(slot) } else { None }
    }

    /// Where the values of the mutators of the stopped world are.
    fn stopped(&self, stop: &impl InStop) -> impl Iterator<Item = (MutatorId, *mut T)> {
        let shared = self.world_of(stop);
        let slots = shared.into_iter().flat_map(stopped_slots);
        slots.filter_map(|slot| Some((MutatorId(slot.current_use()), self.found(slot)?)))
    }

    /// The world that is stopped, which is this one. None in the child of a fork for a handle of the parent's.
    #[track_caller]
    fn world_of(&self, stop: &impl InStop) -> Option<&Shared> {
        let stopped = stop.stopped()?;
        assert!(ptr::eq(stopped, &raw const *self.world.shared), "another world is stopped");
        Some(&self.world.shared)
    }
}

/// A stopped world, for who has it: [`Stopped`] or [`StopHandle`].
pub trait InStop: sealed::InStop {}

impl InStop for Stopped<'_> {}
impl InStop for StopHandle {}

mod sealed {
    use crate::handle::StopHandle;
    use crate::stop::Stopped;
    use crate::world::Shared;

    /// # Safety
    ///
    /// Where `stopped` returns a world, that is stopped for as long as `self` is borrowed, and no two that can be
    /// borrowed exclusively at a time are of the same world. In the child of a fork the world is the child's copy, of
    /// which other threads' mutators are no part. What they, or a holder on another thread, had half written in it is
    /// not this trait's: `PerMutator` says who forks when.
    #[expect(unnameable_types, reason = "so that no other crate implements it")]
    pub unsafe trait InStop {
        #[expect(private_interfaces, reason = "the trait cannot be named outside of the crate")]
        fn stopped(&self) -> Option<&Shared>;
    }

    // SAFETY: the turn to stop the world is the thread's until it is dropped or handed over. A child has it if its thread
    // has: it cannot be sent.
    unsafe impl InStop for Stopped<'_> {
        #[expect(private_interfaces, reason = "the trait cannot be named outside of the crate")]
        fn stopped(&self) -> Option<&Shared> {
            Some(self.shared())
        }
    }

    // SAFETY: the turn is the handle's until it is dropped; in the child of a fork it has none.
    unsafe impl InStop for StopHandle {
        #[expect(private_interfaces, reason = "the trait cannot be named outside of the crate")]
        fn stopped(&self) -> Option<&Shared> {
            self.shared()
        }
    }
}
