//! Operations of handshakes, and the queue of those that wait for one slot's target. The invariants are in
//! [`handshake`](super::handshake).

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::AtomicU32 as PlainU32;
use std::collections::VecDeque;
use std::sync::Arc;

use super::{Edge, System};
use sigctx::fork::process;
use sigctx::sync::{AtomicU32, Mutex, Ordering};

/// `served`: no requester runs operations for the slot.
pub(super) const FREE: u32 = 0;
/// A requester does.
pub(super) const SERVED: u32 = 1;
/// A requester does, and the target sleeps, or is about to.
pub(super) const AWAITED: u32 = 2;

/// States of an operation.
const QUEUED: u32 = 0;
const TAKEN: u32 = 1;
pub(super) const DONE: u32 = 2;
const GONE: u32 = 3;
pub(super) const WITHDRAWN: u32 = 4;

/// A queue that is longer gives its memory back when it is empty.
const KEPT: usize = 8;

/// The operations of one request whose requester waits.
#[derive(Debug)]
pub(super) struct Request {
    /// The operations that are not over, and one while the requester still asks.
    pub(super) outstanding: AtomicU32,
    pub(super) states: Box<[AtomicU32]>,
    /// The process that asked. In the child of a fork nobody is left to answer.
    pub(super) process: u32,
}

impl Request {
    pub(super) fn new(operations: usize) -> Arc<Self> {
        let states = (0..operations).map(|_| AtomicU32::new(QUEUED)).collect();
        Arc::new(Self { outstanding: AtomicU32::new(1), states, process: process() })
    }

    /// Acquire: the requester sees what operations did.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Acquire)
    }

    pub(super) fn is_over(&self) -> bool {
        self.outstanding() == 0 || self.process != process()
    }

    /// Relaxed: a hint, but under the queue's lock and to a nudge, which fences.
    pub(super) fn is_queued(&self, at: usize) -> bool {
        self.states[at].load(Ordering::Relaxed) == QUEUED
    }

    /// H6. True for the last.
    pub(super) fn count_down(&self) -> bool {
        self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Whom an operation belongs to: the request, and its place there.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request: Arc<Request>,
    pub(super) at: usize,
}

/// One operation.
pub(super) struct Operation {
    pub(super) work: Box<dyn FnOnce() + Send>,
    /// Only the target runs it.
    pub(super) self_only: bool,
    /// `None` if no requester waits.
    pub(super) ticket: Option<Ticket>,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("self_only", &self.self_only)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl Operation {
    pub(super) fn is_of(&self, request: &Arc<Request>, at: usize) -> bool {
        self.ticket
            .as_ref()
            .is_some_and(|ticket| Arc::ptr_eq(&ticket.request, request) && ticket.at == at)
    }

    /// Under the lock. Relaxed: whoever has to know takes the lock, too, or fences.
    pub(super) fn mark_taken(self) -> Self {
        if let Some(Ticket { request, at }) = &self.ticket {
            request.states[*at].store(TAKEN, Ordering::Relaxed);
        }
        self
    }

    pub(super) fn run<S: System>(self, system: &S) {
        (self.work)();
        system.edge(Edge::Acknowledges);
        end(self.ticket, DONE, system);
    }

    /// Ends it without running it: its target goes.
    pub(super) fn gone<S: System>(self, system: &S) {
        drop(self.work);
        end(self.ticket, GONE, system);
    }

    /// Ends it without running it: it is too late.
    pub(super) fn withdrawn<S: System>(self, system: &S) {
        drop(self.work);
        end(self.ticket, WITHDRAWN, system);
    }
}

/// H6: what the work borrows is not used any more.
fn end<S: System>(ticket: Option<Ticket>, how: u32, system: &S) {
    if let Some(Ticket { request, at }) = ticket {
        // Relaxed: the requester looks when nothing is outstanding.
        request.states[at].store(how, Ordering::Relaxed);
        if request.count_down() {
            system.wake_all(&request.outstanding);
        }
    }
}

/// The operations that wait for one slot's target.
#[derive(Debug)]
pub(super) struct Queue {
    lock: Mutex,
    /// H4: the generation it is open for; 0 for none.
    pub(super) open: PlainU32,
    operations: UnsafeCell<VecDeque<Operation>>,
}

// SAFETY: the cell is used under the lock, and where there is no other thread. Operations are `Send`.
unsafe impl Sync for Queue {}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            lock: Mutex::new(),
            open: PlainU32::new(0),
            operations: UnsafeCell::new(VecDeque::new()),
        }
    }

    /// No thread waits for anything under the lock, or runs what is not in this file.
    pub(super) fn locked<R>(&self, work: impl FnOnce(&mut VecDeque<Operation>) -> R) -> R {
        let _one = self.lock.guard(process());
        // SAFETY: the lock is held. It is found copied in the child of a fork alone, where `after_fork` has
        // written the contents anew.
        let operations = unsafe { &mut *self.operations.get() };
        let result = work(operations);
        if operations.is_empty() && operations.capacity() > KEPT {
            *operations = VecDeque::new();
        }
        result
    }

    /// In the child of a fork, on its one thread. What other threads asked for borrows from stacks that are no more,
    /// and the queue may be half changed: all is left where it is, and not run.
    #[cfg(not(loom))]
    pub(super) fn after_fork(&self, survives: bool) {
        // SAFETY: there is no other thread, and this one is not under the lock. Nothing is dropped.
        unsafe { self.operations.get().write(VecDeque::new()) };
        if !survives {
            self.open.store(0, core::sync::atomic::Ordering::Relaxed);
        }
    }
}
