//! What holds on this architecture alone.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::altstack::AltStack;
use crate::handler::{self, Delivery, Flow, Options};

/// `AT_MINSIGSTKSZ` of Linux 7.2.12, and what it is without the vectors.
#[test]
fn the_longest_vector_is_one_that_the_kernel_has_counted() {
    assert_eq!(longest_vector(10016), 256);
    let without = 10016 - 34 * 256;
    assert_eq!(longest_vector(without + 34 * 128), 128);
    assert_eq!(longest_vector(4720), 64);
    assert_eq!(longest_vector(0), 256);
}

#[test]
fn a_frame_with_the_largest_matrix_fits_on_an_alternate_stack() {
    /// `PR_SME_SET_VL`.
    const SET_LENGTH: usize = 63;
    static HANDLED: AtomicUsize = AtomicUsize::new(0);

    fn handler(_: &mut Delivery<'_>) -> Flow {
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Flow::Resume
    }
    let name = "arch::aarch64::tests::a_frame_with_the_largest_matrix_fits_on_an_alternate_stack";
    testkit::in_child(name, Duration::from_secs(30), || {
        // SAFETY: the handler counts.
        let installed = unsafe { handler::install(libc::SIGUSR1, handler, Options::new()) };
        let _installed = installed.expect("install");
        // Before the thread has long vectors.
        let _alt = AltStack::install().expect("alternate stack");
        // SAFETY: takes no pointers; no code here has streaming vectors.
        if unsafe { sys::syscall(libc::SYS_prctl, [SET_LENGTH, 256, 0, 0, 0, 0]) }.is_err() {
            testkit::skip("the CPU has no streaming vectors");
            return;
        }
        // SAFETY: `smstart za`: the matrix has zeroes, and no code here uses it.
        unsafe { asm!(".inst 0xd503457f") };
        let sent = sys::tgkill(sys::getpid(), sys::gettid(), libc::SIGUSR1);
        // SAFETY: `smstop za`.
        unsafe { asm!(".inst 0xd503447f") };
        sent.expect("own thread");
        assert_eq!(HANDLED.load(Ordering::Relaxed), 1);
    });
}

/// 0x60001000 is what most code is interrupted with.
#[test]
fn status_flags_are_where_the_manual_has_them() {
    let status = Status::from_bits_retain(0x6000_1000);
    assert_eq!(status, Status::Z | Status::C | Status::SSBS);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    // 5, 14 to 19, 26, 27, 32 and 33 have no meaning for user code or none at all.
    assert_eq!(bits, 0x4_f3f0_3fdf);
}

#[test]
fn system_call_instructions_are_known() {
    for code in [0xd400_0001_u32, 0xd400_0021, 0xd41f_ffe1] {
        let code = code.to_le_bytes();
        assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
    }
    // hvc #0, smc #0, brk #0, udf #0, nop, ret
    for code in [0xd400_0002_u32, 0xd400_0003, 0xd420_0000, 0, 0xd503_201f, 0xd65f_03c0] {
        assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
    }
}

/// A context of zeroes with `records` in it, each with its size and the words after its head.
fn context(records: &[(u32, u32, &[u64])]) -> Box<Ucontext> {
    // SAFETY: integers, for which zeroes are values.
    let mut uc: Box<Ucontext> = unsafe { Box::new_zeroed().assume_init() };
    let mut at = 0;
    for &(magic, size, words) in records {
        let mut bytes: Vec<u8> = [magic.to_ne_bytes(), size.to_ne_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        uc.mcontext.records[at..at + bytes.len()].copy_from_slice(&bytes);
        at += size as usize;
    }
    uc
}

#[test]
fn words_of_records_are_found_behind_other_records() {
    let fpsimd = (FPSIMD, 528, &[0x0240_0000_0000_0010][..]);
    let unknown = (0x1234_5678, 32, &[1, 2, 3][..]);
    let mut uc = context(&[fpsimd, unknown, (ESR, 16, &[0x9200_004f])]);
    // SAFETY: integers, for which zeroes are values.
    let mut info: sys::SigInfo = unsafe { core::mem::zeroed() };
    // SAFETY: both live as long as the context, and no other code uses them.
    let ctx = unsafe { crate::SigCtx::from_raw((&raw mut info).cast(), (&raw mut *uc).cast()) };
    assert_eq!(ctx.fp_control(), Some(0x0240_0000));
    assert_eq!(ctx.fp_status(), Some(0x10));
    assert_eq!(ctx.exception_syndrome(), Some(0x9200_004f));
    let none = context(&[]);
    assert!(none.record(ESR).is_none() && none.records().at_end());
}

#[test]
fn a_frame_is_checked_to_its_last_record() {
    let good = context(&[(FPSIMD, 528, &[]), (SVE, 16, &[64])]);
    assert_eq!(check_frame(&good, 0, usize::MAX), Ok(()));
    // No size of a record; no room for the end of the list; no room for the record.
    for size in [4, 8, 24, 4096, 4112, 0xffff_fff0] {
        let bad = context(&[(FPSIMD, size, &[])]);
        let at = &raw const bad.mcontext.records as usize;
        let found = check_frame(&bad, 0, usize::MAX);
        assert_eq!(found, Err(BadFrame::ExtendedState { at }), "{size}");
    }
}

/// A context and what does not fit into it: one record of SVE without registers, and the end.
#[repr(C, align(16))]
struct Extended {
    uc: Ucontext,
    extra: [u64; 4],
}

impl Extended {
    fn new(vector_length: u16) -> Box<Self> {
        // SAFETY: integers, for which zeroes are values.
        let mut frame: Box<Self> = unsafe { Box::new_zeroed().assume_init() };
        frame.extra[0] = u64::from(SVE) | 16 << 32;
        frame.extra[1] = vector_length.into();
        let at = &raw const frame.extra as u64;
        let size = size_of_val(&frame.extra) as u64;
        frame.uc = *context(&[(FPSIMD, 528, &[]), (EXTRA, 32, &[at, size])]);
        frame
    }

    fn check(&self) -> Result<(), BadFrame> {
        let lo = &raw const *self as usize;
        check_frame(&self.uc, lo, lo + size_of::<Self>())
    }
}

#[test]
fn extra_space_moves_with_its_frame() {
    let frame = Extended::new(64);
    assert_eq!(frame.check(), Ok(()));
    let mut copy = Extended::new(64);
    // SAFETY: plain integers; the two do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(&raw const *frame, &raw mut *copy, 1) };
    let at = &raw const frame.extra as usize;
    assert_eq!(copy.check(), Err(BadFrame::ExtendedState { at }), "it is the first frame's");
    let delta = (&raw const *copy as usize).wrapping_sub(&raw const *frame as usize);
    relocate(&mut copy.uc, delta);
    assert_eq!(copy.check(), Ok(()));
    copy.extra[1] = 17;
    // SAFETY: the extra space is the copy's own now.
    let record = unsafe { copy.uc.extra_records() }.next().expect("one record");
    assert_eq!((record.magic, record.u16(offset_of!(SveRecord, vl))), (SVE, 17));
}

#[test]
fn a_broken_list_in_the_extra_space_is_seen() {
    let mut frame = Extended::new(64);
    frame.extra[2] = u64::from(ZA) | 32 << 32;
    let at = &raw const frame.extra as usize;
    assert_eq!(frame.check(), Err(BadFrame::ExtendedState { at }));
}

#[test]
fn a_frame_with_vectors_of_another_length_does_not_move() {
    // No vector is 17 bytes long.
    for uc in [Extended::new(17).uc, *context(&[(ZA, 16, &[17])])] {
        let moved = check_move(&uc, 0);
        assert!(matches!(moved, Err(MoveError::VectorLength { frame: 17, .. })), "{moved:?}");
    }
    assert_eq!(check_move(&context(&[(FPSIMD, 528, &[])]), 0), Ok(()));
}

#[test]
fn a_frame_with_a_guarded_control_stack_does_not_move() {
    assert_eq!(check_move(&context(&[(GCS, 32, &[0, 1])]), 0), Err(MoveError::ShadowStack));
    assert_eq!(check_move(&context(&[(GCS, 32, &[0, 0])]), 0), Ok(()));
}
