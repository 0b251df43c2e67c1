//! Gets what the architectures need: by apt, pip and rustup, as root, or says the commands.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::machine::Missing;
use super::table::OLDEST_QEMU;
use crate::apt::{self, LIMIT, apt_install, call};
use crate::report::Progress;
use crate::run::said;
use crate::toolchain::DEBIAN_SOURCES;
use crate::workspace::has;

/// For the compiler's sources, which Debian has too.
const RUSTUP_LIMIT: Duration = Duration::from_mins(3);

/// Installs as much as it can. Fails with what it could not, and the commands for it.
pub(crate) fn install(missing: &[Missing], progress: &Progress) -> Result<(), String> {
    let apt = apt::is_there();
    let mut failures = Vec::new();
    let mut packages: Vec<&str> = Vec::new();
    let (mut emulators, mut zig, mut sources) = (false, false, false);
    let mut libraries = Vec::new();
    for one in missing {
        match one {
            Missing::Packages { packages: some, .. } => {
                packages.extend(some.iter().map(String::as_str));
            }
            Missing::Qemu { .. } => emulators = true,
            Missing::Zig => zig = true,
            Missing::Library { debian, into, .. } => libraries.push((*debian, into)),
            Missing::Sources { .. } => sources = true,
            Missing::Machine { .. } => {}
        }
    }
    if sources && !rust_sources(progress) {
        packages.extend(DEBIAN_SOURCES);
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        failures.extend(apt_install(apt, &packages, None, progress).err());
    }
    if emulators {
        failures.extend(install_emulators(apt, progress).err());
    }
    if zig {
        failures.extend(install_zig(apt, progress).err());
    }
    for (debian, into) in libraries {
        failures.extend(unpack_musl(debian, into, progress).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// Unpacks another architecture's musl `into` a directory of its own: installed, it would make apt
/// look for that architecture's packages from then on.
fn unpack_musl(debian: &str, into: &Path, progress: &Progress) -> Result<(), String> {
    let lists = into.join("apt");
    let partial = lists.join("partial");
    fs::create_dir_all(&partial).map_err(|error| format!("{}: {error}", partial.display()))?;
    let dir = into.to_string_lossy().into_owned();
    // With lists of its own, which the machine's are not changed by.
    let lists = format!("Dir::State::Lists={}", lists.display());
    let foreign = format!("APT::Architectures::={debian}");
    // A download needs no other user than the one that asks for it.
    let apt = ["env", "-C", &dir, "apt-get", "-o", &lists, "-o", &foreign];
    let apt = [&apt[..], &["-o", "APT::Sandbox::User=root"]].concat();
    call(&[&apt[..], &["update"]].concat(), LIMIT, progress)?;
    call(&[&apt[..], &["download", &format!("musl:{debian}")]].concat(), LIMIT, progress)?;
    let packages = fs::read_dir(into).map_err(|error| format!("{dir}: {error}"))?;
    let mut packages = packages.flatten().map(|entry| entry.path());
    let package = packages.find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.ok_or_else(|| format!("{dir}: no package in there"))?;
    call(&["dpkg", "-x", &package.to_string_lossy(), &dir], LIMIT, progress).map(drop)
}

/// Installs the emulators: from the machine's release, or from its backports when they are old.
fn install_emulators(apt: bool, progress: &Progress) -> Result<(), String> {
    const PACKAGE: &str = "qemu-user";
    let candidate = || {
        let policy = said(&["apt-cache", "policy", PACKAGE])?;
        candidate(&policy)
    };
    if candidate().is_none() && apt {
        call(&["apt-get", "update"], LIMIT, progress)?;
    }
    if candidate().is_some_and(|version| version >= OLDEST_QEMU) {
        return apt_install(apt, &[PACKAGE], None, progress);
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    let codename = codename.map(|c| c.trim_matches('"')).ok_or_else(|| {
        let (major, minor) = OLDEST_QEMU;
        format!("install qemu-user {major}.{minor} or later; /etc/os-release names no codename")
    })?;
    let suite = format!("{codename}-backports");
    if apt && !suite_is_known(&suite) {
        let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources");
        let list = fs::read_to_string("/etc/apt/sources.list");
        let uri = archive(&sources.unwrap_or_default(), &list.unwrap_or_default());
        let uri = uri.ok_or("no archive of Debian's is in apt's sources")?;
        let path = format!("/etc/apt/sources.list.d/{suite}.list");
        progress.say(&format!("== {path}: {uri}"));
        fs::write(&path, format!("deb {uri} {suite} main\n"))
            .map_err(|error| format!("{path}: {error}"))?;
        call(&["apt-get", "update"], LIMIT, progress)?;
    }
    apt_install(apt, &[PACKAGE], Some(&suite), progress)
}

/// Whether apt has lists of a suite.
fn suite_is_known(suite: &str) -> bool {
    let policy = said(&["apt-cache", "policy"]).unwrap_or_default();
    policy.contains(&format!("a={suite},")) || policy.contains(&format!("n={suite},"))
}

/// The version that apt would install, from `apt-cache policy qemu-user`.
fn candidate(policy: &str) -> Option<(u32, u32)> {
    let version = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate: "))?;
    // `1:10.0.2+ds-2`: an epoch may be before it.
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The address of the archive, from apt's sources in the new form or the old.
fn archive(sources: &str, list: &str) -> Option<String> {
    let new = sources.lines().find_map(|l| l.strip_prefix("URIs:"));
    let old = || {
        let line = list.lines().find(|l| l.starts_with("deb "))?;
        line.split_whitespace().find(|word| word.contains("://"))
    };
    let uri = new.and_then(|uris| uris.split_whitespace().next()).or_else(old)?;
    Some(uri.to_owned())
}

fn install_zig(apt: bool, progress: &Progress) -> Result<(), String> {
    const PIP: [&str; 4] = ["python3", "-m", "pip", "install"];
    if said(&["python3", "-m", "pip", "--version"]).is_none() {
        apt_install(apt, &["python3-pip"], None, progress)?;
    }
    let install = |more: &[&str]| call(&[&PIP[..], more, &["ziglang"]].concat(), LIMIT, progress);
    match install(&[]) {
        // Debian's own Python leaves its directories to apt, which has no zig.
        Err(why) if why.contains("externally-managed-environment") => {
            install(&["--break-system-packages"]).map(drop)
        }
        result => result.map(drop),
    }
}

/// Whether rustup has added the sources to the default compiler.
fn rust_sources(progress: &Progress) -> bool {
    if !has("rustup") {
        return false;
    }
    match call(&["rustup", "component", "add", "rust-src"], RUSTUP_LIMIT, progress) {
        Ok(_) => true,
        Err(why) => {
            progress.say(&why);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_read_with_and_without_epoch() {
        let policy = |version| {
            format!("qemu-user:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n")
        };
        assert_eq!(candidate(&policy("1:7.2+dfsg-7")), Some((7, 2)));
        assert_eq!(candidate(&policy("8.2.2-1ubuntu3")), Some((8, 2)));
        assert_eq!(candidate(&policy("(none)")), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn archive_is_the_machines_own() {
        let new = "Types: deb\n# a comment\nURIs: http://mirror/debian http://other\nSuites: x\n";
        assert_eq!(archive(new, "").unwrap(), "http://mirror/debian");
        let old = "# deb http://no\ndeb [arch=amd64] https://mirror/d bookworm main\n";
        assert_eq!(archive("", old).unwrap(), "https://mirror/d");
        assert_eq!(archive("", ""), None);
    }
}
