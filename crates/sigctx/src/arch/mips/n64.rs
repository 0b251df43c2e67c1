//! The n64 ABI: 64-bit registers. What is as in `o32` is explained there.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | records of the MSA vectors    |   where they were used; found by their order
//!        | ucontext       656 bytes      |<- $6
//!        | siginfo        128 bytes      |<- $5
//!        | two words of nothing          |
//!  low   | 16 bytes of nothing           |<- $29 (a multiple of 16; of 8 with emulators)
//! ```
//!
//! References: `MIPSpro` N32 ABI Handbook, chapter 2, also for n64.

use core::mem::size_of;

use super::SignalStack;
use crate::arch::layout::layout;
use crate::arch::registers::registers;
use crate::sys::SigSet;

// ---- assembly ----------------------------------------------------------------------------------

macro_rules! set_isa {
    () => {
        ".set mips64r2"
    };
}

macro_rules! load {
    ($($operands:expr),+) => { concat!("ld ", $($operands),+) };
}

macro_rules! store {
    ($($operands:expr),+) => { concat!("sd ", $($operands),+) };
}

macro_rules! add_const {
    ($($operands:expr),+) => { concat!("daddiu ", $($operands),+) };
}

macro_rules! address {
    ($operand:literal) => {
        concat!(".8byte ", $operand)
    };
}

#[cfg(feature = "probe")]
macro_rules! align_down {
    ($register:literal) => {
        concat!("dins ", $register, ", $0, 0, 4")
    };
}

#[cfg(feature = "probe")]
macro_rules! double {
    ($register:literal) => {
        concat!("dinsu ", $register, ", ", $register, ", 32, 32")
    };
}

macro_rules! global_pointer {
    ($into:literal, $symbol:literal, $here:literal) => {
        lines!(
            concat!("lui ", $into, ", %hi(%neg(%gp_rel(", symbol!($symbol), ")))"),
            concat!("daddiu ", $into, ", ", $into, ", %lo(%neg(%gp_rel(", symbol!($symbol), ")))"),
            concat!("daddu ", $into, ", ", $into, ", ", $here),
        )
    };
}

macro_rules! load_page {
    ($into:literal, $symbol:literal, $global_pointer:literal) => {
        concat!("ld ", $into, ", %got_page(", symbol!($symbol), ")(", $global_pointer, ")")
    };
}

macro_rules! low_part {
    ($symbol:literal) => {
        concat!("%got_ofst(", symbol!($symbol), ")")
    };
}

#[cfg(feature = "probe")]
macro_rules! load_address {
    ($into:literal, $symbol:literal, $global_pointer:literal) => {
        concat!("ld ", $into, ", %got_disp(", symbol!($symbol), ")(", $global_pointer, ")")
    };
}

/// All arguments of a system call are in registers.
macro_rules! arguments_to_the_stack {
    () => {
        ""
    };
}

macro_rules! arguments_off_the_stack {
    () => {
        ""
    };
}

/// $29 may be no multiple of 16, as the ABI wants it: it is kept in $16 for the return.
macro_rules! enter {
    () => {
        lines!(
            function!("entry"),
            ".cfi_startproc",
            "move $7, $29",         // fourth argument: where the frame begins
            "daddiu $29, $29, -48", // 24: $16, 32: $28, 40: $31
            ".cfi_def_cfa_offset 48",
            "sd $31, 40($29)",
            ".cfi_offset 31, -8",
            "sd $28, 32($29)", // callee-saved in this ABI
            ".cfi_offset 28, -16",
            "sd $16, 24($29)",
            ".cfi_offset 16, -24",
            "move $16, $29",
            ".cfi_def_cfa_register 16",
            global_pointer!("$28", "entry", "$25"),
            load_page!("$25", "calls", "$28"),
            load!("$25, ", low_part!("calls"), "($25)"),
            "jalr $25",           // dispatch
            "dins $29, $0, 0, 4", // a multiple of 16
            "bnez $2, 2f",
            "move $29, $16",
            ".cfi_def_cfa_register 29",
            "ld $31, 40($29)",
            "ld $28, 32($29)",
            "ld $16, 24($29)",
            "jr $31", // a plain return from the handler
            "daddiu $29, $29, 48",
            "2:",
            concat!("ld $25, %got_page(", symbol!("calls"), " + 8)($28)"),
            concat!("ld $25, %got_ofst(", symbol!("calls"), " + 8)($25)"), // run
            "ld $17, {back}($2)", // callee-saved, as $16: they outlive the call
            "ld $16, 0($2)",      // the copied frame
            ".cfi_endproc",
            end!("entry"),
        )
    };
}

macro_rules! kept_doubles {
    () => {
        ".irp n,24,25,26,27,28,29,30,31"
    };
}

pub(super) use {
    add_const, address, arguments_off_the_stack, arguments_to_the_stack, enter, global_pointer,
    kept_doubles, load, load_page, low_part, set_isa, store,
};
#[cfg(feature = "probe")]
pub(super) use {align_down, double, load_address};

pub(super) const HOME: usize = 0;

// ---- kernel layouts ----------------------------------------------------------------------------

sig_context! {
    {}
    8 to 15 {
        a4: u64 = "sc_regs[8]",
        a5: u64 = "sc_regs[9]",
        a6: u64 = "sc_regs[10]",
        a7: u64 = "sc_regs[11]",
        t0: u64 = "sc_regs[12]",
        t1: u64 = "sc_regs[13]",
        t2: u64 = "sc_regs[14]",
        t3: u64 = "sc_regs[15]",
    }
    {
        pub(super) hi: u64 = "sc_mdhi",
        hi1: u64 = "sc_hi1",
        hi2: u64 = "sc_hi2",
        hi3: u64 = "sc_hi3",
        pub(super) lo: u64 = "sc_mdlo",
        lo1: u64 = "sc_lo1",
        lo2: u64 = "sc_lo2",
        lo3: u64 = "sc_lo3",
        pub(super) pc: u64 = "sc_pc",
        fpc_csr: u32 = "sc_fpc_csr",
        pub(super) used_math: u32 = "sc_used_math",
        pub(super) dsp: u32 = "sc_dsp",
        reserved: u32 = "sc_reserved",
    }
}

impl SigContext {
    /// The accumulators 1 to 3 of the DSP extension, hi and lo of each.
    pub(super) fn accumulators(&self) -> [(u64, u64); 3] {
        [(self.hi1, self.lo1), (self.hi2, self.lo2), (self.hi3, self.lo3)]
    }
}

layout! {
    /// `struct ucontext`, whose records of extended state follow it.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u64 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        pub(super) mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "uc_sigmask",
    }
}

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = {
    assert!(size_of::<Ucontext>() == 656);
    assert!(size_of::<SigContext>() == 600);
};

// ---- registers ---------------------------------------------------------------------------------

pub(super) const IN_SLOT: usize = 0;

#[inline(always)]
fn from_slot(word: u64) -> u64 {
    word
}

#[inline(always)]
fn to_slot(_: Reg, value: u64) -> u64 {
    value
}

mips_registers! {
    /// Fifth argument.
    A4 = a4, "a4";
    /// Sixth argument.
    A5 = a5, "a5";
    /// Seventh argument.
    A6 = a6, "a6";
    /// Eighth argument.
    A7 = a7, "a7";
    /// Scratch.
    T0 = t0, "t0";
    /// Scratch.
    T1 = t1, "t1";
    /// Scratch.
    T2 = t2, "t2";
    /// Scratch.
    T3 = t3, "t3";
}

#[cfg(feature = "probe")]
pub(super) const REGS_8_TO_15: [Reg; 8] =
    [Reg::A4, Reg::A5, Reg::A6, Reg::A7, Reg::T0, Reg::T1, Reg::T2, Reg::T3];
