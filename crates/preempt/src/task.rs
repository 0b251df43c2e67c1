//! Tasks: units of work that can be stopped and let go again.
//!
//! What a thread does with a task of its own: entering it, and blocking in it. What is asked of a task is
//! in [`suspend`](crate::suspend).

use core::fmt;
use core::ptr::{self, NonNull};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use sigctx::inject::{CallStack, Frame};
use threadreg::rest::Rest;

use crate::clock;
use crate::error::{EnterError, Held};
use crate::rest;
use crate::slices;
use crate::target::{self, Hook, Inside, TaskCore, Wait, set_inside};
use crate::thread::{ThreadState, settle};
use crate::word::GoOn;

/// A requester is between its mark and its signal for a system call or two, if it is scheduled.
const SETTLE_WITHIN: Duration = Duration::from_secs(1);

/// A unit of work that [`Task::suspend`] can stop, wherever it is in registered code.
///
/// A task runs on one thread at a time, inside [`Task::enter`]. Clones name the same task.
///
/// # Signal safety
///
/// No method is async-signal-safe: all are AS-Unsafe lock heap, and most may wait.
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
    /// Makes a task. It is idle until a thread enters it.
    #[must_use]
    pub fn new() -> Self {
        Self::build(None)
    }

    /// Makes a task that runs `hook` each time that it is asked to make way by [`Task::request`].
    ///
    /// The hook runs on the task's thread and stack, between two instructions of the task, with
    /// all signals as the task had them. There are 16 KiB of stack for it, and what is left beyond
    /// ([`sigctx::inject::CALLBACK_ROOM`]). It may block and call anything that the promises made for
    /// the registered code allow. When it returns, the task goes on exactly where it was: every
    /// register, flag and vector is as it was.
    ///
    /// The hook is not entered again while it runs, also where it has switched to another stack. It may
    /// come back on another thread (`Frame::move_here` of `sigctx`). A hook whose stack is given up while
    /// it is switched out never ends: the task cannot be used any more.
    ///
    /// # Panics
    ///
    /// A panic of the hook ends the process, unless the task came to a [`poll`](crate::poll), from
    /// which it unwinds: code that was interrupted between two instructions cannot be unwound. The
    /// same happens when a coroutine library unwinds the stack of a coroutine that it drops: let a
    /// preempted one come to its end first, or give its stack up without unwinding
    /// (`force_reset` of `corosensei`).
    #[doc(alias = "asyncPreempt")]
    #[must_use]
    pub fn with_hook(hook: impl Fn(Option<&mut Frame<'_>>) + Send + Sync + 'static) -> Self {
        Self::build(Some(Box::new(hook)))
    }

    fn build(hook: Option<Box<Hook>>) -> Self {
        rest::settle_in();
        Self(Arc::new(TaskCore::new(hook)))
    }

    /// Runs `body` as this task on the calling thread, which must be registered with `threadreg`.
    ///
    /// # Blocking
    ///
    /// Waits at the start for as long as a requester has the idle task suspended: forever, if that is
    /// the calling thread itself. [`Task::enter_within`] bounds the wait. Meanwhile the thread makes the
    /// calls that it is [nudged](crate::Nudger) for.
    ///
    /// # Errors
    ///
    /// [`EnterError`]: the thread is not registered, or inside a task already; or the task runs on another
    /// thread.
    pub fn enter<R>(&self, body: impl FnOnce() -> R) -> Result<R, EnterError> {
        let me = threadreg::current().ok_or(EnterError::NotRegistered)?;
        self.run_as(me.call_stack(), None, body)
    }

    /// As [`Task::enter`], if the task can be entered before `timeout` is over.
    ///
    /// # Blocking
    ///
    /// Before `body`, at most about `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Task::enter`]; and [`EnterError::TimedOut`], which names the thread that has the task
    /// suspended: `body` was not run.
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
    /// It is for `body` to switch to that stack and back. Where it is on another stack, it is not
    /// interrupted.
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
        if target::inside().is_some() {
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
        let entered_at_rest = threadreg::rest::resting() != Rest::Running;
        set_inside(Some(Inside { task, stack, entered_at_rest }));
        let _entered = Entered(&self.0);
        slices::start(&self.0.slicer, &self.0.place);
        // What was asked between `start` and the store found no task on this thread.
        target::look();
        Ok(body())
    }

    /// Runs `body`, which may block, while the task counts as stopped: a requester does not wait for it
    /// nor signals it. Returns when no requester has the task suspended.
    ///
    /// To be called inside [`Task::enter`] of this task. `body` goes on while the task is suspended,
    /// so it must not touch what a requester looks at.
    ///
    /// # Blocking
    ///
    /// Waits after `body` for as long as a requester has the task suspended; [`Task::blocking_within`]
    /// tells when that is long. Meanwhile the thread makes the calls that it is
    /// [nudged](crate::Nudger) for. Before `body` it waits for a signal that is just being sent, at most
    /// about a second.
    ///
    /// # Errors
    ///
    /// [`EnterError::NotInside`]: the calling thread is not inside this task, or is blocked in it already.
    pub fn blocking<R>(&self, body: impl FnOnce() -> R) -> Result<R, EnterError> {
        self.block(None, body, |_| ())
    }

    /// As [`Task::blocking`], and calls `late` each time that another `timeout` is over and the task,
    /// whose `body` has returned, is still suspended.
    ///
    /// The task counts as stopped while `late` runs, as for `body`. It can log which thread is in the
    /// way, or end the process. It cannot have the task go on: the requester relies on its suspension.
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
        let inside = target::current().is_some_and(|task| ptr::eq(task, Arc::as_ptr(&self.0)));
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
        // What was asked meanwhile has told no poll.
        target::look();
        Ok(result)
    }
}

impl Task {
    /// How long the task has run, up to now, since it was [added](crate::Slicer::add) to a slicer: the time inside
    /// [`Task::enter`] in which it was neither [blocked](Task::blocking) nor suspended at an instruction or a poll. By the
    /// clock of the wall: whether its thread had a processor is the kernel's business.
    ///
    /// # Examples
    ///
    /// See [`Slicer`](crate::Slicer).
    #[must_use]
    pub fn run_time(&self) -> Duration {
        self.0.place.run_time(clock::nanos())
    }
}

/// Leaves the task on drop, so also when `body` panics.
struct Entered<'a>(&'a TaskCore);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        slices::stop(&self.0.place);
        set_inside(None);
        self.0.place.set(None);
        self.0.forget_went_on();
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
