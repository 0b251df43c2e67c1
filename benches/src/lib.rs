//! What the benches share.

use std::time::Instant;

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
