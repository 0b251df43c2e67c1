//! What holds on this architecture alone.

use super::*;
use crate::arch::trampoline;
use crate::sys;

/// gdb: `i386_linux_rt_sigtramp_start`; libgcc: `x86_fallback_frame_state`.
#[test]
fn the_restorer_is_the_one_that_debuggers_know() {
    let code = restorer() as *const [u8; 7];
    // SAFETY: code can be read.
    assert_eq!(unsafe { code.read() }, [0xb8, 0xad, 0x00, 0x00, 0x00, 0xcd, 0x80]);
    assert!(trampoline().contains(&restorer()));
}

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

/// With six, two more registers are needed than the compiler gives.
#[test]
fn a_system_call_takes_six_arguments() {
    const PAGE: usize = 4096;
    const SECOND_PAGE: usize = 1;

    // SAFETY: the name is a string.
    let file = unsafe { libc::memfd_create(c"sigctx".as_ptr(), 0) };
    assert!(file >= 0);
    for (at, byte) in [(0, b'a'), (PAGE, b'b')] {
        // SAFETY: writes from a live byte.
        let written = unsafe { libc::pwrite(file, (&raw const byte).cast(), 1, at as _) };
        assert_eq!(written, 1);
    }
    let (protection, flags) = (libc::PROT_READ as usize, libc::MAP_PRIVATE as usize);
    let args = [0, PAGE, protection, flags, file as usize, SECOND_PAGE];
    // SAFETY: a new mapping, wherever the kernel likes.
    let page = unsafe { sys::syscall(libc::SYS_mmap2, args) }.expect("mmap2");
    // SAFETY: the first byte of the mapping.
    assert_eq!(unsafe { (page as *const u8).read() }, b'b');
}
