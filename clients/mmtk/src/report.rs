//! What a run has found, as text.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use safepoint::Histogram;

use crate::Options;
use crate::check;
use crate::vm::{counts, world};

pub(crate) fn text(options: &Options) -> String {
    let counts = counts();
    let number = |count: &AtomicUsize| count.load(Relaxed).to_string();
    let metrics = world().metrics();
    let facts = [
        ("plan", options.plan.name().to_owned()),
        ("heap", format!("{} MiB", options.heap)),
        ("mutators", options.mutators.to_string()),
        ("collections", number(&counts.collections)),
        ("checks of the heap", number(&counts.checks)),
        ("objects met by checks", number(&counts.checked)),
        ("objects looked at by mutators", number(&counts.looked_at)),
        ("objects moved", number(&counts.moved)),
        ("nudges", metrics.nudges.to_string()),
        ("faults", number(&counts.faults)),
    ];
    let facts = facts.map(|(what, value)| vec![what.to_owned(), value]);

    let title = |what| QUANTILES.map(|(of, _)| format!("{what} {of}")).to_vec();
    let first = |reason: &str, stops: String| vec![reason.to_owned(), stops];
    let mut pauses =
        vec![[first("reason", "stops".to_owned()), title("stopped"), title("to stop")].concat()];
    for stops in &metrics.stops {
        let (stopped, to_stop) = (&stops.stopped, &stops.time_to_stop);
        let first = first(stops.reason.as_str(), stopped.count().to_string());
        pauses.push([first, quantiles(stopped), quantiles(to_stop)].concat());
    }
    let checks = check::times();
    let time = |of| Duration::from_nanos(checks.value_at_quantile(of));
    let times = QUANTILES.map(|(_, of)| text_of(time(of)));
    let first = first("gc: the check in it", checks.len().to_string());
    pauses.push([first, times.to_vec()].concat());
    format!("{}\n\n{}", lines(&facts), lines(&pauses))
}

const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)];

fn quantiles(times: &Histogram) -> Vec<String> {
    QUANTILES.map(|(_, of)| text_of(times.quantile(of))).to_vec()
}

fn text_of(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
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
