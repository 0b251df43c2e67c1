//! Rules of the tree that no compiler checks, as tests. Each prints every offender.

mod circles;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cmd::client;
use crate::cmd::test::{examples, patch};
use crate::tree;
use crate::workspace::Workspace;

/// A Rust file: its path from the root, its text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The directory of its crate.
    fn package(&self) -> &OsStr {
        self.path.iter().nth(1).unwrap_or_default()
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path.display(), line + 1)
    }

    /// Its lines without those that are comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn sources() -> Vec<Source> {
    let root = Workspace::find().root;
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root.join(&path)).expect("sources are UTF-8");
        Source { path, text }
    };
    tree::files(&root, "rs").expect("the tree can be read").into_iter().map(read).collect()
}

/// The sources that the library crates are made of, without their tests, benches and examples.
fn library_sources() -> Vec<Source> {
    let mut sources = sources();
    sources
        .retain(|s| s.path.starts_with("crates") && s.path.iter().nth(2) == Some("src".as_ref()));
    sources
}

#[track_caller]
fn none_of(offenders: &[String], rule: &str) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// Where the architectures are.
fn of_an_architecture(path: &Path) -> bool {
    path.starts_with("crates/sigctx/src/arch")
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |source: &Source| {
        let mut lines = source.text.lines().skip_while(|l| l.starts_with("#!["));
        !lines.next().is_some_and(|l| l.starts_with("//!"))
            // `#![doc = include_str!("../README.md")]`
            && !source.text.starts_with("#![doc")
    };
    let offenders: Vec<_> = sources().iter().filter(|s| silent(s)).map(|s| s.at(0)).collect();
    none_of(&offenders, "a file begins with `//!`: what it is, and for which reader");
}

#[test]
fn long_files_give_their_reason() {
    let long = |s: &&Source| match s.text.lines().count() {
        0..=600 => false,
        601..800 => !s.text.contains("//! This file is long because"),
        _ => true,
    };
    let offenders: Vec<_> = sources().iter().filter(long).map(|s| s.at(600)).collect();
    none_of(
        &offenders,
        "cut it, or write `//! This file is long because …` in its header; from 800 lines on, cut it",
    );
}

#[test]
fn architecture_is_known_in_one_place() {
    let mut offenders = Vec::new();
    for source in sources() {
        if of_an_architecture(&source.path) || source.path.starts_with("xtask") {
            continue;
        }
        for (number, line) in source.code() {
            let words = ["target_arch", "asm!(", "#[unsafe(naked)]"];
            // Unstable features are the crate's, whichever module needs them.
            if line.starts_with("#![cfg_attr(") && line.contains("feature(asm_") {
                continue;
            }
            if words.iter().any(|word| line.contains(word)) {
                offenders.push(format!("{}: {}", source.at(number), line.trim()));
            }
        }
    }
    none_of(&offenders, "what depends on the architecture is in crates/sigctx/src/arch");
}

#[test]
fn modules_form_layers() {
    let workspace = Workspace::find();
    let root = &workspace.root;
    let mut offenders = Vec::new();
    for package in workspace.packages().into_iter().chain(client::names(&workspace)) {
        let places = ["crates", "", "clients"].map(|dir| Path::new(dir).join(&package).join("src"));
        let src =
            places.into_iter().find(|src| root.join(src).is_dir()).expect("a package has sources");
        let found = circles::find(root, &src).expect("the tree can be read");
        offenders.extend(found);
    }
    none_of(&offenders, "modules import each other in a circle; move what they share to one below");
}

#[test]
fn traces_name_files_that_there_are_and_no_more_than_eight() {
    let root = Workspace::find().root;
    let text = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).expect("the architecture");
    let mut offenders = Vec::new();
    let mut traces = 0;
    for section in text.split("\n## ") {
        let Some((_, rest)) = section.split_once("files under `crates/") else { continue };
        let own = rest.split('/').next().unwrap_or_default();
        let mut files = BTreeSet::new();
        for row in section.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")) {
            let cell = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
            for name in cell.split([',', ';']).map(str::trim) {
                let (package, file) = name.split_once('`').unwrap_or_default();
                let package = if package.is_empty() { own } else { package.trim() };
                let file =
                    Path::new("crates").join(package).join("src").join(file.trim_end_matches('`'));
                if !root.join(&file).is_file() {
                    offenders.push(format!("{own}: {} is not there", file.display()));
                }
                if package == own {
                    files.insert(file);
                }
            }
        }
        traces += 1;
        if files.is_empty() || files.len() > 8 {
            offenders.push(format!("{own}: a trace through {} of its files", files.len()));
        }
    }
    assert!(text.contains("\n## Glossary\n"), "docs/ARCHITECTURE.md has the glossary");
    assert_eq!(traces, 3, "docs/ARCHITECTURE.md has three traces");
    none_of(
        &offenders,
        "a trace in docs/ARCHITECTURE.md names the files it goes through, at most eight",
    );
}

#[test]
fn atomics_exist_on_every_architecture() {
    let mut offenders = Vec::new();
    for source in library_sources().iter().filter(|s| !of_an_architecture(&s.path)) {
        for (number, line) in source.code() {
            if line.contains("AtomicU64") || line.contains("AtomicI64") {
                offenders.push(format!("{}: {}", source.at(number), line.trim()));
            }
        }
    }
    none_of(&offenders, "32-bit MIPS has no 64-bit atomics");
}

#[test]
fn signal_safety_is_stated_once() {
    let sources = library_sources();
    let hidden = hidden_modules(&sources);
    let types: Vec<_> = sources.iter().flat_map(stated_types).collect();
    let (mut offenders, mut seen) = (Vec::new(), 0);
    for source in &sources {
        if hidden.iter().any(|module| source.path.starts_with(module)) {
            continue;
        }
        let lines: Vec<_> = source.text.lines().collect();
        for (number, name) in public_functions(&lines) {
            seen += 1;
            let of_type = implemented_type(&lines, number);
            let by_type = of_type.is_some_and(|name| types.contains(&(source.package(), name)));
            let docs = docs_above(&lines, number);
            if !by_type && !states_signal_safety(&docs) && !is_hidden(&docs) {
                offenders.push(format!("{} {name}", source.at(number)));
            }
        }
    }
    assert!(seen > 50, "only {seen} public functions were found");
    none_of(
        &offenders,
        "a public function has a section `# Signal safety` in its documentation; a method may have \
         it in that of its type",
    );
}

fn states_signal_safety(docs: &[&str]) -> bool {
    docs.iter().any(|line| line.trim_start().starts_with("/// # Signal safety"))
}

fn is_hidden(docs: &[&str]) -> bool {
    docs.iter().any(|line| line.contains("#[doc(hidden)]"))
}

/// The types in a file whose documentation states their methods' signal safety, each with its crate.
fn stated_types(source: &Source) -> Vec<(&OsStr, &str)> {
    let lines: Vec<_> = source.text.lines().collect();
    let mut types = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let words = ["struct ", "enum ", "union "];
        let Some(rest) = line.trim_start().strip_prefix("pub ") else { continue };
        let Some(rest) = words.iter().find_map(|word| rest.strip_prefix(word)) else { continue };
        if states_signal_safety(&docs_above(&lines, number)) {
            types.push((source.package(), first_name(rest)));
        }
    }
    types
}

/// The name of the type whose `impl` block the function in line `number` is in. `None`: it is a free
/// function. The format of rustfmt is relied on: the block's header is indented less.
fn implemented_type<'t>(lines: &[&'t str], number: usize) -> Option<&'t str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = indent(lines[number]);
    let mut above = lines[..number].iter().rev().filter(|line| !line.trim().is_empty());
    let outer = indent(above.find(|line| indent(line) < own)?);
    // The header's first line: a long one ends with its `where` and `{` in lines of their own.
    let mut outside = lines[..number].iter().rev().filter(|line| indent(line) == outer);
    let header = outside.find(|line| {
        let line = line.trim_start();
        !(line.is_empty() || line == "{" || line.starts_with("where"))
    })?;
    let rest = header.trim_start();
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest).strip_prefix("impl")?;
    Some(first_name(after_generics(rest).trim_start()))
}

/// What follows the `<…>` that a text begins with.
fn after_generics(text: &str) -> &str {
    let mut depth = 0_u32;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => return &text[at..],
            _ => {}
        }
    }
    ""
}

/// The last name of the path that a text begins with.
fn first_name(text: &str) -> &str {
    let path = text.split(['<', ' ', '(', ';', '{']).next().unwrap_or(text);
    path.rsplit("::").next().unwrap_or(path)
}

/// The files or directories of modules that are `#[doc(hidden)]`, and of those private to tests.
fn hidden_modules(sources: &[Source]) -> Vec<PathBuf> {
    let mut hidden = Vec::new();
    for source in sources {
        let lines: Vec<_> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let words: Vec<_> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|w| *w == "mod") else { continue };
            let Some(name) = words.get(at + 1).and_then(|n| n.strip_suffix(';')) else { continue };
            let above = docs_above(&lines, number);
            let not_public = |l: &&str| l.contains("#[doc(hidden)]") || l.contains("cfg(test");
            if above.iter().any(not_public) || above.iter().any(|l| l.contains("cfg(all(test")) {
                let file = source.path.file_stem().unwrap_or_default();
                let parent = source.path.parent().expect("in src");
                let is_root = file == "lib" || file == "mod";
                let dir = if is_root { parent.to_owned() } else { parent.join(file) };
                hidden.extend([dir.join(name), dir.join(format!("{name}.rs"))]);
            }
        }
    }
    hidden
}

/// The line and name of each `pub fn` in the text. That `pub` means public is checked by the
/// compiler (`unreachable_pub`).
fn public_functions<'t>(lines: &[&'t str]) -> Vec<(usize, &'t str)> {
    let mut functions = Vec::new();
    // The unit tests are the end of a file.
    let end = lines.iter().position(|l| l.contains("#[cfg(test)]")).unwrap_or(lines.len());
    for (number, line) in lines[..end].iter().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix("pub ") else { continue };
        let Some((qualifiers, name)) = rest.split_once("fn ") else { continue };
        let only = |word: &str| matches!(word, "const" | "unsafe" | "extern" | "\"C\"" | "async");
        if qualifiers.split_whitespace().all(only) {
            functions.push((number, name.split(['(', '<']).next().unwrap_or(name)));
        }
    }
    functions
}

/// The documentation and attributes of the item in line `number`.
fn docs_above<'t>(lines: &[&'t str], number: usize) -> Vec<&'t str> {
    let above = lines[..number].iter().rev();
    // An attribute may run over several lines; a blank line, `}`, `;` or `{` ends what is above.
    let ends = |l: &str| l.is_empty() || l.ends_with(['}', ';', '{']);
    above.take_while(|l| l.trim_start().starts_with("///") || !ends(l.trim())).copied().collect()
}

#[test]
fn public_functions_and_their_docs_are_found() {
    let text = "
impl X {
    /// Does.
    ///
    /// # Signal safety
    #[must_use]
    #[expect(
        clippy::x,
        reason = \"y\"
    )]
    pub const unsafe fn does<T>(&self) {}

    /// Does not.
    pub fn silent() {}
    pub(crate) fn inner() {}
    pub struct NoFn;
}
#[cfg(test)]
    pub fn in_tests() {}
";
    let lines: Vec<_> = text.lines().collect();
    let found = public_functions(&lines);
    assert_eq!(found.iter().map(|f| f.1).collect::<Vec<_>>(), ["does", "silent"]);
    assert!(states_signal_safety(&docs_above(&lines, found[0].0)));
    assert!(!states_signal_safety(&docs_above(&lines, found[1].0)));
}

#[test]
fn a_type_states_signal_safety_for_its_methods() {
    let text = "
/// Does.
///
/// # Signal safety
///
/// All methods are async-signal-safe.
#[derive(Debug)]
pub struct Stated<'a, T: Clone>(&'a T);

/// Does not.
pub enum Silent {}

impl<'a, T: Into<Vec<u8>>> crate::a::Stated<'a, T>
where
    T: Clone,
{
    const X: u8 = 0;

    pub fn first(&self) {
        let x = 1;
    }

    pub fn second() {}
}

impl Silent {
    pub fn third() {}
}

pub fn free() {}

mod inner {
    pub fn free_too() {}
}
";
    let source = Source { path: PathBuf::from("crates/x/src/lib.rs"), text: text.to_owned() };
    assert_eq!(stated_types(&source), [(OsStr::new("x"), "Stated")]);
    let lines: Vec<_> = text.lines().collect();
    let of_types: Vec<_> = public_functions(&lines)
        .into_iter()
        .map(|(number, name)| (name, implemented_type(&lines, number)))
        .collect();
    let (stated, silent) = (Some("Stated"), Some("Silent"));
    let expected = [("first", stated), ("second", stated), ("third", silent)];
    assert_eq!(of_types[..3], expected);
    assert_eq!(of_types[3..], [("free", None), ("free_too", None)]);
}

#[test]
fn every_mutant_names_its_rule_and_its_killer() {
    let root = Workspace::find().root;
    let mut offenders = Vec::new();
    for path in tree::files(&root, "patch").expect("the tree can be read") {
        let text = fs::read_to_string(root.join(&path)).expect("patches are UTF-8");
        if let Err(why) = patch::header(&text) {
            offenders.push(format!("{}: {why}", path.display()));
        }
    }
    none_of(&offenders, "the header of a mutant is wrong");
}

#[test]
fn every_crate_is_complete() {
    let workspace = Workspace::find();
    let mut offenders = Vec::new();
    for name in workspace.crates() {
        let dir = workspace.root.join("crates").join(&name);
        for file in ["README.md", "HAZARDS.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            if fs::read_to_string(dir.join(file)).is_ok_and(|text| text.lines().count() > 3) {
                continue;
            }
            offenders.push(format!("{name} lacks {file}"));
        }
        if examples::names(&dir.join("examples")).is_empty() {
            offenders.push(format!("{name} lacks an example"));
        }
        let lib = fs::read_to_string(dir.join("src/lib.rs")).unwrap_or_default();
        if !lib.contains("include_str!(\"../README.md\")") {
            offenders.push(format!("{name}: its README is not its documentation's front page"));
        }
    }
    none_of(&offenders, "a crate is not complete");
}

/// A mutant is a known bug: its crate's list of hazards has a row that names it.
#[test]
fn every_mutant_is_named_by_a_hazard() {
    let root = Workspace::find().root;
    let mut offenders = Vec::new();
    for path in tree::files(&root, "patch").expect("the tree can be read") {
        let (Some(mutant), Some(mutants)) = (path.file_stem(), path.parent()) else { continue };
        let list = mutants.with_file_name("HAZARDS.md");
        let text = fs::read_to_string(root.join(&list)).unwrap_or_default();
        let name = format!("`{}`", mutant.display());
        if text.lines().any(|line| line.starts_with('|') && line.contains(&name)) {
            continue;
        }
        let patch = fs::read_to_string(root.join(&path)).expect("patches are UTF-8");
        // A wrong header is another rule's.
        if let Ok(patch::Header { breaks, killer }) = patch::header(&patch) {
            let (list, killer) = (list.display(), killer.to_string());
            offenders.push(format!("{list}: {name} ({breaks}), behind the test of `{killer}`"));
        }
    }
    let rule = "no row of a table names these mutants. Write each name, in backquotes, into the row of \
                the hazard that it brings back, behind the test that kills it; a hazard without a row \
                gets one";
    none_of(&offenders, rule);
}

/// The tests that a hazard's row names must not have been renamed away.
#[test]
fn every_test_that_a_hazard_names_exists() {
    let workspace = Workspace::find();
    let sources = sources();
    let mut offenders = Vec::new();
    for name in workspace.crates() {
        let path = format!("crates/{name}/HAZARDS.md");
        let text = fs::read_to_string(workspace.root.join(&path)).unwrap_or_default();
        for test in text.lines().filter(|l| l.starts_with('|')).flat_map(test_names) {
            let definition = format!("fn {test}(");
            if !sources.iter().any(|s| s.text.contains(&definition)) {
                offenders.push(format!("{path}: `{test}`"));
            }
        }
    }
    none_of(&offenders, "no function has this name");
}

/// What looks like a test's name, in backquotes: three words or more, with or without its module.
fn test_names(row: &str) -> Vec<&str> {
    let quoted = row.split('`').skip(1).step_by(2);
    let names = quoted.filter_map(|text| text.rsplit("::").next());
    let of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    names.filter(|n| n.matches('_').count() >= 2 && n.chars().all(of_a_name)).collect()
}

#[test]
fn test_names_are_found_in_a_row() {
    let row = "| S1 | a `rt_sigaction` with `PR_SET_NO_X` | `late_thread_is_named`, `a::b_c_d` |";
    assert_eq!(test_names(row), ["late_thread_is_named", "b_c_d"]);
}

#[test]
fn libc_is_one_that_knows_mips() {
    let lock = fs::read_to_string(Workspace::find().root.join("Cargo.lock")).expect("a lock file");
    let version = lock.split_once("name = \"libc\"\nversion = \"").expect("libc is locked").1;
    // 0.2.190 and 0.2.191 have SIGURG and SA_SIGINFO of mips64 wrong.
    // `cargo update -p libc --precise 0.2.189` sets it back.
    assert!(version.starts_with("0.2.189\""), "libc {}", version.lines().next().unwrap_or(""));
}
