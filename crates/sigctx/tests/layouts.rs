//! The kernel's structures are what the C headers say, field by field.

mod common;

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use sigctx::probe::{LAYOUT_HEADERS, LAYOUTS};

/// Every structure with the offset and size of every field, in bytes.
fn table() -> String {
    let mut text = String::new();
    for structure in LAYOUTS {
        let _ = writeln!(text, "{}: {} bytes, {}", structure.name, structure.size, structure.c);
        for field in structure.fields {
            let member = field.c.trim_start_matches('@');
            let (offset, size, name) = (field.offset, field.size, field.name);
            let line = format!("{offset:>6} {size:>5}  {name:<10} {member}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

#[test]
fn snapshot_of_the_layouts() {
    common::snapshot_settings().bind(|| insta::assert_snapshot!("layouts", table()));
}

/// No byte of a structure belongs to no field: padding is a field, too.
#[test]
fn fields_leave_no_gaps() {
    for structure in LAYOUTS {
        let mut end = 0;
        for field in structure.fields {
            let gap = field.offset - end;
            // What the compiler of C leaves before a member with a larger alignment.
            assert!(gap < 8, "{}.{} after {gap} bytes of nothing", structure.name, field.name);
            end = field.offset + field.size;
        }
        let rest = structure.size - end;
        assert!(rest < 16, "{}: {rest} bytes at the end", structure.name);
    }
}

/// A C program that does not compile if an offset or a size differs, with one assertion a line.
fn program() -> (String, usize) {
    let mut text = format!("{LAYOUT_HEADERS}#include <stddef.h>\n");
    let mut assertions = 0;
    for structure in LAYOUTS {
        let c = structure.c;
        for field in structure.fields {
            let (member, sized) = match field.c.strip_prefix('@') {
                Some(member) => (member, false),
                None => (field.c, true),
            };
            if member.is_empty() {
                continue;
            }
            let name = format!("{}.{}", structure.name, field.name);
            let (offset, size) = (field.offset, field.size);
            let _ = writeln!(
                text,
                "_Static_assert(offsetof({c}, {member}) == {offset}, \"offset of {name}\");"
            );
            assertions += 1;
            if sized {
                let _ = writeln!(
                    text,
                    "_Static_assert(sizeof((({c} *)0)->{member}) == {size}, \"size of {name}\");"
                );
            }
        }
    }
    (text, assertions)
}

/// Compiles with the compiler in `SIGCTX_CC`, else the host's; what it says, or `None` without one.
fn compile(program: &str) -> Option<Result<(), String>> {
    use std::io::Write as _;

    /// The tests are several at the same time.
    static COUNT: AtomicU32 = AtomicU32::new(0);

    let compiler = std::env::var("SIGCTX_CC").unwrap_or_else(|_| "cc".to_owned());
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next()?);
    // Not every compiler takes `-fsyntax-only`, or `/dev/null` for an output.
    let name = format!("sigctx-layouts-{}-{}.o", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let object = std::env::temp_dir().join(name);
    command.args(words).args(["-xc", "-std=gnu11", "-c", "-o"]).arg(&object).arg("-");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    // A compiler that ends early says why on its own.
    let _ = child.stdin.take().expect("piped").write_all(program.as_bytes());
    let output = child.wait_with_output().expect("wait for the compiler");
    // Not there when it failed.
    let _ = std::fs::remove_file(&object);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said) })
}

#[test]
fn the_headers_agree() {
    let (program, assertions) = program();
    assert!(assertions > 30, "only {assertions} fields have a name in C");
    match compile(&program) {
        Some(result) => result.unwrap_or_else(|said| panic!("{said}\n{program}")),
        None => testkit::skip("no C compiler"),
    }
}

/// The control of the test above.
#[test]
fn a_wrong_offset_does_not_compile() {
    let (program, _) = program();
    let wrong = program.replacen(") == ", ") == 1 + ", 1);
    match compile(&wrong) {
        Some(result) => assert!(result.is_err_and(|said| said.contains("offset of"))),
        None => testkit::skip("no C compiler"),
    }
}
