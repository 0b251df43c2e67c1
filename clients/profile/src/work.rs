//! What there is to find: threads of three kinds.

use std::cmp::Ordering;
use std::ffi::c_void;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};

use preempt::{Slicer, Task};

pub(crate) static OVER: AtomicBool = AtomicBool::new(false);

/// A loop without a call. It is interrupted for its slices.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
fn loop_without_a_call(rounds: &AtomicU64) {
    while !OVER.load(Relaxed) {
        rounds.store(rounds.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

#[inline(never)]
fn work_in_the_hook() {
    black_box((0..black_box(200_000_u64)).map(|i| i ^ (i >> 3)).sum::<u64>());
}

/// A registered thread: a task whose hook works, in the middle of a loop.
pub(crate) fn preempted(slicer: &Slicer) -> std::io::Result<threadreg::JoinHandle<()>> {
    let task = Task::with_hook(|_| work_in_the_hook());
    slicer.add(&task);
    let rounds = AtomicU64::new(0);
    threadreg::Builder::new()
        .name("preempted")
        .spawn(move || task.enter(|| loop_without_a_call(&rounds)).expect("it is its own"))
}

unsafe extern "C" fn compare(a: *const c_void, b: *const c_void) -> i32 {
    // SAFETY: `qsort` gives two elements of its array.
    let [a, b] = [a, b].map(|at| unsafe { *at.cast::<u64>() });
    match black_box(a).cmp(&b) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}

/// A thread that no crate of ours knows, with frames of C between two of its own.
pub(crate) fn foreign() -> std::io::Result<JoinHandle<()>> {
    Builder::new().name("foreign".to_owned()).spawn(|| {
        while !OVER.load(Relaxed) {
            let mut numbers: Vec<u64> = (0..10_000).map(|i| (i * 7_919) % 10_007).collect();
            // SAFETY: the array, its length, the size of an element, and a total order.
            unsafe { libc::qsort(numbers.as_mut_ptr().cast(), numbers.len(), 8, Some(compare)) };
            black_box(numbers);
        }
    })
}
