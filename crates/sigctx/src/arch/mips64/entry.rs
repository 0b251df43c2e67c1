//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::mem::{offset_of, size_of};

use super::{FrameRecord, UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

// Where a frame at $16 has every register of the interrupted code (DWARF numbers: 0 to 31 the
// general registers, 64 and 65 hi and lo, 66 the program counter).
macro_rules! interrupted_registers {
    () => {
        "
        .cfi_return_column 66
        .cfi_escape 0x0f, 4, 0x80, (424 & 0x7f) | 0x80, 424 >> 7, 0x06
        .irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,29,30,31
        .cfi_escape 0x10, \\n, 3, 0x80, ((192 + 8*\\n) & 0x7f) | 0x80, (192 + 8*\\n) >> 7
        .endr
        .cfi_escape 0x10, 64, 3, 0x80, (704 & 0x7f) | 0x80, 704 >> 7
        .cfi_escape 0x10, 65, 3, 0x80, (736 & 0x7f) | 0x80, 736 >> 7
        .cfi_escape 0x10, 66, 3, 0x80, (768 & 0x7f) | 0x80, 768 >> 7
        "
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc) == 768);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.zero) == 192);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 192 + 8 * 29);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 424);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.ra) == 192 + 8 * 31);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.hi) == 704);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.lo) == 736);
    assert!(offset_of!(Call, frame) == 0);
    // Nothing is left for frame-pointer walkers.
    assert!(offset_of!(Call, record) < size_of::<Call>() && size_of::<FrameRecord>() == 0);
};

global_asm!(
    ".pushsection .data.rel.ro.sigctx_entry, \"aw\", @progbits",
    ".balign 8",
    concat!(symbol!("calls"), ":"),
    ".8byte {dispatch}",
    ".8byte {run}",
    ".popsection",
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".set push",
    ".set mips64r2",
    ".set noreorder",
    ".set noat",
    ".set nomacro",
    ".balign 16",
    // The handler of every signal. $4 = signal, $5 = siginfo, $6 = ucontext, $25 = this address,
    // $31 = the kernel's code that makes the sigreturn, $29 a multiple of 8.
    function!("entry"),
    ".cfi_startproc",
    "move $7, $29",             // fourth argument: where the frame begins
    "daddiu $29, $29, -48",     // 24: $16, 32: $28, 40: $31
    ".cfi_def_cfa_offset 48",
    "sd $31, 40($29)",
    ".cfi_offset 31, -8",
    "sd $28, 32($29)",          // callee-saved in this ABI
    ".cfi_offset 28, -16",
    "sd $16, 24($29)",
    ".cfi_offset 16, -24",
    "move $16, $29",
    ".cfi_def_cfa_register 16",
    concat!("lui $28, %hi(%neg(%gp_rel(", symbol!("entry"), ")))"),
    concat!("daddiu $28, $28, %lo(%neg(%gp_rel(", symbol!("entry"), ")))"),
    "daddu $28, $28, $25",
    concat!("ld $25, %got_page(", symbol!("calls"), ")($28)"),
    concat!("ld $25, %got_ofst(", symbol!("calls"), ")($25)"),
    "jalr $25",                 // dispatch
    "dins $29, $0, 0, 4",       // a multiple of 16
    "bnez $2, 2f",
    "move $29, $16",
    ".cfi_def_cfa_register 29",
    "ld $31, 40($29)",
    "ld $28, 32($29)",
    "ld $16, 24($29)",
    "jr $31",                   // a plain return from the handler
    "daddiu $29, $29, 48",
    "2:",
    concat!("ld $25, %got_page(", symbol!("calls"), " + 8)($28)"),
    concat!("ld $25, %got_ofst(", symbol!("calls"), " + 8)($25)"), // run
    "ld $17, {back}($2)",       // callee-saved, as $16: they outlive the call
    "ld $16, 0($2)",            // the copied frame
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. $2 = the record of the call (16-aligned, below the copied frame),
    // $16 = the copied frame, $17 = the sigreturn's code, $25 = run.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!(),
    local!("injected_call"),
    "move $29, $2",             // leaves the alternate stack for good
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
);

// Names carry the version, so that two versions of this crate can be linked together.
unsafe extern "C" {
    #[link_name = symbol!("entry")]
    fn entry_code(sig: c_int, info: *mut c_void, uc: *mut c_void);
    #[link_name = symbol!("end")]
    static END: u8;
}

/// The address of the handler that the kernel is given.
#[inline(always)]
pub(crate) fn entry() -> usize {
    entry_code as *const () as usize
}

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

/// The code between a frame and the code that it belongs to.
#[inline(always)]
pub(crate) fn trampoline() -> core::ops::Range<usize> {
    entry()..&raw const END as usize
}
