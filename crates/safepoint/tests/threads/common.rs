//! What the tests share: mutators on threads of their own, and waiting for them to get somewhere.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use safepoint::{Mutator, RawMutator, World};
use testkit::patience;
use threadreg::{Nudge, NudgeCall, NudgeError, NudgeOutcome, ThreadRef};

/// Answers each nudge with the same. One that is sent is never handled.
pub(crate) struct Says(pub(crate) Result<(), NudgeError>, pub(crate) AtomicU32);

impl Nudge for Says {
    fn nudge(
        &self,
        _thread: ThreadRef,
        _call: NudgeCall,
        _wanted: &dyn Fn() -> bool,
    ) -> Result<(), NudgeError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0
    }

    fn settle(&self, _timeout: Duration) -> bool {
        true
    }

    fn outcome(&self, _thread: ThreadRef) -> NudgeOutcome {
        NudgeOutcome::NotHandled
    }
}

/// A flag that threads wait for.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Waits for the flag; panics when it does not come.
    pub(crate) fn wait(&self) {
        eventually(|| self.is_up());
    }
}

/// Waits until `what` holds; panics after ten seconds, with patience.
pub(crate) fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < patience(Duration::from_secs(10)), "waited in vain");
        thread::yield_now();
    }
}

/// Runs `work` as a mutator on a thread of its own, and returns once it is attached.
pub(crate) fn mutator<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    world: &World,
    name: &str,
    work: impl FnOnce(&mut Mutator) -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let (world, (tell, told)) = (world.clone(), std::sync::mpsc::channel());
    let thread = thread::Builder::new().name(name.to_owned());
    let handle = thread.spawn_scoped(scope, move || {
        let mut mutator = world.attach().expect("a thread of its own");
        tell.send(()).expect("the test waits");
        work(&mut mutator)
    });
    let handle = handle.expect("room for a thread");
    told.recv().expect("the mutator attaches");
    handle
}

/// A mutator that is in a safe region until the flag is up.
pub(crate) fn away<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    world: &World,
    name: &str,
    until: &'scope Flag,
) -> ScopedJoinHandle<'scope, ()> {
    let (tell, told) = std::sync::mpsc::channel();
    let handle = mutator(scope, world, name, move |mutator| {
        mutator.blocking(|| {
            tell.send(()).expect("the test waits");
            until.wait();
        });
    });
    told.recv().expect("it enters its region");
    handle
}

/// Polls until the flag is up.
pub(crate) fn poll_until(mutator: &mut Mutator, flag: &Flag) {
    while !flag.is_up() {
        mutator.poll();
        thread::yield_now();
    }
}

/// Waits until a requester has asked the mutator, which runs.
pub(crate) fn wait_until_asked(m: &Mutator) {
    let word = m.as_raw().poll_word();
    // SAFETY: the mutator lives.
    let asked = || unsafe { &*word }.load(Ordering::Relaxed) & RawMutator::POLL_MASK != 0;
    eventually(asked);
}
