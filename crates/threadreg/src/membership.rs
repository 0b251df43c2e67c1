//! What a thread does to itself when it becomes registered and when it leaves: alternate stack, stack
//! bounds, signal mask, list.

use core::ptr;

use sigctx::altstack::AltStack;
use sigctx::sys::{self, Errno, SigSet, Tid};

use crate::events::{self, Event};
use crate::record::Record;
use crate::registry::ARENA;
use crate::thread_ref::ThreadRef;
use crate::{creation, lookup, mask};

/// A thread's registration. Begun and ended on that thread.
#[derive(Debug)]
pub(crate) struct Membership {
    thread: ThreadRef,
    alternate: Option<AltStack>,
}

impl Membership {
    /// Makes the calling thread the one that `record` was published for. `stack` has its bounds.
    ///
    /// Signals must be blocked, except those of a fault or a trapped call: a handler must not find the
    /// thread half registered.
    pub(crate) fn begin(
        record: &'static Record,
        generation: u32,
        tid: Tid,
        stack: Result<(usize, usize), Errno>,
        alternate: Option<AltStack>,
    ) -> Self {
        let thread = ThreadRef { record, generation };
        let (low, high) = stack.unwrap_or((0, 0));
        // SAFETY: this thread's stack, or none. Only this thread uses the record, and signals are
        // blocked.
        unsafe { record.stack.set_bounds(low, high) };
        lookup::set(record);
        record.start(tid);
        events::emit(|| Event::Started { thread, tid, name: thread.name() });
        Self { thread, alternate }
    }

    pub(crate) fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Takes the calling thread off the registry. Signals are blocked when this returns; the result is
    /// the former mask.
    ///
    /// Waits for the last pin. Inside an injected call it ends the process: the call writes the
    /// record's stack word when it resumes, and the record would be another thread's by then.
    pub(crate) fn end(self) -> SigSet {
        self.leave(AltStack::remove_blocked)
    }

    /// As [`end`](Self::end), on a thread of this crate's that returns to `std` with its signals blocked:
    /// `std` is about to take its own alternate stack away, so that is not put back first.
    pub(crate) fn end_with_thread(self) {
        self.leave(AltStack::disable_blocked);
    }

    fn leave(mut self, remove: unsafe fn(AltStack)) -> SigSet {
        let mask = mask::block_all();
        let ThreadRef { record, .. } = self.thread;
        if record.stack.is_active() {
            let tid = sys::gettid();
            eprintln!("threadreg: thread {tid} leaves the registry inside an injected call");
            std::process::abort();
        }
        // In the child of a fork the record is this thread's no longer, unless it is the surviving
        // thread.
        let own = self.thread.is_alive();
        if own {
            let (thread, name) = (self.thread, self.thread.name());
            record.close();
            events::emit(|| Event::Exited { thread, tid: sys::gettid(), name });
        }
        // From here on a handler takes the thread for an unregistered one.
        lookup::set(ptr::null());
        if let Some(alternate) = self.alternate.take() {
            // SAFETY: all signals are blocked, except libc's own and those of a fault or a trapped
            // call. Their handlers run to their end on the stack that they begin on. None of them
            // injects a call or moves what it interrupted, since it finds no record of this thread any
            // more.
            unsafe { remove(alternate) };
        }
        if own {
            // SAFETY: handlers on this thread no longer find the record, and no other thread runs on
            // the stack.
            unsafe { record.stack.set_bounds(0, 0) };
            creation::leave(&ARENA, record);
        }
        mask
    }
}
