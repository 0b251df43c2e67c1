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
use crate::error::{Diverged, Error, Unresponsive};
use crate::gather::gather;
use crate::hold::Release;
use crate::lock::Locked;
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

    /// The caller's own mask, in which it can be held nevertheless.
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
    let reachable = SigSet::full().without(request.signal);
    let mask = Mask::change(reachable);
    let mut dir = TaskDir::open().map_err(Error::NoProc)?;
    let population = dir.count().map_err(Error::NoProc)?;
    if population == 1 {
        let rehearsal = rehearse(request.calls, |_, _| {});
        return Outcome::new(&rehearsal, request.calls.len(), start);
    }
    let patience =
        request.deadline.unwrap_or_else(|| DEADLINE + DEADLINE_PER_THREAD * population as u32);
    let (pid, me) = (sys::getpid(), sys::gettid());
    BLOCK.take_over(pid);
    let mut back_off = FIRST_BACK_OFF;
    let mut retries = 0;
    loop {
        let ids = (pid, me, request.signal);
        let attempt = Attempt { request, dir: &mut dir, ids, start, patience };
        match attempt.run(retries) {
            ControlFlow::Break(end) => return end,
            ControlFlow::Continue(()) => retries += 1,
        }
        mask.relax(request.signal);
        let never = AtomicU32::new(0);
        // Wakes early when a signal comes; that only makes the next attempt come early.
        let _ = futex_wait(&never, 0, Some(back_off));
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
    patience: Duration,
}

impl Attempt<'_> {
    fn run(mut self, retries: u32) -> ControlFlow<Result<Outcome, Error>> {
        let (_, me, signal) = self.ids;
        // A held thread, and the owner, may ask again from a function that `call` runs.
        let nested =
            || BLOCK.hold.is_executing() && BLOCK.table.entry(me).is_some_and(Entry::has_arrived);
        let Some(mut locked) = BLOCK.lock.acquire(me, nested) else {
            return ControlFlow::Break(Err(Error::Nested));
        };
        sigprocmask(MaskHow::Set, &SigSet::full());
        if signal::install(signal).is_err() {
            return ControlFlow::Break(Err(Error::BadSignal { signal }));
        }
        // It only spares rounds against a thread that makes others. Not a second time: who waits
        // for it may be the one that does not come.
        let frozen = if retries == 0 { threadreg::try_freeze_creation() } else { None };
        let end = self.gathered(&mut locked, retries);
        drop(frozen);
        if BLOCK.broadcast.load(Ordering::Relaxed) != 0 {
            signal::drain(signal);
            BLOCK.broadcast.store(0, Ordering::Relaxed);
        }
        drop(locked);
        end
    }

    fn gathered(
        &mut self,
        locked: &mut Locked<'_>,
        retries: u32,
    ) -> ControlFlow<Result<Outcome, Error>> {
        let notes = BLOCK.notes(locked);
        let request = self.request;
        BLOCK.hold.begin(&Kernel, || {
            BLOCK.table.clear();
            BLOCK.excluded.set(request.excluded);
            BLOCK.calls.load(request.calls);
        });
        let until = self.start + self.patience;
        let gathered = Census::new(self.dir, notes, self.ids, request.excluded, until)
            .map_err(Halt::Failed)
            .and_then(|mut census| gather(&BLOCK.hold, &mut census));
        match gathered {
            Ok(held) => {
                let rehearsal = self.execute(held);
                let end = rehearsal.and_then(|rehearsal| {
                    let mut outcome = Outcome::new(&rehearsal, request.calls.len(), self.start)?;
                    outcome.threads = held as usize + 1;
                    outcome.retries = retries;
                    outcome.kernel_workers = notes.bystanders_of(Kind::Worker);
                    Ok(outcome)
                });
                ControlFlow::Break(end)
            }
            Err(Halt::Failed(error)) => {
                BLOCK.hold.roll_back(&Kernel);
                ControlFlow::Break(Err(error))
            }
            Err(Halt::Stalled) => {
                BLOCK.hold.roll_back(&Kernel);
                let elapsed = self.start.elapsed();
                if elapsed < self.patience {
                    return ControlFlow::Continue(());
                }
                let who =
                    Unresponsive::new(notes.missing.iter().copied(), notes.missing_count, elapsed);
                ControlFlow::Break(Err(Error::Unresponsive(who)))
            }
        }
    }

    /// With everybody held: the caller first, then all, then let go.
    fn execute(&self, held: u32) -> Result<Rehearsal, Error> {
        let rehearsal = rehearse(self.request.calls, |call, value| BLOCK.calls.expect(call, value));
        BLOCK.calls.limit(rehearsal.applied);
        if rehearsal.applied > 0 && held > 0 {
            BLOCK.hold.execute(&Kernel, self.request.release);
        }
        let (count, first) = BLOCK.calls.different();
        let diverged = (count > 0).then(|| Diverged::new(count, first, &rehearsal.values));
        if let (Some(who), OnDivergence::Abort) = (&diverged, self.request.on_divergence) {
            die(self.ids.0, who);
        }
        BLOCK.hold.finish(&Kernel);
        diverged.map_or(Ok(rehearsal), |who| Err(Error::Diverged(who)))
    }
}

/// Ends the process: its threads differ in what the caller wanted to be the same. Not by `abort`,
/// which runs handlers and takes locks that held threads own.
fn die(pid: i32, who: &Diverged) {
    struct Stderr;
    impl core::fmt::Write for Stderr {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            let args = [2, text.as_ptr() as usize, text.len(), 0, 0, 0];
            // SAFETY: the text lives during the call.
            let written = unsafe { sys::syscall(libc::SYS_write, args) };
            written.map(drop).map_err(|_| core::fmt::Error)
        }
    }
    // Nobody is left to tell when standard error is closed.
    let _ = core::fmt::Write::write_fmt(&mut Stderr, format_args!("allthreads: {who}\n"));
    let _cannot_fail = sys::kill(pid, libc::SIGKILL);
}
