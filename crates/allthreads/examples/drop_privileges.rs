//! How do I drop root on every thread of a program that has threads already?
//!
//! Run as root to see the ids change; as another user, to see what an error tells.

use std::error::Error;
use std::fs;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use allthreads::Batch;

const NOBODY: u32 = 65534;

fn main() -> Result<(), Box<dyn Error>> {
    let started = Arc::new(Barrier::new(5));
    for number in 0..4 {
        let started = Arc::clone(&started);
        thread::Builder::new().name(format!("worker {number}")).spawn(move || {
            started.wait();
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        })?;
    }
    started.wait();
    show("before")?;

    // One stop for all four: no thread ever runs as nobody with root's groups, or as root without.
    let report = Batch::new()
        .set_groups(&[])
        .set_resgid(Some(NOBODY), Some(NOBODY), Some(NOBODY))
        .set_resuid(Some(NOBODY), Some(NOBODY), Some(NOBODY))
        .no_new_privs()
        .apply();
    match report {
        Ok(report) => println!("{} threads changed in {:?}\n", report.threads, report.elapsed),
        Err(error) => println!("refused: {error}\n"),
    }
    show("after")
}

/// What the kernel says about each thread.
fn show(when: &str) -> Result<(), Box<dyn Error>> {
    println!("{when}:");
    for task in fs::read_dir("/proc/self/task")? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().replace('\t', " ")
        };
        println!(
            "  {:>7}  {:<16} uid {:<24} groups {:<8} no_new_privs {}",
            field("Pid:"),
            field("Name:"),
            field("Uid:"),
            format!("[{}]", field("Groups:")),
            field("NoNewPrivs:"),
        );
    }
    Ok(())
}
