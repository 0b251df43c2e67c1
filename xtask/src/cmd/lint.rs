//! `cargo xtask lint`: format, clippy, documentation: each without a warning.

use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::report::{self, Progress, Report, Step};
use crate::run;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_mins(30);
const NO_WARNING: [&str; 3] = ["--", "-D", "warnings"];

/// The command.
pub(crate) fn command(workspace: &Workspace) -> ExitCode {
    let mut report = Report::new(report::Kind::Checks, workspace);
    steps(workspace, &mut report);
    report.finish()
}

/// The checks as steps of a report.
pub(crate) fn steps(workspace: &Workspace, report: &mut Report) {
    report.step("format", |p| check(p, workspace.cargo(&["fmt", "--all", "--check"])));
    report.step("format of clients", |p| {
        let args = ["fmt", "--manifest-path", "clients/Cargo.toml", "--all", "--check"];
        check(p, workspace.cargo(&args))
    });
    // cargo fmt does not look into `cfg_select!`, which chooses among these.
    report.step("format of architectures", |p| {
        let files = workspace.root.join("crates/sigctx/src/arch");
        let mut command = Command::new("rustfmt");
        command.args(["--check", "--edition", "2024"]).current_dir(&workspace.root);
        match std::fs::read_dir(&files) {
            // With a folder's `mod.rs` all its files are looked at.
            Ok(entries) => command.args(
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .map(|path| if path.is_dir() { path.join("mod.rs") } else { path }),
            ),
            Err(error) => return Step::failed(format!("{}: {error}", files.display())),
        };
        check(p, command)
    });
    report.step("clippy", |p| {
        let mut command =
            workspace.cargo(&["clippy", "--workspace", "--all-targets", "--keep-going"]);
        command.args(NO_WARNING);
        check(p, command)
    });
    report.step("clippy of models", |p| {
        let crates = workspace.loom_crates();
        if crates.is_empty() {
            return Step::skipped("no crate has models");
        }
        // In the test profile a library is checked with its unit tests, and without the
        // integration tests, which are not for loom.
        let args = ["clippy", "--lib", "--profile", "test", "--keep-going"];
        let mut command = workspace.cargo_loom(&args, &workspace.target.join("loom"));
        command.args(crates.iter().flat_map(|name| ["-p", name])).args(NO_WARNING);
        let step = check(p, command);
        workspace.build_is_over("loom");
        step
    });
    report.step("documentation", |p| {
        let mut command = workspace.cargo(&["doc", "--workspace", "--no-deps", "--keep-going"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        check(p, command)
    });
}

fn check(progress: &Progress, command: Command) -> Step {
    let name = if command.get_program() == "rustfmt" {
        "rustfmt".to_owned()
    } else {
        let subcommand = command.get_args().next().unwrap_or_default();
        format!("cargo {}", subcommand.to_string_lossy())
    };
    progress.doing(&name);
    let ended = match run::run(command, LIMIT, |_| {}) {
        Ok(ended) => ended,
        Err(why) => return Step::failed(why),
    };
    if ended.success() {
        return Step::passed();
    }
    progress.say(&ended.output);
    // The words of cargo (no such command) and of rustup (component not there).
    let missing = ["no such command", "is not installed"].iter().any(|m| ended.output.contains(m));
    let hint = match name.as_str() {
        "cargo fmt" if missing => "; `rustup component add rustfmt` installs it",
        "cargo clippy" if missing => "; `rustup component add clippy` installs it",
        "cargo fmt" => "; `cargo fmt --all` sets it right",
        "rustfmt" => {
            "; `rustfmt --edition 2024 crates/sigctx/src/arch/*.rs crates/sigctx/src/arch/*/mod.rs` sets it right"
        }
        _ => "",
    };
    Step::failed(format!("{name}: {}{hint}", ended.how()))
}
