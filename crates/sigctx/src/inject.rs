//! A call injected into interrupted code, and its exact resume.
//!
//! The kernel's signal frame holds *everything* that the interruption must not lose: general
//! registers, flags, vectors, signal mask, records of state that this crate does not know. So
//! nothing is saved here. The frame is moved to where it can stay while other code runs, and in
//! the end the kernel itself restores it:
//!
//! ```text
//!   alternate stack                          interrupted stack
//!   +----------------------+                 |  frames of the caller   |
//!   | frame by the kernel  | --- 1 copy -->  |  interrupted function   | <- interrupted sp
//!   +----------------------+                 |  red zone, untouched    |
//!   | handler, this module |                 |  copy of the frame      | <- frame
//!   +----------------------+                 |  `Call`                 |
//!        |                                   |  the callback's frames  | <- 2 entry switches here
//!        +--- never returned to              v                         v
//!                             3 one sigreturn, with sp at the copy
//! ```
//!
//! 1. `prepare`, in the handler, copies the frame below the red zone and writes a `Call`.
//! 2. The entry's assembly leaves the alternate stack and calls `run`, which puts back the
//!    interrupted signal mask (the signal itself was blocked) and calls the callback.
//! 3. The assembly clears the stack's `active` word and returns to the restorer.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `active` | `prepare` sets; the assembly clears, and a call that is called off; `Call::previous` clears it for a while | `prepare` | relaxed: both on the thread that runs on this stack; a stack moves between threads only through a scheduler that orders them | I1 |
//! | `Call`, copy | `prepare` | `run`, assembly | program order, same thread | I2 |
//!
//! - **I1** While `active` is set, a copy of a frame lies on the stack and belongs to one call. After
//!   the call it is cleared only by code in `arch::trampoline`, where `prepare` refuses: so no second
//!   injection can come between the clearing and the sigreturn, and copies cannot pile up. While a
//!   previous action runs ahead of the call it is clear, since that action may jump out; a call that is
//!   injected then has its copy below the action's frames.
//! - **I2** Nothing is written above the copy, nor in the red zone.
//! - **I3** No value with a destructor is live when the entry leaves the alternate stack: the Rust
//!   part has returned to the assembly before.
//!
//! **Exit**: a callback that ends its thread leaves `active` set; its stack ends too. **fork** in a
//! callback: the child has the copy and returns from it. **Masked signals**: the callback runs with
//! the interrupted mask, set by one system call, which is the larger part of what a call costs; or it
//! begins with the handler's, and sets the other itself when it needs that. The sigreturn puts it back,
//! so a change made in the callback does not last (change it through [`Frame::context_mut`]).
//! **Alternate stack**: the sigreturn installs the one that the frame recorded; one that came or went in
//! the callback ([`AltStack`](altstack::AltStack)) is written into the copy first. **Nesting**: refused
//! as [`InjectError::Nested`]. **Unwinding**: a panic that would leave the callback aborts.
//!
//! References: the kernel's `arch/*/kernel/signal*.c`; Go `runtime/preempt.go`, which returns from
//! the handler into a trampoline that has to save all registers itself.

use core::ffi::c_int;
use core::mem::{ManuallyDrop, size_of};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::altstack;
use crate::arch::{self, FrameRecord, SigCtx, Ucontext};
use crate::chain::Passage;
use crate::sys::{self, SigSet, errno, set_errno};
use crate::vdso;

mod error;
mod frame;

pub use error::{BadFrame, InjectError, MoveError};
pub use frame::{Frame, Parked};

/// Stack that is kept free for the callback, beyond the copied frame, in bytes.
///
/// A callback that needs more has to switch to a stack of its own.
pub const CALLBACK_ROOM: usize = 16 * 1024;

/// A function that can be injected: the callback.
///
/// It gets the interrupted context and the word that was given to
/// [`Delivery::inject`](crate::handler::Delivery::inject). It runs on the interrupted stack,
/// outside of any handler: it may block, allocate and take locks as far as the interrupted code
/// lets it. errno is kept around it.
pub type InjectedFn = fn(&mut Frame<'_>, usize);

/// A stack on which calls may be injected.
///
/// It belongs to the stack, not to a thread: a task that moves between threads takes it along.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
pub struct CallStack {
    lo: AtomicUsize,
    hi: AtomicUsize,
    active: AtomicU32,
}

impl CallStack {
    /// A stack without bounds yet: every injection on it is refused.
    #[must_use]
    pub const fn unset() -> Self {
        Self { lo: AtomicUsize::new(0), hi: AtomicUsize::new(0), active: AtomicU32::new(0) }
    }

    /// The stack from `lo` (without its guard) up to `hi`.
    ///
    /// A callback is guaranteed [`CALLBACK_ROOM`] bytes above `lo`, and no more.
    ///
    /// # Safety
    ///
    /// 1. `[lo, hi)` is mapped, writable, and used as a stack: whatever code has its stack pointer
    ///    in there owns only what is above it and the ABI's red zone.
    /// 2. A callback that needs more than the room that is guaranteed runs into a fault, not into
    ///    other memory: the page below `lo` is a guard page, or stack as well; or no callback
    ///    needs more.
    #[must_use]
    pub const unsafe fn new(lo: usize, hi: usize) -> Self {
        Self { lo: AtomicUsize::new(lo), hi: AtomicUsize::new(hi), active: AtomicU32::new(0) }
    }

    /// Sets the bounds, for a record that is used for one stack after another.
    ///
    /// # Safety
    ///
    /// As [`CallStack::new`]; and no code runs on the old or the new stack whose handlers use this
    /// value meanwhile, the calling thread excepted. Bounds of 0 and 0 forget the stack.
    pub unsafe fn set_bounds(&self, lo: usize, hi: usize) {
        // Between the two stores the range is empty, not wrong: a handler on this thread refuses.
        self.hi.store(0, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        self.lo.store(lo, Ordering::Relaxed);
        self.active.store(0, Ordering::Relaxed);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        self.hi.store(hi, Ordering::Relaxed);
    }

    /// The bounds, lowest address first.
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.lo.load(Ordering::Relaxed), self.hi.load(Ordering::Relaxed))
    }

    /// Whether an injected call has not resumed yet.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) != 0
    }
}

/// What lies just below a copied frame. The assembly reads the first fields.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct Call {
    /// Where the copy begins.
    pub(crate) frame: usize,
    /// Where the handler was to return to: the code that makes the sigreturn.
    pub(crate) back: usize,
    /// Where the copied context is.
    pub(crate) context: usize,
    /// Where the copied siginfo is.
    info: usize,
    /// Makes the call: [`Call::run`] of the copy of this crate that wrote the record.
    run: unsafe extern "C" fn(*mut Self),
    function: Option<InjectedFn>,
    data: usize,
    active: *const AtomicU32,
    /// What `active` points to when nothing is injected.
    idle: AtomicU32,
    /// errno of the interrupted code.
    errno: c_int,
    /// Whether it is kept: not on a thread that may have none.
    keep_errno: bool,
    /// Whether the callback begins with the interrupted mask.
    opens: bool,
    /// What comes first: a previous action, and the handlers that have had the signal.
    passage: Passage,
    /// The interrupted function's, for frame-pointer walkers.
    pub(crate) record: FrameRecord,
    /// [`altstack::changes`] when the frame was copied.
    changes: usize,
    /// Where the copy ends.
    end: usize,
}

impl Call {
    fn ucontext(&self) -> *mut Ucontext {
        self.context as *mut Ucontext
    }
}

/// A call that is ready to be made: return it as
/// [`Flow::Inject`](crate::handler::Flow::Inject). Dropped, it is called off.
#[must_use = "the call is made by returning this from the handler"]
#[derive(Debug)]
pub struct Injection {
    call: *mut Call,
    active: *const AtomicU32,
}

impl Injection {
    /// The word that is set until the call has been made or called off.
    #[inline(always)]
    pub(crate) fn active(&self) -> *const AtomicU32 {
        self.active
    }

    /// The record's address, for the assembly.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> usize {
        ManuallyDrop::new(self).call as usize
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // SAFETY: `prepare`'s caller keeps the stack's record until the call has been made or
        // called off.
        let active = unsafe { &*self.active };
        active.store(0, Ordering::Relaxed);
    }
}

/// Copies the frame of `ctx` to the interrupted stack and writes the record of the call.
///
/// # Safety
///
/// As [`Delivery::inject`](crate::handler::Delivery::inject). `entry_sp` is the stack pointer with
/// which the handler was entered.
#[inline]
pub(crate) unsafe fn prepare(
    ctx: &SigCtx<'_>,
    entry_sp: usize,
    onto: &CallStack,
    function: InjectedFn,
    data: usize,
    opens: bool,
) -> Result<Injection, InjectError> {
    let uc = ctx.ucontext();
    let (pc, sp) = (uc.pc(), uc.sp());
    let alt = uc.alt_stack();
    let alt = alt.sp..alt.sp.saturating_add(alt.size);
    if !alt.contains(&entry_sp) {
        return Err(InjectError::HandlerOffAltStack { sp: entry_sp });
    }
    if alt.contains(&sp) {
        return Err(InjectError::OnAltStack { sp });
    }
    // SAFETY: the entry's own stack pointer.
    let back = unsafe { arch::return_address(entry_sp) };
    if arch::trampoline().contains(&pc) || pc.wrapping_sub(back) < arch::SIGRETURN_LEN {
        return Err(InjectError::InTrampoline { pc });
    }
    let (lo, hi) = onto.bounds();
    if sp <= lo || sp > hi {
        return Err(InjectError::NotOnThisStack { sp });
    }
    if onto.is_active() {
        return Err(InjectError::Nested);
    }
    if vdso::range().contains(&pc) {
        return Err(InjectError::InVdso { pc });
    }
    // SAFETY: the caller says that there is code at `pc`.
    if unsafe { at_syscall(pc, arch::syscall_len(uc)) } {
        return Err(InjectError::AtSyscall { pc });
    }

    let place = Place::of(uc, entry_sp).map_err(InjectError::Frame)?;
    let needed = place.needed() + CALLBACK_ROOM;
    let available = sp - lo;
    if available < needed {
        return Err(InjectError::NoRoom { needed, available });
    }
    onto.active.store(1, Ordering::Relaxed);
    let active = &raw const onto.active;
    // SAFETY: there is room (checked above), and the two stacks do not overlap.
    let call = unsafe { place.copy(ctx, back) };
    // SAFETY: written just now.
    let record = unsafe { &mut *call };
    (record.function, record.data, record.active) = (Some(function), data, active);
    (record.keep_errno, record.opens) = (true, opens);
    Ok(Injection { call, active })
}

/// What decides where a frame's copy will be.
struct Place {
    entry_sp: usize,
    length: usize,
    sp: usize,
}

impl Place {
    /// Looks whether the frame that was entered with `entry_sp` can be copied.
    #[inline]
    fn of(uc: &Ucontext, entry_sp: usize) -> Result<Self, BadFrame> {
        // The frame is the first thing below the top of the alternate stack: what is between it and
        // the top belongs to it, whatever the records in there are.
        let context = &raw const *uc as usize;
        if context.wrapping_sub(entry_sp) != arch::UCONTEXT_OFFSET {
            return Err(BadFrame::Placement { context, entry: entry_sp });
        }
        let alt = uc.alt_stack();
        let end = alt.sp.saturating_add(alt.size);
        let length = end.saturating_sub(entry_sp);
        if length > arch::MAX_FRAME {
            return Err(BadFrame::Length { length });
        }
        arch::check_frame(uc, entry_sp, end)?;
        Ok(Self { entry_sp, length, sp: uc.sp() })
    }

    /// Bytes below the interrupted stack pointer that the copy and its record take at most.
    #[inline]
    fn needed(&self) -> usize {
        let record = size_of::<Call>() + align_of::<Call>();
        arch::RED_ZONE + self.length + arch::FRAME_ALIGN + record
    }

    /// Copies the frame and writes a record that injects nothing.
    ///
    /// # Safety
    ///
    /// `needed` bytes below the interrupted stack pointer are free stack, and no part of the frame.
    /// `back` is where the handler returns to.
    #[inline]
    unsafe fn copy(&self, ctx: &SigCtx<'_>, back: usize) -> *mut Call {
        let Self { entry_sp, length, sp } = *self;
        let frame = sp - arch::RED_ZONE - length;
        // As far down as makes the copy's address equal to the frame's, modulo the alignment of all
        // that is in there.
        let frame = frame - (frame.wrapping_sub(entry_sp) & (arch::FRAME_ALIGN - 1));
        let at = (frame - size_of::<Call>()) & !(align_of::<Call>() - 1);
        let delta = frame.wrapping_sub(entry_sp);
        // SAFETY: the source is the frame, up to the top of the alternate stack; the target is free
        // stack, below the red zone; the two stacks do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(entry_sp as *const u8, frame as *mut u8, length) };
        let (info, context) = ctx.as_raw();
        let context = (context as usize).wrapping_add(delta);
        // SAFETY: the context is in the copy just made, at the same offset, and equally aligned.
        let copy = unsafe { &mut *(context as *mut Ucontext) };
        arch::relocate(copy, delta);
        let call = at as *mut Call;
        // SAFETY: room for it was counted, and it is aligned.
        unsafe {
            call.write(Call {
                frame,
                back,
                context,
                info: (info as usize).wrapping_add(delta),
                run: Call::run,
                function: None,
                data: 0,
                active: core::ptr::null(),
                idle: AtomicU32::new(0),
                errno: 0,
                keep_errno: false,
                opens: true,
                passage: Passage::new(),
                record: FrameRecord::of(ctx.ucontext()),
                changes: altstack::changes(),
                end: frame + length,
            });
        }
        // SAFETY: written just now.
        let record = unsafe { &mut *call };
        record.active = &raw const record.idle;
        call
    }
}

/// Whether the handler can leave the alternate stack, on which it was entered with `entry_sp`, for the
/// interrupted one: a previous action without `SA_ONSTACK` runs there.
pub(crate) fn can_leave(uc: &Ucontext, entry_sp: usize) -> bool {
    let alt = uc.alt_stack();
    let alt = alt.sp..alt.sp.saturating_add(alt.size);
    // When another handler was interrupted, the kernel would not have left this stack, either.
    if !alt.contains(&entry_sp) || alt.contains(&uc.sp()) {
        return false;
    }
    let Ok(place) = Place::of(uc, entry_sp) else { return false };
    let high = place.sp.saturating_sub(arch::RED_ZONE);
    let low = place.sp.saturating_sub(place.needed() + RUN_ROOM);
    (low >= alt.end || high <= alt.start) && is_writable(low, high)
}

/// What is kept free below the record for this crate's own functions, on the way to the handler.
const RUN_ROOM: usize = 1024;

/// Whether all of a free part of a stack can be written: asked of the kernel, which does not fault, and
/// which lets the stack of the main thread grow.
fn is_writable(low: usize, high: usize) -> bool {
    /// The smallest page there is.
    const PAGE: usize = 4096;
    const WORD: usize = size_of::<SigSet>();

    let mut at = high.saturating_sub(WORD) & !(WORD - 1);
    loop {
        // The signal mask goes there; nothing is changed.
        let args = [libc::SIG_BLOCK as usize, 0, at, WORD, 0, 0];
        // SAFETY: the kernel writes a set there, in free stack, or says that it cannot.
        if unsafe { sys::syscall(libc::SYS_rt_sigprocmask, args) }.is_err() {
            return false;
        }
        if at <= low {
            return true;
        }
        at = at.saturating_sub(PAGE).max(low & !(WORD - 1));
    }
}

/// Copies the frame of `ctx` to the interrupted stack for the previous action alone that `passage` has.
/// `None` when it cannot be copied.
///
/// # Safety
///
/// The frame is the kernel's, and was entered with `entry_sp`.
pub(crate) unsafe fn prepare_previous(
    ctx: &SigCtx<'_>,
    entry_sp: usize,
    passage: &Passage,
    keep_errno: bool,
) -> Option<usize> {
    if !can_leave(ctx.ucontext(), entry_sp) {
        return None;
    }
    let place = Place::of(ctx.ucontext(), entry_sp).ok()?;
    // SAFETY: the entry's own stack pointer.
    let back = unsafe { arch::return_address(entry_sp) };
    // SAFETY: `can_leave` has found room.
    let call = unsafe { place.copy(ctx, back) };
    // SAFETY: written just now.
    let record = unsafe { &mut *call };
    record.keep_errno = keep_errno;
    // SAFETY: as above.
    unsafe { precede(call as usize, passage) };
    Some(call as usize)
}

/// Has the previous action that is in `passage` carried out ahead of a call.
///
/// # Safety
///
/// `call` is the record of a call that has not begun.
pub(crate) unsafe fn precede(call: usize, passage: &Passage) {
    // SAFETY: the caller's obligation; the layout is the same in all copies that share a passage.
    let call = unsafe { &mut *(call as *mut Call) };
    call.passage = *passage;
    // No call is injected under the handler: the frame is not where the kernel put it.
    (call.passage.entry_sp, call.passage.call) = (0, 0);
}

/// Whether a system call instruction, `length` bytes long, is at `pc`.
///
/// With `SA_RESTART` the kernel goes back to the instruction of an interrupted call before it writes
/// the frame, and a callback's own interrupted calls would change what is restarted.
///
/// After a call that is not restarted its result is in the frame like everything else. So nothing is
/// asked about the bytes before `pc`, which may be the end of something else: of an immediate, where
/// instructions have several lengths, or of an instruction that the code jumped over.
///
/// # Safety
///
/// `pc` is the address of an instruction.
#[inline]
unsafe fn at_syscall(pc: usize, length: usize) -> bool {
    // SAFETY: the first byte of an instruction.
    let first = unsafe { (pc as *const u8).read_volatile() };
    // SAFETY: an instruction that begins so is at least as long.
    arch::begins_syscall(first) && arch::is_syscall(unsafe { read_code(pc, length) })
}

/// Room for the longest system call instruction; one that is shorter is followed by zeroes.
type Code = [u8; arch::SYSCALL_LEN];

/// Reads as many bytes as a system call instruction has.
///
/// # Safety
///
/// They can be read, and are at most as many as fit.
#[inline(always)]
unsafe fn read_code(at: usize, length: usize) -> Code {
    let mut code = Code::default();
    for (i, byte) in code.iter_mut().enumerate().take(length) {
        let at = (at + i) as *const u8;
        // SAFETY: the caller's obligation. Volatile, because other threads may write code there,
        // and whichever value is seen is fine.
        *byte = unsafe { at.read_volatile() };
    }
    code
}

/// Runs what a record says, on the interrupted stack, and returns the `active` word for the assembly to
/// clear. A panic that gets here aborts the process.
pub(crate) extern "C" fn run(call: *mut Call) -> *const AtomicU32 {
    // SAFETY: the assembly passes the record that `copy` wrote; it lives until the sigreturn.
    let run = unsafe { (*call).run };
    // SAFETY: as above; it may be another copy's of this crate.
    unsafe { run(call) };
    // SAFETY: as above.
    unsafe { (*call).active }
}

impl Call {
    /// Carries out the previous action, if there is one, and runs the callback, if there is one.
    ///
    /// Not inlined and not split: errno's address must be looked up again after the callback, which may
    /// come back on another thread.
    ///
    /// # Safety
    ///
    /// The record's, once, on the interrupted stack.
    #[inline(never)]
    unsafe extern "C" fn run(call: *mut Self) {
        // SAFETY: the caller's obligation.
        let call = unsafe { &mut *call };
        if call.keep_errno {
            call.errno = errno();
        }
        altstack::rearm(call.uc().alt_stack());
        let wanted = call.previous();
        if let (Some(function), true) = (call.function, wanted) {
            let (opens, data) = (call.opens, call.data);
            let (info, uc) = (call.info as *mut _, call.ucontext().cast());
            // SAFETY: `copy` has put both in these places, which no other code uses until the sigreturn.
            let ctx = unsafe { SigCtx::from_raw(info, uc) };
            let mut frame = Frame { call, ctx, is_open: false };
            if opens {
                frame.open_mask();
            }
            function(&mut frame, data);
        }
        if call.changes != altstack::changes() {
            // The sigreturn installs the alternate stack that the frame recorded, which may be gone.
            // SAFETY: as before; the callback has returned.
            let uc = unsafe { &mut *call.ucontext() };
            // A kernel that does not tell has not let it be changed either.
            let _ = frame::keep_alt_stack(uc);
        }
        if call.keep_errno {
            set_errno(call.errno);
        }
    }

    fn uc(&self) -> &Ucontext {
        // SAFETY: `copy` wrote the context, which lives as long as the record.
        unsafe { &*self.ucontext() }
    }

    /// Carries out the previous action, and tells whether the interrupted code is still where the callback
    /// was wanted.
    ///
    /// `active` is clear meanwhile: the handler may jump out, and then the callback never runs.
    fn previous(&mut self) -> bool {
        let later = self.passage.deferred;
        let Some(function) = later.function else { return true };
        // SAFETY: lives until the call has been made (`Delivery::inject`, number 3), or is in `self`.
        let active = unsafe { &*self.active };
        let was = active.swap(0, Ordering::Relaxed);
        let place = (self.uc().pc(), self.uc().sp());
        let (uc, passage) = (self.ucontext(), &raw mut self.passage);
        // SAFETY: the copy's, put back below.
        let link = unsafe { Passage::leave(uc, passage as usize) };
        // SAFETY: the arguments that the copy of this crate which deferred it left for this call.
        unsafe { function(later.previous, later.action, passage, self.info as *mut _, uc) };
        // SAFETY: the copy's.
        unsafe { Passage::leave(uc, link) };
        let stayed = (self.uc().pc(), self.uc().sp()) == place;
        if stayed {
            active.store(was, Ordering::Relaxed);
        }
        stayed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code before the program counter may be the end of anything, or a system call that the
    /// interrupted code has jumped away from: a loop there could never be interrupted.
    #[test]
    fn a_system_call_is_one_at_the_program_counter() {
        let mut code = [0; 3 * arch::SYSCALL_LEN];
        code[arch::SYSCALL_LEN..2 * arch::SYSCALL_LEN].copy_from_slice(&arch::SYSCALL_CODE);
        let at = |offset: usize| code.as_ptr() as usize + offset;
        // SAFETY: readable.
        assert!(!unsafe { at_syscall(at(0), arch::SYSCALL_LEN) });
        // SAFETY: readable.
        assert!(unsafe { at_syscall(at(arch::SYSCALL_LEN), arch::SYSCALL_LEN) });
        // SAFETY: readable.
        assert!(!unsafe { at_syscall(at(2 * arch::SYSCALL_LEN), arch::SYSCALL_LEN) });
    }
}
