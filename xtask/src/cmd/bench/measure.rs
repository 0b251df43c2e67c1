//! Measures groups: their programs in turns, round after round, so that what else the machine does falls
//! on all of them.

use std::collections::BTreeSet;

use super::job::Job;
use super::machine::{self, Load};
use super::program::Programs;
use super::rows::Group;
use super::samples::{self, Samples};
use crate::report::Progress;

/// How much of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// Of each side in a round.
    pub(super) samples: usize,
    /// When a program is to end with fewer.
    pub(super) milliseconds: u64,
}

impl Plan {
    pub(super) const FULL: Self = Self { rounds: 5, samples: 200, milliseconds: 300 };
    /// Each side once, as a test.
    pub(super) const SMOKE: Self = Self { rounds: 1, samples: 3, milliseconds: 50 };
}

/// What came of a group.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) group: Group,
    pub(super) samples: Samples,
    /// Of the programs that were called.
    pub(super) failures: Vec<String>,
    pub(super) load: Load,
}

/// Measures each group. Programs that are not there are left out.
pub(super) fn all(
    groups: Vec<Group>,
    programs: &Programs,
    plan: Plan,
    progress: &Progress,
) -> Vec<Measured> {
    let count = groups.len();
    let numbered = groups.into_iter().enumerate();
    let measure = |(at, group): (usize, Group)| {
        progress.doing(&format!("{} of {count}: {}", at + 1, group.rows[0].what));
        one(group, programs, plan)
    };
    let measured = numbered.map(measure).collect();
    progress.idle();
    measured
}

fn one(group: Group, programs: &Programs, plan: Plan) -> Measured {
    let mut samples = Samples::new();
    let before = machine::now();
    let failures = rounds(&group.jobs, programs, plan, &mut samples);
    let load = before.zip(machine::now()).map(|(before, after)| machine::between(before, after));
    Measured { group, samples, failures, load: load.unwrap_or_default() }
}

/// The programs in turns. Returns why calls failed; one that does is not called again.
pub(super) fn rounds(
    jobs: &[Job],
    programs: &Programs,
    plan: Plan,
    samples: &mut Samples,
) -> Vec<String> {
    let mut failed = BTreeSet::new();
    let mut failures = Vec::new();
    for _ in 0..plan.rounds {
        for job in jobs.iter().filter(|job| programs.has(job.program)) {
            let name = job.name();
            if failed.contains(&name) {
                continue;
            }
            let output = programs.call(job, plan.samples, plan.milliseconds);
            let added = output.and_then(|output| {
                samples::add(&output, samples).map_err(|why| format!("{name}: {why}"))
            });
            if let Err(why) = added {
                failures.push(why);
                failed.insert(name);
            }
        }
    }
    failures
}
