//! Who there is, who has been signalled, who is missing and why: the edge of `gather` that reads
//! `/proc/self/task` and sends signals.
//!
//! Nothing here allocates: while threads are held one of them may own the allocator's lock.

use core::sync::atomic::{AtomicI32, Ordering};
use core::time::Duration;
use std::time::Instant;

use sigctx::sys::{self, Errno, Tid};
use threadreg::procfs::{ProcError, TaskDir, TaskStat};

use crate::block::BLOCK;
use crate::error::{Error, Straggler, Why};
use crate::gather::Os;
use crate::hold::Hold;
use crate::signal::{self, Kernel};

/// The most threads that a caller may exclude.
pub const MAX_EXCLUDED: usize = 16;

/// No arrival for so long: look at who is missing.
const LOOK: Duration = Duration::from_millis(5);
/// No arrival for so long: let everybody go, and try again later. A held thread may own what the
/// missing one waits for.
const GIVE_UP: Duration = Duration::from_millis(20);
/// The first and the longest wait between two looks at the count.
const NAP: Duration = Duration::from_micros(100);
const LONGEST_NAP: Duration = Duration::from_millis(4);

/// Threads that the caller vouches for, where the handler finds them. Written before the gate
/// opens, read after.
pub(crate) struct Excluded([AtomicI32; MAX_EXCLUDED]);

impl Excluded {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicI32::new(0) }; MAX_EXCLUDED])
    }

    pub(crate) fn set(&self, tids: &[Tid]) {
        let tids = tids.iter().copied().chain(core::iter::repeat(0));
        for (slot, tid) in self.0.iter().zip(tids) {
            slot.store(tid, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(crate) fn contains(&self, tid: Tid) -> bool {
        // Not `any`: a plain loop over plain loads, for the handler.
        for slot in &self.0 {
            if slot.load(Ordering::Relaxed) == tid {
                return true;
            }
        }
        false
    }
}

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

/// The owner's working memory: static, because a handler's stack may be small.
pub(crate) struct Notes {
    buffer: [u8; 16 * 1024],
    bystanders: Few<Bystander, 128>,
    /// Who was missing when it was last looked at, and how many there were.
    pub(crate) missing: Few<Straggler, 32>,
    pub(crate) missing_count: usize,
}

impl Notes {
    pub(crate) const fn new() -> Self {
        Self { buffer: [0; _], bystanders: Few::new(), missing: Few::new(), missing_count: 0 }
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
    deadline: Instant,
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
        deadline: Instant,
    ) -> Result<Self, Error> {
        notes.bystanders.retain(|b| b.kind != Kind::Excluded);
        for &tid in excluded {
            let Ok(stat) = dir.stat(tid) else { continue };
            let kind = Kind::Excluded;
            if !notes.bystanders.push(Bystander { tid, start_time: stat.start_time, kind }) {
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
            sent: 0,
            refused: 0,
            arrivals: 0,
            last_arrival: now,
            last_look: now,
            nap: NAP,
        })
    }

    /// Looks at everybody who is missing: who cannot take part becomes a bystander, the others are
    /// noted with a reason.
    fn look(&mut self) -> Result<(), Halt> {
        let Notes { buffer, bystanders, missing, missing_count } = &mut *self.notes;
        missing.clear();
        *missing_count = 0;
        let mut room = true;
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
            // Gone meanwhile: the next count shows it.
            let Ok(stat) = reader.stat(tid) else { return };
            if let Some(kind) = takes_no_part(&stat) {
                room &= bystanders.push(Bystander { tid, start_time: stat.start_time, kind });
                return;
            }
            let Ok(status) = reader.status(tid) else { return };
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
        if room { Ok(()) } else { Err(Halt::Failed(Error::TooManyThreads)) }
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
        self.notes
            .bystanders
            .retain(|b| dir.stat(b.tid).is_ok_and(|stat| stat.start_time == b.start_time));
        Ok(self.notes.bystanders.len as u32)
    }

    fn population(&mut self) -> Result<u32, Halt> {
        Ok(self.dir.count()? as u32)
    }

    fn summon(&mut self, _hold: &Hold) -> Result<(), Halt> {
        let Notes { buffer, bystanders, missing, .. } = &mut *self.notes;
        let mut failed = None;
        let reader = if missing.len > 0 { Some(TaskDir::open()?) } else { None };
        let queued = |tid| {
            let status = reader.as_ref().and_then(|reader| reader.status(tid).ok());
            status.is_some_and(|status| status.pending.contains(self.signal))
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
            if missing.iter().any(|m| m.tid() == tid) && queued(tid) {
                entry.set_sent();
                return;
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
                let _cannot_fail = sys::kill(self.pid, self.signal);
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
        let hopeless = idle > GIVE_UP || now > self.deadline;
        if hopeless || idle > LOOK && now - self.last_look > LOOK {
            self.last_look = now;
            self.look()?;
        }
        if hopeless { Err(Halt::Stalled) } else { Ok(()) }
    }
}
