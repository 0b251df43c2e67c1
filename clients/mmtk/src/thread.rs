//! The VM's threads: what it keeps of each, and how code on one gets at the heap.

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use mmtk::memory_manager;
use mmtk::util::{Address, ObjectReference, OpaquePointer, VMMutatorThread, VMThread};
use safepoint::{AttachError, Mutator, Region, StoppedMutator};

use crate::object::Object;
use crate::vm::{PATIENCE, Vm, mmtk, world};

/// A list of the thread's, and what it ought to be. Both change between two safe points, so a stop finds them
/// agree.
#[derive(Debug, Default)]
pub(crate) struct Root {
    pub(crate) list: Cell<Option<ObjectReference>>,
    /// How many objects the list has.
    pub(crate) objects: Cell<usize>,
    /// The sum of their values.
    pub(crate) sum: Cell<u64>,
}

/// What the VM keeps of a thread. Its own thread uses it while that runs, the collector while it is stopped.
#[derive(Debug)]
pub(crate) struct Thread {
    mmtk: Cell<Option<NonNull<mmtk::Mutator<Vm>>>>,
    /// All that the thread keeps alive: a shadow stack. A root stays at its address.
    pub(crate) roots: Box<[Root]>,
}

impl Thread {
    /// What mmtk calls the thread.
    fn tls(&self) -> VMMutatorThread {
        VMMutatorThread(VMThread(OpaquePointer::from_address(Address::from_ref(self))))
    }

    /// The thread that mmtk calls so.
    ///
    /// # Safety
    ///
    /// It is attached until the result is not used any more.
    pub(crate) unsafe fn of<'a>(tls: VMMutatorThread) -> &'a Self {
        // SAFETY: from `tls`, and the caller's obligation.
        unsafe { tls.0.0.to_address().as_ref() }
    }

    /// The thread of a stopped mutator; none if it only waits to become one.
    pub(crate) fn stopped<'a>(mutator: &StoppedMutator<'a>) -> Option<&'a Self> {
        // SAFETY: `Attached` has set it, and sets it back while the thread runs and before the thread's data goes. In
        // the stop it does not run.
        unsafe { mutator.data().cast::<Self>().as_ref() }
    }

    /// mmtk's part of the thread.
    ///
    /// # Safety
    ///
    /// The thread runs and this is it, or it is stopped and mmtk asks. It is attached until the result is not used any
    /// more.
    pub(crate) unsafe fn mmtk<'a>(&self) -> &'a mut mmtk::Mutator<Vm> {
        let mut mmtk = self.mmtk.get().expect("set when it attaches");
        // SAFETY: from a box that `Attached` frees, and the caller's obligation.
        unsafe { mmtk.as_mut() }
    }
}

/// The calling thread as one of the VM's, until it is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Before the data: it is detached first.
    mutator: Mutator,
    thread: Rc<Thread>,
}

impl Attached {
    /// With so many roots, all empty.
    pub(crate) fn new(roots: usize) -> Result<Self, AttachError> {
        let mutator = world().attach_within(PATIENCE)?;
        // From here on the thread runs: no stop is under way, and none comes about before it polls.
        let roots = (0..roots).map(|_| Root::default()).collect();
        let thread = Rc::new(Thread { mmtk: Cell::new(None), roots });
        let bound = memory_manager::bind_mutator(mmtk(), thread.tls());
        thread.mmtk.set(Some(NonNull::from(Box::leak(bound))));
        mutator.set_data(Rc::as_ptr(&thread).cast_mut().cast());
        Ok(Self { mutator, thread })
    }

    pub(crate) fn env(&mut self) -> Env<'_> {
        Env { mutator: &mut self.mutator, thread: &self.thread }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The thread runs, and does not poll in here: a stop finds all of this done or nothing.
        // SAFETY: it is this thread's, and attached.
        let mmtk = unsafe { self.thread.mmtk() };
        memory_manager::destroy_mutator(mmtk);
        self.mutator.set_data(ptr::null_mut());
        // SAFETY: from a box, and nobody finds it any more.
        drop(unsafe { Box::from_raw(mmtk) });
    }
}

/// The VM as code on one of its threads has it. What needs `&mut self` is a safe point: objects may move.
#[derive(Debug)]
pub(crate) struct Env<'a> {
    mutator: &'a mut Mutator,
    thread: &'a Thread,
}

impl Env<'_> {
    pub(crate) fn poll(&mut self) {
        self.mutator.poll();
    }

    /// Runs code that touches no objects: no stop waits for it.
    pub(crate) fn blocking<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.mutator.blocking(work)
    }

    /// Runs foreign code, which may call back.
    pub(crate) fn foreign<R>(&mut self, work: impl FnOnce(&mut Foreign<'_, '_>) -> R) -> R {
        let thread = self.thread;
        self.mutator.blocking_with(|region| work(&mut Foreign { region, thread }))
    }

    /// Makes an object and puts it in front of a root's list.
    pub(crate) fn push(&mut self, root: usize, value: u64) {
        self.poll();
        // SAFETY: this thread runs, and is attached as long as `self` lives.
        let object = Object::make(unsafe { self.thread.mmtk() }, value);
        // From here on nothing moves.
        let root = &self.thread.roots[root];
        let next = root.list.get();
        // SAFETY: it is in a root.
        let behind = next.and_then(|next| unsafe { Object::of(next) }.refs[0].get());
        // SAFETY: just made.
        let [first, second] = &unsafe { Object::of(object) }.refs;
        first.set(next);
        second.set(behind);
        root.list.set(Some(object));
        root.objects.update(|objects| objects + 1);
        root.sum.update(|sum| sum.wrapping_add(value));
    }

    /// Lets go of a root's list.
    pub(crate) fn clear(&mut self, root: usize) {
        let root = &self.thread.roots[root];
        root.list.take();
        root.objects.take();
        root.sum.take();
    }

    /// The values in a root's list, the last one that was pushed first.
    pub(crate) fn values(&self, root: usize) -> impl Iterator<Item = u64> {
        let mut at = self.thread.roots[root].list.get();
        std::iter::from_fn(move || {
            // SAFETY: in a root's list. There is no safe point while the result lives: it borrows `self`.
            let object = unsafe { Object::of(at?) };
            at = object.refs[0].get();
            Some(object.value)
        })
    }
}

/// Foreign code that a thread of the VM is in.
#[derive(Debug)]
pub(crate) struct Foreign<'a, 'm> {
    region: &'a mut Region<'m>,
    thread: &'a Thread,
}

impl Foreign<'_, '_> {
    /// Back into the VM.
    pub(crate) fn call_back<R>(&mut self, work: impl FnOnce(&mut Env<'_>) -> R) -> R {
        let thread = self.thread;
        self.region.reenter(|mutator| work(&mut Env { mutator, thread }))
    }
}
