//! Whether anything may be asked of a thread: the one word that its polls look at.
//!
//! ```text
//!   requester                    the target, at a poll that finds the word set
//!   request.store                asked = 0         take back,
//!   asked = 1                    request.load      then look
//!                                found: asked = 1  and serve
//! ```
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `asked` | requester → 1, after its request; target → 0, and → 1 if something stands | target | see below | A1 |
//!
//! - A1: while a request stands, and its requester has said so, the word is 1.
//!
//! The target takes the word back *before* it looks. The other way round, a request that comes between
//! the look and the taking back would stand beside a word that is 0. What it finds it leaves said, also
//! what it cannot do now, and does not take the word back when it has served: the hook may come back on
//! another thread, or unwind. The next poll looks once in vain.
//!
//! All changes are read-modify-writes. A requester's release is a part of what the next one's change
//! hands on, so the target that reads the last of them sees the requests of all.
//!
//! The word says nothing about signals: a thread that blocks ours, or has no handler, comes to its
//! requests by polls alone. The handler looks at the requests themselves.

use sigctx::sync::AtomicU32;
use sigctx::sync::Ordering::{AcqRel, Relaxed, Release};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Asked(AtomicU32);

impl Asked {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Requester, after its request is stored; target, whose look has found one.
    pub(crate) fn set(&self) {
        // Release: the request. Partner: the swap in `look`.
        self.0.swap(1, Release);
    }

    /// Target: whether there is anything to look for.
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        // Relaxed: `look` has the acquire.
        self.0.load(Relaxed) != 0
    }

    /// Target: whether `stands` finds a request.
    pub(crate) fn look(&self, stands: impl FnOnce() -> bool) -> bool {
        // Acquire: what is read here was set after a request, which `stands` is to see. Release: keeps
        // `stands` after it.
        self.0.swap(0, AcqRel);
        let found = stands();
        if found {
            self.set();
        }
        found
    }
}

#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use loom::thread;

    use super::Asked;

    /// A thread with requests that its polls alone can find.
    #[derive(Debug)]
    struct Polled {
        asked: Asked,
        requests: [AtomicU32; 2],
        served: AtomicU32,
    }

    impl Polled {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                asked: Asked::new(),
                requests: [(); 2].map(|()| AtomicU32::new(0)),
                served: AtomicU32::new(0),
            })
        }

        /// Relaxed: `asked` alone hands the requests on.
        fn ask(&self, requester: usize) {
            self.requests[requester].store(1, Relaxed);
            self.asked.set();
        }

        fn stands(&self) -> bool {
            self.requests.iter().any(|request| request.load(Relaxed) != 0)
        }

        /// Serves `most` of what it finds.
        fn poll(&self, most: usize) {
            if !self.asked.is_set() || !self.asked.look(|| self.stands()) {
                return;
            }
            for request in
                self.requests.iter().filter(|request| request.load(Relaxed) != 0).take(most)
            {
                request.store(0, Relaxed);
                self.served.fetch_add(1, Relaxed);
            }
        }
    }

    /// P25. Each of two requests is there for the polls that come after both, whichever of them a poll finds
    /// first.
    #[test]
    fn a_poll_after_a_request_looks_for_it() {
        loom::model(|| {
            let target = Polled::new();
            let requesters = [0, 1].map(|requester| {
                let target = target.clone();
                thread::spawn(move || target.ask(requester))
            });
            target.poll(2);
            for requester in requesters {
                requester.join().unwrap();
            }
            target.poll(2);
            assert_eq!(target.served.load(Relaxed), 2);
        });
    }

    /// P25. What a poll finds and cannot do, or leaves for another time, the next one finds.
    #[test]
    fn what_a_poll_leaves_stands_for_the_next() {
        loom::model(|| {
            let target = Polled::new();
            let requester = {
                let target = target.clone();
                thread::spawn(move || target.ask(1))
            };
            target.ask(0);
            target.poll(0);
            requester.join().unwrap();
            target.poll(1);
            target.poll(1);
            assert_eq!(target.served.load(Relaxed), 2);
        });
    }
}
