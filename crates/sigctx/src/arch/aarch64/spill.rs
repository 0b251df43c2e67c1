//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// x19 to x29, d8 to d15. Of longer vectors a function keeps no more for a caller, unless both
/// agree on more: then the caller has called nothing of ours without writing it to its stack.
pub(crate) const SPILLED: usize = 19;

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    // x0 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    "hint #34", // bti c
    "stp x19, x20, [x0]",
    "stp x21, x22, [x0, #16]",
    "stp x23, x24, [x0, #32]",
    "stp x25, x26, [x0, #48]",
    "stp x27, x28, [x0, #64]",
    "str x29, [x0, #80]",
    "stp d8, d9, [x0, #88]",
    "stp d10, d11, [x0, #104]",
    "stp d12, d13, [x0, #120]",
    "stp d14, d15, [x0, #136]",
    "mov x0, sp",
    "ret",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
);

// x0 = what to put in the registers, x1 = how much, x2 = the function, x3 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    function!("call_marked"),
    "stp x29, x30, [sp, #-176]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "ldp x19, x20, [x0]",
    "ldp x21, x22, [x0, #16]",
    "ldp x23, x24, [x0, #32]",
    "ldp x25, x26, [x0, #48]",
    "ldp x27, x28, [x0, #64]",
    "ldr x29, [x0, #80]",
    "ldp d8, d9, [x0, #88]",
    "ldp d10, d11, [x0, #104]",
    "ldp d12, d13, [x0, #120]",
    "ldp d14, d15, [x0, #136]",
    "mov x0, x3",
    "blr x2",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp d8, d9, [sp, #96]",
    "ldp d10, d11, [sp, #112]",
    "ldp d12, d13, [sp, #128]",
    "ldp d14, d15, [sp, #144]",
    "ldp x29, x30, [sp], #176",
    "ret",
    end!("call_marked"),
    ".popsection",
);
