//! What the tests of injection share: a thread that runs the patterned loop, and senders that
//! wait for each signal to be handled before they send the next.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use sigctx::altstack::AltStack;
use sigctx::handler::{self, Delivery, Flow, Handler, Installed, Options};
use sigctx::inject::{CallStack, Frame, InjectError, Injection};
use sigctx::probe::{ARCHITECTURE, Patterned, Spin};
use sigctx::snapshot::Redactions;
use sigctx::sys::{self, KernelAction, SaFlags, SigSet};
use sigctx::{Reg, Registers, SigCtx, Status};

pub const DEADLINE: Duration = Duration::from_mins(3);

/// The thread that gets the signals; 0 when it does not want any.
pub static TID: AtomicI32 = AtomicI32::new(0);
/// The test is over.
pub static DONE: AtomicBool = AtomicBool::new(false);
/// The stack on which `inject` puts calls, and the code that it may interrupt.
pub static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());
/// Signals that a handler has finished with, injected calls included.
pub static HANDLED: AtomicUsize = AtomicUsize::new(0);
pub static INJECTED: AtomicUsize = AtomicUsize::new(0);
pub static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);

/// How often an injection was refused, by reason.
pub static NO_ROOM: AtomicUsize = AtomicUsize::new(0);
pub static NOT_ON_STACK: AtomicUsize = AtomicUsize::new(0);
pub static ON_ALT: AtomicUsize = AtomicUsize::new(0);
pub static OFF_ALT: AtomicUsize = AtomicUsize::new(0);
pub static NESTED: AtomicUsize = AtomicUsize::new(0);
pub static IN_VDSO: AtomicUsize = AtomicUsize::new(0);
pub static AT_SYSCALL: AtomicUsize = AtomicUsize::new(0);
pub static IN_TRAMPOLINE: AtomicUsize = AtomicUsize::new(0);
pub static BAD_FRAME: AtomicUsize = AtomicUsize::new(0);

/// Has a prepared call made, or counts why there is none.
pub fn make_or_count(prepared: Result<Injection, InjectError>) -> Flow {
    match prepared {
        Ok(injection) => Flow::Inject(injection),
        Err(error) => {
            refused(error);
            Flow::Resume
        }
    }
}

pub fn refused(error: InjectError) {
    let counter = match error {
        InjectError::NoRoom { .. } => &NO_ROOM,
        InjectError::NotOnThisStack { .. } => &NOT_ON_STACK,
        InjectError::OnAltStack { .. } => &ON_ALT,
        InjectError::HandlerOffAltStack { .. } => &OFF_ALT,
        InjectError::Nested => &NESTED,
        InjectError::InVdso { .. } => &IN_VDSO,
        InjectError::AtSyscall { .. } => &AT_SYSCALL,
        InjectError::InTrampoline { .. } => &IN_TRAMPOLINE,
        _ => &BAD_FRAME,
    };
    counter.fetch_add(1, SeqCst);
    HANDLED.fetch_add(1, SeqCst);
}

pub fn counts() -> String {
    let c = |counter: &AtomicUsize| counter.load(SeqCst);
    format!(
        "handled {} injected {} elsewhere {}; refused: no room {} other stack {} on alt {} off alt {} \
         nested {} vdso {} syscall {} trampoline {} frame {}",
        c(&HANDLED),
        c(&INJECTED),
        c(&ELSEWHERE),
        c(&NO_ROOM),
        c(&NOT_ON_STACK),
        c(&ON_ALT),
        c(&OFF_ALT),
        c(&NESTED),
        c(&IN_VDSO),
        c(&AT_SYSCALL),
        c(&IN_TRAMPOLINE),
        c(&BAD_FRAME)
    )
}

/// Clobbers everything and counts.
pub fn clobbering_call(_frame: &mut Frame<'_>, _data: usize) {
    sigctx::probe::clobber_all();
    INJECTED.fetch_add(1, SeqCst);
    HANDLED.fetch_add(1, SeqCst);
}

/// Injects on [`STACK`], wherever the code is.
pub fn inject_anywhere(delivery: &mut Delivery<'_>) -> Flow {
    let stack = STACK.load(SeqCst);
    // SAFETY: the tests leak their stacks; null before there is one.
    let Some(stack) = (unsafe { stack.as_ref() }) else {
        HANDLED.fetch_add(1, SeqCst);
        return Flow::Resume;
    };
    // SAFETY: the call only clobbers and counts; the program counter is that of running code; the
    // stack is leaked.
    make_or_count(unsafe { delivery.inject(stack, clobbering_call, 0) })
}

/// Allows injection on the calling thread's stack, from here down.
pub fn register_own_stack() -> &'static CallStack {
    let here = 0u8;
    let sp = &raw const here as usize;
    // SAFETY: test threads have 2 MiB of stack, of which little is used so far; what is above is
    // in use and stays so.
    let stack = unsafe { CallStack::new(sp - (512 << 10), sp + (64 << 10)) };
    let stack = Box::leak(Box::new(stack));
    STACK.store(stack, SeqCst);
    stack
}

/// Installs a handler of a test: they count, look, inject, and spin.
pub fn install(signal: i32, handler: Handler) -> Installed {
    // SAFETY: all of that is async-signal-safe, and what they write is what their test wants.
    unsafe { handler::install(signal, handler, Options::new()) }.expect("install")
}

/// Sends a signal to the calling thread.
pub fn raise(signal: i32) {
    sys::tgkill(sys::getpid(), sys::gettid(), signal).expect("own thread");
}

/// Signals that a mask can hold: all but two. An emulator drops those for which its host has none
/// (QEMU's user mode, the last real-time signals).
pub fn maskable() -> Vec<i32> {
    let before = sys::sigprocmask(sys::MaskHow::Block, &SigSet::empty());
    let holds = |&signal: &i32| {
        sys::sigprocmask(sys::MaskHow::Set, &SigSet::of(signal));
        sys::sigprocmask(sys::MaskHow::Set, &before).contains(signal)
    };
    let maskable: Vec<i32> = SigSet::full().iter().filter(holds).collect();
    let all = SigSet::full().iter().count() - 2;
    assert!(maskable.len() == all || testkit::emulator().is_some(), "{maskable:?}");
    maskable
}

/// Runs `victim` on a thread with an alternate stack, and sends it signals until `enough`.
pub fn under_signals(victim: impl FnOnce() + Send, enough: impl FnMut() -> bool) -> usize {
    let mut rng = testkit::Rng::from_env();
    thread::scope(|s| {
        s.spawn(|| {
            let _alt = AltStack::install().expect("alternate stack");
            let _watch = Watch;
            victim();
        });
        let _done = Raise(&DONE);
        send_one_at_a_time(&TID, libc::SIGURG, usize::MAX, &mut rng, enough)
    })
}

/// Tells the senders that the victim has panicked, and will handle no signal.
struct Watch;

static PANICKED: AtomicBool = AtomicBool::new(false);

impl Drop for Watch {
    fn drop(&mut self) {
        PANICKED.store(thread::panicking(), SeqCst);
    }
}

/// Waits for a condition, and fails the test if it does not come.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never came: {what}; {}", counts());
        thread::yield_now();
    }
}

/// Sends up to `count` signals to a thread, each after the last was handled, until `until` says so.
/// A pause of random length is made between any two.
pub fn send_one_at_a_time(
    tid: &AtomicI32,
    signal: i32,
    count: usize,
    rng: &mut testkit::Rng,
    mut until: impl FnMut() -> bool,
) -> usize {
    wait_for("the victim's thread id", || tid.load(SeqCst) != 0);
    let mut sent = 0;
    while sent < count && !until() {
        let before = HANDLED.load(SeqCst);
        let tid = tid.load(SeqCst);
        if tid == 0 {
            break;
        }
        sys::tgkill(sys::getpid(), tid, signal).expect("the victim is alive");
        sent += 1;
        let start = Instant::now();
        while HANDLED.load(SeqCst) == before {
            assert!(!PANICKED.load(SeqCst), "the victim panicked");
            assert!(start.elapsed() < DEADLINE, "signal {sent} was not handled; {}", counts());
            if start.elapsed() > Duration::from_micros(20) {
                // The victim may need this CPU. A thread that yields has it back only when the victim's
                // slice is over, milliseconds later; a thread that sleeps has it back on waking.
                thread::sleep(Duration::from_micros(20));
            }
        }
        for _ in 0..rng.below(50) {
            std::hint::spin_loop();
        }
    }
    sent
}

/// Raises a signal with a known value in every register; the program counter is given relative to
/// the instruction that raises it.
pub fn known_registers() -> Registers {
    static SEEN: Mutex<Option<Registers>> = Mutex::new(None);
    static ONE: Mutex<()> = Mutex::new(());

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        forget_fault_mark(delivery);
        // The thread does not hold the lock while it is interrupted here.
        *SEEN.lock().unwrap() = Some(delivery.registers());
        sigctx::probe::step_over_known(delivery);
        Flow::Resume
    }
    let _one = ONE.lock();
    let _alt = AltStack::install().expect("alternate stack");
    let installed = install(libc::SIGILL, look);
    // SAFETY: the handler steps over the instruction, on an alternate stack; one at a time.
    unsafe { sigctx::probe::raise_with_known_registers() };
    installed.uninstall().expect("uninstall");
    let registers = SEEN.lock().unwrap().take().expect("the handler ran");
    let offset = registers[Reg::PC].wrapping_sub(sigctx::probe::known_pc() as u64);
    registers.with(Reg::PC, offset)
}

/// Clears the flag with which x86 marks the context of a fault. An emulator may not set it, and it
/// makes no difference where no breakpoint is.
pub fn forget_fault_mark(delivery: &mut Delivery<'_>) {
    if let Some(mark) = Status::from_name("RF") {
        let status = delivery.status().difference(mark);
        delivery.set_status(status);
    }
}

/// Hides the registers that are the thread's or the program's own.
pub fn redactions() -> Redactions<'static> {
    let own = sigctx::probe::OWN_REGISTERS.iter();
    own.fold(Redactions::new(), |redactions, &(reg, whose)| redactions.hide(reg, whose))
}

/// How every snapshot is made: `snapshots/<name>@<architecture>.snap`.
pub fn snapshot_settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_suffix(ARCHITECTURE);
    settings
}

/// Installs a handler that this crate has no part in, and returns the action before it.
///
/// # Safety
///
/// As for [`sys::rt_sigaction`].
pub unsafe fn install_ordinary(
    signal: c_int,
    handler: extern "C" fn(c_int, *mut c_void, *mut c_void),
) -> KernelAction {
    let flags = SaFlags::SIGINFO | SaFlags::ONSTACK | SaFlags::RESTART;
    let handler = handler as *const () as usize;
    let action = KernelAction { handler, flags, mask: SigSet::empty() };
    // SAFETY: the caller's obligation.
    unsafe { sys::rt_sigaction(signal, Some(&action)) }.expect("installs")
}

/// Registers that an ordinary handler, one that this crate has no part in, loses under an emulator,
/// whose signal frame may be without them. A kernel's frame has them all. That its sigreturn may lose
/// them all the same (see `arch/riscv64/mod.rs` and `arch/s390x/mod.rs`) is no excuse here.
pub fn lost_by_an_ordinary_handler() -> BTreeSet<&'static str> {
    const PATTERNS: usize = 200;
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    // Those that interrupted the loop with all its patterns in place; others show nothing.
    static IN_LOOP: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn handler(_: c_int, info: *mut c_void, uc: *mut c_void) {
        // SAFETY: what the kernel gave to this handler; no other code looks.
        let pc = unsafe { SigCtx::from_raw(info, uc) }.pc();
        sigctx::probe::clobber_all();
        IN_LOOP.fetch_add(usize::from(Patterned::code().contains(&pc)), SeqCst);
        SEEN.fetch_add(1, SeqCst);
    }
    let signal = libc::SIGUSR2;
    // SAFETY: the handler writes what a function may write, and counts.
    let before = unsafe { install_ordinary(signal, handler) };
    let tid = AtomicI32::new(0);
    let running = AtomicBool::new(true);
    let mut rng = testkit::Rng::from_env();
    let mut patterned = Patterned::new();
    // SAFETY: the loop's memory outlives the threads below.
    let stop = unsafe { patterned.stopper() };
    // In how many patterns each was lost.
    let mut times = BTreeMap::<_, usize>::new();
    thread::scope(|s| {
        let (tid, running) = (&tid, &running);
        s.spawn(move || {
            wait_for("the loop", || tid.load(SeqCst) != 0);
            let tid = tid.load(SeqCst);
            while running.load(SeqCst) {
                let (before, in_loop) = (SEEN.load(SeqCst), IN_LOOP.load(SeqCst));
                sys::tgkill(sys::getpid(), tid, signal).expect("it waits for this thread");
                wait_for("the handler", || SEEN.load(SeqCst) != before);
                if IN_LOOP.load(SeqCst) != in_loop {
                    stop.stop();
                }
            }
        });
        let _alt = AltStack::install().expect("alternate stack");
        for _ in 0..PATTERNS {
            let ready = || tid.store(sys::gettid(), SeqCst);
            let different = patterned.run(|| rng.next_u64(), Spin::UntilStopped, ready);
            let registers: BTreeSet<_> = different.iter().map(|d| d.register).collect();
            for register in registers {
                *times.entry(register).or_default() += 1;
            }
        }
        running.store(false, SeqCst);
    });
    // SAFETY: gives back what was there.
    unsafe { sys::rt_sigaction(signal, Some(&before)) }.expect("SIGUSR2");
    if testkit::emulator().is_some() {
        if !times.is_empty() {
            println!("note: this emulator loses {times:?} with an ordinary handler, too");
        }
        return times.into_keys().collect();
    }
    // What is not in a frame is lost every time.
    assert!(times.values().all(|&n| n < PATTERNS / 2), "the kernel's frame is without {times:?}");
    if !times.is_empty() {
        println!("note: this kernel lost {times:?} in {PATTERNS} signals of an ordinary handler");
    }
    BTreeSet::new()
}

/// A flag that is raised when it goes out of scope, also when a test fails.
#[derive(Debug)]
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
