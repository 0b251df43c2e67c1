//! Which slices are over: the thread that looks, and what it shares with those that run tasks.
//!
//! | word | writers | readers | ordering | invariant |
//! |---|---|---|---|---|
//! | `is_idle` | slicer → 1; who enters a task → 0 | who enters a task | sequentially consistent | 1: the slicer has found no run since it was set, or looks once more |
//! | `stirs` | who has something for the slicer, +1 | slicer, which sleeps on it | sequentially consistent | changed after what it is to find |
//! | `is_off`, `is_over` | holder of the turn; the slicer's owner | slicer | sequentially consistent | looked at after `stirs` |

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use core::time::Duration;

use arc_swap::ArcSwapOption;
use sigctx::fork::process;
use sigctx::sync::{self, Mutex};
use threadreg::ThreadRef;
use threadreg::procfs::TaskDir;

use crate::clock;
use crate::place::Place;
use crate::thread::ThreadState;

/// What the slicer shares with its tasks.
#[derive(Debug)]
pub(crate) struct Slices {
    /// Not 0.
    id: u32,
    /// In microseconds.
    slice: u32,
    /// Of a pass, and of a change of `is_off`.
    turn: Mutex,
    is_idle: AtomicBool,
    is_off: AtomicBool,
    is_over: AtomicBool,
    stirs: AtomicU32,
}

/// The calling thread runs the task of `place` from now on: its time counts, and its slice begins, if anyone ends it.
#[inline(never)] // see the documentation of `thread`
pub(crate) fn start(slicer: &ArcSwapOption<Slices>, place: &Place) {
    let slicer = slicer.load();
    let Some(slicer) = slicer.as_deref() else { return };
    let Some(state) = threadreg::current().and_then(ThreadState::get) else { return };
    if !state.slice.is_running() {
        place.count_from(clock::nanos());
        slicer.begin(state);
    }
}

/// The calling thread does not run the task of `place` from now on.
#[inline(never)] // see the documentation of `thread`
pub(crate) fn stop(place: &Place) {
    let Some(state) = threadreg::current().and_then(ThreadState::get) else { return };
    if state.slice.is_running() {
        state.slice.end();
        place.count_until(clock::nanos());
    }
}

/// The threads that a task has been on.
fn states() -> impl Iterator<Item = (ThreadRef, &'static ThreadState)> {
    threadreg::threads().filter_map(|thread| Some((thread, ThreadState::get(thread)?)))
}

impl Slices {
    /// `slice` in microseconds. `id` is not 0.
    pub(crate) fn new(id: u32, slice: u32) -> Self {
        Self {
            id,
            slice,
            turn: Mutex::new(),
            is_idle: AtomicBool::new(false),
            is_off: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            stirs: AtomicU32::new(0),
        }
    }

    pub(crate) fn slice(&self) -> Duration {
        Duration::from_micros(self.slice.into())
    }

    pub(crate) fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Relaxed)
    }

    /// When this has returned no slice ends any more.
    pub(crate) fn turn_off(&self) {
        let _turn = self.turn.guard(process());
        self.is_off.store(true, Ordering::SeqCst);
        for (_, state) in states() {
            state.slice.take_back(self.id);
        }
    }

    pub(crate) fn turn_on(&self) {
        self.is_off.store(false, Ordering::SeqCst);
        self.stir();
    }

    /// Ends the slicer's thread.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.stir();
    }

    /// The thread with `state`, which is the calling one, begins a run of a task of this slicer.
    fn begin(&self, state: &ThreadState) {
        state.slice.begin(self.id, clock::micros());
        // Partner: the fence in `next`. Either the slicer finds the run, or this finds it idle.
        fence(Ordering::SeqCst);
        if self.is_idle.load(Ordering::Relaxed) && self.is_idle.swap(false, Ordering::SeqCst) {
            self.stir();
        }
    }

    fn stir(&self) {
        self.stirs.fetch_add(1, Ordering::SeqCst);
        sync::wake_all(&self.stirs);
    }

    /// The slicer's thread, until it is to end.
    pub(crate) fn run(&self) {
        // Without it, threads that sleep are interrupted, too.
        let tasks = TaskDir::open().ok();
        loop {
            // Before the looks: what comes after them changes it.
            let seen = self.stirs.load(Ordering::SeqCst);
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let next = self.next(tasks.as_ref());
            sync::wait(&self.stirs, seen, next);
        }
    }

    /// Ends the slices that are over, and says how long it is until the next one may be. `None`: nothing runs.
    fn next(&self, tasks: Option<&TaskDir>) -> Option<Duration> {
        self.pass(tasks).or_else(|| {
            self.is_idle.store(true, Ordering::SeqCst);
            // Partner: the fence in `begin`.
            fence(Ordering::SeqCst);
            let next = self.pass(tasks)?;
            self.is_idle.store(false, Ordering::SeqCst);
            Some(next)
        })
    }

    fn pass(&self, tasks: Option<&TaskDir>) -> Option<Duration> {
        let _turn = self.turn.guard(process());
        if self.is_off.load(Ordering::SeqCst) {
            return None;
        }
        let mut next: Option<u32> = None;
        for (thread, state) in states() {
            let now = clock::micros();
            let Some(run) = state.slice.look(self.id, now) else { continue };
            // What has been told of the end of its slice is told again after another.
            let since = run.told.unwrap_or(run.age);
            let left = self.slice.saturating_sub(since);
            if left == 0 && is_computing(tasks, thread) {
                state.slice.tell(run, now);
                // It comes to its polls without a signal, too, and what cannot be signalled ends soon.
                let _sent = ThreadState::signal(thread, || state.slice.is_over());
            }
            let left = if left == 0 { self.slice } else { left };
            next = Some(next.map_or(left, |next| next.min(left)));
        }
        next.map(|micros| Duration::from_micros(micros.into()))
    }
}

/// Whether the thread has a processor, or waits for one. In a system call it may be interrupted by a signal.
fn is_computing(tasks: Option<&TaskDir>, thread: ThreadRef) -> bool {
    let stat = tasks.zip(thread.tid()).map(|(tasks, tid)| tasks.stat(tid));
    !matches!(stat, Some(Ok(stat)) if stat.state != 'R')
}
