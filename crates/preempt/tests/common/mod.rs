//! A loop without polls, and a thread that runs it as a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use preempt::{CodeRange, Task};
use threadreg::JoinHandle;

/// Long enough for any answer that is to come at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What a spinning thread counts, and what ends it.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    pub(crate) stop: AtomicBool,
    pub(crate) count: AtomicUsize,
}

/// Counts until told to stop. Every instruction is a safe point.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
pub(crate) fn spin_without_polls(spin: &Spin) {
    while !spin.stop.load(Relaxed) {
        // Wrapping: with a path to a panic the function has a frame on that path alone, and the tables
        // of some architectures know functions at their calls only.
        spin.count.store(spin.count.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// Has a name that a backtrace can be searched for.
#[inline(never)]
pub(crate) fn caller_of_the_spin(spin: &Spin) {
    spin_without_polls(spin);
    std::hint::black_box(spin);
}

/// Installs the handler and registers [`spin_without_polls`].
pub(crate) fn set_up() -> CodeRange {
    preempt::install().expect("SIGURG handler");
    // SAFETY: the section holds `spin_without_polls` alone: no locks, the thread's own stack.
    unsafe { preempt::register_code(preempt::preemptible_section!()) }.expect("registered once")
}

/// A thread that spins as `task` until it is told to stop.
pub(crate) struct Spinner {
    pub(crate) task: Task,
    pub(crate) spin: Arc<Spin>,
    pub(crate) thread: JoinHandle<()>,
}

impl Spinner {
    pub(crate) fn start(name: &str, task: Task) -> Self {
        let spin = Arc::new(Spin::default());
        let thread = {
            let (task, spin) = (task.clone(), spin.clone());
            threadreg::Builder::new()
                .name(name.to_owned())
                .spawn(move || task.enter(|| caller_of_the_spin(&spin)).expect("enters its task"))
                .expect("spawn")
        };
        let spinner = Self { task, spin, thread };
        spinner.progress();
        spinner
    }

    pub(crate) fn count(&self) -> usize {
        self.spin.count.load(Relaxed)
    }

    /// Waits until the loop has gone on.
    pub(crate) fn progress(&self) {
        let before = self.count();
        until("the loop goes on", || self.count() != before);
    }

    pub(crate) fn end(self) {
        self.spin.stop.store(true, Relaxed);
        self.thread.join().expect("spinner");
    }
}

/// Waits for `what`; fails when it does not come.
pub(crate) fn until(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < testkit::patience(SOON), "waited in vain until {what}");
        thread::yield_now();
    }
}
