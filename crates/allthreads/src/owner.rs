//! One operation from the owner's side: mask, lock, gather, rehearse, execute, release.
//!
//! **Masks.** While the caller waits for the lock it has everything blocked but the signal: it can
//! be held by whoever owns the lock, and no handler can come and want the lock again. As owner it
//! has everything blocked. Between two attempts it has its own mask, and not the lock: that is
//! what lets others, libc's own broadcasts among them, come to an end meanwhile.
//!
//! **What happens when** *the caller is the only thread*: the calls are made, nothing else is
//! touched. *A thread exits or is made meanwhile*: the count says so. *A thread does not come*:
//! everybody is let go, nothing having been done, and tried again until the deadline. *A call is
//! refused on the caller*: nobody else tries it. *The queue of signals is full*: see `census`.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::time::Instant;

use sigctx::sys::{self, MaskHow, SigSet, Tid, futex_wait, sigprocmask};
use threadreg::procfs::TaskDir;

use crate::block::BLOCK;
use crate::builder::OnDivergence;
use crate::calls::{Call, Rehearsal, rehearse};
use crate::census::{Census, Halt, Kind};
use crate::end;
use crate::error::{Diverged, Error, Unresponsive};
use crate::exec;
use crate::gather::gather;
use crate::hold::{Hold, Release};
use crate::lock::{Locked, Refused};
use crate::outcome::Outcome;
use crate::signal::{self, Kernel};
use crate::table::Entry;

const DEADLINE: Duration = Duration::from_secs(2);
const DEADLINE_PER_THREAD: Duration = Duration::from_millis(2);
const FIRST_BACK_OFF: Duration = Duration::from_millis(1);
const LONGEST_BACK_OFF: Duration = Duration::from_millis(50);

/// What is to be done.
pub(crate) struct Request<'a> {
    pub(crate) calls: &'a [Call],
    pub(crate) signal: i32,
    pub(crate) release: Release,
    pub(crate) on_divergence: OnDivergence,
    pub(crate) deadline: Option<Duration>,
    pub(crate) excluded: &'a [Tid],
}

/// The caller's signal mask, put back on drop.
struct Mask {
    callers: SigSet,
}

impl Mask {
    fn change(set: SigSet) -> Self {
        Self { callers: sigprocmask(MaskHow::Set, &set) }
    }

    /// The caller's own mask, in which it can be held nevertheless. So the operation's signal is
    /// open for a while also where the caller had blocked it, and what waits for it is delivered.
    fn relax(&self, signal: i32) {
        sigprocmask(MaskHow::Set, &self.callers.without(signal));
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        sigprocmask(MaskHow::Set, &self.callers);
    }
}

/// Runs an operation to its end.
pub(crate) fn run(request: &Request<'_>) -> Result<Outcome, Error> {
    let start = Instant::now();
    signal::keep_loaded().map_err(Error::NotKept)?;
    let reachable = SigSet::deferrable().without(request.signal);
    let mask = Mask::change(reachable);
    let mut dir = TaskDir::open().map_err(Error::NoProc)?;
    let population = dir.count().map_err(Error::NoProc)?;
    if population == 1 {
        let rehearsal = rehearse(request.calls, |_, _| {});
        return Outcome::new(&rehearsal, request.calls.len(), start);
    }
    // `None`: the clock ends before the deadline.
    let until = start.checked_add(
        request.deadline.unwrap_or_else(|| DEADLINE + DEADLINE_PER_THREAD * population as u32),
    );
    let (pid, me) = (sys::getpid(), sys::gettid());
    BLOCK.take_over(pid);
    if let Err(holder) = exec::note(request.signal, until) {
        return Err(Error::Busy { holder, waited: start.elapsed() });
    }
    let mut back_off = FIRST_BACK_OFF;
    let mut missing = None;
    let mut retries = 0;
    loop {
        let ids = (pid, me, request.signal);
        let attempt = Attempt { request, dir: &mut dir, ids, start, until, missing };
        match attempt.run(retries) {
            ControlFlow::Break(end) => return end,
            ControlFlow::Continue(who) => missing = Some(who),
        }
        retries += 1;
        mask.relax(request.signal);
        let never = AtomicU32::new(0);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Wakes early when a signal comes; that only makes the next attempt come early.
        let _ = futex_wait(&never, 0, Some(left.map_or(back_off, |left| back_off.min(left))));
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        sigprocmask(MaskHow::Set, &reachable);
    }
}

/// One attempt at holding everybody.
struct Attempt<'a> {
    request: &'a Request<'a>,
    dir: &'a mut TaskDir,
    ids: (i32, Tid, i32),
    start: Instant,
    until: Option<Instant>,
    /// Who was missing in the last attempt, if this is not the first.
    missing: Option<Unresponsive>,
}

/// An attempt goes on, with those that did not come, or ends the operation.
type Next = ControlFlow<Result<Outcome, Error>, Unresponsive>;

/// A hold that has begun. Its end, also by a panic, lets everybody go.
struct Begun<'a>(&'a Hold);

impl<'a> Begun<'a> {
    /// `None` when threads of the operation before have not left it by `until`.
    fn new(hold: &'a Hold, until: Option<Instant>, prepare: impl FnOnce()) -> Option<Self> {
        let time_left = || {
            // There is no deadline: as long as the kernel can wait at a time.
            let Some(until) = until else { return Some(Duration::MAX) };
            until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        };
        // Not after a refusal: the end of what has not begun would be the end of the one before.
        hold.begin(&Kernel, time_left, prepare).then(|| Self(hold))
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.is_executing() {
            self.0.finish(&Kernel);
        } else {
            self.0.roll_back(&Kernel);
        }
    }
}

impl Attempt<'_> {
    fn run(mut self, retries: u32) -> Next {
        let (pid, me, signal) = self.ids;
        // A held thread, and the owner, may ask again from a function that `call` runs.
        let nested =
            || BLOCK.hold.is_executing() && BLOCK.table.entry(me).is_some_and(Entry::has_arrived);
        let mut locked = match BLOCK.lock.acquire(me, self.until, nested) {
            Ok(locked) => locked,
            Err(Refused::Nested) => return ControlFlow::Break(Err(Error::Nested)),
            Err(Refused::Late { holder }) => return self.no_turn(holder),
        };
        sigprocmask(MaskHow::Set, &SigSet::deferrable());
        if signal::install(signal).is_err() {
            return ControlFlow::Break(Err(Error::BadSignal { signal }));
        }
        // It only spares rounds against a thread that makes others. Not a second time: who waits
        // for it may be the one that does not come. Nor where nobody makes threads by that crate, and
        // a held thread's fork would copy the lock for good.
        let freeze = retries == 0 && threadreg::is_in_use();
        let frozen = if freeze { threadreg::try_freeze_creation() } else { None };
        let end = self.gathered(&mut locked, retries);
        drop(frozen);
        if BLOCK.broadcast.load(Ordering::Relaxed) != 0 {
            signal::drain(signal, (pid, me));
            BLOCK.broadcast.store(0, Ordering::Relaxed);
        }
        drop(locked);
        end
    }

    /// The deadline passed before this attempt could begin.
    fn no_turn(&self, holder: Tid) -> Next {
        let waited = self.start.elapsed();
        ControlFlow::Break(Err(match self.missing {
            Some(who) => Error::Unresponsive(who.after(waited)),
            None => Error::Busy { holder, waited },
        }))
    }

    fn gathered(&mut self, locked: &mut Locked<'_>, retries: u32) -> Next {
        let request = self.request;
        let notes = BLOCK.notes(locked);
        // What may fail or panic comes before the gate opens, where it can.
        let census = Census::new(self.dir, notes, self.ids, request.excluded, self.until);
        let mut census = match census {
            Ok(census) => census,
            Err(error) => return ControlFlow::Break(Err(error)),
        };
        let begun = Begun::new(&BLOCK.hold, self.until, || {
            BLOCK.table.clear();
            BLOCK.excluded.set(census.excluded());
            BLOCK.calls.load(request.calls);
        });
        let Some(begun) = begun else { return self.no_turn(0) };
        // The wait is no lack of arrivals.
        census.begin();
        let gathered = gather(&BLOCK.hold, &mut census);
        let notes = census.notes();
        match gathered {
            Ok(held) => {
                let rehearsal = execute(request, self.ids.0, begun, held);
                // Everybody came. Else they are kept: what is queued for them is not sent again.
                notes.forget_missing();
                let end = rehearsal.and_then(|rehearsal| {
                    let mut outcome = Outcome::new(&rehearsal, request.calls.len(), self.start)?;
                    outcome.threads = held as usize + 1;
                    outcome.retries = retries;
                    outcome.kernel_workers = notes.bystanders_of(Kind::Worker);
                    outcome.excluded = notes.bystanders_of(Kind::Excluded);
                    Ok(outcome)
                });
                ControlFlow::Break(end)
            }
            Err(Halt::Failed(error)) => ControlFlow::Break(Err(error)),
            Err(halt) => {
                drop(begun);
                let (missing, waited) = (notes.missing.iter().copied(), self.start.elapsed());
                let now = Unresponsive::new(missing, notes.missing_count, waited);
                let who = who_to_name(&halt, self.missing, now);
                if self.until.is_none_or(|until| Instant::now() < until) {
                    ControlFlow::Continue(who)
                } else {
                    ControlFlow::Break(Err(Error::Unresponsive(who)))
                }
            }
        }
    }
}

/// Of those missing in the attempt before and those missing now, the ones that did not come.
fn who_to_name(halt: &Halt, before: Option<Unresponsive>, now: Unresponsive) -> Unresponsive {
    match (halt, before) {
        // Who has not come by now says nothing: some may have had no time to.
        (Halt::Late, Some(before)) => before.after(now.elapsed()),
        _ => now,
    }
}

/// With everybody held: the caller first, then all, then let go.
fn execute(
    request: &Request<'_>,
    pid: i32,
    begun: Begun<'_>,
    held: u32,
) -> Result<Rehearsal, Error> {
    let rehearsal = rehearse(request.calls, |call, value| BLOCK.calls.expect(call, value));
    BLOCK.calls.limit(rehearsal.applied);
    if rehearsal.applied > 0 && held > 0 {
        BLOCK.hold.execute(&Kernel, request.release);
    }
    let (count, first) = BLOCK.calls.different();
    let diverged = (count > 0).then(|| Diverged::new(count, first, &rehearsal.values));
    if let (Some(who), OnDivergence::Abort) = (&diverged, request.on_divergence) {
        end::die(pid, who);
    }
    drop(begun);
    diverged.map_or(Ok(rehearsal), |who| Err(Error::Diverged(who)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_had_no_time_to_come_is_not_named() {
        let missing = |count, milliseconds| {
            Unresponsive::new(core::iter::empty(), count, Duration::from_millis(milliseconds))
        };
        // In the attempt that the deadline cut short nearly everybody is missing.
        let (one, all) = (missing(1, 300), missing(50, 400));
        assert_eq!(who_to_name(&Halt::Late, Some(one), all), missing(1, 400));
        assert_eq!(who_to_name(&Halt::Stalled, Some(one), all), all);
        assert_eq!(who_to_name(&Halt::Late, None, all), all, "nothing better is known");
    }

    /// It had joined, was let go, and has not left its handler: nothing is begun by the deadline, and
    /// the next operation waits for it again.
    #[test]
    fn who_has_not_left_is_waited_for_until_the_deadline() {
        let hold = Hold::new();
        let patience = Duration::from_millis(30);
        let begun = Begun::new(&hold, None, || ()).unwrap();
        assert_eq!(hold.join(|| false), Some(1));
        drop(begun);
        for _ in 0..2 {
            let start = Instant::now();
            let begun = Begun::new(&hold, Some(start + patience), || panic!("somebody is inside"));
            assert!(begun.is_none());
            assert!(start.elapsed() >= patience);
        }
        hold.stay(&Kernel, || panic!("let go"));
        // It has left: that is enough also when the deadline has passed.
        assert!(Begun::new(&hold, Some(Instant::now()), || ()).is_some());
    }

    /// Else all threads would stay in their handlers for ever.
    #[test]
    fn a_panic_lets_everybody_go() {
        for close in [false, true] {
            let hold = Hold::new();
            let unwound = std::panic::catch_unwind(|| {
                let _begun = Begun::new(&hold, None, || ()).unwrap();
                assert!(!close || hold.close(0));
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(unwound.is_err());
            assert!(!hold.is_executing());
            assert_eq!(hold.join(|| false), None, "still open");
        }
    }
}
