//! Which threads run in this process? Registered and unregistered ones, and what each is doing.

use std::error::Error;
use std::thread;
use std::time::Duration;

use threadreg::{Builder, Event};

fn main() -> Result<(), Box<dyn Error>> {
    let events = threadreg::subscribe(64);
    let _me = threadreg::attach()?;
    let workers: Vec<_> = (1..=3)
        .map(|n| Builder::new().name(format!("worker {n}")).spawn(thread::park))
        .collect::<Result<_, _>>()?;
    // The registry does not know this one.
    let foreign = thread::Builder::new().name("foreign".into()).spawn(thread::park)?;

    {
        let frozen = threadreg::freeze_creation();
        frozen.wait_all_started(Duration::from_secs(1))?;
        println!("registered:");
        for thread in threadreg::threads() {
            let reached = thread.signal(0).map_or_else(|e| e.to_string(), |()| "reachable".into());
            println!("  {:>3} {:<10} {:?} {reached}", thread.index(), thread.name(), thread.tid());
        }
    }
    println!("\nall threads:\n{}", threadreg::dump());

    for worker in workers {
        worker.unpark();
        worker.join().expect("a worker does not panic");
    }
    foreign.thread().unpark();
    foreign.join().expect("nor does the foreign thread");
    println!("what happened:");
    for event in events.receiver().try_iter() {
        match event {
            Event::Started { tid, name, .. } => println!("  {tid} {name} started"),
            Event::Exited { tid, name, .. } => println!("  {tid} {name} exited"),
            _ => {}
        }
    }
    Ok(())
}
