//! Green threads that are preempted: `README.md` says what it shows.

mod fiber;
mod picture;
mod report;
mod scheduler;
mod work;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use preempt::{Slicer, Task};
use rustix::time::{ClockId, clock_gettime};
use threadreg::Builder;

use crate::fiber::Fiber;
use crate::report::{Run, Share};
use crate::scheduler::{Scheduler, Seen};

/// Runs endless loops and light tasks as green threads
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 if each loop got its share and no light task waited long, 1 otherwise."
)]
struct Options {
    /// How many threads run them
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// How many tasks there are
    #[arg(long, default_value_t = 1000)]
    tasks: usize,
    /// How many of them are loops that never make way
    #[arg(long, default_value_t = 5)]
    loops: usize,
    /// How long a slice lasts, in milliseconds
    #[arg(long, default_value_t = 10)]
    slice: u64,
    /// For how long, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Draws the shares
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// On a line of its own: two loops on two processors would take that from each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicU64);

/// No wait for the end lasts longer: by then something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a light task sleeps between two runs.
const SLEEP: Duration = Duration::from_millis(400);

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
    // SAFETY: the section holds one loop, which counts: no locks, no thread-local variables.
    let _code = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;
    let slicer = Slicer::start(Duration::from_millis(options.slice))?;

    let counts: Arc<[Counter]> = (0..options.tasks).map(|_| Counter::default()).collect();
    let fibers = fibers(options, &slicer, &counts)?;
    let tasks: Vec<Task> = fibers.iter().map(|fiber| fiber.task.clone()).collect();

    let (scheduler, deques) = Scheduler::new(fibers, options.threads);
    let scheduler = Arc::new(scheduler);
    let (start, before) = (Instant::now(), processor_time());
    let mut workers = Vec::new();
    for (number, deque) in deques.into_iter().enumerate() {
        let its = scheduler.clone();
        let work = move || its.work(&deque);
        workers.push(Builder::new().name(format!("worker-{number}")).spawn(work)?);
    }
    sleep(Duration::from_secs(options.seconds));
    let loops = options.loops.min(options.tasks);
    let (of_loops, of_others) = counts.split_at(loops);
    let rounds: Vec<_> = of_loops
        .iter()
        .zip(&tasks)
        .map(|(rounds, task)| (rounds.0.load(Relaxed), task.run_time()))
        .collect();
    let runs = of_others.iter().map(|runs| runs.0.load(Relaxed));
    let (fewest, runs) =
        runs.fold((u64::MAX, 0), |(least, sum), runs| (least.min(runs), sum + runs));
    let lasted = start.elapsed();
    let all = lasted * options.threads as u32;
    let given = processor_time().saturating_sub(before).as_secs_f64() / all.as_secs_f64();

    work::OVER.store(true, Relaxed);
    let end = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) {
        if end.elapsed() > PATIENCE {
            return Err(format!("{} tasks do not end", scheduler.alive()).into());
        }
        sleep(Duration::from_millis(1));
    }
    let mut seen: Option<Seen> = None;
    for worker in workers {
        let its = worker.join().map_err(|_| "a worker has panicked")??;
        match &mut seen {
            Some(seen) => seen.add(&its),
            None => seen = Some(its),
        }
    }
    let seen = seen.ok_or("no thread runs them: `--threads` is 0")?;
    let shares = shares(&rounds, &seen);
    let (slice, threads) = (slicer.slice(), options.threads);
    let run = Run { lasted, given, slice, threads, shares, fewest, runs, seen };
    println!("{}", report::text(&run));
    if let Some(file) = &options.svg {
        fs::write(file, picture::draw(&run)?)?;
    }
    run.check()
}

/// Loops, and light tasks behind them.
fn fibers(
    options: &Options,
    slicer: &Slicer,
    counts: &Arc<[Counter]>,
) -> std::io::Result<Vec<Fiber>> {
    let fiber = |number: usize| {
        let (counts, is_loop) = (counts.clone(), number < options.loops);
        let body = move |sleeper: &fiber::Sleeper<'_>| {
            if is_loop {
                work::count_without_end(&counts[number].0);
            } else {
                // Not all at once.
                let first = SLEEP.mul_f64(number as f64 / counts.len() as f64);
                work::be_light(sleeper, first, SLEEP, &counts[number].0);
            }
        };
        // SAFETY: neither has anything of its thread's: counters, times, and a number.
        unsafe { Fiber::new(number, slicer, body) }
    };
    (0..options.tasks).map(fiber).collect()
}

fn shares(rounds: &[(u64, Duration)], seen: &Seen) -> Vec<Share> {
    let slices: Vec<_> =
        (0..rounds.len()).map(|number| seen.slices.get(&number).copied().unwrap_or(0)).collect();
    let mean = |sum: f64| (sum / rounds.len() as f64).max(1.0);
    let mean_rounds = mean(rounds.iter().map(|&(rounds, _)| rounds as f64).sum());
    let mean_slices = mean(slices.iter().sum::<usize>() as f64);
    let share = |(&(rounds, time), slices): (&(u64, Duration), usize)| Share {
        rounds,
        time,
        slices,
        of_rounds: rounds as f64 / mean_rounds,
        of_slices: slices as f64 / mean_slices,
    };
    rounds.iter().zip(slices).map(share).collect()
}

/// What the process has had of processors.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
