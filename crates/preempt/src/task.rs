//! Tasks: units of work that can be stopped and let go again.
//!
//! This file is long because the public face of a task carries its documentation, and the owner's side
//! of the protocol stands beside the calls that it serves.

use core::any::Any;
use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use sigctx::Registers;
use sigctx::inject::{CallStack, Frame};
use sigctx::sys::{self, MaskHow, SigSet};
use threadreg::{ThreadRef, rest};

use crate::clock;
use crate::error::{EnterError, Held, RequestError, SuspendError};
use crate::fork;
use crate::place::Place;
use crate::suspend::Attempt;
use crate::thread::{self, Inside, ThreadState, owner_mark};
use crate::wait::{self, Wait};
use crate::word::{GoOn, Mode, TaskWord};

/// What a task runs when it is asked to make way; gets the interrupted frame, or `None` at a poll.
pub(crate) type Hook = dyn Fn(Option<&mut Frame<'_>>) + Send + Sync;

/// What the holder of a parked task has its thread run.
pub(crate) type Errand<'a> = dyn FnMut(Option<&mut Frame<'_>>) + Send + 'a;

/// How much processor time a task's thread has, at least, before the task is stopped again, in
/// microseconds: two to four times what a stop costs.
const GRACE: u32 = 50;

/// A requester is between its mark and its signal for a system call or two, if it is scheduled.
const SETTLE_WITHIN: Duration = Duration::from_secs(1);

/// A unit of work that [`Task::suspend`] can stop, wherever it is in registered code.
///
/// A task runs on one thread at a time, inside [`Task::enter`]. Clones name the same task.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// preempt::install()?;
/// let task = preempt::Task::new();
/// let _me = threadreg::attach()?;
/// let sum: u64 = task.enter(|| (0..1000).sum())?;
/// assert_eq!(sum, 499_500);
///
/// // A task that does not run is held at once.
/// let held = task.suspend(Duration::from_secs(1))?;
/// assert_eq!(held.stopped_at(), preempt::StoppedAt::Idle);
/// held.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Task(pub(crate) Arc<TaskCore>);

pub(crate) struct TaskCore {
    /// Total order of tasks, for who gives way when two suspend each other.
    pub(crate) id: u32,
    pub(crate) word: TaskWord,
    /// Where the task runs; written by the owner before it enters Running.
    pub(crate) place: Place,
    hook: Option<Box<Hook>>,
    /// The hook runs, or has left its stack and will come back. Written by the owner alone.
    in_hook: AtomicU32,
    /// Written by the owner before it parks, read by the holder of the parked task.
    pub(crate) interrupted: UnsafeCell<Option<Registers>>,
    /// Written by the holder before CALL, read by the owner while CALL is set.
    errand: UnsafeCell<Option<*mut Errand<'static>>>,
    /// The frame that `interrupted` was read from, while that call lasts. The owner's.
    frame: Cell<Option<NonNull<Frame<'static>>>>,
    /// The owner's processor time when it went on after a wait, in microseconds; 0 once that is long
    /// ago. Relaxed: the owner's.
    went_on: AtomicU32,
    /// The thread that holds the task, or 0. Relaxed: for diagnosis.
    holder: AtomicI32,
}

// SAFETY: `interrupted` and `errand` are handed between the owner and the one holder by the word, as
// their comments say, `frame` is the owner's alone; everything else is Sync by itself.
unsafe impl Sync for TaskCore {}
// SAFETY: the raw pointer in `errand` is to a closure that is Send, and is there only during a call;
// that in `frame` is there only while the thread it belongs to is inside the task.
unsafe impl Send for TaskCore {}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.0.id)
            .field("mode", &self.0.word.seen().mode())
            .field("thread", &self.0.thread())
            .finish_non_exhaustive()
    }
}

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// Makes a task. It is idle until some thread enters it.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    #[must_use]
    pub fn new() -> Self {
        Self::build(None)
    }

    /// Makes a task that runs `hook` each time it is asked to make way by [`Task::request`].
    ///
    /// The hook runs on the task's thread and stack, between two instructions of the task, with
    /// all signals as the task had them. There are 16 KiB of stack for it, and what is left beyond
    /// ([`sigctx::inject::CALLBACK_ROOM`]). It may block and call anything that the promises made for
    /// the registered code allow. When it returns, the task goes on exactly where it was: every
    /// register, flag and vector is as it was.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates.
    ///
    /// The hook is not entered again while it runs, also where it has switched to another stack. It may
    /// come back on another thread (`Frame::move_here` of `sigctx`). One whose stack is given up while it
    /// is switched out never ends: the task's hook does not run any more, and the task goes with it.
    ///
    /// # Panics
    ///
    /// A panic of the hook ends the process, unless the task came to a [`poll`](crate::poll), from
    /// which it unwinds: code that was interrupted between two instructions cannot be unwound. The
    /// same for a coroutine library that unwinds a stack when it drops a coroutine: let a preempted
    /// one come to its end first, or give its stack up without unwinding
    /// (`force_reset` of `corosensei`).
    #[must_use]
    pub fn with_hook(hook: impl Fn(Option<&mut Frame<'_>>) + Send + Sync + 'static) -> Self {
        Self::build(Some(Box::new(hook)))
    }

    fn build(hook: Option<Box<Hook>>) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        // A task can be held, and its owner fork, without the handler for the signal.
        fork::watch();
        wait::settle_in();
        Self(Arc::new(TaskCore {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            word: TaskWord::new(),
            place: Place::nowhere(),
            hook,
            in_hook: AtomicU32::new(NO_HOOK),
            interrupted: UnsafeCell::new(None),
            errand: UnsafeCell::new(None),
            frame: Cell::new(None),
            went_on: AtomicU32::new(0),
            holder: AtomicI32::new(0),
        }))
    }

    /// Runs `body` as this task on the calling thread, which must be registered with `threadreg`.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// Waits at the start for as long as somebody has the idle task suspended: forever, if the
    /// caller itself has. [`Task::enter_within`] bounds that. Meanwhile the thread makes the calls that
    /// it is [nudged](crate::Nudger) for.
    ///
    /// # Errors
    ///
    /// The thread is not registered, or is inside a task already; the task runs elsewhere.
    pub fn enter<R>(&self, body: impl FnOnce() -> R) -> Result<R, EnterError> {
        let me = threadreg::current().ok_or(EnterError::NotRegistered)?;
        self.run_as(me.call_stack(), None, body)
    }

    /// As [`Task::enter`], if the task can be entered before `timeout` is over.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// Before `body`, at most about `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Task::enter`]; and [`EnterError::TimedOut`], with the thread that has the task suspended:
    /// then `body` was not run.
    pub fn enter_within<R>(
        &self,
        timeout: Duration,
        body: impl FnOnce() -> R,
    ) -> Result<R, EnterError> {
        let me = threadreg::current().ok_or(EnterError::NotRegistered)?;
        self.run_as(me.call_stack(), Some(timeout), body)
    }

    /// Runs `body` as this task, where the registered code that it runs has `stack` as its stack:
    /// a coroutine's, or one that a JIT brings along.
    ///
    /// `body` switches to that stack and back by itself. Where it is on another stack, it is not
    /// interrupted.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// As [`Task::enter`].
    ///
    /// # Errors
    ///
    /// As [`Task::enter`].
    pub fn enter_on<R>(
        &self,
        stack: &CallStack,
        body: impl FnOnce() -> R,
    ) -> Result<R, EnterError> {
        self.run_as(stack, None, body)
    }

    /// As [`Task::enter_on`], if the task can be entered before `timeout` is over.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// As [`Task::enter_within`].
    ///
    /// # Errors
    ///
    /// As [`Task::enter_within`].
    pub fn enter_on_within<R>(
        &self,
        stack: &CallStack,
        timeout: Duration,
        body: impl FnOnce() -> R,
    ) -> Result<R, EnterError> {
        self.run_as(stack, Some(timeout), body)
    }

    fn run_as<R>(
        &self,
        stack: &CallStack,
        timeout: Option<Duration>,
        body: impl FnOnce() -> R,
    ) -> Result<R, EnterError> {
        let me = threadreg::current().ok_or(EnterError::NotRegistered)?;
        ThreadState::of(me);
        if thread::inside().is_some() {
            return Err(EnterError::InsideTask);
        }
        let mut wait = Wait::new(&self.0, Some(me), timeout);
        let started = self.0.word.start(&mut wait);
        let waited = wait.waited();
        drop(wait);
        match started {
            GoOn::Taken => return Err(EnterError::Running),
            GoOn::TimedOut => return Err(EnterError::TimedOut(self.0.held_for(waited))),
            GoOn::AtOnce => {}
            GoOn::Waited => self.0.note_went_on(),
        }
        self.0.place.set(Some(me));
        let (task, stack) = (NonNull::from(&*self.0), NonNull::from(stack));
        let entered_at_rest = rest::resting() != rest::Rest::Running;
        thread::set_inside(Some(Inside { task, stack, entered_at_rest }));
        let _entered = Entered(&self.0);
        // What was asked between `start` and the store found no task on this thread.
        crate::poll();
        Ok(body())
    }

    /// Runs `body`, which may block, while the task counts as stopped: a suspender does not wait
    /// for it, and no signal interrupts it. Comes back when nobody has the task suspended.
    ///
    /// To be called inside [`Task::enter`] of this task. `body` goes on while the task is suspended,
    /// so it must not touch what a suspender looks at.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// Waits after `body` for as long as somebody has the task suspended; [`Task::blocking_within`]
    /// has a say in that. Meanwhile the thread makes the calls that it is [nudged](crate::Nudger) for.
    /// Before `body` it waits for a signal that is just being sent, at most about a second.
    ///
    /// # Errors
    ///
    /// The calling thread is not inside this task.
    pub fn blocking<R>(&self, body: impl FnOnce() -> R) -> Result<R, EnterError> {
        self.block(None, body, |_| ())
    }

    /// As [`Task::blocking`], and calls `late` each time that another `timeout` is over and the task,
    /// whose `body` has returned, is suspended still.
    ///
    /// The task counts as stopped while `late` runs, as for `body`. It can log who is in the way, or
    /// end the process. It cannot have the task go on: whoever suspended it relies on that.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: may wait.
    ///
    /// # Blocking
    ///
    /// As [`Task::blocking`].
    ///
    /// # Errors
    ///
    /// As [`Task::blocking`].
    pub fn blocking_within<R>(
        &self,
        timeout: Duration,
        body: impl FnOnce() -> R,
        late: impl FnMut(&Held),
    ) -> Result<R, EnterError> {
        self.block(Some(timeout), body, late)
    }

    fn block<R>(
        &self,
        timeout: Option<Duration>,
        body: impl FnOnce() -> R,
        mut late: impl FnMut(&Held),
    ) -> Result<R, EnterError> {
        let inside = current().is_some_and(|task| ptr::eq(task, Arc::as_ptr(&self.0)));
        if !inside || !self.0.can_block() {
            return Err(EnterError::NotInside);
        }
        self.0.block();
        let blocked = Blocked(&self.0);
        settle(SETTLE_WITHIN);
        let result = body();
        let start = Instant::now();
        while self.0.unblock(timeout) == GoOn::TimedOut {
            late(&self.0.held_for(start.elapsed()));
        }
        drop(blocked);
        // What was asked meanwhile has sent no signal.
        crate::poll();
        Ok(result)
    }

    /// Asks the task to run its hook at its next safe point, and sends a signal if it runs.
    ///
    /// Requests that come before the hook starts are one request. One that comes while the hook runs is
    /// served when it has returned, once; so a requester that asks more often than a hook takes keeps
    /// the task from its own code. One that comes when the task is not on its own stack (switched out,
    /// to the scheduler's) waits until it is there again.
    ///
    /// Best effort, as in Go: a signal that finds the thread where it cannot be interrupted is not sent
    /// again, and coming back to registered code is not noticed. The request then stands until the next
    /// signal or [`poll`](crate::poll), however long that is. A scheduler's tick asks again anyway;
    /// [`Task::request_within`] sends until the request is served.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: locks.
    ///
    /// # Errors
    ///
    /// The signal could not be sent.
    #[doc(alias = "preemptone")]
    pub fn request(&self) -> Result<(), threadreg::SignalError> {
        self.0.word.request_yield();
        self.0.signal()
    }

    /// As [`Task::request`], and sends until the task has come to its hook.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: locks, waits.
    ///
    /// # Blocking
    ///
    /// Until the hook starts, at most about `timeout`. From the hook itself, always for that long.
    ///
    /// # Errors
    ///
    /// [`RequestError`] names the thread, and why it did not come to a safe point. The request stands.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// preempt::install()?;
    /// let task = preempt::Task::with_hook(|_| println!("made way"));
    /// let _me = threadreg::attach()?;
    /// task.enter(|| task.request_within(Duration::from_secs(1)))??; // of itself: at once
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request_within(&self, timeout: Duration) -> Result<(), RequestError> {
        self.0.word.request_yield();
        if current().is_some_and(|own| ptr::eq(own, Arc::as_ptr(&self.0))) {
            crate::poll();
        }
        match Attempt::new(&self.0, timeout).request() {
            Err(SuspendError::TimedOut { tid, name, waited, why }) => {
                Err(RequestError { tid, name, waited, why })
            }
            Ok(()) | Err(SuspendError::Own) => Ok(()),
        }
    }
}

/// Takes the signal that is on its way, if one is, so that none interrupts what comes now. False after
/// `timeout`, and for a thread that blocks the signal.
pub(crate) fn settle(timeout: Duration) -> bool {
    let Some(me) = threadreg::current() else { return true };
    let Some(state) = ThreadState::get(me) else { return true };
    let mut start = None;
    state.pending.settle(owner_mark(me), || {
        let start = *start.get_or_insert_with(Instant::now);
        // For a requester that has not been scheduled since its mark.
        std::thread::yield_now();
        // A system call: what was sent comes at its end.
        let blocked = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
        !blocked.contains(crate::install::number()) && start.elapsed() < timeout
    })
}

/// Leaves the task on drop, so also when `body` panics.
struct Entered<'a>(&'a TaskCore);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        thread::set_inside(None);
        self.0.place.set(None);
        // Another thread's clock is another.
        self.0.went_on.store(0, Ordering::Relaxed);
        self.0.word.finish();
    }
}

/// Comes back to Running when `body` panics.
struct Blocked<'a>(&'a TaskCore);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.unblock(None);
    }
}

/// The task of the calling thread.
pub(crate) fn current<'a>() -> Option<&'a TaskCore> {
    let inside = thread::inside()?;
    // SAFETY: this thread keeps the task alive while it is inside. The lifetime is the caller's to
    // keep inside `Task::enter`, which all callers are called from.
    Some(unsafe { inside.task.as_ref() })
}

/// `in_hook`: no hook runs, one runs in an injected call, or one at a poll.
const NO_HOOK: u32 = 0;
const IN_CALL: u32 = 1;
const AT_POLL: u32 = 2;

/// [`current`], with a reference of its own.
pub(crate) fn current_shared() -> Option<Arc<TaskCore>> {
    let task = ptr::from_ref(current()?);
    // SAFETY: every `TaskCore` is made in an `Arc`, and this one lives (`current`).
    unsafe { Arc::increment_strong_count(task) };
    // SAFETY: the reference just counted.
    Some(unsafe { Arc::from_raw(task) })
}

/// The hook has ended, on drop, so also when it panics.
struct InHook<'a>(&'a AtomicU32);

impl Drop for InHook<'_> {
    fn drop(&mut self) {
        // Relaxed: of the owner's, on whichever thread.
        self.0.store(NO_HOOK, Ordering::Relaxed);
    }
}

impl TaskCore {
    pub(crate) fn thread(&self) -> Option<ThreadRef> {
        self.place.thread()
    }

    /// In the child of a fork, on the thread that runs the task.
    pub(crate) fn after_fork(&self) {
        self.word.after_fork();
        self.place.after_fork();
    }

    /// Sends the signal, unless one is on its way.
    pub(crate) fn signal(&self) -> Result<(), threadreg::SignalError> {
        let Some(thread) = self.thread() else { return Ok(()) };
        ThreadState::signal(thread, || self.word.seen().mode() == Mode::Running)
    }

    /// Whether the running task is asked for anything that it is to do now. Async-signal-safe; owner.
    pub(crate) fn is_asked(&self) -> bool {
        let seen = self.word.seen();
        let is_to_run_its_hook =
            seen.mode() == Mode::Running && seen.is_yield() && !self.is_in_hook();
        is_to_run_its_hook || self.is_to_stop()
    }

    fn is_to_stop(&self) -> bool {
        let seen = self.word.seen();
        seen.mode() == Mode::Running && seen.is_wanted() && !self.has_just_gone_on()
    }

    fn note_went_on(&self) {
        let now = clock::own_micros().map_or(0, |now| now.max(1));
        self.went_on.store(now, Ordering::Relaxed);
    }

    /// Whether the owner has waited, and since had less than [`GRACE`]. Suspenders ask again.
    fn has_just_gone_on(&self) -> bool {
        let then = self.went_on.load(Ordering::Relaxed);
        if then == 0 {
            return false;
        }
        let just = clock::own_micros().is_some_and(|now| now.wrapping_sub(then) < GRACE);
        if !just {
            self.went_on.store(0, Ordering::Relaxed);
        }
        just
    }

    /// Who holds the task.
    pub(crate) fn holder(&self) -> Option<i32> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Says who holds the task.
    pub(crate) fn set_holder(&self, tid: Option<i32>) {
        self.holder.store(tid.unwrap_or(0), Ordering::Relaxed);
    }

    fn held_for(&self, waited: Duration) -> Held {
        Held { holder: self.holder(), waited }
    }

    /// Owner: whether it can [`Self::block`] now.
    pub(crate) fn can_block(&self) -> bool {
        match self.word.seen().mode() {
            Mode::Running => true,
            Mode::Blocked => wait::is_rested(),
            Mode::Idle | Mode::Parked => false,
        }
    }

    /// Owner: Running → Blocked. The handler may have done that, in a safe region; then it is ours from
    /// here on.
    pub(crate) fn block(&self) {
        if !self.word.block() {
            let rested = wait::take_rested();
            debug_assert!(rested, "the task was not running");
        }
    }

    /// Owner: Blocked → Running, once it may run, or [`GoOn::TimedOut`] after `timeout`.
    pub(crate) fn unblock(&self, timeout: Option<Duration>) -> GoOn {
        self.go_on(threadreg::current(), timeout)
    }

    /// Owner: back to Running, once it may run; makes the calls of `me` meanwhile.
    pub(crate) fn go_on(&self, me: Option<ThreadRef>, timeout: Option<Duration>) -> GoOn {
        let mode = self.word.seen().mode();
        if mode == Mode::Running {
            return GoOn::AtOnce;
        }
        let gone_on = self.word.go_on(mode, &mut Wait::new(self, me, timeout));
        if gone_on == GoOn::Waited {
            self.note_went_on();
        }
        gone_on
    }

    /// A hook is not entered while it runs: it would be interrupted by itself until the stack is full.
    /// What is asked meanwhile waits for its end.
    fn is_in_hook(&self) -> bool {
        // Relaxed: of the owner's, on whichever thread.
        match self.in_hook.load(Ordering::Relaxed) {
            NO_HOOK => false,
            // One that took its frame out (`Frame::park`) never returns. Then the stack says that the
            // interrupted code goes on.
            IN_CALL => thread::inside().is_none_or(|inside| {
                // SAFETY: this thread keeps the stack alive while it is inside.
                unsafe { inside.stack.as_ref() }.is_active()
            }),
            _ => true,
        }
    }

    /// Whether the calling thread is on the stack of the task that it is inside. On another one (a
    /// scheduler's, to which the task's coroutine has switched back) a hook would leave that.
    #[inline(never)] // see `signal::is_asked_here`
    fn is_on_its_stack() -> bool {
        let here = 0_u8;
        let Some(inside) = thread::inside() else { return false };
        // SAFETY: this thread keeps the stack alive while it is inside.
        let stack = unsafe { inside.stack.as_ref() };
        let is_threads = threadreg::current().is_some_and(|me| ptr::eq(me.call_stack(), stack));
        let (lo, hi) = stack.bounds();
        // The bounds of a thread's own stack may be too narrow (the main thread's, with some libcs).
        is_threads || (lo..hi).contains(&(&raw const here as usize))
    }

    /// Owner, at a safe point: does one thing that is asked. Returns false if nothing is. The hook may
    /// come back on another thread.
    pub(crate) fn serve(&self, frame: Option<&mut Frame<'_>>) -> bool {
        if !self.is_asked() {
            return false;
        }
        let may_run = !self.is_in_hook() && (frame.is_some() || Self::is_on_its_stack());
        if may_run && self.word.take_yield() {
            if let Some(hook) = &self.hook {
                // Relaxed: of the owner's, on whichever thread.
                let how = if frame.is_some() { IN_CALL } else { AT_POLL };
                self.in_hook.store(how, Ordering::Relaxed);
                let _in_hook = InHook(&self.in_hook);
                hook(frame);
            }
            return true;
        }
        if !self.is_to_stop() {
            return false;
        }
        self.with_frame(frame, || {
            self.word.park(&mut Wait::new(self, threadreg::current(), None));
        });
        self.note_went_on();
        true
    }

    /// Owner, at a safe point: does `work`, in which the task may be parked at `frame`.
    pub(crate) fn with_frame(&self, frame: Option<&mut Frame<'_>>, work: impl FnOnce()) {
        // In a wait of the task's, what was interrupted is what the wait says.
        if self.word.seen().mode() != Mode::Running {
            return work();
        }
        let interrupted = frame.as_deref().map(Frame::registers);
        let frame = frame.map(|frame| NonNull::from(frame).cast());
        // SAFETY: the owner writes while it runs; a holder reads only while it is parked.
        let interrupted = unsafe { mem::replace(&mut *self.interrupted.get(), interrupted) };
        let frame = self.frame.replace(frame);
        work();
        // SAFETY: as above: the task is parked in `work` alone.
        unsafe { *self.interrupted.get() = interrupted };
        self.frame.set(frame);
    }

    /// Owner, in the place of a CALL: runs what the holder has posted.
    pub(crate) fn run_posted(&self) {
        // SAFETY: the holder has written it before CALL, and waits for the end of SERVING.
        let errand = unsafe { (*self.errand.get()).take() };
        let Some(errand) = errand else { return };
        // SAFETY: the frame is that of the injected call in which the owner waits, below this one, and
        // the reference to it that was handed to `with_frame` is not used meanwhile.
        let frame = self.frame.get().map(|mut frame| unsafe { frame.as_mut() });
        // SAFETY: the holder keeps the closure alive until SERVING is over, and does not touch it
        // meanwhile.
        unsafe { (*errand)(frame) };
    }

    /// Holder of the parked task: has its thread run `errand`. A panic in it comes back. `None` if it
    /// has not begun when `patience` says that the next wait is none.
    pub(crate) fn run_errand(
        &self,
        errand: &mut Errand<'_>,
        patience: impl FnMut() -> Duration,
    ) -> Option<Result<(), Box<dyn Any + Send>>> {
        let mut outcome = Ok(());
        let mut guarded = |frame: Option<&mut Frame<'_>>| {
            let run = core::panic::AssertUnwindSafe(|| errand(frame));
            outcome = std::panic::catch_unwind(run);
        };
        let guarded: &mut Errand<'_> = &mut guarded;
        // SAFETY: only the lifetime changes; the pointer is taken out before `call` returns, or never.
        let guarded =
            unsafe { core::mem::transmute::<&mut Errand<'_>, &mut Errand<'static>>(guarded) };
        // SAFETY: the owner reads it only after CALL, which the next line sets.
        unsafe { *self.errand.get() = Some(&raw mut *guarded) };
        let served = self.word.call(patience);
        // SAFETY: CALL and SERVING are over, so the owner does not look.
        unsafe { *self.errand.get() = None };
        served.then_some(outcome)
    }
}
