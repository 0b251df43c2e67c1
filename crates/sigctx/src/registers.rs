//! A copy of all registers, to keep, compare and print.

use core::fmt;
use core::ops::Index;

use crate::arch::{REGISTERS, Reg, STATUS, Status};

/// The value of every register at one moment.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe).
///
/// # Examples
///
/// Printed, it is one register a line and the decoded status:
///
/// ```text
/// rax    0x0000000000000001
/// …
/// status CF | ZF | IF
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Registers([u64; REGISTERS]);

impl Registers {
    #[inline(always)]
    pub(crate) fn read(get: impl Fn(Reg) -> u64) -> Self {
        let mut values = [0; REGISTERS];
        for (value, &reg) in values.iter_mut().zip(Reg::ALL) {
            *value = get(reg);
        }
        Self(values)
    }

    /// Every register's name and value, in the order of [`Reg::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reg::ALL.iter().zip(self.0).map(|(reg, value)| (reg.name(), value))
    }

    /// The value of the register with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// The same registers with another value for one.
    #[must_use]
    pub fn with(mut self, reg: Reg, value: u64) -> Self {
        if let Some(slot) = self.0.get_mut(reg as usize) {
            *slot = value;
        }
        self
    }

    /// The last line of what is printed.
    pub(crate) fn write_status(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("status ")?;
        bitflags::parser::to_writer(&self.status(), f)
    }

    /// The status flags.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits_retain(self[STATUS])
    }
}

impl Index<Reg> for Registers {
    type Output = u64;

    fn index(&self, reg: Reg) -> &u64 {
        &self.0[reg as usize]
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.iter() {
            writeln!(f, "{name:<6} 0x{value:016x}")?;
        }
        self.write_status(f)
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Registers");
        for (name, value) in self.iter() {
            s.field(name, &format_args!("0x{value:x}"));
        }
        s.finish()
    }
}
