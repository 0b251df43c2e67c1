//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use super::{UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// The pivot reads the copied frame's address from the start of the record.
const _: () = assert!(offset_of!(Call, frame) == 0);

/// The entry and the pivot use them without a question.
const _: () = assert!(cfg!(target_feature = "d"), "sigctx needs the D extension of RISC-V");

/// Loads what the sigreturn may lose, see the head of this file. sp = the frame; costs t0. What runs
/// after it, to the sigreturn, must leave these registers alone.
macro_rules! float_registers_of_the_frame {
    () => {
        concat!(
            ".option push\n",
            ".option arch, +d\n",
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            "fld f\\n, {floats} + 8*\\n(sp)\n",
            ".endr\n",
            "lw t0, {fcsr}(sp)\n",
            "csrw fcsr, t0\n",
            ".option pop\n",
        )
    };
}

global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. a0 = signal, a1 = siginfo, a2 = ucontext, ra = the sigreturn
    // code, sp = the frame, 16-aligned.
    function!("entry"),
    ".cfi_startproc",
    "mv a3, sp",                // fourth argument: where the frame begins
    "addi sp, sp, -16",
    ".cfi_adjust_cfa_offset 16",
    "sd ra, 8(sp)",             // `return_address` looks here
    ".cfi_offset ra, -8",
    "sd a2, 0(sp)",
    "call {dispatch}",
    "bnez a0, 2f",
    "ld a2, 0(sp)",
    "ld ra, 8(sp)",
    "addi sp, sp, 16",
    ".cfi_adjust_cfa_offset -16",
    ".cfi_restore ra",
    "addi t0, sp, {ucontext}",
    "bne a2, t0, 1f",           // called by a handler that was put over this one: no frame here
    float_registers_of_the_frame!(),
    "1:",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 16",
    ".cfi_offset ra, -8",
    "ld s1, 0(a0)",             // the copied frame; callee-saved, so it outlives the call
    "ld s2, {back}(a0)",        // as is the way back
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. a0 = the record of the call (16-aligned, just below the copied
    // frame), s1 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context, the program counter in the place of
    // register 0. The return address has a column of its own (64, the psABI's for signal frames),
    // because ra is an interrupted register like any other.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 64",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg9 (s1) offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x79, (({slots} + 16) & 0x7f) | 0x80, ({slots} + 16) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg9 (s1) offset: is saved there.
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".cfi_escape 0x10, \\n, 3, 0x79, (({slots} + 8*\\n) & 0x7f) | 0x80, ({slots} + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 64, 3, 0x79, ({slots} & 0x7f) | 0x80, {slots} >> 7",
    // A name for debuggers and backtraces.
    local!("injected_call"),
    "mv sp, a0",                // leaves the alternate stack for good
    "addi s0, a0, {record} + 16", // what frame-pointer walkers go on with: the record is below it
    "csrw fcsr, zero",          // the default, which Rust code counts on; the kernel left it alone
    "call {run}",               // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "sw zero, 0(a0)",           // the stack may be injected again, but not from in here
    "mv sp, s1",
    "mv ra, s2",
    float_registers_of_the_frame!(),
    "ret",                      // to the sigreturn code, with sp at the copied frame
    end!("injected_call"),
    // Resumes a frame whose callback never returned. a0 = the copied frame, a1 = where the handler
    // returns to, a2 = `active`.
    function!("resume"),
    "mv s1, a0",
    "mv s2, a1",
    "mv a0, a2",
    "j 3b",
    ".cfi_endproc",
    end!("resume"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    record = const offset_of!(Call, record),
    slots = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc),
    ucontext = const UCONTEXT_OFFSET,
    floats = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.f),
    fcsr = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.fcsr),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry has put it there.
    unsafe { ((entry_sp - size_of::<usize>()) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to:
/// `li a7, 139; ecall`.
pub(crate) const SIGRETURN_LEN: usize = 8;
