//! What holds on this architecture alone.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use std::boxed::Box;

use super::super::resume_address;
use super::*;
use crate::arch::entry;

/// A stack with a frame at its top that has no record.
#[repr(C, align(16))]
struct FakeStack {
    below: [u8; 64 * 1024],
    info: [u8; UCONTEXT_OFFSET],
    uc: Ucontext,
    end: RecordHeader,
}

/// Jumps to `code` on the stack `sp`, with a place to return to in a1 and ra.
///
/// # Safety
///
/// `code` can run so, and keeps s2 to s8.
unsafe fn jump(code: usize, sp: usize, a0: usize, a2: usize) {
    // SAFETY: the caller's obligation. The stack pointer comes back at the end.
    unsafe {
        asm!(
            "move $s2, $sp",
            "move $sp, $s3",
            "la.local $ra, 2f",
            "move $a1, $ra",
            "jr $s4",
            "2:",
            "move $sp, $s2",
            in("$a0") a0,
            in("$a2") a2,
            in("$s3") sp,
            in("$s4") code,
            out("$s0") _,
            out("$s1") _,
            out("$s2") _,
            clobber_abi("C"),
        );
    }
}

/// 0 is no signal: nothing is called.
const NO_SIGNAL: usize = 0;

#[test]
fn a_frame_without_floats_says_that_the_thread_has_some() {
    // SAFETY: plain integers, for which zeroes are values.
    let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
    let (frame, uc) = (&raw mut stack.info as usize, &raw mut stack.uc as usize);
    let flags = (&raw const stack.uc.mcontext.flags).cast::<u32>();
    // SAFETY: both are within the frame. Volatile: the code below writes there.
    let (get, set) = (
        || unsafe { flags.read_volatile() },
        |to| unsafe {
            flags.cast_mut().write_volatile(to);
        },
    );
    let (used, other) = (Status::USED_FP.bits() as u32, Status::ADDRERR_WR.bits() as u32);

    set(other);
    // SAFETY: as a function calls it, with room on the stack.
    unsafe { jump(entry(), frame - 4096, NO_SIGNAL, uc) };
    assert_eq!(get(), other, "called by another handler");
    // SAFETY: as the kernel calls it, with room on the stack.
    unsafe { jump(entry(), frame, NO_SIGNAL, uc) };
    assert_eq!(get(), other | used, "after a handler");

    set(other);
    let active = AtomicU32::new(1);
    // SAFETY: as for a call that never returned, with room on the stack.
    unsafe { jump(resume_address(), frame - 4096, frame, &raw const active as usize) };
    assert_eq!(get(), other | used, "after an injected call");
    assert_eq!(active.load(Ordering::Relaxed), 0);
}

/// As the kernel writes it for a thread that uses LSX.
#[repr(C)]
struct Frame {
    uc: Ucontext,
    header: RecordHeader,
    content: LsxContext,
    end: RecordHeader,
}

fn frame() -> Frame {
    // SAFETY: all are integers, for which zeroes are values.
    let mut frame: Frame = unsafe { core::mem::zeroed() };
    let size = offset_of!(Frame, end) - offset_of!(Frame, header);
    frame.header = RecordHeader { magic: LSX_MAGIC, size: size as u32, padding: 0 };
    frame
}

fn bounds(frame: &Frame) -> (usize, usize) {
    let at = &raw const *frame as usize;
    (at, at + size_of::<Frame>())
}

#[test]
fn records_that_end_within_the_frame_are_taken() {
    let mut frame = frame();
    let (lo, hi) = bounds(&frame);
    assert_eq!(frame.header.size, 544);
    assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
    assert!(has_record(&frame.uc, LSX_MAGIC) && !has_record(&frame.uc, LASX_MAGIC));
    // No floating point; and a record that is not known.
    frame.header.magic = 0x1234_5678;
    assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
    assert!(!has_record(&frame.uc, LSX_MAGIC));
    frame.header = RecordHeader { magic: 0, size: 0, padding: 0 };
    assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
}

#[test]
fn records_outside_of_the_frame_are_refused() {
    let mut frame = frame();
    let (lo, hi) = bounds(&frame);
    let refused = Err(BadFrame::ExtendedState { at: lo + size_of::<Ucontext>() });
    for size in [0, 8, 16, 528, 552, 576] {
        frame.header.size = size;
        assert_eq!(check_frame(&frame.uc, lo, hi), refused, "{size} bytes");
    }
    // As long as it may be, and no end after it.
    frame.header.size = 560;
    assert_eq!(check_frame(&frame.uc, lo, hi), Err(BadFrame::ExtendedState { at: hi }));
    assert_eq!(check_frame(&frame.uc, lo, lo + size_of::<Ucontext>()), refused);
}

#[test]
fn flags_are_where_the_header_has_them() {
    let status = Status::from_bits_retain(0x8000_0001);
    assert_eq!(status, Status::USED_FP | Status::ADDRERR_WR);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    assert_eq!(bits, 0xc000_0001);
}

#[test]
fn system_call_instructions_are_known() {
    for code in [0x002b_0000u32, 0x002b_0001, 0x002b_7fff] {
        let code = code.to_le_bytes();
        assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
    }
    // break 0, dbcl 0, nop
    for code in [0x002a_0000u32, 0x002a_8000, 0x0340_0000] {
        assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
    }
}
