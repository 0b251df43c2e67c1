//! How threads are made, found and listed, and what each takes.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::sync::Mutex;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use benches::Series;
use threadreg::{Attached, JoinHandle};

use crate::threads::{Limits, ready, wait_forever, wait_until_ready};

/// A thread made and joined, by std and by us. Not from the main thread, whose stack libc looks up in a
/// file each time.
pub(crate) fn spawn(limits: &Limits) -> Vec<Series> {
    const BATCH: u32 = 5;
    let time = |one: fn()| {
        let begin = Instant::now();
        (0..BATCH).for_each(|_| one());
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH)
    };
    let compare = || {
        let (mut ours, mut std) = (Series::new("ours"), Series::new("std"));
        limits.repeat(5, |counts| {
            let theirs = time(|| thread::spawn(|| ()).join().expect("no panic"));
            let own = time(|| threadreg::spawn(|| ()).join().expect("no panic"));
            if counts {
                std.add_nanoseconds(theirs);
                ours.add_nanoseconds(own);
            }
        });
        vec![ours, std]
    };
    thread::scope(|scope| scope.spawn(compare).join().expect("no panic"))
}

/// What a registry by hand does: a lock, a map, a removal.
fn by_hand() {
    static THREADS: Mutex<Option<HashMap<ThreadId, usize>>> = Mutex::new(None);
    let me = thread::current().id();
    THREADS.lock().expect("no panic").get_or_insert_default().insert(me, 1);
    THREADS.lock().expect("no panic").get_or_insert_default().remove(&me);
}

/// A thread that registers itself and leaves.
pub(crate) fn attach(limits: &Limits) -> Vec<Series> {
    // The first one sets the registry up.
    drop(threadreg::attach().expect("attaches"));
    let compare = || {
        let mut ours =
            |n| (0..n).for_each(|_| threadreg::attach().map(Attached::detach).expect("attaches"));
        let mut map = |n| (0..n).for_each(|_| by_hand());
        limits.sides(200, &mut [("ours", &mut ours), ("map", &mut map)])
    };
    thread::scope(|scope| scope.spawn(compare).join().expect("no panic"))
}

/// Every thread looked at once: by the registry, by a vector that does not change; by `/proc` through us
/// and through std. A sample is one thread's share.
pub(crate) fn walk(limits: &Limits) -> Vec<Series> {
    let body = || {
        ready();
        wait_forever()
    };
    let spawn = |_| threadreg::Builder::new().stack_size(64 << 10).spawn(body);
    let threads: Vec<JoinHandle<()>> =
        (0..limits.threads).map(spawn).collect::<Result<_, _>>().expect("so many threads");
    wait_until_ready(limits.threads);
    let list: Vec<_> = threads.iter().map(JoinHandle::thread).collect();
    let read_dir = || fs::read_dir("/proc/self/task").expect("/proc").flatten().count();
    let mut sides = limits.sides(
        1,
        &mut [
            ("ours", &mut |_| _ = black_box(threadreg::threads().count())),
            ("vector", &mut |_| _ = black_box(list.iter().filter(|t| t.is_alive()).count())),
            ("os_threads", &mut |_| _ = black_box(threadreg::os_threads().expect("/proc"))),
            ("read_dir", &mut |_| _ = black_box(read_dir())),
        ],
    );
    for side in &mut sides {
        side.divide(limits.count());
    }
    sides
}

/// Resident memory of this process, in KiB.
///
/// # Panics
///
/// There is no `/proc`.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn memory_of(limits: &Limits, name: &'static str, start: fn()) -> Vec<Series> {
    // What the first thread brings in belongs to the process.
    start();
    wait_until_ready(1);
    let before = resident();
    (0..limits.threads).for_each(|_| start());
    wait_until_ready(limits.threads + 1);
    thread::sleep(Duration::from_millis(50));
    vec![Series::of(name, (resident() - before) / limits.count())]
}

/// What a thread keeps resident that is made by us.
pub(crate) fn memory(limits: &Limits) -> Vec<Series> {
    memory_of(limits, "ours", || {
        drop(threadreg::spawn(|| {
            ready();
            wait_forever()
        }));
    })
}

/// The same, made by std.
pub(crate) fn memory_std(limits: &Limits) -> Vec<Series> {
    memory_of(limits, "std", || {
        drop(thread::spawn(|| {
            ready();
            wait_forever()
        }));
    })
}
