//! What holds on this architecture alone.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use super::super::resume_address;
use super::*;
use crate::arch::{entry, known, trampoline};

/// gdb: `s390_sigtramp_frame_sniffer`; libgcc: `s390_fallback_frame_state`.
#[test]
fn the_restorer_is_the_one_that_debuggers_know() {
    let code = restorer() as *const [u8; 2];
    // SAFETY: code can be read.
    let code = unsafe { code.read() };
    assert_eq!(code, [0x0a, libc::SYS_rt_sigreturn as u8]);
    assert!(trampoline().contains(&restorer()));
}

/// This is what most code is interrupted with, and a condition code of 2.
#[test]
fn status_flags_are_where_the_manual_has_them() {
    let status = Status::from_bits_retain(0x0705_2001_8000_0000);
    let system = Status::DAT | Status::IO | Status::EXT | Status::MCHECK | Status::PSTATE;
    assert_eq!(status, system | Status::CC_HIGH | Status::EA | Status::BA);
    assert_eq!(status.condition_code(), 2);
    assert_eq!(Status::CC_LOW.condition_code(), 1);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    // Bit 12 (8 << 48) is always 0 in 64-bit PSWs; 0, 2 to 4 and 25 to 30 are reserved.
    assert_eq!(bits, 0x47f7_ff81_8000_0000);
}

/// A stack with a frame at its top.
#[repr(C, align(8))]
struct FakeStack {
    below: [u8; 64 * 1024],
    save_area_and_info: [u8; UCONTEXT_OFFSET],
    uc: Ucontext,
}

/// a0 to a15.
type Access = [u32; 16];

/// A value for each but the thread pointer.
fn access(tag: u32) -> Access {
    let (high, low): (u32, u32);
    // SAFETY: reads two registers.
    unsafe { asm!("ear {}, %a0", "ear {}, %a1", out(reg) high, out(reg) low) };
    core::array::from_fn(|n| match n {
        0 => high,
        1 => low,
        n => tag << 16 | n as u32,
    })
}

fn frame_with(access: &Access) -> Box<FakeStack> {
    // SAFETY: plain integers, for which zeroes are values.
    let mut stack = unsafe { Box::<FakeStack>::new_zeroed().assume_init() };
    let at = (&raw mut stack.uc.mcontext.a0).cast::<Access>();
    // SAFETY: the registers follow one another.
    unsafe { at.write(*access) };
    stack
}

/// Loads the access registers from `before`, jumps to `code` on the stack `sp`, with a place to
/// return to in r3 and r14, and says what they are there.
///
/// # Safety
///
/// `code` can run so, and keeps r8 to r13.
unsafe fn access_after(code: usize, sp: usize, r2: usize, r4: usize, before: &Access) -> Access {
    let mut after = Access::default();
    // SAFETY: the caller's obligation. The stack pointer comes back at the end, and the thread
    // pointer is the same throughout.
    unsafe {
        asm!(
            "lam %a0, %a15, 0(%r1)",
            "lgr %r9, %r15",
            "lgr %r15, %r10",
            "larl %r14, 2f",
            "lgr %r3, %r14",
            "br %r12",
            "2:",
            "stam %a0, %a15, 0(%r8)",
            "lgr %r15, %r9",
            in("r1") before,
            in("r2") r2,
            in("r4") r4,
            in("r8") &raw mut after,
            in("r10") sp,
            in("r12") code,
            out("r6") _,
            out("r7") _,
            out("r9") _,
            out("a2") _, out("a3") _, out("a4") _, out("a5") _, out("a6") _, out("a7") _,
            out("a8") _, out("a9") _, out("a10") _, out("a11") _, out("a12") _, out("a13") _,
            out("a14") _, out("a15") _,
            clobber_abi("C"),
        );
    }
    after
}

/// 0 is no signal: nothing is called.
const NO_SIGNAL: usize = 0;

#[test]
fn a_handler_returns_with_the_access_registers_of_its_frame() {
    let (before, given) = (access(0x25), access(0x43));
    let stack = frame_with(&given);
    let sp = &raw const stack.save_area_and_info as usize;
    let uc = &raw const stack.uc as usize;
    // SAFETY: as the kernel calls it, with room on the stack.
    let after = unsafe { access_after(entry(), sp, NO_SIGNAL, uc, &before) };
    assert_eq!(after, given);
}

#[test]
fn an_entry_that_another_handler_calls_leaves_the_access_registers_alone() {
    let (before, given) = (access(0x25), access(0x43));
    let stack = frame_with(&given);
    let sp = &raw const stack.save_area_and_info as usize - 4096;
    let uc = &raw const stack.uc as usize;
    // SAFETY: as a function calls it, with room on the stack.
    let after = unsafe { access_after(entry(), sp, NO_SIGNAL, uc, &before) };
    assert_eq!(after, before);
}

#[test]
fn an_injected_call_resumes_with_the_access_registers_of_its_frame() {
    let (before, given) = (access(0x25), access(0x43));
    let stack = frame_with(&given);
    let frame = &raw const stack.save_area_and_info as usize;
    let active = AtomicU32::new(1);
    let (sp, active_at) = (frame - 4096, &raw const active as usize);
    // SAFETY: as for a call that never returned, with room on the stack.
    let after = unsafe { access_after(resume_address(), sp, frame, active_at, &before) };
    assert_eq!(after, given);
    assert_eq!(active.load(Ordering::Relaxed), 0);
}

#[test]
fn system_call_instructions_are_known() {
    for code in [[0x0a, 0x00], [0x0a, 0xad], [0x0a, 0xff]] {
        assert!(is_syscall(code) && begins_syscall(code[0]));
    }
    // undefined, breakpoint, a two-byte no-op, br %r10
    for code in [[0x00, 0x00], [0x00, 0x01], [0x07, 0x07], [0x07, 0xfa]] {
        assert!(!is_syscall(code), "{code:02x?}");
    }
}

#[test]
fn lines_of_a_disassembly_are_understood() {
    assert!(instruction("   1a:\tsvc\t0").system_call);
    assert!(instruction("   1c:\tbrasl\t%r14,1c <f+0x1c>").outside);
    assert!(instruction("\t\t\t1e: R_390_PLT32DBL\tmemcpy+0x2").outside);
    assert!(!instruction("   22:\tbasr\t%r14,%r1").outside);
    assert!(instruction("   24:\tear\t%r1,%a0").thread_local);
    assert_eq!(instruction("   28:\taghi\t%r15,-168").stack, 168);
    assert_eq!(instruction("   2c:\tlay\t%r15,-4256(%r15)").stack, 4256);
    assert_eq!(instruction("   32:\taghi\t%r15,168").stack, 0);
    assert_eq!(instruction("   36:\tstmg\t%r6,%r15,48(%r15)"), Default::default());
}

#[test]
fn a_frame_without_room_for_its_vectors_is_no_frame() {
    // SAFETY: plain integers, for which zeroes are values.
    let mut uc: Ucontext = unsafe { core::mem::zeroed() };
    let lo = 0x1000;
    let (short, long) = (lo + 296 + 512, lo + 296 + 1024);
    assert_eq!(check_frame(&uc, lo, short), Ok(()));
    assert_eq!(check_frame(&uc, lo, short - 8), Err(BadFrame::Length { length: 800 }));
    uc.flags = UC_VXRS;
    assert_eq!(check_frame(&uc, lo, long), Ok(()));
    let at = short;
    assert_eq!(check_frame(&uc, lo, long - 8), Err(BadFrame::ExtendedState { at }));
}

#[test]
fn a_moved_frame_has_the_thread_pointer_of_this_thread() {
    // SAFETY: plain integers, for which zeroes are values.
    let mut uc: Ucontext = unsafe { core::mem::zeroed() };
    uc.mcontext.psw_mask = !0;
    patch_thread(&mut uc, 0);
    let thread = u64::from(uc.mcontext.a0) << 32 | u64::from(uc.mcontext.a1);
    // SAFETY: asks libc, which has the thread's descriptor there.
    assert_eq!(thread, unsafe { libc::pthread_self() } as u64);
    assert_eq!(uc.mcontext.psw_mask, !(1 << 39));
}

/// What [`known`] is interrupted with has traps enabled in its program mask.
#[test]
fn a_handler_runs_without_the_interrupted_codes_traps() {
    use crate::handler::{self, Delivery, Flow, Options};

    static SEEN: AtomicU32 = AtomicU32::new(u32::MAX);

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        let mask: u32;
        // SAFETY: reads a register.
        unsafe { asm!("ipm {}", out(reg) mask, options(nomem, nostack, preserves_flags)) };
        if delivery.status().contains(Status::FIXED_OVERFLOW) {
            SEEN.store(mask >> 24 & 0xf, Ordering::Relaxed);
        }
        crate::probe::step_over_known(delivery);
        Flow::Resume
    }
    let _alt = crate::altstack::AltStack::install().expect("alternate stack");
    // SAFETY: looks, and steps over the instruction.
    let installed = unsafe { handler::install(libc::SIGILL, look, Options::new()) };
    // SAFETY: the handler steps over the instruction; no other test here does the same.
    unsafe { known() };
    installed.expect("SIGILL").uninstall().expect("no other is over it");
    assert_eq!(SEEN.load(Ordering::Relaxed), 0);
}
