//! The two protocol cores under loom.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
use loom::thread;

use crate::pending::Pending;
use crate::word::{Mode, TaskWord};

/// What the kernel and a handler do: a signal sent is handled once, later; signals sent while one
/// is pending merge with it.
#[derive(Debug)]
struct Thread {
    pending: Pending,
    kernel: AtomicU32,
    request: AtomicU32,
    /// 1: the thread runs something that a request can reach. 0: the handler returns early. 2: it
    /// wants no signals.
    reachable: AtomicU32,
    served: AtomicU32,
}

impl Thread {
    fn new(reachable: u32) -> Arc<Self> {
        Arc::new(Self {
            pending: Pending::new(),
            kernel: AtomicU32::new(0),
            request: AtomicU32::new(0),
            reachable: AtomicU32::new(reachable),
            served: AtomicU32::new(0),
        })
    }

    fn deliver(&self) {
        if self.kernel.swap(0, SeqCst) == 1 {
            self.pending.handle(|| {
                if self.reachable.load(SeqCst) == 1 {
                    self.served.fetch_add(self.request.swap(0, SeqCst), SeqCst);
                }
            });
        }
    }

    fn ask(&self) {
        self.request.fetch_add(1, SeqCst);
        let sent = self.pending.request(
            7,
            || self.reachable.load(SeqCst) != 2,
            || {
                // A read-modify-write, as in the kernel, which holds a lock.
                self.kernel.swap(1, SeqCst);
                Ok::<(), ()>(())
            },
        );
        assert_eq!(sent, Ok(()));
    }
}

fn two_ask(target: &Arc<Thread>) -> [thread::JoinHandle<()>; 2] {
    [(); 2].map(|()| {
        let target = target.clone();
        thread::spawn(move || target.ask())
    })
}

/// Nobody asks twice: what is asked while the handler runs must be served by this signal or by
/// one that the request itself sent.
#[test]
fn a_single_request_is_never_lost() {
    loom::model(|| {
        let target = Thread::new(1);
        let requesters = two_ask(&target);
        target.deliver();
        target.deliver();
        for requester in requesters {
            requester.join().unwrap();
        }
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// A signal that comes while the thread cannot be reached is acknowledged all the same, so that
/// the next request sends one.
#[test]
fn an_early_return_acknowledges() {
    loom::model(|| {
        let target = Thread::new(0);
        let requester = {
            let target = target.clone();
            thread::spawn(move || target.ask())
        };
        target.deliver();
        requester.join().unwrap();
        target.deliver();
        target.reachable.store(1, SeqCst);
        target.ask();
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// A send that fails leaves nothing pending.
#[test]
fn a_failed_send_does_not_count_as_on_its_way() {
    loom::model(|| {
        let pending = Pending::new();
        assert_eq!(pending.request(7, || true, || Err(())), Err(()));
        let mut sent = false;
        let second = pending.request(
            7,
            || true,
            || {
                sent = true;
                Ok::<(), ()>(())
            },
        );
        assert_eq!((second, sent), (Ok(()), true));
    });
}

/// A thread that has settled gets no signal until it wants signals again.
#[test]
fn no_signal_comes_to_a_thread_that_has_settled() {
    loom::model(|| {
        let target = Thread::new(1);
        let requesters = two_ask(&target);
        target.reachable.store(2, SeqCst);
        target.pending.settle(7, || {
            target.deliver();
            thread::yield_now();
            true
        });
        assert_eq!(target.kernel.swap(0, SeqCst), 0, "a signal is on its way");
        for requester in requesters {
            requester.join().unwrap();
        }
        assert_eq!(target.kernel.swap(0, SeqCst), 0, "a signal came");
    });
}

/// One requester finds the thread blocked and takes its mark back; another asks when the thread is
/// back and has polled, and finds the mark. One of the two must send.
#[test]
fn a_mark_that_is_taken_back_loses_no_request() {
    loom::model(|| {
        let target = Thread::new(2);
        let requesters = two_ask(&target);
        target.reachable.store(1, SeqCst);
        // The poll of one who comes back; the only one.
        target.served.fetch_add(target.request.swap(0, SeqCst), SeqCst);
        for requester in requesters {
            requester.join().unwrap();
        }
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// The task's code, reduced to two steps that a holder must never see apart.
fn run_code(word: &TaskWord, steps: &AtomicU32) {
    steps.fetch_add(1, SeqCst);
    steps.fetch_add(1, SeqCst);
    word.park(|| {}, || ());
}

/// While a suspender holds a task, the task's code does not run, whether it was found idle,
/// blocked or parked; and everybody ends.
#[test]
fn a_held_task_does_not_run() {
    loom::model(|| {
        let word = Arc::new(TaskWord::new());
        let steps = Arc::new(AtomicU32::new(0));
        let owner = {
            let (word, steps) = (word.clone(), steps.clone());
            thread::spawn(move || {
                assert!(word.start());
                run_code(&word, &steps);
                word.block();
                word.unblock();
                run_code(&word, &steps);
                word.finish();
            })
        };
        word.want();
        let mode = loop {
            match word.try_hold() {
                Ok(mode) => break mode,
                Err(seen) => word.wait_change(seen, core::time::Duration::MAX),
            }
        };
        assert_ne!(mode, Mode::Running);
        let before = steps.load(SeqCst);
        assert_eq!(before % 2, 0, "held in the middle of a step");
        loom::thread::yield_now();
        assert_eq!(steps.load(SeqCst), before, "the code of a held task ran");
        word.release();
        owner.join().unwrap();
        assert_eq!(word.seen().mode(), Mode::Idle);
        assert!(!word.seen().is_wanted());
    });
}

/// A suspender that gives up does not leave the task parked for ever.
#[test]
fn giving_up_lets_the_task_go_on() {
    loom::model(|| {
        let word = Arc::new(TaskWord::new());
        let owner = {
            let word = word.clone();
            thread::spawn(move || {
                assert!(word.start());
                word.park(|| {}, || ());
                word.finish();
            })
        };
        word.want();
        word.unwant();
        owner.join().unwrap();
        assert_eq!(word.seen().mode(), Mode::Idle);
    });
}

/// Two suspenders hold one after the other, never together.
#[test]
fn two_suspenders_take_turns() {
    loom::model(|| {
        let word = Arc::new(TaskWord::new());
        let holders = Arc::new(AtomicU32::new(0));
        let suspend = |word: &TaskWord, holders: &AtomicU32| {
            word.want();
            while let Err(seen) = word.try_hold() {
                word.wait_change(seen, core::time::Duration::MAX);
            }
            assert_eq!(holders.fetch_add(1, SeqCst), 0, "two holders");
            holders.fetch_sub(1, SeqCst);
            word.release();
        };
        let other = {
            let (word, holders) = (word.clone(), holders.clone());
            thread::spawn(move || suspend(&word, &holders))
        };
        suspend(&word, &holders);
        other.join().unwrap();
        assert!(!word.seen().is_wanted());
    });
}

/// A closure for a parked task runs exactly once, on the owner, before the task goes on.
#[test]
fn a_call_is_served_by_the_parked_owner() {
    loom::model(|| {
        let word = Arc::new(TaskWord::new());
        let served = Arc::new(AtomicU32::new(0));
        let owner = {
            let (word, served) = (word.clone(), served.clone());
            thread::spawn(move || {
                assert!(word.start());
                let errand = || {
                    served.fetch_add(1, SeqCst);
                };
                word.park(errand, || ());
                word.finish();
            })
        };
        word.want();
        let mode = loop {
            match word.try_hold() {
                Ok(mode) => break mode,
                Err(seen) => word.wait_change(seen, core::time::Duration::MAX),
            }
        };
        if mode == Mode::Parked {
            word.call();
            assert_eq!(served.load(SeqCst), 1);
        }
        word.release();
        owner.join().unwrap();
    });
}
