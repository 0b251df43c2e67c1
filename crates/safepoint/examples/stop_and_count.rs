//! How do I stop all threads of my runtime, look at something, and see what the stop cost?
//!
//! Two mutators count, one blocks in a read; the main thread stops them a few times.

use std::error::Error;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use safepoint::{Reason, World};

fn main() -> Result<(), Box<dyn Error>> {
    let world = World::new();
    println!("fences: {:?}", world.fences());
    let (counted, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (mut reader, mut writer) = std::io::pipe()?;

    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut mutator = world.attach().expect("a thread of its own");
                while !done.load(Ordering::Relaxed) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    mutator.poll();
                }
            });
        }
        scope.spawn(|| {
            let mut mutator = world.attach().expect("a thread of its own");
            let mut byte = [0];
            // No stop interrupts this, and none waits for it.
            mutator.blocking(|| reader.read_exact(&mut byte)).expect("the pipe is written to");
        });
        thread::sleep(Duration::from_millis(20));

        let mut mutator = world.attach()?;
        for _ in 0..3 {
            let stopped = mutator.stop_the_world(Reason::GC)?;
            let before = counted.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
            let moved = counted.load(Ordering::Relaxed) - before;
            let stats = stopped.stats();
            println!(
                "{} stopped in {:?}; counted meanwhile: {moved}",
                stats.mutators, stats.time_to_stop
            );
            for mutator in stopped.mutators() {
                println!("  thread {}", mutator.thread().tid().unwrap_or(0));
            }
            stopped.resume();
        }
        let visited = mutator.for_each_processor(|p| {
            println!(
                "mutator {}: visited by {}",
                p.index(),
                if p.is_current() { "its own thread" } else { "the requester" }
            );
        })?;
        println!("{visited} visited, none stopped; counted {}", counted.load(Ordering::Relaxed));

        done.store(true, Ordering::Relaxed);
        writer.write_all(b"!")?;
        Ok(())
    })
}
