//! Models of the protocol, run by loom: the code of `hold` itself, with a kernel made of a mutex in place
//! of `/proc` and signals.

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use sigctx::sync::{self, AtomicU32};

use crate::hold::{Hold, Joined, Pass, Release, ThreadGroup, broadcast, gather};
use crate::system::System;

/// `sigctx`'s model of the kernel: a sleeper is woken only by a wake, so that a lost wake-up is a deadlock,
/// which loom reports.
struct Model;

impl System for Model {
    type Timeout = ();

    fn wait(&self, word: &AtomicU32, expected: u32, _number: u32) -> bool {
        sync::wait(word, expected, None);
        false
    }

    fn wait_for(&self, word: &AtomicU32, expected: u32, (): ()) {
        sync::wait(word, expected, None);
    }

    fn wake_one(&self, word: &AtomicU32) {
        sync::wake_one(word);
    }

    fn wake_all(&self, word: &AtomicU32) {
        sync::wake_all(word);
    }
}

/// Explores with no more than `preemptions` of a running thread.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What the threads of a model share.
struct Shared {
    hold: Hold,
    /// Plain memory that the requester writes and held threads read: loom reports a race if the
    /// protocol does not order them.
    call: UnsafeCell<u32>,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self { hold: Hold::new(), call: UnsafeCell::new(0) })
    }

    /// Has all that are held run the calls.
    fn execute(&self, release: Release) {
        self.hold.command(&Model, release);
        self.hold.await_done(&Model, || ());
    }

    /// Begins, and waits for as long as it takes.
    fn begin(&self, prepare: impl FnOnce()) {
        self.begin_in(Release::Together, prepare);
    }

    fn begin_in(&self, release: Release, prepare: impl FnOnce()) {
        assert!(self.hold.begin(&Model, release, || Some(()), prepare));
    }

    /// Ends a one-phase operation, and returns how many have joined it.
    fn shut(&self) -> u32 {
        let joined = self.hold.shut();
        self.hold.await_done(&Model, || ());
        self.hold.finish(&Model);
        joined
    }

    fn set_call(&self, to: u32) {
        // SAFETY: loom checks that no thread reads at the same time; that is the model's point.
        self.call.with_mut(|call| unsafe { *call = to });
    }

    /// What a handler does. Returns what it executed.
    fn deliver(&self) -> Option<u32> {
        let joined = self.hold.join(|| false)?;
        self.take_part(joined, || ())
    }

    /// What a handler does on a thread that has joined. `act` is a part of the call.
    fn take_part(&self, joined: Joined, act: impl FnOnce()) -> Option<u32> {
        if let Joined::Held(number) = joined {
            self.hold.arrived(&Model, number);
        }
        let mut executed = None;
        let run = || {
            // SAFETY: loom checks that no thread writes at the same time.
            executed = Some(self.call.with(|call| unsafe { *call }));
            act();
        };
        self.hold.stay(&Model, joined, run, || (), |_| ());
        executed
    }
}

/// Waits until `count` threads are held and closes the gate.
fn hold_all(shared: &Shared, count: u32) {
    while !shared.hold.close(count) {
        shared.hold.await_arrivals(&Model, count, ());
    }
}

fn execute_once_and_leave(release: Release) {
    explore(2, move || {
        let shared = Shared::new();
        shared.begin(|| shared.set_call(0));
        let threads = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        });
        hold_all(&shared, 2);
        shared.set_call(7);
        shared.execute(release);
        shared.hold.finish(&Model);
        // The next operation may write only when both have left.
        shared.begin(|| shared.set_call(8));
        shared.hold.roll_back(&Model);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Some(7));
        }
    });
}

/// All that are held execute once, none is left behind asleep, and none reads the calls while
/// they are written.
#[test]
fn held_threads_execute_once_and_leave_together() {
    execute_once_and_leave(Release::Together);
}

#[test]
fn held_threads_execute_once_and_leave_each() {
    execute_once_and_leave(Release::Each);
}

/// In one phase each runs the call when it comes. The requester that waits for both is woken by the last.
#[test]
fn threads_of_one_phase_execute_when_they_come() {
    explore(2, || {
        let shared = Shared::new();
        shared.begin_in(Release::AtOnce, || shared.set_call(7));
        let threads = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        });
        while shared.hold.acts() < 2 {
            shared.hold.await_acts(&Model, 2, ());
        }
        assert_eq!(shared.shut(), 2);
        // The next operation may write only when both have left.
        shared.begin(|| shared.set_call(8));
        shared.hold.roll_back(&Model);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Some(7));
        }
    });
}

/// Threads come while the requester of one phase gives up: those that have joined run the call, and are
/// waited for, and no other one does. The next operation begins when they have left.
#[test]
fn no_thread_executes_when_one_phase_is_over() {
    explore(2, || {
        let shared = Shared::new();
        shared.begin_in(Release::AtOnce, || shared.set_call(7));
        let threads = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        });
        let joined = shared.shut();
        // Their call is over: what it points to may be gone.
        shared.set_call(0);
        shared.begin(|| shared.set_call(8));
        shared.hold.roll_back(&Model);
        let executed: Vec<_> = threads.map(|t| t.join().unwrap()).into_iter().flatten().collect();
        assert_eq!(executed, vec![7; joined as usize]);
    });
}

/// Threads that come while the requester gives up either joined, and are let go, or are too late; the
/// next operation is executed by exactly those that it counts.
#[test]
fn a_late_joiner_and_a_roll_back_cannot_both_win() {
    explore(2, || {
        let shared = Shared::new();
        shared.begin(|| shared.set_call(1));
        let threads = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        });
        shared.hold.roll_back(&Model);
        // Waits for those that joined: `set_call` must not race with them.
        shared.begin(|| shared.set_call(2));
        let mut held = shared.hold.arrivals();
        if shared.hold.close(held) {
            shared.execute(Release::Together);
            shared.hold.finish(&Model);
        } else {
            held = 0;
            shared.hold.roll_back(&Model);
        }
        let executed: Vec<_> = threads.map(|t| t.join().unwrap()).into_iter().flatten().collect();
        assert_eq!(executed, vec![2; held as usize]);
    });
}

/// A thread that was let go stays in its handler, as under a debugger, and goes on only when an
/// operation has given up waiting for it. That operation touches nothing; the next one waits.
#[test]
fn a_thread_that_does_not_leave_is_not_waited_for_past_the_deadline() {
    explore(2, || {
        let shared = Shared::new();
        let gave_up = Arc::new((Mutex::new(false), Condvar::new()));
        shared.begin(|| shared.set_call(1));
        let thread = {
            let (shared, gave_up) = (Arc::clone(&shared), Arc::clone(&gave_up));
            thread::spawn(move || {
                let joined = shared.hold.join(|| false).unwrap();
                shared.hold.arrived(&Model, joined.number());
                let mut over = gave_up.0.lock().unwrap();
                while !*over {
                    over = gave_up.1.wait(over).unwrap();
                }
                drop(over);
                // An operation that gives up leaves what is in use alone.
                // SAFETY: loom checks that no thread writes at the same time.
                assert_eq!(shared.call.with(|call| unsafe { *call }), 1);
                shared.hold.stay(&Model, joined, || panic!("rolled back"), || (), |_| ());
            })
        };
        while shared.hold.arrivals() == 0 {
            shared.hold.await_arrivals(&Model, 1, ());
        }
        shared.hold.roll_back(&Model);
        assert!(!shared.hold.begin(&Model, Release::Together, || None, || shared.set_call(2)));
        *gave_up.0.lock().unwrap() = true;
        gave_up.1.notify_all();
        shared.begin(|| shared.set_call(3));
        shared.hold.roll_back(&Model);
        thread.join().unwrap();
    });
}

/// A signal of an operation that was rolled back is delivered during the next one: its thread is
/// then held by that one, and executes that one's call.
#[test]
fn a_stale_signal_joins_the_next_operation_or_none() {
    explore(3, || {
        let shared = Shared::new();
        shared.begin(|| shared.set_call(1));
        let other = {
            let shared = Arc::clone(&shared);
            // The stale signal, and the one that the second operation sends.
            thread::spawn(move || [shared.deliver(), shared.deliver()])
        };
        shared.hold.roll_back(&Model);
        shared.begin(|| shared.set_call(2));
        let held = shared.hold.arrivals();
        if held == 1 && shared.hold.close(held) {
            shared.execute(Release::Together);
            shared.hold.finish(&Model);
            let executed = other.join().unwrap();
            assert_eq!(executed.iter().flatten().copied().collect::<Vec<_>>(), [2]);
        } else {
            shared.hold.roll_back(&Model);
            assert_eq!(other.join().unwrap(), [None, None]);
        }
    });
}

/// How far a requester comes before it is killed.
#[derive(Clone, Copy)]
enum End {
    Gathering,
    Closed,
    Commanded(Release),
}

/// Two threads are held by a requester that ends. The heir of the lock lets both go, and both have run the
/// call or none has.
fn the_operation_of_a_dead_requester_is_ended(end: End) {
    explore(2, move || {
        let shared = Shared::new();
        shared.begin(|| shared.set_call(7));
        let threads = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        });
        while shared.hold.arrivals() < 2 {
            shared.hold.await_arrivals(&Model, 2, ());
        }
        match end {
            End::Gathering => {}
            End::Closed => assert!(shared.hold.close(2)),
            End::Commanded(release) => {
                assert!(shared.hold.close(2));
                shared.hold.command(&Model, release);
            }
        }
        shared.hold.recover(&Model, || ());
        // The next operation may write only when both have left.
        shared.begin(|| shared.set_call(8));
        shared.hold.roll_back(&Model);
        let executed = threads.map(|thread| thread.join().unwrap());
        let expected = if matches!(end, End::Commanded(_)) { Some(7) } else { None };
        assert_eq!(executed, [expected; 2]);
    });
}

#[test]
fn a_requester_that_ends_while_it_gathers_leaves_no_thread_behind() {
    the_operation_of_a_dead_requester_is_ended(End::Gathering);
}

#[test]
fn a_requester_that_ends_in_its_calls_leaves_no_thread_behind() {
    the_operation_of_a_dead_requester_is_ended(End::Closed);
}

#[test]
fn a_requester_that_ends_while_others_run_the_calls_lets_all_run_them() {
    the_operation_of_a_dead_requester_is_ended(End::Commanded(Release::Together));
}

#[test]
fn a_requester_that_ends_while_others_run_the_calls_lets_each_run_them() {
    the_operation_of_a_dead_requester_is_ended(End::Commanded(Release::Each));
}

/// One of two held threads is killed before it has run the call: no thread waits for it, and the next
/// operation begins when the other one has left.
#[test]
fn a_held_thread_that_ends_is_not_waited_for() {
    explore(2, || {
        let shared = Shared::new();
        shared.begin(|| shared.set_call(7));
        assert_eq!(shared.hold.join(|| false), Some(Joined::Held(1)));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.deliver())
        };
        hold_all(&shared, 2);
        shared.hold.command(&Model, Release::Together);
        let mut buried = false;
        shared.hold.await_done(&Model, || {
            if !std::mem::replace(&mut buried, true) {
                shared.hold.bury(true);
            }
        });
        shared.hold.finish(&Model);
        shared.begin(|| shared.set_call(8));
        shared.hold.roll_back(&Model);
        assert_eq!(other.join().unwrap(), Some(7));
    });
}

/// The kernel of the clone model: which threads live and have a signal pending, and each one's copy of
/// the attribute that the call increments.
#[derive(Default)]
struct Tasks {
    alive: [bool; 3],
    pending: [bool; 3],
    value: [u32; 3],
    /// The marks of a one-phase operation.
    joined: [bool; 3],
    acted: [bool; 3],
    finished: bool,
}

struct Machine {
    shared: Arc<Shared>,
    tasks: Mutex<Tasks>,
    changed: Condvar,
}

const REQUESTER: usize = 0;
const PARENT: usize = 1;
const CHILD: usize = 2;

impl Machine {
    /// Runs the handler if a signal is pending for `me`.
    fn interrupts(&self, me: usize) {
        let mut tasks = self.tasks.lock().unwrap();
        if !std::mem::take(&mut tasks.pending[me]) {
            return;
        }
        let Some(joined) = self.shared.hold.join(|| tasks.acted[me]) else { return };
        tasks.joined[me] = true;
        drop(tasks);
        self.shared.take_part(joined, || {
            let mut tasks = self.tasks.lock().unwrap();
            tasks.value[me] += 1;
            tasks.acted[me] |= matches!(joined, Joined::Free(_));
        });
    }

    /// User code that goes on until the requester has finished, interrupted by signals.
    fn run_until_finished(&self, me: usize) {
        loop {
            self.interrupts(me);
            let mut tasks = self.tasks.lock().unwrap();
            while !tasks.finished && !tasks.pending[me] {
                tasks = self.changed.wait(tasks).unwrap();
            }
            if tasks.finished && !tasks.pending[me] {
                return;
            }
        }
    }
}

struct Census<'a> {
    machine: &'a Machine,
    signalled: [bool; 3],
    listed: [bool; 3],
}

impl ThreadGroup for Census<'_> {
    type Error = ();

    fn bystanders(&mut self) -> Result<u32, ()> {
        Ok(0)
    }

    fn population(&mut self) -> Result<u32, ()> {
        let tasks = self.machine.tasks.lock().unwrap();
        Ok(tasks.alive.iter().filter(|alive| **alive).count() as u32)
    }

    fn dead(&mut self, _hold: &Hold, _all: bool) -> u32 {
        0
    }

    fn summon(&mut self, _hold: &Hold) -> Result<(), ()> {
        let mut tasks = self.machine.tasks.lock().unwrap();
        for tid in [PARENT, CHILD] {
            if tasks.alive[tid] && !self.signalled[tid] {
                self.signalled[tid] = true;
                tasks.pending[tid] = true;
            }
        }
        drop(tasks);
        self.machine.changed.notify_all();
        Ok(())
    }

    fn pause(&mut self, hold: &Hold, target: u32) -> Result<(), ()> {
        if hold.is_open() {
            // The number is a hint, which elsewhere a sleep that ends by itself makes up for.
            hold.await_acts(&Model, target.min(hold.acts() + 1), ());
        } else {
            hold.await_arrivals(&Model, target, ());
        }
        Ok(())
    }

    fn pass(&mut self, hold: &Hold) -> Result<Pass, ()> {
        let mut pass = Pass { listed: 0, again: 0, awaited: 0, acting: 0 };
        // Not at one moment.
        for tid in [REQUESTER, PARENT, CHILD] {
            let tasks = self.machine.tasks.lock().unwrap();
            let listed = tasks.alive[tid];
            pass.listed += u32::from(listed);
            pass.again += u32::from(listed && self.listed[tid]);
            let acted = tid == REQUESTER || tasks.acted[tid];
            pass.awaited += u32::from(listed && !acted && !tasks.joined[tid]);
            pass.acting += u32::from(listed && !acted && tasks.joined[tid]);
            self.listed[tid] = listed;
        }
        self.summon(hold)?;
        Ok(pass)
    }
}

/// A thread that clones another one, which inherits the attribute, at any moment of an operation on both.
fn clone_beside(operation: impl Fn(&Machine, &mut Census<'_>) + Send + Sync + 'static, most: u32) {
    explore(2, move || {
        let mut tasks = Tasks::default();
        tasks.alive[REQUESTER] = true;
        tasks.alive[PARENT] = true;
        let machine = Arc::new(Machine {
            shared: Shared::new(),
            tasks: Mutex::new(tasks),
            changed: Condvar::new(),
        });
        let parent = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                machine.interrupts(PARENT);
                // clone: the child is counted, with its parent's attribute, before it returns.
                let mut tasks = machine.tasks.lock().unwrap();
                tasks.value[CHILD] = tasks.value[PARENT];
                tasks.alive[CHILD] = true;
                drop(tasks);
                let child = {
                    let machine = Arc::clone(&machine);
                    thread::spawn(move || machine.run_until_finished(CHILD))
                };
                machine.run_until_finished(PARENT);
                child.join().unwrap();
            })
        };
        let mut census = Census { machine: &machine, signalled: [false; 3], listed: [false; 3] };
        operation(&machine, &mut census);
        machine.tasks.lock().unwrap().finished = true;
        machine.changed.notify_all();
        parent.join().unwrap();
        let [requester, parent, child] = machine.tasks.lock().unwrap().value;
        assert_eq!((requester, parent), (1, 1));
        assert!((1..=most).contains(&child), "{child}");
    });
}

/// Afterwards every thread has it incremented exactly once.
#[test]
fn exactly_once_through_clone() {
    let operation = |machine: &Machine, census: &mut Census<'_>| {
        let shared = &machine.shared;
        shared.begin(|| shared.set_call(1));
        let held = gather(&shared.hold, census).unwrap();
        machine.tasks.lock().unwrap().value[REQUESTER] += 1;
        if held > 0 {
            shared.execute(Release::Together);
        }
        shared.hold.finish(&Model);
    };
    clone_beside(operation, 1);
}

/// In one phase every thread has it afterwards, and one that was made meanwhile may have it twice.
#[test]
fn in_one_phase_at_least_once_through_clone() {
    let operation = |machine: &Machine, census: &mut Census<'_>| {
        let shared = &machine.shared;
        machine.tasks.lock().unwrap().value[REQUESTER] += 1;
        shared.begin_in(Release::AtOnce, || shared.set_call(1));
        broadcast(&shared.hold, census).unwrap();
        shared.shut();
    };
    clone_beside(operation, 2);
}
