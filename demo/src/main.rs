//! The whole chain in one process: threads that poll, threads that never do, threads that block,
//! and threads that are not registered; stopped, counted, interrupted, looked at, and changed.
//!
//! `cargo xtask demo`, or `cargo run --release -p demo -- --help`

mod attributes;
mod cast;
mod failure;
mod preemption;
mod report;
mod stops;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use cast::Cast;
use failure::Failure;
use report::Section;

/// Stops, interrupts and changes every thread of one process, and checks what it did.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 if every check held, 1 if not, 2 for wrong arguments,
3 if the demo could not be run to its end; it says why, and what helps.")]
struct Args {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// How often to stop the world, and to run a function on every processor.
    #[arg(long, default_value_t = 1000)]
    stops: u64,
    /// How often to interrupt the loop that holds a pattern in every register.
    #[arg(long, default_value_t = 10_000)]
    preemptions: u64,
    /// Also record some stops and a for-each, and draw what the threads did: as SVG, or for Perfetto if the name ends
    /// in `.json`.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            if failure.is_to_be_told() {
                report::say(&format!("demo: {failure}"));
            }
            if args.json && failure.is_to_be_told() {
                // What is wrong is on standard error already if this cannot be written.
                let error = json!({ "passed": false, "error": failure.to_string() });
                _ = report::print(&format!("{error:#}\n"));
            }
            failure.exit_code()
        }
    }
}

/// Makes all steps; true if every check held.
fn run(args: &Args) -> Result<bool, Failure> {
    let cast = Cast::start().map_err(Failure::of("start the threads"))?;
    let mut sections = Vec::new();
    let mut done = |section: Section| {
        if !args.json {
            report::print(&section.to_text()).map_err(|e| Failure::of("print")(e.into()))?;
        }
        sections.push(section);
        Ok(())
    };

    done(stops::introduce(&cast).map_err(Failure::of("list the threads"))?)?;
    let stopped = stops::stop_the_world(&cast, args.stops);
    done(stopped.map_err(Failure::of("stop the world"))?)?;
    if let Some(file) = &args.timeline {
        let drawn = timeline::draw(&cast, file);
        done(drawn.map_err(Failure::of("draw the timeline"))?)?;
    }
    let ran = stops::for_each_processor(&cast, args.stops);
    done(ran.map_err(Failure::of("run on every processor"))?)?;
    let interrupted = preemption::interrupt(&cast, args.preemptions);
    done(interrupted.map_err(Failure::of("interrupt the loop"))?)?;
    done(preemption::look(&cast).map_err(Failure::of("suspend the loop"))?)?;
    let changed = attributes::change_all(&cast);
    for section in changed.map_err(Failure::of("change an attribute of every thread"))? {
        done(section)?;
    }
    cast.end().map_err(Failure::of("end the threads"))?;

    let failed = sections.iter().filter(|section| !section.passed()).count();
    let end = if args.json {
        let sections: Vec<_> = sections.iter().map(Section::to_json).collect();
        format!("{:#}\n", json!({ "sections": sections, "passed": failed == 0 }))
    } else if failed == 0 {
        "\nAll checks held.\n".to_owned()
    } else {
        let sections = if failed == 1 { "section" } else { "sections" };
        format!("\n{failed} {sections} FAILED.\n")
    };
    report::print(&end).map_err(|e| Failure::of("print")(e.into()))?;
    Ok(failed == 0)
}
