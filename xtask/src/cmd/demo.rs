//! `cargo xtask demo`: the demonstration, the package `demo`, which uses all crates.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::report::{self, Progress, Step};
use crate::run;
use crate::workspace::Workspace;

const PACKAGE: [&str; 3] = ["--release", "-p", "demo"];
const LIMIT: Duration = Duration::from_mins(15);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Passed on, `--json` for example
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// The command. Its output is the demonstration's alone.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    // Built apart, so that cargo tells of a long build and is silent afterwards.
    report::tell("building the demonstration; the first time this takes a minute or more");
    let built = workspace.cargo(&["build"]).args(PACKAGE).status();
    if !built.is_ok_and(|status| status.success()) {
        report::tell("the demonstration does not build");
        return ExitCode::FAILURE;
    }
    let mut command = workspace.cargo(&["run", "--quiet"]);
    command.args(PACKAGE).arg("--").args(&options.args).stdin(std::process::Stdio::inherit());
    match command.status() {
        // Its own exit status, which `--help` explains. It has said what was wrong.
        Ok(status) if status.code().is_some() => ExitCode::from(status.code().unwrap_or(1) as u8),
        Ok(status) => {
            report::tell(&format!("the demonstration died: {status}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            report::tell(&format!("cannot run cargo: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs it as a check.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Step {
    let mut command = workspace.cargo(&["run", "--quiet"]);
    command.args(PACKAGE);
    progress.doing("building and running the demonstration");
    let ended = run::run(command, LIMIT, |line| progress.say(line));
    workspace.build_is_over("release");
    match ended {
        Ok(ended) if ended.success() => Step::passed(),
        Ok(ended) => Step::failed(format!("cargo xtask demo: {}", ended.how())),
        Err(why) => Step::failed(why),
    }
}
