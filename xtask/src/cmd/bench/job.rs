//! A call of a program that measures.

/// A program that measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// The package `benches`.
    Ours,
    /// The same of another commit.
    Base,
    Glibc,
    Musl,
    Libpsx,
    Go,
    Bdwgc,
    HotSpot,
    Urcu,
    /// The floor of an injected call, in assembly.
    Trampoline,
}

impl Program {
    /// What it, or what it measures, is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "benches",
            Self::Base => "the other commit's benches",
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Libpsx => "libpsx",
            Self::Go => "Go",
            Self::Bdwgc => "bdwgc",
            Self::HotSpot => "HotSpot",
            Self::Urcu => "urcu",
            Self::Trampoline => "trampoline",
        }
    }
}

/// A call of a program: it prints one side, or several.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) program: Program,
    /// The probe, where it is our own program.
    pub(super) probe: &'static str,
    pub(super) threads: usize,
    pub(super) word: &'static str,
}

impl Job {
    pub(super) fn ours(probe: &'static str, threads: usize) -> Self {
        Self { program: Program::Ours, probe, threads, word: "" }
    }

    pub(super) fn of(program: Program, threads: usize, word: &'static str) -> Self {
        Self { program, probe: "", threads, word }
    }

    /// A call on every thread, by us and by the peers that have it.
    pub(super) fn on_all_threads(threads: usize, word: &'static str) -> Vec<Self> {
        let ours = Self { word, ..Self::ours("all-threads", threads) };
        let mut peers = vec![Program::Glibc, Program::Musl, Program::Libpsx];
        // Go stops the world for each call, and most of ten threads that spin sleep still when the next call
        // stops it again.
        peers.extend((word != "spin").then_some(Program::Go));
        let peers = peers.into_iter().map(|program| Self::of(program, threads, word));
        std::iter::once(ours).chain(peers).collect()
    }

    /// What the program is called with.
    pub(super) fn name(&self) -> String {
        let name = format!("{} {}", self.program.name(), self.probe);
        format!("{} {} {}", name.trim_end(), self.threads, self.word).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_say_what_they_call() {
        assert_eq!(Job::ours("stop-deaf", 1).name(), "benches stop-deaf 1");
        assert_eq!(Job::of(Program::Bdwgc, 10, "spin").name(), "bdwgc 10 spin");
        let has_go = |word| Job::on_all_threads(10, word).iter().any(|j| j.program == Program::Go);
        assert_eq!(["park", "read", "spin"].map(has_go), [true, true, false]);
    }
}
