//! Printed contexts that are the same in every run: addresses as names and offsets.
//!
//! A register dump is full of addresses, and those change with every run and every build. Say what
//! the addresses belong to, and a snapshot test of the rest is stable:
//!
//! ```
//! use sigctx::snapshot::Redactions;
//!
//! # let interrupted = 0x7f00_1234_5678_u64;
//! let stack = 0x7f00_1234_0000..0x7f00_1235_0000;
//! let redactions = Redactions::new().stack("stack", stack).region("jit", 0x4000_0000..0x4000_8000);
//! assert_eq!(redactions.value(0x4000_0010).to_string(), "jit+0x10");
//! assert_eq!(redactions.value(interrupted).to_string(), "stack-0xa988");
//! assert_eq!(redactions.value(7).to_string(), "0x0000000000000007");
//! // With insta: insta::assert_snapshot!(redactions.registers(&ctx.registers()));
//! ```

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::arch::Reg;
use crate::registers::Registers;

/// The names of address ranges, and the registers that are different in every run.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe), except [`region`](Self::region),
/// [`stack`](Self::stack) and [`hide`](Self::hide).
#[derive(Clone, Debug, Default)]
pub struct Redactions<'n> {
    places: Vec<(Range<u64>, &'n str, Origin)>,
    hidden: Vec<(Reg, &'n str)>,
}

/// Where offsets are counted from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Start,
    End,
}

impl<'n> Redactions<'n> {
    /// No redactions: everything is printed as it is.
    #[must_use]
    pub const fn new() -> Self {
        Self { places: Vec::new(), hidden: Vec::new() }
    }

    /// Addresses in `range` are printed as `name+0x…`, counted from its start: code, data.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): allocates.
    #[must_use]
    pub fn region(mut self, name: &'n str, range: Range<usize>) -> Self {
        self.places.push((range.start as u64..range.end as u64, name, Origin::Start));
        self
    }

    /// Addresses in `range`, its end included, are printed as `name-0x…`, counted from its end: a
    /// stack, which is filled from there.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): allocates.
    #[must_use]
    pub fn stack(mut self, name: &'n str, range: Range<usize>) -> Self {
        self.places.push((range.start as u64..range.end as u64 + 1, name, Origin::End));
        self
    }

    /// The value of `reg` is printed as `[why]`.
    ///
    /// # Signal safety
    ///
    /// Not async-signal-safe (AS-Unsafe heap): allocates.
    #[must_use]
    pub fn hide(mut self, reg: Reg, why: &'n str) -> Self {
        self.hidden.push((reg, why));
        self
    }

    /// One word, printed as it is or as a name and an offset.
    #[must_use]
    pub fn value(&self, value: u64) -> impl fmt::Display + '_ {
        fmt::from_fn(move |f| {
            let place = self.places.iter().find(|(range, ..)| range.contains(&value));
            match place {
                Some((range, name, Origin::Start)) => {
                    write!(f, "{name}+{:#x}", value - range.start)
                }
                Some((range, name, Origin::End)) => {
                    write!(f, "{name}-{:#x}", range.end - 1 - value)
                }
                None => write!(f, "0x{value:016x}"),
            }
        })
    }

    /// All registers, one a line, as [`Registers`] prints them but for what is redacted.
    #[must_use]
    pub fn registers(&self, registers: &Registers) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            for (&reg, (name, value)) in Reg::ALL.iter().zip(registers.iter()) {
                match self.hidden.iter().find(|(hidden, _)| *hidden == reg) {
                    Some((_, why)) => writeln!(f, "{name:<6} [{why}]")?,
                    None => writeln!(f, "{name:<6} {}", self.value(value))?,
                }
            }
            registers.write_status(f)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    #[test]
    fn a_stack_counts_from_its_end_which_belongs_to_it() {
        let redactions = Redactions::new().stack("stack", 0x1000..0x2000);
        for (value, text) in [
            (0x2000, "stack-0x0"),
            (0x1000, "stack-0x1000"),
            (0xfff, "0x0000000000000fff"),
            (0x2001, "0x0000000000002001"),
        ] {
            assert_eq!(redactions.value(value).to_string(), text);
        }
    }

    #[test]
    fn the_first_place_that_fits_names_an_address() {
        let redactions = Redactions::new().region("inner", 0x10..0x20).region("outer", 0..0x100);
        assert_eq!(redactions.value(0x1f).to_string(), "inner+0xf");
        assert_eq!(redactions.value(0x20).to_string(), "outer+0x20");
        assert_eq!(redactions.value(0x100).to_string(), "0x0000000000000100");
    }

    #[test]
    fn registers_are_printed_as_without_redactions_but_for_those() {
        let registers = Registers::read(|reg| reg as u64 + 0x100);
        assert_eq!(Redactions::new().registers(&registers).to_string(), registers.to_string());
        let pc = registers[Reg::PC];
        let redactions = Redactions::new()
            .region("code", pc as usize..pc as usize + 1)
            .hide(Reg::SP, "another every time");
        let text = redactions.registers(&registers).to_string();
        let same = text.lines().zip(registers.to_string().lines()).filter(|(a, b)| a == b).count();
        assert_eq!(same, Reg::ALL.len() + 1 - 2, "{text}");
        assert!(text.contains("code+0x0") && text.contains("[another every time]"), "{text}");
        assert!(format!("{redactions:?}").contains("code"));
    }
}
