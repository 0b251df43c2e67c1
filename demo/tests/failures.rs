//! What the demo says where it cannot do its work, and with which exit status.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

/// The demo, small.
fn demo() -> Command {
    let mut command = testkit::command(env!("CARGO_BIN_EXE_demo"));
    command.args(["--stops", "3", "--preemptions", "3"]).stdin(Stdio::null());
    command
}

/// Runs it with `prepare` before it starts, in its process.
fn run(mut command: Command, prepare: fn() -> io::Result<()>) -> io::Result<Output> {
    // SAFETY: the functions of this file make system calls alone.
    unsafe { command.pre_exec(prepare) };
    command.output()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn result(of_a_call: i32) -> io::Result<()> {
    if of_a_call == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A limit with which the process starts, but that leaves none for the demo.
fn few_files() -> io::Result<()> {
    let few = libc::rlimit { rlim_cur: 5, rlim_max: 5 };
    // SAFETY: reads one `rlimit`.
    result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) })
}

#[test]
fn few_descriptors_are_named_with_what_helps() {
    let output = run(demo(), few_files).expect("started");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("demo: cannot ") && said.contains("ulimit -n"), "{said}");
    assert!(!said.contains("panicked") && !said.contains("Error {"), "{said}");
}

#[test]
fn for_programs_the_failure_is_json_too() {
    let mut command = demo();
    command.arg("--json");
    let output = run(command, few_files).expect("started");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["passed"], false);
    assert!(json["error"].as_str().is_some_and(|why| why.contains("ulimit -n")), "{json}");
}

#[test]
fn a_proc_that_is_not_mounted_is_named_with_what_helps() {
    let without_proc = || {
        // SAFETY: no memory is read.
        result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        // The unmounting is to stay in the new namespace.
        let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        // SAFETY: a NUL-terminated path; the rest is not looked at.
        result(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) })?;
        // SAFETY: a NUL-terminated path.
        result(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) })
    };
    let output = match run(demo(), without_proc) {
        Ok(output) => output,
        Err(error) => return testkit::skip(format_args!("/proc cannot be unmounted: {error}")),
    };
    let said = said(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("mount -t proc"), "{said}");
}

#[test]
fn children_in_another_pid_namespace_are_named_with_what_helps() {
    // SAFETY: no memory is read.
    let unshare = || result(unsafe { libc::unshare(libc::CLONE_NEWPID) });
    let output = match run(demo(), unshare) {
        Ok(output) => output,
        Err(error) => return testkit::skip(format_args!("no pid namespace: {error}")),
    };
    let said = said(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("unshare --pid --fork --mount-proc"), "{said}");
}

#[test]
fn output_that_nobody_reads_ends_it_without_a_word() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let mut command = demo();
    command.stdout(writer.try_clone().expect("a descriptor")).stderr(Stdio::piped());
    let output = command.output().expect("started");
    assert_eq!(output.status.code(), Some(128 + libc::SIGPIPE), "{}", said(&output));
    assert!(!said(&output).contains("panicked"), "{}", said(&output));
    // Standard error is not read either, as after `2>&1 | head`.
    command.stderr(writer);
    let status = command.status().expect("started");
    assert_eq!(status.code(), Some(128 + libc::SIGPIPE));
}
