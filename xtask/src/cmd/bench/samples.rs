//! What a program has measured: `name: sample sample …`, a line for each side.

use std::collections::BTreeMap;

/// Samples by the name of their side, in nanoseconds or KiB.
pub(super) type Samples = BTreeMap<String, Vec<f64>>;

/// Adds the samples in a program's output. Fails with the line that is none, or where a side has no
/// sample.
pub(super) fn add(output: &str, samples: &mut Samples) -> Result<(), String> {
    let mut sides = 0;
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        let (name, rest) = line.split_once(':').ok_or_else(|| format!("not a side: {line}"))?;
        let numbers: Result<Vec<f64>, _> = rest.split_whitespace().map(str::parse).collect();
        let numbers = numbers.map_err(|error| format!("{name}: {error} in{rest}"))?;
        if numbers.is_empty() || !numbers.iter().all(|number| number.is_finite()) {
            return Err(format!("{name}: no sample"));
        }
        samples.entry(name.to_owned()).or_default().extend(numbers);
        sides += 1;
    }
    if sides == 0 { Err("it printed nothing".to_owned()) } else { Ok(()) }
}

/// The least sample that `percent` of them do not exceed.
pub(super) fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * percent / 100.0).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// The median.
pub(super) fn p50(samples: &Samples, name: &str) -> Option<f64> {
    percentile(samples.get(name)?, 50.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_rounds_come_together() {
        let mut samples = Samples::new();
        add("ours: 1 2.5\nflag: 3\n", &mut samples).unwrap();
        add("ours: 4\n\n", &mut samples).unwrap();
        assert_eq!(samples["ours"], [1.0, 2.5, 4.0]);
        assert_eq!(samples["flag"], [3.0]);
        assert_eq!(p50(&samples, "ours"), Some(2.5));
        assert_eq!(p50(&samples, "none"), None);
    }

    #[test]
    fn what_is_no_sample_is_told() {
        let error = |output| add(output, &mut Samples::new()).unwrap_err();
        assert_eq!(error("thread panicked"), "not a side: thread panicked");
        assert_eq!(error("ours: 1 x"), "ours: invalid float literal in 1 x");
        assert_eq!(error("ours:"), "ours: no sample");
        assert_eq!(error("ours: NaN"), "ours: no sample");
        assert_eq!(error(""), "it printed nothing");
    }

    #[test]
    fn percentiles_are_samples() {
        let hundred: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50.0), Some(50.0));
        assert_eq!(percentile(&hundred, 99.0), Some(99.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[2.0, 1.0], 50.0), Some(1.0));
        assert_eq!(percentile(&[], 50.0), None);
    }
}
