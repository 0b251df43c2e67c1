//! What a step found: a table, checks, and the same as data.

use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// One thing that must hold.
pub(crate) struct Check {
    what: String,
    held: bool,
}

/// What one step found.
pub(crate) struct Section {
    title: &'static str,
    body: Vec<String>,
    checks: Vec<Check>,
    data: Value,
}

impl Section {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, body: Vec::new(), checks: Vec::new(), data: json!({}) }
    }

    pub(crate) fn text(&mut self, text: impl Into<String>) {
        self.body.push(text.into());
    }

    pub(crate) fn table(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(head.iter().copied());
        let mut numeric = vec![true; head.len()];
        for row in rows {
            for (cell, numeric) in row.iter().zip(&mut numeric) {
                *numeric &= cell.starts_with(|c: char| c.is_ascii_digit());
            }
            table.add_row(row);
        }
        for (column, numeric) in table.column_iter_mut().zip(numeric) {
            column.set_padding((1, 1));
            if numeric {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self.body.push(table.trim_fmt());
    }

    pub(crate) fn check(&mut self, what: impl Into<String>, held: bool) {
        self.checks.push(Check { what: what.into(), held });
    }

    pub(crate) fn data(&mut self, data: Value) {
        self.data = data;
    }

    pub(crate) fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// For people; painted where standard output is a terminal.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = vec![format!("\n{}", console::style(self.title).bold())];
        lines.extend(self.body.iter().map(|text| indent(text)));
        lines.extend(self.checks.iter().map(|check| {
            let mark = if check.held {
                console::style("ok").green()
            } else {
                console::style("FAILED").red().bold()
            };
            format!("  {mark}  {}", check.what)
        }));
        lines.push(String::new());
        lines.join("\n")
    }

    pub(crate) fn to_json(&self) -> Value {
        let checks: Vec<_> =
            self.checks.iter().map(|c| json!({ "check": c.what, "held": c.held })).collect();
        json!({ "title": self.title, "data": self.data, "checks": checks, "passed": self.passed() })
    }
}

/// Writes to standard output. `println!` would panic where it is not read.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error, if it is read.
pub(crate) fn say(line: &str) {
    _ = writeln!(io::stderr(), "{line}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {}", line.trim_end())).collect::<Vec<_>>().join("\n")
}

/// A progress bar on a terminal, nothing elsewhere.
pub(crate) fn progress(what: &'static str, steps: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        say(&format!("{what} …"));
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(steps).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A duration with three digits, in a unit that fits.
pub(crate) fn human(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    if us < 1000.0 {
        format!("{us:.1} µs")
    } else if us < 1e6 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}
