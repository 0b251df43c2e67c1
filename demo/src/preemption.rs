//! Interrupting a loop that never polls, and looking at one.

use std::error::Error;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use sigctx::probe::Patterned;

use crate::cast::{Cast, PATIENCE};
use crate::report::{Section, human, progress};

/// Step 3: interrupt the loop that holds a pattern in every register; each interruption overwrites
/// them all.
pub(crate) fn interrupt(cast: &Cast, times: u64) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("3. Interrupt a loop that never polls");
    // The other loops make room, so that what is measured is not the scheduler.
    cast.rest(true);
    let others = cast.spinning.suspend(PATIENCE)?;
    let (preemptions, compared) = (&cast.shared.preemptions, &cast.shared.compared);
    let (first, first_compared) = (preemptions.load(SeqCst), compared.load(SeqCst));
    let mut latency = Histogram::<u64>::new(3)?;
    let bar = progress("interrupting the loop", times);
    let mut answered = 0;
    while answered < times {
        // The loop comes out to be compared after each; only inside is it interrupted.
        let (before, compare) = (preemptions.load(SeqCst), compared.load(SeqCst));
        let start = Instant::now();
        while preemptions.load(SeqCst) == before && start.elapsed() < PATIENCE {
            cast.patterned.request()?;
            // Asked while the loop was out to be compared, it was not interrupted: ask again.
            wait_for(Duration::from_micros(500), || preemptions.load(SeqCst) != before);
        }
        if preemptions.load(SeqCst) == before {
            break;
        }
        latency.record(start.elapsed().as_nanos() as u64)?;
        answered += 1;
        wait_for(PATIENCE, || compared.load(SeqCst) != compare);
        bar.inc(1);
    }
    bar.finish_and_clear();
    others.resume();
    cast.rest(false);
    let compared = compared.load(SeqCst) - first_compared;

    let differences = cast.differences.lock().map_err(|_| "the loop panicked")?.clone();
    let at = |quantile| human(Duration::from_nanos(latency.value_at_quantile(quantile)));
    section.table(
        &["interruptions", "compared", "p50", "p99", "vectors"],
        [vec![
            answered.to_string(),
            compared.to_string(),
            at(0.5),
            at(0.99),
            Patterned::level().to_string(),
        ]],
    );
    for difference in differences.iter().take(10) {
        section.text(format!("changed: {difference:x?}"));
    }
    section.check(format!("{times} interruptions"), answered == times);
    section.check("all registers compared after each", compared as u64 >= times);
    let intact = differences.is_empty();
    section.check("no register, flag, vector or red-zone byte changed", intact);
    section.data(json!({
        "interruptions": preemptions.load(SeqCst) - first,
        "differences": differences.len(),
        "latency_ns": {
            "p50": latency.value_at_quantile(0.5),
            "p99": latency.value_at_quantile(0.99),
        },
    }));
    Ok(section)
}

/// Waits for `come`, at most `patience`.
fn wait_for(patience: Duration, come: impl Fn() -> bool) {
    let start = Instant::now();
    while !come() && start.elapsed() < patience {
        std::thread::yield_now();
    }
}

/// Step 4: suspend a loop, and look at its registers and its stack.
pub(crate) fn look(cast: &Cast) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("4. Suspend it and look");
    let stopped = cast.spinning.suspend(PATIENCE)?;
    let worked = cast.work();
    let (registers, pc) = (stopped.registers().copied(), stopped.pc());
    let backtrace = stopped.backtrace().map(|b| b.to_string()).unwrap_or_default();
    let spinner = cast.members.iter().position(|m| Some(m.thread.thread()) == stopped.thread());
    let stood = spinner.is_some_and(|i| cast.work()[i] == worked[i]);
    let name = stopped.thread().map(|t| t.name().to_string()).unwrap_or_default();
    section.text(format!("thread {name}, stopped at {:?}", stopped.stopped_at()));
    stopped.resume();

    section.text(registers.map(|r| r.to_string()).unwrap_or_default());
    section.text(innermost(&backtrace));
    section.check("it was stopped at an instruction of registered code", {
        pc.is_some_and(preempt::is_registered_code)
    });
    section.check("it did no work while suspended", stood);
    section.check(
        "the backtrace leads through the injected call into the loop and its caller",
        ["spin_without_polls", "Cast::mutators"].iter().all(|f| backtrace.contains(f)),
    );
    let goes_on = || spinner.is_some_and(|i| cast.work()[i] > worked[i]);
    wait_for(PATIENCE, goes_on);
    section.check("it goes on when resumed", goes_on());
    section.data(json!({
        "registers": registers.map(|r| {
            r.iter().map(|(name, value)| (name, format!("{value:#x}"))).collect::<Vec<_>>()
        }),
        "backtrace": backtrace.lines().map(str::trim).collect::<Vec<_>>(),
    }));
    Ok(section)
}

/// The frames from the injected call to the thread's start, without the source lines and without
/// the machinery of the backtrace itself.
fn innermost(backtrace: &str) -> String {
    let frames = backtrace.lines().filter(|line| !line.trim_start().starts_with("at "));
    let names = frames.map(str::trim_start);
    let from_call = names.skip_while(|line| !line.contains("sigctx::inject::run"));
    from_call.take(8).collect::<Vec<_>>().join("\n")
}
