//! The interrupted frame, as a callback gets it and can take it along.

use core::ops::Range;

use super::{Call, MoveError};
use crate::altstack;
use crate::arch::{self, SigCtx, Ucontext};
use crate::registers::Registers;
use crate::sys::{self, Errno, MaskHow, set_errno};

/// The interrupted code's frame, while an injected call runs.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Debug)]
pub struct Frame<'f> {
    pub(super) call: &'f mut Call,
    /// Of the copy.
    pub(super) ctx: SigCtx<'f>,
    /// The interrupted mask has been put in force.
    pub(super) is_open: bool,
}

impl<'f> Frame<'f> {
    /// The interrupted context, read-only.
    ///
    /// # Examples
    ///
    /// ```compile_fail,E0596
    /// fn callback(frame: &mut sigctx::inject::Frame<'_>, _: usize) {
    ///     frame.context().set_pc(0); // safe code cannot send the interrupted code astray
    /// }
    /// ```
    #[must_use]
    pub fn context(&self) -> &SigCtx<'f> {
        &self.ctx
    }

    /// The interrupted context. What is written takes effect when the interrupted code goes on.
    ///
    /// # Safety
    ///
    /// What is left in the context is such that the interrupted code can go on.
    #[must_use]
    pub unsafe fn context_mut(&mut self) -> &mut SigCtx<'f> {
        &mut self.ctx
    }

    /// Puts the interrupted code's signal mask in force, for a callback that began with the handler's
    /// ([`Delivery::inject_masked`](crate::handler::Delivery::inject_masked)). A second call does nothing,
    /// whatever the callback has done to its mask meanwhile.
    pub fn open_mask(&mut self) {
        if !core::mem::replace(&mut self.is_open, true) {
            sys::sigprocmask(MaskHow::Set, &self.ctx.signal_mask());
        }
    }

    /// Tells whether the interrupted code's signal mask has been put in force.
    #[must_use]
    pub fn is_mask_open(&self) -> bool {
        self.is_open
    }

    /// A copy of the interrupted code's registers.
    #[must_use]
    pub fn registers(&self) -> Registers {
        self.ctx.registers()
    }

    /// Where everything that the interrupted code had in registers is saved: the general ones, the vectors, and
    /// whatever else the kernel saves. It is on the interrupted stack, below the [red zone](Self::red_zone).
    #[must_use]
    pub fn saved(&self) -> Range<usize> {
        self.call.frame..self.call.end
    }

    /// What is below the interrupted stack pointer and the interrupted code's all the same. Empty on most
    /// architectures.
    #[must_use]
    pub fn red_zone(&self) -> Range<usize> {
        let sp = self.ctx.sp();
        sp.saturating_sub(arch::RED_ZONE)..sp
    }

    /// Makes the frame resume on the calling thread.
    ///
    /// For a callback that switched to another stack and came back on another thread. Without it
    /// the resume would give that thread the alternate stack of the first.
    ///
    /// # Errors
    ///
    /// [`MoveError`]: the frame can only resume on its own thread, or on one like it.
    ///
    /// # Safety
    ///
    /// The interrupted code and its callers on this stack can go on on another thread: no value in
    /// a register or on the stack belongs to the first (addresses of thread-local variables, for
    /// one).
    pub unsafe fn move_here(&mut self) -> Result<(), MoveError> {
        move_here(self.ctx.ucontext_mut(), self.call.end)
    }

    /// Takes the frame out of the callback, to be resumed later, on any thread.
    ///
    /// # Safety
    ///
    /// The callback never returns: its thread leaves this stack and does not come back, and the
    /// stack stays as it is until [`Parked::resume`].
    pub unsafe fn park(&mut self) -> Parked {
        Parked { call: self.call }
    }
}

/// A frame that was taken out of its callback. The interrupted code stands still until it is
/// resumed; dropped, it never goes on.
#[derive(Debug)]
#[must_use = "the interrupted code goes on only when this is resumed"]
pub struct Parked {
    call: *mut Call,
}

// SAFETY: the frame and its record are plain memory that only the holder of this value
// touches (`Frame::park`'s obligation).
unsafe impl Send for Parked {}

impl Parked {
    /// Resumes the interrupted code on the calling thread, which leaves its present stack.
    ///
    /// # Signal safety
    ///
    /// Not from a handler: the thread would never leave it.
    ///
    /// # Errors
    ///
    /// Gives the frame back when it cannot resume on this thread.
    ///
    /// # Safety
    ///
    /// 1. As [`Frame::move_here`].
    /// 2. Nothing on the present stack is needed any more, or a scheduler switches back to it.
    pub unsafe fn resume(self) -> Result<core::convert::Infallible, (Self, MoveError)> {
        // SAFETY: `Frame::park`'s obligation: the record is there and no other code uses it.
        let call = unsafe { &*self.call };
        // SAFETY: as before, for the context.
        let uc = unsafe { &mut *call.ucontext() };
        if let Err(error) = move_here(uc, call.end) {
            return Err((self, error));
        }
        set_errno(call.errno);
        // SAFETY: a copy made by `prepare`, made ready just now, and owned through `self`.
        unsafe { arch::resume(call.frame, call.back, call.active) }
    }
}

/// Every sigreturn installs the alternate stack that the frame recorded: here it becomes the
/// calling thread's, as it is now.
pub(super) fn keep_alt_stack(uc: &mut Ucontext) -> Result<(), Errno> {
    uc.set_alt_stack(altstack::current()?);
    Ok(())
}

/// `end` is where the copied frame ends.
fn move_here(uc: &mut Ucontext, end: usize) -> Result<(), MoveError> {
    arch::check_move(uc, end)?;
    keep_alt_stack(uc).map_err(MoveError::AltStack)?;
    arch::patch_thread(uc, end);
    Ok(())
}
