//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! gp and tp are the program's and the thread's: handlers count on them, so gp is only watched,
//! and tp may change with the thread. Vectors are looked up at run time.
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::{asm, global_asm};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{
    LongSigContext, RawAction, RecordHeader, Reg, SigContext, SigInfoHead, SignalStack, Ucontext,
    VectorState, vector_length,
};
use crate::arch::window;
use crate::probe::Instruction;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "riscv64";

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    LongSigContext::LAYOUT,
    RecordHeader::LAYOUT,
    VectorState::LAYOUT,
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
    (Reg::Gp, 3),
    (Reg::T0, 5),
    (Reg::T1, 6),
    (Reg::T2, 7),
    (Reg::S0, 8),
    (Reg::S1, 9),
    (Reg::A0, 10),
    (Reg::A1, 11),
    (Reg::A2, 12),
    (Reg::A3, 13),
    (Reg::A4, 14),
    (Reg::A5, 15),
    (Reg::A6, 16),
    (Reg::A7, 17),
    (Reg::S2, 18),
    (Reg::S3, 19),
    (Reg::S4, 20),
    (Reg::S5, 21),
    (Reg::S6, 22),
    (Reg::S7, 23),
    (Reg::S8, 24),
    (Reg::S9, 25),
    (Reg::S10, 26),
    (Reg::S11, 27),
    (Reg::T3, 28),
    (Reg::T4, 29),
    (Reg::T5, 30),
    (Reg::T6, 31),
];
/// The numbers of t5 and t6, which have the same value: see the loop.
const TWINS: (usize, usize) = (30, 31);

/// Width of the elements, registers in a group (logarithms both), policies: every bit of vtype
/// is in some set and in some clear. Few, because qemu translates all code anew for each.
const VTYPES: [(u64, u64, u64); 4] = [(0, 0, 0), (1, 2, 1), (2, 1, 2), (3, 3, 3)];

/// The longest vectors that the table has room for, in bytes.
const MAX_VECTOR: usize = 128;

/// Every register that code can hold a value in, once; vectors are behind the table.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    /// By number.
    general: [u64; 32],
    floats: [u64; 32],
    fcsr: u64,
    vstart: u64,
    vl: u64,
    vtype: u64,
    vcsr: u64,
}

/// As many words as the vectors have, one register after the other.
type Vectors = [u64; 32 * MAX_VECTOR / 8];

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
    host_saved: [u64; 12],
    host_floats: [u64; 12],
    host_fcsr: u64,
    level: u64,
    given_vectors: Vectors,
    found_vectors: Vectors,
}

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in given.general.iter_mut().chain(&mut given.floats) {
            *value = next();
        }
        given.general[TWINS.1] = given.general[TWINS.0];
        // Any flags; five rounding modes.
        given.fcsr = next() & 0x1f | (next() % 5) << 5;
        self.level = level() as u64;
        if level() == Level::Vector {
            let length = vector_length();
            for value in self.given_vectors.iter_mut().take(32 * length / 8) {
                *value = next();
            }
            let given = &mut self.given;
            let (width, group, policies) = VTYPES[next() as usize % VTYPES.len()];
            given.vtype = group | width << 3 | policies << 6;
            // At least two elements, of which the first has been done.
            let most = (length as u64 >> width) << group;
            given.vl = next() % most;
            given.vstart = 1 + next() % (most - 1);
            given.vcsr = next() & 7;
        }
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
            let resumed = reg == Reg::T6
                && crate::probe::pushed_calls() > 0
                && window().contains(&(found.general[i] as usize));
            if !resumed {
                check(reg.name(), 0, given.general[i], found.general[i]);
            }
        }
        check("fcsr", 0, given.fcsr, found.fcsr);
        for i in 0..32 {
            check("f", i, given.floats[i], found.floats[i]);
        }
        if level() == Level::Vector {
            check("vstart", 0, given.vstart, found.vstart);
            check("vl", 0, given.vl, found.vl);
            check("vtype", 0, given.vtype, found.vtype);
            check("vcsr", 0, given.vcsr, found.vcsr);
            for i in 0..32 * vector_length() / 8 {
                check("v", i, self.given_vectors[i], self.found_vectors[i]);
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
    Vector = 1,
    /// Vectors longer than the table has room for.
    LongVector = 2,
}

fn level() -> Level {
    static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
    match KNOWN.load(Ordering::Relaxed) {
        0 => Level::Float,
        1 => Level::Vector,
        2 => Level::LongVector,
        _ => {
            let level = detect();
            KNOWN.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

fn detect() -> Level {
    /// A letter of the ISA's name each: `COMPAT_HWCAP_ISA_V`.
    const V: u64 = 1 << (b'V' - b'A');
    // SAFETY: reads the auxiliary vector.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
    if capabilities & V == 0 {
        Level::Float
    } else if vector_length() <= MAX_VECTOR {
        Level::Vector
    } else {
        Level::LongVector
    }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `addi sp,sp,-32`; larger frames are in a register.
    let reserved = line.split_once("\tsp,sp,-").and_then(|(_, number)| {
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..end].parse().ok()
    });
    let relocations =
        ["R_RISCV_CALL", "R_RISCV_JAL", "R_RISCV_GOT", "R_RISCV_TLS", "R_RISCV_TPREL"];
    let calls = ["\tjal\t", "\tcall\t", "\ttail\t"];
    Instruction {
        system_call: line.contains("\tecall"),
        outside: calls.iter().any(|call| line.contains(call))
            || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("(tp)") || line.contains(",tp"),
        stack: reserved.unwrap_or_default(),
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Float => "general registers, fcsr, f0-31",
        Level::Vector => "general registers, fcsr, f0-31, v0-31, vstart, vl, vtype, vcsr",
        Level::LongVector => "general registers, fcsr, f0-31, but no vectors of this length",
    }
}

// Between `loop` and `exit` every register holds its pattern, and sp points at the table.
//
// A jump through memory needs a register. It is t6, which has the same value as t5: the loop
// ends with a comparison of the two, and leaves if they differ. Then t6 is free for the jump,
// outside of the window, and the first instruction of the loop (or of the exit) sets it again.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".option push",
    ".option arch, +d, +v",
    ".balign 64",
    global!("probe_spin"),   // a0 = table
    "sd ra, {host_ra}(a0)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "sd s\\n, {saved} + 8*\\n(a0)",
    "fsd fs\\n, {host_floats} + 8*\\n(a0)",
    ".endr",
    "frcsr t0",
    "sd t0, {host_fcsr}(a0)",
    "sd gp, {given} + 8*3(a0)",
    "ld t0, {level}(a0)",
    "li t1, 1",
    "bne t0, t1, 21f",
    "li t1, {given_vectors}",
    "add t1, t1, a0",
    "csrr t2, vlenb",
    "slli t2, t2, 3",           // eight registers
    ".irp n,0,8,16,24",
    "vl8re8.v v\\n, (t1)",
    "add t1, t1, t2",
    ".endr",
    "ld t0, {given_vl}(a0)",
    "ld t1, {given_vtype}(a0)",
    "vsetvl zero, t0, t1",
    "ld t0, {given_vcsr}(a0)",
    "csrw vcsr, t0",
    "ld t0, {given_vstart}(a0)",
    "csrw vstart, t0",          // last: every vector instruction clears it
    "21:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fld f\\n, {given_floats} + 8*\\n(a0)",
    ".endr",
    "ld t0, {given_fcsr}(a0)",
    "fscsr t0",
    "sd sp, {host_sp}(a0)",
    "mv sp, a0",
    ".irp n,1,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ld x\\n, {given} + 8*\\n(sp)",
    ".endr",
    global!("probe_loop"),
    "mv t6, t5",
    ".rept 256",                // long: in qemu much of the time goes into the jump back
    "nop",
    "addi a0, a0, 1",
    "addi a0, a0, -1",
    "xor s2, s2, s3",
    "xor s2, s2, s3",
    "fsgnj.d fa0, fa0, fa0",    // a copy: no flag, no rounding
    "j 25f",                    // an emulator delivers signals after jumps alone
    "25:",
    ".endr",
    "bne t5, t6, 22f",
    "j 23f",
    global!("probe_exit"),
    "mv t6, t5",
    "22:",
    ".irp n,1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "sd x\\n, {found} + 8*\\n(sp)",
    ".endr",
    "mv a0, sp",
    "ld sp, {host_sp}(a0)",
    "frcsr t0",
    "sd t0, {found_fcsr}(a0)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fsd f\\n, {found_floats} + 8*\\n(a0)",
    ".endr",
    "ld t0, {level}(a0)",
    "li t1, 1",
    "bne t0, t1, 24f",
    "csrr t0, vstart",
    "sd t0, {found_vstart}(a0)",
    "csrr t0, vl",
    "sd t0, {found_vl}(a0)",
    "csrr t0, vtype",
    "sd t0, {found_vtype}(a0)",
    "csrr t0, vcsr",
    "sd t0, {found_vcsr}(a0)",
    "csrw vstart, zero",
    "csrw vcsr, zero",
    "li t1, {found_vectors}",
    "add t1, t1, a0",
    "csrr t2, vlenb",
    "slli t2, t2, 3",
    ".irp n,0,8,16,24",
    "vs8r.v v\\n, (t1)",
    "add t1, t1, t2",
    ".endr",
    "24:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "ld s\\n, {saved} + 8*\\n(a0)",
    "fld fs\\n, {host_floats} + 8*\\n(a0)",
    ".endr",
    "ld t0, {host_fcsr}(a0)",
    "fscsr t0",
    "ld ra, {host_ra}(a0)",
    "ret",
    "23:",
    "ld t6, {next}(sp)",
    "jr t6",
    // Writes something else into everything. a0 = level.
    global!("probe_clobber"),
    "addi sp, sp, -208",
    "sd ra, 0(sp)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "sd s\\n, 8 + 8*\\n(sp)",
    "fsd fs\\n, 104 + 8*\\n(sp)",
    ".endr",
    "frcsr t0",
    "sd t0, 200(sp)",
    "li t0, 0x9f",              // all flags, and a rounding mode that no code uses
    "fscsr t0",
    "li t1, 1",
    "bne a0, t1, 31f",
    "vsetvli t0, zero, e8, m8, ta, ma",
    "vmv.v.i v0, -1",
    "vmv.v.i v8, -2",
    "vmv.v.i v16, -3",
    "vmv.v.i v24, -4",
    "csrwi vcsr, 7",
    "31:",
    "li t0, -0x5555555555555556",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fmv.d.x f\\n, t0",
    ".endr",
    ".irp n,1,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "mv x\\n, t0",
    ".endr",
    // Back to what the ABI promises the caller.
    "ld t0, 200(sp)",
    "andi t0, t0, 0xe0",        // the flags need not be kept
    "ori t0, t0, 0x1f",
    "fscsr t0",
    "ld ra, 0(sp)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "ld s\\n, 8 + 8*\\n(sp)",
    "fld fs\\n, 104 + 8*\\n(sp)",
    ".endr",
    "addi sp, sp, 208",
    "ret",
    ".option pop",
    ".popsection",
    given = const offset_of!(Table, given.general),
    given_floats = const offset_of!(Table, given.floats),
    given_fcsr = const offset_of!(Table, given.fcsr),
    given_vstart = const offset_of!(Table, given.vstart),
    given_vl = const offset_of!(Table, given.vl),
    given_vtype = const offset_of!(Table, given.vtype),
    given_vcsr = const offset_of!(Table, given.vcsr),
    given_vectors = const offset_of!(Table, given_vectors),
    found = const offset_of!(Table, found.general),
    found_floats = const offset_of!(Table, found.floats),
    found_fcsr = const offset_of!(Table, found.fcsr),
    found_vstart = const offset_of!(Table, found.vstart),
    found_vl = const offset_of!(Table, found.vl),
    found_vtype = const offset_of!(Table, found.vtype),
    found_vcsr = const offset_of!(Table, found.vcsr),
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
const _: () = assert!(offset_of!(Table, level) < 2048);

/// `fcsr` in the code below: towards zero, all flags.
const KNOWN_FCSR: u32 = 0x3f;

// Values that name their registers by number, in decimal digits; then an undefined instruction,
// whose handler steps over it. Not one register is left to find the way back with, the stack
// pointer included: it is in a static. gp and tp are as they are.
global_asm!(
    ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 8"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".option push",
    ".option arch, +d",
    global!("probe_known"),
    "addi sp, sp, -112",
    "sd ra, 0(sp)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "sd s\\n, 8 + 8*\\n(sp)",
    ".endr",
    "frcsr t0",
    "sd t0, 104(sp)",
    concat!("lla t0, ", symbol!("probe_saved")),
    "sd sp, 0(t0)",
    "li t0, {fcsr}",
    "fscsr t0",
    ".irp n,1,2,5,6,7,8,9",
    "li x\\n, 0x0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n\\()0\\n",
    ".endr",
    ".irp n,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "li x\\n, 0x\\n\\n\\n\\n\\n\\n\\n\\n",
    ".endr",
    global!("probe_known_pc"),
    ".option push",
    ".option norvc",
    "unimp",
    ".option pop",
    concat!("lla t0, ", symbol!("probe_saved")),
    "ld sp, 0(t0)",
    "ld t0, 104(sp)",
    "fscsr t0",
    "ld ra, 0(sp)",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11",
    "ld s\\n, 8 + 8*\\n(sp)",
    ".endr",
    "addi sp, sp, 112",
    "ret",
    // What `push_call` is meant for: a trampoline that keeps everything itself, t6 excepted.
    // ra is where to resume, its own value is in the slot. The hook is compiled without
    // vectors, and leaves them alone.
    global!("probe_trampoline"),
    "addi sp, sp, -520",        // 16-aligned with the slot
    ".irp n,1,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "sd x\\n, 8*\\n(sp)",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fsd f\\n, 256 + 8*\\n(sp)",
    ".endr",
    "frcsr t0",
    "sd t0, 512(sp)",
    "mv s0, sp",
    "andi sp, sp, -16",         // if the interrupted code was just about to align it
    "fscsr zero",
    "call {hook}",
    "mv sp, s0",
    "ld t0, 512(sp)",
    "fscsr t0",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "fld f\\n, 256 + 8*\\n(sp)",
    ".endr",
    ".irp n,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "ld x\\n, 8*\\n(sp)",
    ".endr",
    "ld t6, 8(sp)",             // where to resume
    "ld ra, 520(sp)",           // the slot
    "addi sp, sp, 528",
    "jr t6",
    ".option pop",
    ".popsection",
    fcsr = const KNOWN_FCSR,
    hook = sym crate::probe::pushed,
);

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
    unsafe { asm!(".option push", ".option norvc", "unimp", ".option pop") };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[(Reg::Gp, "the program's"), (Reg::Tp, "the thread's")];

/// DWARF's numbers of registers (the RISC-V psABI): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
    1,
    &[
        Reg::Ra,
        Reg::Sp,
        Reg::Gp,
        Reg::Tp,
        Reg::T0,
        Reg::T1,
        Reg::T2,
        Reg::S0,
        Reg::S1,
        Reg::A0,
        Reg::A1,
        Reg::A2,
        Reg::A3,
        Reg::A4,
        Reg::A5,
        Reg::A6,
        Reg::A7,
        Reg::S2,
        Reg::S3,
        Reg::S4,
        Reg::S5,
        Reg::S6,
        Reg::S7,
        Reg::S8,
        Reg::S9,
        Reg::S10,
        Reg::S11,
        Reg::T3,
        Reg::T4,
        Reg::T5,
        Reg::T6,
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
    trampoline_code as *const () as usize
}

/// The frame pointer, as the function that this is inlined into has it.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mv {}, s0", out(reg) fp, options(nomem, nostack)) };
    fp
}
