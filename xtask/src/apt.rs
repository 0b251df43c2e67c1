//! Packages of the distribution: installed as root, else the command is told.

use std::process::Command;
use std::time::Duration;

use crate::report::Progress;
use crate::run;
use crate::workspace::has;

/// For the packages of one call.
pub(crate) const LIMIT: Duration = Duration::from_mins(20);

/// Runs a command that installs something, and shows what it is at. Returns what it printed.
pub(crate) fn call(words: &[&str], limit: Duration, progress: &Progress) -> Result<String, String> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(std::process::Stdio::null());
    let name = words.join(" ");
    progress.say(&format!("== {name}"));
    let ended = run::run(command, limit, |line| {
        if is_a_step(line) {
            progress.doing(line.trim_end());
        }
    })?;
    progress.idle();
    if ended.success() {
        return Ok(ended.output);
    }
    Err(format!("`{name}`: {}\n{}", ended.how(), crate::harness::last_lines(&ended.output)))
}

/// Whether packages can be installed: as root, by apt.
pub(crate) fn is_there() -> bool {
    let root = run::said(&["id", "-u"]).is_some_and(|id| id.trim() == "0");
    root && has("apt-get")
}

/// Installs packages, with the lists that are there, else with new ones.
pub(crate) fn apt_install(
    apt: bool,
    packages: &[&str],
    suite: Option<&str>,
    progress: &Progress,
) -> Result<(), String> {
    let from = suite.map_or(Vec::new(), |suite| vec!["-t", suite]);
    let words = [&["apt-get", "install", "-y", "--no-install-recommends"][..], &from, packages];
    let words = words.concat();
    if !apt {
        return Err(format!("as root: `{}`", words.join(" ")));
    }
    if call(&words, LIMIT, progress).is_ok() {
        return Ok(());
    }
    call(&["apt-get", "update"], LIMIT, progress)?;
    if call(&words, LIMIT, progress).is_ok() {
        return Ok(());
    }
    // One that the release does not have keeps apt from all the others.
    let (install, _) = words.split_at(words.len() - packages.len());
    let one = |package: &&str| call(&[install, &[*package]].concat(), LIMIT, progress).err();
    let failures: Vec<_> = packages.iter().filter_map(one).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// What apt says of each package: it is fetched, unpacked, set up.
fn is_a_step(line: &str) -> bool {
    ["Get:", "Unpacking ", "Setting up "].iter().any(|word| line.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_told_of_and_nothing_else() {
        assert!(is_a_step("Get:8 http://mirror/debian bookworm/main amd64 libgc1 [240 kB]"));
        assert!(is_a_step("Setting up libgc1:amd64 (1:8.2.2-3) ..."));
        assert!(!is_a_step("Reading package lists..."));
    }

    #[test]
    fn without_root_the_command_is_told() {
        let error = apt_install(false, &["a", "b"], Some("s"), &Progress::new()).unwrap_err();
        assert_eq!(error, "as root: `apt-get install -y --no-install-recommends -t s a b`");
    }
}
