//! What came of the rows: the table, the reasons why tests were skipped, the failures, JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color};
use serde_json::{Value, json};

use crate::counts::Counts;
use crate::harness::{Verdict, last_lines};
use crate::pool::Outcome;
use crate::report::{Step, number, painted, seconds, table, trimmed};

/// What came of a row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    /// Where the standard library comes from; empty when nothing was built.
    pub(crate) std: String,
    pub(crate) runner: String,
    pub(crate) end: End,
}

#[derive(Debug)]
pub(crate) enum End {
    /// The machine lacks something and that was to be no failure.
    LeftOut(String),
    /// The machine lacks something, or the tests did not build.
    Failed(String),
    Ran {
        build: Duration,
        /// With the build.
        all: Duration,
        outcomes: Vec<Outcome>,
    },
}

impl Row {
    fn outcomes(&self) -> &[Outcome] {
        match &self.end {
            End::Ran { outcomes, .. } => outcomes,
            _ => &[],
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        match &self.end {
            // A row that does not build must not look as if all were well.
            End::Failed(_) => counts.failed = 1,
            End::LeftOut(_) | End::Ran { .. } => {}
        }
        for outcome in self.outcomes() {
            counts += outcome.verdict.counts();
        }
        counts
    }

    /// How many of the tests that passed compare with a snapshot.
    fn snapshots(&self) -> usize {
        let is_one = |o: &&Outcome| o.verdict == Verdict::Passed && is_of_snapshots(&o.name);
        self.outcomes().iter().filter(is_one).count()
    }

    /// The tests that failed, or the row itself, each with its architecture, in a line.
    pub(crate) fn failed_names(&self) -> Vec<String> {
        let first = |how: &str| how.lines().next().unwrap_or_default().to_owned();
        let line = |(name, how, _): (String, String, String)| {
            let name = if name == self.name { name } else { format!("{} {name}", self.name) };
            format!("{name}: {}", first(&how))
        };
        self.failures().into_iter().map(line).collect()
    }

    /// Every failure: what failed, how, and the end of its output.
    fn failures(&self) -> Vec<(String, String, String)> {
        if let End::Failed(why) = &self.end {
            return vec![(self.name.to_owned(), why.clone(), String::new())];
        }
        let failure = |outcome: &Outcome| match &outcome.verdict {
            Verdict::Failed { how, output } => {
                Some((outcome.name.clone(), how.clone(), last_lines(output)))
            }
            _ => None,
        };
        self.outcomes().iter().filter_map(failure).collect()
    }
}

/// Whether a test, by its name, compares with a snapshot.
pub(crate) fn is_of_snapshots(name: &str) -> bool {
    let function = name.rsplit([' ', ':']).next().unwrap_or_default();
    function.starts_with("snapshot_")
}

/// The rows as one step of a report.
pub(crate) fn step(rows: &[Row]) -> Step {
    let mut step = Step::default();
    for row in rows {
        step.counts += row.counts();
        for (name, how, output) in row.failures() {
            let name = if name == row.name { name } else { format!("{} {name}", row.name) };
            let output = output.replace('\n', "\n    ");
            let output = if output.is_empty() { output } else { format!("\n    {output}") };
            step.failures.push(format!("{name}: {how}{output}"));
        }
    }
    step.details = Some(format!("{}{}", table_of(rows), reasons(rows)));
    step
}

pub(crate) fn table_of(rows: &[Row]) -> String {
    let mut table = table([
        "architecture",
        "target",
        "run by",
        "std",
        "built",
        "passed",
        "failed",
        "skipped",
        "snapshots",
        "time",
    ]);
    for row in rows {
        let Counts { passed, failed, skipped } = row.counts();
        let (built, time) = match &row.end {
            End::LeftOut(_) => ("skipped".to_owned(), "-".to_owned()),
            End::Failed(_) => ("FAILED".to_owned(), "-".to_owned()),
            End::Ran { build, all, .. } => (seconds(*build), seconds(*all)),
        };
        let colour = match &row.end {
            End::LeftOut(_) => Color::Yellow,
            _ if failed > 0 => Color::Red,
            _ => Color::Green,
        };
        table.add_row([
            painted(Cell::new(row.name), colour),
            Cell::new(row.target),
            Cell::new(&row.runner),
            Cell::new(&row.std),
            Cell::new(built),
            Cell::new(number(passed)),
            Cell::new(number(failed)),
            Cell::new(number(skipped)),
            Cell::new(number(row.snapshots() as u64)),
            Cell::new(time),
        ]);
    }
    for column in 4..=9 {
        let column = table.column_mut(column).expect("ten columns");
        column.set_cell_alignment(CellAlignment::Right);
    }
    trimmed(&table)
}

/// Every reason why something was skipped, with the tests, and the architectures of each.
fn reasons(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut by_reason: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for row in rows {
        if let End::LeftOut(why) = &row.end {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{} is left out: {}", row.name, why.replace('\n', "\n  "));
        }
        for outcome in row.outcomes() {
            if let Verdict::Skipped(why) = &outcome.verdict {
                let tests = by_reason.entry(why).or_default();
                tests.entry(&outcome.name).or_default().push(row.name);
            }
        }
    }
    for (reason, tests) in by_reason {
        let _ = write!(text, "\nskipped: {reason}");
        for (test, arches) in tests {
            let _ = write!(text, "\n  {test} ({})", arches.join(", "));
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// The same for programs.
pub(crate) fn json(rows: &[Row]) -> Value {
    let mut sum = Counts::default();
    let counts = |c: Counts| json!({"passed": c.passed, "failed": c.failed, "skipped": c.skipped});
    let row = |row: &Row| {
        let mut value = json!({
            "name": row.name,
            "target": row.target,
            "runner": row.runner,
            "std": row.std,
            "counts": counts(row.counts()),
            "snapshots": row.snapshots(),
        });
        let failures = row.failures().into_iter();
        value["failures"] = failures
            .map(|(name, how, output)| json!({"name": name, "how": how, "output": output}))
            .collect();
        match &row.end {
            End::LeftOut(why) => value["left_out"] = json!(why),
            End::Failed(_) => {}
            End::Ran { build, all, outcomes, .. } => {
                value["build_seconds"] = json!(build.as_secs_f64());
                value["seconds"] = json!(all.as_secs_f64());
                value["tests"] = outcomes.iter().map(test).collect();
            }
        }
        value
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|r| {
            sum += r.counts();
            row(r)
        })
        .collect();
    json!({"architectures": rows, "counts": counts(sum)})
}

fn test(outcome: &Outcome) -> Value {
    let mut value = json!({"name": outcome.name, "seconds": outcome.time.as_secs_f64()});
    match &outcome.verdict {
        Verdict::Passed => value["result"] = json!("passed"),
        Verdict::Failed { .. } => value["result"] = json!("failed"),
        Verdict::Skipped(reason) => {
            value["result"] = json!("skipped");
            value["reason"] = json!(reason);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, verdict: Verdict) -> Outcome {
        Outcome { name: name.to_owned(), verdict, time: Duration::from_millis(1500) }
    }

    fn row(name: &'static str, end: End) -> Row {
        Row { name, target: "t-unknown-linux-gnu", std: String::new(), runner: String::new(), end }
    }

    fn rows() -> Vec<Row> {
        let skipped = |why: &str| Verdict::Skipped(why.to_owned());
        let died = Verdict::Failed { how: "signal: 6".to_owned(), output: "a\nb".to_owned() };
        let ran = |outcomes| End::Ran {
            build: Duration::from_secs(30),
            all: Duration::from_secs(95),
            outcomes,
        };
        vec![
            row(
                "arm",
                ran(vec![
                    outcome("sigctx::layouts snapshot_of_x", Verdict::Passed),
                    outcome("sigctx gdb_walks", skipped("gdb is not installed")),
                    outcome("sigctx::storm a", died),
                ]),
            ),
            row("s390x", ran(vec![outcome("sigctx gdb_walks", skipped("gdb is not installed"))])),
            row("mips", End::Failed("does not build".to_owned())),
            row("loong64", End::LeftOut("no zig".to_owned())),
        ]
    }

    #[test]
    fn step_sums_the_rows_and_names_every_failure() {
        let step = step(&rows());
        assert_eq!(step.counts, Counts { passed: 1, failed: 2, skipped: 2 });
        assert_eq!(
            step.failures,
            ["arm sigctx::storm a: signal: 6\n    a\n    b", "mips: does not build"]
        );
    }

    #[test]
    fn failed_names_are_lines() {
        let rows = rows();
        assert_eq!(rows[0].failed_names(), ["arm sigctx::storm a: signal: 6"]);
        let row = row("mips", End::Failed("does not build\nerror: x".to_owned()));
        assert_eq!(row.failed_names(), ["mips: does not build"]);
    }

    #[test]
    fn reasons_are_grouped_over_the_rows() {
        let text = reasons(&rows());
        let expected = "\n\nloong64 is left out: no zig\n\
                        skipped: gdb is not installed\n  sigctx gdb_walks (arm, s390x)";
        assert_eq!(text, expected);
    }

    #[test]
    fn table_has_a_line_for_each_row() {
        let text = table_of(&rows());
        assert_eq!(text.lines().count(), 2 + 4, "{text}");
        let line = |name: &str| {
            let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        // Built in 30 s; passed, failed, skipped; snapshots; in all.
        assert_eq!(line("arm")[2..].join(" "), "30.0 s 1 1 1 1 1 min 35 s");
        assert_eq!(line("mips")[2..].join(" "), "FAILED - 1 - - -");
    }

    #[test]
    fn json_has_every_test() {
        let value = json(&rows());
        assert_eq!(value["counts"], json!({"passed": 1, "failed": 2, "skipped": 2}));
        let arm = &value["architectures"][0];
        assert_eq!(arm["tests"][1]["reason"], "gdb is not installed");
        assert_eq!(arm["failures"][0]["output"], "a\nb");
        assert_eq!(value["architectures"][3]["left_out"], "no zig");
    }
}
