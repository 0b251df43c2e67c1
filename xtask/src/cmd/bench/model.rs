//! What a step costs, fitted to what was measured: least squares with no cost below zero.
//!
//! The time of an operation on `n` threads and `p` processors is taken to be
//!
//! ```text
//! t(n, p) = fixed + thread · n + wake · n / p + interrupt · min(n, p − 1)
//! ```
//!
//! *thread* is what the requester does for each thread, one after the other: a slot, a signal. *wake* is
//! what each thread does for itself, on any processor: it is woken, runs, and sleeps again. *interrupt* is
//! what a thread that runs at that moment on another processor adds: an interrupt of that processor, or its
//! part of a fence. To tell them apart, points on one processor are needed beside those on all.

/// The terms of the formula, by name.
pub(super) const TERMS: [&str; 4] = ["fixed", "a thread", "a wake", "an interrupt"];

/// A measured point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) threads: usize,
    pub(super) processors: usize,
    pub(super) nanoseconds: f64,
}

/// What each of [`TERMS`] costs, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Costs(pub(super) [f64; 4]);

fn columns(threads: usize, processors: usize) -> [f64; 4] {
    let (n, p) = (threads as f64, processors as f64);
    [1.0, n, n / p, n.min(p - 1.0)]
}

impl Costs {
    /// The time that the costs amount to, in nanoseconds.
    pub(super) fn predict(&self, threads: usize, processors: usize) -> f64 {
        columns(threads, processors).iter().zip(&self.0).map(|(x, cost)| x * cost).sum()
    }

    /// The median of the points' relative distances from the prediction.
    pub(super) fn error(&self, points: &[Point]) -> f64 {
        let distance = |point: &Point| {
            (self.predict(point.threads, point.processors) / point.nanoseconds - 1.0).abs()
        };
        let mut distances: Vec<_> = points.iter().map(distance).collect();
        distances.sort_by(f64::total_cmp);
        distances.get(distances.len() / 2).copied().unwrap_or(0.0)
    }
}

/// The costs with the least sum of squares of relative distances. A term that does not help, or that would
/// be below zero, costs nothing.
///
/// There are so few terms that each choice of them is tried, which finds the best one for certain.
pub(super) fn fit(points: &[Point]) -> Option<Costs> {
    let mut best: Option<(f64, Costs)> = None;
    for chosen in 1_u32..16 {
        let terms: Vec<usize> = (0..4).filter(|term| chosen & (1 << term) != 0).collect();
        if terms.len() > points.len() {
            continue;
        }
        let Some(costs) = solve(points, &terms) else { continue };
        if costs.0.iter().any(|&cost| cost < 0.0) {
            continue;
        }
        let squares = points.iter().map(|point| {
            (costs.predict(point.threads, point.processors) / point.nanoseconds - 1.0).powi(2)
        });
        let squares: f64 = squares.sum();
        // A further term must help for more than the rounding of numbers.
        if best.as_ref().is_none_or(|(least, _)| squares < least - 1e-9) {
            best = Some((squares, costs));
        }
    }
    best.map(|(_, costs)| costs)
}

/// The normal equations for some of the terms, by elimination. `None`: the points do not tell the terms
/// apart.
fn solve(points: &[Point], terms: &[usize]) -> Option<Costs> {
    let size = terms.len();
    let mut matrix = vec![vec![0.0; size + 1]; size];
    for point in points {
        // Relative to the time: a point of a millisecond weighs no more than one of a microsecond.
        let scaled = columns(point.threads, point.processors).map(|x| x / point.nanoseconds);
        for (row, &term) in terms.iter().enumerate() {
            for (column, &other) in terms.iter().enumerate() {
                matrix[row][column] += scaled[term] * scaled[other];
            }
            matrix[row][size] += scaled[term];
        }
    }
    for pivot in 0..size {
        let scale = matrix[pivot][pivot];
        let largest = (pivot..size)
            .max_by(|&a, &b| matrix[a][pivot].abs().total_cmp(&matrix[b][pivot].abs()))?;
        matrix.swap(pivot, largest);
        if matrix[pivot][pivot].abs() <= 1e-12 * scale.abs().max(f64::MIN_POSITIVE) {
            return None;
        }
        let lead = matrix[pivot].clone();
        for row in (0..size).filter(|&row| row != pivot) {
            let factor = matrix[row][pivot] / lead[pivot];
            for (cell, of_lead) in matrix[row].iter_mut().zip(&lead) {
                *cell -= factor * of_lead;
            }
        }
    }
    let mut costs = Costs([0.0; 4]);
    for (row, &term) in terms.iter().enumerate() {
        costs.0[term] = matrix[row][size] / matrix[row][row];
    }
    costs.0.iter().all(|cost| cost.is_finite()).then_some(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(costs: &Costs) -> Vec<Point> {
        let sizes = [1, 4, 16, 64, 256, 1000, 4000];
        let point = |threads, processors| {
            let nanoseconds = costs.predict(threads, processors);
            Point { threads, processors, nanoseconds }
        };
        sizes.iter().flat_map(|&n| [point(n, 1), point(n, 2)]).collect()
    }

    fn assert_near(found: Costs, expected: [f64; 4]) {
        for (found, expected) in found.0.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-3 * expected.max(1.0), "{found} {expected}");
        }
    }

    #[test]
    fn fit_finds_the_costs_that_made_the_points() {
        let expected = [900.0, 3.5, 1200.0, 10_000.0];
        assert_near(fit(&points(&Costs(expected))).unwrap(), expected);
        let few = [500.0, 2.0, 0.0, 0.0];
        assert_near(fit(&points(&Costs(few))).unwrap(), few);
    }

    #[test]
    fn no_cost_is_below_zero() {
        // Falls with the number of threads, which no cost explains.
        let falling = [1, 10, 100].map(|threads| Point {
            threads,
            processors: 2,
            nanoseconds: 1000.0 / threads as f64,
        });
        let costs = fit(&falling).unwrap();
        assert!(costs.0.iter().all(|&cost| cost >= 0.0), "{costs:?}");
    }

    #[test]
    fn noise_moves_the_costs_by_no_more_than_its_size() {
        let expected = [900.0, 3.5, 1200.0, 10_000.0];
        let mut noisy = points(&Costs(expected));
        for (at, point) in noisy.iter_mut().enumerate() {
            point.nanoseconds *= if at % 3 == 0 { 1.05 } else { 0.97 };
        }
        let costs = fit(&noisy).unwrap();
        assert!((costs.0[2] / expected[2] - 1.0).abs() < 0.1, "{costs:?}");
        assert!(costs.error(&noisy) < 0.06);
    }

    #[test]
    fn points_on_one_processor_count_alone_tell_no_wake_from_a_thread() {
        let one = |threads| Point { threads, processors: 1, nanoseconds: 10.0 * threads as f64 };
        let costs = fit(&[one(1), one(10), one(100)]).unwrap();
        assert!((costs.predict(50, 1) - 500.0).abs() < 1.0, "{costs:?}");
        assert_eq!(fit(&[]), None);
    }
}
