//! Reaching a late mutator that never polls: what `safepoint` uses.

use std::time::Duration;

use sigctx::frames::Sighting;
use sigctx::handler::Standing;
use threadreg::{Nudge, NudgeCall, NudgeError, NudgeOutcome, ThreadRef};

use crate::error::SignalOutcome;
use crate::signal::{self, is_installed};
use crate::thread::{self, ThreadState};

/// Reaches threads in registered code by the signal: what a stop-the-world needs for loops that never
/// poll. Give it to `safepoint::World::set_nudge`.
///
/// The signalled thread makes the call outside the handler, on its own stack, between two
/// instructions of registered code. If the signal finds it elsewhere, the call is made at its next
/// [`poll`](crate::poll) or with a later signal; a requester that waits asks again.
///
/// # Examples
///
/// ```
/// use threadreg::Nudge;
///
/// preempt::install()?;
/// let _me = threadreg::attach()?;
/// let me = threadreg::current().expect("just attached");
/// unsafe fn hello(from: usize) {
///     assert_eq!(from, 42);
/// }
/// // SAFETY: sound with this argument anywhere, at any time; does not unwind.
/// let call = unsafe { threadreg::NudgeCall::new(hello, 42) };
/// preempt::Nudger.nudge(me, call, &|| true)?;
/// preempt::poll();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Nudger;

impl Nudge for Nudger {
    fn nudge(
        &self,
        thread: ThreadRef,
        call: NudgeCall,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        ThreadState::of(thread).ask(thread, call);
        if !is_installed() {
            return Err(NudgeError::NotInstalled);
        }
        // Not only to a task that runs: a parked one makes calls, too.
        ThreadState::signal(thread, wanted).map_err(NudgeError::from)
    }

    fn settle(&self, timeout: Duration) -> bool {
        thread::settle(timeout)
    }

    fn outcome(&self, thread: ThreadRef) -> NudgeOutcome {
        let Some(state) = ThreadState::get(thread) else { return NudgeOutcome::Unknown };
        let (outcome, pc) = state.outcome();
        let found = match outcome {
            SignalOutcome::Unknown | SignalOutcome::Interrupted => NudgeOutcome::Unknown,
            SignalOutcome::OutsideCode => NudgeOutcome::OutsideCode { pc },
            SignalOutcome::Disabled => NudgeOutcome::Disabled { pc },
            _ => NudgeOutcome::Refused { pc },
        };
        // Before the mask is looked at: a handler that runs blocks its own signal.
        let has_run = state.has_run_since_sent();
        match signal::obstacle() {
            Some(Standing::Covered { by }) if !has_run || outcome == SignalOutcome::Other => {
                NudgeOutcome::Covered { by: by.get() }
            }
            Some(standing) if !matches!(standing, Standing::Covered { .. }) => {
                NudgeOutcome::Replaced
            }
            _ if has_run => found,
            _ if signal::is_blocked(thread) => NudgeOutcome::SignalBlocked,
            // The last signal may be on its way, and the one before it has found something.
            _ if outcome != SignalOutcome::Unknown => found,
            _ => NudgeOutcome::NotHandled,
        }
    }

    fn sighting(&self, thread: ThreadRef, within: Duration) -> Option<Sighting> {
        let (sighting, age) = ThreadState::get(thread)?.sighting(thread)?;
        (age < within).then_some(sighting)
    }
}
