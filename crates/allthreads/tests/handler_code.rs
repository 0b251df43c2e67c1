//! The machine code of the handler, as a release build has it. It may not touch thread-local
//! storage, which a thread of foreign origin may lack, nor call into libc, whose entry points may
//! be resolved lazily under a lock, nor use much stack.

use std::process::Command;

use sigctx::probe::Instruction;

/// Runs a tool and returns what it prints.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{error}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_handler_touches_no_tls_and_calls_nothing_by_name() {
    let compiler = run(Command::new("rustc").arg("-vV"));
    let host = compiler.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    if host.split('-').next() != Some(sigctx::probe::ARCHITECTURE) {
        return testkit::skip("cargo builds for the machine, and that has another architecture");
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
    let instructions: Vec<_> = code.lines().map(Instruction::of).collect();
    println!("{code}");
    assert!(code.lines().filter(|l| l.contains(":\t")).count() > 40, "not the handler:\n{code}");
    let system_calls = instructions.iter().filter(|i| i.system_call).count();
    assert!(system_calls >= 5, "system calls are not inlined");
    for (line, instruction) in code.lines().zip(&instructions) {
        assert!(!instruction.thread_local, "thread-local storage: {line}");
        // A call is through a register: the handler that was there before, or the function
        // of a call. By name it would be something that ought to have been inlined.
        assert!(!instruction.outside, "calls or refers to by name: {line}");
    }
    let stack: usize = instructions.iter().map(|i| i.stack).sum();
    println!("{stack} bytes of stack");
    assert!(stack < 256, "{stack} bytes of stack");
}
