//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::offset_of;

use super::{SigContext, UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// The pivot reads the copied frame's address from the start of the record.
const _: () = assert!(offset_of!(Call, frame) == 0);
/// The registers lie one after another, and the CFI below counts from the first.
const _: () = {
    assert!(offset_of!(SigContext, x30) == offset_of!(SigContext, x0) + 8 * 30);
    assert!(offset_of!(SigContext, sp) == offset_of!(SigContext, x0) + 8 * 31);
    assert!(offset_of!(SigContext, pc) == offset_of!(SigContext, x0) + 8 * 32);
};

// `hint #34` is `bti c`, on which indirect calls, the kernel's too, may land; older assemblers and CPUs
// take it for a no-op. For every `ret` here the kernel or a `bl` has put an address on the guarded
// control stack: after the pivot that of the sigreturn code is still on top.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. x0 = signal, x1 = siginfo, x2 = ucontext, x30 = the sigreturn
    // code, sp = the frame, 16-aligned.
    function!("entry"),
    ".cfi_startproc",
    "hint #34",
    "mov x3, sp",               // fourth argument: where the frame begins
    "stp x29, x30, [sp, #-16]!", // `return_address` looks here
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "mov x29, sp",
    "bl {dispatch}",
    "cbnz x0, 2f",
    "ldp x29, x30, [sp], #16",
    ".cfi_def_cfa_offset 0",
    ".cfi_restore x29",
    ".cfi_restore x30",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "ldr x19, [x0]",            // the copied frame; callee-saved, so it outlives the call
    "ldr x20, [x0, #{back}]",   // as is the way back
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. x0 = the record of the call (16-aligned, just below the copied
    // frame), x19 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context.
    //
    // The return address needs a column of its own, for x30 is an interrupted register like any
    // other. The ABI's is 32 (pc); but libgcc, which knows the size of no such column, aborts, and
    // LLVM's unwinder does not know libgcc's (96). x17 does for all of them: no frame is unwound by
    // what is in a linker's scratch register. Debuggers go by the rule for 32.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 17",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg19 offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x83, (({slots} + 248) & 0x7f) | 0x80, ({slots} + 248) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg19 offset: is saved there.
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32",
    ".cfi_escape 0x10, \\n, 3, 0x83, (({slots} + 8*\\n) & 0x7f) | 0x80, ({slots} + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 17, 3, 0x83, (({slots} + 256) & 0x7f) | 0x80, ({slots} + 256) >> 7",
    // A name for debuggers and backtraces.
    local!("injected_call"),
    "mov sp, x0",               // leaves the alternate stack for good
    "add x29, x0, #{record}",   // what frame-pointer walkers go on with
    "msr fpcr, xzr",            // the default, which Rust code counts on; the kernel left it alone
    "bl {run}",                 // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "str wzr, [x0]",            // the stack may be injected again, but not from in here
    "mov sp, x19",
    "mov x30, x20",
    "ret",                      // to the sigreturn code, with sp at the copied frame
    end!("injected_call"),
    // Resumes a frame whose callback never returned. x0 = the copied frame, x1 = where the handler
    // returns to, x2 = `active`.
    function!("resume"),
    "hint #34",
    "mov x19, x0",
    "mov x20, x1",
    "mov x0, x2",
    "b 3b",
    ".cfi_endproc",
    end!("resume"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    record = const offset_of!(Call, record),
    slots = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.x0),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry stored it in the word below.
    unsafe { (entry_sp as *const usize).sub(1).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to:
/// `mov x8, #139; svc #0`.
pub(crate) const SIGRETURN_LEN: usize = 8;
