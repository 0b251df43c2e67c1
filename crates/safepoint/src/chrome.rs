//! The timeline in the Trace Event Format, which `ui.perfetto.dev` and `chrome://tracing` read.

use core::time::Duration;
use std::io::{self, Write};

use serde_json::{Value, json};
use sigctx::sys::Tid;
use threadreg::Label;

use crate::timeline::{
    ForEachSpan, HandshakeSpan, MutatorTrack, NudgeMark, Span, StopSpan, Timeline,
};

impl Timeline {
    /// Writes the timeline for `ui.perfetto.dev` and `chrome://tracing`: a track for each mutator, one for stops, one
    /// for for-eaches, and one for handshakes, which may overlap.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    ///
    /// # References
    ///
    /// "Trace Event Format" of Chromium; <https://perfetto.dev/docs/getting-started/other-formats>
    #[doc(alias = "perfetto")]
    pub fn to_chrome_json(&self, to: impl Write) -> io::Result<()> {
        let events = requests(self).chain(self.mutators().iter().flat_map(of_mutator));
        let events: Vec<_> = events.collect();
        let all = json!({
            "traceEvents": events,
            "displayTimeUnit": "ns",
            "otherData": { "dropped events": self.dropped() },
        });
        serde_json::to_writer(to, &all).map_err(io::Error::from)
    }
}

/// Tracks for the stops, the for-eaches and the handshakes.
fn requests(timeline: &Timeline) -> impl Iterator<Item = Value> {
    const STOPS: Tid = -1;
    const FOR_EACHES: Tid = -2;
    const HANDSHAKES: Tid = -3;
    let names =
        [(STOPS, "stops of the world"), (FOR_EACHES, "for-eaches"), (HANDSHAKES, "handshakes")];
    let names = names.into_iter().map(|(tid, name)| named(tid, name));
    let stops = timeline.stops().iter().flat_map(|stop| {
        let StopSpan { reason, requested, started, stopped, ended, mutators, last } = *stop;
        let all_stopped = stopped.unwrap_or(ended);
        let last = last.map(|last| timeline.mutators()[last].name.to_string());
        let asked = json!({
            "mutators": mutators,
            "given up": stopped.is_none(),
            "queued_us": microseconds(started.saturating_sub(requested)),
            "last to stop": last,
        });
        let stopping = lasting(STOPS, "stop", "stopping", started, all_stopped, &asked);
        let held = stopped.map(|stopped| {
            lasting(
                STOPS,
                "stop",
                reason.as_str(),
                stopped,
                ended,
                &json!({ "mutators": mutators }),
            )
        });
        [stopping].into_iter().chain(held)
    });
    let eaches = timeline.for_eaches().iter().map(|each| {
        let ForEachSpan { requested, ended, visited } = *each;
        let args = json!({ "visited": visited });
        lasting(FOR_EACHES, "for_each", "for each mutator", requested, ended, &args)
    });
    // Events of a kind of their own: those of one track may overlap, where complete events have to nest.
    let handshakes = timeline.handshakes().iter().enumerate().flat_map(|(id, handshake)| {
        let HandshakeSpan { requested, ended, asked, answered, target, given_up } = *handshake;
        let target = target.map(|target| timeline.mutators()[target].name.to_string());
        let args = json!({
            "asked": asked, "answered": answered, "given up": given_up, "mutator": target,
        });
        [("b", requested), ("e", ended)].map(|(phase, at)| {
            json!({
                "name": "handshake", "cat": "handshake", "ph": phase, "id": id, "pid": PROCESS,
                "tid": HANDSHAKES, "ts": microseconds(at), "args": args,
            })
        })
    });
    names.chain(stops).chain(eaches).chain(handshakes)
}

/// As the format has times: microseconds, with fractions.
fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

const PROCESS: u32 = 1;

/// The name of a track.
fn named(tid: Tid, name: &str) -> Value {
    json!({ "name": "thread_name", "ph": "M", "pid": PROCESS, "tid": tid, "args": { "name": name } })
}

/// A complete event.
fn lasting(tid: Tid, kind: &str, name: &str, from: Duration, to: Duration, args: &Value) -> Value {
    let lasts = microseconds(to.saturating_sub(from));
    json!({
        "name": name, "cat": kind, "ph": "X", "pid": PROCESS, "tid": tid,
        "ts": microseconds(from), "dur": lasts, "args": args,
    })
}

fn of_mutator(track: &MutatorTrack) -> impl Iterator<Item = Value> {
    let MutatorTrack { tid, name, spans, nudges, .. } = track;
    let label = Label { tid: Some(*tid), name: *name }.to_string();
    let spans = spans.iter().map(|span| {
        let Span { from, to, activity } = *span;
        lasting(*tid, "mutator", activity.name(), from, to, &json!({}))
    });
    let nudges = nudges.iter().map(move |NudgeMark { at, sent }| {
        let name = if *sent { "nudge" } else { "nudge failed" };
        json!({
            "name": name, "cat": "nudge", "ph": "i", "s": "t", "pid": PROCESS, "tid": tid,
            "ts": microseconds(*at),
        })
    });
    [named(*tid, &label)].into_iter().chain(spans).chain(nudges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Glance;
    use crate::tape::Event;
    use crate::timeline::tests::{MUTATOR, handshake, stop, timeline, us};

    #[test]
    fn the_json_has_what_perfetto_wants() {
        let events = |start| {
            let nudge = Event::Nudge(MUTATOR, start + us(120), true);
            // One within the other, and neither's end at the other's.
            let (long, other) = (handshake(start, [300, 500]), handshake(start, [400, 600]));
            vec![nudge, stop(start, [90, 150, 250]), long, other]
        };
        let timeline = timeline(&[(0, Glance::Runs)], events);
        let mut text = Vec::new();
        timeline.to_chrome_json(&mut text).expect("into memory");
        let json: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(json["otherData"]["dropped events"], 2);
        let events = json["traceEvents"].as_array().expect("an array");
        for event in events {
            assert!(event["pid"].is_u64() && event["tid"].is_i64() && event["name"].is_string());
            match event["ph"].as_str().expect("a phase") {
                "M" => assert_eq!(event["name"], "thread_name"),
                "X" => assert!(event["ts"].is_f64() && event["dur"].is_f64()),
                "i" => assert!(event["ts"].is_f64() && event["s"] == "t"),
                "b" | "e" => assert!(event["ts"].is_f64() && event["id"].is_u64()),
                other => panic!("{other}"),
            }
        }
        let find = |name: &str| events.iter().find(|event| event["name"] == name).expect(name);
        let gc = find("gc");
        assert_eq!((gc["ts"].as_f64(), gc["dur"].as_f64()), (Some(150.0), Some(100.0)));
        assert_eq!(find("stopping")["args"]["last to stop"], "<a> & \"b\"");
        assert_eq!(find("nudge")["tid"], 42);
        let handshakes = events.iter().filter(|event| event["cat"] == "handshake");
        let times: Vec<_> = handshakes
            .map(|event| (event["ph"].as_str(), event["id"].as_u64(), event["ts"].as_f64()))
            .collect();
        let at = |phase, id, time| (Some(phase), Some(id), Some(time));
        let expected = [at("b", 0, 300.0), at("e", 0, 500.0), at("b", 1, 400.0), at("e", 1, 600.0)];
        assert_eq!(times, expected);
        assert_eq!(find("handshake")["args"]["mutator"], "<a> & \"b\"");
    }
}
