//! The signal that brings a thread into the hold, and its handler.
//!
//! By default it is 33. No mask that libc builds can contain it, so that it reaches threads which "block
//! everything"; and glibc leaves exactly this one open in the parts of a thread's exit in which the thread
//! takes locks that a held thread may have. glibc uses 33 for its own set*id broadcast, and musl for
//! cancellation: the handler that was there is kept, and gets every foreign instance (`chain`). Ours have a
//! private `si_code`, which the sender alone chooses, and a value that tells one copy of this crate in the
//! process from another. Nothing in the signal is dereferenced.
//!
//! **The handler runs on threads of any origin**, also on those that have no thread-local storage or share
//! another thread's, in the middle of `malloc` or of libc's own thread code. It may only touch `BLOCK` and
//! make raw system calls. What it calls is inlined; `tests/handler_code.rs` looks at the machine code.

use core::ffi::{c_int, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use sigctx::module::KeepError;
use sigctx::sys::{
    self, Errno, KernelAction, MaskHow, SaFlags, SigSet, Tid, id_calls, rt_sigaction, sigprocmask,
    syscall, syscall_raw,
};

use crate::block::BLOCK;
use crate::hold::Joined;
use crate::life;
use crate::system::{Kernel, System};
use crate::threads::{EXCLUDED, has_ended_in};

/// The signal that libc's masks cannot contain.
pub(crate) const DEFAULT: i32 = 33;

/// Our instances' `si_code`. Negative, so that the kernel lets a thread send it to another; none of libc's.
const CODE: i32 = -60;
/// How often one instance to the whole process is passed on: for every thread that can be left out, twice.
const PASSES: u32 = 2 * EXCLUDED as u32;
/// The sleep of a thread that has passed an instance on.
const PAUSE: Duration = Duration::from_micros(100);

/// Tells this copy's instances from those of another copy of the crate in the process.
#[inline(always)]
fn cookie() -> usize {
    (&raw const BLOCK).addr()
}

/// Whether instances to the whole process are ours.
#[inline(always)]
fn is_broadcasting() -> bool {
    BLOCK.broadcast.load(Ordering::Relaxed) != 0
}

/// Whether an instance was sent by this copy of the crate, by `send`.
#[inline(always)]
fn is_ours(info: &libc::siginfo_t) -> bool {
    info.si_code == CODE && value(info) == cookie()
}

/// Where the sender's two ids and `si_value` are: behind three words, aligned as the union of all that may
/// follow.
const IDS_AT: usize = 12_usize.next_multiple_of(align_of::<usize>());
const VALUE_AT: usize = IDS_AT + 8;

/// `si_value`, without a call.
#[inline(always)]
fn value(info: &libc::siginfo_t) -> usize {
    // SAFETY: within the 128 bytes of the information.
    let place = unsafe { ptr::from_ref(info).cast::<u8>().add(VALUE_AT) };
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
        || (info.si_code == libc::SI_USER && is_broadcasting() && BLOCK.process.is(sys::getpid()));
    if ours {
        hold(signal, info.si_code == libc::SI_USER);
    } else {
        BLOCK.previous.hand_on(cookie(), signal, info, context);
    }
}

/// Holds the calling thread, if it is to take part. `of_kill`: the instance is one to the whole process.
#[inline(always)]
fn hold(signal: c_int, of_kill: bool) {
    // A child of `vfork` runs in its parent's memory, and a forked child in a copy of it: neither
    // is one of the threads that the block counts.
    let pid = sys::getpid();
    if !BLOCK.process.is(pid) {
        return;
    }
    let tid = sys::gettid();
    if BLOCK.calls.run_own(tid) {
        return;
    }
    let veto = || BLOCK.excluded.contains(tid) || BLOCK.table.has_acted(tid);
    let Some(joined) = BLOCK.hold.join(veto) else {
        if of_kill && veto() {
            pass_on(pid, signal);
        }
        return;
    };
    // Before the next system call, at which a filter may end this thread.
    let line = BLOCK.roll.enter(joined.number(), tid);
    let entry = BLOCK.table.entry(tid);
    if let Some(entry) = entry {
        entry.set_arrived();
    }
    let system = BLOCK.system();
    if let Joined::Held(number) = joined {
        BLOCK.credentials.compare(tid);
        line.checked();
        BLOCK.hold.arrived(&system, number);
    }
    let run = || {
        BLOCK.calls.run(tid);
        // From here on the thread is in no function that `call` runs: after an early release its own code
        // may ask for an operation while this one is still executing.
        if let Some(entry) = entry {
            // In one phase this keeps the thread from joining again.
            if let Joined::Free(_) = joined {
                entry.set_acted();
            }
            entry.clear_arrived();
        }
        line.done();
    };
    let alone = |has_run| take_over_from_the_dead(pid, tid, has_run);
    BLOCK.hold.stay(&system, joined, run, || line.left(), alone);
}

/// Passes an instance to the whole process on, from a thread that is left out, or has made the calls of a
/// one-phase operation, to one that is not or has not. The kernel offers such an instance to the main thread
/// before all others, and would do so each time.
///
/// The calling thread has the signal blocked here, so that another one gets it. It sleeps a little, because
/// it would take the instance again if it returned before that one has had a processor. When it is delayed
/// until the operation is over, the handler that was there before may get an instance without a sender.
#[inline(always)]
fn pass_on(pid: i32, signal: c_int) {
    let mut left = BLOCK.broadcast.load(Ordering::Relaxed);
    // The last one stands for those that are under way.
    while left > 1 {
        let swap = BLOCK.broadcast.compare_exchange_weak(
            left,
            left - 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        match swap {
            Ok(_) => {
                let args = [pid as usize, signal as usize, 0, 0, 0, 0];
                // If a filter refuses it, the instance is lost, and the requester sends another.
                // SAFETY: no pointers.
                let _ = unsafe { syscall_raw(libc::SYS_kill, args) };
                Kernel.wait_for(&AtomicU32::new(0), 0, PAUSE);
                return;
            }
            Err(now) => left = now,
        }
    }
}

/// Sends one of our instances to the process as a whole: to a thread that does not have the signal blocked. A
/// full queue never refuses it.
pub(crate) fn send_to_any(pid: i32, signal: i32) -> Result<(), Errno> {
    BLOCK.broadcast.store(1 + PASSES, Ordering::Relaxed);
    sys::kill(pid, signal)
}

/// Ends the operation of a requester that a filter of its own has killed, if that is what keeps this
/// thread.
#[inline(always)]
fn take_over_from_the_dead(pid: i32, tid: Tid, has_run: bool) {
    let Some(requester) = BLOCK.lock.holder() else { return };
    if requester == tid || !life::has_ended(pid, requester) {
        return;
    }
    // Only when it is dead: until then it may tell this thread to run the calls.
    if BLOCK.hold.may_inherit(has_run) && BLOCK.lock.inherit(requester, tid) {
        inherited(pid);
        BLOCK.lock.release();
    }
}

/// Ends the operation of a dead requester. The calling thread has its lock.
#[inline(always)]
pub(crate) fn inherited(pid: i32) {
    BLOCK.broadcast.store(0, Ordering::Relaxed);
    BLOCK.hold.recover(&Kernel, || {
        BLOCK.roll.bury(&BLOCK.hold, BLOCK.hold.joined(), has_ended_in(pid));
        Duration::from_millis(10)
    });
}

/// The requester's own signal mask, put back on drop.
pub(crate) struct Mask {
    own: SigSet,
}

impl Mask {
    pub(crate) fn change(set: SigSet) -> Self {
        Self { own: sigprocmask(MaskHow::Set, &set) }
    }

    /// The requester's own mask, but with the signals of operations open, so that it can be held. Where it
    /// had them blocked, instances that are pending for it are delivered.
    pub(crate) fn relax(&self) {
        sigprocmask(MaskHow::Set, &BLOCK.signals.without(self.own));
    }
}

/// Blocks all signals but those by which another thread's operation can hold the calling thread.
pub(crate) fn be_reachable() {
    sigprocmask(MaskHow::Set, &BLOCK.signals.without(SigSet::deferrable()));
}

impl Drop for Mask {
    fn drop(&mut self) {
        sigprocmask(MaskHow::Set, &self.own);
    }
}

/// Keeps the library that has the handler loaded, from the first operation on. Not while threads are held:
/// it takes the dynamic linker's lock.
pub(crate) fn keep_loaded() -> Result<(), KeepError> {
    static KEPT: AtomicBool = AtomicBool::new(false);

    // Relaxed: doing it twice does no harm.
    if !KEPT.load(Ordering::Relaxed) {
        sigctx::module::keep_loaded(allthreads_on_signal as *const ())?;
        KEPT.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes sure that our handler is the action for `signal`, with our flags and mask. Others change it: glibc
/// when the first thread is made; `siginterrupt` takes a flag away. Only the requester calls this.
pub(crate) fn install(signal: i32) -> Result<(), Errno> {
    let ours = KernelAction {
        handler: allthreads_on_signal as *const () as usize,
        // RESTART: most interrupted calls go on. ONSTACK: small stacks of foreign runtimes.
        flags: SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART,
        // Nothing may interrupt a held thread, but what its own system calls raise: a sandbox may trap
        // them. The kernel takes out the two that cannot be blocked.
        mask: SigSet::deferrable().without(libc::SIGKILL).without(libc::SIGSTOP),
    };
    // SAFETY: only reads.
    let mut found = unsafe { rt_sigaction(signal, None) }?;
    while found != ours {
        // Kept before ours is in place: an instance for the other handler may come at once.
        if found.handler != ours.handler {
            BLOCK.previous.keep(signal as usize, found.handler);
        }
        // SAFETY: the handler is sound for every signal on every thread, forever, and hands on
        // what is not ours.
        let replaced = unsafe { rt_sigaction(signal, Some(&ours)) }?;
        if replaced.handler == found.handler || replaced.handler == ours.handler {
            break;
        }
        // Another handler was installed between the two calls.
        found = replaced;
    }
    Ok(())
}

/// One of our instances, which threads of this process can be sent any number of times.
pub(crate) struct Instance {
    pid: i32,
    info: libc::siginfo_t,
}

impl Instance {
    pub(crate) fn new(pid: i32, signal: i32) -> Self {
        // SAFETY: integers and padding, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        (info.si_signo, info.si_code) = (signal, CODE);
        // SAFETY: takes nothing and cannot fail.
        let uid = unsafe { syscall_raw(id_calls::GETUID, [0; 6]) } as u32;
        let base = (&raw mut info).cast::<u8>();
        // SAFETY: within the 128 bytes of the information.
        let ids = unsafe { base.add(IDS_AT) }.cast::<[[u8; 4]; 2]>();
        // SAFETY: within the information, whose bytes may be anything.
        unsafe { ids.write([pid.to_ne_bytes(), uid.to_ne_bytes()]) };
        // SAFETY: within the 128 bytes of the information.
        let value = unsafe { base.add(VALUE_AT) }.cast::<[u8; size_of::<usize>()]>();
        // SAFETY: within the information, whose bytes may be anything.
        unsafe { value.write(cookie().to_ne_bytes()) };
        Self { pid, info }
    }

    /// Sends the calling thread `me` one that looks as if `kill` had sent it. A full queue never refuses it, and
    /// the kernel refuses to send it to any other thread (`kernel/signal.c`: `__send_signal_locked`,
    /// `do_rt_tgsigqueueinfo`).
    fn send_own(&mut self, me: Tid) -> Result<(), Errno> {
        // What may still be passed on may be so.
        BLOCK.broadcast.fetch_max(1, Ordering::Relaxed);
        self.info.si_code = libc::SI_USER;
        self.send(me)
    }

    /// Sends it to a thread of this process.
    pub(crate) fn send(&self, tid: Tid) -> Result<(), Errno> {
        let (pid, info) = (self.pid as usize, &raw const self.info as usize);
        let args = [pid, tid as usize, self.info.si_signo as usize, info, 0, 0];
        // SAFETY: the information lives during the call and has the kernel's layout.
        unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
    }
}

/// While this lives, handlers run on the thread's ordinary stack.
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

/// Runs a function of the batch on the requester as on all others: in the handler. Registers that the end of
/// a handler restores are then restored on the requester, too.
///
/// The calling thread is the requester, with all signals blocked. Returns 0, or a negated error number when
/// the function could not be run.
pub(crate) fn run_own(call: usize, (pid, me, signal): (i32, Tid, i32)) -> isize {
    // Its ordinary stack has more room than an alternate one.
    let stack = OrdinaryStack::take();
    BLOCK.calls.ask_own(me, call);
    let mut instance = Instance::new(pid, signal);
    let mut sent = instance.send(me);
    if sent == Err(Errno::EAGAIN) {
        // The queue is full.
        sent = instance.send_own(me);
    }
    // Delivered before the call returns.
    sys::sigprocmask(MaskHow::Set, &SigSet::deferrable().without(signal));
    sys::sigprocmask(MaskHow::Set, &SigSet::deferrable());
    drop(stack);
    if BLOCK.calls.was_own_run() {
        return 0;
    }
    // Forbidden, or the handler has been replaced.
    -(sent.err().unwrap_or(Errno::EAGAIN).raw() as isize)
}

/// The most foreign instances that `drain` sets aside.
const ASIDE: usize = 16;

/// Takes what is left of our instances of `kill` out of the queue. The calling thread, `me` of process
/// `pid`, has the signal blocked.
///
/// A foreign instance that is pending for the thread (libc's own broadcast) is put back, behind others of
/// the same signal. It is lost only if its room in the queue, whose limit is the user's, is taken in between.
/// If there are more than can be set aside, the rest stays, with ours among it, which then go to the handler
/// that was there before.
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

/// Takes one instance that is pending for the calling thread or the process; false when there is none.
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
        // As another sender would, and as this copy does.
        Instance::new(pid, signal).send(me).unwrap();
        assert!(take(signal, &mut info));
        assert!(is_ours(&info));
        // SAFETY: a signal that was sent has a sender.
        assert_eq!((unsafe { info.si_pid() }, info.si_signo, info.si_errno), (pid, signal, 0));
        // SAFETY: as above; takes nothing and cannot fail.
        assert_eq!(unsafe { info.si_uid() }, unsafe { libc::getuid() });
        for (value, ours) in [(cookie(), true), (cookie() + 64, false), (0, false)] {
            sys::tgsigqueueinfo(pid, me, signal, CODE, value).unwrap();
            assert!(take(signal, &mut info));
            // SAFETY: a signal that was queued has a value.
            assert_eq!(unsafe { info.si_value() }.sival_ptr.addr(), value);
            assert_eq!(is_ours(&info), ours, "{value:#x}");
        }
    }
}
