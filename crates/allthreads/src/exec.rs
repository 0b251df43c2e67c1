//! What `threadreg::exec` has to know: which signals operations use, and how to keep operations out.
//!
//! A pending signal survives `execve` and the handler does not, so that an operation's signal would kill the
//! new program. `exec` takes the operations' lock as any requester does. While it waits for the lock it can
//! be held like any other thread.

use std::time::Instant;

use sigctx::sys::{self, SigSet, Tid};
use threadreg::procfs::TaskDir;
use threadreg::{BeforeExecError, ExecHold, ExecHook};

use crate::block::BLOCK;
use crate::lock::{Locked, Refused};
use crate::patience::Patience;
use crate::signal::{self, be_reachable};

static HOOK: ExecHook = ExecHook::new(signals, hold, release);

/// Called before an operation first sends its signal, which is entered in the block by then. Fails with the
/// thread that is in `exec`, if that is still there at `until`.
pub(crate) fn note(until: Option<Instant>) -> Result<(), Tid> {
    match threadreg::before_exec(&HOOK, until) {
        Err(BeforeExecError::TimedOut { holder }) => Err(holder),
        // No room for a hook: operations and `exec` are not kept apart.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn signals() -> SigSet {
    BLOCK.signals.set()
}

fn hold(until: Option<Instant>) -> ExecHold {
    // Where there is one thread, none sends. A child of `vfork` has one, and must not touch its parent's
    // block.
    if TaskDir::open().and_then(|dir| dir.count()).is_ok_and(|threads| threads == 1) {
        return ExecHold::Free;
    }
    BLOCK.take_over(sys::getpid());
    let me = sys::gettid();
    // In a function that `call` runs: this thread has come, and is sent no signal any more.
    let nested = || BLOCK.is_inside(me);
    match BLOCK.lock.acquire(me, &mut Patience::new(until), nested, be_reachable) {
        Ok(locked) => {
            if locked.inherited {
                signal::inherited(sys::getpid());
            }
            locked.keep();
            ExecHold::Still
        }
        Err(Refused::Nested) => ExecHold::Free,
        Err(Refused::TimedOut { holder }) => ExecHold::TimedOut { holder },
    }
}

fn release() {
    drop(Locked::kept(&BLOCK.lock));
}
