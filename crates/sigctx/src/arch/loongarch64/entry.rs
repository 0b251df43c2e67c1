//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use super::{SigContext, Status, UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// The pivot reads the copied frame's address from the start of the record. The unwind rules count
/// the registers from the program counter.
const _: () = {
    assert!(offset_of!(Call, frame) == 0);
    assert!(offset_of!(SigContext, zero) == offset_of!(SigContext, pc) + 8);
    assert!(offset_of!(SigContext, sp) == offset_of!(SigContext, zero) + 3 * 8);
    assert!(offset_of!(SigContext, s8) == offset_of!(SigContext, zero) + 31 * 8);
};

/// Says in the frame that the thread has floating-point registers, see the head of this file. sp = the
/// frame; costs t0 and t1. What the frame has no record of gets the default modes.
macro_rules! floats_are_used {
    () => {
        concat!(
            "ld.w $t0, $sp, {flags}\n",
            "andi $t1, $t0, {used}\n",
            "bnez $t1, 4f\n",
            "ori $t0, $t0, {used}\n",
            "st.w $t0, $sp, {flags}\n",
            "movgr2fcsr $fcsr0, $zero\n",
            "4:\n",
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
    "move $a3, $sp",            // fourth argument: where the frame begins
    "addi.d $sp, $sp, -16",
    ".cfi_adjust_cfa_offset 16",
    "st.d $ra, $sp, 8",         // `return_address` looks here
    ".cfi_offset 1, -8",
    "st.d $a2, $sp, 0",
    "pcaddu18i $ra, %call36({dispatch})",
    "jirl $ra, $ra, 0",
    "bnez $a0, 2f",
    "ld.d $a2, $sp, 0",
    "ld.d $ra, $sp, 8",
    "addi.d $sp, $sp, 16",
    ".cfi_adjust_cfa_offset -16",
    ".cfi_restore 1",
    "addi.d $t0, $sp, {ucontext}",
    "bne $a2, $t0, 1f",         // called by a handler that was put over this one: no frame here
    floats_are_used!(),
    "1:",
    "ret",                      // to the sigreturn code: a plain return from the handler
    "2:",
    ".cfi_adjust_cfa_offset 16",
    ".cfi_offset 1, -8",
    "ld.d $s0, $a0, 0",         // the copied frame; callee-saved, so it outlives the call
    "ld.d $s1, $a0, {back}",    // as is the way back
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. a0 = the record of the call (16-aligned, just below the copied
    // frame), s0 = the copied frame. From here on unwinders see the interrupted function as the
    // caller: all its registers are in the copied context, the program counter before register 0.
    // The return address has a column of its own (64, the one after the registers), because ra is
    // an interrupted register like any other.
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_return_column 64",
    // DW_CFA_def_cfa_expression, length 4, DW_OP_breg23 (s0) offset, DW_OP_deref: the value of sp.
    ".cfi_escape 0x0f, 4, 0x87, (({pc} + 32) & 0x7f) | 0x80, ({pc} + 32) >> 7, 0x06",
    // DW_CFA_expression, register, length 3, DW_OP_breg23 (s0) offset: is saved there.
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    ".cfi_escape 0x10, \\n, 3, 0x87, (({pc} + 8 + 8*\\n) & 0x7f) | 0x80, ({pc} + 8 + 8*\\n) >> 7",
    ".endr",
    ".cfi_escape 0x10, 64, 3, 0x87, ({pc} & 0x7f) | 0x80, {pc} >> 7",
    // A name for debuggers and backtraces.
    local!("injected_call"),
    "move $sp, $a0",            // leaves the alternate stack for good
    "addi.d $fp, $a0, {record} + 16", // what frame-pointer walkers go on with: the record is below
    "movgr2fcsr $fcsr0, $zero", // the default, which Rust code counts on; the kernel left it alone
    "pcaddu18i $ra, %call36({run})",
    "jirl $ra, $ra, 0",         // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "st.w $zero, $a0, 0",       // the stack may be injected again, but not from in here
    "move $sp, $s0",
    "move $ra, $s1",
    floats_are_used!(),
    "ret",                      // to the sigreturn code, with sp at the copied frame
    end!("injected_call"),
    // Resumes a frame whose callback never returned. a0 = the copied frame, a1 = where the handler
    // returns to, a2 = `active`.
    function!("resume"),
    "move $s0, $a0",
    "move $s1, $a1",
    "move $a0, $a2",
    "b 3b",
    ".cfi_endproc",
    end!("resume"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    record = const offset_of!(Call, record),
    pc = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc),
    ucontext = const UCONTEXT_OFFSET,
    flags = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.flags),
    used = const Status::USED_FP.bits(),
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
/// `li.w a7, 139; syscall 0`.
pub(crate) const SIGRETURN_LEN: usize = 8;
