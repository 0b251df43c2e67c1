//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use super::abi::{
    HOME, IN_SLOT, add_const, address, enter, global_pointer, load, load_page, low_part, set_isa,
};
use super::{FrameRecord, UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

// Where a frame at $16 has every register of the interrupted code (DWARF numbers: 0 to 31 the
// general registers, 64 and 65 hi and lo). The offsets, two bytes of LEB128 each, are where in a 64-bit
// slot the register is.
// The return address is none of the general registers: the interrupted function's own $31 is one of
// the values that unwinders need. Column 66 stands for it, as in libgcc's unwinder.
macro_rules! interrupted_registers {
    () => {
        "
        .cfi_return_column 66
        .cfi_escape 0x0f, 4, 0x80, (({general} + 8*29) & 0x7f) | 0x80, ({general} + 8*29) >> 7, 0x06
        .irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,29,30,31
        .cfi_escape 0x10, \\n, 3, 0x80, (({general} + 8*\\n) & 0x7f) | 0x80, ({general} + 8*\\n) >> 7
        .endr
        .cfi_escape 0x10, 64, 3, 0x80, ({hi} & 0x7f) | 0x80, {hi} >> 7
        .cfi_escape 0x10, 65, 3, 0x80, ({lo} & 0x7f) | 0x80, {lo} >> 7
        .cfi_escape 0x10, 66, 3, 0x80, ({pc} & 0x7f) | 0x80, {pc} >> 7
        "
    };
}

/// Where in a frame the register is whose slot is at `slot` in the context.
const fn in_frame(slot: usize) -> usize {
    let at = UCONTEXT_OFFSET + slot + IN_SLOT;
    assert!(at >= 1 << 7 && at < 1 << 13, "the CFI above has two bytes for it");
    at
}

const _: () = {
    in_frame(offset_of!(Ucontext, mcontext.ra));
    assert!(offset_of!(Ucontext, mcontext.sp) == offset_of!(Ucontext, mcontext.zero) + 8 * 29);
    assert!(offset_of!(Ucontext, mcontext.ra) == offset_of!(Ucontext, mcontext.zero) + 8 * 31);
    assert!(offset_of!(Call, frame) == 0);
    // Nothing is left for frame-pointer walkers.
    assert!(offset_of!(Call, record) < size_of::<Call>() && size_of::<FrameRecord>() == 0);
};

// The functions' addresses are in a table: how the address of a function is found depends on
// whether its symbol is a global one, which is the compiler's choice; the table's is not.
global_asm!(
    ".pushsection .data.rel.ro.sigctx_entry, \"aw\", @progbits",
    ".balign 8",
    concat!(symbol!("calls"), ":"),
    address!("{dispatch}"),
    address!("{run}"),
    ".popsection",
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".set push",
    ".set noreorder",           // the instruction after a jump is executed before it
    set_isa!(),
    ".set noat",
    ".set nomacro",
    ".balign 16",
    enter!(),
    // Runs on into the pivot. $2 = the record of the call (16-aligned, below the copied frame),
    // $16 = the copied frame, $17 = the sigreturn's code, $25 = run.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!(),
    local!("injected_call"),
    add_const!("$29, $2, -{home}"), // leaves the alternate stack for good
    // The default, which Rust code counts on; the kernel left it alone. What NaNs look like (NAN2008,
    // ABS2008) stays.
    "cfc1 $8, $31",
    "lui $9, 0xc",
    "and $8, $8, $9",
    "ctc1 $8, $31",
    "jalr $25",                 // returns the address of the stack's `active` word
    "move $4, $2",
    "3:",
    "sw $0, 0($2)",             // the stack may be injected again, but not from in here
    "move $31, $17",
    "jr $31",                   // to the sigreturn, with $29 at the copied frame
    "move $29, $16",
    end!("injected_call"),
    // Resumes a frame whose callback never returned. $4 = the copied frame, $5 = the sigreturn's
    // code, $6 = `active`.
    function!("resume"),
    "move $16, $4",
    "move $17, $5",
    "b 3b",
    "move $2, $6",
    ".cfi_endproc",
    end!("resume"),
    global!("end"),
    ".set pop",
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    back = const offset_of!(Call, back),
    home = const HOME,
    general = const in_frame(offset_of!(Ucontext, mcontext.zero)),
    hi = const in_frame(offset_of!(Ucontext, mcontext.hi)),
    lo = const in_frame(offset_of!(Ucontext, mcontext.lo)),
    pc = const in_frame(offset_of!(Ucontext, mcontext.pc)),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    let stored = (entry_sp - size_of::<usize>()) as *const usize;
    // SAFETY: the entry stored it there.
    unsafe { stored.read() }
}

/// `li $2, number; syscall`.
pub(crate) const SIGRETURN_LEN: usize = 8;
