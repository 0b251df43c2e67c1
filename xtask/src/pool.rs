//! Runs tests by several workers: those of one row, or of several while further rows are still being
//! built. A row's stress tests never run beside each other.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{self, Launch, Test, Verdict};
use crate::report::{Line, seconds};

/// A test that was run.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) time: Duration,
}

/// How the tests of a row run beside each other, and what is printed of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each test is printed. Stress tests come last and run alone: they have their full size and load
    /// every processor.
    Native,
    /// Failures are printed. Stress tests come first, since they take longest; the other workers take the
    /// row's other tests meanwhile, or those of another row.
    Row,
}

/// What came of a row.
#[derive(Debug)]
pub(crate) struct Outcomes {
    pub(crate) outcomes: Vec<Outcome>,
    /// When the last test ended.
    pub(crate) ended: Instant,
}

/// The tests of a row.
#[derive(Debug)]
struct Job<'p> {
    name: &'static str,
    manner: Manner,
    launch: Launch,
    stress: VecDeque<Test>,
    others: VecDeque<Test>,
    stress_runs: bool,
    running: usize,
    total: usize,
    outcomes: Vec<Outcome>,
    ended: Option<Instant>,
    line: Option<Line<'p>>,
}

impl Job<'_> {
    fn take(&mut self) -> Option<Test> {
        match self.manner {
            Manner::Row if !self.stress_runs => {
                self.take_stress().or_else(|| self.others.pop_front())
            }
            Manner::Native if self.others.is_empty() && self.running == 0 => self.take_stress(),
            Manner::Row | Manner::Native => self.others.pop_front(),
        }
    }

    fn take_stress(&mut self) -> Option<Test> {
        let test = self.stress.pop_front()?;
        self.stress_runs = true;
        Some(test)
    }

    fn is_over(&self) -> bool {
        self.stress.is_empty() && self.others.is_empty() && self.running == 0
    }
}

/// The rows whose tests run or have run.
#[derive(Debug, Default)]
pub(crate) struct Pool<'p> {
    state: Mutex<State<'p>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State<'p> {
    jobs: Vec<Job<'p>>,
    /// Whether no row will be added.
    complete: bool,
}

/// Runs the tests that `fill` adds, with this many workers. Returns what `fill` returns, and what came of
/// each row under the number that [`Pool::add`] returned.
pub(crate) fn run<'p, R>(workers: usize, fill: impl FnOnce(&Pool<'p>) -> R) -> (R, Vec<Outcomes>) {
    let pool = Pool::default();
    let filled = thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| pool.work());
        }
        // The workers wait for it even when `fill` panics.
        let _complete = Complete(&pool);
        fill(&pool)
    });
    let jobs = pool.state.into_inner().expect("no worker panicked").jobs;
    let outcomes = |job: Job<'p>| Outcomes {
        outcomes: job.outcomes,
        ended: job.ended.expect("every worker has ended"),
    };
    (filled, jobs.into_iter().map(outcomes).collect())
}

/// Lets the workers end: no row will be added.
struct Complete<'a, 'p>(&'a Pool<'p>);

impl Drop for Complete<'_, '_> {
    fn drop(&mut self) {
        self.0.lock().complete = true;
        self.0.changed.notify_all();
    }
}

impl<'p> Pool<'p> {
    fn lock(&self) -> MutexGuard<'_, State<'p>> {
        self.state.lock().expect("no worker panicked")
    }

    /// Adds a row. Its outcomes are found under the number that is returned.
    pub(crate) fn add(
        &self,
        name: &'static str,
        manner: Manner,
        tests: Vec<Test>,
        launch: Launch,
        line: Line<'p>,
    ) -> usize {
        let total = tests.len();
        let (stress, others) = tests.into_iter().partition(Test::is_stress);
        let mut job = Job {
            name,
            manner,
            launch,
            stress,
            others,
            stress_runs: false,
            running: 0,
            total,
            outcomes: Vec::new(),
            ended: None,
            line: Some(line),
        };
        finish(&mut job);
        let mut state = self.lock();
        state.jobs.push(job);
        self.changed.notify_all();
        state.jobs.len() - 1
    }

    /// Runs tests until there are none left and none will be added.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            let next = state.jobs.iter_mut().enumerate().find_map(|(i, j)| Some((i, j.take()?)));
            let Some((number, test)) = next else {
                // A stress test that is left waits for the one that runs.
                let waiting = state.jobs.iter().any(|job| !job.stress.is_empty());
                if state.complete && !waiting {
                    return;
                }
                state = self.changed.wait(state).expect("no worker panicked");
                continue;
            };
            let job = &mut state.jobs[number];
            job.running += 1;
            let launch = job.launch.clone();
            drop(state);
            let (verdict, time) = harness::run_test(&test, &launch);
            state = self.lock();
            let job = &mut state.jobs[number];
            job.running -= 1;
            if test.is_stress() {
                job.stress_runs = false;
            }
            record(job, Outcome { name: test.full_name(), verdict, time });
            finish(job);
            self.changed.notify_all();
        }
    }
}

fn record(job: &mut Job<'_>, outcome: Outcome) {
    let line = job.line.as_ref().expect("the row is not over");
    let (name, time) = (&outcome.name, seconds(outcome.time));
    match (job.manner, &outcome.verdict) {
        (Manner::Native, Verdict::Passed) => line.say(&format!("PASS [{time:>8}] {name}")),
        (Manner::Native, Verdict::Skipped(reason)) => {
            line.say(&format!("SKIP [{time:>8}] {name}\n  {reason}"));
        }
        (Manner::Native, Verdict::Failed { how, output }) => {
            line.say(&format!("FAIL [{time:>8}] {name}: {how}\n{output}"));
        }
        (Manner::Row, Verdict::Failed { how, output }) => {
            let last = harness::last_lines(output);
            line.say(&format!("FAIL [{time:>8}] {} {name}: {how}\n{last}", job.name));
        }
        (Manner::Row, Verdict::Passed | Verdict::Skipped(_)) => {}
    }
    job.outcomes.push(outcome);
    line.doing(format!("{:<8} {} of {} tests", job.name, job.outcomes.len(), job.total));
}

fn finish(job: &mut Job<'_>) {
    if !job.is_over() {
        return;
    }
    job.ended = Some(Instant::now());
    if let Some(line) = job.line.take() {
        let failed = |o: &&Outcome| matches!(o.verdict, Verdict::Failed { .. });
        let failed = job.outcomes.iter().filter(failed).count();
        line.say(&format!("{}: {} tests have run, {failed} failed", job.name, job.total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Progress;

    fn next(job: &mut Job<'_>) -> Option<String> {
        job.take().map(|test| test.name)
    }

    /// A row with two tests and two stress tests, none of which is run.
    fn with_job(manner: Manner, look: impl FnOnce(&mut Job<'_>)) {
        let progress = Progress::new();
        let pool = Pool::default();
        let tests = ["a", "stress_b", "c", "stress_d"].map(Test::named).to_vec();
        pool.add("row", manner, tests, Launch::default(), progress.line());
        look(&mut pool.lock().jobs[0]);
    }

    #[test]
    fn stress_tests_of_a_row_run_first_and_one_at_a_time() {
        with_job(Manner::Row, |job| {
            assert_eq!(next(job).unwrap(), "stress_b");
            assert_eq!(next(job).unwrap(), "a");
            assert_eq!(next(job).unwrap(), "c");
            assert_eq!(next(job), None);
            job.stress_runs = false;
            assert_eq!(next(job).unwrap(), "stress_d");
        });
    }

    #[test]
    fn native_stress_tests_run_when_nothing_else_does() {
        with_job(Manner::Native, |job| {
            assert_eq!(next(job).unwrap(), "a");
            assert_eq!(next(job).unwrap(), "c");
            job.running = 1;
            assert_eq!(next(job), None);
            job.running = 0;
            assert_eq!(next(job).unwrap(), "stress_b");
            job.running = 1;
            assert_eq!(next(job), None);
            job.running = 0;
            assert_eq!(next(job).unwrap(), "stress_d");
        });
    }
}
