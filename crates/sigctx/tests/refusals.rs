//! Where no call may be injected, none is, and the reason is told.

mod common;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use common::*;
use sigctx::handler::{Delivery, Flow};
use sigctx::inject::Frame;
use sigctx::sys;

fn get(counter: &std::sync::atomic::AtomicUsize) -> usize {
    counter.load(SeqCst)
}

/// Computes until the test is over, without a system call.
fn spin() {
    TID.store(sys::gettid(), SeqCst);
    while !DONE.load(SeqCst) {
        std::hint::spin_loop();
    }
}

#[test]
fn no_room_is_refused() {
    testkit::in_child("no_room_is_refused", DEADLINE, || {
        let _installed = install(libc::SIGURG, inject_anywhere);
        let victim = || {
            let stack = register_own_stack();
            let (_, hi) = stack.bounds();
            // SAFETY: a part of the stack that was registered: just enough is used by now.
            unsafe { stack.set_bounds(hi - (64 << 10) - (8 << 10), hi) };
            spin();
        };
        let sent = under_signals(victim, || get(&NO_ROOM) >= 100);
        assert_eq!(get(&INJECTED), 0, "{}", counts());
        // Only a signal in a system call before the loop has another reason.
        assert!(get(&NO_ROOM) + 2 >= sent, "{sent} sent; {}", counts());
    });
}

#[test]
fn another_stack_is_refused() {
    testkit::in_child("another_stack_is_refused", DEADLINE, || {
        let _installed = install(libc::SIGURG, inject_anywhere);
        let victim = || {
            // The stack of a thread that is not interrupted.
            thread::scope(|s| {
                s.spawn(|| {
                    register_own_stack();
                });
            });
            spin();
        };
        under_signals(victim, || get(&NOT_ON_STACK) >= 100);
        assert_eq!(get(&INJECTED), 0, "{}", counts());
    });
}

#[test]
fn a_thread_without_alternate_stack_is_refused() {
    testkit::in_child("a_thread_without_alternate_stack_is_refused", DEADLINE, || {
        let _installed = install(libc::SIGURG, inject_anywhere);
        let victim = || {
            let none = libc::stack_t {
                ss_sp: std::ptr::null_mut(),
                ss_flags: libc::SS_DISABLE,
                ss_size: 0,
            };
            // SAFETY: takes the alternate stack away; no handler runs on it.
            let taken = unsafe { libc::sigaltstack(&raw const none, std::ptr::null_mut()) };
            assert_eq!(taken, 0);
            register_own_stack();
            spin();
        };
        under_signals(victim, || get(&OFF_ALT) >= 100);
        assert_eq!(get(&INJECTED), 0, "{}", counts());
    });
}

#[test]
fn an_interrupted_handler_is_refused() {
    fn spinning_handler(_: &mut Delivery<'_>) -> Flow {
        while get(&ON_ALT) < 100 {
            std::hint::spin_loop();
        }
        Flow::Resume
    }
    testkit::in_child("an_interrupted_handler_is_refused", DEADLINE, || {
        let _urgent = install(libc::SIGURG, inject_anywhere);
        let _outer = install(libc::SIGUSR1, spinning_handler);
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            raise(libc::SIGUSR1);
        };
        under_signals(victim, || get(&ON_ALT) >= 100);
        assert!(get(&ON_ALT) >= 100, "{}", counts());
    });
}

#[test]
fn a_second_call_on_the_same_stack_is_refused() {
    static DEPTH: AtomicUsize = AtomicUsize::new(0);

    fn slow_call(_frame: &mut Frame<'_>, _: usize) {
        assert_eq!(DEPTH.fetch_add(1, SeqCst), 0, "a call was injected into a call");
        INJECTED.fetch_add(1, SeqCst);
        HANDLED.fetch_add(1, SeqCst);
        while get(&NESTED) < 10 * get(&INJECTED) {
            std::hint::spin_loop();
        }
        DEPTH.fetch_sub(1, SeqCst);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: registered before the first signal is sent, and leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call spins and counts.
        make_or_count(unsafe { delivery.inject(stack, slow_call, 0) })
    }
    testkit::in_child("a_second_call_on_the_same_stack_is_refused", DEADLINE, || {
        let _installed = install(libc::SIGURG, handler);
        let victim = || {
            register_own_stack();
            spin();
        };
        under_signals(victim, || get(&INJECTED) >= 20 && get(&NESTED) >= 200);
        assert_eq!(DEPTH.load(SeqCst), 0);
        println!("{}", counts());
    });
}

/// Steps through every instruction from the end of the callback to the interrupted code, and tries
/// to inject at each.
#[test]
fn nothing_is_injected_on_the_way_back_from_a_call() {
    static STEPPED: AtomicUsize = AtomicUsize::new(0);

    fn stepping_call(_frame: &mut Frame<'_>, _: usize) {
        if INJECTED.fetch_add(1, SeqCst) == 0 {
            raise(libc::SIGUSR1);
        }
        HANDLED.fetch_add(1, SeqCst);
    }
    fn first(delivery: &mut Delivery<'_>) -> Flow {
        if get(&INJECTED) > 0 {
            HANDLED.fetch_add(1, SeqCst);
            return Flow::Resume;
        }
        try_inject(delivery)
    }
    fn at_each_step(delivery: &mut Delivery<'_>) -> Flow {
        STEPPED.fetch_add(1, SeqCst);
        try_inject(delivery)
    }
    fn try_inject(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: registered before the first signal is sent, and leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call counts and sends a signal.
        make_or_count(unsafe { delivery.inject(stack, stepping_call, 0) })
    }
    fn step(delivery: &mut Delivery<'_>) -> Flow {
        assert!(sigctx::probe::single_step(delivery));
        Flow::Resume
    }
    if !sigctx::probe::with_blank_context(sigctx::probe::single_step) {
        testkit::skip("on this architecture no program can step through itself");
        return;
    }
    testkit::in_child("nothing_is_injected_on_the_way_back_from_a_call", DEADLINE, || {
        let _urgent = install(libc::SIGURG, first);
        let _start = install(libc::SIGUSR1, step);
        let _trap = install(libc::SIGTRAP, at_each_step);
        let victim = || {
            let stack = register_own_stack();
            spin();
            assert!(!stack.is_active());
        };
        under_signals(victim, || get(&INJECTED) > 0);
        assert_eq!(get(&INJECTED), 1, "{}", counts());
        // The entry's `mov`, `mov`, `ret` and the restorer's two instructions.
        assert!(get(&IN_TRAMPOLINE) >= 4, "{}", counts());
        assert!(get(&NESTED) > 0, "{}", counts());
        println!("{} steps; {}", STEPPED.load(SeqCst), counts());
    });
}

#[test]
fn stress_nothing_is_injected_into_the_vdso() {
    static VDSO: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

    fn call(frame: &mut Frame<'_>, data: usize) {
        let pc = frame.context().pc();
        let vdso = VDSO.0.load(SeqCst)..VDSO.1.load(SeqCst);
        assert!(!vdso.contains(&pc), "injected into the vDSO at {pc:#x}");
        clobbering_call(frame, data);
    }
    fn handler(delivery: &mut Delivery<'_>) -> Flow {
        // SAFETY: registered before the first signal is sent, and leaked.
        let stack = unsafe { &*STACK.load(SeqCst) };
        // SAFETY: the call clobbers and counts.
        make_or_count(unsafe { delivery.inject(stack, call, 0) })
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    if testkit::emulator().is_some() && !maps.contains("[vdso]") {
        return testkit::skip("the emulator gives programs no vDSO");
    }
    testkit::in_child("stress_nothing_is_injected_into_the_vdso", DEADLINE, || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vDSO");
        let (lo, rest) = line.split_once('-').expect("a range");
        let (hi, _) = rest.split_once(' ').expect("a range");
        VDSO.0.store(usize::from_str_radix(lo, 16).expect("hexadecimal"), SeqCst);
        VDSO.1.store(usize::from_str_radix(hi, 16).expect("hexadecimal"), SeqCst);
        let _installed = install(libc::SIGURG, handler);
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            let mut last = std::time::Instant::now();
            while !DONE.load(SeqCst) {
                let now = std::time::Instant::now();
                assert!(now >= last, "the clock went back: {last:?} {now:?}");
                last = now;
            }
        };
        let (vdso, injected) = (testkit::budget(20_000) as usize, testkit::budget(1_000) as usize);
        under_signals(victim, || get(&IN_VDSO) >= vdso && get(&INJECTED) >= injected);
        println!("{}", counts());
    });
}

#[test]
fn stress_system_call_instructions_are_refused() {
    testkit::in_child("stress_system_call_instructions_are_refused", DEADLINE, || {
        let _installed = install(libc::SIGURG, inject_anywhere);
        let victim = || {
            register_own_stack();
            let tid = sys::gettid();
            TID.store(tid, SeqCst);
            while !DONE.load(SeqCst) {
                assert_eq!(sys::gettid(), tid, "a system call came back with another result");
            }
        };
        // Few signals find the program counter at the instruction itself. A call injected right after it
        // must leave the result alone.
        let enough = testkit::budget(10_000) as usize;
        under_signals(victim, || get(&AT_SYSCALL) + get(&INJECTED) >= enough);
        println!("{}", counts());
    });
}

#[test]
fn stress_a_blocked_read_neither_fails_nor_loses_bytes() {
    testkit::in_child("stress_a_blocked_read_neither_fails_nor_loses_bytes", DEADLINE, || {
        let _installed = install(libc::SIGURG, inject_anywhere);
        let total = testkit::budget(5_000) as usize;
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        let read = AtomicUsize::new(0);
        let victim = || {
            register_own_stack();
            TID.store(sys::gettid(), SeqCst);
            let mut byte = 0u8;
            let mut i = 0;
            // On a slow machine few signals of a short run meet a read that is blocked.
            while i < total || get(&AT_SYSCALL) == 0 {
                let args = [reader.as_raw_fd() as usize, &raw mut byte as usize, 1, 0, 0, 0];
                // SAFETY: reads one byte into a live variable.
                let got = unsafe { sys::syscall(libc::SYS_read, args) };
                assert_eq!(got, Ok(1), "read {i}; {}", counts());
                assert_eq!(byte, i as u8);
                i += 1;
                read.store(i, SeqCst);
            }
            TID.store(0, SeqCst);
            spin_until_done();
        };
        let mut sent = 0;
        under_signals(victim, || {
            // A signal for every byte, mostly while the read is blocked.
            use std::io::Write as _;
            let enough = read.load(SeqCst) >= total && get(&AT_SYSCALL) > 0;
            // With enough, one for a read that has begun.
            if read.load(SeqCst) == sent || enough {
                writer.write_all(&[sent as u8]).expect("write");
                sent += 1;
            }
            enough
        });
        assert!(read.load(SeqCst) >= total);
        println!("{}", counts());
    });
}

/// The last signal may still be on its way when the work is done.
fn spin_until_done() {
    while !DONE.load(SeqCst) {
        thread::sleep(Duration::from_millis(1));
    }
}
