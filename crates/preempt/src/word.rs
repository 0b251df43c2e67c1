//! The word of a task: whether it runs, how many requesters want it stopped, whether one holds it.
//!
//! This is the protocol of suspend and resume, without the signals; `target` and `suspend` are its two
//! sides. The *target* is the thread that runs the task, or is about to; the *holder* is the requester
//! that has it stopped. One 32-bit word holds everything, so that no wake-up can fall between two of its
//! parts:
//!
//! ```text
//!             target: start                    target: park (at a safe point, if wanted)
//!      +------+ -----------> +---------+ ---------------------------> +--------+
//!      | Idle |              | Running |                              | Parked |
//!      +------+ <----------- +---------+ <--------------------------- +--------+
//!             target: finish   |     ^    target: when it may run
//!               target: block  v     | target: unblock
//!                            +---------+
//!                            | Blocked |          requester: hold, in Idle, Blocked or Parked
//!                            +---------+
//! ```
//!
//! | bits | what | set by | cleared by |
//! |---|---|---|---|
//! | 0–1 | mode | target, or its handler | target |
//! | 2 | HELD: one requester has it | that requester, the holder from then on | the holder |
//! | 3 | YIELD: run the task's hook | any requester | target, before the hook |
//! | 4 | ERRAND: run the errand | the holder | target, before the errand; a holder that gives up |
//! | 5 | SERVING: the errand runs | target, with ERRAND's end | target, after the errand |
//! | 6 | WAITS: the target waits to run | target | target |
//! | 7 | TURN: the target runs before the task is held again | the holder, as it lets go | target |
//! | 8–12 | a count of the handlers that stirred a waiter | handlers | — |
//! | 13–31 | how many requesters want it | requester | the same requester |
//!
//! Invariants:
//! - I1: only the target changes the mode, so a mode once seen under HELD stays.
//! - I2: HELD implies that the mode is not Running and that the wanted count is not zero.
//! - I3: the target enters Running only when no requester holds the task, and either none wants it or it
//!   is the task's TURN.
//! - I4: every change that a thread may wait for is followed by a wake of the word. A requester that
//!   waits for a running task to stop is woken when that leaves Running.
//! - I5: TURN implies WAITS and not HELD. So a task that waits to run runs between two holds.
//!
//! From I1–I3: while a requester holds a task, none of the task's code runs.
//!
//! A thread that waits here, as target or as requester, can be asked for calls, by a signal. Its handler
//! *stirs* the word that it waits on: a wait that the signal interrupts, or that is about to begin,
//! finds another value, and the thread looks for its calls. The kernel restarts a wait with the same
//! value.
//!
//! A thread may spin before it sleeps ([`Waiter::may_sleep`]): it looks at the word until that has
//! changed, and writes nothing. A target has said that it WAITS before, so it has its TURN when it is let
//! go, whether it spins or sleeps. A wait that was spun out is one that returned early.
//!
//! All operations are on the one word and sequentially consistent, for simplicity: what the target
//! wrote before it parked is seen by the holder, and the other way round. The order of a request
//! (`want`, `request_yield`) against the handler's acknowledgement is made by the fences in
//! [`crate::pending`].
//!
//! References: Go's `suspendG`/`resumeG` (runtime/preempt.go) do this with the `_Gscan` bit of
//! `atomicstatus`, one requester at a time and spinning; here requesters queue on a futex.

use core::time::Duration;

use sigctx::sync::{AtomicU32, Ordering::SeqCst, wait, wake_all};

const MODE: u32 = 0b11;
const HELD: u32 = 1 << 2;
const YIELD: u32 = 1 << 3;
const ERRAND: u32 = 1 << 4;
const SERVING: u32 = 1 << 5;
const WAITS: u32 = 1 << 6;
const TURN: u32 = 1 << 7;
const STIR_ONE: u32 = 1 << 8;
const STIR: u32 = WANT_ONE - STIR_ONE;
/// Room for more requesters than a process can have threads, with any default limit.
const WANT_ONE: u32 = 1 << 13;

/// What a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Idle = 0,
    Running = 1,
    Blocked = 2,
    Parked = 3,
}

/// A value of the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen(u32);

impl Seen {
    pub(crate) fn mode(self) -> Mode {
        match self.0 & MODE {
            0 => Mode::Idle,
            1 => Mode::Running,
            2 => Mode::Blocked,
            _ => Mode::Parked,
        }
    }

    pub(crate) fn is_wanted(self) -> bool {
        self.0 >= WANT_ONE
    }

    pub(crate) fn is_held(self) -> bool {
        self.has(HELD)
    }

    pub(crate) fn is_yield(self) -> bool {
        self.has(YIELD)
    }

    /// Whether it is to run before it is held again.
    pub(crate) fn is_its_turn(self) -> bool {
        self.has(TURN)
    }

    /// Whether the holder waits for the target to begin with its errand.
    pub(crate) fn has_errand(self) -> bool {
        self.has(ERRAND)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// I3.
    fn may_run(self) -> bool {
        !self.is_held() && (!self.is_wanted() || self.is_its_turn())
    }

    fn with_mode(self, mode: Mode) -> u32 {
        self.0 & !MODE | mode as u32
    }
}

/// What a target does while it waits to run.
pub(crate) trait Waiter {
    /// Runs the holder's errand.
    fn errand(&mut self);

    /// Whether there is anything for [`Waiter::look`].
    fn is_called(&mut self) -> bool;

    /// Makes the calls that the thread is asked to make.
    fn look(&mut self);

    /// How long it goes on waiting; `None`: as long as it takes.
    fn left(&mut self) -> Option<Duration>;

    /// Asked before the target sleeps. It may spin instead, where that is known to be cheaper: until the word
    /// has `changed`, and then it says no.
    fn may_sleep(&mut self, changed: impl Fn() -> bool) -> bool;
}

/// How a target's wait to run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GoOn {
    /// It runs, and did not have to wait.
    AtOnce,
    /// It runs, after a wait.
    Waited,
    /// The waiter's time is over. The mode is what it was.
    TimedOut,
    /// Another thread runs the task.
    Taken,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct TaskWord(AtomicU32);

impl TaskWord {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(Mode::Idle as u32))
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen(self.0.load(SeqCst))
    }

    fn change(&self, seen: Seen, to: u32) -> bool {
        self.0.compare_exchange(seen.0, to, SeqCst, SeqCst).is_ok()
    }

    // Target.

    /// Idle → Running, once it may run (I3).
    pub(crate) fn start(&self, waiter: &mut impl Waiter) -> GoOn {
        self.go_on(Mode::Idle, waiter)
    }

    /// From `mode` to Running, once it may run (I3).
    pub(crate) fn go_on(&self, mode: Mode, waiter: &mut impl Waiter) -> GoOn {
        let mut slept = false;
        loop {
            let seen = self.seen();
            if seen.mode() != mode {
                return GoOn::Taken;
            }
            if seen.has_errand() {
                self.serve(|| waiter.errand());
            } else if seen.may_run() {
                let runs = seen.with_mode(Mode::Running) & !(WAITS | TURN);
                if self.change(seen, runs) {
                    return if slept { GoOn::Waited } else { GoOn::AtOnce };
                }
            } else if waiter.is_called() {
                // Not WAITS meanwhile (I5): a call may last for as long as the world is stopped.
                if !seen.has(WAITS) || self.change(seen, seen.0 & !WAITS) {
                    waiter.look();
                }
            } else if !seen.has(WAITS) {
                slept = true;
                self.change(seen, seen.0 | WAITS);
            } else {
                slept = true;
                let left = waiter.left();
                if left == Some(Duration::ZERO) {
                    if self.change(seen, seen.0 & !WAITS) {
                        return GoOn::TimedOut;
                    }
                } else if waiter.may_sleep(|| self.seen() != seen) {
                    wait(&self.0, seen.0, left);
                }
            }
        }
    }

    /// Running → Idle.
    pub(crate) fn finish(&self) {
        let left = self.leave_running(Mode::Idle, |_| true);
        debug_assert!(left, "the target ends a task that it does not run");
    }

    /// Running → Blocked: the target may wait, and the task be held while it does. False if it is not
    /// Running.
    pub(crate) fn block(&self) -> bool {
        self.leave_running(Mode::Blocked, |_| true)
    }

    /// Handler, on the target, which stands still: Running → `to`, if a requester wants the task.
    pub(crate) fn rest(&self, to: Mode) -> bool {
        self.leave_running(to, Seen::is_wanted)
    }

    fn leave_running(&self, to: Mode, allowed: impl Fn(Seen) -> bool) -> bool {
        loop {
            let seen = self.seen();
            if seen.mode() != Mode::Running || !allowed(seen) {
                return false;
            }
            if self.change(seen, seen.with_mode(to)) {
                if seen.is_wanted() {
                    wake_all(&self.0);
                }
                return true;
            }
        }
    }

    /// Takes the request to run the hook, if there is one.
    pub(crate) fn take_yield(&self) -> bool {
        // Most often there is none, and a look costs less than a change.
        self.seen().is_yield() && self.0.fetch_and(!YIELD, SeqCst) & YIELD != 0
    }

    /// Running → Parked → Running, if a requester wants the task: stays Parked until it may run.
    pub(crate) fn park(&self, waiter: &mut impl Waiter) {
        loop {
            let seen = self.seen();
            if !seen.is_wanted() {
                return;
            }
            if self.change(seen, seen.with_mode(Mode::Parked) | WAITS) {
                wake_all(&self.0);
                break;
            }
        }
        self.go_on(Mode::Parked, waiter);
    }

    /// Runs the errand, if the holder waits for it to begin.
    pub(crate) fn serve(&self, errand: impl FnOnce()) -> bool {
        loop {
            let seen = self.seen();
            if !seen.has_errand() {
                return false;
            }
            if self.change(seen, seen.0 & !ERRAND | SERVING) {
                break;
            }
        }
        errand();
        self.0.fetch_and(!SERVING, SeqCst);
        wake_all(&self.0);
        true
    }

    /// Handler, on a thread that waits on the word: has it look for its calls. See the module's
    /// documentation.
    pub(crate) fn stir(&self) {
        loop {
            let seen = self.seen();
            let stirred = seen.0 & !STIR | seen.0.wrapping_add(STIR_ONE) & STIR;
            if self.change(seen, stirred) {
                return;
            }
        }
    }

    /// In the child of a fork: a thread that wanted or held the task was the parent's.
    pub(crate) fn after_fork(&self) {
        self.0.fetch_and(MODE | YIELD, SeqCst);
    }

    // Requester.

    /// Asks for the task to stop. To be followed by [`Self::unwant`] or, once held, by
    /// [`Self::release`].
    pub(crate) fn want(&self) {
        self.0.fetch_add(WANT_ONE, SeqCst);
    }

    /// Takes [`Self::want`] back.
    pub(crate) fn unwant(&self) {
        self.0.fetch_sub(WANT_ONE, SeqCst);
        wake_all(&self.0);
    }

    /// Holds the task if it is not running, no other holds it and it is not its turn. Only for a
    /// requester that wants it.
    pub(crate) fn try_hold(&self) -> Result<Mode, Seen> {
        loop {
            let seen = self.seen();
            if seen.mode() == Mode::Running || seen.is_held() || seen.is_its_turn() {
                return Err(seen);
            }
            if self.change(seen, seen.0 | HELD) {
                return Ok(seen.mode());
            }
        }
    }

    /// Waits for the word to change from `seen`, at most `timeout`.
    pub(crate) fn wait_change(&self, seen: Seen, timeout: Duration) {
        wait(&self.0, seen.0, Some(timeout));
    }

    /// Lets a held task go, and wants it no more. One that waits has its turn.
    pub(crate) fn release(&self) {
        loop {
            let seen = self.seen();
            // One step: were HELD cleared first, the target could see itself wanted, and wait, with no
            // requester left to let it go.
            let turn = if seen.has(WAITS) { TURN } else { 0 };
            if self.change(seen, (seen.0 - HELD - WANT_ONE) | turn) {
                break;
            }
        }
        wake_all(&self.0);
    }

    /// Has the target of a held, Parked task run the holder's errand, and waits for it. `spin` gets what
    /// it may spin for, before the first sleep. False if the errand has not begun when `patience`, which
    /// says how long the next wait for that may be, says none.
    pub(crate) fn run_errand(
        &self,
        spin: impl FnOnce(&dyn Fn() -> bool),
        mut patience: impl FnMut() -> Duration,
    ) -> bool {
        self.0.fetch_or(ERRAND, SeqCst);
        wake_all(&self.0);
        spin(&|| !self.seen().has(ERRAND | SERVING));
        loop {
            let seen = self.seen();
            if seen.has_errand() {
                let next = patience();
                if !next.is_zero() {
                    wait(&self.0, seen.0, Some(next));
                } else if self.change(seen, seen.0 & !ERRAND) {
                    return false;
                }
            } else if seen.has(SERVING) {
                wait(&self.0, seen.0, None);
            } else {
                return true;
            }
        }
    }

    /// Asks the task to run its hook.
    pub(crate) fn request_yield(&self) {
        self.0.fetch_or(YIELD, SeqCst);
    }
}
