//! Handlers that share a signal with whoever had it before.
//!
//! One assembly entry is the kernel's handler for every signal installed here. It calls
//! `dispatch`, which offers the signal to the registered handlers, newest first, and at the end to
//! the action that the kernel had at the first install:
//!
//! ```text
//!  kernel -> entry -> newest handler --Chain--> older handler --Chain--> action from before
//!                        |                          |
//!                        +--Resume--> return        +--Inject--> pivot (see `inject`)
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `Slot::head`, `Registration::next` | `install`, `uninstall`, under the lock | `dispatch` | release / acquire | I1, I2 |
//! | `Slot::base` | the same, and `dispatch` for `SA_RESETHAND` | `dispatch` | release / acquire | I3 |
//!
//! - **I1** A registration is never freed or changed but for `next`: a handler may hold one for
//!   ever.
//! - **I2** `head` is published before the kernel is told, so that the entry never finds nothing.
//! - **I3** `base` is set before the kernel is told, and stays: a late handler of an uninstalled
//!   signal still finds whom to give it to. It changes when the kernel's action was reset to the
//!   default or to "ignore" by somebody else and a handler is installed again.
//!
//! **Exit**: nothing to do. **fork**: the child has the same handlers; a fork while another thread
//! installs leaves the lock taken in the child, where it must not install. **Nesting**: while a
//! handler runs its own signal is blocked, and no other, so that at most one frame of each signal
//! is on the alternate stack. With `SA_NODEFER` a sender that is faster than the kernel's delivery
//! piles up frames until the stack overflows, before the handler has executed one instruction.
//! An injected call runs with the interrupted mask: see [`inject`].
//!
//! This file is long because what it installs, what a handler gets and how it is taken out are one
//! story.
//!
//! References: `sigaction(2)`, Go `runtime/signal_unix.go` (`sigfwdgo`).

use core::ffi::{c_int, c_void};
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use alloc::boxed::Box;

use crate::arch;
use crate::context::SigCtx;
use crate::inject::{self, CallStack, InjectError, InjectedFn, Injection};
use crate::sys::{
    self, Errno, KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigInfo, SigSet, rt_sigaction,
};
use crate::vdso;

/// A signal handler. It must keep to what is async-signal-safe.
pub type Handler = fn(&mut Delivery<'_>) -> Flow;

/// What happens after a handler.
#[derive(Debug)]
#[must_use]
pub enum Flow {
    /// The interrupted code goes on.
    Resume,
    /// The signal was not meant for this handler: the next one gets it, and in the end the action
    /// that the kernel had before. After [`Delivery::chain`] the same as `Resume`.
    Chain,
    /// The call prepared by [`Delivery::inject`] is run, and then the interrupted code goes on.
    Inject(Injection),
}

/// Whether errno is kept around a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrnoPolicy {
    /// errno is saved and restored.
    #[default]
    Keep,
    /// The handler does not touch errno, so that it can run on a thread that has no thread-local
    /// storage at all (made by a bare `clone`). On such a thread it injects nothing: errno is kept
    /// around every injected call.
    Untouched,
}

/// How a handler is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether errno is kept around the handler.
    pub errno: ErrnoPolicy,
}

impl Options {
    /// The usual ones: errno is kept.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn new() -> Self {
        Self { errno: ErrnoPolicy::Keep }
    }

    /// Sets whether errno is kept.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub const fn errno(mut self, errno: ErrnoPolicy) -> Self {
        self.errno = errno;
        self
    }
}

/// One handler of one signal.
struct Registration {
    handler: Handler,
    options: Options,
    next: AtomicPtr<Self>,
}

/// What is known of one signal.
struct Slot {
    head: AtomicPtr<Registration>,
    base: AtomicPtr<KernelAction>,
}

/// Indexed by signal number.
static SLOTS: [Slot; arch::NSIG + 1] = [const {
    Slot { head: AtomicPtr::new(ptr::null_mut()), base: AtomicPtr::new(ptr::null_mut()) }
}; arch::NSIG + 1];

static DEFAULT: KernelAction = KernelAction::DEFAULT;

/// The action that the kernel is given in place of `base`.
fn action(signal: i32, base: &KernelAction) -> KernelAction {
    // What the kernel does about children, with whichever handler.
    let mut kept = base.flags & (SaFlags::NOCLDSTOP | SaFlags::NOCLDWAIT);
    if signal == libc::SIGCHLD && base.handler == SIG_IGN {
        // Ignored means: no zombies.
        kept |= SaFlags::NOCLDWAIT;
    }
    KernelAction {
        handler: arch::entry(),
        // ONSTACK: an injected call needs it. RESTART: interrupted calls go on, as far as they can.
        // Not NODEFER, which would save the one system call of an injection: see "Nesting" above.
        flags: kept | SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART,
        mask: SigSet::empty(),
    }
}

/// A handler that is installed. Dropping it leaves the handler where it is.
#[derive(Debug)]
pub struct Installed {
    signal: i32,
    registration: *const Registration,
}

// SAFETY: the registration is shared and never freed (I1).
unsafe impl Send for Installed {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Installed {}

/// Why a handler was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// The kernel does not take a handler for this signal.
    Refused {
        /// The signal.
        signal: i32,
        /// What the kernel said.
        errno: Errno,
    },
    /// Somebody put a handler over one of ours. A new one on top of it would go round in a circle
    /// when that handler chains.
    Covered {
        /// The signal.
        signal: i32,
        /// The address of the handler that covers ours.
        by: usize,
    },
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { signal, errno } => write!(f, "no handler for signal {signal}: {errno}"),
            Self::Covered { signal, by } => {
                write!(f, "handler {by:#x} was put over ours of signal {signal}")
            }
        }
    }
}

impl core::error::Error for InstallError {}

/// Why a handler was not taken away. It is still in force.
#[derive(Debug)]
pub struct UninstallError {
    installed: Installed,
    by: usize,
}

impl UninstallError {
    /// Gives the handler back, to be uninstalled later.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn into_installed(self) -> Installed {
        self.installed
    }

    /// The address of the handler that was put over ours.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn covered_by(&self) -> usize {
        self.by
    }
}

impl fmt::Display for UninstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (signal, by) = (self.installed.signal, self.by);
        write!(f, "handler {by:#x} was put over ours of signal {signal}")
    }
}

impl core::error::Error for UninstallError {}

/// Held while actions change.
struct Installing;

/// 0 free, 1 held, 2 held and somebody waits.
static LOCK: AtomicU32 = AtomicU32::new(0);

impl Installing {
    fn begin() -> Self {
        // Acquire pairs with the release in `drop`: the last holder's changes are seen.
        if LOCK.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while LOCK.swap(2, Ordering::Acquire) != 0 {
                // Spurious returns are the loop's business.
                let _ = sys::futex_wait(&LOCK, 2, None);
            }
        }
        Self
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        if LOCK.swap(0, Ordering::Release) == 2 {
            sys::futex_wake(&LOCK, 1);
        }
    }
}

fn slot(signal: i32) -> Option<&'static Slot> {
    // Slot 0 is there only to make the index the number.
    usize::try_from(signal).ok().filter(|&s| s != 0).and_then(|s| SLOTS.get(s))
}

/// Whether it is somebody else's handler, which may chain to ours. The default action and "ignore"
/// do not: where they were set over ours, ours is gone.
fn covers(handler: usize) -> bool {
    handler != arch::entry() && handler != SIG_DFL && handler != SIG_IGN
}

/// Installs a handler for a signal, before those that are there.
///
/// The kernel's action becomes this crate's entry with `SA_SIGINFO`, `SA_ONSTACK` and `SA_RESTART`,
/// and an empty mask: in the handler only the signal itself is blocked. The action from before is
/// kept and chained to, but system calls that the signal interrupts are restarted even if that
/// action had no `SA_RESTART`: without it every system call of the process could fail because of a
/// signal that is not its owner's. What it said about children (`SA_NOCLDSTOP`, `SA_NOCLDWAIT`, and
/// no zombies when `SIGCHLD` was ignored) holds on. Works for the signals 32 and 33 too, which libc
/// keeps for itself.
///
/// Each call keeps a few words for ever, also after the uninstall: a handler on another thread may
/// still look at them. Install once, not in a loop.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates and locks.
///
/// # Errors
///
/// [`InstallError::Refused`] for a number that is no signal, `SIGKILL` and `SIGSTOP`;
/// [`InstallError::Covered`] when somebody installed a handler over ours. (The default action or
/// "ignore" over ours is an action from before like any other; handlers that are still registered
/// get the signal again then.)
///
/// # Safety
///
/// 1. `handler` is async-signal-safe, on every thread that can get the signal.
/// 2. What it leaves in the context is such that the interrupted code can go on.
/// 3. It returns [`Flow::Inject`] only with what the same call of it prepared.
/// 4. With [`ErrnoPolicy::Untouched`] it does not change errno, and injects only on threads that
///    have thread-local storage.
/// 5. Whoever has code that waits for the signal to interrupt a system call (`EINTR`) agrees:
///    `SA_RESTART` is set, whether the action from before had it or not.
///
/// # References
///
/// `sigaction(2)`, `signal-safety(7)`
pub unsafe fn install(
    signal: i32,
    handler: Handler,
    options: Options,
) -> Result<Installed, InstallError> {
    let refused = |errno| InstallError::Refused { signal, errno };
    let slot = slot(signal).ok_or(refused(Errno::EINVAL))?;
    vdso::find();
    let _installing = Installing::begin();
    // SAFETY: only reads.
    let mut before = unsafe { rt_sigaction(signal, None) }.map_err(refused)?;
    let head = slot.head.load(Ordering::Acquire);
    let first = before.handler != arch::entry();
    if covers(before.handler) && !head.is_null() {
        return Err(InstallError::Covered { signal, by: before.handler });
    }
    let set_base = |base| slot.base.store(Box::leak(Box::new(base)), Ordering::Release);
    if first {
        set_base(before); // I3
    }
    let next = AtomicPtr::new(head);
    let registration = Box::into_raw(Box::new(Registration { handler, options, next }));
    slot.head.store(registration, Ordering::Release); // I2
    if first {
        loop {
            // SAFETY: the entry handles every signal, and the caller answers for `handler`.
            match unsafe { rt_sigaction(signal, Some(&action(signal, &before))) } {
                // Somebody else changed the action since it was read: that is the one to chain to.
                Ok(old) if old != before && old.handler != arch::entry() => {
                    set_base(old);
                    before = old;
                }
                Ok(_) => break,
                Err(errno) => {
                    slot.head.store(head, Ordering::Release);
                    return Err(refused(errno));
                }
            }
        }
    }
    Ok(Installed { signal, registration })
}

impl Installed {
    /// The signal.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn signal(&self) -> i32 {
        self.signal
    }

    /// The action that the kernel had before the first of our handlers.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn previous(&self) -> KernelAction {
        slot(self.signal).map_or(KernelAction::DEFAULT, |slot| *slot.base())
    }

    /// Takes the handler out; with the last one the kernel gets the previous action back.
    ///
    /// A handler that has begun on another thread may still be running afterwards.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: locks.
    ///
    /// # Errors
    ///
    /// When somebody put a handler over ours, which may chain to it. Nothing is changed. The
    /// default action or "ignore" that somebody put in the place of ours stays, and is no error.
    pub fn uninstall(self) -> Result<(), UninstallError> {
        let _installing = Installing::begin();
        let Some(slot) = slot(self.signal) else { return Ok(()) };
        // SAFETY: only reads.
        let now = unsafe { rt_sigaction(self.signal, None) }.unwrap_or(KernelAction::DEFAULT);
        if covers(now.handler) {
            return Err(UninstallError { installed: self, by: now.handler });
        }
        let head = slot.head.load(Ordering::Acquire);
        // SAFETY: registrations are never freed (I1); this one is in the list.
        let ours = unsafe { &*self.registration };
        let next = ours.next.load(Ordering::Acquire);
        let last = ptr::eq(head, self.registration) && next.is_null();
        // What was set in our place stays.
        if last && now.handler == arch::entry() {
            // SAFETY: gives back what was there.
            let old = unsafe { rt_sigaction(self.signal, Some(slot.base())) };
            if let Ok(old) = old
                && old.handler != arch::entry()
            {
                // Somebody came in between: theirs stays. It was in force, so it is valid.
                // SAFETY: gives back what was there.
                let _ = unsafe { rt_sigaction(self.signal, Some(&old)) };
                if covers(old.handler) {
                    return Err(UninstallError { installed: self, by: old.handler });
                }
            }
        }
        let mut link = &slot.head;
        while let Some(at) = {
            let at = link.load(Ordering::Acquire);
            // SAFETY: null, or a registration that is never freed (I1).
            unsafe { at.as_ref() }
        } {
            if ptr::eq(at, self.registration) {
                link.store(next, Ordering::Release);
                break;
            }
            link = &at.next;
        }
        Ok(())
    }
}

impl Slot {
    fn base(&self) -> &'static KernelAction {
        let base = self.base.load(Ordering::Acquire);
        // SAFETY: null, or leaked by `install`, or the static default.
        unsafe { base.as_ref() }.unwrap_or(&DEFAULT)
    }
}

/// A signal, in the handler that got it. Dereferences to the interrupted context.
pub struct Delivery<'h> {
    ctx: SigCtx<'h>,
    signal: i32,
    entry_sp: usize,
    slot: &'static Slot,
    /// Who comes next; null when only the action from before is left.
    rest: *const Registration,
    /// Of the handler that had it last. None had it: the action from before keeps errno itself, as
    /// with the kernel.
    errno: ErrnoPolicy,
    /// Everybody has been offered the signal.
    offered: bool,
    /// What the last handler that wanted one prepared.
    injection: Option<Injection>,
}

impl Delivery<'_> {
    /// Offers the signal to the next handlers and the action from before, now.
    ///
    /// For a handler that took the signal for its own, when a sender of somebody else's may have
    /// been merged with it: the kernel keeps one pending instance of a standard signal. Does
    /// nothing the second time.
    ///
    /// # Signal safety
    ///
    /// Handler only.
    pub fn chain(&mut self) {
        while !self.offered {
            // SAFETY: null, or a registration that is never freed (I1).
            let Some(registration) = (unsafe { self.rest.as_ref() }) else {
                self.offered = true;
                self.previous_action();
                return;
            };
            self.rest = registration.next.load(Ordering::Acquire);
            self.errno = registration.options.errno;
            let flow = keeping(self.errno, || (registration.handler)(self));
            match flow {
                Flow::Chain => {}
                Flow::Resume => self.offered = true,
                Flow::Inject(injection) => {
                    self.offered = true;
                    self.injection = Some(injection);
                }
            }
        }
    }

    /// Prepares a call of `call` on the interrupted stack: return it as [`Flow::Inject`].
    ///
    /// The call gets `data` and the interrupted context; after it the interrupted code goes on with
    /// every register, flag and vector as it was. What is written to the context after this, by
    /// this handler or the ones after it, is lost; write it in the callback, with
    /// [`Frame::context_mut`](crate::inject::Frame::context_mut).
    ///
    /// # Signal safety
    ///
    /// Handler only.
    ///
    /// # Errors
    ///
    /// [`InjectError`] says why not. Nothing has changed then.
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
        // SAFETY: the caller's obligations; the entry's stack pointer comes from the assembly.
        unsafe { inject::prepare(&self.ctx, self.entry_sp, onto, call, data) }
    }

    /// Does what the kernel would have done before the first install.
    fn previous_action(&mut self) {
        let mut base = self.slot.base();
        let function = !matches!(base.handler, SIG_DFL | SIG_IGN);
        if function && base.flags.contains(SaFlags::RESETHAND) {
            let seen = ptr::from_ref(base).cast_mut();
            let default = ptr::from_ref(&DEFAULT).cast_mut();
            // Release for `base`'s readers; acquire: a failure reads what another thread put there.
            let (set, failed) = (Ordering::AcqRel, Ordering::Acquire);
            if self.slot.base.compare_exchange(seen, default, set, failed).is_err() {
                // Another thread had the one call; this signal gets what is there now.
                base = self.slot.base();
            }
        }
        match base.handler {
            SIG_IGN => {}
            SIG_DFL => default_action(self.signal, self.slot, self.ctx.info()),
            handler => {
                // Ours is blocked; theirs may be written to be interrupted by its own signal.
                let mask = if base.flags.contains(SaFlags::NODEFER) {
                    sys::sigprocmask(MaskHow::Unblock, &SigSet::of(self.signal))
                } else {
                    sys::sigprocmask(MaskHow::Block, &SigSet::of(self.signal))
                };
                sys::sigprocmask(MaskHow::Block, &base.mask);
                let (info, uc) = self.ctx.as_raw();
                // SAFETY: it was the kernel's handler for this signal, and gets what the kernel
                // would have given it.
                keeping(self.errno, || unsafe {
                    call_c(handler, base.flags, self.signal, info, uc);
                });
                sys::sigprocmask(MaskHow::Set, &mask);
            }
        }
    }
}

/// Calls `body`, with errno kept or not.
#[inline(always)]
fn keeping<T>(policy: ErrnoPolicy, body: impl FnOnce() -> T) -> T {
    match policy {
        ErrnoPolicy::Keep => {
            let errno = inject::errno();
            let result = body();
            inject::set_errno(errno);
            result
        }
        ErrnoPolicy::Untouched => body(),
    }
}

/// Calls a handler of C's.
///
/// # Safety
///
/// `handler` is the address of a handler for `flags`, and the rest is what it expects.
unsafe fn call_c(
    handler: usize,
    flags: SaFlags,
    signal: c_int,
    info: *mut c_void,
    uc: *mut c_void,
) {
    type Plain = extern "C" fn(c_int);
    type Full = extern "C" fn(c_int, *mut c_void, *mut c_void);
    let address = ptr::with_exposed_provenance::<()>(handler);
    if flags.contains(SaFlags::SIGINFO) {
        // SAFETY: the caller's obligation.
        let function = unsafe { core::mem::transmute::<*const (), Full>(address) };
        function(signal, info, uc);
    } else {
        // SAFETY: the caller's obligation.
        let function = unsafe { core::mem::transmute::<*const (), Plain>(address) };
        function(signal);
    }
}

/// What the kernel does by default. What ends the process does so at the interrupted instruction.
fn default_action(signal: i32, slot: &Slot, info: &SigInfo) {
    let stops = match signal {
        // Ignored by default; SIGCONT has done its work when it was sent.
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => return,
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => true,
        _ => false,
    };
    // It is blocked here, and so waits until the context is back: a core dump then shows the code
    // that was interrupted, not this.
    // SAFETY: the default action is what was there.
    let set = unsafe { rt_sigaction(signal, Some(&DEFAULT)) };
    let (pid, tid) = (sys::getpid(), sys::gettid());
    if sys::queue_info(pid, tid, info).is_err() {
        // The queue is full. A standard signal gets through without its information.
        // When that fails, too, there is nothing else to do.
        let _ = sys::tgkill(pid, tid, signal);
    }
    if stops && set.is_ok() {
        // Stops here; goes on after SIGCONT.
        let mask = sys::sigprocmask(MaskHow::Unblock, &SigSet::of(signal));
        sys::sigprocmask(MaskHow::Set, &mask);
        // Not what was read above: another thread that does the same here may have set that. Nor
        // when the last handler has been taken out meanwhile.
        if !slot.head.load(Ordering::Acquire).is_null() {
            // SAFETY: the entry handles every signal. It was in force a moment ago, so it is valid.
            let _ = unsafe { rt_sigaction(signal, Some(&action(signal, slot.base()))) };
        }
    }
}

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
    let Some(slot) = slot(signal) else { return 0 };
    let rest = slot.head.load(Ordering::Acquire);
    // SAFETY: the kernel's own arguments; this call outlives the value, and nobody else has them.
    let ctx = unsafe { SigCtx::from_raw(info, uc) };
    let errno = ErrnoPolicy::Untouched;
    let mut delivery =
        Delivery { ctx, signal, entry_sp, slot, rest, errno, offered: false, injection: None };
    delivery.chain();
    delivery.injection.take().map_or(0, Injection::into_raw)
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

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("options", &self.options).finish_non_exhaustive()
    }
}
