//! `cargo xtask test`: the tests of this machine's architecture, a file for each kind.

mod doc;
pub(crate) mod examples;
mod loom;
mod mutants;
pub(crate) mod patch;
mod paths;
mod unit;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::mutants::Killers;
use crate::disk;
use crate::report::{self, Report, Step};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask test --filter stress unit
  cargo xtask test -p sigctx unit doc
  cargo xtask test --filter preempt/ mutants

Environment:
  STRESS  size of the stress tests in per cent (100)
  SEED    seed of the random tests; each prints the one that it used")]
pub(crate) struct Options {
    /// Runs stress tests at a tenth of their size (`STRESS=10`); mutants keep the full size
    #[arg(long)]
    fast: bool,
    /// Only this crate; may be repeated
    #[arg(short, long)]
    package: Vec<String>,
    /// Only tests, mutants (`crate/name`) and examples whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
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
    /// Instructions of the fast paths, counted
    Paths,
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

/// `STRESS` of `--fast`.
pub(crate) const FAST: &str = "10";

/// The command.
pub(crate) fn command(workspace: &Workspace, options: Options) -> ExitCode {
    let mut report = Report::new(report::Kind::Tests, workspace);
    let selection = Selection {
        packages: options.package,
        filter: options.filter,
        stress: options.fast.then_some(FAST),
    };
    let kinds = if options.kinds.is_empty() { Kind::value_variants() } else { &options.kinds };
    steps(workspace, &selection, kinds, &mut report);
    report.finish()
}

/// Every test of every crate, as steps of a report. `stress` is as in [`Selection`].
pub(crate) fn all(workspace: &Workspace, stress: Option<&'static str>, report: &mut Report) {
    let selection = Selection { stress, ..Selection::default() };
    steps(workspace, &selection, Kind::value_variants(), report);
}

fn steps(workspace: &Workspace, selection: &Selection, kinds: &[Kind], report: &mut Report) {
    let unknown = |name: &&String| !workspace.packages().contains(*name);
    if let Some(name) = selection.packages.iter().find(unknown) {
        let all = workspace.packages().join(", ");
        return report.step("select", |_| {
            Step::failed(format!("no crate is called `{name}`; there are {all}"))
        });
    }
    if let Some(note) = disk::before(&workspace.target) {
        report.say(&note);
    }
    // Then the killers have run without a patch in the same run, at the same size.
    let killers_run = [Kind::Unit, Kind::Loom].iter().all(|kind| kinds.contains(kind))
        && selection.stress.is_none();
    let killers = if killers_run { Killers::HaveRun } else { Killers::Unknown };
    for kind in kinds {
        match kind {
            Kind::Unit => report.step("unit", |p| unit::run(workspace, selection, p)),
            Kind::Doc => report.step("doc tests", |p| doc::run(workspace, selection, p)),
            Kind::Loom => report.step("loom", |p| loom::run(workspace, selection, p)),
            Kind::Mutants => {
                report.step("mutants", |p| mutants::run(workspace, selection, killers, p));
            }
            Kind::Examples => report.step("examples", |p| examples::run(workspace, selection, p)),
            Kind::Paths => report.step("fast paths", |p| paths::run(workspace, selection, p)),
        }
    }
}
