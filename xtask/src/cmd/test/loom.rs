//! The models of the protocols, explored by loom.

use std::time::Duration;

use super::Selection;
use crate::counts::{self, Counts};
use crate::report::{Progress, Step, seconds};
use crate::run;
use crate::workspace::Workspace;

/// For one crate, its build included.
const LIMIT: Duration = Duration::from_mins(20);

pub(crate) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    let mut crates = workspace.loom_crates();
    crates.retain(|name| selection.takes_crate(name));
    if crates.is_empty() {
        return Step::skipped("no crate chosen has models");
    }
    let target = workspace.target.join("loom");
    let mut step = Step::default();
    for name in crates {
        progress.doing(&format!("models of {name}: building and exploring"));
        let args = ["test", "-p", &name, "--release", "--lib", "--no-fail-fast"];
        let mut command = workspace.cargo_loom(&args, &target);
        command.args(&selection.filter);
        let ended = match run::run(command, LIMIT, |_| {}) {
            Ok(ended) => ended,
            Err(why) => return Step::failed(why),
        };
        let counts = counts::libtest(&ended.output).counts;
        step.counts += counts;
        let time = seconds(ended.time);
        if !ended.success() {
            progress.say(&ended.output);
            step.failures.push(format!("models of {name}: {}", ended.how()));
            if counts.failed == 0 {
                step.counts.failed += 1;
            }
        } else if counts == Counts::default() && selection.filter.is_none() {
            step.failures.push(format!("{name} depends on loom, but has no model"));
            step.counts.failed += 1;
        }
        progress.say(&format!("models of {name}: {counts} in {time}"));
    }
    workspace.build_is_over("loom");
    step
}
