//! Runs a program to its end or to its time limit, with its output kept, in order.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::disk;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None`: it was killed at its time limit.
    pub(crate) status: Option<ExitStatus>,
    /// Standard output and error as they came. After a time limit, also what the threads did.
    pub(crate) output: String,
    pub(crate) time: Duration,
}

impl Ended {
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// `exit status: 1`, `signal: 6 (SIGABRT)`, `no end after 300 s`.
    pub(crate) fn how(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("no end after {} s", self.time.as_secs()),
        }
    }
}

/// Runs `command`; past `limit`, records what its threads were doing and kills it with all its
/// descendants. They stay in this process's group, so that an interrupt from the terminal
/// ends them too.
pub(crate) fn run(
    mut command: Command,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Ended, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let cannot = |error: io::Error| format!("cannot run `{name}`: {error}");
    let (reader, writer) = io::pipe().map_err(cannot)?;
    command.stdout(writer.try_clone().map_err(cannot)?).stderr(writer);
    let start = Instant::now();
    let mut child = command.spawn().map_err(cannot)?;
    // Holds the write ends, which would keep the reader waiting.
    drop(command);
    let lines = read_lines(reader);

    let mut output = String::new();
    let mut take = |line: String, output: &mut String| {
        disk::notice(&line);
        on_line(line.trim_end_matches('\n'));
        output.push_str(&line);
    };
    loop {
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => take(line, &mut output),
            Err(RecvTimeoutError::Timeout) => {}
            // Output closed, which a program may do before its end.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = child.try_wait().map_err(cannot)? {
            // What it left in the pipe. A descendant that lives on may hold the pipe open.
            while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
                take(line, &mut output);
            }
            return Ok(Ended { status: Some(status), output, time: start.elapsed() });
        }
        if start.elapsed() > limit {
            let threads = testkit::stop_tree(child.id());
            child.wait().map_err(cannot)?;
            while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
                take(line, &mut output);
            }
            output.push_str(&threads);
            return Ok(Ended { status: None, output, time: start.elapsed() });
        }
    }
}

/// What a program prints, if it is there and succeeds.
pub(crate) fn said(words: &[&str]) -> Option<String> {
    let (program, args) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read_lines(from: io::PipeReader) -> Receiver<String> {
    let (lines, received) = mpsc::channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            // The receiver is gone when the program was killed.
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    received
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_keeps_the_order_of_both_streams() {
        let script = "echo one; echo two >&2; echo three; exit 3";
        let ended = run(sh(script), Duration::from_secs(10), |_| {}).unwrap();
        assert_eq!(ended.output, "one\ntwo\nthree\n");
        assert_eq!(ended.status.unwrap().code(), Some(3));
    }

    #[test]
    fn limit_ends_a_program_with_its_descendants() {
        let script = "echo start; sleep 60 & sleep 60; true";
        let start = Instant::now();
        let ended = run(sh(script), Duration::from_millis(200), |_| {}).unwrap();
        assert!(ended.status.is_none());
        assert!(ended.output.starts_with("start\n"), "{}", ended.output);
        let sleeps = |l: &&str| l.starts_with("process ") && l.ends_with(" sleep");
        assert_eq!(ended.output.lines().filter(sleeps).count(), 2, "{}", ended.output);
        // A descendant left alive would hold the pipe, and with it the reader, for a minute.
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn missing_program_is_named() {
        let error = run(Command::new("no-such-program"), Duration::from_secs(1), |_| {});
        assert!(error.unwrap_err().contains("`no-such-program`"));
    }
}
