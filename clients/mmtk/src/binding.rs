//! The traits of mmtk that have nothing to do with threads.

use mmtk::util::{Address, ObjectReference, VMWorkerThread};
use mmtk::vm::slot::{SimpleSlot, UnimplementedMemorySlice};
use mmtk::vm::{ReferenceGlue, RootsWorkFactory, Scanning, SlotVisitor, VMBinding};

use crate::coordination::Coordination;
use crate::object::{Model, Object};
use crate::thread::Thread;
use crate::vm::Vm;

impl VMBinding for Vm {
    type VMObjectModel = Model;
    type VMScanning = Scan;
    type VMCollection = Coordination;
    type VMActivePlan = Coordination;
    type VMReferenceGlue = Glue;
    type VMSlot = SimpleSlot;
    type VMMemorySlice = UnimplementedMemorySlice<SimpleSlot>;
    const MAX_ALIGNMENT: usize = 16;
    const USE_ALLOCATION_OFFSET: bool = false;
}

#[derive(Debug)]
pub(crate) struct Scan;

impl Scanning<Vm> for Scan {
    fn scan_object<V: SlotVisitor<SimpleSlot>>(
        _: VMWorkerThread,
        object: ObjectReference,
        visitor: &mut V,
    ) {
        // SAFETY: mmtk has met it, and the world is stopped.
        for field in &unsafe { Object::of(object) }.refs {
            visitor.visit_slot(SimpleSlot::from_address(Address::from_ref(field)));
        }
    }

    fn scan_roots_in_mutator_thread(
        _: VMWorkerThread,
        mutator: &'static mut mmtk::Mutator<Vm>,
        mut factory: impl RootsWorkFactory<SimpleSlot>,
    ) {
        // SAFETY: it is stopped, and none detaches in a stop.
        let thread = unsafe { Thread::of(mutator.mutator_tls) };
        let slot = |root| SimpleSlot::from_address(Address::from_ref(root));
        factory
            .create_process_roots_work(thread.roots.iter().map(|root| slot(&root.list)).collect());
    }

    fn scan_vm_specific_roots(_: VMWorkerThread, _: impl RootsWorkFactory<SimpleSlot>) {
        // All roots are threads'.
    }

    fn notify_initial_thread_scan_complete(_partial: bool, _: VMWorkerThread) {}

    fn supports_return_barrier() -> bool {
        false
    }

    fn prepare_for_roots_re_scanning() {
        unreachable!("for plans that scan twice")
    }
}

#[derive(Debug)]
pub(crate) struct Glue;

impl ReferenceGlue<Vm> for Glue {
    type FinalizableType = ObjectReference;

    fn set_referent(_: ObjectReference, _: ObjectReference) {
        unreachable!("no weak references")
    }

    fn get_referent(_: ObjectReference) -> Option<ObjectReference> {
        unreachable!("no weak references")
    }

    fn clear_referent(_: ObjectReference) {
        unreachable!("no weak references")
    }

    fn enqueue_references(_: &[ObjectReference], _: VMWorkerThread) {
        unreachable!("no weak references")
    }
}
