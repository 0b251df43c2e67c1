//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! tp is the thread's: handlers count on it, and it may change with the thread. Which vectors
//! there are is looked up at run time. The registers of the binary translation (LBT) are not
//! patterned.
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::{asm, global_asm};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{
    FpuContext, LasxContext, LbtContext, LsxContext, RawAction, RecordHeader, Reg, SigContext,
    SigInfoHead, SignalStack, Ucontext,
};
use crate::arch::window;
use crate::probe::Instruction;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "loongarch64";

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    RecordHeader::LAYOUT,
    FpuContext::LAYOUT,
    LsxContext::LAYOUT,
    LasxContext::LAYOUT,
    LbtContext::LAYOUT,
    Ucontext::LAYOUT,
];

/// What a C program includes to have the types that [`LAYOUTS`] names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The general registers with their numbers: all but the stack pointer, which points at the
/// table, and the thread pointer.
const GENERAL: [(Reg, usize); 29] = [
    (Reg::Ra, 1),
    (Reg::A0, 4),
    (Reg::A1, 5),
    (Reg::A2, 6),
    (Reg::A3, 7),
    (Reg::A4, 8),
    (Reg::A5, 9),
    (Reg::A6, 10),
    (Reg::A7, 11),
    (Reg::T0, 12),
    (Reg::T1, 13),
    (Reg::T2, 14),
    (Reg::T3, 15),
    (Reg::T4, 16),
    (Reg::T5, 17),
    (Reg::T6, 18),
    (Reg::T7, 19),
    (Reg::T8, 20),
    (Reg::R21, 21),
    (Reg::Fp, 22),
    (Reg::S0, 23),
    (Reg::S1, 24),
    (Reg::S2, 25),
    (Reg::S3, 26),
    (Reg::S4, 27),
    (Reg::S5, 28),
    (Reg::S6, 29),
    (Reg::S7, 30),
    (Reg::S8, 31),
];
/// The numbers of s8 and s7, which have the same value: see the loop.
const TWINS: (usize, usize) = (31, 30);

/// Every register that code can hold a value in, once.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    /// By number.
    general: [u64; 32],
    /// Bit n is fcc`n`.
    fcc: u64,
    fcsr: u64,
}

/// The low 64 bits are the floating-point register. 32-aligned for LASX.
type Vectors = [[u64; 4]; 32];

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
/// what the stack pointer points at while the loop runs. What the assembly finds by an offset
/// comes first: offsets have 12 bits.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    /// Where the loop goes when it comes to its end.
    next: AtomicUsize,
    host_sp: u64,
    host_ra: u64,
    /// r21, fp, s0 to s8.
    host_saved: [u64; 11],
    /// fs0 to fs7.
    host_floats: [u64; 8],
    host_fcsr: u64,
    level: u64,
    given_vectors: Vectors,
    found_vectors: Vectors,
}

/// The fields of fcsr that can be set without a trap: rounding mode, sticky flags, causes.
const FCSR: u64 = 0x1f1f_0300;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in given.general.iter_mut().chain(self.given_vectors.as_flattened_mut()) {
            *value = next();
        }
        given.general[TWINS.1] = given.general[TWINS.0];
        given.fcc = next() & 0xff;
        given.fcsr = next() & FCSR;
        self.level = level() as u64;
    }

    /// Calls `report` for every word that differs: register, part, what was given and found.
    pub(crate) fn compare(&self, mut report: impl FnMut(&'static str, usize, u64, u64)) {
        let (given, found) = (&self.given, &self.found);
        let mut check = |name, part, given: u64, found: u64| {
            if given != found {
                report(name, part, given, found);
            }
        };
        for (reg, i) in GENERAL {
            // After a call by `push_call` it may have the address where that resumed.
            let resumed = reg == Reg::S7
                && crate::probe::pushed_calls() > 0
                && window().contains(&(found.general[i] as usize));
            if !resumed {
                check(reg.name(), 0, given.general[i], found.general[i]);
            }
        }
        check("fcc", 0, given.fcc, found.fcc);
        check("fcsr", 0, given.fcsr, found.fcsr);
        let words = match level() {
            Level::Float => 1,
            Level::Lsx => 2,
            Level::Lasx => 4,
        };
        for i in 0..32 {
            check("f", i, self.given_vectors[i][0], self.found_vectors[i][0]);
            for word in 1..words {
                let (given, found) = (self.given_vectors[i][word], self.found_vectors[i][word]);
                check("vector", 4 * i + word, given, found);
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
    Float = 0,
    Lsx = 1,
    Lasx = 2,
}

fn level() -> Level {
    static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
    match KNOWN.load(Ordering::Relaxed) {
        0 => Level::Float,
        1 => Level::Lsx,
        2 => Level::Lasx,
        _ => {
            let level = detect();
            KNOWN.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

fn detect() -> Level {
    /// `HWCAP_LOONGARCH_LSX`.
    const LSX: u64 = 1 << 4;
    /// `HWCAP_LOONGARCH_LASX`.
    const LASX: u64 = 1 << 5;
    // SAFETY: reads the auxiliary vector.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
    if capabilities & LASX != 0 {
        Level::Lasx
    } else if capabilities & LSX != 0 {
        Level::Lsx
    } else {
        Level::Float
    }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `addi.d $sp, $sp, -32`, decimal or, from GNU's, followed by the hexadecimal number.
    let reserved = line.split_once("$sp, $sp, -").and_then(|(_, number)| {
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..end].parse().ok()
    });
    let relocations = ["R_LARCH_CALL36", "R_LARCH_B26", "R_LARCH_GOT", "R_LARCH_TLS"];
    Instruction {
        system_call: line.contains("\tsyscall"),
        outside: line.contains("\tbl ")
            || line.contains("\tbl\t")
            || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("$tp"),
        stack: reserved.unwrap_or_default(),
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Float => "general registers, fcc0-7, fcsr, f0-31",
        Level::Lsx => "general registers, fcc0-7, fcsr, vr0-31",
        Level::Lasx => "general registers, fcc0-7, fcsr, xr0-31",
    }
}

// Between `loop` and `exit` every register holds its pattern, and sp points at the table.
//
// A jump through memory needs a register. It is s7, which has the same value as s8: the loop
// ends with a comparison of the two, and leaves if they differ. Then s7 is free for the jump,
// outside of the window, and the first instruction of the loop (or of the exit) sets it again.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".balign 64",
    global!("probe_spin"),   // a0 = table
    "st.d $ra, $a0, {host_ra}",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $a0, {saved} + 8*(\\n - 21)",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "fst.d $fs\\n, $a0, {host_floats} + 8*\\n",
    ".endr",
    "movfcsr2gr $t0, $fcsr0",
    "st.d $t0, $a0, {host_fcsr}",
    "addi.d $t1, $a0, {given_vectors}",
    "ld.d $t0, $a0, {level}",
    "ori $t2, $zero, 1",
    "beq $t0, $t2, 21f",
    "bltu $t2, $t0, 22f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fld.d $f\\n, $t1, 32*\\n",
    ".endr",
    "b 23f",
    "21:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vld $vr\\n, $t1, 32*\\n",
    ".endr",
    "b 23f",
    "22:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xvld $xr\\n, $t1, 32*\\n",
    ".endr",
    "23:",
    "ld.d $t0, $a0, {given_fcc}",
    ".irp n,0,1,2,3,4,5,6,7",
    "bstrpick.d $t1, $t0, \\n, \\n",
    "movgr2cf $fcc\\n, $t1",
    ".endr",
    "ld.d $t0, $a0, {given_fcsr}",
    "movgr2fcsr $fcsr0, $t0",
    "st.d $sp, $a0, {host_sp}",
    "move $sp, $a0",
    ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ld.d $r\\n, $sp, {given} + 8*\\n",
    ".endr",
    global!("probe_loop"),
    "move $s7, $s8",
    ".rept 64",
    "nop",
    "addi.d $a0, $a0, 1",
    "addi.d $a0, $a0, -1",
    "xor $s2, $s2, $s3",
    "xor $s2, $s2, $s3",
    "fmov.d $fa0, $fa0",
    "b 25f",                    // an emulator delivers signals after jumps alone
    "25:",
    ".endr",
    "bne $s7, $s8, 24f",
    "b 26f",
    global!("probe_exit"),
    "move $s7, $s8",
    "24:",
    ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $sp, {found} + 8*\\n",
    ".endr",
    "move $a0, $sp",
    "ld.d $sp, $a0, {host_sp}",
    "movfcsr2gr $t0, $fcsr0",
    "st.d $t0, $a0, {found_fcsr}",
    "move $t0, $zero",
    ".irp n,0,1,2,3,4,5,6,7",
    "movcf2gr $t1, $fcc\\n",
    "slli.d $t1, $t1, \\n",
    "or $t0, $t0, $t1",
    ".endr",
    "st.d $t0, $a0, {found_fcc}",
    "addi.d $t1, $a0, {found_vectors}",
    "ld.d $t0, $a0, {level}",
    "ori $t2, $zero, 1",
    "beq $t0, $t2, 27f",
    "bltu $t2, $t0, 28f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fst.d $f\\n, $t1, 32*\\n",
    ".endr",
    "b 29f",
    "27:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vst $vr\\n, $t1, 32*\\n",
    ".endr",
    "b 29f",
    "28:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xvst $xr\\n, $t1, 32*\\n",
    ".endr",
    "29:",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "ld.d $r\\n, $a0, {saved} + 8*(\\n - 21)",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "fld.d $fs\\n, $a0, {host_floats} + 8*\\n",
    ".endr",
    "ld.d $t0, $a0, {host_fcsr}",
    "movgr2fcsr $fcsr0, $t0",
    "ld.d $ra, $a0, {host_ra}",
    "ret",
    "26:",
    "ld.d $s7, $sp, {next}",
    "jr $s7",
    // Writes something else into everything. a0 = level.
    global!("probe_clobber"),
    "addi.d $sp, $sp, -176",
    "st.d $ra, $sp, 0",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $sp, 8 + 8*(\\n - 21)",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "fst.d $fs\\n, $sp, 96 + 8*\\n",
    ".endr",
    "movfcsr2gr $t0, $fcsr0",
    "st.d $t0, $sp, 160",
    "lu12i.w $t0, 0x1f1f0",     // all flags and causes, rounding down
    "ori $t0, $t0, 0x300",
    "movgr2fcsr $fcsr0, $t0",
    "addi.w $t0, $zero, -86",   // in every byte the same, but for the sign
    "ori $t1, $zero, 1",
    "beq $a0, $t1, 31f",
    "bltu $t1, $a0, 32f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "movgr2fr.d $f\\n, $t0",
    ".endr",
    "b 33f",
    "31:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vreplgr2vr.d $vr\\n, $t0",
    ".endr",
    "b 33f",
    "32:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xvreplgr2vr.d $xr\\n, $t0",
    ".endr",
    "33:",
    // What was set is not any more, and the other way round.
    ".irp n,0,1,2,3,4,5,6,7",
    "movcf2gr $t1, $fcc\\n",
    "xori $t1, $t1, 1",
    "movgr2cf $fcc\\n, $t1",
    ".endr",
    ".irp n,1,4,5,6,7,8,9,10,11,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "move $r\\n, $t0",
    ".endr",
    // Back to what the ABI promises the caller: of fcsr all but flags and causes.
    "ld.d $t0, $sp, 160",
    "lu12i.w $t1, 0x1f1f0",
    "or $t0, $t0, $t1",
    "movgr2fcsr $fcsr0, $t0",
    "ld.d $ra, $sp, 0",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "ld.d $r\\n, $sp, 8 + 8*(\\n - 21)",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "fld.d $fs\\n, $sp, 96 + 8*\\n",
    ".endr",
    "addi.d $sp, $sp, 176",
    "ret",
    ".popsection",
    given = const offset_of!(Table, given.general),
    given_fcc = const offset_of!(Table, given.fcc),
    given_fcsr = const offset_of!(Table, given.fcsr),
    given_vectors = const offset_of!(Table, given_vectors),
    found = const offset_of!(Table, found.general),
    found_fcc = const offset_of!(Table, found.fcc),
    found_fcsr = const offset_of!(Table, found.fcsr),
    found_vectors = const offset_of!(Table, found_vectors),
    next = const offset_of!(Table, next),
    host_sp = const offset_of!(Table, host_sp),
    host_ra = const offset_of!(Table, host_ra),
    saved = const offset_of!(Table, host_saved),
    host_floats = const offset_of!(Table, host_floats),
    host_fcsr = const offset_of!(Table, host_fcsr),
    level = const offset_of!(Table, level),
);

/// What has a 12-bit offset is within 2 KiB.
const _: () = assert!(offset_of!(Table, found_vectors) < 2048);

// Values that name their registers by number, in decimal digits; then an undefined instruction,
// whose handler steps over it. Not one register is left to find the way back with, the stack
// pointer included: it is in a static. tp is as it is.
global_asm!(
    ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 8"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    global!("probe_known"),
    "addi.d $sp, $sp, -96",
    "st.d $ra, $sp, 0",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "st.d $r\\n, $sp, 8 + 8*(\\n - 21)",
    ".endr",
    concat!("la.pcrel $t0, ", symbol!("probe_saved")),
    "st.d $sp, $t0, 0",
    ".irp n,1,3,4,5,6,7,8,9",
    "li.d $r\\n, 0x0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n",
    ".endr",
    ".irp n,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li.d $r\\n, 0x\\n\\n\\n\\n\\n\\n\\n\\n",
    ".endr",
    global!("probe_known_pc"),
    ".word {undefined}",
    concat!("la.pcrel $t0, ", symbol!("probe_saved")),
    "ld.d $sp, $t0, 0",
    "ld.d $ra, $sp, 0",
    ".irp n,21,22,23,24,25,26,27,28,29,30,31",
    "ld.d $r\\n, $sp, 8 + 8*(\\n - 21)",
    ".endr",
    "addi.d $sp, $sp, 96",
    "ret",
    // What `push_call` is meant for: a trampoline that keeps everything itself, s7 excepted.
    // ra is where to resume, its own value is in the slot. The vectors are saved whole, because
    // a write of a register's lower part leaves the rest undefined.
    global!("probe_trampoline"),
    "addi.d $sp, $sp, -1304",   // 16-aligned with the slot
    ".irp n,1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,31",
    "st.d $r\\n, $sp, 8*\\n",
    ".endr",
    "movfcsr2gr $t0, $fcsr0",
    "st.d $t0, $sp, 256",
    "move $t0, $zero",
    ".irp n,0,1,2,3,4,5,6,7",
    "movcf2gr $t1, $fcc\\n",
    "slli.d $t1, $t1, \\n",
    "or $t0, $t0, $t1",
    ".endr",
    "st.d $t0, $sp, 264",
    "move $fp, $sp",
    "bstrins.d $sp, $zero, 3, 0", // if the interrupted code was just about to align it
    "la.pcrel $t0, {level}",
    "ld.wu $s0, $t0, 0",
    "addi.d $s1, $fp, 272",
    "ori $s2, $zero, 1",
    "beq $s0, $s2, 41f",
    "bltu $s2, $s0, 42f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fst.d $f\\n, $s1, 32*\\n",
    ".endr",
    "b 43f",
    "41:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vst $vr\\n, $s1, 32*\\n",
    ".endr",
    "b 43f",
    "42:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xvst $xr\\n, $s1, 32*\\n",
    ".endr",
    "43:",
    "movgr2fcsr $fcsr0, $zero",
    "pcaddu18i $ra, %call36({hook})",
    "jirl $ra, $ra, 0",
    "beq $s0, $s2, 44f",
    "bltu $s2, $s0, 45f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fld.d $f\\n, $s1, 32*\\n",
    ".endr",
    "b 46f",
    "44:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vld $vr\\n, $s1, 32*\\n",
    ".endr",
    "b 46f",
    "45:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "xvld $xr\\n, $s1, 32*\\n",
    ".endr",
    "46:",
    "move $sp, $fp",
    "ld.d $t0, $sp, 264",
    ".irp n,0,1,2,3,4,5,6,7",
    "bstrpick.d $t1, $t0, \\n, \\n",
    "movgr2cf $fcc\\n, $t1",
    ".endr",
    "ld.d $t0, $sp, 256",
    "movgr2fcsr $fcsr0, $t0",
    "ld.d $s7, $sp, 8",         // where to resume
    ".irp n,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,31",
    "ld.d $r\\n, $sp, 8*\\n",
    ".endr",
    "ld.d $ra, $sp, 1304",      // the slot
    "addi.d $sp, $sp, 1312",
    "jr $s7",
    ".popsection",
    undefined = const UNDEFINED,
    level = sym TRAMPOLINE_LEVEL,
    hook = sym crate::probe::pushed,
);

/// An instruction that no version of the architecture has.
const UNDEFINED: u32 = 0xffff_ffff;

/// The vectors that the trampoline saves.
static TRAMPOLINE_LEVEL: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32) -> c_int;
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
    // SAFETY: the caller's obligation.
    unsafe { asm!(".word {}", const UNDEFINED) };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = false;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::Tp, "the thread's")];

/// DWARF's numbers of registers (the LoongArch psABI): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
    1,
    &[
        Reg::Ra,
        Reg::Tp,
        Reg::Sp,
        Reg::A0,
        Reg::A1,
        Reg::A2,
        Reg::A3,
        Reg::A4,
        Reg::A5,
        Reg::A6,
        Reg::A7,
        Reg::T0,
        Reg::T1,
        Reg::T2,
        Reg::T3,
        Reg::T4,
        Reg::T5,
        Reg::T6,
        Reg::T7,
        Reg::T8,
        Reg::R21,
        Reg::Fp,
        Reg::S0,
        Reg::S1,
        Reg::S2,
        Reg::S3,
        Reg::S4,
        Reg::S5,
        Reg::S6,
        Reg::S7,
        Reg::S8,
    ],
)];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([-16, -8]);

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// The trampoline for `push_call`.
pub(crate) fn pushed_trampoline() -> usize {
    TRAMPOLINE_LEVEL.store(level() as u32, Ordering::Relaxed);
    trampoline_code as *const () as usize
}

/// The frame pointer, as the function that this is inlined into has it.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("move {}, $fp", out(reg) fp, options(nomem, nostack)) };
    fp
}
