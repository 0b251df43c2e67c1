//! What the registry costs, each time beside what one would use without it, in turns, so that the
//! ratios hold whatever else the machine does.

use std::cell::Cell;
use std::hint::black_box;
use std::thread;

use benches::medians;
use criterion::Criterion;
use threadreg::{Attached, JoinHandle};

thread_local! {
    static PLAIN: Cell<usize> = const { Cell::new(1) };
}

/// Prints the times of one of `parts`.
fn report(what: &str, times: [f64; 2], parts: u32) {
    let [theirs, ours] = times.map(|time| time / f64::from(parts));
    println!("{what:<44} {theirs:>12.1} ns {ours:>12.1} ns  ratio {:.3}", ours / theirs);
}

fn std_thread() {
    thread::spawn(|| ()).join().expect("no panic");
}

fn registered_thread() {
    threadreg::spawn(|| ()).join().expect("no panic");
}

/// What a registry by hand does: a lock, a map, a removal.
fn by_hand() {
    use std::collections::HashMap;
    use std::sync::Mutex;
    static THREADS: Mutex<Option<HashMap<thread::ThreadId, usize>>> = Mutex::new(None);
    let me = thread::current().id();
    THREADS.lock().expect("no panic").get_or_insert_default().insert(me, 1);
    THREADS.lock().expect("no panic").get_or_insert_default().remove(&me);
}

fn read_dir() -> usize {
    let tids = std::fs::read_dir("/proc/self/task").expect("/proc");
    let number = |name: std::ffi::OsString| name.to_str()?.parse::<i32>().ok();
    tids.filter_map(|tid| number(tid.expect("reads").file_name())).count()
}

/// Threads that stay until they are let go.
fn parked(count: usize) -> Vec<JoinHandle<()>> {
    let body = || thread::park();
    (0..count)
        .map_while(|_| threadreg::Builder::new().stack_size(16 << 10).spawn(body).ok())
        .collect()
}

fn end(threads: Vec<JoinHandle<()>>) {
    for thread in &threads {
        thread.unpark();
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
}

fn main() {
    // Not on the main thread, whose stack libc looks up in a file each time.
    thread::spawn(compare).join().expect("no panic");
}

fn compare() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("registry");
    group.bench_function("std spawn + join", |b| b.iter(std_thread));
    group.bench_function("spawn + join", |b| b.iter(registered_thread));
    group.bench_function("attach + detach", |b| {
        b.iter(|| threadreg::attach().map(Attached::detach).expect("attaches"));
    });
    let me = threadreg::attach().expect("attaches");
    group.bench_function("current", |b| b.iter(threadreg::current));
    group.finish();
    criterion.final_summary();

    println!("\n{:<44} {:>15} {:>15}", "", "without", "threadreg");
    report("spawn + join", medians(2000, 5, &mut [&mut std_thread, &mut registered_thread]), 1);
    let mut load = || {
        black_box(PLAIN.get());
    };
    let mut current = || {
        black_box(threadreg::current());
    };
    report(
        "a thread-local's load, current",
        medians(200, 100_000, &mut [&mut load, &mut current]),
        1,
    );
    drop(me);
    let mut attach = || threadreg::attach().map(Attached::detach).expect("attaches");
    report(
        "a map under a lock, attach + detach",
        medians(200, 200, &mut [&mut by_hand, &mut attach]),
        1,
    );

    for wanted in [10, 1000, 10_000] {
        let threads = parked(wanted);
        let count = threads.len() as u32;
        let list: Vec<_> = threads.iter().map(JoinHandle::thread).collect();
        let batch = 100_000 / count.max(1);
        // The least that would do: a list that does not change.
        let mut plain = || {
            black_box(list.iter().filter(|thread| thread.is_alive()).count());
        };
        let mut walk = || {
            black_box(threadreg::threads().count());
        };
        let times = medians(50, batch, &mut [&mut plain, &mut walk]);
        report(&format!("a vector's entry, a record, of {count}"), times, count);
        let mut plain = || {
            black_box(read_dir());
        };
        let mut all = || {
            black_box(threadreg::os_threads().expect("/proc"));
        };
        let times = medians(10, 3, &mut [&mut plain, &mut all]);
        report(&format!("read_dir's entry, os_threads', of {count}"), times, count);
        end(threads);
    }
}
