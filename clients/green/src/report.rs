//! What a run has shown.

use std::error::Error;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::scheduler::Seen;

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) lasted: Duration,
    /// How much of the time of its threads the kernel gave the process, 1: all.
    pub(crate) given: f64,
    pub(crate) slice: Duration,
    pub(crate) threads: usize,
    pub(crate) shares: Vec<Share>,
    /// Of a light task.
    pub(crate) fewest: u64,
    /// Of all light tasks.
    pub(crate) runs: u64,
    pub(crate) seen: Seen,
}

/// What a loop got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) rounds: u64,
    pub(crate) time: Duration,
    pub(crate) slices: usize,
    /// Of the rounds. 1: as much as the loops got on average.
    pub(crate) of_rounds: f64,
    /// Of the slices.
    pub(crate) of_slices: f64,
}

/// Below it the kernel decides which slice is a long one: then slices are compared, and no rounds.
const MOSTLY: f64 = 0.9;
/// How far from its share a loop may be.
pub(crate) const TOLERANCE: f64 = 0.2;
/// So many slices of others a light task waits at most.
const MOST_SLICES: usize = 2;

impl Run {
    /// How many slices have ended.
    pub(crate) fn preempted(&self) -> usize {
        self.seen.slices.values().sum()
    }

    /// Whether all was as it should be.
    pub(crate) fn check(&self) -> Result<(), Box<dyn Error>> {
        for (number, share) in self.shares.iter().enumerate() {
            let of_rounds = Some(share.of_rounds).filter(|_| self.given >= MOSTLY);
            for (of, what) in [(Some(share.of_slices), "slices"), (of_rounds, "rounds")] {
                if of.is_some_and(|of| (of - 1.0).abs() > TOLERANCE) {
                    return Err(format!("loop {number} got other than its share of {what}").into());
                }
            }
        }
        if self.fewest == 0 {
            return Err("a light task has not run".into());
        }
        if self.seen.most_slices > MOST_SLICES {
            return Err("a light task waited for more than two slices".into());
        }
        Ok(())
    }
}

pub(crate) fn text(run: &Run) -> String {
    let rows = run.shares.iter().enumerate().map(|(number, share)| {
        vec![
            format!("loop {number}"),
            format!("{:.0} ms", share.time.as_secs_f64() * 1e3),
            share.slices.to_string(),
            format!("{:.3}", share.of_slices),
            format!("{:.1} M", share.rounds as f64 / 1e6),
            format!("{:.3}", share.of_rounds),
        ]
    });
    let title = ["", "ran for", "slices", "of its share", "rounds", "of its share"]
        .map(str::to_owned)
        .to_vec();
    let rows: Vec<_> = std::iter::once(title).chain(rows).collect();
    let seen = &run.seen;
    let wait = |of| format!("{:.1} ms", seen.waits.value_at_quantile(of) as f64 / 1e3);
    let facts = [
        ("threads", run.threads.to_string()),
        ("slice", format!("{:?}", run.slice)),
        ("processors had", format!("{:.0} %", run.given * 100.0)),
        ("preempted", run.preempted().to_string()),
        ("runs of light tasks", run.runs.to_string()),
        ("fewest of one", run.fewest.to_string()),
        ("stolen", seen.stolen.to_string()),
        ("from due to running, p50", wait(0.5)),
        ("p99", wait(0.99)),
        ("max", wait(1.0)),
        ("slices met meanwhile, max", seen.most_slices.to_string()),
    ];
    let facts = facts.map(|(what, value)| vec![what.to_owned(), value]);
    format!("{}\n\n{}", lines(&rows), lines(&facts))
}

/// Without lines; all but the first column to the right.
fn lines(rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
