//! Assembly that holds a pattern in every register, for tests: one wrong bit anywhere shows.
//!
//! Which vectors there are is looked up at run time: SSE (xmm0-7), AVX (ymm0-7) or AVX-512
//! (zmm0-7, k0-7). A CPU without SSE has no probes.

use core::arch::global_asm;
use core::arch::x86::{__cpuid, __cpuid_count};
use core::ffi::c_int;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::super::layout::Structure;
use super::{RawAction, Reg, SigContext, SigInfoHead, SignalStack, Status, Ucontext};
use crate::probe::Instruction;

pub(crate) const NAME: &str = "x86";

pub(crate) const LAYOUTS: &[Structure] = &[
    SigInfoHead::LAYOUT,
    RawAction::LAYOUT,
    SignalStack::LAYOUT,
    SigContext::LAYOUT,
    Ucontext::LAYOUT,
];

pub(crate) const LAYOUT_HEADERS: &str = "\
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <asm/sigcontext.h>
#include <asm/ucontext.h>
";

/// In the order of the table: all but the stack pointer, which points at the table.
const GENERAL: [Reg; 7] = [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx, Reg::Esi, Reg::Edi, Reg::Ebp];

#[derive(Clone, Debug)]
#[repr(C)]
struct State {
    general: [u32; 7],
    flags: u32,
    mxcsr: u32,
    x87_control: u16,
    x87_status: u16,
    masks: [u64; 8],
    /// Ten bytes are used of sixteen.
    x87: [[u64; 2]; 8],
    vectors: [[u64; 8]; 8],
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
    host_sp: u32,
    host_saved: [u32; 4],
    host_mxcsr: u32,
    host_x87_control: u32,
    level: u32,
}

/// Arithmetic flags and direction: what a sigreturn restores and is not harmful.
const FLAGS: Status = Status::CF
    .union(Status::PF)
    .union(Status::AF)
    .union(Status::ZF)
    .union(Status::SF)
    .union(Status::DF)
    .union(Status::OF);
/// Always set: the reserved bit 1 and interrupts.
const FLAGS_SET: u32 = 2 | Status::IF.bits() as u32;

impl Table {
    /// Fills all registers from `next`, and what has rules of its own within its rules.
    pub(crate) fn fill(&mut self, mut next: impl FnMut() -> u64) {
        let given = &mut self.given;
        for value in &mut given.general {
            *value = next() as u32;
        }
        for value in given.masks.iter_mut().chain(given.vectors.iter_mut().flatten()) {
            *value = next();
        }
        given.flags = next() as u32 & FLAGS.bits() as u32 | FLAGS_SET;
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
            check(reg.name(), 0, given.general[i].into(), found.general[i].into());
        }
        check("eflags", 0, given.flags.into(), found.flags.into());
        check("mxcsr", 0, given.mxcsr.into(), found.mxcsr.into());
        check("x87 control", 0, given.x87_control.into(), found.x87_control.into());
        // Eight values loaded, nothing else happened: the top is 0 again and no flag is set.
        check("x87 status", 0, 0, found.x87_status.into());
        for i in 0..8 {
            check("x87", 2 * i, given.x87[i][0], found.x87[i][0]);
            check("x87", 2 * i + 1, given.x87[i][1] & 0xffff, found.x87[i][1] & 0xffff);
        }
        let words = match level() {
            Level::Sse => 2,
            Level::Avx => 4,
            Level::Avx512 => 8,
        };
        for i in 0..8 {
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
    // In `sub $0x58,%esp`.
    let reserved = line.split_once("sub ").and_then(|(_, operands)| {
        let (number, _) = operands.trim_start().strip_prefix("$0x")?.split_once(",%esp")?;
        usize::from_str_radix(number, 16).ok()
    });
    // A call of the next instruction, `call 1d <handler+0xd>`, is how code finds out where it is.
    let call = line.contains("\tcall") && !line.contains("call   *%") && !line.contains("+0x");
    let relocations = ["R_386_PLT", "R_386_PC", "R_386_GOT32", "R_386_TLS"];
    Instruction {
        system_call: line.contains("\tint    $0x80"),
        outside: call || relocations.iter().any(|kind| line.contains(kind)),
        thread_local: line.contains("%fs:") || line.contains("%gs:"),
        stack: reserved.unwrap_or_default() + if line.contains("\tpush ") { 4 } else { 0 },
    }
}

/// What the loop patterns, in words.
pub(crate) fn level_name() -> &'static str {
    match level() {
        Level::Sse => "general registers, flags, x87, xmm0-7",
        Level::Avx => "general registers, flags, x87, ymm0-7",
        Level::Avx512 => "general registers, flags, x87, zmm0-7, k0-7",
    }
}

// Between `loop` and `exit` every register holds its pattern, and esp points at the table.
// {given} and {found} are offsets of the two states.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    ".balign 64",
    function!("probe_spin"),   // [esp + 4] = table
    "mov eax, [esp + 4]",
    "mov [eax + {saved}], ebx",
    "mov [eax + {saved} + 4], ebp",
    "mov [eax + {saved} + 8], esi",
    "mov [eax + {saved} + 12], edi",
    "stmxcsr [eax + {host_mxcsr}]",
    "fnstcw [eax + {host_x87}]",
    "cmp dword ptr [eax + {level}], 1",
    "je 21f",
    "ja 22f",
    ".irp n,0,1,2,3,4,5,6,7",
    "movups xmm\\n, [eax + {given_vectors} + 64*\\n]",
    ".endr",
    "jmp 23f",
    "21:",
    ".irp n,0,1,2,3,4,5,6,7",
    "vmovdqu ymm\\n, [eax + {given_vectors} + 64*\\n]",
    ".endr",
    "jmp 23f",
    "22:",
    ".irp n,0,1,2,3,4,5,6,7",
    "vmovdqu64 zmm\\n, [eax + {given_vectors} + 64*\\n]",
    "kmovq k\\n, [eax + {given_masks} + 8*\\n]",
    ".endr",
    "23:",
    "fninit",
    ".irp n,7,6,5,4,3,2,1,0",
    "fld tbyte ptr [eax + {given_x87} + 16*\\n]",
    ".endr",
    "fldcw [eax + {given_x87_control}]",
    "ldmxcsr [eax + {given_mxcsr}]",
    "mov [eax + {host_sp}], esp",
    "push dword ptr [eax + {given_flags}]",
    "popfd",
    "mov esp, eax",             // mov leaves the flags alone, here and at the end
    "mov eax, [esp]",
    "mov ebx, [esp + 4]",
    "mov ecx, [esp + 8]",
    "mov edx, [esp + 12]",
    "mov esi, [esp + 16]",
    "mov edi, [esp + 20]",
    "mov ebp, [esp + 24]",
    global!("probe_loop"),
    ".rept 256",
    "nop",
    "lea eax, [eax + 1]",
    "lea eax, [eax - 1]",
    "xchg esi, edi",
    "xchg edi, esi",
    ".endr",
    "jmp dword ptr [esp + {next}]",
    global!("probe_exit"),
    "mov [esp + {found}], eax",
    "mov [esp + {found} + 4], ebx",
    "mov [esp + {found} + 8], ecx",
    "mov [esp + {found} + 12], edx",
    "mov [esp + {found} + 16], esi",
    "mov [esp + {found} + 20], edi",
    "mov [esp + {found} + 24], ebp",
    "mov eax, esp",
    "mov esp, [eax + {host_sp}]",
    "pushfd",
    "pop dword ptr [eax + {found_flags}]",
    "cld",
    "stmxcsr [eax + {found_mxcsr}]",
    "fnstcw [eax + {found_x87_control}]",
    "fnstsw [eax + {found_x87_status}]",
    ".irp n,0,1,2,3,4,5,6,7",
    "fstp tbyte ptr [eax + {found_x87} + 16*\\n]",
    ".endr",
    "cmp dword ptr [eax + {level}], 1",
    "je 24f",
    "ja 25f",
    ".irp n,0,1,2,3,4,5,6,7",
    "movups [eax + {found_vectors} + 64*\\n], xmm\\n",
    ".endr",
    "jmp 26f",
    "24:",
    ".irp n,0,1,2,3,4,5,6,7",
    "vmovdqu [eax + {found_vectors} + 64*\\n], ymm\\n",
    ".endr",
    "vzeroupper",
    "jmp 26f",
    "25:",
    ".irp n,0,1,2,3,4,5,6,7",
    "vmovdqu64 [eax + {found_vectors} + 64*\\n], zmm\\n",
    "kmovq [eax + {found_masks} + 8*\\n], k\\n",
    ".endr",
    "vzeroupper",
    "26:",
    "fninit",
    "fldcw [eax + {host_x87}]",
    "ldmxcsr [eax + {host_mxcsr}]",
    "mov ebx, [eax + {saved}]",
    "mov ebp, [eax + {saved} + 4]",
    "mov esi, [eax + {saved} + 8]",
    "mov edi, [eax + {saved} + 12]",
    "ret",
    // Writes something else into everything. [esp + 4] = level.
    function!("probe_clobber"),
    "push ebx",
    "push ebp",
    "push esi",
    "push edi",
    "sub esp, 24",
    "stmxcsr [esp]",
    "fnstcw [esp + 4]",
    "mov dword ptr [esp + 12], 0xffbf", // all sticky flags, rounding and flushing the other way
    "ldmxcsr [esp + 12]",
    "fninit",
    ".rept 7",
    "fldl2e",
    ".endr",
    "mov word ptr [esp + 16], 0x0c7f",
    "fldcw [esp + 16]",
    "mov eax, [esp + 44]",
    "mov [esp + 8], eax",
    "cmp eax, 1",
    "je 31f",
    "ja 32f",
    ".irp n,0,1,2,3,4,5,6,7",
    "pcmpeqd xmm\\n, xmm\\n",
    ".endr",
    "jmp 33f",
    "31:",
    "vpcmpeqd xmm0, xmm0, xmm0",
    "vinsertf128 ymm0, ymm0, xmm0, 1",
    ".irp n,1,2,3,4,5,6,7",
    "vmovaps ymm\\n, ymm0",
    ".endr",
    "jmp 33f",
    "32:",
    ".irp n,0,1,2,3,4,5,6,7",
    "vpternlogd zmm\\n, zmm\\n, zmm\\n, 0xff",
    "kxnorq k\\n, k\\n, k\\n",
    ".endr",
    "33:",
    ".irp r,eax,ebx,ecx,edx,esi,edi,ebp",
    "mov \\r, 0xaaaaaaaa",
    ".endr",
    "push 0xad7",               // every arithmetic flag, and direction in a moment
    "popfd",
    "std",
    // Back to what the ABI promises the caller.
    "cld",
    "cmp dword ptr [esp + 8], 0",
    "je 34f",
    "vzeroupper",
    "34:",
    "fninit",
    "fldcw [esp + 4]",
    "ldmxcsr [esp]",
    "add esp, 24",
    "pop edi",
    "pop esi",
    "pop ebp",
    "pop ebx",
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
// Without a stack code cannot find out where it is, nor a static, so the stack pointer is in a
// vector register.
global_asm!(
    ".pushsection .text.sigctx_probe, \"ax\", @progbits",
    function!("probe_known"),
    "push ebx",
    "push ebp",
    "push esi",
    "push edi",
    "movd xmm7, esp",
    "push {flags}",
    "popfd",
    "mov esp, 0x5b5b5b5b",
    "mov eax, 0xa0a0a0a0",
    "mov ebx, 0xb0b0b0b0",
    "mov ecx, 0xc0c0c0c0",
    "mov edx, 0xd0d0d0d0",
    "mov esi, 0x51515151",
    "mov edi, 0xd1d1d1d1",
    "mov ebp, 0xbbbbbbbb",
    global!("probe_known_pc"),
    "ud2",
    "cld",
    "movd esp, xmm7",
    "pop edi",
    "pop esi",
    "pop ebp",
    "pop ebx",
    "ret",
    // What `push_call` is meant for: a trampoline that keeps everything itself. [esp] = where to
    // go on.
    function!("probe_trampoline"),
    "pushfd",
    ".irp r,eax,ebx,ecx,edx,esi,edi,ebp",
    "push \\r",
    ".endr",
    "cld",
    "mov ebp, esp",
    "sub esp, 576",
    "and esp, -64",
    "fxsave [esp + 64]",        // the callee is compiled for SSE, which leaves the rest alone
    "mov dword ptr [esp], 0x1f80",
    "ldmxcsr [esp]",
    "fninit",
    "call {hook}",
    "fxrstor [esp + 64]",
    "mov esp, ebp",
    ".irp r,ebp,edi,esi,edx,ecx,ebx,eax",
    "pop \\r",
    ".endr",
    "popfd",
    "ret",
    ".popsection",
    flags = const (FLAGS.bits() as u32 | FLAGS_SET) as i32,
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

/// DWARF's numbers of registers (the i386 psABI): the first, and those from it on.
pub(crate) const DWARF: &[(u16, &[Reg])] =
    &[(0, &[Reg::Eax, Reg::Ecx, Reg::Edx, Reg::Ebx, Reg::Esp, Reg::Ebp, Reg::Esi, Reg::Edi])];

/// What DWARF calls a frame's address (CFA) is so much above the caller's stack pointer.
pub(crate) const CFA_ABOVE_SP: usize = 0;

/// From a frame pointer to the frame pointer before it, and to the return address, in bytes.
/// `None`: code that is not told to keep frame pointers (then it is 0 and 4) has no register to
/// spare for one.
pub(crate) const FRAME_POINTER_TO: Option<[isize; 2]> = None;

/// Addresses of faults are multiples of this.
pub(crate) const FAULT_GRANULE: usize = 1;

/// What `CLONE_SETTLS` takes for a thread without thread-local storage: a descriptor that has the
/// segment in use begin at address 0.
pub(crate) fn no_storage() -> *mut core::ffi::c_void {
    let selector: u32;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {0:e}, gs", out(reg) selector, options(nomem, nostack));
    }
    // `struct user_desc`: entry, base, limit; a segment of 32 bits, counted in pages, usable.
    let descriptor = [selector >> 3, 0, 0xf_ffff, 1 | 1 << 4 | 1 << 6];
    core::ptr::from_mut(alloc::boxed::Box::leak(alloc::boxed::Box::new(descriptor))).cast()
}

/// The trampoline for `push_call`.
pub(crate) fn pushed_trampoline() -> usize {
    trampoline_code as *const () as usize
}

/// The frame pointer, as the function that this is inlined into has it.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let fp: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, ebp", out(reg) fp, options(nomem, nostack)) };
    fp
}

/// Makes the interrupted code raise `SIGTRAP` after every instruction, until its flags are
/// restored from elsewhere. Says whether it can.
pub(crate) fn single_step(ctx: &mut crate::SigCtx<'_>) -> bool {
    ctx.set_status(ctx.status() | Status::TF);
    true
}
