//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! Which vectors there are is looked up at run time: SSE (xmm0-15), AVX (ymm0-15) or AVX-512
//! (zmm0-31, k0-7).
//!
//! This file is long because its assembly, the table that it fills and what compares them go together.

use core::arch::global_asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{RawAction, Reg, SigContext, SigInfoHead, SignalStack, Status, Ucontext};
use crate::probe::Instruction;

/// The name of the architecture, with what tells it from its variants.
pub(crate) const NAME: &str = "x86_64";

/// Every layout of the kernel's, for comparison with the C headers.
pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];

/// What a C program includes to have the types that [`LAYOUTS`] names. Without libc's headers: they
/// have types of the same names.
pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// The general registers, in the order of the table: all but the stack pointer, which points at
/// the table.
const GENERAL: [Reg; 15] = [
    Reg::Rax,
    Reg::Rbx,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rsi,
    Reg::Rdi,
    Reg::Rbp,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];

/// Every register that code can hold a value in, once.
#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    general: [u64; 15],
    flags: u64,
    mxcsr: u32,
    x87_control: u16,
    x87_status: u16,
    masks: [u64; 8],
    /// Ten bytes are used of sixteen.
    x87: [[u64; 2]; 8],
    vectors: [[u64; 8]; 32],
}

/// What the loop holds (`given`), what it had at the end (`found`), and where it goes next. It is
/// what the stack pointer points at while the loop runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Table {
    given: State,
    found: State,
    /// Where the loop's last instruction jumps to: a jump through memory needs no register and
    /// changes no flag.
    next: AtomicUsize,
    host_sp: u64,
    host_saved: [u64; 6],
    host_mxcsr: u32,
    host_x87_control: u32,
    level: u32,
}

/// Arithmetic flags and direction: what a sigreturn restores (`FIX_EFLAGS` in the kernel) and is
/// not harmful. The CPUID bit is not among them: an ordinary handler loses it, too. The alignment
/// check flag would make unaligned accesses fault.
const FLAGS: Status = Status::CF
    .union(Status::PF)
    .union(Status::AF)
    .union(Status::ZF)
    .union(Status::SF)
    .union(Status::DF)
    .union(Status::OF);
/// Always set: the reserved bit 1 and interrupts.
const FLAGS_SET: u64 = 2 | Status::IF.bits();

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in given.general.iter_mut().chain(&mut given.masks) {
            *value = next();
        }
        for value in given.vectors.iter_mut().flatten() {
            *value = next();
        }
        given.flags = next() & FLAGS.bits() | FLAGS_SET;
        // All exceptions masked (bits 7-12); sticky flags, rounding, flush to zero at random.
        given.mxcsr = next() as u32 & 0xffff | 0x1f80;
        // All exceptions masked (bits 0-5), bit 6 is always set; precision and rounding at random.
        given.x87_control = next() as u16 & 0x0f00 | 0x7f;
        for value in &mut given.x87 {
            // A normal number: loading one leaves it as it is.
            *value = [next() | 1 << 63, next() & 0x7fff | 1];
            value[1] = (value[1] & 0x3fff) + 0x1000;
        }
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
        check("rflags", 0, given.flags, found.flags);
        check("mxcsr", 0, given.mxcsr.into(), found.mxcsr.into());
        check("x87 control", 0, given.x87_control.into(), found.x87_control.into());
        // Eight values loaded, nothing else happened: the top is 0 again and no flag is set.
        check("x87 status", 0, 0, found.x87_status.into());
        for i in 0..8 {
            check("x87", 2 * i, given.x87[i][0], found.x87[i][0]);
            check("x87", 2 * i + 1, given.x87[i][1] & 0xffff, found.x87[i][1] & 0xffff);
        }
        let (vectors, words) = match level() {
            Level::Sse => (16, 2),
            Level::Avx => (16, 4),
            Level::Avx512 => (32, 8),
        };
        for i in 0..vectors {
            for word in 0..words {
                check("vector", 8 * i + word, given.vectors[i][word], found.vectors[i][word]);
            }
        }
        if level() == Level::Avx512 {
            for i in 0..8 {
                check("mask", i, given.masks[i], found.masks[i]);
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
    Sse = 0,
    Avx = 1,
    Avx512 = 2,
}

fn level() -> Level {
    static KNOWN: AtomicU32 = AtomicU32::new(u32::MAX);
    match KNOWN.load(Ordering::Relaxed) {
        0 => Level::Sse,
        1 => Level::Avx,
        2 => Level::Avx512,
        _ => {
            let level = detect();
            KNOWN.store(level as u32, Ordering::Relaxed);
            level
        }
    }
}

fn detect() -> Level {
    const OSXSAVE: u32 = 1 << 27;
    const AVX: u32 = 1 << 28;
    const AVX512F: u32 = 1 << 16;
    /// 64-bit mask registers.
    const AVX512BW: u32 = 1 << 30;

    let features = __cpuid(1).ecx;
    if features & (OSXSAVE | AVX) != OSXSAVE | AVX {
        return Level::Sse;
    }
    let enabled: u32;
    // SAFETY: the CPU has xgetbv (OSXSAVE); it reads register 0, which says what the kernel saves.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, lateout("eax") enabled, lateout("edx") _,
        options(nomem, nostack, preserves_flags));
    }
    let more = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    if enabled & 0xe6 == 0xe6 && more & (AVX512F | AVX512BW) == AVX512F | AVX512BW {
        Level::Avx512
    } else if enabled & 0x6 == 0x6 {
        Level::Avx
    } else {
        Level::Sse
    }
}

/// Reads a line of objdump's, in AT&T syntax.
pub(crate) fn instruction(line: &str) -> Instruction {
    // In `sub $0x58,%rsp`.
    let reserved = line.split_once("sub ").and_then(|(_, operands)| {
        let (number, _) = operands.trim_start().strip_prefix("$0x")?.split_once(",%rsp")?;
        usize::from_str_radix(number, 16).ok()
    });
    let relocations = ["R_X86_64_PLT", "R_X86_64_GOT", "R_X86_64_TLS", "TPOFF"];
    Instruction {
        system_call: line.contains("\tsyscall"),
        outside: line.contains("\tcall") && !line.contains("call   *%r")
            || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("%fs:") || line.contains("%gs:"),
        stack: reserved.unwrap_or_default() + if line.contains("\tpush ") { 8 } else { 0 },
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Sse => "general registers, flags, x87, xmm0-15",
        Level::Avx => "general registers, flags, x87, ymm0-15",
        Level::Avx512 => "general registers, flags, x87, zmm0-31, k0-7",
    }
}

// Between `loop` and `exit` every register holds its pattern, and rsp points at the table, below
// which lies a patterned red zone. {given} and {found} are offsets of the two states.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".balign 64",
    global!("probe_spin"),   // rdi = table
    "mov [rdi + {saved}], rbx",
    "mov [rdi + {saved} + 8], rbp",
    "mov [rdi + {saved} + 16], r12",
    "mov [rdi + {saved} + 24], r13",
    "mov [rdi + {saved} + 32], r14",
    "mov [rdi + {saved} + 40], r15",
    "stmxcsr [rdi + {host_mxcsr}]",
    "fnstcw [rdi + {host_x87}]",
    "cmp dword ptr [rdi + {level}], 1",
    "je 21f",
    "ja 22f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movups xmm\\n, [rdi + {given_vectors} + 64*\\n]",
    ".endr",
    "jmp 23f",
    "21:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\n, [rdi + {given_vectors} + 64*\\n]",
    ".endr",
    "jmp 23f",
    "22:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 zmm\\n, [rdi + {given_vectors} + 64*\\n]",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "kmovq k\\n, [rdi + {given_masks} + 8*\\n]",
    ".endr",
    "23:",
    "fninit",
    ".irp n,7,6,5,4,3,2,1,0",
    "fld tbyte ptr [rdi + {given_x87} + 16*\\n]",
    ".endr",
    "fldcw [rdi + {given_x87_control}]",
    "ldmxcsr [rdi + {given_mxcsr}]",
    "mov [rdi + {host_sp}], rsp",
    "push qword ptr [rdi + {given_flags}]",
    "popfq",
    "mov rsp, rdi",             // mov leaves the flags alone, here and at the end
    "mov rax, [rsp]",
    "mov rbx, [rsp + 8]",
    "mov rcx, [rsp + 16]",
    "mov rdx, [rsp + 24]",
    "mov rsi, [rsp + 32]",
    "mov rdi, [rsp + 40]",
    "mov rbp, [rsp + 48]",
    ".irp n,8,9,10,11,12,13,14,15",
    "mov r\\n, [rsp + 8*\\n - 8]",
    ".endr",
    global!("probe_loop"),
    ".rept 64",
    "nop",
    "lea rax, [rax + 1]",
    "lea rax, [rax - 1]",
    "xchg r12, r13",
    "xchg r13, r12",
    ".endr",
    "jmp qword ptr [rsp + {next}]",
    global!("probe_exit"),
    "mov [rsp + {found}], rax",
    "mov [rsp + {found} + 8], rbx",
    "mov [rsp + {found} + 16], rcx",
    "mov [rsp + {found} + 24], rdx",
    "mov [rsp + {found} + 32], rsi",
    "mov [rsp + {found} + 40], rdi",
    "mov [rsp + {found} + 48], rbp",
    ".irp n,8,9,10,11,12,13,14,15",
    "mov [rsp + {found} + 8*\\n - 8], r\\n",
    ".endr",
    "mov rdi, rsp",
    "mov rsp, [rdi + {host_sp}]",
    "pushfq",
    "pop qword ptr [rdi + {found_flags}]",
    "cld",
    "stmxcsr [rdi + {found_mxcsr}]",
    "fnstcw [rdi + {found_x87_control}]",
    "fnstsw [rdi + {found_x87_status}]",
    ".irp n,0,1,2,3,4,5,6,7",
    "fstp tbyte ptr [rdi + {found_x87} + 16*\\n]",
    ".endr",
    "cmp dword ptr [rdi + {level}], 1",
    "je 24f",
    "ja 25f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "movups [rdi + {found_vectors} + 64*\\n], xmm\\n",
    ".endr",
    "jmp 26f",
    "24:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [rdi + {found_vectors} + 64*\\n], ymm\\n",
    ".endr",
    "vzeroupper",
    "jmp 26f",
    "25:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 [rdi + {found_vectors} + 64*\\n], zmm\\n",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "kmovq [rdi + {found_masks} + 8*\\n], k\\n",
    ".endr",
    "vzeroupper",
    "26:",
    "fninit",
    "fldcw [rdi + {host_x87}]",
    "ldmxcsr [rdi + {host_mxcsr}]",
    "mov rbx, [rdi + {saved}]",
    "mov rbp, [rdi + {saved} + 8]",
    "mov r12, [rdi + {saved} + 16]",
    "mov r13, [rdi + {saved} + 24]",
    "mov r14, [rdi + {saved} + 32]",
    "mov r15, [rdi + {saved} + 40]",
    "ret",
    // Writes something else into everything. edi = level.
    global!("probe_clobber"),
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 24",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rsp + 8], edi",
    "mov dword ptr [rsp + 12], 0xffbf", // all sticky flags, rounding and flushing the other way
    "ldmxcsr [rsp + 12]",
    "fninit",
    ".rept 7",
    "fldl2e",
    ".endr",
    "mov word ptr [rsp + 16], 0x0c7f",
    "fldcw [rsp + 16]",
    "cmp edi, 1",
    "je 31f",
    "ja 32f",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "pcmpeqd xmm\\n, xmm\\n",
    ".endr",
    "jmp 33f",
    "31:",
    "vpcmpeqd xmm0, xmm0, xmm0",
    "vinsertf128 ymm0, ymm0, xmm0, 1",
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovaps ymm\\n, ymm0",
    ".endr",
    "jmp 33f",
    "32:",
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
    ".endr",
    ".irp n,0,1,2,3,4,5,6,7",
    "kxnorq k\\n, k\\n, k\\n",
    ".endr",
    "33:",
    "mov rax, -0x5555555555555556",
    ".irp r,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
    "mov \\r, rax",
    ".endr",
    "push 0xad7",               // every arithmetic flag, and direction in a moment
    "popfq",
    "std",
    // Back to what the ABI promises the caller.
    "cld",
    "cmp dword ptr [rsp + 8], 0",
    "je 34f",
    "vzeroupper",
    "34:",
    "fninit",
    "fldcw [rsp + 4]",
    "ldmxcsr [rsp]",
    "add rsp, 24",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    given_flags = const offset_of!(Table, given.flags),
    given_mxcsr = const offset_of!(Table, given.mxcsr),
    given_x87_control = const offset_of!(Table, given.x87_control),
    given_masks = const offset_of!(Table, given.masks),
    given_x87 = const offset_of!(Table, given.x87),
    given_vectors = const offset_of!(Table, given.vectors),
    found = const offset_of!(Table, found.general),
    found_flags = const offset_of!(Table, found.flags),
    found_mxcsr = const offset_of!(Table, found.mxcsr),
    found_x87_control = const offset_of!(Table, found.x87_control),
    found_x87_status = const offset_of!(Table, found.x87_status),
    found_masks = const offset_of!(Table, found.masks),
    found_x87 = const offset_of!(Table, found.x87),
    found_vectors = const offset_of!(Table, found.vectors),
    next = const offset_of!(Table, next),
    host_sp = const offset_of!(Table, host_sp),
    saved = const offset_of!(Table, host_saved),
    host_mxcsr = const offset_of!(Table, host_mxcsr),
    host_x87 = const offset_of!(Table, host_x87_control),
    level = const offset_of!(Table, level),
);

/// The loop reads the general registers from the table's start.
const _: () = assert!(offset_of!(Table, given.general) == 0);

// Values that name their registers; then an undefined instruction, whose handler steps over it.
// Not one register is left to find the way back with, the stack pointer included: it is in a
// static.
global_asm!(
    ".pushsection .bss.sigctx_probe_saved, \"aw\", @nobits",
    ".balign 8",
    concat!(symbol!("probe_saved"), ": .skip 8"),
    ".popsection",
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    global!("probe_known"),
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    concat!("mov [rip + ", symbol!("probe_saved"), "], rsp"),
    "push {flags}",
    "popfq",
    "movabs rsp, 0x00005b5b5b5b5b5b",   // in the half of the addresses that is the user's
    "movabs rax, 0xa0a0a0a0a0a0a0a0",
    "movabs rbx, 0xb0b0b0b0b0b0b0b0",
    "movabs rcx, 0xc0c0c0c0c0c0c0c0",
    "movabs rdx, 0xd0d0d0d0d0d0d0d0",
    "movabs rsi, 0x5151515151515151",
    "movabs rdi, 0xd1d1d1d1d1d1d1d1",
    "movabs rbp, 0xbbbbbbbbbbbbbbbb",
    "movabs r8,  0x0808080808080808",
    "movabs r9,  0x0909090909090909",
    "movabs r10, 0x1010101010101010",
    "movabs r11, 0x1111111111111111",
    "movabs r12, 0x1212121212121212",
    "movabs r13, 0x1313131313131313",
    "movabs r14, 0x1414141414141414",
    "movabs r15, 0x1515151515151515",
    global!("probe_known_pc"),
    "ud2",
    "cld",
    concat!("mov rsp, [rip + ", symbol!("probe_saved"), "]"),
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // What `push_call` is meant for: a trampoline that keeps everything itself. The handler has
    // lowered the stack pointer by the red zone; the last instruction gives it back.
    global!("probe_trampoline"),
    "pushfq",
    ".irp r,rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
    "push \\r",
    ".endr",
    "cld",
    "mov rbp, rsp",
    "sub rsp, 512",
    "and rsp, -64",
    "fxsave64 [rsp]",           // the callee is compiled for SSE, which leaves the rest alone
    "mov qword ptr [rsp - 8], 0x1f80",
    "ldmxcsr [rsp - 8]",
    "fninit",
    "call {hook}",
    "fxrstor64 [rsp]",
    "mov rsp, rbp",
    ".irp r,r15,r14,r13,r12,r11,r10,r9,r8,rbp,rdi,rsi,rdx,rcx,rbx,rax",
    "pop \\r",
    ".endr",
    "popfq",
    "ret 128",
    ".popsection",
    flags = const (FLAGS.bits() | FLAGS_SET) as i32,
    hook = sym crate::probe::pushed,
);

unsafe extern "C" {
    #[link_name = symbol!("probe_clobber")]
    fn clobber_code(level: u32) -> c_int;
    #[link_name = symbol!("probe_trampoline")]
    fn trampoline_code();
}

/// Writes something else into every register, vector, mask, flag and control word.
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
    unsafe { core::arch::asm!("ud2") };
}

/// How long the undefined instruction is.
pub(crate) const KNOWN_STEP: usize = 2;

/// Whether the kernel says where an undefined instruction is, when it raises the signal.
pub(crate) const UNDEFINED_IS_LOCATED: bool = true;

/// Registers that are the thread's or the program's own: no code changes them, and their values
/// are different in every run.
pub(crate) const OWN: &[(Reg, &str)] = &[];

/// DWARF's numbers of registers (the System V psABI): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] = &[(
    0,
    &[
        Reg::Rax,
        Reg::Rdx,
        Reg::Rcx,
        Reg::Rbx,
        Reg::Rsi,
        Reg::Rdi,
        Reg::Rbp,
        Reg::Rsp,
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
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes. `None`
/// where code keeps no frame pointers.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = Some([0, 8]);

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
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) fp, options(nomem, nostack)) };
    fp
}

/// Makes the interrupted code raise `SIGTRAP` after every instruction, until its flags are
/// restored from elsewhere.
/// Says whether it can.
pub(crate) fn single_step(ctx: &mut crate::SigCtx<'_>) -> bool {
    ctx.set_status(ctx.status() | Status::TF);
    true
}
