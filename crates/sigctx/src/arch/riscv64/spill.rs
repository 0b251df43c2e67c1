//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// s0 to s11, fs0 to fs11. No vector is kept, but between functions that agree on that, of which none here is one.
pub(crate) const SPILLED: usize = 24;

global_asm!(
    ".option push",
    ".option arch, +d",
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 4",
    // a0 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "sd s\\n, 8*\\n(a0)",
    "fsd fs\\n, 96 + 8*\\n(a0)",
    ".endr",
    "mv a0, sp",
    "ret",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
    ".option pop",
);

// a0 = what to put in the registers, a1 = how much, a2 = the function, a3 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".option push",
    ".option arch, +d",
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 4",
    function!("call_marked"),
    "addi sp, sp, -208",
    "sd ra, 192(sp)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "sd s\\n, 8*\\n(sp)",
    "fsd fs\\n, 96 + 8*\\n(sp)",
    "ld s\\n, 8*\\n(a0)",
    "fld fs\\n, 96 + 8*\\n(a0)",
    ".endr",
    "mv a0, a3",
    "jalr a2",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "ld s\\n, 8*\\n(sp)",
    "fld fs\\n, 96 + 8*\\n(sp)",
    ".endr",
    "ld ra, 192(sp)",
    "addi sp, sp, 208",
    "ret",
    end!("call_marked"),
    ".popsection",
    ".option pop",
);
