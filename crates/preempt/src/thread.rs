//! What the handler finds of a thread: the signal on its way, the task it runs, the call it is
//! asked to make, and why the last interruption came to nothing.

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, compiler_fence};

use sigctx::inject::{CallStack, InjectError};
use threadreg::{NudgeCall, SignalError, Slot, SlotId, ThreadRef};

use crate::clock;
use crate::fork::process;
use crate::install::{self, is_installed, number};
use crate::pending::Pending;
use crate::task::TaskCore;

static STATE: Slot<ThreadState> = Slot::new(SlotId::Preempt);

thread_local! {
    /// How many [`crate::Disabled`] guards the thread holds. Constant and without a destructor:
    /// the handler reads it.
    static DISABLED: Cell<u32> = const { Cell::new(0) };

    /// The task that the thread is inside, and the stack of its registered code. Not in the
    /// thread's record: that becomes another thread's if this one is detached inside the task.
    static INSIDE: Cell<Option<Inside>> = const { Cell::new(None) };
}

/// See `INSIDE`. Both are kept alive by `Task::enter_on`, on this thread, while they are set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside {
    pub(crate) task: NonNull<TaskCore>,
    pub(crate) stack: NonNull<CallStack>,
    /// The thread was away in another crate's safe region when it entered: that it is there says
    /// nothing about this task's code.
    pub(crate) entered_at_rest: bool,
}

/// One a thread record; made once, used again by later owners of the record.
#[derive(Debug)]
pub(crate) struct ThreadState {
    pub(crate) pending: Pending,
    call: CallBox,
    outcome: AtomicU32,
    outcome_pc: AtomicUsize,
    /// The handler's count when the last signal was sent; see [`Self::is_deaf`].
    sent_at: AtomicU32,
}

impl ThreadState {
    fn new() -> Self {
        Self {
            pending: Pending::new(),
            call: CallBox::new(),
            outcome: AtomicU32::new(Outcome::Unknown as u32),
            outcome_pc: AtomicUsize::new(0),
            sent_at: AtomicU32::new(u32::MAX),
        }
    }

    /// The state of `thread`, if it has one. Async-signal-safe.
    pub(crate) fn get(thread: ThreadRef) -> Option<&'static Self> {
        STATE.get(thread)
    }

    /// The state of `thread`, made at the first call. Not async-signal-safe.
    pub(crate) fn of(thread: ThreadRef) -> &'static Self {
        STATE.get_or_init(thread, Self::new)
    }

    /// Sends `thread` the signal, unless one is on its way and not overdue, `wanted` says that it wants
    /// none, or there is no handler for it yet: then it is left to polls.
    pub(crate) fn signal(thread: ThreadRef, wanted: impl Fn() -> bool) -> Result<(), SignalError> {
        let Some(state) = Self::get(thread) else { return Ok(()) };
        if !is_installed() {
            return Ok(());
        }
        // The record of one that is gone may be another thread's: its mark is not ours to touch.
        if !thread.is_alive() {
            return Err(SignalError::Gone);
        }
        let send = || {
            install::look_after(|| state.is_deaf());
            // Relaxed: a hint, of the last sender.
            state.sent_at.store(state.pending.generation(), Ordering::Relaxed);
            thread.signal(number())
        };
        state.pending.request(owner_mark(thread), clock::millis, wanted, send)
    }

    /// Stores the call that `thread` is asked to make.
    pub(crate) fn ask(&self, thread: ThreadRef, call: NudgeCall) {
        self.call.put(thread.generation(), call);
    }

    /// Takes the call that the current owner, `thread`, was asked to make.
    pub(crate) fn take_call(&self, thread: ThreadRef) -> Option<NudgeCall> {
        self.call.take(thread.generation())
    }

    /// In the child of a fork, on its one thread.
    pub(crate) fn after_fork(&self) {
        self.pending.after_fork();
        self.call.state.store(EMPTY, Ordering::Relaxed);
    }

    pub(crate) fn has_call(&self) -> bool {
        self.call.is_full()
    }

    pub(crate) fn record(&self, outcome: Outcome, pc: usize) {
        // Diagnosis only: the two may belong to different signals, and nothing depends on them.
        self.outcome_pc.store(pc, Ordering::Relaxed);
        self.outcome.store(outcome as u32, Ordering::Relaxed);
    }

    /// Whether the last signal was sent in vain: its handler has not run, or could not inject because
    /// another handler called it.
    fn is_deaf(&self) -> bool {
        let unheard = self.sent_at.load(Ordering::Relaxed) == self.pending.generation();
        unheard || self.outcome().0 == Outcome::Other
    }

    pub(crate) fn outcome(&self) -> (Outcome, usize) {
        let outcome = Outcome::from_u32(self.outcome.load(Ordering::Relaxed));
        (outcome, self.outcome_pc.load(Ordering::Relaxed))
    }
}

/// What came of the last signal that found a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// No signal has found a request yet.
    Unknown = 0,
    /// The call was made.
    Interrupted = 1,
    /// The thread was outside registered code.
    OutsideCode = 2,
    /// The thread held a [`Disabled`](crate::Disabled) guard.
    Disabled = 3,
    /// The stack had no room left for the call.
    NoRoom = 4,
    /// The stack pointer was not on the task's stack.
    OtherStack = 5,
    /// An injected call was running already.
    Nested = 6,
    /// The pc was in the vDSO or at a system call.
    Kernel = 7,
    /// Some other reason; see [`sigctx::inject::InjectError`].
    Other = 8,
}

impl Outcome {
    fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::Unknown,
            1 => Self::Interrupted,
            2 => Self::OutsideCode,
            3 => Self::Disabled,
            4 => Self::NoRoom,
            5 => Self::OtherStack,
            6 => Self::Nested,
            7 => Self::Kernel,
            _ => Self::Other,
        }
    }

    pub(crate) fn of(refusal: &InjectError) -> Self {
        match refusal {
            InjectError::NoRoom { .. } => Self::NoRoom,
            InjectError::NotOnThisStack { .. } | InjectError::OnAltStack { .. } => Self::OtherStack,
            InjectError::Nested | InjectError::InTrampoline { .. } => Self::Nested,
            InjectError::InVdso { .. } | InjectError::AtSyscall { .. } => Self::Kernel,
            _ => Self::Other,
        }
    }
}

/// One call, from anybody to the owner; a newer one replaces one that was not taken.
///
/// `state`: EMPTY → (putter) BUSY → FULL → (putter or owner) BUSY → … The fields belong to whoever
/// made the word BUSY. A putter never waits for the owner, and the owner, whose handler must not
/// wait, leaves a BUSY box alone: its putter sends a signal when it is done. BUSY says in which process
/// somebody has the fields: a child of a fork may copy the word from a thread that it does not have.
#[derive(Debug)]
struct CallBox {
    state: AtomicU32,
    owner: AtomicU32,
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
            owner: AtomicU32::new(0),
            function: AtomicPtr::new(ptr::null_mut()),
            data: AtomicUsize::new(0),
        }
    }

    fn put(&self, owner: u32, call: NudgeCall) {
        let mut seen = self.state.load(Ordering::Relaxed);
        while seen == busy() || !self.claim(seen) {
            // Another putter, or the owner outside its handler, has three words to copy.
            std::thread::yield_now();
            seen = self.state.load(Ordering::Relaxed);
        }
        // Relaxed: published by the store of FULL, partner: the owner's claim.
        self.owner.store(owner, Ordering::Relaxed);
        let (function, data) = call.into_parts();
        self.function.store(function as *mut (), Ordering::Relaxed);
        self.data.store(data, Ordering::Relaxed);
        // Partner: `is_full` and the owner's claim. The order against the acknowledgement is made by
        // the fences in `pending`.
        self.state.store(FULL, Ordering::Release);
    }

    fn take(&self, owner: u32) -> Option<NudgeCall> {
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
        let ours = self.owner.load(Ordering::Relaxed) == owner;
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

/// Tells the owners of one record apart; never 0.
pub(crate) fn owner_mark(thread: ThreadRef) -> u32 {
    thread.generation().wrapping_add(1).max(1)
}

/// Adds to the thread's count of guards, and returns the new count.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn add_disabled(by: i32) -> u32 {
    DISABLED.with(|count| {
        let next = count.get().wrapping_add_signed(by);
        count.set(next);
        next
    })
}

/// What the calling thread is inside. Async-signal-safe.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn inside() -> Option<Inside> {
    INSIDE.with(Cell::get)
}

/// Says what the calling thread is inside.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn set_inside(inside: Option<Inside>) {
    INSIDE.with(|cell| cell.set(inside));
    // The handler runs on this thread: only the compiler could move what follows above this.
    compiler_fence(Ordering::SeqCst);
}

/// Whether the thread holds a guard. Async-signal-safe.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn is_disabled() -> bool {
    DISABLED.with(|count| count.get() != 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testkit::{forked, in_child};
    use threadreg::NudgeCall;

    use super::{CallBox, EMPTY};
    use crate::fork;

    unsafe fn nothing(_data: usize) {}

    /// The record that the box lies on is handed out again in the child.
    #[test]
    fn a_box_that_a_fork_copies_busy_is_free_in_the_child() {
        let name = "thread::tests::a_box_that_a_fork_copies_busy_is_free_in_the_child";
        in_child(name, Duration::from_secs(20), || {
            fork::watch();
            let call_box = CallBox::new();
            // A putter on another thread, as far as the child can tell.
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
