//! The word of a task: who runs it, who wants it stopped, who holds it.
//!
//! This is the protocol of suspend and resume without its system calls; [`crate::task`] and
//! [`crate::suspend`] are the edges. One 32-bit word holds everything, so that no wake-up can
//! fall between two of its parts:
//!
//! ```text
//!              owner: start                     owner: park (at a safe point, if wanted)
//!      +------+ -----------> +---------+ ---------------------------> +--------+
//!      | Idle |              | Running |                              | Parked |
//!      +------+ <----------- +---------+ <--------------------------- +--------+
//!              owner: finish   |     ^     owner: when nobody wants it
//!                owner: block  v     | owner: unblock
//!                            +---------+
//!                            | Blocked |          suspender: hold, in Idle, Blocked or Parked
//!                            +---------+
//! ```
//!
//! | bits | what | set by | cleared by |
//! |---|---|---|---|
//! | 0–1 | mode | owner only | owner only |
//! | 2 | HELD: one suspender has it | suspender | the same suspender |
//! | 3 | YIELD: run the task's hook | anyone | owner, before the hook |
//! | 4 | CALL: run the closure in the mailbox | the holder | owner, after the closure |
//! | 5 | POKED: look into the call box | owner's handler | owner |
//! | 8–31 | how many suspenders want it | suspender | the same suspender |
//!
//! Invariants:
//! - I1: only the owner's thread changes the mode, so a mode once seen under HELD stays.
//! - I2: HELD implies that the mode is not Running and that the wanted count is not zero.
//! - I3: the owner enters Running only when the wanted count is zero.
//! - I4: every change that somebody may wait for is followed by a wake of the word.
//!
//! From I1–I3: while a suspender holds a task, none of the task's code runs.
//!
//! All operations are on the one word and sequentially consistent, for simplicity: what the owner
//! wrote before it parked is seen by the holder, and the other way round. The order of a request
//! (`want`, `request_yield`) against the handler's acknowledgement is made by the fences in
//! [`crate::pending`].
//!
//! References: Go's `suspendG`/`resumeG` (runtime/preempt.go) do this with the `_Gscan` bit of
//! `atomicstatus`, one suspender at a time and spinning; here suspenders queue on a futex.

use core::time::Duration;

use crate::sync::{AtomicU32, Ordering::SeqCst, wait, wake_all};

const MODE: u32 = 0b11;
const HELD: u32 = 1 << 2;
const YIELD: u32 = 1 << 3;
const CALL: u32 = 1 << 4;
const POKED: u32 = 1 << 5;
const WANT_ONE: u32 = 1 << 8;

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
        self.0 & HELD != 0
    }

    pub(crate) fn is_yield(self) -> bool {
        self.0 & YIELD != 0
    }

    fn with_mode(self, mode: Mode) -> u32 {
        self.0 & !MODE | mode as u32
    }
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

    // Owner.

    /// Idle → Running, once nobody wants the task (I3).
    ///
    /// Returns false if it is not idle: another thread runs it.
    pub(crate) fn start(&self) -> bool {
        loop {
            let seen = self.seen();
            if seen.mode() != Mode::Idle {
                return false;
            }
            if seen.is_wanted() {
                wait(&self.0, seen.0, None);
            } else if self.change(seen, seen.with_mode(Mode::Running)) {
                return true;
            }
        }
    }

    /// Running → Idle.
    pub(crate) fn finish(&self) {
        self.leave_running(Mode::Idle);
    }

    /// Running → Blocked: the owner may wait, and be held while it does.
    pub(crate) fn block(&self) {
        self.leave_running(Mode::Blocked);
    }

    fn leave_running(&self, to: Mode) {
        loop {
            let seen = self.seen();
            debug_assert_eq!(seen.mode(), Mode::Running);
            if self.change(seen, seen.with_mode(to)) {
                if seen.is_wanted() {
                    wake_all(&self.0);
                }
                return;
            }
        }
    }

    /// Blocked → Running if nobody wants the task.
    pub(crate) fn try_unblock(&self) -> bool {
        loop {
            let seen = self.seen();
            debug_assert_eq!(seen.mode(), Mode::Blocked);
            if seen.is_wanted() {
                return false;
            }
            if self.change(seen, seen.with_mode(Mode::Running)) {
                return true;
            }
        }
    }

    /// Blocked → Running, once nobody wants the task.
    pub(crate) fn unblock(&self) {
        while !self.try_unblock() {
            let seen = self.seen();
            if seen.is_wanted() {
                wait(&self.0, seen.0, None);
            }
        }
    }

    /// Takes the request to run the hook, if there is one.
    pub(crate) fn take_yield(&self) -> bool {
        self.0.fetch_and(!YIELD, SeqCst) & YIELD != 0
    }

    /// Handler, on the owner's thread: has a parked owner look into its call box.
    pub(crate) fn poke(&self) {
        // The owner sleeps on the word: a wait that the signal interrupts, or that is about to
        // begin, finds another value.
        self.0.fetch_or(POKED, SeqCst);
    }

    /// Stays Parked for as long as anybody wants the task; runs `serve` for each CALL, and `look`
    /// when poked.
    pub(crate) fn park(&self, mut serve: impl FnMut(), mut look: impl FnMut()) {
        let mut parked = false;
        loop {
            let seen = self.seen();
            if seen.0 & CALL != 0 {
                serve();
                self.0.fetch_and(!CALL, SeqCst);
                wake_all(&self.0);
            } else if seen.0 & POKED != 0 {
                self.0.fetch_and(!POKED, SeqCst);
                look();
            } else if !seen.is_wanted() {
                if !parked || self.change(seen, seen.with_mode(Mode::Running)) {
                    return;
                }
            } else if !parked {
                parked = self.change(seen, seen.with_mode(Mode::Parked));
                if parked {
                    wake_all(&self.0);
                }
            } else {
                wait(&self.0, seen.0, None);
            }
        }
    }

    /// In the child of a fork: whoever wanted or held the task was a thread of the parent.
    pub(crate) fn after_fork(&self) {
        self.0.fetch_and(MODE | YIELD, SeqCst);
    }

    // Suspender.

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

    /// Holds the task if it is not running and nobody else holds it. The caller must want it.
    pub(crate) fn try_hold(&self) -> Result<Mode, Seen> {
        loop {
            let seen = self.seen();
            if seen.mode() == Mode::Running || seen.is_held() {
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

    /// Lets a held task go, and wants it no more.
    pub(crate) fn release(&self) {
        // One step: were HELD cleared first, the owner could see itself wanted by nobody who is
        // still there to let it go.
        self.0.fetch_sub(HELD + WANT_ONE, SeqCst);
        wake_all(&self.0);
    }

    /// Has the owner of a held, Parked task run what lies in the mailbox, and waits for it.
    pub(crate) fn call(&self) {
        self.0.fetch_or(CALL, SeqCst);
        wake_all(&self.0);
        loop {
            let seen = self.seen();
            if seen.0 & CALL == 0 {
                return;
            }
            wait(&self.0, seen.0, None);
        }
    }

    /// Asks the task to run its hook.
    pub(crate) fn request_yield(&self) {
        self.0.fetch_or(YIELD, SeqCst);
    }
}
