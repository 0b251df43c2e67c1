//! A recording shows what mutators and requests did, and nothing else.

use std::thread;
use std::time::Duration;

use crate::common::{Flag, away, mutator};
use safepoint::{
    Activity, Answer, EachOptions, HandshakeError, HandshakeOptions, MutatorTrack, RecordError,
    RecordingOptions, Span, StopOptions, Timeline, World, WorldOptions,
};
use testkit::{forked, in_child};

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(2);

fn of<'t>(timeline: &'t Timeline, name: &str) -> &'t MutatorTrack {
    let found = timeline.mutators().iter().find(|track| track.name.as_str() == name);
    found.unwrap_or_else(|| panic!("{name}: {timeline:?}"))
}

fn between(from: Duration, to: Duration) -> Duration {
    to.checked_sub(from).expect("in order")
}

fn late(track: &MutatorTrack) -> Vec<&Span> {
    track.spans.iter().filter(|span| span.activity == Activity::Late).collect()
}

/// A mutator that is late for one request and one that is in a region, recorded from before to after.
fn recorded(request: impl FnOnce(&World, &Flag)) -> Timeline {
    let (world, come, done) = (World::new(), Flag::default(), Flag::default());
    thread::scope(|scope| {
        mutator(scope, &world, "late", |mutator| {
            come.wait();
            mutator.blocking(|| done.wait());
        });
        away(scope, &world, "away", &done);
        let recording = world.record(RecordingOptions::new()).expect("a thread");
        request(&world, &come);
        let timeline = recording.finish();
        done.raise();
        timeline
    })
}

#[test]
fn a_stop_is_recorded_with_the_mutator_that_was_late_for_it() {
    in_child("recording::a_stop_is_recorded_with_the_mutator_that_was_late_for_it", SOON, || {
        let mut taken = None;
        let timeline = recorded(|world, come| {
            let tell = |_: &_| come.raise();
            let stopped =
                world.stop_from_outside_with(StopOptions::new("gc").on_late(SHORT, &tell));
            let stopped = stopped.expect("no timeout");
            taken = Some(*stopped.stats());
            thread::sleep(SHORT);
        });
        let ([stop], taken) = (timeline.stops(), taken.expect("stopped")) else {
            panic!("{timeline:?}")
        };
        let all_stopped = stop.stopped.expect("not given up");
        assert_eq!((stop.reason.as_str(), stop.mutators), ("gc", 2));
        assert_eq!(between(stop.started, all_stopped), taken.time_to_stop);
        assert_eq!(between(stop.requested, stop.started), taken.queued);
        assert!(between(all_stopped, stop.ended) >= SHORT && stop.ended <= timeline.length());
        let track = of(&timeline, "late");
        let [late] = late(track)[..] else { panic!("{track:?}") };
        assert!(late.from > stop.started, "{track:?}");
        // Exact where it was still seen to run later; a look may have come between its region and the stop's begin.
        assert!(late.to <= all_stopped, "{track:?}");
        let away = of(&timeline, "away");
        let [span] = &away.spans[..] else { panic!("{away:?}") };
        assert_eq!((span.activity, span.to), (Activity::Safe, timeline.length()));
        for track in timeline.mutators() {
            for span in &track.spans {
                let runs = matches!(span.activity, Activity::Running | Activity::Late);
                assert!(!runs || span.to <= all_stopped || span.from >= stop.ended, "{track:?}");
            }
        }
        assert_eq!(timeline.dropped(), 0);
    });
}

#[test]
fn a_for_each_is_recorded_with_the_mutator_that_was_late_for_it() {
    in_child(
        "recording::a_for_each_is_recorded_with_the_mutator_that_was_late_for_it",
        SOON,
        || {
            let timeline = recorded(|world, come| {
                let tell = |_: &_| come.raise();
                let mut mutator = world.attach().expect("a thread of its own");
                let options = EachOptions::new().on_late(SHORT, &tell);
                assert_eq!(
                    mutator.for_each_processor_with(options, |_| ()).expect("no timeout"),
                    3
                );
            });
            let [each] = timeline.for_eaches() else { panic!("{timeline:?}") };
            assert_eq!(each.visited, 3);
            assert!(between(each.requested, each.ended) >= SHORT, "{each:?}");
            let track = of(&timeline, "late");
            let [late] = late(track)[..] else { panic!("{track:?}") };
            assert!(late.from >= each.requested && late.to <= each.ended, "{track:?}");
        },
    );
}

#[test]
fn handshakes_are_recorded_with_whom_they_asked() {
    in_child("recording::handshakes_are_recorded_with_whom_they_asked", SOON, || {
        let timeline = recorded(|world, come| {
            let options = HandshakeOptions::new();
            // Long enough for a look at which it is late.
            let all = world.handshake_all(options.timeout(10 * SHORT), |_| ());
            let Err(HandshakeError::TimedOut { stragglers, .. }) = all else { panic!("{all:?}") };
            assert_eq!(stragglers.len(), 1);
            let mut late = None;
            world
                .handshake_all(options.on_late(SHORT, &|_| come.raise()), |p| {
                    (p.thread().name().as_str() == "late").then(|| p.id())
                })
                .expect("no timeout")
                .into_iter()
                .for_each(|(_, answer)| {
                    if let Answer::Done(Some(id)) = answer {
                        late = Some(id);
                    }
                });
            world.handshake(late.expect("it answers"), options, |_| ()).expect("no timeout");
        });
        let [given_up, all, one] = timeline.handshakes() else { panic!("{timeline:?}") };
        assert_eq!((given_up.asked, given_up.answered, given_up.given_up), (2, 1, true));
        assert_eq!((all.asked, all.answered, all.given_up, all.target), (2, 2, false, None));
        assert_eq!((one.asked, one.answered, one.given_up), (1, 1, false));
        let target = one.target.expect("seen before it was asked");
        assert_eq!(timeline.mutators()[target].name.as_str(), "late");
        for asked in [given_up, all] {
            assert!(between(asked.requested, asked.ended) >= SHORT, "{asked:?}");
            let late = late(of(&timeline, "late"));
            let is_of = |span: &&&Span| span.from >= asked.requested && span.to <= asked.ended;
            assert_eq!(late.iter().filter(is_of).count(), 1, "{late:?} {asked:?}");
        }
        assert!(given_up.ended <= all.requested && all.ended <= one.requested);
    });
}

#[test]
fn a_stop_that_is_given_up_is_recorded_as_that() {
    in_child("recording::a_stop_that_is_given_up_is_recorded_as_that", SOON, || {
        let timeline = recorded(|world, come| {
            let options = StopOptions::new("gc").timeout(SHORT);
            let _error = world.stop_from_outside_with(options).map(drop).unwrap_err();
            come.raise();
        });
        let [stop] = timeline.stops() else { panic!("{timeline:?}") };
        assert!(stop.stopped.is_none() && between(stop.started, stop.ended) >= SHORT, "{stop:?}");
        assert!(!late(of(&timeline, "late")).is_empty(), "{timeline:?}");
    });
}

#[test]
fn what_a_full_recording_misses_is_counted() {
    in_child("recording::what_a_full_recording_misses_is_counted", SOON, || {
        let world = World::new();
        let _mutator = world.attach().expect("a thread of its own");
        // Full from the first look on.
        let recording = world.record(RecordingOptions::new().capacity(1)).expect("a thread");
        let stop = || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let options = StopOptions::new("gc").timeout(Duration::ZERO);
                    world.stop_from_outside_with(options).map(drop).unwrap_err();
                });
            });
        };
        (0..3).for_each(|_| stop());
        let timeline = recording.finish();
        assert_eq!((timeline.stops().len(), timeline.dropped()), (0, 3), "{timeline:?}");
    });
}

#[test]
fn a_world_has_one_recording_at_a_time() {
    in_child("recording::a_world_has_one_recording_at_a_time", SOON, || {
        let world = World::new();
        let record = || world.record(RecordingOptions::new());
        let first = record().expect("a thread");
        assert!(matches!(record(), Err(RecordError::AlreadyRecorded)));
        drop(first);
        let second = record().expect("the first is over");
        assert!(second.finish().stops().is_empty());
        assert!(record().is_ok());
    });
}

/// It has no thread that looks, and the fork may have copied the tape in the middle of a change.
#[test]
fn the_child_of_a_fork_records_anew() {
    in_child("recording::the_child_of_a_fork_records_anew", SOON, || {
        let world = World::new();
        let mut parents = Some(world.record(RecordingOptions::new()).expect("a thread"));
        let status = forked(|| {
            world.stop_from_outside("unseen").expect("stops").resume();
            let own =
                world.record(RecordingOptions::new()).expect("the parent's is not this one's");
            world.stop_from_outside("seen").expect("stops").resume();
            let timeline = own.finish();
            assert_eq!(timeline.stops().len(), 1, "{timeline:?}");
            let timeline = parents.take().expect("copied").finish();
            assert!(timeline.stops().is_empty() && timeline.mutators().is_empty());
        });
        assert_eq!(status, 0);
        let timeline = parents.take().expect("not the child's").finish();
        assert!(timeline.stops().is_empty(), "{timeline:?}");
    });
}

/// It is not one of those that it has stopped.
#[test]
fn a_mutator_that_has_the_world_stopped_is_shown_as_that() {
    in_child("recording::a_mutator_that_has_the_world_stopped_is_shown_as_that", SOON, || {
        for world in [World::new(), World::with_options(WorldOptions::new().roots())] {
            let mut own = world.attach().expect("attached once");
            // The recording's thread may get no processor while the world is stopped.
            testkit::until("it is seen", || {
                let recording = world.record(RecordingOptions::new()).expect("a thread");
                let stopped = own.stop_the_world("gc").expect("no other mutator");
                thread::sleep(SHORT);
                stopped.resume();
                let timeline = recording.finish();
                let mut spans = timeline.mutators().iter().flat_map(|track| &track.spans);
                spans.any(|span| span.activity == Activity::Requesting)
            });
        }
    });
}
