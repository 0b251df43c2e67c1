//! `--timeline FILE`: some stops and a for-each, recorded and drawn.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use safepoint::{Activity, RecordingOptions, StopOptions};
use serde_json::json;

use crate::cast::{Cast, PATIENCE};
use crate::report::{Section, human};

/// Between two stops.
const REST: Duration = Duration::from_millis(4);
/// How long each stop holds the world.
const HOLD: Duration = Duration::from_millis(2);
/// In one stop, when mutators that do not poll are nudged: late enough to be seen.
const PATIENT: Duration = Duration::from_millis(3);

/// Records some stops and a for-each, and draws them.
pub(crate) fn draw(cast: &Cast, file: &Path) -> Result<Section, Box<dyn Error>> {
    let mut section = Section::new("Timeline");
    let options = RecordingOptions::new().interval(Duration::from_micros(50));
    let recording = cast.world.record(options)?;
    // A mutator as well: the row of one that makes requests.
    let mut me = cast.world.attach()?;
    me.blocking(|| thread::sleep(REST / 2));
    for (reason, nudge_after) in
        [("gc", None), ("code", None), ("gc, patient", Some(PATIENT)), ("dump", None)]
    {
        let mut options = StopOptions::new(reason).timeout(PATIENCE);
        options.nudge_after = nudge_after;
        let stopped = me.stop_with(options)?;
        let since = Instant::now();
        while since.elapsed() < HOLD {
            thread::yield_now();
        }
        stopped.resume();
        me.blocking(|| thread::sleep(REST));
    }
    me.for_each_processor(|_| ())?;
    me.blocking(|| thread::sleep(REST / 2));
    drop(me);
    let timeline = recording.finish();

    let mut to = BufWriter::new(File::create(file)?);
    if file.extension().is_some_and(|extension| extension == "json") {
        timeline.to_chrome_json(&mut to)?;
    } else {
        timeline.to_svg(&mut to)?;
    }
    to.flush()?;
    let spans = timeline.mutators().iter().flat_map(|track| &track.spans);
    let mut runs = spans.filter(|span| matches!(span.activity, Activity::Running | Activity::Late));
    let is_in_a_stop = |span: &safepoint::Span| {
        let mut stops = timeline.stops().iter();
        stops.any(|stop| stop.stopped.is_some_and(|at| span.from < stop.ended && span.to > at))
    };
    section.text(format!(
        "{} stops and {} for-each of {} mutators in {}: {}",
        timeline.stops().len(),
        timeline.for_eaches().len(),
        timeline.mutators().len(),
        human(timeline.length()),
        file.display(),
    ));
    section.check("no mutator is shown to run in a stop", !runs.any(is_in_a_stop));
    section.check("no event was dropped", timeline.dropped() == 0);
    section.data(json!({
        "file": file,
        "stops": timeline.stops().len(),
        "length_ns": timeline.length().as_nanos() as u64,
    }));
    Ok(section)
}
