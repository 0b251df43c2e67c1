//! What threads pay while nothing is asked: poll, safe region, `current`, a guard against preemption.
//! Each beside the least that could do, in turns, in one thread.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence, fence};

use benches::Series;
use safepoint::{Mutator, World, WorldOptions};

use crate::threads::Limits;

/// Repetitions a sample: a hundred microseconds or so.
const BATCH: u32 = 100_000;

/// The work of a loop: one store.
static WORK: AtomicU32 = AtomicU32::new(0);
static FLAG: AtomicU32 = AtomicU32::new(0);
static STATE: AtomicU32 = AtomicU32::new(0);

/// Else the compiler drops the stores, since nothing reads them.
fn have_them_read() {
    black_box([&WORK, &STATE, &FLAG]);
}

/// # Panics
///
/// The thread cannot attach.
fn mutator(world: &World) -> Mutator {
    world.attach().expect("attaches")
}

#[cold]
#[inline(never)]
fn asked() {
    compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
fn look() {
    if FLAG.load(Ordering::Relaxed) != 0 {
        asked();
    }
}

/// A poll in a loop of one store, and a load with a branch in its place.
pub(crate) fn poll(limits: &Limits) -> Vec<Series> {
    #[inline(never)]
    fn ours(mutator: &mut Mutator, times: u32) {
        for i in 0..times {
            WORK.store(i, Ordering::Relaxed);
            mutator.poll();
        }
    }
    #[inline(never)]
    fn load(times: u32) {
        for i in 0..times {
            WORK.store(i, Ordering::Relaxed);
            look();
        }
    }
    #[inline(never)]
    fn bare(times: u32) {
        for i in 0..times {
            WORK.store(i, Ordering::Relaxed);
        }
    }
    have_them_read();
    let mut me = mutator(&World::new());
    limits.sides(
        BATCH,
        &mut [
            ("ours", &mut |times| ours(&mut me, times)),
            ("load", &mut |times| load(times)),
            ("loop", &mut |times| bare(times)),
        ],
    )
}

#[inline(never)]
fn regions(mutator: &mut Mutator, times: u32) {
    for _ in 0..times {
        mutator.blocking(|| ());
    }
}

/// What a region cannot do without: two stores, and a look.
#[inline(never)]
fn stores(times: u32) {
    for _ in 0..times {
        STATE.store(1, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        STATE.store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        look();
    }
}

/// The same with a fence at its end, as HotSpot leaves native code.
#[inline(never)]
fn one_fence(times: u32) {
    for _ in 0..times {
        STATE.store(1, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        STATE.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        look();
    }
}

/// A safe region with nothing in it.
pub(crate) fn region(limits: &Limits) -> Vec<Series> {
    have_them_read();
    let mut me = mutator(&World::new());
    limits.sides(
        BATCH,
        &mut [
            ("ours", &mut |times| regions(&mut me, times)),
            ("stores", &mut |times| stores(times)),
            ("mfence", &mut |times| one_fence(times)),
        ],
    )
}

/// The same in a world whose threads fence for themselves.
pub(crate) fn region_full(limits: &Limits) -> Vec<Series> {
    have_them_read();
    let mut me = mutator(&World::fully_fenced());
    limits.sides(
        BATCH / 4,
        &mut [
            ("ours", &mut |times| regions(&mut me, times)),
            ("mfence", &mut |times| one_fence(times)),
        ],
    )
}

/// The same in a world whose mutators say where they stand, and in one where they do not.
pub(crate) fn region_roots(limits: &Limits) -> Vec<Series> {
    let mut says = mutator(&World::with_options(WorldOptions::new().roots()));
    let mut silent = mutator(&World::new());
    limits.sides(
        BATCH / 4,
        &mut [
            ("ours", &mut |times| regions(&mut says, times)),
            ("silent", &mut |times| regions(&mut silent, times)),
        ],
    )
}

thread_local! {
    static PLAIN: Cell<usize> = const { Cell::new(1) };
}

/// The calling thread's record, and a thread-local's value.
pub(crate) fn current(limits: &Limits) -> Vec<Series> {
    #[inline(never)]
    fn ours(times: u32) {
        for _ in 0..times {
            black_box(threadreg::current());
        }
    }
    #[inline(never)]
    fn local(times: u32) {
        for _ in 0..times {
            black_box(PLAIN.get());
        }
    }
    let _attached = threadreg::attach().expect("attaches");
    limits.sides(
        BATCH,
        &mut [("ours", &mut |times| ours(times)), ("thread-local", &mut |times| local(times))],
    )
}

/// A guard against preemption, and a counter of the thread's with a look when it is zero again.
pub(crate) fn no_preempt(limits: &Limits) -> Vec<Series> {
    #[inline(never)]
    fn ours(times: u32) {
        for _ in 0..times {
            drop(preempt::disable());
        }
    }
    #[inline(never)]
    fn counter(times: u32) {
        thread_local! {
            static COUNT: AtomicU32 = const { AtomicU32::new(0) };
        }
        for _ in 0..times {
            COUNT.with(|count| {
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                compiler_fence(Ordering::SeqCst);
                let left = count.load(Ordering::Relaxed) - 1;
                count.store(left, Ordering::Relaxed);
                if left == 0 {
                    look();
                }
            });
        }
    }
    preempt::install().expect("installs");
    let _attached = threadreg::attach().expect("attaches");
    limits.sides(
        BATCH,
        &mut [("ours", &mut |times| ours(times)), ("counter", &mut |times| counter(times))],
    )
}
