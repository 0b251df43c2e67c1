//! `cargo xtask snapshots`: what the tests find against what the tree's `.snap` files say, on every
//! architecture, and the way from one to the other.
//!
//! A test that finds something else leaves a `.snap.new` beside its `.snap`. Looking for
//! differences and accepting them are two calls, so that nothing is accepted that was not shown.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use similar::{ChangeTag, TextDiff};

use super::arches;
use crate::report::{self, Progress, output};
use crate::tree;
use crate::workspace::Workspace;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask snapshots                      run all snapshot tests, show what differs
  cargo xtask snapshots arm64 s390x          of these
  cargo xtask snapshots --available          of those that this machine has the tools for
  cargo xtask snapshots --accept             take over what was found
  cargo xtask snapshots --accept --filter @mips
  cargo xtask snapshots --reject             delete what was found

A snapshot is `snapshots/<name>@<architecture>.snap`; a new one, `.snap.new` beside it. --accept and
--reject work on what an earlier call has shown, and run no test. A call fails while anything
differs. With all architectures it also lists the snapshots that no test looks at.")]
pub(crate) struct Options {
    /// Only these architectures, by Go's names
    #[arg(value_name = "ARCH", conflicts_with_all = ["accept", "reject"])]
    arches: Vec<String>,
    /// Puts every pending snapshot in the place of the old one
    #[arg(long, conflicts_with = "reject")]
    accept: bool,
    /// Deletes every pending snapshot
    #[arg(long)]
    reject: bool,
    /// Only snapshot files whose path contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leaves out an architecture that this machine lacks something for
    #[arg(long, conflicts_with_all = ["accept", "reject"])]
    available: bool,
}

impl Options {
    fn takes(&self, path: &Path) -> bool {
        self.filter.as_deref().is_none_or(|text| path.to_string_lossy().contains(text))
    }
}

/// The command.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> ExitCode {
    match run(workspace, options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            report::tell(&why);
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as the tree says.
fn run(workspace: &Workspace, options: &Options) -> Result<bool, String> {
    let root = &workspace.root;
    if options.accept || options.reject {
        let pending = pending(root, options)?;
        if pending.is_empty() {
            output!("nothing is pending; `cargo xtask snapshots` looks for differences");
        }
        for path in pending {
            settle(root, &path, options.accept)?;
        }
        return Ok(true);
    }
    let references = workspace.target.join("snapshot-references");
    fs::create_dir_all(&workspace.target).map_err(|e| of(&workspace.target, &e))?;
    fs::write(&references, "").map_err(|e| of(&references, &e))?;
    let tested = arches::snapshots(
        workspace,
        &options.arches,
        options.available,
        &references,
        &Progress::new(),
    )?;
    output!("{}", tested.table);
    if !tested.any {
        return Err("no snapshot was looked at: every architecture was left out".to_owned());
    }
    let pending = pending(root, options)?;
    for path in &pending {
        output!("\n{}", show(root, path)?);
    }
    if !tested.failures.is_empty() {
        output!("\nfailed, by a difference or otherwise:");
        for name in &tested.failures {
            output!("  {name}");
        }
    }
    // A test that did not run refers to nothing.
    if options.arches.is_empty() && tested.failures.is_empty() && tested.complete {
        let text = fs::read_to_string(&references).map_err(|e| of(&references, &e))?;
        let stale = stale(root, &text);
        if !stale.is_empty() {
            output!("\nno test looks at these; delete them:");
        }
        for path in &stale {
            output!("  {}", path.display());
        }
        if !stale.is_empty() {
            return Ok(false);
        }
    }
    if !pending.is_empty() {
        output!(
            "\n{} pending: `cargo xtask snapshots --accept` takes them over, `--reject` deletes them",
            pending.len()
        );
    } else if tested.failures.is_empty() {
        output!("\nno snapshot differs");
    }
    Ok(pending.is_empty() && tested.failures.is_empty())
}

fn of(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Snapshots that wait for a decision, relative to the root.
fn pending(root: &Path, options: &Options) -> Result<Vec<PathBuf>, String> {
    let mut files = tree::files(root, "new").map_err(|e| of(root, &e))?;
    files.retain(|f| f.to_string_lossy().ends_with(".snap.new") && options.takes(f));
    Ok(files)
}

/// Snapshots that no test has looked at, given the list that insta wrote.
fn stale(root: &Path, references: &str) -> Vec<PathBuf> {
    let canonical = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let used: BTreeSet<_> =
        references.lines().map(|line| canonical(&root.join(line.trim()))).collect();
    let mut files = tree::files(root, "snap").unwrap_or_default();
    files.retain(|file| !used.contains(&canonical(&root.join(file))));
    files
}

/// A snapshot's metadata, with its `---` lines, and its text.
fn parts(snapshot: &str) -> (&str, &str) {
    let begin = "---\n".len();
    let end = snapshot.strip_prefix("---\n").and_then(|rest| rest.find("\n---\n"));
    end.map_or(("", snapshot), |end| snapshot.split_at(begin + end + "\n---\n".len()))
}

/// What is pending in one file, as a diff.
fn show(root: &Path, path: &Path) -> Result<String, String> {
    let read = |path: &Path| fs::read_to_string(root.join(path)).map_err(|e| of(path, &e));
    let new = read(path)?;
    let old_path = path.with_extension("");
    let old = if root.join(&old_path).exists() { read(&old_path)? } else { String::new() };
    let state = if old.is_empty() { " (there was none)" } else { "" };
    let diff = diff(parts(&old).1, parts(&new).1, report::colour(io::stdout().is_terminal()));
    Ok(format!("{}{state}\n{diff}", old_path.display()))
}

/// Line by line, with three lines around each difference.
fn diff(old: &str, new: &str, colour: bool) -> String {
    let diff = TextDiff::from_lines(old, new);
    let mut text = String::new();
    for (number, group) in diff.grouped_ops(3).iter().enumerate() {
        if number > 0 {
            text.push_str("  …\n");
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, paint) = match change.tag() {
                ChangeTag::Delete => ('-', "\u{1b}[31m"),
                ChangeTag::Insert => ('+', "\u{1b}[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let line = change.value().trim_end_matches('\n');
            let (on, off) =
                if colour && !paint.is_empty() { (paint, "\u{1b}[0m") } else { ("", "") };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{on}{sign} {line}{off}");
        }
    }
    if text.is_empty() { "  only the metadata differs\n".to_owned() } else { text }
}

/// Puts a pending snapshot in the place of the old one, or deletes it.
fn settle(root: &Path, path: &Path, accept: bool) -> Result<(), String> {
    let new = root.join(path);
    if accept {
        let text = fs::read_to_string(&new).map_err(|e| of(path, &e))?;
        let old = new.with_extension("");
        fs::write(&old, accepted(&text)).map_err(|e| of(&old, &e))?;
    }
    fs::remove_file(&new).map_err(|e| of(path, &e))?;
    output!(
        "{} {}",
        if accept { "accepted" } else { "rejected" },
        path.with_extension("").display()
    );
    Ok(())
}

/// The text of a snapshot without the line of the assertion, which changes with every edit above it.
fn accepted(pending: &str) -> String {
    let (metadata, text) = parts(pending);
    let kept = metadata.split_inclusive('\n').filter(|l| !l.starts_with("assertion_line:"));
    kept.collect::<String>() + text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str =
        "---\nsource: a.rs\nassertion_line: 44\nexpression: x\n---\nr0 1\nassertion_line: no\n";

    #[test]
    fn assertion_line_is_dropped_from_the_metadata_alone() {
        let kept = "---\nsource: a.rs\nexpression: x\n---\nr0 1\nassertion_line: no\n";
        assert_eq!(accepted(NEW), kept);
        assert_eq!(accepted(kept), kept);
        assert_eq!(accepted("no metadata\n"), "no metadata\n");
    }

    #[test]
    fn diff_shows_lines_with_their_surroundings() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = old.replace("5\n", "five\n");
        assert_eq!(diff(old, &new, false), "  2\n  3\n  4\n- 5\n+ five\n  6\n  7\n  8\n");
        assert_eq!(diff(old, old, false), "  only the metadata differs\n");
        assert!(diff(old, &new, true).contains("\u{1b}[32m+ five\u{1b}[0m\n"));
    }

    #[test]
    fn pending_snapshots_are_found_accepted_and_rejected() {
        let root = std::env::temp_dir().join(format!("xtask-snapshots-{}", std::process::id()));
        let dir = root.join("snapshots");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("a@x.snap"), "---\nsource: a.rs\n---\nr0 0\n").unwrap();
        for name in ["a@x.snap.new", "b@y.snap.new", "c@y.snap.new"] {
            fs::write(dir.join(name), NEW).unwrap();
        }
        let options = |filter: &str| Options {
            arches: Vec::new(),
            accept: true,
            reject: false,
            filter: Some(filter.to_owned()),
            available: false,
        };
        let found = pending(&root, &options("a@x")).unwrap();
        assert_eq!(found, [Path::new("snapshots/a@x.snap.new")]);
        let shown = show(&root, &found[0]).unwrap();
        assert!(shown.starts_with("snapshots/a@x.snap\n- r0 0\n+ r0 1\n"), "{shown}");
        settle(&root, &found[0], true).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a@x.snap")).unwrap(), accepted(NEW));
        let others = pending(&root, &options("@y")).unwrap();
        assert_eq!(others.len(), 2);
        assert!(show(&root, &others[0]).unwrap().contains("b@y.snap (there was none)\n+ r0 1\n"));
        settle(&root, &others[0], true).unwrap();
        settle(&root, &others[1], false).unwrap();
        assert!(dir.join("b@y.snap").exists() && !dir.join("c@y.snap").exists());
        assert!(pending(&root, &options("")).unwrap().is_empty());

        let references = format!("{}\n", dir.join("a@x.snap").display());
        assert_eq!(stale(&root, &references), [Path::new("snapshots/b@y.snap")]);
        fs::remove_dir_all(root).unwrap();
    }
}
