//! The architectures: Go's for Linux, by Go's names, with what it takes to build and run for each. Two
//! of them also with musl for glibc: `-musl` are static programs, `-musl-dyn` dynamic ones.
//!
//! One row is all that a new architecture needs here.

/// An architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arch {
    /// Go's name for it, and what is different in the row.
    pub(crate) name: &'static str,
    /// Rust's name for it.
    pub(crate) target: &'static str,
    /// Its folder in `crates/sigctx/src/arch`; two may share one.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test looks whether the folder is there"))]
    pub(crate) folder: &'static str,
    pub(crate) tools: Tools,
    pub(crate) run: Run,
    /// Size of the stress tests in per cent, where it is not asked for: an emulator does a
    /// hundredth of the work in the time.
    pub(crate) stress: u32,
    /// Inline assembly is not stable there: it takes a compiler's unstable features.
    pub(crate) unstable: bool,
}

/// The tools that link, and that compile C for the tests of layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tools {
    /// The machine's own.
    Host,
    /// Debian's cross compiler.
    Gcc {
        /// GNU's name of the target, which begins the compiler's name and names its directory.
        gnu: &'static str,
        /// Debian's name of the target, which is in the C library's.
        debian: &'static str,
    },
    /// zig's C compiler with the musl that it brings along.
    Zig {
        /// Its name of the target.
        target: &'static str,
        linkage: Linkage,
    },
}

/// Where a program has its C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linkage {
    /// In itself.
    Static,
    /// In a file that the kernel starts in its place, from Debian's package `musl`.
    Dynamic {
        /// Where programs look for the file.
        loader: &'static str,
        /// Debian's name of the target.
        debian: &'static str,
    },
}

/// What runs the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// The machine, if it is a 64-bit x86.
    Native,
    /// The machine where its kernel runs 32-bit x86, else the emulator.
    NativeOr(Qemu),
    Emulated(Qemu),
}

/// An emulator of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Qemu {
    pub(crate) program: &'static str,
    /// With every extension that it knows, rather than those of an old machine.
    pub(crate) max: bool,
}

/// Of QEMU: the first that knows loong64's vectors, which its C library uses.
pub(crate) const OLDEST_QEMU: (u32, u32) = (8, 1);

const fn gcc(gnu: &'static str, debian: &'static str) -> Tools {
    Tools::Gcc { gnu, debian }
}

const fn zig(target: &'static str) -> Tools {
    Tools::Zig { target, linkage: Linkage::Static }
}

const fn zig_dyn(target: &'static str, loader: &'static str, debian: &'static str) -> Tools {
    Tools::Zig { target, linkage: Linkage::Dynamic { loader, debian } }
}

const fn qemu(program: &'static str) -> Run {
    Run::Emulated(Qemu { program, max: false })
}

const fn qemu_max(program: &'static str) -> Run {
    Run::Emulated(Qemu { program, max: true })
}

const fn arch(
    name: &'static str,
    target: &'static str,
    folder: &'static str,
    tools: Tools,
    run: Run,
) -> Arch {
    Arch { name, target, folder, tools, run, stress: 1, unstable: false }
}

const fn mips(
    name: &'static str,
    target: &'static str,
    folder: &'static str,
    tools: Tools,
    run: Run,
) -> Arch {
    Arch { unstable: true, ..arch(name, target, folder, tools, run) }
}

/// Every architecture, sorted by name.
#[rustfmt::skip]
pub(crate) const ARCHES: [Arch; 17] = [
    // Native on most machines, where the stress tests can be larger; `cargo xtask test` runs them in
    // full.
    Arch {
        stress: 5,
        ..arch("386",  "i686-unknown-linux-gnu",             "x86",         gcc("i686-linux-gnu", "i386"),             Run::NativeOr(Qemu { program: "qemu-i386", max: true }))
    },
    Arch {
        stress: 20,
        ..arch("amd64", "x86_64-unknown-linux-gnu",          "x86_64",      Tools::Host,                                Run::Native)
    },
    Arch {
        stress: 20,
        ..arch("amd64-musl", "x86_64-unknown-linux-musl",    "x86_64",      zig("x86_64-linux-musl"),                   Run::Native)
    },
    Arch {
        stress: 20,
        ..arch("amd64-musl-dyn", "x86_64-unknown-linux-musl", "x86_64",     zig_dyn("x86_64-linux-musl", "/lib/ld-musl-x86_64.so.1", "amd64"), Run::Native)
    },
    arch("arm",        "armv7-unknown-linux-gnueabihf",      "arm",         gcc("arm-linux-gnueabihf", "armhf"),       qemu("qemu-arm")),
    arch("arm64",      "aarch64-unknown-linux-gnu",          "aarch64",     gcc("aarch64-linux-gnu", "arm64"),         qemu_max("qemu-aarch64")),
    arch("arm64-musl", "aarch64-unknown-linux-musl",         "aarch64",     zig("aarch64-linux-musl"),                  qemu_max("qemu-aarch64")),
    arch("arm64-musl-dyn", "aarch64-unknown-linux-musl",     "aarch64",     zig_dyn("aarch64-linux-musl", "/lib/ld-musl-aarch64.so.1", "arm64"), qemu_max("qemu-aarch64")),
    arch("loong64",    "loongarch64-unknown-linux-musl",     "loongarch64", zig("loongarch64-linux-musl"),               qemu_max("qemu-loongarch64")),
    mips("mips",       "mips-unknown-linux-gnu",             "mips",        gcc("mips-linux-gnu", "mips"),             qemu("qemu-mips")),
    mips("mips64",     "mips64-unknown-linux-gnuabi64",      "mips",        gcc("mips64-linux-gnuabi64", "mips64"),     qemu("qemu-mips64")),
    mips("mips64le",   "mips64el-unknown-linux-gnuabi64",    "mips",        gcc("mips64el-linux-gnuabi64", "mips64el"), qemu("qemu-mips64el")),
    mips("mipsle",     "mipsel-unknown-linux-gnu",           "mips",        gcc("mipsel-linux-gnu", "mipsel"),         qemu("qemu-mipsel")),
    arch("ppc64",      "powerpc64-unknown-linux-gnu",        "powerpc64",   gcc("powerpc64-linux-gnu", "ppc64"),       qemu("qemu-ppc64")),
    arch("ppc64le",    "powerpc64le-unknown-linux-gnu",      "powerpc64",   gcc("powerpc64le-linux-gnu", "ppc64el"),   qemu("qemu-ppc64le")),
    arch("riscv64",    "riscv64gc-unknown-linux-gnu",        "riscv64",     gcc("riscv64-linux-gnu", "riscv64"),       qemu_max("qemu-riscv64")),
    arch("s390x",      "s390x-unknown-linux-gnu",            "s390x",       gcc("s390x-linux-gnu", "s390x"),           qemu_max("qemu-s390x")),
];

/// The rows with these names, in the table's order; all when none is named.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Arch>, String> {
    if let Some(name) = names.iter().find(|name| ARCHES.iter().all(|a| a.name != *name)) {
        let all = ARCHES.map(|a| a.name).join(", ");
        let meant = ARCHES.iter().find(|a| a.target.split('-').next() == Some(name));
        let hint = meant.map_or(String::new(), |a| format!(" (`{}` here)", a.name));
        return Err(format!("no architecture is called `{name}`{hint}; there are {all}"));
    }
    let taken = |arch: &&Arch| names.is_empty() || names.iter().any(|name| name == arch.name);
    Ok(ARCHES.iter().filter(taken).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    /// `go tool dist list` has these for Linux.
    const GO: [&str; 13] = [
        "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
        "ppc64le", "riscv64", "s390x",
    ];

    #[test]
    fn every_architecture_of_gos_is_there() {
        let with_their_own_library = ARCHES.iter().filter(|a| !a.name.contains("-musl"));
        assert!(with_their_own_library.map(|a| a.name).eq(GO));
        assert!(ARCHES.is_sorted_by_key(|a| a.name));
    }

    /// Which C library, and where a program has it, is the row's name to say.
    #[test]
    fn musl_is_tested_as_a_part_of_programs_and_as_a_library() {
        for arch in ARCHES.iter().filter(|a| a.name.contains("-musl")) {
            assert!(arch.target.ends_with("-musl"));
            let Tools::Zig { target, linkage } = arch.tools else {
                panic!("{}: no zig", arch.name)
            };
            assert_eq!(target.split('-').next(), arch.target.split('-').next());
            let dynamic = arch.name.ends_with("-musl-dyn");
            assert_eq!(matches!(linkage, Linkage::Dynamic { .. }), dynamic, "{}", arch.name);
            let (go, _) = arch.name.split_once('-').unwrap();
            let same = ARCHES.iter().find(|a| a.name == go).expect("a row for the architecture");
            assert_eq!((same.folder, same.run), (arch.folder, arch.run));
        }
    }

    #[test]
    fn every_architecture_has_its_folder_and_every_folder_its_architecture() {
        let dir = Workspace::find().root.join("crates/sigctx/src/arch");
        for arch in ARCHES {
            for file in ["mod.rs", "entry.rs", "probe.rs"] {
                let file = dir.join(arch.folder).join(file);
                assert!(file.is_file(), "{}: no {}", arch.name, file.display());
            }
        }
        for folder in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            let name = folder.file_name().into_string().unwrap();
            let is_known = folder.path().is_file() || ARCHES.iter().any(|a| a.folder == name);
            assert!(is_known, "no row is for {name}");
        }
    }

    #[test]
    fn rows_differ_in_target_and_emulator() {
        for (i, a) in ARCHES.iter().enumerate() {
            for b in &ARCHES[i + 1..] {
                assert_ne!((a.target, a.tools), (b.target, b.tools));
                let of_go = |a: &Arch| !a.name.contains("-musl");
                if of_go(a) && of_go(b) {
                    assert_ne!(a.target, b.target);
                    assert_ne!(a.run, b.run);
                }
            }
        }
    }

    #[test]
    fn selection_is_by_name_in_the_tables_order() {
        let names = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            select(&names).map(|rows| rows.iter().map(|a| a.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), ARCHES.len());
        assert_eq!(names(&["s390x", "arm"]).unwrap(), ["arm", "s390x"]);
        let error = names(&["arm", "aarch64"]).unwrap_err();
        assert!(error.contains("`aarch64`") && error.contains("`arm64`"), "{error}");
    }
}
