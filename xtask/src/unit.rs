//! Unit and integration tests, each in a process of its own: by nextest, or by the small runner
//! here where nextest is not installed.
//!
//! Signal dispositions, the thread registry and credentials belong to the process, so two tests
//! in one would see each other.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;

use crate::Selection;
use crate::counts;
use crate::harness::{self, Launch, Test, Verdict};
use crate::report::{self, Progress, Step, seconds};
use crate::run;
use crate::workspace::{Workspace, has, how_to_get};

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
    command.envs(environment(selection));
}

fn environment(selection: &Selection) -> Vec<(String, String)> {
    let mut environment = Vec::new();
    if let Some(stress) = selection.stress {
        environment.push(("STRESS".to_owned(), stress.to_owned()));
    }
    // A snapshot that differs fails the test and writes nothing into the tree.
    if std::env::var_os("INSTA_UPDATE").is_none() {
        environment.push(("INSTA_UPDATE".to_owned(), "no".to_owned()));
    }
    environment
}

/// Said before a build, of which nothing is seen for long.
fn building(selection: &Selection) -> String {
    let of = match selection.packages.as_slice() {
        [] => "all crates".to_owned(),
        some => some.join(", "),
    };
    format!("building the tests of {of}; the first time this takes some minutes")
}

fn nextest(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    let colour = if report::colour(io::stderr().is_terminal()) { "always" } else { "never" };
    let mut command = workspace.cargo(&["nextest", "run", "--no-tests=pass", "--color", colour]);
    command.args(selection.package_args()).args(&selection.filter);
    settings(&mut command, selection);
    // nextest shows nothing of tests that pass, and cannot tell who skips.
    let skipped = workspace.target.join("skipped");
    let emptied = fs::create_dir_all(&workspace.target).and_then(|()| fs::write(&skipped, ""));
    if let Err(error) = emptied {
        return Step::failed(format!("{}: {error}", skipped.display()));
    }
    command.env("TESTKIT_SKIPPED", &skipped);
    progress.doing(&building(selection));
    let ended = match run::run(command, ALL_LIMIT, |line| progress.build_line(line)) {
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
    let skipped = fs::read_to_string(skipped).unwrap_or_default();
    for reason in skipped.lines() {
        progress.say(reason);
        step.counts.skipped += 1;
        step.counts.passed = step.counts.passed.saturating_sub(1);
    }
    if !ended.success() {
        step.failures.push(format!("nextest: {}", ended.how()));
        step.failures.extend(counts::nextest_failures(&ended.output));
    }
    step
}

fn builtin(
    workspace: &Workspace,
    selection: &Selection,
    progress: &Progress,
) -> Result<Step, String> {
    let mut cargo = workspace.cargo(&["test"]);
    cargo.args(selection.package_args());
    progress.doing(&building(selection));
    let binaries = harness::build(cargo, progress)?;
    progress.doing("running the tests");
    let mut launch = Launch::default();
    launch.env.extend(environment(selection));
    let step = Step::default();
    let (mut tests, mut alone) = (VecDeque::new(), VecDeque::new());
    for binary in binaries {
        let all = harness::tests(&binary, &launch)?;
        for test in all.into_iter().filter(|test| selection.takes(&test.name)) {
            if test.is_stress() {
                alone.push_back(test);
            } else {
                tests.push_back(test);
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
    for (queue, workers) in [(tests, cpus), (alone, 1)] {
        let queue = Mutex::new(queue);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| work(&queue, &step, &launch, progress));
            }
        });
    }
    Ok(step.into_inner().expect("no worker panicked"))
}

/// Takes tests off the queue until there are none left.
fn work(queue: &Mutex<VecDeque<Test>>, step: &Mutex<Step>, launch: &Launch, progress: &Progress) {
    loop {
        let next = queue.lock().expect("no worker panicked").pop_front();
        let Some(test) = next else { break };
        let (verdict, time) = harness::run_test(&test, launch);
        let name = test.full_name();
        let say = |word| progress.say(&format!("{word} [{:>8}] {name}", seconds(time)));
        let mut step = step.lock().expect("no worker panicked");
        match verdict {
            Verdict::Passed => {
                say("PASS");
                step.add(Ok(()));
            }
            Verdict::Skipped(reason) => {
                say("SKIP");
                progress.say(&format!("  {reason}"));
                step.counts.skipped += 1;
            }
            Verdict::Failed { how, output } => {
                say("FAIL");
                progress.say(&output);
                step.add(Err(format!("{name}: {how}")));
            }
        }
    }
}
