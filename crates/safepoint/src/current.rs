//! Which stop of a world is asked for, or under way: for whoever asks, also in a handler.
//!
//! ```text
//!  word = | number of the last request, 30 bits | over, asked for, or stopped, 2 bits |
//!
//!  requester:  reason of n ──▶ word: n, asked for ──▶ word: n, stopped ──▶ word: n, over
//!  reader:     word: n ──▶ reason of n ──▶ word: n still? else once more
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `word` | holder of the stop turn | any | release / acquire | C1 |
//! | `own` | holder of the stop turn | the same | relaxed | what it has written to `word` |
//! | `reasons` | holder of the stop turn | any | relaxed: fences on both sides | C1 |
//!
//! - **C1** There is a place for the reason of each odd request, and of each even one. A reason is written over two
//!   requests later, behind the word of the request in between: a reader that has seen a part of it finds another number.
//!   Each further look of a reader is one of another request, so a handler, which keeps its own thread from making one,
//!   waits for nothing.
//!
//! The holder looks at `own`, not at `word`: of a load and the store of a thread that has loaded the word itself loom
//! explores one order (0.7.2, tokio-rs/loom#392).

#[cfg(any(test, not(loom)))]
use core::ops::Range;
use core::ptr;
use core::sync::atomic::AtomicU32 as PlainU32;

use sigctx::sync::{AtomicPtr, AtomicU32, Ordering, fence};

const OVER: u32 = 0;
const ASKED: u32 = 1;
const STOPPED: u32 = 2;
const PHASE: u32 = 3;
/// One request more.
const ONE: u32 = 4;

/// The last request of a world for a stop.
#[derive(Debug)]
pub(crate) struct Current {
    word: AtomicU32,
    own: PlainU32,
    reasons: [Text; 2],
}

/// The first byte of a text, and the end.
#[derive(Debug)]
struct Text {
    first: AtomicPtr<u8>,
    end: AtomicPtr<u8>,
}

/// What a reader finds.
#[cfg(not(loom))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) reason: &'static str,
    pub(crate) stopped: bool,
}

impl Current {
    pub(crate) fn new() -> Self {
        let no = || AtomicPtr::new(ptr::null_mut());
        let reasons = [(); 2].map(|()| Text { first: no(), end: no() });
        Self { word: AtomicU32::new(OVER), own: PlainU32::new(OVER), reasons }
    }

    fn reason(&self, number: u32) -> &Text {
        &self.reasons[number as usize & 1]
    }

    /// Holder of the turn only: a stop is asked for. Returns its number.
    pub(crate) fn begin(&self, reason: &'static str) -> u32 {
        // Relaxed: the turn orders its holders.
        let word = (self.own.load(Ordering::Relaxed) & !PHASE).wrapping_add(ONE);
        let (number, bytes) = (word / ONE, reason.as_bytes().as_ptr_range());
        // C1: with the reader's fence. What comes is found with the word of the request before, or a later one.
        fence(Ordering::Release);
        let text = self.reason(number);
        text.first.store(bytes.start.cast_mut(), Ordering::Relaxed);
        text.end.store(bytes.end.cast_mut(), Ordering::Relaxed);
        self.write(word | ASKED);
        number
    }

    /// Holder of the turn only: all mutators have stopped.
    pub(crate) fn stopped(&self) {
        self.set(STOPPED);
    }

    /// Holder of the turn only: the mutators are about to run, or the request is given up.
    pub(crate) fn over(&self) {
        self.set(OVER);
    }

    fn set(&self, phase: u32) {
        // Relaxed: as in `begin`.
        self.write(self.own.load(Ordering::Relaxed) & !PHASE | phase);
    }

    fn write(&self, word: u32) {
        self.own.store(word, Ordering::Relaxed);
        self.word.store(word, Ordering::Release);
    }

    /// What is asked for, or under way.
    #[cfg(not(loom))]
    pub(crate) fn find(&self) -> Option<Found> {
        let (word, text) = self.read()?;
        let length = text.end.addr() - text.start.addr();
        // SAFETY: C1: both are of one `&'static str`.
        let bytes = unsafe { core::slice::from_raw_parts(text.start, length) };
        // SAFETY: as above.
        let reason = unsafe { core::str::from_utf8_unchecked(bytes) };
        Some(Found { number: word / ONE, reason, stopped: word & PHASE == STOPPED })
    }

    /// The word, and the reason of its number, if a stop is asked for, or under way.
    #[cfg(any(test, not(loom)))]
    fn read(&self) -> Option<(u32, Range<*const u8>)> {
        loop {
            // Acquire: the reason was written before.
            let number = self.word.load(Ordering::Acquire) / ONE;
            let text = self.reason(number);
            let first = text.first.load(Ordering::Relaxed).cast_const();
            let end = text.end.load(Ordering::Relaxed).cast_const();
            // C1: with the requester's.
            fence(Ordering::Acquire);
            let word = self.word.load(Ordering::Relaxed);
            if word / ONE == number {
                return (word & PHASE != OVER).then_some((word, first..end));
            }
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::{ASKED, Current, ONE, PHASE};

    static REASONS: [&str; 4] = ["none", "1", "22", "333"];

    /// C1: a reader finds the reason of the number that it finds, whatever comes meanwhile.
    #[test]
    fn a_look_against_requests_that_follow_each_other() {
        loom::model(|| {
            let current = Arc::new(Current::new());
            let first = current.begin(REASONS[1]);
            let requests = {
                let current = current.clone();
                thread::spawn(move || {
                    assert_eq!(first, 1);
                    current.over();
                    for reason in &REASONS[2..] {
                        current.begin(reason);
                    }
                })
            };
            if let Some((word, text)) = current.read() {
                let (number, phase) = (word / ONE, word & PHASE);
                let reason = REASONS[number as usize].as_bytes().as_ptr_range();
                assert!(text == reason && phase == ASKED, "of request {number}, {phase}");
            }
            requests.join().unwrap();
            assert_eq!(current.read().map(|(word, _)| word / ONE), Some(3));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_found_until_it_is_over() {
        let current = Current::new();
        assert_eq!(current.find(), None);
        for (expected, reason) in (1..).zip(["gc", "", "a dump"]) {
            let number = current.begin(reason);
            assert_eq!(number, expected);
            assert_eq!(current.find(), Some(Found { number, reason, stopped: false }));
            current.stopped();
            assert_eq!(current.find(), Some(Found { number, reason, stopped: true }));
            current.over();
            assert_eq!(current.find(), None);
        }
        // The numbers begin anew, and the places stay those of odd and even ones.
        current.write(!PHASE);
        let reason = "the first";
        assert_eq!(current.begin(reason), 0);
        assert_eq!(current.find(), Some(Found { number: 0, reason, stopped: false }));
    }
}
