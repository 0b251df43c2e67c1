//! All threads of the process, registered or not.

use core::fmt;

use sigctx::sys::Tid;

use super::{ProcError, TaskDir, TaskStat};
use crate::name::Name;
use crate::thread_ref::{ThreadRef, threads};

/// One thread as the kernel sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OsThread {
    /// The kernel's id of the thread.
    pub tid: Tid,
    /// The thread in the registry; `None` for an unregistered thread.
    pub registered: Option<ThreadRef>,
}

/// The threads of the process; from [`os_threads`].
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
#[derive(Clone, Debug)]
pub struct OsThreads {
    threads: Vec<OsThread>,
    complete: bool,
}

impl OsThreads {
    /// Whether these were all threads of the process at one moment. `false`: threads came and went too
    /// fast, and these are the ones seen last.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The threads, ordered by id.
    #[must_use]
    pub fn as_slice(&self) -> &[OsThread] {
        &self.threads
    }

    /// Walks the threads, ordered by id.
    pub fn iter(&self) -> core::slice::Iter<'_, OsThread> {
        self.threads.iter()
    }
}

impl<'a> IntoIterator for &'a OsThreads {
    type Item = &'a OsThread;
    type IntoIter = core::slice::Iter<'a, OsThread>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Lists all threads of the process, registered or not.
///
/// Reads `/proc/self/task` until two readings agree with each other and with the kernel's count, or
/// gives up; see [`OsThreads::is_complete`].
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates. A handler can use [`TaskDir`].
///
/// # Errors
///
/// When `/proc` cannot be read.
///
/// # Examples
///
/// ```
/// let all = threadreg::os_threads()?;
/// let unregistered = all.iter().filter(|thread| thread.registered.is_none()).count();
/// println!("{} threads, {unregistered} unregistered", all.as_slice().len());
/// # Ok::<(), threadreg::procfs::ProcError>(())
/// ```
pub fn os_threads() -> Result<OsThreads, ProcError> {
    list(&mut TaskDir::open()?)
}

fn list(dir: &mut TaskDir) -> Result<OsThreads, ProcError> {
    let mut tids = Vec::new();
    let (shown, complete) = loop {
        // Room for threads that come meanwhile.
        let room = dir.count()? * 2 + 16;
        tids.resize(room, 0);
        let listing = dir.list(&mut tids)?;
        if listing.is_complete() || listing.count() <= room {
            break (listing.tids().len(), listing.is_complete());
        }
    };
    tids.truncate(shown);
    let mut known: Vec<_> = threads().filter_map(|thread| Some((thread.tid()?, thread))).collect();
    known.sort_unstable_by_key(|&(tid, _)| tid);
    let registered = |tid| {
        let place = known.binary_search_by_key(&tid, |&(tid, _)| tid).ok()?;
        known.get(place).map(|&(_, thread)| thread)
    };
    let threads =
        tids.into_iter().map(|tid| OsThread { tid, registered: registered(tid) }).collect();
    Ok(OsThreads { threads, complete })
}

/// A table of all threads for people to read: id, whether it is registered, name, state, and the kernel
/// function that it sleeps in.
///
/// If `/proc` cannot be read, the table shows the registered threads and the error. What cannot be read
/// of a single thread is left blank.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe heap): it allocates.
///
/// # Examples
///
/// ```
/// print!("{}", threadreg::dump());
/// ```
#[must_use]
pub fn dump() -> impl fmt::Display {
    read_all().unwrap_or_else(|error| Dump {
        rows: threads()
            .map(|thread| Row {
                tid: thread.tid(),
                registered: Some(thread),
                stat: None,
                wchan: Name::default(),
            })
            .collect(),
        missing: Some(Missing::NoProc(error)),
    })
}

fn read_all() -> Result<Dump, ProcError> {
    let mut dir = TaskDir::open()?;
    let list = list(&mut dir)?;
    let rows = list
        .iter()
        .map(|&OsThread { tid, registered }| Row {
            tid: Some(tid),
            registered,
            stat: dir.stat(tid).ok(),
            wchan: dir.wchan(tid).unwrap_or_default(),
        })
        .collect();
    Ok(Dump { rows, missing: (!list.complete).then_some(Missing::Some) })
}

struct Row {
    tid: Option<Tid>,
    registered: Option<ThreadRef>,
    stat: Option<TaskStat>,
    wchan: Name,
}

enum Missing {
    /// Threads came and went too fast.
    Some,
    /// All threads that are not registered.
    NoProc(ProcError),
}

struct Dump {
    rows: Vec<Row>,
    missing: Option<Missing>,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>8} {:<10} {:<32} {:<5} wchan", "tid", "registered", "name", "state")?;
        for Row { tid, registered, stat, wchan } in &self.rows {
            let tid = tid.map_or("-".to_owned(), |tid| tid.to_string());
            let name = registered
                .map(|thread| thread.name())
                .filter(|name| !name.as_str().is_empty())
                .or(stat.map(|stat| stat.comm))
                .unwrap_or_default();
            let registered = registered.map_or("no", |_| "yes");
            let state = stat.map_or(' ', |stat| stat.state);
            let line =
                format!("{tid:>8} {registered:<10} {name:<32} {state:<5} {}", wchan.as_str());
            writeln!(f, "{}", line.trim_end())?;
        }
        match &self.missing {
            None => Ok(()),
            Some(Missing::Some) => writeln!(f, "(threads come and go: some may be missing)"),
            Some(Missing::NoProc(error)) => writeln!(f, "(registered threads only: {error})"),
        }
    }
}
