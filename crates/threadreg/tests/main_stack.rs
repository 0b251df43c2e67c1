//! The main thread's stack, which the kernel makes and lets grow. The harness keeps that thread for
//! itself, so what is asked of it is asked before `main`.

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use sigctx::sys;
use threadreg::attach;

const TEST: &str = "the_main_threads_stack_is_as_deep_as_it_may_grow";
const MIB: usize = 1 << 20;

/// Calls `at_depth` with that many bytes of stack used, and with an address there.
fn deeper(bytes: usize, at_depth: &dyn Fn(usize)) {
    let room = [0_u8; 16 * 1024];
    let here = std::hint::black_box(&room).as_ptr().addr();
    if bytes > room.len() {
        deeper(bytes - room.len(), at_depth);
    } else {
        at_depth(here);
    }
    std::hint::black_box(&room);
}

/// Sets the limit that the kernel looks at whenever the stack is to grow.
fn limit(bytes: libc::rlim_t) {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limits) }, 0);
    limits.rlim_cur = bytes.min(limits.rlim_max);
    // SAFETY: reads one `rlimit`.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limits) }, 0);
}

/// The bounds, whose lowest byte has been written: the kernel let the stack grow to there.
fn bounds() -> (usize, usize) {
    let me = attach().expect("attaches");
    let (low, high) = me.thread().call_stack().bounds();
    // SAFETY: nothing lives down there; if it is not the stack's, the test fails by a signal.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(low).write_volatile(0) };
    (low, high)
}

static DONE: AtomicBool = AtomicBool::new(false);

/// Run by the loader before `main`. A panic ends the process, as it cannot leave this function.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = first;

extern "C" fn first() {
    if testkit::is_child(TEST) {
        measure();
        DONE.store(true, SeqCst);
    }
}

fn measure() {
    assert_eq!(sys::gettid(), sys::getpid(), "on the main thread");
    let local = 0_u8;
    let here = (&raw const local).addr();
    // The largest last: what has been written to stays.
    limit(2 * MIB as libc::rlim_t);
    if testkit::emulator().is_some() {
        // The emulator has made the stack before, as large as its own limit was.
        let (low, high) = bounds();
        assert!(low < here - 2 * MIB && here < high, "{low:#x}..{high:#x}, {here:#x}");
    } else {
        let (low, high) = bounds();
        assert!(low < here - MIB && here < high, "{low:#x}..{high:#x}, {here:#x}");
        assert!(high - low <= 2 * MIB, "beyond the limit: {low:#x}..{high:#x}");
    }
    limit(16 * MIB as libc::rlim_t);
    let me = attach().expect("attaches");
    let (low, high) = me.thread().call_stack().bounds();
    deeper(3 * MIB, &|deep| {
        assert!((low..high).contains(&deep), "{deep:#x} is not in {low:#x}..{high:#x}");
    });
    drop(me);
    if testkit::emulator().is_some() {
        return;
    }
    assert!(high - low > 15 * MIB, "{low:#x}..{high:#x}");
    // A neighbour below, and no limit.
    limit(libc::RLIM_INFINITY);
    let (place, length) = (low - 8 * MIB, MIB);
    let hint = ptr::with_exposed_provenance_mut(place & !0xffff);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping where there is none.
    let neighbour = unsafe { libc::mmap(hint, length, libc::PROT_READ, flags, -1, 0) };
    assert_eq!(neighbour, hint, "the place is free");
    let (low, _) = bounds();
    assert!(low > neighbour.addr() + length && low < here - 16 * MIB, "{low:#x}, {neighbour:?}");
}

/// A stack that is taken for smaller than it is has parts on which its thread is never stopped: musl
/// says of the main thread's what is mapped at the moment.
#[test]
fn the_main_threads_stack_is_as_deep_as_it_may_grow() {
    testkit::in_child(TEST, Duration::from_mins(1), || {
        assert!(DONE.load(SeqCst), "the loader runs what is to come before `main`");
    });
}
