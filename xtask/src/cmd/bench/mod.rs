//! `cargo xtask bench`: what everything costs, beside the least that could do and others'
//! implementations.
//!
//! `rows` says what is measured and what it is to be; `program` builds and calls the programs, ours
//! (`benches/src`) and the peers' (`benches/peers`); `measure` has them run in turns; `table` prints.
//! `growth`, `model` and `plot` are about many threads, `against` about another commit, `document` about
//! `docs/PERFORMANCE.md`.

#![expect(
    clippy::cast_precision_loss,
    reason = "samples, threads and ticks are far fewer than 2^52"
)]

mod against;
mod document;
mod growth;
mod job;
mod machine;
mod measure;
mod model;
mod plot;
mod program;
mod rows;
mod samples;
mod table;
mod verdict;

use std::fs;
use std::process::ExitCode;

use clap::Args;

use self::measure::{Measured, Plan};
use self::program::Programs;
use self::rows::Group;
use crate::report::{self, Progress, Step, output, tell};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench --filter stop         our stops, and the least that could do
  cargo xtask bench --peers --install     every row, beside all peers
  cargo xtask bench --peers --growth      the picture of docs/PERFORMANCE.md
  cargo xtask bench --against main        every row, here over there

Let nothing else run on the machine meanwhile: what is below the table says whether something did.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Options {
    /// Measures others' implementations too, as far as they are installed
    #[arg(long)]
    peers: bool,
    /// Installs what the peers need and is not there, as root, by apt-get
    #[arg(long, requires = "peers")]
    install: bool,
    /// Only rows (with --growth: panels) whose name contains this; may be repeated
    #[arg(long, value_name = "ROW")]
    filter: Vec<String>,
    /// How often each program is called [default: 5; 2 with --growth]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Prints the rows and their targets, and measures nothing
    #[arg(long)]
    list: bool,
    /// Prints JSON in place of a table
    #[arg(long)]
    json: bool,
    /// Measures each row once, with few samples, and checks that each prints a number
    #[arg(long, conflicts_with_all = ["peers", "growth", "against", "write"])]
    smoke: bool,
    /// Measures how costs grow with the number of threads, draws it, and fits the model
    #[arg(long, conflicts_with = "against")]
    growth: bool,
    /// With --growth: the largest number of threads
    #[arg(long, value_name = "THREADS", default_value_t = 4000, requires = "growth")]
    largest: usize,
    /// Writes the table, or the picture and the model, into docs/PERFORMANCE.md
    #[arg(long, conflicts_with_all = ["against", "json"])]
    write: bool,
    /// Measures another commit in turns with this tree, and prints ratios
    #[arg(long, value_name = "COMMIT", conflicts_with_all = ["peers", "json"])]
    against: Option<String>,
}

impl Options {
    fn takes(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// The groups with the rows that were asked for.
    fn groups(&self) -> Vec<Group> {
        let mut groups = rows::groups();
        for group in &mut groups {
            group.rows.retain(|row| self.takes(&row.name));
        }
        groups.retain(|group| !group.rows.is_empty());
        groups
    }
}

/// The command.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    let progress = Progress::new();
    let done = if options.smoke {
        let mut report = report::Report::new(report::Kind::Tests, workspace);
        report.step("bench", |progress| smoke(workspace, options.groups(), progress));
        return report.finish();
    } else if options.list {
        list(options);
        Ok(())
    } else {
        bench(workspace, options, &progress)
    };
    progress.idle();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tell(&why);
            ExitCode::FAILURE
        }
    }
}

/// Each row once, as a step of a larger check.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Step {
    smoke(workspace, rows::groups(), progress)
}

fn bench(workspace: &Workspace, options: &Options, progress: &Progress) -> Result<(), String> {
    let groups = options.groups();
    if groups.is_empty() && !options.growth {
        return Err("no row has such a name; `--list` prints them".to_owned());
    }
    let mut programs = Programs::ours(workspace, progress)?;
    let rounds = options.rounds.map(|rounds| rounds as usize);
    let plan = Plan { rounds: rounds.unwrap_or(Plan::FULL.rounds), ..Plan::FULL };
    if let Some(commit) = &options.against {
        programs.add_base(against::build(workspace, commit, progress)?);
        output!("{}", against::compare(&groups, &programs, plan, progress));
        return Ok(());
    }
    if options.install {
        // What could not be installed is named below the table.
        program::install(progress).unwrap_or_else(|why| tell(&why));
    }
    if options.peers {
        programs.add_peers(workspace, progress);
    }
    if options.growth {
        let plan = Plan { rounds: rounds.unwrap_or(2), samples: 100, ..plan };
        return grow(workspace, options, &programs, plan, progress);
    }
    let measured = measure::all(groups, &programs, plan, progress);
    if options.json {
        output!("{:#}", table::json(&measured, &programs));
    } else {
        output!("{}", table::text(&measured, &programs));
    }
    if options.write {
        let text = table::markdown(&measured, &programs);
        document::write(workspace, document::TABLE, &text)?;
    }
    without_failures(&measured)
}

fn without_failures(measured: &[Measured]) -> Result<(), String> {
    let failures = measured.iter().map(|measured| measured.failures.len()).sum::<usize>();
    if failures == 0 { Ok(()) } else { Err(format!("{failures} calls failed")) }
}

fn grow(
    workspace: &Workspace,
    options: &Options,
    programs: &Programs,
    plan: Plan,
    progress: &Progress,
) -> Result<(), String> {
    let mut sizes = growth::SIZES.to_vec();
    sizes.retain(|&size| size < options.largest);
    sizes.push(options.largest);
    let panels = growth::panels().into_iter().filter(|panel| options.takes(panel.name));
    let grown: Vec<_> =
        panels.map(|panel| growth::measure(panel, &sizes, programs, plan, progress)).collect();
    if grown.is_empty() {
        return Err("no panel has such a name".to_owned());
    }
    let (points, model) =
        (document::points(&grown, &sizes), document::model(&grown, options.largest));
    output!("{points}\n{model}");
    for grown in grown.iter().filter(|grown| grown.load.is_disturbed()) {
        output!("DISTURBED: {}: {}", grown.panel.name, grown.load.text());
    }
    let svg = plot::draw(&grown, options.largest);
    let svg = svg.map_err(|error| format!("the picture cannot be drawn: {error}"))?;
    let path = if options.write {
        document::write(workspace, document::MODEL, &format!("{points}\n{model}"))?;
        workspace.root.join(document::PICTURE)
    } else {
        workspace.target.join("performance.svg")
    };
    fs::write(&path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    tell(&format!("drawn: {}", path.display()));
    let failures: Vec<_> = grown.into_iter().flat_map(|grown| grown.failures).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn list(options: &Options) {
    let mut all = report::table(["row", "what", "target"]);
    for row in options.groups().into_iter().flat_map(|group| group.rows) {
        let targets = row.limits.iter().map(|limit| table::target(limit, row.unit));
        let targets = targets.collect::<Vec<_>>().join("; ");
        all.add_row([row.name, row.what, targets]);
    }
    output!("{}", report::trimmed(&all));
}

/// A row passes when it has a number.
fn smoke(workspace: &Workspace, groups: Vec<Group>, progress: &Progress) -> Step {
    let programs = match Programs::ours(workspace, progress) {
        Ok(programs) => programs,
        Err(why) => return Step::failed(why),
    };
    let mut step = Step::default();
    for measured in measure::all(groups, &programs, Plan::SMOKE, progress) {
        for row in &measured.group.rows {
            let number = samples::p50(&measured.samples, row.side);
            let failures = || format!("{}: no number\n{}", row.name, measured.failures.join("\n"));
            step.add(number.map(drop).ok_or_else(failures));
        }
    }
    step
}
