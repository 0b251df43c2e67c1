//! Every crate's examples: they must come to their end on their own, and have printed something.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Selection;
use crate::report::{Progress, Step, seconds};
use crate::run;
use crate::workspace::Workspace;

/// For one example, with its build.
const LIMIT: Duration = Duration::from_mins(5);

pub(super) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    let mut step = Step::default();
    for name in workspace.crates().into_iter().filter(|name| selection.takes_crate(name)) {
        let dir = workspace.root.join("crates").join(&name).join("examples");
        let examples = names(&dir).into_iter().filter(|e| selection.takes(e));
        for example in examples {
            progress.doing(&format!("{name}: example {example}"));
            let result = one(workspace, &name, &example, progress);
            step.add(result.map_err(|why| format!("{name}, example {example}: {why}")));
        }
    }
    if step.counts.passed + step.counts.failed == 0 {
        return Step::skipped("no example is selected");
    }
    step
}

/// The examples in a directory: `name.rs` or `name/main.rs`.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_one = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
        if let Some(stem) = path.file_stem().filter(|_| is_one) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    names
}

fn one(
    workspace: &Workspace,
    package: &str,
    example: &str,
    progress: &Progress,
) -> Result<(), String> {
    // The profile of the tests, which have built it already.
    let args = ["run", "--quiet", "--profile", "test", "-p", package, "--example", example];
    let ended = run::run(workspace.cargo(&args), LIMIT, |_| {})?;
    if !ended.success() {
        progress.say(&ended.output);
        return Err(ended.how());
    }
    if ended.output.trim().is_empty() {
        return Err("it prints nothing".to_owned());
    }
    progress.say(&format!("{package}: example {example} ran in {}", seconds(ended.time)));
    Ok(())
}
