//! Everything that depends on the architecture, one folder for each: `mod.rs` has the kernel's layouts,
//! the registers and the context, `entry.rs` the assembly that the kernel enters, `probe.rs` what holds
//! patterns in registers for tests, which no default build has.
//!
//! Every folder has the same items in the same order; `x86_64` is the one that is commented in full. To
//! port the workspace is to write one more. What has the same words in all of them is beside this file.

#[macro_use]
mod symbols;

mod common;
mod generic;
mod layout;
#[cfg(feature = "probe")]
mod probe;
mod registers;

pub(crate) use common::*;
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
            "sigctx has no src/arch/<this architecture>.rs: it must give the system call \
             instruction, the kernel's sigaction, siginfo and ucontext layouts, the registers and \
             status flags, push_call, the handler entry with its restorer, and the probes"
        );
    }
}
