//! What holds on this architecture alone.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use super::super::resume_address;
use super::*;
use crate::arch::entry;

/// As the kernel writes it for a thread with live vectors of 128 bits.
#[repr(C)]
struct Frame {
    uc: Ucontext,
    rest_of_the_context: [u8; 244],
    reserved: u32,
    header: RecordHeader,
    state: VectorState,
    vectors: [u64; 64],
    end: RecordHeader,
}

fn frame() -> Frame {
    // SAFETY: all are integers, for which zeroes are values.
    let mut frame: Frame = unsafe { core::mem::zeroed() };
    let size = offset_of!(Frame, end) - offset_of!(Frame, header);
    frame.header = RecordHeader { magic: VECTOR_MAGIC, size: size as u32 };
    frame.state.vlenb = 16;
    frame
}

fn bounds(frame: &Frame) -> (usize, usize) {
    let at = &raw const *frame as usize;
    (at, at + offset_of!(Frame, end) + size_of::<RecordHeader>())
}

#[test]
fn the_vector_record_is_where_the_kernel_puts_it() {
    assert_eq!(offset_of!(Frame, header), RECORDS);
    assert_eq!(RECORDS, 176 + 776);
    // The kernel has the state 16-aligned, and the registers just behind it.
    assert_eq!(offset_of!(Frame, state) % 16, 0);
    assert_eq!(offset_of!(Frame, vectors), offset_of!(Frame, state) + 48);
}

#[test]
fn the_pointer_to_the_vectors_moves_with_the_frame() {
    let mut frame = frame();
    let (lo, hi) = bounds(&frame);
    frame.state.datap = &raw const frame.vectors as usize;
    assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
    // As if it had been copied from 4096 bytes below.
    let delta = 4096;
    frame.uc.stack = SignalStack { sp: lo - delta, flags: 0, size: hi - lo };
    frame.state.datap -= delta;
    relocate(&mut frame.uc, delta);
    assert_eq!(frame.state.datap, &raw const frame.vectors as usize);
    assert!(has_vectors(&frame.uc, hi));
    // An emulator's frame, which is shorter; and one without vectors.
    assert!(!has_vectors(&frame.uc, lo + RECORDS));
    frame.header.magic = 0;
    assert!(!has_vectors(&frame.uc, hi));
}

#[test]
fn records_outside_of_the_frame_are_refused() {
    let mut frame = frame();
    let (lo, hi) = bounds(&frame);
    frame.state.datap = hi;
    assert_eq!(check_frame(&frame.uc, lo, hi), Err(BadFrame::ExtendedState { at: hi }));
    frame.state.datap = &raw const frame.vectors as usize;
    for size in [0, 4, 12, 8, frame.header.size + 16] {
        let header = RecordHeader { magic: VECTOR_MAGIC, size };
        let whole = core::mem::replace(&mut frame.header, header);
        let refused = Err(BadFrame::ExtendedState { at: lo + RECORDS });
        assert_eq!(check_frame(&frame.uc, lo, hi), refused, "{header:?}");
        frame.header = whole;
    }
    // No vectors; and a frame that ends before there could be any.
    frame.header = RecordHeader { magic: 0, size: 0 };
    frame.state.datap = 0;
    assert_eq!(check_frame(&frame.uc, lo, hi), Ok(()));
    frame.header = RecordHeader { magic: VECTOR_MAGIC, size: 8 };
    assert_eq!(check_frame(&frame.uc, lo, lo + size_of::<Ucontext>()), Ok(()));
}

/// A stack with a frame at its top.
#[repr(C, align(16))]
struct FakeStack {
    below: [u8; 64 * 1024],
    info: [u8; UCONTEXT_OFFSET],
    uc: Ucontext,
}

/// f0 to f31 and `fcsr`.
type Floats = [u64; 33];

fn floats(tag: u64) -> Floats {
    core::array::from_fn(|n| if n == 32 { tag } else { tag << 32 | n as u64 })
}

fn frame_with(floats: &Floats) -> Box<FakeStack> {
    // SAFETY: plain integers, for which zeroes are values.
    let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
    stack.uc.mcontext.f.copy_from_slice(&floats[..32]);
    stack.uc.mcontext.fcsr = floats[32] as u32;
    stack
}

/// Loads the float registers from `before`, jumps to `code` on the stack `sp`, with a place to
/// return to in a1 and ra, and says what they are there.
///
/// # Safety
///
/// `code` can run so, and keeps s4 to s11.
unsafe fn floats_after(code: usize, sp: usize, a0: usize, a2: usize, before: &Floats) -> Floats {
    let mut after: Floats = [0; 33];
    // SAFETY: the caller's obligation. The stack pointer, s1, which the compiler keeps for
    // itself, and the default modes come back at the end.
    unsafe {
        asm!(
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "fld f\\n, 8*\\n(s6)",
            ".endr",
            "ld t0, 256(s6)",
            "csrw fcsr, t0",
            "mv s5, sp",
            "mv s7, s1",
            "mv sp, s8",
            "lla ra, 2f",
            "mv a1, ra",
            "jr s9",
            "2:",
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "fsd f\\n, 8*\\n(s4)",
            ".endr",
            "csrr t0, fcsr",
            "sd t0, 256(s4)",
            "csrw fcsr, zero",
            "mv s1, s7",
            "mv sp, s5",
            in("a0") a0,
            in("a2") a2,
            in("s4") &raw mut after,
            in("s6") before,
            in("s8") sp,
            in("s9") code,
            out("s2") _,
            out("s5") _,
            out("s7") _,
            out("fs0") _, out("fs1") _, out("fs2") _, out("fs3") _,
            out("fs4") _, out("fs5") _, out("fs6") _, out("fs7") _,
            out("fs8") _, out("fs9") _, out("fs10") _, out("fs11") _,
            clobber_abi("C"),
        );
    }
    after
}

/// 0 is no signal: nothing is called.
const NO_SIGNAL: usize = 0;

#[test]
fn a_handler_returns_with_the_float_registers_of_its_frame() {
    let (before, given) = (floats(0x25), floats(0x43));
    let stack = frame_with(&given);
    let (sp, uc) = (&raw const stack.info as usize, &raw const stack.uc as usize);
    // SAFETY: as the kernel calls it, with room on the stack.
    let after = unsafe { floats_after(entry(), sp, NO_SIGNAL, uc, &before) };
    assert_eq!(after, given);
}

#[test]
fn an_entry_that_another_handler_calls_keeps_what_a_function_keeps() {
    let (before, given) = (floats(0x25), floats(0x43));
    let stack = frame_with(&given);
    let (sp, uc) = (&raw const stack.info as usize, &raw const stack.uc as usize);
    // SAFETY: as a function calls it, with room on the stack.
    let after = unsafe { floats_after(entry(), sp - 16, NO_SIGNAL, uc, &before) };
    for n in [8, 9, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 32] {
        assert_eq!(after[n], before[n], "f{n}");
    }
}

#[test]
fn an_injected_call_resumes_with_the_float_registers_of_its_frame() {
    let (before, given) = (floats(0x25), floats(0x43));
    let stack = frame_with(&given);
    let (frame, active) = (&raw const stack.info as usize, AtomicU32::new(1));
    let (sp, active_at) = (frame - 4096, &raw const active as usize);
    // SAFETY: as for a call that never returned, with room on the stack.
    let after = unsafe { floats_after(resume_address(), sp, frame, active_at, &before) };
    assert_eq!(after, given);
    assert_eq!(active.load(Ordering::Relaxed), 0);
}

#[test]
fn status_fields_are_where_the_manual_has_them() {
    let status = Status::from_bits_retain(0x35);
    assert_eq!(status, Status::NX | Status::OF | Status::NV | Status::RTZ);
    for (mode, name) in [(1, "RTZ"), (2, "RDN"), (3, "RUP"), (4, "RMM"), (7, "FRM")] {
        let status = Status::from_bits_retain(mode << 5);
        assert!(status.iter_names().map(|(name, _)| name).eq([name]), "{status:?}");
    }
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    assert_eq!(bits, 0xff);
}

#[test]
fn system_call_instructions_are_known() {
    assert!(is_syscall(SYSCALL_CODE) && begins_syscall(SYSCALL_CODE[0]));
    // ebreak, csrrw zero cycle zero, two compressed no-ops
    for code in [0x0010_0073u32, 0xc000_1073, 0x0001_0001] {
        assert!(!is_syscall(code.to_le_bytes()), "{code:#x}");
    }
}
