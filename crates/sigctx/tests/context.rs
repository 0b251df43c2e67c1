//! The interrupted context is what the CPU had, by name, and can be changed.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use common::{DEADLINE, install, raise};
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow};
use sigctx::sys::{self, MaskHow, SigSet};
use sigctx::{Reg, Registers, Sender, SigCtx};

static SEEN: Mutex<Option<Registers>> = Mutex::new(None);

/// Raises a signal with a known value in every register; the program counter is given relative to
/// the instruction that raises it.
fn known_registers() -> Registers {
    fn look(delivery: &mut Delivery<'_>) -> Flow {
        // The thread does not hold the lock while it is interrupted here.
        *SEEN.lock().unwrap() = Some(delivery.registers());
        sigctx::probe::step_over_known(delivery);
        Flow::Resume
    }
    static ONE: Mutex<()> = Mutex::new(());
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

#[test]
fn known_registers_are_found_under_their_names() {
    let registers = known_registers();
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_suffix(std::env::consts::ARCH);
    settings.bind(|| insta::assert_snapshot!("known_registers", registers));
}

#[test]
fn registers_are_found_by_name_index_and_iteration() {
    let registers = known_registers();
    assert_eq!(registers.iter().count(), Reg::ALL.len());
    for (&reg, (name, value)) in Reg::ALL.iter().zip(registers.iter()) {
        assert_eq!(name, reg.name());
        assert_eq!(registers.get(name), Some(value));
        assert_eq!(registers[reg], value);
        let changed = registers.with(reg, !value);
        assert_ne!(changed, registers);
        assert_eq!(changed[reg], !value);
        assert!(format!("{registers:?}").contains(&format!("{name}: {value:#x}")), "{registers:?}");
    }
    assert_eq!(registers.get("no such register"), None);
}

#[test]
fn what_a_handler_writes_takes_effect() {
    static FIRST: AtomicUsize = AtomicUsize::new(0);

    fn write_mask(delivery: &mut Delivery<'_>) -> Flow {
        FIRST.store(delivery.signal_mask().iter().count(), SeqCst);
        let mask = delivery.signal_mask().with(libc::SIGHUP);
        delivery.set_signal_mask(mask);
        let status = delivery.status();
        delivery.set_status(status);
        Flow::Resume
    }
    let _installed = install(libc::SIGUSR1, write_mask);
    let before = sys::sigprocmask(MaskHow::Block, &SigSet::empty());
    assert!(!before.contains(libc::SIGHUP));
    raise(libc::SIGUSR1);
    let after = sys::sigprocmask(MaskHow::Set, &before);
    assert_eq!(FIRST.load(SeqCst), before.iter().count());
    assert_eq!(after, before.with(libc::SIGHUP));
}

#[test]
fn fault_address_is_the_very_byte() {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static FAULT: AtomicUsize = AtomicUsize::new(0);

    fn open_page(delivery: &mut Delivery<'_>) -> Flow {
        let page = PAGE.load(SeqCst);
        match delivery.fault_address() {
            Some(address) if (page..page + 4096).contains(&address) => {
                FAULT.store(address, SeqCst);
                let args = [page, 4096, libc::PROT_READ as usize, 0, 0, 0];
                // SAFETY: the test's own page.
                match unsafe { sys::syscall(libc::SYS_mprotect, args) } {
                    Ok(_) => Flow::Resume,
                    Err(_) => Flow::Chain,
                }
            }
            _ => Flow::Chain,
        }
    }
    testkit::in_child("fault_address_is_the_very_byte", DEADLINE, || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0) };
        PAGE.store(page as usize, SeqCst);
        let _installed = install(libc::SIGSEGV, open_page);
        // SAFETY: the handler makes the page readable.
        let byte = unsafe { page.cast::<u8>().wrapping_add(1235).read_volatile() };
        assert_eq!(byte, 0);
        assert_eq!(FAULT.load(SeqCst), page as usize + 1235);
    });
}

#[test]
fn an_undefined_instruction_is_its_own_fault_address() {
    static FAULT: AtomicUsize = AtomicUsize::new(0);

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        FAULT.store(delivery.fault_address().unwrap_or(1), SeqCst);
        sigctx::probe::step_over_known(delivery);
        Flow::Resume
    }
    testkit::in_child("an_undefined_instruction_is_its_own_fault_address", DEADLINE, || {
        let _alt = AltStack::install().expect("alternate stack");
        let _installed = install(libc::SIGILL, look);
        // SAFETY: the handler steps over the instruction, on an alternate stack.
        unsafe { sigctx::probe::raise_with_known_registers() };
        assert_eq!(FAULT.load(SeqCst), sigctx::probe::known_pc());
    });
}

#[test]
fn a_sent_signal_tells_sender_code_and_value_and_has_no_fault_address() {
    static CODE: AtomicI32 = AtomicI32::new(0);
    static VALUE: AtomicUsize = AtomicUsize::new(0);
    static SENDER: Mutex<Option<Sender>> = Mutex::new(None);
    static FAULTS: AtomicU64 = AtomicU64::new(0);

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        CODE.store(delivery.code(), SeqCst);
        VALUE.store(delivery.value(), SeqCst);
        *SENDER.lock().unwrap() = delivery.sender();
        FAULTS.fetch_add(u64::from(delivery.fault_address().is_some()), SeqCst);
        assert_eq!(delivery.signal(), libc::SIGSEGV);
        Flow::Resume
    }
    testkit::in_child(
        "a_sent_signal_tells_sender_code_and_value_and_has_no_fault_address",
        DEADLINE,
        || {
            let _installed = install(libc::SIGSEGV, look);
            let (pid, tid) = (sys::getpid(), sys::gettid());
            sys::tgsigqueueinfo(pid, tid, libc::SIGSEGV, -1234, usize::MAX - 5).expect("queue");
            assert_eq!(CODE.load(SeqCst), -1234);
            assert_eq!(VALUE.load(SeqCst), usize::MAX - 5);
            // SAFETY: takes no arguments.
            let uid = unsafe { libc::getuid() };
            assert_eq!(SENDER.lock().unwrap().take(), Some(Sender { pid, uid }));
            sys::tgkill(pid, tid, libc::SIGSEGV).expect("send");
            assert_eq!((CODE.load(SeqCst), VALUE.load(SeqCst)), (libc::SI_TKILL, 0));
            assert_eq!(SENDER.lock().unwrap().take(), Some(Sender { pid, uid }));
            assert_eq!(FAULTS.load(SeqCst), 0);
        },
    );
}

/// Go's `pushCall`: one slot below the stack pointer, and nothing else.
#[test]
fn push_call_writes_one_slot_and_moves_two_registers() {
    let mut stack = [0x5555_5555_usize; 8];
    // SAFETY: all zeroes is a valid context.
    let mut uc: libc::ucontext_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zeroes is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let top = &raw mut stack[4] as usize;
    // SAFETY: both live longer than the context and nobody else uses them.
    let mut ctx = unsafe { SigCtx::from_raw((&raw mut info).cast(), (&raw mut uc).cast()) };
    for (i, &reg) in Reg::ALL.iter().enumerate() {
        ctx.set(reg, 0x100 + i as u64);
    }
    ctx.set_sp(top);
    ctx.set_pc(0x1111);
    let before = ctx.registers();
    // SAFETY: the slot below is the array's; nothing is resumed.
    unsafe { ctx.push_call(0x2222, 0x3333) };
    let slot = top - size_of::<usize>();
    assert_eq!((ctx.pc(), ctx.sp()), (0x2222, slot));
    let moved = before.with(Reg::PC, 0x2222).with(Reg::SP, slot as u64);
    assert_eq!(ctx.registers(), moved);
    assert_eq!(stack[3], 0x3333);
    let untouched = [0, 1, 2, 4, 5, 6, 7].iter().all(|&i| stack[i] == 0x5555_5555);
    assert!(untouched, "{stack:x?}");
}
