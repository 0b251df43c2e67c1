//! The signal on its way to a thread, and the acknowledgement that it came.
//!
//! ```text
//!   requester                                   the thread's handler
//!   request.store                               generation += 1, pending = 0     acknowledge,
//!   pending: 0 -> 1   won: send the signal      request.load                     then look
//!                     lost: one is on its way
//! ```
//!
//! At most one signal is on its way (a storm of them would keep the thread from making any
//! progress). The handler acknowledges *before* it looks for requests. The other way round, a
//! request that comes between the look and the acknowledgement finds a signal pending, sends
//! none, and is seen by nobody. For the same reason it acknowledges on every path out.
//!
//! | word | writers | readers | invariant |
//! |---|---|---|---|
//! | `pending` | requester 0 → owner, handler → 0, who sent nothing → 0 | requester | nonzero: a signal will be handled |
//! | `generation` | handler, +1 | requester, futex | changed: the handler ran since |
//!
//! `pending` holds the owner's id instead of 1: when a thread ends with a signal still on its way
//! and its state is used again by another, the stale value does not count.
//!
//! A thread that is about to block says so first, and then waits for the signal that is on its way,
//! if one is; a requester that has won `pending` looks once more whether the thread still wants
//! signals. So none comes to a thread that has settled. If it wants none the requester takes its mark
//! back, and looks again: another may have found the mark, and sent nothing, when the thread had come
//! back already.
//!
//! Both sides store, then load what the other stored (request and `pending`): a sequentially
//! consistent fence lies between the two on each side, one the other's partner.
//!
//! References: Go's `preemptM`, `doSigPreempt` and `signalPending` (`runtime/signal_unix.go`), which
//! looks first and returns early from foreign threads without acknowledging.

use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::{AtomicU32, fence};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pending {
    pending: AtomicU32,
    generation: AtomicU32,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self { pending: AtomicU32::new(0), generation: AtomicU32::new(0) }
    }

    /// Handler: the signal came. Acknowledges, then looks; `look` may return as early as it likes.
    pub(crate) fn handle<R>(&self, look: impl FnOnce() -> R) -> R {
        // Release: whoever sees the new count sees what the handler did before.
        self.generation.fetch_add(1, Release);
        self.pending.store(0, Release);
        // Partner: the fence in `request`. Either we see that request, or it sees no signal pending.
        fence(SeqCst);
        look()
    }

    /// How many times the handler ran, modulo 2^32 (Go's `preemptGen`).
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Acquire)
    }

    /// Requester, after its request is stored: calls `send` unless a signal is on its way to
    /// `owner` already, or `wanted` says that it wants none now. A failed `send` leaves none
    /// pending.
    ///
    /// While a mark stands that is going to be taken back, other requesters take it for a signal on
    /// its way. So who takes one back answers for them, and looks at `wanted` again.
    pub(crate) fn request<E>(
        &self,
        owner: u32,
        wanted: impl Fn() -> bool,
        send: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert_ne!(owner, 0);
        // Partner: the fence in `handle`.
        fence(SeqCst);
        while self.mark(owner) {
            // Partner: the fence in `settle`. Either we see what the owner said before, or it sees
            // `pending` and waits.
            fence(SeqCst);
            if wanted() {
                return send().inspect_err(|_| self.take_back(owner));
            }
            self.take_back(owner);
            // Partner: the first fence of a requester that found our mark. It did so before it was
            // taken back, so we see what it asked, and that the owner wanted signals by then.
            fence(SeqCst);
            if !wanted() {
                break;
            }
        }
        Ok(())
    }

    /// Marks a signal as on its way to `owner`; false if one is.
    fn mark(&self, owner: u32) -> bool {
        loop {
            let seen = self.pending.load(Acquire);
            if seen == owner {
                return false;
            }
            if self.pending.compare_exchange(seen, owner, AcqRel, Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// No signal is on its way after all. The mark of a later owner of the record stays.
    fn take_back(&self, owner: u32) {
        // Nothing to be done when it is not ours any more.
        let _ = self.pending.compare_exchange(owner, 0, AcqRel, Relaxed);
    }

    /// In the child of a fork: the signal on its way was the parent's.
    pub(crate) fn after_fork(&self) {
        self.pending.store(0, Relaxed);
    }

    /// Owner, after it has said that it wants no signals: calls `pause` until none is on its way,
    /// or `pause` gives up. Whether none is.
    pub(crate) fn settle(&self, owner: u32, mut pause: impl FnMut() -> bool) -> bool {
        // Partner: the second fence in `request`.
        fence(SeqCst);
        loop {
            if self.pending.load(Acquire) != owner {
                return true;
            }
            if !pause() {
                return false;
            }
        }
    }
}
