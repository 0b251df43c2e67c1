//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// fp, s0 to s8 ($r22 to $r31), fs0 to fs7 ($f24 to $f31). Of longer vectors no more is kept.
pub(crate) const SPILLED: usize = 18;

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 4",
    // a0 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    ".irp n,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $a0, 8*(\\n - 22)",
    ".endr",
    ".irp n,24,25,26,27,28,29,30,31",
    "fst.d $f\\n, $a0, 80 + 8*(\\n - 24)",
    ".endr",
    "move $a0, $sp",
    "ret",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
);

// a0 = what to put in the registers, a1 = how much, a2 = the function, a3 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 4",
    function!("call_marked"),
    "addi.d $sp, $sp, -160",
    "st.d $ra, $sp, 144",
    ".irp n,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $sp, 8*(\\n - 22)",
    "ld.d $r\\n, $a0, 8*(\\n - 22)",
    ".endr",
    ".irp n,24,25,26,27,28,29,30,31",
    "fst.d $f\\n, $sp, 80 + 8*(\\n - 24)",
    "fld.d $f\\n, $a0, 80 + 8*(\\n - 24)",
    ".endr",
    "move $a0, $a3",
    "jirl $ra, $a2, 0",
    ".irp n,22,23,24,25,26,27,28,29,30,31",
    "ld.d $r\\n, $sp, 8*(\\n - 22)",
    ".endr",
    ".irp n,24,25,26,27,28,29,30,31",
    "fld.d $f\\n, $sp, 80 + 8*(\\n - 24)",
    ".endr",
    "ld.d $ra, $sp, 144",
    "addi.d $sp, $sp, 160",
    "ret",
    end!("call_marked"),
    ".popsection",
);
