//! How many tests passed, and how test harnesses say so.

use std::fmt;
use std::ops::AddAssign;

/// A number of tests, by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn passed(passed: u64) -> Self {
        Self { passed, ..Self::default() }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The line that other programs read: `3 passed, 0 failed`, with `, 1 skipped` when there are any.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 { write!(f, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

/// What `cargo test` printed about all its binaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Libtest {
    /// Tests that were started. A binary that dies reports no result for them.
    pub(crate) started: u64,
    pub(crate) counts: Counts,
}

/// Adds up the summaries of every test binary in the output of `cargo test`.
pub(crate) fn libtest(output: &str) -> Libtest {
    let mut sum = Libtest::default();
    for line in without_escapes(output).lines() {
        if let Some(rest) = line.strip_prefix("running ") {
            let mut words = rest.split(' ');
            let number = words.next().and_then(|n| n.parse::<u64>().ok());
            if matches!(words.next(), Some("test" | "tests")) && words.next().is_none() {
                sum.started += number.unwrap_or(0);
            }
        } else if let Some((_, rest)) = line.split_once("test result: ") {
            sum.counts += libtest_result(rest);
        }
    }
    sum
}

/// The last summary of a test binary in an output, which may have summaries of its children.
pub(crate) fn last_libtest(output: &str) -> Option<Counts> {
    let text = without_escapes(output);
    let results = text.lines().rev().filter_map(|line| line.split_once("test result: "));
    results.map(|(_, rest)| libtest_result(rest)).next()
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`
fn libtest_result(text: &str) -> Counts {
    let mut counts = Counts::default();
    let Some((_, parts)) = text.split_once(". ") else { return counts };
    for part in parts.split("; ") {
        match number_and_word(part) {
            Some((n, "passed")) => counts.passed += n,
            Some((n, "failed")) => counts.failed += n,
            Some((n, "ignored")) => counts.skipped += n,
            _ => {}
        }
    }
    counts
}

fn number_and_word(part: &str) -> Option<(u64, &str)> {
    let (number, word) = part.split_once(' ')?;
    Some((number.parse().ok()?, word.trim()))
}

/// Takes the colours out: `ESC [ … letter`.
pub(crate) fn without_escapes(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            let _ = chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            kept.push(c);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_adds_up_all_binaries() {
        let output = "
running 3 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s

running 1 test
test b ... FAILED
test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s
";
        let counts = Counts { passed: 2, failed: 1, skipped: 1 };
        assert_eq!(libtest(output), Libtest { started: 4, counts });
    }

    #[test]
    fn libtest_tells_a_dead_binary_from_an_empty_one() {
        let died = "running 1 test\nerror: test failed\n  process didn't exit (signal: 6)";
        assert_eq!(libtest(died), Libtest { started: 1, counts: Counts::default() });
        let empty = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored";
        assert_eq!(libtest(empty), Libtest::default());
        assert_eq!(libtest("running 3 tests of my own"), Libtest::default());
    }

    #[test]
    fn count_line_names_skipped_tests_only_when_there_are_any() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 0 }.to_string(), "3 passed, 0 failed");
        let some = Counts { passed: 3, failed: 1, skipped: 2 };
        assert_eq!(some.to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
