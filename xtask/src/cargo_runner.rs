//! Tests of `.cargo/one-process-a-test`, through which cargo starts what it has built.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::counts::{self, Counts};
use crate::run::{self, Ended};
use crate::workspace::Workspace;

/// A directory that has a test binary's place in it, and goes when this is dropped.
struct Build(PathBuf);

impl Build {
    /// `program` is a script in the place of the binary.
    fn new(name: &str, program: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("deps")).unwrap();
        let build = Self(dir);
        fs::write(build.binary(), program).unwrap();
        fs::set_permissions(build.binary(), fs::Permissions::from_mode(0o755)).unwrap();
        build
    }

    fn binary(&self) -> PathBuf {
        self.0.join("deps/binary")
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn through_the_runner(program: &Path, args: &[&str]) -> Ended {
    let mut command = Command::new(Workspace::find().root.join(".cargo/one-process-a-test"));
    command.arg(program).args(args);
    run::run(command, Duration::from_mins(1), |_| {}).unwrap()
}

/// Answers as a harness with three tests does, and notes the process and the arguments of each
/// start but that for the list.
const THREE_TESTS: &str = r#"#!/bin/sh
case "$*" in
*--list*) printf 'a::good: test\na::bad: test\na::stress_late: test\n' ; exit ;;
esac
echo "$$ $*" >>"${0%/deps/*}/starts"
echo "running 1 test"
[ "$2" = a::bad ] && { echo "why it failed" ; echo "test result: FAILED. 0 passed; 1 failed;" ; exit 101 ; }
echo "test result: ok. 1 passed; 0 failed; 0 ignored"
"#;

#[test]
fn cargo_gives_each_test_a_process_and_a_failure_is_shown() {
    let build = Build::new("runner", THREE_TESTS);
    let ended = through_the_runner(&build.binary(), &["--show-output"]);
    assert_eq!(ended.status.unwrap().code(), Some(101));
    let counted = counts::libtest(&ended.output);
    assert_eq!((counted.started, counted.counts), (3, Counts { failed: 1, ..Counts::passed(2) }));
    assert!(ended.output.contains("why it failed\n"), "{}", ended.output);

    let starts = fs::read_to_string(build.0.join("starts")).unwrap();
    let mut starts: Vec<_> = starts.lines().map(|l| l.split_once(' ').unwrap()).collect();
    // Stress tests come last; the others in any order.
    assert_eq!(starts.last().unwrap().1, "--exact a::stress_late --show-output");
    starts.sort_unstable();
    starts.dedup_by_key(|start| start.0);
    assert_eq!(starts.len(), 3, "three processes: {starts:?}");
}

#[test]
fn cargos_runner_starts_a_test_by_its_full_name_as_it_is() {
    let build = Build::new("runner-exact", THREE_TESTS);
    let ended = through_the_runner(&build.binary(), &["--exact", "a::bad"]);
    assert_eq!(ended.status.unwrap().code(), Some(101));
    assert!(ended.output.starts_with("running 1 test\n"), "{}", ended.output);
    let starts = fs::read_to_string(build.0.join("starts")).unwrap();
    assert!(starts.ends_with(" --exact a::bad\n"), "{starts}");
}

#[test]
fn cargos_runner_starts_other_programs_as_they_are() {
    let ended = through_the_runner(Path::new("/bin/echo"), &["--list", "a b"]);
    assert_eq!(ended.output, "--list a b\n");
}

#[test]
fn cargos_runner_understands_the_real_harness() {
    let binary = std::env::current_exe().unwrap();
    let some = ["counts::tests::libtest", "--skip", "dead_binary", "--test-threads", "2"];
    let ended = through_the_runner(&binary, &some);
    let counted = counts::libtest(&ended.output);
    assert_eq!((counted.started, counted.counts), (1, Counts::passed(1)), "{}", ended.output);
    let ended = through_the_runner(&binary, &["harness::tests"]);
    let counted = counts::libtest(&ended.output);
    assert!(counted.started > 5, "{}", ended.output);
    assert_eq!(counted.counts, Counts::passed(counted.started), "{}", ended.output);
    assert!(ended.success());
}
