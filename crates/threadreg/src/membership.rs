//! What a thread does on itself to become registered and to cease: alternate stack, bounds, mask,
//! list.

use core::ptr;

use sigctx::altstack::AltStack;
use sigctx::sys::{self, SigSet};

use crate::events::{self, Event};
use crate::record::Record;
use crate::registry::ARENA;
use crate::thread_ref::ThreadRef;
use crate::{creation, lookup, mask, stack};

/// A thread's own hold on its record. Begun and ended on that thread.
#[derive(Debug)]
pub(crate) struct Membership {
    thread: ThreadRef,
    alternate: Option<AltStack>,
}

impl Membership {
    /// The calling thread becomes the one that `record` was published for.
    ///
    /// Signals must be blocked, but for those of a fault or a trapped call: a handler must not find the
    /// thread half registered.
    pub(crate) fn begin(
        record: &'static Record,
        generation: u32,
        alternate: Option<AltStack>,
    ) -> Self {
        let thread = ThreadRef { record, generation };
        let (low, high) = stack::bounds().unwrap_or((0, 0));
        // SAFETY: this thread's stack, or none; this thread alone uses the record, signals are
        // blocked.
        unsafe { record.stack.set_bounds(low, high) };
        lookup::set(record);
        let tid = sys::gettid();
        record.start(tid);
        events::emit(|| Event::Started { thread, tid, name: thread.name() });
        Self { thread, alternate }
    }

    pub(crate) fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// The calling thread leaves. Signals are blocked when this returns; the former mask is the
    /// result.
    ///
    /// Waits until no pin is left. Ends the process inside an injected call: the record's stack word
    /// is written when that resumes, and would be another thread's by then.
    pub(crate) fn end(mut self) -> SigSet {
        let mask = mask::block_all();
        let ThreadRef { record, .. } = self.thread;
        if record.stack.is_active() {
            let tid = sys::gettid();
            eprintln!("threadreg: thread {tid} leaves the registry inside an injected call");
            std::process::abort();
        }
        // In the child of a fork the record of any thread but the survivor is no longer its own.
        let own = self.thread.is_alive();
        if own {
            let (name, tid) = (self.thread.name(), record.pinned_tid().unwrap_or_default());
            let thread = self.thread;
            record.close();
            events::emit(|| Event::Exited { thread, tid, name });
        }
        // From here on a handler takes the thread for a foreign one.
        lookup::set(ptr::null());
        if let Some(alternate) = self.alternate.take() {
            // SAFETY: all signals are blocked but libc's own and those of a fault or a trapped call.
            // Their handlers run to their end on whatever stack they find; none of them injects or
            // moves what it interrupted, since it finds no record of this thread any more.
            unsafe { alternate.remove_blocked() };
        }
        if own {
            // SAFETY: handlers on this thread no longer find the record; no other thread runs on
            // the stack.
            unsafe { record.stack.set_bounds(0, 0) };
            creation::leave(&ARENA, record);
        }
        mask
    }
}
