//! Previous actions, those that the kernel had before ours, and what is done with a signal that none of
//! our handlers took.

use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use alloc::boxed::Box;

use super::{ErrnoPolicy, SignalEntry, action, covers, signal_entry, try_installing};
use crate::arch::{self, Ucontext};
use crate::chain::{self, Finds, Part, Passage, Seen};
use crate::inject;
use crate::sys::{
    self, KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigInfo, SigSet, rt_sigaction,
};

/// A previous action.
#[derive(Debug)]
pub(super) struct Previous {
    signal: i32,
    action: AtomicPtr<KernelAction>,
    /// When it was found last, in two words: not every architecture has atomics of 64 bits. A reader that
    /// comes between the two stores has the order of the actions wrong, once.
    time: [AtomicU32; 2],
    older: *const Self,
}

/// Time since the system's start, in nanoseconds.
fn now() -> u64 {
    // SAFETY: zeroes are a time.
    let mut time: libc::timespec = unsafe { core::mem::zeroed() };
    // SAFETY: writes one live structure. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

static DEFAULT: KernelAction = KernelAction::DEFAULT;
static IGNORE: KernelAction = KernelAction { handler: SIG_IGN, ..KernelAction::DEFAULT };

impl Previous {
    pub(super) fn action(&self) -> &'static KernelAction {
        // SAFETY: a static or leaked (I4). Acquire: pairs with the release of the thread that set it.
        unsafe { &*self.action.load(Ordering::Acquire) }
    }

    fn older(&self) -> Option<&'static Self> {
        // SAFETY: null, or leaked by `found` (I1).
        unsafe { self.older.as_ref() }
    }

    fn time(&self) -> u64 {
        // Relaxed: see the field.
        let high = self.time[0].load(Ordering::Relaxed);
        (u64::from(high) << 32 | u64::from(self.time[1].load(Ordering::Relaxed))).max(2)
    }

    fn found_at(&self, time: u64) {
        // Relaxed: see the field.
        self.time[0].store((time >> 32) as u32, Ordering::Relaxed);
        self.time[1].store(time as u32, Ordering::Relaxed);
    }

    fn set(&self, action: &'static KernelAction) {
        // Release: pairs with `action`.
        self.action.store(ptr::from_ref(action).cast_mut(), Ordering::Release);
    }

    /// The action for one more signal. A handler that was installed for one call (`SA_RESETHAND`) is
    /// given out once; after it there is the default action.
    fn take(&self) -> &'static KernelAction {
        let now = self.action();
        if covers(now.handler) && now.flags.contains(SaFlags::RESETHAND) {
            let seen = ptr::from_ref(now).cast_mut();
            let default = (&raw const DEFAULT).cast_mut();
            // Release for `action`'s readers; acquire: a failure reads what another thread put there.
            let (set, failed) = (Ordering::AcqRel, Ordering::Acquire);
            if self.action.compare_exchange(seen, default, set, failed).is_err() {
                // Another thread took the one call; this signal gets the action that is there now.
                return self.action();
            }
        }
        now
    }
}

impl SignalEntry {
    /// Keeps an action that the kernel has, and that ours is about to replace. With `anew`, or where it is
    /// no handler, it becomes the only one. Called under the lock.
    pub(super) fn found(&self, signal: i32, action: KernelAction, anew: bool) {
        let anew = anew || !covers(action.handler);
        let mut all = core::iter::successors(self.newest(), |previous| previous.older());
        let known = all.find(|known| known.action().handler == action.handler);
        if let Some(known) = known.filter(|known| !anew && *known.action() == action) {
            known.found_at(now());
            self.latest.store(ptr::from_ref(known).cast_mut(), Ordering::Release);
            return;
        }
        let older = if anew { ptr::null() } else { self.newest.load(Ordering::Acquire) };
        let action = AtomicPtr::new(Box::into_raw(Box::new(action)));
        let time = [const { AtomicU32::new(0) }; 2];
        let found = Box::new(Previous { signal, action, time, older });
        found.found_at(now());
        let found = Box::into_raw(found);
        self.latest.store(found, Ordering::Release);
        self.newest.store(found, Ordering::Release);
    }

    /// Whether there is nothing to hand the signal to: behind ours is but one action, which does nothing.
    #[inline]
    pub(super) fn ends_in_nothing(&self, signal: i32) -> bool {
        does_nothing_by_default(signal)
            && self.newest().is_none_or(|previous| {
                previous.older().is_none() && !covers(previous.action().handler)
            })
    }

    fn newest(&self) -> Option<&'static Previous> {
        // SAFETY: null, or leaked by `found` (I1). Acquire: pairs with `found`.
        unsafe { self.newest.load(Ordering::Acquire).as_ref() }
    }

    /// The action that ours has replaced.
    pub(super) fn latest(&self) -> &'static KernelAction {
        // SAFETY: null, or leaked by `found` (I1). Acquire: pairs with `found`.
        let latest = unsafe { self.latest.load(Ordering::Acquire).as_ref() };
        latest.map_or(&DEFAULT, Previous::action)
    }
}

/// Whether the kernel would not let a signal be ignored: it comes from the instruction that was
/// interrupted, which would only raise it again.
fn is_forced(info: &SigInfo) -> bool {
    SigSet::synchronous().contains(info.signo()) && info.code() > 0
}

/// No handler's address: the kernel itself has called ours.
pub(super) const NO_CALLER: usize = usize::MAX;

/// One signal, on its way through the previous actions.
pub(super) struct HandOn<'s> {
    pub(super) signal: i32,
    pub(super) signal_entry: &'s SignalEntry,
    pub(super) info: *mut SigInfo,
    pub(super) uc: *mut Ucontext,
    /// Is left in `uc`.
    pub(super) passage: *mut Passage,
    pub(super) errno: ErrnoPolicy,
    /// What has most likely called ours: a handler of no copy of this crate, which is the kernel's
    /// action. It has had the signal, and gets it again only when there is no other way.
    pub(super) caller: usize,
    /// Where the frame was entered, when an action without `SA_ONSTACK` can be carried out later on the
    /// interrupted stack; else 0.
    pub(super) entry_sp: usize,
}

impl Finds for HandOn<'_> {
    type Find = &'static Previous;

    fn latest(&self, seen: &Seen) -> Option<(&'static Previous, u64, Option<usize>)> {
        let mut latest = None;
        let mut last = 0;
        let mut at = self.signal_entry.newest();
        while let Some(previous) = at {
            at = previous.older();
            let handler = previous.action().handler;
            let time = if handler == self.caller { 1 } else { previous.time() };
            if time > last && !(covers(handler) && seen.has(handler)) {
                last = time;
                latest = Some((previous, time, if covers(handler) { Some(handler) } else { None }));
            }
        }
        latest
    }

    fn call(&mut self, previous: &'static Previous) {
        // It may have changed since `latest` looked: another thread may have taken the one call.
        let action = previous.take();
        if !covers(action.handler) {
            // SAFETY: alive, and not borrowed while no handler runs.
            unsafe { (*self.passage).seen.end() };
            // SAFETY: the kernel's information on the signal.
            let info = unsafe { &*self.info };
            if action.handler == SIG_DFL || is_forced(info) {
                default_action(self.signal, info);
            }
            return;
        }
        if !action.flags.contains(SaFlags::ONSTACK) && self.entry_sp != 0 && self.can_leave() {
            // SAFETY: as above.
            let later = unsafe { &mut (*self.passage).deferred };
            later.function = Some(carry_out_later);
            later.previous = ptr::from_ref(previous).cast();
            later.action = ptr::from_ref(action).cast();
            return;
        }
        let (info, uc) = (self.info.cast(), self.uc.cast());
        // SAFETY: the action was the kernel's for this signal, and gets what the kernel would have given
        // it.
        keeping(self.errno, || unsafe { previous.carry_out(action, info, uc) });
    }

    fn call_again(&mut self, copy: usize) {
        let (signal, info, uc) = (self.signal, self.info.cast(), self.uc.cast());
        // SAFETY: a handler of three arguments, which has had this signal before.
        keeping(self.errno, || unsafe { call_c(copy, SaFlags::SIGINFO, signal, info, uc) });
    }
}

impl HandOn<'_> {
    /// Whether the handler can be left for the interrupted stack.
    fn can_leave(&self) -> bool {
        // SAFETY: alive, and not borrowed while no handler runs.
        let prepared = unsafe { (*self.passage).call } != 0;
        // A call that has been prepared has its frame there already, which the look would write to.
        // SAFETY: the kernel's frame.
        prepared || inject::can_leave(unsafe { &*self.uc }, self.entry_sp)
    }

    /// Does what the kernel would have done before the first install: hands the signal to the previous
    /// actions, until one is the end of the chain.
    ///
    /// # Safety
    ///
    /// The pointers are those that the kernel gave to the handler, or point into the frame's copy.
    pub(super) unsafe fn run(mut self, place: (usize, Part)) {
        let passage = self.passage;
        // SAFETY: the caller's obligation.
        unsafe { chain::hand_on(passage, place, &mut self) };
    }
}

/// Carries out an action that [`HandOn::run`] deferred, and what comes after it, if anything does.
///
/// # Safety
///
/// The first two are from [`Deferred`](crate::chain::Deferred); the last two are those of the frame, or
/// of its copy, in which the passage is left.
unsafe extern "C" fn carry_out_later(
    previous: *const c_void,
    action: *const c_void,
    passage: *mut Passage,
    info: *mut c_void,
    uc: *mut Ucontext,
) {
    // SAFETY: `run` took it from a reference that is static.
    let previous = unsafe { &*previous.cast::<Previous>() };
    // SAFETY: as above.
    let action = unsafe { &*action.cast::<KernelAction>() };
    // SAFETY: as in `run`.
    unsafe { previous.carry_out(action, info, uc.cast()) };
    // SAFETY: alive, and not borrowed while no handler runs.
    let seen = unsafe { &mut (*passage).seen };
    let signal = previous.signal;
    if let (false, Some(signal_entry)) = (seen.has_ended(), signal_entry(signal))
        && let Some((place, _)) = seen.enter(arch::entry())
    {
        let (info, errno, caller, entry_sp) = (info.cast(), ErrnoPolicy::Untouched, NO_CALLER, 0);
        let rest = HandOn { signal, signal_entry, info, uc, passage, errno, caller, entry_sp };
        // SAFETY: the caller's obligation.
        unsafe { rest.run((place, Part::First)) };
    }
}

// Not inlined, so that their temporaries are off a small stack while the handler runs.

#[inline(never)]
fn change_mask(how: MaskHow, set: SigSet) -> SigSet {
    sys::sigprocmask(how, &set)
}

#[inline(never)]
fn kernels_action(signal: i32) -> Option<KernelAction> {
    // SAFETY: only reads.
    unsafe { rt_sigaction(signal, None) }.ok()
}

impl Previous {
    /// Calls a handler as the kernel would: with its mask, and with this action, or what it makes of
    /// it, in force.
    ///
    /// # Safety
    ///
    /// `action` was the kernel's, and the pointers are what its handler expects.
    unsafe fn carry_out(&self, action: &'static KernelAction, info: *mut c_void, uc: *mut c_void) {
        let signal = self.signal;
        // The signal is blocked in ours; this handler may count on being interrupted by it.
        let nodefer = action.flags.contains(SaFlags::NODEFER);
        let how = if nodefer { MaskHow::Unblock } else { MaskHow::Block };
        let mask = change_mask(how, SigSet::of(signal));
        change_mask(MaskHow::Block, action.mask);
        let top = kernels_action(signal);
        // SAFETY: the caller's obligation.
        unsafe { call_c(action.handler, action.flags, signal, info, uc) };
        if let Some(top) = top {
            self.keep(action, &top);
        }
        change_mask(MaskHow::Set, mask);
    }

    /// Undoes what a previous handler did to the kernel's action, which was `top`, and does it to the
    /// handler's own action: that is the one which the handler believes to be in force. `std`'s handler of
    /// `SIGSEGV`, for one, sets the default action when the fault is not in a guard page.
    fn keep(&self, action: &'static KernelAction, top: &KernelAction) {
        // SAFETY: only reads.
        let Ok(now) = (unsafe { rt_sigaction(self.signal, None) }) else { return };
        let its_own = match now.handler {
            SIG_DFL => &DEFAULT,
            SIG_IGN => &IGNORE,
            handler if handler == action.handler => action,
            // Still ours, or a new handler, which covers ours like any other.
            _ => return,
        };
        if !covers_or_ours(top.handler) || top.handler == now.handler {
            return;
        }
        let Some(signal_entry) = signal_entry(self.signal) else { return };
        // Our action changes under this lock alone. A thread that holds it has taken ours out, or puts it
        // on top.
        let Some(_installing) = try_installing() else { return };
        if signal_entry.head.load(Ordering::Acquire).is_null() {
            return;
        }
        self.set(its_own);
        // SAFETY: it was in force a moment ago.
        let old = unsafe { rt_sigaction(self.signal, Some(top)) };
        if let Ok(old) = old
            && old.handler != now.handler
            && covers_or_ours(old.handler)
        {
            // Another action was set in between: it stays.
            // SAFETY: it was in force, so it is valid.
            let _ = unsafe { rt_sigaction(self.signal, Some(&old)) };
        }
    }
}

fn covers_or_ours(handler: usize) -> bool {
    !matches!(handler, SIG_DFL | SIG_IGN)
}

/// Calls `body`, with errno kept or not.
#[inline(always)]
pub(super) fn keeping<T>(policy: ErrnoPolicy, body: impl FnOnce() -> T) -> T {
    match policy {
        ErrnoPolicy::Keep => {
            let errno = sys::errno();
            let result = body();
            sys::set_errno(errno);
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

/// Whether a signal is ignored by default; SIGCONT did its work when it was sent.
fn does_nothing_by_default(signal: i32) -> bool {
    matches!(signal, libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT)
}

/// Does what the kernel does by default. A signal that ends the process does so at the interrupted
/// instruction.
fn default_action(signal: i32, info: &SigInfo) {
    let stops = match signal {
        _ if does_nothing_by_default(signal) => return,
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => true,
        _ => false,
    };
    // The signal is blocked here, and waits until the interrupted code goes on: a core dump shows that
    // code, not this.
    // SAFETY: the default action is what was there.
    let set = unsafe { rt_sigaction(signal, Some(&DEFAULT)) };
    let (pid, tid) = (sys::getpid(), sys::gettid());
    if sys::queue_info(pid, tid, info).is_err() {
        // The queue is full. A standard signal gets through without its information.
        // When that fails, too, there is nothing else to do.
        let _ = sys::tgkill(pid, tid, signal);
    }
    if stops && let (Ok(top), Some(signal_entry)) = (set, signal_entry(signal)) {
        // Stops here; goes on after SIGCONT.
        let mask = sys::sigprocmask(MaskHow::Unblock, &SigSet::of(signal));
        sys::sigprocmask(MaskHow::Set, &mask);
        // `top` is ours, or that of a handler that covers ours, or the default action, which another thread
        // in this place has set. Nothing is put back when the last handler was uninstalled meanwhile.
        let top = if covers(top.handler) { top } else { action(signal, signal_entry.latest()) };
        if !signal_entry.head.load(Ordering::Acquire).is_null() {
            // SAFETY: it was in force a moment ago, so it is valid.
            let _ = unsafe { rt_sigaction(signal, Some(&top)) };
        }
    }
}
