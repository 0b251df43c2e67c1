//! `cargo xtask`: the workspace's commands, for those who work on it.
//!
//! The alias is in `.cargo/config.toml`. Each kind of test is a file of its own and returns a
//! [`report::Step`]; `report` prints what came of them. `tidy` holds the rules of the tree that
//! no compiler checks, as tests.

mod arches;
#[cfg(test)]
mod cargo_runner;
mod counts;
mod demo;
mod doctests;
mod examples;
mod harness;
mod lint;
mod loom;
mod mutants;
mod patch;
mod report;
mod run;
mod snapshots;
mod systems;
#[cfg(test)]
mod tidy;
mod tree;
mod unit;
mod workspace;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::mutants::Killers;
use crate::report::Report;
use crate::unit::Runner;
use crate::workspace::Workspace;

/// Commands of the workspace.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:
  cargo xtask demo                       show what the crates do, in a few seconds
  cargo xtask test                       every test: unit, doc, loom, mutants, examples
  cargo xtask test --fast unit           unit and integration tests, stress at a tenth
  cargo xtask test -p preempt loom       the models of one crate
  cargo xtask test-all-arches arm64      the tests of another architecture, emulated
  cargo xtask snapshots                  what differs from the snapshots, anywhere
  cargo xtask check-systems              the crates build for systems other than Linux
  cargo xtask ci                         what a change must pass"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs the demonstration (package `demo`), built for release
    Demo {
        /// Passed on, `--json` for example
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the tests and ends with a line `N passed, N failed`
    #[command(after_help = "Examples:
  cargo xtask test --filter stress unit
  cargo xtask test -p sigctx unit doc
  cargo xtask test --filter preempt/ mutants

Environment:
  STRESS  size of the stress tests in per cent (100)
  SEED    seed of the random tests; each prints the one that it used")]
    Test(TestArgs),
    /// Runs the tests of all 13 architectures, emulated where the machine is another one, and with musl
    TestAllArches(arches::Options),
    /// Looks for differences from the snapshots on every architecture, and settles them
    Snapshots(snapshots::Options),
    /// Checks that the crates build for systems other than Linux
    CheckSystems(systems::Options),
    /// Checks the format, clippy, and the documentation; a warning is an error
    Lint,
    /// Runs everything that a change must pass: lint, test, demo, other systems, architectures
    /// (of one emulated one the tests of `sigctx`; `test-all-arches` has all)
    Ci {
        /// Runs stress tests at a tenth of their size; emulated ones are small anyway
        #[arg(long)]
        fast: bool,
        /// Leaves out an architecture that this machine lacks something for
        #[arg(long)]
        available: bool,
    },
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Runs stress tests at a tenth of their size (`STRESS=10`); mutants keep the full size
    #[arg(long)]
    fast: bool,
    /// Only this crate; may be repeated
    #[arg(short, long)]
    package: Vec<String>,
    /// Only tests, mutants (`crate/name`) and examples whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Who runs the unit tests
    #[arg(long, value_enum, default_value_t = Runner::Auto)]
    runner: Runner,
    /// Kinds of tests; all when none is named
    #[arg(value_enum)]
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Unit and integration tests, each in a process of its own
    Unit,
    /// Code in the documentation
    Doc,
    /// Protocol models, explored by loom
    Loom,
    /// Known bugs, put back one at a time: a named test must fail for each
    Mutants,
    /// Every crate's examples run to their end
    Examples,
}

/// Which tests were asked for.
#[derive(Debug, Clone, Default)]
struct Selection {
    /// Only these crates; all when empty.
    packages: Vec<String>,
    /// Only names that contain this.
    filter: Option<String>,
    /// Value of `STRESS` for the tests, when it is not to be inherited.
    stress: Option<&'static str>,
    runner: Runner,
}

impl Selection {
    fn takes_crate(&self, name: &str) -> bool {
        self.packages.is_empty() || self.packages.iter().any(|p| p == name)
    }

    fn takes(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|f| name.contains(f))
    }

    /// cargo's options for the chosen crates.
    fn package_args(&self) -> Vec<&str> {
        if self.packages.is_empty() {
            return vec!["--workspace"];
        }
        self.packages.iter().flat_map(|p| ["-p", p]).collect()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let workspace = Workspace::find();
    match cli.command {
        Task::Demo { args } => demo::show(&workspace, &args),
        Task::TestAllArches(options) => arches::command(&workspace, &options),
        Task::Snapshots(options) => snapshots::command(&workspace, &options),
        Task::CheckSystems(options) => systems::command(&workspace, &options),
        Task::Lint => {
            let mut report = Report::new(report::Kind::Checks);
            lint::all(&workspace, &mut report);
            report.finish()
        }
        Task::Test(args) => {
            let mut report = Report::new(report::Kind::Tests);
            let selection = Selection {
                packages: args.package,
                filter: args.filter,
                stress: args.fast.then_some("10"),
                runner: args.runner,
            };
            let kinds = if args.kinds.is_empty() { Kind::value_variants() } else { &args.kinds };
            test(&workspace, &selection, kinds, &mut report);
            report.finish()
        }
        Task::Ci { fast, available } => {
            let stress = fast.then_some("10");
            let selection = Selection { stress, ..Selection::default() };
            let mut report = Report::new(report::Kind::Tests);
            lint::all(&workspace, &mut report);
            test(&workspace, &selection, Kind::value_variants(), &mut report);
            report.step("demo", |progress| demo::check(&workspace, progress));
            let all = systems::Options::default();
            report.step("other systems", |progress| systems::step(&workspace, &all, progress));
            let options = arches::Options::of_ci(available);
            report.step("architectures", |p| arches::step(&workspace, &options, p));
            report.finish()
        }
    }
}

fn test(workspace: &Workspace, selection: &Selection, kinds: &[Kind], report: &mut Report) {
    let unknown = |name: &&String| !workspace.packages().contains(*name);
    if let Some(name) = selection.packages.iter().find(unknown) {
        let all = workspace.packages().join(", ");
        return report.step("select", |_| {
            report::Step::failed(format!("no crate is called `{name}`; there are {all}"))
        });
    }
    let whole = [Kind::Unit, Kind::Loom].iter().all(|kind| kinds.contains(kind));
    for kind in kinds {
        match kind {
            Kind::Unit => report.step("unit", |p| unit::run(workspace, selection, p)),
            Kind::Doc => report.step("doc tests", |p| doctests::run(workspace, selection, p)),
            Kind::Loom => report.step("loom", |p| loom::run(workspace, selection, p)),
            // Their killers have run without a patch in the same run, at the same size.
            Kind::Mutants if whole && selection.stress.is_none() => {
                report.step("mutants", |p| mutants::run(workspace, selection, Killers::HaveRun, p));
            }
            Kind::Mutants => {
                report.step("mutants", |p| mutants::run(workspace, selection, Killers::Unknown, p));
            }
            Kind::Examples => report.step("examples", |p| examples::run(workspace, selection, p)),
        }
    }
}
