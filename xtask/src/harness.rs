//! Test binaries: which there are, what is in them, and one test in a process of its own, natively
//! or through a runner such as an emulator.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::counts::{self, Counts};
use crate::report::Progress;
use crate::run::{self, Ended};

/// As in `.config/nextest.toml`: 10 periods of a minute.
const TEST_LIMIT: Duration = Duration::from_mins(10);
const BUILD_LIMIT: Duration = Duration::from_hours(1);

/// How much of a failed test's output is repeated at the end.
const LAST_LINES: usize = 20;

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binary {
    /// `sigctx`, `sigctx::storm`, `xtask::bin/xtask`: as nextest calls them.
    id: String,
    path: PathBuf,
    package: PathBuf,
}

/// A test in a binary.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    binary: Binary,
    pub(crate) name: String,
    /// Whether `#[ignore]` keeps it from being run: most are started by other tests.
    ignored: bool,
}

impl Test {
    /// `sigctx::storm name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{} {}", self.binary.id, self.name)
    }

    /// Stress tests load every CPU; beside each other they would only measure the scheduler.
    pub(crate) fn is_stress(&self) -> bool {
        self.name.contains("stress")
    }
}

#[cfg(test)]
impl Test {
    /// A test of no binary.
    pub(crate) fn named(name: &str) -> Self {
        let binary =
            Binary { id: "none".to_owned(), path: PathBuf::new(), package: PathBuf::new() };
        Self { binary, name: name.to_owned(), ignored: false }
    }
}

/// How binaries are started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launch {
    /// The words before the binary; none natively.
    pub(crate) runner: Vec<String>,
    /// Set for the tests.
    pub(crate) env: Vec<(String, String)>,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// It cannot be run here, and why.
    Skipped(String),
    Failed {
        /// `signal: 6 (SIGABRT)`.
        how: String,
        output: String,
    },
}

impl Verdict {
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        *match self {
            Self::Passed => &mut counts.passed,
            Self::Skipped(_) => &mut counts.skipped,
            Self::Failed { .. } => &mut counts.failed,
        } = 1;
        counts
    }
}

/// What is set for tests, whatever starts them. `stress` is the size of stress tests in per cent, where
/// it is not to be inherited.
pub(crate) fn environment(stress: Option<&str>) -> Vec<(String, String)> {
    let mut environment = Vec::new();
    if let Some(stress) = stress {
        environment.push(("STRESS".to_owned(), stress.to_owned()));
    }
    // A snapshot that differs fails the test and writes nothing into the tree.
    if std::env::var_os("INSTA_UPDATE").is_none() {
        environment.push(("INSTA_UPDATE".to_owned(), "no".to_owned()));
    }
    environment
}

/// Builds by a call of `cargo test` and returns the tests of all binaries.
pub(crate) fn build_tests(
    cargo: Command,
    launch: &Launch,
    progress: &Progress,
) -> Result<Vec<Test>, String> {
    let mut all = Vec::new();
    for binary in build(cargo, progress)? {
        all.extend(tests(&binary, launch)?);
    }
    Ok(all)
}

/// Builds by a call of `cargo test --no-run` and returns the test binaries.
fn build(mut cargo: Command, progress: &Progress) -> Result<Vec<Binary>, String> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut binaries = Vec::new();
    let ended = run::run(cargo, BUILD_LIMIT, |line| match serde_json::from_str(line) {
        Ok(message) => binaries.extend(binary(&message)),
        Err(_) => progress.build_line(line),
    })?;
    if ended.success() {
        return Ok(binaries);
    }
    Err(format!("the tests do not build: {}\n{}", ended.how(), beside_messages(&ended.output)))
}

/// The tests in a binary.
fn tests(binary: &Binary, launch: &Launch) -> Result<Vec<Test>, String> {
    let (ignored, all) = (list(binary, launch, &["--ignored"])?, list(binary, launch, &[])?);
    let test = |name: String| {
        let ignored = ignored.contains(&name);
        Test { binary: binary.clone(), name, ignored }
    };
    Ok(all.into_iter().map(test).collect())
}

/// Runs one test to its end.
pub(crate) fn run_test(test: &Test, launch: &Launch) -> (Verdict, Duration) {
    if test.ignored {
        return (Verdict::Skipped("marked `#[ignore]`".to_owned()), Duration::ZERO);
    }
    // The output of a test that passed is shown too: it may say that it was skipped.
    let command = command(&test.binary, launch, &[&test.name, "--exact", "--show-output"]);
    match run::run(command, TEST_LIMIT, |_| {}) {
        Ok(ended) => (judge(&ended), ended.time),
        Err(how) => (Verdict::Failed { how, output: String::new() }, Duration::ZERO),
    }
}

fn judge(ended: &Ended) -> Verdict {
    let ran = counts::last_libtest(&ended.output) == Some(Counts::passed(1));
    if !ended.success() || !ran {
        let how = ended.how();
        let how = if ended.success() { format!("no test was run, {how}") } else { how };
        return Verdict::Failed { how, output: ended.output.clone() };
    }
    match skip_reason(&ended.output) {
        Some(reason) => Verdict::Skipped(reason.to_owned()),
        None => Verdict::Passed,
    }
}

/// What `testkit::skip` printed, in the test or in its child. There, the harness's
/// `test name ... ` may be before it.
pub(crate) fn skip_reason(output: &str) -> Option<&str> {
    let of_line = |line: &'_ str| -> Option<usize> {
        if line.starts_with("skipped: ") {
            return Some("skipped: ".len());
        }
        let rest = line.strip_prefix("test ")?;
        let (name, _) = rest.split_once(" ... skipped: ")?;
        (!name.contains(' ')).then_some("test ".len() + name.len() + " ... skipped: ".len())
    };
    output.lines().find_map(|line| of_line(line).map(|at| line[at..].trim()))
}

/// The end of an output, which mostly says what was wrong, without the calls that led there: those
/// of the harness and of a child's parent would be all that is left of it.
pub(crate) fn last_lines(output: &str) -> String {
    let lines: Vec<_> = output.trim_end().lines().filter(|l| !is_of_backtrace(l)).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// The end of what cargo has printed beside its messages in JSON: why it failed.
pub(crate) fn beside_messages(output: &str) -> String {
    let lines: Vec<_> = output.lines().filter(|line| !line.starts_with('{')).collect();
    last_lines(&lines.join("\n"))
}

fn is_of_backtrace(line: &str) -> bool {
    // `  12: function`, and below it `at file:line:column`.
    let text = line.trim_start();
    let numbered = text.split_once(": ").is_some_and(|(number, _)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    });
    let indented = line.len() > text.len();
    (indented && (numbered || text.starts_with("at ")))
        || line == "stack backtrace:"
        || line.starts_with("note: Some details are omitted, run with `RUST_BACKTRACE=full`")
}

/// The test binary in one of cargo's messages, if it is about one.
fn binary(message: &Value) -> Option<Binary> {
    let test = message["profile"]["test"].as_bool()?;
    let path = PathBuf::from(message["executable"].as_str()?);
    let package = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let kind = message["target"]["kind"][0].as_str()?;
    let target = message["target"]["name"].as_str()?;
    let crate_name = package.file_name()?.to_str()?;
    let id = match kind {
        "lib" | "proc-macro" => crate_name.to_owned(),
        "test" => format!("{crate_name}::{target}"),
        kind => format!("{crate_name}::{kind}/{target}"),
    };
    test.then_some(Binary { id, path, package })
}

/// A call of a test binary with what cargo would set for it.
fn command(binary: &Binary, launch: &Launch, args: &[&str]) -> Command {
    let mut command = match launch.runner.split_first() {
        None => Command::new(&binary.path),
        Some((program, words)) => {
            let mut command = Command::new(program);
            command.args(words).arg(&binary.path);
            // cargo's, which has the machine's own libraries.
            command.env_remove("LD_LIBRARY_PATH");
            command
        }
    };
    command
        .args(args)
        .current_dir(&binary.package)
        .stdin(Stdio::null())
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .env("CARGO_MANIFEST_DIR", &binary.package)
        .env("CARGO_PKG_NAME", binary.package.file_name().unwrap_or_default());
    command
}

/// The names of the tests in a binary.
fn list(binary: &Binary, launch: &Launch, extra: &[&str]) -> Result<Vec<String>, String> {
    let mut command = command(binary, launch, &["--list", "--format", "terse"]);
    command.args(extra);
    let ended = run::run(command, TEST_LIMIT, |_| {})?;
    if !ended.success() {
        return Err(format!("{} --list: {}\n{}", binary.id, ended.how(), ended.output));
    }
    Ok(ended.output.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_found_in_cargos_messages() {
        let message = |kind: &str, test: bool| {
            let text = format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/crates/sigctx/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"storm"}},"profile":{{"test":{test}}},
                "executable":"/t/debug/deps/storm-1"}}"#
            );
            binary(&serde_json::from_str(&text).unwrap()).map(|b| b.id)
        };
        assert_eq!(message("lib", true).unwrap(), "sigctx");
        assert_eq!(message("test", true).unwrap(), "sigctx::storm");
        assert_eq!(message("bin", true).unwrap(), "sigctx::bin/storm");
        assert_eq!(message("example", false), None);
        assert_eq!(binary(&serde_json::json!({"reason": "build-finished"})), None);
    }

    #[test]
    fn skipped_tests_are_read_with_their_reason() {
        let own = "running 1 test\ntest a ... ok\n\nsuccesses:\n\n---- a stdout ----\n\
                   skipped: gdb is not installed\n";
        assert_eq!(skip_reason(own), Some("gdb is not installed"));
        let childs = "test tests::a ... skipped: needs root\nok\n";
        assert_eq!(skip_reason(childs), Some("needs root"));
        assert_eq!(skip_reason("it says: skipped: nothing\n"), None);
        assert_eq!(skip_reason("test a that ... skipped: nothing\n"), None);
    }

    fn ended(script: &str) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run::run(command, Duration::from_secs(10), |_| {}).unwrap()
    }

    #[test]
    fn verdict_is_of_the_last_harness_in_the_output() {
        let result = |passed, failed| {
            format!("echo 'test result: x. {passed} passed; {failed} failed; 0 ignored';")
        };
        // A child's result is in the output of a test that looked at the child's end itself.
        let script = format!("{} {}", result(0, 1), result(1, 0));
        assert_eq!(judge(&ended(&script)), Verdict::Passed);
        let script = format!("echo skipped: no; {}", result(1, 0));
        assert_eq!(judge(&ended(&script)), Verdict::Skipped("no".to_owned()));
        // A test that skips and then fails has failed.
        let script = format!("echo skipped: no; {} exit 101", result(0, 1));
        assert!(matches!(judge(&ended(&script)), Verdict::Failed { .. }));
    }

    #[test]
    fn binary_that_ran_nothing_has_failed() {
        let script = "echo 'test result: ok. 0 passed; 0 failed; 0 ignored'";
        let Verdict::Failed { how, .. } = judge(&ended(script)) else { panic!("passed") };
        assert!(how.starts_with("no test was run"), "{how}");
        assert!(matches!(judge(&ended("true")), Verdict::Failed { .. }));
    }

    #[test]
    fn last_lines_are_the_end() {
        let text: Vec<_> = (0..50).map(|n| n.to_string()).collect();
        let last = last_lines(&text.join("\n"));
        assert!(last.starts_with("30\n") && last.ends_with("\n49"), "{last}");
        assert_eq!(last_lines("one\n"), "one");
    }

    #[test]
    fn last_lines_have_no_backtrace() {
        let output = "thread 'a' panicked at a.rs:1:2:\nwhy\nstack backtrace:\n   0: f::<g>\n\
                      \u{20}            at ./a.rs:3:4\n  10: main\nnote: Some details are omitted, \
                      run with `RUST_BACKTRACE=full` for a verbose backtrace.\n\nfailures:\n    a\n";
        let expected = "thread 'a' panicked at a.rs:1:2:\nwhy\n\nfailures:\n    a";
        assert_eq!(last_lines(output), expected);
    }
}
