//! One signal, in the handlers that get it.

use core::ffi::{c_int, c_void};
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::previous::{HandOn, NO_CALLER, keeping};
use super::{ErrnoPolicy, Flow, Registration, SignalEntry, signal_entry};
use crate::arch::{self, SigCtx, Ucontext};
use crate::chain::{Part, Passage};
use crate::inject::{self, CallStack, InjectError, InjectedFn, Injection};
use crate::sys::rt_sigaction;

/// A signal, in the handler that got it. Dereferences to the interrupted context.
///
/// # Signal safety
///
/// All methods are for the handler alone (AS-Safe).
pub struct Delivery<'h> {
    ctx: SigCtx<'h>,
    signal: i32,
    /// The stack pointer with which the kernel's frame was entered, by this copy or by the one that
    /// called it; that of this copy where it is not known.
    entry_sp: usize,
    /// `entry_sp` is known to be the frame's.
    rooted: bool,
    signal_entry: &'static SignalEntry,
    /// The handler that is next; null when only previous actions are left.
    rest: *const Registration,
    /// The policy of the handler that was called last. As long as none was called it is `Untouched`: a
    /// previous action keeps errno itself, as it does when the kernel calls it.
    errno: ErrnoPolicy,
    /// No handler and no action is left to offer the signal to.
    offered: bool,
    /// The call to be made: the one that the last handler returned.
    injection: Option<Injection>,
    /// The `active` word of the last call that was prepared here, whether or not it was called off.
    prepared: *const AtomicU32,
    /// What an earlier copy has left in the frame, or null.
    passage: *mut Passage,
    /// Where this copy is in the passage, and its part.
    place: (usize, Part),
    /// What this copy leaves in the frame for later ones, when there is no earlier one.
    own: &'h mut MaybeUninit<Passage>,
    /// `own` has been written and left there.
    left: bool,
}

impl Delivery<'_> {
    /// Offers the signal to the next handlers and the previous actions, now.
    ///
    /// A handler that has taken the signal as its own calls this when the signal may stand for another
    /// one, too: the kernel keeps one pending instance of a standard signal, and merges a second one, of
    /// whichever sender, into it. The second call does nothing.
    ///
    /// A previous handler gets what the kernel would give it: the information, the context, its own
    /// mask (`SA_NODEFER` too). One that was installed for one call (`SA_RESETHAND`) is called once. What
    /// it sets for the signal meanwhile (the default action, "ignore", itself once more) becomes the
    /// previous action, and ours stays on top. "Ignore" does not hold for a fault: the kernel ends the
    /// process then, and so does this.
    ///
    /// *Where* it runs: with `SA_ONSTACK`, here. Without it, on the interrupted stack, as if the kernel
    /// had called it there, when all handlers have returned; the frame moves there first, as for an
    /// injected call. In two cases that is impossible, and it runs here: the interrupted stack has no
    /// room for the frame (a stack overflow: the kernel would end the process), or ours runs under a
    /// handler that covers it and is of no copy of this crate.
    #[doc(alias = "sigfwdgo")]
    pub fn chain(&mut self) {
        while !self.offered {
            // SAFETY: null, or a registration that is never freed (I1).
            let Some(registration) = (unsafe { self.rest.as_ref() }) else {
                self.offered = true;
                self.previous_actions();
                return;
            };
            self.rest = registration.next.load(Ordering::Acquire);
            self.errno = registration.options.errno;
            let flow = keeping(self.errno, || (registration.handler)(self));
            match flow {
                Flow::Chain => {}
                Flow::Resume => self.take(),
                Flow::Inject(injection) => {
                    self.take();
                    self.injection = Some(injection);
                }
            }
        }
    }

    /// A handler took the signal, which goes no further.
    fn take(&mut self) {
        // SAFETY: null, or on the stack of the copy that called this one.
        if let (false, Some(passage)) = (self.offered, unsafe { self.passage.as_mut() }) {
            passage.seen.end();
        }
        self.offered = true;
    }

    /// Prepares a call of `call` on the interrupted stack: return it as [`Flow::Inject`].
    ///
    /// The call gets `data` and the interrupted context; after it the interrupted code goes on with
    /// every register, flag and vector as it was. The frame is copied now: what this handler or a later
    /// one writes to the context afterwards is lost. Write it in the callback, with
    /// [`Frame::context_mut`](crate::inject::Frame::context_mut).
    ///
    /// A previous handler without `SA_ONSTACK` runs ahead of the call (see [`Delivery::chain`]). If
    /// it sends the interrupted code elsewhere, or jumps out, the call is called off.
    ///
    /// # Errors
    ///
    /// [`InjectError`]: why no call can be made here. Nothing has changed.
    ///
    /// # Safety
    ///
    /// 1. The interrupted code may be interrupted by `call` at this program counter, for the rest
    ///    of the handlers too: `call` keeps to what is async-signal-safe, or the program counter is
    ///    in code that is known to be at a safe point anywhere.
    /// 2. There is readable code at the program counter.
    /// 3. `onto` lives until the call has resumed.
    /// 4. What is in the context now is such that the interrupted code can go on.
    pub unsafe fn inject(
        &mut self,
        onto: &CallStack,
        call: InjectedFn,
        data: usize,
    ) -> Result<Injection, InjectError> {
        // SAFETY: the caller's obligations.
        unsafe { self.prepare(onto, call, data, true) }
    }

    /// As [`Delivery::inject`], for a call that begins with the handler's signal mask: the signal itself is
    /// blocked, too.
    ///
    /// That spares a system call, more than half of what a call costs. A call that waits, that leaves its
    /// stack, or that runs code which counts on the signal, puts the interrupted mask in force before
    /// ([`Frame::open_mask`](crate::inject::Frame::open_mask)). A signal that comes meanwhile is delivered
    /// then, or when the interrupted code goes on.
    ///
    /// # Errors
    ///
    /// As [`Delivery::inject`].
    ///
    /// # Safety
    ///
    /// As [`Delivery::inject`].
    pub unsafe fn inject_masked(
        &mut self,
        onto: &CallStack,
        call: InjectedFn,
        data: usize,
    ) -> Result<Injection, InjectError> {
        // SAFETY: the caller's obligations.
        unsafe { self.prepare(onto, call, data, false) }
    }

    /// # Safety
    ///
    /// As [`Delivery::inject`].
    #[inline(always)]
    unsafe fn prepare(
        &mut self,
        onto: &CallStack,
        call: InjectedFn,
        data: usize,
        opens: bool,
    ) -> Result<Injection, InjectError> {
        // SAFETY: null, or on the stack of the copy that called this one.
        let passage = unsafe { self.passage.as_ref() };
        if passage.or(self.left()).is_some_and(|passage| passage.call != 0) {
            // A copy of this crate has prepared a call in the same place.
            return Err(InjectError::Nested);
        }
        let (ctx, entry_sp) = (&self.ctx, self.entry_sp);
        // SAFETY: the caller's obligations; the entry's stack pointer comes from the assembly.
        let injection = unsafe { inject::prepare(ctx, entry_sp, onto, call, data, opens) }?;
        self.prepared = injection.active();
        Ok(injection)
    }

    /// What this copy has left in the frame.
    fn left(&self) -> Option<&Passage> {
        // SAFETY: written before `left` was set.
        self.left.then(|| unsafe { self.own.assume_init_ref() })
    }

    /// A call was prepared here and not called off.
    fn has_prepared(&self) -> bool {
        // SAFETY: null, or of a stack that lives until the call has resumed (`inject`, number 3).
        let active = unsafe { self.prepared.as_ref() };
        active.is_some_and(|active| active.load(Ordering::Relaxed) != 0)
    }

    /// Does what the kernel would have done before the first install.
    fn previous_actions(&mut self) {
        if self.passage.is_null() && self.signal_entry.ends_in_nothing(self.signal) {
            return;
        }
        let (info, uc) = self.ctx.as_raw();
        let uc = uc.cast::<Ucontext>();
        let mut caller = NO_CALLER;
        if self.passage.is_null() {
            let own = Passage::init(self.own);
            own.seen.enter(arch::entry()); // place 0
            self.left = true;
            if self.rooted {
                own.entry_sp = self.entry_sp;
            } else {
                caller = kernels_handler(self.signal);
            }
        }
        let passage = if self.left { self.own.as_mut_ptr() } else { self.passage };
        let first = self.has_prepared();
        // SAFETY: in `self`, or on the stack of the copy that called this one; here and below no
        // reference lives while a handler runs.
        let call = unsafe { &mut (*passage).call };
        let first = first && *call == 0;
        if first {
            *call = PREPARED;
        }
        // SAFETY: the frame's, put back below.
        let before = unsafe { Passage::leave(uc, passage as usize) };
        let hand_on = HandOn {
            signal: self.signal,
            signal_entry: self.signal_entry,
            info: info.cast(),
            uc,
            passage,
            errno: self.errno,
            caller,
            entry_sp: if self.rooted { self.entry_sp } else { 0 },
        };
        // SAFETY: the kernel's own arguments.
        unsafe { hand_on.run(self.place) };
        // SAFETY: the frame's.
        unsafe { Passage::leave(uc, before) };
        // SAFETY: as above.
        let call = unsafe { &mut (*passage).call };
        if first && *call == PREPARED {
            *call = 0;
        }
    }

    /// Returns the record of the call that the entry makes, or 0.
    fn finish(&mut self) -> usize {
        let own = self.injection.take().map_or(0, Injection::into_raw);
        // SAFETY: null, or on the stack of the copy that called this one.
        if let Some(passage) = unsafe { self.passage.as_mut() } {
            if own != 0 {
                passage.call = own;
            }
            return 0;
        }
        let Some(left) = self.left() else { return own };
        let call = if own == 0 { left.call } else { own };
        if left.deferred.function.is_none() {
            return call;
        }
        if call != 0 {
            // SAFETY: a record that this copy or another of the same layout has prepared.
            unsafe { inject::precede(call, left) };
            return call;
        }
        let keep_errno = self.errno == ErrnoPolicy::Keep;
        // SAFETY: the kernel's own frame; the entry's stack pointer comes from the assembly.
        let call = unsafe { inject::prepare_previous(&self.ctx, self.entry_sp, left, keep_errno) };
        call.unwrap_or_else(|| {
            // A handler has changed the stack pointer since.
            self.carry_out_here();
            0
        })
    }

    /// Carries out what was deferred, on this stack.
    fn carry_out_here(&mut self) {
        let (info, uc) = self.ctx.as_raw();
        let uc = uc.cast::<Ucontext>();
        let passage = self.own.as_mut_ptr();
        let Some(left) = self.left() else { return };
        let later = left.deferred;
        let Some(function) = later.function else { return };
        // SAFETY: the frame's, put back below.
        let before = unsafe { Passage::leave(uc, passage as usize) };
        keeping(self.errno, || {
            // SAFETY: what the copy that deferred it has left for this call.
            unsafe { function(later.previous, later.action, passage, info, uc) };
        });
        // SAFETY: the frame's.
        unsafe { Passage::leave(uc, before) };
    }
}

/// The handler that the kernel has for a signal. Not inlined: its structures leave the stack.
#[inline(never)]
fn kernels_handler(signal: i32) -> usize {
    // SAFETY: only reads.
    unsafe { rt_sigaction(signal, None) }.map_or(NO_CALLER, |top| top.handler)
}

/// The value of [`Passage::call`] while a call is prepared, but not yet returned, and may be called off.
const PREPARED: usize = 1;

/// Called by the assembly for every signal. Returns 0 for a plain return from the handler, or the
/// record of a call to be made.
///
/// A panic in a handler cannot unwind into the kernel's frame: it aborts.
pub(crate) extern "C" fn dispatch(
    signal: c_int,
    info: *mut c_void,
    uc: *mut c_void,
    entry_sp: usize,
) -> usize {
    let Some(signal_entry) = signal_entry(signal) else { return 0 };
    // SAFETY: the kernel's own arguments; this call outlives the value, and no other code has them.
    let ctx = unsafe { SigCtx::from_raw(info, uc) };
    // SAFETY: the kernel's, or what a handler that covers ours has made of it.
    let passage = unsafe { Passage::find(uc.cast()) };
    let mut own = MaybeUninit::uninit();
    let mut delivery = Delivery {
        ctx,
        signal,
        entry_sp,
        rooted: (uc as usize).wrapping_sub(entry_sp) == arch::UCONTEXT_OFFSET,
        signal_entry,
        rest: signal_entry.head.load(Ordering::Acquire),
        errno: ErrnoPolicy::Untouched,
        offered: false,
        injection: None,
        prepared: ptr::null(),
        passage,
        place: (0, Part::First),
        own: &mut own,
        left: false,
    };
    // SAFETY: null, or on the stack of the copy that called this one.
    if let Some(passage) = unsafe { passage.as_mut() } {
        let Some((place, first)) = passage.seen.enter(arch::entry()) else { return 0 };
        delivery.place = (place, if first { Part::Reached } else { Part::Again });
        if !first {
            // Our handlers have had it.
            delivery.rest = ptr::null();
        }
        delivery.rooted = passage.entry_sp != 0;
        if delivery.rooted {
            delivery.entry_sp = passage.entry_sp;
        }
    }
    delivery.chain();
    delivery.finish()
}

impl<'h> Deref for Delivery<'h> {
    type Target = SigCtx<'h>;

    fn deref(&self) -> &SigCtx<'h> {
        &self.ctx
    }
}

impl DerefMut for Delivery<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.ctx
    }
}

impl fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("context", &self.ctx).finish_non_exhaustive()
    }
}
