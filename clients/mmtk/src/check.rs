//! Is the heap what the threads think it is?

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use mmtk::memory_manager;
use safepoint::{StopError, StopHandle, StopOptions, StoppedMutator};

use crate::object::Object;
use crate::thread::{Root, Thread};
use crate::vm::{PATIENCE, counts, fault, world};

/// How long the checks in collections' pauses took, in nanoseconds.
pub(crate) fn times() -> MutexGuard<'static, Histogram<u64>> {
    static TIMES: LazyLock<Mutex<Histogram<u64>>> =
        LazyLock::new(|| Mutex::new(Histogram::new(2).expect("two digits can be had")));
    TIMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the heap in a collection's pause, at its end.
pub(crate) fn after_collection(pause: &StopHandle) {
    let start = Instant::now();
    pause.mutators().for_each(|mutator| thread(&mutator));
    counts().checks.fetch_add(1, Relaxed);
    times().record(start.elapsed().as_nanos() as u64).expect("it grows");
}

/// Checks the heap between collections, in a stop that competes with theirs for its turn.
pub(crate) fn audit() -> Result<(), StopError> {
    let stopped = world().stop_from_outside_with(StopOptions::new("audit").timeout(PATIENCE))?;
    stopped.mutators().for_each(|mutator| thread(&mutator));
    counts().checks.fetch_add(1, Relaxed);
    Ok(())
}

/// Follows all references from the roots of a stopped thread.
fn thread(mutator: &StoppedMutator<'_>) {
    let Some(thread) = Thread::stopped(mutator) else { return };
    for root in &thread.roots {
        match follow(root) {
            Ok(met) => _ = counts().checked.fetch_add(met, Relaxed),
            Err(what) => {
                let (name, collections) = (mutator.thread().name(), &counts().collections);
                fault(format_args!("{name}, after {collections:?} collections: {what}"));
            }
        }
    }
}

/// How many objects a root's list has. In a stop.
fn follow(root: &Root) -> Result<usize, String> {
    let (mut met, mut sum) = (HashSet::new(), 0_u64);
    let mut left: Vec<_> = root.list.get().into_iter().collect();
    while let Some(reference) = left.pop() {
        if !met.insert(reference) {
            continue;
        }
        if memory_manager::is_mmtk_object(reference.to_raw_address()).is_none() {
            return Err(format!("a reference to {reference}, where the collector has no object"));
        }
        // SAFETY: it is one, as mmtk says, and the world is stopped.
        let object = unsafe { Object::of(reference) };
        if !object.is_sound() {
            return Err(format!("{reference} was overwritten"));
        }
        sum = sum.wrapping_add(object.value);
        left.extend(object.refs.iter().filter_map(Cell::get));
    }
    let (objects, expected) = (root.objects.get(), root.sum.get());
    if (met.len(), sum) != (objects, expected) {
        let met = met.len();
        return Err(format!(
            "{met} objects of the sum {sum:#x} where there should be {objects} of {expected:#x}"
        ));
    }
    Ok(met.len())
}
