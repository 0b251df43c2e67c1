//! One operation from the requester's side: mask, lock, gather, rehearse, execute, release.
//!
//! **Masks.** While the requester waits for the lock, it has all signals blocked but those of operations, its
//! own and others': the holder of the lock can hold it, and no handler can run on it and want the lock
//! again. While it has the lock, all signals are blocked. Between two attempts it has the mask that it came
//! with, and not the lock, so that others, libc's own broadcasts among them, come to an end meanwhile.
//!
//! **What happens when** *the requester is the only thread*: it makes the calls, and touches nothing else.
//! *A thread exits or is made meanwhile*: the count says so. *A thread does not come*: all are let go, with
//! nothing done, and the next attempt follows until the deadline. *A call is refused on the requester*: no
//! other thread tries it. *A thread ends while it is held*: its part is done for it (`threads`). *The
//! requester ends*: a thread that it holds, or the next requester, ends the operation (`lock`). *The queue
//! of signals is full*: see `census`.
//!
//! **In one phase** the requester rehearses before the gate opens, and each thread runs the calls when it
//! joins. There is nothing to take back, so there is one attempt, which lasts to the deadline. Whatever its
//! end, the requester waits for those that have joined, and the others do not run the calls later.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::time::Instant;

use sigctx::sys::{self, MaskHow, SigSet, Tid, futex_wait, sigprocmask};
use threadreg::procfs::TaskDir;

use crate::block::BLOCK;
use crate::calls::{Call, Rehearsal, rehearse};
use crate::census::{self, Census, Halt};
use crate::credentials::Odd;
use crate::end;
use crate::error::{Diverged, Error, Partial, TimedOut};
use crate::exec;
use crate::hold::{Hold, Release, broadcast, gather};
use crate::life;
use crate::lock::{Locked, Refused};
use crate::notes::{Kind, Notes};
use crate::options::{KernelWorkers, OnDivergence, OnMixed, Results};
use crate::patience::Patience;
use crate::report::Report;
use crate::signal::{self, Mask, be_reachable};
use crate::system::{Kernel, processors};
use crate::threads::has_ended_in;

const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_PER_THREAD: Duration = Duration::from_millis(2);
const FIRST_BACK_OFF: Duration = Duration::from_millis(1);
const LONGEST_BACK_OFF: Duration = Duration::from_millis(50);
/// The longest sleep without a look at the threads that are held, which may have ended.
const LOOK_AT_HELD: Duration = Duration::from_millis(10);
/// Attempts that meet threads with other credentials before the operation is refused.
const MIXED_ATTEMPTS: u32 = 6;

/// What is to be done.
pub(crate) struct Request<'a> {
    pub(crate) calls: &'a [Call],
    pub(crate) signal: i32,
    pub(crate) release: Release,
    pub(crate) on_divergence: OnDivergence,
    /// When the operation was asked for; the timeout runs from here.
    pub(crate) start: Instant,
    pub(crate) timeout: Option<Duration>,
    pub(crate) excluded: &'a [Tid],
    pub(crate) results: Results,
    pub(crate) on_mixed: OnMixed,
    pub(crate) kernel_workers: KernelWorkers,
    pub(crate) tasks: Option<&'a TaskDir>,
}

/// The timeout of an operation that was given none.
pub(crate) fn default_timeout(population: usize) -> Duration {
    TIMEOUT + TIMEOUT_PER_THREAD * population as u32
}

/// How many threads there are.
pub(crate) fn population(tasks: Option<&TaskDir>) -> Result<usize, Error> {
    let counted = match tasks {
        Some(tasks) => tasks.count(),
        None => TaskDir::open().and_then(|tasks| tasks.count()),
    };
    match counted {
        Ok(count) => Ok(count),
        Err(_) if life::is_alone() => Ok(1),
        Err(error) => Err(Error::NoProc(error)),
    }
}

/// The operation of a process of one thread.
fn alone(request: &Request<'_>) -> Result<Report, Error> {
    let rehearsal = rehearse(request.calls, |_, run| run(), |_, _| {});
    Report::new(&rehearsal, request.calls, request.start)
}

/// Runs an operation to its end.
pub(crate) fn run(request: &Request<'_>) -> Result<Report, Error> {
    let start = request.start;
    signal::keep_loaded().map_err(Error::NotKept)?;
    let mask = Mask::change(BLOCK.signals.without(SigSet::deferrable()));
    let own;
    let found = match request.tasks {
        Some(tasks) => Ok(tasks),
        None => match TaskDir::open() {
            Ok(tasks) => {
                own = tasks;
                Ok(&own)
            }
            Err(error) => Err(error),
        },
    };
    let (dir, population) = match found.and_then(|dir| Ok((dir, dir.count()?))) {
        Ok((_, 1)) => return alone(request),
        Ok(found) => found,
        Err(_) if life::is_alone() => return alone(request),
        Err(error) => return Err(Error::NoProc(error)),
    };
    // `None`: the clock ends before the deadline.
    let until = start.checked_add(request.timeout.unwrap_or_else(|| default_timeout(population)));
    let mut patience = Patience::new(until);
    let (pid, me) = (sys::getpid(), sys::gettid());
    BLOCK.take_over(pid);
    if let Err(holder) = exec::note(until) {
        return Err(Error::Busy { holder: Some(holder), waited: start.elapsed() });
    }
    let mut back_off = FIRST_BACK_OFF;
    let mut before = None;
    let mut retries = 0;
    loop {
        let ids = (pid, me, request.signal);
        let attempt = Attempt { request, dir, ids, population, patience: &mut patience, before };
        match attempt.run(retries) {
            ControlFlow::Break(end) => return end,
            ControlFlow::Continue(failed) => before = Some(failed),
        }
        retries += 1;
        mask.relax();
        let never = AtomicU32::new(0);
        let nap = back_off.min(patience.left().unwrap_or_default());
        // A signal ends it early; then the next attempt only comes early.
        let _ = futex_wait(&never, 0, Some(nap));
        patience.tick(nap);
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        be_reachable();
    }
}

/// One attempt at holding all threads.
struct Attempt<'a> {
    request: &'a Request<'a>,
    dir: &'a TaskDir,
    ids: (i32, Tid, i32),
    /// How many threads there were in the beginning.
    population: usize,
    patience: &'a mut Patience,
    /// What was wrong with the last attempt, if this is not the first.
    before: Option<Failed>,
}

/// Why an attempt is made once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Some did not come.
    TimedOut(TimedOut),
    /// Some have other credentials, in so many attempts.
    Mixed(Odd, u32),
}

impl Failed {
    fn after(self, waited: Duration) -> Error {
        match self {
            Self::TimedOut(threads) => Error::TimedOut(threads.after(waited)),
            Self::Mixed(Odd { threads, tid }, _) => Error::Mixed { tid, threads: threads as usize },
        }
    }
}

/// An attempt goes on, with those that did not come, or ends the operation.
type Next = ControlFlow<Result<Report, Error>, Failed>;

/// A hold that has begun. When it is dropped, by a panic too, all threads are let go.
struct Begun<'a>(&'a Hold);

impl<'a> Begun<'a> {
    /// `None` when threads of the operation before have not left it in time. `bury` does for those that
    /// have ended what they cannot do.
    fn new(
        hold: &'a Hold,
        release: Release,
        patience: &mut Patience,
        mut bury: impl FnMut(),
        prepare: impl FnOnce(),
    ) -> Option<Self> {
        let mut slept = false;
        let time_left = || {
            if slept {
                patience.tick(LOOK_AT_HELD);
                bury();
            }
            slept = true;
            Some(patience.left()?.min(LOOK_AT_HELD))
        };
        // Not after a refusal: the end of what has not begun would be the end of the one before.
        hold.begin(&BLOCK.system(), release, time_left, prepare).then(|| Self(hold))
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.0.is_open() {
            self.0.shut();
        }
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
        // A held thread, and the requester, may ask again from a function that `call` runs.
        let nested = || BLOCK.is_inside(me);
        let mut locked = match BLOCK.lock.acquire(me, self.patience, nested, be_reachable) {
            Ok(locked) => locked,
            Err(Refused::Nested) => return ControlFlow::Break(Err(Error::Nested)),
            Err(Refused::TimedOut { holder }) => {
                let waited = self.request.start.elapsed();
                let busy = Error::Busy { holder, waited };
                let error = self.before.map_or(busy, |before| before.after(waited));
                return ControlFlow::Break(Err(error));
            }
        };
        sigprocmask(MaskHow::Set, &SigSet::deferrable());
        if locked.inherited {
            signal::inherited(pid);
        }
        if signal::install(signal).is_err() {
            return ControlFlow::Break(Err(Error::BadSignal { signal }));
        }
        if BLOCK.signals.add(signal) {
            BLOCK.lock.announce();
        }
        // This only spares listings against a thread that makes others. Not a second time: the thread that
        // does not come may wait for the freeze. Nor in a program that makes no threads by that crate: a
        // thread that forks would copy the lock, and in the child no handler would free it. Nor in one phase,
        // where it would last to the end, and keep a thread away that waits for it.
        let one_phase = self.request.release == Release::AtOnce;
        let freeze = retries == 0 && !one_phase && threadreg::is_in_use();
        let mut frozen = if freeze { threadreg::try_freeze_creation() } else { None };
        let thaw = || drop(frozen.take());
        let end = self.gathered(&mut locked, retries, thaw);
        drop(frozen);
        if BLOCK.broadcast.load(Ordering::Relaxed) != 0 {
            signal::drain(signal, (pid, me));
            BLOCK.broadcast.store(0, Ordering::Relaxed);
        }
        drop(locked);
        end
    }

    /// `thaw` is called when all are held.
    fn gathered(&mut self, locked: &mut Locked<'_>, retries: u32, thaw: impl FnOnce()) -> Next {
        let (request, (pid, ..)) = (self.request, self.ids);
        let notes = BLOCK.notes(locked);
        // What may fail or panic comes before the gate opens, as far as possible.
        let census = Census::new(self.dir, notes, self.patience, self.ids, request.excluded);
        let mut census = match census {
            Ok(census) => census,
            Err(error) => return ControlFlow::Break(Err(error)),
        };
        let compare = request.on_mixed == OnMixed::Refuse
            && request.calls.iter().any(Call::needs_credentials);
        let (left_out, joined) = (census.excluded(), BLOCK.hold.joined());
        let one_phase = request.release == Release::AtOnce;
        let compare = compare && !one_phase;
        let mut rehearsal = None;
        let begun = Begun::new(
            &BLOCK.hold,
            request.release,
            census.patience(),
            || {
                BLOCK.roll.bury(&BLOCK.hold, joined, has_ended_in(pid));
            },
            || {
                BLOCK.table.clear();
                BLOCK.roll.clear(joined);
                BLOCK.yields.begin(self.population, processors(), !one_phase);
                BLOCK.excluded.set(left_out);
                BLOCK.calls.load(request.calls, request.results);
                BLOCK.credentials.prepare(compare);
                // The first thread that comes makes the calls.
                rehearsal = one_phase.then(|| rehearse_for_all(request, self.ids));
            },
        );
        let Some(begun) = begun else {
            let waited = request.start.elapsed();
            let inside = census::inside(self.dir, &BLOCK.hold, waited);
            let error = self.before.map_or(Error::TimedOut(inside), |failed| failed.after(waited));
            return ControlFlow::Break(Err(error));
        };
        // The wait so far is no lack of arrivals.
        census.begin(request.release);
        if let Some(rehearsal) = rehearsal {
            return ControlFlow::Break(one_phase_of(
                request,
                self.ids,
                begun,
                &mut census,
                &rehearsal,
            ));
        }
        let gathered = gather(&BLOCK.hold, &mut census).and_then(|held| {
            check_credentials(held, pid, compare)?;
            check_workers(request.kernel_workers, census.notes())?;
            Ok(held)
        });
        let notes = census.notes();
        match gathered {
            Ok(held) => {
                thaw();
                let rehearsal = execute(request, self.ids, begun, held);
                // All have come. Otherwise they are kept: what is queued for them is not sent again.
                notes.forget_missing();
                let end = rehearsal.and_then(|(rehearsal, died)| {
                    report_of(request, &rehearsal, notes, (held + 1 - died, died, retries))
                });
                ControlFlow::Break(end)
            }
            Err(Halt::Failed(error)) => ControlFlow::Break(Err(error)),
            Err(halt) => {
                drop(begun);
                let (missing, waited) = (notes.missing.iter().copied(), request.start.elapsed());
                let now = TimedOut::new(missing, notes.missing_count, waited);
                let failed = what_to_name(&halt, self.before, now);
                let over = matches!(failed, Failed::Mixed(_, MIXED_ATTEMPTS..));
                if over || self.patience.left().is_none() {
                    ControlFlow::Break(Err(failed.after(waited)))
                } else {
                    ControlFlow::Continue(failed)
                }
            }
        }
    }
}

const WORKERS: &[Kind] = &[Kind::Worker, Kind::Polling];

/// Waits until all held threads have compared their credentials, if that is wanted.
fn check_credentials(held: u32, pid: i32, compare: bool) -> Result<(), Halt> {
    if !compare {
        return Ok(());
    }
    let never = AtomicU32::new(0);
    let have_checked = || BLOCK.roll.have_checked(held);
    // They have joined, and make three system calls.
    while !BLOCK.system().give_way(have_checked) && !have_checked() {
        let _ = futex_wait(&never, 0, Some(Duration::from_micros(50)));
        // A filter may answer any of them with the end of the thread.
        BLOCK.roll.bury(&BLOCK.hold, held, has_ended_in(pid));
    }
    BLOCK.credentials.odd().map_or(Ok(()), |odd| Err(Halt::Mixed(odd)))
}

/// Refuses workers of the kernel, if that is wanted. The count has proved that all are known.
fn check_workers(allowed: KernelWorkers, notes: &Notes) -> Result<(), Halt> {
    let refused: &[Kind] = match allowed {
        KernelWorkers::Leave => &[],
        KernelWorkers::RefusePolling => &[Kind::Polling],
        KernelWorkers::Refuse => WORKERS,
    };
    let workers = notes.bystanders_of(refused).count();
    match notes.bystanders_of(refused).next() {
        Some(tid) => Err(Halt::Failed(Error::KernelWorkers { tid, workers })),
        None => Ok(()),
    }
}

/// Chooses what an error is to tell: what was wrong with the attempt before, or with this one.
fn what_to_name(halt: &Halt, before: Option<Failed>, now: TimedOut) -> Failed {
    match (halt, before) {
        (Halt::Mixed(odd), Some(Failed::Mixed(_, attempts))) => Failed::Mixed(*odd, attempts + 1),
        (Halt::Mixed(odd), _) => Failed::Mixed(*odd, 1),
        // The threads that have not come in this attempt may have had no time to.
        (Halt::TimedOut, Some(Failed::TimedOut(before))) => {
            Failed::TimedOut(before.after(now.elapsed()))
        }
        (Halt::TimedOut, Some(mixed)) => mixed,
        _ => Failed::TimedOut(now),
    }
}

/// Makes the calls on the requester, and notes for the others what they are to make and what to expect.
fn rehearse_for_all(request: &Request<'_>, ids: (i32, Tid, i32)) -> Rehearsal {
    let in_handler = |call, _run: &dyn Fn() -> isize| signal::run_own(call, ids);
    let keep = |call, value| BLOCK.calls.expect(call, value);
    let rehearsal = rehearse(request.calls, in_handler, keep);
    BLOCK.calls.limit(rehearsal.applied);
    rehearsal
}

/// Waits until all that have joined have run the calls, or have ended.
fn await_done(joined: u32, pid: i32) {
    let mut slept = false;
    BLOCK.hold.await_done(&BLOCK.system(), || {
        if slept {
            BLOCK.roll.bury(&BLOCK.hold, joined, has_ended_in(pid));
        }
        slept = true;
        LOOK_AT_HELD
    });
}

/// Has the others make the calls that the requester has made, each when it comes. Whatever the end, no thread
/// makes them later: what they point to may be gone.
fn one_phase_of(
    request: &Request<'_>,
    ids: (i32, Tid, i32),
    begun: Begun<'_>,
    census: &mut Census<'_>,
    rehearsal: &Rehearsal,
) -> Result<Report, Error> {
    let end = if rehearsal.applied > 0 { broadcast(&BLOCK.hold, census) } else { Ok(()) };
    let joined = BLOCK.hold.shut();
    await_done(joined, ids.0);
    let died = BLOCK.roll.buried(joined);
    let (count, first) = BLOCK.calls.different();
    let diverged = (count > 0).then(|| Diverged::new(count, first, request.calls, rehearsal));
    drop(begun);
    let notes = census.notes();
    let made = joined + 1 - died;
    let failed = match (end, diverged) {
        (Ok(()), None) => None,
        (Ok(()), Some(diverged)) => Some(Error::Diverged(diverged)),
        (Err(halt), _) => {
            let stopped_by = if let Halt::Failed(error) = &halt { error.errno() } else { None };
            let missing = notes.missing.iter().copied();
            let waited = request.start.elapsed();
            let missing = TimedOut::new(missing, notes.missing_count, waited);
            Some(Error::Partial(Partial::new(made, stopped_by, missing)))
        }
    };
    if let Some(error) = failed {
        if request.on_divergence == OnDivergence::Abort {
            end::die(ids.0, &error);
        }
        return Err(error);
    }
    // Otherwise they are kept: what is queued for them is not sent again.
    notes.forget_missing();
    report_of(request, rehearsal, notes, (made, died, 0))
}

/// What an operation has done: on how many threads, how many died, after how many retries.
fn report_of(
    request: &Request<'_>,
    rehearsal: &Rehearsal,
    notes: &Notes,
    (threads, died, retries): (u32, u32, u32),
) -> Result<Report, Error> {
    let mut report = Report::new(rehearsal, request.calls, request.start)?;
    report.threads = threads as usize;
    report.died = died as usize;
    report.retries = retries;
    report.kernel_workers = notes.bystanders_of(WORKERS).count();
    report.excluded = notes.bystanders_of(&[Kind::Excluded]).count();
    Ok(report)
}

/// Runs the calls with all threads held: first on the requester, then on the others, which are then let
/// go. Returns how many have died.
fn execute(
    request: &Request<'_>,
    ids: (i32, Tid, i32),
    begun: Begun<'_>,
    held: u32,
) -> Result<(Rehearsal, u32), Error> {
    let rehearsal = rehearse_for_all(request, ids);
    if rehearsal.applied > 0 && held > 0 {
        BLOCK.hold.command(&Kernel, request.release);
        await_done(held, ids.0);
    }
    let died = BLOCK.roll.buried(held);
    let (count, first) = BLOCK.calls.different();
    let diverged = (count > 0).then(|| Diverged::new(count, first, request.calls, &rehearsal));
    if let (Some(diverged), OnDivergence::Abort) = (&diverged, request.on_divergence) {
        end::die(ids.0, diverged);
    }
    drop(begun);
    diverged.map_or(Ok((rehearsal, died)), |diverged| Err(Error::Diverged(diverged)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::Joined;

    #[test]
    fn a_thread_that_had_no_time_to_come_is_not_named() {
        let missing = |count, milliseconds| {
            TimedOut::new(core::iter::empty(), count, Duration::from_millis(milliseconds))
        };
        // In the attempt that the deadline cut short nearly all threads are missing.
        let (one, all) = (missing(1, 300), missing(50, 400));
        let (some, failed) = (Some(Failed::TimedOut(one)), Failed::TimedOut);
        assert_eq!(what_to_name(&Halt::TimedOut, some, all), failed(missing(1, 400)));
        assert_eq!(what_to_name(&Halt::Stalled, some, all), failed(all));
        assert_eq!(
            what_to_name(&Halt::TimedOut, None, all),
            failed(all),
            "nothing better is known"
        );
        let odd = Odd { threads: 1, tid: 7 };
        let mixed = what_to_name(&Halt::Mixed(odd), some, all);
        assert_eq!(what_to_name(&Halt::Mixed(odd), Some(mixed), all), Failed::Mixed(odd, 2));
        assert_eq!(what_to_name(&Halt::TimedOut, Some(mixed), all), mixed);
    }

    /// The thread had joined, was let go, and has not left its handler: nothing is begun by the deadline, and
    /// the next operation waits for it again.
    #[test]
    fn a_thread_that_has_not_left_is_waited_for_until_the_deadline() {
        let hold = Hold::new();
        let patience = Duration::from_millis(30);
        let open = |until, prepare: &dyn Fn()| {
            let mut patience = Patience::new(until);
            Begun::new(&hold, Release::Each, &mut patience, || (), prepare)
        };
        let begun = open(None, &|| ()).unwrap();
        assert_eq!(hold.join(|| false), Some(Joined::Held(1)));
        drop(begun);
        for _ in 0..2 {
            let start = Instant::now();
            let begun = open(Some(start + patience), &|| panic!("a thread is inside"));
            assert!(begun.is_none());
            assert!(start.elapsed() >= patience);
        }
        hold.stay(&Kernel, Joined::Held(1), || panic!("let go"), || (), |_| ());
        // It has left: the deadline does not matter then.
        assert!(open(Some(Instant::now()), &|| ()).is_some());
    }

    /// Otherwise all threads would stay in their handlers forever.
    #[test]
    fn a_panic_lets_all_threads_go() {
        let cases = [(Release::Each, false), (Release::Each, true), (Release::AtOnce, false)];
        for (release, close) in cases {
            let hold = Hold::new();
            let unwound = std::panic::catch_unwind(|| {
                let mut patience = Patience::new(None);
                let _begun = Begun::new(&hold, release, &mut patience, || (), || ()).unwrap();
                assert!(!close || hold.close(0));
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(unwound.is_err());
            assert!(!hold.is_executing());
            assert_eq!(hold.join(|| false), None, "still open");
        }
    }
}
