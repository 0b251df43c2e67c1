//! What holds on this architecture alone.

use super::*;

#[test]
fn status_flags_are_where_the_manual_has_them() {
    // A comparison that was true, after an inexact operation that rounded down.
    let status = Status::from_bits_retain(0x0080_1007);
    assert_eq!(status, Status::FCC0 | Status::CAUSE_I | Status::FLAG_I | Status::RM);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    // 20 to 22 are reserved.
    assert_eq!(bits, 0xff8f_ffff);
}

#[test]
fn system_call_instructions_are_known() {
    for code in [0x0000_000c, 0x0003_ffcc, 0x03ff_ffcc_u32] {
        let code = code.to_ne_bytes();
        assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
    }
    // nop, break, jr ra, a load
    for code in [0, 0x0000_000d, 0x03e0_0008, 0x8c00_000c_u32] {
        assert!(!is_syscall(code.to_ne_bytes()), "{code:08x}");
    }
}

#[test]
fn compressed_code_is_refused() {
    // SAFETY: plain integers, for which zeroes are values.
    let mut uc: Ucontext = unsafe { core::mem::zeroed() };
    uc.set_pc(0x1000);
    assert_eq!((check_frame(&uc, 0, 0), syscall_len(&uc)), (Ok(()), SYSCALL_LEN));
    uc.set_pc(0x1001);
    let refused = Err(BadFrame::InstructionSet { pc: 0x1001 });
    assert_eq!((check_frame(&uc, 0, 0), syscall_len(&uc)), (refused, 0));
}

#[test]
fn records_must_end_within_the_frame() {
    #[repr(C)]
    struct Memory {
        uc: Ucontext,
        records: [u32; 8],
    }
    // SAFETY: plain integers, for which zeroes are values.
    let mut memory: Memory = unsafe { core::mem::zeroed() };
    let check = |memory: &Memory, words: usize| {
        check_frame(&memory.uc, 0, (&raw const memory.records as usize) + 4 * words)
    };
    assert_eq!(check(&memory, 0), Ok(()));
    memory.uc.mcontext.used_math = RECORDS;
    let first = &raw const memory.records as usize;
    let bad = |at| Err(BadFrame::ExtendedState { at });
    assert_eq!(check(&memory, 8), bad(first), "no size");
    memory.records = [MSA_RECORD, 16, 0, 0, END_OF_RECORDS, 0, 0, 0];
    assert_eq!(check(&memory, 5), Ok(()));
    assert!(has_vectors(&memory.uc));
    memory.records[0] = 0x1234_5678;
    assert!(!has_vectors(&memory.uc), "a record that is not known");
    memory.records[0] = MSA_RECORD;
    assert_eq!(check(&memory, 4), bad(first + 16), "no end");
    assert_eq!(check(&memory, 3), bad(first), "cut off");
    assert_eq!(check(&memory, 0), bad(first), "nothing there");
    memory.records[1] = 12;
    assert_eq!(check(&memory, 8), bad(first), "not aligned");
    memory.records[1] = u32::MAX - 7;
    assert_eq!(check(&memory, 8), bad(first), "too long");
}
