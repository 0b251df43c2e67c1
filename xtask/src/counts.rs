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

/// Reads nextest's summary line; `None` when there is none, as after a build that failed.
pub(crate) fn nextest(output: &str) -> Option<Counts> {
    let text = without_escapes(output);
    let line = text.lines().rev().find(|l| l.trim_start().starts_with("Summary ["))?;
    // `Summary [ 1.2s] 5/6 tests run: 3 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
    let (_, parts) = line.split_once(" run: ")?;
    let mut counts = Counts::default();
    for part in without_parentheses(parts).split(',') {
        match number_and_word(part.trim())? {
            (n, "passed") => counts.passed += n,
            (n, "skipped") => counts.skipped += n,
            // `failed`, `timed out`, `exec failed`
            (n, _) => counts.failed += n,
        }
    }
    Some(counts)
}

/// The tests that nextest lists, each with how it ended, after its summary.
pub(crate) fn nextest_failures(output: &str) -> Vec<String> {
    let text = without_escapes(output);
    let lines = text.lines().skip_while(|l| !l.trim_start().starts_with("Summary ["));
    // `FAIL [   0.483s] (21/30) xtask::bin/xtask run::tests::name`
    let entry = |line: &str| {
        let (how, rest) = line.trim_start().split_once(" [")?;
        let (_, name) = rest.split_once("s] (")?.1.split_once(") ")?;
        let upper = how.chars().all(|c| c.is_ascii_uppercase() || c == '-' || c == ' ');
        (upper && !how.contains("SLOW")).then(|| format!("{how} {name}"))
    };
    lines.filter_map(entry).collect()
}

fn number_and_word(part: &str) -> Option<(u64, &str)> {
    let (number, word) = part.split_once(' ')?;
    Some((number.parse().ok()?, word.trim()))
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_u32;
    let mut kept = String::new();
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(c),
            _ => {}
        }
    }
    kept
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
    fn nextest_counts_every_kind_of_failure() {
        let line = "     Summary [   1.234s] 6/7 tests run: 3 passed (1 slow, 1 leaky), 1 failed, \
                    1 timed out, 1 exec failed, 2 skipped";
        assert_eq!(nextest(line), Some(Counts { passed: 3, failed: 3, skipped: 2 }));
    }

    #[test]
    fn nextest_reads_through_colours_and_takes_the_last_summary() {
        let text = "Summary [ 1s] 1 test run: 1 passed, 0 skipped\n\
                    \u{1b}[32;1m     Summary\u{1b}[0m [   0.007s] \u{1b}[1m2\u{1b}[0m tests run: \
                    \u{1b}[1m2\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped\n";
        assert_eq!(nextest(text), Some(Counts { passed: 2, failed: 0, skipped: 0 }));
    }

    #[test]
    fn nextest_failures_are_those_after_the_summary() {
        let text = "        FAIL [   0.4s] (1/3) x a::b\n\
                    Summary [ 1s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped\n\
                    \u{20}       FAIL [   0.4s] (1/3) x a::b\n  stdout ---\n some [0 (x) output\n\
                    \u{20} TIMEOUT [  60.0s] (3/3) x::storm c\n";
        assert_eq!(nextest_failures(text), ["FAIL x a::b", "TIMEOUT x::storm c"]);
    }

    #[test]
    fn nextest_without_summary_is_none() {
        assert_eq!(nextest("error: could not compile `x`"), None);
    }

    #[test]
    fn count_line_names_skipped_tests_only_when_there_are_any() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 0 }.to_string(), "3 passed, 0 failed");
        let some = Counts { passed: 3, failed: 1, skipped: 2 };
        assert_eq!(some.to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
