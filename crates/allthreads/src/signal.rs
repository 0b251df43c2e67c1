//! The signal that brings a thread into the hold, and its handler.
//!
//! By default it is 33. No mask that libc builds can contain it, so that threads which "block
//! everything" still hear it; and glibc leaves exactly this one open in the parts of a thread's
//! exit in which the thread takes locks that a held thread may own. glibc uses 33 itself, for its
//! own set*id broadcast, and musl for cancellation: the handler that was there is kept, and gets
//! every instance that is not ours. Ours are told apart by a private `si_code`, which nobody but
//! the sender chooses, and by a value that tells one copy of this crate in the process from another;
//! nothing in the signal is dereferenced.
//!
//! **The handler runs on threads of any origin**, also on those that have no thread-local storage
//! or share somebody else's, in the middle of `malloc` or of libc's own thread code. It may only
//! touch `BLOCK` and make raw system calls. What it calls is inlined; `tests/handler_code.rs`
//! looks at the machine code.

use core::ffi::{c_int, c_long, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use core::time::Duration;

use sigctx::module::KeepError;
use sigctx::sys::{
    self, Errno, KernelAction, MaskHow, SIG_DFL, SIG_IGN, SaFlags, SigSet, Tid, rt_sigaction,
    syscall, syscall_raw,
};

use crate::block::BLOCK;
use crate::hold::Futex;
use crate::life;
use crate::roll::has_ended_in;
use crate::signals::SIGNALS;
use crate::trail::Trail;

/// The signal that libc's masks cannot contain.
pub(crate) const DEFAULT: i32 = 33;

/// Our instances. Negative, so that the kernel lets a thread send it to another; none of libc's.
const CODE: i32 = -60;
/// How long the first held thread sleeps without a look at its owner, and how much longer each one that
/// joined after another, in milliseconds.
const LOOK_AT_OWNER: u32 = 50;
const LOOK_LATER: u32 = 1;

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
    fn futex(word: &AtomicU32, operation: c_int, value: u32, time: Option<&[c_long; 2]>) -> isize {
        let operation = (operation | libc::FUTEX_PRIVATE_FLAG) as usize;
        let time = time.map_or(ptr::null(), ptr::from_ref) as usize;
        let args = [word.as_ptr() as usize, operation, value as usize, time, 0, 0];
        // SAFETY: the word and the time are alive during the call.
        unsafe { syscall_raw(libc::SYS_futex, args) }
    }
}

impl Futex for Kernel {
    type Timeout = Duration;

    #[inline(always)]
    fn wait(&self, word: &AtomicU32, expected: u32, number: u32) -> bool {
        // Early returns (EAGAIN, EINTR) only make the caller look at the word again. What else there is
        // is the end of the time, or a filter: who cannot sleep looks at the owner.
        let result = Self::futex(word, libc::FUTEX_WAIT, expected, Some(&nap(number)));
        result != 0 && result != AGAIN && result != INTERRUPTED
    }

    #[inline(always)]
    fn wait_for(&self, word: &AtomicU32, expected: u32, timeout: Self::Timeout) {
        let seconds = c_long::try_from(timeout.as_secs()).unwrap_or(c_long::MAX);
        let time = [seconds, timeout.subsec_nanos().cast_signed().into()];
        // Early returns are as good as late ones.
        let _ = Self::futex(word, libc::FUTEX_WAIT, expected, Some(&time));
    }

    #[inline(always)]
    fn wake_one(&self, word: &AtomicU32) {
        // A thread that is not woken, because a filter forbids it, looks again.
        let _ = Self::futex(word, libc::FUTEX_WAKE, 1, None);
    }

    #[inline(always)]
    fn wake_all(&self, word: &AtomicU32) {
        let _ = Self::futex(word, libc::FUTEX_WAKE, i32::MAX as u32, None);
    }
}

/// How long a held thread sleeps without a look, as the kernel takes it. The later it joined the longer:
/// did all look equally often, thousands of them would leave no processor to those that they wait for.
#[inline(always)]
fn nap(number: u32) -> [c_long; 2] {
    let milliseconds = (LOOK_AT_OWNER + LOOK_LATER * number).cast_signed();
    [(milliseconds / 1000).into(), (milliseconds % 1000 * 1_000_000).into()]
}

const AGAIN: isize = -(libc::EAGAIN as isize);
const INTERRUPTED: isize = -(libc::EINTR as isize);

/// Tells this copy's instances from those of another copy of the crate in the process.
#[inline(always)]
fn cookie() -> usize {
    (&raw const BLOCK).addr()
}

/// Whether an instance was sent by this copy of the crate, by `send`.
#[inline(always)]
fn is_ours(info: &libc::siginfo_t) -> bool {
    info.si_code == CODE && value(info) == cookie()
}

/// `si_value`, without a call.
#[inline(always)]
fn value(info: &libc::siginfo_t) -> usize {
    // Three words; then, aligned as the union of all that may follow, the sender's two ids.
    const AT: usize = 12_usize.next_multiple_of(align_of::<usize>()) + 8;
    // SAFETY: within the 128 bytes of the information.
    let place = unsafe { ptr::from_ref(info).cast::<u8>().add(AT) };
    // SAFETY: within the information; any bits are an integer.
    unsafe { place.cast::<usize>().read_unaligned() }
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
    let ours = is_ours(info)
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
    let pid = sys::getpid();
    if !BLOCK.process.is(pid) {
        return;
    }
    let tid = sys::gettid();
    if BLOCK.calls.run_own(tid) {
        return;
    }
    let Some(number) = BLOCK.hold.join(|| BLOCK.excluded.contains(tid)) else { return };
    // Before the next system call, at which a filter may end this thread.
    let line = BLOCK.roll.enter(number, tid);
    let entry = BLOCK.table.entry(tid);
    if let Some(entry) = entry {
        entry.set_arrived();
    }
    BLOCK.credentials.compare(tid);
    line.checked();
    BLOCK.hold.arrived(&Kernel, number);
    let run = || {
        BLOCK.calls.run(tid);
        // From here on it is in no function that `call` runs: after an early release its own code
        // may ask for an operation while this one is still executing.
        if let Some(entry) = entry {
            entry.clear_arrived();
        }
        line.done();
    };
    let alone = |has_run| take_over_from_the_dead(pid, tid, has_run);
    BLOCK.hold.stay(&Kernel, number, run, || line.left(), alone);
}

/// Ends the operation of an owner that was killed by a filter of its own, if that is what keeps this
/// thread.
#[inline(always)]
fn take_over_from_the_dead(pid: i32, tid: Tid, has_run: bool) {
    let owner = BLOCK.lock.owner();
    if owner == 0 || owner == tid || !life::has_ended(pid, owner) {
        return;
    }
    // Once it is dead: until then it may tell this thread to run the calls.
    if BLOCK.hold.may_inherit(has_run) && BLOCK.lock.inherit(owner, tid) {
        inherited(pid);
        BLOCK.lock.release();
    }
}

/// Ends the operation of a dead owner. The caller has its lock.
#[inline(always)]
pub(crate) fn inherited(pid: i32) {
    BLOCK.broadcast.store(0, Ordering::Relaxed);
    BLOCK.hold.recover(&Kernel, || {
        BLOCK.roll.bury(&BLOCK.hold, BLOCK.hold.joined(), has_ended_in(pid));
        Duration::from_millis(10)
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
    // Who installed over us may chain to us, and we to it since. The last one gets it first; when it
    // comes back it goes to the first one, which was there before, and so cannot lead back again.
    let trail = Trail::of(info);
    let visit = trail.visit(cookie());
    let next = match visit.before {
        0 => last,
        // It came from there, unless another copy of this crate did the same as we.
        1 if first == last && !visit.others => ptr::null_mut(),
        1 => first,
        _ => ptr::null_mut(),
    };
    if !next.is_null() && is_function(next) {
        // SAFETY: it was the kernel's action for this signal, so it is a handler, of three arguments
        // or of one, which is the same to a caller on every ABI of Linux.
        let action = unsafe { mem::transmute::<*mut c_void, Action>(next) };
        // SAFETY: called as the kernel would, with the kernel's own frame.
        unsafe { action(signal, info, context) };
    }
    Trail::of(info).leave(&visit);
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
        // SAFETY: the handler is sound for every signal on every thread, forever, and hands on
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
    sys::tgsigqueueinfo(pid, tid, signal, CODE, cookie())
}

/// The thread's alternate stack is not used while this lives.
struct OrdinaryStack(Option<libc::stack_t>);

impl OrdinaryStack {
    fn take() -> Self {
        let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        let mut before = none;
        let args = [&raw const none as usize, &raw mut before as usize, 0, 0, 0, 0];
        // SAFETY: the kernel reads one structure and writes the other. It refuses on a thread that is on
        // that stack now, which then goes on there.
        let taken = unsafe { syscall(libc::SYS_sigaltstack, args) }.is_ok();
        Self((taken && before.ss_flags & libc::SS_DISABLE == 0).then_some(before))
    }
}

impl Drop for OrdinaryStack {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let args = [ptr::from_ref(before) as usize, 0, 0, 0, 0, 0];
            // What it was: the kernel has no reason to refuse it.
            // SAFETY: the stack that the thread had.
            let _ = unsafe { syscall(libc::SYS_sigaltstack, args) };
        }
    }
}

/// Runs a function of the batch on the owner as it runs on all others: in the handler. What it changes in
/// registers that the end of a handler puts back is then put back on the owner, too.
///
/// The caller is the owner, with all signals blocked. Returns 0, or a negated error number when it could
/// not be run.
pub(crate) fn run_own(call: usize, (pid, me, signal): (i32, Tid, i32)) -> isize {
    // Its ordinary stack has more room than an alternate one.
    let stack = OrdinaryStack::take();
    BLOCK.calls.ask_own(me, call);
    let mut sent = send(pid, me, signal);
    if sent == Err(Errno::EAGAIN) {
        // The queue is full. This one is never refused; all others have the signal blocked.
        BLOCK.broadcast.store(1, Ordering::Relaxed);
        sent = sys::kill(pid, signal);
    }
    // Delivered before the call returns.
    sys::sigprocmask(MaskHow::Set, &SigSet::deferrable().without(signal));
    sys::sigprocmask(MaskHow::Set, &SigSet::deferrable());
    drop(stack);
    if BLOCK.calls.was_own_run() {
        return 0;
    }
    // Forbidden, or somebody has taken the handler away.
    -(sent.err().unwrap_or(Errno::EAGAIN).raw() as isize)
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
        let ours = is_ours(info) || info.si_code == libc::SI_USER && (sender == pid || sender == 0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_copys_instances_are_ours() {
        let signal = libc::SIGRTMIN() + 7;
        sys::sigprocmask(MaskHow::Block, &SigSet::of(signal));
        let (pid, me) = (sys::getpid(), sys::gettid());
        // SAFETY: integers and padding, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        for (value, ours) in [(cookie(), true), (cookie() + 64, false), (0, false)] {
            sys::tgsigqueueinfo(pid, me, signal, CODE, value).unwrap();
            assert!(take(signal, &mut info));
            // SAFETY: a signal that was queued has a value.
            assert_eq!(unsafe { info.si_value() }.sival_ptr.addr(), value);
            assert_eq!(is_ours(&info), ours, "{value:#x}");
        }
    }

    /// What those that are held cost together, while the caller waits for more to come, has a bound.
    #[test]
    fn however_many_are_held_few_of_them_look_at_the_owner_in_a_second() {
        let in_milliseconds = |number| {
            let [seconds, nanoseconds] = nap(number);
            assert!((0..1_000_000_000).contains(&nanoseconds), "{number}: {nanoseconds}");
            seconds as u64 * 1000 + nanoseconds as u64 / 1_000_000
        };
        assert_eq!([1, 950].map(in_milliseconds), [51, 1000]);
        let held = crate::table::SLOTS as u32;
        let in_a_second: u64 = (1..=held).map(|number| 1000 / in_milliseconds(number).max(1)).sum();
        assert!(in_a_second < 6000, "{in_a_second} looks");
        assert!(in_milliseconds(held) < 20_000);
    }
}
