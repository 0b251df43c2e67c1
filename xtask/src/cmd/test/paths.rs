//! How many instructions the fast paths run: optimised, as they are compiled into a user's code, and counted
//! by a debugger that steps through them.
//!
//! A count that rises is time that each poll and each safe region takes from then on. One that falls is to be
//! written down, so that it does not rise again.

use std::fs;
use std::time::Duration;

use super::Selection;
use crate::report::{Progress, Step};
use crate::run;
use crate::workspace::{Workspace, has, how_to_get};

/// The functions of `benches/src/bin/fast_paths.rs`, with their instructions on x86-64 by Rust 1.95, from the
/// first to the return. Another compiler may need other numbers.
const COUNTS: [(&str, usize); 5] = [
    ("safepoint_poll", 5),
    ("safe_region", 17),
    ("current_thread", 8),
    ("no_preempt", 33),
    ("preempt_poll", 27),
];

/// The bench that is stepped through.
const BENCH: &str = "fast_paths";
const LIMIT: Duration = Duration::from_mins(10);

pub(super) fn run(workspace: &Workspace, selection: &Selection, progress: &Progress) -> Step {
    if !cfg!(target_arch = "x86_64") {
        return Step::skipped("the counts are those of x86-64");
    }
    if !has("gdb") {
        return Step::skipped(how_to_get("gdb"));
    }
    if !selection.takes_crate("benches") {
        return Step::skipped("they are in the package `benches`");
    }
    let listing = match step_through(workspace, progress) {
        Ok(listing) => listing,
        Err(why) => return Step::failed(why),
    };
    let mut step = Step::default();
    for (name, count) in COUNTS.into_iter().filter(|(name, _)| selection.takes(name)) {
        let path = path_of(&listing, name);
        step.add(check(name, count, &path).inspect_err(|_| progress.say(&path.join("\n"))));
    }
    step
}

/// What the debugger prints.
fn step_through(workspace: &Workspace, progress: &Progress) -> Result<String, String> {
    progress.doing("building the fast paths");
    let cargo = workspace.cargo(&["build", "--release", "-p", "benches", "--bin", BENCH]);
    let built = run::run(cargo, LIMIT, |line| progress.build_line(line))?;
    if !built.success() {
        progress.say(&built.output);
        return Err(format!("cargo build: {}", built.how()));
    }
    progress.doing("stepping through the fast paths");
    let script = workspace.target.join("fast_paths.gdb");
    fs::write(&script, self::script()).map_err(|e| format!("{}: {e}", script.display()))?;
    let mut gdb = std::process::Command::new("gdb");
    gdb.args(["-nx", "-batch", "-x"])
        .arg(&script)
        .arg(workspace.target.join("release").join(BENCH));
    // It would ask whether to download what the system's libraries were made from.
    gdb.env_remove("DEBUGINFOD_URLS").stdin(std::process::Stdio::null());
    let ended = run::run(gdb, LIMIT, |_| {})?;
    if !ended.success() {
        progress.say(&ended.output);
        return Err(format!("gdb: {}", ended.how()));
    }
    Ok(ended.output)
}

/// Steps from the first instruction of each function to the address that it returns to.
fn script() -> String {
    let head = "set pagination off\nset language c\nbreak ready\nrun\n";
    let paths = COUNTS.iter().map(|(name, _)| {
        format!(
            "tbreak *{name}\n\
             continue\n\
             echo path {name}\\n\n\
             set $end = *(unsigned long *)$sp\n\
             while $pc != $end\n\
             x/i $pc\n\
             stepi\n\
             end\n\
             echo end\\n\n"
        )
    });
    [head.to_owned()].into_iter().chain(paths).collect()
}

/// The instructions of a function, in the order in which they ran.
fn path_of<'a>(listing: &'a str, name: &str) -> Vec<&'a str> {
    let lines = listing.lines().skip_while(|line| *line != format!("path {name}"));
    lines.take_while(|line| *line != "end").filter(|line| line.starts_with("=> ")).collect()
}

/// Fails unless the path has exactly so many instructions.
fn check(name: &str, count: usize, path: &[&str]) -> Result<(), String> {
    let table = file!();
    match path.len() {
        0 => Err(format!("{name}: the debugger did not come there")),
        found if found == count => Ok(()),
        found if found < count => Err(format!(
            "{name} has {found} instructions instead of {count}: write that into {table}"
        )),
        found => Err(format!("{name} has {found} instructions, and {table} allows {count}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "
Breakpoint 1, ready () at fast_paths.rs:1
path first
=> 0x1000 <first>:\tmov    (%rdi),%rax
0x1003\t20\t    mutator.poll();
=> 0x1003 <first+3>:\tret
end
path second
=> 0x2000 <second>:\tret
end
";

    #[test]
    fn a_path_is_what_ran_between_its_marks() {
        assert_eq!(path_of(LISTING, "first").len(), 2);
        assert_eq!(path_of(LISTING, "second"), ["=> 0x2000 <second>:\tret"]);
        assert!(path_of(LISTING, "third").is_empty());
    }

    #[test]
    fn a_count_that_is_off_fails_in_both_directions() {
        let path = path_of(LISTING, "first");
        assert_eq!(check("first", 2, &path), Ok(()));
        assert!(check("first", 1, &path).is_err_and(|why| why.contains("allows 1")));
        assert!(check("first", 3, &path).is_err_and(|why| why.contains("instead of 3")));
        assert!(check("first", 0, &[]).is_err(), "a path that never ran");
    }
}
