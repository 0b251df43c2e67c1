//! Which compiler builds for a target, and where the target's standard library comes from.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::workspace::{Workspace, has};

/// The system's compiler, which Debian has with its sources.
const SYSTEM: &str = "/usr/bin";

/// A compiler with the sources of its standard library, in Debian.
pub(crate) const DEBIAN_SOURCES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// How to get the sources of the standard library.
pub(crate) fn how_to_get_sources() -> String {
    if has("rustup") {
        "rustup component add rust-src".to_owned()
    } else {
        format!("apt-get install {}", DEBIAN_SOURCES.join(" "))
    }
}

/// A compiler on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) origin: Origin,
    /// `1.95.0`.
    pub(crate) version: String,
    /// Whether it has the sources of its standard library.
    pub(crate) sources: bool,
    /// The targets that it has a standard library for.
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The one that cargo takes here.
    Default,
    /// The one in `/usr/bin`.
    System,
}

/// A compiler for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    origin: Origin,
    pub(crate) version: String,
    pub(crate) std: Std,
}

/// Where a standard library comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Std {
    /// The compiler came with it, or got it later.
    Installed,
    /// It is built from the compiler's own sources.
    Built,
}

/// The compilers that this machine has, the first choice first.
pub(crate) fn compilers(workspace: &Workspace) -> Vec<Compiler> {
    let default = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let system = Path::new(SYSTEM);
    let mut found = Vec::new();
    let mut sysroots: Vec<PathBuf> = Vec::new();
    let complete = system.join("cargo").is_file();
    let of_system = complete.then(|| system.join("rustc").into_os_string());
    for (origin, rustc) in [(Origin::Default, Some(default)), (Origin::System, of_system)] {
        let Some(rustc) = rustc else { continue };
        let Some((sysroot, version)) = ask(workspace, origin, &rustc) else { continue };
        if number(&version) < number(env!("CARGO_PKG_RUST_VERSION")) {
            continue; // It could not build the crates.
        }
        // The default one may be the system's.
        if !sysroots.contains(&sysroot) {
            let rustlib = sysroot.join("lib/rustlib");
            let sources = rustlib.join("src/rust/library/Cargo.lock").is_file();
            let targets = targets(&rustlib);
            found.push(Compiler { origin, version, sources, targets });
            sysroots.push(sysroot);
        }
    }
    found
}

fn ask(workspace: &Workspace, origin: Origin, rustc: &OsString) -> Option<(PathBuf, String)> {
    let answer = |question: &[&str]| {
        let mut command = Command::new(rustc);
        command.args(question).current_dir(&workspace.root).stdin(Stdio::null());
        if origin == Origin::System {
            without_cargos_libraries(&mut command);
        }
        let output = command.output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let sysroot = PathBuf::from(answer(&["--print", "sysroot"])?.trim_end());
    // `rustc 1.96.0 (…)`
    let version = answer(&["--version"])?.split(' ').nth(1)?.trim_end().to_owned();
    Some((sysroot, version))
}

/// The first two parts of a version: `1.96.0-nightly` is 1.96.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn targets(rustlib: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(rustlib).into_iter().flatten().flatten();
    let targets = entries.filter(|e| e.path().join("lib").is_dir());
    targets.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// cargo runs its commands with its own compiler's libraries in the search path. Another compiler,
/// and an emulated program, must not find them.
pub(crate) fn without_cargos_libraries(command: &mut Command) {
    command.env_remove("LD_LIBRARY_PATH");
}

/// Chooses for a target: a standard library that is there; else the sources of the default
/// compiler; else those of the system's.
pub(crate) fn choose(compilers: &[Compiler], target: &str) -> Option<Toolchain> {
    let has = |c: &&Compiler| c.origin == Origin::Default && c.targets.iter().any(|t| t == target);
    let installed = compilers.iter().find(has).map(|c| (c, Std::Installed));
    let built = || compilers.iter().find(|c| c.sources).map(|c| (c, Std::Built));
    let (compiler, std) = installed.or_else(built)?;
    Some(Toolchain { origin: compiler.origin, version: compiler.version.clone(), std })
}

impl Toolchain {
    /// What tables say.
    pub(crate) fn describe(&self) -> String {
        let from = match (self.std, self.origin) {
            (Std::Installed, _) => "installed",
            (Std::Built, Origin::Default) => "built",
            (Std::Built, Origin::System) => "built, /usr/bin",
        };
        format!("{from}, {}", self.version)
    }

    /// A call of cargo in the root. What of std a build needs is `parts`.
    pub(crate) fn cargo(&self, workspace: &Workspace, subcommand: &str, parts: &str) -> Command {
        let mut command = match self.origin {
            Origin::Default => workspace.cargo(&[subcommand]),
            Origin::System => {
                let bin = Path::new(SYSTEM);
                let mut command = Command::new(bin.join("cargo"));
                command.arg(subcommand).current_dir(&workspace.root).stdin(Stdio::null());
                command.envs([("RUSTC", bin.join("rustc")), ("RUSTDOC", bin.join("rustdoc"))]);
                for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
                    command.env_remove(name);
                }
                without_cargos_libraries(&mut command);
                command
            }
        };
        if self.std == Std::Built {
            command.env("RUSTC_BOOTSTRAP", "1").arg(format!("-Zbuild-std={parts}"));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: &str = "armv7-unknown-linux-gnueabihf";

    fn compiler(origin: Origin, sources: bool, targets: &[&str]) -> Compiler {
        let targets = targets.iter().map(|t| (*t).to_owned()).collect();
        Compiler { origin, version: "1.95.0".to_owned(), sources, targets }
    }

    #[test]
    fn what_is_installed_goes_before_sources_and_these_before_the_systems() {
        let choice = |compilers: &[Compiler]| choose(compilers, ARM).map(|t| (t.origin, t.std));
        let system = compiler(Origin::System, true, &[]);
        let all = [compiler(Origin::Default, true, &[ARM]), system.clone()];
        assert_eq!(choice(&all), Some((Origin::Default, Std::Installed)));
        let sources = [compiler(Origin::Default, true, &["x86_64-unknown-linux-gnu"]), system];
        assert_eq!(choice(&sources), Some((Origin::Default, Std::Built)));
        let bare = [compiler(Origin::Default, false, &[]), sources[1].clone()];
        assert_eq!(choice(&bare), Some((Origin::System, Std::Built)));
        assert_eq!(choice(&bare[..1]), None);
    }

    #[test]
    fn this_machines_default_compiler_is_found_with_its_own_target() {
        let compilers = compilers(&Workspace::find());
        let default = &compilers[0];
        assert_eq!(default.origin, Origin::Default);
        assert!(default.version.starts_with("1."), "{}", default.version);
        assert!(!default.targets.is_empty());
        assert!(default.targets.iter().all(|t| t.contains('-')), "{:?}", default.targets);
    }
}
