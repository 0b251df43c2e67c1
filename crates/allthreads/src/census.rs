//! Which threads there are, which have been signalled, which are missing and why: the side of the gathering
//! that reads `/proc/self/task` and sends signals.
//!
//! Nothing here allocates: a held thread may have the allocator's lock.
//!
//! This file is long because finding threads and judging those that do not come share what was sent to whom.

use core::mem;
use core::time::Duration;
use std::time::Instant;

use sigctx::sys::{Errno, Tid};
use threadreg::Name;
use threadreg::procfs::{ProcError, TaskDir, TaskStat, TaskStatus};

use crate::block::BLOCK;
use crate::credentials::Odd;
use crate::error::{Error, Straggler, StragglerCause, TimedOut};
use crate::excluded;
use crate::hold::{Hold, Pass, Release, ThreadGroup};
use crate::life::{self, unless_gone};
use crate::notes::{Bystander, Kind, Notes};
use crate::patience::Patience;
use crate::signal::{self, Instance};
use crate::threads::{EXCLUDED, Entry, has_ended_in};

/// After so long without an arrival the missing threads are looked at. All such times are the requester's
/// own (`patience`).
const LOOK: Duration = Duration::from_millis(5);
/// After so long without an arrival, with a thread missing that does not run, all threads are let go and
/// the next attempt comes later. A held thread may have what the missing one waits for.
const GIVE_UP: Duration = Duration::from_millis(20);
/// The same where the missing threads run, or wait for a processor, with the signal blocked. If the others
/// were let go, these would get even less of the processor; but one may spin for what a held thread has.
const GIVE_UP_ON_RUNNING: Duration = Duration::from_millis(200);
/// The wait until the next look, as a multiple of how long a look takes.
const LOOK_SELDOM: u32 = 5;
/// The first and the longest wait between two looks at the count, and the least for each thread that is
/// awaited: what a signal and its handler take.
const NAP: Duration = Duration::from_micros(100);
const NAP_A_THREAD: Duration = Duration::from_micros(5);
const LONGEST_NAP: Duration = Duration::from_millis(4);

/// Why a gathering ended before all threads were held.
#[derive(Debug)]
pub(crate) enum Halt {
    /// A thread does not come; it may help to let go and try again.
    Stalled,
    /// The deadline has passed before all threads had the time to come.
    TimedOut,
    /// Some have other credentials than the requester. That may end.
    Mixed(Odd),
    /// Another attempt would end in the same way.
    Failed(Error),
}

impl From<ProcError> for Halt {
    fn from(error: ProcError) -> Self {
        Self::Failed(Error::NoProc(error))
    }
}

/// The threads of the operation before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Untried,
    /// With the requester they are all that there are.
    All,
    /// There are others, or some have ended.
    Some,
}

/// One gathering's view of the process.
pub(crate) struct Census<'a> {
    dir: &'a TaskDir,
    notes: &'a mut Notes,
    patience: &'a mut Patience,
    pid: i32,
    me: Tid,
    signal: i32,
    instance: Instance,
    release: Release,
    /// The size of the thread group when it was last read.
    population: u32,
    known: Known,
    /// The deadline has passed, and no thread was missing then: the count is taken once more.
    late: bool,
    /// No thread was missing at the last look.
    complete: bool,
    /// Signals that the kernel took; threads for which its queue was full in the last listing.
    sent: u32,
    refused: u32,
    arrivals: u32,
    /// Threads that joined and have ended since.
    dead: u32,
    /// The requester's own time since the last arrival, and since the last look.
    idle: Duration,
    unlooked: Duration,
    look_every: Duration,
    /// How much of it may be spent on those that are missing.
    bearable: Duration,
    nap: Duration,
}

impl<'a> Census<'a> {
    pub(crate) fn new(
        dir: &'a TaskDir,
        notes: &'a mut Notes,
        patience: &'a mut Patience,
        (pid, me, signal): (i32, Tid, i32),
        excluded: &[Tid],
    ) -> Result<Self, Error> {
        notes.known.begin(BLOCK.roll.threads(BLOCK.hold.joined()), me);
        notes.bystanders.retain(|b| b.kind != Kind::Excluded);
        // The requester takes part even if it is named.
        let now = excluded.iter().map(|&tid| (tid, None));
        let always = excluded::always().map(|(tid, start)| (tid, Some(start)));
        for (tid, start) in now.chain(always).filter(|&(tid, _)| tid != me) {
            let Some(stat) = unless_gone(dir.stat(tid)).map_err(Error::NoProc)? else { continue };
            // Another thread has the id now, and the program did not vouch for that one.
            if start.is_some_and(|start| start != stat.start_time as u32) {
                continue;
            }
            let kind = Kind::Excluded;
            if !notes.bystanders.add(Bystander { tid, start_time: stat.start_time, kind }) {
                return Err(Error::TooManyThreads);
            }
        }
        Ok(Self {
            dir,
            notes,
            patience,
            pid,
            me,
            signal,
            instance: Instance::new(pid, signal),
            release: Release::Together,
            population: 0,
            known: Known::Untried,
            late: false,
            complete: false,
            sent: 0,
            refused: 0,
            arrivals: 0,
            dead: 0,
            idle: Duration::ZERO,
            unlooked: Duration::ZERO,
            look_every: LOOK,
            bearable: GIVE_UP,
            nap: NAP,
        })
    }

    /// The patience of the whole operation: the wait before the gathering begins uses it, too.
    pub(crate) fn patience(&mut self) -> &mut Patience {
        self.patience
    }

    /// From now on threads can arrive.
    pub(crate) fn begin(&mut self, release: Release) {
        self.release = release;
        self.patience.tick(Duration::ZERO);
    }

    /// How many have arrived; in one phase, how many have run the calls.
    fn arrivals_at(&self, hold: &Hold) -> u32 {
        if self.release == Release::AtOnce { hold.acts() } else { hold.arrivals() }
    }

    /// The excluded threads that exist, each once.
    pub(crate) fn excluded(&self) -> [Option<Tid>; EXCLUDED] {
        let mut tids = [None; EXCLUDED];
        for (to, from) in tids.iter_mut().zip(self.notes.bystanders_of(&[Kind::Excluded])) {
            *to = Some(from);
        }
        tids
    }

    pub(crate) fn notes(&mut self) -> &mut Notes {
        self.notes
    }

    /// Sleeps for a while, at most until `target` have arrived. Whether any has.
    fn sleep(&mut self, hold: &Hold, target: u32) -> bool {
        // The last arrival ends the sleep. Before that it is worth an eye on those that are late, or new, when
        // all others have had the time to come.
        let others = NAP_A_THREAD * target.saturating_sub(self.arrivals);
        let nap = self.nap.max(others.min(LONGEST_NAP));
        if self.release == Release::AtOnce {
            hold.await_acts(&BLOCK.system(), target, nap);
        } else {
            hold.await_arrivals(&BLOCK.system(), target, nap);
        }
        let own = self.patience.tick(nap);
        let arrivals = self.arrivals_at(hold);
        if arrivals == self.arrivals {
            self.idle += own;
            self.unlooked += own;
            self.nap = (self.nap * 2).min(LONGEST_NAP);
            return false;
        }
        self.arrivals = arrivals;
        (self.idle, self.unlooked) = (Duration::ZERO, Duration::ZERO);
        self.nap = NAP;
        true
    }

    /// Signals the threads of the operation before, in place of a first listing. True if they are all that
    /// there are beside the requester: each was there when the kernel took its signal, under the listing's
    /// number. Else a listing is to follow; those that were signalled here get no other signal.
    fn recall(&mut self) -> bool {
        let Notes { known, bystanders, missing_count, .. } = &*self.notes;
        // Those that take no part must get no signal, nor those that have one queued.
        if self.known != Known::Untried {
            return false;
        }
        self.known = Known::Some;
        if bystanders.len > 0 || *missing_count > 0 {
            return false;
        }
        let number = BLOCK.table.begin_listing();
        let (mut there, mut ended) = (0, false);
        for tid in known.iter().chain([self.me]) {
            let Some((entry, before)) = BLOCK.table.list(tid, number) else { return false };
            // Twice among those known: another thread had its id before.
            if before == number {
                continue;
            }
            if tid != self.me {
                // A late signal of another operation has brought it: nothing says that it lives still.
                if entry.needs_no_signal() {
                    continue;
                }
                match self.instance.send(tid) {
                    Ok(()) => {
                        entry.set_sent();
                        self.sent += 1;
                    }
                    Err(Errno::ESRCH) => {
                        ended = true;
                        continue;
                    }
                    // The listing meets it again, and finds room, or says why not.
                    Err(_) => return false,
                }
            }
            there += 1;
        }
        let all = there == self.population;
        if all && !ended {
            self.known = Known::All;
        }
        all
    }

    /// Looks at each thread of a recall that reached all, in place of a further listing. `None` when one is not
    /// there, or they are not all any more, or one is to have another signal: a listing is to follow.
    fn poll(&mut self) -> Option<Pass> {
        // From here on, unless all goes well.
        if mem::replace(&mut self.known, Known::Some) != Known::All || self.notes.bystanders.len > 0
        {
            return None;
        }
        let number = BLOCK.table.begin_listing();
        let mut pass = Pass { listed: 0, again: 0, awaited: 0, acting: 0 };
        for tid in self.notes.known.iter().chain([self.me]) {
            let (entry, before) = BLOCK.table.list(tid, number)?;
            // Met a second time.
            if before.wrapping_add(1) != number {
                continue;
            }
            let is_other = tid != self.me;
            if is_other && (!entry.needs_no_signal() || !life::is_here(tid)) {
                return None;
            }
            pass.listed += 1;
            pass.again += 1;
            if is_other && !entry.has_acted() {
                let acting = entry.has_arrived();
                pass.acting += u32::from(acting);
                pass.awaited += u32::from(!acting);
            }
        }
        if pass.listed != self.population {
            return None;
        }
        self.known = Known::All;
        Some(pass)
    }

    /// Lists all threads, and signals each that takes part and needs a signal. `entry` gets each id, and
    /// whether the thread takes part; it gives the thread's entry, or `None` where the table is full.
    fn list<'e>(
        &mut self,
        mut entry: impl FnMut(Tid, bool) -> Option<Entry<'e>>,
    ) -> Result<(), Halt> {
        let Notes { buffer, bystanders, missing, missing_count, .. } = &mut *self.notes;
        let mut failed = None;
        // More were missing than are remembered: it may be any thread.
        let any = *missing_count > missing.len;
        let (dir, signal) = (self.dir, self.signal);
        let queued = |tid| match read(dir, tid)? {
            Seen::Thread(_, status) => Ok(status.pending.contains(signal)),
            Seen::Gone | Seen::Hidden => Ok(false),
        };
        self.refused = 0;
        let instance = &self.instance;
        dir.for_each_tid(buffer, |tid| {
            let takes_part = tid != self.me && !bystanders.iter().any(|b| b.tid == tid);
            let Some(entry) = entry(tid, takes_part) else {
                failed = Some(Error::TooManyThreads);
                return;
            };
            if !takes_part || entry.needs_no_signal() {
                return;
            }
            // A signal of an earlier attempt is as good as a new one, and a thread that has it blocked for
            // long must not fill the queue.
            if any || missing.iter().any(|m| m.tid() == tid) {
                match queued(tid) {
                    Ok(true) => {
                        entry.set_sent();
                        return;
                    }
                    Ok(false) => {}
                    Err(error) => {
                        failed = Some(Error::NoProc(error));
                        return;
                    }
                }
            }
            match instance.send(tid) {
                Ok(()) => {
                    entry.set_sent();
                    self.sent += 1;
                }
                Err(Errno::EAGAIN) => self.refused += 1,
                // Gone meanwhile: the next count shows it.
                Err(Errno::ESRCH) => {}
                Err(errno) => failed = Some(Error::Forbidden { tid, errno }),
            }
        })?;
        failed.map_or(Ok(()), |error| Err(Halt::Failed(error)))
    }

    /// Looks at every missing thread. One that cannot take part becomes a bystander; the others are noted,
    /// each with its cause.
    fn look(&mut self, hold: &Hold) -> Result<(), Halt> {
        self.dead += BLOCK.roll.bury(hold, hold.arrivals(), has_ended_in(self.pid));
        self.notes.forget_missing();
        let Notes { buffer, bystanders, missing, missing_count, .. } = &mut *self.notes;
        let mut failed = None;
        // It may be that none is missing and the count differs: threads come and go.
        let mut bearable = None;
        let (dir, signal) = (self.dir, self.signal);
        dir.for_each_tid(buffer, |tid| {
            if tid == self.me || bystanders.iter().any(|b| b.tid == tid) {
                return;
            }
            let Some(entry) = BLOCK.table.entry(tid) else { return };
            // The main thread stays listed when it has ended.
            let has_come = entry.has_arrived() || entry.has_acted();
            if has_come && !(tid == self.pid && life::has_ended(tid, tid)) {
                return;
            }
            let thread = match read(dir, tid) {
                Ok(thread) => thread,
                Err(error) => {
                    failed = Some(Error::NoProc(error));
                    return;
                }
            };
            let (straggler, worth) = match thread {
                // Gone meanwhile: the next count shows it.
                Seen::Gone => return,
                Seen::Hidden => (Straggler::new(tid, StragglerCause::Unknown, ""), GIVE_UP),
                Seen::Thread(stat, status) => {
                    if let Some(kind) = takes_no_part(&stat) {
                        if !bystanders.add(Bystander { tid, start_time: stat.start_time, kind }) {
                            failed = Some(Error::TooManyThreads);
                        }
                        return;
                    }
                    if !status.pending.contains(signal) {
                        // What was sent went to an earlier thread of this id, or the thread is just
                        // taking it, or another copy of this crate took it.
                        entry.forget_sent();
                    }
                    let (cause, worth) = judge(&stat, &status, signal);
                    (Straggler::new(tid, cause, stat.comm.as_str()), worth)
                }
            };
            bearable = Some(bearable.map_or(worth, |least: Duration| least.min(worth)));
            missing.push(straggler);
            *missing_count += 1;
        })?;
        self.bearable = bearable.unwrap_or(GIVE_UP);
        failed.map_or(Ok(()), |error| Err(Halt::Failed(error)))
    }
}

/// What is seen of a thread.
#[expect(clippy::large_enum_variant, reason = "nothing may be allocated, and none is kept")]
enum Seen {
    Thread(TaskStat, TaskStatus),
    Gone,
    /// A security module forbids to look.
    Hidden,
}

fn read(dir: &TaskDir, tid: Tid) -> Result<Seen, ProcError> {
    let read = dir.stat(tid).and_then(|stat| Ok((stat, dir.status(tid)?)));
    match read {
        Ok((stat, status)) => Ok(Seen::Thread(stat, status)),
        Err(error) if error.is_gone() => Ok(Seen::Gone),
        Err(error) if matches!(error.errno(), Errno::EACCES | Errno::EPERM) => Ok(Seen::Hidden),
        Err(error) => Err(error),
    }
}

/// Why a thread does not come, and how long to wait for it while all others are held.
fn judge(stat: &TaskStat, status: &TaskStatus, signal: i32) -> (StragglerCause, Duration) {
    let runs = stat.state == 'R';
    // A thread that has never had a processor has all signals blocked still.
    let newborn = runs && status.voluntary_switches + status.involuntary_switches == 0;
    match stat.state {
        'T' => (StragglerCause::Stopped, GIVE_UP),
        't' => (StragglerCause::Traced, GIVE_UP),
        'D' => (StragglerCause::Uninterruptible, GIVE_UP),
        _ if newborn => (StragglerCause::Starved, Duration::MAX),
        _ if status.blocked.contains(signal) => {
            (StragglerCause::Blocked, if runs { GIVE_UP_ON_RUNNING } else { GIVE_UP })
        }
        // It only waits for a processor, which it gets the sooner the fewer threads run.
        _ if runs => (StragglerCause::Starved, Duration::MAX),
        _ => (StragglerCause::Starved, GIVE_UP),
    }
}

/// The threads that are still inside the operation before: they were held and let go, and have not left.
pub(crate) fn inside(dir: &TaskDir, hold: &Hold, elapsed: Duration) -> TimedOut {
    let joined = hold.joined();
    let stragglers = BLOCK.roll.inside(joined).map(|tid| {
        let (cause, name) = match read(dir, tid) {
            Ok(Seen::Thread(stat, _)) => {
                let cause = match stat.state {
                    'T' => StragglerCause::Stopped,
                    't' => StragglerCause::Traced,
                    'D' => StragglerCause::Uninterruptible,
                    _ => StragglerCause::Starved,
                };
                (cause, stat.comm)
            }
            _ => (StragglerCause::Unknown, Name::default()),
        };
        Straggler::new(tid, cause, name.as_str())
    });
    // If all have left meanwhile, there was at least one.
    TimedOut::new(stragglers, BLOCK.roll.inside(joined).count().max(1), elapsed)
}

fn takes_no_part(stat: &TaskStat) -> Option<Kind> {
    if stat.is_exiting() {
        Some(Kind::Exiting)
    } else if stat.is_kernel_worker() {
        let polls = stat.comm.as_str().starts_with("iou-sqp-");
        Some(if polls { Kind::Polling } else { Kind::Worker })
    } else {
        None
    }
}

impl ThreadGroup for Census<'_> {
    type Error = Halt;

    fn bystanders(&mut self) -> Result<u32, Halt> {
        let dir = self.dir;
        let mut failed = None;
        self.notes.bystanders.retain(|b| match unless_gone(dir.stat(b.tid)) {
            Ok(stat) => stat.is_some_and(|stat| b.is(&stat)),
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        failed.map_or(Ok(self.notes.bystanders.len as u32), |error| Err(error.into()))
    }

    fn population(&mut self) -> Result<u32, Halt> {
        self.population = self.dir.count()? as u32;
        Ok(self.population)
    }

    fn dead(&mut self, hold: &Hold, all: bool) -> u32 {
        if all {
            let pid = self.pid;
            // The main thread is counted also when it is dead: `look` makes it a bystander.
            self.dead += BLOCK
                .roll
                .bury(hold, hold.arrivals(), |tid| !life::is_here(tid) && life::is_gone(pid, tid));
        }
        self.dead
    }

    fn summon(&mut self, _hold: &Hold) -> Result<(), Halt> {
        if self.recall() { Ok(()) } else { self.list(|tid, _| BLOCK.table.entry(tid)) }
    }

    fn pass(&mut self, _hold: &Hold) -> Result<Pass, Halt> {
        if self.recall() {
            let (listed, awaited) = (self.population, self.population - 1);
            return Ok(Pass { listed, again: 0, awaited, acting: 0 });
        }
        if let Some(pass) = self.poll() {
            return Ok(pass);
        }
        let number = BLOCK.table.begin_listing();
        let mut pass = Pass { listed: 0, again: 0, awaited: 0, acting: 0 };
        self.list(|tid, takes_part| {
            let (entry, before) = BLOCK.table.list(tid, number)?;
            pass.listed += u32::from(before != number);
            pass.again += u32::from(before.wrapping_add(1) == number);
            if takes_part && !entry.has_acted() {
                let acting = entry.has_arrived();
                pass.acting += u32::from(acting);
                pass.awaited += u32::from(!acting);
            }
            Some(entry)
        })?;
        Ok(pass)
    }

    fn pause(&mut self, hold: &Hold, target: u32) -> Result<(), Halt> {
        let mut target = target;
        if self.refused > 0 {
            let arrivals = self.arrivals_at(hold);
            // The queue has room again when a handler has taken an instance out. If none of ours is in it,
            // or ours do not move, a signal to the whole process helps: it is never refused, and goes to
            // a thread that does not have it blocked, as held threads do.
            if arrivals >= self.sent || self.nap > NAP {
                // The kernel lets every process signal itself. If a filter refuses it, no thread comes,
                // which is an error in the end.
                let _ = signal::send_to_any(self.pid, self.signal);
            }
            target = arrivals + 1;
        }
        // As long as threads come, a new listing would only take the processor from them.
        while self.sleep(hold, target) {
            if self.arrivals >= target || self.refused > 0 || self.patience.left().is_none() {
                break;
            }
        }
        let late = self.patience.left().is_none();
        if late || self.unlooked > self.look_every {
            let before = Instant::now();
            self.look(hold)?;
            self.unlooked = Duration::ZERO;
            // Where many threads wait for a processor, looks must not take it all.
            self.look_every = LOOK.max(LOOK_SELDOM * before.elapsed());
            self.patience.tick(self.look_every);
            // The threads that were waited for have come meanwhile, or have ended, and none is left. The
            // wait for them does not count any more.
            let was_complete = self.complete;
            self.complete = self.notes.missing_count == 0;
            if self.complete && !was_complete {
                (self.idle, self.late) = (Duration::ZERO, late);
                return Ok(());
            }
        }
        // All may have come while the deadline passed: the count is taken once more.
        if late && !self.late && self.notes.missing_count == 0 {
            self.late = true;
            return Ok(());
        }
        // Where none is held, no thread waits for one that is.
        let stalled = self.idle > self.bearable && self.release != Release::AtOnce;
        match (stalled, late) {
            (true, _) => Err(Halt::Stalled),
            (false, true) => Err(Halt::TimedOut),
            (false, false) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigctx::sys::{self, SigSet};

    /// A thread that only waited for a processor was waited for, and came just before the look.
    #[test]
    fn a_thread_that_comes_just_before_the_look_is_counted() {
        let child = || {
            // The only thread of its process: none is missing.
            let (dir, mut notes) = (TaskDir::open().unwrap(), Box::new(Notes::new()));
            let mut patience = Patience::new(None);
            let ids = (sys::getpid(), sys::gettid(), signal::DEFAULT);
            let mut census = Census::new(&dir, &mut notes, &mut patience, ids, &[]).unwrap();
            let hold = Hold::new();
            let look = |census: &mut Census<'_>| {
                census.unlooked = 2 * census.look_every;
                census.pause(&hold, 1)
            };
            census.idle = 10 * GIVE_UP;
            assert!(look(&mut census).is_ok(), "let go with all threads there");
            assert!(census.idle.is_zero(), "the wait for those that came still counts");
            // All are there and the count says that they are not: that is waited for only once.
            census.idle = 10 * GIVE_UP;
            assert!(matches!(look(&mut census), Err(Halt::Stalled)));
        };
        assert_eq!(testkit::forked(child), 0);
    }

    /// A recall stands for a listing only where it has reached every thread that there is.
    #[test]
    fn only_a_recall_of_all_stands_for_a_listing() {
        let child = || {
            signal::install(signal::DEFAULT).unwrap();
            let start = || {
                let (tell, told) = std::sync::mpsc::channel();
                let (end, ends) = std::sync::mpsc::channel::<()>();
                let thread = std::thread::spawn(move || {
                    tell.send(sys::gettid()).unwrap();
                    let _ended = ends.recv();
                });
                (told.recv().unwrap(), thread, end)
            };
            let ((one, _one, _go_on), (two, last, end_last)) = (start(), start());
            let (ended, thread, end) = start();
            drop(end);
            thread.join().unwrap();
            let me = sys::gettid();
            let dir = TaskDir::open().unwrap();
            testkit::until("it is gone", || dir.count().unwrap() == 3);
            let mut notes = Box::new(Notes::new());
            let mut recall = |known: &[Tid], prepare: &dyn Fn(&mut Notes)| {
                BLOCK.table.clear();
                let mut patience = Patience::new(None);
                let ids = (sys::getpid(), me, signal::DEFAULT);
                let mut census = Census::new(&dir, &mut notes, &mut patience, ids, &[]).unwrap();
                census.notes.known.begin(known.iter().copied(), me);
                prepare(census.notes);
                census.population().unwrap();
                let all = census.recall();
                assert!(!census.recall(), "a recall of those that have a signal");
                let mut poll = || census.poll().map(|pass| (pass.listed, pass.again, pass.awaited));
                let polls = [(); 2].map(|()| poll());
                let seen = all && !known.contains(&ended) && life::is_here(me);
                assert_eq!(polls, [seen.then_some((3, 3, 2)); 2], "in place of a listing");
                census.notes.reset();
                (all, census.sent)
            };
            let plain = |_: &mut Notes| ();
            assert_eq!(recall(&[one, two], &plain), (true, 2));
            assert_eq!(recall(&[one, ended, two, one], &plain), (true, 2));
            assert_eq!(recall(&[one, me], &plain), (false, 1), "one is missing");
            assert_eq!(recall(&[one, ended], &plain), (false, 1), "one has ended");
            let leave_out = |notes: &mut Notes| {
                let left_out = Bystander { tid: two, start_time: 0, kind: Kind::Excluded };
                assert!(notes.bystanders.add(left_out));
            };
            assert_eq!(recall(&[one, two], &leave_out), (false, 0), "one takes no part");
            let miss = |notes: &mut Notes| {
                notes.note_missing(Straggler::new(two, StragglerCause::Blocked, ""));
            };
            assert_eq!(recall(&[one, two], &miss), (false, 0), "one may have a signal queued");
            BLOCK.table.clear();
            let mut patience = Patience::new(None);
            let ids = (sys::getpid(), me, signal::DEFAULT);
            let mut census = Census::new(&dir, &mut notes, &mut patience, ids, &[]).unwrap();
            census.notes.known.begin([one, two].into_iter(), me);
            census.population().unwrap();
            assert!(census.recall());
            drop(end_last);
            last.join().unwrap();
            testkit::until("it is gone", || dir.count().unwrap() == 2);
            assert_eq!(census.poll(), None, "one has ended since the recall");
        };
        assert_eq!(testkit::forked(child), 0);
    }

    /// All threads are let go soon only if a held thread may be what keeps the missing one.
    #[test]
    fn a_thread_that_waits_for_a_processor_is_no_stall() {
        let dir = TaskDir::open().unwrap();
        let stat = dir.stat(sys::gettid()).unwrap();
        let status = dir.status(sys::gettid()).unwrap();
        let judged = |state, blocked: &[i32], switches| {
            let (mut stat, mut status) = (stat, status);
            stat.state = state;
            status.blocked = blocked.iter().fold(SigSet::empty(), |set, &s| set.with(s));
            (status.voluntary_switches, status.involuntary_switches) = (0, switches);
            judge(&stat, &status, 33)
        };
        assert_eq!(judged('R', &[], 7), (StragglerCause::Starved, Duration::MAX));
        assert_eq!(judged('R', &[33], 0), (StragglerCause::Starved, Duration::MAX), "newborn");
        assert_eq!(judged('R', &[33], 7), (StragglerCause::Blocked, GIVE_UP_ON_RUNNING));
        assert_eq!(judged('S', &[33], 0), (StragglerCause::Blocked, GIVE_UP));
        assert_eq!(judged('S', &[], 7), (StragglerCause::Starved, GIVE_UP));
        assert_eq!(judged('D', &[], 7).0, StragglerCause::Uninterruptible);
    }

    #[test]
    fn a_thread_of_which_nothing_can_be_read_is_not_gone() {
        let child = || {
            let (dir, me) = (TaskDir::open().unwrap(), sys::gettid());
            assert!(matches!(unless_gone(dir.stat(Tid::MAX)), Ok(None)));
            assert!(matches!(unless_gone(dir.stat(me)), Ok(Some(_))));
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: reads the limit.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
            let error = unless_gone(dir.stat(me)).unwrap_err();
            assert_eq!(error.errno(), Errno::EMFILE);
        };
        assert_eq!(testkit::forked(child), 0);
    }

    #[test]
    fn the_next_thread_with_an_id_that_is_always_excluded_takes_part() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (go, goes) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                tell.send(sys::gettid()).unwrap();
                let _ended = goes.recv();
            });
            let tid = told.recv().unwrap();
            let left_out = || {
                let (dir, mut notes) = (TaskDir::open().unwrap(), Box::new(Notes::new()));
                let mut patience = Patience::new(None);
                let ids = (sys::getpid(), sys::gettid(), signal::DEFAULT);
                let census = Census::new(&dir, &mut notes, &mut patience, ids, &[]).unwrap();
                census.excluded().into_iter().flatten().collect::<Vec<_>>()
            };
            excluded::exclude_always(&[tid, Tid::MAX]).unwrap();
            assert_eq!(left_out(), [tid]);
            // As if this thread had begun later than the one that was named.
            excluded::pretend_it_began_earlier();
            assert!(left_out().is_empty());
            drop(go);
        });
    }
}
