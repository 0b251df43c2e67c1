//! What architectures share in the kernel's `asm-generic`, and how some deviate: MIPS has another order in
//! two structures and other numbers for codes of signals, and 32-bit architectures that once had ids of
//! 16 bits have second calls for those of 32.
//!
//! References: `include/uapi/asm-generic/{siginfo,signal,unistd}.h`, `arch/mips/include/uapi/asm/siginfo.h`.

use core::ffi::{c_int, c_long};

use super::layout::layout;
use crate::sys::{KernelAction, SaFlags, SigSet};

/// Number of signals (`_NSIG`).
pub(crate) const NSIG: usize = if MIPS { 128 } else { 64 };

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

cfg_select! {
    any(target_arch = "mips", target_arch = "mips64") => {
        layout! {
            /// `struct sigaction`.
            pub(crate) struct RawAction = "struct sigaction" {
                flags: u32 = "sa_flags",
                handler: usize = "sa_handler",
                mask: SigSet = "sa_mask",
                /// The kernel's ends before it; emulators write a restorer here, as kernels once did.
                unused: usize = "",
            }
        }
    }
    any(target_arch = "riscv64", target_arch = "loongarch64") => {
        layout! {
            /// `struct sigaction`, which has no restorer here.
            pub(crate) struct RawAction = "struct sigaction" {
                handler: usize = "sa_handler",
                flags: usize = "sa_flags",
                mask: SigSet = "sa_mask",
            }
        }
    }
    any(target_arch = "x86", target_arch = "arm") => {
        layout! {
            /// `struct sigaction` of the kernel's own headers. The one that it gives to C programs is that
            /// of the older system call, so nothing here can be compared with it.
            pub(crate) struct RawAction = "struct sigaction" {
                handler: usize = "",
                flags: usize = "",
                restorer: usize = "",
                mask: SigSet = "",
            }
        }
    }
    _ => {
        layout! {
            /// `struct sigaction`.
            pub(crate) struct RawAction = "struct sigaction" {
                handler: usize = "sa_handler",
                flags: usize = "sa_flags",
                restorer: usize = "sa_restorer",
                mask: SigSet = "sa_mask",
            }
        }
    }
}

/// `SA_RESTORER`: the action says where its handler returns to.
const RESTORER: u32 = 0x0400_0000;

impl RawAction {
    #[inline(always)]
    pub(crate) fn new(action: &KernelAction) -> Self {
        let KernelAction { handler, flags, mask } = *action;
        let restorer: Option<usize> = cfg_select! {
            any(target_arch = "mips", target_arch = "mips64") => { None }
            any(target_arch = "riscv64", target_arch = "loongarch64") => { None }
            _ => { super::restorer_of(flags) }
        };
        let flags = flags.bits() | if restorer.is_some() { RESTORER } else { 0 };
        Self {
            handler,
            flags: flags as _,
            mask,
            #[cfg(not(any(
                target_arch = "mips",
                target_arch = "mips64",
                target_arch = "riscv64",
                target_arch = "loongarch64"
            )))]
            restorer: restorer.unwrap_or(0),
            #[cfg(any(target_arch = "mips", target_arch = "mips64"))]
            unused: 0,
        }
    }

    /// The restorer is no part of it: `new` chooses it again.
    #[inline(always)]
    pub(crate) fn action(&self) -> KernelAction {
        let flags = SaFlags::from_bits_retain(self.flags as u32 & !RESTORER);
        KernelAction { handler: self.handler, flags, mask: self.mask }
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
