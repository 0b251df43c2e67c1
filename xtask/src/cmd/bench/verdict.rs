//! What a row is to be, and whether it is.

use super::rows::Limit;
use super::samples::{Samples, p50};

/// Whether a row is within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    No,
    /// A side is not there that a limit is about.
    Unknown,
    /// There is no limit.
    NoTarget,
}

impl Held {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Yes => "held",
            Self::No => "NO",
            Self::Unknown => "?",
            Self::NoTarget => "",
        }
    }
}

/// Ours over what the limit is about: the least of the sides that are there, or the number itself.
pub(super) fn ratio(ours: f64, limit: &Limit, samples: &Samples) -> Option<f64> {
    match limit {
        Limit::Below(most) => Some(ours / most),
        Limit::Times(_, sides) => {
            let medians = sides.iter().filter_map(|side| p50(samples, side));
            medians.min_by(f64::total_cmp).map(|least| ours / least)
        }
    }
}

/// Whether all limits are kept. One that is not is enough to say no.
pub(super) fn held(ours: f64, limits: &[Limit], samples: &Samples) -> Held {
    let kept = limits.iter().map(|limit| {
        let most = match limit {
            Limit::Below(_) => 1.0,
            Limit::Times(factor, _) => *factor,
        };
        Some(ratio(ours, limit, samples)? <= most)
    });
    let kept: Vec<_> = kept.collect();
    if kept.contains(&Some(false)) {
        Held::No
    } else if kept.contains(&None) {
        Held::Unknown
    } else if kept.is_empty() {
        Held::NoTarget
    } else {
        Held::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        [("bdwgc".to_owned(), vec![24.0]), ("tgkill".to_owned(), vec![10.0, 11.0, 12.0])].into()
    }

    #[test]
    fn all_limits_must_be_kept() {
        let limits = [Limit::Times(0.7, &["bdwgc"]), Limit::Times(1.3, &["tgkill"])];
        assert_eq!(held(14.0, &limits, &samples()), Held::Yes);
        // 1.36 times the signal; 0.63 times the collector.
        assert_eq!(held(15.0, &limits, &samples()), Held::No);
        assert_eq!(ratio(22.0, &limits[1], &samples()), Some(2.0));
    }

    #[test]
    fn missing_side_leaves_it_open_unless_another_says_no() {
        let none: &[&str] = &["glibc"];
        let limits = [Limit::Times(1.0, none), Limit::Below(10.0)];
        assert_eq!(held(9.0, &limits, &samples()), Held::Unknown);
        assert_eq!(held(11.0, &limits, &samples()), Held::No);
        assert_eq!(held(11.0, &[], &samples()), Held::NoTarget);
    }

    #[test]
    fn best_peer_is_the_least_of_those_that_are_there() {
        let limit = Limit::Times(1.0, &["bdwgc", "glibc", "tgkill"]);
        assert_eq!(ratio(11.0, &limit, &samples()), Some(1.0));
        assert_eq!(ratio(5.0, &Limit::Below(10.0), &samples()), Some(0.5));
    }
}
