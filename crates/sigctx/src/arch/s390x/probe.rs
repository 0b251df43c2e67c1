//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! Which vectors there are is looked up at run time: none (f0-15), or v0-31 since z13. Since z14
//! there is a jump through memory; before it the loop's needs a register, and so does the
//! trampoline's. It is r1, which holds no pattern there.
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::{asm, global_asm};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{
    RawAction, Reg, SigContext, SigContextExt, SigInfoHead, SignalStack, Status, Ucontext,
    UcontextExt,
};
use crate::probe::Instruction;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "s390x";

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    SigContextExt::LAYOUT,
    UcontextExt::LAYOUT,
];

/// What a C program includes to have the types that [`LAYOUTS`] names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The general registers, in the order of the table: all but the stack pointer, which points at
/// the table.
const GENERAL: [Reg; 15] = [
    Reg::R0,
    Reg::R1,
    Reg::R2,
    Reg::R3,
    Reg::R4,
    Reg::R5,
    Reg::R6,
    Reg::R7,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
];

/// The access registers but the two that are the thread pointer.
const ACCESS: [Reg; 14] = [
    Reg::A2,
    Reg::A3,
    Reg::A4,
    Reg::A5,
    Reg::A6,
    Reg::A7,
    Reg::A8,
    Reg::A9,
    Reg::A10,
    Reg::A11,
    Reg::A12,
    Reg::A13,
    Reg::A14,
    Reg::A15,
];

/// Every register that code can hold a value in, once.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    general: [u64; 15],
    /// Condition code and program mask, where `ipm` puts them.
    flags: u64,
    /// The left halves of the first sixteen are f0 to f15.
    vectors: [[u64; 2]; 32],
    fpc: u32,
    access: [u32; 14],
}

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
/// what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    /// Where the loop's last instruction jumps to.
    next: AtomicUsize,
    host_sp: u64,
    host_floats: [u64; 8],
    host_fpc: u32,
    host_flags: u32,
    level: u32,
}

/// Condition code and program mask: what a program can set, and a sigreturn restores.
const FLAGS: u64 = 0x3f00_0000;
/// Of the floating-point control: flags, exception code, decimal rounding, and binary rounding
/// but for the modes that only later machines have. Not the masks: a set one makes exceptions
/// trap.
const FPC: u32 = 0x00f8_ff73;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in given.general.iter_mut().chain(given.vectors.as_flattened_mut()) {
            *value = next();
        }
        for value in &mut given.access {
            *value = next() as u32;
        }
        given.flags = next() & FLAGS;
        given.fpc = next() as u32 & FPC;
        self.level = level() as u32;
    }

    /// Calls `report` for every word that differs: register, part, what was given and found.
    pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
        let (given, found) = (&self.given, &self.found);
        let mut check = |name, part, given: u64, found: u64| {
            if given != found {
                report(name, part, given, found);
            }
        };
        for (i, reg) in GENERAL.iter().enumerate() {
            if *reg != Reg::R1 || level() == Level::Indirect {
                check(reg.name(), 0, given.general[i], found.general[i]);
            }
        }
        check(Reg::Pswm.name(), 0, given.flags, found.flags);
        check(Reg::Fpc.name(), 0, given.fpc.into(), found.fpc.into());
        for (i, reg) in ACCESS.iter().enumerate() {
            check(reg.name(), 0, given.access[i].into(), found.access[i].into());
        }
        let (vectors, words) = if level() == Level::Float { (16, 1) } else { (32, 2) };
        for i in 0..vectors {
            for word in 0..words {
                check("vector", 2 * i + word, given.vectors[i][word], found.vectors[i][word]);
            }
        }
    }

    /// The word that the loop jumps through.
    pub(crate) fn next(&self) -> &AtomicUsize {
        &self.next
    }
}

/// What the CPU and the kernel have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Level {
    /// f0 to f15.
    Float = 0,
    /// v0 to v31.
    Vector = 1,
    /// The same, and a jump through memory.
    Indirect = 2,
}

/// The [`Level`], once it is known. The trampoline reads it.
static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Float,
        1 => Level::Vector,
        2 => Level::Indirect,
        _ => {
            let level = detect();
            LEVEL.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

fn detect() -> Level {
    /// `HWCAP_S390_VXRS`: CPU and kernel have vectors.
    const VXRS: u64 = 1 << 11;
    /// Facility 58, miscellaneous-instruction-extensions 2. Facilities are counted from the left.
    const INDIRECT: u64 = 1 << (63 - 58);

    // SAFETY: reads the auxiliary vector.
    if unsafe { libc::getauxval(libc::AT_HWCAP) } & VXRS == 0 {
        return Level::Float;
    }
    let mut facilities = 0u64;
    // SAFETY: stores one double word, as many as r0 says beyond the first.
    unsafe {
        asm!(
            "stfle 0({})",
            in(reg_addr) &raw mut facilities,
            inlateout("r0") 0u64 => _,
            options(nostack),
        );
    }
    if facilities & INDIRECT == 0 { Level::Vector } else { Level::Indirect }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `aghi %r15,-168` and `lay %r15,-168(%r15)`.
    let reserved = line.split_once("\t%r15,-").and_then(|(before, number)| {
        let subtracts = ["aghi", "agfi", "lay"].iter().any(|name| before.ends_with(name));
        let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().filter(|_| subtracts)
    });
    let relocations = ["R_390_PLT", "R_390_GOT", "R_390_TLS"];
    Instruction {
        system_call: line.contains("\tsvc\t"),
        outside: line.contains("\tbrasl\t") || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains(",%a0") || line.contains(",%a1"),
        stack: reserved.unwrap_or_default(),
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Float => "r0, r2-14, condition code, program mask, fpc, f0-15, a2-15",
        Level::Vector => "r0, r2-14, condition code, program mask, fpc, v0-31, a2-15",
        Level::Indirect => "r0-14, condition code, program mask, fpc, v0-31, a2-15",
    }
}

// Between `loop` and `exit` every register holds its pattern, and r15 points at the table. There
// are two loops: one that jumps through memory, and one that goes out of the window to jump. What
// is assembled for later machines is run on those alone.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".machine z14",
    ".balign 64",
    global!("probe_spin"),   // r2 = table
    "stmg %r6, %r15, 48(%r15)",
    "stg %r15, {host_sp}(%r2)",
    ".irp n,8,9,10,11,12,13,14,15",
    "std %f\\n, {host_floats}+8*\\n-64(%r2)",
    ".endr",
    "stfpc {host_fpc}(%r2)",
    "ipm %r0",
    "st %r0, {host_flags}(%r2)",
    "l %r1, {level}(%r2)",
    "cije %r1, 0, 21f",
    "vlm %v0, %v15, {given_vectors}(%r2)",
    "vlm %v16, %v31, {given_vectors}+256(%r2)",
    "j 22f",
    "21:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ld %f\\n, {given_vectors}+16*\\n(%r2)",
    ".endr",
    "22:",
    "lfpc {given_fpc}(%r2)",
    "lam %a2, %a15, {given_access}(%r2)",
    "lgr %r15, %r2",
    "lg %r0, {given_flags}(%r2)",
    "spm %r0",                  // nothing from here to the end changes the condition code
    "cijne %r1, 2, 23f",
    "lmg %r0, %r14, 0(%r15)",
    global!("probe_loop"),
    ".rept 64",
    "nopr %r7",
    "la %r1, 1(%r1)",
    "lay %r1, -1(%r1)",
    "la %r13, 1(%r13)",
    "lay %r13, -1(%r13)",
    ".endr",
    "bi {next}(%r15)",
    "23:",
    "lmg %r0, %r14, 0(%r15)",
    global!("probe_direct_loop"),
    ".rept 64",
    "nopr %r7",
    "la %r12, 1(%r12)",
    "lay %r12, -1(%r12)",
    "la %r13, 1(%r13)",
    "lay %r13, -1(%r13)",
    ".endr",
    "j 27f",
    global!("probe_exit"),
    "stmg %r0, %r14, {found}(%r15)",
    "lgr %r2, %r15",
    "lghi %r0, 0",
    "ipm %r0",
    "stg %r0, {found_flags}(%r2)",
    "l %r0, {host_flags}(%r2)",
    "spm %r0",
    "stfpc {found_fpc}(%r2)",
    "stam %a2, %a15, {found_access}(%r2)",
    "l %r1, {level}(%r2)",
    "cije %r1, 0, 24f",
    "vstm %v0, %v15, {found_vectors}(%r2)",
    "vstm %v16, %v31, {found_vectors}+256(%r2)",
    "j 25f",
    "24:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "std %f\\n, {found_vectors}+16*\\n(%r2)",
    ".endr",
    "25:",
    "lfpc {host_fpc}(%r2)",
    ".irp n,8,9,10,11,12,13,14,15",
    "ld %f\\n, {host_floats}+8*\\n-64(%r2)",
    ".endr",
    "lg %r15, {host_sp}(%r2)",
    "lmg %r6, %r15, 48(%r15)",
    "br %r14",
    // Out of the window: from its first instruction on r1 is needed.
    "27:",
    "lg %r1, {next}(%r15)",
    "br %r1",
    // Writes something else into everything. r2 = level. The frame: 160 a save area, 160 f8-15,
    // 224 fpc, 228 program mask, 232 a word.
    global!("probe_clobber"),
    "stmg %r6, %r15, 48(%r15)",
    "aghi %r15, -240",
    ".irp n,8,9,10,11,12,13,14,15",
    "std %f\\n, 160+8*\\n-64(%r15)",
    ".endr",
    "stfpc 224(%r15)",
    "ipm %r0",
    "st %r0, 228(%r15)",
    "cije %r2, 0, 31f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vone %v\\n",
    ".endr",
    "j 32f",
    "31:",
    "lghi %r1, -1",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ldgr %f\\n, %r1",
    ".endr",
    "32:",
    "llihf %r1, 0xaaaaaaaa",
    "oilf %r1, 0xaaaaaaaa",
    ".irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "sar %a\\n, %r1",
    ".endr",
    "llilf %r0, 0x00f8ff73",    // every flag, rounding the other way
    "st %r0, 232(%r15)",
    "lfpc 232(%r15)",
    ".irp n,0,2,3,4,5,6,7,8,9,10,11,12,13,14",
    "lgr %r\\n, %r1",
    ".endr",
    "llilf %r0, 0x3f000000",    // the condition code 3, and every trap
    "spm %r0",
    // Back to what the ABI promises the caller: program mask, and of the floating-point control
    // the masks and the rounding. Its flags and the exception code stay as they are now.
    "l %r0, 228(%r15)",
    "oilf %r0, 0x30000000",     // but the condition code
    "spm %r0",
    "l %r0, 224(%r15)",
    "nilf %r0, 0xff000077",
    "oilf %r0, 0x00f8ff00",
    "st %r0, 232(%r15)",
    "lfpc 232(%r15)",
    ".irp n,8,9,10,11,12,13,14,15",
    "ld %f\\n, 160+8*\\n-64(%r15)",
    ".endr",
    "lmg %r6, %r15, 240+48(%r15)",
    "br %r14",
    ".popsection",
    given_flags = const offset_of!(Table, given.flags),
    given_fpc = const offset_of!(Table, given.fpc),
    given_access = const offset_of!(Table, given.access),
    given_vectors = const offset_of!(Table, given.vectors),
    found = const offset_of!(Table, found.general),
    found_flags = const offset_of!(Table, found.flags),
    found_fpc = const offset_of!(Table, found.fpc),
    found_access = const offset_of!(Table, found.access),
    found_vectors = const offset_of!(Table, found.vectors),
    next = const offset_of!(Table, next),
    host_sp = const offset_of!(Table, host_sp),
    host_floats = const offset_of!(Table, host_floats),
    host_fpc = const offset_of!(Table, host_fpc),
    host_flags = const offset_of!(Table, host_flags),
    level = const offset_of!(Table, level),
);

/// The loop reads the general registers from the table's start.
const _: () = assert!(offset_of!(Table, given.general) == 0);

// Values that name their registers; then an undefined instruction, after which the program
// counter stands. Not one register is left to find the way back with, the stack pointer included:
// it is in a static.
global_asm!(
    ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 16"), // stack pointer, flags, fpc
    ".popsection",
    ".pushsection .rodata.sigctx_probe_values, \"a\", @progbits",
    ".balign 8",
    concat!(symbol!("probe_values"), ":"),
    ".quad 0xf0f0f0f0f0f0f0f0", // r0
    ".quad 0x0101010101010101",
    ".quad 0x0202020202020202",
    ".quad 0x0303030303030303",
    ".quad 0x0404040404040404",
    ".quad 0x0505050505050505",
    ".quad 0x0606060606060606",
    ".quad 0x0707070707070707",
    ".quad 0x0808080808080808",
    ".quad 0x0909090909090909",
    ".quad 0x1010101010101010", // r10
    ".quad 0x1111111111111111",
    ".quad 0x1212121212121212",
    ".quad 0x1313131313131313",
    ".quad 0x1414141414141414",
    ".quad 0x1515151515151510", // a multiple of 8, as stack pointers are
    ".long 0xa2a2a2a2",         // a2
    ".long 0xa3a3a3a3",
    ".long 0xa4a4a4a4",
    ".long 0xa5a5a5a5",
    ".long 0xa6a6a6a6",
    ".long 0xa7a7a7a7",
    ".long 0xa8a8a8a8",
    ".long 0xa9a9a9a9",
    ".long 0xb0b0b0b0",         // a10
    ".long 0xb1b1b1b1",
    ".long 0xb2b2b2b2",
    ".long 0xb3b3b3b3",
    ".long 0xb4b4b4b4",
    ".long 0xb5b5b5b5",
    ".long 0x00501011",         // fpc: two flags, an exception code, rounding
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".machine z14",
    ".balign 2",
    global!("probe_known"),
    "stmg %r6, %r15, 48(%r15)",
    concat!("larl %r1, ", symbol!("probe_saved")),
    "stg %r15, 0(%r1)",
    "ipm %r0",
    "st %r0, 8(%r1)",
    "stfpc 12(%r1)",
    "llilf %r0, {flags}",
    concat!("larl %r1, ", symbol!("probe_values")),
    "lam %a2, %a15, 128(%r1)",
    "lfpc 184(%r1)",
    "spm %r0",
    "lmg %r0, %r15, 0(%r1)",
    global!("probe_known_pc"),
    ".short 0",
    concat!("larl %r1, ", symbol!("probe_saved")),
    "l %r0, 8(%r1)",
    "spm %r0",
    "lfpc 12(%r1)",
    "lg %r15, 0(%r1)",
    "lmg %r6, %r15, 48(%r15)",
    "br %r14",
    // What `push_call` is meant for: a trampoline that keeps everything itself. r14 = where to go
    // on, the stack pointer's word = r14 as it was. The frame: 160 a save area, 160 r0-14,
    // 280 flags, 284 fpc, 288 vectors, 800 the end.
    global!("probe_trampoline"),
    "lay %r15, -800(%r15)",
    "stmg %r0, %r14, 160(%r15)",
    "ipm %r0",
    "st %r0, 280(%r15)",
    "stfpc 284(%r15)",
    "larl %r12, {level}",
    "l %r12, 0(%r12)",          // callee-saved: outlives the call
    "cije %r12, 0, 41f",
    "vstm %v0, %v15, 288(%r15)",
    "vstm %v16, %v31, 544(%r15)",
    "j 42f",
    "41:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "std %f\\n, 288+8*\\n(%r15)",
    ".endr",
    "42:",
    "lghi %r0, 0",
    "spm %r0",                  // as the ABI wants it: nothing traps
    "brasl %r14, {hook}",
    "cije %r12, 0, 43f",
    "vlm %v0, %v15, 288(%r15)",
    "vlm %v16, %v31, 544(%r15)",
    "j 44f",
    "43:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ld %f\\n, 288+8*\\n(%r15)",
    ".endr",
    "44:",
    "lfpc 284(%r15)",
    "l %r0, 280(%r15)",
    "spm %r0",
    "cijne %r12, 2, 45f",
    "lmg %r0, %r13, 160(%r15)",
    "lg %r14, 800(%r15)",
    "lay %r15, 808(%r15)",
    // Below the stack pointer, where no code writes: handlers run on the alternate stack.
    "bi 272-808(%r15)",
    "45:",
    "lmg %r0, %r13, 160(%r15)",
    "lg %r1, 272(%r15)",        // the register that a jump costs
    "lg %r14, 800(%r15)",
    "lay %r15, 808(%r15)",
    "br %r1",
    ".popsection",
    flags = const (KNOWN_FLAGS.bits() >> 16) as u32,
    level = sym LEVEL,
    hook = sym crate::probe::pushed,
);

/// A condition code and a program mask; `ipm` has them 16 bits further right.
const KNOWN_FLAGS: Status = Status::CC_HIGH
    .union(Status::FIXED_OVERFLOW)
    .union(Status::HFP_UNDERFLOW)
    .union(Status::HFP_SIGNIFICANCE);

unsafe extern "C" {
    #[link_name = symbol!("probe_loop")]
    static LOOP: u8;
    #[link_name = symbol!("probe_direct_loop")]
    static DIRECT_LOOP: u8;
    #[link_name = symbol!("probe_exit")]
    static EXIT: u8;
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32) -> c_int;
    #[link_name = symbol!("probe_trampoline")]
    fn trampoline_code();
}

/// The addresses at which every register holds its pattern.
pub(crate) fn window() -> core::ops::Range<usize> {
    let start = if level() == Level::Indirect { &raw const LOOP } else { &raw const DIRECT_LOOP };
    start as usize..&raw const EXIT as usize
}

/// Writes something else into every register, vector, flag and control word.
#[inline]
pub(crate) fn clobber() {
    // SAFETY: keeps what the ABI says a function keeps.
    unsafe { clobber_code(level() as u32) };
}

/// Runs into an undefined instruction, with nothing special in any register.
///
/// # Safety
///
/// A handler for `SIGILL` adds [`KNOWN_STEP`] to the program counter.
#[inline(always)]
pub(crate) unsafe fn undefined() {
    // SAFETY: the caller's obligation.
    unsafe { asm!(".short 0") };
}

/// What is to be added to the program counter to step over the undefined instruction: the CPU has
/// gone past it already.
pub(crate) const KNOWN_STEP: usize = 0;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[];

/// DWARF's numbers of registers (the s390x supplement): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
    0,
    &[
        Reg::R0,
        Reg::R1,
        Reg::R2,
        Reg::R3,
        Reg::R4,
        Reg::R5,
        Reg::R6,
        Reg::R7,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
    ],
)];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 160;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 4096;

/// The trampoline for `push_call`. Before z14 it costs r1.
pub(crate) fn pushed_trampoline() -> usize {
    trampoline_code as *const () as usize
}

/// What walkers of back chains begin with: the stack pointer, in the function that this is inlined
/// into.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("lgr {}, %r15", out(reg) fp, options(nomem, nostack, preserves_flags)) };
    fp
}
