//! What the workspace's tests share: a child process with a watchdog that tells what every thread
//! was doing when time ran out, and random numbers that a failure can be repeated with.
//!
//! A test that may hang, die of a signal or change the process for good (credentials, limits)
//! runs as a child: the test binary starts itself again with only that test selected.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const CHILD: &str = "TESTKIT_CHILD";

/// How a child process ended, with everything that it printed.
#[derive(Debug)]
pub struct Ended {
    /// The child's exit status.
    pub status: ExitStatus,
    /// Standard output and standard error, one after the other.
    pub output: String,
}

/// Runs `body` in a child process of its own and panics unless the child succeeds in time.
///
/// `test` is the full path of the calling test as the test harness prints it, for example
/// `"refuses_masked_signal"` in an integration test or `"module::tests::name"` in a unit test.
/// When `deadline` passes, the state of every thread of the child is printed and the child killed.
///
/// # Panics
///
/// When the child fails or is late.
pub fn in_child(test: &str, deadline: Duration, body: impl FnOnce()) {
    if let Some(ended) = child(test, deadline, body) {
        assert!(ended.status.success(), "child {}:\n{}", ended.status, ended.output);
        // Shown by the harness only when the test is run with its output on.
        print!("{}", ended.output);
    }
}

/// Like [`in_child`], but hands the parent the child's end, to be judged there. Returns `None`
/// in the child, after `body`.
///
/// # Panics
///
/// When the child cannot be started or is late.
pub fn child(test: &str, deadline: Duration, body: impl FnOnce()) -> Option<Ended> {
    if env::var(CHILD).is_ok_and(|name| name == test) {
        body();
        return None;
    }
    let exe = env::current_exe().expect("path of the test binary");
    let mut child = Command::new(exe)
        .args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(CHILD, test)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the test binary again");
    let readers = [
        reader(child.stdout.take().expect("piped")),
        reader(child.stderr.take().expect("piped")),
    ];
    let status = wait(&mut child, deadline);
    let output = readers.map(|r| r.join().expect("reader")).concat();
    match status {
        Ok(status) => {
            let ran = output.contains("running 1 test");
            assert!(ran, "no test is called `{test}` in this binary:\n{output}");
            Some(Ended { status, output })
        }
        Err(threads) => panic!("child late after {deadline:?}; its threads:\n{threads}\n{output}"),
    }
}

fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        // A child killed by the watchdog closes its pipes; what was read until then is kept.
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Waits for the child; past the deadline, kills it and returns what its threads were doing.
fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus, String> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for the child") {
            return Ok(status);
        }
        if start.elapsed() > deadline {
            let threads = thread_table(child.id());
            child.kill().expect("kill the child");
            child.wait().expect("reap the child");
            return Err(threads);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A table of all threads of a process: tid, name, state, what it waits in, masked and pending
/// signals. Fields that cannot be read are `-`.
#[must_use]
pub fn thread_table(pid: u32) -> String {
    let mut table = format!(
        "{:>8} {:<16} {:<14} {:<24} {:<17} {:<17} syscall\n",
        "tid", "name", "state", "wchan", "blocked", "pending"
    );
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return table };
    for task in tasks.flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.map_or("-", |v| v.trim_start_matches(':').trim()).to_owned()
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{:>8} {:<16} {:<14} {:<24} {:<17} {:<17} {}",
            task.file_name().to_string_lossy(),
            field("Name"),
            field("State"),
            read("wchan"),
            field("SigBlk"),
            field("SigPnd"),
            read("syscall").trim(),
        );
    }
    table
}

/// A small seeded generator (xorshift64*), so that a failing run can be repeated.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Starts from `seed`; zero is taken as one.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Starts from the environment's `SEED`, else from the clock, and says which it was.
    #[must_use]
    pub fn from_env() -> Self {
        let seed = env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("clock after 1970");
            now.as_nanos() as u64
        });
        eprintln!("SEED={seed}");
        Self::new(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    ///
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// The count a stress test runs: `full`, or what the environment's `STRESS` says in per cent.
#[must_use]
pub fn budget(full: u64) -> u64 {
    let percent = env::var("STRESS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    (full * percent / 100).max(1)
}
