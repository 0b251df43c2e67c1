//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! Which vectors there are is looked up at run time: v0-31, or SVE's z0-31, p0-15 and ffr.
//!
//! One register has no pattern, x17: no instruction jumps to an address that is not in a
//! register, so the loop needs one to go round, and a trampoline of `push_call`'s destroys one.
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::global_asm;
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{
    EsrRecord, ExtraRecord, FpsimdRecord, RawAction, RecordHead, Reg, SigContext, SigInfoHead,
    SignalStack, Status, SveRecord, Ucontext, ZaRecord,
};
use crate::probe::Instruction;
use crate::sys;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "aarch64";

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    RecordHead::LAYOUT,
    FpsimdRecord::LAYOUT,
    EsrRecord::LAYOUT,
    ExtraRecord::LAYOUT,
    SveRecord::LAYOUT,
    ZaRecord::LAYOUT,
];

/// What a C program includes to have the types that [`LAYOUTS`] names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The register that the loop and the trampoline jump through.
const JUMP: usize = 17;

/// Every register that code can hold a value in, once.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    /// x0 to x30; the slot of x17 is not used.
    general: [u64; 31],
    nzcv: u64,
    fpcr: u64,
    fpsr: u64,
    /// One vector after another, as long as they are.
    vectors: [u64; 32 * MAX_LENGTH / 8],
    /// p0 to p15 and ffr, a bit for each byte of a vector.
    predicates: [u8; 17 * MAX_LENGTH / 8],
}

/// The longest vectors of SVE, in bytes.
const MAX_LENGTH: usize = 256;

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
/// is what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    /// Where the loop's last instruction jumps to.
    next: AtomicUsize,
    host_sp: u64,
    level: u64,
    /// Length of a vector in bytes.
    length: u64,
}

const FLAGS: u64 = Status::N.union(Status::Z).union(Status::C).union(Status::V).bits();
/// AHP, DN, FZ and the rounding mode. The bits that would make operations trap are left alone.
const FPCR: u64 = 0x07c0_0000;
/// QC, IDC, IXC, UFC, OFC, DZC, IOC.
const FPSR: u64 = 0x0800_009f;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let level = level();
        let length = vector_length();
        let given = &mut self.given;
        for value in given.general.iter_mut().chain(&mut given.vectors) {
            *value = next();
        }
        given.nzcv = next() & FLAGS;
        given.fpcr = next() & FPCR;
        given.fpsr = next() & FPSR;
        given.predicates.fill_with(|| next() as u8);
        // In ffr ones come before zeroes, as loads leave it; anything else is unpredictable.
        let ones = (next() % (length as u64 + 1)) as usize;
        for (i, byte) in given.predicates[16 * length / 8..][..length / 8].iter_mut().enumerate() {
            *byte = ((1u32 << ones.saturating_sub(8 * i).min(8)) - 1) as u8;
        }
        self.level = level as u64;
        self.length = length as u64;
    }

    /// Calls `report` for every word that differs: register, part, what was given and found.
    pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
        let (given, found) = (&self.given, &self.found);
        let mut check = |name, part, given: u64, found: u64| {
            if given != found {
                report(name, part, given, found);
            }
        };
        for (i, reg) in Reg::ALL[..31].iter().enumerate().filter(|&(i, _)| i != JUMP) {
            check(reg.name(), 0, given.general[i], found.general[i]);
        }
        check("nzcv", 0, given.nzcv, found.nzcv);
        check("fpcr", 0, given.fpcr, found.fpcr);
        check("fpsr", 0, given.fpsr, found.fpsr);
        let length = self.length as usize;
        let vector = if self.level == Level::Sve as u64 { "z" } else { "v" };
        for i in 0..32 * length / 8 {
            check(vector, i, given.vectors[i], found.vectors[i]);
        }
        if self.level == Level::Sve as u64 {
            for i in 0..17 * length / 8 {
                let name = if i < 16 * length / 8 { "p" } else { "ffr" };
                check(name, i, given.predicates[i].into(), found.predicates[i].into());
            }
        }
    }

    /// The word that the loop jumps through.
    pub(crate) fn next(&self) -> &AtomicUsize {
        &self.next
    }
}

/// The vectors that the CPU and the kernel have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Level {
    Neon = 1,
    Sve = 2,
}

/// A [`Level`], or 0 before the first look. The trampoline reads it, too.
static LEVEL: AtomicU32 = AtomicU32::new(0);

fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Neon,
        2 => Level::Sve,
        _ => {
            // SAFETY: reads the auxiliary vector.
            let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
            let sve = capabilities & libc::HWCAP_SVE != 0;
            let level = if sve { Level::Sve } else { Level::Neon };
            LEVEL.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

/// Of the calling thread, in bytes.
fn vector_length() -> usize {
    /// `PR_SVE_GET_VL`.
    const SVE_LENGTH: usize = 51;

    match level() {
        Level::Neon => 16,
        Level::Sve => {
            // SAFETY: takes no pointers.
            let answer = unsafe { sys::syscall(libc::SYS_prctl, [SVE_LENGTH, 0, 0, 0, 0, 0]) };
            // Where there is SVE it cannot fail.
            answer.expect("PR_SVE_GET_VL") & 0xffff
        }
    }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    let relocations = ["R_AARCH64_CALL26", "R_AARCH64_JUMP26", "_GOT", "R_AARCH64_TLS"];
    Instruction {
        system_call: line.contains("\tsvc\t"),
        outside: line.contains("\tbl\t") || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("tpidr_el0") || line.contains("R_AARCH64_TLS"),
        stack: stack(line).unwrap_or_default(),
    }
}

/// What is taken by `sub sp, sp, #0x1, lsl #12` or `stp x29, x30, [sp, #-96]!`.
fn stack(line: &str) -> Option<usize> {
    let (number, shift) = match line.split_once("\tsub\tsp, sp, #") {
        Some((_, operand)) => operand.split_once(", lsl #").unwrap_or((operand, "0")),
        None => (line.split_once("[sp, #-")?.1.split_once("]!")?.0, "0"),
    };
    // Comments may follow.
    let number = number.split_ascii_whitespace().next()?;
    let number = match number.strip_prefix("0x") {
        Some(hexadecimal) => usize::from_str_radix(hexadecimal, 16).ok()?,
        None => number.parse().ok()?,
    };
    number.checked_shl(shift.split_ascii_whitespace().next()?.parse().ok()?)
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Neon => "general registers but x17, nzcv, fpcr, fpsr, v0-31",
        Level::Sve => "general registers but x17, nzcv, fpcr, fpsr, z0-31, p0-15, ffr",
    }
}

// Between `loop` and `exit` every register but x17 holds its pattern, and sp points at the
// table. `hint #36` is `bti j`, where indirect jumps may land.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".arch_extension sve",
    ".balign 64",
    global!("probe_spin"),   // x0 = table
    "hint #34",
    "stp x29, x30, [sp, #-176]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "mrs x1, fpcr",
    "stp x1, x18, [sp, #160]",
    "mov x1, sp",
    "str x1, [x0, #{host_sp}]",
    "mov x1, #{given_vectors}",
    "add x1, x0, x1",
    "mov x2, #{given_predicates}",
    "add x2, x0, x2",
    "ldr x3, [x0, #{level}]",
    "cmp w3, #{sve}",
    "b.eq 21f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr q\\n, [x1, #16*\\n]",
    ".endr",
    "b 22f",
    "21:",
    "ldr p0, [x2, #16, mul vl]",
    "wrffr p0.b",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ldr p\\n, [x2, #\\n, mul vl]",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr z\\n, [x1, #\\n, mul vl]",
    ".endr",
    "22:",
    "ldr x1, [x0, #{given_fpcr}]",
    "msr fpcr, x1",
    "ldr x1, [x0, #{given_fpsr}]",
    "msr fpsr, x1",
    "ldr x1, [x0, #{given_nzcv}]",
    "msr nzcv, x1",
    "mov sp, x0",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "ldr x\\n, [sp, #8*\\n]",
    ".endr",
    global!("probe_loop"),
    "hint #36",
    ".rept 64",
    "nop",
    "add x0, x0, #1",
    "sub x0, x0, #1",
    "ror x12, x12, #13",
    "ror x12, x12, #51",
    ".endr",
    "ldr x17, [sp, #{next}]",
    "br x17",
    global!("probe_exit"),
    "hint #36",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "str x\\n, [sp, #{found} + 8*\\n]",
    ".endr",
    "mov x0, sp",
    "ldr x1, [x0, #{host_sp}]",
    "mov sp, x1",
    "mrs x1, nzcv",
    "str x1, [x0, #{found_nzcv}]",
    "mrs x1, fpcr",
    "str x1, [x0, #{found_fpcr}]",
    "mrs x1, fpsr",
    "str x1, [x0, #{found_fpsr}]",
    "mov x1, #{found_vectors}",
    "add x1, x0, x1",
    "mov x2, #{found_predicates}",
    "add x2, x0, x2",
    "ldr x3, [x0, #{level}]",
    "cmp w3, #{sve}",
    "b.eq 23f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "str q\\n, [x1, #16*\\n]",
    ".endr",
    "b 24f",
    "23:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "str p\\n, [x2, #\\n, mul vl]",
    ".endr",
    "rdffr p0.b",
    "str p0, [x2, #16, mul vl]",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "str z\\n, [x1, #\\n, mul vl]",
    ".endr",
    "24:",
    "ldp x1, x18, [sp, #160]",
    "msr fpcr, x1",
    "ldp d14, d15, [sp, #144]",
    "ldp d12, d13, [sp, #128]",
    "ldp d10, d11, [sp, #112]",
    "ldp d8, d9, [sp, #96]",
    "ldp x27, x28, [sp, #80]",
    "ldp x25, x26, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x21, x22, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #176",
    "ret",
    // Writes something else into everything. w0 = level.
    global!("probe_clobber"),
    "hint #34",
    "stp x29, x30, [sp, #-176]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "mrs x1, fpcr",
    "stp x1, x18, [sp, #160]",
    "mov x2, #{fpcr}",
    "eor x1, x1, x2",
    "msr fpcr, x1",
    "cmp w0, #{sve}",
    "b.eq 31f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "movi v\\n\\().16b, #0x5a",
    ".endr",
    "b 32f",
    "31:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "mov z\\n\\().b, #0x5a",
    ".endr",
    "ptrue p0.h, vl3",          // three of ffr's elements
    "wrffr p0.b",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ptrue p\\n\\().d",
    ".endr",
    "32:",
    "mov x0, #0x5555555555555555",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "mov x\\n, x0",
    ".endr",
    "mov x1, #{flags}",
    "msr nzcv, x1",
    // Sticky flags are no caller's: they stay.
    "mov x1, #{fpsr_high}",
    "mov x2, #{fpsr_low}",
    "orr x1, x1, x2",
    "msr fpsr, x1",
    // Back to what the ABI promises the caller.
    "ldp x1, x18, [sp, #160]",
    "msr fpcr, x1",
    "ldp d14, d15, [sp, #144]",
    "ldp d12, d13, [sp, #128]",
    "ldp d10, d11, [sp, #112]",
    "ldp d8, d9, [sp, #96]",
    "ldp x27, x28, [sp, #80]",
    "ldp x25, x26, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x21, x22, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #176",
    "ret",
    ".arch_extension nosve",
    ".popsection",
    given_nzcv = const offset_of!(Table, given.nzcv),
    given_fpcr = const offset_of!(Table, given.fpcr),
    given_fpsr = const offset_of!(Table, given.fpsr),
    given_vectors = const offset_of!(Table, given.vectors),
    given_predicates = const offset_of!(Table, given.predicates),
    found = const offset_of!(Table, found.general),
    found_nzcv = const offset_of!(Table, found.nzcv),
    found_fpcr = const offset_of!(Table, found.fpcr),
    found_fpsr = const offset_of!(Table, found.fpsr),
    found_vectors = const offset_of!(Table, found.vectors),
    found_predicates = const offset_of!(Table, found.predicates),
    next = const offset_of!(Table, next),
    host_sp = const offset_of!(Table, host_sp),
    level = const offset_of!(Table, level),
    sve = const Level::Sve as u32,
    flags = const FLAGS,
    fpcr = const FPCR,
    fpsr_high = const FPSR & !0xffff,
    fpsr_low = const FPSR & 0xffff,
);

const _: () = {
    // The loop reads the general registers from the table's start.
    assert!(offset_of!(Table, given.general) == 0);
    // What one `mov` can hold.
    assert!(size_of::<Table>() < 1 << 16);
};

// Values that name their registers; then an undefined instruction, whose handler steps over it.
// Not one register is left to find the way back with, the stack pointer included: it is in a
// static.
global_asm!(
    ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 8"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".arch_extension sve",
    global!("probe_known"),  // w0 = whether there is SSBS
    "hint #34",
    "stp x29, x30, [sp, #-112]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "cbz w0, 51f",
    "mrs x1, S3_3_C4_C2_6",     // ssbs: the environment's, so 0 here, which is always safe
    "msr S3_3_C4_C2_6, xzr",
    "51:",
    "stp x0, x1, [sp, #96]",
    "mov x1, sp",
    concat!("adrp x2, ", symbol!("probe_saved")),
    concat!("str x1, [x2, :lo12:", symbol!("probe_saved"), "]"),
    "mov x0, #{flags}",
    "msr nzcv, x0",
    "mov x0, #0x5b50",          // in the half of the addresses that is the user's, and aligned
    "movk x0, #0x5b5b, lsl #16",
    "movk x0, #0x5b5b, lsl #32",
    "mov sp, x0",
    "mov x1, #0x0101010101010101",
    ".irp n,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "mov x\\n, #0x\\n",
    "mul x\\n, x\\n, x1",
    ".endr",
    "mov x0, #0xf0f0f0f0f0f0f0f0",
    global!("probe_known_pc"),
    "udf #0",
    concat!("adrp x2, ", symbol!("probe_saved")),
    concat!("ldr x1, [x2, :lo12:", symbol!("probe_saved"), "]"),
    "mov sp, x1",
    "ldp x0, x1, [sp, #96]",
    "cbz w0, 52f",
    "msr S3_3_C4_C2_6, x1",
    "52:",
    "ldp x27, x28, [sp, #80]",
    "ldp x25, x26, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x21, x22, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #112",
    "ret",
    // What `push_call` is meant for: a trampoline that keeps everything itself, x17 excepted.
    // x30 = where to go on, [sp] = what x30 was; 16 bytes of stack are to be given back.
    global!("probe_trampoline"),
    "hint #34",
    "sub sp, sp, #272",
    "stp x0, x1, [sp]",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x18, [sp, #128]",
    "stp x19, x20, [sp, #144]",
    "stp x21, x22, [sp, #160]",
    "stp x23, x24, [sp, #176]",
    "stp x25, x26, [sp, #192]",
    "stp x27, x28, [sp, #208]",
    "stp x29, x30, [sp, #224]",
    "mrs x0, nzcv",
    "mrs x1, fpcr",
    "stp x0, x1, [sp, #240]",
    "mrs x0, fpsr",
    "str x0, [sp, #256]",
    "add x29, sp, #224",        // a frame record, and callee-saved, so it outlives the call
    "adrp x0, {level}",
    "ldr w19, [x0, :lo12:{level}]",
    "cmp w19, #{sve}",
    "b.eq 41f",
    "sub sp, sp, #512",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "str q\\n, [sp, #16*\\n]",
    ".endr",
    "b 42f",
    "41:",
    // 32 vectors, and 17 predicates of an eighth each: room for three vectors keeps sp aligned.
    "addvl sp, sp, #-32",
    "addvl sp, sp, #-3",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "str z\\n, [sp, #\\n, mul vl]",
    ".endr",
    "addvl x0, sp, #31",
    "addvl x0, x0, #1",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "str p\\n, [x0, #\\n, mul vl]",
    ".endr",
    "rdffr p0.b",
    "str p0, [x0, #16, mul vl]",
    "42:",
    "msr fpcr, xzr",
    "bl {hook}",
    "cmp w19, #{sve}",
    "b.eq 43f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr q\\n, [sp, #16*\\n]",
    ".endr",
    "b 44f",
    "43:",
    "addvl x0, sp, #31",
    "addvl x0, x0, #1",
    "ldr p0, [x0, #16, mul vl]",
    "wrffr p0.b",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ldr p\\n, [x0, #\\n, mul vl]",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr z\\n, [sp, #\\n, mul vl]",
    ".endr",
    "44:",
    "sub sp, x29, #224",
    "ldr x0, [sp, #256]",
    "msr fpsr, x0",
    "ldp x0, x1, [sp, #240]",
    "msr fpcr, x1",
    "msr nzcv, x0",
    "ldp x0, x1, [sp]",
    "ldp x2, x3, [sp, #16]",
    "ldp x4, x5, [sp, #32]",
    "ldp x6, x7, [sp, #48]",
    "ldp x8, x9, [sp, #64]",
    "ldp x10, x11, [sp, #80]",
    "ldp x12, x13, [sp, #96]",
    "ldp x14, x15, [sp, #112]",
    "ldp x16, x18, [sp, #128]",
    "ldp x19, x20, [sp, #144]",
    "ldp x21, x22, [sp, #160]",
    "ldp x23, x24, [sp, #176]",
    "ldp x25, x26, [sp, #192]",
    "ldp x27, x28, [sp, #208]",
    "ldp x29, x17, [sp, #224]",
    "ldr x30, [sp, #272]",
    "add sp, sp, #288",
    "ret x17",                  // not `br`: the interrupted instruction is no landing pad
    ".arch_extension nosve",
    ".popsection",
    flags = const Status::N.union(Status::C).bits(),
    sve = const Level::Sve as u32,
    level = sym LEVEL,
    hook = sym crate::probe::pushed,
);

unsafe extern "C" {
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32) -> c_int;
    #[link_name = symbol!("probe_known")]
    fn known_code(ssbs: u32);
    #[link_name = symbol!("probe_trampoline")]
    fn trampoline_code();
}

/// Writes something else into every register, vector, predicate, flag and control word.
#[inline]
pub(crate) fn clobber() {
    // SAFETY: keeps what the ABI says a function keeps.
    unsafe { clobber_code(level() as u32) };
}

/// Loads every register with a value that names it and runs into an undefined instruction.
///
/// # Safety
///
/// A handler for `SIGILL` on an alternate stack adds [`KNOWN_STEP`] to the program counter; one
/// thread at a time.
pub(crate) unsafe fn known() {
    // SAFETY: reads the auxiliary vector.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
    let ssbs = capabilities & libc::HWCAP_SSBS != 0;
    // SAFETY: the caller's obligation; all callee-saved state is kept.
    unsafe { known_code(ssbs.into()) }
}

/// Runs into an undefined instruction, with nothing special in any register.
///
/// # Safety
///
/// A handler for `SIGILL` adds [`KNOWN_STEP`] to the program counter.
#[inline(always)]
pub(crate) unsafe fn undefined() {
    // SAFETY: the caller's obligation.
    unsafe { core::arch::asm!("udf #0") };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[];

/// DWARF's numbers of registers (AADWARF64): the first, and those from it on. Number 17 is the
/// column of the program counter in our rules: x17 is not among them.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[
    (
        0,
        &[
            Reg::X0,
            Reg::X1,
            Reg::X2,
            Reg::X3,
            Reg::X4,
            Reg::X5,
            Reg::X6,
            Reg::X7,
            Reg::X8,
            Reg::X9,
            Reg::X10,
            Reg::X11,
            Reg::X12,
            Reg::X13,
            Reg::X14,
            Reg::X15,
            Reg::X16,
        ],
    ),
    (
        18,
        &[
            Reg::X18,
            Reg::X19,
            Reg::X20,
            Reg::X21,
            Reg::X22,
            Reg::X23,
            Reg::X24,
            Reg::X25,
            Reg::X26,
            Reg::X27,
            Reg::X28,
            Reg::X29,
            Reg::X30,
            Reg::Sp,
        ],
    ),
];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 8]);

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// The trampoline for `push_call`.
pub(crate) fn pushed_trampoline() -> usize {
    // It looks at what this finds out.
    level();
    trampoline_code as *const () as usize
}

/// The frame pointer, as the function that this is inlined into has it.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    fp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_objdump_are_read() {
        let none = Instruction::default();
        for (line, expected) in [
            ("  4:\tf9400000 \tldr\tx0, [x0]", none),
            ("  4:\td4000001 \tsvc\t#0x0", Instruction { system_call: true, ..none }),
            ("  4:\t94000000 \tbl\t4 <f>", Instruction { outside: true, ..none }),
            ("  4:\td63f0100 \tblr\tx8", none),
            ("\t\t\t4: R_AARCH64_CALL26\tf", Instruction { outside: true, ..none }),
            ("\t\t\t4: R_AARCH64_ADR_GOT_PAGE\tf", Instruction { outside: true, ..none }),
            ("  4:\td53bd040 \tmrs\tx0, tpidr_el0", Instruction { thread_local: true, ..none }),
            ("  4:\td10143ff \tsub\tsp, sp, #0x50", Instruction { stack: 0x50, ..none }),
            ("  4:\td14007ff \tsub\tsp, sp, #0x1, lsl #12", Instruction { stack: 4096, ..none }),
            ("  4:\ta9ba7bfd \tstp\tx29, x30, [sp, #-96]!", Instruction { stack: 96, ..none }),
            ("  4:\ta9017bfd \tstp\tx29, x30, [sp, #16]", none),
        ] {
            assert_eq!(instruction(line), expected, "{line}");
        }
    }
}
