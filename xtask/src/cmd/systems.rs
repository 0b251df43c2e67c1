//! `cargo xtask check-systems`: the library crates build for systems other than Linux too, where
//! all that they do is to say that they do not work there. Only checked: nothing links or runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{Cell, Color};
use serde_json::Value;

use crate::harness;
use crate::report::{self, Progress, Report, Step, painted, seconds, table, trimmed};
use crate::run;
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_mins(20);

/// The directory that targets are built in.
const BUILDS: &str = "systems";

/// The targets, each with the parts of the standard library that it has.
const TARGETS: [(&str, &str); 8] = [
    ("aarch64-apple-darwin", UNWIND),
    ("x86_64-unknown-freebsd", UNWIND),
    ("x86_64-unknown-openbsd", UNWIND),
    ("x86_64-unknown-netbsd", UNWIND),
    ("x86_64-unknown-illumos", UNWIND),
    ("x86_64-pc-windows-msvc", UNWIND),
    ("wasm32-unknown-unknown", ABORT),
    ("wasm32-wasip1", ABORT),
];
const UNWIND: &str = "std,panic_unwind";
const ABORT: &str = "std,panic_abort";

#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:
  cargo xtask check-systems
  cargo xtask check-systems aarch64-apple-darwin wasm32-wasip1

A warning is a failure. The standard library is checked from its sources where the default compiler
does not have it: `rustup component add rust-src`, or Debian's rustc-web, cargo-web, rust-web-src.")]
pub(crate) struct Options {
    /// Only these; all when none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// The command.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    let mut report = Report::new(report::Kind::Checks, workspace);
    report.step("other systems", |progress| step(workspace, options, progress));
    report.finish()
}

pub(crate) fn step(workspace: &Workspace, options: &Options, progress: &Progress) -> Step {
    let selected = match select(&options.targets) {
        Ok(selected) => selected,
        Err(why) => return Step::failed(why),
    };
    let compilers = toolchain::compilers(workspace);
    let crates = workspace.crates();
    let mut step = Step::passed();
    let mut header = vec!["target".to_owned(), "std".to_owned()];
    header.extend(crates.iter().cloned());
    header.push("time".to_owned());
    let mut table = table([""; 0]);
    table.set_header(header);
    for (target, parts) in selected {
        let Some(toolchain) = toolchain::choose(&compilers, target) else {
            step.failures.push(format!(
                "{target}: no compiler has a standard library for it, nor its sources; get them \
                 with `{}`",
                toolchain::how_to_get_sources()
            ));
            continue;
        };
        let start = Instant::now();
        progress.doing(&format!("checking {target}"));
        let results = check(workspace, &toolchain, target, parts, &crates, progress);
        // A standard library is checked for each target: 200 MB that no other one can use.
        workspace.build_is_over(Path::new(BUILDS).join(target));
        let results = match results {
            Ok(results) => results,
            Err(why) => {
                step.failures.push(format!("{target}: {why}"));
                continue;
            }
        };
        let mut row = vec![Cell::new(target), Cell::new(toolchain.describe())];
        for (name, result) in crates.iter().zip(results) {
            let (text, colour) = match result {
                Checked::Clean => ("ok".to_owned(), Color::Green),
                Checked::Warned(1) => ("1 warning".to_owned(), Color::Red),
                Checked::Warned(n) => (format!("{n} warnings"), Color::Red),
                Checked::Failed => ("FAILED".to_owned(), Color::Red),
            };
            if !matches!(result, Checked::Clean) {
                step.failures.push(format!("{target}: {name}: {text}"));
            }
            row.push(painted(Cell::new(text), colour));
        }
        row.push(Cell::new(seconds(start.elapsed())));
        table.add_row(row);
    }
    step.details = Some(trimmed(&table));
    step
}

fn select(names: &[String]) -> Result<Vec<(&'static str, &'static str)>, String> {
    if let Some(name) = names.iter().find(|name| TARGETS.iter().all(|t| t.0 != *name)) {
        let all = TARGETS.map(|t| t.0).join(", ");
        return Err(format!("`{name}` is not among the targets: {all}"));
    }
    let taken = |t: &(&str, &str)| names.is_empty() || names.iter().any(|name| name == t.0);
    Ok(TARGETS.into_iter().filter(taken).collect())
}

/// What came of a crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checked {
    Clean,
    Warned(usize),
    /// It has an error, or one that it depends on has.
    Failed,
}

fn check(
    workspace: &Workspace,
    toolchain: &Toolchain,
    target: &str,
    parts: &str,
    crates: &[String],
    progress: &Progress,
) -> Result<Vec<Checked>, String> {
    let mut cargo = toolchain.cargo(workspace, "check", parts);
    cargo
        .args(["--lib", "--keep-going", "--message-format=json", "--target", target])
        .args(crates.iter().flat_map(|name| ["-p", name]))
        .env("CARGO_TARGET_DIR", workspace.target.join(BUILDS));
    let mut messages = Messages::default();
    let ended = run::run(cargo, LIMIT, |line| {
        if let Ok(message) = serde_json::from_str::<Value>(line)
            && let Some(text) = messages.take(&message)
        {
            progress.say(text);
        }
    })?;
    let results: Vec<_> = crates.iter().map(|name| messages.result(name)).collect();
    // Then cargo failed before, or beside, the crates: what it said is the reason.
    if !ended.success() && messages.errors == 0 {
        let said = harness::beside_messages(&ended.output);
        return Err(format!("cargo check: {}\n{said}", ended.how()));
    }
    Ok(results)
}

/// What cargo has said so far.
#[derive(Debug, Default)]
struct Messages {
    done: Vec<String>,
    warnings: BTreeMap<String, usize>,
    errors: usize,
}

impl Messages {
    /// Takes a message of cargo's; returns what it has to say to people.
    fn take<'m>(&mut self, message: &'m Value) -> Option<&'m str> {
        let name = message["target"]["name"].as_str()?;
        match message["reason"].as_str()? {
            "compiler-artifact" => {
                self.done.push(name.to_owned());
                None
            }
            "compiler-message" => {
                let inner = &message["message"];
                // The summary (`2 warnings emitted`) has no place in the code.
                let in_code = inner["spans"].as_array().is_some_and(|spans| !spans.is_empty());
                if inner["level"] == "warning" && in_code {
                    *self.warnings.entry(name.to_owned()).or_default() += 1;
                }
                self.errors += usize::from(inner["level"] == "error");
                inner["rendered"].as_str().map(str::trim_end)
            }
            _ => None,
        }
    }

    fn result(&self, name: &str) -> Checked {
        if !self.done.iter().any(|done| done == name) {
            return Checked::Failed;
        }
        self.warnings.get(name).map_or(Checked::Clean, |&number| Checked::Warned(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_are_selected_by_their_whole_name() {
        assert_eq!(select(&[]).unwrap().len(), TARGETS.len());
        let one = select(&["wasm32-wasip1".to_owned()]).unwrap();
        assert_eq!(one, [("wasm32-wasip1", ABORT)]);
        assert!(select(&["wasm32".to_owned()]).unwrap_err().contains("wasm32-unknown-unknown"));
    }

    #[test]
    fn crate_is_clean_only_when_it_was_built_without_a_warning() {
        let mut messages = Messages::default();
        let artifact = |n: &str| json!({"reason": "compiler-artifact", "target": {"name": n}});
        let warning = |n: &str, spans: Value| {
            json!({"reason": "compiler-message", "target": {"name": n},
                "message": {"level": "warning", "rendered": "warning: x\n", "spans": spans}})
        };
        assert_eq!(messages.take(&artifact("sigctx")), None);
        assert_eq!(messages.take(&warning("preempt", json!([{"line": 1}]))), Some("warning: x"));
        messages.take(&warning("preempt", json!([])));
        messages.take(&artifact("preempt"));
        messages.take(&warning("allthreads", json!([{"line": 1}])));
        assert_eq!(messages.result("sigctx"), Checked::Clean);
        assert_eq!(messages.result("preempt"), Checked::Warned(1));
        assert_eq!(messages.result("allthreads"), Checked::Failed);
        assert_eq!(messages.result("safepoint"), Checked::Failed);
    }
}
