//! `cargo xtask client`: the programs in `clients`, which use the crates as others would.

use std::ffi::OsStr;
use std::fs;
use std::process::{ExitCode, Stdio};

use clap::Args;

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
    // Built apart, so that cargo tells of a long build and is silent afterwards.
    report::tell("building the client; the first time this takes some minutes");
    let built = workspace.cargo(&["build"]).args(package).status();
    if !built.is_ok_and(|status| status.success()) {
        report::tell("the client does not build");
        return ExitCode::FAILURE;
    }
    let mut command = workspace.cargo(&["run", "--quiet"]);
    command.args(package).arg("--").args(&options.args).stdin(Stdio::inherit());
    match command.status() {
        // It has said what was wrong.
        Ok(status) if status.code().is_some() => ExitCode::from(status.code().unwrap_or(1) as u8),
        Ok(status) => {
            report::tell(&format!("the client died: {status}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            report::tell(&format!("cannot run cargo: {error}"));
            ExitCode::FAILURE
        }
    }
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
