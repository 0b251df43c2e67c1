//! Changing what the kernel keeps for each thread, on all of them or on none.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use allthreads::{AllThreads, Batch, Error, Report, StragglerCause};
use serde_json::json;
use sigctx::sys::{MaskHow, SigSet, sigprocmask};

use crate::cast::{Cast, PATIENCE};
use crate::report::{Section, human};

/// The user and group that a privileged demo becomes: nobody, on most systems.
const NOBODY: u32 = 65534;

/// What /proc says of one thread.
#[derive(Clone, PartialEq, Eq)]
struct Status {
    tid: String,
    name: String,
    no_new_privs: String,
    uid: String,
    groups: String,
}

/// Steps 5 and 6: change attributes on every thread; then try again while one thread is deaf.
pub(crate) fn change_all(cast: &Cast) -> Result<[Section; 2], Box<dyn std::error::Error>> {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    Ok([change(cast, root)?, refuse(root)?])
}

fn change(cast: &Cast, root: bool) -> Result<Section, Box<dyn std::error::Error>> {
    let mut section = Section::new("5. Change an attribute of every thread");
    let mut batch = Batch::new().no_new_privs();
    if root {
        batch = batch.set_groups(&[NOBODY]).set_resuid(Some(NOBODY), Some(NOBODY), Some(0));
    }
    let (done, _) = in_turn(|| AllThreads::new().batch(&batch));
    let done = done?;

    let after = statuses()?;
    section.text(format!(
        "{} on {} threads in one stop of {}",
        if root { "no_new_privs, setgroups, setresuid" } else { "no_new_privs" },
        done.threads,
        human(done.elapsed),
    ));
    section.table(&["tid", "name", "NoNewPrivs", "Uid", "Groups"], after.iter().map(Status::row));
    section.check("NoNewPrivs is 1 on every thread", after.iter().all(|s| s.no_new_privs == "1"));
    if root {
        let nobody = format!("{NOBODY} {NOBODY} 0 {NOBODY}");
        section.check("Uid is nobody's on every thread", after.iter().all(|s| s.uid == nobody));
        let groups = NOBODY.to_string();
        section
            .check("Groups is nobody's on every thread", after.iter().all(|s| s.groups == groups));
    } else {
        section.text("not root: setgroups and setresuid are left out");
    }
    section.check("more threads than were registered", done.threads > cast.members.len());
    section.data(json!({
        "threads": done.threads,
        "elapsed_ns": done.elapsed.as_nanos() as u64,
        "root": root,
        "status": after.iter().map(Status::to_json).collect::<Vec<_>>(),
    }));
    Ok(section)
}

fn refuse(root: bool) -> Result<Section, Box<dyn std::error::Error>> {
    let mut section = Section::new("6. The same while one thread blocks the signal");
    let deaf = Deaf::start()?;
    let before = statuses()?;
    // A name shows in /proc and needs no privilege; root also takes its user back.
    let name = [libc::PR_SET_NAME as usize, c"changed".as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: the kernel reads a static string.
    let mut batch = unsafe { Batch::new().call(libc::SYS_prctl, name) };
    if root {
        batch = batch.set_resuid(Some(0), Some(0), Some(0));
    }
    let mut timeout = Duration::from_millis(500);
    let start = Instant::now();
    let (error, took) = loop {
        let (refused, took) = in_turn(|| AllThreads::new().timeout(timeout).batch(&batch));
        match refused {
            Ok(_) => break (String::new(), took),
            // A machine so busy that others had no processor for that long: they need more time.
            Err(Error::TimedOut(late))
                if late.threads().all(|thread| thread.cause() == StragglerCause::Starved)
                    && start.elapsed() < PATIENCE =>
            {
                timeout *= 2;
            }
            Err(late @ Error::TimedOut(_)) => break (late.to_string(), took),
            // Not what was to be shown: it would be refused without the deaf thread, too.
            Err(other) => return Err(other.into()),
        }
    };
    let after = statuses()?;
    section.text(format!("refused after {}: {error}", human(took)));
    section.check("refused", !error.is_empty());
    section.check("in time", took < 2 * timeout);
    section.check("the error names the thread", error.contains(&deaf.tid.to_string()));
    section.check("the error names the cause", error.contains("block"));
    section.check("nothing was applied on any thread", same_threads(&before, &after));

    deaf.end();
    if root {
        let back = Batch::new().set_resuid(Some(0), Some(0), Some(0));
        let (done, _) = in_turn(|| AllThreads::new().batch(&back));
        let done = done?;
        let all = statuses()?.iter().all(|s| s.uid == "0 0 0 0");
        section.check("when it listens again, root is back on every thread", all);
        section.text(format!("setresuid on {} threads in {}", done.threads, human(done.elapsed)));
    }
    section.data(json!({ "error": error, "refused_after_ns": took.as_nanos() as u64 }));
    Ok(section)
}

/// Runs an operation, again as long as it is not its turn: on a busy machine threads that the one
/// before has let go may not have been scheduled since, and they must leave it first. Returns also
/// how long the last one took, without the time in which this thread was to run and had no processor.
fn in_turn(operation: impl Fn() -> Result<Report, Error>) -> (Result<Report, Error>, Duration) {
    let first = Instant::now();
    loop {
        let (start, without) = (Instant::now(), without_processor());
        let end = operation();
        let busy = matches!(end, Err(Error::Busy { .. }));
        if !busy || first.elapsed() > PATIENCE {
            let without = without_processor().saturating_sub(without);
            return (end, start.elapsed().saturating_sub(without));
        }
    }
}

/// For how long in its life the calling thread was to run, and others had the processors; zero where
/// the kernel does not say.
fn without_processor() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split_ascii_whitespace().nth(1).and_then(|ns| ns.parse().ok());
    Duration::from_nanos(waited.unwrap_or_default())
}

/// A thread that blocks every signal there is, the library's own included.
struct Deaf {
    tid: i32,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Deaf {
    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let over = Arc::new(AtomicBool::new(false));
        let (send, receive) = std::sync::mpsc::channel();
        let end = over.clone();
        let thread = std::thread::Builder::new().name("deaf".into()).spawn(move || {
            // By the raw system call: libc's own functions leave out the signals it keeps.
            sigprocmask(MaskHow::Set, &SigSet::full());
            send.send(sigctx::sys::gettid()).expect("the demo waits");
            while !end.load(SeqCst) {
                std::thread::park();
            }
        })?;
        Ok(Self { tid: receive.recv()?, over, thread })
    }

    fn end(self) {
        self.over.store(true, SeqCst);
        self.thread.thread().unpark();
        self.thread.join().expect("it only waits");
    }
}

/// What /proc says of each thread of the process.
fn statuses() -> Result<Vec<Status>, Box<dyn std::error::Error>> {
    let mut all = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let text = fs::read_to_string(task.path().join("status"))?;
        let fields: BTreeMap<_, _> = text.lines().filter_map(|l| l.split_once(':')).collect();
        let field = |name| {
            let value = fields.get(name).copied().unwrap_or("-");
            value.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        all.push(Status {
            tid: task.file_name().to_string_lossy().into_owned(),
            name: field("Name"),
            no_new_privs: field("NoNewPrivs"),
            uid: field("Uid"),
            groups: field("Groups"),
        });
    }
    Ok(all)
}

/// Whether every thread that is in both is unchanged.
fn same_threads(before: &[Status], after: &[Status]) -> bool {
    let unchanged = |now: &&Status| before.iter().any(|old| old == *now);
    after.iter().filter(unchanged).count() == before.len().min(after.len())
}

impl Status {
    fn row(&self) -> Vec<String> {
        [&self.tid, &self.name, &self.no_new_privs, &self.uid, &self.groups]
            .map(String::clone)
            .into()
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "tid": self.tid,
            "name": self.name,
            "no_new_privs": self.no_new_privs,
            "uid": self.uid,
            "groups": self.groups,
        })
    }
}
