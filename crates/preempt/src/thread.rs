//! What is known of one thread: the signal on its way, the calls that it is asked to make, what came of
//! the last interruption, and what it waits for.
//!
//! Requesters and the handler share the [`ThreadState`]. The thread and its handler alone share the
//! thread-local variables: what reads them is not inlined, since a hook may come back on another thread,
//! and the address of a thread-local variable that a function has once computed is the first one's.

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, compiler_fence};
use core::time::Duration;
use std::time::Instant;

use sigctx::fork::{Hooks, process};
use sigctx::frames::{CALLERS, Sighting};
use sigctx::inject::Frame;
use sigctx::sys::{self, MaskHow, SigSet};
use threadreg::{NudgeCall, SignalError, Slot, SlotId, ThreadRef};

use crate::asked::Asked;
use crate::clock;
use crate::error::SignalOutcome;
use crate::pending::Pending;
use crate::seen::Seen;
use crate::signal::{self, is_installed, number};
use crate::slice::Slice;
use crate::stats;
use crate::word::TaskWord;

static STATE: Slot<ThreadState> = Slot::new(SlotId::Preempt);

/// Without them, if there was no memory, a child of a fork waits for signals of its parent's until
/// their marks are old.
static HOOKS: Hooks = Hooks::new(None, after_fork);

/// Has children of a fork put in order. To be called before there is anything for them to copy.
pub(crate) fn watch_forks() {
    let _ = HOOKS.register();
}

/// No thread that asked the one thread of the child for anything is left, and no signal that was on its
/// way comes.
extern "C" fn after_fork() {
    signal::note_process();
    if let Some(state) = threadreg::current().and_then(ThreadState::get) {
        state.pending.after_fork();
        state.call.state.store(EMPTY, Ordering::Relaxed);
    }
}

/// One for each thread record; made once, used again by the next threads that get the record.
#[derive(Debug)]
pub(crate) struct ThreadState {
    pub(crate) pending: Pending,
    /// Whether the thread's polls have anything to look for.
    pub(crate) asked: Asked,
    /// Of the task that the thread is inside.
    pub(crate) slice: Slice,
    call: CallBox,
    outcome: AtomicU32,
    outcome_pc: AtomicUsize,
    /// The handler's count when the last signal was sent; see [`Self::is_deaf`].
    sent_at: AtomicU32,
    seen: Seen<SEEN>,
}

/// What is kept of a sighting: generation of the record, time, three registers, and how many callers there are; and these.
const SEEN: usize = 6 + CALLERS;

impl ThreadState {
    fn new() -> Self {
        Self {
            pending: Pending::new(),
            asked: Asked::new(),
            slice: Slice::new(),
            call: CallBox::new(),
            outcome: AtomicU32::new(SignalOutcome::Unknown as u32),
            outcome_pc: AtomicUsize::new(0),
            sent_at: AtomicU32::new(u32::MAX),
            seen: Seen::new(),
        }
    }

    /// The state of `thread`, if it has one. Async-signal-safe.
    #[inline]
    pub(crate) fn get(thread: ThreadRef) -> Option<&'static Self> {
        STATE.get(thread)
    }

    /// The state of `thread`, made at the first call. Not async-signal-safe.
    pub(crate) fn of(thread: ThreadRef) -> &'static Self {
        watch_forks();
        STATE.get_or_init(thread, Self::new)
    }

    /// Tells the polls of `thread` that it is asked for something, and sends it the signal, unless one is on its
    /// way and not overdue, `wanted` says that it wants none, or there is no handler for it yet: then it is left
    /// to polls.
    pub(crate) fn signal(thread: ThreadRef, wanted: impl Fn() -> bool) -> Result<(), SignalError> {
        let Some(state) = Self::get(thread) else { return Ok(()) };
        state.asked.set();
        if !is_installed() {
            return Ok(());
        }
        // The record of one that is gone may be another thread's: its mark is not ours to touch.
        if !thread.is_alive() {
            return Err(SignalError::Gone);
        }
        let send = || {
            let (number, is_deaf) = (number(), state.is_deaf());
            // Relaxed: a hint, of the last sender.
            state.sent_at.store(state.pending.handled(), Ordering::Relaxed);
            stats::SENT.count();
            if !signal::is_harmless(number) {
                // Where ours was replaced by the default action, it would end the process.
                signal::look_after(is_deaf);
                return thread.signal(number);
            }
            // Sent first: the look is a system call, and costs nothing while the signal is on its way.
            let sent = thread.signal(number);
            if sent.is_ok() && signal::look_after(is_deaf) { thread.signal(number) } else { sent }
        };
        state.pending.request(thread.generation(), clock::millis, wanted, send)
    }

    /// Stores the call that `thread` is asked to make, and tells its polls.
    pub(crate) fn ask(&self, thread: ThreadRef, call: NudgeCall) {
        self.call.put(thread.generation(), call);
        self.asked.set();
    }

    /// Takes the call that `thread`, which has the record now, was asked to make.
    pub(crate) fn take_call(&self, thread: ThreadRef) -> Option<NudgeCall> {
        self.call.take(thread.generation())
    }

    pub(crate) fn has_call(&self) -> bool {
        self.call.is_full()
    }

    pub(crate) fn record(&self, outcome: SignalOutcome, pc: usize) {
        stats::count(outcome);
        // Diagnosis only: the two may belong to different signals, and nothing depends on them.
        self.outcome_pc.store(pc, Ordering::Relaxed);
        self.outcome.store(outcome as u32, Ordering::Relaxed);
    }

    /// Handler of `me`: where it was interrupted.
    pub(crate) fn see(&self, me: ThreadRef, sighting: &Sighting) {
        let callers = sighting.callers();
        let mut words = [0; SEEN];
        words[..6].copy_from_slice(&[
            me.generation() as usize,
            clock::millis() as usize,
            sighting.pc,
            sighting.sp,
            sighting.fp,
            callers.len(),
        ]);
        words[6..6 + callers.len()].copy_from_slice(callers);
        self.seen.write(words);
    }

    /// Where `thread`, which has the record, was seen last, and how long ago.
    pub(crate) fn sighting(&self, thread: ThreadRef) -> Option<(Sighting, Duration)> {
        let words = self.seen.read()?;
        let ([generation, at, pc, sp, fp, known], callers) = words.split_first_chunk()?;
        if *generation != thread.generation() as usize {
            return None;
        }
        let age = clock::millis().wrapping_sub(*at as u32);
        let sighting = Sighting::new(*pc, *sp, *fp, &callers[..*known]);
        Some((sighting, Duration::from_millis(age.into())))
    }

    /// Whether the last signal was sent in vain: its handler has not run, or could not inject because
    /// another handler called it.
    fn is_deaf(&self) -> bool {
        !self.has_run_since_sent() || self.outcome().0 == SignalOutcome::Other
    }

    /// Whether the handler has run since the last signal was sent.
    pub(crate) fn has_run_since_sent(&self) -> bool {
        self.sent_at.load(Ordering::Relaxed) != self.pending.handled()
    }

    pub(crate) fn outcome(&self) -> (SignalOutcome, usize) {
        let outcome = SignalOutcome::from_u32(self.outcome.load(Ordering::Relaxed));
        (outcome, self.outcome_pc.load(Ordering::Relaxed))
    }
}

/// Takes the signal that is on its way to the calling thread, if one is, so that none interrupts what
/// comes now. False after `timeout`, and for a thread that blocks the signal.
pub(crate) fn settle(timeout: Duration) -> bool {
    let Some(me) = threadreg::current() else { return true };
    let Some(state) = ThreadState::get(me) else { return true };
    let mut start = None;
    state.pending.settle(me.generation(), || {
        let start = *start.get_or_insert_with(Instant::now);
        // For a requester that has not been scheduled since its mark.
        std::thread::yield_now();
        // A system call: what was sent comes at its end.
        let blocked = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        !blocked.contains(number()) && start.elapsed() < timeout
    })
}

/// Whether the thread, which is the calling one, has a call to make and may make it.
pub(crate) fn is_called(me: ThreadRef) -> bool {
    !is_disabled() && ThreadState::get(me).is_some_and(ThreadState::has_call)
}

/// Makes the calls that the calling thread is asked to make. They come back on it. `frame` is that of the injected
/// call in which they are made, and is not written when they begin.
pub(crate) fn make_calls(frame: Option<NonNull<Frame<'static>>>) {
    let Some(me) = threadreg::current() else { return };
    let Some(state) = ThreadState::get(me) else { return };
    while let Some(call) = state.take_call(me) {
        // SAFETY: the requester promised that the call may run on this thread at a safe point.
        unsafe { call.call_at(frame) };
    }
}

/// One call, from any requester to the thread; a newer one replaces one that was not taken.
///
/// `state`: EMPTY → (requester) BUSY → FULL → (requester or target) BUSY → … The fields belong to the
/// thread that made the word BUSY. A requester never waits for the target, and the target, whose handler
/// must not wait, leaves a BUSY box alone: its requester sends a signal when it is done. BUSY says in
/// which process a thread has the fields: a child of a fork may copy the word from a thread that it does
/// not have.
#[derive(Debug)]
struct CallBox {
    state: AtomicU32,
    /// Of the record, when the call was put.
    generation: AtomicU32,
    function: AtomicPtr<()>,
    data: AtomicUsize,
}

const EMPTY: u32 = 0;
const FULL: u32 = 2;

/// BUSY, in this process.
fn busy() -> u32 {
    process() << 2 | 1
}

impl CallBox {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            generation: AtomicU32::new(0),
            function: AtomicPtr::new(ptr::null_mut()),
            data: AtomicUsize::new(0),
        }
    }

    fn put(&self, generation: u32, call: NudgeCall) {
        let mut seen = self.state.load(Ordering::Relaxed);
        while seen == busy() || !self.claim(seen) {
            // Another requester, or the target outside its handler, has three words to copy.
            std::thread::yield_now();
            seen = self.state.load(Ordering::Relaxed);
        }
        // Relaxed: published by the store of FULL, partner: the target's claim.
        self.generation.store(generation, Ordering::Relaxed);
        let (function, data) = call.into_parts();
        self.function.store(function as *mut (), Ordering::Relaxed);
        self.data.store(data, Ordering::Relaxed);
        // Partner: `is_full` and the target's claim. The order against the acknowledgement is made by
        // the fences in `pending`.
        self.state.store(FULL, Ordering::Release);
    }

    fn take(&self, generation: u32) -> Option<NudgeCall> {
        if !self.is_full() || !self.claim(FULL) {
            return None;
        }
        let function = self.function.load(Ordering::Relaxed);
        // SAFETY: `put` stored a function of exactly this type, and FULL published it.
        let function = unsafe { core::mem::transmute::<*mut (), unsafe fn(usize)>(function) };
        let data = self.data.load(Ordering::Relaxed);
        // SAFETY: the two parts of one call, whose maker vouched for it: `put` wrote both while the
        // box was its own.
        let call = unsafe { NudgeCall::new(function, data) };
        let ours = self.generation.load(Ordering::Relaxed) == generation;
        self.state.store(EMPTY, Ordering::Release);
        ours.then_some(call)
    }

    fn is_full(&self) -> bool {
        self.state.load(Ordering::Acquire) == FULL
    }

    fn claim(&self, seen: u32) -> bool {
        // AcqRel: after the fields of the last claimer, before our own.
        self.state.compare_exchange(seen, busy(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

// All constant and without a destructor: the handler reads them.
thread_local! {
    /// How many [`crate::Disabled`] guards the thread holds.
    static DISABLED: Cell<u32> = const { Cell::new(0) };

    /// The word that the thread waits on.
    static WAITS_ON: Cell<Option<NonNull<TaskWord>>> = const { Cell::new(None) };

    /// The handler has left Running for the thread's task, and the thread has to come back to it.
    static RESTED: Cell<bool> = const { Cell::new(false) };
}

/// Counts one more guard of the thread's. Async-signal-safe.
#[inline(never)] // see the module's documentation
pub(crate) fn disable() {
    DISABLED.set(DISABLED.get().wrapping_add(1));
    // The handler runs on this thread: only the compiler could move what follows above the count.
    compiler_fence(Ordering::SeqCst);
}

/// Counts one guard less, and returns whether the thread is to look what it is asked for. Async-signal-safe.
#[inline(never)] // see the module's documentation
pub(crate) fn enable() -> bool {
    compiler_fence(Ordering::SeqCst);
    let left = DISABLED.get().wrapping_sub(1);
    DISABLED.set(left);
    compiler_fence(Ordering::SeqCst);
    left == 0 && may_be_asked()
}

/// Whether the thread, which holds no guard, may be asked for anything.
#[inline(always)] // into two functions that are not inlined
fn may_be_asked() -> bool {
    threadreg::current().and_then(ThreadState::get).is_some_and(|state| state.asked.is_set())
}

/// Whether the thread is to look what it is asked for. Async-signal-safe.
#[inline(never)] // see the module's documentation
pub(crate) fn is_due() -> bool {
    DISABLED.get() == 0 && may_be_asked()
}

/// Whether the thread holds a guard. Async-signal-safe.
#[inline(never)] // see the module's documentation
pub(crate) fn is_disabled() -> bool {
    DISABLED.get() != 0
}

/// The calling thread waits on a word, for as long as this lives.
pub(crate) struct WaitsOn {
    /// A call that is made in a wait may wait itself.
    before: Option<NonNull<TaskWord>>,
}

impl WaitsOn {
    /// `word` outlives what is returned.
    #[inline(never)] // see the module's documentation
    pub(crate) fn new(word: &TaskWord) -> Self {
        let before = WAITS_ON.replace(Some(NonNull::from(word)));
        compiler_fence(Ordering::SeqCst);
        Self { before }
    }
}

impl Drop for WaitsOn {
    fn drop(&mut self) {
        WAITS_ON.set(self.before);
        compiler_fence(Ordering::SeqCst);
    }
}

/// Handler: if the thread waits, has it look for its calls.
#[inline(never)] // see the module's documentation
pub(crate) fn stir() -> bool {
    let Some(word) = WAITS_ON.get() else { return false };
    // SAFETY: `WaitsOn` is dropped before the word is.
    unsafe { word.as_ref() }.stir();
    true
}

/// Handler: it has left Running for the thread's task, which stands still for another crate.
#[inline(never)] // see the module's documentation
pub(crate) fn set_rested() {
    RESTED.set(true);
}

/// Whether the handler has left Running for the thread's task.
#[inline(never)] // see the module's documentation
pub(crate) fn is_rested() -> bool {
    RESTED.get()
}

/// From here on the caller answers for the task's coming back to Running.
#[inline(never)] // see the module's documentation
pub(crate) fn take_rested() -> bool {
    RESTED.replace(false)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testkit::{forked, in_child};
    use threadreg::NudgeCall;

    use super::{CallBox, EMPTY, HOOKS};

    unsafe fn nothing(_data: usize) {}

    /// F3. The record that the box lies on is handed out again in the child.
    #[test]
    fn a_box_that_a_fork_copies_busy_is_free_in_the_child() {
        let name = "thread::tests::a_box_that_a_fork_copies_busy_is_free_in_the_child";
        in_child(name, Duration::from_secs(20), || {
            HOOKS.register().expect("there is memory");
            let call_box = CallBox::new();
            // Another thread's put, as far as the child can tell.
            assert!(call_box.claim(EMPTY));
            let status = forked(|| {
                // SAFETY: does nothing, anywhere.
                let call = unsafe { NudgeCall::new(nothing, 0) };
                call_box.put(1, call);
                assert!(call_box.take(1).is_some());
            });
            assert_eq!(status, 0, "in the child of fork");
        });
    }
}
