//! The signal that brings a thread into the hold, and its handler.
//!
//! By default it is 33. No mask that libc builds can contain it, so that threads which "block
//! everything" still hear it; and glibc leaves exactly this one open in the parts of a thread's
//! exit in which the thread takes locks that a held thread may own. glibc uses 33 itself, for its
//! own set*id broadcast, and musl for cancellation: the handler that was there is kept, and gets
//! every instance that is not ours. Ours are told apart by a private `si_code`, which nobody but
//! the sender chooses; nothing in the signal is dereferenced.
//!
//! **The handler runs on threads of any origin**, also on those that have no thread-local storage
//! or share somebody else's, in the middle of `malloc` or of libc's own thread code. It may only
//! touch `BLOCK` and make raw system calls. What it calls is inlined; `tests/handler_code.rs`
//! looks at the machine code.

use core::ffi::{c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use sigctx::sys::{
    self, Errno, KernelAction, SIG_DFL, SIG_IGN, SaFlags, SigSet, Tid, rt_sigaction, syscall,
    syscall_raw,
};

use crate::block::BLOCK;
use crate::hold::Futex;

/// The signal that libc's masks cannot contain.
pub(crate) const DEFAULT: i32 = 33;

/// Our instances. Negative, so that the kernel lets a thread send it to another; none of libc's.
const CODE: i32 = -60;
/// In `si_errno` of an instance that is being chained: it has been here before.
const CHAINED: i32 = 0x7461;
/// Signals an architecture may have (128 on MIPS), and one more because they count from 1.
const SIGNALS: usize = 129;

type Action = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The handlers that were there before ours, by signal.
pub(crate) struct Previous([AtomicPtr<c_void>; SIGNALS]);

impl Previous {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS])
    }
}

/// Sleeping and waking by raw system calls, for the handler.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

impl Kernel {
    #[inline(always)]
    fn futex(word: &AtomicU32, operation: c_int, value: u32) {
        let operation = (operation | libc::FUTEX_PRIVATE_FLAG) as usize;
        let args = [word.as_ptr() as usize, operation, value as usize, 0, 0, 0];
        // SAFETY: the word is alive during the call, and there is no timeout. Early returns and
        // errors (EAGAIN, EINTR) only make the caller look at the word again.
        let _looked_at_again = unsafe { syscall_raw(libc::SYS_futex, args) };
    }
}

impl Futex for Kernel {
    type Timeout = core::time::Duration;

    #[inline(always)]
    fn wait(&self, word: &AtomicU32, expected: u32) {
        Self::futex(word, libc::FUTEX_WAIT, expected);
    }

    fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
        // Early returns are as good as late ones.
        let _ = sys::futex_wait(word, expected, Some(timeout));
    }

    #[inline(always)]
    fn wake_one(&self, word: &AtomicU32) {
        Self::futex(word, libc::FUTEX_WAKE, 1);
    }

    #[inline(always)]
    fn wake_all(&self, word: &AtomicU32) {
        Self::futex(word, libc::FUTEX_WAKE, i32::MAX as u32);
    }
}

/// The handler. `tests/handler_code.rs` finds its machine code by its name.
unsafe extern "C" fn allthreads_on_signal(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    // SAFETY: the kernel's frame is this handler's until it returns.
    let info = unsafe { &mut *info };
    // An instance of `kill`, sent when the queue was full, cannot carry the code.
    let ours = info.si_code == CODE
        || (info.si_code == libc::SI_USER && BLOCK.broadcast.load(Ordering::Relaxed) != 0);
    if ours {
        hold();
    } else {
        chain(signal, info, context);
    }
}

#[inline(always)]
fn hold() {
    // A child of vfork runs in its parent's memory, and a forked child in a copy of it: neither
    // is one of the threads that the block counts.
    if BLOCK.process.load(Ordering::Acquire) != sys::getpid() as u32 {
        return;
    }
    let tid = sys::gettid();
    let Some(number) = BLOCK.hold.join(|| BLOCK.excluded.contains(tid)) else { return };
    if let Some(entry) = BLOCK.table.entry(tid) {
        entry.set_arrived();
    }
    BLOCK.hold.arrived(&Kernel, number);
    BLOCK.hold.stay(&Kernel, || BLOCK.calls.run(tid));
}

/// Hands an instance that is not ours to the handler that was there before. Its mask is ignored:
/// it runs with all signals masked. With none there the instance is dropped, because the default
/// action of a real-time signal would end the process.
#[inline(always)]
fn chain(signal: c_int, info: &mut libc::siginfo_t, context: *mut c_void) {
    // Who installed over us may chain to us, and we to it since: once round is enough.
    if info.si_errno == CHAINED {
        return;
    }
    let Some(previous) = BLOCK.previous.0.get(signal as usize) else { return };
    // Acquire: pairs with `install`.
    let previous = previous.load(Ordering::Acquire);
    if previous.addr() == SIG_DFL || previous.addr() == SIG_IGN {
        return;
    }
    let errno = mem::replace(&mut info.si_errno, CHAINED);
    // SAFETY: it was the kernel's action for this signal, so it is a handler, of three arguments
    // or of one, which is the same to a caller on every ABI of Linux.
    let action = unsafe { mem::transmute::<*mut c_void, Action>(previous) };
    // SAFETY: called as the kernel would, with the kernel's own frame.
    unsafe { action(signal, info, context) };
    info.si_errno = errno;
}

/// Makes sure that our handler is the action for `signal`, whoever replaced it meanwhile (glibc
/// does, when the first thread is made). Only the owner calls this.
pub(crate) fn install(signal: i32) -> Result<(), Errno> {
    let previous = BLOCK.previous.0.get(signal as usize).ok_or(Errno::EINVAL)?;
    let ours = allthreads_on_signal as *const () as usize;
    // SAFETY: only reads.
    let mut found = unsafe { rt_sigaction(signal, None) }?;
    while found.handler != ours {
        // Before ours is in place: an instance for the other handler may come at once. Release:
        // pairs with `chain`.
        previous.store(ptr::with_exposed_provenance_mut(found.handler), Ordering::Release);
        let action = KernelAction {
            handler: ours,
            // RESTART: most interrupted calls go on. ONSTACK: small stacks of foreign runtimes.
            flags: SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART,
            // Nothing may interrupt a held thread.
            mask: SigSet::full(),
        };
        // SAFETY: the handler is sound for every signal on every thread, for ever, and hands on
        // what is not ours.
        let replaced = unsafe { rt_sigaction(signal, Some(&action)) }?;
        if replaced.handler == found.handler || replaced.handler == ours {
            break;
        }
        // Somebody installed a handler between the two calls.
        found = replaced;
    }
    Ok(())
}

/// Sends one of our instances to a thread of this process.
pub(crate) fn send(pid: i32, tid: Tid, signal: i32) -> Result<(), Errno> {
    // SAFETY: integers and padding, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    info.si_signo = signal;
    info.si_code = CODE;
    let info = &raw const info as usize;
    let args = [pid as usize, tid as usize, signal as usize, info, 0, 0];
    // SAFETY: the information lives during the call.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}

/// Takes instances that wait for no thread in particular out of the queue. The caller has the
/// signal blocked.
pub(crate) fn drain(signal: i32) {
    let set = SigSet::of(signal);
    // Long enough for either layout of the time; zero in both.
    let now = [0u64; 2];
    let args = [&raw const set as usize, 0, &raw const now as usize, size_of::<SigSet>(), 0, 0];
    // SAFETY: the set and the time live during the call, and no information is asked for.
    while unsafe { syscall(libc::SYS_rt_sigtimedwait, args) }.is_ok() {}
}
