//! Stop-the-world and for-each-processor.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use safepoint::StopOptions;
use serde_json::json;

use crate::cast::{Cast, PATIENCE};
use crate::report::{Section, human, progress};

/// Before the steps: lists the threads.
pub(crate) fn introduce(cast: &Cast) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("The threads");
    let threads = threadreg::os_threads()?;
    section.table(
        &["tid", "name", "registered", "what it does"],
        threads.iter().map(|thread| {
            let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", thread.tid));
            vec![
                thread.tid.to_string(),
                name.unwrap_or_default().trim_end().to_owned(),
                if thread.registered.is_some() { "yes" } else { "no" }.to_owned(),
                thread.registered.map_or("not ours", |thread| cast.kind(thread)).to_owned(),
            ]
        }),
    );
    let found = cast.members.iter().all(|member| {
        threads.iter().any(|thread| thread.registered == Some(member.thread.thread()))
    });
    section.check("every registered thread is in /proc/self/task", found);
    section.data(json!({ "threads": threads.as_slice().len(), "registered": cast.members.len() }));
    Ok(section)
}

/// Step 1: stop the world, again and again.
pub(crate) fn stop_the_world(cast: &Cast, stops: u64) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("1. Stop the world");
    let mut times = Histogram::<u64>::new(3)?;
    let mut last = BTreeMap::<&str, u64>::new();
    let (mut moved, mut counted) = (0, true);
    let bar = progress("stopping the world", stops);
    for i in 0..stops as usize {
        // A stop right after a stop would find all threads where the last one left them.
        cast.wait_until_works(&cast.members[i % cast.members.len()])?;
        let options = StopOptions::new("demo").timeout(PATIENCE);
        let stopped = cast.world.stop_from_outside_with(options)?;
        let before = cast.work();
        let stats = stopped.stats();
        times.record(stats.time_to_stop.as_nanos() as u64)?;
        *last
            .entry(
                stopped
                    .last_to_stop()
                    .map_or("none had to be waited for", |last| cast.kind(last.thread)),
            )
            .or_default() += 1;
        counted &= stats.mutators == cast.members.len();
        moved += u64::from(cast.work() != before);
        drop(stopped);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let at = |quantile| human(Duration::from_nanos(times.value_at_quantile(quantile)));
    section.table(
        &["stops", "p50", "p99", "max"],
        [vec![stops.to_string(), at(0.5), at(0.99), at(1.0)]],
    );
    section.table(
        &["last to stop", "times"],
        last.iter().map(|(who, times)| vec![(*who).to_owned(), times.to_string()]),
    );
    section.check(format!("{} mutators counted at every stop", cast.members.len()), counted);
    section.check("no mutator did any work in a stopped world", moved == 0);
    section.data(json!({
        "stops": stops,
        "time_to_stop_ns": {
            "p50": times.value_at_quantile(0.5),
            "p99": times.value_at_quantile(0.99),
            "max": times.max(),
        },
        "last": last,
    }));
    Ok(section)
}

/// Step 2: run a function once on every processor, round after round.
pub(crate) fn for_each_processor(cast: &Cast, rounds: u64) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("2. For each processor");
    let mut me = cast.world.attach()?;
    let processors = cast.members.len() + 1;
    let ran: Vec<_> = (0..processors).map(|_| Ran::default()).collect();
    let mut exact = true;
    let mut times = Histogram::<u64>::new(3)?;
    let bar = progress("running on every processor", rounds);
    for round in 1..=rounds {
        let start = std::time::Instant::now();
        me.for_each_processor(|processor| {
            let ran = &ran[processor.index()];
            ran.times.fetch_add(1, Relaxed);
            ran.tid.store(processor.thread().tid().unwrap_or(0) as usize, Relaxed);
            ran.own.fetch_add(usize::from(processor.is_current()), Relaxed);
        })?;
        times.record(start.elapsed().as_nanos() as u64)?;
        exact &= ran.iter().all(|ran| ran.times.load(Relaxed) as u64 == round);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let kind = |tid| {
        let member =
            cast.members.iter().find(|m| m.thread.thread().tid().unwrap_or(0) as usize == tid);
        member.map_or("the one that asks", |member| member.kind)
    };
    section.table(
        &["processor", "what it does", "runs", "on its thread", "for it, while safe"],
        ran.iter().enumerate().map(|(i, ran)| {
            let (times, own) = (ran.times.load(Relaxed), ran.own.load(Relaxed));
            vec![
                i.to_string(),
                kind(ran.tid.load(Relaxed)).to_owned(),
                times.to_string(),
                own.to_string(),
                (times - own).to_string(),
            ]
        }),
    );
    let p50 = Duration::from_nanos(times.value_at_quantile(0.5));
    section.text(format!("a round: {} (p50)", human(p50)));
    section.check("each processor ran it exactly once in every round", exact);
    section.data(json!({
        "rounds": rounds,
        "processors": processors,
        "round_ns_p50": times.value_at_quantile(0.5),
    }));
    Ok(section)
}

/// What one processor ran.
#[derive(Default)]
struct Ran {
    times: AtomicUsize,
    own: AtomicUsize,
    tid: AtomicUsize,
}
