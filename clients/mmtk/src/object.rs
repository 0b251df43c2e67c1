//! Objects, and what mmtk has to know of them.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use mmtk::util::copy::{CopySemantics, GCWorkerCopyContext};
use mmtk::util::{Address, ObjectReference};
use mmtk::vm::{
    ObjectModel, VMGlobalLogBitSpec, VMLocalForwardingBitsSpec, VMLocalForwardingPointerSpec,
    VMLocalLOSMarkNurserySpec, VMLocalMarkBitSpec,
};
use mmtk::{AllocationSemantics, Mutator, memory_manager};

use crate::vm::{Vm, counts};

/// A value and two references.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Object {
    /// [`HEADER`]; while it is moved, in the old place, the address of the new one.
    header: usize,
    pub(crate) value: u64,
    /// The next in its list, and the one behind that.
    pub(crate) refs: [Cell<Option<ObjectReference>>; 2],
}

const HEADER: usize = 0x5afe_0b1e_c700;
const SIZE: usize = size_of::<Object>();
const ALIGN: usize = align_of::<Object>();

impl Object {
    /// Makes an object without references.
    ///
    /// A safe point: other threads may collect meanwhile, and objects move.
    pub(crate) fn make(mutator: &mut Mutator<Vm>, value: u64) -> ObjectReference {
        let semantics = AllocationSemantics::Default;
        let at = memory_manager::alloc(mutator, SIZE, ALIGN, 0, semantics);
        let object = Self { header: HEADER, value, refs: [const { Cell::new(None) }; 2] };
        // SAFETY: fresh memory of this size and alignment, which nobody else knows. There is some: without, the
        // process has ended.
        unsafe { at.to_mut_ptr::<Self>().write(object) };
        let reference = ObjectReference::from_raw_address(at).expect("aligned, and not null");
        memory_manager::post_alloc(mutator, reference, SIZE, semantics);
        reference
    }

    /// The object.
    ///
    /// # Safety
    ///
    /// It is one, and the result is not used beyond the next safe point of the thread, or the end of the stop.
    pub(crate) unsafe fn of<'a>(reference: ObjectReference) -> &'a Self {
        // SAFETY: the caller's obligation.
        unsafe { &*reference.to_raw_address().to_ptr() }
    }

    /// Whether it is one by its looks.
    pub(crate) fn is_sound(&self) -> bool {
        self.header == HEADER
    }
}

#[derive(Debug)]
pub(crate) struct Model;

impl ObjectModel<Vm> for Model {
    const GLOBAL_LOG_BIT_SPEC: VMGlobalLogBitSpec = VMGlobalLogBitSpec::side_first();
    const LOCAL_FORWARDING_POINTER_SPEC: VMLocalForwardingPointerSpec =
        VMLocalForwardingPointerSpec::in_header(0);
    const LOCAL_FORWARDING_BITS_SPEC: VMLocalForwardingBitsSpec =
        VMLocalForwardingBitsSpec::side_first();
    const LOCAL_MARK_BIT_SPEC: VMLocalMarkBitSpec =
        VMLocalMarkBitSpec::side_after(Self::LOCAL_FORWARDING_BITS_SPEC.as_spec());
    const LOCAL_LOS_MARK_NURSERY_SPEC: VMLocalLOSMarkNurserySpec =
        VMLocalLOSMarkNurserySpec::side_after(Self::LOCAL_MARK_BIT_SPEC.as_spec());
    const OBJECT_REF_OFFSET_LOWER_BOUND: isize = 0;
    const UNIFIED_OBJECT_REFERENCE_ADDRESS: bool = true;

    fn copy(
        from: ObjectReference,
        semantics: CopySemantics,
        context: &mut GCWorkerCopyContext<Vm>,
    ) -> ObjectReference {
        let to = context.alloc_copy(from, SIZE, ALIGN, 0, semantics);
        let old = from.to_raw_address().to_ptr::<Object>();
        // SAFETY: one object, to memory of its own; the world is stopped, and one worker moves an object.
        unsafe { ptr::copy_nonoverlapping(old, to.to_mut_ptr(), 1) };
        let to = ObjectReference::from_raw_address(to).expect("aligned, and not null");
        context.post_copy(to, SIZE, semantics);
        counts().moved.fetch_add(1, Relaxed);
        to
    }

    fn get_current_size(_: ObjectReference) -> usize {
        SIZE
    }

    fn get_size_when_copied(_: ObjectReference) -> usize {
        SIZE
    }

    fn get_align_when_copied(_: ObjectReference) -> usize {
        ALIGN
    }

    fn get_align_offset_when_copied(_: ObjectReference) -> usize {
        0
    }

    fn ref_to_object_start(object: ObjectReference) -> Address {
        object.to_raw_address()
    }

    fn ref_to_header(object: ObjectReference) -> Address {
        object.to_raw_address()
    }

    fn dump_object(object: ObjectReference) {
        eprintln!("{object}");
    }

    fn copy_to(_: ObjectReference, _: ObjectReference, _: Address) -> Address {
        unreachable!("for plans that slide objects")
    }

    fn get_reference_when_copied_to(_: ObjectReference, _: Address) -> ObjectReference {
        unreachable!("for plans that slide objects")
    }

    fn get_type_descriptor(_: ObjectReference) -> &'static [i8] {
        unreachable!("for Java")
    }
}
