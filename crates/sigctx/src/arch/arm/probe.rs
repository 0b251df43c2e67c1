//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! Which vectors there are is looked up at run time: none, d0-15 (VFP) or d0-31 (NEON). The
//! loop has a part in ARM code and one in Thumb code, most of which is in IT blocks.

use core::arch::{asm, global_asm};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{RawAction, Reg, SigContext, SigInfoHead, SignalStack, Status, Ucontext};
use crate::probe::Instruction;

pub(crate) const NAME: &str = "arm";

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];

/// libc's, which include `asm/sigcontext.h`: the kernel gives away no `asm/ucontext.h`.
pub(crate) const LAYOUT_HEADERS: &str = "\
#define _GNU_SOURCE
#include <signal.h>
#include <ucontext.h>
#include <asm/sigcontext.h>
";

/// All but sp, which points at the table, and pc.
const GENERAL: [Reg; 14] = [
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
    Reg::Lr,
];

#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    general: [u32; 14],
    flags: u32,
    fpscr: u32,
    vectors: [u64; 32],
}

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It
/// is what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    /// Where the loop's last instruction jumps to.
    next: AtomicUsize,
    /// Where the loop's Thumb part begins, with bit 0 set: a jump through memory needs no
    /// register to change the instruction set.
    thumb: usize,
    host_sp: u32,
    host_fpscr: u32,
    level: u32,
}

/// What a program can set in cpsr.
const FLAGS: Status =
    Status::N.union(Status::Z).union(Status::C).union(Status::V).union(Status::Q).union(Status::GE);

/// Rounding, flushing to zero, default NaN.
const FPSCR_MODES: u32 = 0x03c0_0000;
/// Flags, and sticky exceptions.
const FPSCR_FLAGS: u32 = 0xf000_009f;
/// Alternative half precision (`VFPv4`).
const FPSCR_AHP: u32 = 1 << 26;
/// Saturation, sticky (NEON).
const FPSCR_QC: u32 = 1 << 27;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in &mut given.general {
            *value = next() as u32;
        }
        for value in &mut given.vectors {
            *value = next();
        }
        given.flags = next() as u32 & FLAGS.bits() as u32;
        given.fpscr = next() as u32 & fpscr_bits();
        self.thumb = &raw const THUMB as usize | 1;
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
            check(reg.name(), 0, given.general[i].into(), found.general[i].into());
        }
        check("cpsr", 0, given.flags.into(), u64::from(found.flags) & FLAGS.bits());
        let vectors = match level() {
            Level::None => return,
            Level::D16 => 16,
            Level::D32 => 32,
        };
        check("fpscr", 0, given.fpscr.into(), found.fpscr.into());
        for i in 0..vectors {
            check("d", i, given.vectors[i], found.vectors[i]);
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
    None = 0,
    D16 = 1,
    D32 = 2,
}

const VFP: u32 = 1 << 6;
const NEON: u32 = 1 << 12;
const VFPV4: u32 = 1 << 16;
const VFP_D32: u32 = 1 << 19;

fn capabilities() -> u32 {
    // SAFETY: reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP) as u32 }
}

/// As the assembly reads it, too; `u32::MAX` until the first look.
static LEVEL: AtomicU32 = AtomicU32::new(u32::MAX);

fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::None,
        1 => Level::D16,
        2 => Level::D32,
        _ => {
            let has = capabilities();
            let level = if has & (VFP_D32 | NEON) != 0 {
                Level::D32
            } else if has & VFP != 0 {
                Level::D16
            } else {
                Level::None
            };
            LEVEL.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

/// The bits of fpscr that can be set here, without those for vectors of the old kind.
fn fpscr_bits() -> u32 {
    let has = capabilities();
    let ahp = if has & VFPV4 != 0 { FPSCR_AHP } else { 0 };
    let qc = if has & NEON != 0 { FPSCR_QC } else { 0 };
    FPSCR_MODES | FPSCR_FLAGS | ahp | qc
}

/// Reads a line of objdump's.
pub(crate) fn instruction(line: &str) -> Instruction {
    let mut words = line.split('\t').skip(1);
    let (name, operands) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let immediate = |prefix: &str| {
        let number = operands.strip_prefix(prefix)?;
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        number[..end].parse().ok()
    };
    // In `{r4, r5, lr}`, or `{d8-d11}`.
    let listed = || -> usize {
        let (_, list) = operands.split_once('{').unwrap_or_default();
        let (list, _) = list.split_once('}').unwrap_or_default();
        let size = if list.starts_with('d') { 8 } else { 4 };
        let number = |register: &str| register[1..].parse::<usize>().ok();
        let count = |item: &str| match item.split_once('-') {
            Some((first, last)) => {
                number(last).zip(number(first)).map_or(1, |(last, first)| last - first + 1)
            }
            None => 1,
        };
        size * list.split(", ").map(count).sum::<usize>()
    };
    let stack = match name.trim_end_matches(".w") {
        "push" | "vpush" => listed(),
        "stmdb" | "stmfd" if operands.starts_with("sp!") => listed(),
        "sub" | "subw" => immediate("sp, sp, #").or_else(|| immediate("sp, #")).unwrap_or(0),
        "str" => {
            let offset = operands.split_once(", [sp, #-").and_then(|(_, n)| n.strip_suffix("]!"));
            offset.and_then(|n| n.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    };
    let relocations = [
        "R_ARM_CALL",
        "R_ARM_JUMP24",
        "R_ARM_PLT",
        "R_ARM_THM_CALL",
        "R_ARM_THM_JUMP24",
        "R_ARM_GOT",
        "R_ARM_TLS",
    ];
    let direct = operands.starts_with(|c: char| c.is_ascii_digit());
    Instruction {
        system_call: name == "svc",
        outside: matches!(name, "bl" | "blx") && direct
            || relocations.iter().any(|kind| line.contains(kind)),
        // The thread pointer is read from a coprocessor.
        thread_local: name == "mrc" && operands.contains("cr13") || line.contains("R_ARM_TLS"),
        stack,
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::None => "general registers, flags",
        Level::D16 => "general registers, flags, fpscr, d0-15",
        Level::D32 => "general registers, flags, fpscr, d0-31",
    }
}

// Between `loop` and `exit` every register holds its pattern, and sp points at the table.
// {given} and {found} are offsets of the two states.
global_asm!(
    ".arm",
    ".arch armv7-a",            // IT blocks and flags that older compilation targets lack
    ".fpu neon",
    ".pushsection .text.sigctx_probe, \"ax\", %progbits",
    ".balign 64",
    function!("probe_spin"),   // r0 = table
    ".fnstart",                 // unwinders show no frame of code without a table
    "push {{r3-r11, lr}}",
    "ldr r1, [r0, #{level}]",
    "cmp r1, #1",
    "blo 21f",
    "vpush {{d8-d15}}",
    "vmrs r2, fpscr",
    "str r2, [r0, #{host_fpscr}]",
    "add r2, r0, #{given_vectors}",
    "vldm r2!, {{d0-d15}}",
    "vldmhi r2, {{d16-d31}}",
    "ldr r2, [r0, #{given_fpscr}]",
    "vmsr fpscr, r2",
    "21:",
    "str sp, [r0, #{host_sp}]",
    "ldr r1, [r0, #{given_flags}]",
    "msr APSR_nzcvqg, r1",
    "mov sp, r0",               // loads leave the flags alone, here and at the end
    "ldm sp, {{r0-r12, lr}}",
    global!("probe_loop"),
    ".rept 96",
    "nop",
    "add r0, r0, #1",
    "sub r0, r0, #1",
    "addeq r1, r1, #3",
    "addne r1, r1, #3",
    "sub r1, r1, #3",
    ".rept 2",                  // exchanges r2 and r3, twice
    "eor r2, r2, r3",
    "eor r3, r2, r3",
    "eor r2, r2, r3",
    ".endr",
    ".endr",
    "ldr pc, [sp, #{thumb}]",
    ".thumb",
    global!("probe_thumb"),
    // An instruction whose condition gets lost is executed, and the sum is another.
    ".rept 200",
    "itete eq",
    "addeq r0, r0, #1",
    "addne r0, r0, #1",
    "addeq r1, r1, #1",
    "addne r1, r1, #1",
    "sub.w r0, r0, #1",
    "sub.w r1, r1, #1",
    "ite cs",
    "addcs.w r8, r8, #5",
    "addcc.w r8, r8, #3",
    "nop",
    "ite cs",
    "subcs.w r8, r8, #5",
    "subcc.w r8, r8, #3",
    ".endr",
    "ldr.w pc, [sp, #{next}]",
    ".balign 4",
    ".arm",
    global!("probe_exit"),
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12",
    "str r\\n, [sp, #({found} + 4*\\n)]",
    ".endr",
    "str lr, [sp, #({found} + 52)]",
    "mov r0, sp",
    "ldr sp, [r0, #{host_sp}]",
    "mrs r1, APSR",
    "str r1, [r0, #{found_flags}]",
    "ldr r1, [r0, #{level}]",
    "cmp r1, #1",
    "blo 22f",
    "vmrs r2, fpscr",
    "str r2, [r0, #{found_fpscr}]",
    "add r2, r0, #{found_vectors}",
    "vstm r2!, {{d0-d15}}",
    "vstmhi r2, {{d16-d31}}",
    "ldr r2, [r0, #{host_fpscr}]",
    "vmsr fpscr, r2",
    "vpop {{d8-d15}}",
    "22:",
    "pop {{r3-r11, pc}}",
    // Writes something else into everything. r0 = level.
    ".fnend",
    function!("probe_clobber"),
    "push {{r3-r11, lr}}",
    "ldr r1, 39f",              // values for the vectors
    "mvn r2, r1",
    "cmp r0, #1",
    "blo 32f",
    "vpush {{d8-d15}}",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmov d\\n, r1, r2",
    ".endr",
    "bls 31f",
    ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmov d\\n, r1, r2",
    ".endr",
    "31:",
    "vmrs r3, fpscr",
    "ldr r4, 39f + 4",
    "eor r4, r3, r4",           // everything the other way
    "vmsr fpscr, r4",
    "ldr r4, 39f + 8",
    "eor r4, r3, r4",           // modes as a function must leave them, flags the other way
    "vmsr fpscr, r4",
    "vpop {{d8-d15}}",
    "32:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12",
    "mov r\\n, #0xaa000000",
    ".endr",
    "mov lr, #0xaa000000",
    "mvn r0, #0",
    "msr APSR_nzcvqg, r0",
    "pop {{r3-r11, pc}}",
    "39: .word 0x5a5a5a5a, {fpscr_all}, {fpscr_flags}",
    ".popsection",
    given_flags = const offset_of!(Table, given.flags),
    given_fpscr = const offset_of!(Table, given.fpscr),
    given_vectors = const offset_of!(Table, given.vectors),
    found = const offset_of!(Table, found.general),
    found_flags = const offset_of!(Table, found.flags),
    found_fpscr = const offset_of!(Table, found.fpscr),
    found_vectors = const offset_of!(Table, found.vectors),
    next = const offset_of!(Table, next),
    thumb = const offset_of!(Table, thumb),
    host_sp = const offset_of!(Table, host_sp),
    host_fpscr = const offset_of!(Table, host_fpscr),
    level = const offset_of!(Table, level),
    fpscr_all = const FPSCR_MODES | FPSCR_FLAGS | FPSCR_AHP | FPSCR_QC,
    fpscr_flags = const FPSCR_FLAGS | FPSCR_QC,
);

/// The loop reads the general registers from the table's start.
const _: () = assert!(offset_of!(Table, given.general) == 0);

// Values that name their registers; then an undefined instruction, whose handler steps over it.
// Not one register is left to find the way back with, the stack pointer included: it is in a
// static.
global_asm!(
    ".arm",
    ".arch armv7-a",
    ".fpu neon",
    ".pushsection .bss.sigctx_probe_saved, \"aw\", %nobits",
    ".balign 4",
    concat!(symbol!("probe_saved"), ": .skip 4"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", %progbits",
    ".balign 4",
    function!("probe_known"),
    "push {{r3-r11, lr}}",
    "ldr r0, 48f",
    "41: str sp, [pc, r0]",     // pc is two instructions further on
    "ldr r0, 48f + 8",
    "msr APSR_nzcvqg, r0",
    "adr lr, 49f",
    "ldm lr, {{r0-r12}}",
    "ldr sp, [lr, #52]",
    "ldr lr, [lr, #56]",
    global!("probe_known_pc"),
    "udf #0",
    "ldr r0, 48f + 4",
    "42: ldr sp, [pc, r0]",
    "pop {{r3-r11, pc}}",
    "48:",
    concat!(".word ", symbol!("probe_saved"), " - (41b + 8)"),
    concat!(".word ", symbol!("probe_saved"), " - (42b + 8)"),
    ".word {flags}",
    "49:",
    ".word 0xf0f0f0f0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606",
    ".word 0x07070707, 0x08080808, 0x09090909, 0x10101010, 0x11111111, 0x12121212, 0x13131310",
    ".word 0x14141414",
    // Nothing special in any register. In a function of its own, since KNOWN_STEP is that of
    // ARM code.
    function!("probe_undefined"),
    "udf #0",
    "bx lr",
    // What `push_call` is meant for: a trampoline that keeps everything itself. lr = where to
    // go on, [sp] = the interrupted lr.
    function!("probe_trampoline"),
    "push {{r0-r12, lr}}",
    "mrs r4, APSR",
    "mov r5, sp",
    "bic sp, sp, #7",
    "ldr r6, 59f",
    "51: ldr r6, [pc, r6]",     // the level
    "cmp r6, #1",
    "blo 52f",
    "vmrs r7, fpscr",
    "vpush {{d0-d7}}",          // d8-d15 are callee-saved
    "vpushhi {{d16-d31}}",
    "mov r0, #0",
    "vmsr fpscr, r0",
    "52:",
    "bl {hook}",
    "cmp r6, #1",
    "blo 53f",
    "vpophi {{d16-d31}}",
    "vpop {{d0-d7}}",
    "vmsr fpscr, r7",
    "53:",
    "mov sp, r5",
    "msr APSR_nzcvqg, r4",
    "ldr lr, [sp, #56]",
    "pop {{r0-r12}}",
    "ldr pc, [sp], #8",         // goes on, and takes the slot away: no register is needed
    "59: .word {known_level} - (51b + 8)",
    ".popsection",
    flags = const FLAGS.bits() as u32,
    hook = sym crate::probe::pushed,
    known_level = sym LEVEL,
);

unsafe extern "C" {
    #[link_name = symbol!("probe_thumb")]
    static THUMB: u8;
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32) -> c_int;
    #[link_name = symbol!("probe_undefined")]
    fn undefined_code();
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
    unsafe { undefined_code() };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 4;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[];

/// DWARF's numbers of registers (AADWARF32): the first, and those from it on. The EHABI's unwinder keeps
/// something of its own in r12.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[
    (
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
        ],
    ),
    (13, &[Reg::Sp, Reg::Lr]),
];

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 4]);

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// The trampoline for `push_call`, which reads the level.
pub(crate) fn pushed_trampoline() -> usize {
    level();
    trampoline_code as *const () as usize
}

/// The frame pointer, as the function that this is inlined into has it: all of Rust's code is
/// in the same instruction set, which a function's address tells.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    let thumb = crate::probe::pushed as *const () as usize & 1 != 0;
    if thumb {
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, r7", out(reg) fp, options(nomem, nostack, preserves_flags)) };
    } else {
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, r11", out(reg) fp, options(nomem, nostack, preserves_flags)) };
    }
    fp
}
