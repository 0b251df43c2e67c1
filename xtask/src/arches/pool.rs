//! Runs the tests of several rows while further rows are still being built.
//!
//! A row's stress tests never run beside each other. They come first, since they take longest; the
//! other workers take the row's other tests meanwhile, or those of another row.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
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

/// The tests of a row.
#[derive(Debug)]
struct Job<'p> {
    name: &'static str,
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
        if !self.stress_runs
            && let Some(test) = self.stress.pop_front()
        {
            self.stress_runs = true;
            return Some(test);
        }
        self.others.pop_front()
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

impl<'p> Pool<'p> {
    fn lock(&self) -> MutexGuard<'_, State<'p>> {
        self.state.lock().expect("no worker panicked")
    }

    /// Adds a row. Its outcomes are found under the number that is returned.
    pub(crate) fn add(
        &self,
        name: &'static str,
        tests: Vec<Test>,
        launch: Launch,
        line: Line<'p>,
    ) -> usize {
        let total = tests.len();
        let (stress, others) = tests.into_iter().partition(Test::is_stress);
        let mut job = Job {
            name,
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

    /// No row will be added: the workers end when there is nothing more to do.
    pub(crate) fn complete(&self) {
        self.lock().complete = true;
        self.changed.notify_all();
    }

    /// What came of each row, and when its last test ended.
    pub(crate) fn outcomes(self) -> Vec<(Vec<Outcome>, Instant)> {
        let jobs = self.state.into_inner().expect("no worker panicked").jobs;
        jobs.into_iter().map(|j| (j.outcomes, j.ended.expect("every worker has ended"))).collect()
    }

    /// Runs tests until there are none left and none will be added.
    pub(crate) fn work(&self) {
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
    if let Verdict::Failed { how, output } = &outcome.verdict {
        line.say(&format!("FAIL [{time:>8}] {} {name}: {how}", job.name));
        line.say(&harness::last_lines(output));
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
