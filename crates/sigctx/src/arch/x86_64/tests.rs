//! What holds on this architecture alone.

use super::*;
use crate::arch::trampoline;

/// gdb: `amd64_linux_sigtramp_start`; libgcc: `x86_64_fallback_frame_state`.
#[test]
fn the_restorer_is_the_one_that_debuggers_know() {
    let code = restorer() as *const [u8; 9];
    // SAFETY: code can be read.
    let code = unsafe { code.read() };
    assert_eq!(code, [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]);
    assert!(trampoline().contains(&restorer()));
}

/// 0x246 is what most code is interrupted with.
#[test]
fn status_flags_are_where_the_manual_has_them() {
    let status = Status::from_bits_retain(0x246);
    assert_eq!(status, Status::PF | Status::ZF | Status::IF | Status::from_bits_retain(2));
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    // 1, 3, 5 and 15 are reserved; 13 is the upper half of IOPL.
    assert_eq!(bits, 0x3f_7fd5);
}

#[test]
fn system_call_instructions_are_known() {
    for code in [[0x0f, 0x05], [0x0f, 0x34], [0xcd, 0x80]] {
        assert!(is_syscall(code) && begins_syscall(code[0]));
    }
    // ud2, int3 int3, a two-byte no-op
    for code in [[0x0f, 0x0b], [0xcc, 0xcc], [0x66, 0x90], [0xcd, 0x03]] {
        assert!(!is_syscall(code), "{code:02x?}");
    }
}
