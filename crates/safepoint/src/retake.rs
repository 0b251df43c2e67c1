//! Which thread has a processor: one that uses it, none, or one in a system call, from which another may retake it.
//!
//! ```text
//!           ┌──────── holder: rest ────────┐
//!           ▼                              │
//!        resting ── any: take ─────────▶ held ── holder: begin_call ──▶ in call n
//!                                          ▲                               │
//!                                          ├── the same: claim(n) ─────────┤
//!                                          └── a requester: claim(n) ──────┘
//!
//!  word = | number of the last call, 30 bits | resting, held or in a call, 2 bits |
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `word` | the holder; a thread that takes or claims | all | release when the processor is given up, acquire when it is taken or claimed | R1, R2 |
//!
//! - **R1** One thread has what the word guards: the one that made the word *held*.
//! - **R2** A claim is of one call. The thread that comes back from its call finds another number if the processor was
//!   retaken meanwhile, also if its next holder is in a call of its own by then. A number comes again after 2³⁰ calls.
//!
//! Go's `_Psyscall`, whose word has no number: the thread that comes back may there take the processor from the call of
//! another.
//!
//! # References
//!
//! Go 1.25 `runtime/proc.go`: `reentersyscall`, `exitsyscallfast`, `retake`

use sigctx::sync::{AtomicU32, Ordering};

const HELD: u32 = 0;
const RESTING: u32 = 1;
const IN_CALL: u32 = 2;
const STATE: u32 = 3;
/// One call more.
const CALL: u32 = 4;

/// Who has a processor.
#[derive(Debug)]
pub(crate) struct Possession {
    word: AtomicU32,
}

/// One system call on a processor, from its beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call(u32);

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A thread has it, or it is given from one to another.
    Held,
    /// No thread has it.
    Resting,
    /// Its thread is in a system call.
    InCall(Call),
}

impl Possession {
    /// Held by the caller.
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(HELD) }
    }

    /// Holder only: no thread has it. Release: what the holder did comes before what the next one does.
    pub(crate) fn rest(&self) {
        // Relaxed: the holder alone writes.
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !STATE | RESTING, Ordering::Release);
    }

    /// Takes it if it rests.
    pub(crate) fn take(&self) -> bool {
        // Relaxed: the exchange decides.
        let word = self.word.load(Ordering::Relaxed);
        word & STATE == RESTING && self.exchange(word)
    }

    /// Holder only: it may be retaken from here on. Release, as `rest`.
    pub(crate) fn begin_call(&self) -> Call {
        // Relaxed: the holder alone writes.
        let word = self.word.load(Ordering::Relaxed) & !STATE;
        let word = word.wrapping_add(CALL) | IN_CALL;
        self.word.store(word, Ordering::Release);
        Call(word)
    }

    /// Takes it, if it is in this call still: the thread that comes back from it, or one that retakes it. R2.
    pub(crate) fn claim(&self, call: Call) -> bool {
        self.exchange(call.0)
    }

    /// Acquire: of a call, what its thread wrote before it.
    pub(crate) fn look(&self) -> Seen {
        let word = self.word.load(Ordering::Acquire);
        match word & STATE {
            RESTING => Seen::Resting,
            IN_CALL => Seen::InCall(Call(word)),
            _ => Seen::Held,
        }
    }

    /// R1. Acquire: with the release of whoever gave it up.
    fn exchange(&self, seen: u32) -> bool {
        let held = seen & !STATE | HELD;
        self.word.compare_exchange(seen, held, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::{Possession, Seen};

    /// What a processor guards: loom reports where two threads have it.
    struct Processor {
        possession: Possession,
        heap: UnsafeCell<u32>,
    }

    // SAFETY: that one thread at a time touches `heap` is what the models prove.
    unsafe impl Sync for Processor {}

    impl Processor {
        fn new() -> Arc<Self> {
            Arc::new(Self { possession: Possession::new(), heap: UnsafeCell::new(0) })
        }

        /// What a holder does.
        fn work(&self) {
            self.heap.with_mut(|heap| {
                // SAFETY: as for `Sync`.
                unsafe { *heap += 1 };
            });
        }

        fn worked(&self) -> u32 {
            // SAFETY: the other threads have ended.
            self.heap.with(|heap| unsafe { *heap })
        }

        /// A system call. Whether the thread came back before it was retaken.
        fn call(&self) -> bool {
            let call = self.possession.begin_call();
            let back = self.possession.claim(call);
            if back {
                self.work();
            }
            back
        }

        /// Retakes it from a call, if it is in one.
        fn retake(&self) -> bool {
            let Seen::InCall(call) = self.possession.look() else { return false };
            if !self.possession.claim(call) {
                return false;
            }
            self.work();
            true
        }
    }

    /// R1: the thread that comes back has it, or the one that retook it, and not both.
    #[test]
    fn a_call_against_a_retake() {
        loom::model(|| {
            let processor = Processor::new();
            let retakes = {
                let processor = processor.clone();
                thread::spawn(move || processor.retake())
            };
            // Behind the spawn, which would hand over what comes before it.
            processor.work();
            let back = processor.call();
            let lost = retakes.join().unwrap();
            assert!(back != lost, "back: {back}, retaken: {lost}");
            assert_eq!(processor.worked(), 2);
        });
    }

    /// R2: the thread that retook it begins a call of its own before the first comes back.
    #[test]
    fn a_call_against_a_retake_and_the_next_call() {
        loom::model(|| {
            let processor = Processor::new();
            let retakes = {
                let processor = processor.clone();
                thread::spawn(move || {
                    let retaken = processor.retake();
                    // Nobody retakes it again, so it comes back.
                    assert!(
                        !retaken || processor.call(),
                        "taken away by a thread of an earlier call"
                    );
                })
            };
            let _back = processor.call();
            retakes.join().unwrap();
        });
    }

    /// A resting one is taken by one thread, and so is one in a call that two want to retake.
    #[test]
    fn two_threads_want_one() {
        loom::model(|| {
            let processor = Processor::new();
            processor.work();
            let takes = [(); 2].map(|()| {
                let processor = processor.clone();
                thread::spawn(move || {
                    if processor.possession.take() {
                        processor.work();
                        let _back = processor.call();
                        true
                    } else {
                        processor.retake()
                    }
                })
            });
            processor.possession.rest();
            for takes in takes {
                let _took = takes.join().unwrap();
            }
        });
    }
}
