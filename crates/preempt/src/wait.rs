//! How a thread waits in this crate, and what becomes of a task whose thread waits in another.
//!
//! A thread that waits for a task, as its owner or as a suspender, still makes the calls that it is
//! asked to make ([`Nudger`](crate::Nudger)): it may be a mutator whose world is about to stop, and
//! whoever it waits for may be stopped already. Its handler cannot make them. So the thread says which
//! word it waits on, and the handler stirs that.
//!
//! A thread that stands still for another crate, in a stop of the world or in a safe region, does not
//! come to a safe point of ours, and need not: it is at rest ([`threadreg::rest`]). Its handler says for
//! it that the task is parked or blocked there, and the thread waits on its way out for as long as the
//! task is held.

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};
use core::time::Duration;
use std::time::Instant;

use threadreg::ThreadRef;
use threadreg::rest::{self, Resident, Rest};

use crate::signal::make_calls;
use crate::task::{self, TaskCore};
use crate::thread::{ThreadState, add_disabled, is_disabled};
use crate::word::{Mode, TaskWord, Waiter};

thread_local! {
    /// What the thread waits on. Constant and without a destructor: the handler reads it.
    static WAITS_ON: Cell<Option<NonNull<TaskWord>>> = const { Cell::new(None) };

    /// The handler has left Running for the task, and [`leave`] has to come back to it.
    static RESTED: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread waits on a word, for as long as this lives.
pub(crate) struct WaitsOn {
    /// A call that is made in a wait may wait itself.
    before: Option<NonNull<TaskWord>>,
}

impl WaitsOn {
    /// `word` outlives what is returned.
    #[inline(never)] // see `signal::is_asked_here`
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

/// Handler: if the thread waits, it is going to look for its calls.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn stir() -> bool {
    let Some(word) = WAITS_ON.get() else { return false };
    // SAFETY: `WaitsOn` is dropped before the word is.
    unsafe { word.as_ref() }.stir();
    true
}

/// Whether the calling thread has a call to make and may make it.
pub(crate) fn is_called(me: ThreadRef) -> bool {
    !is_disabled() && ThreadState::get(me).is_some_and(ThreadState::has_call)
}

/// An owner's wait to run its task.
pub(crate) struct Wait<'a> {
    task: &'a TaskCore,
    /// Whose calls are made meanwhile.
    me: Option<ThreadRef>,
    timeout: Option<Duration>,
    start: Option<Instant>,
    _on: WaitsOn,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(
        task: &'a TaskCore,
        me: Option<ThreadRef>,
        timeout: Option<Duration>,
    ) -> Self {
        Self { task, me, timeout, start: None, _on: WaitsOn::new(&task.word) }
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
        if self.me.is_some() {
            self.task.run_posted();
        } else {
            run_posted_elsewhere(self.task);
        }
    }

    fn is_called(&mut self) -> bool {
        self.me.is_some_and(is_called)
    }

    fn look(&mut self) {
        make_calls();
    }

    fn left(&mut self) -> Option<Duration> {
        let start = *self.start.get_or_insert_with(Instant::now);
        if let Some(me) = self.me {
            // A stop that waits for this thread can say whom that waits for.
            me.set_suspended_by(self.task.holder());
        }
        self.timeout.map(|timeout| timeout.saturating_sub(start.elapsed()))
    }
}

static RESIDENT: Resident = Resident { serve, leave };

/// To be called before anything can be held.
pub(crate) fn settle_in() {
    rest::set_resident(&RESIDENT);
}

/// Handler, on the thread that runs `task` or is inside it: if the thread stands still for another
/// crate, the task is held there, and an errand is run there. Returns false if there is nothing to be
/// done like that.
pub(crate) fn rest_in_place(task: &TaskCore) -> bool {
    let seen = task.word.seen();
    let to_be_held = seen.mode() == Mode::Running && seen.is_wanted();
    if !to_be_held && !seen.is_call() {
        return false;
    }
    let mode = match rest::resting() {
        Rest::Running => return false,
        Rest::Waiting => Mode::Parked,
        Rest::Away => Mode::Blocked,
    };
    if to_be_held && task.word.rest(mode) {
        RESTED.set(true);
    }
    rest::recall();
    true
}

/// Whether the handler has blocked the task, in a safe region.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn is_rested() -> bool {
    RESTED.get()
}

/// From here on the task's own code answers for its coming back to Running.
#[inline(never)] // see `signal::is_asked_here`
pub(crate) fn take_rested() -> bool {
    RESTED.replace(false)
}

fn serve() {
    if let Some(task) = task::current() {
        task.word.serve(|| run_posted_elsewhere(task));
    }
}

/// The thread is in another crate's code, which is no safe point: what the errand does there must make
/// no calls.
fn run_posted_elsewhere(task: &TaskCore) {
    add_disabled(1);
    task.run_posted();
    add_disabled(-1);
}

fn leave() {
    if !take_rested() {
        return;
    }
    // Makes no calls: the thread is not back at a safe point yet.
    if let Some(task) = task::current() {
        task.go_on(None, None);
    }
}
