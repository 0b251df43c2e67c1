//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

#[cfg(any(test, feature = "probe"))]
use super::abi::{add_const, load};
use super::abi::{kept_doubles, set_isa, store};

/// $16 to $23, $28, $30; in o32 the six even ones of $f20 to $f31, two words each, in n64 $f24 to $f31.
pub(crate) const SPILLED: usize = if cfg!(target_arch = "mips64") { 18 } else { 22 };

/// Where the first of [`kept_doubles`] is, less what its number adds.
const DOUBLES: isize = if cfg!(target_arch = "mips64") { 80 - 8 * 24 } else { 40 - 4 * 20 };
/// What the numbers of two registers that hold a double differ in is as many bytes times this.
const SCALE: usize = if cfg!(target_arch = "mips64") { 8 } else { 4 };

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".set push",
    ".set noreorder",
    set_isa!(),
    ".balign 16",
    // $4 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    ".irp n,16,17,18,19,20,21,22,23",
    store!("$\\n, {word}*(\\n - 16)($4)"),
    ".endr",
    store!("$28, {word}*8($4)"),
    store!("$30, {word}*9($4)"),
    kept_doubles!(),
    "sdc1 $f\\n, {doubles} + {scale}*\\n($4)",
    ".endr",
    "jr $31",
    "move $2, $29",
    ".cfi_endproc",
    end!("spill"),
    ".set pop",
    ".popsection",
    word = const size_of::<usize>(),
    doubles = const DOUBLES,
    scale = const SCALE,
);

// $4 = what to put in the registers, $5 = how much, $6 = the function, $7 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".set push",
    ".set noreorder",
    set_isa!(),
    ".balign 16",
    function!("call_marked"),
    add_const!("$29, $29, -208"),
    add_const!("$8, $29, 32"),  // above the home of the arguments
    store!("$31, 200($29)"),
    ".irp n,16,17,18,19,20,21,22,23",
    store!("$\\n, {word}*(\\n - 16)($8)"),
    load!("$\\n, {word}*(\\n - 16)($4)"),
    ".endr",
    store!("$28, {word}*8($8)"),
    load!("$28, {word}*8($4)"),
    store!("$30, {word}*9($8)"),
    load!("$30, {word}*9($4)"),
    kept_doubles!(),
    "sdc1 $f\\n, {doubles} + {scale}*\\n($8)",
    "ldc1 $f\\n, {doubles} + {scale}*\\n($4)",
    ".endr",
    "move $25, $6",
    "jalr $25",
    "move $4, $7",
    add_const!("$8, $29, 32"),
    ".irp n,16,17,18,19,20,21,22,23",
    load!("$\\n, {word}*(\\n - 16)($8)"),
    ".endr",
    load!("$28, {word}*8($8)"),
    load!("$30, {word}*9($8)"),
    kept_doubles!(),
    "ldc1 $f\\n, {doubles} + {scale}*\\n($8)",
    ".endr",
    load!("$31, 200($29)"),
    "jr $31",
    add_const!("$29, $29, 208"),
    end!("call_marked"),
    ".set pop",
    ".popsection",
    word = const size_of::<usize>(),
    doubles = const DOUBLES,
    scale = const SCALE,
);
