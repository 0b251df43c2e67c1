//! The header of a mutant: what the patch breaks, and which test must notice.
//!
//! ```text
//! # breaks: the count is shared between two protocols (Go 1.5's bug)
//! # killed-by: loom two_requesters        or      # killed-by: test --test storm -- name
//! ```

use std::fmt;

/// The lines before the diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) breaks: String,
    pub(crate) killer: Killer,
}

/// The test that must fail when the patch is applied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Killer {
    pub(crate) harness: Harness,
    /// Arguments of `cargo test`.
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Harness {
    /// The unit tests of the crate, built with `cfg(loom)`.
    Loom,
    /// Any test of the crate.
    Test,
}

impl fmt::Display for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let harness = match self.harness {
            Harness::Loom => "loom",
            Harness::Test => "test",
        };
        write!(f, "{harness} {}", self.args.join(" "))
    }
}

impl Killer {
    /// The arguments, with `extra` before the `--` that ends cargo's own.
    pub(crate) fn args_with<'a>(&'a self, extra: &'a str) -> Vec<&'a str> {
        let mut args: Vec<_> = self.args.iter().map(String::as_str).collect();
        let end = args.iter().position(|a| *a == "--").unwrap_or(args.len());
        args.insert(end, extra);
        args
    }

    /// The arguments, and that what tests print is shown: they may say that they skip.
    pub(crate) fn args_that_show(&self) -> Vec<&str> {
        let mut args: Vec<_> = self.args.iter().map(String::as_str).collect();
        if !args.contains(&"--") {
            args.push("--");
        }
        args.push("--show-output");
        args
    }
}

/// Reads the header of a patch.
pub(crate) fn header(patch: &str) -> Result<Header, String> {
    let (mut breaks, mut killer) = (None, None);
    let mut lines = patch.lines();
    for line in lines.by_ref().take_while(|l| l.starts_with('#')) {
        if let Some(text) = line.strip_prefix("# breaks:") {
            let twice = breaks.replace(text.trim().to_owned()).is_some();
            refuse(twice, "`# breaks:` is there twice")?;
        } else if let Some(text) = line.strip_prefix("# killed-by:") {
            let twice = killer.replace(parse_killer(text.trim())?).is_some();
            refuse(twice, "`# killed-by:` is there twice")?;
        }
    }
    let body = patch.lines().any(|l| l.starts_with("--- "))
        && patch.lines().any(|l| l.starts_with("+++ "));
    refuse(!body, "no diff follows the header (`--- a/…`, `+++ b/…`)")?;
    let breaks = breaks.filter(|b| !b.is_empty());
    Ok(Header {
        breaks: breaks.ok_or("the header lacks `# breaks: <which rule>`")?,
        killer: killer.ok_or("the header lacks `# killed-by: loom|test <arguments>`")?,
    })
}

fn refuse(bad: bool, why: &str) -> Result<(), String> {
    if bad { Err(why.to_owned()) } else { Ok(()) }
}

fn parse_killer(text: &str) -> Result<Killer, String> {
    let mut words = text.split_ascii_whitespace().map(str::to_owned);
    let harness = match words.next().as_deref() {
        Some("loom") => Harness::Loom,
        Some("test") => Harness::Test,
        _ => return Err(format!("`# killed-by: {text}` begins neither with `loom` nor `test`")),
    };
    let args: Vec<_> = words.collect();
    refuse(args.is_empty(), &format!("`# killed-by: {text}` names no test"))?;
    Ok(Killer { harness, args })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str =
        "--- a/crates/x/src/lib.rs\n+++ b/crates/x/src/lib.rs\n@@ -1 +1 @@\n-a\n+b\n";

    fn parse(lines: &str) -> Result<Header, String> {
        header(&format!("{lines}{DIFF}"))
    }

    #[test]
    fn both_harnesses_are_read() {
        let loom = parse("# breaks: a rule\n# killed-by: loom two_stops\n").unwrap();
        assert_eq!(loom.breaks, "a rule");
        assert_eq!(loom.killer.to_string(), "loom two_stops");
        let test = parse("# killed-by: test  --test storm -- name\n# breaks: b\n#\n").unwrap();
        assert_eq!(test.killer.harness, Harness::Test);
        assert_eq!(test.killer.args, ["--test", "storm", "--", "name"]);
    }

    #[test]
    fn extra_argument_goes_to_cargo() {
        let killer = parse_killer("test --test storm -- name").unwrap();
        assert_eq!(killer.args_with("--no-run"), ["--test", "storm", "--no-run", "--", "name"]);
        let killer = parse_killer("loom name").unwrap();
        assert_eq!(killer.args_with("--no-run"), ["name", "--no-run"]);
    }

    #[test]
    fn incomplete_headers_say_what_is_missing() {
        let why = |lines: &str| parse(lines).unwrap_err();
        assert!(why("# killed-by: loom x\n").contains("# breaks:"));
        assert!(why("# breaks:\n# killed-by: loom x\n").contains("# breaks:"));
        assert!(why("# breaks: x\n").contains("# killed-by:"));
        assert!(why("# breaks: x\n# killed-by: loom\n").contains("names no test"));
        assert!(why("# breaks: x\n# killed-by: chance y\n").contains("`# killed-by: chance y`"));
        assert!(why("# breaks: x\n# breaks: y\n# killed-by: loom z\n").contains("twice"));
        assert!(header("# breaks: x\n# killed-by: loom z\n").unwrap_err().contains("no diff"));
    }

    #[test]
    fn header_ends_where_the_diff_begins() {
        let late = format!("{DIFF}# breaks: x\n# killed-by: loom z\n");
        assert!(header(&late).is_err());
    }
}
