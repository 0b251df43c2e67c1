//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// r6 to r13, f8 to f15. Of the vectors whose first halves these are no more is kept.
pub(crate) const SPILLED: usize = 16;

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    // r2 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    "stmg %r6, %r13, 0(%r2)",
    ".irp n,8,9,10,11,12,13,14,15",
    "std %f\\n, 8*\\n(%r2)",
    ".endr",
    "lgr %r2, %r15",
    "br %r14",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
);

// r2 = what to put in the registers, r3 = how much, r4 = the function, r5 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    function!("call_marked"),
    "stmg %r6, %r15, 48(%r15)",
    "aghi %r15, -224",
    ".irp n,8,9,10,11,12,13,14,15",
    "std %f\\n, 96 + 8*\\n(%r15)",
    "ld %f\\n, 8*\\n(%r2)",
    ".endr",
    "lmg %r6, %r13, 0(%r2)",
    "lgr %r2, %r5",
    "basr %r14, %r4",
    ".irp n,8,9,10,11,12,13,14,15",
    "ld %f\\n, 96 + 8*\\n(%r15)",
    ".endr",
    "aghi %r15, 224",
    "lmg %r6, %r15, 48(%r15)",
    "br %r14",
    end!("call_marked"),
    ".popsection",
);
