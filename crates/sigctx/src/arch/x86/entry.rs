//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::offset_of;

use super::{UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// One rule "register `$reg` (DWARF number) is saved at register `$base` + `$offset`":
/// `DW_CFA_expression, reg, length 3, DW_OP_breg<base>, SLEB128 offset in two bytes`.
macro_rules! saved_at {
    ($base:literal, $offset:literal, $extra:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", ((",
            $offset,
            " + ",
            $extra,
            ") & 0x7f) | 0x80, (",
            $offset,
            " + ",
            $extra,
            ") >> 7\n"
        )
    };
}

/// Where a `ucontext` at register `$base` + `$extra` has every register of the interrupted code:
/// the caller's stack pointer (CFA) is the value in the slot of esp,
/// `DW_CFA_def_cfa_expression, length 4, DW_OP_breg<base> offset, DW_OP_deref`.
macro_rules! interrupted_registers {
    ($base:literal, $extra:literal) => {
        concat!(
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((48 + ",
            $extra,
            ") & 0x7f) | 0x80, (48 + ",
            $extra,
            ") >> 7, 0x06\n",
            saved_at!($base, "64", $extra, "0"), // eax
            saved_at!($base, "60", $extra, "1"), // ecx
            saved_at!($base, "56", $extra, "2"), // edx
            saved_at!($base, "52", $extra, "3"), // ebx
            saved_at!($base, "48", $extra, "4"), // esp
            saved_at!($base, "44", $extra, "5"), // ebp
            saved_at!($base, "40", $extra, "6"), // esi
            saved_at!($base, "36", $extra, "7"), // edi
            saved_at!($base, "76", $extra, "8"), // eip
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET == 144);
    assert!(offset_of!(Ucontext, mcontext.di) == 36);
    assert!(offset_of!(Ucontext, mcontext.si) == 40);
    assert!(offset_of!(Ucontext, mcontext.bp) == 44);
    assert!(offset_of!(Ucontext, mcontext.sp) == 48);
    assert!(offset_of!(Ucontext, mcontext.bx) == 52);
    assert!(offset_of!(Ucontext, mcontext.dx) == 56);
    assert!(offset_of!(Ucontext, mcontext.cx) == 60);
    assert!(offset_of!(Ucontext, mcontext.ax) == 64);
    assert!(offset_of!(Ucontext, mcontext.ip) == 76);
    assert!(offset_of!(Call, frame) == 0);
};

global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. [esp] = the restorer's address, [esp + 4] = signal,
    // [esp + 8] = siginfo, [esp + 12] = ucontext, esp = 12 modulo 16.
    function!("entry"),
    ".cfi_startproc",
    "cld",                      // as the ABI wants it; the kernel has done it, QEMU (10.0) has not
    "mov eax, esp",             // fourth argument: where the frame begins
    "sub esp, 28",              // a call wants esp = 0 modulo 16 before it
    ".cfi_adjust_cfa_offset 28",
    "mov [esp + 12], eax",
    "mov ecx, [eax + 12]",
    "mov [esp + 8], ecx",
    "mov ecx, [eax + 8]",
    "mov [esp + 4], ecx",
    "mov ecx, [eax + 4]",
    "mov [esp], ecx",
    "call {dispatch}",
    "test eax, eax",
    "jnz 2f",
    "add esp, 28",
    ".cfi_adjust_cfa_offset -28",
    "ret",                      // to the restorer: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 28",
    "mov ebx, [eax]",           // the copied frame; callee-saved, so it outlives the call
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. eax = the record of the call (16-aligned, just below the copied
    // frame), ebx = the copied frame, with the ucontext at 144.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("3", "144"),
    local!("injected_call"),
    "mov esp, eax",             // leaves the alternate stack for good
    "lea ebp, [eax + {record}]", // what frame-pointer walkers go on with
    "sub esp, 12",
    "push eax",                 // the argument
    "call {run}",               // returns the address of the stack's `active` word
    "3:",
    "mov dword ptr [eax], 0",   // the stack may be injected again, but not from in here
    "mov esp, ebx",
    "ret",                      // to the restorer, with esp behind the return address in the copy
    end!("injected_call"),
    // Resumes a frame whose callback never returned. [esp + 4] = the copied frame, [esp + 8] = where
    // the handler returns to, which is in the frame as well, [esp + 12] = `active`.
    function!("resume"),
    "mov ebx, [esp + 4]",
    "mov eax, [esp + 12]",
    "jmp 3b",
    ".cfi_endproc",
    end!("resume"),
    // rt_sigreturn, byte for byte as in glibc (`mov eax, 173; int 0x80`). The return address is off
    // the stack: the ucontext is at esp + 140.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("4", "140"),
    "nop",
    function!("restorer"),
    ".byte 0xb8, 0xad, 0x00, 0x00, 0x00, 0xcd, 0x80",
    "ud2",
    ".cfi_endproc",
    end!("restorer"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    record = const offset_of!(Call, record),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the kernel pushed it.
    unsafe { (entry_sp as *const usize).read() }
}

pub(crate) const SIGRETURN_LEN: usize = 7;
