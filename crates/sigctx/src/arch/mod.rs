//! Everything that depends on the architecture, one folder for each. In a folder, `mod.rs` has the
//! kernel's layouts, the registers and the context; `entry.rs` the assembly that the kernel enters;
//! `spill.rs` the registers that a function keeps for its caller; `probe.rs` the loops that hold patterns in
//! registers for tests, which no default build has.
//!
//! Every folder has the same items in the same order. `x86_64` is commented in full, the others where they
//! differ. A port to another architecture is one more folder. What all of them share is beside this file.

use core::ffi::c_void;
use core::marker::PhantomData;

#[macro_use]
mod symbols;

mod common;
mod generic;
mod layout;
#[cfg(feature = "probe")]
mod probe;
mod registers;

pub(crate) use common::*;
pub use common::{CalleeSaved, callee_saved};
#[cfg(feature = "probe")]
pub use layout::{Field, Structure};
#[cfg(feature = "probe")]
pub(crate) use probe::*;

cfg_select! {
    all(target_arch = "x86_64", target_pointer_width = "64") => {
        mod x86_64;
        pub use x86_64::{Reg, Status};
        pub(crate) use x86_64::*;
    }
    target_arch = "x86" => {
        mod x86;
        pub use x86::{Reg, Status};
        pub(crate) use x86::*;
    }
    all(target_arch = "aarch64", target_pointer_width = "64", target_endian = "little") => {
        mod aarch64;
        pub use aarch64::{Reg, Status};
        pub(crate) use aarch64::*;
    }
    all(target_arch = "arm", target_endian = "little") => {
        mod arm;
        pub use arm::{Reg, Status};
        pub(crate) use arm::*;
    }
    target_arch = "riscv64" => {
        mod riscv64;
        pub use riscv64::{Reg, Status};
        pub(crate) use riscv64::*;
    }
    target_arch = "loongarch64" => {
        mod loongarch64;
        pub use loongarch64::{Reg, Status};
        pub(crate) use loongarch64::*;
    }
    target_arch = "powerpc64" => {
        mod powerpc64;
        pub use powerpc64::{Reg, Status};
        pub(crate) use powerpc64::*;
    }
    target_arch = "s390x" => {
        mod s390x;
        pub use s390x::{Reg, Status};
        pub(crate) use s390x::*;
    }
    any(target_arch = "mips", all(target_arch = "mips64", target_pointer_width = "64")) => {
        mod mips;
        pub use mips::{Reg, Status};
        pub(crate) use mips::*;
    }
    _ => {
        compile_error!(
            "sigctx has no src/arch/<this architecture>/: it must give the system call \
             instruction, the kernel's sigaction, siginfo and ucontext layouts, the registers and \
             status flags, push_call, the handler entry with its restorer, and the probes"
        );
    }
}

// It is declared here, and not in `context.rs`, for the words that only some architectures have: their
// folders add methods.
/// The context that a signal interrupted: two pointers, to what the kernel wrote.
///
/// Reads and writes go to the kernel's frame itself; a write takes effect when the handler
/// returns. There is never a reference to libc's `ucontext_t`: the kernel's frame is shorter than
/// that type.
///
/// # Signal safety
///
/// All methods are async-signal-safe (AS-Safe); [`from_raw`](Self::from_raw) is for handlers alone.
#[doc(alias = "sigctxt")]
#[doc(alias = "ucontext_t")]
pub struct SigCtx<'h> {
    info: *mut c_void,
    uc: *mut Ucontext,
    _frame: PhantomData<&'h mut Ucontext>,
}

impl SigCtx<'_> {
    /// Takes a handler's second and third argument.
    ///
    /// # Signal safety
    ///
    /// Handler only (AS-Safe).
    ///
    /// # Safety
    ///
    /// 1. Both are what the kernel gave to a handler installed with `SA_SIGINFO`, and the handler
    ///    does not return while `'h` lasts.
    /// 2. While the value lives nothing else reads or writes the two.
    /// 3. What is written leaves the interrupted code in a state in which it can go on.
    #[must_use]
    pub unsafe fn from_raw(info: *mut c_void, uc: *mut c_void) -> Self {
        Self { info, uc: uc.cast(), _frame: PhantomData }
    }

    /// The two pointers, for a handler that takes the raw arguments.
    #[must_use]
    pub fn as_raw(&self) -> (*mut c_void, *mut c_void) {
        (self.info, self.uc.cast())
    }

    #[inline(always)]
    pub(crate) fn ucontext(&self) -> &Ucontext {
        // SAFETY: `from_raw`'s obligation 1 and 2; the layout is exactly what the kernel writes.
        unsafe { &*self.uc }
    }

    #[inline(always)]
    pub(crate) fn ucontext_mut(&mut self) -> &mut Ucontext {
        // SAFETY: `from_raw`'s obligation 1 and 2, and `self` is borrowed exclusively.
        unsafe { &mut *self.uc }
    }
}
