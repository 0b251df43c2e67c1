//! What a call of a batch is called in an error.

use core::ffi::{c_int, c_long};
use core::fmt;

use sigctx::sys::id_calls;

use crate::calls::Call;

/// What a call of a batch does, for people who read errors: `drop_bounding(63)`.
///
/// Calls that a [`Batch`](crate::Batch) has a method for go by its name, however they were added;
/// others by their number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallName {
    /// -1 for a function.
    number: i32,
    option: u32,
    value: u32,
}

impl CallName {
    pub(crate) const UNKNOWN: Self = Self { number: -1, option: 1, value: 0 };

    pub(crate) fn of(calls: &[Call], index: usize) -> Self {
        match calls.get(index) {
            Some(Call::Syscall(number, args) | Call::Once(number, args)) => {
                Self { number: *number as i32, option: args[0] as u32, value: args[1] as u32 }
            }
            Some(Call::Function(..)) => Self { number: -1, option: 0, value: 0 },
            None => Self::UNKNOWN,
        }
    }

    /// The number of the system call; `None` for a function.
    ///
    /// # Signal safety
    ///
    /// Async-signal-safe.
    #[must_use]
    pub fn number(&self) -> Option<c_long> {
        (self.number >= 0).then_some(self.number.into())
    }
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.number < 0 {
            return f.pad(if *self == Self::UNKNOWN { "a call" } else { "a function" });
        }
        match self.number.into() {
            id_calls::SETGROUPS => f.pad("set_groups"),
            id_calls::SETRESGID => f.pad("set_resgid"),
            id_calls::SETRESUID => f.pad("set_resuid"),
            libc::SYS_chroot => f.pad("chroot"),
            libc::SYS_chdir => f.pad("chdir"),
            libc::SYS_prctl => match self.option as c_int {
                libc::PR_SET_NO_NEW_PRIVS => f.pad("no_new_privs"),
                libc::PR_SET_KEEPCAPS if self.value == 0 => f.pad("keep_caps(Off)"),
                libc::PR_SET_KEEPCAPS => f.pad("keep_caps(On)"),
                libc::PR_CAPBSET_DROP => write!(f, "drop_bounding({})", self.value),
                option => write!(f, "prctl({option})"),
            },
            number => write!(f, "system call {number}"),
        }
    }
}

impl fmt::Debug for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
