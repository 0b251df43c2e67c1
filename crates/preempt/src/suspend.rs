//! The requester's side: stopping a task, looking at it and letting it go; asking it to make way.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use sigctx::inject::Frame;
use sigctx::sys::{self, Tid};
use sigctx::{Reg, Registers};
use threadreg::{ThreadRef, spin};

use crate::error::{RequestError, RunError, SignalOutcome, StragglerCause, SuspendError};
use crate::signal::{self, is_installed};
use crate::target::{self, SPIN, TaskCore};
use crate::task::Task;
use crate::thread::{ThreadState, WaitsOn, is_called, make_calls};
use crate::word::{GoOn, Mode, Seen};

/// The first wait for a task to stop; doubled with each signal. A signal reaches a running thread in about
/// 15 µs, so an earlier look would only find the same.
const FIRST_WAIT: Duration = Duration::from_micros(50);
const LONGEST_WAIT: Duration = Duration::from_millis(10);
/// How long the earlier of two tasks that hold each other waits for the later to give way: it needs
/// a few microseconds for that, if it is going to.
const GIVE_WAY: Duration = Duration::from_millis(1);

impl Task {
    /// Stops the task and returns when none of its code runs, or fails after `timeout`.
    ///
    /// A running task is stopped at its next instruction in registered code, or at its next
    /// [`poll`](crate::poll). One that is idle, or inside [`Task::blocking`], is held as it is and not
    /// signalled; what runs in `blocking` goes on ([`StoppedAt::Blocked`]). One whose thread stands still
    /// for another crate is held there, too: stopped with its world, it counts as stopped at the safe
    /// point that it came to; in a safe region, as blocked.
    ///
    /// Several requesters that suspend one task take turns, and the task has its turn between two of
    /// them: once it has gone on it is not stopped again for 50 µs.
    ///
    /// A mutator of a stop-the-world calls this in a safe region, unless it is stopped by nudges
    /// ([`Nudger`](crate::Nudger)): while it waits, it makes the calls that it is nudged for. While
    /// [`Suspended::run`] waits, it makes none; where the closure takes long, a mutator calls that in a safe
    /// region, too.
    ///
    /// A task that calls this counts as blocked while it waits, so two tasks may suspend each other:
    /// one gives way, is suspended, and goes on when it is resumed.
    ///
    /// # Blocking
    ///
    /// At most about `timeout`; then, if the calling thread is inside a task that another requester has
    /// suspended, until that is resumed.
    ///
    /// # Errors
    ///
    /// [`SuspendError::TimedOut`] names the thread and the cause, and the task is left running;
    /// [`SuspendError::Own`] if the task is the calling thread's own.
    ///
    /// # Examples
    ///
    /// See [`Task`].
    ///
    /// # References
    ///
    /// Go's `suspendG` (runtime/preempt.go, commit 62e53b79).
    #[doc(alias = "suspendG")]
    pub fn suspend(&self, timeout: Duration) -> Result<Suspended, SuspendError> {
        let target = &*self.0;
        let own = target::current();
        if own.is_some_and(|own| core::ptr::eq(own, target)) {
            return Err(SuspendError::Own);
        }
        // Parked or blocked already, it has nothing to give up and nothing to take back.
        let own = own.filter(|own| own.can_block());
        if let Some(own) = own {
            own.block();
        }
        let mut attempt = Attempt::new(target, timeout);
        let result = loop {
            let held = attempt.hold();
            let Some(own) = own else { break attempt.finish(held, self) };
            if own.unblock(Some(Duration::ZERO)) != GoOn::TimedOut {
                break attempt.finish(held, self);
            }
            if held.is_err() {
                own.unblock(None);
                break attempt.finish(held, self);
            }
            // A requester wants our task while we hold the target, and may be the target itself. One of
            // the two must give way: the later at once, the earlier if that does not help, for the other
            // may hold us from its own code, where it is stopped now and cannot let go.
            if own.id < target.id && own.unblock(Some(GIVE_WAY)) != GoOn::TimedOut {
                break attempt.finish(held, self);
            }
            target.word.release();
            own.unblock(None);
            own.block();
        };
        if own.is_some() {
            // What was asked of the calling thread meanwhile has told no poll.
            target::look();
        }
        result
    }

    /// Asks the task to run its hook at its next safe point, and sends a signal if it runs.
    ///
    /// Requests that come before the hook starts are one request. One that comes while the hook runs is
    /// served when it has returned, once; so a requester that asks more often than a hook takes keeps
    /// the task from its own code. One that comes when the task is not on its own stack (switched out,
    /// to the scheduler's) waits until it is there again.
    ///
    /// Best effort, as in Go: a signal that finds the thread where it cannot be interrupted is not sent
    /// again, and the thread's return to registered code is not noticed. The request then stands until the
    /// next signal or [`poll`](crate::poll), however long that is. A scheduler's tick asks again anyway;
    /// [`Task::request_within`] sends until the request is served.
    ///
    /// # Errors
    ///
    /// The signal could not be sent.
    #[doc(alias("preemptone", "preemptM"))]
    pub fn request(&self) -> Result<(), threadreg::SignalError> {
        self.0.word.request_yield();
        self.0.signal()
    }

    /// As [`Task::request`], and sends until the task has come to its hook.
    ///
    /// # Blocking
    ///
    /// Until the hook starts, at most about `timeout`. Called in the hook, always for that long.
    ///
    /// # Errors
    ///
    /// [`RequestError`] names the thread, and the cause why it did not come to a safe point. The request
    /// stands.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// preempt::install()?;
    /// let task = preempt::Task::with_hook(|_| println!("made way"));
    /// let _me = threadreg::attach()?;
    /// task.enter(|| task.request_within(Duration::from_secs(1)))??; // of its own: at once
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request_within(&self, timeout: Duration) -> Result<(), RequestError> {
        self.0.word.request_yield();
        if target::current().is_some_and(|own| core::ptr::eq(own, Arc::as_ptr(&self.0))) {
            target::look();
        }
        match Attempt::new(&self.0, timeout).request() {
            Err(SuspendError::TimedOut { tid, name, waited, cause }) => {
                Err(RequestError { tid, name, waited, cause })
            }
            Ok(()) | Err(SuspendError::Own) => Ok(()),
        }
    }
}

/// One suspension or request under way.
struct Attempt<'a> {
    target: &'a TaskCore,
    /// When it was asked first how long it has waited.
    start: Option<Instant>,
    timeout: Duration,
    /// The calling thread, once that is known.
    tid: Option<Tid>,
    /// The handler's count before the first signal was sent.
    handled: Option<u32>,
    /// What became of the last signal, if one was sent.
    sent: Option<Result<(), threadreg::SignalError>>,
}

impl<'a> Attempt<'a> {
    fn new(target: &'a TaskCore, timeout: Duration) -> Self {
        Self { target, start: None, timeout, tid: None, handled: None, sent: None }
    }

    /// Wants the task and holds it, or wants it no more.
    fn hold(&mut self) -> Result<Mode, SuspendError> {
        self.target.word.want();
        let _on = WaitsOn::new(&self.target.word);
        let me = threadreg::current();
        let mut round = FIRST_WAIT;
        loop {
            // The calling thread may be a mutator, whose world stops before the target does.
            if me.is_some_and(is_called) {
                make_calls(None);
            }
            let seen = match self.target.word.try_hold() {
                Ok(mode) => return Ok(mode),
                Err(seen) => seen,
            };
            let runs = seen.mode() == Mode::Running;
            // The first signal before the first look at the clock: all that can wait does, until the signal
            // is on its way.
            let is_first = runs && self.sent.is_none() && !self.timeout.is_zero();
            if is_first {
                self.send();
            }
            let left = self.left();
            if left.is_zero() {
                let error = self.late(seen);
                self.target.word.unwant();
                return Err(error);
            }
            if runs {
                if !is_first {
                    self.send();
                }
                self.wait_round(seen, round.min(left), || self.target.word.seen() != seen);
                round = (round * 2).min(LONGEST_WAIT);
            } else {
                // Another requester has it, and wakes us when it lets go; or the task is about to run, as
                // it has not since: then the signal is ours to send.
                let wait = if seen.is_held() { LONGEST_WAIT } else { FIRST_WAIT };
                self.target.word.wait_change(seen, wait.min(left));
                round = FIRST_WAIT;
            }
        }
    }

    /// Sends for the task until it has taken the request to run its hook.
    fn request(mut self) -> Result<(), SuspendError> {
        let _on = WaitsOn::new(&self.target.word);
        let me = threadreg::current();
        let mut round = FIRST_WAIT;
        loop {
            if me.is_some_and(is_called) {
                make_calls(None);
            }
            let seen = self.target.word.seen();
            if !seen.is_yield() {
                return Ok(());
            }
            let left = self.left();
            if left.is_zero() {
                return Err(self.late(seen));
            }
            if seen.mode() == Mode::Running {
                self.send();
            }
            // The target wakes no thread when it takes a request: most requesters do not wait.
            self.wait_round(seen, round.min(left), || !self.target.word.seen().is_yield());
            round = (round * 2).min(LONGEST_WAIT);
        }
    }

    /// Waits until the word is `seen` no more, at most about `round`; and spins first until it is `done`,
    /// where that may be sooner.
    fn wait_round(&self, seen: Seen, round: Duration, done: impl Fn() -> bool) {
        // In the first two rounds: the target may be in its grace when the first signal comes. What comes no
        // sooner, or to a task that does not run, may take any time.
        if round > 2 * FIRST_WAIT || seen.mode() != Mode::Running {
            return self.target.word.wait_change(seen, round);
        }
        let start = Instant::now();
        if !spin::for_running(1, SPIN, done) {
            self.target.word.wait_change(seen, round.saturating_sub(start.elapsed()));
        }
    }

    /// How much of the timeout is left.
    fn left(&mut self) -> Duration {
        if let Some(start) = self.start {
            return self.timeout.saturating_sub(start.elapsed());
        }
        self.start = Some(Instant::now());
        self.timeout
    }

    fn waited(&self) -> Duration {
        self.start.map(|start| start.elapsed()).unwrap_or_default()
    }

    /// Sends for the running task.
    fn send(&mut self) {
        let thread = self.target.thread();
        if self.handled.is_none() {
            let state = thread.and_then(ThreadState::get);
            self.handled = state.map(|state| state.pending.handled());
        }
        self.sent = Some(thread.map_or(Ok(()), |thread| self.target.signal_to(thread)));
        // A system call, perhaps: while the signal is on its way it costs nothing.
        self.tid.get_or_insert_with(own_tid);
    }

    /// What is made of the hold: says who has the task.
    fn finish(
        &self,
        held: Result<Mode, SuspendError>,
        task: &Task,
    ) -> Result<Suspended, SuspendError> {
        let at = match held? {
            // SAFETY: this thread holds the task, and it is parked.
            Mode::Parked if unsafe { task.0.interrupted() }.is_some() => StoppedAt::Instruction,
            Mode::Parked => StoppedAt::Poll,
            Mode::Blocked => StoppedAt::Blocked,
            Mode::Idle | Mode::Running => StoppedAt::Idle,
        };
        let me = self.tid.unwrap_or_else(own_tid);
        task.0.set_holder(Some(me));
        let thread = task.0.thread();
        if let Some(thread) = thread {
            thread.set_suspended_by(Some(me));
        }
        Ok(Suspended { task: Arc::clone(&task.0), at, thread, not_sync: PhantomData })
    }

    /// The error that names the late thread and the cause.
    fn late(&self, seen: Seen) -> SuspendError {
        let waited = self.waited();
        let thread = self.target.thread();
        let cause = if seen.is_held() {
            StragglerCause::HeldByAnother { holder: self.target.holder() }
        } else if seen.is_its_turn() {
            StragglerCause::ItsTurn
        } else {
            thread.map_or(StragglerCause::NotRunning, |thread| self.cause(thread))
        };
        let name = thread.map(|thread| thread.name()).unwrap_or_default();
        SuspendError::TimedOut { tid: thread.and_then(|thread| thread.tid()), name, waited, cause }
    }

    /// Why the thread that runs the task has not stopped.
    fn cause(&self, thread: ThreadRef) -> StragglerCause {
        if let Some(Err(error)) = &self.sent {
            return StragglerCause::NotSent(*error);
        }
        if let Some((outcome, pc)) = self.refusal(thread).filter(|(outcome, _)| {
            is_installed() && (*outcome != SignalOutcome::Other || signal::obstacle().is_none())
        }) {
            return StragglerCause::Refused { outcome, pc };
        }
        match why_silent(thread) {
            StragglerCause::NotHandled if self.sent.is_none() => StragglerCause::NoTime,
            cause => cause,
        }
    }

    /// What the handler found last, if it has run since it was sent for. To be asked before the
    /// thread's mask is looked at: a handler that runs blocks its own signal.
    fn refusal(&self, thread: ThreadRef) -> Option<(SignalOutcome, usize)> {
        let state = ThreadState::get(thread)?;
        let (outcome, pc) = state.outcome();
        let has_run = Some(state.pending.handled()) != self.handled;
        (has_run && outcome != SignalOutcome::Unknown).then_some((outcome, pc))
    }
}

/// The calling thread's id.
fn own_tid() -> Tid {
    threadreg::current().and_then(|me| me.tid()).unwrap_or_else(sys::gettid)
}

/// Why a thread has not handled its signal.
fn why_silent(thread: ThreadRef) -> StragglerCause {
    if !is_installed() {
        StragglerCause::NotInstalled
    } else if let Some(obstacle) = signal::obstacle() {
        StragglerCause::from(obstacle)
    } else if signal::is_blocked(thread) {
        StragglerCause::SignalBlocked
    } else {
        StragglerCause::NotHandled
    }
}

/// Where a suspended task was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedAt {
    /// It was not running. If it left its thread in its hook (a coroutine that was switched out), what it had in
    /// registers when it was interrupted is in the hook's `Frame::saved`: on its stack, above the stack pointer with
    /// which it was switched out.
    Idle,
    /// It was inside [`Task::blocking`], or its thread in a safe region. The closure that runs there goes
    /// on, and the kernel may write to buffers that it handed to a system call. None of the task's code
    /// outside runs.
    Blocked,
    /// It came to a [`poll`](crate::poll).
    Poll,
    /// It was interrupted between two instructions of registered code.
    Instruction,
}

/// A suspended task. None of its code runs until this is dropped, but for the closure of a task that
/// was held inside [`Task::blocking`] ([`StoppedAt::Blocked`]).
///
/// # Signal safety
///
/// The getters are async-signal-safe (AS-Safe). [`run`](Self::run), [`run_within`](Self::run_within) and
/// [`backtrace`](Self::backtrace) are not (AS-Unsafe lock heap): they wait. The drop is not either
/// (AS-Unsafe heap): it frees the task if this is its last reference.
///
/// # Examples
///
/// It may be sent to another thread, but not shared:
///
/// ```compile_fail,E0277
/// fn shared<T: Sync>() {}
/// shared::<preempt::Suspended>();
/// ```
#[must_use = "the task goes on as soon as this is dropped"]
pub struct Suspended {
    task: Arc<TaskCore>,
    at: StoppedAt,
    thread: Option<ThreadRef>,
    /// Not Sync: a task has room for one errand.
    not_sync: PhantomData<Cell<()>>,
}

impl fmt::Debug for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspended")
            .field("task", &self.task.id)
            .field("at", &self.at)
            .field("pc", &self.pc())
            .finish_non_exhaustive()
    }
}

impl Suspended {
    /// Where it was stopped.
    #[must_use]
    pub fn stopped_at(&self) -> StoppedAt {
        self.at
    }

    /// Its registers, if it was stopped at an instruction.
    #[must_use]
    pub fn registers(&self) -> Option<&Registers> {
        let is_interrupted = self.at == StoppedAt::Instruction;
        // SAFETY: this holds the task, and it is parked.
        is_interrupted.then(|| unsafe { self.task.interrupted() }).flatten()
    }

    /// The address of its next instruction, if it was stopped at one.
    #[must_use]
    pub fn pc(&self) -> Option<usize> {
        self.registers().map(|registers| registers[Reg::PC] as usize)
    }

    /// Its stack pointer, if it was stopped at an instruction: everything above, and the red zone
    /// below, is the task's.
    #[must_use]
    pub fn sp(&self) -> Option<usize> {
        self.registers().map(|registers| registers[Reg::SP] as usize)
    }

    /// The thread that runs the task, if it is not idle.
    #[must_use]
    pub fn thread(&self) -> Option<ThreadRef> {
        self.thread
    }

    /// Has the task's own thread run `f`, on top of the task's stack, and returns what `f` returned.
    /// `None` if the task is idle or blocked: then there is no thread that could.
    ///
    /// There are 16 KiB of stack for `f`, and what the task has left beyond
    /// ([`sigctx::inject::CALLBACK_ROOM`]). `f` gets the interrupted frame if the task was stopped at an
    /// instruction. What it writes there takes effect when the task goes on.
    ///
    /// # Blocking
    ///
    /// Until `f` has returned; [`Suspended::run_within`] bounds the wait until it begins. A thread that
    /// was stopped with its world runs `f` there.
    ///
    /// # Panics
    ///
    /// With the panic of `f`; the task is unharmed.
    pub fn run<R: Send>(&self, f: impl FnOnce(Option<&mut Frame<'_>>) -> R + Send) -> Option<R> {
        self.errand(None, f).ok()
    }

    /// As [`Suspended::run`], if the task's thread begins with `f` before `timeout` is over.
    ///
    /// # Blocking
    ///
    /// At most about `timeout` until `f` begins; then until it has returned.
    ///
    /// # Errors
    ///
    /// [`RunError::NotParked`] where [`Suspended::run`] returns `None`. [`RunError::TimedOut`] names the
    /// thread and the cause why it did not begin: `f` is not going to be run.
    ///
    /// # Panics
    ///
    /// As [`Suspended::run`].
    pub fn run_within<R: Send>(
        &self,
        timeout: Duration,
        f: impl FnOnce(Option<&mut Frame<'_>>) -> R + Send,
    ) -> Result<R, RunError> {
        self.errand(Some(timeout), f)
    }

    fn errand<R: Send>(
        &self,
        timeout: Option<Duration>,
        f: impl FnOnce(Option<&mut Frame<'_>>) -> R + Send,
    ) -> Result<R, RunError> {
        if !matches!(self.at, StoppedAt::Poll | StoppedAt::Instruction) {
            return Err(RunError::NotParked);
        }
        let start = Instant::now();
        let mut round = Duration::ZERO;
        let patience = || {
            if !round.is_zero() {
                // A thread that does not wait in our code, but is stopped with its world, is told.
                let is_asked = || self.task.word.seen().has_errand();
                // If it cannot be signalled, it waits in our code or is gone: the timeout says so.
                let _ = self.thread.map(|thread| ThreadState::signal(thread, is_asked));
            }
            round = (round * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
            timeout.map_or(round, |timeout| round.min(timeout.saturating_sub(start.elapsed())))
        };
        let (mut f, mut result) = (Some(f), None);
        let ran = self.task.run_errand(&mut |frame| result = f.take().map(|f| f(frame)), patience);
        if let Some(Err(panic)) = ran {
            std::panic::resume_unwind(panic);
        }
        result.ok_or_else(|| RunError::TimedOut {
            tid: self.thread.and_then(|thread| thread.tid()),
            name: self.thread.map(|thread| thread.name()).unwrap_or_default(),
            waited: start.elapsed(),
            cause: self.thread.map_or(StragglerCause::NotRunning, why_silent),
        })
    }

    /// The task's stack, innermost frame first, symbolised; through the injected call into the
    /// interrupted code. `None` as for [`Suspended::run`].
    ///
    /// # Blocking
    ///
    /// Until the task's thread has walked its stack: microseconds to, the first time,
    /// milliseconds.
    #[must_use]
    pub fn backtrace(&self) -> Option<std::backtrace::Backtrace> {
        self.run(|_| std::backtrace::Backtrace::force_capture())
    }

    /// Lets the task go on, as a drop does. Does not wait until it does.
    #[doc(alias = "resumeG")]
    pub fn resume(self) {}
}

impl Drop for Suspended {
    fn drop(&mut self) {
        // Before other requesters can say that it is theirs.
        self.task.set_holder(None);
        if let Some(thread) = self.thread {
            thread.set_suspended_by(None);
        }
        self.task.word.release();
    }
}
