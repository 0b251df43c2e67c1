//! `cargo xtask client`: the programs in `clients`, which use the crates as others would.

use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;

use clap::Args;

use super::program;
use crate::report;
use crate::workspace::Workspace;

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
    let package = ["--release", "--manifest-path", "clients/Cargo.toml", "-p", &package];
    program::run(workspace, &format!("the client {name}"), &package, &options.args)
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
