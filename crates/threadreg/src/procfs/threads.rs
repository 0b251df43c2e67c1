//! All threads of the process, whoever made them.

use core::fmt;

use super::{ProcError, TaskDir, TaskStat};
use crate::name::Name;
use crate::thread_ref::{ThreadRef, threads};

/// How often the directory is read before the listing is given out as incomplete.
const ROUNDS: usize = 64;

/// One thread as the kernel sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OsThread {
    /// The kernel's id of the thread.
    pub tid: i32,
    /// The thread in the registry; `None` for a foreign one.
    pub registered: Option<ThreadRef>,
}

/// The threads of the process; from [`os_threads`].
#[derive(Clone, Debug)]
pub struct OsThreads {
    threads: Vec<OsThread>,
    complete: bool,
}

impl OsThreads {
    /// Whether these were all threads of the process at one moment. `false`: threads came and went
    /// too fast, and these are the ones seen last.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The threads, ordered by id.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn as_slice(&self) -> &[OsThread] {
        &self.threads
    }

    /// Walks the threads, ordered by id.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
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
/// Reads the directory until a reading agrees with the kernel's count before and after it and with
/// the reading before, or gives up; see [`OsThreads::is_complete`].
///
/// # Signal safety
///
/// Not async-signal-safe: allocates. A handler can use [`TaskDir`].
///
/// # Errors
///
/// When `/proc` cannot be read.
///
/// # Examples
///
/// ```
/// let all = threadreg::os_threads()?;
/// let foreign = all.iter().filter(|thread| thread.registered.is_none()).count();
/// println!("{} threads, {foreign} foreign", all.as_slice().len());
/// # Ok::<(), threadreg::procfs::ProcError>(())
/// ```
pub fn os_threads() -> Result<OsThreads, ProcError> {
    list(&mut TaskDir::open()?)
}

fn list(dir: &mut TaskDir) -> Result<OsThreads, ProcError> {
    let mut buffer = [0; 8192];
    let mut last: Vec<i32> = Vec::new();
    let mut complete = false;
    for _ in 0..ROUNDS {
        let before = dir.count()?;
        let mut tids = Vec::with_capacity(before);
        dir.for_each_tid(&mut buffer, |tid| tids.push(tid))?;
        tids.sort_unstable();
        complete = tids.len() == before && tids == last && dir.count()? == before;
        last = tids;
        if complete {
            break;
        }
    }
    let mut known: Vec<_> = threads().filter_map(|thread| Some((thread.tid()?, thread))).collect();
    known.sort_unstable_by_key(|&(tid, _)| tid);
    let registered = |tid| {
        let place = known.binary_search_by_key(&tid, |&(tid, _)| tid).ok()?;
        known.get(place).map(|&(_, thread)| thread)
    };
    let threads =
        last.into_iter().map(|tid| OsThread { tid, registered: registered(tid) }).collect();
    Ok(OsThreads { threads, complete })
}

/// A table of all threads, for people: id, registered or foreign, name, state, what it sleeps in.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates.
///
/// # Errors
///
/// When `/proc` cannot be read. What cannot be read of a single thread is left blank.
///
/// # Examples
///
/// ```
/// print!("{}", threadreg::dump()?);
/// # Ok::<(), threadreg::procfs::ProcError>(())
/// ```
pub fn dump() -> Result<impl fmt::Display, ProcError> {
    let mut dir = TaskDir::open()?;
    let list = list(&mut dir)?;
    let rows = list
        .iter()
        .map(|thread| Row {
            thread: *thread,
            stat: dir.stat(thread.tid).ok(),
            wchan: dir.wchan(thread.tid).unwrap_or_default(),
        })
        .collect();
    Ok(Dump { rows, complete: list.complete })
}

struct Row {
    thread: OsThread,
    stat: Option<TaskStat>,
    wchan: Name,
}

struct Dump {
    rows: Vec<Row>,
    complete: bool,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>8} {:<10} {:<32} {:<5} wchan", "tid", "registered", "name", "state")?;
        for Row { thread, stat, wchan } in &self.rows {
            let registered = thread.registered.map_or("no", |_| "yes");
            let name = thread
                .registered
                .map(|thread| thread.name())
                .filter(|name| !name.as_str().is_empty())
                .or(stat.map(|stat| stat.comm))
                .unwrap_or_default();
            let state = stat.map_or(' ', |stat| stat.state);
            let line = format!(
                "{:>8} {registered:<10} {name:<32} {state:<5} {}",
                thread.tid,
                wchan.as_str()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        if !self.complete {
            writeln!(f, "(threads come and go: some may be missing)")?;
        }
        Ok(())
    }
}
