//! A stop of the world, a for-each, and a handshake, with threads that poll, that are safe, or that do neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use benches::Series;
use safepoint::{HandshakeOptions, World};

use crate::threads::{Limits, nap, ready, start, start_registered, wait_forever, wait_until_ready};

/// Stops that are not counted: the first ones touch memory that no one has used.
const WARM: usize = 3;

/// Some work: a poll comes every few nanoseconds.
fn work(x: u64) -> u64 {
    (0..5).fold(x, |x, _| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
}

/// # Panics
///
/// A thread cannot attach.
fn pollers(world: &World, count: usize) {
    for _ in 0..count {
        let world = world.clone();
        start(move || {
            let mut me = world.attach().expect("attaches");
            ready();
            let mut x = 1;
            loop {
                x = std::hint::black_box(work(x));
                me.poll();
            }
        });
    }
    wait_until_ready(count);
}

/// # Panics
///
/// A thread cannot attach.
fn safe(world: &World, count: usize) {
    for _ in 0..count {
        let world = world.clone();
        start(move || {
            let mut me = world.attach().expect("attaches");
            me.blocking(|| {
                ready();
                wait_forever()
            });
        });
    }
    wait_until_ready(count);
}

/// Counts and never polls. Every instruction is a safe point.
#[unsafe(link_section = "preemptible")]
#[inline(never)]
pub(crate) fn spin(end: &AtomicBool, count: &AtomicU64) {
    let mut n = 0_u64;
    while !end.load(Ordering::Relaxed) {
        n = n.wrapping_add(1);
        count.store(n, Ordering::Relaxed);
    }
}

/// # Panics
///
/// A stop fails, or does not count all.
fn stops(world: &World, limits: &Limits) -> Vec<Series> {
    let (mut stop, mut resume) = (Series::new("ours"), Series::new("resume"));
    limits.repeat(WARM, |counts| {
        let begin = Instant::now();
        let stopped = world.stop_from_outside("bench").expect("stops");
        let time = begin.elapsed();
        assert_eq!(stopped.stats().mutators, limits.threads);
        let begin = Instant::now();
        stopped.resume();
        let resumed = begin.elapsed();
        if counts {
            stop.add(time);
            resume.add(resumed);
        }
        nap();
    });
    vec![stop, resume]
}

/// Stops threads that poll.
pub(crate) fn stop_poll(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    pollers(&world, limits.threads);
    stops(&world, limits)
}

/// Stops threads that are in safe regions.
pub(crate) fn stop_safe(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    safe(&world, limits.threads);
    stops(&world, limits)
}

/// Stops threads that never poll, by nudges, with the default options.
pub(crate) fn stop_deaf(limits: &Limits) -> Vec<Series> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static END: AtomicBool = AtomicBool::new(false);
    preempt::install().expect("installs");
    // SAFETY: the section holds `spin` alone, which only counts.
    let code = unsafe { preempt::register_code(preempt::preemptible_section!()) };
    let _code = code.expect("the section is not empty");
    let world = World::new();
    // SAFETY: the mutators keep no references into a heap; there is none.
    unsafe { world.set_nudge(Arc::new(preempt::Nudger)) };
    for _ in 0..limits.threads {
        let world = world.clone();
        start_registered(move || {
            let task = preempt::Task::new();
            let _me = world.attach().expect("attaches");
            ready();
            task.enter(|| spin(&END, &COUNT)).expect("enters");
        });
    }
    wait_until_ready(limits.threads);
    stops(&world, limits)
}

/// # Panics
///
/// A for-each fails, or does not visit all.
fn rounds(world: &World, limits: &Limits) -> Vec<Series> {
    let mut me = world.attach().expect("attaches");
    let mut ours = Series::new("ours");
    limits.repeat(WARM, |counts| {
        // Each processor's own, as a runtime has it.
        let visits: Vec<_> = (0..=limits.threads).map(|_| AtomicBool::new(false)).collect();
        let own = &visits[..];
        let begin = Instant::now();
        let visited = me.for_each_processor(move |p| own[p.index()].store(true, Ordering::Relaxed));
        let time = begin.elapsed();
        assert_eq!(visited.expect("visits"), limits.threads + 1);
        assert!(visits.into_iter().all(AtomicBool::into_inner), "once for each");
        if counts {
            ours.add(time);
        }
        nap();
    });
    vec![ours]
}

/// A closure for each of the threads, which poll.
pub(crate) fn each_poll(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    pollers(&world, limits.threads);
    rounds(&world, limits)
}

/// A closure for each of the threads, which are in safe regions.
pub(crate) fn each_safe(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    safe(&world, limits.threads);
    rounds(&world, limits)
}

/// A handshake with one of the threads, and in turns what else reaches it: a for-each, and a stop.
///
/// # Panics
///
/// A request fails, or does not reach all that it is for.
fn handshakes(world: &World, limits: &Limits) -> Vec<Series> {
    let mut me = world.attach().expect("attaches");
    let own = me.id();
    let ids = me.handshake_all(HandshakeOptions::new(), |_| ()).expect("all answer");
    let target = ids.into_iter().map(|(id, _)| id).find(|id| *id != own).expect("one at least");
    let mut ours = Series::new("ours");
    let (mut each, mut stop) = (Series::new("for-each"), Series::new("stop"));
    limits.repeat(WARM, |counts| {
        let answered = AtomicBool::new(false);
        let begin = Instant::now();
        let answer = me.handshake(target, HandshakeOptions::new(), |_| {
            answered.store(true, Ordering::Relaxed);
        });
        let shaken = begin.elapsed();
        answer.expect("answers");
        assert!(answered.into_inner());
        nap();
        let visits = AtomicU64::new(0);
        let begin = Instant::now();
        let visited = me.for_each_processor(|_| _ = visits.fetch_add(1, Ordering::Relaxed));
        let visiting = begin.elapsed();
        assert_eq!(visited.expect("visits"), limits.threads + 1);
        assert_eq!(visits.into_inner(), limits.threads as u64 + 1);
        nap();
        let begin = Instant::now();
        let stopped = me.stop_the_world("bench").expect("stops");
        let stopping = begin.elapsed();
        assert_eq!(stopped.stats().mutators, limits.threads);
        stopped.resume();
        if counts {
            ours.add(shaken);
            each.add(visiting);
            stop.add(stopping);
        }
        nap();
    });
    vec![ours, each, stop]
}

/// A handshake with one of the threads, which poll.
pub(crate) fn handshake_poll(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    pollers(&world, limits.threads);
    handshakes(&world, limits)
}

/// A handshake with one of the threads, which are in safe regions.
pub(crate) fn handshake_safe(limits: &Limits) -> Vec<Series> {
    let world = World::new();
    safe(&world, limits.threads);
    handshakes(&world, limits)
}
