//! What architectures share in the kernel's `asm-generic`, and how some deviate: MIPS has another order in
//! two structures and other numbers for codes of signals, and 32-bit architectures that once had ids of
//! 16 bits have second calls for those of 32.
//!
//! References: `include/uapi/asm-generic/{siginfo,signal,unistd}.h`, `arch/mips/include/uapi/asm/siginfo.h`.

use core::ffi::{c_int, c_long};

use super::layout::layout;

#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
layout! {
    /// The start of `siginfo`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) errno: c_int = "si_errno",
        pub(crate) code: c_int = "si_code",
    }
}

#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
layout! {
    /// The start of `siginfo`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SigInfoHead = "siginfo_t" {
        pub(crate) signo: c_int = "si_signo",
        pub(crate) code: c_int = "si_code",
        pub(crate) errno: c_int = "si_errno",
    }
}

#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
layout! {
    /// `stack_t`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) flags: c_int = "ss_flags",
        pub(crate) size: usize = "ss_size",
    }
}

#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
layout! {
    /// `stack_t`.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct SignalStack = "stack_t" {
        pub(crate) sp: usize = "ss_sp",
        pub(crate) size: usize = "ss_size",
        pub(crate) flags: c_int = "ss_flags",
    }
}

/// `si_code` of a timer's signal.
pub(crate) const SI_TIMER: c_int = if MIPS { -3 } else { -2 };
/// `si_code` of completed asynchronous input or output.
pub(crate) const SI_ASYNCIO: c_int = if MIPS { -2 } else { -4 };

const MIPS: bool = cfg!(any(target_arch = "mips", target_arch = "mips64"));

/// The calls that take and give ids of 32 bits.
macro_rules! id_calls {
    ($($name:ident = $call:ident, $call32:ident;)*) => {$(
        pub(crate) const $name: c_long = cfg_select! {
            any(target_arch = "x86", target_arch = "arm") => { libc::$call32 }
            _ => { libc::$call }
        };
    )*};
}

id_calls! {
    SYS_GETRESGID = SYS_getresgid, SYS_getresgid32;
    SYS_GETRESUID = SYS_getresuid, SYS_getresuid32;
    SYS_GETUID = SYS_getuid, SYS_getuid32;
    SYS_SETGROUPS = SYS_setgroups, SYS_setgroups32;
    SYS_SETRESGID = SYS_setresgid, SYS_setresgid32;
    SYS_SETRESUID = SYS_setresuid, SYS_setresuid32;
}
