//! How costs grow with the number of threads: ours and the peers', on all processors and on one.

use std::collections::BTreeMap;
use std::thread;

use super::job::{Job, Program};
use super::machine::{self, Load};
use super::measure::{self, Plan};
use super::model::{Costs, Point, fit};
use super::program::Programs;
use super::rows::BARRIERS;
use super::samples::{Samples, p50};
use crate::processors;
use crate::report::Progress;

/// Numbers of threads, unless others are asked for.
pub(super) const SIZES: [usize; 7] = [1, 4, 16, 64, 256, 1000, 4000];

/// One picture.
#[derive(Debug, Clone)]
pub(super) struct Panel {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// The sides that are ours, and fitted.
    pub(super) ours: Vec<&'static str>,
    /// Made for a number of threads.
    jobs: fn(usize) -> Vec<Job>,
}

/// What was measured for a panel.
#[derive(Debug)]
pub(super) struct Grown {
    pub(super) panel: Panel,
    /// On all processors, by side.
    pub(super) curves: BTreeMap<String, Vec<Point>>,
    /// Of our sides, with those on one processor.
    pub(super) costs: BTreeMap<&'static str, (Costs, f64)>,
    pub(super) failures: Vec<String>,
    pub(super) load: Load,
}

pub(super) fn panels() -> Vec<Panel> {
    let panel = |name, title, jobs| Panel { name, title, ours: vec!["ours"], jobs };
    vec![
        panel("stop-safe", "stop, all safe", |n| {
            vec![
                Job::ours("stop-safe", n),
                Job::ours("floor-stop-safe", n),
                Job::of(Program::Bdwgc, n, "safe"),
                Job::of(Program::HotSpot, n, "park"),
            ]
        }),
        panel("stop-poll", "stop, all polling", |n| {
            vec![
                Job::ours("stop-poll", n),
                Job::ours("floor-stop-poll", n),
                Job::of(Program::Bdwgc, n, "spin"),
                Job::of(Program::HotSpot, n, "loop"),
            ]
        }),
        panel("each", "for-each, all safe", |n| {
            vec![Job::ours("each-safe", n), Job::ours("floor-stop-safe", n)]
        }),
        Panel {
            name: "all",
            title: "a call on every thread, parked",
            ours: BARRIERS.iter().map(|(side, _)| *side).collect(),
            jobs: |n| Job::on_all_threads(n, "park"),
        },
        panel("suspend", "suspend one of them", |n| {
            vec![Job::ours("suspend", n), Job::ours("floor-signal", n)]
        }),
    ]
}

/// The sides that are not drawn: they measure something else.
const APART: [&str; 2] = ["resume", "again"];

/// Measures a panel. Polling and spinning threads are no more than `SPINNING`: each has to be given a
/// processor in its turn, and the time to make them and let them go grows with the square.
pub(super) fn measure(
    panel: Panel,
    sizes: &[usize],
    programs: &Programs,
    plan: Plan,
    progress: &Progress,
) -> Grown {
    const SPINNING: usize = 256;
    let mut curves: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    let mut on_one: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    let mut failures = Vec::new();
    let all = thread::available_parallelism().map_or(1, usize::from);
    let before = machine::now();
    for &threads in sizes.iter().filter(|&&n| panel.name != "stop-poll" || n <= SPINNING) {
        progress.doing(&format!("{}: {threads} threads", panel.title));
        let jobs = (panel.jobs)(threads);
        let mut samples = Samples::new();
        failures.extend(measure::rounds(&jobs, programs, plan, &mut samples));
        add(&samples, threads, all, &mut curves);
        // On one processor no other is interrupted, and all run in turns. Floors spin, each for a time slice
        // there; so does what waits for a suspended task to run again.
        let is_measured =
            |job: &Job| job.program == Program::Ours && !job.probe.starts_with("floor");
        let ours: Vec<_> = jobs.into_iter().filter(is_measured).collect();
        if all > 1 && panel.name != "suspend" {
            let mut samples = Samples::new();
            match on_one_processor(|| measure::rounds(&ours, programs, plan, &mut samples)) {
                Ok(failed) => failures.extend(failed),
                Err(why) => failures.push(why),
            }
            add(&samples, threads, 1, &mut on_one);
        }
    }
    let load = before.zip(machine::now()).map(|(before, after)| machine::between(before, after));
    let costs = panel.ours.iter().filter_map(|&side| {
        let points: Vec<_> = [&curves, &on_one]
            .iter()
            .filter_map(|points| points.get(side))
            .flatten()
            .copied()
            .collect();
        let costs = fit(&points)?;
        Some((side, (costs, costs.error(&points))))
    });
    let costs = costs.collect();
    progress.idle();
    Grown { panel, curves, costs, failures, load: load.unwrap_or_default() }
}

fn add(
    samples: &Samples,
    threads: usize,
    processors: usize,
    points: &mut BTreeMap<String, Vec<Point>>,
) {
    for side in samples.keys().filter(|side| !APART.contains(&side.as_str())) {
        if let Some(nanoseconds) = p50(samples, side) {
            points.entry(side.clone()).or_default().push(Point {
                threads,
                processors,
                nanoseconds,
            });
        }
    }
}

/// Calls `work` on a thread that has one processor, as have the programs that it starts.
fn on_one_processor<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let first = processors::allowed()?.into_iter().next().ok_or("no processor is allowed")?;
    let pinned = || first.pin().map(|()| work());
    thread::scope(|scope| scope.spawn(pinned).join().expect("measuring does not panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_points_without_those_of_other_things() {
        let samples = Samples::from([
            ("ours".to_owned(), vec![3.0, 1.0, 2.0]),
            ("resume".to_owned(), vec![9.0]),
        ]);
        let mut points = BTreeMap::new();
        add(&samples, 16, 2, &mut points);
        let point = Point { threads: 16, processors: 2, nanoseconds: 2.0 };
        assert_eq!(points, BTreeMap::from([("ours".to_owned(), vec![point])]));
    }

    #[test]
    fn one_processor_is_all_that_the_work_has() {
        let allowed = on_one_processor(|| processors::allowed().unwrap().len());
        assert_eq!(allowed, Ok(1));
    }
}
