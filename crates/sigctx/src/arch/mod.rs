//! Everything that depends on the architecture, one file for each.
//!
//! Every file has the same items in the same order; `x86_64.rs` is the one that is commented in
//! full. To port the workspace is to write one more.

cfg_select! {
    all(target_arch = "x86_64", target_pointer_width = "64") => {
        mod x86_64;
        pub use x86_64::{Reg, Status};
        pub(crate) use x86_64::*;
    }
    _ => {
        compile_error!(
            "sigctx has no src/arch/<this architecture>.rs: it must give the system call \
             instruction, the kernel's sigaction, siginfo and ucontext layouts, the registers and \
             status flags, push_call, the handler entry with its restorer, and the probes"
        );
    }
}
