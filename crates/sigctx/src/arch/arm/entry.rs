//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use super::{UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// One rule "register `$reg` (DWARF number) is saved in the frame that register `$base` points at".
macro_rules! saved_at {
    ($base:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", ((160 + 4 * ",
            $reg,
            ") & 0x7f) | 0x80, (160 + 4 * ",
            $reg,
            ") >> 7\n"
        )
    };
}

/// Where the frame that register `$base` points at has every register of the interrupted code. The
/// return address is in the place of pc (15), not of lr.
macro_rules! interrupted_registers {
    ($base:literal) => {
        concat!(
            ".cfi_return_column 15\n",
            ".cfi_escape 0x0f, 4, 0x70 + ",
            $base,
            ", ((160 + 4 * 13) & 0x7f) | 0x80, (160 + 4 * 13) >> 7, 0x06\n",
            saved_at!($base, "0"),
            saved_at!($base, "1"),
            saved_at!($base, "2"),
            saved_at!($base, "3"),
            saved_at!($base, "4"),
            saved_at!($base, "5"),
            saved_at!($base, "6"),
            saved_at!($base, "7"),
            saved_at!($base, "8"),
            saved_at!($base, "9"),
            saved_at!($base, "10"),
            saved_at!($base, "11"),
            saved_at!($base, "12"),
            saved_at!($base, "13"),
            saved_at!($base, "14"),
            saved_at!($base, "15"),
        )
    };
}

/// The offsets that the CFI above and the unwind tables below are written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r0) == 160);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r12) == 160 + 4 * 12);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.sp) == 160 + 4 * 13);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.lr) == 160 + 4 * 14);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.pc) == 160 + 4 * 15);
    // The entry loads both at once.
    assert!(offset_of!(Call, frame) == 0);
    assert!(offset_of!(Call, back) == 4);
};

// Everything is written down twice: in the tables of the EHABI, by which programs unwind, and as
// CFI for debuggers.
global_asm!(
    ".arm",                     // whatever Rust is compiled to; its functions say it themselves
    ".cfi_sections .debug_frame",
    ".pushsection .text.sigctx_entry, \"ax\", %progbits",
    ".balign 4",
    // The handler of every signal. r0 = signal, r1 = siginfo, r2 = ucontext, lr = the restorer's
    // address, sp = where the frame begins (8-aligned).
    function!("entry"),
    ".fnstart",
    ".cfi_startproc",
    "push {{r4, lr}}",          // `return_address` reads lr there; r4 keeps sp 8-aligned
    ".save {{r4, lr}}",
    ".cfi_def_cfa_offset 8",
    ".cfi_offset r4, -8",
    ".cfi_offset lr, -4",
    "add r3, sp, #8",           // fourth argument: where the frame begins
    "bl {dispatch}",
    "cmp r0, #0",
    "popeq {{r4, pc}}",         // to the restorer: a plain return from the handler
    "ldm r0, {{r4, r5}}",       // the copied frame, the restorer; callee-saved, so they outlive the call
    ".cfi_endproc",
    ".fnend",
    end!("entry"),
    // Runs on into the pivot. r0 = the record of the call, r4 = the copied frame, r5 = the restorer.
    ".fnstart",
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("4"),
    // The same for the EHABI: sp = r4; sp += 160; pop r0-r3; pop r4-r15, which sets sp and pc.
    ".unwind_raw 0, 0x94, 0x27, 0xb1, 0x0f, 0x8f, 0xff",
    local!("injected_call"),
    "mov sp, r0",               // leaves the alternate stack for good; r0 is the argument
    "add r11, r0, #{record}",   // what frame-pointer walkers go on with, in ARM code
    "mov r7, r11",              // and in Thumb code
    // Rounding and the rest by default, which Rust code counts on: the kernel left them alone. Without
    // floating point in the ABI there may be no such register.
    #[cfg(target_abi = "eabihf")]
    "mov r1, #0",
    #[cfg(target_abi = "eabihf")]
    "vmsr fpscr, r1",
    "bl {run}",                 // returns the address of the stack's `active` word
    "3:",
    "mov r1, #0",
    "str r1, [r0]",             // the stack may be injected again, but not from in here
    "mov sp, r4",
    "bx r5",                    // to the restorer, with sp at the copied frame
    end!("injected_call"),
    // Resumes a frame whose callback never returned. r0 = the copied frame, r1 = the restorer,
    // r2 = `active`.
    function!("resume"),
    "mov r4, r0",
    "mov r5, r1",
    "mov r0, r2",
    "b 3b",
    ".cfi_endproc",
    ".fnend",
    end!("resume"),
    // rt_sigreturn, word for word as in glibc: gdb knows a signal frame by these two instructions.
    // The no-op is for unwinders, which look up the instruction before a return address.
    ".fnstart",
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("13"),
    ".save {{r0-r15}}",
    ".pad #160",
    "nop",
    function!("restorer"),
    "mov r7, #173",
    "svc #0",
    "udf #0",
    ".cfi_endproc",
    ".fnend",
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
    let slot = entry_sp.wrapping_sub(size_of::<usize>());
    // SAFETY: the entry pushed it.
    unsafe { (slot as *const usize).read() }
}

pub(crate) const SIGRETURN_LEN: usize = 8;
