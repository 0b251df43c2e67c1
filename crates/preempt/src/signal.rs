//! The handler of SIGURG, and the call that it injects.

use std::sync::OnceLock;

use sigctx::handler::{Delivery, Flow, Installed, Options};
use sigctx::inject::Frame;
use sigctx::sys::{self, MaskHow, SigSet};
use threadreg::ThreadRef;

use crate::code::is_registered_code;
use crate::error::InstallError;
use crate::fork;
use crate::task::{self, TaskCore};
use crate::thread::{self, Outcome, ThreadState};
use crate::word::Mode;

/// The signal: harmless by default, rarely used, and not special to any debugger or libc. Go
/// chose it for the same reasons (proposal 24543).
pub(crate) const SIGNAL: i32 = libc::SIGURG;

static INSTALLED: OnceLock<Result<Installed, sigctx::handler::InstallError>> = OnceLock::new();

/// Installs the handler of SIGURG for the process. Further calls do nothing.
///
/// A SIGURG that somebody else sent, or that was merged with ours, goes on to the handler that was
/// installed before; so does ours, since the kernel merges two that are pending into one.
///
/// # Signal safety
///
/// Not async-signal-safe: allocates.
///
/// # Errors
///
/// The kernel refused the handler; the same error again for each further call.
///
/// # Examples
///
/// ```
/// preempt::install()?;
/// # Ok::<(), preempt::InstallError>(())
/// ```
pub fn install() -> Result<(), InstallError> {
    let installed = INSTALLED.get_or_init(|| {
        // A thread that inherited a mask with the signal in it could not be interrupted.
        threadreg::never_block(SIGNAL);
        fork::watch();
        // SAFETY: `on_signal` fulfils what a handler must: it does not allocate, lock, panic or
        // touch anything but atomics, constant thread-locals and the delivery.
        unsafe { sigctx::handler::install(SIGNAL, on_signal, Options::default()) }
    });
    installed.as_ref().map(drop).map_err(|error| InstallError(*error))
}

fn on_signal(delivery: &mut Delivery<'_>) -> Flow {
    // Signals to a thread that is not registered, or was never asked anything, are not ours.
    let Some(me) = threadreg::current() else { return Flow::Chain };
    let Some(state) = ThreadState::get(me) else { return Flow::Chain };
    state.pending.handle(|| {
        delivery.chain();
        interrupt(delivery, me, state)
    })
}

/// Injects a call if something is asked of the thread and it is at a safe point.
fn interrupt(delivery: &mut Delivery<'_>, me: ThreadRef, state: &'static ThreadState) -> Flow {
    if !is_asked(state) {
        return Flow::Resume;
    }
    if let Some(task) = task::current().filter(|task| task.word.seen().mode() == Mode::Parked) {
        // It waits in `park`, in an injected call or a poll; there it serves calls, too.
        task.word.poke();
        return Flow::Resume;
    }
    let pc = delivery.pc();
    let outcome = if thread::is_disabled() {
        Outcome::Disabled
    } else if !is_registered_code(pc) {
        Outcome::OutsideCode
    } else {
        // SAFETY: this thread keeps the stack alive while it is inside.
        let own = thread::inside().map(|inside| unsafe { inside.stack.as_ref() });
        let stack = own.unwrap_or(me.call_stack());
        // SAFETY: the pc is in registered code, whose promise is that any call may be made there;
        // the stack is a thread's, which is never forgotten, or a task's, which outlives the code.
        match unsafe { delivery.inject(stack, interrupted, 0) } {
            Ok(injection) => {
                state.record(Outcome::Interrupted, pc);
                return Flow::Inject(injection);
            }
            Err(refusal) => Outcome::of(&refusal),
        }
    };
    state.record(outcome, pc);
    Flow::Resume
}

fn is_asked(state: &ThreadState) -> bool {
    state.has_call() || task::current().is_some_and(TaskCore::is_asked)
}

/// The injected call: runs on the interrupted stack, outside the handler, with all signals as they
/// were. When it returns, the interrupted code goes on exactly where it was.
///
/// A signal between the last look and the return would find the thread in here, where it is not
/// interrupted, and its request would wait for another signal. So the signal is blocked before the
/// last look: it then waits until the return has put the interrupted code and its mask back.
fn interrupted(frame: &mut Frame<'_>, _data: usize) {
    let Some(me) = threadreg::current() else { return };
    let Some(state) = ThreadState::get(me) else { return };
    let signal = SigSet::of(SIGNAL);
    loop {
        serve(me, Some(frame));
        sys::sigprocmask(MaskHow::Block, &signal);
        if !is_asked(state) {
            return;
        }
        sys::sigprocmask(MaskHow::Unblock, &signal);
    }
}

/// Does what is asked of the calling thread, `me`, until nothing is.
pub(crate) fn serve(me: ThreadRef, mut frame: Option<&mut Frame<'_>>) {
    loop {
        make_calls(me);
        if !task::current().is_some_and(|task| task.serve(me, frame.as_deref_mut())) {
            return;
        }
    }
}

/// Makes the calls that the calling thread, `me`, is asked to make.
pub(crate) fn make_calls(me: ThreadRef) {
    let Some(state) = ThreadState::get(me) else { return };
    while let Some(call) = state.take_call(me) {
        // SAFETY: whoever asked promised that the call may run on this thread at a safe point.
        unsafe { call.call() };
    }
}

/// Whether the handler is installed. A signal sent before would be ignored, and its mark would stay.
pub(crate) fn is_installed() -> bool {
    INSTALLED.get().is_some_and(Result::is_ok)
}

/// A safe point for code that is not registered: does what is asked of the calling thread.
///
/// Costs a few loads when nothing is asked.
///
/// # Signal safety
///
/// Not async-signal-safe: may wait.
///
/// # Blocking
///
/// While the thread's task is suspended.
///
/// # Examples
///
/// ```
/// for _ in 0..1000 {
///     // … a slice of work …
///     preempt::poll();
/// }
/// ```
#[inline]
pub fn poll() {
    if let Some(me) = threadreg::current() {
        poll_registered(me);
    }
}

fn poll_registered(me: ThreadRef) {
    if !thread::is_disabled() && ThreadState::get(me).is_some_and(is_asked) {
        serve(me, None);
    }
}
