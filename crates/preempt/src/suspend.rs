//! Stopping a task, looking at it, letting it go.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use sigctx::inject::Frame;
use sigctx::{Reg, Registers};
use threadreg::ThreadRef;

use crate::error::{RunError, SuspendError, Why};
use crate::install::{self, is_installed, number};
use crate::signal::make_calls;
use crate::task::{self, Task, TaskCore};
use crate::thread::{Outcome, ThreadState};
use crate::wait::{self, WaitsOn};
use crate::word::{GoOn, Mode, Seen};

/// The first wait for an answer; doubled each round. A signal reaches a running thread in about
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
    /// signalled; what runs in `blocking` goes on ([`StoppedAt::Blocked`]). So is one whose thread stands
    /// still for another crate: where it is stopped with its world it counts as stopped at the safe point
    /// that it came to, in a safe region as blocked.
    ///
    /// Several suspenders of one task take turns, and the task has its turn between two of them: once it
    /// is let go its thread has 50 µs of processor time before it is stopped again.
    ///
    /// A mutator of a stop-the-world calls this, and [`Suspended::run`], in a safe region, unless it is
    /// stopped by nudges ([`Nudger`](crate::Nudger)): while it waits, it makes the calls that it is nudged
    /// for.
    ///
    /// A task that calls this counts as blocked while it waits, so two tasks may suspend each other:
    /// one gives way, is suspended, and goes on when it is resumed.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: waits.
    ///
    /// # Blocking
    ///
    /// At most about `timeout`; then, if the caller is itself a task that somebody has suspended,
    /// until it is resumed.
    ///
    /// # Errors
    ///
    /// The deadline passed: the error names the thread and the reason, and the task is left running.
    /// Or the task is the caller's own.
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
        let own = task::current();
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
            let Some(own) = own else { break finish(held, self) };
            if own.unblock(Some(Duration::ZERO)) != GoOn::TimedOut {
                break finish(held, self);
            }
            if held.is_err() {
                own.unblock(None);
                break finish(held, self);
            }
            // Somebody wants us while we hold the target, and may be the target itself. One of the two
            // must give way: the later at once, the earlier if that does not help, for the other may
            // hold us from its own code, where it is stopped now and cannot let go.
            if own.id < target.id && own.unblock(Some(GIVE_WAY)) != GoOn::TimedOut {
                break finish(held, self);
            }
            target.word.release();
            own.unblock(None);
            own.block();
        };
        if own.is_some() {
            // What was asked of the caller meanwhile has sent no signal.
            crate::poll();
        }
        result
    }
}

fn finish(held: Result<Mode, SuspendError>, task: &Task) -> Result<Suspended, SuspendError> {
    let mode = held?;
    // SAFETY: we hold the task, and it is parked: its owner wrote this before and will not again until
    // we let go.
    let interrupted =
        (mode == Mode::Parked).then(|| unsafe { *task.0.interrupted.get() }).flatten();
    let at = match mode {
        Mode::Parked if interrupted.is_some() => StoppedAt::Instruction,
        Mode::Parked => StoppedAt::Poll,
        Mode::Blocked => StoppedAt::Blocked,
        Mode::Idle | Mode::Running => StoppedAt::Idle,
    };
    let me = sigctx::sys::gettid();
    task.0.set_holder(Some(me));
    let thread = task.0.thread();
    if let Some(thread) = thread {
        thread.set_suspended_by(Some(me));
    }
    Ok(Suspended { task: Arc::clone(&task.0), at, interrupted, thread, not_sync: PhantomData })
}

/// One suspension under way.
pub(crate) struct Attempt<'a> {
    target: &'a TaskCore,
    start: Instant,
    timeout: Duration,
    /// The handler's count when we first looked at each thread that ran the task.
    generation: Option<u32>,
    /// What became of the last signal, if one was sent.
    sent: Option<Result<(), threadreg::SignalError>>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(target: &'a TaskCore, timeout: Duration) -> Self {
        Self { target, start: Instant::now(), timeout, generation: None, sent: None }
    }

    /// Wants the task and holds it, or wants it no more.
    fn hold(&mut self) -> Result<Mode, SuspendError> {
        self.target.word.want();
        let _on = WaitsOn::new(&self.target.word);
        let me = threadreg::current();
        let mut round = FIRST_WAIT;
        loop {
            // The caller may be a mutator, whose world stops before the target does.
            if me.is_some_and(wait::is_called) {
                make_calls();
            }
            let seen = match self.target.word.try_hold() {
                Ok(mode) => return Ok(mode),
                Err(seen) => seen,
            };
            let left = self.timeout.saturating_sub(self.start.elapsed());
            if left.is_zero() {
                let error = self.late(seen);
                self.target.word.unwant();
                return Err(error);
            }
            if seen.mode() == Mode::Running {
                self.note_generation();
                self.sent = Some(self.target.signal());
                self.target.word.wait_change(seen, round.min(left));
                round = (round * 2).min(LONGEST_WAIT);
            } else {
                // Another has it, and wakes us when it lets go; or it is about to run, as it has not
                // since: then the signal is ours to send.
                let wait = if seen.is_held() { LONGEST_WAIT } else { FIRST_WAIT };
                self.target.word.wait_change(seen, wait.min(left));
                round = FIRST_WAIT;
            }
        }
    }

    /// Sends for the task until it has taken the request to run its hook.
    pub(crate) fn request(mut self) -> Result<(), SuspendError> {
        let _on = WaitsOn::new(&self.target.word);
        let me = threadreg::current();
        let mut round = FIRST_WAIT;
        loop {
            if me.is_some_and(wait::is_called) {
                make_calls();
            }
            let seen = self.target.word.seen();
            if !seen.is_yield() {
                return Ok(());
            }
            let left = self.timeout.saturating_sub(self.start.elapsed());
            if left.is_zero() {
                return Err(self.late(seen));
            }
            if seen.mode() == Mode::Running {
                self.note_generation();
                self.sent = Some(self.target.signal());
            }
            // The task wakes no one when it takes a request: most requesters do not wait.
            self.target.word.wait_change(seen, round.min(left));
            round = (round * 2).min(LONGEST_WAIT);
        }
    }

    fn note_generation(&mut self) {
        if self.generation.is_none() {
            let state = self.target.thread().and_then(ThreadState::get);
            self.generation = state.map(|state| state.pending.generation());
        }
    }

    /// Who is late, and why.
    fn late(&self, seen: Seen) -> SuspendError {
        let waited = self.start.elapsed();
        let kept = if seen.is_held() {
            Some(Why::HeldByAnother { holder: self.target.holder() })
        } else {
            seen.is_its_turn().then_some(Why::ItsTurn)
        };
        let Some(thread) = self.target.thread() else {
            let why = kept.unwrap_or(Why::NotRunning);
            return SuspendError::TimedOut {
                tid: None,
                name: threadreg::Name::default(),
                waited,
                why,
            };
        };
        let why = if let Some(why) = kept {
            why
        } else if let Some(Err(error)) = &self.sent {
            Why::NotSent(*error)
        } else if let Some((outcome, pc)) = self.refusal(thread).filter(|(outcome, _)| {
            is_installed() && (*outcome != Outcome::Other || install::obstacle().is_none())
        }) {
            Why::Refused { outcome, pc }
        } else {
            match why_silent(thread) {
                Why::NotHandled if self.sent.is_none() => Why::NoTime,
                why => why,
            }
        };
        SuspendError::TimedOut { tid: thread.tid(), name: thread.name(), waited, why }
    }

    /// What the handler found last, if it has run since it was sent for. To be asked before the
    /// thread's mask is looked at: a handler that runs blocks its own signal.
    fn refusal(&self, thread: ThreadRef) -> Option<(Outcome, usize)> {
        let state = ThreadState::get(thread)?;
        let (outcome, pc) = state.outcome();
        let handled = Some(state.pending.generation()) != self.generation;
        (handled && outcome != Outcome::Unknown).then_some((outcome, pc))
    }
}

/// Why a thread has not handled its signal.
fn why_silent(thread: ThreadRef) -> Why {
    if !is_installed() {
        Why::NotInstalled
    } else if let Some(obstacle) = install::obstacle() {
        Why::from(obstacle)
    } else if is_signal_blocked(thread) {
        Why::SignalBlocked
    } else {
        Why::NotHandled
    }
}

fn is_signal_blocked(thread: ThreadRef) -> bool {
    let tasks = threadreg::procfs::TaskDir::open().ok();
    let status = tasks.zip(thread.tid()).and_then(|(dir, tid)| dir.status(tid).ok());
    status.is_some_and(|status| status.blocked.contains(number()))
}

/// Where a suspended task was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedAt {
    /// It was not running.
    Idle,
    /// It was inside [`Task::blocking`], or in a safe region of its thread's. The closure that it runs
    /// there goes on, and the kernel may write to buffers that it handed to a system call. None of its
    /// code outside runs.
    Blocked,
    /// It came to a [`poll`](crate::poll).
    Poll,
    /// It was interrupted between two instructions of registered code.
    Instruction,
}

/// A suspended task. None of its code runs until this is dropped, but for the closure of a task that
/// was held inside [`Task::blocking`] ([`StoppedAt::Blocked`]).
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
    interrupted: Option<Registers>,
    thread: Option<ThreadRef>,
    /// Not Sync: the task's mailbox has room for one errand.
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
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn stopped_at(&self) -> StoppedAt {
        self.at
    }

    /// Its registers, if it was stopped at an instruction.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn registers(&self) -> Option<&Registers> {
        self.interrupted.as_ref()
    }

    /// The address of its next instruction, if it was stopped at one.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn pc(&self) -> Option<usize> {
        self.interrupted.map(|registers| registers[Reg::PC] as usize)
    }

    /// Its stack pointer, if it was stopped at an instruction: everything above, and the red zone
    /// below, is the task's.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn sp(&self) -> Option<usize> {
        self.interrupted.map(|registers| registers[Reg::SP] as usize)
    }

    /// The thread that runs it, if it is not idle.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn thread(&self) -> Option<ThreadRef> {
        self.thread
    }

    /// Has the task's own thread run `f`, on top of the task's stack, and returns what it
    /// returned. `None` if the task is idle or blocked: then no thread of it can.
    ///
    /// There are 16 KiB of stack for `f`, and what the task has left beyond
    /// ([`sigctx::inject::CALLBACK_ROOM`]). `f` gets the interrupted frame if the task was stopped at an instruction. What it writes
    /// there takes effect when the task goes on.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: waits.
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
    /// # Signal safety
    ///
    /// Not async-signal-safe: waits.
    ///
    /// # Blocking
    ///
    /// At most about `timeout` until `f` begins; then until it has returned.
    ///
    /// # Errors
    ///
    /// [`RunError::NotParked`] where [`Suspended::run`] returns `None`. [`RunError::TimedOut`] names the
    /// thread and says why it did not begin: `f` is not going to be run.
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
                let is_asked = || self.task.word.seen().is_call();
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
            why: self.thread.map_or(Why::NotRunning, why_silent),
        })
    }

    /// The task's stack, innermost frame first, symbolised; through the injected call into the
    /// interrupted code. `None` as for [`Suspended::run`].
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe: allocates, waits.
    ///
    /// # Blocking
    ///
    /// Until the task's thread has walked its stack: microseconds to, the first time,
    /// milliseconds.
    #[must_use]
    pub fn backtrace(&self) -> Option<std::backtrace::Backtrace> {
        self.run(|_| std::backtrace::Backtrace::force_capture())
    }

    /// Lets the task go on; the same as a drop. Does not wait until it does.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe but for the memory that a last reference frees.
    pub fn resume(self) {}
}

impl Drop for Suspended {
    fn drop(&mut self) {
        // Before others can say that it is theirs.
        self.task.set_holder(None);
        if let Some(thread) = self.thread {
            thread.set_suspended_by(None);
        }
        self.task.word.release();
    }
}
