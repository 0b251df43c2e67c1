//! The VM as a whole: its world, its collector, and what it counts.

use std::fmt::Display;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use mmtk::{MMTK, MMTKBuilder};
use safepoint::World;

/// The VM, to mmtk. Its traits are in `binding` and `coordination`.
#[derive(Debug, Default)]
pub(crate) struct Vm;

/// No thread waits longer for another: by then something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to the heap.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Collections whose mutators were resumed, or are about to be.
    pub(crate) collections: AtomicUsize,
    /// Objects that the collector has moved.
    pub(crate) moved: AtomicUsize,
    /// Checks of the heap, in collections and between them.
    pub(crate) checks: AtomicUsize,
    /// Objects that these checks have met.
    pub(crate) checked: AtomicUsize,
    /// Objects that mutators have looked at again, outside of stops.
    pub(crate) looked_at: AtomicUsize,
    /// What was wrong.
    pub(crate) faults: AtomicUsize,
}

pub(crate) fn counts() -> &'static Counts {
    static COUNTS: OnceLock<Counts> = OnceLock::new();
    COUNTS.get_or_init(Counts::default)
}

/// The threads that are stopped together.
pub(crate) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

static MMTK: OnceLock<&'static MMTK<Vm>> = OnceLock::new();

/// The collector, which has been started.
pub(crate) fn mmtk() -> &'static MMTK<Vm> {
    MMTK.get().expect("the collector is started before the threads")
}

/// Starts the collector: `heap` is in bytes.
pub(crate) fn start(plan: &str, heap: usize, workers: usize) {
    let mut builder = MMTKBuilder::new_no_env_vars();
    let mut set = |option, value: &str| assert!(builder.set_option(option, value), "{option}");
    set("plan", plan);
    set("threads", &workers.to_string());
    set("gc_trigger", &format!("FixedHeapSize:{heap}"));
    // Each collection moves what it can: a reference that a stop has missed does not stay right by chance.
    set("immix_always_defrag", "true");
    set("immix_defrag_every_block", "true");
    set("immix_defrag_headroom_percent", "50");
    let mmtk = Box::leak(mmtk::memory_manager::mmtk_init::<Vm>(&builder));
    assert!(MMTK.set(mmtk).is_ok(), "the collector is started once");
    mmtk::memory_manager::initialize_collection(mmtk, mmtk::util::VMThread::UNINITIALIZED);
}

/// Says what is wrong. The run ends with a failure.
pub(crate) fn fault(what: impl Display) {
    eprintln!("fault: {what}");
    counts().faults.fetch_add(1, Relaxed);
}

/// Says what is wrong where nobody can go on.
pub(crate) fn give_up(what: impl Display) -> ! {
    fault(what);
    process::exit(1)
}
