//! The whole chain in one process: threads that poll, threads that never do, threads that block,
//! and threads that nobody registered; stopped, counted, interrupted, looked at, and changed.
//!
//! `cargo xtask demo`, or `cargo run --release -p demo -- --help`

mod attributes;
mod cast;
mod preemption;
mod report;
mod stops;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use cast::Cast;
use report::Section;

/// Stops, interrupts and changes every thread of one process, and checks what it did.
#[derive(Parser)]
#[command(after_help = "Exit status: 0 if every check held, 1 if not.")]
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
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    let cast = Cast::start()?;
    let mut sections = Vec::new();
    let mut done = |section: Section| {
        if !args.json {
            section.print();
        }
        sections.push(section);
    };

    done(stops::introduce(&cast)?);
    done(stops::stop_the_world(&cast, args.stops)?);
    done(stops::for_each_processor(&cast, args.stops)?);
    done(preemption::interrupt(&cast, args.preemptions)?);
    done(preemption::look(&cast)?);
    for section in attributes::change_all(&cast)? {
        done(section);
    }
    cast.end()?;

    let failed = sections.iter().filter(|section| !section.passed()).count();
    if args.json {
        let sections: Vec<_> = sections.iter().map(Section::to_json).collect();
        println!("{:#}", json!({ "sections": sections, "passed": failed == 0 }));
    } else if failed == 0 {
        println!("\nAll checks held.");
    } else {
        println!("\n{failed} sections FAILED.");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
