//! What `threadreg::exec` has to know: which signals operations use, and how to keep operations out.
//!
//! A signal that is pending survives `execve` and the handler does not, so that the new program would
//! die of an operation's signal. `exec` takes the operations' lock as any caller does, and while it
//! waits for it can be held like any other thread.

use core::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use sigctx::sys::{self, SigSet, Tid};
use threadreg::procfs::TaskDir;
use threadreg::{ExecHold, ExecHook};

use crate::block::BLOCK;
use crate::lock::{Locked, Refused};
use crate::table::Entry;

static HOOK: ExecHook = ExecHook::new(signals, hold, release);

/// The signals of all operations that there were. Bits 0 to 128, as MIPS has them.
static USED: [AtomicU32; 5] = [const { AtomicU32::new(0) }; 5];

/// To be called before an operation first sends `signal`. Fails with the thread that is in `exec` until
/// `until`.
pub(crate) fn note(signal: i32, until: Option<Instant>) -> Result<(), Tid> {
    let bit = signal as usize;
    if let Some(word) = USED.get(bit / 32) {
        // Relaxed: `before_exec` orders it, as it does the hook.
        word.fetch_or(1 << (bit % 32), Ordering::Relaxed);
    }
    match threadreg::before_exec(&HOOK, until) {
        // No room for a hook: operations go on as if they did not know of `exec`.
        Err(0) => Ok(()),
        end => end,
    }
}

fn signals() -> SigSet {
    let used = |signal: &i32| {
        let bit = *signal as usize;
        USED.get(bit / 32).is_some_and(|word| word.load(Ordering::Relaxed) >> (bit % 32) & 1 != 0)
    };
    (1..=128).filter(used).fold(SigSet::empty(), SigSet::with)
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
    match BLOCK.lock.acquire(me, until, nested) {
        Ok(locked) => {
            locked.keep();
            ExecHold::Still
        }
        Err(Refused::Nested) => ExecHold::Free,
        Err(Refused::Late { holder }) => ExecHold::Late { holder },
    }
}

fn release() {
    drop(Locked::kept(&BLOCK.lock));
}
