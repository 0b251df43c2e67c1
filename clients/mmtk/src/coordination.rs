//! How mmtk stops, resumes and lists the threads: all of it that is not in `safepoint`.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use mmtk::util::alloc::AllocationError;
use mmtk::util::{VMMutatorThread, VMThread, VMWorkerThread};
use mmtk::vm::{ActivePlan, Collection, GCThreadContext};
use mmtk::{Mutator, memory_manager};
use safepoint::{Reason, StopHandle, StopOptions, StoppedMutator};

use crate::check;
use crate::thread::Thread;
use crate::vm::{PATIENCE, Vm, counts, give_up, mmtk, world};

/// The stop of the collection that is under way. One worker of mmtk's begins it, and another may end it.
static PAUSE: Mutex<Option<StopHandle>> = Mutex::new(None);

fn with_pause<R>(work: impl FnOnce(&mut Option<StopHandle>) -> R) -> R {
    work(&mut PAUSE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// mmtk's part of a stopped thread; none if that only waits to become a mutator.
fn part(mutator: &StoppedMutator<'_>) -> Option<&'static mut Mutator<Vm>> {
    // SAFETY: the thread is stopped, and mmtk asks.
    Thread::stopped(mutator).map(|thread| unsafe { thread.mmtk() })
}

#[derive(Debug)]
pub(crate) struct Coordination;

impl Collection<Vm> for Coordination {
    fn stop_all_mutators<F: FnMut(&'static mut Mutator<Vm>)>(_: VMWorkerThread, visit: F) {
        let options = StopOptions::new(Reason::GC).timeout(PATIENCE);
        // The error names the threads that have not come, and what keeps each.
        let stopped =
            world().stop_from_outside_with(options).unwrap_or_else(|error| give_up(error));
        stopped.mutators().filter_map(|mutator| part(&mutator)).for_each(visit);
        stopped.hand_over(|handle| with_pause(|pause| *pause = Some(handle)));
    }

    fn resume_mutators(_: VMWorkerThread) {
        let pause = with_pause(Option::take).expect("mmtk has stopped the mutators");
        counts().collections.fetch_add(1, Relaxed);
        check::after_collection(&pause);
        pause.resume();
    }

    fn block_for_gc(_: VMMutatorThread) {
        let world = world();
        let raw = world.current().expect("mmtk asks on the mutator's thread");
        // This thread runs: the collection that it waits for has not stopped it yet.
        let before = world.stops_for(Reason::GC);
        // SAFETY: attached, and whoever allocates knows that this is a safe point.
        let in_time = unsafe { raw.blocking(|| world.wait_for_stop(before, Some(PATIENCE))) };
        if !in_time {
            give_up("no collection has ended in time");
        }
    }

    fn spawn_gc_thread(_: VMThread, context: GCThreadContext<Vm>) {
        let GCThreadContext::Worker(worker) = context;
        let tls = VMWorkerThread(VMThread::UNINITIALIZED);
        let work = move || memory_manager::start_worker(mmtk(), tls, worker);
        if let Err(error) = Builder::new().name("gc-worker".to_owned()).spawn(work) {
            give_up(error);
        }
    }

    fn out_of_memory(_: VMThread, error: AllocationError) {
        give_up(format_args!("out of memory: {error:?}"));
    }
}

impl ActivePlan<Vm> for Coordination {
    fn is_mutator(tls: VMThread) -> bool {
        // A worker's is null.
        !tls.0.is_null()
    }

    fn mutator(tls: VMMutatorThread) -> &'static mut Mutator<Vm> {
        // SAFETY: mmtk asks for threads that are attached alone.
        let thread = unsafe { Thread::of(tls) };
        // SAFETY: mmtk asks on that thread, or in a stop.
        unsafe { thread.mmtk() }
    }

    fn mutators<'a>() -> Box<dyn Iterator<Item = &'a mut Mutator<Vm>> + 'a> {
        let all: Vec<_> = with_pause(|pause| {
            let pause = pause.as_ref().expect("mmtk asks in a collection");
            pause.mutators().filter_map(|mutator| part(&mutator)).collect()
        });
        Box::new(all.into_iter())
    }

    fn number_of_mutators() -> usize {
        Self::mutators().count()
    }
}
