//! A sandbox whose filter traps system calls and answers them in a handler of `SIGSYS`.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use sigctx::sys::{self, KernelAction, SaFlags, SigSet};
use testkit::in_child;
use threadreg::{Builder, attach, current};

/// How many system calls were trapped.
static TRAPPED: AtomicUsize = AtomicUsize::new(0);

/// Answers a call with whatever is in the register of the result.
extern "C" fn on_sigsys(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    TRAPPED.fetch_add(1, SeqCst);
}

/// Has every `prctl` of the calling thread, and of those that it will make, trapped. `false`: the
/// system has no filters.
fn trap_prctl() -> bool {
    const RET_TRAP: u32 = 0x0003_0000;
    const RET_ALLOW: u32 = 0x7fff_0000;
    let action = KernelAction {
        handler: on_sigsys as *const () as usize,
        flags: SaFlags::SIGINFO | SaFlags::ONSTACK,
        mask: SigSet::empty(),
    };
    // SAFETY: the handler only counts.
    unsafe { sys::rt_sigaction(libc::SIGSYS, Some(&action)) }.expect("SIGSYS can be handled");
    let step =
        |code: u32, skip: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: skip, k };
    // The number of the call is the first word of what a filter is shown.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_prctl as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, RET_TRAP),
        step(libc::BPF_RET | libc::BPF_K, 0, RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: reads the program.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program) == 0 }
}

/// A signal that the kernel raises for an instruction ends the process where it is blocked.
#[test]
fn trapped_calls_are_answered_while_threads_begin_and_end() {
    in_child(
        "trapped_calls_are_answered_while_threads_begin_and_end",
        Duration::from_mins(1),
        || {
            if !trap_prctl() {
                return testkit::skip("the system has no filters for system calls");
            }
            let trapped = || TRAPPED.swap(0, SeqCst);
            let attached = move || {
                trapped();
                let me = attach().expect("attaches");
                assert_ne!(trapped(), 0, "the name of the thread is asked for");
                assert_eq!(current(), Some(me.thread()));
            };
            attached();
            thread::spawn(attached).join().expect("no panic");
            trapped();
            let named = Builder::new().name("named").spawn(|| current().is_some()).expect("spawns");
            assert!(named.join().expect("no panic"));
            assert_ne!(trapped(), 0, "the new thread sets its name");
        },
    );
}
