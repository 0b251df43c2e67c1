//! What holds on this architecture alone.

use super::*;
use crate::arch::{entry, trampoline};

/// What a comparison of 1 with 2, of 2 with 1, and an equal one leave.
#[test]
fn status_flags_are_where_the_manual_has_them() {
    let status: u64;
    // SAFETY: compares registers with each other.
    unsafe {
        asm!(
            "cmpd %cr0, {one}, {two}",
            "cmpd %cr5, {two}, {one}",
            "cmpd %cr7, {one}, {one}",
            "mfcr {status}",
            one = in(reg) 1_u64,
            two = in(reg) 2_u64,
            status = out(reg) status,
            out("cr0") _,
            out("cr5") _,
            out("cr7") _,
            options(nomem, nostack),
        );
    }
    let fields = Status::from_bits_retain(status & 0xf000_0f0f) - OVERFLOW;
    assert_eq!(fields, Status::CR0_LT | Status::CR5_GT | Status::CR7_EQ);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    assert_eq!(bits, 0xffff_ffff);
}

/// Copies of the summary overflow that happens to be set.
const OVERFLOW: Status = Status::CR0_SO.union(Status::CR5_SO).union(Status::CR7_SO);

#[test]
fn system_call_instructions_are_known() {
    // sc, sc 1 (a hypervisor's), scv 0, scv 127
    for code in [0x4400_0002_u32, 0x4400_0022, 0x4400_0001, 0x4400_0fe1] {
        let code = code.to_ne_bytes();
        assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
    }
    // nop, an undefined instruction, b with absolute address and link, blr, bctrl
    for code in [0x6000_0000_u32, 0, 0x4800_0003, 0x4e80_0020, 0x4e80_0421] {
        assert!(!is_syscall(code.to_ne_bytes()), "{code:#x}");
    }
}

/// In ELF V1 no function's address is in this range: the addresses are descriptors'.
#[test]
fn the_trampoline_is_code() {
    let entry = entry();
    let code = if cfg!(target_abi = "elfv1") {
        // SAFETY: a function's descriptor begins with the address of its code.
        unsafe { (entry as *const usize).read() }
    } else {
        entry
    };
    assert_eq!(code, trampoline().start);
    assert!(trampoline().len() < 256, "{}", trampoline().len());
}

#[test]
fn a_transaction_and_vectors_elsewhere_are_refused() {
    // SAFETY: plain integers, for which zeroes are values.
    let mut uc: Ucontext = unsafe { core::mem::zeroed() };
    let (lo, hi) = (0x10000, 0x11000);
    assert_eq!(check_frame(&uc, lo, hi), Ok(()));
    for (at, fits) in [(lo, true), (hi - VECTOR_BYTES, true), (hi - 544, false), (16, false)] {
        uc.mcontext.v_regs = at;
        assert_eq!(check_frame(&uc, lo, hi).is_ok(), fits, "{at:#x}");
    }
    uc.mcontext.v_regs = 0;
    uc.link = lo + 16;
    for state in [1_u64 << 33, 1 << 34] {
        uc.mcontext.msr = state;
        let refused = Err(BadFrame::ExtendedState { at: lo + 16 });
        assert_eq!(check_frame(&uc, lo, hi), refused);
    }
}

#[test]
fn the_condition_register_takes_the_low_half() {
    // SAFETY: as above.
    let mut uc: Ucontext = unsafe { core::mem::zeroed() };
    uc.set(Reg::Cr, 0x1234_5678_9abc_def0);
    assert_eq!(uc.get(Reg::Cr), 0x9abc_def0);
    uc.set(Reg::Ctr, 0x1234_5678_9abc_def0);
    assert_eq!(uc.get(Reg::Ctr), 0x1234_5678_9abc_def0);
}
