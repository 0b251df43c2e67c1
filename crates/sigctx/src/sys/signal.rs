//! Sending signals, masking them, and setting the kernel's action for one.

use core::mem::size_of;

use bitflags::bitflags;

use super::{Errno, SigInfo, SigSet, Tid, getpid, id_calls, syscall, syscall_raw};
use crate::arch::RawAction;

/// The handler word of the default action.
pub const SIG_DFL: usize = libc::SIG_DFL;
/// The handler word of an ignored signal.
pub const SIG_IGN: usize = libc::SIG_IGN;

bitflags! {
    /// Flags of a kernel action; the one for the restorer is kept by the architecture.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SaFlags: u32 {
        /// No signal to the parent when a child stops.
        const NOCLDSTOP = libc::SA_NOCLDSTOP as u32;
        /// Children leave no zombie.
        const NOCLDWAIT = libc::SA_NOCLDWAIT as u32;
        /// The signal is not blocked while its handler runs.
        const NODEFER = libc::SA_NODEFER as u32;
        /// The handler runs on the alternate stack, where there is one.
        const ONSTACK = libc::SA_ONSTACK as u32;
        /// The action becomes the default one before the handler runs.
        const RESETHAND = libc::SA_RESETHAND as u32;
        /// Interrupted system calls are restarted where they can be.
        const RESTART = libc::SA_RESTART as u32;
        /// The handler takes three arguments.
        const SIGINFO = libc::SA_SIGINFO as u32;
        /// Flags that this list does not name are kept as they are.
        const _ = !0;
    }
}

/// What the kernel does with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAction {
    /// Address of the handler, or [`SIG_DFL`], or [`SIG_IGN`].
    pub handler: usize,
    /// How the handler is called.
    pub flags: SaFlags,
    /// Signals blocked while the handler runs.
    pub mask: SigSet,
}

impl KernelAction {
    /// The default action.
    pub const DEFAULT: Self =
        Self { handler: SIG_DFL, flags: SaFlags::empty(), mask: SigSet::empty() };
}

/// Reads the action for `sig` and, with `new`, replaces it. Works for 32 and 33 too, which libc
/// keeps for itself.
///
/// The restorer of a handler is this crate's own: a byte for byte copy of the one that debuggers
/// and unwinders know. On 386 it is the vDSO's, where there is one.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// `EINVAL` for `SIGKILL`, `SIGSTOP` or a number that is no signal.
///
/// # Safety
///
/// 1. `new.handler` is [`SIG_DFL`], [`SIG_IGN`] or a function that the kernel may call with
///    `new.flags`, forever or until the action is replaced and no call of it is left.
/// 2. The code that installed the present action can live without it.
///
/// # References
///
/// `sigaction(2)`, `rt_sigaction` in the kernel's `kernel/signal.c`
#[inline]
pub unsafe fn rt_sigaction(sig: i32, new: Option<&KernelAction>) -> Result<KernelAction, Errno> {
    let raw = new.map(RawAction::new);
    let new = raw.as_ref().map_or(0, |raw| &raw const *raw as usize);
    let mut old = RawAction::new(&KernelAction::DEFAULT);
    let args = [sig as usize, new, &raw mut old as usize, size_of::<SigSet>(), 0, 0];
    // SAFETY: both pointers are to the kernel's own layout and live during the call; what the
    // action does is the caller's obligation.
    unsafe { syscall(libc::SYS_rt_sigaction, args) }?;
    Ok(old.action())
}

/// How [`sigprocmask`] changes the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskHow {
    /// Adds the set to the mask.
    Block,
    /// Takes the set from the mask.
    Unblock,
    /// Makes the set the mask.
    Set,
}

/// Changes the calling thread's signal mask and returns what it was.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe). In a handler the change ends when the handler returns.
///
/// # References
///
/// `rt_sigprocmask(2)`
#[expect(clippy::must_use_candidate, reason = "often only the change is wanted")]
#[inline(always)]
pub fn sigprocmask(how: MaskHow, set: &SigSet) -> SigSet {
    let how = match how {
        MaskHow::Block => libc::SIG_BLOCK,
        MaskHow::Unblock => libc::SIG_UNBLOCK,
        MaskHow::Set => libc::SIG_SETMASK,
    };
    let mut old = SigSet::empty();
    let new = &raw const *set as usize;
    let args = [how as usize, new, &raw mut old as usize, size_of::<SigSet>(), 0, 0];
    // It cannot fail: there is nothing in it that the kernel refuses.
    // SAFETY: both sets live during the call and are of the size given.
    let _ = unsafe { syscall_raw(libc::SYS_rt_sigprocmask, args) };
    old
}

/// Sends `sig` to a process. Signal 0 only asks whether it could be sent.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// `ESRCH`, `EPERM`, `EINVAL`.
///
/// # References
///
/// `kill(2)`
#[inline]
pub fn kill(pid: i32, sig: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_kill, [pid as usize, sig as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Sends `sig` to a thread of a process. Signal 0 only asks whether it could be sent.
///
/// The handler of a signal takes it at its word. The signals 32 and 33 are libc's
/// (`pthread_cancel`, and `setuid` on all threads): sent to a thread of this process without a
/// handler of one's own, they unwind or break it.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// `ESRCH` when the thread is gone, `EAGAIN` when the queue is full (real-time signals only),
/// `EPERM`, `EINVAL`.
///
/// # References
///
/// `tgkill(2)`
#[inline]
pub fn tgkill(pid: i32, tid: Tid, sig: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_tgkill, [pid as usize, tid as usize, sig as usize, 0, 0, 0]) }
        .map(drop)
}

/// Sends `sig` to a thread of a process, with a code of the sender's choice and a value.
///
/// The receiver finds them in [`SigCtx::code`](crate::SigCtx::code) and
/// [`SigCtx::value`](crate::SigCtx::value). A private negative code tells a runtime's own signal
/// from all others. Codes that are not negative are the kernel's: handlers believe what comes
/// with them, the address of a fault for one, so they cannot be sent.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe).
///
/// # Errors
///
/// As [`tgkill`], and `EAGAIN` when the queue is full; `EINVAL` for a code that is not negative;
/// `EPERM` for `SI_TKILL` to another process.
///
/// # References
///
/// `rt_tgsigqueueinfo(2)`
#[inline]
pub fn tgsigqueueinfo(pid: i32, tid: Tid, sig: i32, code: i32, value: usize) -> Result<(), Errno> {
    if code >= 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: takes no arguments and cannot fail.
    let uid = unsafe { syscall_raw(id_calls::GETUID, [0; 6]) } as u32;
    queue_info(pid, tid, &SigInfo::queued(sig, code, getpid(), uid, value))
}

/// Sends a signal with all its information as it is, to hand one on.
#[inline]
pub(crate) fn queue_info(pid: i32, tid: Tid, info: &SigInfo) -> Result<(), Errno> {
    let at = &raw const *info as usize;
    let args = [pid as usize, tid as usize, info.signo() as usize, at, 0, 0];
    // SAFETY: the information lives during the call and has the kernel's layout.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::gettid;

    #[test]
    fn mask_round_trip_shows_the_signal_libc_hides() {
        let before = sigprocmask(MaskHow::Block, &SigSet::of(33));
        let inside = sigprocmask(MaskHow::Set, &before);
        assert!(inside.contains(33), "{inside:?}");
        assert_eq!(sigprocmask(MaskHow::Block, &SigSet::empty()), before);
    }

    #[test]
    fn signal_zero_finds_this_thread_and_not_another() {
        assert_eq!(tgkill(getpid(), gettid(), 0), Ok(()));
        // Threads of another process are not found under this one's id.
        assert_eq!(tgkill(getpid(), 1, 0), Err(Errno::ESRCH));
        assert_eq!(tgkill(getpid(), gettid(), 1000), Err(Errno::EINVAL));
    }

    #[test]
    fn no_code_of_the_kernels_is_sent() {
        let blocked = SigSet::of(libc::SIGUSR2);
        let before = sigprocmask(MaskHow::Block, &blocked);
        for code in [libc::SI_USER, 1, 0x80, i32::MAX] {
            let sent = tgsigqueueinfo(getpid(), gettid(), libc::SIGUSR2, code, 0);
            assert_eq!(sent, Err(Errno::EINVAL), "code {code}");
        }
        sigprocmask(MaskHow::Set, &before);
    }

    #[test]
    fn sigkill_has_no_handler() {
        // SAFETY: the kernel refuses it.
        let result = unsafe { rt_sigaction(libc::SIGKILL, Some(&KernelAction::DEFAULT)) };
        assert_eq!(result, Err(Errno::EINVAL));
    }
}
