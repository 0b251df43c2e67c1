//! Who there is, who has been signalled, who is missing and why: the edge of `gather` that reads
//! `/proc/self/task` and sends signals.
//!
//! Nothing here allocates: while threads are held one of them may own the allocator's lock.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::time::Instant;

use sigctx::sys::{self, Errno, Tid};
use threadreg::procfs::{ProcError, TaskDir, TaskStat};

use crate::block::BLOCK;
use crate::error::{Error, Straggler, Why};
use crate::excluded;
use crate::gather::Os;
use crate::hold::Hold;
use crate::signal::{self, Kernel};

/// The most threads that take no part.
const BYSTANDERS: usize = 128;

/// No arrival for so long: look at who is missing.
const LOOK: Duration = Duration::from_millis(5);
/// No arrival for so long: let everybody go, and try again later. A held thread may own what the
/// missing one waits for.
const GIVE_UP: Duration = Duration::from_millis(20);
/// The first and the longest wait between two looks at the count.
const NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(4);

/// Why a thread takes no part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Dead, or on its way: a leader that called `pthread_exit` stays so until the process ends.
    Exiting,
    /// The kernel's own worker in this process (`io_uring`, vhost).
    Worker,
    /// The caller vouches for it.
    Excluded,
}

#[derive(Clone, Copy)]
struct Bystander {
    tid: Tid,
    /// Tells a thread from another that got its id later.
    start_time: u64,
    kind: Kind,
}

impl Bystander {
    /// Whether what the kernel says of its id still is this thread, and still a bystander. The
    /// time of the start alone does not tell: it counts ticks, and an id may be used again in one.
    fn is(&self, stat: &TaskStat) -> bool {
        stat.start_time == self.start_time
            && match self.kind {
                Kind::Exiting => stat.is_exiting(),
                Kind::Worker => stat.is_kernel_worker(),
                Kind::Excluded => true,
            }
    }
}

/// A list in place.
pub(crate) struct Few<T, const N: usize> {
    items: [Option<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> Few<T, N> {
    const fn new() -> Self {
        Self { items: [const { None }; N], len: 0 }
    }

    fn push(&mut self, item: T) -> bool {
        let Some(slot) = self.items.get_mut(self.len) else { return false };
        *slot = Some(item);
        self.len += 1;
        true
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().take(self.len).flatten()
    }

    fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut kept = 0;
        for index in 0..self.len {
            let Some(Some(item)) = self.items.get(index).copied() else { continue };
            if keep(&item) {
                if let Some(slot) = self.items.get_mut(kept) {
                    *slot = Some(item);
                }
                kept += 1;
            }
        }
        self.len = kept;
    }
}

impl Few<Bystander, BYSTANDERS> {
    /// The one way in. Each thread is here once, however often it was met or named: each entry is
    /// subtracted from the size of the thread group.
    fn add(&mut self, bystander: Bystander) -> bool {
        self.retain(|known| known.tid != bystander.tid);
        self.push(bystander)
    }
}

/// The owner's working memory: static, because a handler's stack may be small.
pub(crate) struct Notes {
    buffer: [u8; 16 * 1024],
    bystanders: Few<Bystander, BYSTANDERS>,
    /// Who was missing when it was last looked at, and how many there were.
    pub(crate) missing: Few<Straggler, 32>,
    pub(crate) missing_count: usize,
}

impl Notes {
    pub(crate) const fn new() -> Self {
        Self { buffer: [0; _], bystanders: Few::new(), missing: Few::new(), missing_count: 0 }
    }

    #[cfg(test)]
    pub(crate) fn note_missing(&mut self, thread: Straggler) {
        self.missing.push(thread);
        self.missing_count += 1;
    }

    /// Forgets who was missing: everybody came, or the process is another one.
    pub(crate) fn forget_missing(&mut self) {
        self.missing.clear();
        self.missing_count = 0;
    }

    /// Forgets the threads of another process.
    pub(crate) fn reset(&mut self) {
        self.bystanders.clear();
        self.forget_missing();
    }

    pub(crate) fn bystanders_of(&self, kind: Kind) -> usize {
        self.bystanders.iter().filter(|b| b.kind == kind).count()
    }
}

/// Why a gathering ended without everybody.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Somebody does not come; it may help to let go and try again.
    Stalled,
    /// The deadline has passed before everybody had the time to come.
    Late,
    /// It would be the same again.
    Failed(Error),
}

impl From<ProcError> for Halt {
    fn from(error: ProcError) -> Self {
        Self::Failed(Error::NoProc(error))
    }
}

/// One gathering's view of the process.
pub(crate) struct Census<'a> {
    dir: &'a mut TaskDir,
    notes: &'a mut Notes,
    pid: i32,
    me: Tid,
    signal: i32,
    /// `None`: never.
    deadline: Option<Instant>,
    /// The deadline had passed when nobody was missing: the count was taken once more.
    late: bool,
    /// Signals that the kernel took, and threads for which its queue was full in the last listing.
    sent: u32,
    refused: u32,
    arrivals: u32,
    last_arrival: Instant,
    last_look: Instant,
    nap: Duration,
}

impl<'a> Census<'a> {
    pub(crate) fn new(
        dir: &'a mut TaskDir,
        notes: &'a mut Notes,
        (pid, me, signal): (i32, Tid, i32),
        excluded: &[Tid],
        deadline: Option<Instant>,
    ) -> Result<Self, Error> {
        notes.bystanders.retain(|b| b.kind != Kind::Excluded);
        // The caller takes part whatever it asks for.
        let now = excluded.iter().map(|&tid| (tid, None));
        let always = excluded::always().map(|(tid, start)| (tid, Some(start)));
        for (tid, start) in now.chain(always).filter(|&(tid, _)| tid != me) {
            let Some(stat) = unless_gone(dir.stat(tid)).map_err(Error::NoProc)? else { continue };
            // The next owner of the id: nobody vouched for it.
            if start.is_some_and(|start| start != stat.start_time as u32) {
                continue;
            }
            let kind = Kind::Excluded;
            if !notes.bystanders.add(Bystander { tid, start_time: stat.start_time, kind }) {
                return Err(Error::TooManyThreads);
            }
        }
        let now = Instant::now();
        Ok(Self {
            dir,
            notes,
            pid,
            me,
            signal,
            deadline,
            late: false,
            sent: 0,
            refused: 0,
            arrivals: 0,
            last_arrival: now,
            last_look: now,
            nap: NAP,
        })
    }

    /// From now on threads can arrive.
    pub(crate) fn begin(&mut self) {
        let now = Instant::now();
        (self.last_arrival, self.last_look) = (now, now);
    }

    /// The threads that are left out for the caller: those that exist, each once.
    pub(crate) fn excluded(&self) -> impl Iterator<Item = Tid> {
        let bystanders = self.notes.bystanders.iter();
        bystanders.filter(|b| b.kind == Kind::Excluded).map(|b| b.tid)
    }

    pub(crate) fn notes(&mut self) -> &mut Notes {
        self.notes
    }

    /// Looks at everybody who is missing: who cannot take part becomes a bystander, the others are
    /// noted with a reason.
    fn look(&mut self) -> Result<(), Halt> {
        self.notes.forget_missing();
        let Notes { buffer, bystanders, missing, missing_count } = &mut *self.notes;
        let mut failed = None;
        // The listing's own descriptor is busy.
        let reader = TaskDir::open()?;
        self.dir.for_each_tid(buffer, |tid| {
            if tid == self.me || bystanders.iter().any(|b| b.tid == tid) {
                return;
            }
            let Some(entry) = BLOCK.table.entry(tid) else { return };
            if entry.has_arrived() {
                return;
            }
            let both = unless_gone(reader.stat(tid))
                .and_then(|stat| Ok(stat.zip(unless_gone(reader.status(tid))?)));
            let (stat, status) = match both {
                Ok(Some(both)) => both,
                // Gone meanwhile: the next count shows it.
                Ok(None) => return,
                Err(error) => {
                    failed = Some(Error::NoProc(error));
                    return;
                }
            };
            if let Some(kind) = takes_no_part(&stat) {
                if !bystanders.add(Bystander { tid, start_time: stat.start_time, kind }) {
                    failed = Some(Error::TooManyThreads);
                }
                return;
            }
            if !status.pending.contains(self.signal) {
                // What was sent went to an earlier thread of this id, or is being taken just now.
                entry.forget_sent();
            }
            let why = match stat.state {
                'T' => Why::Stopped,
                't' => Why::Traced,
                'D' => Why::Uninterruptible,
                _ if status.blocked.contains(self.signal) => Why::Blocked,
                _ => Why::Starved,
            };
            missing.push(Straggler::new(tid, why, stat.comm.as_str()));
            *missing_count += 1;
        })?;
        failed.map_or(Ok(()), |error| Err(Halt::Failed(error)))
    }
}

/// `None` when there is no such thread; that something cannot be read says nothing about threads.
pub(crate) fn unless_gone<T>(read: Result<T, ProcError>) -> Result<Option<T>, ProcError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

fn takes_no_part(stat: &TaskStat) -> Option<Kind> {
    if stat.is_exiting() {
        Some(Kind::Exiting)
    } else if stat.is_kernel_worker() {
        Some(Kind::Worker)
    } else {
        None
    }
}

impl Os for Census<'_> {
    type Error = Halt;

    fn bystanders(&mut self) -> Result<u32, Halt> {
        let dir = &*self.dir;
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
        Ok(self.dir.count()? as u32)
    }

    fn summon(&mut self, _hold: &Hold) -> Result<(), Halt> {
        let Notes { buffer, bystanders, missing, missing_count } = &mut *self.notes;
        let mut failed = None;
        // More were missing than are remembered: it may be any.
        let anybody = *missing_count > missing.len;
        let reader = if missing.len > 0 { Some(TaskDir::open()?) } else { None };
        let queued = |tid| {
            let Some(reader) = &reader else { return Ok(false) };
            let status = unless_gone(reader.status(tid))?;
            Ok(status.is_some_and(|status| status.pending.contains(self.signal)))
        };
        self.refused = 0;
        self.dir.for_each_tid(buffer, |tid| {
            if tid == self.me || bystanders.iter().any(|b| b.tid == tid) {
                return;
            }
            let Some(entry) = BLOCK.table.entry(tid) else {
                failed = Some(Error::TooManyThreads);
                return;
            };
            if entry.needs_no_signal() {
                return;
            }
            // One of an earlier attempt is as good as a new one, and a thread that has the signal
            // blocked for long must not fill the queue.
            if anybody || missing.iter().any(|m| m.tid() == tid) {
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
            match signal::send(self.pid, tid, self.signal) {
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

    fn pause(&mut self, hold: &Hold, target: u32) -> Result<(), Halt> {
        let mut target = target;
        if self.refused > 0 {
            let arrivals = hold.arrivals();
            // The queue has room again when a handler has taken an instance out. When none of ours
            // is in it, or those that are do not move: a signal to the process as a whole is never
            // refused, and goes to some thread that does not have it blocked, as held threads do.
            if arrivals >= self.sent || self.nap > NAP {
                BLOCK.broadcast.store(1, Ordering::Relaxed);
                // The kernel lets every process signal itself; were it refused by a filter, nobody
                // would come, which is an error in the end.
                let _ = sys::kill(self.pid, self.signal);
            }
            target = arrivals + 1;
        }
        hold.await_arrivals(&Kernel, target, self.nap);
        let now = Instant::now();
        let arrivals = hold.arrivals();
        if arrivals == self.arrivals {
            self.nap = (self.nap * 2).min(LONGEST_NAP);
        } else {
            self.arrivals = arrivals;
            self.last_arrival = now;
            self.nap = NAP;
        }
        let idle = now - self.last_arrival;
        let late = self.deadline.is_some_and(|deadline| now > deadline);
        let stalled = idle > GIVE_UP;
        if stalled || late || idle > LOOK && now - self.last_look > LOOK {
            self.last_look = now;
            self.look()?;
        }
        // They may all have come while the deadline passed: that is worth one more count.
        if late && !self.late && self.notes.missing_count == 0 {
            self.late = true;
            return Ok(());
        }
        match (stalled, late) {
            (true, _) => Err(Halt::Stalled),
            (false, true) => Err(Halt::Late),
            (false, false) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bystander(kind: Kind) -> (Bystander, TaskStat) {
        let tid = sys::gettid();
        let stat = TaskDir::open().unwrap().stat(tid).unwrap();
        (Bystander { tid, start_time: stat.start_time, kind }, stat)
    }

    #[test]
    fn a_thread_is_subtracted_once_however_often_it_is_added() {
        let mut few = Few::new();
        for kind in [Kind::Exiting, Kind::Excluded, Kind::Excluded] {
            assert!(few.add(bystander(kind).0));
        }
        assert_eq!(few.len, 1);
        assert!(few.iter().all(|b| b.kind == Kind::Excluded));
    }

    /// The id of a dead thread, used again within one tick of the clock.
    #[test]
    fn a_live_thread_with_a_bystanders_id_is_no_bystander() {
        for kind in [Kind::Exiting, Kind::Worker] {
            let (bystander, stat) = bystander(kind);
            assert!(!bystander.is(&stat), "{kind:?}");
        }
        let (mut bystander, stat) = bystander(Kind::Excluded);
        assert!(bystander.is(&stat));
        bystander.start_time += 1;
        assert!(!bystander.is(&stat));
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
    fn the_next_owner_of_an_id_that_is_always_excluded_takes_part() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (go, goes) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                tell.send(sys::gettid()).unwrap();
                let _ended = goes.recv();
            });
            let tid = told.recv().unwrap();
            let left_out = || {
                let (mut dir, mut notes) = (TaskDir::open().unwrap(), Box::new(Notes::new()));
                let ids = (sys::getpid(), sys::gettid(), signal::DEFAULT);
                let census = Census::new(&mut dir, &mut notes, ids, &[], None).unwrap();
                census.excluded().collect::<Vec<_>>()
            };
            excluded::exclude_always(&[tid, Tid::MAX]).unwrap();
            assert_eq!(left_out(), [tid]);
            // As if this thread had begun later than the one that was named.
            excluded::pretend_it_began_earlier();
            assert_eq!(left_out(), []);
            drop(go);
        });
    }
}
