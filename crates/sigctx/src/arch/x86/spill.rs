//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// ebx, esi, edi, ebp.
pub(crate) const SPILLED: usize = 4;

global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    // [esp + 4] = room for the words.
    function!("spill"),
    ".cfi_startproc",
    "mov ecx, [esp + 4]",
    "mov [ecx], ebx",
    "mov [ecx + 4], esi",
    "mov [ecx + 8], edi",
    "mov [ecx + 12], ebp",
    "lea eax, [esp + 4]",
    "ret",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
);

// [esp + 4] = what to put in the registers, [esp + 8] = how much, [esp + 12] = the function, [esp + 16] = its argument.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    function!("call_marked"),
    ".irp r,ebx,esi,edi,ebp",
    "push \\r",
    ".endr",
    "mov ecx, [esp + 20]",
    "mov eax, [esp + 28]",
    "mov edx, [esp + 32]",
    "sub esp, 8",
    "push edx",
    "mov ebx, [ecx]",
    "mov esi, [ecx + 4]",
    "mov edi, [ecx + 8]",
    "mov ebp, [ecx + 12]",
    "call eax",
    "add esp, 12",
    ".irp r,ebp,edi,esi,ebx",
    "pop \\r",
    ".endr",
    "ret",
    end!("call_marked"),
    ".popsection",
);
