//! A sampling profiler: `README.md` says what it shows.

mod sampler;
mod work;

use std::error::Error;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use preempt::Slicer;

use crate::sampler::Sampler;

/// Samples the stacks of all threads that run, and draws a flame graph
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit status: 0 if each kind of stack was found, 1 otherwise.")]
struct Options {
    /// How often a second each thread is interrupted
    #[arg(long, default_value_t = 199)]
    rate: u32,
    /// For how long, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Draws the flame graph
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Writes the folded stacks
    #[arg(long, value_name = "FILE")]
    folded: Option<PathBuf>,
}

/// What has to be found, outermost first.
const KINDS: [(&str, &[&str]); 3] = [
    ("a thread that is not registered", &["foreign"]),
    ("through frames of C", &["foreign", "qsort", "compare"]),
    ("through an injected call", &["preempted", "loop_without_a_call", "work_in_the_hook"]),
];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fault: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    preempt::install()?;
    // SAFETY: the section holds one loop, which counts.
    let _code = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;
    let slicer = Slicer::start(Duration::from_millis(1))?;
    let preempted = work::preempted(&slicer)?;
    let foreign = work::foreign()?;

    let mut sampler = Sampler::start()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(options.seconds) {
        sampler.sample_all()?;
        sleep(Duration::from_secs(1) / options.rate.max(1));
    }
    work::OVER.store(true, Relaxed);
    preempted.join().map_err(|_| "a thread has panicked")?;
    foreign.join().map_err(|_| "a thread has panicked")?;

    let folded = sampler.folded();
    if let Some(file) = &options.folded {
        fs::write(file, folded.join("\n") + "\n")?;
    }
    if let Some(file) = &options.svg {
        sampler.draw(File::create(file)?)?;
    }
    println!("{:<32}{:>7}", "samples", sampler.samples());
    println!("{:<32}{:>7}", "threads that did not come", sampler.late);
    for (kind, names) in KINDS {
        let found: usize =
            folded.iter().filter(|line| has(line, names)).map(|line| count(line)).sum();
        println!("{kind:<32}{found:>7}");
        if found == 0 {
            return Err(format!("no stack {kind}").into());
        }
    }
    Ok(())
}

/// Whether the stack has these names in this order.
fn has(line: &str, names: &[&str]) -> bool {
    let mut frames = line.split(';');
    names.iter().all(|name| frames.any(|frame| frame.contains(name)))
}

fn count(line: &str) -> usize {
    line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}
