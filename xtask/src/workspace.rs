//! Where things are: the tree, the build directories, cargo, and the tools that are not Rust's.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tree that this program was started in.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Where builds go: `CARGO_TARGET_DIR`, else `target` in the root.
    pub(crate) target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    pub(crate) fn find() -> Self {
        // As `cargo run` says: two checkouts that share a target directory share this program, too.
        let manifest = env::var_os("CARGO_MANIFEST_DIR");
        let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().expect("xtask is in the root");
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
            || root.join("target"),
            // cargo takes it relative to where it was called, and so must the calls made here.
            |dir| std::path::absolute(dir).expect("CARGO_TARGET_DIR is not empty"),
        );
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self { root: root.to_owned(), target, cargo }
    }

    /// A call of cargo in the root.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root).args(args).stdin(Stdio::null());
        if env::var_os("CARGO_TARGET_DIR").is_some() {
            command.env("CARGO_TARGET_DIR", &self.target);
        }
        command
    }

    /// A call of cargo that builds with `cfg(loom)`, in a build directory of its own: other flags
    /// would make every second build start from nothing.
    pub(crate) fn cargo_loom(&self, args: &[&str], target: &Path) -> Command {
        let flags = env::var("RUSTFLAGS").unwrap_or_default();
        let mut command = self.cargo(args);
        command
            .env("RUSTFLAGS", format!("{flags} --cfg loom").trim_start())
            .env("CARGO_TARGET_DIR", target);
        if env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
            command.env("LOOM_MAX_PREEMPTIONS", "3");
        }
        command
    }

    /// Deletes a directory of builds that no later step takes anything from, where the environment's `CI`
    /// is set: the machine's disk is small there, and nothing is built again.
    pub(crate) fn build_is_over(&self, dir: impl AsRef<Path>) {
        if env::var_os("CI").is_some() {
            // What is left takes space, and is of no other harm.
            let _ = fs::remove_dir_all(self.target.join(dir));
        }
    }

    /// The library crates, by name.
    pub(crate) fn crates(&self) -> Vec<String> {
        let dir = self.root.join("crates");
        let entries = fs::read_dir(&dir).expect("the tree has a directory `crates`");
        let crates = entries.flatten().filter(|e| e.path().join("Cargo.toml").is_file());
        let mut names: Vec<_> =
            crates.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Every package of the workspace.
    pub(crate) fn packages(&self) -> Vec<String> {
        let mut names = self.crates();
        names.extend(["benches", "demo", "testkit", "xtask"].map(str::to_owned));
        names
    }

    /// Whether a package has a library: programs have no doc tests, for one.
    pub(crate) fn has_library(&self, package: &str) -> bool {
        let places = [self.root.join("crates"), self.root.clone()];
        places.iter().any(|place| place.join(package).join("src/lib.rs").is_file())
    }

    /// The crates that have models.
    pub(crate) fn loom_crates(&self) -> Vec<String> {
        self.crates_that_mention("loom")
    }

    /// The crates whose manifest has this word.
    pub(crate) fn crates_that_mention(&self, word: &str) -> Vec<String> {
        let mut crates = self.crates();
        crates.retain(|name| {
            let manifest = self.root.join("crates").join(name).join("Cargo.toml");
            fs::read_to_string(manifest).is_ok_and(|text| text.contains(word))
        });
        crates
    }
}

/// Programs that are needed now and then, with the command that installs each.
const TOOLS: [(&str, &str); 3] = [
    ("cc", "apt-get install gcc libc6-dev"),
    ("gdb", "apt-get install gdb"),
    ("patch", "apt-get install patch"),
];

/// Whether a program is in the search path.
pub(crate) fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Says how to install a program of [`TOOLS`].
pub(crate) fn how_to_get(program: &str) -> String {
    let known = TOOLS.iter().find(|(name, _)| *name == program);
    let (_, command) = known.expect("the program is in the table");
    format!("`{program}` is not installed; get it with `{command}`")
}

/// Fails with the command that installs the program when it is missing.
pub(crate) fn need(program: &str) -> Result<(), String> {
    if has(program) { Ok(()) } else { Err(how_to_get(program)) }
}
