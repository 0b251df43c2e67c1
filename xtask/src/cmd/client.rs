//! `cargo xtask client`: the programs in `clients`, which use the crates as others would.

use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::program;
use crate::report::{self, Progress, Step, seconds};
use crate::run;
use crate::workspace::Workspace;

/// Not among the checks: what it depends on takes minutes to build.
const LARGE: &str = "mmtk";
/// For one of the others, with its build.
const LIMIT: Duration = Duration::from_mins(15);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which: `mmtk` for example; all are listed without one
    name: Option<String>,
    /// Passed on, `--help` for example
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// The command. Its output is the client's alone.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    let all = names(workspace);
    let Some(name) = options.name.as_ref().filter(|name| all.contains(name)) else {
        report::tell(&format!("there are these clients: {}", all.join(", ")));
        return if options.name.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    let package = format!("{name}-client");
    program::run(workspace, &format!("the client {name}"), &arguments(&package), &options.args)
}

/// What cargo is told of a client.
fn arguments(package: &str) -> [&str; 5] {
    ["--release", "--manifest-path", "clients/Cargo.toml", "-p", package]
}

/// Runs them as checks: each looks at what it has done.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Step {
    let mut step = Step::default();
    for name in names(workspace).iter().filter(|name| *name != LARGE) {
        progress.doing(&format!("building and running the client {name}"));
        let mut command = workspace.cargo(&["run", "--quiet"]);
        command.args(arguments(&format!("{name}-client")));
        command.arg("--target-dir").arg(workspace.target.join("clients"));
        let ended = run::run(command, LIMIT, |_| {}).and_then(|ended| {
            if ended.success() {
                progress.say(&format!("the client {name} ran in {}", seconds(ended.time)));
                return Ok(());
            }
            progress.say(&ended.output);
            Err(ended.how())
        });
        step.add(ended.map_err(|why| format!("cargo xtask client {name}: {why}")));
    }
    workspace.build_is_over("clients");
    step
}

/// The clients: the directories with a manifest.
pub(crate) fn names(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.root.join("clients")).into_iter().flatten().flatten();
    let dirs = entries.map(|entry| entry.path()).filter(|dir| dir.join("Cargo.toml").is_file());
    let name = |name: &OsStr| name.to_string_lossy().into_owned();
    let mut names: Vec<_> = dirs.filter_map(|dir| dir.file_name().map(name)).collect();
    names.sort_unstable();
    names
}
