//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::offset_of;

use super::Ucontext;
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
/// the caller's stack pointer (CFA) is the value in the slot of rsp,
/// `DW_CFA_def_cfa_expression, length 4, DW_OP_breg<base> offset, DW_OP_deref`.
macro_rules! interrupted_registers {
    ($base:literal, $extra:literal) => {
        concat!(
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((160 + ",
            $extra,
            ") & 0x7f) | 0x80, (160 + ",
            $extra,
            ") >> 7, 0x06\n",
            saved_at!($base, "144", $extra, "0"),  // rax
            saved_at!($base, "136", $extra, "1"),  // rdx
            saved_at!($base, "152", $extra, "2"),  // rcx
            saved_at!($base, "128", $extra, "3"),  // rbx
            saved_at!($base, "112", $extra, "4"),  // rsi
            saved_at!($base, "104", $extra, "5"),  // rdi
            saved_at!($base, "120", $extra, "6"),  // rbp
            saved_at!($base, "160", $extra, "7"),  // rsp
            saved_at!($base, "40", $extra, "8"),   // r8
            saved_at!($base, "48", $extra, "9"),   // r9
            saved_at!($base, "56", $extra, "10"),  // r10
            saved_at!($base, "64", $extra, "11"),  // r11
            saved_at!($base, "72", $extra, "12"),  // r12
            saved_at!($base, "80", $extra, "13"),  // r13
            saved_at!($base, "88", $extra, "14"),  // r14
            saved_at!($base, "96", $extra, "15"),  // r15
            saved_at!($base, "168", $extra, "16"), // rip
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(offset_of!(Ucontext, mcontext.r8) == 40);
    assert!(offset_of!(Ucontext, mcontext.r15) == 96);
    assert!(offset_of!(Ucontext, mcontext.di) == 104);
    assert!(offset_of!(Ucontext, mcontext.si) == 112);
    assert!(offset_of!(Ucontext, mcontext.bp) == 120);
    assert!(offset_of!(Ucontext, mcontext.bx) == 128);
    assert!(offset_of!(Ucontext, mcontext.dx) == 136);
    assert!(offset_of!(Ucontext, mcontext.ax) == 144);
    assert!(offset_of!(Ucontext, mcontext.cx) == 152);
    assert!(offset_of!(Ucontext, mcontext.sp) == 160);
    assert!(offset_of!(Ucontext, mcontext.ip) == 168);
    // The pivot reads the copied frame's address from the start of the record. It has the restorer's
    // address from the frame itself.
    assert!(offset_of!(Call, frame) == 0);
};

// The three pieces lie together, so that one range of addresses tells whether an interrupted
// thread is on its way between a frame and the code that it belongs to.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. rdi = signal, rsi = siginfo, rdx = ucontext,
    // [rsp] = the restorer's address, rsp = 8 modulo 16.
    function!("entry"),
    ".cfi_startproc",
    "mov rcx, rsp",             // fourth argument: where the frame begins
    "sub rsp, 8",               // a call wants rsp = 0 modulo 16 before it
    ".cfi_adjust_cfa_offset 8",
    "call {dispatch}",
    "test rax, rax",
    "jnz 2f",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "ret",                      // to the restorer: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 8",
    "mov rbx, [rax]",           // the copied frame; callee-saved, so it outlives the call
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. rax = the record of the call (16-aligned, just below the copied
    // frame), rbx = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied ucontext at rbx + 8.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("3", "8"),
    // A name for debuggers and backtraces.
    local!("injected_call"),
    "mov rsp, rax",             // leaves the alternate stack for good
    "mov rdi, rax",
    "lea rbp, [rax + {record}]", // what frame-pointer walkers go on with
    "call {run}",               // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "mov dword ptr [rax], 0",   // the stack may be injected again, but not from in here
    "mov rsp, rbx",
    "ret",                      // to the restorer, with rsp at the copied ucontext
    end!("injected_call"),
    // Resumes a frame whose callback never returned. rdi = the copied frame, rsi = where the
    // handler returns to, which is in the frame as well, rdx = `active`.
    function!("resume"),
    "mov rbx, rdi",
    "mov rax, rdx",
    "jmp 3b",
    ".cfi_endproc",
    end!("resume"),
    // rt_sigreturn, byte for byte as in glibc (`mov rax, 15; syscall`): gdb and libgcc recognise a
    // signal frame by these nine bytes. The no-op is for unwinders, which look up the byte before a
    // return address.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("7", "0"),
    "nop",
    function!("restorer"),
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
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

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to.
pub(crate) const SIGRETURN_LEN: usize = 9;
