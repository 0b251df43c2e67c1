//! What the benches share.

use std::fmt;
use std::time::{Duration, Instant};

pub mod raised;

/// What one side was measured to take.
#[derive(Debug, Clone)]
pub struct Series {
    name: &'static str,
    samples: Vec<f64>,
}

impl Series {
    /// Without a sample so far.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new() }
    }

    /// With one sample.
    #[must_use]
    pub fn of(name: &'static str, sample: f64) -> Self {
        Self { name, samples: vec![sample] }
    }

    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.add_nanoseconds(time.as_secs_f64() * 1e9);
    }

    /// Adds a time, or a difference of times, in nanoseconds.
    pub fn add_nanoseconds(&mut self, nanoseconds: f64) {
        self.samples.push(nanoseconds);
    }

    /// Makes each sample one thread's share.
    pub fn divide(&mut self, threads: f64) {
        self.samples.iter_mut().for_each(|sample| *sample /= threads);
    }
}

/// `name: 12 13.25 …`, which `cargo xtask bench` reads.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        self.samples.iter().try_for_each(|sample| write!(f, " {}", (sample * 1e3).round() / 1e3))
    }
}

/// Median times of one call of each side, in nanoseconds: `rounds` of `batch` calls for each,
/// measured in turns, so that their ratio holds whatever else the machine does.
pub fn medians(rounds: usize, batch: u32, sides: &mut [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for (side, times) in sides.iter_mut().zip(&mut times) {
            let begin = Instant::now();
            for _ in 0..batch {
                side();
            }
            times.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(batch));
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}
