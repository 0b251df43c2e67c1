//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::arch::CalleeSaved;

/// r4 to r11.
const GENERAL: usize = 8;
/// With d8 to d15, two words each.
pub(crate) const SPILLED: usize = GENERAL + 16;

/// Where programs pass no floats in registers, code may still use them, and there are CPUs without.
pub(crate) fn spilled() -> usize {
    /// `HWCAP_VFP` of `asm/hwcap.h`.
    const VFP: u64 = 1 << 6;
    // SAFETY: reads the auxiliary vector.
    let has_floats = u64::from(unsafe { libc::getauxval(libc::AT_HWCAP) }) & VFP != 0;
    if has_floats { SPILLED } else { GENERAL }
}

global_asm!(
    ".arm",
    ".fpu vfpv2",
    ".cfi_sections .debug_frame",
    ".pushsection .text.sigctx_spill, \"ax\", %progbits",
    ".balign 4",
    // r0 = room for the words.
    function!("spill"),
    ".fnstart",
    ".cfi_startproc",
    "ldr r1, [r0, #{written}]",
    "cmp r1, #{general}",
    "stmia r0!, {{r4, r5, r6, r7, r8, r9, r10, r11}}",
    "beq 2f",
    "vstmia r0!, {{d8-d15}}",
    "2:",
    "mov r0, sp",
    "bx lr",
    ".cfi_endproc",
    ".fnend",
    end!("spill"),
    ".popsection",
    written = const offset_of!(CalleeSaved, written),
    general = const GENERAL,
);

// r0 = what to put in the registers, r1 = how much, r2 = the function, r3 = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".arm",
    ".fpu vfpv2",
    ".pushsection .text.sigctx_spill, \"ax\", %progbits",
    ".balign 4",
    function!("call_marked"),
    "push {{r3, r4, r5, r6, r7, r8, r9, r10, r11, lr}}",
    "cmp r1, #{general}",
    "beq 2f",
    "vpush {{d8-d15}}",
    "2:",
    "ldmia r0!, {{r4, r5, r6, r7, r8, r9, r10, r11}}",
    "beq 3f",
    "vldmia r0!, {{d8-d15}}",
    "3:",
    "str r1, [sp, #-8]!",
    "mov r0, r3",
    "blx r2",
    "ldr r1, [sp], #8",
    "cmp r1, #{general}",
    "beq 4f",
    "vpop {{d8-d15}}",
    "4:",
    "pop {{r3, r4, r5, r6, r7, r8, r9, r10, r11, lr}}",
    "bx lr",
    end!("call_marked"),
    ".popsection",
    general = const GENERAL,
);
