//! `cargo xtask demo`: the demonstration, the package `demo`, which uses all crates.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::program;
use crate::report::{Progress, Step};
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
    program::run(workspace, "the demonstration", &PACKAGE, &options.args)
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
