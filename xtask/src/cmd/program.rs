//! Programs of the workspace that a command builds, and hands its terminal over to.

use std::process::{ExitCode, Stdio};

use crate::report;
use crate::workspace::Workspace;

/// Builds a program and runs it. The output, and the exit status, are its alone. `package` is what cargo is told of it.
pub(super) fn run(
    workspace: &Workspace,
    what: &str,
    package: &[&str],
    args: &[String],
) -> ExitCode {
    // Built apart, so that cargo tells of a long build and is silent afterwards.
    report::tell(&format!("building {what}; the first time this takes a minute or more"));
    let built = workspace.cargo(&["build"]).args(package).status();
    if !built.is_ok_and(|status| status.success()) {
        report::tell(&format!("{what} does not build"));
        return ExitCode::FAILURE;
    }
    let mut command = workspace.cargo(&["run", "--quiet"]);
    command.args(package).arg("--").args(args).stdin(Stdio::inherit());
    match command.status() {
        // Its own exit status, which its `--help` may explain. It has said what was wrong.
        Ok(status) if status.code().is_some() => ExitCode::from(status.code().unwrap_or(1) as u8),
        Ok(status) => {
            report::tell(&format!("{what} died: {status}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            report::tell(&format!("cannot run cargo: {error}"));
            ExitCode::FAILURE
        }
    }
}
