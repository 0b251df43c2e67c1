//! Stopped targets help: the holder of a stop has a job run for each of them, on its own thread if that waits for the
//! end of the stop.
//!
//! ```text
//!  one slot, `asked`:   0 --holder, in its stop--> n --target, in its wait--> 0, runs the job, acknowledges
//!                                                  n --holder: runs it in the target's place, or withdraws it--> 0
//!                                                  n --target, detaching--> 0, acknowledges
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `asked` | holder of the stop 0→n; target or holder n→0 by exchange | both | acq-rel; fence after n, and between a target's last state and its look | I3, I11 |
//! | `waits` | target | holder | relaxed | a hint: who answers is decided by the exchange |
//! | `help_job` | holder of the stop | the thread that took `asked` | release / acquire | alive while an acknowledgement of its round is outstanding |
//!
//! A target sleeps on the stop word, which the holder changes by 2 when it has asked: a target that is about to sleep
//! finds another value, and then that it is asked.
//!
//! A target whose task is held does not run. It becomes [`Stance::Helps`] before it takes the job, as a requester
//! becomes [`Stance::Works`] before its work: from there on handlers find it running (I8).

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;
use core::sync::atomic::{Ordering as Plain, compiler_fence};

use super::each::MustNotUnwind;
use super::request::RoundNumber;
use super::slot::{MutatorSlot, MutatorState, Stance};
use super::{Edge, Pace, Protocol, System};
use sigctx::sync::{Ordering, fence};

/// What is to be run for each target. It must not unwind.
pub(crate) struct Job<'a, S: System> {
    pub(crate) run: &'a (dyn Fn(&'static MutatorSlot<S::Identity>) + Sync),
    /// Whether the slot belongs to the thread that asks, which runs the job for it.
    pub(crate) is_own: &'a dyn Fn(&'static MutatorSlot<S::Identity>) -> bool,
    /// Whether targets that do not wait for the end of the stop are left alone.
    pub(crate) self_only: bool,
}

impl<S: System> fmt::Debug for Job<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("self_only", &self.self_only).finish_non_exhaustive()
    }
}

impl<S: System> Protocol<S> {
    /// Holder of a stop only, one at a time: runs the job once for each of the slots whose target does not detach
    /// meanwhile. Past the deadline it waits only for those that have begun, and returns what was kept of the others, and whether
    /// they wait for the end of the stop.
    pub(crate) fn have_help<P: Pace<S>>(
        &self,
        slots: &[&'static MutatorSlot<S::Identity>],
        job: &Job<'_, S>,
        pace: &mut P,
    ) -> Vec<(P::Seen, bool)> {
        let outstanding = MustNotUnwind("job of a stop");
        let round = self.help.begin();
        // Release, with `run_job`'s acquire.
        self.help_job.store(ptr::from_ref(job).cast_mut().cast(), Ordering::Release);
        for slot in slots {
            self.help.expect();
            slot.status.help.asked.store(round.0, Ordering::Release);
        }
        // Release: a target that finds the new value finds that it is asked.
        self.stop_word.fetch_add(2, Ordering::Release);
        // A target that detaches finds that it is asked, or is seen detaching.
        fence(Ordering::SeqCst);
        self.system.wake_all(&self.stop_word);
        self.run_for_others(slots, job, round);
        let (mut late, mut withdrawn) = (Vec::new(), false);
        if !self.help.acknowledge(round, None) {
            let running = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let mut done = self.system.spin(running, || self.help.pending().is_none());
            while !done {
                if !withdrawn && pace.expired() {
                    self.withdraw_job(slots, round, pace, &mut late);
                    withdrawn = true;
                }
                let Some(seen) = self.help.pending() else { break };
                self.system.wait(&self.help.pending, seen, pace.nap());
                if pace.due() && !withdrawn {
                    self.run_for_others(slots, job, round);
                }
                done = self.help.pending().is_none();
            }
        }
        self.help_job.store(ptr::null_mut(), Ordering::Relaxed);
        let _over = ManuallyDrop::new(outstanding);
        late
    }

    /// Runs the job for the asked slots whose targets do not come to it, and ends it for those that are gone.
    fn run_for_others(
        &self,
        slots: &[&'static MutatorSlot<S::Identity>],
        job: &Job<'_, S>,
        round: RoundNumber,
    ) {
        for slot in slots {
            let help = &slot.status.help;
            if help.asked.load(Ordering::Relaxed) != round.0 {
                continue;
            }
            // One that detaches, and does not find that it is asked, is seen to.
            let is_gone = !matches!(slot.state(), MutatorState::Safe | MutatorState::Running);
            let is_away = || !job.self_only && !help.waits.load(Plain::Relaxed);
            if (is_gone || is_away() || (job.is_own)(slot)) && help.take(round.0) {
                if !is_gone {
                    (job.run)(slot);
                }
                self.help.acknowledge(round, None);
            }
        }
    }

    /// Past the deadline: takes back what no target has taken.
    fn withdraw_job<P: Pace<S>>(
        &self,
        slots: &[&'static MutatorSlot<S::Identity>],
        round: RoundNumber,
        pace: &P,
        late: &mut Vec<(P::Seen, bool)>,
    ) {
        for slot in slots {
            if slot.status.help.asked.load(Ordering::Relaxed) != round.0 {
                continue;
            }
            // Looked at while it is asked: the slot is still that of the target that was.
            let seen = (pace.look(slot), slot.status.help.waits.load(Plain::Relaxed));
            if slot.status.help.take(round.0) {
                if slot.is_live() {
                    late.push(seen);
                }
                self.help.acknowledge(round, None);
            }
        }
    }

    /// Target only, which is stopped and waits for the end of that: runs the job that it is asked for. False if there
    /// is none.
    pub(super) fn helps(&self, slot: &'static MutatorSlot<S::Identity>) -> bool {
        let help = &slot.status.help;
        let round = help.asked.load(Ordering::Relaxed);
        if round == 0 {
            return false;
        }
        self.stay_while_held(slot);
        slot.set_safe(Stance::Helps);
        // I8. The handler runs on this thread: only the compiler could swap the two.
        compiler_fence(Plain::SeqCst);
        if !slot.is_recalled(&self.system) && help.take(round) {
            // I7: no nudge is wanted for a slot that is safe.
            self.system.settle_nudges();
            self.run_job(slot);
            self.system.edge(Edge::Acknowledges);
            self.answer_help(slot, round);
        }
        slot.set_safe(Stance::Waits);
        true
    }

    /// Runs the job that the calling thread has taken for the slot.
    fn run_job(&self, slot: &'static MutatorSlot<S::Identity>) {
        let job = self.help_job.load(Ordering::Acquire);
        // SAFETY: published before the number that this thread has taken, and alive until it acknowledges.
        let job = unsafe { &*job };
        (job.run)(slot);
    }

    /// Target only, which runs no user code any more, after a fence: it helps nobody.
    pub(super) fn decline_help(&self, slot: &MutatorSlot<S::Identity>) {
        let round = slot.status.help.asked.load(Ordering::Relaxed);
        if round != 0 && slot.status.help.take(round) {
            self.answer_help(slot, round);
        }
    }

    fn answer_help(&self, slot: &MutatorSlot<S::Identity>, round: u32) {
        if self.help.acknowledge(RoundNumber(round), Some(slot.current_use())) {
            self.system.wake_all(&self.help.pending);
        }
    }
}
