//! Ours beside another commit's: both built, and measured in turns.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment};

use super::job::{Job, Program};
use super::measure::{self, Plan};
use super::program::{self, Programs};
use super::rows::{Group, Row};
use super::samples::{Samples, p50};
use super::table::human;
use crate::report::{Progress, table, trimmed};
use crate::run;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_mins(2);

/// Checks another commit out below the build directory, and builds its benches.
pub(super) fn build(
    workspace: &Workspace,
    commit: &str,
    progress: &Progress,
) -> Result<PathBuf, String> {
    let tree = workspace.target.join("against/tree");
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&workspace.root).args(args).stdin(Stdio::null());
        let ended = run::run(command, LIMIT, |_| {})?;
        let output = ended.output.trim().to_owned();
        if ended.success() { Ok(output) } else { Err(format!("git {}: {output}", args.join(" "))) }
    };
    let commit = git(&["rev-parse", "--verify", "--quiet", &format!("{commit}^{{commit}}")])
        .map_err(|_| format!("`{commit}` is no commit of this repository"))?;
    let at = tree.to_string_lossy().into_owned();
    if tree.exists() {
        git(&["worktree", "remove", "--force", &at])?;
    }
    // One that was deleted by hand is still known.
    git(&["worktree", "prune"])?;
    git(&["worktree", "add", "--detach", "--force", &at, &commit])?;
    let built = build_there(workspace, &commit, progress);
    git(&["worktree", "remove", "--force", &at])?;
    built
}

fn build_there(
    workspace: &Workspace,
    commit: &str,
    progress: &Progress,
) -> Result<PathBuf, String> {
    let short = &commit[..commit.len().min(12)];
    let (tree, target) = (workspace.target.join("against/tree"), workspace.target.join("against"));
    let main = tree.join("benches/src/main.rs");
    if !fs::read_to_string(main).is_ok_and(|text| text.contains("const PROBES")) {
        return Err(format!(
            "{short} has no such bench: its package `benches` is not a program with probes, so there \
             is nothing to compare with"
        ));
    }
    progress.doing(&format!("building the benches of {short}"));
    let mut cargo = workspace.cargo(&["build"]);
    cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
    program::build(cargo, &target, progress)
}

/// The same groups with ours and the other commit's program alone. Rows keep what they are.
fn own_jobs(group: &Group, program: Program) -> Vec<Job> {
    let own = group.jobs.iter().filter(|job| job.program == Program::Ours);
    own.map(|job| Job { program, ..job.clone() }).collect()
}

/// Measures all groups and returns the table.
pub(super) fn compare(
    groups: &[Group],
    programs: &Programs,
    plan: Plan,
    progress: &Progress,
) -> String {
    let mut all = table(["row", "here", "there", "here / there"]);
    let mut failures = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        progress.doing(&format!("{} of {}: {}", at + 1, groups.len(), group.rows[0].what));
        let (mut here, mut there) = (Samples::new(), Samples::new());
        let sides = [(Program::Ours, &mut here), (Program::Base, &mut there)];
        let one = Plan { rounds: 1, ..plan };
        let mut sides = sides.map(|(program, samples)| (own_jobs(group, program), samples));
        for _ in 0..plan.rounds {
            for (jobs, samples) in &mut sides {
                failures.extend(measure::rounds(jobs, programs, one, samples));
            }
        }
        for row in &group.rows {
            all.add_row(cells(row, &here, &there));
        }
    }
    progress.idle();
    failures.sort_unstable();
    failures.dedup();
    let mut lines = vec![trimmed(&all)];
    lines.extend(failures.iter().map(|why| format!("Failed: {why}")));
    lines.join("\n")
}

fn cells(row: &Row, here: &Samples, there: &Samples) -> [Cell; 4] {
    let [ours, theirs] = [here, there].map(|samples| p50(samples, row.side));
    let text = |number: Option<f64>| number.map_or("–".to_owned(), |n| human(n, row.unit));
    let ratio = ours.zip(theirs).map_or("–".to_owned(), |(a, b)| format!("{:.2}", a / b));
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    [Cell::new(&row.name), right(text(ours)), right(text(theirs)), right(ratio)]
}

#[cfg(test)]
mod tests {
    use super::super::rows::groups;
    use super::*;

    #[test]
    fn only_our_program_is_compared() {
        let groups = groups();
        let peers = groups.iter().find(|group| group.jobs.len() > 2).unwrap();
        let jobs = own_jobs(peers, Program::Base);
        assert!(!jobs.is_empty() && jobs.iter().all(|job| job.program == Program::Base));
    }

    #[test]
    fn ratio_is_here_over_there() {
        let row = &groups()[0].rows[0];
        let samples = |time| Samples::from([("ours".to_owned(), vec![time])]);
        let text = |cells: [Cell; 4]| cells.map(|cell| cell.content());
        let [_, here, there, ratio] = text(cells(row, &samples(3.0), &samples(2.0)));
        assert_eq!([here, there, ratio], ["3.00 ns", "2.00 ns", "1.50"]);
        let [.., ratio] = text(cells(row, &samples(3.0), &Samples::new()));
        assert_eq!(ratio, "–");
    }

    #[test]
    fn unknown_commit_is_refused() {
        let error = build(&Workspace::find(), "no-such-commit", &Progress::new()).unwrap_err();
        assert!(error.contains("`no-such-commit` is no commit"), "{error}");
    }
}
