//! Data that an upper crate keeps on each thread's record, readable in a handler.

use core::any::TypeId;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::Ordering;

use crate::record::SLOTS;
use crate::thread_ref::ThreadRef;

/// The slots of a record; each belongs to one user.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotId {
    /// The `preempt` crate's.
    Preempt,
    /// The program's own.
    User,
}

const _: () = assert!(SlotId::User as usize + 1 == SLOTS);

/// A typed place on every thread's record.
///
/// The value is made once a record and never dropped. It stays when the thread is gone, and the
/// record's next thread finds it. So keep in it what may be used again, and the
/// [`generation`](ThreadRef::generation) that it was last set up for.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe) except [`get_or_init`](Self::get_or_init).
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use threadreg::{Slot, SlotId};
///
/// static VISITS: Slot<AtomicU32> = Slot::new(SlotId::User);
///
/// let me = threadreg::attach()?;
/// VISITS.get_or_init(me.thread(), || AtomicU32::new(0)).fetch_add(1, Ordering::Relaxed);
/// assert_eq!(VISITS.get(me.thread()).unwrap().load(Ordering::Relaxed), 1);
/// # Ok::<(), threadreg::AttachError>(())
/// ```
pub struct Slot<T> {
    id: SlotId,
    of: PhantomData<fn() -> T>,
}

/// What a slot's word points to. `repr(C)`: the type comes first, whatever the value is.
#[repr(C)]
struct Cell<T> {
    of: TypeId,
    value: T,
}

impl<T: Sync + 'static> Slot<T> {
    /// Makes a handle to a slot. All users of one [`SlotId`] in a process must agree on `T`.
    #[must_use]
    pub const fn new(id: SlotId) -> Self {
        Self { id, of: PhantomData }
    }

    /// The value on the record of `thread`, if one was made for this or an earlier thread of the
    /// record.
    ///
    /// It is also found when `thread` is gone, and when the record is another thread's by now. `None`
    /// also when the slot holds another type.
    #[inline]
    #[must_use]
    pub fn get(&self, thread: ThreadRef) -> Option<&'static T> {
        // Acquire: pairs with the exchange in `get_or_init`; the value is initialised.
        let cell = thread.record.slots[self.id as usize].load(Ordering::Acquire);
        if cell.is_null() {
            return None;
        }
        // SAFETY: only `get_or_init` sets the word, to a `Cell<U>` that is never freed, and a
        // `Cell<U>` begins with its `TypeId` whatever `U` is.
        let of = unsafe { cell.cast::<TypeId>().read() };
        if of != TypeId::of::<T>() {
            return None;
        }
        // SAFETY: it is a `Cell<T>`, as its type says, never freed and never borrowed mutably.
        let cell = unsafe { &*cell.cast::<Cell<T>>() };
        Some(&cell.value)
    }

    /// The value on the record of `thread`; made by `f` if there was none.
    ///
    /// When two threads make one at the same time, one of the values is dropped.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): it allocates.
    ///
    /// # Panics
    ///
    /// When the slot holds another type: two users disagree about the [`SlotId`].
    pub fn get_or_init(&self, thread: ThreadRef, f: impl FnOnce() -> T) -> &'static T {
        if let Some(value) = self.get(thread) {
            return value;
        }
        let new = Box::into_raw(Box::new(Cell { of: TypeId::of::<T>(), value: f() }));
        // Release: pairs with the load in `get`.
        let result = thread.record.slots[self.id as usize].compare_exchange(
            ptr::null_mut(),
            new.cast(),
            Ordering::Release,
            Ordering::Relaxed,
        );
        if result.is_err() {
            // SAFETY: `new` came from `Box::into_raw` above; no other thread knows it.
            drop(unsafe { Box::from_raw(new) });
        }
        match self.get(thread) {
            Some(value) => value,
            None => {
                panic!("slot {:?} holds another type than {}", self.id, core::any::type_name::<T>())
            }
        }
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot<{}>({:?})", core::any::type_name::<T>(), self.id)
    }
}
