//! The machine code of the handler, as a release build has it. It may not touch thread-local
//! storage, which a thread of foreign origin may lack, nor call into libc, whose entry points may
//! be resolved lazily under a lock, nor use much stack.

use std::process::Command;

/// Runs a tool and returns what it prints.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{error}");
    String::from_utf8(output.stdout).expect("text")
}

/// The number in `sub $0x58,%rsp`.
fn reserved(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once("sub ")?;
    let rest = rest.trim_start().strip_prefix("$0x")?;
    let (number, _) = rest.split_once(",%rsp")?;
    usize::from_str_radix(number, 16).ok()
}

#[test]
fn the_handler_touches_no_tls_and_calls_nothing_by_name() {
    if std::env::consts::ARCH != "x86_64" {
        println!("skipped: the patterns are those of x86-64");
        return;
    }
    // The library alone: nothing that only tests and examples need is built.
    let args = ["build", "--release", "--lib", "--message-format=json"];
    let built = run(Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")));
    let library = built
        .split('"')
        .find(|text| text.ends_with("/liballthreads.rlib"))
        .unwrap_or_else(|| panic!("no library:\n{built}"));
    let symbols = run(Command::new("objdump").args(["--syms", library]));
    let symbol = symbols
        .split_whitespace()
        .find(|name| name.starts_with(['_', 'a']) && name.contains("allthreads_on_signal"))
        .expect("symbol of the handler");
    let code = run(Command::new("objdump").args([
        "--no-show-raw-insn",
        "--reloc",
        &format!("--disassemble={symbol}"),
        library,
    ]));
    for outside in ["R_X86_64_PLT", "R_X86_64_GOT", "R_X86_64_TLS", "TPOFF"] {
        assert!(!code.contains(outside), "refers to something outside:\n{code}");
    }
    let lines: Vec<_> = code.lines().filter(|l| l.contains(":\t")).collect();
    println!("{}", lines.join("\n"));
    assert!(lines.len() > 40, "not the handler:\n{code}");
    let system_calls = lines.iter().filter(|l| l.contains("\tsyscall")).count();
    assert!(system_calls >= 5, "system calls are not inlined");
    let mut stack = 0;
    for line in lines {
        assert!(!line.contains("%fs:") && !line.contains("%gs:"), "thread-local storage: {line}");
        if line.contains("\tcall") {
            // Through a register: the handler that was there before, or the caller's function.
            // By name it would be something that ought to have been inlined.
            assert!(line.contains("call   *%r"), "calls by name: {line}");
        }
        if line.contains("push ") {
            stack += 8;
        }
        stack += reserved(line).unwrap_or_default();
    }
    println!("{stack} bytes of stack");
    assert!(stack < 256, "{stack} bytes of stack");
}
