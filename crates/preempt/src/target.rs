//! The target's side: what the thread that runs a task does at its safe points, and how it waits.
//!
//! The thread comes here from the injected call ([`handler`](crate::handler)) and from polls
//! ([`serve`]), and from the calls of [`Task`](crate::Task) that enter a task or block in it. While it
//! waits, it still makes the calls that it is asked to make ([`Nudger`](crate::Nudger)): it may be a
//! mutator whose world is about to stop, and the thread that it waits for may be stopped already. Its
//! handler cannot make them, but stirs the word that the thread waits on.

use core::any::Any;
use core::cell::{Cell, UnsafeCell};
use core::mem;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering, compiler_fence};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use sigctx::Registers;
use sigctx::fork::Hooks;
use sigctx::inject::{CallStack, Frame};
use sigctx::sys::Tid;
use threadreg::{SignalError, ThreadRef, spin};

use crate::clock;
use crate::error::Held;
use crate::place::Place;
use crate::slices::{self, Slices};
use crate::stats;
use crate::thread;
use crate::thread::{
    ThreadState, WaitsOn, is_called, is_disabled, is_rested, make_calls, take_rested,
};
use crate::word::{GoOn, Mode, TaskWord, Waiter};

/// What a task runs when it is asked to make way; gets the interrupted frame, or `None` at a poll.
pub(crate) type Hook = dyn Fn(Option<&mut Frame<'_>>) + Send + Sync;

/// What the holder of a parked task has its thread run.
pub(crate) type Errand<'a> = dyn FnMut(Option<&mut Frame<'_>>) + Send + 'a;

/// For how long a task that went on after a wait is not stopped again, in microseconds: two to four times
/// what a stop costs. By the wall's clock: the thread notes the time while it has a processor, and the kernel
/// seldom takes that away so soon. Where it does, the task has its next turn.
const GRACE: u32 = 50;

/// How long a thread spins before it sleeps, at most: about as long as a sleep and its wake take, so that
/// spinning in vain costs no more than once what it was to save.
pub(crate) const SPIN: Duration = Duration::from_micros(25);

/// A task can be held, and its thread fork, without the handler for the signal. Without them, if there
/// was no memory, the child waits for a holder that it does not have.
static HOOKS: Hooks = Hooks::new(None, after_fork);

extern "C" fn after_fork() {
    if let Some(task) = current() {
        task.word.after_fork();
        task.place.after_fork();
    }
}

pub(crate) struct TaskCore {
    /// Total order of tasks: of two that suspend each other, it says which gives way.
    pub(crate) id: u32,
    pub(crate) word: TaskWord,
    /// Where the task runs; written by that thread before it enters Running.
    pub(crate) place: Place,
    hook: Option<Box<Hook>>,
    /// Who ends its slices.
    pub(crate) slicer: ArcSwapOption<Slices>,
    /// The hook runs, or has left its stack and will come back. Written by the target alone.
    in_hook: AtomicU32,
    /// Written by the target before it parks, read by the holder of the parked task.
    interrupted: UnsafeCell<Option<Registers>>,
    /// Written by the holder before ERRAND, taken by the target after it, while SERVING is set.
    errand: UnsafeCell<Option<*mut Errand<'static>>>,
    /// The frame that `interrupted` was read from, while that call lasts. The target's.
    frame: Cell<Option<NonNull<Frame<'static>>>>,
    /// When the target went on after a wait, in microseconds; 0 once that is long ago. Relaxed: the
    /// target's.
    went_on: AtomicU32,
    /// The thread that holds the task, or 0. Relaxed: for diagnosis.
    holder: AtomicI32,
}

// SAFETY: `interrupted` and `errand` are handed between the target and the one holder by the word, as
// their comments say, `frame` is the target's alone; every other field is Sync.
unsafe impl Sync for TaskCore {}
// SAFETY: the raw pointer in `errand` is to a closure that is Send, and is there only during a call;
// that in `frame` is there only while the thread it belongs to is inside the task.
unsafe impl Send for TaskCore {}

/// `in_hook`: no hook runs, one runs in an injected call, or one at a poll.
const NO_HOOK: u32 = 0;
const IN_CALL: u32 = 1;
const AT_POLL: u32 = 2;

/// Says on drop, so also when the hook panics, that it has ended.
struct InHook<'a>(&'a AtomicU32);

impl Drop for InHook<'_> {
    fn drop(&mut self) {
        // Relaxed: the target's, on whichever thread.
        self.0.store(NO_HOOK, Ordering::Relaxed);
    }
}

impl TaskCore {
    pub(crate) fn new(hook: Option<Box<Hook>>) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        let _ = HOOKS.register();
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            word: TaskWord::new(),
            place: Place::nowhere(),
            hook,
            slicer: ArcSwapOption::empty(),
            in_hook: AtomicU32::new(NO_HOOK),
            interrupted: UnsafeCell::new(None),
            errand: UnsafeCell::new(None),
            frame: Cell::new(None),
            went_on: AtomicU32::new(0),
            holder: AtomicI32::new(0),
        }
    }

    pub(crate) fn thread(&self) -> Option<ThreadRef> {
        self.place.thread()
    }

    /// Sends the signal, unless one is on its way.
    pub(crate) fn signal(&self) -> Result<(), SignalError> {
        self.thread().map_or(Ok(()), |thread| self.signal_to(thread))
    }

    /// Sends the signal to the thread where the task runs, unless one is on its way.
    pub(crate) fn signal_to(&self, thread: ThreadRef) -> Result<(), SignalError> {
        ThreadState::signal(thread, || self.word.seen().mode() == Mode::Running)
    }

    /// The thread that holds the task.
    pub(crate) fn holder(&self) -> Option<Tid> {
        Some(self.holder.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Says which thread holds the task.
    pub(crate) fn set_holder(&self, tid: Option<Tid>) {
        self.holder.store(tid.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn held_for(&self, waited: Duration) -> Held {
        Held { holder: self.holder(), waited }
    }

    /// Whether the running task is asked for anything that it is to do now. Async-signal-safe; target.
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

    /// Target: the [`GRACE`] begins.
    pub(crate) fn note_went_on(&self) {
        self.went_on.store(clock::micros().max(1), Ordering::Relaxed);
    }

    /// Target, as it leaves the task: who enters it next has not waited.
    pub(crate) fn forget_went_on(&self) {
        self.went_on.store(0, Ordering::Relaxed);
    }

    /// Whether the target has waited, and since had less than [`GRACE`]. Requesters ask again.
    fn has_just_gone_on(&self) -> bool {
        let then = self.went_on.load(Ordering::Relaxed);
        if then == 0 {
            return false;
        }
        let just = clock::micros().wrapping_sub(then) < GRACE;
        if !just {
            self.went_on.store(0, Ordering::Relaxed);
        }
        just
    }

    /// Target: whether it can [`Self::block`] now.
    pub(crate) fn can_block(&self) -> bool {
        match self.word.seen().mode() {
            Mode::Running => true,
            Mode::Blocked => is_rested(),
            Mode::Idle | Mode::Parked => false,
        }
    }

    /// Target: Running → Blocked. The handler may have done that, in a safe region; then it is the
    /// caller's from here on.
    pub(crate) fn block(&self) {
        if !self.word.block() {
            let rested = take_rested();
            debug_assert!(rested, "the task was not running");
        }
        slices::stop(&self.place);
    }

    /// Target: Blocked → Running, once it may run, or [`GoOn::TimedOut`] after `timeout`.
    pub(crate) fn unblock(&self, timeout: Option<Duration>) -> GoOn {
        let gone_on = self.go_on(threadreg::current(), timeout);
        if gone_on != GoOn::TimedOut {
            slices::start(&self.slicer, &self.place);
        }
        gone_on
    }

    /// Target: back to Running, once it may run; makes the calls of `me` meanwhile.
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

    /// A hook is not entered while it runs: it would interrupt itself until the stack is full. What is
    /// asked meanwhile waits for its end.
    fn is_in_hook(&self) -> bool {
        // Relaxed: the target's, on whichever thread.
        match self.in_hook.load(Ordering::Relaxed) {
            NO_HOOK => false,
            // One that took its frame out (`Frame::park`) never returns. Then the stack says that the
            // interrupted code goes on.
            IN_CALL => inside().is_none_or(|inside| {
                // SAFETY: this thread keeps the stack alive while it is inside.
                unsafe { inside.stack.as_ref() }.is_active()
            }),
            _ => true,
        }
    }

    /// Target, at a safe point: does one thing that is asked. Returns false if nothing is. The hook may
    /// come back on another thread.
    fn serve(&self, frame: Option<&mut Frame<'_>>) -> bool {
        if !self.is_asked() {
            return false;
        }
        let may_run = !self.is_in_hook() && (frame.is_some() || is_on_its_stack());
        if may_run && self.word.take_yield() {
            if let Some(hook) = &self.hook {
                // Relaxed: the target's, on whichever thread.
                let how = if frame.is_some() { IN_CALL } else { AT_POLL };
                self.in_hook.store(how, Ordering::Relaxed);
                let _in_hook = InHook(&self.in_hook);
                stats::HOOKS.count();
                hook(frame.map(opened));
            }
            return true;
        }
        if !self.is_to_stop() {
            return false;
        }
        slices::stop(&self.place);
        stats::PARKED.count();
        self.with_frame(frame, || {
            self.word.park(&mut Wait::new(self, threadreg::current(), None));
        });
        self.note_went_on();
        slices::start(&self.slicer, &self.place);
        true
    }

    /// Target, at a safe point: does `work`, in which the task may be parked at `frame`.
    fn with_frame(&self, frame: Option<&mut Frame<'_>>, work: impl FnOnce()) {
        // In a wait of the task's, what was interrupted is what the wait says.
        if self.word.seen().mode() != Mode::Running {
            return work();
        }
        let interrupted = frame.as_deref().map(Frame::registers);
        let frame = frame.map(|frame| NonNull::from(frame).cast());
        // SAFETY: the target writes while it runs; a holder reads only while it is parked.
        let interrupted = unsafe { mem::replace(&mut *self.interrupted.get(), interrupted) };
        let frame = self.frame.replace(frame);
        work();
        // SAFETY: as above: the task is parked in `work` alone.
        unsafe { *self.interrupted.get() = interrupted };
        self.frame.set(frame);
    }

    /// Holder of the parked task: the registers of the code that was interrupted, if it was.
    ///
    /// # Safety
    ///
    /// The calling thread holds the task, which is parked, for as long as the reference lives.
    pub(crate) unsafe fn interrupted(&self) -> Option<&Registers> {
        // SAFETY: the target wrote this before it parked, and does not again until it is let go.
        unsafe { &*self.interrupted.get() }.as_ref()
    }

    /// Target, in a wait: if that is in an injected call, all signals are as they were from here on.
    fn open_mask(&self) {
        if let Some(mut frame) = self.frame.get() {
            // SAFETY: the frame of a call below this one. The reference to it that was handed to
            // `with_frame` is not used meanwhile, and while an errand has one it is not in `frame`.
            unsafe { frame.as_mut() }.open_mask();
        }
    }

    /// Target, in the place of an ERRAND: runs the errand that the holder has posted.
    fn run_posted(&self) {
        // SAFETY: the holder has written it before ERRAND, and waits for the end of SERVING.
        let errand = unsafe { (*self.errand.get()).take() };
        let Some(errand) = errand else { return };
        self.open_mask();
        let frame = self.frame.take();
        // SAFETY: as in `open_mask`.
        let lent = frame.map(|mut frame| unsafe { frame.as_mut() });
        // SAFETY: the holder keeps the closure alive until SERVING is over, and does not touch it
        // meanwhile.
        unsafe { (*errand)(lent) };
        self.frame.set(frame);
    }

    /// Target, in another crate's code: as [`Self::run_posted`]. That is no safe point, so the errand
    /// must make no calls there.
    pub(crate) fn run_posted_elsewhere(&self) {
        thread::disable();
        self.run_posted();
        // What is asked meanwhile waits for the thread's own poll.
        thread::enable();
    }

    /// Holder of the parked task: has its thread run `errand`. A panic in it comes back. `None` if it
    /// has not begun when `patience` says that the next wait is none.
    pub(crate) fn run_errand(
        &self,
        errand: &mut Errand<'_>,
        patience: impl FnMut() -> Duration,
    ) -> Option<Result<(), Box<dyn Any + Send>>> {
        let mut ended = Ok(());
        let mut guarded = |frame: Option<&mut Frame<'_>>| {
            let run = core::panic::AssertUnwindSafe(|| errand(frame));
            ended = std::panic::catch_unwind(run);
        };
        let guarded: &mut Errand<'_> = &mut guarded;
        // SAFETY: only the lifetime changes; the pointer is taken out before `call` returns, or never.
        let guarded =
            unsafe { core::mem::transmute::<&mut Errand<'_>, &mut Errand<'static>>(guarded) };
        // SAFETY: the target reads it only after ERRAND, which the next line sets.
        unsafe { *self.errand.get() = Some(&raw mut *guarded) };
        let spin = |done: &dyn Fn() -> bool| {
            spin::for_running(1, SPIN, done);
        };
        let served = self.word.run_errand(spin, patience);
        // SAFETY: ERRAND and SERVING are over, so the target does not look.
        unsafe { *self.errand.get() = None };
        served.then_some(ended)
    }
}

/// What a thread is inside. `Task::enter_on` keeps both alive, on this thread, while they are set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside {
    pub(crate) task: NonNull<TaskCore>,
    pub(crate) stack: NonNull<CallStack>,
    /// The thread was away in another crate's safe region when it entered: that it is there says
    /// nothing about this task's code.
    pub(crate) entered_at_rest: bool,
}

thread_local! {
    /// The task that the thread is inside, and the stack of its registered code. Not in the
    /// thread's record: that becomes another thread's if this one is detached inside the task.
    /// Constant and without a destructor: the handler reads it.
    static INSIDE: Cell<Option<Inside>> = const { Cell::new(None) };
}

/// What the calling thread is inside. Async-signal-safe.
#[inline(never)] // see the documentation of `thread`
pub(crate) fn inside() -> Option<Inside> {
    INSIDE.with(Cell::get)
}

/// Says what the calling thread is inside.
#[inline(never)] // see the documentation of `thread`
pub(crate) fn set_inside(inside: Option<Inside>) {
    INSIDE.with(|cell| cell.set(inside));
    // The handler runs on this thread: only the compiler could move what follows above this.
    compiler_fence(Ordering::SeqCst);
}

/// Whether the calling thread is on the stack of the task that it is inside. On another one (a
/// scheduler's, to which the task's coroutine has switched back) a hook would leave that.
#[inline(never)] // see the documentation of `thread`
fn is_on_its_stack() -> bool {
    let here = 0_u8;
    let Some(inside) = inside() else { return false };
    // SAFETY: this thread keeps the stack alive while it is inside.
    let stack = unsafe { inside.stack.as_ref() };
    let is_threads = threadreg::current().is_some_and(|me| ptr::eq(me.call_stack(), stack));
    let (lo, hi) = stack.bounds();
    // The bounds of a thread's own stack may be too narrow (the main thread's, with some libcs).
    is_threads || (lo..hi).contains(&(&raw const here as usize))
}

/// The task of the calling thread.
pub(crate) fn current<'a>() -> Option<&'a TaskCore> {
    let inside = inside()?;
    // SAFETY: this thread keeps the task alive while it is inside. The lifetime is the caller's to
    // keep inside `Task::enter`, which all callers are called from.
    Some(unsafe { inside.task.as_ref() })
}

/// [`current`], with a reference of its own.
fn current_shared() -> Option<Arc<TaskCore>> {
    let task = ptr::from_ref(current()?);
    // SAFETY: every `TaskCore` is made in an `Arc`, and this one lives (`current`).
    unsafe { Arc::increment_strong_count(task) };
    // SAFETY: the reference just counted.
    Some(unsafe { Arc::from_raw(task) })
}

/// Whether anything is asked of the thread, which is the calling one. Async-signal-safe.
#[doc(alias = "wantAsyncPreempt")]
pub(crate) fn is_asked(state: &ThreadState) -> bool {
    state.has_call() || current().is_some_and(TaskCore::is_asked)
}

/// Whether anything stands that the thread, which is the calling one, may be asked for, now or later.
fn stands(state: &ThreadState) -> bool {
    let is_wanted = |task: &TaskCore| {
        let seen = task.word.seen();
        seen.is_yield() || seen.is_wanted()
    };
    state.has_call() || current().is_some_and(is_wanted)
}

/// A poll that has something to look for, or is to look all the same: nobody told it of what came before
/// its task was on this thread, or while that was blocked.
#[cold]
#[inline(never)] // see the documentation of `thread`
pub(crate) fn look() {
    let Some(state) = threadreg::current().and_then(ThreadState::get) else { return };
    end_slice(state);
    if is_disabled() {
        // The end of the last guard looks.
        state.asked.set();
    } else if state.asked.look(|| stands(state)) {
        serve(None);
    }
}

/// Asks the task of the thread with `state`, which is the calling one, to run its hook, if it has had its slice.
/// Async-signal-safe.
pub(crate) fn end_slice(state: &ThreadState) {
    if state.slice.take_over(clock::micros)
        && let Some(task) = current()
    {
        task.word.request_yield();
    }
}

/// Whether anything is asked of the calling thread, whichever it is now.
#[inline(never)] // see the documentation of `thread`
pub(crate) fn is_asked_here() -> bool {
    threadreg::current().and_then(ThreadState::get).is_some_and(is_asked)
}

/// Whether the calling thread has a call to make, whichever it is now.
#[inline(never)] // see the documentation of `thread`
fn is_called_here() -> bool {
    threadreg::current().and_then(ThreadState::get).is_some_and(ThreadState::has_call)
}

/// The frame, with all signals as they were at the interruption: for what is not ours, or waits.
fn opened<'f, 'g>(frame: &'f mut Frame<'g>) -> &'f mut Frame<'g> {
    frame.open_mask();
    frame
}

/// Does what is asked of the calling thread, at a safe point, until nothing is.
pub(crate) fn serve(mut frame: Option<&mut Frame<'_>>) {
    while serve_once(frame.as_deref_mut()) {}
}

/// Does one thing that is asked of the calling thread's task, and all calls that the thread is to make.
///
/// Not inlined: after a hook nothing here may ask for the thread.
#[inline(never)] // see the documentation of `thread`
fn serve_once(mut frame: Option<&mut Frame<'_>>) -> bool {
    // One that comes after the look is made at the next.
    if is_called_here() {
        frame = frame.map(opened);
        match current() {
            Some(task) => task.with_frame(frame.as_deref_mut(), || make_calls(task.frame.get())),
            None => make_calls(frame.as_deref_mut().map(|frame| NonNull::from(frame).cast())),
        }
    }
    let Some(task) = current() else { return false };
    if task.hook.is_none() {
        return task.serve(frame);
    }
    // A reference of its own: the hook may come back when the task has been left, and let go.
    current_shared().is_some_and(|task| task.serve(frame))
}

/// The target's wait to run its task.
pub(crate) struct Wait<'a> {
    task: &'a TaskCore,
    /// The thread whose calls are made meanwhile.
    me: Option<ThreadRef>,
    timeout: Option<Duration>,
    start: Option<Instant>,
    /// It has spun since it began to wait, or since the last errand.
    has_spun: bool,
    _on: WaitsOn,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(
        task: &'a TaskCore,
        me: Option<ThreadRef>,
        timeout: Option<Duration>,
    ) -> Self {
        let on = WaitsOn::new(&task.word);
        Self { task, me, timeout, start: None, has_spun: false, _on: on }
    }

    /// How long it has waited by now.
    pub(crate) fn waited(&self) -> Duration {
        self.start.map(|start| start.elapsed()).unwrap_or_default()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(me) = self.me.filter(|_| self.start.is_some()) {
            me.set_suspended_by(None);
        }
    }
}

impl Waiter for Wait<'_> {
    fn errand(&mut self) {
        // A holder that has sent one may be about to send the next.
        self.has_spun = false;
        if self.me.is_some() {
            self.task.run_posted();
        } else {
            self.task.run_posted_elsewhere();
        }
    }

    fn is_called(&mut self) -> bool {
        self.me.is_some_and(is_called)
    }

    fn look(&mut self) {
        self.task.open_mask();
        make_calls(self.task.frame.get());
    }

    fn left(&mut self) -> Option<Duration> {
        let start = *self.start.get_or_insert_with(Instant::now);
        if let Some(me) = self.me {
            // A stop that waits for this thread can say for which thread that waits.
            me.set_suspended_by(self.task.holder());
        }
        self.timeout.map(|timeout| timeout.saturating_sub(start.elapsed()))
    }

    fn may_sleep(&mut self, changed: impl Fn() -> bool) -> bool {
        // Once: a holder that takes longer may take any time.
        if !mem::replace(&mut self.has_spun, true) && spin::at_rest(SPIN, changed) {
            return false;
        }
        // A signal that is due comes here, and stirs the word.
        self.task.open_mask();
        true
    }
}
