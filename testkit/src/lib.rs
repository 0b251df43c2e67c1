//! What the workspace's tests share: a child process with a watchdog that tells what every thread
//! was doing when time ran out, and random numbers that a failure can be repeated with.
//!
//! A test that may hang, die of a signal or change the process irrevocably (credentials, limits)
//! runs as a child: the test binary starts itself again with only that test selected.
//!
//! # Environment
//!
//! | variable | says | without it |
//! |---|---|---|
//! | `STRESS` | the size of stress tests in per cent, see [`budget`] | 100 |
//! | `SEED` | where [`Rng::from_env`] starts | the clock |
//! | `TESTKIT_RUNNER` | the words that start a program built for the tests' target, see [`command`] | it starts on its own |
//! | `TESTKIT_PATIENCE` | how many times longer watchdogs wait, see [`patience`] | 1 |
//! | `TESTKIT_HASTE` | what the time of [`child`] and [`until`] is divided by, where a hang is likely | 1 |

mod early;
mod masks;

pub use early::{early_tasks, note_early_tasks};
pub use masks::proc_shows_mask;

use std::env;
use std::ffi::OsStr;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

const CHILD: &str = "TESTKIT_CHILD";
const RUNNER: &str = "TESTKIT_RUNNER";
const PATIENCE: &str = "TESTKIT_PATIENCE";
const HASTE: &str = "TESTKIT_HASTE";

/// How long the output of an ended child may stay open.
const OUTPUT_GRACE: Duration = Duration::from_secs(10);

/// How a child process ended, with everything that it printed.
#[derive(Debug)]
pub struct Ended {
    /// The child's exit status.
    pub status: ExitStatus,
    /// Standard output and standard error, one after the other.
    pub output: String,
}

/// Runs `body` in a child process of its own and panics unless that comes to its end in time.
///
/// `test` is the full path of the calling test as the test harness prints it, for example
/// `"refuses_masked_signal"` in an integration test or `"module::tests::name"` in a unit test.
/// When `timeout`, with [`patience`], has passed, the state of every thread of the child is printed and
/// the child killed.
///
/// # Panics
///
/// When the child fails, exits in the middle or is late.
pub fn in_child(test: &str, timeout: Duration, body: impl FnOnce()) {
    if let Some(ended) = child(test, timeout, body) {
        // A child that exits in the middle has not come to the end of `body`.
        let whole = ended.output.contains("test result: ok");
        assert!(ended.status.success() && whole, "child {}:\n{}", ended.status, ended.output);
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
pub fn child(test: &str, timeout: Duration, body: impl FnOnce()) -> Option<Ended> {
    if is_child(test) {
        body();
        return None;
    }
    let timeout = watchdog(timeout);
    let exe = env::current_exe().expect("path of the test binary");
    let mut child = command(exe)
        .args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(CHILD, test)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the test binary again");
    let readers =
        [reader(child.stdout.take().expect("piped")), reader(child.stderr.take().expect("piped"))];
    let status = wait(&mut child, timeout);
    // A process that the child left behind may hold the pipes forever.
    let output = readers.map(|r| {
        let open = "[output still open: the child left a process behind]".to_owned();
        r.recv_timeout(OUTPUT_GRACE).unwrap_or(open)
    });
    let output = output.concat();
    match status {
        Ok(status) => {
            let ran = output.contains("running 1 test");
            assert!(ran, "no test is called `{test}` in this binary:\n{output}");
            Some(Ended { status, output })
        }
        Err(threads) => panic!("child late after {timeout:?}; its threads:\n{threads}\n{output}"),
    }
}

/// Whether this process is the child in which the body of `test` runs: for what a test has to do
/// before `main`, on the main thread, which the harness keeps for itself.
#[must_use]
pub fn is_child(test: &str) -> bool {
    env::var(CHILD).is_ok_and(|name| name == test)
}

/// How long to wait for what is expected to come: `time` on a machine of its own. Where programs
/// are emulated beside a build, the environment's `TESTKIT_PATIENCE` says by how much it is to be
/// multiplied.
///
/// # Panics
///
/// When `TESTKIT_PATIENCE` is not a number.
#[must_use]
pub fn patience(time: Duration) -> Duration {
    time * number(PATIENCE).map_or(1, |times| times as u32)
}

/// How long before a test is told to hang.
fn watchdog(time: Duration) -> Duration {
    patience(time) / number(HASTE).map_or(1, |part| part as u32)
}

/// A command that starts a program built for the tests' own target: the test binary itself, or an
/// example. For a program of the machine that the tests run on, such as `sh`, take
/// [`Command::new`].
///
/// Under an emulator the kernel cannot start such a program on its own. The environment's
/// `TESTKIT_RUNNER` then has the words that must stand before it, `qemu-s390x -cpu max` for
/// example, separated by blanks.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    through(emulator().as_deref(), program.as_ref())
}

fn through(runner: Option<&str>, program: &OsStr) -> Command {
    let mut words = runner.unwrap_or_default().split_ascii_whitespace();
    let Some(emulator) = words.next() else { return Command::new(program) };
    let mut command = Command::new(emulator);
    command.args(words).arg(program);
    command
}

/// The words of the emulator that the tests run under; `None` when they run natively.
#[must_use]
pub fn emulator() -> Option<String> {
    env::var(RUNNER).ok().filter(|words| !words.trim().is_empty())
}

/// Waits for what other threads are about to do.
///
/// # Panics
///
/// When it has not come after 20 seconds, with [`patience`].
pub fn until(what: &str, mut come: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !come() {
        assert!(begin.elapsed() < watchdog(Duration::from_secs(20)), "never: {what}");
        thread::yield_now();
    }
}

/// Whether a thread of this process sleeps in the kernel now, such as in a futex wait.
#[must_use]
pub fn is_asleep(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything.
    stat.rsplit(") ").next().is_some_and(|state| state.starts_with('S'))
}

/// Runs `body` in a child of `fork` and returns the child's wait status: 0 unless `body` panics.
///
/// # Panics
///
/// When there can be no child.
pub fn forked(body: impl FnOnce()) -> i32 {
    // SAFETY: the child runs `body` and ends; libc readies malloc for it.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no child: {}", std::io::Error::last_os_error());
    if child == 0 {
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
        // SAFETY: ends the child without its parent's exit handlers.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    let mut status = 0;
    // A handler without SA_RESTART may cut the wait short.
    // SAFETY: writes one int.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINTR), "{error}");
    }
    status
}

/// A user id for the calling process alone: limits that the kernel counts by user then count no
/// other process, not even the same test on another architecture.
#[must_use]
pub fn lonely_user() -> u32 {
    1_000_000_000 + std::process::id()
}

/// Says that the test cannot run here, and why; the test returns after it.
///
/// The line is read by `cargo xtask`, which counts the test as skipped and lists the reason. Keep the
/// reason free of what changes from run to run: equal ones are grouped.
///
/// ```
/// fn has_a_debugger() {
///     if std::process::Command::new("gdb").arg("--version").output().is_err() {
///         return testkit::skip("gdb is not installed");
///     }
/// }
/// # has_a_debugger();
/// ```
pub fn skip(reason: impl Display) {
    // In one line whatever the reason is: what follows would not be read.
    println!("skipped: {}", reason.to_string().replace('\n', " "));
}

fn reader(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (done, text) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        // A child killed by the watchdog closes its pipes; what was read until then is kept.
        let _ = from.read_to_end(&mut text);
        // The receiver is gone when the pipe was given up.
        let _ = done.send(String::from_utf8_lossy(&text).into_owned());
    });
    text
}

/// Waits for the child; past the timeout, kills it and returns what its threads were doing.
fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus, String> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for the child") {
            return Ok(status);
        }
        if start.elapsed() > timeout {
            let threads = stop_tree(child.id());
            child.wait().expect("reap the child");
            return Err(threads);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a process that this one started, and all its descendants. Returns the tables of what
/// their threads were doing.
#[must_use]
pub fn stop_tree(pid: u32) -> String {
    let mut tables = String::new();
    let mut found = vec![pid];
    let mut next = 0;
    // Each is looked at and stopped before its children are listed: it can start no more of them.
    while let Some(&pid) = found.get(next) {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(tables, "process {pid} {}\n{}", comm.trim(), thread_table(pid));
        send(pid, libc::SIGSTOP);
        let children = children(pid).into_iter().filter(|c| !found.contains(c));
        found.extend(children.collect::<Vec<_>>());
        next += 1;
    }
    for pid in found {
        send(pid, libc::SIGKILL);
    }
    tables
}

/// The children of every thread of a process.
fn children(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

#[expect(clippy::disallowed_methods, reason = "the test kit stands below `sigctx::sys`")]
fn send(pid: u32, signal: i32) {
    // SAFETY: kill touches no memory of ours. Its failure means that the process is gone, or that
    // it changed its credentials; then its watchdog, or its parent's end, has to stop it.
    unsafe { libc::kill(pid.cast_signed(), signal) };
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
    ///
    /// # Panics
    ///
    /// When `SEED` is not a number.
    #[must_use]
    pub fn from_env() -> Self {
        let seed = number("SEED").unwrap_or_else(|| {
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
///
/// # Panics
///
/// When `STRESS` is not a number.
#[must_use]
pub fn budget(full: u64) -> u64 {
    (full * number("STRESS").unwrap_or(100) / 100).max(1)
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_success_and_failure_are_told_apart() {
        let here = "tests::child_success_and_failure_are_told_apart";
        let ended = child(here, Duration::from_secs(30), || panic!("on purpose"));
        if let Some(ended) = ended {
            assert!(!ended.status.success());
            assert!(ended.output.contains("on purpose"), "{}", ended.output);
        }
    }

    #[test]
    fn child_that_exits_in_the_middle_has_failed() {
        let here = "tests::child_that_exits_in_the_middle_has_failed";
        let left = std::panic::catch_unwind(|| {
            in_child(here, Duration::from_secs(30), || std::process::exit(0));
        });
        assert!(left.is_err());
    }

    #[test]
    fn late_child_is_stopped_and_its_threads_are_listed() {
        let here = "tests::late_child_is_stopped_and_its_threads_are_listed";
        let late = std::panic::catch_unwind(|| {
            in_child(here, Duration::from_millis(500), || {
                let name = thread::Builder::new().name("sleeper".into());
                name.spawn(|| thread::sleep(Duration::from_mins(1))).expect("spawn");
                Command::new("sleep").arg("60").status().expect("sleep runs");
            });
        });
        let message = *late.expect_err("the child is late").downcast::<String>().expect("text");
        assert!(message.contains("sleeper"), "{message}");
        // Its own child was found and stopped too.
        assert!(message.lines().any(|l| l.starts_with("process") && l.ends_with("sleep")));
        assert!(!message.contains("output still open"), "{message}");
    }

    #[test]
    #[should_panic(expected = "no test is called `tests::of_another_name`")]
    fn misspelt_test_name_is_refused() {
        in_child("tests::of_another_name", Duration::from_secs(30), || ());
    }

    #[test]
    fn programs_start_through_the_runner() {
        let words = |command: &Command| {
            let mut words = vec![command.get_program().to_owned()];
            words.extend(command.get_args().map(OsStr::to_owned));
            words
        };
        let program = OsStr::new("/a b/test");
        assert_eq!(words(&through(None, program)), ["/a b/test"]);
        assert_eq!(words(&through(Some("  "), program)), ["/a b/test"]);
        let emulated = through(Some("qemu-arm  -cpu max"), program);
        assert_eq!(words(&emulated), ["qemu-arm", "-cpu", "max", "/a b/test"]);
    }

    #[test]
    fn a_reason_to_skip_is_one_line_and_the_test_passes() {
        let here = "tests::a_reason_to_skip_is_one_line_and_the_test_passes";
        if let Some(ended) = child(here, Duration::from_secs(30), || skip("no\nright")) {
            assert!(ended.status.success());
            assert!(ended.output.contains("skipped: no right\n"), "{}", ended.output);
        }
    }

    #[test]
    fn patience_multiplies_the_timeout() {
        let here = "tests::patience_multiplies_the_timeout";
        if env::var(PATIENCE).is_ok_and(|times| times == "100") {
            // Late for the timeout as it is written, in time for what it is multiplied to.
            in_child(here, Duration::from_millis(300), || thread::sleep(Duration::from_secs(1)));
            return;
        }
        let status = command(env::current_exe().expect("path of the test binary"))
            .args([here, "--exact"])
            .env(PATIENCE, "100")
            .status();
        assert!(status.expect("the test binary starts").success());
    }

    #[test]
    fn rng_repeats_from_its_seed() {
        let numbers = |seed| {
            let mut rng = Rng::new(seed);
            [rng.next_u64(), rng.next_u64(), rng.below(10)]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
