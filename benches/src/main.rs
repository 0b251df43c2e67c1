//! What `cargo xtask bench` runs of ours: `benches PROBE [N] [SAMPLES] [MILLISECONDS] [WORD]`.
//!
//! A probe measures one thing with N threads, or with none where it needs none, until it has so many
//! samples or the time is over. It prints a line for each side that it compared, `name: sample sample …`,
//! in nanoseconds a time and KiB a thread. The programs of `benches/peers` have the same arguments and
//! print the same lines. Then the process ends at once: its threads spin, wait, or have the world stopped.

mod all;
mod fast;
mod floors;
mod injected;
mod made;
mod stopped;
mod suspended;
mod threads;

use std::process::ExitCode;
use std::time::Duration;

use crate::threads::Limits;

/// What a probe is given, and what it has measured.
type Probe = fn(&Limits) -> Vec<benches::Series>;

/// All probes, by name.
const PROBES: [(&str, Probe); 26] = [
    ("all-threads", all::operations),
    ("attach", made::attach),
    ("current", fast::current),
    ("each-poll", stopped::each_poll),
    ("each-safe", stopped::each_safe),
    ("fence", floors::fence),
    ("floor-flag", floors::flag),
    ("floor-stop-poll", floors::stop_poll),
    ("floor-stop-safe", floors::stop_safe),
    ("floor-signal", floors::signal),
    ("handshake-poll", stopped::handshake_poll),
    ("handshake-safe", stopped::handshake_safe),
    ("injection", injected::calls),
    ("memory", made::memory),
    ("memory-std", made::memory_std),
    ("no-preempt", fast::no_preempt),
    ("poll", fast::poll),
    ("region", fast::region),
    ("region-full", fast::region_full),
    ("region-roots", fast::region_roots),
    ("spawn", made::spawn),
    ("stop-deaf", stopped::stop_deaf),
    ("stop-poll", stopped::stop_poll),
    ("stop-safe", stopped::stop_safe),
    ("suspend", suspended::task),
    ("walk", made::walk),
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let probe = args.first().and_then(|name| PROBES.iter().find(|(known, _)| known == name));
    let Some((_, probe)) = probe else {
        let names: Vec<_> = PROBES.iter().map(|(name, _)| *name).collect();
        eprintln!("the probes are {}", names.join(", "));
        return ExitCode::from(2);
    };
    let number = |at: usize, default: u64| match args.get(at) {
        Some(text) => text.parse().unwrap_or(default),
        None => default,
    };
    let limits = Limits {
        threads: number(1, 1) as usize,
        samples: number(2, 200).max(1) as usize,
        budget: Duration::from_millis(number(3, 1000)),
        word: args.get(4).cloned().unwrap_or_default(),
    };
    for series in probe(&limits) {
        println!("{series}");
    }
    // SAFETY: it ends the process.
    unsafe { libc::_exit(0) }
}
