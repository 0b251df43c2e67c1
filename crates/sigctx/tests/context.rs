//! The interrupted context is what the CPU had, by name, and can be changed.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

use common::{DEADLINE, install, known_registers, raise};
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow};
use sigctx::sys::{self, MaskHow, SigSet};
use sigctx::{Reg, Sender};

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
        let granule = sigctx::probe::FAULT_GRANULE;
        assert_eq!(FAULT.load(SeqCst), (page as usize + 1235) & !(granule - 1));
    });
}

#[test]
fn an_undefined_instruction_is_its_own_fault_address() {
    /// No instruction's address.
    const UNKNOWN: usize = 1;
    static FAULT: AtomicUsize = AtomicUsize::new(0);

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        FAULT.store(delivery.fault_address().unwrap_or(UNKNOWN), SeqCst);
        sigctx::probe::step_over_known(delivery);
        Flow::Resume
    }
    testkit::in_child("an_undefined_instruction_is_its_own_fault_address", DEADLINE, || {
        let _alt = AltStack::install().expect("alternate stack");
        let _installed = install(libc::SIGILL, look);
        // SAFETY: the handler steps over the instruction, on an alternate stack.
        unsafe { sigctx::probe::raise_with_known_registers() };
        let located = sigctx::probe::UNDEFINED_IS_LOCATED;
        let known = if located { sigctx::probe::known_pc() } else { UNKNOWN };
        assert_eq!(FAULT.load(SeqCst), known);
    });
}

#[test]
fn a_sent_signal_tells_sender_code_and_value_and_has_no_fault_address() {
    static CODE: AtomicI32 = AtomicI32::new(0);
    static VALUE: AtomicUsize = AtomicUsize::new(0);
    static SENDER: Mutex<Option<Sender>> = Mutex::new(None);
    static FAULTS: AtomicUsize = AtomicUsize::new(0);

    fn look(delivery: &mut Delivery<'_>) -> Flow {
        CODE.store(delivery.code(), SeqCst);
        VALUE.store(delivery.value(), SeqCst);
        *SENDER.lock().unwrap() = delivery.sender();
        FAULTS.fetch_add(usize::from(delivery.fault_address().is_some()), SeqCst);
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
