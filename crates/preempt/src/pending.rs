//! The signal on its way to a thread, and the acknowledgement that it came.
//!
//! ```text
//!   requester                                   the target's handler
//!   request.store                               handled += 1, pending = 0     acknowledge,
//!   pending: 0 -> 1   won: send the signal      request.load                  then look
//!                     lost: one is on its way
//! ```
//!
//! At most one signal is on its way (a storm of them would keep the thread from making any
//! progress). The handler acknowledges *before* it looks for requests. The other way round, a
//! request that comes between the look and the acknowledgement finds a signal pending, sends
//! none, and is not seen. For the same reason it acknowledges on every path out.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `pending` | requester → its mark, and → 0 if it sent nothing; handler → 0; target → 0 | requester, target | acquire / release, with the fences | a mark younger than [`LOST_AFTER`]: a signal will be handled |
//! | `handled` | handler, +1 | requester | acquire / release | changed: the handler ran since |
//! | `sending` | requester, +1 before its mark and -1 after its send | handler, target | acquire / release, with the fences | 0: each signal whose mark was seen is in the kernel's hands |
//! | `overtaken` | handler → 1, target → 0 | target | relaxed: the handler runs on the target | 0: a mark stands for each signal that was sent and has not come |
//!
//! The *target* is the thread to which the state belongs now, of the record's current generation. A
//! mark holds the generation and the time of the send. When a thread ends with a signal still on its way
//! and its state is used again by another, the stale mark does not count. Nor does an old one: a
//! signal can be taken by `sigtimedwait` or a signalfd, ignored for a moment, or handled by a handler
//! above ours that does not chain, and then it never comes. So after [`LOST_AFTER`] the next requester
//! sends again; a signal that is only late merges with that one in the kernel.
//!
//! A thread that is about to block says so first, and then waits for the signal that is on its way,
//! if one is; a requester that has won `pending` looks once more whether the thread still wants
//! signals. So none comes to a thread that has settled. If it wants none the requester takes its mark
//! back, and looks again: another may have found the mark, and sent nothing, when the thread had come
//! back already.
//!
//! Two signals can be on their way after all: ours and one of another sender's, or an old one with its
//! successor. The first that comes clears the mark of the other. Its handler then finds a requester
//! that is still sending, and notes that the mark was overtaken; or the other has been sent, and comes
//! before the handler's thread is back in its code.
//!
//! Both sides store, then load what the other stored (request and `pending`): a sequentially
//! consistent fence lies between the two on each side, one the other's partner.
//!
//! References: Go's `preemptM`, `doSigPreempt` and `signalPending` (`runtime/signal_unix.go`), which
//! looks first and returns early from foreign threads without acknowledging.

use sigctx::sync::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use sigctx::sync::{AtomicU32, fence};

/// In milliseconds: a running thread handles a signal in microseconds, and one that is not scheduled
/// loses nothing by a second one.
pub(crate) const LOST_AFTER: u32 = 10;

/// See the module's documentation.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "what is pending is the signal")]
pub(crate) struct Pending {
    pending: AtomicU32,
    handled: AtomicU32,
    sending: AtomicU32,
    overtaken: AtomicU32,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            handled: AtomicU32::new(0),
            sending: AtomicU32::new(0),
            overtaken: AtomicU32::new(0),
        }
    }

    /// Handler: the signal came. Acknowledges, then looks; `look` may return as early as it likes.
    pub(crate) fn handle<R>(&self, look: impl FnOnce() -> R) -> R {
        // Release: a requester that sees the new count sees what the handler did before.
        self.handled.fetch_add(1, Release);
        self.pending.store(0, Release);
        // Partner: the first fence in `request`. Either we see that request, or it sees no signal
        // pending. And the second: if the mark that we cleared was its, we see it sending, or it has
        // sent.
        fence(SeqCst);
        if count(self.sending.load(Relaxed)) != 0 {
            self.overtaken.store(1, Relaxed);
        }
        look()
    }

    /// How many times the handler ran, modulo 2^32.
    #[doc(alias = "preemptGen")]
    pub(crate) fn handled(&self) -> u32 {
        self.handled.load(Acquire)
    }

    /// Requester, after its request is stored: calls `send` unless a signal is on its way to the target
    /// of `generation` already, or `wanted` says that it wants none now. A failed `send` leaves none
    /// pending. `clock` counts milliseconds.
    ///
    /// While a mark stands that is going to be taken back, other requesters take it for a signal on
    /// its way. So a requester that takes its mark back answers for them, and looks at `wanted` again.
    pub(crate) fn request<E>(
        &self,
        generation: u32,
        clock: impl Fn() -> u32,
        wanted: impl Fn() -> bool,
        send: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        // Partner: the fence in `handle`.
        fence(SeqCst);
        while !is_on_its_way(self.pending.load(Acquire), generation, &clock) {
            self.begin_sending(generation);
            // Partner: the fence in `handle`.
            fence(SeqCst);
            let mark = self.mark(generation, &clock);
            // Partner: the fence in `settle`. Either we see what the target said before, or it sees
            // us sending and waits.
            fence(SeqCst);
            let is_wanted = wanted();
            let result = match mark {
                Some(_) if is_wanted => send(),
                _ => Ok(()),
            };
            if let Some(mark) = mark.filter(|_| !is_wanted || result.is_err()) {
                self.take_back(mark);
            }
            self.end_sending(generation);
            if mark.is_none() || is_wanted {
                return result;
            }
            // Partner: the first fence of a requester that found our mark. It did so before it was
            // taken back, so we see what it asked, and that the target wanted signals by then.
            fence(SeqCst);
            if !wanted() {
                break;
            }
        }
        Ok(())
    }

    /// Marks a signal as on its way; `None` if one is.
    fn mark(&self, generation: u32, clock: &impl Fn() -> u32) -> Option<u32> {
        loop {
            let seen = self.pending.load(Acquire);
            if is_on_its_way(seen, generation, clock) {
                return None;
            }
            let mark = tag(generation) | clock() & LOW;
            if self.pending.compare_exchange(seen, mark, AcqRel, Relaxed).is_ok() {
                return Some(mark);
            }
        }
    }

    /// No signal is on its way after all. The mark of a later generation stays.
    fn take_back(&self, mark: u32) {
        // Nothing to be done when it is not ours any more.
        let _ = self.pending.compare_exchange(mark, 0, AcqRel, Relaxed);
    }

    /// Counts a requester. Those of an earlier generation do not count any more.
    fn begin_sending(&self, generation: u32) {
        let mut seen = self.sending.load(Relaxed);
        loop {
            let more = if is_of(seen, generation) { seen + 1 } else { tag(generation) | 1 };
            match self.sending.compare_exchange(seen, more, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn end_sending(&self, generation: u32) {
        let mut seen = self.sending.load(Relaxed);
        while is_of(seen, generation) && count(seen) != 0 {
            // Release: with the acquire in `settle`, after the send.
            match self.sending.compare_exchange(seen, seen - 1, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// In the child of a fork: the signal on its way was the parent's, and its requester is not here.
    pub(crate) fn after_fork(&self) {
        self.pending.store(0, Relaxed);
        self.sending.store(0, Relaxed);
        self.overtaken.store(0, Relaxed);
    }

    /// Target, after it has said that it wants no signals: calls `pause` until none is on its way,
    /// or `pause` gives up. Whether none is.
    ///
    /// `pause` makes a system call: at its end comes a signal that was sent before, unless the thread
    /// blocks it; `pause` gives up then.
    pub(crate) fn settle(&self, generation: u32, mut pause: impl FnMut() -> bool) -> bool {
        // Partner: the third fence in `request`.
        fence(SeqCst);
        loop {
            // In this order: a mark that is seen with no requester sending is of a signal that was sent.
            let mark = self.pending.load(Acquire);
            let sending = self.sending.load(Acquire);
            let is_sending = is_of(sending, generation) && count(sending) != 0;
            let is_overtaken = self.overtaken.load(Relaxed) != 0;
            if !is_of(mark, generation) && !is_sending && !is_overtaken {
                return true;
            }
            if !pause() {
                return false;
            }
            if !is_sending {
                // What was sent has come in the pause, and cleared its mark; else it is lost.
                self.take_back(mark);
                self.overtaken.store(0, Relaxed);
            }
        }
    }
}

/// The lower half of a word: the time of a mark, or the count of the requesters that are sending.
const LOW: u32 = 0xffff;

/// The upper half of a word, which tells the generations of a record apart; never 0.
fn tag(generation: u32) -> u32 {
    (generation % LOW + 1) << 16
}

fn is_of(word: u32, generation: u32) -> bool {
    word & !LOW == tag(generation)
}

fn count(sending: u32) -> u32 {
    sending & LOW
}

/// Looks at the clock after the mark was read, so that the mark is never younger than that: modulo
/// 2^16 it would seem old.
fn is_on_its_way(mark: u32, generation: u32, clock: &impl Fn() -> u32) -> bool {
    is_of(mark, generation) && clock().wrapping_sub(mark) & LOW < LOST_AFTER
}
