//! What becomes of a task whose thread stands still for another crate.
//!
//! Such a thread, in a stop of the world or in a safe region, does not come to a safe point of ours, and
//! need not: it is at rest ([`threadreg::rest`]). Its handler says for it that the task is parked or
//! blocked there, and the thread waits on its way out for as long as the task is held.

use threadreg::rest::{self, Resident, Rest};

use crate::target::{self, TaskCore};
use crate::thread::{set_rested, take_rested};
use crate::word::Mode;

static RESIDENT: Resident = Resident { serve, leave };

/// Has threads at rest call [`serve`] and [`leave`]. To be called before anything can be held.
pub(crate) fn settle_in() {
    rest::set_resident(&RESIDENT);
}

/// Handler, on the thread that runs `task` or is inside it: if the thread stands still for another
/// crate, the task is held there, and an errand is run there. Returns false if there is nothing to be
/// done like that.
pub(crate) fn rest_in_place(task: &TaskCore) -> bool {
    let seen = task.word.seen();
    let to_be_held = seen.mode() == Mode::Running && seen.is_wanted();
    if !to_be_held && !seen.has_errand() {
        return false;
    }
    let mode = match rest::resting() {
        Rest::Running => return false,
        Rest::Waiting => Mode::Parked,
        Rest::Away => Mode::Blocked,
    };
    if to_be_held && task.word.rest(mode) {
        set_rested();
    }
    rest::recall();
    true
}

fn serve() {
    if let Some(task) = target::current() {
        task.word.serve(|| task.run_posted_elsewhere());
    }
}

fn leave() {
    if !take_rested() {
        return;
    }
    // Makes no calls: the thread is not back at a safe point yet.
    if let Some(task) = target::current() {
        task.go_on(None, None);
    }
}
