//! The registers that a function keeps for its caller, written to memory.

use core::arch::global_asm;

/// How many words they are: rbx, rbp, r12 to r15. No vector is kept.
pub(crate) const SPILLED: usize = 6;

// There is nothing to unwind through: the function has no frame of its own, and calls none.
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    ".balign 16",
    // rdi = room for the words. Returns the caller's stack pointer.
    function!("spill"),
    ".cfi_startproc",
    "mov [rdi], rbx",
    "mov [rdi + 8], rbp",
    "mov [rdi + 16], r12",
    "mov [rdi + 24], r13",
    "mov [rdi + 32], r14",
    "mov [rdi + 40], r15",
    "lea rax, [rsp + 8]",
    "ret",
    ".cfi_endproc",
    end!("spill"),
    ".popsection",
);

// Calls rdx, for tests, with rcx as its argument and the words at rdi, of which there are rsi, in the registers.
#[cfg(any(test, feature = "probe"))]
global_asm!(
    ".pushsection .text.sigctx_spill, \"ax\", @progbits",
    function!("call_marked"),
    ".irp r,rbx,rbp,r12,r13,r14,r15",
    "push \\r",
    ".endr",
    "sub rsp, 8",
    "mov rbx, [rdi]",
    "mov rbp, [rdi + 8]",
    "mov r12, [rdi + 16]",
    "mov r13, [rdi + 24]",
    "mov r14, [rdi + 32]",
    "mov r15, [rdi + 40]",
    "mov rdi, rcx",
    "call rdx",
    "add rsp, 8",
    ".irp r,r15,r14,r13,r12,rbp,rbx",
    "pop \\r",
    ".endr",
    "ret",
    end!("call_marked"),
    ".popsection",
);
