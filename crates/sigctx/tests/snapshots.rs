//! Contexts, printed. The recipe for users of the crate: name what the addresses belong to
//! ([`Redactions`]), and a snapshot of one's own contexts is the same in every run.

mod common;

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use common::{DEADLINE, forget_fault_mark, install, known_registers, make_or_count, redactions};
use sigctx::altstack::AltStack;
use sigctx::handler::{Delivery, Flow};
use sigctx::inject::{CallStack, Frame};
use sigctx::probe;
use sigctx::snapshot::Redactions;
use sigctx::{Reg, Registers};

/// Compares with `snapshots/<name>@<architecture>.snap`.
fn assert_snapshot(name: &str, text: impl Display) {
    common::snapshot_settings().bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn snapshot_of_known_registers() {
    assert_snapshot("known_registers", redactions().registers(&known_registers()));
}

/// Go's `pushCall`: the program counter, the stack pointer, the link register where there is one,
/// and one slot of the stack.
#[test]
fn snapshot_after_push_call() {
    const EMPTY: usize = 0x5555_5555;
    let mut words = [EMPTY; 64];
    let range = words.as_mut_ptr_range();
    let (low, top) = (range.start as usize, range.start as usize + 32 * size_of::<usize>());
    // Where functions are known by a descriptor: code, table of contents, environment.
    let target = [0x2220_usize, 0x2330, 0x2440];
    let at = target.as_ptr_range();
    let text = probe::with_blank_context(|ctx| {
        for (i, &reg) in Reg::ALL.iter().enumerate() {
            ctx.set(reg, 0x100 + i as u64);
        }
        ctx.set_sp(top);
        ctx.set_pc(0x1110);
        let before = ctx.registers();
        // SAFETY: the slot below is the array's; nothing is resumed.
        unsafe { ctx.push_call(at.start as usize, 0x3330) };
        let after = ctx.registers();
        let redactions = Redactions::new()
            .stack("stack", low..top)
            .region("target", at.start as usize..at.end as usize);
        let changes = Reg::ALL.iter().filter(|&&reg| before[reg] != after[reg]).map(|&reg| {
            let (before, after) = (redactions.value(before[reg]), redactions.value(after[reg]));
            format!("{}: {before} -> {after}\n", reg.name())
        });
        let changes: String = changes.collect();
        format!("{changes}\n{}\n", redactions.registers(&after))
    });
    let slots =
        words.iter().enumerate().filter(|(_, word)| **word != EMPTY).map(|(i, word)| {
            format!("stack-{:#x}: {word:#x}\n", top - low - i * size_of::<usize>())
        });
    let slots: String = slots.collect();
    assert_snapshot("push_call", format!("{text}\n{slots}"));
}

static STACK: AtomicPtr<CallStack> = AtomicPtr::new(std::ptr::null_mut());
/// The stack pointer that the interrupted code had.
static SP: AtomicUsize = AtomicUsize::new(0);
static INSIDE: Mutex<Option<Registers>> = Mutex::new(None);

/// Every register has a known value, the stack pointer too: it is set to a stack that exists.
fn inject_at_known_registers(delivery: &mut Delivery<'_>) -> Flow {
    // SAFETY: leaked.
    let stack = unsafe { &*STACK.load(SeqCst) };
    forget_fault_mark(delivery);
    SP.store(delivery.sp(), SeqCst);
    delivery.set_sp(stack.bounds().1);
    probe::step_over_known(delivery);
    // SAFETY: the call looks and puts the stack pointer back; the code goes on behind the
    // instruction; the stack is leaked.
    make_or_count(unsafe { delivery.inject(stack, look, 0) })
}

fn look(frame: &mut Frame<'_>, _: usize) {
    // The thread does not hold the lock while it is interrupted here.
    *INSIDE.lock().unwrap() = Some(frame.registers());
    // SAFETY: what the interrupted code had.
    unsafe { frame.context_mut() }.set_sp(SP.load(SeqCst));
}

#[test]
fn snapshot_inside_an_injected_call() {
    testkit::in_child("snapshot_inside_an_injected_call", DEADLINE, || {
        let memory = Box::leak(vec![0_u128; 16 << 10].into_boxed_slice()).as_mut_ptr_range();
        let (low, top) = (memory.start as usize, memory.end as usize);
        // SAFETY: no other code uses it; the call needs little.
        let stack = unsafe { CallStack::new(low, top) };
        STACK.store(Box::leak(Box::new(stack)), SeqCst);
        let _alt = AltStack::install().expect("alternate stack");
        let _installed = install(libc::SIGILL, inject_at_known_registers);
        // SAFETY: the handler steps over the instruction, on an alternate stack; one at a time.
        unsafe { probe::raise_with_known_registers() };
        let inside = INSIDE.lock().unwrap().take();
        let inside = inside.unwrap_or_else(|| panic!("not injected; {}", common::counts()));
        let known = probe::known_pc();
        let redactions = redactions().stack("stack", low..top).region("known", known..known + 64);
        assert_snapshot("inside_an_injected_call", redactions.registers(&inside));
    });
}
