//! What this machine has of what the architectures need, and a row of the table made ready by it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::table::{ARCHES, Arch, Linkage, OLDEST_QEMU, Qemu, Run, Tools};
use crate::harness::Launch;
use crate::run::said;
use crate::toolchain::{self, Compiler, Std, Toolchain};
use crate::workspace::{Workspace, has};

/// What was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    /// Of the linkers and emulators, those that are in the search path; of the C libraries' files,
    /// those that are there.
    pub(crate) there: BTreeSet<String>,
    pub(crate) qemu: Option<(u32, u32)>,
    /// The words that start zig.
    pub(crate) zig: Option<Vec<String>>,
    pub(crate) is_amd64: bool,
    /// Whether it runs programs of 32-bit x86.
    pub(crate) runs_386: bool,
    pub(crate) compilers: Vec<Compiler>,
}

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Missing {
    /// Packages of Debian's by what they are for.
    Packages {
        what: String,
        packages: Vec<String>,
    },
    /// The emulators, all in one package; or newer ones, when there are some of this version.
    Qemu {
        program: &'static str,
        version: Option<String>,
    },
    Zig,
    /// A C library of another architecture's, which Debian's packages would have in this machine's
    /// own directories. It is unpacked in ours.
    Library {
        file: String,
        debian: &'static str,
        into: PathBuf,
    },
    /// A compiler with the sources of its standard library.
    Sources {
        target: &'static str,
    },
    /// Nothing that could be installed.
    Machine {
        what: String,
    },
}

/// A row that can be built and run here.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) arch: &'static Arch,
    pub(crate) toolchain: Toolchain,
    /// `None`: the compiler's own choice.
    linker: Option<String>,
    flags: Vec<String>,
    pub(crate) runner: Vec<String>,
    /// Of the C library, for the emulator's loader.
    prefix: Option<PathBuf>,
}

impl Qemu {
    fn words(self) -> Vec<String> {
        let cpu: &[&str] = if self.max { &["-cpu", "max"] } else { &[] };
        [&[self.program], cpu].concat().into_iter().map(str::to_owned).collect()
    }
}

/// A file without which programs do not link.
fn header(gnu: &str) -> String {
    format!("/usr/{gnu}/include/stdio.h")
}

/// Debian's dynamic loader for 32-bit x86, which is not where programs look for it.
const LOADER_386: &str = "/usr/i686-linux-gnu/lib/ld-linux.so.2";

/// The directory that programs of a row find their C library's `/lib` in: this machine's own, or one
/// of ours; with the library's file. `None`: they have it in themselves, or it is the compiler's.
fn library(arch: &Arch, target_dir: &Path) -> Option<(PathBuf, String)> {
    let Tools::Zig { linkage: Linkage::Dynamic { loader, debian }, .. } = arch.tools else {
        return None;
    };
    let root = match arch.run {
        Run::Native => PathBuf::from("/"),
        Run::NativeOr(_) | Run::Emulated(_) => target_dir.join(format!("musl-{debian}")),
    };
    let file = root.join(loader.trim_start_matches('/')).to_string_lossy().into_owned();
    Some((root, file))
}

impl Machine {
    pub(crate) fn look(workspace: &Workspace) -> Self {
        let mut there = BTreeSet::new();
        for arch in &ARCHES {
            if let Tools::Gcc { gnu, .. } = arch.tools {
                there.extend(Some(format!("{gnu}-gcc")).filter(|p| has(p)));
                there.extend(Some(header(gnu)).filter(|p| Path::new(p).is_file()));
            }
            if let Run::Emulated(qemu) | Run::NativeOr(qemu) = arch.run {
                there.extend(Some(qemu.program.to_owned()).filter(|p| has(p)));
            }
            let file = library(arch, &directory(workspace)).map(|(_, file)| file);
            there.extend(file.filter(|file| Path::new(file).is_file()));
        }
        let is_amd64 = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        Self {
            qemu: said(&["qemu-aarch64", "--version"]).and_then(|text| qemu_version(&text)),
            zig: [&["python3", "-m", "ziglang"][..], &["zig"]]
                .iter()
                .find(|words| said(&[words, &["version"][..]].concat()).is_some())
                .map(|words| words.iter().map(|w| (*w).to_owned()).collect()),
            is_amd64,
            runs_386: is_amd64 && said(&[LOADER_386, "--version"]).is_some(),
            compilers: toolchain::compilers(workspace),
            there,
        }
    }

    /// Makes a row ready, or says all that it lacks.
    pub(crate) fn ready(
        &self,
        arch: &'static Arch,
        target_dir: &Path,
    ) -> Result<Ready, Vec<Missing>> {
        let mut missing = Vec::new();
        let (mut linker, mut flags, mut prefix) = (None, Vec::new(), None);
        match arch.tools {
            Tools::Host => {}
            Tools::Gcc { gnu, debian } => {
                let gcc = format!("{gnu}-gcc");
                let packages = [format!("gcc-{gnu}"), format!("libc6-dev-{debian}-cross")];
                for (file, package) in [gcc.clone(), header(gnu)].into_iter().zip(packages) {
                    if !self.there.contains(&file) {
                        let packages = vec![package];
                        missing.push(Missing::Packages { what: file, packages });
                    }
                }
                linker = Some(gcc);
                prefix = Some(Path::new("/usr").join(gnu));
            }
            Tools::Zig { linkage, .. } => {
                if self.zig.is_none() {
                    missing.push(Missing::Zig);
                }
                if let Linkage::Dynamic { debian, .. } = linkage
                    && let Some((root, file)) = library(arch, target_dir)
                {
                    flags.extend(["-C", "target-feature=-crt-static"].map(str::to_owned));
                    if !self.there.contains(&file) {
                        missing.push(if arch.run == Run::Native {
                            Missing::Packages { what: file, packages: vec!["musl".to_owned()] }
                        } else {
                            Missing::Library { file, debian, into: root.clone() }
                        });
                    }
                    prefix = Some(root);
                }
                // rustc must not add the start files that it expects of a musl of its own.
                flags.extend(["-C", "link-self-contained=no"].map(str::to_owned));
                linker = Some(wrapper(target_dir, arch).to_string_lossy().into_owned());
            }
        }
        let runner = match arch.run {
            Run::Native if self.is_amd64 => Vec::new(),
            Run::Native => {
                missing.push(Missing::Machine { what: "the machine is not an amd64".to_owned() });
                Vec::new()
            }
            Run::NativeOr(_) if self.runs_386 => Vec::new(),
            Run::NativeOr(qemu) | Run::Emulated(qemu) => {
                let old = match self.qemu {
                    Some(version) if version >= OLDEST_QEMU => None,
                    Some((major, minor)) => Some(format!("{major}.{minor}")),
                    None => Some("of unknown version".to_owned()),
                };
                let program = qemu.program;
                if !self.there.contains(program) {
                    missing.push(Missing::Qemu { program, version: None });
                } else if old.is_some() {
                    missing.push(Missing::Qemu { program, version: old });
                }
                qemu.words()
            }
        };
        if matches!(arch.run, Run::NativeOr(_)) {
            // The program names its loader, which makes it one that starts itself again like any
            // other. (`ld-linux.so.2 program` would be `/proc/self/exe`.)
            let lib = Path::new(LOADER_386).parent().expect("in a directory").display();
            flags.push(format!("-Clink-arg=-Wl,--dynamic-linker={LOADER_386}"));
            flags.push(format!("-Clink-arg=-Wl,-rpath,{lib}"));
        }
        let toolchain = toolchain::choose(&self.compilers, arch.target);
        if toolchain.is_none() {
            missing.push(Missing::Sources { target: arch.target });
        }
        match toolchain {
            Some(toolchain) if missing.is_empty() => {
                Ok(Ready { arch, toolchain, linker, flags, runner, prefix })
            }
            _ => Err(missing),
        }
    }
}

impl Missing {
    /// What is not there.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Packages { what, .. } => format!("`{what}` is not there"),
            Self::Qemu { program, version: None } => format!("`{program}` is not there"),
            Self::Qemu { program, version: Some(version) } => {
                let (major, minor) = OLDEST_QEMU;
                format!("{program} {version} is older than {major}.{minor}")
            }
            Self::Zig => "zig, which links with musl, is not there".to_owned(),
            Self::Library { file, .. } => format!("`{file}` is not there"),
            Self::Sources { target } => {
                format!("no compiler has a standard library for {target}, nor its sources")
            }
            Self::Machine { what } => what.clone(),
        }
    }

    /// The command that installs it, if there is one.
    pub(crate) fn command(&self) -> Option<String> {
        Some(match self {
            Self::Packages { packages, .. } => format!("apt-get install {}", packages.join(" ")),
            Self::Qemu { version: Some(_), .. } => {
                "apt-get install -t \"$(. /etc/os-release; echo \"$VERSION_CODENAME\")-backports\" \
                 qemu-user"
                    .to_owned()
            }
            Self::Qemu { version: None, .. } => "apt-get install qemu-user".to_owned(),
            Self::Zig => "python3 -m pip install --break-system-packages ziglang".to_owned(),
            Self::Library { debian, into, .. } => {
                let into = into.display();
                format!("apt-get download musl:{debian} && dpkg -x musl_*_{debian}.deb {into}")
            }
            Self::Sources { .. } => toolchain::how_to_get_sources(),
            Self::Machine { .. } => return None,
        })
    }
}

/// `qemu-s390x version 10.0.2 (Debian …)`
fn qemu_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once(" version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn wrapper(target_dir: &Path, arch: &Arch) -> PathBuf {
    target_dir.join(format!("cc-{}", arch.name))
}

/// The text of zig's C compiler as one program, which rustc can take for a linker.
///
/// zig brings its own start files, so rustc's are dropped. The unwinder that rustc wants from gcc's
/// libraries is in zig's libunwind.
fn wrapper_script(zig: &[String], target: &str, linkage: Linkage) -> String {
    let zig = zig.join(" ");
    // zig's programs are static with musl unless they are told not to be.
    let dynamic = if linkage == Linkage::Static { "" } else { " -dynamic" };
    format!(
        "#!/bin/sh
# zig's C compiler, also as rustc's linker. Made by `cargo xtask test-all-arches`.
n=$#
while [ $n -gt 0 ]; do
    case $1 in
    *crt1.o | */crti.o | */crtn.o | */crtbegin*.o | */crtend*.o) ;;
    crti.o | crtn.o | crtbegin*.o | crtend*.o) ;;
    -lgcc*) set -- \"$@\" -lunwind ;;
    *) set -- \"$@\" \"$1\" ;;
    esac
    shift
    n=$((n - 1))
done
exec {zig} cc -target {target}{dynamic} \"$@\"
"
    )
}

impl Ready {
    /// Writes what the build needs into its directory.
    pub(crate) fn write_tools(&self, machine: &Machine, target_dir: &Path) -> Result<(), String> {
        let (Tools::Zig { target, linkage }, Some(zig)) = (self.arch.tools, &machine.zig) else {
            return Ok(());
        };
        let path = wrapper(target_dir, self.arch);
        let text = wrapper_script(zig, target, linkage);
        // Written anew only when it differs: a linker that is being run cannot be written to.
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let write = || {
            use std::os::unix::fs::PermissionsExt as _;
            fs::create_dir_all(target_dir)?;
            fs::write(&path, &text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        write().map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Whether the compiler's own machine is meant, with its own tools.
    fn is_plain(&self) -> bool {
        self.arch.tools == Tools::Host && self.toolchain.std == Std::Installed
    }

    /// Where it is built: the machine's own architecture beside all that is built for it anyway.
    pub(crate) fn target_dir(&self, workspace: &Workspace) -> PathBuf {
        if self.is_plain() { workspace.target.clone() } else { directory(workspace) }
    }

    /// A call of cargo that builds for the row.
    pub(crate) fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut command = self.toolchain.cargo(workspace, subcommand, "std,panic_unwind,test");
        command.env("CARGO_TARGET_DIR", self.target_dir(workspace));
        if self.is_plain() {
            return command;
        }
        command.args(["--target", self.arch.target]);
        // Lines for the backtrace of a test that fails, and no more: variables and types double
        // the time to link.
        command.env("CARGO_PROFILE_TEST_DEBUG", "line-tables-only");
        command.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
        command.env("CARGO_INCREMENTAL", "0");
        if self.arch.unstable {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        let variable = |what: &str| {
            let target = self.arch.target.to_uppercase().replace('-', "_");
            format!("CARGO_TARGET_{target}_{what}")
        };
        if let Some(linker) = &self.linker {
            command.env(variable("LINKER"), linker);
        }
        if !self.runner.is_empty() {
            command.env(variable("RUNNER"), self.runner.join(" "));
        }
        // Those of the environment would go before those of the target.
        let given = std::env::var("RUSTFLAGS").unwrap_or_default();
        let flags = format!("{given} {}", self.flags.join(" "));
        command.env_remove("RUSTFLAGS").env(variable("RUSTFLAGS"), flags.trim());
        command
    }

    /// How its tests are started. `stress` is what was asked for.
    pub(crate) fn launch(&self, workspace: &Workspace, stress: Option<u32>) -> Launch {
        let mut env = vec![
            ("INSTA_WORKSPACE_ROOT".to_owned(), workspace.root.to_string_lossy().into_owned()),
            ("INSTA_UPDATE".to_owned(), "no".to_owned()),
            ("SIGCTX_CC".to_owned(), self.linker.clone().unwrap_or_else(|| "cc".to_owned())),
            ("STRESS".to_owned(), stress.unwrap_or(self.arch.stress).to_string()),
            ("TESTKIT_PATIENCE".to_owned(), PATIENCE.to_string()),
        ];
        if !self.runner.is_empty() {
            env.push(("TESTKIT_RUNNER".to_owned(), self.runner.join(" ")));
            if let Some(prefix) = &self.prefix {
                env.push(("QEMU_LD_PREFIX".to_owned(), prefix.to_string_lossy().into_owned()));
            }
        }
        Launch { runner: self.runner.clone(), env }
    }

    /// What runs the tests, in the words of the tables.
    pub(crate) fn describe_runner(&self) -> String {
        if self.runner.is_empty() { "native".to_owned() } else { self.runner.join(" ") }
    }
}

/// How many times longer the tests' watchdogs wait beside other architectures' builds and emulators.
const PATIENCE: u32 = 4;

/// Where all architectures but the machine's own are built: in one directory, so that what runs
/// on the machine (build scripts, macros) is built once.
pub(crate) fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("arches")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::Origin;

    fn row(name: &str) -> &'static Arch {
        ARCHES.iter().find(|a| a.name == name).unwrap()
    }

    fn complete() -> Machine {
        let mut machine = Machine {
            qemu: Some((10, 0)),
            zig: Some(vec!["zig".to_owned()]),
            is_amd64: true,
            runs_386: true,
            ..Machine::default()
        };
        for arch in &ARCHES {
            if let Tools::Gcc { gnu, .. } = arch.tools {
                machine.there.extend([format!("{gnu}-gcc"), header(gnu)]);
            }
            if let Run::Emulated(qemu) | Run::NativeOr(qemu) = arch.run {
                machine.there.insert(qemu.program.to_owned());
            }
            machine.there.extend(library(arch, Path::new("/t")).map(|(_, file)| file));
        }
        machine.compilers = vec![Compiler {
            origin: Origin::Default,
            version: "1.95.0".to_owned(),
            sources: true,
            targets: vec!["x86_64-unknown-linux-gnu".to_owned()],
        }];
        machine
    }

    fn commands(machine: &Machine, name: &str) -> Vec<String> {
        let missing = machine.ready(row(name), Path::new("/t")).unwrap_err();
        missing.iter().filter_map(Missing::command).collect()
    }

    #[test]
    fn complete_machine_is_ready_for_every_row() {
        for arch in &ARCHES {
            let ready = complete().ready(arch, Path::new("/t")).unwrap();
            let native = arch.name == "386" || arch.name.starts_with("amd64");
            assert_eq!(ready.runner.is_empty(), native, "{}", arch.name);
        }
    }

    #[test]
    fn empty_machine_lacks_everything_and_says_the_commands() {
        let empty = Machine::default();
        assert_eq!(
            commands(&empty, "ppc64le"),
            [
                "apt-get install gcc-powerpc64le-linux-gnu",
                "apt-get install libc6-dev-ppc64el-cross",
                "apt-get install qemu-user",
                toolchain::how_to_get_sources().as_str(),
            ]
        );
        let loong64 = commands(&empty, "loong64");
        assert_eq!(loong64[0], "python3 -m pip install --break-system-packages ziglang");
        let musl = commands(&empty, "amd64-musl-dyn");
        assert_eq!(musl[1], "apt-get install musl");
        let of_arm64 = commands(&empty, "arm64-musl-dyn");
        assert!(of_arm64[1].starts_with("apt-get download musl:arm64"), "{of_arm64:?}");
        assert!(of_arm64[1].ends_with(" /t/musl-arm64"), "{of_arm64:?}");
        let missing = empty.ready(row("amd64"), Path::new("/t")).unwrap_err();
        assert_eq!(missing[0].what(), "the machine is not an amd64");
        assert_eq!(missing[0].command(), None);
    }

    #[test]
    fn old_emulator_is_missing_too() {
        let machine = Machine { qemu: Some((7, 2)), ..complete() };
        let missing = machine.ready(row("s390x"), Path::new("/t")).unwrap_err();
        assert_eq!(missing[0].what(), "qemu-s390x 7.2 is older than 8.1");
        assert!(missing[0].command().unwrap().contains("-backports"));
    }

    #[test]
    fn machine_without_32_bit_programs_emulates_them() {
        let machine = Machine { runs_386: false, ..complete() };
        let ready = machine.ready(row("386"), Path::new("/t")).unwrap();
        assert_eq!(ready.runner, ["qemu-i386", "-cpu", "max"]);
    }

    #[test]
    fn tests_know_their_emulator_and_their_c_compiler() {
        let workspace = Workspace::find();
        let launch = |name, stress| {
            let ready = complete().ready(row(name), Path::new("/t")).unwrap();
            ready.launch(&workspace, stress)
        };
        let arm64 = launch("arm64", None);
        let env = |name: &str| {
            let found = arm64.env.iter().find(|(n, _)| n == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(env("TESTKIT_RUNNER"), Some("qemu-aarch64 -cpu max"));
        assert_eq!(env("QEMU_LD_PREFIX"), Some("/usr/aarch64-linux-gnu"));
        assert_eq!(env("SIGCTX_CC"), Some("aarch64-linux-gnu-gcc"));
        assert_eq!(env("STRESS"), Some("1"));
        let musl = launch("arm64-musl-dyn", None);
        assert!(musl.env.contains(&("QEMU_LD_PREFIX".to_owned(), "/t/musl-arm64".to_owned())));
        assert!(launch("arm64-musl", None).env.iter().all(|(n, _)| n != "QEMU_LD_PREFIX"));
        let amd64 = launch("amd64", None);
        assert!(amd64.env.iter().all(|(n, _)| n != "TESTKIT_RUNNER"));
        assert!(amd64.env.contains(&("TESTKIT_PATIENCE".to_owned(), PATIENCE.to_string())));
        assert!(launch("amd64", Some(7)).env.contains(&("STRESS".to_owned(), "7".to_owned())));
    }

    #[test]
    fn version_of_qemu_is_read() {
        let text = "qemu-aarch64 version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(qemu_version(text), Some((10, 0)));
        assert_eq!(qemu_version("qemu-arm version 8.2.50\n"), Some((8, 2)));
        assert_eq!(qemu_version("something else"), None);
    }

    #[test]
    fn wrapper_drops_start_files_and_takes_zigs_unwinder() {
        let script =
            wrapper_script(&["echo".to_owned()], "t", Linkage::Static).replace("#!/bin/sh\n", "");
        let output = Command::new("sh")
            .args(["-c", &script, "cc", "a b.o", "/x/crt1.o", "rcrt1.o", "crti.o"])
            .args(["/x/crtbeginS.o", "-lgcc_eh", "-lc", "/x/crtend.o", "/x/mycrt2.o"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "cc -target t a b.o -lunwind -lc /x/mycrt2.o\n");
        let dynamic = Linkage::Dynamic { loader: "/l", debian: "d" };
        assert!(wrapper_script(&[], "t", dynamic).contains("cc -target t -dynamic \"$@\""));
    }
}
