//! A loop that is compiled at run time and polls by itself: `README.md` says what it shows.

mod code;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use clap::Parser;
use safepoint::{Reason, StopOptions, World};
use threadreg::{Builder, JoinHandle};

use crate::code::{Compiled, SLOW_PATHS, Sum};

/// Compiles a loop that polls, and stops threads in it
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit status: 0 if all was as it should be, 1 otherwise.")]
struct Options {
    /// How often the world is stopped
    #[arg(long, default_value_t = 1000)]
    stops: usize,
    /// How many threads are in the loop
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prints the instructions of the loop
    #[arg(long)]
    code: bool,
}

/// No thread waits longer for another: by then something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many numbers are added up at a time.
const COUNT: u64 = 10_000_000;

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
    let Compiled { sum, text } = code::compile()?;
    if options.code {
        println!("{text}");
    }
    let world = World::new();
    let mut adders = Vec::new();
    for number in 0..options.threads {
        adders.push(Adder::start(number, &world, sum)?);
    }
    for _ in 0..options.stops {
        adders.iter().try_for_each(Adder::wait_for_a_step)?;
        let stop = StopOptions::new(Reason::CODE).timeout(PATIENCE);
        let stopped = world.stop_from_outside_with(stop)?;
        let before: Vec<_> = adders.iter().map(Adder::steps).collect();
        // Long enough for a loop that runs to make steps.
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(20) {
            yield_now();
        }
        if !adders.iter().map(Adder::steps).eq(before) {
            return Err("a loop has made a step in the stop".into());
        }
        stopped.resume();
    }
    let sums: usize = adders.into_iter().map(Adder::end).sum::<Result<_, _>>()?;
    let times = &world.metrics().stops[0].time_to_stop;
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|of| times.quantile(of).as_secs_f64() * 1e6);
    println!("threads         {:>10}", options.threads);
    println!("stops           {:>10}", times.count());
    println!("slow paths      {:>10}", SLOW_PATHS.load(Relaxed));
    println!("sums, all right {sums:>10}");
    println!("time to stop    {p50:>10.1} µs p50, {p99:.1} µs p99, {most:.1} µs max");
    Ok(())
}

/// A thread that adds up in the compiled loop.
struct Adder {
    thread: JoinHandle<Result<usize, String>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number that the loop has come to.
    steps: AtomicU64,
    over: AtomicBool,
}

impl Adder {
    fn start(number: usize, world: &World, sum: Sum) -> Result<Self, Box<dyn Error>> {
        let shared = Arc::new(Shared::default());
        let (its, world) = (shared.clone(), world.clone());
        let work = move || add(&world, sum, &its);
        let thread = Builder::new().name(format!("adder-{number}")).spawn(work)?;
        Ok(Self { thread, shared })
    }

    fn steps(&self) -> u64 {
        self.shared.steps.load(Relaxed)
    }

    /// Waits until the loop goes on.
    fn wait_for_a_step(&self) -> Result<(), Box<dyn Error>> {
        let (before, start) = (self.steps(), Instant::now());
        while self.steps() == before {
            if start.elapsed() > PATIENCE || self.thread.is_finished() {
                return Err(format!("{} does not go on", self.thread.thread().name()).into());
            }
            yield_now();
        }
        Ok(())
    }

    /// Waits for the end: how many sums were right.
    fn end(self) -> Result<usize, Box<dyn Error>> {
        self.shared.over.store(true, Relaxed);
        let name = self.thread.thread().name();
        let start = Instant::now();
        while !self.thread.is_finished() {
            if start.elapsed() > PATIENCE {
                return Err(format!("{name} does not end").into());
            }
            sleep(Duration::from_millis(1));
        }
        let sums = self.thread.join().map_err(|_| format!("{name} has panicked"))?;
        Ok(sums?)
    }
}

/// Adds up, again and again: how many sums were right.
fn add(world: &World, sum: Sum, shared: &Shared) -> Result<usize, String> {
    let mutator = world.attach_within(PATIENCE).map_err(|error| error.to_string())?;
    let raw = mutator.as_raw();
    for sums in 0.. {
        if shared.over.load(Relaxed) {
            return Ok(sums);
        }
        // SAFETY: the loop is compiled for these arguments, and the mutator is attached. Nothing here relies on that
        // the world is not stopped in it.
        let found = unsafe { sum(COUNT, &raw const shared.steps, raw.poll_word(), &raw const raw) };
        if found != COUNT * (COUNT - 1) / 2 {
            return Err(format!("the numbers below {COUNT} add up to {found}"));
        }
    }
    unreachable!("it ends when it is over")
}
