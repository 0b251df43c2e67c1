//! Unit and integration tests, each in a process of its own: by nextest, or by the small runner
//! here where nextest is not installed.
//!
//! Signal dispositions, the thread registry and credentials belong to the process, so two tests
//! in one would see each other.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use crate::counts::{self, Counts};
use crate::report::{self, Progress, Step};
use crate::run::{self, Ended};
use crate::workspace::{Workspace, has, how_to_get};
use crate::{Selection, report::seconds};

/// What nextest's profile grants too (10 periods of a minute).
const TEST_LIMIT: Duration = Duration::from_mins(10);
const ALL_LIMIT: Duration = Duration::from_hours(1);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runner {
    /// nextest where it is installed, else the runner built in
    #[default]
    Auto,
    /// cargo-nextest
    Nextest,
    /// The runner built in
    Builtin,
}

pub(crate) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    if !has("gdb") {
        progress.say(&format!("note: {}; the tests that use it are skipped", how_to_get("gdb")));
    }
    let installed = has("cargo-nextest");
    match selection.runner {
        Runner::Auto if !installed => {
            progress
                .say(&format!("note: {}; using the built-in runner", how_to_get("cargo-nextest")));
        }
        Runner::Nextest if !installed => return Step::failed(how_to_get("cargo-nextest")),
        Runner::Auto | Runner::Nextest => return nextest(workspace, selection, progress),
        Runner::Builtin => {}
    }
    builtin(workspace, selection, progress).unwrap_or_else(Step::failed)
}

/// Settings that every test gets.
pub(crate) fn settings(command: &mut Command, selection: &Selection) {
    if let Some(stress) = selection.stress {
        command.env("STRESS", stress);
    }
    // A snapshot that differs fails the test and writes nothing into the tree.
    if std::env::var_os("INSTA_UPDATE").is_none() {
        command.env("INSTA_UPDATE", "no");
    }
}

fn nextest(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    let colour = if report::colour(io::stderr().is_terminal()) { "always" } else { "never" };
    let mut command = workspace.cargo(&["nextest", "run", "--no-tests=pass", "--color", colour]);
    command.args(selection.package_args()).args(&selection.filter);
    settings(&mut command, selection);
    let ended = match run::run(command, ALL_LIMIT, |line| progress.say(line)) {
        Ok(ended) => ended,
        Err(why) => return Step::failed(why),
    };
    let nothing = ended.output.contains("no tests to run");
    let mut step = Step::default();
    match counts::nextest(&ended.output) {
        Some(counts) => step.counts = counts,
        None if ended.success() && nothing => return Step::skipped("no test is selected"),
        None => step.failures.push("the tests did not build, or nextest said nothing".to_owned()),
    }
    if selection.filter.is_some() {
        // nextest counts here what the filter left out.
        step.counts.skipped = 0;
    }
    if !ended.success() {
        step.failures.push(format!("nextest: {}", ended.how()));
        step.failures.extend(counts::nextest_failures(&ended.output));
    }
    step
}

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binary {
    /// `sigctx`, `sigctx::storm`, `xtask::bin/xtask`: as nextest calls them.
    id: String,
    path: PathBuf,
    package: PathBuf,
}

struct Test {
    binary: Binary,
    name: String,
}

fn builtin(
    workspace: &Workspace,
    selection: &Selection,
    progress: &Progress,
) -> Result<Step, String> {
    let mut build =
        workspace.cargo(&["test", "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(selection.package_args());
    let mut binaries = Vec::new();
    let ended = run::run(build, ALL_LIMIT, |line| match serde_json::from_str(line) {
        Ok(message) => binaries.extend(binary(&message)),
        Err(_) => progress.say(line),
    })?;
    if !ended.success() {
        return Err(format!("the tests do not build: {}", ended.how()));
    }
    let mut step = Step::default();
    let (mut tests, mut alone) = (VecDeque::new(), VecDeque::new());
    for binary in binaries {
        let (ignored, all) = (list(&binary, &["--ignored"])?, list(&binary, &[])?);
        for name in all.into_iter().filter(|name| selection.takes(name)) {
            let queue = if name.contains("stress") { &mut alone } else { &mut tests };
            if ignored.contains(&name) {
                step.counts.skipped += 1;
            } else {
                queue.push_back(Test { binary: binary.clone(), name });
            }
        }
    }
    let number = tests.len() + alone.len();
    if number == 0 {
        return Ok(Step::skipped("no test is selected"));
    }
    progress.say(&format!("{number} tests"));
    let step = Mutex::new(step);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    // Stress tests load every CPU; beside each other they would only measure the scheduler.
    for (queue, workers) in [(tests, cpus), (alone, 1)] {
        let queue = Mutex::new(queue);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| work(&queue, &step, selection, progress));
            }
        });
    }
    Ok(step.into_inner().expect("no worker panicked"))
}

/// Takes tests off the queue until there are none left.
fn work(
    queue: &Mutex<VecDeque<Test>>,
    step: &Mutex<Step>,
    selection: &Selection,
    progress: &Progress,
) {
    loop {
        let next = queue.lock().expect("no worker panicked").pop_front();
        let Some(test) = next else { break };
        let name = format!("{} {}", test.binary.id, test.name);
        let mut command = command(&test.binary, &[&test.name, "--exact"]);
        settings(&mut command, selection);
        let ended = run::run(command, TEST_LIMIT, |_| {});
        let result = match ended {
            Ok(ended) => judge(&name, &ended, progress),
            Err(why) => Err(format!("{name}: {why}")),
        };
        step.lock().expect("no worker panicked").add(result);
    }
}

fn judge(name: &str, ended: &Ended, progress: &Progress) -> Result<(), String> {
    let ran = counts::libtest(&ended.output).counts == Counts::passed(1);
    let good = ended.success() && ran;
    let verdict = if good { "PASS" } else { "FAIL" };
    progress.say(&format!("{verdict} [{:>8}] {name}", seconds(ended.time)));
    if good {
        return Ok(());
    }
    progress.say(&ended.output);
    Err(format!("{name}: {}", ended.how()))
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
fn command(binary: &Binary, args: &[&str]) -> Command {
    let mut command = Command::new(&binary.path);
    command
        .args(args)
        .current_dir(&binary.package)
        .stdin(std::process::Stdio::null())
        .env("CARGO_MANIFEST_DIR", &binary.package)
        .env("CARGO_PKG_NAME", binary.package.file_name().unwrap_or_default());
    command
}

/// The names of the tests in a binary.
fn list(binary: &Binary, extra: &[&str]) -> Result<Vec<String>, String> {
    let mut command = command(binary, &["--list", "--format", "terse"]);
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
}
