//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! All but r1, which points at the table, and r13: handlers need the thread pointer. Which
//! vectors there are is looked up at run time: none (f0-31), VMX (v0-31, vscr, vrsave) or VSX
//! (vs0-63, whose first half has f0-31 and whose second half is v0-31).
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{RawAction, Reg, SigContext, SigInfoHead, SignalStack, Ucontext};
use crate::probe::Instruction;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str =
    if cfg!(target_endian = "little") { "powerpc64le" } else { "powerpc64" };

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];

/// What a C program includes to have the types that [`LAYOUTS`] names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The general registers, in the order of the table.
const GENERAL: [Reg; 30] = [
    Reg::R0,
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
    Reg::R14,
    Reg::R15,
    Reg::R16,
    Reg::R17,
    Reg::R18,
    Reg::R19,
    Reg::R20,
    Reg::R21,
    Reg::R22,
    Reg::R23,
    Reg::R24,
    Reg::R25,
    Reg::R26,
    Reg::R27,
    Reg::R28,
    Reg::R29,
    Reg::R30,
    Reg::R31,
];

/// Every register that code can hold a value in, once.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
struct State {
    /// vs0-63; a floating-point register is the first word of one of the first half.
    vectors: [[u64; 2]; 64],
    /// The register is the last word of the quadword.
    vscr: [u32; 4],
    general: [u64; 30],
    ctr: u64,
    lr: u64,
    xer: u64,
    cr: u64,
    fpscr: u64,
    vrsave: u64,
}

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
/// is what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    host_vectors: [[u64; 2]; 12],
    host_vscr: [u32; 4],
    host_floats: [u64; 18],
    host_general: [u64; 18],
    host_sp: u64,
    host_r2: u64,
    host_lr: u64,
    host_cr: u64,
    host_fpscr: u64,
    host_vrsave: u64,
    /// Where the loop goes at its end: to its start, or out.
    next: AtomicUsize,
    /// Where the loop starts.
    first: usize,
    /// Registers of the loop, while it looks where to go.
    aside: [u64; 3],
    level: u32,
}

/// Floating-point status: the flags of exceptions that have occurred, but for the two that sum
/// others up; result flags; rounding. No exception is enabled.
const FPSCR: u64 = 0x9fff_f703;
/// The flags of invalid operations, which bit 29 sums up.
const FPSCR_INVALID: u64 = 0x01f8_0700;
const FPSCR_INVALID_SUM: u64 = 1 << 29;
/// Decimal rounding, on CPUs that have it.
const FPSCR_DECIMAL: u64 = 7 << 32;
/// Overflows and carry, and the length of strings.
const XER: u64 = 0xe000_007f;
/// Overflow and carry of 32-bit results, since ISA 3.0.
const XER_32: u64 = 0x000c_0000;
/// Non-Java mode and saturation.
const VSCR: u32 = 0x0001_0001;
/// Which word of a quadword in memory is the last of the register.
const LAST: usize = if cfg!(target_endian = "little") { 0 } else { 3 };

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let features = features();
        let given = &mut self.given;
        let vectors = given.vectors.iter_mut().flatten();
        for value in given.general.iter_mut().chain(vectors) {
            *value = next();
        }
        given.ctr = next();
        given.lr = next();
        given.xer = next() & if features.isa_3_0 { XER | XER_32 } else { XER };
        given.cr = next() & 0xffff_ffff;
        given.fpscr = next() & if features.decimal { FPSCR | FPSCR_DECIMAL } else { FPSCR };
        if given.fpscr & FPSCR_INVALID != 0 {
            given.fpscr |= FPSCR_INVALID_SUM;
        }
        given.vrsave = next() & 0xffff_ffff;
        given.vscr = [0; 4];
        given.vscr[LAST] = next() as u32 & VSCR;
        self.first = crate::arch::window().start;
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
            check(reg.name(), 0, given.general[i], found.general[i]);
        }
        check("ctr", 0, given.ctr, found.ctr);
        check("lr", 0, given.lr, found.lr);
        check("xer", 0, given.xer, found.xer);
        check("cr", 0, given.cr, found.cr);
        check("fpscr", 0, given.fpscr & 0xffff_ffff, found.fpscr & 0xffff_ffff);
        check("fpscr, decimal rounding", 0, given.fpscr >> 32, found.fpscr >> 32);
        let (vectors, words) = match level() {
            Level::Float => (32, 1),
            Level::Vmx => (64, 1),
            Level::Vsx => (64, 2),
        };
        for i in 0..vectors {
            // Without VSX, too, the second half are full vectors.
            for word in 0..if i < 32 { words } else { 2 } {
                check("vs", 2 * i + word, given.vectors[i][word], found.vectors[i][word]);
            }
        }
        if level() != Level::Float {
            check("vrsave", 0, given.vrsave, found.vrsave);
            check("vscr", 0, given.vscr[LAST].into(), found.vscr[LAST].into());
        }
    }

    /// The word that says where the loop goes.
    pub(crate) fn next(&self) -> &AtomicUsize {
        &self.next
    }
}

/// The vectors that the CPU and the kernel have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Level {
    Float = 0,
    Vmx = 1,
    Vsx = 2,
}

/// The level, once it is known. The trampoline reads it, too.
pub(super) static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Float,
        1 => Level::Vmx,
        2 => Level::Vsx,
        _ => {
            let level = features().level;
            LEVEL.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

/// What the kernel says of the CPU.
struct Features {
    level: Level,
    decimal: bool,
    isa_3_0: bool,
    /// The register `tar`, a target of jumps that no compiler uses.
    target_address: bool,
}

/// `PPC_FEATURE_…` and `PPC_FEATURE2_…` of `asm/cputable.h`.
fn features() -> Features {
    const ALTIVEC: u64 = 0x1000_0000;
    const DECIMAL: u64 = 0x0000_0400;
    const VSX: u64 = 0x0000_0080;
    const ISA_3_0: u64 = 0x0080_0000;
    const TAR: u64 = 0x0400_0000;

    // SAFETY: reads the auxiliary vector.
    let first = unsafe { libc::getauxval(libc::AT_HWCAP) };
    // SAFETY: as above.
    let second = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    let level = match (first & ALTIVEC != 0, first & VSX != 0) {
        (_, true) => Level::Vsx,
        (true, false) => Level::Vmx,
        (false, false) => Level::Float,
    };
    Features {
        level,
        decimal: first & DECIMAL != 0,
        isa_3_0: second & ISA_3_0 != 0,
        target_address: second & TAR != 0,
    }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `stdu    r1,-112(r1)`.
    let reserved = line.split_once("stdu").and_then(|(_, operands)| {
        let (number, _) = operands.trim_start().strip_prefix("r1,-")?.split_once("(r1)")?;
        number.parse().ok()
    });
    // A word, not part of a name or a number.
    let names = |register| {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.any(|word| word == register)
    };
    let relocations = ["R_PPC64_REL24", "R_PPC64_PLT", "R_PPC64_GOT", "TPREL", "DTPMOD"];
    Instruction {
        system_call: line.contains("\tsc") && (names("sc") || names("scv")),
        outside: relocations.iter().any(|kind| line.contains(kind)),
        thread_local: names("r13"),
        stack: reserved.unwrap_or_default(),
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Float => "general registers, cr, lr, ctr, xer, fpscr, f0-31",
        Level::Vmx => "general registers, cr, lr, ctr, xer, fpscr, f0-31, v0-31, vscr, vrsave",
        Level::Vsx => "general registers, cr, lr, ctr, xer, fpscr, vs0-63, vscr, vrsave",
    }
}

// Between `loop` and `exit` every register holds its pattern, and r1 points at the table, below
// which lies a patterned red zone. {given…} and {found…} are offsets of the two states.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".balign 64",
    function!("probe_spin"), // r3 = table
    "std %r1, {host_sp}(%r3)",
    "std %r2, {host_r2}(%r3)",
    "mflr %r0",
    "std %r0, {host_lr}(%r3)",
    "mfcr %r0",
    "std %r0, {host_cr}(%r3)",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "std \\n, {host_general} + 8*(\\n - 14)(%r3)",
    "stfd \\n, {host_floats} + 8*(\\n - 14)(%r3)",
    ".endr",
    "mffs %f0",
    "stfd %f0, {host_fpscr}(%r3)",
    "lwz %r4, {level}(%r3)",
    "cmpwi %r4, 1",
    "blt 21f",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {host_vectors} + 16*(\\n - 20)",
    "stvx \\n, %r3, %r5",
    ".endr",
    "mfvscr %v0",
    "li %r5, {host_vscr}",
    "stvx %v0, %r3, %r5",
    "mfspr %r5, 256",            // vrsave
    "std %r5, {host_vrsave}(%r3)",
    "li %r5, {given_vscr}",
    "lvx %v0, %r3, %r5",
    "mtvscr %v0",
    "ld %r5, {given_vrsave}(%r3)",
    "mtspr 256, %r5",
    "21:",
    "lfd %f0, {given_fpscr}(%r3)",
    "mtfsf 255, %f0, 1, 0",      // all 64 bits
    "cmpwi %r4, 1",
    "bgt 22f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "lfd \\n, {given_vectors} + 16*\\n(%r3)",
    ".endr",
    "blt 23f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {given_vectors} + 512 + 16*\\n",
    "lvx \\n, %r3, %r5",
    ".endr",
    "b 23f",
    "22:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {given_vectors} + 16*\\n",
    "lxvd2x \\n, %r3, %r5",
    "li %r5, {given_vectors} + 512 + 16*\\n",
    "lxvd2x \\n + 32, %r3, %r5",
    ".endr",
    "23:",
    "ld %r4, {given_ctr}(%r3)",
    "mtctr %r4",
    "ld %r4, {given_lr}(%r3)",
    "mtlr %r4",
    "ld %r4, {given_xer}(%r3)",
    "mtxer %r4",
    "ld %r4, {given_cr}(%r3)",
    "mtcrf 255, %r4",
    "mr %r1, %r3",
    "ld %r0, {given}(%r1)",
    ".irp n,2,3,4,5,6,7,8,9,10,11,12",
    "ld \\n, {given} + 8*(\\n - 1)(%r1)",
    ".endr",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ld \\n, {given} + 8*(\\n - 2)(%r1)",
    ".endr",
    global!("probe_loop"),
    ".rept 64",
    "nop",
    "addi %r3, %r3, 1",
    "addi %r3, %r3, -1",
    ".rept 2",                  // exchanges two registers, twice
    "xor %r14, %r14, %r15",
    "xor %r15, %r14, %r15",
    "xor %r14, %r14, %r15",
    ".endr",
    "b . + 4",                  // emulators interrupt at jumps
    ".endr",
    "b 24f",
    global!("probe_exit"),
    "std %r0, {found}(%r1)",
    ".irp n,2,3,4,5,6,7,8,9,10,11,12",
    "std \\n, {found} + 8*(\\n - 1)(%r1)",
    ".endr",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "std \\n, {found} + 8*(\\n - 2)(%r1)",
    ".endr",
    "mr %r3, %r1",
    "ld %r1, {host_sp}(%r3)",
    "mfcr %r4",
    "std %r4, {found_cr}(%r3)",
    "mfctr %r4",
    "std %r4, {found_ctr}(%r3)",
    "mflr %r4",
    "std %r4, {found_lr}(%r3)",
    "mfxer %r4",
    "std %r4, {found_xer}(%r3)",
    "lwz %r4, {level}(%r3)",
    "cmpwi %r4, 1",
    "bgt 25f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "stfd \\n, {found_vectors} + 16*\\n(%r3)",
    ".endr",
    "blt 26f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {found_vectors} + 512 + 16*\\n",
    "stvx \\n, %r3, %r5",
    ".endr",
    "b 26f",
    "25:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {found_vectors} + 16*\\n",
    "stxvd2x \\n, %r3, %r5",
    "li %r5, {found_vectors} + 512 + 16*\\n",
    "stxvd2x \\n + 32, %r3, %r5",
    ".endr",
    "26:",
    "mffs %f0",
    "stfd %f0, {found_fpscr}(%r3)",
    "lfd %f0, {host_fpscr}(%r3)",
    "mtfsf 255, %f0, 1, 0",
    "cmpwi %r4, 1",
    "blt 27f",
    "mfvscr %v0",
    "li %r5, {found_vscr}",
    "stvx %v0, %r3, %r5",
    "mfspr %r5, 256",
    "std %r5, {found_vrsave}(%r3)",
    "li %r5, {host_vscr}",
    "lvx %v0, %r3, %r5",
    "mtvscr %v0",
    "ld %r5, {host_vrsave}(%r3)",
    "mtspr 256, %r5",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, {host_vectors} + 16*(\\n - 20)",
    "lvx \\n, %r3, %r5",
    ".endr",
    "27:",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "lfd \\n, {host_floats} + 8*(\\n - 14)(%r3)",
    "ld \\n, {host_general} + 8*(\\n - 14)(%r3)",
    ".endr",
    "ld %r0, {host_cr}(%r3)",
    "mtcrf 255, %r0",
    "ld %r0, {host_lr}(%r3)",
    "mtlr %r0",
    "ld %r2, {host_r2}(%r3)",
    "blr",
    // From the loop's end to its start, or out. There is no jump through memory, so the
    // registers that a comparison takes are put aside as they are; calls are not injected here.
    "24:",
    "std %r10, {aside}(%r1)",
    "std %r11, {aside} + 8(%r1)",
    "std %r12, {aside} + 16(%r1)",
    "mfcr %r10",
    "ld %r11, {next}(%r1)",
    "ld %r12, {first}(%r1)",
    "cmpd %r11, %r12",
    "bne 28f",
    "mtcrf 255, %r10",
    "ld %r10, {aside}(%r1)",
    "ld %r11, {aside} + 8(%r1)",
    "ld %r12, {aside} + 16(%r1)",
    concat!("b ", symbol!("probe_loop")),
    "28:",
    "mtcrf 255, %r10",
    "ld %r10, {aside}(%r1)",
    "ld %r11, {aside} + 8(%r1)",
    "ld %r12, {aside} + 16(%r1)",
    concat!("b ", symbol!("probe_exit")),
    end!("probe_spin"),
    // Writes something else into everything. r3 = level. The frame: 112 r14-31, 256 f14-31,
    // 400 v20-31, 592 vscr, 608 scratch, 624 fpscr, 632 vrsave, 640 r2, 648 level.
    function!("probe_clobber"),
    "mflr %r0",
    "std %r0, 16(%r1)",
    "mfcr %r0",
    "stw %r0, 8(%r1)",
    "stdu %r1, -656(%r1)",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "std \\n, 112 + 8*(\\n - 14)(%r1)",
    "stfd \\n, 256 + 8*(\\n - 14)(%r1)",
    ".endr",
    "std %r2, 640(%r1)",
    "std %r3, 648(%r1)",
    "mffs %f0",
    "stfd %f0, 624(%r1)",
    "li %r4, 7",                 // all flags, rounding the other way, no exception enabled
    "sldi %r4, %r4, 32",
    "oris %r4, %r4, 0x9fff",
    "ori %r4, %r4, 0xf703",
    "std %r4, 608(%r1)",
    "lfd %f0, 608(%r1)",
    "mtfsf 255, %f0, 1, 0",
    "li %r4, -1",
    "std %r4, 608(%r1)",
    "cmpwi %r3, 1",
    "blt 31f",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, 400 + 16*(\\n - 20)",
    "stvx \\n, %r1, %r5",
    ".endr",
    "mfvscr %v0",
    "li %r5, 592",
    "stvx %v0, %r1, %r5",
    "mfspr %r5, 256",
    "std %r5, 632(%r1)",
    "not %r5, %r5",
    "mtspr 256, %r5",
    "vspltisw %v0, -1",
    "mtvscr %v0",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vspltisw \\n, -1",
    ".endr",
    "bgt 32f",
    "31:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "lfd \\n, 608(%r1)",
    ".endr",
    "b 33f",
    "32:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xxlor \\n, 63, 63",
    ".endr",
    "33:",
    "mtctr %r4",
    "mtlr %r4",
    "mtcrf 255, %r4",
    "lis %r5, 0xe000 - 0x10000",
    "ori %r5, %r5, 0x7f",
    "mtxer %r5",
    ".irp n,0,2,3,4,5,6,7,8,9,10,11,12,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li \\n, 0x5555",
    ".endr",
    // Back to what the ABI promises the caller: of the two status registers what controls.
    "mffs %f0",
    "stfd %f0, 608(%r1)",
    "ld %r4, 608(%r1)",
    "ld %r5, 624(%r1)",
    "li %r6, 7",                 // decimal rounding
    "sldi %r6, %r6, 32",
    "ori %r6, %r6, 0xff",        // enabled exceptions, rounding
    "andc %r4, %r4, %r6",
    "and %r5, %r5, %r6",
    "or %r4, %r4, %r5",
    "std %r4, 608(%r1)",
    "lfd %f0, 608(%r1)",
    "mtfsf 255, %f0, 1, 0",
    "ld %r4, 648(%r1)",
    "cmpwi %r4, 1",
    "blt 34f",
    "li %r5, 592",
    "lvx %v0, %r1, %r5",
    "vspltisw %v1, 1",           // saturation stays
    "vor %v0, %v0, %v1",
    "mtvscr %v0",
    "ld %r5, 632(%r1)",
    "mtspr 256, %r5",
    ".irp n,20,21,22,23,24,25,26,27,28,29,30,31",
    "li %r5, 400 + 16*(\\n - 20)",
    "lvx \\n, %r1, %r5",
    ".endr",
    "34:",
    ".irp n,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ld \\n, 112 + 8*(\\n - 14)(%r1)",
    "lfd \\n, 256 + 8*(\\n - 14)(%r1)",
    ".endr",
    "ld %r2, 640(%r1)",
    "addi %r1, %r1, 656",
    "lwz %r0, 8(%r1)",
    "mtcrf 0x38, %r0",           // fields 2 to 4
    "ld %r0, 16(%r1)",
    "mtlr %r0",
    "li %r0, 0x5555",
    "blr",
    end!("probe_clobber"),
    ".popsection",
    given = const offset_of!(Table, given.general),
    given_ctr = const offset_of!(Table, given.ctr),
    given_lr = const offset_of!(Table, given.lr),
    given_xer = const offset_of!(Table, given.xer),
    given_cr = const offset_of!(Table, given.cr),
    given_fpscr = const offset_of!(Table, given.fpscr),
    given_vrsave = const offset_of!(Table, given.vrsave),
    given_vscr = const offset_of!(Table, given.vscr),
    given_vectors = const offset_of!(Table, given.vectors),
    found = const offset_of!(Table, found.general),
    found_ctr = const offset_of!(Table, found.ctr),
    found_lr = const offset_of!(Table, found.lr),
    found_xer = const offset_of!(Table, found.xer),
    found_cr = const offset_of!(Table, found.cr),
    found_fpscr = const offset_of!(Table, found.fpscr),
    found_vrsave = const offset_of!(Table, found.vrsave),
    found_vscr = const offset_of!(Table, found.vscr),
    found_vectors = const offset_of!(Table, found.vectors),
    host_sp = const offset_of!(Table, host_sp),
    host_r2 = const offset_of!(Table, host_r2),
    host_lr = const offset_of!(Table, host_lr),
    host_cr = const offset_of!(Table, host_cr),
    host_fpscr = const offset_of!(Table, host_fpscr),
    host_vrsave = const offset_of!(Table, host_vrsave),
    host_vscr = const offset_of!(Table, host_vscr),
    host_general = const offset_of!(Table, host_general),
    host_floats = const offset_of!(Table, host_floats),
    host_vectors = const offset_of!(Table, host_vectors),
    next = const offset_of!(Table, next),
    first = const offset_of!(Table, first),
    aside = const offset_of!(Table, aside),
    level = const offset_of!(Table, level),
);

/// `lvx` and `stvx` ignore the last four bits of an address.
const _: () = {
    assert!(offset_of!(Table, given.vectors).is_multiple_of(16));
    assert!(offset_of!(Table, given.vscr).is_multiple_of(16));
    assert!(offset_of!(Table, found.vectors).is_multiple_of(16));
    assert!(offset_of!(Table, found.vscr).is_multiple_of(16));
    assert!(offset_of!(Table, host_vectors).is_multiple_of(16));
    assert!(offset_of!(Table, host_vscr).is_multiple_of(16));
};

unsafe extern "C" {
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32);
    #[link_name = symbol!("probe_trampoline")]
    fn trampoline_code();
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
    // SAFETY: the caller's obligation. Zeroes are an instruction that never will be defined.
    unsafe { core::arch::asm!(".long 0") };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::R13, "the thread's")];

/// DWARF's numbers of registers (the OpenPOWER ABI): the first, and those from it on. The stack
/// pointer, r1, is told by the frame's address alone; the condition register has eight numbers.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[
    (0, &[Reg::R0]),
    (
        2,
        &[
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
            Reg::R16,
            Reg::R17,
            Reg::R18,
            Reg::R19,
            Reg::R20,
            Reg::R21,
            Reg::R22,
            Reg::R23,
            Reg::R24,
            Reg::R25,
            Reg::R26,
            Reg::R27,
            Reg::R28,
            Reg::R29,
            Reg::R30,
            Reg::R31,
        ],
    ),
    (65, &[Reg::Lr, Reg::Ctr]),
];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 16]);

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// The trampoline for `push_call`.
///
/// # Panics
///
/// Before POWER8 there is no register to jump through that the loop does not use.
pub(crate) fn pushed_trampoline() -> usize {
    assert!(features().target_address, "this CPU has no tar");
    // For the trampoline.
    level();
    trampoline_code as *const () as usize
}

/// The stack pointer, as the function that this is inlined into has it: the back chain begins
/// there.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mr {}, %r1", out(reg) sp, options(nomem, nostack)) };
    sp
}
