//! Assembly that holds a pattern in every register.
//!
//! Which vectors there are is looked up at run time: 16 doubles (FR=0, of o32 alone), 32 doubles (FR=1)
//! or 32 MSA vectors, whose lower halves the doubles are.
//!
//! No jump on this architecture finds its target in memory: the loop's needs a register, and so
//! does a trampoline that `push_call` enters, when it goes back. Both use s7, as Go does in its
//! `asyncPreempt`, and no pattern is held there; nor in k0 and k1, which are the kernel's. The
//! accumulators of the DSP extension are not patterned either: emulators do not say whether
//! they have it.
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::{asm, global_asm};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::abi::{
    HOME, REGS_8_TO_15, add_const, address, align_down, double, global_pointer, kept_doubles, load,
    load_address, load_page, low_part, set_isa, store,
};
use super::{ExtContext, RawAction, Reg, SigContext, SigInfoHead, SignalStack, Status, Ucontext};
use crate::arch::layout::Structure;
use crate::probe::Instruction;
use crate::sys;

pub(crate) const NAME: &str = match (cfg!(target_arch = "mips64"), cfg!(target_endian = "big")) {
    (false, true) => "mips",
    (false, false) => "mipsel",
    (true, true) => "mips64",
    (true, false) => "mips64el",
};

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
    ExtContext::LAYOUT,
];

pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The general registers that hold a pattern, with their numbers. The stack pointer points at
/// the table.
const GENERAL: [(usize, Reg); 27] = [
    (1, Reg::At),
    (2, Reg::V0),
    (3, Reg::V1),
    (4, Reg::A0),
    (5, Reg::A1),
    (6, Reg::A2),
    (7, Reg::A3),
    (8, REGS_8_TO_15[0]),
    (9, REGS_8_TO_15[1]),
    (10, REGS_8_TO_15[2]),
    (11, REGS_8_TO_15[3]),
    (12, REGS_8_TO_15[4]),
    (13, REGS_8_TO_15[5]),
    (14, REGS_8_TO_15[6]),
    (15, REGS_8_TO_15[7]),
    (16, Reg::S0),
    (17, Reg::S1),
    (18, Reg::S2),
    (19, Reg::S3),
    (20, Reg::S4),
    (21, Reg::S5),
    (22, Reg::S6),
    (24, Reg::T8),
    (25, Reg::T9),
    (28, Reg::Gp),
    (30, Reg::Fp),
    (31, Reg::Ra),
];

/// Every register that code can hold a value in.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    /// By number.
    general: [usize; 32],
    hi: usize,
    lo: usize,
    fcsr: u32,
    msacsr: u32,
    /// By number; the lower half is the double.
    vectors: [[u64; 2]; 32],
}

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
/// is what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    next: AtomicUsize,
    level: u32,
    host_fcsr: u32,
    host_msacsr: u32,
    host_general: [usize; 32],
    host_doubles: [u64; 32],
}

/// What code can write at will: condition codes, flush to zero, flags and rounding. With a
/// cause and its enable bit it would trap.
const FCSR: Status = Status::RM
    .union(Status::FLAG_I)
    .union(Status::FLAG_U)
    .union(Status::FLAG_O)
    .union(Status::FLAG_Z)
    .union(Status::FLAG_V)
    .union(Status::FS)
    .union(Status::FCC0)
    .union(Status::FCC1)
    .union(Status::FCC2)
    .union(Status::FCC3)
    .union(Status::FCC4)
    .union(Status::FCC5)
    .union(Status::FCC6)
    .union(Status::FCC7);
/// The same of the vectors' control register: flush to zero, flags and rounding.
const MSACSR: u32 = 0x0100_007f;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in given.general.iter_mut().chain([&mut given.hi, &mut given.lo]) {
            *value = next() as usize;
        }
        for value in given.vectors.iter_mut().flatten() {
            *value = next();
        }
        given.fcsr = (next() & FCSR.bits()) as u32;
        given.msacsr = next() as u32 & MSACSR;
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
        for (number, reg) in GENERAL {
            check(reg.name(), 0, given.general[number] as u64, found.general[number] as u64);
        }
        check("hi", 0, given.hi as u64, found.hi as u64);
        check("lo", 0, given.lo as u64, found.lo as u64);
        check("fcsr", 0, given.fcsr.into(), found.fcsr.into());
        let step = if level() == Level::Even { 2 } else { 1 };
        for i in (0..32).step_by(step) {
            check("fpr", i, given.vectors[i][0], found.vectors[i][0]);
        }
        if level() == Level::Msa {
            check("msacsr", 0, given.msacsr.into(), found.msacsr.into());
            for i in 0..32 {
                check("msa", i, given.vectors[i][1], found.vectors[i][1]);
            }
        }
    }

    /// The word that the loop jumps to.
    pub(crate) fn next(&self) -> &AtomicUsize {
        &self.next
    }
}

/// The floating point registers that the CPU, the kernel and the mode of this process give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Level {
    Even = 1,
    All = 2,
    Msa = 3,
}

fn level() -> Level {
    // SAFETY: a word of its own.
    match unsafe { LEVEL.load(Ordering::Relaxed) } {
        1 => Level::Even,
        2 => Level::All,
        3 => Level::Msa,
        _ => {
            let level = detect();
            // SAFETY: as before.
            unsafe { LEVEL.store(level as u32, Ordering::Relaxed) };
            level
        }
    }
}

fn detect() -> Level {
    /// `HWCAP_MIPS_MSA` of `asm/hwcap.h`.
    const MSA: core::ffi::c_ulong = 1 << 1;
    /// `PR_GET_FP_MODE` and `PR_FP_MODE_FR` of `linux/prctl.h`.
    const GET_FP_MODE: usize = 46;
    const FR: usize = 1;

    if cfg!(target_arch = "mips") {
        // SAFETY: only asks. A kernel that does not know the question knows no other mode.
        let mode = unsafe { sys::syscall(libc::SYS_prctl, [GET_FP_MODE, 0, 0, 0, 0, 0]) };
        if mode.unwrap_or(0) & FR == 0 {
            return Level::Even;
        }
    }
    // SAFETY: reads the auxiliary vector.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP) };
    if capabilities & MSA == 0 { Level::All } else { Level::Msa }
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `addiu sp,sp,-88`, or `daddiu`.
    let reserved = line.split_once("addiu\tsp,sp,-").map(|(_, number)| number);
    let relocations = ["R_MIPS_CALL", "R_MIPS_JALR", "R_MIPS_26", "R_MIPS_TLS"];
    Instruction {
        system_call: line.contains("\tsyscall"),
        // Every call is through t9; what calls a certain function says so to the linker.
        // Entries of the global offset table that are not for calls are filled when a file is
        // loaded.
        outside: line.contains("\tbal\t") || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("rdhwr") || line.contains("R_MIPS_TLS"),
        stack: reserved.and_then(|number| number.trim().parse().ok()).unwrap_or_default(),
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Even => "general registers but s7, hi, lo, fcsr, f0-30 even",
        Level::All => "general registers but s7, hi, lo, fcsr, f0-31",
        Level::Msa => "general registers but s7, hi, lo, fcsr, msacsr, w0-31",
    }
}

/// Loads or stores all floating point registers, by the level in register `$level`: `$double`
/// or `$msa` with each register and `$at`, in which `\n` is its number. Uses $3.
macro_rules! each_vector {
    ($level:literal, $double:literal, $msa:literal, $at:literal) => {
        concat!(
            "addiu $3, ",
            $level,
            ", -2\nbeqz $3, 21f\nnop\nbgtz $3, 22f\nnop\n",
            ".irp n,0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30\n",
            $double,
            " $f\\n, ",
            $at,
            "\n.endr\nb 23f\nnop\n21:\n.set push\n.set fp=64\n",
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,",
            "16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            $double,
            " $f\\n, ",
            $at,
            "\n.endr\nb 23f\nnop\n22:\n.set msa\n",
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,",
            "16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
            $msa,
            " $w\\n, ",
            $at,
            "\n.endr\n.set pop\n23:\n"
        )
    };
}

// Between `loop` and `exit` every register holds its pattern, and $29 points at the table,
// below which lies a patterned red zone.
global_asm!(
    ".pushsection .bss.sigctx_probe, \"aw\", @nobits",
    ".balign 4",
    concat!(".globl ", symbol!("probe_level")),
    concat!(".hidden ", symbol!("probe_level")),
    concat!(symbol!("probe_level"), ": .skip 4"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".set push",
    set_isa!(),
    ".set noreorder",
    ".set noat",
    ".set nomacro",
    ".balign 64",
    function!("probe_spin"),   // $4 = table
    ".irp n,16,17,18,19,20,21,22,23,28,29,30,31",
    store!("$\\n, {host} + {word}*\\n($4)"),
    ".endr",
    kept_doubles!(),
    "sdc1 $f\\n, {host_doubles} + 8*\\n($4)",
    ".endr",
    "cfc1 $2, $31",
    "sw $2, {host_fcsr}($4)",
    "lw $2, {level}($4)",
    each_vector!("$2", "ldc1", "ld.d", "{given_vectors} + 16*\\n($4)"),
    "blez $3, 24f",             // not MSA
    "nop",
    ".set push",
    ".set msa",
    "cfcmsa $2, $1",
    "sw $2, {host_msacsr}($4)",
    "lw $2, {given_msacsr}($4)",
    "ctcmsa $1, $2",
    ".set pop",
    "24:",
    load!("$2, {given_hi}($4)"),
    "mthi $2",
    load!("$2, {given_lo}($4)"),
    "mtlo $2",
    "lw $2, {given_fcsr}($4)",
    "ctc1 $2, $31",
    "move $29, $4",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
    load!("$\\n, {given} + {word}*\\n($29)"),
    ".endr",
    global!("probe_loop"),
    ".rept 64",
    "nop",
    add_const!("$2, $2, 1"),
    add_const!("$2, $2, -1"),
    "b 1f",                     // may be interrupted between a jump and what goes with it
    "xori $1, $1, 0x55",
    "1:",
    "bne $29, $0, 2f",
    "xori $1, $1, 0x55",
    "2:",
    "xor $16, $16, $17",
    "xor $16, $16, $17",
    ".endr",
    load!("$23, {next}($29)"),
    "jr $23",
    "nop",
    global!("probe_exit"),
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
    store!("$\\n, {found} + {word}*\\n($29)"),
    ".endr",
    "move $4, $29",
    "mfhi $2",
    store!("$2, {found_hi}($4)"),
    "mflo $2",
    store!("$2, {found_lo}($4)"),
    "cfc1 $2, $31",
    "sw $2, {found_fcsr}($4)",
    "lw $2, {level}($4)",
    each_vector!("$2", "sdc1", "st.d", "{found_vectors} + 16*\\n($4)"),
    "blez $3, 25f",
    "nop",
    ".set push",
    ".set msa",
    "cfcmsa $2, $1",
    "sw $2, {found_msacsr}($4)",
    "lw $2, {host_msacsr}($4)",
    "ctcmsa $1, $2",
    ".set pop",
    "25:",
    "lw $2, {host_fcsr}($4)",
    "ctc1 $2, $31",
    kept_doubles!(),
    "ldc1 $f\\n, {host_doubles} + 8*\\n($4)",
    ".endr",
    ".irp n,16,17,18,19,20,21,22,23,28,29,30,31",
    load!("$\\n, {host} + {word}*\\n($4)"),
    ".endr",
    "jr $31",
    "nop",
    // Writes something else into everything. $4 = level.
    function!("probe_clobber"),
    add_const!("$29, $29, -208"),
    ".irp n,16,17,18,19,20,21,22,23",
    store!("$\\n, {word}*(\\n - 16)($29)"),
    ".endr",
    store!("$28, {word}*8($29)"),
    store!("$30, {word}*9($29)"),
    store!("$31, {word}*10($29)"),
    "cfc1 $2, $31",
    "sw $2, 88($29)",
    kept_doubles!(),
    "sdc1 $f\\n, 96 + 8*(\\n - 20)($29)",
    ".endr",
    "lui $2, 0xaaaa",
    ".irp n,0,1,2,3",
    "sw $2, 192 + 4*\\n($29)",
    ".endr",
    each_vector!("$4", "ldc1", "ld.d", "192($29)"),
    "blez $3, 31f",
    "nop",
    ".set push",
    ".set msa",
    "cfcmsa $5, $1",
    "addiu $2, $0, 0x7e",       // other flags, other rounding
    "ctcmsa $1, $2",
    "xori $5, $5, 0x7c",        // flags are no caller's, as those of the other control word
    "ctcmsa $1, $5",
    ".set pop",
    "31:",
    "lui $2, 0xff80",           // every condition code, flush to zero, flags, rounding
    "ori $2, $2, 0x007e",
    "ctc1 $2, $31",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,30,31",
    "lui $\\n, 0xa500 + \\n",
    ".endr",
    "mthi $2",
    "mtlo $3",
    // Back to what the ABI promises the caller: not the condition codes, nor the flags.
    "lw $2, 88($29)",
    "lui $3, 0xfe80",
    "ori $3, $3, 0x007c",
    "xor $2, $2, $3",
    "ctc1 $2, $31",
    kept_doubles!(),
    "ldc1 $f\\n, 96 + 8*(\\n - 20)($29)",
    ".endr",
    ".irp n,16,17,18,19,20,21,22,23",
    load!("$\\n, {word}*(\\n - 16)($29)"),
    ".endr",
    load!("$28, {word}*8($29)"),
    load!("$30, {word}*9($29)"),
    load!("$31, {word}*10($29)"),
    "jr $31",
    add_const!("$29, $29, 208"),
    ".set pop",
    ".popsection",
    word = const size_of::<usize>(),
    level = const offset_of!(Table, level),
    next = const offset_of!(Table, next),
    given = const offset_of!(Table, given.general),
    given_hi = const offset_of!(Table, given.hi),
    given_lo = const offset_of!(Table, given.lo),
    given_fcsr = const offset_of!(Table, given.fcsr),
    given_msacsr = const offset_of!(Table, given.msacsr),
    given_vectors = const offset_of!(Table, given.vectors),
    found = const offset_of!(Table, found.general),
    found_hi = const offset_of!(Table, found.hi),
    found_lo = const offset_of!(Table, found.lo),
    found_fcsr = const offset_of!(Table, found.fcsr),
    found_msacsr = const offset_of!(Table, found.msacsr),
    found_vectors = const offset_of!(Table, found.vectors),
    host = const offset_of!(Table, host_general),
    host_doubles = const offset_of!(Table, host_doubles),
    host_fcsr = const offset_of!(Table, host_fcsr),
    host_msacsr = const offset_of!(Table, host_msacsr),
);

/// Offsets of vectors are ten bits, of eight bytes each.
const _: () = assert!(offset_of!(Table, found.vectors) + 31 * 16 < 512 * 8);

// Values that name their registers: those of the general ones by number in decimal, 0x81 and
// 0x80 for hi and lo. fcsr is 0, which is also what a stack that no code has used yet has in its
// place: an emulator may leave the word out.
global_asm!(
    ".pushsection .bss.sigctx_probe, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 8"),
    ".popsection",
    ".pushsection .data.rel.ro.sigctx_probe, \"aw\", @progbits",
    ".balign 8",
    concat!(symbol!("probe_hook"), ":"),
    address!("{hook}"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".set push",
    set_isa!(),
    ".set noreorder",
    ".set noat",
    ".set nomacro",
    function!("probe_known"),
    global_pointer!("$3", "probe_known", "$25"),
    add_const!("$29, $29, -96"),
    ".irp n,16,17,18,19,20,21,22,23",
    store!("$\\n, {word}*(\\n - 16)($29)"),
    ".endr",
    store!("$28, {word}*8($29)"),
    store!("$30, {word}*9($29)"),
    store!("$31, {word}*10($29)"),
    "cfc1 $2, $31",
    "sw $2, 88($29)",
    "ctc1 $0, $31",
    load_page!("$2", "probe_saved", "$3"),
    store!("$29, ", low_part!("probe_saved"), "($2)"),
    "lui $2, 0x8181",
    "ori $2, $2, 0x8181",
    double!("$2"),
    "mthi $2",
    "lui $2, 0x8080",
    "ori $2, $2, 0x8080",
    double!("$2"),
    "mtlo $2",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,28,30,31",
    "lui $\\n, (\\n / 10 * 16 + \\n % 10) * 0x101",
    "ori $\\n, $\\n, (\\n / 10 * 16 + \\n % 10) * 0x101",
    double!("$\\n"),
    ".endr",
    "lui $29, 0x2929",          // in the half of the addresses that is the user's
    "ori $29, $29, 0x2929",
    global!("probe_known_pc"),
    ".word 0x04170000",         // reserved for this
    "bal 1f",
    "nop",
    "1:",
    concat!(symbol!("probe_back"), ":"), // in $31
    global_pointer!("$3", "probe_back", "$31"),
    load_page!("$2", "probe_saved", "$3"),
    load!("$29, ", low_part!("probe_saved"), "($2)"),
    "lw $2, 88($29)",
    "ctc1 $2, $31",
    ".irp n,16,17,18,19,20,21,22,23",
    load!("$\\n, {word}*(\\n - 16)($29)"),
    ".endr",
    load!("$28, {word}*8($29)"),
    load!("$30, {word}*9($29)"),
    load!("$31, {word}*10($29)"),
    "jr $31",
    add_const!("$29, $29, 96"),
    // What `push_call` is meant for: a trampoline that keeps everything itself, but for s7. At
    // the stack pointer there is the interrupted code's $31, in $31 where that code goes on.
    // The handler has lowered the stack pointer by the red zone before; the last instruction
    // gives it back.
    function!("probe_trampoline"),
    add_const!("$29, $29, -32*{word}"),
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30,31",
    store!("$\\n, {word}*\\n($29)"),
    ".endr",
    "mfhi $2",
    store!("$2, 0($29)"),
    "mflo $2",
    store!("$2, {word}*26($29)"),
    "cfc1 $17, $31",
    "ctc1 $0, $31",
    "bal 4f",
    "move $16, $29",            // the callee keeps it
    "4:",
    concat!(symbol!("probe_kept"), ":"), // in $31
    global_pointer!("$28", "probe_kept", "$31"),
    load_address!("$2", "probe_level", "$28"),
    "lw $18, 0($2)",
    add_const!("$29, $29, -({home} + 512)"),
    align_down!("$29"),
    each_vector!("$18", "sdc1", "st.d", "{home} + 16*\\n($29)"),
    load_page!("$2", "probe_hook", "$28"),
    load!("$25, ", low_part!("probe_hook"), "($2)"),
    "jalr $25",
    "nop",
    each_vector!("$18", "ldc1", "ld.d", "{home} + 16*\\n($29)"),
    "ctc1 $17, $31",
    "move $29, $16",
    load!("$2, 0($29)"),
    "mthi $2",
    load!("$2, {word}*26($29)"),
    "mtlo $2",
    load!("$23, {word}*31($29)"),
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,24,25,28,30",
    load!("$\\n, {word}*\\n($29)"),
    ".endr",
    load!("$31, 32*{word}($29)"),
    "jr $23",
    add_const!("$29, $29, 33*{word} + {red_zone}"),
    ".set pop",
    ".popsection",
    hook = sym crate::probe::pushed,
    home = const HOME,
    word = const size_of::<usize>(),
    red_zone = const super::RED_ZONE,
);

unsafe extern "C" {
    #[link_name = symbol!("probe_level")]
    static LEVEL: AtomicU32;
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
    unsafe { asm!(".word 0x04170000") };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = false;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[];

/// DWARF's numbers of registers (gcc): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[
    (1, &[Reg::At, Reg::V0, Reg::V1, Reg::A0, Reg::A1, Reg::A2, Reg::A3]),
    (8, &REGS_8_TO_15),
    (16, &[Reg::S0, Reg::S1, Reg::S2, Reg::S3, Reg::S4, Reg::S5, Reg::S6, Reg::S7]),
    (24, &[Reg::T8, Reg::T9]),
    (28, &[Reg::Gp, Reg::Sp, Reg::Fp, Reg::Ra]),
    (64, &[Reg::Hi, Reg::Lo]),
];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// The trampoline for `push_call`.
pub(crate) fn pushed_trampoline() -> usize {
    trampoline_code as *const () as usize
}

/// 0: functions leave no records here that a frame pointer would lead to.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    0
}
