//! The rows of the table: what is measured, by which programs, and what it is to be.
//!
//! A [`Group`] is what is measured in turns, one program after the other, again and again; its rows are
//! read from the same samples. A new barrier of `allthreads` is a line in [`BARRIERS`], and one in
//! `benches/src/all.rs`.

use super::job::{Job, Program};

/// What a row's times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Time,
    Kibibytes,
}

/// A target.
#[derive(Debug, Clone)]
pub(super) enum Limit {
    /// At most so much: nanoseconds or KiB.
    Below(f64),
    /// At most so many times the least of these sides.
    Times(f64, &'static [&'static str]),
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) what: String,
    /// The side that is ours.
    pub(super) side: &'static str,
    pub(super) unit: Unit,
    pub(super) limits: Vec<Limit>,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) jobs: Vec<Job>,
    pub(super) rows: Vec<Row>,
}

/// How a call on every thread may end, by its side's name: with several threads, what it is to be.
pub(super) const BARRIERS: [(&str, Limit); 3] = [
    ("strict", Limit::Times(1.5, &["glibc"])),
    ("early", Limit::Times(1.2, &["glibc"])),
    ("one-phase", Limit::Times(1.0, &["glibc", "musl", "libpsx", "Go"])),
];

fn row(name: &str, what: &str, limits: &[Limit]) -> Row {
    let (name, what) = (name.to_owned(), what.to_owned());
    Row { name, what, side: "ours", unit: Unit::Time, limits: limits.to_vec() }
}

fn group(row: Row, jobs: &[Job]) -> Group {
    Group { jobs: jobs.to_vec(), rows: vec![row] }
}

/// All groups, in the order of the table.
pub(super) fn groups() -> Vec<Group> {
    let mut groups = fast();
    groups.extend(stops());
    groups.extend(suspensions());
    groups.extend(all_threads());
    groups.extend(threads());
    groups
}

/// What threads pay while nothing is asked.
fn fast() -> Vec<Group> {
    let times = |most, side| [Limit::Times(most, side)];
    vec![
        group(
            row("poll", "a poll, in a loop of one store", &times(1.1, &["load"])),
            &[Job::ours("poll", 0)],
        ),
        group(
            row("region", "a safe region", &[Limit::Below(0.6)]),
            &[Job::ours("region", 0), Job::of(Program::Urcu, 0, "")],
        ),
        group(
            row("region-full", "a safe region, fully fenced", &times(1.1, &["mfence"])),
            &[Job::ours("region-full", 0)],
        ),
        group(
            row("region-roots", "a safe region, in a world with roots", &[]),
            &[Job::ours("region-roots", 0)],
        ),
        group(
            row("current", "`threadreg::current()`", &times(2.0, &["thread-local"])),
            &[Job::ours("current", 0)],
        ),
        group(
            row("no-preempt", "a guard against preemption", &times(1.5, &["counter"])),
            &[Job::ours("no-preempt", 0)],
        ),
        group(
            row("injection", "an injected call, above an empty handler", &[Limit::Below(80.0)]),
            &[Job::ours("injection", 0), Job::of(Program::Trampoline, 0, "")],
        ),
    ]
}

fn stops() -> Vec<Group> {
    const COLLECTORS: &[&str] = &["bdwgc", "HotSpot"];
    let polling = |threads: usize, limit: Limit| {
        let what = format!("stop {threads} that poll");
        let row = row(&format!("stop-poll-{threads}"), &what, &[limit]);
        let jobs = [
            Job::ours("stop-poll", threads),
            Job::ours("floor-stop-poll", threads),
            Job::of(Program::Bdwgc, threads, "spin"),
            Job::of(Program::HotSpot, threads, "loop"),
        ];
        group(row, &jobs)
    };
    let safe = |threads: usize| {
        let limits = [Limit::Times(0.8, &["bdwgc"]), Limit::Times(2.5, &["scan"])];
        let what = format!("stop {threads} that are safe");
        let row = row(&format!("stop-safe-{threads}"), &what, &limits);
        let jobs = [
            Job::ours("stop-safe", threads),
            Job::ours("floor-stop-safe", threads),
            Job::of(Program::Bdwgc, threads, "safe"),
            Job::of(Program::HotSpot, threads, "park"),
        ];
        group(row, &jobs)
    };
    let deaf = [Limit::Times(0.7, &["bdwgc"]), Limit::Times(1.3, &["tgkill"])];
    vec![
        group(
            row("stop-deaf", "stop a loop that never polls", &deaf),
            &[
                Job::ours("stop-deaf", 1),
                Job::ours("floor-signal", 1),
                Job::of(Program::Bdwgc, 1, "spin"),
            ],
        ),
        polling(1, Limit::Times(1.2, &["flag"])),
        polling(10, Limit::Times(1.0, COLLECTORS)),
        polling(100, Limit::Times(1.0, COLLECTORS)),
        safe(1000),
        safe(4000),
        group(
            row("each-poll-1", "for-each, 1 that polls", &[Limit::Below(300.0)]),
            &[
                Job::ours("each-poll", 1),
                Job::ours("floor-flag", 1),
                Job::of(Program::HotSpot, 1, "handshake"),
            ],
        ),
        group(
            row("each-safe-1000", "for-each, 1000 that are safe", &[Limit::Below(5000.0)]),
            &[Job::ours("each-safe", 1000), Job::ours("floor-stop-safe", 1000)],
        ),
        // Beside what else reaches that mutator, and all others with it.
        handshake("poll", 1, "handshake, 1 that polls", 1.5),
        handshake("safe", 1, "handshake, 1 that is safe", 1.6),
        handshake("safe", 1000, "handshake, 1 of 1000 that are safe", 0.8),
    ]
}

/// A handshake with one mutator of several: at most so many times a for-each, and a stop.
fn handshake(how: &str, threads: usize, what: &str, most: f64) -> Group {
    let limits = [Limit::Times(most, &["for-each"]), Limit::Times(most, &["stop"])];
    let row = row(&format!("handshake-{how}-{threads}"), what, &limits);
    let probe = if how == "poll" { "handshake-poll" } else { "handshake-safe" };
    group(row, &[Job::ours(probe, threads)])
}

fn suspensions() -> Vec<Group> {
    let suspend = row("suspend", "suspend a task that runs", &[Limit::Times(1.25, &["tgkill"])]);
    let again = row("resume", "until it runs again", &[Limit::Below(1500.0)]);
    let jobs = vec![Job::ours("suspend", 1), Job::ours("floor-signal", 1)];
    vec![Group { jobs, rows: vec![suspend, Row { side: "again", ..again }] }]
}

fn all_threads() -> Vec<Group> {
    let cell = |threads: usize, word: &'static str| {
        let rows = BARRIERS.iter().map(|(side, limit)| {
            // One thread beside the requester: what an operation costs before the first wake-up.
            let limit = if threads == 1 { Limit::Times(1.5, &["glibc"]) } else { limit.clone() };
            let how = match word {
                "park" => "parked",
                "read" => "in `read`",
                _ => "spinning",
            };
            let what = format!("a call on {threads} threads, {how}: {side}");
            Row { side, ..row(&format!("all-{threads}-{word}-{side}"), &what, &[limit]) }
        });
        Group { jobs: Job::on_all_threads(threads, word), rows: rows.collect() }
    };
    let batch = |threads: usize| {
        let limits = [Limit::Times(0.3, &["libpsx"])];
        let what = format!("a batch of 5 calls on {threads} threads: strict");
        let row = row(&format!("batch-{threads}"), &what, &limits);
        let mut jobs = Job::on_all_threads(threads, "batch");
        jobs.retain(|job| matches!(job.program, Program::Ours | Program::Libpsx));
        group(Row { side: "strict", ..row }, &jobs)
    };
    let parked = [1, 10, 100, 1000, 4000].map(|threads| cell(threads, "park"));
    let others = [cell(100, "read"), cell(10, "spin")];
    let batches = [1, 10, 100, 1000].map(batch);
    parked.into_iter().chain(others).chain(batches).collect()
}

fn threads() -> Vec<Group> {
    let memory = row("memory", "resident memory of a thread", &[Limit::Below(16.0)]);
    let memory = Row { unit: Unit::Kibibytes, ..memory };
    vec![
        group(memory, &[Job::ours("memory", 1000), Job::ours("memory-std", 1000)]),
        group(
            row("spawn", "spawn and join", &[Limit::Times(1.03, &["std"])]),
            &[Job::ours("spawn", 0)],
        ),
        group(row("attach", "attach and detach", &[]), &[Job::ours("attach", 0)]),
        group(row("walk", "the walk over 1000, a thread", &[]), &[Job::ours("walk", 1000)]),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let groups = groups();
        let names: Vec<_> = groups.iter().flat_map(|g| &g.rows).map(|row| &row.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        assert!(groups.iter().all(|group| !group.jobs.is_empty() && !group.rows.is_empty()));
    }
}
