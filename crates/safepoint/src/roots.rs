//! Where a mutator stands still, and what a conservative scanner has to read of it.
//!
//! A mutator that is about to stand still writes the registers that its callers have something in to a [`Stand`],
//! notes its stack pointer there, and has its slot point to it (I10 of the protocol). The stand is on the stack of the
//! function that stands still, or is kept by what outlives that. [`callee_saved`] is called by that function itself,
//! see there: hence [`stand_here`], a macro.
//!
//! Stands are set and taken back last in, first out. So code that runs while a mutator goes on for a moment, such as
//! a for-each's closure in a poll, or a hook, may stand still on its own.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::Ordering;

use sigctx::Registers;
use sigctx::inject::Frame;
use sigctx::spill::CalleeSaved;

use crate::protocol::{MutatorSlot, MutatorState, Protocol, Stance};
use crate::system::{Identity, Linux, Moment};

/// Where in its code a mutator stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// It attaches, or detaches: it has touched nothing that a stop protects, or is done with it, and has no roots.
    Outside,
    /// At a poll; or at a poll of the crate that nudges, which a nudge has left a call for.
    Poll,
    /// At an instruction where a nudge has interrupted it.
    Interrupted,
    /// In a safe region. Its code runs on, and touches nothing that a stop protects.
    Region,
    /// It has asked for a stop or a for-each itself, and waits for its turn, or for others.
    Request,
}

/// Whom a world tells that its mutators stand still and go on: see
/// [`WorldOptions::hooks`](crate::WorldOptions::hooks).
///
/// Both are called on the mutator's own thread, which counts as running: a stop waits for it. Or it has the world
/// stopped itself: then it goes on when it has the stop, and parks again when it ends that. They come in pairs, also
/// where nothing stops the mutator in the end. Pairs may be inside of pairs, where a for-each's closure or a callback
/// runs between the two.
///
/// A hook must not panic: the process aborts. It must not wait for a mutator of the world.
pub trait Hooks: Send + Sync {
    /// The mutator is about to stand still. It has said where its roots are, and does not count as safe yet.
    fn parking(&self, at: &Parked<'_>) {
        let _ = at;
    }

    /// The mutator is about to go on with its code, where it has stood still. No stop is on, but one of its own.
    fn running(&self, at: &Parked<'_>) {
        let _ = at;
    }
}

/// What a nudge has interrupted.
#[derive(Debug)]
pub(crate) struct Interrupted {
    registers: Registers,
    saved: Range<usize>,
    red_zone: Range<usize>,
}

impl Interrupted {
    pub(crate) fn of(frame: &Frame<'_>) -> Self {
        let (registers, saved) = (frame.registers(), frame.saved());
        Self { registers, saved, red_zone: frame.red_zone() }
    }
}

/// Where a mutator stands. It does not move while a slot points to it.
#[derive(Debug)]
pub(crate) struct Stand {
    saved: CalleeSaved,
    sp: usize,
    /// The stack that it stands on.
    stack: Range<usize>,
    place: Place,
    interrupted: *const Interrupted,
    /// What the slot pointed to before.
    before: Cell<*mut ()>,
}

impl Stand {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            saved: CalleeSaved::new(),
            sp: 0,
            stack: 0..0,
            place,
            interrupted: ptr::null(),
            before: Cell::new(ptr::null_mut()),
        }
    }

    /// Where a nudge has interrupted the mutator, if it has. `interrupted` outlives the stand.
    pub(crate) fn of_a_nudge(interrupted: Option<&Interrupted>) -> Self {
        let place = if interrupted.is_some() { Place::Interrupted } else { Place::Poll };
        let interrupted = interrupted.map_or(ptr::null(), ptr::from_ref);
        Self { interrupted, ..Self::new(place) }
    }

    /// Room for the registers.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> &mut CalleeSaved {
        &mut self.saved
    }

    /// Of the mutator with this slot, at the stack pointer that came with the registers.
    pub(crate) fn at(&mut self, slot: &MutatorSlot<Identity>, sp: usize) -> &Self {
        (self.sp, self.stack) = (sp, slot.status.identity.stack());
        self
    }

    /// What the slot points to.
    pub(crate) fn address(&self) -> *mut () {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The mutator, which runs, stands here until the result is dropped.
    pub(crate) fn hold(&self, slot: &'static MutatorSlot<Identity>) -> Standing<'_> {
        let world = slot.status.identity.world.load(Ordering::Relaxed);
        // SAFETY: written by this thread at attach. The mutator, which keeps the world, lives for longer.
        let protocol = unsafe { &*world };
        self.before.set(slot.status.stands.at());
        slot.status.stands.set(self.address());
        protocol.system.tell(slot, Moment::Parking);
        Standing { protocol, slot, stand: self }
    }

    /// The mutator enters a safe region here.
    pub(crate) fn enter(&self, protocol: &Protocol<Linux>, slot: &'static MutatorSlot<Identity>) {
        self.before.set(slot.status.stands.at());
        let parking = || protocol.system.tell(slot, Moment::Parking);
        protocol.enter_standing(slot, Stance::Away, self.address(), parking);
    }

    /// The mutator has left the region, and runs.
    pub(crate) fn left(&self, protocol: &Protocol<Linux>, slot: &'static MutatorSlot<Identity>) {
        protocol.system.tell(slot, Moment::Running);
        slot.status.stands.set(self.before.get());
    }
}

/// A mutator stands where it is until this is dropped. It runs then.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    protocol: &'a Protocol<Linux>,
    slot: &'static MutatorSlot<Identity>,
    stand: &'a Stand,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.stand.left(self.protocol, self.slot);
    }
}

/// Says where the calling mutator stands, from here to the end of the block, if its world wants to know.
///
/// The registers are written in the function that this is used in, which is not left before.
macro_rules! stand_here {
    ($own:expr, $stand:expr) => {
        let mut stand = None;
        let own: Option<&'static MutatorSlot<Identity>> = $own;
        let _standing = match own {
            Some(own) if own.status.stands.are_said() => {
                let stand = stand.insert($stand);
                let sp = sigctx::spill::callee_saved(stand.room());
                Some(stand.at(own, sp).hold(own))
            }
            _ => None,
        };
    };
}
pub(crate) use stand_here;

/// Where the mutator with the slot stands in the region that it enters next, if its world wants to know. `$room` is an
/// empty `Option` that outlives the region.
///
/// As [`stand_here`]: the registers are written in the function that this is used in.
macro_rules! stand_in_region {
    ($slot:expr, $room:ident) => {
        if $slot.status.stands.are_said() {
            let stand = $room.insert(Stand::new(Place::Region));
            let sp = sigctx::spill::callee_saved(stand.room());
            Some(stand.at($slot, sp))
        } else {
            None
        }
    };
}
pub(crate) use stand_in_region;

/// Enters a safe region, where the mutator stands if its world wants to know.
pub(crate) fn enter(
    protocol: &Protocol<Linux>,
    slot: &'static MutatorSlot<Identity>,
    stand: Option<&Stand>,
) {
    match stand {
        Some(stand) => stand.enter(protocol, slot),
        None => protocol.enter(slot, Stance::Away),
    }
}

/// Where a mutator stands still, and what it has in registers and on its stack there. Of a world that was made with
/// [`WorldOptions::roots`](crate::WorldOptions::roots).
///
/// ```text
///                              stack of the mutator           read as
///   stack().end  high address +------------------------------+
///                             | its callers                  |
///                             | the code that stands still   |  RootKind::Stack
///   interrupted: its sp ----- +------------------------------+
///                             | red zone                     |  RootKind::RedZone
///                             +------------------------------+
///                             | the kernel's frame: general  |
///                             | registers, vectors           |  RootKind::Registers
///                             +------------------------------+
///                             | what the crates put there    |  RootKind::Stack
///   sp() -------------------- +------------------------------+
///                low address  | not the mutator's, or what a |
///                             | safe region runs             |
///                             +------------------------------+
///   anywhere: the callee-saved registers at sp()                RootKind::CalleeSaved
/// ```
///
/// At a poll, in a region and in a request there are no frame and no red zone: all from `sp()` to the end of the
/// stack is [`RootKind::Stack`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy)]
pub struct Parked<'a> {
    slot: &'static MutatorSlot<Identity>,
    stand: Option<&'a Stand>,
}

impl fmt::Debug for Parked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked")
            .field("index", &self.index())
            .field("place", &self.place())
            .field("sp", &format_args!("{:#x}", self.sp()))
            .finish_non_exhaustive()
    }
}

impl<'a> Parked<'a> {
    /// As [`Parked::of`], of a mutator that a requester keeps from running.
    ///
    /// # Safety
    ///
    /// As [`Parked::of`].
    pub(crate) unsafe fn of_another(
        slot: &'static MutatorSlot<Identity>,
    ) -> Result<Self, RootsError> {
        if slot.stance() == Some(Stance::Works) {
            return Err(RootsError::HasStopped);
        }
        // SAFETY: the caller's obligation.
        unsafe { Self::of(slot) }
    }

    /// Where a mutator stands, which is kept there.
    ///
    /// # Safety
    ///
    /// The mutator does not go on, or this is its thread, for as long as the result lives (I10).
    pub(crate) unsafe fn of(slot: &'static MutatorSlot<Identity>) -> Result<Self, RootsError> {
        if !slot.status.stands.are_said() {
            return Err(RootsError::NotAsked);
        }
        // A thread that detaches has nothing.
        let is_there = matches!(slot.state(), MutatorState::Safe | MutatorState::Running);
        let stand =
            if is_there { slot.status.stands.at().cast::<Stand>() } else { ptr::null_mut() };
        // SAFETY: I10: null, or the stand of a function that does not return before the mutator goes on.
        let stand = unsafe { stand.as_ref() };
        match stand {
            Some(Stand { sp, stack, .. }) if !stack.contains(sp) => {
                Err(RootsError::OffStack { sp: *sp, stack: stack.clone() })
            }
            _ => Ok(Self { slot, stand }),
        }
    }

    /// Where in its code.
    #[must_use]
    pub fn place(&self) -> Place {
        self.stand.map_or(Place::Outside, |stand| stand.place)
    }

    /// The stack pointer where it stands: in this crate, below the code that polls, enters a region, or was
    /// interrupted. 0 if it is [`Place::Outside`].
    #[must_use]
    pub fn sp(&self) -> usize {
        self.stand.map_or(0, |stand| stand.sp)
    }

    /// The stack on which it stands, see [`Mutator::set_stack`](crate::Mutator::set_stack). Empty if it is
    /// [`Place::Outside`].
    #[must_use]
    pub fn stack(&self) -> Range<usize> {
        self.stand.map_or(0..0, |stand| stand.stack.clone())
    }

    /// The general registers of the code that a nudge has interrupted.
    #[must_use]
    pub fn registers(&self) -> Option<&'a Registers> {
        Some(&self.interrupted()?.registers)
    }

    /// What the runtime keeps for the mutator, see [`Mutator::set_data`](crate::Mutator::set_data).
    #[must_use]
    pub fn data(&self) -> *mut () {
        self.slot.status.identity.data()
    }

    /// The mutator's place in the world.
    #[must_use]
    pub fn index(&self) -> usize {
        self.slot.index() as usize
    }

    /// How many mutators have had that place, this one included.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.slot.generation()
    }

    /// All memory that has references of the mutator's which are on its stack or in its registers. Complete: what is
    /// in no range is no root. Ranges do not overlap, except that [`RootKind::CalleeSaved`] may be a part of the stack.
    pub fn roots(&self) -> impl Iterator<Item = RootRange<'a>> + use<'a> {
        let range =
            |kind, range: Range<usize>| (!range.is_empty()).then_some(RootRange::new(kind, range));
        let interrupted = self.interrupted();
        let ranges = self.stand.map(|stand| {
            let saved = stand.saved.words().as_ptr_range();
            let (sp, end) = (stand.sp, stand.stack.end);
            let below = interrupted.map_or(end, |at| at.saved.start);
            [
                range(RootKind::CalleeSaved, saved.start.addr()..saved.end.addr()),
                range(RootKind::Stack, sp..below),
                interrupted.and_then(|at| range(RootKind::Registers, at.saved.clone())),
                interrupted.and_then(|at| range(RootKind::RedZone, at.red_zone.clone())),
                interrupted.and_then(|at| range(RootKind::Stack, at.red_zone.end..end)),
            ]
        });
        ranges.into_iter().flatten().flatten()
    }

    fn interrupted(&self) -> Option<&'a Interrupted> {
        // SAFETY: null, or outlives the stand.
        unsafe { self.stand?.interrupted.as_ref() }
    }
}

/// What is in a range of roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootKind {
    /// The registers that the code which stands still has kept for its callers, and uses itself when it goes on: with
    /// those of floating point that the ABI has among them, and on powerpc64 vectors.
    CalleeSaved,
    /// Stack.
    Stack,
    /// Everything that the interrupted code had in registers, as the kernel has saved it: the general registers, the
    /// vectors, floating point. References are at multiples of their size.
    Registers,
    /// What is below the interrupted code's stack pointer, and its own all the same.
    RedZone,
}

/// Memory that may have references to objects, at each address that is a multiple of a word's size.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug, Clone, Copy)]
pub struct RootRange<'a> {
    kind: RootKind,
    start: usize,
    end: usize,
    of_the_stop: PhantomData<&'a ()>,
}

impl RootRange<'_> {
    fn new(kind: RootKind, range: Range<usize>) -> Self {
        let Range { start, end } = range;
        Self { kind, start, end, of_the_stop: PhantomData }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> RootKind {
        self.kind
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The words.
    ///
    /// # Safety
    ///
    /// The stack is what [`Parked::stack`] says, and is still mapped: true of a thread's own stack.
    pub unsafe fn words(self) -> impl Iterator<Item = usize> {
        const WORD: usize = size_of::<usize>();

        let (start, end) = (self.start.next_multiple_of(WORD), self.end & !(WORD - 1));
        (start..end).step_by(WORD).map(|at| {
            let word = ptr::with_exposed_provenance::<usize>(at);
            // SAFETY: the caller's obligation. Volatile, since the code of a safe region may write to variables of
            // the functions around it meanwhile; those are no roots.
            unsafe { word.read_volatile() }
        })
    }
}

/// It is not known what roots a mutator has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootsError {
    /// The world was made without [`WorldOptions::roots`](crate::WorldOptions::roots): its mutators do not say where
    /// they stand.
    NotAsked,
    /// The mutator has the world stopped itself, and runs the code that asked for that.
    HasStopped,
    /// The mutator is on another stack than its thread's, and has not said so with
    /// [`Mutator::set_stack`](crate::Mutator::set_stack).
    OffStack {
        /// Its stack pointer.
        sp: usize,
        /// The stack that it was thought to be on.
        stack: Range<usize>,
    },
}

impl fmt::Display for RootsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => {
                f.write_str("the world does not know roots: make it with WorldOptions::roots")
            }
            Self::HasStopped => f.write_str("the mutator has the world stopped itself, and runs"),
            Self::OffStack { sp, stack } => write!(
                f,
                "the mutator is at {sp:#x}, and not on its stack, {stack:#x?}: say so with Mutator::set_stack"
            ),
        }
    }
}

impl core::error::Error for RootsError {}
