//! The handler of the signal, and the call that it injects.

use core::mem::ManuallyDrop;

use sigctx::frames::Sighting;
use sigctx::handler::{Delivery, Flow};
use sigctx::inject::Frame;
use sigctx::sys::{self, MaskHow, SigSet};
use threadreg::ThreadRef;
use threadreg::procfs::TaskDir;

use crate::code::{self, Stop};
use crate::error::SignalOutcome;
use crate::rest::rest_in_place;
use crate::signal::{is_harmless, is_last, is_this_process, number};
use crate::stats;
use crate::target;
use crate::thread::{self, ThreadState};

/// The handler. In the child of a fork beside an installation it may be there twice, and run in itself by
/// `chain`: it then finds the call injected, or nothing asked.
pub(crate) fn on_signal(delivery: &mut Delivery<'_>) -> Flow {
    // Signals to a thread that is not registered are not ours, but for one that was on its way when the
    // thread left the registry.
    let Some(me) = threadreg::current() else {
        return if is_to_be_spared(delivery) { Flow::Resume } else { Flow::Chain };
    };
    let Some(state) = ThreadState::get(me) else {
        share(delivery);
        return Flow::Resume;
    };
    stats::HANDLED.count();
    state.pending.handle(|| {
        share(delivery);
        interrupt(delivery, me, state)
    })
}

/// Offers the signal to the handlers and readers that it may have been meant for: ours, too, since two of
/// one signal that are pending for a thread are one.
fn share(delivery: &mut Delivery<'_>) {
    let is_theirs = !is_to_be_spared(delivery);
    if is_theirs && !(is_last() && !is_ours(delivery) && hand_to_reader(delivery)) {
        delivery.chain();
    }
}

/// Whether the signal is ours, and the action from before would end the process: the default action of
/// most signals does.
fn is_to_be_spared(delivery: &Delivery<'_>) -> bool {
    !is_harmless(delivery.signal()) && is_last() && is_ours(delivery)
}

/// Whether the signal was sent by a thread of this process to this thread, as far as can be told.
fn is_ours(delivery: &Delivery<'_>) -> bool {
    let from = delivery.sender().map(|sender| sender.pid);
    match delivery.code() {
        libc::SI_TKILL => from.is_some_and(is_this_process),
        // What is left of the information when the queue is full. No process has the id 0.
        libc::SI_USER => from == Some(0),
        _ => false,
    }
}

/// Hands a signal to the process, for which there is no handler, to the main thread if that blocks it.
/// That thread reads it with `signalfd` or waits for it, and the kernel has chosen this thread only
/// because it must be open to ours. Returns false if the main thread does not block it.
fn hand_to_reader(delivery: &Delivery<'_>) -> bool {
    let (pid, signal) = (sys::getpid(), delivery.signal());
    if sys::gettid() == pid {
        return false;
    }
    let status = TaskDir::open().and_then(|tasks| tasks.status(pid));
    if !status.is_ok_and(|status| status.blocked.contains(signal)) {
        return false;
    }
    let (info, _) = delivery.as_raw();
    let args = [pid as usize, pid as usize, signal as usize, info as usize, 0, 0];
    // SAFETY: reads the information, which is the kernel's own.
    let queued = unsafe { sys::syscall(libc::SYS_rt_tgsigqueueinfo, args) };
    // The kernel lets only the main thread queue again what came from it or by `kill(2)`. Without the
    // information, then.
    queued.is_ok() || sys::tgkill(pid, pid, signal).is_ok()
}

/// Injects a call if something is asked of the thread and it is at a safe point.
pub(crate) fn interrupt(
    delivery: &mut Delivery<'_>,
    me: ThreadRef,
    state: &'static ThreadState,
) -> Flow {
    let inside = target::inside().filter(|inside| !inside.entered_at_rest);
    if inside.is_some() && !thread::is_disabled() && target::current().is_some_and(rest_in_place) {
        return Flow::Resume;
    }
    target::end_slice(state);
    if !target::is_asked(state) {
        return Flow::Resume;
    }
    if thread::stir() {
        // It waits in a call of ours, and makes its calls there.
        return Flow::Resume;
    }
    let pc = delivery.pc();
    // SAFETY: this thread keeps the stack alive while it is inside.
    let own = target::inside().map(|inside| unsafe { inside.stack.as_ref() });
    let stack = own.unwrap_or(me.call_stack());
    if state.has_call() {
        let (lo, hi) = stack.bounds();
        // SAFETY: a stack's bounds are those of mapped memory; this is the thread's own handler.
        let sighting = unsafe { Sighting::of(delivery, lo..hi) };
        state.see(me, &sighting);
    }
    let outcome = if thread::is_disabled() {
        SignalOutcome::Disabled
    } else {
        let injected = code::stop_at(pc, me, |stop| {
            let data = stop.as_word();
            let injection = if delivery.signal() == number() {
                // SAFETY: the pc is in registered code, whose promise is that any call may be made there;
                // the stack is a thread's, which is never forgotten, or a task's, which outlives the code.
                unsafe { delivery.inject_masked(stack, interrupted, data) }
            } else {
                // The mask of another signal's handler leaves ours open.
                // SAFETY: as above.
                unsafe { delivery.inject(stack, interrupted, data) }
            }?;
            // The call drops it.
            let _ = ManuallyDrop::new(stop);
            Ok(injection)
        });
        match injected {
            None => SignalOutcome::OutsideCode,
            Some(Ok(injection)) => {
                state.record(SignalOutcome::Interrupted, pc);
                return Flow::Inject(injection);
            }
            Some(Err(refusal)) => SignalOutcome::of(&refusal),
        }
    };
    state.record(outcome, pc);
    Flow::Resume
}

/// The injected call, Go's `asyncPreempt`: runs on the interrupted stack, outside the handler. When it
/// returns, the interrupted code goes on exactly where it was.
///
/// It begins with the signal blocked, as it was in the handler. All signals are as they were before
/// anything but this crate's own code runs, and before the thread sleeps: a hook, an errand, a nudged call
/// and a wait are interrupted as the code itself is. What is parked for a moment alone, and spins, spares
/// the system calls.
///
/// A signal between the last look and the return would find the thread in here, where it is not
/// interrupted, and its request would wait for another signal. So the signal is blocked at the
/// last look: it then waits until the return has put the interrupted code and its mask back.
///
/// A hook may leave this stack, and come back on another thread: nothing that belongs to a thread is
/// kept here.
fn interrupted(frame: &mut Frame<'_>, data: usize) {
    // SAFETY: `interrupt` made it for this call.
    let stop = unsafe { Stop::from_word(data) };
    let no_way_back = NoWayBack;
    let signal = SigSet::of(number());
    loop {
        target::serve(Some(frame));
        // Not opened, it is blocked since the handler.
        let is_open = frame.is_mask_open();
        if is_open {
            sys::sigprocmask(MaskHow::Block, &signal);
        }
        if !target::is_asked_here() {
            break;
        }
        if is_open {
            sys::sigprocmask(MaskHow::Unblock, &signal);
        }
    }
    let _ = ManuallyDrop::new(no_way_back);
    drop(stop);
}

/// Says why the process ends, when something unwinds out of a hook or an errand into code that was
/// interrupted between two instructions. `sigctx` ends it.
struct NoWayBack;

impl Drop for NoWayBack {
    fn drop(&mut self) {
        eprintln!(
            "preempt: a panic, or a coroutine that is dropped while it is preempted, unwinds into \
             code that was interrupted between two instructions. There is nothing to unwind it by: \
             resume a preempted coroutine to its end, or give its stack up without unwinding."
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use crate::signal::number;
    use crate::thread::ThreadState;

    /// P1. Else the next request would take the mark for a signal on its way, and send none for a while.
    #[test]
    fn a_signal_that_finds_nothing_asked_is_acknowledged() {
        let name = "handler::tests::a_signal_that_finds_nothing_asked_is_acknowledged";
        testkit::in_child(name, Duration::from_secs(20), || {
            crate::install().expect("install");
            let attached = threadreg::attach().expect("not attached yet");
            let me = attached.thread();
            let state = ThreadState::of(me);
            // A clock that stands still: no mark grows old.
            let (now, wanted) = (|| 0, || true);
            let sends = Cell::new(0);
            let send = || {
                sends.set(sends.get() + 1);
                // To the calling thread, which has it open: handled before the call returns.
                me.signal(number())
            };
            for round in 1..=2 {
                state.pending.request(me.generation(), now, wanted, send).expect("sent");
                assert_eq!(sends.get(), round);
                assert_eq!(state.pending.handled(), round, "the handler ran");
            }
        });
    }
}
