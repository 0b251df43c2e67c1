//! The programs that measure: ours and the peers', how each is built and called, and what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::job::{Job, Program};
use crate::apt;
use crate::report::Progress;
use crate::run;
use crate::workspace::{Workspace, has};

const BUILD_LIMIT: Duration = Duration::from_mins(30);

/// For one call, with the making of thousands of threads.
const CALL_LIMIT: Duration = Duration::from_mins(2);

/// What a peer is made of.
struct Peer {
    program: Program,
    source: &'static str,
    /// A program that must be there, or a header, in `<>`.
    needs: &'static str,
    package: &'static str,
    /// The build, in the shell's words: `$SRC` is the source, `$OUT` the program.
    build: &'static str,
}

const PEERS: [Peer; 8] = [
    Peer {
        program: Program::Glibc,
        source: "allthreads.c",
        needs: "gcc",
        package: "gcc libc6-dev",
        build: "gcc -O2 -pthread -DNAME=\"glibc\" $SRC -o $OUT",
    },
    Peer {
        program: Program::Musl,
        source: "allthreads.c",
        needs: "musl-gcc",
        package: "musl-tools",
        // The kernel's headers, which musl has none of.
        build: "musl-gcc -O2 -static -pthread -DNAME=\"musl\" -idirafter /usr/include \
                -idirafter /usr/include/x86_64-linux-gnu $SRC -o $OUT",
    },
    Peer {
        program: Program::Libpsx,
        source: "allthreads.c",
        needs: "<sys/psx_syscall.h>",
        package: "libcap-dev",
        build: "gcc -O2 -pthread -DPSX -DNAME=\"libpsx\" $SRC -o $OUT -lpsx \
                -Wl,-wrap,pthread_create",
    },
    Peer {
        program: Program::Go,
        source: "allthreads.go",
        needs: "go",
        package: "golang-go",
        build: "go build -o $OUT $SRC",
    },
    Peer {
        program: Program::Bdwgc,
        source: "bdwgc.c",
        needs: "<gc.h>",
        package: "libgc-dev",
        build: "gcc -O2 -pthread $SRC -o $OUT -lgc",
    },
    Peer {
        program: Program::HotSpot,
        source: "HotSpot.java",
        needs: "javac",
        package: "default-jdk-headless",
        build: "javac -d $OUT $SRC",
    },
    Peer {
        program: Program::Urcu,
        source: "urcu.c",
        needs: "<urcu.h>",
        package: "liburcu-dev",
        build: "gcc -O2 -pthread $SRC -o $OUT -lurcu-memb",
    },
    Peer {
        program: Program::Trampoline,
        source: "trampoline.c",
        needs: "gcc",
        package: "gcc libc6-dev",
        build: "gcc -O2 $SRC -o $OUT",
    },
];

/// The programs that are there.
#[derive(Debug, Default)]
pub(super) struct Programs {
    built: BTreeMap<Program, PathBuf>,
    /// Why the others are not, by their names: a line for the user.
    pub(super) missing: BTreeMap<Program, String>,
}

impl Programs {
    /// Builds our program.
    pub(super) fn ours(workspace: &Workspace, progress: &Progress) -> Result<Self, String> {
        progress
            .doing("building the benches for release; the first time this takes a minute or more");
        let path = build(workspace.cargo(&["build"]), &workspace.target, progress)?;
        Ok(Self { built: [(Program::Ours, path)].into(), missing: BTreeMap::new() })
    }

    /// Adds the one that another commit has.
    pub(super) fn add_base(&mut self, path: PathBuf) {
        self.built.insert(Program::Base, path);
    }

    /// Builds what is installed of the peers, and notes how to get what is not.
    pub(super) fn add_peers(&mut self, workspace: &Workspace, progress: &Progress) {
        let out = workspace.target.join("peers");
        for peer in &PEERS {
            if !is_there(peer.needs) {
                let how = format!(
                    "{} is not installed; get it with `apt-get install {}`, or all with `--install`",
                    peer.program.name(),
                    peer.package
                );
                self.missing.insert(peer.program, how);
                continue;
            }
            progress.doing(&format!("building {} with {}", peer.source, peer.program.name()));
            match build_peer(workspace, peer, &out) {
                Ok(path) => _ = self.built.insert(peer.program, path),
                Err(why) => {
                    let why = format!("{} does not build: {why}", peer.program.name());
                    self.missing.insert(peer.program, why);
                }
            }
        }
    }

    pub(super) fn has(&self, program: Program) -> bool {
        self.built.contains_key(&program)
    }

    /// Calls a program once. Returns what it printed.
    pub(super) fn call(
        &self,
        job: &Job,
        samples: usize,
        milliseconds: u64,
    ) -> Result<String, String> {
        let path = self.built.get(&job.program).ok_or("it is not there")?;
        let numbers = [job.threads.to_string(), samples.to_string(), milliseconds.to_string()];
        let mut log = None;
        let mut command;
        if job.program == Program::HotSpot {
            let file = path.join(format!("log-{}", std::process::id()));
            command = Command::new("java");
            command.args(["-XX:+UseSerialGC", "-Xmx256m", "-cp"]).arg(path);
            command.arg(format!("-Xlog:safepoint,handshake:file={}", file.display()));
            command.arg("HotSpot").args(&numbers).arg(job.word).arg(&file);
            log = Some(file);
        } else {
            command = Command::new(path);
            if !job.probe.is_empty() {
                command.arg(job.probe);
            }
            command.args(&numbers).arg(job.word);
        }
        command.stdin(Stdio::null());
        let ended = run::run(command, CALL_LIMIT, |_| {});
        if let Some(file) = log {
            // It may not have come to make one.
            let _ = fs::remove_file(file);
        }
        let ended = ended?;
        if ended.success() {
            return Ok(ended.output);
        }
        let last = crate::harness::last_lines(&ended.output);
        Err(format!("{}: {}\n{last}", job.name(), ended.how()))
    }
}

/// Gets the packages of the peers that are missing.
pub(super) fn install(progress: &Progress) -> Result<(), String> {
    let missing = PEERS.iter().filter(|peer| !is_there(peer.needs));
    let mut packages: Vec<_> = missing.flat_map(|peer| peer.package.split(' ')).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    apt::apt_install(apt::is_there(), &packages, None, progress)
}

/// Whether there is a program in the search path, or a header, in `<>`, where the compiler looks for it.
fn is_there(needs: &str) -> bool {
    let Some(header) = needs.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) else {
        return has(needs);
    };
    let mut gcc = Command::new("gcc");
    gcc.args(["-E", "-x", "c", "-include", header, "/dev/null"]);
    gcc.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Builds the package `benches` by a call of cargo that ends with `build`. Returns the program.
pub(super) fn build(
    mut cargo: Command,
    target: &Path,
    progress: &Progress,
) -> Result<PathBuf, String> {
    cargo.args(["--release", "-p", "benches", "--bin", "benches"]);
    let ended = run::run(cargo, BUILD_LIMIT, |line| progress.build_line(line))?;
    if !ended.success() {
        let last = crate::harness::last_lines(&ended.output);
        return Err(format!("the benches do not build: {}\n{last}", ended.how()));
    }
    Ok(target.join("release/benches"))
}

fn build_peer(workspace: &Workspace, peer: &Peer, out: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let source = workspace.root.join("benches/peers").join(peer.source);
    let program = out.join(peer.program.name());
    let [source, program] = [&source, &program].map(|path| path.to_string_lossy().into_owned());
    let words: Vec<_> = words(peer.build, &source, &program);
    let mut command = Command::new(&words[0]);
    // Go's call on every thread is not there in programs with C.
    command.args(&words[1..]).env("CGO_ENABLED", "0").stdin(Stdio::null());
    let ended = run::run(command, BUILD_LIMIT, |_| {})?;
    if ended.success() {
        return Ok(program.into());
    }
    Err(format!("{}\n{}", ended.how(), crate::harness::last_lines(&ended.output)))
}

/// The words of a build. No shell reads them: a path may have blanks, and a quote is a quote.
fn words(build: &str, source: &str, program: &str) -> Vec<String> {
    let place = |word: &str| match word {
        "$SRC" => source.to_owned(),
        "$OUT" => program.to_owned(),
        word => word.to_owned(),
    };
    build.split_whitespace().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_its_source_and_is_named_once() {
        let root = Workspace::find().root;
        for peer in &PEERS {
            assert!(root.join("benches/peers").join(peer.source).is_file(), "{}", peer.source);
            assert_eq!(PEERS.iter().filter(|p| p.program == peer.program).count(), 1);
            assert!(peer.build.contains("$SRC") && peer.build.contains("$OUT"));
        }
    }

    #[test]
    fn build_takes_paths_with_blanks() {
        let words = words(PEERS[0].build, "/a b/x.c", "/c d/x");
        assert_eq!(words.last().unwrap(), "/c d/x");
        assert!(words.iter().any(|word| word == "/a b/x.c"));
        assert!(words.iter().any(|word| word == "-DNAME=\"glibc\""));
    }
}
