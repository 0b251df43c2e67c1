//! Safe points that code has of its own accord, and sections without any.

use core::marker::PhantomData;

use sigctx::handler::{Delivery, Flow};

use crate::thread::ThreadState;
use crate::{handler, target, thread};

/// A safe point for code that is not registered: does what is asked of the calling thread.
///
/// Costs a few loads when nothing is asked.
///
/// # Signal safety
///
/// Not async-signal-safe (AS-Unsafe lock): may wait.
///
/// # Blocking
///
/// While the thread's task is suspended; and as long as its hook, and the calls that it is
/// [nudged](crate::Nudger) for, take.
///
/// # Examples
///
/// ```
/// for _ in 0..1000 {
///     // … a slice of work …
///     preempt::poll();
/// }
/// ```
#[doc(alias = "safepoint poll")]
#[inline]
pub fn poll() {
    if thread::is_due() {
        target::look();
    }
}

/// Asks the task that the signal has interrupted to run its hook, and has it do so as the handler returns, if it is at a
/// safe point: else at its next, as [`Task::request`](crate::Task::request) does. Without a task nothing happens.
///
/// For handlers of other signals, installed by `sigctx`: of a timer of the thread's own, say, whose ticks are to be
/// its slices. No second signal is sent.
///
/// # Signal safety
///
/// Handler only (AS-Safe).
///
/// # Examples
///
/// ```
/// use sigctx::handler::{self, Delivery, Flow, Options};
///
/// fn on_tick(delivery: &mut Delivery<'_>) -> Flow {
///     preempt::request_in(delivery)
/// }
/// // SAFETY: the handler is async-signal-safe.
/// let _ticks = unsafe { handler::install(libc::SIGVTALRM, on_tick, Options::new()) }?;
/// # Ok::<(), handler::InstallError>(())
/// ```
pub fn request_in(delivery: &mut Delivery<'_>) -> Flow {
    let Some(task) = target::current() else { return Flow::Resume };
    task.word.request_yield();
    let me = threadreg::current();
    let Some((me, state)) = me.and_then(|me| Some((me, ThreadState::get(me)?))) else {
        return Flow::Resume;
    };
    state.asked.set();
    handler::interrupt(delivery, me, state)
}

/// Keeps the calling thread from being interrupted for as long as it lives; see [`disable`].
///
/// # Signal safety
///
/// The drop of a thread's last guard is not async-signal-safe (AS-Unsafe lock): it serves requests.
#[derive(Debug)]
#[must_use = "the thread can be interrupted again as soon as this is dropped"]
pub struct Disabled {
    /// The count is the thread's.
    not_send: PhantomData<*mut ()>,
}

/// Keeps the calling thread from being interrupted until the guard is dropped. Guards nest.
///
/// A request that comes meanwhile is served when the last guard is dropped.
///
/// # Signal safety
///
/// Async-signal-safe (AS-Safe); the drop of the last guard is not, since it serves requests.
///
/// # Examples
///
/// ```
/// let guard = preempt::disable();
/// // Change what interrupting code looks at …
/// drop(guard);
/// ```
#[doc(alias("acquirem", "preemptoff", "preempt_disable"))]
#[inline]
pub fn disable() -> Disabled {
    thread::disable();
    Disabled { not_send: PhantomData }
}

impl Drop for Disabled {
    #[inline]
    fn drop(&mut self) {
        if thread::enable() {
            target::look();
        }
    }
}
