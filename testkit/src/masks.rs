//! Whether what `/proc` says of signals is about the signals of the program.

use std::ffi::{c_long, c_ulong};
use std::fs;
use std::ptr;

const BITS: usize = c_ulong::BITS as usize;
/// Room for as many as any kernel has.
type Set = [c_ulong; 128 / BITS];

/// As many as the kernel has: a power of two, where libc's last one may be the one before.
fn signals() -> usize {
    (libc::SIGRTMAX() as usize).next_power_of_two()
}

fn set_mask(how: i32, set: Option<&Set>, old: Option<&mut Set>) {
    let set = set.map_or(ptr::null(), ptr::from_ref);
    let old = old.map_or(ptr::null_mut(), ptr::from_mut);
    // Not libc's function, which leaves out the signals that it keeps for itself.
    // SAFETY: both sets live during the call and are at least of the size given.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, c_long::from(how), set, old, signals() / 8)
    };
    assert_eq!(result, 0, "rt_sigprocmask");
}

/// Whether `/proc` shows that a thread blocks `signal`, found out by blocking it for a moment.
///
/// A user-mode emulator has the signals of its host beneath those of the program, with other
/// numbers for some; what `/proc` shows of a thread's mask and of pending signals is the host's.
///
/// # Panics
///
/// When `signal` is none, or `/proc` cannot be read.
#[must_use]
pub fn proc_shows_mask(signal: i32) -> bool {
    let bit = usize::try_from(signal - 1).expect("a signal");
    let mut blocked = [0; _];
    blocked[bit / BITS] = 1 << (bit % BITS);
    let mut before: Set = [0; _];
    set_mask(libc::SIG_SETMASK, Some(&blocked), Some(&mut before));
    let status = fs::read_to_string("/proc/thread-self/status");
    set_mask(libc::SIG_SETMASK, Some(&before), None);
    let status = status.expect("the status of this thread");
    let shown = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let shown = u128::from_str_radix(shown.expect("a mask").trim(), 16).expect("hexadecimal");
    shown == 1 << bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_shows_masks_and_the_probe_leaves_none() {
        let mut before: Set = [0; _];
        set_mask(libc::SIG_BLOCK, None, Some(&mut before));
        if crate::emulator().is_none() {
            // No thread can block these two.
            let never = [libc::SIGKILL, libc::SIGSTOP];
            for signal in 1..=signals() as i32 {
                assert_eq!(proc_shows_mask(signal), !never.contains(&signal), "signal {signal}");
            }
        }
        let mut after: Set = [0; _];
        set_mask(libc::SIG_BLOCK, None, Some(&mut after));
        assert_eq!(before, after);
    }
}
