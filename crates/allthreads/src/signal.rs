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
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use sigctx::module::KeepError;
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
/// In `si_errno` of an instance that went to the last handler found: it has been here before.
const CHAINED: i32 = 0x7461;
/// The same of one that went to the first handler found, which is the end of the chain.
const CHAINED_TO_FIRST: i32 = 0x7462;
/// Signals an architecture may have (128 on MIPS), and one more because they count from 1.
const SIGNALS: usize = 129;

type Action = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The handlers that were there when ours was installed, by signal: the first one, and the last.
///
/// They differ when somebody installs over us who chains to us, as we then do to it. The last one
/// gets an instance first; when it comes back here it goes to the first one, which else would
/// never see a signal again.
pub(crate) struct Previous {
    first: [AtomicPtr<c_void>; SIGNALS],
    last: [AtomicPtr<c_void>; SIGNALS],
}

impl Previous {
    pub(crate) const fn new() -> Self {
        Self {
            first: [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS],
            last: [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS],
        }
    }

    /// Keeps a handler that is about to be replaced by ours. Only the owner calls this. Release:
    /// pairs with `chain`.
    fn keep(&self, signal: usize, handler: usize) {
        let handler = ptr::with_exposed_provenance_mut(handler);
        if let Some(last) = self.last.get(signal) {
            last.store(handler, Ordering::Release);
        }
        if let Some(first) = self.first.get(signal)
            && is_function(handler)
            && first.load(Ordering::Relaxed).is_null()
        {
            first.store(handler, Ordering::Release);
        }
    }
}

#[inline(always)]
fn is_function(handler: *mut c_void) -> bool {
    handler.addr() != SIG_DFL && handler.addr() != SIG_IGN
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
    // An instance of `kill`, sent when the queue was full, cannot carry the code. Ours do not go to
    // a child, which may have been copied while they were under way.
    let ours = info.si_code == CODE
        || (info.si_code == libc::SI_USER
            && BLOCK.broadcast.load(Ordering::Relaxed) != 0
            && BLOCK.process.is(sys::getpid()));
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
    if !BLOCK.process.is(sys::getpid()) {
        return;
    }
    let tid = sys::gettid();
    let Some(number) = BLOCK.hold.join(|| BLOCK.excluded.contains(tid)) else { return };
    let entry = BLOCK.table.entry(tid);
    if let Some(entry) = entry {
        entry.set_arrived();
    }
    BLOCK.hold.arrived(&Kernel, number);
    BLOCK.hold.stay(&Kernel, || {
        BLOCK.calls.run(tid);
        // From here on it is in no function that `call` runs: after an early release its own code
        // may ask for an operation while this one is still executing.
        if let Some(entry) = entry {
            entry.clear_arrived();
        }
    });
}

/// Hands an instance that is not ours to the handler that was there before. Its mask is ignored:
/// it runs with all signals masked. With none there the instance is dropped, because the default
/// action of a real-time signal would end the process.
#[inline(always)]
fn chain(signal: c_int, info: &mut libc::siginfo_t, context: *mut c_void) {
    let Some(last) = BLOCK.previous.last.get(signal as usize) else { return };
    let Some(first) = BLOCK.previous.first.get(signal as usize) else { return };
    // Acquire: pairs with `Previous::keep`.
    let (last, first) = (last.load(Ordering::Acquire), first.load(Ordering::Acquire));
    // Who installed over us may chain to us, and we to it since: twice round is enough.
    let (next, mark) = match info.si_errno {
        CHAINED_TO_FIRST => return,
        CHAINED if first == last => return,
        CHAINED => (first, CHAINED_TO_FIRST),
        _ => (last, CHAINED),
    };
    if !is_function(next) {
        return;
    }
    let errno = mem::replace(&mut info.si_errno, mark);
    // SAFETY: it was the kernel's action for this signal, so it is a handler, of three arguments
    // or of one, which is the same to a caller on every ABI of Linux.
    let action = unsafe { mem::transmute::<*mut c_void, Action>(next) };
    // SAFETY: called as the kernel would, with the kernel's own frame.
    unsafe { action(signal, info, context) };
    info.si_errno = errno;
}

/// Keeps the library that has the handler loaded, from the first operation on. Takes the dynamic
/// linker's lock, so not while threads are held.
pub(crate) fn keep_loaded() -> Result<(), KeepError> {
    static KEPT: AtomicBool = AtomicBool::new(false);

    // Relaxed: to do it twice does no harm.
    if !KEPT.load(Ordering::Relaxed) {
        sigctx::module::keep_loaded(allthreads_on_signal as *const ())?;
        KEPT.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes sure that our handler is the action for `signal`, with our flags and mask, whoever changed
/// it meanwhile (glibc does, when the first thread is made; `siginterrupt` takes a flag away). Only
/// the owner calls this.
pub(crate) fn install(signal: i32) -> Result<(), Errno> {
    let ours = KernelAction {
        handler: allthreads_on_signal as *const () as usize,
        // RESTART: most interrupted calls go on. ONSTACK: small stacks of foreign runtimes.
        flags: SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART,
        // Nothing may interrupt a held thread, but what its own system calls raise: a sandbox may trap
        // them. The kernel takes the two out that nobody can block.
        mask: SigSet::deferrable().without(libc::SIGKILL).without(libc::SIGSTOP),
    };
    // SAFETY: only reads.
    let mut found = unsafe { rt_sigaction(signal, None) }?;
    while found != ours {
        // Before ours is in place: an instance for the other handler may come at once.
        if found.handler != ours.handler {
            BLOCK.previous.keep(signal as usize, found.handler);
        }
        // SAFETY: the handler is sound for every signal on every thread, for ever, and hands on
        // what is not ours.
        let replaced = unsafe { rt_sigaction(signal, Some(&ours)) }?;
        if replaced.handler == found.handler || replaced.handler == ours.handler {
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

/// The most foreign instances that `drain` sets aside.
const ASIDE: usize = 16;

/// Takes what is left of our instances of `kill` out of the queue. The caller, thread `me` of
/// process `pid`, has the signal blocked.
///
/// What is pending for the caller from somebody else (libc's own broadcast) is put back, behind
/// others of the same signal. It is lost only if its room in the queue, whose limit is the user's, is
/// taken in between; and what is more than is set aside stays, together with ours, which then go to
/// the handler that was there before.
pub(crate) fn drain(signal: i32, (pid, me): (i32, Tid)) {
    // SAFETY: integers and padding, for which zero is a value.
    let mut aside: [libc::siginfo_t; ASIDE] = unsafe { mem::zeroed() };
    let mut count = 0;
    while let Some(info) = aside.get_mut(count)
        && take(signal, info)
    {
        // SAFETY: a signal that was sent has a sender, which is 0 if the queue had no room for it.
        let sender = unsafe { info.si_pid() };
        let ours =
            info.si_code == CODE || info.si_code == libc::SI_USER && (sender == pid || sender == 0);
        if !ours {
            count += 1;
        }
    }
    for info in aside.iter().take(count) {
        let info = &raw const *info as usize;
        let args = [pid as usize, me as usize, signal as usize, info, 0, 0];
        // A thread may send itself what looks like the kernel's. See above for a full queue.
        // SAFETY: the information lives during the call.
        let _ = unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) };
    }
}

/// Takes one instance that is pending for the caller or the process; false when there is none.
fn take(signal: i32, info: &mut libc::siginfo_t) -> bool {
    let set = SigSet::of(signal);
    // Long enough for either layout of the time; zero in both.
    let now = [0u64; 2];
    let (set, info) = (&raw const set as usize, &raw mut *info as usize);
    let args = [set, info, &raw const now as usize, size_of::<SigSet>(), 0, 0];
    // SAFETY: the set, the information and the time live during the call.
    unsafe { syscall(libc::SYS_rt_sigtimedwait, args) }.is_ok()
}
