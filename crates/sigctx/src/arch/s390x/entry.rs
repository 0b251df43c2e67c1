//! What the kernel enters, and the ways back out of a frame: entry, pivot, resume or restorer.

use core::arch::global_asm;
use core::mem::offset_of;

use super::{UCONTEXT_OFFSET, Ucontext};
use crate::inject::Call;

/// One rule "register `$reg` (DWARF number) is saved at register `$base` + `$offset`":
/// `DW_CFA_expression, reg, length 3, DW_OP_breg<base>, SLEB128 offset in two bytes`.
macro_rules! saved_at {
    ($base:literal, $offset:literal, $reg:literal) => {
        concat!(
            ".cfi_escape 0x10, ",
            $reg,
            ", 3, 0x70 + ",
            $base,
            ", (",
            $offset,
            " & 0x7f) | 0x80, ",
            $offset,
            " >> 7\n"
        )
    };
}

/// Where a frame at register `$base` has every register of the interrupted code. The CFA is 160
/// above the caller's stack pointer, the value in the slot of r15: `DW_CFA_def_cfa_expression,
/// length 7, DW_OP_breg<base> offset, DW_OP_deref, DW_OP_plus_uconst 160`.
///
/// The program counter gets a column of its own, for r14 has its own value. It is the one that
/// libgcc uses for the kernel's frames: 32, a control register's.
macro_rules! interrupted_registers {
    ($base:literal) => {
        concat!(
            ".cfi_return_column 32\n",
            ".cfi_escape 0x0f, 7, 0x70 + ",
            $base,
            ", (472 & 0x7f) | 0x80, 472 >> 7, 0x06, 0x23, 0xa0, 0x01\n",
            saved_at!($base, "352", "0"),
            saved_at!($base, "360", "1"),
            saved_at!($base, "368", "2"),
            saved_at!($base, "376", "3"),
            saved_at!($base, "384", "4"),
            saved_at!($base, "392", "5"),
            saved_at!($base, "400", "6"),
            saved_at!($base, "408", "7"),
            saved_at!($base, "416", "8"),
            saved_at!($base, "424", "9"),
            saved_at!($base, "432", "10"),
            saved_at!($base, "440", "11"),
            saved_at!($base, "448", "12"),
            saved_at!($base, "456", "13"),
            saved_at!($base, "464", "14"),
            saved_at!($base, "472", "15"),
            saved_at!($base, "344", "32"),
        )
    };
}

/// The offsets that the CFI above is written with.
const _: () = {
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.psw_addr) == 344);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r0) == 352);
    assert!(UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.r15) == 472);
    // The pivot loads both at once from the start of the record.
    assert!(offset_of!(Call, frame) == 0 && offset_of!(Call, back) == 8);
};

/// Where in its caller's frame a function saves r14, and r15 after it.
const SAVED_LINK: usize = 112;
/// Where in its caller's frame a function may save r4.
const SAVED_CONTEXT: usize = 32;

/// Loads what the sigreturn may lose, see the head of this file. r15 = the frame. The thread
/// pointer, in a0 and a1, is among it: the frame's is what the interrupted code goes on with. What
/// runs after this, to the sigreturn, must leave these registers alone, and use no thread-local
/// storage.
macro_rules! access_registers_of_the_frame {
    () => {
        "lam %a0, %a15, {access}(%r15)"
    };
}

// The three pieces lie together, so that one range of addresses tells whether an interrupted
// thread is on its way between a frame and the code that it belongs to.
global_asm!(
    ".pushsection .text.sigctx_entry, \"ax\", @progbits",
    ".balign 16",
    // The handler of every signal. r2 = signal, r3 = siginfo, r4 = ucontext, r14 = the restorer's
    // address, r15 = the frame, which begins with a save area.
    function!("entry"),
    ".cfi_startproc",
    "stmg %r14, %r15, {link}(%r15)", // where `return_address` finds it
    ".cfi_offset %r14, {link} - 160",
    ".cfi_offset %r15, {link} - 152",
    "stg %r4, {context}(%r15)",
    // The kernel leaves the interrupted code's program mask in force. Compiled code relies on
    // overflows that do not trap.
    "lghi %r0, 0",
    "spm %r0",
    "lgr %r5, %r15",            // fourth argument: where the frame begins
    "aghi %r15, -160",          // the callee's save area
    ".cfi_adjust_cfa_offset 160",
    "stg %r5, 0(%r15)",         // back chain
    "brasl %r14, {dispatch}",
    "ltgr %r2, %r2",
    "jne 2f",
    "lmg %r14, %r15, 160 + {link}(%r15)",
    ".cfi_restore %r14",
    ".cfi_restore %r15",
    ".cfi_def_cfa_offset 160",
    "la %r1, {ucontext}(%r15)",
    "cg %r1, {context}(%r15)",
    "jne 1f",                   // called by a handler that was put over this one: no frame here
    access_registers_of_the_frame!(),
    "1:",
    "br %r14",                  // to the restorer: a plain return from the handler
    "2:",
    ".cfi_def_cfa_offset 320",
    ".cfi_offset %r14, {link} - 160",
    ".cfi_offset %r15, {link} - 152",
    "lmg %r6, %r7, 0(%r2)",     // the copied frame, and where to return to; callee-saved
    ".cfi_endproc",
    end!("entry"),
    // Runs on into the pivot. r2 = the record of the call (16-aligned, just below the copied
    // frame), r6 = the copied frame, r7 = the restorer's address. From here on unwinders see the
    // interrupted function as the caller: all its registers are in the copied frame.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("6"),
    // A name for debuggers and backtraces.
    local!("injected_call"),
    "lay %r15, -160(%r2)",      // leaves the alternate stack for good
    "la %r1, {record}(%r2)",
    "stg %r1, 0(%r15)",         // back chain: what walkers go on with
    "lghi %r0, 0",
    "sfpc %r0",                 // the default, which Rust code counts on; the kernel left it alone
    "brasl %r14, {run}",        // returns the address of the stack's `active` word
    // An unwinder looks for the return address's rules: this must not be the last instruction.
    "3:",
    "mvhi 0(%r2), 0",           // the stack may be injected again, but not from in here
    "lgr %r15, %r6",
    access_registers_of_the_frame!(),
    "br %r7",                   // to the restorer, with r15 at the copied frame
    end!("injected_call"),
    // Resumes a frame whose callback never returned. r2 = the copied frame, r3 = where the handler
    // returns to, r4 = `active`.
    function!("resume"),
    "lgr %r6, %r2",
    "lgr %r7, %r3",
    "lgr %r2, %r4",
    "j 3b",
    ".cfi_endproc",
    end!("resume"),
    // rt_sigreturn, as the kernel itself writes it: gdb and libgcc know a signal frame by these two
    // bytes. The no-op is for unwinders, which look up the byte before a return address.
    ".cfi_startproc",
    ".cfi_signal_frame",
    interrupted_registers!("15"),
    "nopr %r7",
    function!("restorer"),
    "svc 173",
    ".short 0",                 // undefined: nothing comes back here
    ".cfi_endproc",
    end!("restorer"),
    global!("end"),
    ".popsection",
    dispatch = sym crate::handler::dispatch,
    run = sym crate::inject::run,
    record = const offset_of!(Call, record),
    link = const SAVED_LINK,
    context = const SAVED_CONTEXT,
    ucontext = const UCONTEXT_OFFSET,
    access = const UCONTEXT_OFFSET + offset_of!(Ucontext, mcontext.a0),
);

/// Where the handler returns to, by the stack pointer with which it was entered.
///
/// # Safety
///
/// It is the stack pointer of an entry that has not returned.
#[inline(always)]
pub(crate) unsafe fn return_address(entry_sp: usize) -> usize {
    // SAFETY: the entry saved it.
    unsafe { ((entry_sp + SAVED_LINK) as *const usize).read() }
}

/// Bytes of the code at [`return_address`] that lie between a frame and what it belongs to.
pub(crate) const SIGRETURN_LEN: usize = 2;
