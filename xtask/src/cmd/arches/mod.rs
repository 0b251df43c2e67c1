//! `cargo xtask test-all-arches`: the tests of every architecture, emulated where the machine is
//! another one.
//!
//! `table` says what there is, `machine` what this machine has of it and how a row is built and run,
//! `install` gets what is missing, `summary` tells what came of the tests.

mod install;
mod machine;
mod summary;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::Args;
use comfy_table::Cell;

use self::machine::{Machine, Missing, Ready};
use self::summary::{End, Row};
use self::table::Arch;
use crate::harness::{self, Test};
use crate::pool::{self, Manner, Outcomes, Pool};
use crate::report::{self, Progress, Report, Step, output, seconds, trimmed};
use crate::workspace::Workspace;

#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "Examples:
  cargo xtask test-all-arches --install            install what is missing, then test all
  cargo xtask test-all-arches --list               what this machine has, without a test
  cargo xtask test-all-arches arm64 s390x          only these
  cargo xtask test-all-arches -p sigctx --filter layout mips64
  cargo xtask test-all-arches --available --json   what is possible here, for programs

Where the standard library of a target comes from, the first that is there:
  1. the default compiler has it (`rustup target add`)
  2. the default compiler has its sources (`rustup component add rust-src`)
  3. /usr/bin/rustc has its sources (Debian's rustc-web, cargo-web and rust-web-src)

Environment of the tests:
  STRESS            size of the stress tests in per cent, from the architecture's row
  SIGCTX_CC         the C compiler of the target
  TESTKIT_RUNNER    the emulator with its arguments; see testkit's documentation")]
pub(crate) struct Options {
    /// Only these, by Go's names; all when none is named
    #[arg(value_name = "ARCH")]
    arches: Vec<String>,
    /// Shows the architectures with what this machine lacks for each, and runs no test
    #[arg(long)]
    list: bool,
    /// Installs what is missing: by apt, pip and rustup
    #[arg(long)]
    install: bool,
    /// Leaves out an architecture that this machine lacks something for
    #[arg(long)]
    available: bool,
    /// Prints one JSON document and nothing else on standard output
    #[arg(long, conflicts_with = "list")]
    json: bool,
    /// Size of the stress tests in per cent
    #[arg(long, value_name = "PER CENT")]
    stress: Option<u32>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many tests run at the same time; as many as there are processors unless given
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Only this crate; may be repeated
    #[arg(short, long, value_name = "CRATE")]
    package: Vec<String>,
    /// More environment for the tests
    #[arg(skip)]
    pub(crate) env: Vec<(String, String)>,
}

impl Options {
    /// One emulated architecture, and the crate that knows of architectures, with what its tests are made
    /// of: all of them beside the mutants would take more than the hour. `test-all-arches` has the rest.
    pub(crate) fn of_ci(available: bool) -> Self {
        let arches = vec!["loong64".to_owned()];
        let package = ["sigctx", "testkit"].map(str::to_owned).to_vec();
        Self { arches, available, package, ..Self::default() }
    }
}

/// The command.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    if options.list {
        return list(workspace, options);
    }
    if options.json {
        let progress = Progress::new();
        return match rows(workspace, options, &progress) {
            Ok(rows) => {
                output!("{:#}", summary::json(&rows));
                let counts = rows.iter().map(Row::counts);
                let (ran, failed) =
                    counts.fold((0, 0), |(r, f), c| (r + c.passed + c.failed, f + c.failed));
                if ran > 0 && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(why) => {
                output!("{:#}", serde_json::json!({"error": why}));
                ExitCode::FAILURE
            }
        };
    }
    let mut report = Report::new(report::Kind::Tests, workspace);
    report.step("architectures", |progress| step(workspace, options, progress));
    report.finish()
}

/// The rows as a step of a report.
pub(crate) fn step(workspace: &Workspace, options: &Options, progress: &Progress) -> Step {
    match rows(workspace, options, progress) {
        Ok(rows) => summary::step(&rows),
        Err(why) => Step::failed(why),
    }
}

/// Builds and tests every row that was asked for.
fn rows(workspace: &Workspace, options: &Options, progress: &Progress) -> Result<Vec<Row>, String> {
    let arches = table::select(&options.arches)?;
    let packages = packages(workspace, &options.package)?;
    let machine = look(workspace, options, &arches, progress);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let (built, outcomes) = pool::run(options.jobs.unwrap_or(processors), |pool| {
        let build = |arch| one(workspace, options, &packages, &machine, arch, pool, progress);
        arches.into_iter().map(build).collect::<Vec<_>>()
    });
    let mut outcomes: Vec<_> = outcomes.into_iter().map(Some).collect();
    Ok(built.into_iter().map(|build| build.row(&mut outcomes)).collect())
}

/// What came of the snapshot tests.
pub(crate) struct Snapshots {
    pub(crate) table: String,
    pub(crate) failures: Vec<String>,
    /// Whether no architecture was left out.
    pub(crate) complete: bool,
    /// Whether there was a test that could have failed.
    pub(crate) any: bool,
}

/// Runs the snapshot tests; what differs is left beside the snapshots. insta writes into
/// `references` which of them were looked at.
pub(crate) fn snapshots(
    workspace: &Workspace,
    arches: &[String],
    available: bool,
    references: &Path,
    progress: &Progress,
) -> Result<Snapshots, String> {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let options = Options {
        arches: arches.to_vec(),
        available,
        filter: Some("snapshot".to_owned()),
        package: workspace.crates_that_mention("insta"),
        env: vec![
            variable("INSTA_UPDATE", "new"),
            variable("INSTA_SNAPSHOT_REFERENCES_FILE", &references.to_string_lossy()),
        ],
        ..Options::default()
    };
    let rows = rows(workspace, &options, progress)?;
    let failures = rows.iter().flat_map(Row::failed_names).collect();
    let complete = rows.iter().all(|row| matches!(row.end, End::Ran { .. }));
    let any = rows.iter().any(|row| row.counts().passed + row.counts().failed > 0);
    Ok(Snapshots { table: summary::table_of(&rows), failures, complete, any })
}

/// What came of building a row.
struct Built {
    arch: &'static Arch,
    std: String,
    runner: String,
    start: Instant,
    state: State,
}

enum State {
    LeftOut(String),
    Failed(String),
    /// Its tests have been handed over.
    Tests {
        number: usize,
        ended: Instant,
    },
}

impl Built {
    fn row(self, outcomes: &mut [Option<Outcomes>]) -> Row {
        let end = match self.state {
            State::LeftOut(why) => End::LeftOut(why),
            State::Failed(why) => End::Failed(why),
            State::Tests { number, ended } => {
                let row = outcomes[number].take().expect("a row is asked for once");
                let (build, all) = (ended - self.start, row.ended - self.start);
                End::Ran { build, all, outcomes: row.outcomes }
            }
        };
        let Arch { name, target, .. } = *self.arch;
        Row { name, target, std: self.std, runner: self.runner, end }
    }
}

/// Builds a row and hands its tests to the pool.
fn one<'p>(
    workspace: &Workspace,
    options: &Options,
    packages: &[String],
    machine: &Machine,
    arch: &'static Arch,
    pool: &Pool<'p>,
    progress: &'p Progress,
) -> Built {
    let start = Instant::now();
    let line = progress.line();
    let (mut std, mut runner) = (String::new(), String::new());
    let state = match machine.ready(arch, &machine::directory(workspace)) {
        Err(missing) => {
            let why = describe(&missing);
            let word = if options.available { "left out" } else { "cannot be tested" };
            line.say(&format!("{}: {word}: {why}", arch.name));
            if options.available { State::LeftOut(why) } else { State::Failed(why) }
        }
        Ok(ready) => {
            std = ready.toolchain.describe();
            runner = ready.describe_runner();
            line.doing(format!("{:<8} building, std {std}", arch.name));
            match build(workspace, options, packages, machine, &ready, progress) {
                Err(why) => {
                    // What the compiler had to say has been seen.
                    let first = why.lines().next().unwrap_or_default();
                    line.say(&format!("{}: {first}", arch.name));
                    State::Failed(why)
                }
                Ok(tests) => {
                    let ended = Instant::now();
                    let time = seconds(ended - start);
                    line.say(&format!(
                        "{}: built in {time}, std {std}; {} tests, {runner}",
                        arch.name,
                        tests.len()
                    ));
                    let launch = launch(workspace, options, &ready);
                    let number = pool.add(arch.name, Manner::Row, tests, launch, line);
                    State::Tests { number, ended }
                }
            }
        }
    };
    Built { arch, std, runner, start, state }
}

/// The tests that are to run.
fn build(
    workspace: &Workspace,
    options: &Options,
    packages: &[String],
    machine: &Machine,
    ready: &Ready,
    progress: &Progress,
) -> Result<Vec<Test>, String> {
    ready.write_tools(machine, &machine::directory(workspace))?;
    let mut cargo = ready.cargo(workspace, "test");
    // Examples, too, with no test of their own: a test opens one.
    cargo.args(packages.iter().flat_map(|name| ["-p", name]));
    if let Some(jobs) = options.jobs {
        cargo.arg(format!("-j{}", jobs.max(1)));
    }
    let launch = launch(workspace, options, ready);
    let mut tests = harness::build_tests(cargo, &launch, progress)?;
    if let Some(text) = &options.filter {
        tests.retain(|test| test.name.contains(text));
    }
    Ok(tests)
}

fn launch(workspace: &Workspace, options: &Options, ready: &Ready) -> harness::Launch {
    let mut launch = ready.launch(workspace, options.stress);
    launch.env.extend(options.env.iter().cloned());
    launch
}

/// The packages that are tested: the crates and what their tests share.
fn packages(workspace: &Workspace, asked: &[String]) -> Result<Vec<String>, String> {
    let mut all = workspace.crates();
    all.push("testkit".to_owned());
    if let Some(name) = asked.iter().find(|name| !all.contains(name)) {
        let all = all.join(", ");
        return Err(format!("no crate is called `{name}`; there are {all}"));
    }
    Ok(if asked.is_empty() { all } else { asked.to_vec() })
}

/// What the machine has, after what could be installed was, where that was asked for.
fn look(
    workspace: &Workspace,
    options: &Options,
    arches: &[&'static Arch],
    progress: &Progress,
) -> Machine {
    let machine = Machine::look(workspace);
    if !options.install {
        return machine;
    }
    let missing = missing(&machine, arches, workspace);
    if missing.is_empty() {
        return machine;
    }
    if let Err(why) = install::install(&missing, progress) {
        progress.say(&why);
    }
    Machine::look(workspace)
}

/// All that these rows lack, each once.
fn missing(machine: &Machine, arches: &[&'static Arch], workspace: &Workspace) -> Vec<Missing> {
    let dir = machine::directory(workspace);
    let of_row = |arch: &&'static Arch| machine.ready(arch, &dir).err().unwrap_or_default();
    let mut all: Vec<_> = arches.iter().flat_map(of_row).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What is missing, and how to get it.
fn describe(missing: &[Missing]) -> String {
    let one = |missing: &Missing| match missing.command() {
        Some(command) => format!("{}; get it with `{command}`", missing.what()),
        None => missing.what(),
    };
    missing.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Shows the rows without running anything.
fn list(workspace: &Workspace, options: &Options) -> ExitCode {
    let arches = match table::select(&options.arches) {
        Ok(arches) => arches,
        Err(why) => {
            report::tell(&why);
            return ExitCode::FAILURE;
        }
    };
    let machine = look(workspace, options, &arches, &Progress::new());
    let mut table = report::table(["architecture", "target", "run by", "std", "missing"]);
    let mut complete = true;
    for arch in arches {
        let first = [Cell::new(arch.name), Cell::new(arch.target)];
        let rest = match machine.ready(arch, &machine::directory(workspace)) {
            Ok(ready) => [ready.describe_runner(), ready.toolchain.describe(), "-".to_owned()],
            Err(missing) => {
                complete = false;
                ["-".to_owned(), "-".to_owned(), describe(&missing)]
            }
        };
        table.add_row(first.into_iter().chain(rest.map(Cell::new)));
    }
    output!("{}", trimmed(&table));
    if complete || options.available { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ci_tests_an_architecture_that_unit_tests_have_not() {
        let arches = table::select(&Options::of_ci(false).arches).unwrap();
        assert!(!arches.is_empty());
        assert!(arches.iter().all(|a| a.name != "amd64"));
    }

    #[test]
    fn packages_are_the_libraries_and_can_be_chosen() {
        let workspace = Workspace::find();
        let all = packages(&workspace, &[]).unwrap();
        assert!(all.contains(&"sigctx".to_owned()) && all.contains(&"testkit".to_owned()));
        assert!(!all.contains(&"xtask".to_owned()));
        let one = ["preempt".to_owned()];
        assert_eq!(packages(&workspace, &one).unwrap(), one);
        let error = packages(&workspace, &["xtask".to_owned()]).unwrap_err();
        assert!(error.contains("`xtask`") && error.contains("sigctx"), "{error}");
    }

    #[test]
    fn what_is_missing_is_told_with_its_command() {
        let all = table::select(&[]).unwrap();
        let missing = missing(&Machine::default(), &all, &Workspace::find());
        // Once for all rows.
        assert_eq!(missing.iter().filter(|m| **m == Missing::Zig).count(), 1);
        let text = describe(&missing);
        assert!(text.contains("`s390x-linux-gnu-gcc` is not there; get it with `apt-get install"));
        assert!(text.contains("the machine is not an amd64"));
    }
}
