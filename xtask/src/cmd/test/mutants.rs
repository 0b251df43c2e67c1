//! Known bugs as patches, `crates/<crate>/mutants/<what-it-breaks>.patch`. Each is put into a copy
//! of the tree, and the test named in its header must fail: a test that cannot fail proves nothing.
//!
//! A kill counts only when the test passes without the patch, the patched copy builds, and the test
//! was started. Everything else is a failure of its own: a patch that does not apply, a build
//! that fails, a filter without a test, a test that ran into the time limit. But where the test
//! cannot be run the mutant is skipped with it.
//!
//! There are two lanes of mutants, and each keeps to one processor: the first two of those that are
//! allowed. A test that needs two threads to run at the same moment would kill on one machine and not on
//! another, or beside other load; here it fails to kill, wherever it is run.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::{Cell, Color};

use super::Selection;
use super::patch::{self, Harness, Header, Killer};
use crate::counts;
use crate::harness::{self, skip_reason};
use crate::processors::{self, Processor};
use crate::report::{self, Progress, Step, output, seconds, tell};
use crate::run::{self, Ended};
use crate::tree;
use crate::workspace::{Workspace, need};

const BUILD_LIMIT: Duration = Duration::from_mins(20);
const TEST_LIMIT: Duration = Duration::from_mins(5);

/// The directories of the lanes.
const LANES: [&str; 2] = ["first", "second"];

/// A patch and what it says of itself.
struct Mutant {
    /// `crate/what-it-breaks`.
    name: String,
    package: String,
    file: PathBuf,
    header: Header,
}

/// What is known of the tests that are to kill, without a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Killers {
    /// Nothing: each is run on the unpatched copy first.
    Unknown,
    /// All have run in this run; one that failed has failed the run.
    HaveRun,
}

pub(crate) fn run(
    workspace: &Workspace,
    selection: &Selection,
    killers: Killers,
    progress: &Progress,
) -> Step {
    let (mut mutants, step) = find(workspace, selection);
    if mutants.is_empty() && step.failures.is_empty() {
        return Step::skipped("no mutant is selected");
    }
    if let Err(why) = need("patch") {
        return Step::failed(why);
    }
    // Neighbours share a build.
    mutants.sort_by(|a, b| (&a.package, &a.header.killer).cmp(&(&b.package, &b.header.killer)));
    let processors = match processors::allowed() {
        Ok(processors) => processors,
        Err(why) => return Step::failed(why),
    };
    let lanes = LANES.into_iter().zip(processors);
    let benches = lanes.map(|(lane, processor)| Bench {
        workspace,
        dir: workspace.target.join("mutants").join(lane),
        processor,
        killers,
        unpatched: BTreeMap::new(),
    });
    let results = judge_all(benches.collect(), &mutants, progress);
    workspace.build_is_over("mutants");
    report_all(&mutants, results, step)
}

/// How it ended, and after how long.
type Judged = (Result<(), Failure>, Duration);

/// One bench takes mutants from the front and the other from the back, so that each builds
/// neighbours in a row. One build is mostly one crate after the other, which leaves a processor idle.
fn judge_all(benches: Vec<Bench<'_>>, mutants: &[Mutant], progress: &Progress) -> Vec<Judged> {
    let left = Mutex::new(0..mutants.len());
    let judged = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for (lane, mut bench) in benches.into_iter().enumerate() {
            let (left, judged) = (&left, &judged);
            scope.spawn(move || {
                let line = progress.line();
                // Before anything is started: children inherit it.
                let pinned = bench.processor.pin();
                let next = || {
                    let mut left = left.lock().expect("no lane panics with it");
                    if lane == 0 { left.next() } else { left.next_back() }
                };
                while let Some(i) = next() {
                    let title = format!("mutant {}/{} {}", i + 1, mutants.len(), mutants[i].name);
                    line.doing(title.clone());
                    let start = Instant::now();
                    let pinned = pinned.clone().map_err(Failure::Harness);
                    let result = pinned.and_then(|()| bench.judge(&mutants[i]));
                    let (verdict, time) = (verdict(&result), start.elapsed());
                    line.say(&format!("{title}: {verdict} in {}", seconds(time)));
                    judged.lock().expect("no lane panics with it").insert(i, (result, time));
                }
            });
        }
    });
    judged.into_inner().expect("no lane panics with it").into_values().collect()
}

fn report_all(mutants: &[Mutant], judged: Vec<Judged>, mut step: Step) -> Step {
    let mut table = report::table(["mutant", "breaks", "killed by", "result", "time"]);
    for (mutant, (result, time)) in mutants.iter().zip(judged) {
        let verdict = verdict(&result);
        let colour = match &result {
            Ok(()) => Color::Green,
            Err(Failure::Skipped(_)) => Color::Yellow,
            Err(_) => Color::Red,
        };
        table.add_row([
            Cell::new(&mutant.name),
            Cell::new(&mutant.header.breaks),
            Cell::new(mutant.header.killer.to_string()),
            report::painted(Cell::new(verdict), colour),
            Cell::new(seconds(time)),
        ]);
        if let Err(Failure::Skipped(reason)) = &result {
            tell(&format!("{}: skipped: {reason}", mutant.name));
            step.counts.skipped += 1;
            continue;
        }
        step.add(
            result.map_err(|failure| {
                format!("{}: {verdict}: {}", mutant.name, failure.explain(mutant))
            }),
        );
    }
    output!("\n{}\n", report::trimmed(&table));
    step
}

fn verdict(result: &Result<(), Failure>) -> &'static str {
    result.as_ref().map_or_else(Failure::verdict, |()| "killed")
}

/// The mutants asked for, and the failures of those that cannot be read.
fn find(workspace: &Workspace, selection: &Selection) -> (Vec<Mutant>, Step) {
    let (mut mutants, mut unreadable) = (Vec::new(), Step::default());
    for package in workspace.crates().into_iter().filter(|name| selection.takes_crate(name)) {
        let dir = workspace.root.join("crates").join(&package).join("mutants");
        let mut files: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files.iter().map(fs::DirEntry::path) {
            let Some(stem) = file.file_stem().filter(|_| file.extension().is_some()) else {
                continue;
            };
            let name = format!("{package}/{}", stem.to_string_lossy());
            if file.extension().is_none_or(|e| e != "patch") || !selection.takes(&name) {
                continue;
            }
            let text = fs::read_to_string(&file).map_err(|e| e.to_string());
            match text.and_then(|text| patch::header(&text)) {
                Ok(header) => mutants.push(Mutant { name, package: package.clone(), file, header }),
                Err(why) => unreadable.add(Err(format!("{name}: {why}"))),
            }
        }
    }
    (mutants, unreadable)
}

/// Why a mutant does not count as killed.
#[derive(Debug, Clone)]
enum Failure {
    /// The test, or a part of it, cannot be run here, and why; the rest passes with the bug in.
    Skipped(String),
    Survived,
    /// The test is wrong before the patch.
    Unpatched(String),
    DoesNotApply(String),
    DoesNotBuild(String),
    NoTest,
    TimedOut(String),
    Harness(String),
}

impl Failure {
    fn verdict(&self) -> &'static str {
        match self {
            Self::Skipped(_) => "skipped",
            Self::Survived => "SURVIVED",
            Self::Unpatched(_) => "FAILS UNPATCHED",
            Self::DoesNotApply(_) => "DOES NOT APPLY",
            Self::DoesNotBuild(_) => "DOES NOT BUILD",
            Self::NoTest => "NO SUCH TEST",
            Self::TimedOut(_) => "TIME LIMIT",
            Self::Harness(_) => "NOT RUN",
        }
    }

    fn explain(&self, mutant: &Mutant) -> String {
        let killer = &mutant.header.killer;
        match self {
            Self::Skipped(reason) => reason.clone(),
            Self::Survived => format!("`{killer}` passes with the bug in"),
            Self::Unpatched(why) => {
                format!("`{killer}` does not pass without the patch: {}", tail(why))
            }
            Self::DoesNotApply(output) => {
                format!("the code has changed around it; make the patch anew\n{output}")
            }
            Self::DoesNotBuild(output) => tail(output),
            Self::NoTest => format!("`{killer}` starts no test"),
            Self::TimedOut(output) => {
                let limit = TEST_LIMIT.as_secs();
                format!("`{killer}` needs a timeout of its own, below {limit} s\n{}", tail(output))
            }
            Self::Harness(why) => why.clone(),
        }
    }
}

/// The end of a long output, where the reason is.
fn tail(output: &str) -> String {
    let lines: Vec<_> = output.trim_end().lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A copy of the tree with its builds, and what is known of it.
struct Bench<'w> {
    workspace: &'w Workspace,
    /// Of the copy and the builds.
    dir: PathBuf,
    processor: Processor,
    killers: Killers,
    /// How each killer did on the unpatched copy, by crate.
    unpatched: BTreeMap<(String, Killer), Result<(), Failure>>,
}

impl Bench<'_> {
    fn copy(&self) -> PathBuf {
        self.dir.join("tree")
    }

    fn judge(&mut self, mutant: &Mutant) -> Result<(), Failure> {
        let key = (mutant.package.clone(), mutant.header.killer.clone());
        if self.killers == Killers::Unknown && !self.unpatched.contains_key(&key) {
            let result = self.sync().and_then(|()| self.passes_unpatched(mutant));
            self.unpatched.insert(key.clone(), result);
        }
        if let Some(unpatched) = self.unpatched.get(&key) {
            unpatched.clone()?;
        }
        self.sync()?;
        self.apply(mutant)?;
        let ended = self.test(mutant)?;
        match ended.status {
            None => Err(Failure::TimedOut(ended.output)),
            Some(status) if status.success() => Err(match skip_reason(&ended.output) {
                Some(reason) => Failure::Skipped(reason.to_owned()),
                None => Failure::Survived,
            }),
            Some(_) => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), Failure> {
        tree::sync(&self.workspace.root, &self.copy()).map_err(|error| {
            Failure::Harness(format!("cannot copy the tree to {}: {error}", self.copy().display()))
        })
    }

    fn passes_unpatched(&self, mutant: &Mutant) -> Result<(), Failure> {
        let ended = self.test(mutant)?;
        if ended.success() {
            Ok(())
        } else {
            Err(Failure::Unpatched(format!("{}\n{}", ended.how(), ended.output)))
        }
    }

    fn apply(&self, mutant: &Mutant) -> Result<(), Failure> {
        let mut command = Command::new("patch");
        command
            .args(["-p1", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i"])
            .arg(&mutant.file)
            .current_dir(self.copy())
            .stdin(Stdio::null());
        let ended = run::run(command, TEST_LIMIT, |_| {}).map_err(Failure::Harness)?;
        if ended.success() { Ok(()) } else { Err(Failure::DoesNotApply(ended.output)) }
    }

    /// Builds the killer in the copy and runs it.
    fn test(&self, mutant: &Mutant) -> Result<Ended, Failure> {
        let killer = &mutant.header.killer;
        let build = self.cargo(mutant, killer.harness, &killer.args_with("--no-run"));
        let done = run::run(build, BUILD_LIMIT, |_| {}).map_err(Failure::Harness)?;
        if !done.success() {
            return Err(Failure::DoesNotBuild(format!("{}\n{}", done.how(), done.output)));
        }
        let test = self.cargo(mutant, killer.harness, &killer.args_that_show());
        let ended = run::run(test, TEST_LIMIT, |_| {}).map_err(Failure::Harness)?;
        let started = counts::libtest(&ended.output).started;
        if started == 0 { Err(Failure::NoTest) } else { Ok(ended) }
    }

    fn cargo(&self, mutant: &Mutant, harness: Harness, args: &[&str]) -> Command {
        let test = ["test", "-p", &mutant.package];
        let mut command = match harness {
            Harness::Loom => {
                let mut command = self.workspace.cargo_loom(&test, &self.dir.join("loom"));
                command.args(["--release", "--lib"]);
                command
            }
            Harness::Test => {
                let mut command = self.workspace.cargo(&test);
                command.env("CARGO_TARGET_DIR", self.dir.join("test"));
                command
            }
        };
        // A patch is a few lines, for releases too. `.ci/run` switches it off for what is built once.
        command.env("CARGO_INCREMENTAL", "1");
        command.args(args).current_dir(self.copy());
        // The full size, whatever the environment says: at a tenth some bugs would slip through.
        command.envs(harness::environment(Some("100")));
        // Many mutants hang. Without its bug each of these tests takes a tenth of its time at most.
        command.env("TESTKIT_HASTE", "3");
        command
    }
}
