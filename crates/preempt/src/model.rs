//! Models of the protocols `pending`, `word` and `seen`: the real code, run by loom.

use core::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
use loom::thread;

use sigctx::sync::interrupt;

use crate::pending::{LOST_AFTER, Pending};
use crate::seen::Seen;
use crate::word::{GoOn, Mode, TaskWord, Waiter};

/// What the kernel and a handler do: a signal sent is handled once, later; signals sent while one
/// is pending merge with it.
#[derive(Debug)]
struct Thread {
    pending: Pending,
    kernel: AtomicU32,
    /// A word a requester: a look that finds one may miss the other.
    requests: [AtomicU32; 2],
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
            requests: [(); 2].map(|()| AtomicU32::new(0)),
            reachable: AtomicU32::new(reachable),
            served: AtomicU32::new(0),
        })
    }

    fn deliver(&self) {
        // What is sent while the handler runs comes when it returns, before the thread's own code.
        while self.kernel.swap(0, SeqCst) == 1 {
            self.pending.handle(|| {
                if self.reachable.load(SeqCst) == 1 {
                    self.serve();
                }
            });
        }
    }

    /// Looks with plain loads, as the handler does: a read-modify-write would see the newest request
    /// without the fences.
    fn serve(&self) {
        for request in &self.requests {
            if request.load(SeqCst) != 0 {
                self.served.fetch_add(request.swap(0, SeqCst), SeqCst);
            }
        }
    }

    fn ask(&self, requester: usize) {
        self.ask_at(requester, 0);
    }

    /// Asks, at this time in milliseconds.
    fn ask_at(&self, requester: usize, time: u32) {
        self.requests[requester].fetch_add(1, SeqCst);
        let sent = self.pending.request(
            7,
            || time,
            || self.reachable.load(SeqCst) != 2,
            || {
                // A read-modify-write, as in the kernel, which holds a lock.
                self.kernel.swap(1, SeqCst);
                Ok::<(), ()>(())
            },
        );
        assert_eq!(sent, Ok(()));
    }

    /// Says that it wants no signal, and waits until none is on its way.
    fn settle(&self) {
        self.reachable.store(2, SeqCst);
        let settled = self.pending.settle(7, || {
            self.deliver();
            thread::yield_now();
            true
        });
        assert!(settled);
        assert_eq!(self.kernel.swap(0, SeqCst), 0, "a signal is on its way");
    }
}

fn two_ask(target: &Arc<Thread>) -> [thread::JoinHandle<()>; 2] {
    [0, 1].map(|requester| {
        let target = target.clone();
        thread::spawn(move || target.ask(requester))
    })
}

/// P2. No requester asks twice: what is asked while the handler runs must be served by this signal or by
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

/// P1. A signal that comes while the thread cannot be reached is acknowledged all the same, so that
/// the next request sends one.
#[test]
fn an_early_return_acknowledges() {
    loom::model(|| {
        let target = Thread::new(0);
        let requester = {
            let target = target.clone();
            thread::spawn(move || target.ask(1))
        };
        target.deliver();
        requester.join().unwrap();
        target.deliver();
        target.reachable.store(1, SeqCst);
        target.ask(0);
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// P3. A send that fails leaves nothing pending.
#[test]
fn a_failed_send_does_not_count_as_on_its_way() {
    loom::model(|| {
        let pending = Pending::new();
        assert_eq!(pending.request(7, || 0, || true, || Err(())), Err(()));
        let sent = core::cell::Cell::new(false);
        let deliver = || {
            sent.set(true);
            Ok::<(), ()>(())
        };
        let second = pending.request(7, || 0, || true, deliver);
        assert_eq!((second, sent.get()), (Ok(()), true));
    });
}

/// P3a. A thread that has settled gets no signal until it wants signals again.
#[test]
fn no_signal_comes_to_a_thread_that_has_settled() {
    loom::model(|| {
        let target = Thread::new(1);
        let requesters = two_ask(&target);
        target.settle();
        for requester in requesters {
            requester.join().unwrap();
        }
        assert_eq!(target.kernel.swap(0, SeqCst), 0, "a signal came");
    });
}

/// P3a. The same where a second signal was sent since the first seemed lost, and was not.
#[test]
fn no_second_signal_comes_to_a_thread_that_has_settled() {
    loom::model(|| {
        let target = Thread::new(1);
        target.ask(0);
        let requester = {
            let target = target.clone();
            thread::spawn(move || target.ask_at(1, LOST_AFTER))
        };
        target.deliver();
        target.settle();
        requester.join().unwrap();
        assert_eq!(target.kernel.swap(0, SeqCst), 0, "a signal came");
    });
}

/// P3c. A signal that the handler does not get is sent again, and not before it is late.
#[test]
fn a_signal_that_another_consumed_is_sent_again() {
    loom::model(|| {
        let target = Thread::new(1);
        target.ask(0);
        assert_eq!(target.kernel.swap(0, SeqCst), 1, "consumed");
        target.ask_at(0, LOST_AFTER - 1);
        assert_eq!(target.kernel.load(SeqCst), 0, "sent again too soon");
        let requester = {
            let target = target.clone();
            thread::spawn(move || target.ask_at(1, LOST_AFTER))
        };
        target.ask_at(0, LOST_AFTER);
        requester.join().unwrap();
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 4);
    });
}

/// P3d. A thread whose signal another consumed does not wait for it when it is about to block.
#[test]
fn a_thread_settles_when_another_consumed_its_signal() {
    loom::model(|| {
        let target = Thread::new(1);
        target.ask(0);
        assert_eq!(target.kernel.swap(0, SeqCst), 1, "consumed");
        target.reachable.store(2, SeqCst);
        let mut pauses = 0;
        let settled = target.pending.settle(7, || {
            pauses += 1;
            pauses < 3
        });
        assert!(settled, "it waits for a signal that does not come");
        // And nothing stands in the way of the next.
        target.reachable.store(1, SeqCst);
        target.ask(0);
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// P3b. One requester finds the thread blocked and takes its mark back; another asks when the thread is
/// back and has polled, and finds the mark. One of the two must send.
#[test]
fn a_mark_that_is_taken_back_loses_no_request() {
    loom::model(|| {
        let target = Thread::new(2);
        let requesters = two_ask(&target);
        target.reachable.store(1, SeqCst);
        // The poll of a thread that comes back; the only one. It sees what was asked before it came back:
        // that is a read-modify-write of the word with the requests.
        for request in &target.requests {
            target.served.fetch_add(request.swap(0, SeqCst), SeqCst);
        }
        for requester in requesters {
            requester.join().unwrap();
        }
        target.deliver();
        assert_eq!(target.served.load(SeqCst), 2);
    });
}

/// What a parked or waiting target is asked for: errands by the holder, calls by its handler.
#[derive(Debug)]
struct Asked {
    word: TaskWord,
    errands: AtomicU32,
    call: AtomicU32,
    calls: AtomicU32,
    /// What the task's code counts.
    steps: AtomicU32,
}

impl Asked {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: TaskWord::new(),
            errands: AtomicU32::new(0),
            call: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            steps: AtomicU32::new(0),
        })
    }

    fn start(&self) {
        assert_ne!(self.word.start(&mut { self }), GoOn::Taken);
    }

    fn unblock(&self) {
        assert_ne!(self.word.go_on(Mode::Blocked, &mut { self }), GoOn::Taken);
    }

    fn park(&self) {
        self.word.park(&mut { self });
    }

    /// The task's code, reduced to two steps that a holder must never see apart.
    fn run_code(&self) {
        self.steps.fetch_add(1, SeqCst);
        self.steps.fetch_add(1, SeqCst);
    }

    /// A requester that waits for as long as it takes.
    fn hold(&self) -> Mode {
        self.word.want();
        loop {
            match self.word.try_hold() {
                Ok(mode) => return mode,
                Err(seen) => self.word.wait_change(seen, Duration::MAX),
            }
        }
    }

    /// A requester, and the handler on the target's thread: a thread of its own here, which only sets
    /// bits and ends the wait as a signal does.
    fn ask_for_a_call(&self) {
        self.call.store(1, SeqCst);
        self.word.stir();
        interrupt();
    }
}

impl Waiter for &Asked {
    fn errand(&mut self) {
        self.errands.fetch_add(1, SeqCst);
    }

    fn is_called(&mut self) -> bool {
        self.call.load(SeqCst) != 0
    }

    fn look(&mut self) {
        self.calls.fetch_add(self.call.swap(0, SeqCst), SeqCst);
        sigctx::sync::wake_all(&self.calls);
    }

    fn left(&mut self) -> Option<Duration> {
        None
    }

    fn may_sleep(&mut self, changed: impl Fn() -> bool) -> bool {
        !changed()
    }
}

/// While a requester holds a task, the task's code does not run, whether it was found idle,
/// blocked or parked; and all threads end.
#[test]
fn a_held_task_does_not_run() {
    loom::model(|| {
        let task = Asked::new();
        let target = {
            let task = task.clone();
            thread::spawn(move || {
                task.start();
                task.run_code();
                task.park();
                assert!(task.word.block());
                task.unblock();
                task.run_code();
                task.word.finish();
            })
        };
        assert_ne!(task.hold(), Mode::Running);
        let before = task.steps.load(SeqCst);
        assert_eq!(before % 2, 0, "held in the middle of a step");
        loom::thread::yield_now();
        assert_eq!(task.steps.load(SeqCst), before, "the code of a held task ran");
        task.word.release();
        target.join().unwrap();
        assert_eq!(task.word.seen().mode(), Mode::Idle);
        assert!(!task.word.seen().is_wanted());
    });
}

/// A target that comes to one safe point.
fn parks_once(task: &Arc<Asked>) -> thread::JoinHandle<()> {
    let task = task.clone();
    thread::spawn(move || {
        task.start();
        task.park();
        task.word.finish();
    })
}

/// A requester that waits for a task to stop is woken by whatever the target does next.
fn wakes_its_requester(leave: impl Fn(&Asked) + Copy + Send + Sync + 'static) {
    loom::model(move || {
        let task = Asked::new();
        task.start();
        let requester = {
            let task = task.clone();
            thread::spawn(move || {
                let mode = task.hold();
                task.word.release();
                mode
            })
        };
        leave(&task);
        assert_ne!(requester.join().unwrap(), Mode::Running);
    });
}

/// P4a.
#[test]
fn a_task_that_ends_wakes_its_requester() {
    wakes_its_requester(|task| task.word.finish());
}

/// P4a.
#[test]
fn a_task_that_blocks_wakes_its_requester() {
    wakes_its_requester(|task| assert!(task.word.block()));
}

/// P4a.
#[test]
fn a_task_that_parks_wakes_its_requester() {
    wakes_its_requester(|task| {
        // As a loop in registered code, which a signal stops again and again until no requester asks: the
        // last park is the one that finds the requester.
        while !task.word.seen().is_wanted() {
            thread::yield_now();
        }
        task.park();
    });
}

/// X5. The handler of a thread that stands still has its task held, and the thread goes on afterwards.
#[test]
fn a_thread_that_stands_still_is_held_and_goes_on() {
    wakes_its_requester(|task| {
        while !task.word.rest(Mode::Parked) {
            thread::yield_now();
        }
        let gone_on = task.word.go_on(Mode::Parked, &mut { task });
        assert!(matches!(gone_on, GoOn::AtOnce | GoOn::Waited));
    });
}

/// P4a. A requester that gives up does not leave the task parked forever.
#[test]
fn giving_up_lets_the_task_go_on() {
    loom::model(|| {
        let task = Asked::new();
        let target = parks_once(&task);
        task.word.want();
        task.word.unwant();
        target.join().unwrap();
        assert_eq!(task.word.seen().mode(), Mode::Idle);
    });
}

/// P4a, P11. Two requesters hold one after the other, never together; the second is woken by the first,
/// or by the task, which has its turn in between.
#[test]
fn two_requesters_take_turns() {
    loom::model(|| {
        let task = Asked::new();
        let holders = Arc::new(AtomicU32::new(0));
        let suspend = |task: &Asked, holders: &AtomicU32| {
            task.hold();
            assert_eq!(holders.fetch_add(1, SeqCst), 0, "two holders");
            holders.fetch_sub(1, SeqCst);
            task.word.release();
        };
        let other = {
            let (task, holders) = (task.clone(), holders.clone());
            thread::spawn(move || suspend(&task, &holders))
        };
        suspend(&task, &holders);
        other.join().unwrap();
        assert!(!task.word.seen().is_wanted());
    });
}

/// P4. Whatever two requesters do, a parked task that is let go runs before it is held again.
#[test]
fn a_task_that_waits_runs_between_two_holds() {
    loom::model(|| {
        let task = Asked::new();
        // One more than what the task had done when it was last held where it was parked.
        let last = Arc::new(AtomicU32::new(0));
        task.start();
        let requesters = [(); 2].map(|()| {
            let (task, last) = (task.clone(), last.clone());
            thread::spawn(move || {
                if task.hold() == Mode::Parked {
                    let done = task.steps.load(SeqCst) + 1;
                    assert_ne!(last.swap(done, SeqCst), done, "held again before it ran");
                }
                task.word.release();
            })
        });
        for _ in 0..2 {
            task.steps.fetch_add(1, SeqCst);
            task.park();
        }
        task.steps.fetch_add(1, SeqCst);
        task.word.finish();
        for requester in requesters {
            requester.join().unwrap();
        }
    });
}

/// P4a. An errand for a parked task runs exactly once, on the target, before the task goes on.
#[test]
fn an_errand_is_served_by_the_parked_target() {
    loom::model(|| {
        let task = Asked::new();
        let target = parks_once(&task);
        if task.hold() == Mode::Parked {
            assert!(task.word.run_errand(|_| (), || Duration::MAX));
            assert_eq!(task.errands.load(SeqCst), 1);
        }
        task.word.release();
        target.join().unwrap();
    });
}

/// P5a. A holder that gives up its errand knows that it does not run, now or later.
#[test]
fn an_errand_that_is_given_up_is_not_served() {
    loom::model(|| {
        let task = Asked::new();
        let target = parks_once(&task);
        if task.hold() == Mode::Parked {
            let served = task.word.run_errand(|_| (), || Duration::ZERO);
            assert_eq!(task.errands.load(SeqCst), u32::from(served));
            task.word.release();
            target.join().unwrap();
            assert_eq!(task.errands.load(SeqCst), u32::from(served), "run after it was given up");
        } else {
            task.word.release();
            target.join().unwrap();
        }
    });
}

/// A target that waits makes the calls that its thread is asked for, wherever it waits: its holder
/// waits for that here.
fn makes_calls_while_it_waits(wait: impl Fn(&Asked) + Copy + Send + Sync + 'static) {
    loom::model(move || {
        let task = Asked::new();
        assert_eq!(task.hold(), Mode::Idle);
        let target = {
            let task = task.clone();
            thread::spawn(move || wait(&task))
        };
        task.ask_for_a_call();
        while task.calls.load(SeqCst) == 0 {
            sigctx::sync::wait(&task.calls, 0, None);
        }
        task.word.release();
        target.join().unwrap();
    });
}

/// X4.
#[test]
fn a_target_that_waits_makes_calls() {
    makes_calls_while_it_waits(Asked::start);
}

/// S1. The reader gets the words of one write, or none.
#[test]
fn what_is_seen_belongs_together() {
    loom::model(|| {
        let seen = Arc::new(Seen::new());
        let handler = seen.clone();
        let thread = thread::spawn(move || {
            handler.write([1, 1]);
            handler.write([2, 2]);
        });
        if let Some([one, other]) = seen.read() {
            assert_eq!(one, other);
        }
        thread.join().unwrap();
        assert_eq!(seen.read(), Some([2, 2]));
    });
}
