//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::offset_of;

use super::{FrameRecord, Ucontext};
use crate::inject::Call;

/// One rule "register `$reg` (DWARF number) is saved at the word `$word` of the registers in the
/// ucontext that r29 points to": `DW_CFA_expression, reg, length 3, DW_OP_breg29, SLEB128 offset in
/// two bytes`.
macro_rules! saved_at {
    ($word:expr, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x8d, ((232 + 8*",
            $word,
            ") & 0x7f) | 0x80, (232 + 8*",
            $word,
            ") >> 7\n"
        )
    };
}

/// Where the condition register is in its word.
#[cfg(target_endian = "little")]
macro_rules! condition {
    () => {
        "38"
    };
}
/// Where the condition register is in its word.
#[cfg(target_endian = "big")]
macro_rules! condition {
    () => {
        "38 + 4"
    };
}

/// Where a `ucontext` at r29 has every register of the interrupted code. The caller's stack pointer
/// (CFA) is the value in the slot of r1: `DW_CFA_def_cfa_expression, length 4, DW_OP_breg29 offset,
/// DW_OP_deref`. The program counter has the number 67, as in the kernel's own rules: 65, lr, has a
/// value that is alive.
macro_rules! interrupted_registers {
    () => {
        concat!(
            ".cfi_return_column 67\n",
            ".cfi_escape 0x0f, 4, 0x8d, (240 & 0x7f) | 0x80, 240 >> 7, 0x06\n",
            saved_at!("0", "0"),
            saved_at!("2", "2"),
            saved_at!("3", "3"),
            saved_at!("4", "4"),
            saved_at!("5", "5"),
            saved_at!("6", "6"),
            saved_at!("7", "7"),
            saved_at!("8", "8"),
            saved_at!("9", "9"),
            saved_at!("10", "10"),
            saved_at!("11", "11"),
            saved_at!("12", "12"),
            saved_at!("13", "13"),
            saved_at!("14", "14"),
            saved_at!("15", "15"),
            saved_at!("16", "16"),
            saved_at!("17", "17"),
            saved_at!("18", "18"),
            saved_at!("19", "19"),
            saved_at!("20", "20"),
            saved_at!("21", "21"),
            saved_at!("22", "22"),
            saved_at!("23", "23"),
            saved_at!("24", "24"),
            saved_at!("25", "25"),
            saved_at!("26", "26"),
            saved_at!("27", "27"),
            saved_at!("28", "28"),
            saved_at!("29", "29"),
            saved_at!("30", "30"),
            saved_at!("31", "31"),
            saved_at!("36", "65"), // lr
            saved_at!("35", "66"), // ctr
            saved_at!("32", "67"), // nip
            // Every field of the condition register has a number; the register is saved as one.
            saved_at!(condition!(), "68"),
            saved_at!(condition!(), "69"),
            saved_at!(condition!(), "70"),
            saved_at!(condition!(), "71"),
            saved_at!(condition!(), "72"),
            saved_at!(condition!(), "73"),
            saved_at!(condition!(), "74"),
            saved_at!(condition!(), "75"),
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(offset_of!(Ucontext, mcontext.r0) == 232);
    assert!(offset_of!(Ucontext, mcontext.r1) == 240);
    assert!(offset_of!(Ucontext, mcontext.r31) == 232 + 8 * 31);
    assert!(offset_of!(Ucontext, mcontext.nip) == 232 + 8 * 32);
    assert!(offset_of!(Ucontext, mcontext.ctr) == 232 + 8 * 35);
    assert!(offset_of!(Ucontext, mcontext.lr) == 232 + 8 * 36);
    assert!(offset_of!(Ucontext, mcontext.cr) == 232 + 8 * 38);
    // The pivot reads the copied frame's address from the start of the record.
    assert!(offset_of!(Call, frame) == 0);
    // A back chain's words: the frame above, the condition register, the return address.
    assert!(offset_of!(FrameRecord, chain) == 0);
    assert!(offset_of!(FrameRecord, pc) == 16);
};

// A frame for a callee has 112 bytes: a header of 48 and the home of eight arguments. ELF V2 would
// be content with less.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    global!("begin"),
    // The handler of every signal. r3 = signal, r4 = siginfo, r5 = ucontext, lr = sigreturn code,
    // r1 = the caller's frame that the kernel made up.
    function!("entry"),
    ".cfi_startproc",
    table_of_contents!("entry"),
    "mflr %r0",
    "std %r0, 16(%r1)",           // in the caller's frame, where functions save it
    ".cfi_offset 65, 16",
    "mr %r6, %r1",                // fourth argument: where the frame begins
    "stdu %r1, -112(%r1)",
    ".cfi_def_cfa_offset 112",
    "bl {dispatch}",
    "nop",                      // where a linker that goes through a stub restores r2
    "cmpdi %r3, 0",
    "bne 2f",
    "addi %r1, %r1, 112",
    ".cfi_def_cfa_offset 0",
    "ld %r0, 16(%r1)",
    "mtlr %r0",
    ".cfi_restore 65",
    "blr",                      // a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 112",
    ".cfi_offset 65, 16",
    "ld %r31, 0(%r3)",            // the copied frame; these three outlive the call
    "ld %r30, {back}(%r3)",       // the sigreturn code
    "ld %r29, {context}(%r3)",    // the copied context
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. r3 = the record of the call (16-aligned, just below the copied
    // frame). From here on unwinders see the interrupted function as the caller: all its registers
    // are in the copied ucontext at r29.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!(),
    // A name for debuggers and backtraces: of the code, in both ABIs.
    local!("injected_call"),
    concat!(".L.", symbol!("injected_call"), ":"),
    "addi %r4, %r3, {record}",
    "std %r4, -112(%r3)",         // the back chain, first: it must lead on at every instruction
    "addi %r1, %r3, -112",        // leaves the alternate stack for good
    // The default floating-point modes, which Rust code counts on. The kernel has set them, an
    // emulator may not have.
    "li %r0, 0",
    "std %r0, 48(%r1)",           // the callee's home for a parameter: free so far
    "lfd %f0, 48(%r1)",
    "mtfsf 255, %f0",
    "bl {run}",                 // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "nop",
    "li %r0, 0",
    "stw %r0, 0(%r3)",            // the stack may be injected again, but not from in here
    "mr %r1, %r31",
    "mtlr %r30",
    "blr",                      // the return that belongs to the kernel's call of the handler
    ".cfi_endproc",
    end!("injected_call"),
    // Resumes a frame whose callback never returned. r3 = the copied frame, r4 = the sigreturn
    // code, r5 = `active`. It has no caller: unwinders stop here.
    function!("resume"),
    ".cfi_startproc",
    ".cfi_undefined 65",
    "li %r0, 0",
    "stw %r0, 0(%r5)",
    "mr %r1, %r3",
    "mtlr %r4",
    "blr",
    ".cfi_endproc",
    end!("resume"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    context = const offset_of!(Call, context),
    record = const offset_of!(Call, record),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry saved it there.
    unsafe { ((entry_sp + 16) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to: an
/// addition to r1, a number for r0, `sc`. An emulator's has no addition.
pub(crate) const SIGRETURN_LEN: usize = 12;
