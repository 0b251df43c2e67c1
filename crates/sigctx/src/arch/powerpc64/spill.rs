//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::arch::CalleeSaved;

/// r14 to r31, f14 to f31.
const SCALAR: usize = 36;
/// With v20 to v31, two words each.
pub(crate) const SPILLED: usize = SCALAR + 24;

/// The oldest CPUs have no vectors.
pub(crate) fn spilled() -> usize {
    /// `PPC_FEATURE_HAS_ALTIVEC` of `asm/cputable.h`.
    const ALTIVEC: u64 = 0x1000_0000;
    // SAFETY: reads the auxiliary vector.
    let has_vectors = unsafe { libc::getauxval(libc::AT_HWCAP) } & ALTIVEC != 0;
    if has_vectors { SPILLED } else { SCALAR }
}

// `stvx` ignores the lowest bits of an address.
const _: () = assert!(align_of::<CalleeSaved>() == 16 && offset_of!(CalleeSaved, words) == 0);

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    // r3 = room for the words.
    function!("spill"),
    ".cfi_startproc",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "std \\n, 8*(\\n - 14)(%r3)",
    "stfd \\n, 144 + 8*(\\n - 14)(%r3)",
    ".endr",
    "ld %r4, {written}(%r3)",
    "cmpdi %r4, {scalar}",
    "beq 2f",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, 288 + 16*(\\n - 20)",
    "stvx \\n, %r3, %r5",
    ".endr",
    "2:",
    "mr %r3, %r1",
    "blr",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
    written = const offset_of!(CalleeSaved, written),
    scalar = const SCALAR,
);

/// Calls r5, a function's address, which is that of its descriptor in the older ABI.
#[cfg(all(any(test, feature = "probe"), target_abi = "elfv2"))]
macro_rules! call_r5 {
    () => {
        "mr %r12, %r5\nmtctr %r12\nbctrl"
    };
}
#[cfg(all(any(test, feature = "probe"), not(target_abi = "elfv2")))]
macro_rules! call_r5 {
    () => {
        "ld %r0, 0(%r5)\nld %r2, 8(%r5)\nld %r11, 16(%r5)\nmtctr %r0\nbctrl"
    };
}

// r3 = what to put in the registers, r4 = how much, r5 = the function, r6 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    function!("call_marked"),
    "mflr %r0",
    "std %r0, 16(%r1)",
    "stdu %r1, -624(%r1)",
    "addi %r7, %r1, 112",       // above the callee's area for arguments
    "std %r4, 592(%r1)",
    "std %r2, 600(%r1)",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "std \\n, 8*(\\n - 14)(%r7)",
    "stfd \\n, 144 + 8*(\\n - 14)(%r7)",
    "ld \\n, 8*(\\n - 14)(%r3)",
    "lfd \\n, 144 + 8*(\\n - 14)(%r3)",
    ".endr",
    "cmpdi %r4, {scalar}",
    "beq 2f",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r8, 288 + 16*(\\n - 20)",
    "stvx \\n, %r7, %r8",
    "lvx \\n, %r3, %r8",
    ".endr",
    "2:",
    "mr %r3, %r6",
    call_r5!(),
    "ld %r2, 600(%r1)",
    "ld %r4, 592(%r1)",
    "addi %r7, %r1, 112",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ld \\n, 8*(\\n - 14)(%r7)",
    "lfd \\n, 144 + 8*(\\n - 14)(%r7)",
    ".endr",
    "cmpdi %r4, {scalar}",
    "beq 3f",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r8, 288 + 16*(\\n - 20)",
    "lvx \\n, %r7, %r8",
    ".endr",
    "3:",
    "addi %r1, %r1, 624",
    "ld %r0, 16(%r1)",
    "mtlr %r0",
    "blr",
    end!("call_marked"),
    ".popsection",
    scalar = const SCALAR,
);
