//! What holds on this architecture alone.

use super::*;
use crate::altstack::AltStack;
use crate::arch::trampoline;
use crate::handler::{self, Delivery, Flow, Options};
use crate::inject::{CallStack, Frame};
use crate::probe::{Patterned, Spin, with_blank_context};
use crate::sys;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// gdb: `arm_linux_rt_sigreturn_tramp_frame`.
#[test]
fn the_restorer_is_the_one_that_debuggers_know() {
    let code = restorer() as *const [u32; 2];
    // SAFETY: code can be read.
    assert_eq!(unsafe { code.read() }, [0xe3a0_70ad, 0xef00_0000]);
    assert!(trampoline().contains(&restorer()));
}

/// Within an IT block, with all flags set.
#[test]
fn status_flags_are_where_the_manual_has_them() {
    let status = Status::from_bits_retain(0xfe0f_fc30);
    let user = Status::from_bits_retain(0x10);
    let nzcv = Status::N | Status::Z | Status::C | Status::V;
    assert_eq!(status, nzcv | Status::Q | Status::GE | Status::IT | Status::T | user);
    let bits = Status::all().iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    // 20 is another exception's business.
    assert_eq!(bits, 0xffef_ffff);
}

#[test]
fn system_call_instructions_are_known() {
    // svc #0, svcne #0x123456; in Thumb code svc #0, svc #0xff
    for code in [[0, 0, 0, 0xef], [0x56, 0x34, 0x12, 0x1f], [0, 0xdf, 0, 0], [0xff, 0xdf, 0, 0]] {
        assert!(is_syscall(code) && begins_syscall(code[0]), "{code:02x?}");
    }
    // udf, bl, mrc2, ldm; in Thumb code udf, b, b to the next but one
    for code in [
        [0xf0, 0x00, 0xf0, 0xe7],
        [0x00, 0x00, 0x00, 0xeb],
        [0x10, 0x0f, 0x11, 0xff],
        [0x00, 0xdf, 0x9d, 0xe8],
        [0x00, 0xde, 0, 0],
        [0xfe, 0xe7, 0, 0],
        [0x00, 0xd0, 0, 0],
    ] {
        assert!(!is_syscall(code), "{code:02x?}");
    }
}

#[test]
fn bit_zero_of_an_address_chooses_the_instruction_set() {
    let thumb_in_it = Status::T | Status::IT;
    with_blank_context(|ctx| {
        for (to, pc, status) in [(0x1003, 0x1002, Status::T), (0x2000, 0x2000, Status::empty())] {
            for before in [Status::empty(), Status::T, thumb_in_it] {
                ctx.set_status(before | Status::Q);
                ctx.set_pc(to);
                assert_eq!((ctx.pc(), ctx.status()), (pc, status | Status::Q));
            }
        }
    });
}

#[test]
fn a_pushed_call_comes_back_in_the_instruction_set_that_was_interrupted() {
    let mut stack = [0x5555_5555_u32; 2];
    let top = &raw mut stack[1] as usize;
    with_blank_context(|ctx| {
        for (status, lr) in [(Status::empty(), 0x3332), (Status::T, 0x3333)] {
            ctx.set_status(status | Status::GE);
            ctx.set_sp(top);
            ctx.set(Reg::Lr, 0x1234);
            // SAFETY: the slot is the array's; nothing is resumed.
            unsafe { ctx.push_call(0x2221, 0x3332) };
            assert_eq!((ctx.pc(), ctx.sp(), ctx.lr()), (0x2220, top - 4, Some(lr)));
            assert_eq!(ctx.status(), Status::T | Status::GE);
        }
    });
    assert_eq!(stack, [0x1234, 0x5555_5555]);
}

#[test]
fn the_frame_pointer_is_that_of_the_instruction_set() {
    with_blank_context(|ctx| {
        ctx.set(Reg::R7, 7);
        ctx.set(Reg::R11, 11);
        assert_eq!(ctx.fp(), 11);
        ctx.set_status(Status::T);
        assert_eq!(ctx.fp(), 7);
    });
}

static STACK: AtomicPtr<CallStack> = AtomicPtr::new(core::ptr::null_mut());
static HANDLED: AtomicUsize = AtomicUsize::new(0);
/// Calls injected in ARM code, in Thumb code, and within an IT block.
static INJECTED: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Rounding, flushing to zero and the like; the loop has something else there.
#[cfg(target_abi = "eabihf")]
fn fp_modes() -> u32 {
    let fpscr: u32;
    // SAFETY: reads a register.
    unsafe { asm!("vmrs {}, fpscr", out(reg) fpscr, options(nomem, nostack)) };
    fpscr & 0x07c0_0000
}

fn count(frame: &mut Frame<'_>, _: usize) {
    #[cfg(target_abi = "eabihf")]
    assert_eq!(fp_modes(), 0, "the interrupted code's rounding mode");
    let status = frame.context().status();
    let kind: usize =
        if status.intersects(Status::IT) { 2 } else { status.contains(Status::T).into() };
    crate::probe::clobber_all();
    INJECTED[kind].fetch_add(1, SeqCst);
    HANDLED.fetch_add(1, SeqCst);
}

fn inject(delivery: &mut Delivery<'_>) -> Flow {
    if Patterned::code().contains(&delivery.pc()) {
        // SAFETY: the thread with the loop waits for the last signal.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the loop may be interrupted anywhere.
        if let Ok(injection) = unsafe { delivery.inject(stack, count, 0) } {
            return Flow::Inject(injection);
        }
    }
    HANDLED.fetch_add(1, SeqCst);
    Flow::Resume
}

/// An IT block that loses its state goes on with instructions that are not to be executed.
#[test]
fn calls_are_injected_in_arm_code_in_thumb_code_and_within_it_blocks() {
    const ENOUGH: usize = 100;
    let enough = || INJECTED.iter().all(|count| count.load(SeqCst) >= ENOUGH);
    // SAFETY: the handler counts and injects.
    let installed = unsafe { handler::install(libc::SIGURG, inject, Options::new()) };
    let installed = installed.expect("install");
    let tid = AtomicI32::new(0);
    let mut patterned = Patterned::new();
    let stack = patterned.shared_call_stack();
    STACK.store((&raw const *stack).cast_mut(), SeqCst);
    // SAFETY: the loop's memory outlives the thread below.
    let stop = unsafe { patterned.stopper() };
    thread::scope(|s| {
        s.spawn(|| {
            let start = Instant::now();
            let in_time = || start.elapsed() < Duration::from_secs(60);
            while tid.load(SeqCst) == 0 {
                thread::yield_now();
            }
            while !enough() && in_time() {
                let handled = HANDLED.load(SeqCst);
                sys::tgkill(sys::getpid(), tid.load(SeqCst), libc::SIGURG).expect("alive");
                while HANDLED.load(SeqCst) == handled && in_time() {
                    thread::yield_now();
                }
            }
            stop.stop();
        });
        let _alt = AltStack::install().expect("alternate stack");
        let mut pattern = 0x9e37_79b9_7f4a_7c15_u64;
        let random = || {
            pattern = pattern.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) | 1;
            pattern
        };
        let ready = || tid.store(sys::gettid(), SeqCst);
        let different = patterned.run(random, Spin::UntilStopped, ready);
        assert!(different.is_empty(), "{different:x?}");
    });
    installed.uninstall().expect("uninstall");
    assert!(enough(), "only {INJECTED:?}");
}
