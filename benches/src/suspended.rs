//! A suspension of a task that runs, beside others that wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use benches::Series;

use crate::stopped::spin;
use crate::threads::{Limits, nap, ready, start_registered, wait_forever, wait_until_ready};

/// Far above what a suspension takes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Suspends the one task that runs, and sees it go on: `ours`, then `again`. The other threads have
/// tasks that wait.
pub(crate) fn task(limits: &Limits) -> Vec<Series> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static END: AtomicBool = AtomicBool::new(false);
    preempt::install().expect("installs");
    // SAFETY: the section holds `spin` alone, which only counts.
    let code = unsafe { preempt::register_code(preempt::preemptible_section!()) };
    let _code = code.expect("the section is not empty");
    for _ in 1..limits.threads {
        start_registered(|| {
            let task = preempt::Task::new();
            let waits = task.enter(|| {
                task.blocking(|| {
                    ready();
                    wait_forever()
                })
            });
            waits.expect("enters").expect("is inside");
        });
    }
    let task = preempt::Task::new();
    let runs = task.clone();
    start_registered(move || {
        runs.enter(|| {
            ready();
            spin(&END, &COUNT);
        })
        .expect("enters");
    });
    wait_until_ready(limits.threads.max(1));
    let (mut suspend, mut again) = (Series::new("ours"), Series::new("again"));
    limits.repeat(5, |counts| {
        let begin = Instant::now();
        let suspended = task.suspend(TIMEOUT).expect("suspends");
        let time = begin.elapsed();
        let seen = COUNT.load(Ordering::SeqCst);
        let begin = Instant::now();
        suspended.resume();
        while COUNT.load(Ordering::Relaxed) == seen {
            std::hint::spin_loop();
        }
        let until_it_runs = begin.elapsed();
        if counts {
            suspend.add(time);
            again.add(until_it_runs);
        }
        nap();
    });
    vec![suspend, again]
}
