//! Samples: one thread at a time is interrupted, and its handler writes down its stack.
//!
//! ```text
//!   sampler                         the thread's handler
//!   asked = tid, SIGPROF ─────────▶ asked: tid -> TAKING
//!                                   frames = what the unwinder finds
//!   reads frames  ◀──────────────── asked: TAKING -> TAKEN
//! ```
//!
//! The handler allocates nothing and takes no lock. libgcc's unwinder does not either, from glibc 2.35 on: it finds a
//! module by `_dl_find_object`, which is async-signal-safe.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::io;
use std::process;
use std::sync::atomic::{
    AtomicI32, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use sigctx::handler::{self, Delivery, Flow, Options};
use sigctx::sys::{Tid, gettid, tgkill};
use threadreg::procfs::TaskDir;

const DEPTH: usize = 128;
/// `asked`: the handler is at work, and has finished.
const TAKING: i32 = -1;
const TAKEN: i32 = -2;
/// A thread that has not come by then blocks the signal, or has no processor.
const PATIENCE: Duration = Duration::from_millis(20);

static ASKED: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static FRAMES: [AtomicUsize; DEPTH] = [const { AtomicUsize::new(0) }; DEPTH];

fn on_sigprof(delivery: &mut Delivery<'_>) -> Flow {
    // Acquire, and release below: the sampler has read the frames before, and reads them after.
    if ASKED.compare_exchange(gettid(), TAKING, Acquire, Relaxed).is_err() {
        // It came too late. The default action, to which it would be chained, ends the process.
        return Flow::Resume;
    }
    let pc = delivery.pc();
    let (mut count, mut is_below) = (0, false);
    let keep = |frame: &backtrace::Frame| {
        let ip = frame.ip() as usize;
        // Those of the handler come first.
        is_below |= ip == pc;
        if is_below {
            FRAMES[count].store(ip, Relaxed);
            count += 1;
        }
        count < DEPTH
    };
    // SAFETY: nobody else unwinds by this function; `Sampler::start` has looked at what it does in a handler.
    unsafe { backtrace::trace_unsynchronized(keep) };
    COUNT.store(count, Relaxed);
    ASKED.store(TAKEN, Release);
    Flow::Resume
}

/// Stacks with how often each was found.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    stacks: BTreeMap<(String, Vec<usize>), usize>,
    pub(crate) late: usize,
}

impl Sampler {
    pub(crate) fn start() -> Result<Self, Box<dyn std::error::Error>> {
        // SAFETY: no arguments.
        let version = unsafe { libc::gnu_get_libc_version() };
        // SAFETY: a constant string of the C library.
        let version = unsafe { CStr::from_ptr(version) }.to_str()?;
        let minor = version.strip_prefix("2.").and_then(|minor| minor.split('.').next());
        if minor.and_then(|minor| minor.parse::<u32>().ok()).is_none_or(|minor| minor < 35) {
            return Err(format!("glibc {version} is too old to unwind in a handler").into());
        }
        // What the unwinder does once, it does here.
        backtrace::trace(|_| true);
        // SAFETY: the handler is async-signal-safe.
        let _for_good = unsafe { handler::install(libc::SIGPROF, on_sigprof, Options::new()) }?;
        Ok(Self::default())
    }

    pub(crate) fn samples(&self) -> usize {
        self.stacks.values().sum()
    }

    /// Takes a sample of each other thread that has a processor, or waits for one.
    pub(crate) fn sample_all(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let tasks = TaskDir::open()?;
        for thread in threadreg::os_threads()?.iter().filter(|thread| thread.tid != gettid()) {
            let Ok(stat) = tasks.stat(thread.tid) else { continue };
            if stat.state == 'R' {
                self.sample(thread.tid, stat.comm.to_string());
            }
        }
        Ok(())
    }

    fn sample(&mut self, tid: Tid, name: String) {
        ASKED.store(tid, Release);
        let start = Instant::now();
        let sent = tgkill(process::id() as i32, tid, libc::SIGPROF);
        loop {
            // Acquire: the frames.
            match ASKED.load(Acquire) {
                TAKEN => break,
                TAKING => {}
                _ if sent.is_ok() && start.elapsed() < PATIENCE => {}
                // From here on its handler finds nothing asked.
                _ if ASKED.compare_exchange(tid, 0, Acquire, Relaxed).is_ok() => {
                    self.late += usize::from(sent.is_ok());
                    return;
                }
                _ => {}
            }
            yield_now();
        }
        let frames = &FRAMES[..COUNT.load(Relaxed)];
        let stack = frames.iter().map(|frame| frame.load(Relaxed)).collect();
        *self.stacks.entry((name, stack)).or_default() += 1;
    }

    /// The stacks as lines: names from the outermost on, and how often.
    pub(crate) fn folded(&self) -> Vec<String> {
        let mut names = BTreeMap::new();
        let line = |((thread, stack), count): (&(String, Vec<usize>), &usize)| {
            let mut line = thread.clone();
            for (depth, &ip) in stack.iter().enumerate().rev() {
                // A return address may be that of the next function.
                let at = if depth == 0 { ip } else { ip - 1 };
                let name = names.entry(at).or_insert_with(|| name_of(at));
                _ = write!(line, ";{name}");
            }
            format!("{line} {count}")
        };
        self.stacks.iter().map(line).collect()
    }

    pub(crate) fn draw(&self, to: impl io::Write) -> io::Result<()> {
        let lines = self.folded();
        let mut options = inferno::flamegraph::Options::default();
        "All threads that ran".clone_into(&mut options.title);
        options.deterministic = true;
        inferno::flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), to)
            .map_err(|error| io::Error::other(error.to_string()))
    }
}

fn name_of(at: usize) -> String {
    let mut name = None;
    backtrace::resolve(at as *mut _, |symbol| {
        // The last one: what the others were inlined into.
        name = symbol.name().map(|name| format!("{name:#}").replace(';', ":")).or(name.take());
    });
    name.unwrap_or_else(|| "?".to_owned())
}
