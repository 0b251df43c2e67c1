//! `cargo xtask`: the workspace's commands, for people that work on it.
//!
//! The alias is in `.cargo/config.toml`. `cmd` has one file a command; the files beside it are the
//! parts that commands share. A command is made of [`report::Step`]s, and `report` prints what came of
//! them. `tidy` holds the rules of the tree that no compiler checks, as tests.

mod apt;
#[cfg(test)]
mod cargo_runner;
mod cmd;
mod counts;
mod disk;
mod harness;
mod pool;
mod processors;
mod report;
mod run;
#[cfg(test)]
mod tidy;
mod toolchain;
mod tree;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cmd::{arches, bench, ci, client, demo, lint, snapshots, systems, test};
use crate::workspace::Workspace;

/// Commands of the workspace.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:
  cargo xtask demo                       show what the crates do, in a few seconds
  cargo xtask client mmtk                a collector on top, with its pauses
  cargo xtask test                       every test: unit, doc, loom, mutants, examples, paths
  cargo xtask test --fast unit           unit and integration tests, stress at a tenth
  cargo xtask test -p preempt loom       the models of one crate
  cargo xtask test-all-arches arm64      the tests of another architecture, emulated
  cargo xtask snapshots                  what differs from the snapshots, anywhere
  cargo xtask bench --peers              what everything costs, here and elsewhere
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
    Demo(demo::Options),
    /// Runs a program in `clients`, which uses the crates as others would, built for release
    Client(client::Options),
    /// Runs the tests and ends with a line `N passed, N failed`
    Test(test::Options),
    /// Runs the tests of all 13 architectures, emulated where the machine is another one, and with musl
    TestAllArches(arches::Options),
    /// Looks for differences from the snapshots on every architecture, and settles them
    Snapshots(snapshots::Options),
    /// Measures every cost that is promised, beside the least that could do and, with `--peers`, beside
    /// others' implementations
    Bench(bench::Options),
    /// Checks that the crates build for systems other than Linux
    CheckSystems(systems::Options),
    /// Checks the format, clippy, and the documentation; a warning is an error
    Lint,
    /// Runs everything that a change must pass: lint, test, demo, other systems, architectures
    /// (of one emulated one the tests of `sigctx`; `test-all-arches` has all)
    Ci(ci::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let workspace = Workspace::find();
    match cli.command {
        Task::Demo(options) => demo::command(&workspace, &options),
        Task::Client(options) => client::command(&workspace, &options),
        Task::Test(options) => test::command(&workspace, options),
        Task::TestAllArches(options) => arches::command(&workspace, &options),
        Task::Snapshots(options) => snapshots::command(&workspace, &options),
        Task::Bench(options) => bench::command(&workspace, &options),
        Task::CheckSystems(options) => systems::command(&workspace, &options),
        Task::Lint => lint::command(&workspace),
        Task::Ci(options) => ci::command(&workspace, &options),
    }
}
