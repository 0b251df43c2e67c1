//! What `threadreg::exec` has to know: which signals operations use, and how to keep operations out.
//!
//! A signal that is pending survives `execve` and the handler does not, so that the new program would
//! die of an operation's signal. `exec` takes the operations' lock as any caller does, and while it
//! waits for it can be held like any other thread.

use std::time::Instant;

use sigctx::sys::{self, SigSet, Tid};
use threadreg::procfs::TaskDir;
use threadreg::{BeforeExecError, ExecHold, ExecHook};

use crate::block::BLOCK;
use crate::lock::{Locked, Refused};
use crate::patience::Patience;
use crate::signal::{self, be_reachable};
use crate::threads::Entry;

static HOOK: ExecHook = ExecHook::new(signals, hold, release);

/// To be called before an operation first sends a signal, which is entered in the block by then. Fails
/// with the thread that is in `exec` until `until`.
pub(crate) fn note(until: Option<Instant>) -> Result<(), Tid> {
    match threadreg::before_exec(&HOOK, until) {
        Err(BeforeExecError::TimedOut { holder }) => Err(holder),
        // No room for a hook: operations go on as if they did not know of `exec`.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn signals() -> SigSet {
    BLOCK.signals.set()
}

fn hold(until: Option<Instant>) -> ExecHold {
    // Alone nobody sends. Also a child of `vfork`, which must leave its parent's block alone.
    if TaskDir::open().and_then(|dir| dir.count()).is_ok_and(|threads| threads == 1) {
        return ExecHold::Free;
    }
    BLOCK.take_over(sys::getpid());
    let me = sys::gettid();
    // In a function that `call` runs: all have come, and no signal is sent any more.
    let nested =
        || BLOCK.hold.is_executing() && BLOCK.table.entry(me).is_some_and(Entry::has_arrived);
    match BLOCK.lock.acquire(me, &mut Patience::new(until), nested, be_reachable) {
        Ok(locked) => {
            if locked.inherited {
                signal::inherited(sys::getpid());
            }
            locked.keep();
            ExecHold::Still
        }
        Err(Refused::Nested) => ExecHold::Free,
        Err(Refused::TimedOut { holder }) => {
            ExecHold::TimedOut { holder: Some(holder).filter(|&tid| tid != 0) }
        }
    }
}

fn release() {
    drop(Locked::kept(&BLOCK.lock));
}
