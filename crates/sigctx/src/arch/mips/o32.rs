//! The o32 ABI: 32-bit registers.
//!
//! What the kernel leaves on the alternate stack, as `entry` finds it:
//!
//! ```text
//!  high  top of the alternate stack ------ uc_stack.ss_sp + ss_size, the end of what is copied
//!        | records of the MSA vectors    |   where they were used; found by their order
//!        | ucontext       632 bytes      |<- $6
//!        | siginfo        128 bytes      |<- $5
//!        | two words of nothing          |
//!  low   | home of four arguments        |<- $29 (a multiple of 8)
//! ```
//!
//! Registers have 64-bit slots. A kernel for 64-bit machines has the values sign-extended there and
//! wants them back so; one for 32-bit machines has zeroes above them and does not look at what it
//! gets.
//!
//! References: System V ABI MIPS supplement, chapter 3.

use core::mem::size_of;

use super::SignalStack;
use crate::arch::layout::layout;
use crate::arch::registers::registers;
use crate::sys::SigSet;

// ---- assembly ----------------------------------------------------------------------------------

/// The instruction set: the assembler is not always told what the target has.
macro_rules! set_isa {
    () => {
        ".set mips32r2"
    };
}

/// Loads a word.
macro_rules! load {
    ($($operands:expr),+) => { concat!("lw ", $($operands),+) };
}

/// Stores a word.
macro_rules! store {
    ($($operands:expr),+) => { concat!("sw ", $($operands),+) };
}

/// Adds a constant to a word.
macro_rules! add_const {
    ($($operands:expr),+) => { concat!("addiu ", $($operands),+) };
}

/// An address in a table.
macro_rules! address {
    ($operand:literal) => {
        concat!(".word ", $operand)
    };
}

/// Makes the address in `$register` a multiple of 16.
#[cfg(feature = "probe")]
macro_rules! align_down {
    ($register:literal) => {
        concat!("ins ", $register, ", $0, 0, 4")
    };
}

/// Has the lower 32 bits in the upper half, too: there is none.
#[cfg(feature = "probe")]
macro_rules! double {
    ($register:literal) => {
        ""
    };
}

/// The global pointer to `$into`, at the label `$symbol`, whose address is in `$here`.
macro_rules! global_pointer {
    ($into:literal, $symbol:literal, $here:literal) => {
        lines!(
            concat!("lui ", $into, ", %hi(_gp_disp)"),
            concat!("addiu ", $into, ", ", $into, ", %lo(_gp_disp)"),
            concat!("addu ", $into, ", ", $into, ", ", $here),
        )
    };
}

/// The address of `$symbol` but for its [`low_part`] to `$into`, by the global pointer.
macro_rules! load_page {
    ($into:literal, $symbol:literal, $global_pointer:literal) => {
        concat!("lw ", $into, ", %got(", symbol!($symbol), ")(", $global_pointer, ")")
    };
}

/// What [`load_page`] leaves out.
macro_rules! low_part {
    ($symbol:literal) => {
        concat!("%lo(", symbol!($symbol), ")")
    };
}

/// The address of `$symbol`, which other files see, to `$into`, by the global pointer.
#[cfg(feature = "probe")]
macro_rules! load_address {
    ($into:literal, $symbol:literal, $global_pointer:literal) => {
        concat!("lw ", $into, ", %got(", symbol!($symbol), ")(", $global_pointer, ")")
    };
}

/// The fifth and the sixth argument of a system call go above the home of the first four.
macro_rules! arguments_to_the_stack {
    () => {
        lines!("addiu $29, $29, -32", "sw $8, 16($29)", "sw $9, 20($29)")
    };
}

/// The stack as it was before them.
macro_rules! arguments_off_the_stack {
    () => {
        "addiu $29, $29, 32"
    };
}

/// The entry, up to where the record of a call is in $2, the copied frame in $16, the sigreturn's code in
/// $17 and `run` in $25.
///
/// $4 = signal, $5 = siginfo, $6 = ucontext, $25 = this address, $31 = the kernel's code that makes the
/// sigreturn, $29 a multiple of 8.
macro_rules! enter {
    () => {
        lines!(
            function!("entry"),
            ".cfi_startproc",
            global_pointer!("$28", "entry", "$25"), // by which the table is found
            "move $7, $29",                         // fourth argument: where the frame begins
            "addiu $29, $29, -32",                  // 0: home of four arguments, 16: $28, 28: $31
            ".cfi_def_cfa_offset 32",
            "sw $31, 28($29)",
            ".cfi_offset 31, -4",
            "sw $28, 16($29)",
            load_page!("$8", "calls", "$28"),
            load!("$25, ", low_part!("calls"), "($8)"),
            "jalr $25", // dispatch
            "nop",
            "bnez $2, 2f",
            "lw $28, 16($29)", // a call destroys it
            "lw $31, 28($29)",
            "jr $31", // a plain return from the handler
            "addiu $29, $29, 32",
            "2:",
            load_page!("$8", "calls", "$28"),
            concat!("lw $25, %lo(", symbol!("calls"), " + 4)($8)"), // run
            "lw $17, {back}($2)", // callee-saved, as $16: they outlive the call
            "lw $16, 0($2)",      // the copied frame
            ".cfi_endproc",
            end!("entry"),
        )
    };
}

/// The doubles that a function keeps for its caller.
macro_rules! kept_doubles {
    () => {
        ".irp n,20,22,24,26,28,30"
    };
}

pub(super) use {
    add_const, address, arguments_off_the_stack, arguments_to_the_stack, enter, global_pointer,
    kept_doubles, load, load_page, low_part, set_isa, store,
};
#[cfg(feature = "probe")]
pub(super) use {align_down, double, load_address};

/// Bytes at its stack pointer that a caller leaves for the first four arguments.
pub(super) const HOME: usize = 16;

// ---- kernel layouts ----------------------------------------------------------------------------

sig_context! {
    {
        regmask: u32 = "sc_regmask",
        status: u32 = "sc_status",
        pub(super) pc: u64 = "sc_pc",
    }
    8 to 15 {
        t0: u64 = "sc_regs[8]",
        t1: u64 = "sc_regs[9]",
        t2: u64 = "sc_regs[10]",
        t3: u64 = "sc_regs[11]",
        t4: u64 = "sc_regs[12]",
        t5: u64 = "sc_regs[13]",
        t6: u64 = "sc_regs[14]",
        t7: u64 = "sc_regs[15]",
    }
    {
        acx: u32 = "sc_acx",
        fpc_csr: u32 = "sc_fpc_csr",
        fpc_eir: u32 = "sc_fpc_eir",
        pub(super) used_math: u32 = "sc_used_math",
        pub(super) dsp: u32 = "sc_dsp",
        pad: u32 = "",
        pub(super) hi: u64 = "sc_mdhi",
        pub(super) lo: u64 = "sc_mdlo",
        hi1: u32 = "sc_hi1",
        lo1: u32 = "sc_lo1",
        hi2: u32 = "sc_hi2",
        lo2: u32 = "sc_lo2",
        hi3: u32 = "sc_hi3",
        lo3: u32 = "sc_lo3",
    }
}

impl SigContext {
    /// The accumulators 1 to 3 of the DSP extension, hi and lo of each.
    pub(super) fn accumulators(&self) -> [(u64, u64); 3] {
        [(self.hi1, self.lo1), (self.hi2, self.lo2), (self.hi3, self.lo3)]
            .map(|(hi, lo)| (hi.into(), lo.into()))
    }
}

layout! {
    /// `struct ucontext`, whose records of extended state follow it.
    #[derive(Debug)]
    pub(crate) struct Ucontext = "struct ucontext" {
        flags: u32 = "uc_flags",
        pub(crate) link: usize = "uc_link",
        pub(crate) stack: SignalStack = "uc_stack",
        pad: u32 = "",
        pub(super) mcontext: SigContext = "uc_mcontext",
        pub(crate) sigmask: SigSet = "uc_sigmask",
    }
}

/// The fields are compared with the C headers, by the test `the_headers_agree`.
const _: () = {
    assert!(size_of::<Ucontext>() == 632);
    assert!(size_of::<SigContext>() == 592);
};

// ---- registers ---------------------------------------------------------------------------------

/// Where a register is in its slot, in bytes.
pub(super) const IN_SLOT: usize = if cfg!(target_endian = "big") { 4 } else { 0 };

/// A slot's value. The kernel of a 64-bit machine has a double word for each.
#[inline(always)]
fn from_slot(word: u64) -> u64 {
    word & u64::from(u32::MAX)
}

/// As the kernel of a 64-bit machine wants it.
#[inline(always)]
fn to_slot(_: Reg, value: u64) -> u64 {
    value as i32 as u64
}

mips_registers! {
    /// Scratch.
    T0 = t0, "t0";
    /// Scratch.
    T1 = t1, "t1";
    /// Scratch.
    T2 = t2, "t2";
    /// Scratch.
    T3 = t3, "t3";
    /// Scratch.
    T4 = t4, "t4";
    /// Scratch.
    T5 = t5, "t5";
    /// Scratch.
    T6 = t6, "t6";
    /// Scratch.
    T7 = t7, "t7";
}

/// The registers 8 to 15, which the ABIs name differently.
#[cfg(feature = "probe")]
pub(super) const REGS_8_TO_15: [Reg; 8] =
    [Reg::T0, Reg::T1, Reg::T2, Reg::T3, Reg::T4, Reg::T5, Reg::T6, Reg::T7];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_values_have_no_sign() {
        // SAFETY: plain integers, for which zeroes are values.
        let mut uc: Ucontext = unsafe { core::mem::zeroed() };
        for (reg, value) in [(Reg::A0, 0x8000_0001), (Reg::Fcsr, 0x8080_0000), (Reg::Hi, 5)] {
            uc.set(reg, value);
            assert_eq!(uc.get(reg), value);
        }
        assert_eq!(uc.mcontext.a0, 0xffff_ffff_8000_0001);
        // What a kernel for 32-bit machines writes.
        uc.mcontext.a0 = 0x8000_0001;
        assert_eq!(uc.get(Reg::A0), 0x8000_0001);
    }
}
