//! Unit and integration tests, each in a process of its own: signal dispositions, the thread
//! registry and credentials belong to the process, so two tests in one would see each other.

use std::thread;

use super::Selection;
use crate::harness::{self, Launch, Test, Verdict};
use crate::pool::{self, Manner};
use crate::report::{Progress, Step};
use crate::workspace::{Workspace, has, how_to_get};

pub(crate) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    if !has("gdb") {
        progress.say(&format!("note: {}; the tests that use it are skipped", how_to_get("gdb")));
    }
    let launch = Launch { env: harness::environment(selection.stress), ..Launch::default() };
    let tests = match build(workspace, selection, &launch, progress) {
        Ok(tests) if tests.is_empty() => return Step::skipped("no test is selected"),
        Ok(tests) => tests,
        Err(why) => return Step::failed(why),
    };
    progress.say(&format!("{} tests", tests.len()));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let ((), mut rows) = pool::run(processors, |pool| {
        pool.add("unit", Manner::Native, tests, launch, progress.line());
    });
    let mut step = Step::default();
    for outcome in rows.remove(0).outcomes {
        step.counts += outcome.verdict.counts();
        if let Verdict::Failed { how, .. } = outcome.verdict {
            step.failures.push(format!("{}: {how}", outcome.name));
        }
    }
    step
}

/// The tests that are to run.
fn build(
    workspace: &Workspace,
    selection: &Selection,
    launch: &Launch,
    progress: &Progress,
) -> Result<Vec<Test>, String> {
    let crates = match selection.packages.as_slice() {
        [] => "all crates".to_owned(),
        some => some.join(", "),
    };
    progress
        .doing(&format!("building the tests of {crates}; the first time this takes some minutes"));
    let mut cargo = workspace.cargo(&["test"]);
    cargo.args(selection.package_args());
    let mut tests = harness::build_tests(cargo, launch, progress)?;
    tests.retain(|test| selection.takes(&test.name));
    Ok(tests)
}
