//! Threads as the kernel's files under `/proc` show them. No other module of this crate reads `/proc`.
//!
//! [`TaskDir`] holds the process's directory of threads open. Its link count is the exact number of
//! threads, its entries are their ids, and each entry has files about one thread. [`TaskDir`] makes raw
//! system calls with buffers on the stack, so it may be used in a handler, and while all other threads
//! are stopped anywhere.
//!
//! Facts that callers rely on:
//!
//! - The count is exact at one moment. It includes a main thread that has exited (state `Z`, there
//!   until the process ends), threads that are exiting, and the kernel's workers in the process
//!   (`io_uring`, vhost).
//! - A listing is not a snapshot: when threads exit while it is read, living threads can be skipped.
//!   Only the count tells whether a listing is complete; see [`os_threads`].
//! - An open [`TaskDir`] stays usable after `chroot`, and after a change of credentials that hides
//!   `/proc`.
//!
//! This file is long because everything that is read about a thread is here.
//!
//! # References
//!
//! `proc_pid_task(5)`, `proc_pid_stat(5)`, `proc_pid_status(5)`; `fs/proc/base.c`:
//! `proc_task_getattr`, `proc_task_readdir`.

mod doing;
pub(crate) mod maps;
mod namespace;
mod read;
mod threads;

use core::ffi::{CStr, c_int};
use core::fmt;
use core::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use sigctx::sys::{self, Errno, SigSet, Tid};

pub use doing::{InKernel, Served, SyscallNumber};
pub use threads::{OsThread, OsThreads, dump, os_threads};

use crate::name::Name;
use read::{Fd, Fields, Lines, TaskPath};

/// How often the directory is read before a listing is returned as incomplete.
const ROUNDS: usize = 64;
/// Bytes of the buffer on the stack into which the directory is read: 32 entries.
const READ: usize = 1024;

/// The thread is exiting.
pub const PF_EXITING: u32 = 0x4;
/// The thread is a worker of `io_uring`.
pub const PF_IO_WORKER: u32 = 0x10;
/// The thread was made by the kernel inside this process.
pub const PF_USER_WORKER: u32 = 0x4000;
/// The thread is a kernel thread.
pub const PF_KTHREAD: u32 = 0x20_0000;

/// The calling process's directory of threads, held open.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe): raw system calls, buffers of up to 1 KiB on the stack,
/// no allocation. [`for_each_tid`](Self::for_each_tid) is if its `visit` is.
#[doc(alias = "/proc/self/task")]
#[derive(Debug)]
pub struct TaskDir {
    dir: Fd,
    pid: i32,
}

impl TaskDir {
    /// Opens `/proc/self/task`.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`, or no file descriptor left. Also when `/proc` is that of an outer pid
    /// namespace, which has other ids for the same threads.
    ///
    /// # Examples
    ///
    /// ```
    /// use threadreg::procfs::TaskDir;
    ///
    /// let tasks = TaskDir::open()?;
    /// println!("{} threads", tasks.count()?);
    /// let mut buffer = [0; 1024];
    /// tasks.for_each_tid(&mut buffer, |tid| println!("{tid}"))?;
    /// # Ok::<(), threadreg::procfs::ProcError>(())
    /// ```
    pub fn open() -> Result<Self, ProcError> {
        Self::open_in(libc::AT_FDCWD, c"/proc/self/task")
    }

    /// Opens `self/task` below a `/proc` that was opened before: for use after `chroot`, or in a child
    /// that cannot reach `/proc` any more.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::fd::AsFd;
    /// use threadreg::procfs::TaskDir;
    ///
    /// let proc = std::fs::File::open("/proc")?;
    /// // Here the process may change its root, or fork.
    /// let tasks = TaskDir::open_at(proc.as_fd())?;
    /// println!("{} threads", tasks.count()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_at(proc: BorrowedFd<'_>) -> Result<Self, ProcError> {
        Self::open_in(proc.as_raw_fd(), c"self/task")
    }

    fn open_in(place: c_int, path: &CStr) -> Result<Self, ProcError> {
        let error = |errno| ProcError { what: What::TaskDir, tid: None, errno };
        let dir = Fd::open(place, path, libc::O_DIRECTORY).map_err(error)?;
        let pid = sys::getpid();
        if namespace::has_other_ids(&dir, pid).map_err(error)? {
            return Err(ProcError { what: What::Namespace, tid: None, errno: Errno::ESRCH });
        }
        Ok(Self { dir, pid })
    }

    /// The number of threads of the process, exact at some moment during the call.
    ///
    /// # Errors
    ///
    /// `ESTALE` in the child of a fork, where the directory is still the parent's.
    pub fn count(&self) -> Result<usize, ProcError> {
        let error = |errno| ProcError { what: What::Count, tid: None, errno };
        self.check().map_err(error)?;
        let links = self.dir.links().map_err(error)?;
        // `.` and `..` of the directory itself.
        links.checked_sub(2).ok_or_else(|| error(Errno::EIO))
    }

    /// Calls `visit` with each thread id that one reading of the directory shows.
    ///
    /// Some threads may be missing if any exited meanwhile; see the [module](self). The kernel writes
    /// entries into `buffer`, 32 bytes a thread; it must have at least 64 bytes. Two readings at the
    /// same time take entries from each other.
    ///
    /// # Errors
    ///
    /// `ESTALE` in the child of a fork; `EINVAL` when the buffer is too small for one entry.
    pub fn for_each_tid(
        &self,
        buffer: &mut [u8],
        mut visit: impl FnMut(Tid),
    ) -> Result<(), ProcError> {
        let error = |errno| ProcError { what: What::List, tid: None, errno };
        self.check().map_err(error)?;
        self.dir.rewind().map_err(error)?;
        loop {
            let entries = self.dir.entries(buffer).map_err(error)?;
            if entries.is_empty() {
                return Ok(());
            }
            read::for_each_number(entries, &mut visit);
        }
    }

    /// Writes the ids of all threads to `tids`, in order, and tells whether the listing is complete.
    ///
    /// Reads the directory until two readings in a row show the same threads and agree with the
    /// kernel's count before and after. Gives up after 64 readings.
    ///
    /// # Errors
    ///
    /// As [`for_each_tid`](Self::for_each_tid).
    ///
    /// # Examples
    ///
    /// ```
    /// use threadreg::procfs::TaskDir;
    ///
    /// let mut tids = [0; 256];
    /// let listing = TaskDir::open()?.list(&mut tids)?;
    /// println!("all: {}, {:?}", listing.is_complete(), listing.tids());
    /// # Ok::<(), threadreg::procfs::ProcError>(())
    /// ```
    pub fn list<'t>(&mut self, tids: &'t mut [Tid]) -> Result<Listing<'t>, ProcError> {
        let room = tids.len();
        let (mut shown, mut count, mut complete) = (0, 0, false);
        for _ in 0..ROUNDS {
            count = self.count()?;
            shown = self.take_down(tids)?;
            let tids = tids.get_mut(..shown).unwrap_or_default();
            complete = shown == count && self.shows_again(tids)? && self.count()? == count;
            if complete || count > room {
                break;
            }
        }
        let tids = tids.get(..shown).unwrap_or_default();
        Ok(Listing { tids, count, complete })
    }

    /// Writes the ids that one reading shows to `tids`, in order; returns how many it wrote.
    fn take_down(&mut self, tids: &mut [Tid]) -> Result<usize, ProcError> {
        let mut used = 0;
        let mut places = tids.iter_mut();
        self.for_each_tid(&mut [0; READ], |tid| {
            if let Some(place) = places.next() {
                *place = tid;
                used += 1;
            }
        })?;
        tids.get_mut(..used).unwrap_or_default().sort_unstable();
        Ok(used)
    }

    /// Whether another reading shows exactly these threads, each once.
    fn shows_again(&mut self, tids: &mut [Tid]) -> Result<bool, ProcError> {
        let mut left = tids.len();
        let mut strange = false;
        // A known id that is shown again is marked by its sign, which the search ignores.
        let read = self.for_each_tid(&mut [0; READ], |tid| {
            match tids.binary_search_by_key(&tid, |known| known.abs()).map(|at| tids.get_mut(at)) {
                Ok(Some(known)) if *known > 0 => {
                    *known = -*known;
                    left -= 1;
                }
                _ => strange = true,
            }
        });
        for known in tids {
            *known = known.abs();
        }
        read.map(|()| !strange && left == 0)
    }

    /// Reads `task/<tid>/stat`.
    ///
    /// # Errors
    ///
    /// [`ProcError::is_gone`] when there is no such thread in this process.
    pub fn stat(&self, tid: Tid) -> Result<TaskStat, ProcError> {
        let error = |errno| ProcError { what: What::Stat, tid: Some(tid), errno };
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let text = self.read(tid, b"stat", &mut buffer).map_err(error)?;
        TaskStat::parse(text).ok_or_else(|| error(Errno::EIO))
    }

    /// Reads `task/<tid>/status`.
    ///
    /// # Errors
    ///
    /// [`ProcError::is_gone`] when there is no such thread in this process.
    pub fn status(&self, tid: Tid) -> Result<TaskStatus, ProcError> {
        let error = |errno| ProcError { what: What::Status, tid: Some(tid), errno };
        self.check().map_err(error)?;
        let path = TaskPath::new(tid, b"status");
        let file = Fd::open(self.dir.raw(), path.as_c_str(), 0).map_err(error)?;
        let mut status = TaskStatus::default();
        // Line by line: the line of supplementary groups can be longer than any buffer on the stack.
        let mut lines = Lines::new(&file);
        while let Some(line) = lines.next().map_err(error)? {
            status.take(line);
        }
        Ok(status)
    }

    /// The kernel function that the thread sleeps in. Empty when the thread runs, and when the kernel
    /// does not tell.
    ///
    /// # Errors
    ///
    /// [`ProcError::is_gone`] when there is no such thread in this process.
    pub fn wchan(&self, tid: Tid) -> Result<Name, ProcError> {
        let error = |errno| ProcError { what: What::Wchan, tid: Some(tid), errno };
        let mut buffer = [MaybeUninit::uninit(); 64];
        match self.read(tid, b"wchan", &mut buffer) {
            Ok(b"0") => Ok(Name::default()),
            Ok(text) => Ok(Name::from_bytes(text)),
            // A kernel without a table of its functions has no such file for any thread.
            Err(Errno::ENOENT) => self.stat(tid).map(|_| Name::default()),
            Err(errno) => Err(error(errno)),
        }
    }

    fn read<'b>(
        &self,
        tid: Tid,
        file: &[u8],
        buffer: &'b mut [MaybeUninit<u8>],
    ) -> Result<&'b [u8], Errno> {
        self.check()?;
        let path = TaskPath::new(tid, file);
        Fd::open(self.dir.raw(), path.as_c_str(), 0)?.read_all(buffer)
    }

    fn check(&self) -> Result<(), Errno> {
        if self.pid == sys::getpid() { Ok(()) } else { Err(Errno::new(libc::ESTALE)) }
    }
}

/// The threads of the process; from [`TaskDir::list`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug)]
pub struct Listing<'t> {
    tids: &'t [Tid],
    count: usize,
    complete: bool,
}

impl<'t> Listing<'t> {
    /// The ids, in order. If the listing is not complete, they are those of the last reading.
    #[must_use]
    pub fn tids(&self) -> &'t [Tid] {
        self.tids
    }

    /// The kernel's count of threads. If it is larger than the number of ids, the buffer was too small
    /// or the listing is not complete.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the ids were those of all threads of the process at one moment.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

/// One thread's `stat`.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStat {
    /// The name that the kernel has for the thread.
    pub comm: Name,
    /// `R` running, `S` sleeping, `D` in an uninterruptible sleep, `T` stopped, `t` traced, `Z` exited,
    /// `X` gone.
    pub state: char,
    /// The kernel's `PF_` flags, such as [`PF_EXITING`].
    pub flags: u32,
    /// When the thread began, in clock ticks since boot. Two threads that had the same id differ in it.
    pub start_time: u64,
}

impl TaskStat {
    fn parse(text: &[u8]) -> Option<Self> {
        // The name may contain parentheses; what follows the last one does not.
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')')?;
        let comm = Name::from_bytes(text.get(open + 1..close)?);
        let mut fields = Fields::new(text.get(close + 1..)?);
        let state = fields.next()?.first().copied()? as char;
        // Fields as `proc_pid_stat(5)` counts them: state is 3, flags 9, starttime 22.
        let flags = read::number(fields.nth(9 - 4)?)? as u32;
        let start_time = read::number(fields.nth(22 - 10)?)?;
        Some(Self { comm, state, flags, start_time })
    }

    /// Whether the thread will never return to user code: it has exited, or is exiting.
    #[must_use]
    pub fn is_exiting(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') || self.flags & PF_EXITING != 0
    }

    /// Whether the thread is the kernel's own. It has no user code, so no signal is ever handled on it.
    #[must_use]
    pub fn is_kernel_worker(&self) -> bool {
        self.flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0
    }
}

/// One thread's `status`: the fields about signals, tracing, credentials and context switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// The name that the kernel has for the thread.
    pub name: Name,
    /// User ids: real, effective, saved, file system.
    pub uid: [u32; 4],
    /// Group ids: real, effective, saved, file system.
    pub gid: [u32; 4],
    /// The thread that traces it; 0 if none does.
    pub tracer: Tid,
    /// Signals pending for this thread.
    pub pending: SigSet,
    /// Signals pending for the process.
    pub shared_pending: SigSet,
    /// Signals that the thread blocks.
    pub blocked: SigSet,
    /// Supplementary groups.
    pub groups: Groups,
    /// Capabilities that survive `execve` if the file has them too.
    pub inheritable_capabilities: u64,
    /// Capabilities that the thread may make effective.
    pub permitted_capabilities: u64,
    /// Effective capabilities.
    pub effective_capabilities: u64,
    /// The most that `execve` can give.
    pub bounding_capabilities: u64,
    /// Capabilities that survive any `execve` without privileges of its own.
    pub ambient_capabilities: u64,
    /// Whether `PR_SET_NO_NEW_PRIVS` is on.
    pub no_new_privs: bool,
    /// The mode of seccomp: 0 off, 1 strict, 2 filters.
    pub seccomp: u32,
    /// How many seccomp filters there are; 0 before Linux 5.9.
    pub seccomp_filters: u32,
    /// How often the thread gave up its processor.
    pub voluntary_switches: u64,
    /// How often it lost its processor to another thread. When both counts are 0 it has not begun to
    /// run, or has not stopped running since.
    pub involuntary_switches: u64,
}

/// Supplementary groups of a thread, up to 64.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    first: [u32; Groups::ROOM],
    len: usize,
    complete: bool,
}

impl Groups {
    const ROOM: usize = 64;
    const NONE: Self = Self { first: [0; Self::ROOM], len: 0, complete: true };

    fn parse(value: &[u8], whole_line: bool) -> Self {
        let mut groups = Self { complete: whole_line, ..Self::NONE };
        for field in Fields::new(value) {
            let place = groups.first.get_mut(groups.len);
            let (Some(place), Some(group)) = (place, read::number(field)) else {
                groups.complete = false;
                break;
            };
            *place = group as u32;
            groups.len += 1;
        }
        groups
    }

    /// The groups in the kernel's order, at most 64.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        self.first.get(..self.len).unwrap_or_default()
    }

    /// Whether these are all groups of the thread.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        list.entries(self.as_slice());
        if self.complete { list.finish() } else { list.finish_non_exhaustive() }
    }
}

impl Default for TaskStatus {
    fn default() -> Self {
        Self {
            name: Name::default(),
            uid: [0; 4],
            gid: [0; 4],
            tracer: 0,
            pending: SigSet::empty(),
            shared_pending: SigSet::empty(),
            blocked: SigSet::empty(),
            groups: Groups::NONE,
            inheritable_capabilities: 0,
            permitted_capabilities: 0,
            effective_capabilities: 0,
            bounding_capabilities: 0,
            ambient_capabilities: 0,
            no_new_privs: false,
            seccomp: 0,
            seccomp_filters: 0,
            voluntary_switches: 0,
            involuntary_switches: 0,
        }
    }
}

impl TaskStatus {
    fn take(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|&b| b == b':') else { return };
        let (key, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match key {
            b"Name" => self.name = Name::from_bytes(value),
            b"Uid" => self.uid = ids(value),
            b"Gid" => self.gid = ids(value),
            b"TracerPid" => self.tracer = count(value) as Tid,
            b"SigPnd" => self.pending = read::signals(value),
            b"ShdPnd" => self.shared_pending = read::signals(value),
            b"SigBlk" => self.blocked = read::signals(value),
            b"Groups" => self.groups = Groups::parse(value, line.len() < read::LINE),
            b"CapInh" => self.inheritable_capabilities = read::hexadecimal(value),
            b"CapPrm" => self.permitted_capabilities = read::hexadecimal(value),
            b"CapEff" => self.effective_capabilities = read::hexadecimal(value),
            b"CapBnd" => self.bounding_capabilities = read::hexadecimal(value),
            b"CapAmb" => self.ambient_capabilities = read::hexadecimal(value),
            b"NoNewPrivs" => self.no_new_privs = value == b"1",
            b"Seccomp" => self.seccomp = count(value) as u32,
            b"Seccomp_filters" => self.seccomp_filters = count(value) as u32,
            b"voluntary_ctxt_switches" => self.voluntary_switches = count(value),
            b"nonvoluntary_ctxt_switches" => self.involuntary_switches = count(value),
            _ => {}
        }
    }
}

fn count(value: &[u8]) -> u64 {
    read::number(value).unwrap_or_default()
}

fn ids(value: &[u8]) -> [u32; 4] {
    let mut ids = [0; 4];
    for (id, field) in ids.iter_mut().zip(Fields::new(value)) {
        *id = read::number(field).unwrap_or_default() as u32;
    }
    ids
}

/// A file of `/proc` could not be read.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcError {
    what: What,
    tid: Option<Tid>,
    errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    TaskDir,
    Namespace,
    Count,
    List,
    Stat,
    Status,
    Wchan,
    Syscall,
    Schedstat,
}

impl ProcError {
    /// The kernel's error. `ESRCH` if `/proc` is that of an outer pid namespace.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Whether the thread asked about does not exist.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.tid.is_some() && matches!(self.errno, Errno::ENOENT | Errno::ESRCH)
    }
}

impl fmt::Display for ProcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            What::TaskDir => "cannot open /proc/self/task",
            What::Namespace => "/proc is that of another pid namespace, with other thread ids",
            What::Count => "cannot count threads",
            What::List => "cannot list threads",
            What::Stat => "cannot read stat",
            What::Status => "cannot read status",
            What::Wchan => "cannot read wchan",
            What::Syscall => "cannot read syscall",
            What::Schedstat => "cannot read schedstat",
        })?;
        if let Some(tid) = self.tid {
            write!(f, " of thread {tid}")?;
        }
        write!(f, ": {}", self.errno)
    }
}

impl core::error::Error for ProcError {}

#[cfg(test)]
mod tests {
    use super::{TaskStat, TaskStatus};
    use sigctx::sys::SigSet;

    #[test]
    fn stat_survives_a_name_with_parentheses_and_spaces() {
        let text = b"17 (a) b (c) S 1 2 3 4 5 4194368 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let stat = TaskStat::parse(text).expect("parses");
        assert_eq!(stat.comm.as_str(), "a) b (c");
        assert_eq!((stat.state, stat.flags, stat.start_time), ('S', 4_194_368, 4711));
        assert_eq!(TaskStat::parse(b"17 (a"), None);
        assert_eq!(TaskStat::parse(b"17 (a) S 1"), None);
    }

    #[test]
    fn status_lines_are_taken_apart() {
        let mut status = TaskStatus::default();
        for line in [
            "Name:\tx y",
            "TracerPid:\t77",
            "Uid:\t1\t2\t3\t4",
            "Groups:\t4 24 100 ",
            "SigBlk:\t0000000100000001",
            "CapBnd:\t000001ffffffffff",
            "CapPrm:\t0000000000000003",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "Seccomp_filters:\t3",
            "nonvoluntary_ctxt_switches:\t17",
        ] {
            status.take(line.as_bytes());
        }
        assert_eq!(status.groups.as_slice(), [4, 24, 100]);
        assert!(status.groups.is_complete());
        assert_eq!(status.bounding_capabilities, (1 << 41) - 1);
        assert_eq!((status.permitted_capabilities, status.effective_capabilities), (3, 0));
        assert_eq!((status.seccomp, status.seccomp_filters), (2, 3));
        assert_eq!((status.involuntary_switches, status.voluntary_switches), (17, 0));
        // Groups that do not fit make the list incomplete.
        let many = format!("Groups:\t{}", "1 ".repeat(65));
        status.take(many.as_bytes());
        assert_eq!(status.groups.as_slice(), [1; 64]);
        assert!(!status.groups.is_complete());
        assert_eq!(status.name.as_str(), "x y");
        assert_eq!((status.uid, status.tracer), ([1, 2, 3, 4], 77));
        assert_eq!(status.blocked, SigSet::of(1).with(33));
        assert!(status.no_new_privs);
    }
}
