//! A small VM whose garbage mmtk collects while `safepoint` stops its threads: `README.md` says what it shows.

mod binding;
mod check;
mod coordination;
mod mutators;
mod object;
mod report;
mod thread;
mod vm;

use std::error::Error;
use std::io::{self, PipeWriter, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use threadreg::{Builder, JoinHandle};

use crate::mutators::{Kind, OVER, Work};
use crate::vm::{PATIENCE, counts, fault, world};

/// Collects garbage with mmtk and safepoint, and checks the heap after each collection
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 if all objects were what they should be, 1 otherwise."
)]
pub(crate) struct Options {
    /// How many collections there are to be, at least
    #[arg(long, default_value_t = 500)]
    collections: usize,
    /// How many threads make garbage: of four kinds in turn
    #[arg(long, default_value_t = 4)]
    mutators: usize,
    /// mmtk's algorithm
    #[arg(long, value_enum, default_value_t = Plan::MarkSweep)]
    plan: Plan,
    /// Size of the heap in MiB
    #[arg(long, default_value_t = 4)]
    heap: usize,
    /// How many threads of mmtk's collect
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// The longest time for all of it, in seconds
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Plan {
    /// Moves nothing
    MarkSweep,
    /// Moves all it can
    Immix,
}

impl Plan {
    fn name(self) -> &'static str {
        match self {
            Self::MarkSweep => "MarkSweep",
            Self::Immix => "Immix",
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = run(&options) {
        fault(error);
    }
    println!("{}", report::text(&options));
    // Without waiting for mmtk's threads, which never end.
    process::exit(i32::from(counts().faults.load(Relaxed) != 0))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    preempt::install()?;
    // SAFETY: the section holds `compute` alone, which computes in registers.
    let _code = unsafe { preempt::register_code(preempt::preemptible_section!()) }?;
    // SAFETY: registered code has no references to objects, and no code here polls `preempt` or waits for its tasks.
    unsafe { world().set_nudge(Arc::new(preempt::Nudger)) };
    vm::start(options.plan.name(), options.heap << 20, options.workers);

    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    let mut threads = Vec::new();
    for number in 0..options.mutators {
        threads.push(Mutator::start(number)?);
    }
    let mut last_audit = Instant::now();
    let enough = || counts().collections.load(Relaxed) >= options.collections;
    while !enough() && counts().faults.load(Relaxed) == 0 {
        if Instant::now() > deadline {
            let collections = &counts().collections;
            return Err(format!("only {collections:?} collections in {} s", options.timeout).into());
        }
        for thread in &mut threads {
            thread.feed()?;
        }
        if last_audit.elapsed() > AUDIT_EVERY {
            check::audit()?;
            last_audit = Instant::now();
        }
        sleep(Duration::from_millis(1));
    }
    OVER.store(true, Relaxed);
    threads.into_iter().try_for_each(Mutator::end)
}

/// How often the heap is checked between collections.
const AUDIT_EVERY: Duration = Duration::from_millis(20);

/// A thread of the VM, from outside.
struct Mutator {
    thread: JoinHandle<()>,
    work: Arc<Work>,
    pipe: PipeWriter,
    fed: usize,
}

impl Mutator {
    fn start(number: usize) -> Result<Self, Box<dyn Error>> {
        let kind = Kind::ALL[number % Kind::ALL.len()];
        let (reader, pipe) = io::pipe()?;
        let seed = 0x9e37_79b9_7f4a_7c15 + number as u64;
        let work = Arc::new(Work { kind, seed, pipe: reader.into(), read: AtomicUsize::new(0) });
        let its = work.clone();
        let name = format!("{}-{number}", kind.name());
        let thread = Builder::new().name(name).spawn(move || mutators::run(&its))?;
        Ok(Self { thread, work, pipe, fed: 0 })
    }

    /// Gives it something to read, if it reads, and has read all that it was given. Fails if it has ended.
    fn feed(&mut self) -> Result<(), Box<dyn Error>> {
        if self.thread.is_finished() {
            return Err(format!("{} has ended", self.thread.thread().name()).into());
        }
        if self.work.kind == Kind::Reads && self.work.read.load(Relaxed) == self.fed {
            self.pipe.write_all(&[1])?;
            self.fed += 1;
        }
        Ok(())
    }

    /// Waits for its end.
    fn end(self) -> Result<(), Box<dyn Error>> {
        drop(self.pipe);
        let name = self.thread.thread().name();
        let start = Instant::now();
        while !self.thread.is_finished() {
            if start.elapsed() > PATIENCE {
                return Err(format!("{name} does not end").into());
            }
            sleep(Duration::from_millis(1));
        }
        self.thread.join().map_err(|_| format!("{name} has panicked").into())
    }
}
