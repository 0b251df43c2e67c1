//! What the commands print: progress while they work, tables, and the last line, for programs.
//!
//! Progress and what the programs say go to standard error; tables and the count line to standard
//! output. Colour and a spinner are for terminals, and never there with `NO_COLOR`.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use comfy_table::{Cell, Color, ContentArrangement, LineStyle, Table, TableStyle};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::counts::{Counts, without_escapes};
use crate::disk;
use crate::workspace::Workspace;

/// Prints a line to standard output. `println!` would panic where no program reads it, as after
/// `| head`: the commands then work on, and end with the exit status that they come to.
macro_rules! output {
    ($($text:tt)*) => { $crate::report::print(format_args!($($text)*)) };
}
pub(crate) use output;

/// What [`output!`] does.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tell(&format!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Prints a line to standard error. Without a reader it is lost.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// How a step ended.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) counts: Counts,
    /// Why it failed, a line each. None: it did not.
    pub(crate) failures: Vec<String>,
    /// Why there was nothing to do.
    pub(crate) skipped: Option<String>,
    /// A table of its own, printed before that of the steps.
    pub(crate) details: Option<String>,
}

impl Step {
    /// A step that counts no tests and went well.
    pub(crate) fn passed() -> Self {
        Self::default()
    }

    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self { failures: vec![why.into()], ..Self::default() }
    }

    pub(crate) fn skipped(why: impl Into<String>) -> Self {
        Self { skipped: Some(why.into()), ..Self::default() }
    }

    /// Adds one test's result: passed, or failed and why.
    pub(crate) fn add(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.counts.passed += 1,
            Err(why) => {
                self.counts.failed += 1;
                self.failures.push(why);
            }
        }
    }
}

/// The steps so far.
#[derive(Debug)]
pub(crate) struct Report {
    steps: Vec<(String, Step, Duration)>,
    progress: Progress,
    kind: Kind,
    /// Where builds go.
    target: PathBuf,
}

/// What the steps are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tests: they are counted, and there must be some.
    Tests,
    /// Checks that count nothing.
    Checks,
}

impl Report {
    pub(crate) fn new(kind: Kind, workspace: &Workspace) -> Self {
        let target = workspace.target.clone();
        Self { steps: Vec::new(), progress: Progress::new(), kind, target }
    }

    /// Prints a line that stays, before a step.
    pub(crate) fn say(&self, line: &str) {
        self.progress.say(line);
    }

    /// Runs one step and keeps its result.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce(&Progress) -> Step) {
        let start = Instant::now();
        self.progress.say(&format!("== {name}"));
        let mut step = work(&self.progress);
        self.progress.idle();
        // A build that fails runs no test; the count line must not look as if all were well.
        if !step.failures.is_empty() && step.counts.failed == 0 {
            step.counts.failed = 1;
        }
        if !step.failures.is_empty() {
            step.failures.extend(disk::after_failure(&self.target));
        }
        self.steps.push((name.to_owned(), step, start.elapsed()));
    }

    /// Prints the table of the steps, every failure, and the count line of tests.
    pub(crate) fn finish(self) -> ExitCode {
        for details in self.steps.iter().filter_map(|(_, step, _)| step.details.as_ref()) {
            output!("\n{details}");
        }
        let mut sum = Counts::default();
        let mut table = table(["step", "result", "passed", "failed", "skipped", "time"]);
        for (name, step, time) in &self.steps {
            sum += step.counts;
            let (result, colour) = match step {
                Step { failures, .. } if !failures.is_empty() => ("FAILED".to_owned(), Color::Red),
                Step { skipped: Some(why), .. } => (format!("skipped: {why}"), Color::Yellow),
                _ => ("ok".to_owned(), Color::Green),
            };
            let Counts { passed, failed, skipped } = step.counts;
            table.add_row([
                Cell::new(name),
                painted(Cell::new(result), colour),
                Cell::new(number(passed)),
                Cell::new(number(failed)),
                Cell::new(number(skipped)),
                Cell::new(seconds(*time)),
            ]);
        }
        for column in 2..=5 {
            let column = table.column_mut(column).expect("six columns");
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        output!("\n{}", trimmed(&table));
        let failed = self.steps.iter().filter(|(_, step, _)| !step.failures.is_empty());
        let nothing_ran = self.kind == Kind::Tests && sum.passed + sum.failed == 0;
        let mut good = !nothing_ran;
        for (name, step, _) in failed {
            good = false;
            output!("\n{name} failed:");
            for failure in &step.failures {
                output!("  {}", failure.replace('\n', "\n  "));
            }
        }
        if nothing_ran {
            output!(
                "\nno test was run: nothing has the name that was asked for, or all were left out"
            );
        }
        if self.kind == Kind::Tests {
            output!("\n{sum}");
        }
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Tells what is going on: by a spinner on a terminal, else by plain lines.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    /// There while something is being done.
    spinner: Mutex<Option<ProgressBar>>,
    /// All that is shown at the end of a terminal.
    shown: MultiProgress,
}

/// A line for one of several things that are being done at the same time; it goes when it is
/// dropped. Where there is no terminal, only what stays is printed.
#[derive(Debug)]
pub(crate) struct Line<'p> {
    spinner: Option<ProgressBar>,
    progress: &'p Progress,
}

impl Line<'_> {
    /// Shows what is being done now.
    pub(crate) fn doing(&self, what: String) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(what);
        }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.progress.say(line);
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
            self.progress.shown.remove(spinner);
        }
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = io::stderr().is_terminal() && env::var("TERM").is_ok_and(|t| t != "dumb");
        Self { terminal, spinner: Mutex::new(None), shown: MultiProgress::new() }
    }

    /// A line for one of several things.
    pub(crate) fn line(&self) -> Line<'_> {
        self.idle();
        Line { spinner: self.terminal.then(|| self.spinner(String::new())), progress: self }
    }

    fn spinner(&self, message: String) -> ProgressBar {
        let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
        let style = style.expect("the template is well-formed");
        let spinner = self.shown.add(ProgressBar::new_spinner());
        let spinner = spinner.with_style(style).with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.shown.suspend(|| tell(line));
    }

    /// Shows what is being done until something else is.
    pub(crate) fn doing(&self, what: &str) {
        if !self.terminal {
            return tell(what);
        }
        self.idle();
        let spinner = self.spinner(what.to_owned());
        *self.spinner.lock().expect("no printer panicked") = Some(spinner);
    }

    /// Passes on what cargo says while it builds, but for the crates that it compiles: the last of
    /// them is shown on a terminal.
    pub(crate) fn build_line(&self, line: &str) {
        if !is_of_a_build(line) {
            return self.say(line);
        }
        if let Some(spinner) = &*self.spinner.lock().expect("no printer panicked") {
            let line = without_escapes(line);
            let over = line.trim_start().starts_with("Finished ");
            spinner.set_message(if over { "running" } else { line.trim() }.to_owned());
        }
    }

    /// Nothing is being done.
    pub(crate) fn idle(&self) {
        if let Some(spinner) = self.spinner.lock().expect("no printer panicked").take() {
            spinner.finish_and_clear();
        }
    }
}

/// What cargo says about each crate, of which there are hundreds.
pub(crate) fn is_of_a_build(line: &str) -> bool {
    let words = [
        "Compiling ",
        "Downloaded ",
        "Downloading ",
        "Fresh ",
        "Finished ",
        "Executable ",
        "Locking ",
    ];
    let line = without_escapes(line);
    words.iter().any(|word| line.trim_start().starts_with(word))
}

/// Whether to paint: for a terminal, unless `NO_COLOR` is there.
pub(crate) fn colour(terminal: bool) -> bool {
    let no = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    terminal && !no && env::var("TERM").is_ok_and(|t| t != "dumb")
}

/// Paints a cell, where colour is wanted.
pub(crate) fn painted(cell: Cell, as_: Color) -> Cell {
    if colour(io::stdout().is_terminal()) { cell.fg(as_) } else { cell }
}

/// An aligned table with a line below its header.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─'));
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        table.set_width(150);
    }
    table
}

/// A number in a table.
pub(crate) fn number(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}

/// The table's text without the blanks that fill its lines.
pub(crate) fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// `0.12 s`, `34.5 s`, `2 min 05 s`.
pub(crate) fn seconds(time: Duration) -> String {
    let all = time.as_secs();
    match all {
        0..10 => format!("{:.2} s", time.as_secs_f64()),
        10..60 => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{} min {:02} s", all / 60, all % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(Duration::from_millis(123)), "0.12 s");
        assert_eq!(seconds(Duration::from_millis(34_520)), "34.5 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn lines_of_a_build_are_known_with_and_without_colours() {
        assert!(is_of_a_build("   Compiling libc v0.2.189"));
        let painted = "\u{1b}[1m\u{1b}[92m   Compiling\u{1b}[0m libc v0.2.189";
        assert!(is_of_a_build(painted), "{:?}", without_escapes(painted));
        assert!(!is_of_a_build("warning: unused variable"));
    }

    #[test]
    fn step_that_fails_before_any_test_counts_as_a_failure() {
        let mut report = Report::new(Kind::Tests, &Workspace::find());
        report.step("build", |_| Step::failed("does not compile"));
        assert_eq!(report.steps[0].1.counts.failed, 1);
    }
}
