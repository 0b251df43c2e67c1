//! `cargo xtask ci`: everything that a change must pass. `.ci/run` calls it on a fresh machine.

use std::process::ExitCode;

use clap::Args;

use super::{arches, bench, client, demo, lint, systems, test};
use crate::report::{self, Report};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs stress tests at a tenth of their size; emulated ones are small anyway
    #[arg(long)]
    fast: bool,
    /// Leaves out an architecture that this machine lacks something for
    #[arg(long)]
    available: bool,
}

/// The command.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    let mut report = Report::new(report::Kind::Tests, workspace);
    lint::steps(workspace, &mut report);
    test::all(workspace, options.fast.then_some(test::FAST), &mut report);
    // Before the demonstration, which is built for release too and deletes what both have built.
    report.step("bench", |progress| bench::check(workspace, progress));
    report.step("demo", |progress| demo::check(workspace, progress));
    report.step("clients", |progress| client::check(workspace, progress));
    let systems = systems::Options::default();
    report.step("other systems", |progress| systems::step(workspace, &systems, progress));
    let arches = arches::Options::of_ci(options.available);
    report.step("architectures", |progress| arches::step(workspace, &arches, progress));
    report.finish()
}
