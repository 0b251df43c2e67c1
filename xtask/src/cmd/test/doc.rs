//! The code in the documentation.

use std::time::Duration;

use super::Selection;
use crate::counts;
use crate::harness;
use crate::report::{Progress, Step};
use crate::run;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_mins(20);

pub(crate) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    // Only a library has doc tests, and cargo refuses to look for them elsewhere.
    let mut crates = workspace.packages();
    crates.retain(|name| workspace.has_library(name) && selection.takes_crate(name));
    if crates.is_empty() {
        return Step::skipped("no library is selected");
    }
    progress.doing("building and running the documentation's code");
    let mut command = workspace.cargo(&["test", "--doc", "--no-fail-fast"]);
    command.args(crates.iter().flat_map(|name| ["-p", name]));
    command.args(&selection.filter);
    command.envs(harness::environment(selection.stress));
    let ended = match run::run(command, LIMIT, |_| {}) {
        Ok(ended) => ended,
        Err(why) => return Step::failed(why),
    };
    let mut step = Step { counts: counts::libtest(&ended.output).counts, ..Step::default() };
    if !ended.success() {
        progress.say(&ended.output);
        step.failures.push(format!("cargo test --doc: {}", ended.how()));
    }
    step
}
