//! A call on every thread. The threads are parked, in a system call (`read`), or spinning (`spin`).

use std::io::Read as _;
use std::time::{Duration, Instant};

use allthreads::{AllThreads, Barrier, Batch};
use benches::Series;

use crate::threads::{Limits, ready, start, wait_forever, wait_until_ready};

/// Far above what an operation takes.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Each barrier, with the name of its series.
const BARRIERS: [(&str, Barrier); 3] =
    [("strict", Barrier::Strict), ("early", Barrier::Early), ("one-phase", Barrier::OnePhase)];

/// What the threads do, and how many calls an operation makes: `park`, `read`, `spin`, `batch`.
pub(crate) fn operations(limits: &Limits) -> Vec<Series> {
    let word = limits.word.as_str();
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    for _ in 0..limits.threads {
        match word {
            "spin" => start(|| {
                ready();
                loop {
                    std::hint::spin_loop();
                }
            }),
            "read" => {
                let mut reader = reader.try_clone().expect("a descriptor");
                start(move || {
                    ready();
                    // Nothing is written.
                    _ = reader.read(&mut [0]);
                });
            }
            _ => start(|| {
                ready();
                wait_forever()
            }),
        }
    }
    wait_until_ready(limits.threads);
    // SAFETY: it has no argument.
    let uid = unsafe { libc::getuid() } as usize;
    let mut batch = Batch::new();
    for _ in 0..if word == "batch" { 5 } else { 1 } {
        // SAFETY: no pointers; each thread has this id already.
        batch = unsafe { batch.call(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]) };
    }
    let share =
        Limits { budget: limits.budget / BARRIERS.len() as u32, word: word.to_owned(), ..*limits };
    // One after the other, as the peers do it: an operation ends before its threads are back at what they did,
    // and the next one waits for that. Each side bears what it leaves behind.
    let measure = |&(name, barrier): &(&'static str, Barrier)| {
        let mut series = Series::new(name);
        share.repeat(2, |counts| {
            let operation = AllThreads::new().barrier(barrier).timeout(TIMEOUT);
            let begin = Instant::now();
            let report = operation.batch(&batch).expect("every thread comes");
            let time = begin.elapsed();
            assert_eq!(report.threads, limits.threads + 1);
            if counts {
                series.add(time);
            }
        });
        series
    };
    BARRIERS.iter().map(measure).collect()
}
